"""The engine stops and starts again under official SDKs: workers come back by themselves, and no receipt is forgotten."""

import signal
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

import pytest
import trio
from compat_lab import CLIENTS, DEADLINE_S, Lab, Peer, Process, RunningEngine
from trio_websocket import ConnectionClosed

WORKER = CLIENTS / "official_worker.py"
NODE_WORKER = CLIENTS / "official_worker.mjs"

GRACE_S = 5.0
"""What a running engine takes, by default, to end its work after SIGTERM."""


async def check(lab: Lab, engine: RunningEngine, prefixes: list[str]) -> None:
    """Every worker's functions can be called, and its routes answer."""
    peer = await lab.peer(engine)
    await peer.has(*(f"{prefix}::{name}" for prefix in prefixes for name in ("echo", "page")))
    for prefix in prefixes:
        assert await peer.call(f"{prefix}::echo", [prefix]) == [prefix]
        await peer.route(prefix)
        assert await engine.get(f"/{prefix}") == (200, b'{"prefix":"%s"}' % prefix.encode())


async def restart_twice(lab: Lab, engine: RunningEngine, prefixes: list[str], workers: list[Process]) -> None:
    """SIGTERM and then SIGKILL, each followed by a new engine on the same ports; the same processes are back each time."""
    await check(lab, engine, prefixes)
    assert await engine.process.stop(signal.SIGTERM, within_s=3 * GRACE_S) == 0
    engine = await lab.engine(after=engine)
    await check(lab, engine, prefixes)
    assert await engine.process.stop(signal.SIGKILL) == -signal.SIGKILL
    engine = await lab.engine(after=engine)
    await check(lab, engine, prefixes)
    assert [worker.popen.returncode for worker in workers] == [None] * len(workers)


async def test_python_workers_come_back_after_a_restart(
    lab: Lab, engine: RunningEngine, new_python: Path, old_python: Path
) -> None:
    workers = [
        await lab.script(engine, new_python, WORKER, "new"),
        await lab.script(engine, old_python, WORKER, "old"),
    ]
    await restart_twice(lab, engine, ["new", "old"], workers)


async def test_node_workers_come_back_after_a_restart(
    lab: Lab, engine: RunningEngine, link: Callable[[Path], Path]
) -> None:
    worker = await lab.script(engine, "node", link(NODE_WORKER), "node")
    await restart_twice(lab, engine, ["node"], [worker])


async def enqueue_until_closed(peer: Peer, receipts: set[int], enough: trio.Event) -> None:
    """Enqueue jobs until the engine closes the connection; `receipts` are the jobs it has taken."""
    action = {"type": "enqueue", "queue": "default"}
    jobs = count()
    while not peer.ended:
        sent: dict[str, int] = {}
        try:
            for job in islice(jobs, 20):
                sent[await peer.invoke("busy::job", data={"job": job}, action=action)] = job
        except ConnectionClosed:
            await peer.end()
        for answer in await peer.answers(sent):
            if "messageReceiptId" in answer.get("result", {}):
                receipts.add(sent[answer["invocation_id"]])
        if len(receipts) >= 300:
            enough.set()


def done(worker: Process) -> list[int]:
    """The jobs that the worker has done, in order."""
    return [int(line.removeprefix("done ")) for line in worker.lines if line.startswith("done ")]


@pytest.mark.parametrize("client", ["old_python", "new_python"])
async def test_sigterm_under_load_loses_no_receipt(
    lab: Lab, engine: RunningEngine, client: str, request: pytest.FixtureRequest
) -> None:
    worker = await lab.script(engine, request.getfixturevalue(client), WORKER, "busy")
    peer = await lab.peer(engine)
    await peer.has("busy::job")

    receipts: set[int] = set()
    enough = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enqueue_until_closed, peer, receipts, enough)
        with trio.fail_after(DEADLINE_S):
            await enough.wait()
        assert await engine.process.stop(signal.SIGTERM, within_s=3 * GRACE_S) == 0
    await peer.end()
    assert peer.closed is not None
    assert peer.closed.code == 1012
    assert receipts - set(done(worker)), "the engine stopped with work to do"

    await lab.engine(after=engine)
    await worker.output(lambda _: receipts <= set(done(worker)))
    assert len(done(worker)) == len(set(done(worker))), "what was running was waited for, so nothing is done twice"
    assert worker.popen.returncode is None
