"""Streams whose data a worker keeps: routing, results, errors, events, and the update that no SDK registers (§3.1)."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from module_harness import ask, bind, record
from stream_harness import address, stream

from iii_trio.config import Live, StreamSettings
from iii_trio.engine import NOTHING, Call, LocalPeer, Outcome, open_engine, open_local
from iii_trio.modules.stream import StreamModule
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import WireError
from iii_trio.protocol.limits import STREAM_PROVIDER_CALLS
from iii_trio.stores import open_memory

OPERATIONS = ("get", "set", "delete", "list", "list_groups")


@define
class Keeper:
    """A provider as SDKs make them: its own dict, and what it was asked."""

    kept: dict[str, Any] = field(factory=dict)
    asked: list[tuple[str, Any]] = field(factory=list)

    def serve(self, peer: LocalPeer, *operations: str, name: str = "s") -> "Keeper":
        for operation in operations or OPERATIONS:
            peer.register(f"stream::{operation}({name})", self._handler(operation))
        return self

    def _handler(self, operation: str) -> Callable[[Call, Json], Outcome]:
        def handle(call: Call, data: Json) -> Outcome:
            payload = data.decode()
            self.asked.append((operation, payload))
            item = payload.get("item_id")
            if operation == "get":
                return Outcome(Json.of(self.kept[item])) if item in self.kept else NOTHING
            if operation == "set":
                old, self.kept[item] = self.kept.get(item), payload["data"]
                return Outcome(Json.of({"old_value": old, "new_value": payload["data"]}))
            if operation == "delete":
                return Outcome(Json.of({"old_value": self.kept.pop(item, None)}))
            return Outcome(Json.of(list(self.kept.values()) if operation == "list" else ["g"]))

        return handle


async def test_each_operation_goes_to_the_provider_with_the_same_payload() -> None:
    async with stream() as (core, user, _port):
        keeper = Keeper().serve(user)
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"})
        more = {**address(), "extra": [1]}
        assert (await user.invoke("stream::get", Json.of(more))).absent
        assert await ask(user, "stream::set", {**more, "data": 1}) == {"old_value": None, "new_value": 1}
        assert await ask(user, "stream::set", {**more, "data": 2}) == {"old_value": 1, "new_value": 2}
        assert await ask(user, "stream::get", more) == 2
        assert await ask(user, "stream::list", address(None)) == [2]
        assert await ask(user, "stream::list_groups", {"stream_name": "s"}) == ["g"]
        assert await ask(user, "stream::delete", more) == {"old_value": 2}
        assert await ask(user, "stream::delete", more) == {"old_value": None}
        assert [operation for operation, _ in keeper.asked] == [
            *("get", "set", "set", "get", "list", "list_groups", "delete", "delete")
        ]
        assert keeper.asked[1][1] == {**more, "data": 1}
        told = [(one["event"]["type"], one["event"]["data"]) for one in await events.wait(3)]
        assert told == [("create", 1), ("update", 2), ("delete", 2)]
        assert await ask(user, "stream::list_all") == {"stream": [], "count": 0}


async def test_operations_without_a_provider_and_other_streams_use_the_store() -> None:
    async with stream() as (_, user, _port):
        keeper = Keeper().serve(user, "set")
        await ask(user, "stream::set", {**address(), "data": 1})
        assert (await user.invoke("stream::get", Json.of(address()))).absent
        await ask(user, "stream::set", {**address(name="t"), "data": 2})
        assert await ask(user, "stream::get", address(name="t")) == 2
        assert len(keeper.asked) == 1
        user.unregister("stream::set(s)")
        await ask(user, "stream::set", {**address(), "data": 3})
        assert await ask(user, "stream::get", address()) == 3


@pytest.mark.parametrize("operation", ["get", "list", "list_groups"])
async def test_answers_and_errors_of_reads_pass_as_they_are(operation: str) -> None:
    async with stream() as (_, user, _port):
        function_id = f"stream::{operation}"
        record(user, f"{function_id}(s)", Outcome(NULL))
        assert await user.invoke(function_id, Json.of(address())) == NULL
        record(user, f"{function_id}(s)", NOTHING)
        assert (await user.invoke(function_id, Json.of(address()))).absent
        record(user, f"{function_id}(s)", Outcome.failed(WireError("mine", "OWN_CODE")))
        with pytest.raises(WireError) as refused:
            await ask(user, function_id, address())
        assert (refused.value.code, refused.value.message) == ("OWN_CODE", "mine")


@pytest.mark.parametrize(
    ("operation", "answer", "code", "message"),
    [
        ("set", NOTHING, "STREAM_SET_ERROR", "Failed to set value: Function returned no result"),
        ("update", Outcome(NULL), "STREAM_UPDATE_ERROR", "Failed to update value: Function returned no result"),
        ("set", Outcome(Json.of([])), "JSON_ERROR", "Failed to convert result to value: expected an object"),
        ("update", Outcome(Json.of({})), "JSON_ERROR", "Failed to convert result to value: missing field `new_value`"),
        (
            "set",
            Outcome(Json(b'{"new_value":1e999}')),
            "JSON_ERROR",
            "Failed to convert result to value: Number out of range - at `$[...]`",
        ),
        (
            "set",
            Outcome(Json(b'{"new_value":%s%s}' % (b"[" * 125, b"]" * 125))),
            "STREAM_SET_ERROR",
            "Failed to set value: the value would be nested deeper than 124 levels",
        ),
        (
            "set",
            Outcome.failed(WireError("mine", "OWN")),
            "STREAM_SET_ERROR",
            "Failed to set value: Failed to invoke function: OWN: mine",
        ),
        (
            "delete",
            Outcome.failed(WireError("mine", "OWN")),
            "STREAM_DELETE_ERROR",
            "Failed to delete value: Failed to invoke function: OWN: mine",
        ),
    ],
)
async def test_a_write_that_fails_says_why_and_tells_nobody(
    operation: str, answer: Outcome, code: str, message: str
) -> None:
    async with stream() as (core, user, _port):
        record(user, f"stream::{operation}(s)", answer)
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"})
        with pytest.raises(WireError) as refused:
            await ask(user, f"stream::{operation}", {**address(), "data": 1, "ops": []})
        assert (refused.value.code, refused.value.message) == (code, message)
        await ask(user, "stream::send", {**address(None), "type": "end", "data": None})
        assert [one["event"]["type"] for one in await events.wait(1)] == ["event"]


@pytest.mark.parametrize(
    ("operation", "answer", "result", "told"),
    [
        ("delete", NOTHING, {"old_value": None}, []),
        ("delete", Outcome(Json.of({"old_value": 7, "x": 1})), {"old_value": 7}, [("delete", 7)]),
        ("set", Outcome(Json.of({"new_value": None})), {"old_value": None, "new_value": None}, [("create", None)]),
        (
            "update",
            Outcome(Json.of({"old_value": 1, "new_value": 2, "errors": [{"op_index": 0}]})),
            {"old_value": 1, "new_value": 2, "errors": [{"op_index": 0}]},
            [("update", 2)],
        ),
    ],
)
async def test_answers_of_old_and_new_sdks_will_do(operation: str, answer: Outcome, result: Any, told: Any) -> None:
    async with stream() as (core, user, _port):
        record(user, f"stream::{operation}(s)", answer)
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"})
        assert await ask(user, f"stream::{operation}", {**address(), "data": 1, "ops": []}) == result
        await ask(user, "stream::send", {**address(None), "type": "end", "data": None})
        payloads = await events.wait(len(told) + 1)
        assert [(one["event"]["type"], one["event"]["data"]) for one in payloads[:-1]] == told


async def test_an_update_is_made_of_get_and_set_where_the_provider_has_none() -> None:
    async with stream() as (core, user, _port):
        keeper = Keeper().serve(user)
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"})
        ops = [{"type": "increment", "path": "n", "by": 1}]
        assert await ask(user, "stream::update", {**address(), "ops": ops}) == {
            "old_value": None,
            "new_value": {"n": 1},
        }
        assert await ask(user, "stream::update", {**address(), "ops": ops}) == {
            "old_value": {"n": 1},
            "new_value": {"n": 2},
        }
        bad = [{"type": "increment", "path": "n", "by": 1}, {"type": "append", "path": "n", "value": 1}]
        result = await ask(user, "stream::update", {**address(), "ops": bad})
        assert (result["new_value"], result["errors"][0]["code"]) == ({"n": 3}, "append.type_mismatch")
        assert keeper.kept == {"i": {"n": 3}}
        assert [one["event"]["type"] for one in await events.wait(3)] == ["create", "update", "update"]
        before = len(keeper.asked)
        assert await ask(user, "stream::update", {**address("none"), "ops": []}) == {"old_value": None, "new_value": {}}
        assert keeper.asked[before:] == [("get", address("none"))]


async def test_updates_of_a_provider_lose_nothing_to_each_other_nor_to_sets() -> None:
    async with stream() as (_, user, port):
        kept: dict[str, Any] = {}

        async def get(call: Call, data: Json) -> Json:
            value = kept.get("i")
            await trio.lowlevel.checkpoint()
            return Json.of(value)

        async def put(call: Call, data: Json) -> Json:
            await trio.lowlevel.checkpoint()
            old, kept["i"] = kept.get("i"), data.decode()["data"]
            return Json.of({"old_value": old, "new_value": kept["i"]})

        user.register("stream::get(s)", get, task=True)
        user.register("stream::set(s)", put, task=True)
        results: list[Any] = []

        async def add() -> None:
            ops = [{"type": "increment", "path": "n", "by": 1}]
            results.append((await ask(user, "stream::update", {**address(), "ops": ops}))["new_value"]["n"])

        async def reset() -> None:
            results.append((await ask(user, "stream::set", {**address(), "data": {"n": 100}}))["new_value"]["n"])

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(add)
            nursery.start_soon(reset)
            for _ in range(5):
                nursery.start_soon(add)
        # tasks are not started in the order of these lines; whatever it was, each saw what the one before it left
        before = results.index(100)
        assert results == [*range(1, before + 1), 100, *range(101, 111 - before)]
        assert len(port.module._parts.functions._turns) == 0  # type: ignore[union-attr]


async def test_a_provider_that_writes_to_its_own_stream_is_stopped() -> None:
    async with stream() as (_, user, port):

        async def loop(call: Call, data: Json) -> Json:
            return await user.invoke("stream::set", data)

        user.task_limit = 10 * STREAM_PROVIDER_CALLS
        user.register("stream::set(s)", loop, task=True)
        with pytest.raises(WireError, match="does a provider write to its own stream") as refused:
            await ask(user, "stream::set", {**address(), "data": 1})
        assert refused.value.code == "STREAM_SET_ERROR"
        assert port.module.statistics().providers == 0


async def test_a_provider_has_as_long_as_its_caller(autojump_clock: trio.testing.MockClock) -> None:
    async with stream() as (_, user, port):

        async def hang(call: Call, data: Json) -> Json:
            await trio.sleep_forever()
            raise AssertionError

        user.register("stream::get(s)", hang, task=True)
        with pytest.raises(WireError) as refused:
            await user.invoke("stream::get", Json.of(address()), timeout_s=2)
        assert refused.value.code == "TIMEOUT"
        await trio.sleep(1)
        assert port.module.statistics().providers == 0


async def test_a_provider_has_as_long_as_it_takes_where_calls_have_no_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def slow(call: Call, data: Json) -> Json:
        await trio.sleep(7200)
        return Json.of({"new_value": 1})

    async with open_memory() as store, open_engine(default_timeout_s=0) as core, open_local(core, "user") as user:
        user.register("stream::set(s)", slow, task=True)
        async with trio.open_nursery() as nursery:
            await nursery.start(StreamModule(Live(StreamSettings()), store, listen=False).run, core)
            assert await ask(user, "stream::set", {**address(), "data": 1}) == {"old_value": None, "new_value": 1}
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("operation", ["set", "update", "delete"])
async def test_a_write_with_an_answer_that_is_no_json_holds_up_no_later_one(operation: str) -> None:
    async with stream() as (_, user, port):
        mine = record(user, f"stream::{operation}(s)", Outcome(Json(b'{"new_value":1e999}')))
        payload = {**address(), "data": 1, "ops": []}
        with pytest.raises(WireError, match="JSON_ERROR"):
            await ask(user, f"stream::{operation}", payload)
        mine.answer = Outcome(Json.of({"new_value": 2}))
        with trio.fail_after(30):
            await ask(user, f"stream::{operation}", payload)
        assert len(port.module._parts.functions._turns) == 0  # type: ignore[union-attr]


async def test_joins_show_what_the_provider_has() -> None:
    async with stream() as (_, user, port):
        keeper = Keeper().serve(user)
        keeper.kept["i"] = {"id": "i"}
        client = await port.connect()
        assert await client.join("1") == [{"id": "i"}]
        assert await client.join("2", "i") == {"id": "i"}
        assert await client.join("3", "missing") is None
        await ask(user, "stream::set", {**address(), "data": 2})
        assert await client.event() == ("i", "update", 2)


@pytest.mark.parametrize("answer", [Outcome.failed(WireError("no", "NO")), Outcome(Json.of({"no": "array"})), NOTHING])
async def test_a_snapshot_that_cannot_be_read_is_left_out_and_events_come(answer: Outcome) -> None:
    async with stream() as (_, user, port):
        Keeper().serve(user, "set")
        record(user, "stream::list(s)", answer)
        client = await port.connect()
        client.send("join")
        await client.join("marker", groupId="other", streamName="t")
        await ask(user, "stream::set", {**address(), "data": 1})
        assert await client.event() == ("i", "create", 1)


async def test_what_happens_while_a_provider_reads_follows_behind_its_answer() -> None:
    async with stream() as (_, user, port):
        asked, go = trio.Event(), trio.Event()
        Keeper().serve(user, "set")

        async def read(call: Call, data: Json) -> Json:
            asked.set()
            await go.wait()
            return Json.of([{"id": "i", "n": 1}])

        user.register("stream::list(s)", read, task=True)
        client = await port.connect()
        client.send("join")
        await asked.wait()
        await ask(user, "stream::set", {**address(), "data": {"id": "i", "n": 2}})
        await ask(user, "stream::send", {**address(None), "type": "t", "data": None})
        await trio.testing.wait_all_tasks_blocked()
        assert not client.messages
        go.set()
        messages = [await client.next() for _ in range(3)]
        assert [one["event"]["type"] for one in messages] == ["sync", "create", "event"]
        stamps = [one["timestamp"] for one in messages]
        assert stamps == sorted(set(stamps))


@pytest.mark.parametrize("operation", ["get", "list", "list_groups"])
async def test_a_read_whose_caller_gives_up_is_cancelled_at_the_provider(operation: str) -> None:
    async with stream() as (_core, user, port):
        asked, ended = trio.Event(), trio.Event()

        async def hang(call: Call, data: Json) -> Json:
            asked.set()
            try:
                await trio.sleep_forever()
            finally:
                ended.set()
            raise AssertionError

        user.register(f"stream::{operation}(s)", hang, task=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user.invoke, f"stream::{operation}", Json.of(address()))
            await asked.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            await ended.wait()
        assert port.module.statistics().providers == 0
        assert not user.calls


async def test_a_write_whose_caller_gives_up_is_left_to_end_and_told() -> None:
    async with stream() as (core, user, port):
        asked, go_on = trio.Event(), trio.Event()

        async def slow(call: Call, data: Json) -> Json:
            asked.set()
            await go_on.wait()
            return Json.of({"new_value": 1})

        user.register("stream::set(s)", slow, task=True)
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(user.invoke, "stream::set", Json.of({**address(), "data": 1}))
            await asked.wait()
            nursery.cancel_scope.cancel()
        go_on.set()
        assert [one["event"] for one in await events.wait(1)] == [{"type": "create", "data": 1}]
        assert port.module.statistics().providers == 0
