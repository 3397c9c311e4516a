"""A soak of the queue: four producers and four consumers for as long as asked, and what the engine holds meanwhile.

    python tests/faults/queue_soak.py SECONDS [DIRECTORY]

Messages go into a standard queue, a fifo queue and a topic. Most succeed, some fail once, a few fail always and become
dead letters, of which retention keeps a hundred. Producers wait while much is waiting, so that the load is what the
machine bears. Every second the engine's memory, open files, tasks and the size of its store are noted; the report
compares the second quarter of the time with the last. In the end nothing may be left or lost.
"""

import logging
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import trio
from attrs import define, field, frozen

from iii_trio import Client, Worker, open_client
from iii_trio.testing import run_engine

PRODUCERS: Final = 4
CONSUMERS: Final = 4
BACKLOG: Final = 400
"""Messages that wait before the producers do."""
FAILS_ONCE: Final = 7
FAILS_ALWAYS: Final = 53
"""Every so manieth message."""
DEAD_KEPT: Final = 100
RETAINED: Final = (2 + CONSUMERS) * DEAD_KEPT
"""Dead letters of all queues together: two named ones, and one for each subscription to a topic."""
SETTLE_S: Final = 30.0

CONFIG: Final = f"""
workers:
  - name: iii-queue
    config:
      queue_configs:
        default:
          {{max_retries: 3, backoff_ms: 20, concurrency: 20, dead_letter_max_count: {DEAD_KEPT}}}
        groups:
          {{type: fifo, message_group_field: lane, max_retries: 3, backoff_ms: 5, concurrency: 20,
            dead_letter_max_count: {DEAD_KEPT}}}
      adapter: {{name: builtin, config: {{max_attempts: 3, backoff_ms: 20, dead_letter_max_count: {DEAD_KEPT}}}}}
"""


class Wanted(Exception):
    """A handler's failure that belongs to the load."""


def unwanted(record: logging.LogRecord) -> bool:
    """Filter for the worker's log: fifteen thousand tracebacks of wanted failures would hide one that matters."""
    return record.exc_info is None or not isinstance(record.exc_info[1], Wanted)


@frozen
class Sample:
    """What the engine holds at one moment; bytes for memory and files."""

    at: float
    rss: int
    files: int
    tasks: int
    stored: int


@frozen
class Quarter:
    """The medians of a quarter of the time, and the largest store."""

    rss: int
    files: int
    tasks: int
    stored: int

    @classmethod
    def of(cls, samples: list[Sample]) -> "Quarter":
        return cls(
            round(median(sample.rss for sample in samples)),
            round(median(sample.files for sample in samples)),
            round(median(sample.tasks for sample in samples)),
            max(sample.stored for sample in samples),
        )


@define
class Report:
    """What was done, and what the engine held."""

    sent: int = 0
    handled: int = 0
    failed: int = 0
    """Deliveries that a handler failed on purpose."""
    seconds: float = 0.0
    lost: int = 0
    left: int = 0
    dead: int = 0
    samples: list[Sample] = field(factory=list)

    def quarter(self, number: int) -> Quarter:
        count = len(self.samples) // 4
        return Quarter.of(self.samples[number * count : (number + 1) * count])

    def lines(self) -> list[str]:
        rows = [
            f"{self.sent} messages in {self.seconds:.0f} s ({self.sent / self.seconds:.0f}/s), {self.failed} failures"
        ]
        rows += [f"lost {self.lost}, left {self.left}, dead letters kept {self.dead}"]
        for number in range(4):
            one = self.quarter(number)
            size = f"RSS {one.rss / 2**20:.1f} MiB, store {one.stored / 2**20:.2f} MiB"
            rows.append(f"quarter {number + 1}: {size}, {one.files} files, {one.tasks} tasks")
        return rows


@define
class Books:
    """What was receipted and what was handled; what always fails counts as handled after its last delivery."""

    report: Report
    open: dict[str, int] = field(factory=dict)
    """Messages that still have to end, and how often each was begun."""
    over: bool = False
    _news: trio.Event = field(factory=trio.Event)

    def ended(self, key: str) -> None:
        self.open.pop(key, None)
        self.report.handled += 1
        self._news.set()
        self._news = trio.Event()

    async def wait_below(self, count: int) -> None:
        while len(self.open) >= count:
            await self._news.wait()


