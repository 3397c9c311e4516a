"""Streams that another engine keeps: the same answers, and every engine's subscribers hear of every engine's events."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define
from bridge_harness import URL, Reference, Side, Wire, bridged, linked, side
from module_harness import ask, bind, record
from stream_harness import Follower, address

from iii_trio.engine import Outcome
from iii_trio.modules.bridge import Bridge
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import WireError
from iii_trio.testing.raw import open_port

SCRIPT: list[tuple[str, Any]] = [
    ("stream::get", address()),
    ("stream::delete", address()),
    ("stream::list", address(None)),
    ("stream::list_groups", {"stream_name": "s"}),
    ("stream::list_all", {}),
    ("stream::set", {**address(), "data": {"id": "i", "n": 1}}),
    ("stream::set", {**address("j"), "data": None}),
    ("stream::get", address("j")),
    ("stream::update", {**address(), "ops": [{"type": "increment", "path": "n", "by": 2}]}),
    ("stream::update", {**address(), "ops": [{"type": "increment", "path": "id", "by": 2}]}),
    ("stream::update", {**address("new"), "ops": [{"type": "increment", "path": ["x"], "by": 2}]}),
    ("stream::list", address(None)),
    ("stream::list_groups", {"stream_name": "s"}),
    ("stream::list_all", None),
    ("stream::send", {**address(None), "type": "t", "data": 1}),
    ("stream::delete", address()),
    ("stream::list", address(None)),
    ("stream::set", address()),
    ("stream::send", address(None)),
]


async def test_every_answer_is_that_of_an_engine_that_keeps_its_streams_itself() -> None:
    async with (
        bridged() as (near, _far, _wire),
        side() as alone,
        open_port(near.core) as there,
        open_port(alone.core) as here,
    ):
        through, direct = await there.connect(name="t"), await here.connect(name="d")
        for function_id, payload in SCRIPT:
            answers = [await worker.ask(function_id, payload) for worker in (through, direct)]
            for answer in answers:
                del answer["invocation_id"]
            assert answers[0] == answers[1], (function_id, payload)


async def test_subscribers_of_either_engine_hear_of_what_either_writes_and_sends() -> None:
    async with bridged() as (near, far, _wire):
        here, there = await near.port.connect(), await far.port.connect()
        assert (await here.join(), await there.join()) == ([], [])
        for one, item in ((near, "a"), (far, "b")):
            await ask(one.user, "stream::set", {**address(item), "data": {"id": item}})
            await ask(one.user, "stream::update", {**address(item), "ops": [{"type": "set", "path": "n", "value": 1}]})
            await ask(one.user, "stream::send", {**address(None), "type": "wave", "data": item})
            await ask(one.user, "stream::delete", address(item))
            expected = [
                (item, "create", {"id": item}),
                (item, "update", {"id": item, "n": 1}),
                (item, "delete", {"id": item, "n": 1}),
                (None, "event", {"type": "wave", "data": item}),
            ]
            for client in (here, there):
                heard = await client.events(4)
                assert sorted(heard, key=str) == sorted(expected, key=str)
                assert [told for told in heard if told[0] is not None] == expected[:3]


async def test_triggers_hear_once_of_what_their_own_engine_was_asked_for() -> None:
    async with bridged() as (near, far, _wire):
        recorders = []
        for one in (near, far):
            recorders.append(record(one.user, "heard"))
            bind(one.core, one.user, "stream", "heard", {"stream_name": "s"}, metadata={"m": 1})
        here, there = recorders
        await ask(near.user, "stream::set", {**address(), "data": 1})
        await ask(near.user, "stream::send", {**address(None), "type": "t", "data": 2})
        await ask(near.user, "stream::delete", address())
        await ask(near.user, "stream::delete", address())
        await ask(near.user, "stream::update", {**address("x"), "ops": []})
        kinds = [wrapper["event"]["type"] for wrapper in await here.wait(3)]
        assert kinds == ["create", "event", "delete"]
        assert here.metadata == [{"m": 1}] * 3
        await ask(far.user, "stream::set", {**address(), "data": 3})
        assert [wrapper["event"]["type"] for wrapper in await there.wait(4)] == [*kinds, "create"]
        await trio.testing.wait_all_tasks_blocked()
        assert len(here.payloads) == 3


async def test_a_stream_that_a_worker_here_keeps_stays_here() -> None:
    async with bridged() as (near, far, _wire):
        near.user.register("stream::set(s)", lambda _call, _data: _outcome({"old_value": None, "new_value": "kept"}))
        near.user.register("stream::list(s)", lambda _call, _data: _outcome([]))
        client = await near.port.connect()
        await client.join()
        await ask(near.user, "stream::set", {**address(), "data": 1})
        assert await client.event() == ("i", "create", "kept")
        assert await ask(far.user, "stream::list_all") == {"stream": [], "count": 0}


def _outcome(value: Any) -> Outcome:
    return Outcome(Json.of(value))


async def test_followers_end_up_with_what_is_stored_also_over_a_link_that_breaks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bridged() as (near, far, wire):
        client = await near.port.connect()
        follower = Follower()
        client.send("join")
        follower.take(await client.next())
        for number in range(30):
            writer = (near, far)[number % 2]
            if number in (8, 20):
                wire.cut()
                writer = far  # what it writes while the link is away would be lost without a new snapshot
            await ask(
                writer.user, "stream::set", {**address(f"i{number % 4}"), "data": {"id": f"i{number % 4}", "n": number}}
            )
            if number in (9, 21):
                await linked(near)
        await ask(near.user, "stream::delete", address("i3"))
        await trio.testing.wait_all_tasks_blocked()
        while client.messages:
            follower.take(client.messages.popleft())
        stored = await ask(far.user, "stream::list", address(None))
        assert follower.values == {one["id"]: one for one in stored}
        assert follower.stamps == sorted(set(follower.stamps))


async def test_a_join_while_the_other_engine_is_away_is_made_good(autojump_clock: trio.testing.MockClock) -> None:
    async with bridged() as (near, far, wire):
        await ask(far.user, "stream::set", {**address(), "data": 1})
        wire.up = False
        wire.cut()
        client = await near.port.connect()
        client.send("join")
        await trio.sleep(20)
        assert not client.messages
        wire.up = True
        assert await client.event() == (None, "sync", [1])


async def test_failures_are_the_usual_errors(autojump_clock: trio.testing.MockClock) -> None:
    async with bridged() as (near, _far, wire):
        wire.up = False
        wire.cut()
        await trio.sleep(10)
        for function_id, payload, code, text in [
            ("stream::set", {**address(), "data": 1}, "STREAM_SET_ERROR", "Failed to set value"),
            ("stream::get", address(), "STREAM_GET_ERROR", "Failed to get value"),
            ("stream::delete", address(), "STREAM_DELETE_ERROR", "Failed to delete value"),
            ("stream::update", {**address(), "ops": []}, "STREAM_UPDATE_ERROR", "Failed to update value"),
            ("stream::list", address(None), "STREAM_GET_GROUP_ERROR", "Failed to get group"),
            ("stream::list_groups", {"stream_name": "s"}, "STREAM_LIST_GROUPS_ERROR", "Failed to list groups"),
            ("stream::list_all", {}, "STREAM_LIST_ALL_ERROR", "Failed to list stream"),
            ("stream::send", {**address(None), "type": "t", "data": 1}, "STREAM_SEND_ERROR", "Failed to send event"),
        ]:
            with pytest.raises(WireError) as caught:
                await ask(near.user, function_id, payload)
            assert caught.value.code == code
            assert caught.value.message.startswith(f"{text} via bridge: {URL} is not connected")


# -- an engine of another kind ------------------------------------------------------------------------------------------------


@define(eq=False)
class ReferenceWire(Wire):
    """A wire to an engine of another kind."""

    reference: Reference | None = None

    async def serve(self, stream: trio.abc.Stream) -> None:
        assert self.reference is not None
        await self.reference.serve(stream)


@asynccontextmanager
async def beside_reference() -> AsyncIterator[tuple[Side, Reference]]:
    async with trio.open_nursery() as nursery, side() as unused:
        reference = Reference()
        wire = ReferenceWire(nursery, unused.core, reference=reference)
        async with side(Bridge(URL, open_stream=wire.open_stream)) as near:
            await linked(near)
            yield near, reference
        nursery.cancel_scope.cancel()


async def test_events_go_over_the_topic_of_bridges_to_an_engine_of_another_kind() -> None:
    async with beside_reference() as (near, reference):
        trigger = await reference.next("registertrigger", trigger_type="subscribe")
        assert trigger["config"] == {"topic": "stream.events"}
        assert trigger["function_id"].startswith("stream::bridge::on_pub::")
        client = await near.port.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.join)
            asked = await reference.next("invokefunction", function_id="stream::list")
            answer(reference, asked, result=[])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, near.user, "stream::set", {**address(), "data": 1})
            asked = await reference.next("invokefunction", function_id="stream::set")
            assert asked["data"] == {**address(), "data": 1}
            assert "deadline_ms" not in asked
            answer(reference, asked, result={"old_value": None, "new_value": 1})
        published = await reference.next("invokefunction", function_id="publish")
        assert published["data"]["topic"] == "stream.events"
        wrapper = published["data"]["data"]
        assert (wrapper["streamName"], wrapper["id"], wrapper["event"]) == ("s", "i", {"type": "create", "data": 1})
        answer(reference, published)
        await trio.testing.wait_all_tasks_blocked()
        assert not client.messages  # it is told when the topic tells us
        for message in (wrapper, {"type": "stream"}, {**wrapper, "event": {"type": "sync", "data": []}}, None):
            reference.send({"type": "invokefunction", "function_id": trigger["function_id"], "data": message})
        assert await client.event() == ("i", "create", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_sends, near)
            published = await reference.next("invokefunction", function_id="publish")
            assert published["data"]["data"]["event"] == {"type": "event", "event": {"type": "t", "data": 2}}
            answer(reference, published, result=None)
        assert not client.messages


async def test_events_that_the_topic_does_not_take_reach_the_subscribers_here() -> None:
    async with beside_reference() as (near, reference):
        client = await near.port.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.join)
            answer(reference, await reference.next("invokefunction", function_id="stream::list"), result=[])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, near.user, "stream::delete", address())
            asked = await reference.next("invokefunction", function_id="stream::delete")
            answer(reference, asked, result={"old_value": 5})
        published = await reference.next("invokefunction", function_id="publish")
        answer(reference, published, error={"code": "function_not_found", "message": "no pubsub here"})
        assert await client.event() == ("i", "delete", 5)


@pytest.mark.parametrize("errors", [5, "none", None, {}])
async def test_an_answer_with_errors_that_are_no_list_is_passed_on_and_harms_nobody(errors: Any) -> None:
    async with beside_reference() as (near, reference):
        payload = {**address(), "ops": [{"type": "set", "path": "n", "value": 1}]}
        said = {"old_value": None, "new_value": {"n": 1}, "errors": errors}
        answers: list[Any] = []

        async def update() -> None:
            answers.append(await ask(near.user, "stream::update", payload))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(update)
            answer(reference, await reference.next("invokefunction", function_id="stream::update"), result=said)
        published = await reference.next("invokefunction", function_id="publish")
        assert published["data"]["data"]["event"] == {"type": "create", "data": {"n": 1}}
        assert answers == [said]


async def _sends(near: Side) -> None:
    assert await near.user.invoke("stream::send", Json.of({**address(None), "type": "t", "data": 2})) == NULL


def answer(reference: Reference, call: dict[str, Any], **outcome: Any) -> None:
    keys = {"invocation_id": call["invocation_id"], "function_id": call["function_id"]}
    reference.send({"type": "invocationresult", **keys, **outcome})


@pytest.mark.parametrize("seed", range(4))
async def test_followers_catch_up_whatever_happens_to_the_link(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    dice = random.Random(seed)

    async def write(side: Side) -> None:
        for _ in range(40):
            await trio.sleep(dice.uniform(0, 3))
            item = f"i{dice.randrange(6)}"
            data = {"id": item, "n": dice.random()}
            with suppress(WireError):
                if dice.random() < 0.3:
                    await ask(side.user, "stream::delete", address(item))
                else:
                    await ask(side.user, "stream::set", {**address(item), "data": data})

    async def harm(wire: Wire) -> None:
        while True:
            await trio.sleep(dice.uniform(0.5, 15))
            if dice.random() < 0.5:
                wire.cut()
            else:
                wire.freeze()
                await trio.sleep(dice.uniform(0.1, 20))
                wire.thaw()

    async with bridged() as (near, far, wire):
        client = await near.port.connect()
        client.send("join")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harm, wire)
            async with trio.open_nursery() as writers:
                for side in (near, far, near):
                    writers.start_soon(write, side)
            nursery.cancel_scope.cancel()
        wire.thaw()
        await trio.sleep(120)
        follower = Follower()
        while client.messages:
            follower.take(client.messages.popleft())
        stored = await ask(far.user, "stream::list", address(None))
        assert follower.values == {one["id"]: one for one in stored}
        assert follower.stamps == sorted(set(follower.stamps))
