"""Fan-out of streams: events/s, deliveries/s and age at arrival for 1, 100 and 1,000 subscribers of one group.

`python bench/stream_bench.py [--seconds 4] [--subscribers 1 100 1000]`. The engine runs on core 0, on its default set and a
durable store; writer and subscribers share core 1. `set` is on disk before anybody hears of it, `send` is not stored. With
many events at a time ages are those of a queue that is kept full; with one at a time they are the way from caller to reader.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import emit, free_port, run_json, server

LOAD = Path(__file__).with_name("stream_load.py")
WINDOWS = {1: 256, 100: 32, 1000: 8}


def sample(places: dict[str, int], subscribers: int, operation: str, window: int, seconds: float) -> dict[str, Any]:
    """One run of the load."""
    options = {
        "--port": places["worker"],
        "--stream-port": places["stream"],
        "--engine-pid": places["pid"],
        "--subscribers": subscribers,
        "--operation": operation,
        "--window": window,
        "--seconds": seconds,
    }
    words = [str(word) for option in options.items() for word in option]
    return run_json([sys.executable, str(LOAD), *words])


def main() -> None:
    """Run all combinations, `--rounds` times in turn, and print the median of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscribers", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        ports = {name: free_port() for name in ("worker", "http", "stream")}
        command = [
            *(sys.executable, "-m", "iii_trio", "serve", "--defaults", "--log-level", "warn"),
            *("--port", str(ports["worker"]), "--http-port", str(ports["http"])),
            *("--stream-port", str(ports["stream"]), "--data-dir", directory),
        ]
        with server(command, ports["worker"], cwd=directory) as engine:
            for _ in range(args.rounds):
                for subscribers in args.subscribers:
                    many = next(window for most, window in WINDOWS.items() if subscribers <= most)
                    for operation, window in (("send", many), ("set", many), ("set", 1)):
                        one = sample({**ports, "pid": engine.pid}, subscribers, operation, window, args.seconds)
                        how = f"{operation} to {subscribers}, {window} at a time"
                        results.setdefault(how, []).append(one)
                        emit(window=window, **one)
    verdict = {
        how: {
            key: statistics.median(run[key] for run in runs)
            for key in ("events_per_s", "deliveries_per_s", "engine_us_per_delivery", "p50_ms", "p99_ms")
        }
        for how, runs in results.items()
    }
    print(json.dumps({"verdict": verdict}))


if __name__ == "__main__":
    main()
