"""The queue over SQLite: a restart of the engine, and kill -9 in the middle of the work (promises P1, P2, P3)."""

import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from iii_trio.config import Live, QueueModuleSettings, QueueSettings
from iii_trio.engine import Call, Engine, LocalPeer, open_engine, open_local
from iii_trio.modules.queue import QueueModule
from iii_trio.protocol import Json
from iii_trio.stores import JobLog, OnDone, Result, open_sqlite

SETTINGS = QueueModuleSettings(
    queue_configs={
        "default": QueueSettings(concurrency=10),
        "fifo": QueueSettings(type="fifo", message_group_field="g", concurrency=4, max_retries=100, backoff_ms=5),
    }
)

CHILD = """
import sys, trio
sys.path.insert(0, {here!r})
from test_queue_sqlite import child
trio.run(child, {path!r}, {first}, {count})
"""


@define(eq=False)
class Watched:
    """A job log that tells when messages are acknowledged."""

    log: JobLog
    news: trio.Event = field(factory=trio.Event)

    def ack(self, seq: int, on_done: OnDone[bool], **how: Any) -> None:
        def told(result: Result[bool]) -> None:
            on_done(result)
            self.news.set()
            self.news = trio.Event()

        self.log.ack(seq, told, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    async def wait_empty(self, module: QueueModule) -> None:
        """Return when no live message is left: neither waiting, nor delayed, nor in flight."""
        while True:
            news = self.news
            counts = [queue.counts for queue in module.statistics().queues]
            if not sum(c.waiting + c.delayed + c.in_flight for c in counts):
                return
            await news.wait()


@asynccontextmanager
async def running(path: str | Path) -> AsyncIterator[tuple[Engine, LocalPeer, Callable[[], Awaitable[None]]]]:
    """An engine with the queue on a file, a worker beside it, and what waits until the queue is empty."""
    async with (
        open_sqlite(path) as store,
        open_engine() as core,
        open_local(core, "user") as user,
        trio.open_nursery() as nursery,
    ):
        log = Watched(store.job_log())
        module = QueueModule(Live(SETTINGS), log)
        await nursery.start(module.run, core)
        yield core, user, partial(log.wait_empty, module)
        nursery.cancel_scope.cancel()


async def child(path: str, first: int, count: int) -> None:
    """Enqueue `count` messages, handle what comes, and tell of receipts and deliveries on stdout; then wait to die."""
    failed: set[int] = set()

    def say(line: str) -> None:
        os.write(1, f"{line}\n".encode())

    async def handler(call: Call, data: Json) -> Json:
        value = data.decode()
        marker = Json(call.metadata).decode() if call.metadata else {}
        say(f"D {value['n']} {marker.get('iii.queue', {}).get('attempt', 1)}")
        await trio.sleep(0.001)
        if value["n"] % 7 == 0 and value["n"] not in failed:
            failed.add(value["n"])
            raise RuntimeError("once")
        say(f"H {value['n']}")
        return Json.of(None)

    async with running(path) as (_, user, wait_empty):
        user.register("f", handler, task=True)
        for n in range(first, first + count):
            data = {"n": n, "g": n % 3}
            request = {"queue": "fifo", "function_id": "f", "data": data, "messageReceiptId": f"r{n}"}
            await user.invoke("engine::queue::enqueue", Json.of(request))
            say(f"R {n}")
        await wait_empty()
        say("E 0")
        await trio.sleep_forever()


async def run_child(path: Path, first: int, count: int, kill_after: int | None) -> list[list[str]]:
    """Start a child and kill -9 it after so many lines, or at its end; returns what it said."""
    script = CHILD.format(here=str(Path(__file__).parent), path=str(path), first=first, count=count)
    process = await trio.lowlevel.open_process([sys.executable, "-c", script], stdout=-1)
    assert process.stdout is not None
    said = b""
    with trio.fail_after(30):
        async for chunk in process.stdout:
            said += chunk
            if b"E 0\n" in said or (kill_after is not None and said.count(b"\n") >= kill_after):
                process.send_signal(signal.SIGKILL)
                break
        async for chunk in process.stdout:
            said += chunk
        await process.wait()
    return [line.split() for line in said.decode().split("\n")[:-1]]


@pytest.mark.parametrize("kill_after", [40, 160])
async def test_kill_9_loses_no_receipted_message_and_no_order(tmp_path: Path, kill_after: int) -> None:
    path = tmp_path / "queue.db"
    before = await run_child(path, 1, 150, kill_after)
    after = await run_child(path, 0, 0, None)
    lines = before + after
    receipted = {int(line[1]) for line in before if line[0] == "R"}
    handled = [int(line[1]) for line in lines if line[0] == "H"]
    assert receipted
    assert receipted <= set(handled)
    assert after[-1][0] == "E"

    numbers = Counter[int]()
    for kind, n, *attempt in lines:
        if kind == "D":
            numbers[int(n)] += 1
            assert numbers[int(n)] == 1 or int(attempt[0]) >= 2, f"message {n} was repeated without a mark"
    for group in range(3):
        order = list(dict.fromkeys(n for n in handled if n % 3 == group))
        assert order == sorted(order)


async def test_a_clean_stop_and_start_loses_and_repeats_nothing(tmp_path: Path) -> None:
    seen: list[int] = []

    async def handler(_call: Call, data: Json) -> Json:
        seen.append(data.decode())
        await trio.sleep(0.001)
        return Json.of(None)

    for run in range(3):
        async with running(tmp_path / "queue.db") as (core, user, _):
            user.register("f", handler, task=True)
            async with trio.open_nursery() as producers:
                for n in range(100 * run, 100 * (run + 1)):
                    request = {"queue": "default", "function_id": "f", "data": n, "messageReceiptId": f"r{n}"}
                    producers.start_soon(user.invoke, "engine::queue::enqueue", Json.of(request))
            assert await core.drain(5.0)
    async with running(tmp_path / "queue.db") as (_, user, wait_empty):
        user.register("f", handler, task=True)
        with trio.fail_after(20):
            await wait_empty()
    assert sorted(seen) == list(range(300))
