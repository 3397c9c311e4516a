"""Promise P6 beside many stalled readers: all sockets have one budget, and only the one that holds the most pays."""

import statistics
import time
from typing import Any

import pytest
import trio

from iii_trio.engine import Engine, Listener, open_engine
from iii_trio.protocol.limits import MIB
from iii_trio.testing import RawWorker, dial
from iii_trio.transport import Budget
from iii_trio.transport.budget import REASON

LIMIT = 12 * MIB
P99_S = 0.1
PAYLOAD = "x" * 100_000


def backlog(core: Engine, worker: RawWorker) -> int:
    """The bytes that wait for a worker; none for one that has gone."""
    peer = core.workers.get(worker.worker_id)
    return 0 if peer is None else peer.connection.pending_bytes


async def echo(worker: RawWorker) -> None:
    while True:
        call = await worker.next("invokefunction")
        worker.answer(call, result=call["data"])


async def test_of_several_stalled_readers_the_one_with_the_most_pays_and_nobody_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_engine() as core, trio.open_nursery() as nursery:
        core.budget = Budget(LIMIT)
        listener = Listener(core=core, host="127.0.0.1", port=0)
        await nursery.start(listener.run)

        async def join(*functions: str) -> RawWorker:
            worker = await dial(nursery, listener.addresses[0][1])
            worker.introduce()
            for function_id in functions:
                worker.register(function_id)
            await worker.settled()
            return worker

        stalled = [await join(f"stalled::{number}") for number in range(3)]
        for worker in stalled:
            worker.connection.pause_reading()
        nursery.start_soon(echo, await join("neighbour::echo"))
        caller, flooder = await join(), await join()
        waits: list[float] = []
        waiting: dict[int, list[str]] = {0: [], 1: [], 2: []}

        async def live() -> None:
            while True:
                began = time.process_time()  # of this process alone, which has all of them
                answer: dict[str, Any] = await caller.ask("neighbour::echo", len(waits))
                assert answer["result"] == len(waits)
                waits.append(time.process_time() - began)
                await trio.sleep(0.002)

        async def flood(number: int) -> None:
            waiting[number].append(flooder.call(f"stalled::{number}", PAYLOAD))
            await flooder.settled()
            held = core.budget.statistics().held
            assert held <= LIMIT
            assert held >= sum(backlog(core, worker) for worker in stalled) - 3 * 64 * 1024

        nursery.start_soon(live)
        with trio.fail_after(60):
            for number, size in ((0, 1 * MIB), (1, 2 * MIB)):
                while backlog(core, stalled[number]) < size:
                    await flood(number)
            while not core.budget.statistics().ended:
                await flood(2)
            lost = await flooder.result(waiting[2][0])
            assert lost["error"]["code"] == "invocation_stopped"
            while core.workers.get(stalled[2].worker_id) is not None:
                await flooder.settled()

            # its memory is free, and so is the room: another one may hold as much as it did
            assert core.budget.statistics().held < 4 * MIB
            while f"ended with 1013: {REASON}" not in caplog.text:
                await flooder.settled()
            assert caplog.text.count("which has most of it") == 1

            # those that held less have lost nothing: they read, and answer every call that waited for them
            for number in (0, 1):
                assert backlog(core, stalled[number]) >= MIB // 2, "the system may have taken some more of it"
                stalled[number].connection.resume_reading()
                nursery.start_soon(echo, stalled[number])
                for invocation_id in waiting[number]:
                    assert (await flooder.result(invocation_id))["result"] == PAYLOAD
            while len(waits) < 100:
                await caller.settled()
        assert core.budget.statistics().held == 0
        assert core.budget.statistics().ended == 1
        assert statistics.quantiles(waits, n=100)[98] < P99_S
        nursery.cancel_scope.cancel()
