"""Does a queue get slower when it is long? Start, memory, and the cost to enqueue and to handle, at growing depth.

usage: python bench/queue_depth.py [--depths 1000 100000 1000000] [--messages 2000] [--kinds fifo standard]

A fifo queue with a group for every ten messages, the head of one group failing for ever; and a standard queue, all for
one function. The store is a file, every write is forced. One JSON line for each kind and depth, measured in a process
of its own: seconds to start (of the store, without the look at every row, and of the queues), from there until the first
message is delivered and until all groups are counted, memory at the end, and for each of `messages` enqueued alone and
handled at concurrency 64 the time (p50 and p99 of receipts and of the gaps between handled messages) and the CPU time of
the whole process, in microseconds. The last line of a kind has the deepest divided by the shallowest.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import trio
from harness import Sample, emit

from iii_trio.config import Live, QueueModuleSettings, QueueSettings
from iii_trio.engine import Call, open_engine, open_local
from iii_trio.modules.queue import Kind, QueueKey, QueueModule
from iii_trio.protocol import Json
from iii_trio.protocol.errors import WireError
from iii_trio.stores import Fsync, NewJob, WaitingJobLog, open_sqlite

GROUPED = QueueSettings(
    type="fifo",
    message_group_field="g",
    concurrency=64,
    max_retries=2**31,
    backoff_ms=1_000,
    backoff_type="fixed",
)
KINDS = {"fifo": GROUPED, "standard": QueueSettings(concurrency=64)}
PAYLOAD = b'{"g":%d,"pad":"' + b"x" * 120 + b'"}'
RATIOS = ("enqueue_p50_us", "enqueue_cpu_us", "handled_us", "handled_cpu_us")


async def fill(path: Path, kind: str, depth: int) -> None:
    """Put `depth` messages into the file."""
    name = QueueKey(Kind.NAMED, "deep").text
    async with open_sqlite(path, check=False, fsync=Fsync.NEVER) as store:
        log, now = WaitingJobLog(store.job_log()), int(time.time() * 1000)
        for first in range(0, depth, 1_000):
            await log.append(
                [
                    NewJob(
                        *(str(n), name, "default", "f", PAYLOAD % (n % (depth // 10)), 3, 1_000, now, now),
                        group_id=str(n % (depth // 10)) if kind == "fifo" else None,
                    )
                    for n in range(first, min(first + 1_000, depth))
                ]
            )


def memory_mib() -> float:
    """Resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


async def measure(path: Path, kind: str, depth: int, messages: int) -> Sample:
    """Start on a file of that depth, enqueue some messages, and handle as many."""
    handled: list[float] = []
    first, go_on, enough = trio.Event(), trio.Event(), trio.Event()

    async def handler(_call: Call, data: Json) -> Json:
        first.set()
        await go_on.wait()
        handled.append(time.perf_counter())
        if len(handled) >= messages:
            enough.set()
        if kind == "fifo" and data.decode()["g"] == 0:
            raise WireError("this group is blocked", "blocked")
        return Json.of(None)

    before, empty_mib = time.perf_counter(), memory_mib()
    async with (
        open_sqlite(path, check=False) as store,
        open_engine() as core,
        open_local(core, "user") as user,
        trio.open_nursery() as nursery,
    ):
        settings = Live(QueueModuleSettings(queue_configs={"deep": KINDS[kind]}))
        user.register("f", handler, task=True)
        module = QueueModule(settings, store.job_log())
        await nursery.start(module.run, core)
        started = time.perf_counter() - before
        await first.wait()
        until_first = time.perf_counter() - before - started
        lanes = depth // 10 if kind == "fifo" else 1
        while sum(one.counts.lanes for one in module.statistics().queues) < lanes:  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(0.02)
        until_counted = time.perf_counter() - before - started
        receipts = []
        cpu = time.process_time()
        for number in range(messages):
            once = time.perf_counter()
            data = {"g": number % (depth // 10), "pad": "x" * 120}
            request = {"queue": "deep", "function_id": "f", "data": data, "messageReceiptId": f"r{number}"}
            await user.invoke("engine::queue::enqueue", Json.of(request))
            receipts.append(time.perf_counter() - once)
        enqueue_cpu = time.process_time() - cpu
        before, cpu = time.perf_counter(), time.process_time()
        go_on.set()
        await enough.wait()
        spent, handled_cpu = time.perf_counter() - before, time.process_time() - cpu
        now_mib = memory_mib()
        nursery.cancel_scope.cancel()
    receipts.sort()
    gaps = sorted(later - earlier for earlier, later in pairwise(handled))
    return {
        "kind": kind,
        "depth": depth,
        "start_s": round(started, 3),
        "first_s": round(until_first, 3),
        "counted_s": round(until_counted, 3),
        "rss_mib": now_mib,
        "grown_mib": round(now_mib - empty_mib, 1),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "enqueue_p50_us": round(receipts[len(receipts) // 2] * 1e6),
        "enqueue_p99_us": round(receipts[len(receipts) * 99 // 100] * 1e6),
        "enqueue_cpu_us": round(enqueue_cpu / messages * 1e6),
        "handled_p99_us": round(gaps[len(gaps) * 99 // 100] * 1e6),
        "handled_us": round(spent / messages * 1e6),
        "handled_cpu_us": round(handled_cpu / messages * 1e6),
    }


def run(kind: str, depth: int, messages: int) -> dict[str, Any]:
    """Fill a file, and measure in a process that has seen nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "queue.db")
        trio.run(fill, path, kind, depth)
        command = [sys.executable, __file__, "--on", str(path), "--kinds", kind, "--depths", str(depth)]
        done = subprocess.run([*command, "--messages", str(messages)], check=True, stdout=subprocess.PIPE)
        sample: dict[str, Any] = json.loads(done.stdout)
        return sample


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--messages", type=int, default=900)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--on", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on is not None:
        emit(**trio.run(measure, options.on, options.kinds[0], options.depths[0], options.messages))
        return
    for kind in options.kinds:
        samples = []
        for depth in options.depths:
            samples.append(run(kind, depth, options.messages))
            emit(**samples[-1])
        ratios = {key: round(samples[-1][key] / samples[0][key], 2) for key in RATIOS}
        emit(kind=kind, verdict="deepest/shallowest", **ratios)


if __name__ == "__main__":
    main()
