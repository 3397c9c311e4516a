"""Promise P6 at the engine: a worker that stops reading its socket, to the second and to the last thing it held.

Streams here hand over what the other side takes and not one byte more, so a worker that does not read stalls the
engine's write at once, under a virtual clock (design.md §4, Backpressure).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from iii_trio.engine import BindingState, Clock, Engine, Outcome, open_engine, open_local
from iii_trio.protocol import Json
from iii_trio.protocol.limits import OUTBOX_HARD, OUTBOX_OVERLOADED, STALL_S
from iii_trio.testing.raw import RawPort, RawWorker
from iii_trio.transport import Connection, Framing, Request
from iii_trio.transport.outbox import WRITE_SLICE

LARGE = 15_000_000
"""What a worker of an unknown SDK still takes in one message."""


@define(eq=False)
class Street:
    """An engine, workers on unbuffered streams, and two neighbours that call each other all the time."""

    core: Engine
    nursery: trio.Nursery
    port: RawPort = field(init=False)
    streams: dict[RawWorker, trio.abc.ReceiveStream] = field(factory=dict)
    calls: int = 0

    def __attrs_post_init__(self) -> None:
        self.port = RawPort(self.core, self.nursery)

    async def join(self, **introduction: Any) -> RawWorker:
        ours, theirs = trio.testing.lockstep_stream_pair()
        request = Request("GET", "/", "", [])
        self.nursery.start_soon(self.port.listener.serve, theirs, request, Framing(), name="unbuffered connection")
        worker = RawWorker(Connection(ours, Framing(client=True), name="raw worker"))
        self.streams[worker] = ours
        await self.nursery.start(worker.run)
        await self.port.greeted(worker, **introduction)
        await worker.settled()
        return worker

    async def stall(self, worker: RawWorker) -> None:
        """Let `worker` read no more, with the engine in the midst of a write to it."""
        worker.connection.pause_reading()
        # the reader may be waiting for one more chunk; it takes that, and leaves the rest
        worker.call("street::fill")
        await trio.testing.wait_all_tasks_blocked()

    async def live(self) -> None:
        """Call after call between neighbours, twice a second; none of them waits."""
        executor, caller = await self.join(name="next door"), await self.join(name="over the way")
        executor.register("neighbour::echo")
        await executor.settled()
        self.nursery.start_soon(self._serve, executor)
        while True:
            began = trio.current_time()
            assert (await caller.ask("neighbour::echo", self.calls))["result"] == self.calls
            assert trio.current_time() == began
            self.calls += 1
            await trio.sleep(0.5)

    async def _serve(self, executor: RawWorker) -> None:
        while True:
            call = await executor.next("invokefunction")
            executor.answer(call, result=call["data"])


def _text(size: int) -> Json:
    return Json(b'"%s"' % (b"x" * size))


@asynccontextmanager
async def street() -> AsyncIterator[Street]:
    clock = Clock(epoch=1_700_000_000)
    async with open_engine(clock=clock) as core, open_local(core, "street") as module, trio.open_nursery() as nursery:
        module.register("street::fill", lambda _call, _data: Outcome(_text(4 * WRITE_SLICE)))
        module.register("street::large", lambda _call, _data: Outcome(_text(LARGE)))
        here = Street(core, nursery)
        nursery.start_soon(here.live)
        await trio.testing.wait_all_tasks_blocked()
        yield here
        nursery.cancel_scope.cancel()


async def test_thirty_seconds_without_progress_end_it_and_give_everything_back(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with street() as here:
        core = here.core
        before = core.statistics()
        worker, caller = await here.join(name="shop"), await here.join(name="caller")
        worker.register("shop::f")
        worker.send({"type": "registertriggertype", "id": "sale", "description": ""})
        worker.send({"type": "registertrigger", "id": "own", "trigger_type": "sale", "function_id": "f", "config": 1})
        await worker.settled()
        caller.send(
            {"type": "registertrigger", "id": "theirs", "trigger_type": "sale", "function_id": "f", "config": 1}
        )
        heir = await here.join(name="heir")
        heir.register("shop::f")
        await heir.settled()
        await heir.next("registrationrejected")

        await here.stall(worker)
        stalled_at = trio.current_time()
        call = caller.call("shop::f")
        await trio.sleep(STALL_S - 1)
        peer = core.workers.get(worker.worker_id)
        assert peer is not None, "it has its 30 s"
        serving = core.functions.get("default", "shop::f")
        assert serving is not None
        assert serving.owner is peer
        assert not caller.frames

        error = (await caller.result(call))["error"]
        assert error["code"] == "invocation_stopped"
        assert trio.current_time() - stalled_at == pytest.approx(STALL_S, abs=0.1)
        assert core.workers.get(worker.worker_id) is None
        serving = core.functions.get("default", "shop::f")
        assert serving is not None
        assert serving.owner.name == "heir", "who stood by for it serves now"
        assert {binding.id: binding.state for binding in core.triggers} == {"theirs": BindingState.PARKED}
        assert core.triggers.statistics().types == 0
        assert f"worker shop ({worker.worker_id}) ended with 1013: the peer took nothing for 30 s" in caplog.text

        back = await here.join(name="shop")  # its name is free
        await back.settled()
        assert here.calls > 2 * (STALL_S - 2), "its neighbours lived on"
        for gone in (back, heir, caller):
            gone.cut()
            await here.port.gone(gone)
        after = core.statistics()
        assert (after.functions, after.triggers, after.workers) == (before.functions, before.triggers, before.workers)
        assert (after.running, after.waiting) == (0, 0)


async def test_it_is_refused_new_calls_and_still_gets_its_answers(autojump_clock: MockClock) -> None:
    async with street() as here:
        worker, caller = await here.join(name="shop"), await here.join(name="caller")
        worker.register("shop::f")
        await worker.settled()
        await here.stall(worker)
        peer = here.core.workers.get(worker.worker_id)
        assert peer is not None
        while peer.connection.pending_bytes <= OUTBOX_OVERLOADED:
            worker.call("street::large")
            await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        answer = await caller.ask("shop::f")
        assert answer["error"]["code"] == "worker_overloaded"
        assert trio.current_time() == began, "refused at once"
        pending = peer.connection.pending_bytes
        worker.call("street::large")
        await trio.testing.wait_all_tasks_blocked()
        assert peer.connection.pending_bytes > pending + LARGE, "what it asked for is kept for it"

        worker.connection.resume_reading()
        await worker.settled()
        call = caller.call("shop::f")
        worker.answer(await worker.next("invokefunction"), result=1)
        assert (await caller.result(call))["result"] == 1


async def test_an_outbox_that_is_full_ends_it_at_once(autojump_clock: MockClock) -> None:
    async with street() as here:
        worker, caller = await here.join(name="shop"), await here.join(name="caller")
        worker.register("shop::f")
        await worker.settled()
        await here.stall(worker)
        began = trio.current_time()
        call = caller.call("shop::f")
        await caller.settled()  # the engine has read the call, whichever socket it would read first
        for _ in range(OUTBOX_HARD // LARGE + 1):
            worker.call("street::large")
        await here.port.gone(worker)
        assert (await caller.result(call))["error"]["code"] == "invocation_stopped"
        assert trio.current_time() == began
        assert here.core.functions.get("default", "shop::f") is None


async def test_a_worker_that_reads_slowly_is_left_alone_until_it_stops(autojump_clock: MockClock) -> None:
    async with street() as here:
        worker = await here.join(name="slow")
        await here.stall(worker)
        peer = here.core.workers.get(worker.worker_id)
        assert peer is not None
        pending = peer.connection.pending_bytes
        while pending:
            await trio.sleep(STALL_S - 1)
            assert here.core.workers.get(worker.worker_id) is peer
            assert await here.streams[worker].receive_some(WRITE_SLICE)
            await trio.testing.wait_all_tasks_blocked()
            assert peer.connection.pending_bytes < pending, "progress"
            pending = peer.connection.pending_bytes
        await here.stall(worker)
        began = trio.current_time()
        await here.port.gone(worker)
        assert trio.current_time() - began == pytest.approx(STALL_S, abs=0.1)


async def test_a_stalled_provider_holds_up_nobody(autojump_clock: MockClock) -> None:
    async with street() as here:
        provider, owner = await here.join(name="provider"), await here.join(name="owner")
        provider.send({"type": "registertriggertype", "id": "sale", "description": ""})
        await provider.settled()
        await here.stall(provider)
        began = trio.current_time()
        for n in range(100):
            frame = {"type": "registertrigger", "id": f"b{n}", "trigger_type": "sale", "function_id": "f", "config": n}
            owner.send(frame)
        await owner.settled()
        assert trio.current_time() == began
        states = [binding.state for binding in here.core.triggers]
        assert states == [BindingState.LIVE] * 100
        await here.port.gone(provider)
        assert [binding.state for binding in here.core.triggers] == [BindingState.PARKED] * 100
        other = await here.join(name="provider")
        other.send({"type": "registertriggertype", "id": "sale", "description": ""})
        told = [(await other.next("registertrigger"))["config"] for _ in range(100)]
        assert told == list(range(100))
