"""Calls of a client: results, errors, time, cancellation, actions, and what travels with them."""

import math
from typing import Any

import pytest
import trio
from attrs import frozen
from sdk_fake_engine import Peer, fake_engine
from trio.testing import MockClock

from iii_trio import (
    Forbidden,
    FunctionNotFound,
    Increment,
    InvalidResult,
    InvocationError,
    InvocationStopped,
    InvocationTimeout,
    Merge,
    PayloadTooLarge,
    Remove,
    Set,
    Worker,
    current_invocation,
    open_client,
)
from iii_trio.protocol.errors import WireError
from iii_trio.protocol.limits import OUTBOX_BUSY


@frozen
class Sum:
    total: int


async def answer_next(peer: Peer, result: Any = None, error: Any = None) -> dict[str, Any]:
    while True:
        call = await peer.receive("invokefunction")
        if "invocation_id" in call:
            peer.answer(call, result, error)
            return call


async def test_a_call_returns_the_result_decoded_or_structured(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        nursery.start_soon(answer_next, peer, {"total": 3, "_extra": 1})
        assert await client.call("math::add", {"a": 1}) == {"total": 3, "_extra": 1}
        nursery.start_soon(answer_next, peer, {"total": 3})
        assert await client.call("math::add", Sum(1), into=Sum) == Sum(3)
        assert [f["data"] for f in peer.frames if f.get("function_id") == "math::add"] == [{"a": 1}, {"total": 1}]
        nursery.start_soon(answer_next, peer, {"total": "three"})
        with pytest.raises(InvalidResult, match=r"math::add.*expected an integer, got text @ \$.total"):
            await client.call("math::add", into=Sum)
        nursery.start_soon(answer_next, peer, None)
        assert await client.call("nothing") is None


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        ("function_not_found", FunctionNotFound),
        ("FORBIDDEN", Forbidden),
        ("TIMEOUT", InvocationTimeout),
        ("invocation_stopped", InvocationStopped),
        ("payload_too_large", PayloadTooLarge),
        ("my_code", InvocationError),
    ],
)
async def test_errors_come_back_as_the_class_of_their_code(
    autojump_clock: MockClock, nursery: trio.Nursery, code: str, cls: type[InvocationError]
) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        nursery.start_soon(answer_next, peer, None, {"code": code, "message": "why", "stacktrace": "where"})
        with pytest.raises(InvocationError) as caught:
            await client.call("f")
        error = caught.value
        assert type(error) is cls
        assert (error.code, error.message, error.stacktrace, error.function_id) == (code, "why", "where", "f")
        assert error.invocation_id
        assert isinstance(error, WireError)
        assert isinstance(error, trio.TooSlowError) == (code == "TIMEOUT")


