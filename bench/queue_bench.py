"""Durable messages per second from enqueue to handled: our queue beside a loop that only commits the same rows, in one run.

usage: python bench/queue_bench.py [--seconds 3] [--repetitions 5] [--producers 1 16 256]

Every receipt is forced to the disk before it is given; that a message was handled is written in the transaction of the
next ones. `queue_commits.py` is the limit: it does the same on the same disk and nothing else. The verdict is our share of
its messages per second, with the latencies from enqueue to handler. The load speaks raw frames, so that the engine is what
is measured; `queue_peers.py` measures it through our SDK, beside others.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from harness import emit, free_port, interleave, python, ratio, run_json, server

HERE = Path(__file__).parent
CONFIG = """
workers:
  - name: iii-worker-manager
    config: {{port: {port}}}
  - name: iii-queue
    config:
      queue_configs: {{bench: {{concurrency: 1000}}}}
      adapter: {{name: builtin, config: {{store_method: file_based, file_path: {directory}}}}}
"""


@contextmanager
def serving(directory: str) -> Iterator[int]:
    """An engine with a fresh store in `directory`; gives its port."""
    port = free_port()
    config = Path(directory, "config.yaml")
    config.write_text(CONFIG.format(port=port, directory=Path(directory, "queue")))
    with server([python(), "-m", "iii_trio", "-c", str(config)], port, cwd=directory):
        yield port


def queue(producers: int, seconds: float) -> dict[str, object]:
    """One engine under load."""
    with tempfile.TemporaryDirectory() as directory, serving(directory) as port:
        return run_json([python(), str(HERE / "queue_load.py"), str(port), str(producers), str(seconds)])


def commits(producers: int, seconds: float) -> dict[str, object]:
    """The limit on the same disk."""
    with tempfile.TemporaryDirectory() as directory:
        return run_json([python(), str(HERE / "queue_commits.py"), directory, str(producers), str(seconds)], core=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--producers", type=int, nargs="+", default=[1, 16, 256])
    options = parser.parse_args()
    for producers in options.producers:
        subjects = {
            "queue": lambda producers=producers: queue(producers, options.seconds),
            "commits": lambda producers=producers: commits(producers, options.seconds),
        }
        samples = interleave(subjects, options.repetitions)
        latencies = {key: median(one[key] for one in samples["queue"]) for key in ("p50_us", "p99_us")}
        emit(verdict="messages/s", producers=producers, **ratio(samples, "queue", "commits", "per_s"), **latencies)


if __name__ == "__main__":
    main()
