"""Does a queue get slower when it is long? Time to enqueue and to handle, memory and start, at growing depth.

usage: python bench/queue_depth.py [--depths 1000 100000 1000000] [--messages 3000]

A fifo queue with a group for every ten messages; the head of one group fails for ever. The store is a file, every write
is forced. One JSON line for each depth; the last one has the deepest divided by the shallowest.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import trio
from harness import Sample, emit

from iii_trio.config import Live, QueueModuleSettings, QueueSettings
from iii_trio.engine import Call, open_engine, open_local
from iii_trio.modules.queue import Kind, QueueKey, QueueModule
from iii_trio.protocol import Json
from iii_trio.protocol.errors import WireError
from iii_trio.stores import NewJob, WaitingJobLog, open_sqlite

SETTINGS = QueueModuleSettings(
    queue_configs={
        "deep": QueueSettings(
            type="fifo",
            message_group_field="g",
            concurrency=64,
            max_retries=2**31,
            backoff_ms=1_000,
            backoff_type="fixed",
        )
    }
)
PAYLOAD = b'{"g":%d,"pad":"' + b"x" * 120 + b'"}'


async def fill(path: Path, depth: int) -> None:
    """Put `depth` messages into the file."""
    name = QueueKey(Kind.NAMED, "deep").text
    async with open_sqlite(path, check=False) as store:
        log, now = WaitingJobLog(store.job_log()), int(time.time() * 1000)
        for first in range(0, depth, 1_000):
            await log.append(
                [
                    NewJob(
                        *(str(n), name, "default", "f", PAYLOAD % (n % (depth // 10)), 3, 1_000, now, now),
                        group_id=str(n % (depth // 10)),
                    )
                    for n in range(first, min(first + 1_000, depth))
                ]
            )


async def measure(depth: int, messages: int) -> Sample:
    """Start on a file of that depth, handle some of it, and enqueue as many."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "queue.db")
        await fill(path, depth)
        handled, enough = 0, trio.Event()

        async def handler(_call: Call, data: Json) -> Json:
            nonlocal handled
            handled += 1
            if handled >= messages:
                enough.set()
            if data.decode()["g"] == 0:
                raise WireError("this group is blocked", "blocked")
            return Json.of(None)

        async with (
            open_sqlite(path, check=False) as store,
            open_engine() as core,
            open_local(core, "user") as user,
            trio.open_nursery() as nursery,
        ):
            before = time.perf_counter()
            await nursery.start(QueueModule(Live(SETTINGS), store.job_log()).run, core)
            started = time.perf_counter() - before
            rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            before = time.perf_counter()
            receipts = []
            for number in range(200):
                once = time.perf_counter()
                data = {"g": number % 100, "pad": "x"}
                request = {"queue": "deep", "function_id": "f", "data": data, "messageReceiptId": f"r{number}"}
                await user.invoke("engine::queue::enqueue", Json.of(request))
                receipts.append(time.perf_counter() - once)
            before = time.perf_counter()
            user.register("f", handler, task=True)
            await enough.wait()
            spent = time.perf_counter() - before
            nursery.cancel_scope.cancel()
    receipts.sort()
    return {
        "depth": depth,
        "start_s": round(started, 2),
        "rss_mib": rss,
        "enqueue_p50_us": round(receipts[100] * 1e6),
        "enqueue_p99_us": round(receipts[198] * 1e6),
        "handled_us": round(spent / messages * 1e6),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--messages", type=int, default=600)
    options = parser.parse_args()
    samples = []
    for depth in options.depths:
        samples.append(trio.run(measure, depth, options.messages))
        emit(**samples[-1])
    keys = ("enqueue_p50_us", "handled_us")
    emit(verdict="deepest/shallowest", **{key: round(samples[-1][key] / samples[0][key], 2) for key in keys})


if __name__ == "__main__":
    main()
