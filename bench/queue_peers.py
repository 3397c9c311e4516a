"""No-op jobs per second of Dramatiq, Celery and Taskiq on a real redis-server, beside our queue, in one run.

usage: python bench/queue_peers.py --python PYTHON [--seconds 4] [--producers 1 16 256] [--peers dramatiq celery taskiq]

PYTHON is an interpreter with `dramatiq[redis] celery[redis] taskiq taskiq-redis`; `redis-server` must be on the path. Each
peer has one worker process on one core and its producers on the other, as our engine and its load have. Redis keeps its
defaults, which write to the disk now and then; ours forces every receipt to it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Sample, emit, free_port, pinned, server
from queue_bench import queue

PEERS = Path(__file__).parent / "peers"
WARM_S = 4.0


def latencies(path: Path) -> list[int]:
    """What the worker has noted, in ns."""
    raw = path.read_bytes() if path.exists() else b""
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw) - 7, 8)]


def peer(python: str, name: str, producers: int, seconds: float) -> Sample:
    """One peer with an empty Redis under load."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        noted = Path(directory, "handled")
        environ = {
            **os.environ,
            "PEER_REDIS": f"redis://127.0.0.1:{port}/0",
            "PEER_HANDLED": str(noted),
            "PYTHONPATH": str(PEERS),
        }
        with server(["redis-server", "--port", str(port), "--dir", directory], port):
            script = f"import json, {name}_peer; print(json.dumps({name}_peer.COMMAND))"
            said = subprocess.run([python, "-c", script], env=environ, capture_output=True, text=True, check=True)
            command = [python, *json.loads(said.stdout)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            worker = subprocess.Popen(pinned(0, command), env=environ, cwd=directory, start_new_session=True, **quiet)
            try:
                time.sleep(WARM_S)
                script = f"import time, {name}_peer; {name}_peer.produce({producers}, time.perf_counter() + {seconds})"
                before, start = len(latencies(noted)), time.perf_counter()
                subprocess.run(pinned(1, [python, "-c", script]), env=environ, check=True, **quiet)
                spent = latencies(noted)[before:]
                elapsed = time.perf_counter() - start
            finally:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
    spent.sort()
    if not spent:
        raise RuntimeError(f"{name} handled nothing")
    return {
        "producers": producers,
        "per_s": round(len(spent) / elapsed),
        "p50_us": spent[len(spent) // 2] // 1000,
        "p99_us": spent[int(len(spent) * 0.99)] // 1000,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--producers", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--peers", nargs="+", default=["dramatiq", "celery", "taskiq"])
    options = parser.parse_args()
    for producers in options.producers:
        ours = queue(producers, options.seconds)
        emit(subject="iii-trio", **ours)
        for name in options.peers:
            sample = peer(options.python, name, producers, options.seconds)
            emit(subject=name, **sample, ours_is=round(float(str(ours["per_s"])) / sample["per_s"], 1))


if __name__ == "__main__":
    main()
