"""Promises P1, P2 and P3: what was receipted is handled, in order, whenever the engine or a worker is killed.

Four producers enqueue without pause into a standard and a fifo queue, four workers handle, all stay; the engine is
killed at 20 random moments and started again on its port, or the workers are. The producers note what they got receipts
for, the workers what they saw. At the end both must agree, nothing may be left waiting, every group of the fifo queue
was handled in its order, and nothing was begun twice on one connection of a worker. One test takes the wait for the disk out
of the engine and sees this very check fail.
"""

import random
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import dedent

import pytest
import trio
from attrs import define, field

from iii_trio import Client, InvocationError, Reconnect, Worker, open_client
from iii_trio.testing import run_engine

MESSAGES = 1_000
PRODUCERS = WORKERS = 4
LANES = 8
"""Enqueues at once; each lane is a group of the fifo queue, where every other message of the lane goes."""

SETTLE_S = 10.0
"""Without a message handled for so long, what is left counts as stuck; a long group takes its time, one by one."""
ROUNDS_S = 400.0
ENGINE = (sys.executable, "-m", "iii_trio")
SOON = Reconnect(first_s=0.02, limit_s=0.1)

QUEUES = """
workers:
  - name: iii-state
  - name: iii-queue
    config:
      queue_configs:
        default: {max_retries: 1000, backoff_ms: 5, concurrency: 20}
        groups: {max_retries: 1000, backoff_ms: 5, concurrency: 20, type: fifo, message_group_field: group}
"""

# What is answered lies in memory for another 100 ms: to a process that is killed, the same as an fsync left out.
FORGETFUL = """
    import time
    from iii_trio.cli.main import main
    from iii_trio.stores import desk, sqlite_threads

    def serve_writes(self):
        stopping = False
        while not stopping:
            group, stopping = sqlite_threads._drain(self._writes, None)
            if group:
                self._file._connection.execute("BEGIN IMMEDIATE")
                desk.carry_out(group, self._file.tables)
                self._token.run_sync_soon(self._desk.finish, group)
                time.sleep(0.1)
                self._file._connection.execute("COMMIT")

    sqlite_threads.Threads._serve_writes = serve_writes
    main()
"""


@define
class Ledger:
    """What the producers were promised and what the worker has seen."""

    receipted: set[int] = field(factory=set)
    handled: set[int] = field(factory=set)
    firsts: list[int] = field(factory=list)
    """What was handled, by the first time."""
    begun: Counter[tuple[str, int]] = field(factory=Counter)
    """Deliveries by connection of the worker, which ends with the engine's life at the latest, and message."""
    left_in_queue: int = 0
    _news: trio.Event = field(factory=trio.Event)

    def note(self, number: int) -> None:
        if number not in self.handled:
            self.firsts.append(number)
        self.handled.add(number)
        self._news.set()
        self._news = trio.Event()

    @property
    def missing(self) -> set[int]:
        return self.receipted - self.handled

    async def news(self) -> None:
        with trio.move_on_after(0.5):
            await self._news.wait()


async def produce(client: Client, ledger: Ledger, lane: int, enough: trio.Event) -> None:
    """Enqueue until there is enough of both messages and kills; only what has a receipt counts."""
    for number in range(lane, 10_000_000, LANES):
        if enough.is_set():
            return
        queue = "groups" if number // LANES % 2 else "default"
        message = {"number": number, "group": lane}
        try:
            await client.enqueue(queue, f"kill::handle-{lane % WORKERS}", message, timeout=5)
        except InvocationError:
            continue  # no receipt, no promise
        ledger.receipted.add(number)


async def depth(client: Client) -> int:
    waiting = 0
    for queue in ("default", "groups"):
        stats = await client.call("engine::queue::topic_stats", {"topic": queue})
        waiting += stats["depth"] + stats["dlq_depth"]
    return waiting


def a_worker(number: int, ledger: Ledger, work_s: float) -> Worker:
    worker = Worker(f"handler-{number}")

    @worker.function(f"kill::handle-{number}")
    async def handle(message: dict[str, int], *, client: Client) -> None:
        if client.worker_id is not None:  # else the connection has ended with the delivery in it
            ledger.begun[client.worker_id, message["number"]] += 1
        await trio.sleep(work_s)
        ledger.note(message["number"])

    return worker


