"""Reasons of cancellation in the SDK: what handlers see, and what their own calls tell on (spec/sdk.md §12.2)."""

from typing import Any

import pytest
import trio
from sdk_fake_engine import Peer, fake_engine
from trio.testing import MockClock

from iii_trio import Client, Invocation, Worker, current_invocation, open_client

OUTER = "8c9e6679-7425-40de-944b-e07fc1f90ae7"
REASONS = ["caller_cancelled", "caller_disconnected", "deadline", "shutdown"]


def watching() -> tuple[Worker, list[tuple[str | None, str | None]]]:
    """A worker whose handler calls another function for ever, and the reasons it sees when it is cancelled."""
    worker = Worker("w")
    seen: list[tuple[str | None, str | None]] = []

    @worker.function("outer")
    async def outer(*, client: Client, invocation: Invocation) -> Any:
        assert invocation.cancel_reason is None
        try:
            await client.call("inner", timeout=None)
        except trio.Cancelled as cancelled:
            seen.append((cancelled.reason, invocation.cancel_reason))
            raise

    return worker, seen


async def called(peer: Peer, function_id: str) -> dict[str, Any]:
    while (call := await peer.receive("invokefunction"))["function_id"] != function_id:
        pass
    return call


@pytest.mark.parametrize("reason", REASONS)
async def test_a_reason_is_seen_by_the_handler_and_travels_on(reason: str, autojump_clock: MockClock) -> None:
    worker, seen = watching()
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("outer", invocation_id=OUTER)
        inner = await called(peer, "inner")
        peer.send({"type": "cancelinvocation", "invocation_id": OUTER, "reason": reason})
        cancel = await peer.receive("cancelinvocation")
        assert (cancel["invocation_id"], cancel["reason"]) == (inner["invocation_id"], reason)
        answer = await peer.receive("invocationresult")
        assert answer["error"] == {"code": "invocation_cancelled", "message": f"outer was cancelled: {reason}"}
        assert seen == [(reason, reason)]


@pytest.mark.parametrize("reason", [None, "because", ""])
async def test_no_reason_or_one_that_nobody_knows_is_caller_cancelled(
    reason: str | None, autojump_clock: MockClock
) -> None:
    worker, seen = watching()
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("outer", invocation_id=OUTER)
        await called(peer, "inner")
        peer.send({"type": "cancelinvocation", "invocation_id": OUTER, "reason": reason})
        assert (await peer.receive("cancelinvocation"))["reason"] == "caller_cancelled"
        assert seen == [("caller_cancelled", "caller_cancelled")]


async def test_the_first_reason_stays(autojump_clock: MockClock) -> None:
    worker, seen = watching()
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("outer", invocation_id=OUTER)
        await called(peer, "inner")
        for reason in ("shutdown", "deadline"):
            peer.send({"type": "cancelinvocation", "invocation_id": OUTER, "reason": reason})
        answer = await peer.receive("invocationresult")
        assert answer["error"]["message"] == "outer was cancelled: shutdown"
        assert seen == [("shutdown", "shutdown")]


async def test_a_handlers_own_deadline_is_the_reason_too(autojump_clock: MockClock) -> None:
    worker, seen = watching()
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("outer", invocation_id=OUTER, deadline_ms=1_500)
        assert (await called(peer, "inner"))["deadline_ms"] == 1_500
        assert (await peer.receive("cancelinvocation"))["reason"] == "deadline"
        assert (await peer.receive("invocationresult"))["error"]["code"] == "TIMEOUT"
        # for a deadline Trio has a source and no reason
        assert seen == [(None, "deadline")]


async def test_a_lost_connection_is_a_reason_of_its_own(autojump_clock: MockClock) -> None:
    worker, seen = watching()
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("outer", invocation_id=OUTER)
        await called(peer, "inner")
        peer.connection.abort()
        await engine.peer()
        # its own call ended first, with the same loss
        assert seen in ([("connection_lost", "connection_lost")], [])


async def test_a_handler_that_waits_for_nothing_of_the_engine_learns_of_the_loss(autojump_clock: MockClock) -> None:
    worker = Worker("w")
    seen: list[tuple[str | None, str | None]] = []

    @worker.function("sleeps")
    async def sleeps() -> None:
        invocation = current_invocation()
        assert invocation is not None
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            seen.append((cancelled.reason, invocation.cancel_reason))
            raise

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("sleeps", invocation_id=OUTER)
        await peer.settle()
        peer.connection.abort()
        await engine.peer()
        assert seen == [("connection_lost", "connection_lost")]


async def test_draining_cancels_with_shutdown_down_the_tree(autojump_clock: MockClock) -> None:
    worker, seen = watching()
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        await peer.call("outer", invocation_id=OUTER)
        await called(peer, "inner")
        await client.drain(1)
        assert (await peer.receive("cancelinvocation"))["reason"] == "shutdown"
        assert seen == [("shutdown", "shutdown")]


@pytest.mark.parametrize("reason", [*REASONS, None, "my own"])
async def test_a_scope_may_give_the_reason(reason: str | None, autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "f")
            call = await called(peer, "f")
            nursery.cancel_scope.cancel(reason=reason)
        cancel = await peer.receive("cancelinvocation")
        assert cancel["invocation_id"] == call["invocation_id"]
        assert cancel["reason"] == (reason if reason in REASONS else "caller_cancelled")


async def test_deadlines_shrink_from_call_to_call_whatever_each_asks_for(autojump_clock: MockClock) -> None:
    worker = Worker("chain")

    @worker.function("outer")
    async def outer(*, client: Client) -> None:
        await trio.sleep(0.5)
        await client.call("second", timeout=60)

    @worker.function("second")
    async def second(*, client: Client) -> None:
        await trio.sleep(0.25)
        with trio.move_on_after(0.125):
            await client.call("third")

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("outer", invocation_id=OUTER, deadline_ms=2_000)
        told = await called(peer, "second")
        assert told["deadline_ms"] == 1_500
        await peer.call("second", invocation_id=told["invocation_id"], deadline_ms=told["deadline_ms"])
        assert (await called(peer, "third"))["deadline_ms"] == 125
        assert (await peer.receive("cancelinvocation"))["reason"] == "deadline"
