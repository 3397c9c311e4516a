"""Measuring on a small machine: pinned processes, interleaved repetitions, ratios with their spread, JSON lines.

Two things are compared by running them in turn, A B A B …, so that whatever else the machine does falls on both; what is
reported is the median of the pairwise ratios and how far they spread. Every line printed is one JSON object, the last
one the verdict.
"""

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Sample = dict[str, Any]


def pinned(core: int, command: list[str]) -> list[str]:
    """The command, bound to one core where the machine has that many and `taskset` exists."""
    if shutil.which("taskset") and (os.cpu_count() or 1) > core:
        return ["taskset", "-c", str(core), *command]
    return command


def free_port() -> int:
    """A port that was free a moment ago; for servers that cannot report the one they chose."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_port(port: int, process: subprocess.Popen[Any], seconds: float = 15) -> None:
    """Return once something accepts on the port; raises `RuntimeError` when the process ended or time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode} before it listened")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port} after {seconds} s")


@contextmanager
def server(command: list[str], port: int, core: int = 0, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A server process for the length of the block: started on `core`, awaited on `port`, ended by SIGTERM."""
    process = subprocess.Popen(pinned(core, command), stdout=subprocess.DEVNULL, **options)
    try:
        wait_port(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_json(command: list[str], core: int = 1) -> Sample:
    """Run a load generator on `core`; its last line of output is the sample."""
    done = subprocess.run(pinned(core, command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1:3]} failed: {done.stderr.strip()[-500:]}")
    sample: Sample = json.loads(done.stdout.strip().splitlines()[-1])
    return sample


def emit(**fields: Any) -> None:
    """One JSON line."""
    print(json.dumps(fields), flush=True)


def interleave(subjects: dict[str, Callable[[], Sample]], repetitions: int) -> dict[str, list[Sample]]:
    """Run every subject in turn, `repetitions` times; prints and returns each sample."""
    samples: dict[str, list[Sample]] = {name: [] for name in subjects}
    for repetition in range(repetitions):
        for name, measure in subjects.items():
            sample = measure()
            samples[name].append(sample)
            emit(subject=name, repetition=repetition, **sample)
    return samples


def ratio(samples: dict[str, list[Sample]], subject: str, baseline: str, key: str) -> Sample:
    """Median of the pairwise ratios subject/baseline of `key`, with its least and greatest value."""
    pairs = [s[key] / b[key] for s, b in zip(samples[subject], samples[baseline], strict=True)]
    return {
        "ratio": round(statistics.median(pairs), 3),
        "least": round(min(pairs), 3),
        "greatest": round(max(pairs), 3),
        subject: round(statistics.median(s[key] for s in samples[subject])),
        baseline: round(statistics.median(b[key] for b in samples[baseline])),
    }


def python() -> str:
    """The interpreter that runs the benchmark also runs what is measured."""
    return sys.executable
