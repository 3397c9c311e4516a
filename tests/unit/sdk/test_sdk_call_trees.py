"""Call trees over three workers and the real engine, in one process: one reason, from the root to the leaf (design.md §6)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from iii_trio import Client, Invocation, Worker
from iii_trio.engine import Engine, open_engine
from iii_trio.testing.raw import RawPort, RawWorker, open_port

DEPTH = ("root", "middle", "leaf")


@define(eq=False)
class Forest:
    """Three workers, each of which calls the next one; the last one sleeps. `ends` is who was cancelled, and why."""

    core: Engine
    port: RawPort
    ends: list[tuple[str, str | None, float]] = field(factory=list)
    budgets: list[float] = field(factory=list)
    growing: trio.Event = field(factory=trio.Event)

    def worker(self, place: int) -> Worker:
        name, below = DEPTH[place], (*DEPTH, None)[place + 1]
        worker = Worker(name)

        @worker.function(f"{name}::work")
        async def work(*, client: Client, invocation: Invocation) -> None:
            self.budgets.append(invocation.remaining())
            try:
                if below is None:
                    self.growing.set()
                    await trio.sleep_forever()
                await trio.sleep(0.25)
                await client.call(f"{below}::work", timeout=None)
            except trio.Cancelled:
                self.ends.append((name, invocation.cancel_reason, trio.current_time()))
                raise

        return worker


@asynccontextmanager
async def forest() -> AsyncIterator[tuple[Forest, RawWorker]]:
    async with open_engine() as core, open_port(core) as port, AsyncExitStack() as stack:
        grown = Forest(core, port)

        async def open_stream() -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            port.nursery.start_soon(port.listener.handle, theirs)
            return ours

        for place in range(len(DEPTH)):
            await stack.enter_async_context(grown.worker(place).connect(open_stream=open_stream))
        caller = await port.connect(name="caller", features=["cancel.v1"])
        await caller.settled()
        yield grown, caller


@pytest.mark.parametrize("reason", ["caller_cancelled", "caller_disconnected", "deadline", "shutdown"])
async def test_a_tree_ends_from_its_root_with_one_reason(
    reason: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with forest() as (grown, caller):
        options: dict[str, Any] = {"deadline_ms": 5_000} if reason == "deadline" else {}
        call = caller.call("root::work", **options)
        await grown.growing.wait()
        if reason == "caller_cancelled":
            caller.send({"type": "cancelinvocation", "invocation_id": call, "reason": reason})
        elif reason == "caller_disconnected":
            caller.cut()
        elif reason == "shutdown":
            nursery.start_soon(grown.core.drain, 1, 2)
        await trio.sleep(10)
        assert sorted((name, why) for name, why, _ in grown.ends) == sorted((name, reason) for name in DEPTH)
        # as one nursery would, and not one time-out after the other
        times = [at for *_, at in grown.ends]
        assert max(times) - min(times) < 0.05
        if reason in ("caller_cancelled", "caller_disconnected"):
            assert [name for name, *_ in grown.ends] == list(DEPTH)
        assert grown.core.statistics().running == grown.core.statistics().waiting == 0


async def test_every_level_has_what_the_one_above_has_left(autojump_clock: MockClock) -> None:
    async with forest() as (grown, caller):
        await caller.ask("root::work", deadline_ms=3_000)
        assert grown.budgets == [pytest.approx(3 - used, abs=0.01) for used in (0, 0.25, 0.5)]


async def test_who_asked_for_nothing_is_told_the_engines_own_deadline(autojump_clock: MockClock) -> None:
    async with forest() as (grown, caller):
        call = caller.call("root::work")
        await grown.growing.wait()
        assert grown.budgets[0] == pytest.approx(grown.core.default_timeout_s, abs=1)
        caller.send({"type": "cancelinvocation", "invocation_id": call})
        await trio.sleep(10)
        assert len(grown.ends) == 3
