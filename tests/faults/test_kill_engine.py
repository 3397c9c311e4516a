"""Promises P1 and P2: what was receipted is handled, whenever the engine is killed (20 rounds of kill -9).

Producers enqueue without pause, one worker handles, both stay; the engine is killed at random moments and started again
on its port. The producers note what they got receipts for, the worker what it saw. At the end both must agree, and
nothing may be left waiting. The last test takes the wait for the disk out of the engine and sees this very check fail.
"""

import random
import sys
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
AT_ONCE = 8
SETTLE_S = 10.0
ROUNDS_S = 160.0
ENGINE = (sys.executable, "-m", "iii_trio")
SOON = Reconnect(first_s=0.02, limit_s=0.1)

QUEUES = """
workers:
  - name: iii-state
  - name: iii-queue
    config:
      queue_configs:
        default: {max_retries: 1000, backoff_ms: 5, concurrency: 20}
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
    deliveries: int = 0
    left_in_queue: int = 0
    _news: trio.Event = field(factory=trio.Event)

    def note(self, number: int) -> None:
        self.handled.add(number)
        self.deliveries += 1
        self._news.set()
        self._news = trio.Event()

    @property
    def missing(self) -> set[int]:
        return self.receipted - self.handled

    async def news(self) -> None:
        with trio.move_on_after(0.5):
            await self._news.wait()


async def produce(client: Client, ledger: Ledger, numbers: Sequence[int], enough: trio.Event) -> None:
    """Enqueue until there is enough of both messages and kills; only what has a receipt counts."""
    for number in numbers:
        if enough.is_set():
            return
        try:
            await client.enqueue("default", "kill::handle", {"number": number}, timeout=5)
        except InvocationError:
            continue  # no receipt, no promise
        ledger.receipted.add(number)


async def depth(client: Client) -> int:
    stats = await client.call("engine::queue::topic_stats", {"topic": "default"})
    return int(stats["depth"] + stats["dlq_depth"])


async def run_rounds(
    directory: Path,
    kills: int,
    seed: int,
    *,
    command: Sequence[str] = ENGINE,
    messages: int = MESSAGES,
    work_s: float = 0.02,
) -> Ledger:
    """Kill the engine `kills` times while messages wait, are handled and are written; returns the books afterwards."""
    config = directory / "config.yaml"
    config.write_text(QUEUES)
    ledger, dice, enough = Ledger(), random.Random(seed), trio.Event()
    worker = Worker("handler")

    @worker.function("kill::handle")
    async def handle(message: dict[str, int]) -> None:
        await trio.sleep(work_s)
        ledger.note(message["number"])

    async def everything(url: str) -> None:
        async with open_client(url, name="producer", reconnect=SOON) as client, trio.open_nursery() as producers:
            for lane in range(AT_ONCE):
                producers.start_soon(produce, client, ledger, range(lane, 10_000_000, AT_ONCE), enough)
        produced.set()

    port, produced = 0, trio.Event()
    with trio.fail_after(ROUNDS_S):
        async with trio.open_nursery() as nursery:
            for kill in range(kills + 1):
                async with run_engine(directory, "-c", str(config), port=port, command=command) as engine:
                    if not port:
                        port = engine.port
                        await nursery.start(partial(worker.run, engine.url, reconnect=SOON))
                        nursery.start_soon(everything, engine.url)
                    if kill < kills:
                        while len(ledger.receipted) < messages * (kill + 1) // (kills + 1):
                            await ledger.news()
                        await trio.sleep(dice.uniform(0.01, 0.3))
                        await engine.kill()
                        continue
                    while len(ledger.receipted) < messages:
                        await ledger.news()
                    enough.set()
                    await produced.wait()
                    async with open_client(engine.url, name="auditor") as auditor:
                        with trio.move_on_after(SETTLE_S):
                            while ledger.missing or await depth(auditor):
                                await ledger.news()
                        ledger.left_in_queue = await depth(auditor)
                    nursery.cancel_scope.cancel()
    return ledger


def check(ledger: Ledger) -> None:
    """P1 and P2, as a judgement on the books."""
    assert not ledger.missing, f"{len(ledger.missing)} receipted messages were never handled"
    assert ledger.left_in_queue == 0, "messages are stuck in the queue"


async def test_every_receipted_message_is_handled_over_20_kills(tmp_path: Path) -> None:
    ledger = await run_rounds(tmp_path, 20, seed=1)
    check(ledger)
    assert len(ledger.receipted) >= MESSAGES


async def test_the_check_fails_when_the_engine_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text(dedent(FORGETFUL))
    ledger = await run_rounds(tmp_path, 4, 2, command=(sys.executable, str(script)), messages=200, work_s=0.2)
    with pytest.raises(AssertionError, match="receipted messages were never handled"):
        check(ledger)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 11))
async def test_200_kills(tmp_path: Path, seed: int) -> None:
    check(await run_rounds(tmp_path, 25, seed=seed))
