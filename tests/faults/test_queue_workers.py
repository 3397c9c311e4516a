"""P2 and P3 when worker processes die or stand still: nothing is lost, what is repeated is marked, groups keep their order."""

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field

from iii_trio import Client, open_client
from iii_trio.testing import EngineProcess, run_engine

PROGRAM = Path(__file__).parent / "clients" / "queue_victim.py"
WORKERS = PRODUCERS = 4
LANES = 8
CONCURRENCY = 20
QUEUES = f"""
workers:
  - name: iii-queue
    config:
      queue_configs:
        default: {{max_retries: 1000, backoff_ms: 5, concurrency: {CONCURRENCY}}}
        hasty: {{max_retries: 1000, backoff_ms: 100, timeout_ms: 800, concurrency: {CONCURRENCY}}}
        groups:
          {{max_retries: 1000, backoff_ms: 5, concurrency: {CONCURRENCY}, type: fifo, message_group_field: group}}
"""


@define(eq=False)
class Seen:
    """What the workers have said; `done` is in the order of the first successes."""

    begun: list[tuple[int, int]] = field(factory=list)
    """Deliveries: number of the message, attempt."""
    done: dict[int, None] = field(factory=dict)
    _news: trio.Event = field(factory=trio.Event)

    def take(self, line: list[str]) -> None:
        if line[0] == "B":
            self.begun.append((int(line[1]), int(line[2])))
        elif line[0] == "H":
            self.done[int(line[1])] = None
        self._news.set()
        self._news = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._news.wait()


