"""A queue with very many dead letters: to redrive or drop them stalls nobody, and one of them costs as if it were alone."""

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define

from iii_trio import Client, Worker, open_client
from iii_trio.stores import Fsync, NewJob, open_sqlite
from iii_trio.stores.sqlite_jobs import SqliteJobTable
from iii_trio.testing import run_engine

CONFIG = """
workers:
  - name: iii-queue
    config:
      queue_configs:
        orders: {concurrency: 20, max_retries: 1}
"""


async def bury(path: Path, count: int) -> None:
    """Write a store with so many dead letters of the queue `orders`."""
    path.parent.mkdir(parents=True)
    async with open_sqlite(path, fsync=Fsync.NEVER) as store:
        log = store.job_log()
        for first in range(0, count, 1000):
            done = trio.Event()
            numbers = range(first, min(first + 1000, count))
            jobs = [
                NewJob(f"r{n}", "queue@orders", "default", "f", b'{"n":%d}' % n, 1, 1, 1, 1, message_id=f"r{n}")
                for n in numbers
            ]
            log.append(jobs, lambda _: None)
            for n in numbers:
                log.dead_letter(n + 1 + first, 1, "boom", 1, lambda _: None)
            log.dead_count("queue@orders", lambda _, done=done: done.set())
            await done.wait()


@define
class Neighbour:
    """Somebody who calls a function of a worker all the time, and enqueues and has handled messages of another queue."""

    calls: int = 0
    enqueued: int = 0
    worst_s: float = 0.0

    async def run(self, client: Client) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.call, client)
            nursery.start_soon(self.enqueue, client)

    async def call(self, client: Client) -> None:
        while True:
            began = time.perf_counter()
            await client.call("echo", {"n": self.calls})
            self.worst_s = max(self.worst_s, time.perf_counter() - began)
            self.calls += 1

    async def enqueue(self, client: Client) -> None:
        while True:
            await client.enqueue("default", "echo", {"n": self.enqueued})
            self.enqueued += 1


@asynccontextmanager
async def engine(directory: Path, count: int) -> AsyncIterator[tuple[Client, Client, dict[int, int]]]:
    """An engine with so many dead letters, a client, another for the neighbour, and what was handled how often."""
    await bury(directory / "data" / "queue" / "store.sqlite3", count)
    (directory / "config.yaml").write_text(CONFIG)
    handled: dict[int, int] = {}
    worker = Worker("worker")

    @worker.function("f")
    async def handle(message: dict[str, int]) -> None:
        handled[message["n"]] = handled.get(message["n"], 0) + 1

    @worker.function("echo")
    async def echo(message: Any) -> Any:
        return message

    async with (
        run_engine(directory, "-c", str(directory / "config.yaml")) as running,
        trio.open_nursery() as nursery,
        open_client(running.url, name="operator") as client,
        open_client(running.url, name="neighbour") as other,
    ):
        await nursery.start(worker.run, running.url)
        yield client, other, handled
        nursery.cancel_scope.cancel()


async def redrive_beside_a_neighbour(directory: Path, count: int, *, wait: bool = True) -> None:
    """Redrive all of them; with `wait` until they are handled."""
    async with engine(directory, count) as (client, other, handled):
        neighbour = Neighbour()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(neighbour.run, other)
            while neighbour.calls < 50:
                await trio.lowlevel.checkpoint()
            alone, neighbour.worst_s, before = neighbour.worst_s, 0.0, neighbour.calls
            began = time.perf_counter()
            answer = await client.call("iii::queue::redrive", {"queue": "orders"}, timeout=120)
            took = time.perf_counter() - began
            nursery.cancel_scope.cancel()
        assert answer == {"queue": "orders", "redriven": count}
        between = neighbour.calls - before
        figures = f"{count} in {took:.1f} s; the neighbour's {between} calls: worst {neighbour.worst_s * 1000:.0f} ms"
        print(f"redrive of {figures} (alone {alone * 1000:.0f} ms), {neighbour.enqueued} messages")
        # a stall would show as a few calls in all that time
        assert between > count / 256, figures
        while wait and (await client.call("engine::queue::topic_stats", {"topic": "orders"}))["depth"]:
            pass
        assert set(handled.values()) == {1}
        assert len(handled) == count or not wait


async def test_thousands_of_dead_letters_come_back_and_stall_nobody(tmp_path: Path) -> None:
    with trio.fail_after(60):
        await redrive_beside_a_neighbour(tmp_path, 2_500)


@pytest.mark.long
async def test_a_hundred_thousand_dead_letters_come_back_and_stall_nobody(tmp_path: Path) -> None:
    with trio.fail_after(280):
        await redrive_beside_a_neighbour(tmp_path, 100_000, wait=False)


def counted(connection: sqlite3.Connection) -> Callable[[], int]:
    """How many steps SQLite's machine has made since it was last asked, which no load changes."""
    taken = 0

    def step() -> int:
        nonlocal taken
        taken += 1
        return 0

    def since() -> int:
        nonlocal taken
        steps, taken = taken, 0
        return steps

    connection.set_progress_handler(step, 1)
    return since


async def test_one_dead_letter_costs_as_if_it_were_alone(tmp_path: Path) -> None:
    steps: dict[int, list[int]] = {}
    for count in (100, 8_000):
        path = tmp_path / str(count) / "store.sqlite3"
        await bury(path, count)
        connection = sqlite3.connect(path, isolation_level=None)
        table, since = SqliteJobTable(connection), counted(connection)
        steps[count] = []
        for n in (7, count // 2, count - 7):
            assert table.redrive_one("queue@orders", f"r{n}", 1) is not None
            assert table.discard("queue@orders", f"r{n + 1}")
            assert not table.discard("queue@orders", "nobody")
            steps[count].append(since())
        connection.close()
    assert max(steps[8_000]) <= 1.5 * max(steps[100])


async def test_a_page_of_a_purge_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    steps: dict[int, int] = {}
    for count in (200, 8_000):
        path = tmp_path / str(count) / "store.sqlite3"
        await bury(path, count)
        connection = sqlite3.connect(path, isolation_level=None)
        table, since = SqliteJobTable(connection), counted(connection)
        assert table.trim("queue@orders", 0, 0, 100).count == 100
        steps[count] = since()
        connection.close()
    assert steps[8_000] <= 1.5 * steps[200]
