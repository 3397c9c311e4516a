"""No-op jobs per second of our queue, Dramatiq, Celery and Taskiq, in one run: alike in shape, and alike in durability.

usage: python bench/queue_peers.py --python PYTHON [--seconds 4] [--producers 1 16 256] [--peers dramatiq celery taskiq]
                                   [--redis lazy forced]

PYTHON is an interpreter with `dramatiq[redis] celery[redis] taskiq taskiq-redis`; `redis-server` must be on the path.
Each has its broker (redis-server, or our engine) and one worker process on one core, and its producers in one process on
the other. All go through their own client library, and note the time from sending to handling in the handler.

What a producer waits for before it sends its next message:
- ours: a receipt, given when the message is forced to the disk (fsync), whatever else the engine does.
- Dramatiq, Celery, Taskiq: Redis's reply (to a script, LPUSH, XADD). With `--redis lazy`, Redis's defaults, that means
  that the message lies in memory: a snapshot is written now and then, and a crash loses what came since. With
  `--redis forced` (`appendonly yes`, `appendfsync always`) Redis forces its log before it replies: that is like for like.

What happens after the handler: ours removes the message in the log's next transaction (it survives a crash of the engine,
and is on the disk within a second); Dramatiq's and Celery's acknowledgement (`task_acks_late`) and Taskiq's XACK are
further commands to Redis, forced in the same way as the message was. A message is handled twice only after a crash.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Sample, emit, free_port, pinned, server
from queue_bench import serving

PEERS = Path(__file__).parent / "peers"
WARM_S = 4.0
REDIS = {
    "lazy": [],
    "forced": ["--appendonly", "yes", "--appendfsync", "always", "--save", ""],
}
PRODUCE = """
import time, {name}_peer
start = time.perf_counter()
{name}_peer.produce({producers}, start + {seconds})
print(time.perf_counter() - start)
"""


def latencies(path: Path) -> list[int]:
    """What the worker has noted, in ns."""
    raw = path.read_bytes() if path.exists() else b""
    return [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw) - 7, 8)]


@contextmanager
def redis(directory: str, mode: str) -> Iterator[dict[str, str]]:
    """An empty Redis, and how a peer finds it."""
    port = free_port()
    with server(["redis-server", "--port", str(port), "--dir", directory, *REDIS[mode]], port):
        yield {"PEER_REDIS": f"redis://127.0.0.1:{port}/0"}


@contextmanager
def engine(directory: str) -> Iterator[dict[str, str]]:
    """Our engine with an empty store, and how our SDK finds it."""
    with serving(directory) as port:
        yield {"PEER_ENGINE": f"ws://127.0.0.1:{port}"}


def measure(python: str, name: str, mode: str, producers: int, seconds: float) -> Sample:
    """One of them under load; `mode` is how Redis keeps what it gets."""
    with tempfile.TemporaryDirectory() as directory:
        noted = Path(directory, "handled")
        with engine(directory) if name == "iii" else redis(directory, mode) as place:
            environ = {**os.environ, **place, "PEER_HANDLED": str(noted), "PYTHONPATH": path_of_peers()}
            script = f"import json, {name}_peer; print(json.dumps({name}_peer.COMMAND))"
            said = subprocess.run([python, "-c", script], env=environ, capture_output=True, text=True, check=True)
            command = [python, *json.loads(said.stdout)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            worker = subprocess.Popen(pinned(0, command), env=environ, cwd=directory, start_new_session=True, **quiet)
            try:
                time.sleep(WARM_S)
                script = PRODUCE.format(name=name, producers=producers, seconds=seconds)
                before = len(latencies(noted))
                command = pinned(1, [python, "-c", script])
                said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
                spent, elapsed = latencies(noted)[before:], float(said.stdout)
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


def path_of_peers() -> str:
    """Where Python finds the peers' modules, and whatever it finds now."""
    return os.pathsep.join([str(PEERS), *filter(None, [os.environ.get("PYTHONPATH")])])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--producers", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--peers", nargs="*", default=["dramatiq", "celery", "taskiq"])
    parser.add_argument("--redis", nargs="+", choices=sorted(REDIS), default=["lazy", "forced"])
    options = parser.parse_args()
    for producers in options.producers:
        ours = measure(sys.executable, "iii", "", producers, options.seconds)
        emit(subject="iii-trio", forced=True, **ours)
        for name in options.peers:
            for mode in options.redis:
                sample = measure(options.python, name, mode, producers, options.seconds)
                ours_is = round(ours["per_s"] / sample["per_s"], 1)
                emit(subject=name, forced=mode == "forced", **sample, ours_is=ours_is)


if __name__ == "__main__":
    main()
