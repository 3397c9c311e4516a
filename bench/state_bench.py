"""Durable state operations per second: our engine beside a loop that only commits the same rows, in one run.

usage: python bench/state_bench.py [--seconds 3] [--repetitions 5] [--in-flight 1 64 256] [--operations set update get]

Every write is forced to the disk before it is answered. `state_commits.py` is the limit: as many operations as are in
flight in each transaction. The verdict is our share of its operations per second, with the latencies of a call and the
processor time (user and system) that the engine spent on one.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

from harness import emit, free_port, interleave, python, ratio, run_json, server

HERE = Path(__file__).parent
CONFIG = """
workers:
  - name: iii-worker-manager
    config: {{port: {port}}}
  - name: iii-state
    config:
      adapter: {{name: kv, config: {{store_method: file_based, file_path: {directory}}}}}
"""


def state(operation: str, in_flight: int, seconds: float) -> dict[str, object]:
    """One engine with a fresh store under load."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "config.yaml")
        config.write_text(CONFIG.format(port=port, directory=Path(directory, "state")))
        with server([python(), "-m", "iii_trio", "-c", str(config)], port, cwd=directory) as engine:
            load = [python(), str(HERE / "state_load.py"), str(port), operation, str(in_flight), str(seconds)]
            return run_json([*load, str(engine.pid)])


def commits(operation: str, in_flight: int, seconds: float) -> dict[str, object]:
    """The limit on the same disk."""
    with tempfile.TemporaryDirectory() as directory:
        command = [python(), str(HERE / "state_commits.py"), directory, operation, str(in_flight), str(seconds)]
        return run_json(command, core=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--operations", nargs="+", choices=["set", "update", "get"], default=["set", "update", "get"])
    options = parser.parse_args()
    for operation in options.operations:
        for count in options.in_flight:
            subjects = {
                "state": lambda operation=operation, count=count: state(operation, count, options.seconds),
                "commits": lambda operation=operation, count=count: commits(operation, count, options.seconds),
            }
            samples = interleave(subjects, options.repetitions)
            keys = ("p50_us", "p99_us", "engine_cpu_us")
            latencies = {key: median(one[key] for one in samples["state"]) for key in keys}
            shares = ratio(samples, "state", "commits", "per_s")
            emit(verdict=f"state::{operation}/s", in_flight=count, **shares, **latencies)


if __name__ == "__main__":
    main()