@asynccontextmanager
async def worker(engine: EngineProcess, name: int, work_s: float, seen: Seen) -> AsyncIterator[trio.Process]:
    """A worker process for the length of the block; all that it has said is read before the block is left."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(PROGRAM), engine.url, str(name), str(work_s)], stdout=subprocess.PIPE
    )
    ready, over = trio.Event(), trio.Event()

    async def listen() -> None:
        rest = b""
        assert process.stdout is not None
        async for chunk in process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line == b"ready":
                    ready.set()
                else:
                    seen.take(line.decode().split())
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        try:
            await ready.wait()
            yield process
        finally:
            process.kill()
            with trio.move_on_after(5, shield=True):
                await process.wait()
                await over.wait()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def engine_of(directory: Path, wait_s: float = 60) -> AsyncIterator[tuple[EngineProcess, Client]]:
    (directory / "queues.yaml").write_text(QUEUES)
    with trio.fail_after(wait_s):
        async with (
            run_engine(directory, "-c", str(directory / "queues.yaml")) as engine,
            open_client(engine.url, name="producer") as client,
        ):
            yield engine, client


def check_marks(seen: Seen) -> None:
    """P2: a repeated delivery has a higher number than the one before; returns nothing, raises."""
    last: Counter[int] = Counter()
    for number, attempt in seen.begun:
        assert attempt > last[number], f"message {number} was delivered again as number {attempt}"
        last[number] = attempt


async def kill_workers(directory: Path, kills: int, seed: int, wait_s: float) -> None:
    """Kill -9 one of four workers again and again, under four producers."""
    dice, seen = random.Random(seed), Seen()
    receipted: set[int] = set()
    async with engine_of(directory, wait_s) as (engine, _), trio.open_nursery() as nursery:
        enough = trio.Event()
        killed = 0

        async def live(name: int) -> None:
            nonlocal killed
            while True:
                async with worker(engine, name, 0.01, seen) as process:
                    target = len(seen.done) + dice.randint(10, 50)
                    await seen.until(lambda target=target: len(seen.done) >= target)
                    if killed >= kills:
                        await trio.sleep_forever()
                    killed += 1
                    process.kill()

        async def produce(number: int) -> None:
            async with open_client(engine.url, name=f"producer-{number}") as client, trio.open_nursery() as lanes:
                for lane in range(number, LANES, PRODUCERS):
                    lanes.start_soon(produce_lane, client, lane)

        async def produce_lane(client: Client, lane: int) -> None:
            for number in range(lane, 1_000_000, LANES):
                if enough.is_set():
                    return
                queue = "groups" if number // LANES % 2 else "default"
                await client.enqueue(queue, f"work::{lane % WORKERS}", {"number": number, "group": lane})
                receipted.add(number)
                while len(receipted) - len(seen.done) > 200:
                    await seen.until(lambda: len(receipted) - len(seen.done) <= 200)

        async def produce_all() -> None:
            async with trio.open_nursery() as producers:
                for number in range(PRODUCERS):
                    producers.start_soon(produce, number)
            produced.set()

        produced = trio.Event()
        for name in range(WORKERS):
            nursery.start_soon(live, name)
        nursery.start_soon(produce_all)
        await seen.until(lambda: killed >= kills)
        enough.set()
        await produced.wait()
        await seen.until(lambda: receipted <= set(seen.done))
        nursery.cancel_scope.cancel()
    check_marks(seen)
    for lane in range(LANES):
        group = [number for number in seen.done if number % LANES == lane and number // LANES % 2]
        assert group == sorted(group), "a group of the fifo queue was handled out of order"
    repeated = len(seen.begun) - len({number for number, _ in seen.begun})
    assert repeated <= kills * 2 * CONCURRENCY, "more was repeated than can have been in flight"


async def test_killed_workers_lose_nothing_and_no_order(tmp_path: Path) -> None:
    await kill_workers(tmp_path, 2, seed=1, wait_s=60)


@pytest.mark.long
async def test_killed_workers_lose_nothing_and_no_order_25_times(tmp_path: Path) -> None:
    await kill_workers(tmp_path, 25, seed=2, wait_s=120)


async def freeze_a_worker(directory: Path, frozen_s: float) -> None:
    """A worker stands still with deliveries in flight: beside it all goes on, and afterwards nothing is missing.

    Even numbers have time for that, odd ones have not.
    """
    frozen, other = Seen(), Seen()
    async with (
        engine_of(directory, frozen_s + 60) as (engine, client),
        worker(engine, 0, 0.2, frozen) as process,
        worker(engine, 1, 0.0, other),
    ):

        async def send(first: int, last: int, name: int) -> None:
            for number in range(first, last):
                await client.enqueue("hasty" if number % 2 else "default", f"work::{name}", {"number": number})

        await send(0, 6, 0)
        await frozen.until(lambda: len(frozen.begun) == 6)
        process.send_signal(signal.SIGSTOP)
        await send(6, 12, 0)
        await send(0, 10, 1)
        await other.until(lambda: len(other.done) == 10)
        await trio.sleep(frozen_s)
        process.send_signal(signal.SIGCONT)
        await frozen.until(lambda: len(frozen.done) == 12)
        for queue in ("default", "hasty"):
            while (stats := await client.call("engine::queue::topic_stats", {"topic": queue}))["depth"]:
                pass
            assert stats["dlq_depth"] == 0
    check_marks(frozen)
    assert len(other.begun) == 10
    if frozen_s < 20:  # nobody has taken it for dead
        assert sorted(number for number, _ in frozen.begun if number % 2 == 0) == [0, 2, 4, 6, 8, 10]


async def test_a_worker_that_stands_still_for_a_moment(tmp_path: Path) -> None:
    await freeze_a_worker(tmp_path, 1.0)


@pytest.mark.long
async def test_a_worker_and_an_engine_that_stand_still_for_a_minute(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for name, freeze in (("worker", freeze_a_worker), ("engine", freeze_the_engine)):
            (tmp_path / name).mkdir()
            nursery.start_soon(freeze, tmp_path / name, 62.0)


async def freeze_the_engine(directory: Path, frozen_s: float) -> None:
    """The deadlines of all deliveries pass while it stands still; the answers, sent in time, count all the same."""
    seen = Seen()
    async with engine_of(directory, frozen_s + 60) as (engine, client), worker(engine, 0, 0.2, seen):
        for number in range(5):
            await client.enqueue("hasty", "work::0", {"number": number})
        await seen.until(lambda: len(seen.begun) == 5)
        engine.signal(signal.SIGSTOP)
        await seen.until(lambda: len(seen.done) == 5)
        await trio.sleep(frozen_s)
        engine.signal(signal.SIGCONT)
        await client.enqueue("hasty", "work::0", {"number": 5})
        await seen.until(lambda: len(seen.done) == 6)
        while (await client.call("engine::queue::topic_stats", {"topic": "hasty"}))["depth"]:
            pass
        *answered, (last, _) = sorted(seen.begun)
        assert answered == [(number, 1) for number in range(5)]
        assert last == 5  # the worker may have given the connection up, after 60 s, with a first delivery in it
