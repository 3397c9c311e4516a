"""The trigger type `stream`: which events go where, in which order, and what they carry (spec/state-stream.md §6.1)."""

from typing import Any

import pytest
import trio
import trio.testing
from module_harness import ask, bind, record
from stream_harness import address, stream

from iii_trio.engine import Call, LocalPeer, Outcome
from iii_trio.protocol import Json


async def put(user: LocalPeer, data: Any, item: str = "i", group: str = "g", name: str = "s") -> None:
    await ask(user, "stream::set", {**address(item, group, name), "data": data})


async def test_events_are_those_that_subscribers_get_with_the_metadata_of_the_binding() -> None:
    async with stream() as (core, user, port):
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"}, metadata={"mine": 1})
        client = await port.connect()
        await client.join()
        await put(user, 1)
        await put(user, None)
        await ask(user, "stream::update", {**address(), "ops": [{"type": "set", "path": "", "value": [2]}]})
        await ask(user, "stream::delete", address())
        await ask(user, "stream::delete", address())
        await ask(user, "stream::send", {**address(None), "type": "t", "data": 3, "id": "x"})
        payloads = await events.wait(5)
        assert payloads == [await client.next() for _ in range(5)]
        assert [payload["event"] for payload in payloads] == [
            {"type": "create", "data": 1},
            {"type": "update", "data": None},
            {"type": "update", "data": [2]},
            {"type": "delete", "data": [2]},
            {"type": "event", "event": {"type": "t", "data": 3}},
        ]
        assert [payload["id"] for payload in payloads] == ["i"] * 4 + ["x"]
        assert events.metadata == [{"mine": 1}] * 5


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ({"stream_name": "s"}, {"s/g/i", "s/g/j", "s/h/i", "s/g/"}),
        ({"stream_name": "s", "group_id": "", "item_id": None}, {"s/g/i", "s/g/j", "s/h/i", "s/g/"}),
        ({"stream_name": "s", "group_id": "g"}, {"s/g/i", "s/g/j", "s/g/"}),
        ({"stream_name": "s", "item_id": "i"}, {"s/g/i", "s/h/i"}),
        ({"stream_name": "s", "group_id": "g", "item_id": "i"}, {"s/g/i"}),
        ({"stream_name": "S"}, set()),
        ({"stream_name": "iii:own"}, {"iii:own/g/i"}),
        ({}, {"s/g/i", "s/g/j", "s/h/i", "t/g/i", "s/g/"}),
        ({"group_id": "h"}, {"s/h/i"}),
    ],
)
async def test_a_binding_gets_what_its_config_names(config: Any, places: set[str]) -> None:
    async with stream() as (core, user, _port):
        events = record(user, "events")
        last = record(user, "last")
        bind(core, user, "stream", "events", config)
        bind(core, user, "stream", "last", {"stream_name": "the end"})
        for name, group, item in [
            ("s", "g", "i"),
            ("s", "g", "j"),
            ("s", "h", "i"),
            ("t", "g", "i"),
            ("iii:own", "g", "i"),
        ]:
            await put(user, 1, item, group, name)
        await ask(user, "stream::send", {**address(None), "type": "t", "data": 0})
        await put(user, 1, name="the end")
        await last.wait(1)
        found = {f"{one['streamName']}/{one['groupId']}/{one['id'] or ''}" for one in events.payloads}
        assert found - {"the end/g/i"} == places


async def test_a_condition_decides_and_the_writer_does_not_wait() -> None:
    async with stream() as (core, user, _port):
        events = record(user, "events")

        def condition(call: Call, data: Json) -> Outcome:
            return Outcome(Json.of(data.decode()["event"]["data"] != "skip"))

        user.register("condition", condition)
        bind(core, user, "stream", "events", {"stream_name": "s", "condition_function_id": "condition"})
        hold = trio.Event()

        async def slow(call: Call, data: Json) -> Json:
            await hold.wait()
            return Json.of(None)

        user.register("slow", slow, task=True)
        bind(core, user, "stream", "slow", {"stream_name": "s"})
        for value in ("skip", "take"):
            await put(user, value)
        [message] = await events.wait(1)
        assert message["event"]["data"] == "take"
        hold.set()


async def test_events_of_one_item_are_handled_in_the_order_of_the_writes() -> None:
    async with stream() as (core, user, _port):
        handled: list[tuple[str, int]] = []
        running = 0

        async def handle(call: Call, data: Json) -> Json:
            nonlocal running
            event = data.decode()
            running += event["id"] == "i"
            assert running <= 1
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            running -= event["id"] == "i"
            handled.append((event["id"], event["event"]["data"]))
            return Json.of(None)

        user.register("handle", handle, task=True)
        bind(core, user, "stream", "handle", {"stream_name": "s"})
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(put, user, number, "i")
                nursery.start_soon(put, user, number, "j")
        await trio.testing.wait_all_tasks_blocked()
        mine = [number for item, number in handled if item == "i"]
        assert sorted(mine) == list(range(10))
        assert (await ask(user, "stream::get", address("i"))) == mine[-1]


async def test_a_binding_registered_again_hears_once() -> None:
    async with stream() as (core, user, _port):
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "t"})
        for _ in range(3):
            bind(core, user, "stream", "events", {"stream_name": "s"})
        await put(user, 1, name="t")
        await put(user, 2)
        assert [one["event"]["data"] for one in await events.wait(1)] == [2]
        await trio.testing.wait_all_tasks_blocked()
        assert len(events.payloads) == 1
        assert port_bindings(_port) == 1


def port_bindings(port: Any) -> int:
    return int(port.module.statistics().bindings)


async def test_streams_that_carry_traces_hand_no_trace_on() -> None:
    async with stream() as (core, user, _port):
        seen: list[str | None] = []

        def handle(call: Call, data: Json) -> Outcome:
            seen.append(call.traceparent)
            return Outcome()

        user.register("handle", handle)
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for name in ("s", "iii:devtools:trace-rows"):
            bind(core, user, "stream", "handle", {"stream_name": name}, id=name)
            sent = {**address(None, name=name), "type": "t", "data": 0}
            await user.invoke("stream::send", Json.of(sent), traceparent=trace)
        await trio.testing.wait_all_tasks_blocked()
        assert seen == [trace, None]


async def test_a_worker_that_leaves_takes_its_bindings_along() -> None:
    async with stream() as (core, user, port):
        record(user, "events")
        binding = bind(core, user, "stream", "events", {"stream_name": "s"})
        assert port_bindings(port) == 1
        core.triggers.unregister(binding.id)
        assert port_bindings(port) == 0


async def test_each_type_says_what_its_functions_get_and_a_join_what_it_may_answer() -> None:
    async with stream() as (core, _user, _port):
        titles = {}
        for claim in core.triggers.types():
            formats = (claim.config_format, claim.call_format, claim.return_format)
            titles[claim.id] = [shown and shown["title"] for shown in (text.decode() for text in formats)]
        subscription = ["StreamSubscriptionTriggerConfig", "StreamSubscription"]
        assert titles == {
            "stream": ["StreamTriggerConfig", "StreamEvent", None],
            "stream:join": [*subscription, "StreamJoinResult"],
            "stream:leave": [*subscription, None],
        }