async def run_rounds(
    directory: Path,
    kills: int,
    seed: int,
    *,
    command: Sequence[str] = ENGINE,
    messages: int = MESSAGES,
    work_s: float = 0.02,
    worker_kills: int = 0,
) -> Ledger:
    """Kill the engine `kills` times while messages wait, are handled and are written; returns the books afterwards.

    In its last life a worker loses its connection and starts anew `worker_kills` times.
    """
    config = directory / "config.yaml"
    config.write_text(QUEUES)
    ledger, dice, enough = Ledger(), random.Random(seed), trio.Event()
    scopes = [trio.CancelScope() for _ in range(WORKERS)]

    async def work(url: str, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        starting = True
        while True:
            scopes[number] = trio.CancelScope()
            with scopes[number]:
                run = partial(a_worker(number, ledger, work_s).run, url, reconnect=SOON)
                if starting:
                    await run(task_status=task_status)
                else:
                    await run()
            starting = False

    async def everything(url: str) -> None:
        async with trio.open_nursery() as producers:
            for number in range(PRODUCERS):
                producers.start_soon(one_producer, url, number)
        produced.set()

    async def one_producer(url: str, number: int) -> None:
        async with open_client(url, name=f"producer-{number}", reconnect=SOON) as client, trio.open_nursery() as lanes:
            for lane in range(number, LANES, PRODUCERS):
                lanes.start_soon(produce, client, ledger, lane, enough)

    async def enough_messages(share: float) -> None:
        while len(ledger.receipted) < messages * share:
            await ledger.news()

    port, produced = 0, trio.Event()
    with trio.fail_after(ROUNDS_S):
        async with trio.open_nursery() as nursery:
            for kill in range(kills + 1):
                async with run_engine(directory, "-c", str(config), port=port, command=command) as engine:
                    if not port:
                        port = engine.port
                        for number in range(WORKERS):
                            await nursery.start(work, engine.url, number)
                        nursery.start_soon(everything, engine.url)
                    if kill < kills:
                        await enough_messages((kill + 1) / (kills + 1))
                        await trio.sleep(dice.uniform(0.01, 0.3))
                        await engine.kill()
                        continue
                    for worker_kill in range(worker_kills):
                        await enough_messages((kill + worker_kill / worker_kills) / (kills + 1))
                        await trio.sleep(dice.uniform(0.0, 0.05))
                        scopes[worker_kill % WORKERS].cancel()
                    await enough_messages(1)
                    enough.set()
                    await produced.wait()
                    async with open_client(engine.url, name="auditor") as auditor:
                        with trio.move_on_after(SETTLE_S) as patience:
                            while ledger.missing or await depth(auditor):
                                before = len(ledger.handled)
                                await ledger.news()
                                if len(ledger.handled) > before:
                                    patience.deadline = trio.current_time() + SETTLE_S
                        ledger.left_in_queue = await depth(auditor)
                    nursery.cancel_scope.cancel()
    return ledger


def check(ledger: Ledger) -> None:
    """P1, P2 and P3, as a judgement on the books."""
    assert not ledger.missing, f"{len(ledger.missing)} receipted messages were never handled"
    assert ledger.left_in_queue == 0, "messages are stuck in the queue"
    for lane in range(LANES):
        group = [number for number in ledger.firsts if number % LANES == lane and number // LANES % 2]
        assert group == sorted(group), "a group of the fifo queue was handled out of order"


def check_repetitions(ledger: Ledger) -> None:
    """P2: only what was in flight when the engine was killed is repeated."""
    assert not [one for one, times in ledger.begun.items() if times > 1], "messages were repeated without a reason"


async def test_every_receipted_message_is_handled_over_20_kills(tmp_path: Path) -> None:
    ledger = await run_rounds(tmp_path, 20, seed=1)
    check(ledger)
    check_repetitions(ledger)
    assert len(ledger.receipted) >= MESSAGES


async def test_every_receipted_message_is_handled_while_workers_are_killed(tmp_path: Path) -> None:
    ledger = await run_rounds(tmp_path, 0, seed=12, worker_kills=12)
    check(ledger)
    deliveries = Counter(number for _, number in ledger.begun)
    assert any(times > 1 for times in deliveries.values()), "no worker was killed in the middle of its work"


async def test_the_check_fails_when_the_engine_does_not_wait_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.SETTLE_S", 2.0)  # what is missing never comes
    script = tmp_path / "forgetful.py"
    script.write_text(dedent(FORGETFUL))
    ledger = await run_rounds(tmp_path, 4, 2, command=(sys.executable, str(script)), messages=200, work_s=0.2)
    with pytest.raises(AssertionError, match="receipted messages were never handled"):
        check(ledger)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 11, 2))
async def test_200_kills(tmp_path: Path, seed: int) -> None:
    """25 of each of two engines at a time: most of a round is the start of an engine, which takes one processor."""

    async def one(seed: int) -> None:
        directory = tmp_path / str(seed)
        directory.mkdir()
        check(await run_rounds(directory, 25, seed=seed, worker_kills=25))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, seed)
        nursery.start_soon(one, seed + 1)