async def test_an_error_of_no_shape_and_an_unreadable_answer_end_the_call(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        nursery.start_soon(answer_next, peer, None, ["odd"])
        with pytest.raises(InvocationError, match="odd"):
            await client.call("f")

        async def garble() -> None:
            while "invocation_id" not in (call := await peer.receive("invokefunction")):
                pass
            peer.send_raw(
                b'{"type":"invocationresult","invocation_id":"%s","function_id":"f","result":tru'
                % call["invocation_id"].encode()
            )

        nursery.start_soon(garble)
        with pytest.raises(InvocationError, match="cannot be read"):
            await client.call("f", timeout=5)


async def test_a_call_has_thirty_seconds_and_tells_the_engine(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        began = trio.current_time()
        with pytest.raises(InvocationTimeout, match="invocation timed out after 30000ms"):
            await client.call("slow::f")
        assert trio.current_time() - began == 30
        await peer.settle()
        call, cancel = peer.frames[-2:]
        assert call["deadline_ms"] == 30_000
        assert cancel == {"type": "cancelinvocation", "invocation_id": call["invocation_id"], "reason": "deadline"}


async def test_the_deadline_is_the_nearest_of_all(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        with trio.move_on_after(2):
            await client.call("slow::f", timeout=7)
        assert (await peer.receive("invokefunction"))["function_id"] == "engine::workers::register"
        assert (await peer.receive("invokefunction"))["deadline_ms"] == 2000
        assert (await peer.receive("cancelinvocation"))["reason"] == "deadline"
        with pytest.raises(InvocationTimeout):
            await client.call("slow::f", timeout=1.5)
        assert (await peer.receive("invokefunction"))["deadline_ms"] == 1500
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: client.call("slow::f", timeout=None))
                assert "deadline_ms" not in await peer.receive("invokefunction")
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
        assert client.statistics().session.calls.pending == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("features", [None, (), ("observe.v1",)])
async def test_an_engine_without_cancel_v1_sees_no_trace_of_it(
    autojump_clock: MockClock, features: tuple[str, ...] | None
) -> None:
    async with fake_engine(features=features) as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        with pytest.raises(InvocationTimeout):
            await client.call("slow::f", timeout=1)
        await peer.settle()
        assert "cancelinvocation" not in peer.types()
        assert "deadline_ms" not in peer.frames[-1]


async def test_a_late_answer_is_counted_and_dropped(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        with trio.move_on_after(1):
            await client.call("slow::f")
        peer.answer(next(f for f in peer.frames if "invocation_id" in f), "late")
        await peer.settle()
        statistics = client.statistics().session
        assert statistics is not None
        assert (statistics.calls.stray, statistics.calls.abandoned, statistics.calls.answered) == (1, 1, 0)


async def test_enqueue_returns_the_receipt(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        nursery.start_soon(answer_next, peer, {"messageReceiptId": "r-1"})
        assert await client.enqueue("emails", "mail::send", {"to": "x"}) == "r-1"
        sent = peer.frames[-1]
        assert sent["action"] == {"type": "enqueue", "queue": "emails"}
        assert sent["data"] == {"to": "x"}
        nursery.start_soon(answer_next, peer, None, {"code": "enqueue_error", "message": "no such queue"})
        with pytest.raises(InvocationError, match="enqueue_error"):
            await client.enqueue("nowhere", "mail::send")
        nursery.start_soon(answer_next, peer, "ok")
        with pytest.raises(InvalidResult):
            await client.enqueue("emails", "mail::send")


async def test_a_namespace_goes_with_calls_but_not_to_the_engine_itself(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream, namespace="team") as client:
        peer = await engine.peer()
        assert peer.frames[0]["data"]["namespace"] == "team"
        for function_id, option, expected in [
            ("f", None, "team"),
            ("f", "other", "other"),
            ("engine::workers::list", None, None),
            ("configuration::get", None, None),
        ]:
            nursery.start_soon(answer_next, peer)
            await client.call(function_id, namespace=option)
            assert peer.frames[-1].get("namespace") == expected
        nursery.start_soon(answer_next, peer)
        await client.state["s"].get("k")
        assert peer.frames[-1]["namespace"] == "default"
        with pytest.raises(ValueError, match="`namespace` is empty"):
            await client.call("f", namespace=" ")
    with pytest.raises(ValueError, match="`namespace` is empty"):
        open_client(namespace="")


async def test_state_and_topics(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        scope = client.state["greetings"]

        async def served(result: Any) -> None:
            nursery.start_soon(answer_next, peer, result)

        await served({"old_value": None, "new_value": 1})
        change = await scope.set("k", 1)
        assert (change.old_value, change.new_value, change.errors) == (None, 1, ())
        await served({"total": 7})
        assert await scope.get("k", into=Sum) == Sum(7)
        await served({"old_value": 1, "new_value": 2, "errors": [{"op_index": 0, "code": "c", "message": "m"}]})
        change = await scope.update(
            "k", Increment(path="n"), Set(path="", value=2), Merge(value={"a": 1}), Remove(path="x")
        )
        assert change.errors[0]["code"] == "c"
        await served([1, 2])
        assert await scope.list() == [1, 2]
        await served(7)
        assert await scope.delete("k") == 7
        await served({"groups": ["a", "b"]})
        assert await client.state.scopes() == ["a", "b"]
        await served(None)
        await client.publish("news", {"n": 1})
        await served(None)
        await client.publish("news", {"n": 1}, durable=True)
        asked = [(f["function_id"], f["data"]) for f in peer.frames if "invocation_id" in f]
        assert asked == [
            ("state::set", {"scope": "greetings", "key": "k", "value": 1}),
            ("state::get", {"scope": "greetings", "key": "k"}),
            (
                "state::update",
                {
                    "scope": "greetings",
                    "key": "k",
                    "ops": [
                        {"path": "n", "by": 1, "type": "increment"},
                        {"path": "", "value": 2, "type": "set"},
                        {"value": {"a": 1}, "path": "", "type": "merge"},
                        {"path": "x", "type": "remove"},
                    ],
                },
            ),
            ("state::list", {"scope": "greetings"}),
            ("state::delete", {"scope": "greetings", "key": "k"}),
            ("state::list_groups", {}),
            ("publish", {"topic": "news", "data": {"n": 1}}),
            ("iii::durable::publish", {"topic": "news", "data": {"n": 1}}),
        ]


async def test_what_cannot_be_sent_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        with pytest.raises(TypeError, match="payload for f"):
            await client.call("f", object())
        with pytest.raises(PayloadTooLarge, match="67108864"):
            await client.call("f", "x" * (64 * 2**20))
        with pytest.raises(PayloadTooLarge):
            await client.send("f", "x" * (64 * 2**20))
        await peer.settle()
        assert [f["type"] for f in peer.frames] == ["invokefunction", "ping"]


async def test_senders_wait_for_room(autojump_clock: MockClock) -> None:
    async with fake_engine(lockstep=True) as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        peer.connection.pause_reading()
        sent = 0
        with trio.move_on_after(20):
            for _ in range(100):
                await client.send("bulk::f", "x" * 2**20)
                sent += 1
        assert OUTBOX_BUSY <= sent * 2**20 <= OUTBOX_BUSY + 3 * 2**20
        peer.connection.resume_reading()
        with trio.fail_after(5):
            await client.send("bulk::f", "last")
        await peer.settle()
        assert peer.frames[-1]["data"] == "last"


async def test_a_handlers_calls_carry_its_trace_and_remaining_time(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    worker = Worker("chain")

    @worker.function("outer")
    async def outer(payload: Any) -> Any:
        invocation = current_invocation()
        assert invocation is not None
        assert invocation.remaining() == 5
        await trio.sleep(2)
        assert invocation.remaining() == 3
        async with trio.open_nursery() as tasks:
            tasks.start_soon(child)
        return await invocation.client.call("inner", payload)

    async def child() -> None:
        invocation = current_invocation()
        assert invocation is not None
        assert invocation.function_id == "outer"

    assert current_invocation() is None
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("outer", 1, deadline_ms=5000, traceparent="00-a-b-01", baggage="k=v")
        inner = None
        while inner is None or inner["function_id"] != "inner":
            inner = await peer.receive("invokefunction")
        assert (inner["traceparent"], inner["baggage"], inner["deadline_ms"]) == ("00-a-b-01", "k=v", 3000)
        peer.answer(inner, "deep")
        answer = await peer.receive("invocationresult")
        assert (answer["result"], answer["traceparent"]) == ("deep", "00-a-b-01")


async def test_remaining_time_without_a_deadline_is_infinite(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("f")
    async def f() -> bool:
        invocation = current_invocation()
        assert invocation is not None
        return invocation.remaining() == math.inf

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        assert (await (await engine.peer()).ask("f"))["result"] is True