def consumer(number: int, books: Books) -> Worker:
    worker = Worker(f"consumer-{number}")

    async def handle(message: dict[str, Any]) -> None:
        key, serial = str(message["key"]), int(message["serial"])
        begun = books.open[key] = books.open.get(key, 0) + 1
        await trio.sleep(0.001)
        always = serial % FAILS_ALWAYS == 0
        if always or (serial % FAILS_ONCE == 0 and begun == 1):
            books.report.failed += 1
            if always and begun == 3:
                books.ended(key)
            raise Wanted("as wanted")
        books.ended(key)

    worker.queue(f"soak-{number}")(worker.function(f"soak::handle-{number}")(handle))
    return worker


async def produce(client: Client, number: int, books: Books) -> None:
    serial = number
    while not books.over:
        await books.wait_below(BACKLOG)
        serial += PRODUCERS
        target = serial % CONSUMERS
        kind = serial // PRODUCERS % 3
        message = {"key": f"{kind}-{serial}", "serial": serial, "lane": serial % 16, "pad": "x" * 300}
        books.open[message["key"]] = 0
        if kind == 0:
            await client.enqueue("default", f"soak::handle-{target}", message)
        elif kind == 1:
            await client.enqueue("groups", f"soak::handle-{target}", message)
        else:
            await client.publish(f"soak-{target}", message, durable=True)
        books.report.sent += 1


def look(pid: int, store: Path, at: float, tasks: int) -> Sample:
    process = Path(f"/proc/{pid}")
    rss = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmRSS"))
    return Sample(
        at,
        int(rss.split()[1]) * 1024,
        sum(1 for _ in (process / "fd").iterdir()),
        tasks,
        sum(path.stat().st_size for path in store.iterdir()),
    )


def count_tasks(node: dict[str, Any]) -> int:
    return 1 + sum(count_tasks(child) for child in node["children"])


async def numbers(client: Client) -> tuple[int, int]:
    """Live messages and dead letters."""
    rows = await client.call("engine::queue::stats", {})
    return (
        sum(row["waiting"] + row["delayed"] + row["in_flight"] for row in rows),
        sum(row["dead"] for row in rows),
    )


def settled(live: int, dead: int) -> bool:
    """Nothing waits, and retention, which follows each dead letter with an operation of its own, has caught up."""
    return not live and dead <= RETAINED


async def soak(directory: Path, seconds: float, *, every_s: float = 1.0) -> Report:
    """Run for so long and report."""
    logging.getLogger("iii_trio.sdk").addFilter(unwanted)
    config = directory / "soak.yaml"
    config.write_text(CONFIG)
    report = Report()
    books = Books(report)
    async with run_engine(directory, "-c", str(config)) as engine, trio.open_nursery() as nursery:
        for number in range(CONSUMERS):
            await nursery.start(consumer(number, books).run, engine.url)
        async with open_client(engine.url, name="watcher") as watcher:
            began = trio.current_time()

            async def run_producers() -> None:
                async with trio.open_nursery() as producers:
                    for number in range(PRODUCERS):
                        producers.start_soon(run_producer, number)

            async def run_producer(number: int) -> None:
                async with open_client(engine.url, name=f"producer-{number}") as client:
                    await produce(client, number, books)

            async with trio.open_nursery() as load:
                load.start_soon(run_producers)
                while (now := trio.current_time()) < began + seconds:
                    tasks = count_tasks(await watcher.call("engine::tree", {}))
                    report.samples.append(
                        await trio.to_thread.run_sync(
                            partial(look, engine.process.pid, directory / "data" / "queue", now - began, tasks)
                        )
                    )
                    await trio.sleep(every_s)
                books.over = True
            report.seconds = trio.current_time() - began
            with trio.move_on_after(SETTLE_S):
                await books.wait_below(1)
                while not settled(*await numbers(watcher)):
                    pass
            report.lost = len(books.open)
            report.left, report.dead = await numbers(watcher)
        nursery.cancel_scope.cancel()
    return report


def main() -> None:
    """Run as a program; see the module."""
    seconds = float(sys.argv[1])
    if len(sys.argv) > 2:
        report = trio.run(soak, Path(sys.argv[2]), seconds)
    else:
        with tempfile.TemporaryDirectory() as directory:
            report = trio.run(soak, Path(directory), seconds)
    print("\n".join(report.lines()))


if __name__ == "__main__":
    main()
