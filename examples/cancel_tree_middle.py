"""The worker of the official Python SDK in the middle of `cancel_tree.py`, which starts it.

It calls `leaf::work` for whoever calls it. Nobody tells it of a cancellation, and nothing comes of that: what it calls
runs to its end, and the engine drops its answer when nobody waits for it any more.
"""

import os
import signal
import threading
from typing import Any

from iii import InitOptions, register_worker

iii = register_worker(os.environ.get("III_URL", "ws://localhost:49134"), InitOptions(worker_name="middle"))


def work(data: dict[str, Any]) -> Any:
    """Ask the leaf, and pass its answer on."""
    print(f"middle: asks leaf::work for {data['for']}", flush=True)
    answer = iii.trigger(
        {
            "function_id": "leaf::work",
            "payload": {"seconds": data["seconds"], "for": "middle"},
            "timeout_ms": round(data["seconds"] * 1000) + 30_000,
        }
    )
    print("middle: has its answer", flush=True)
    return answer


iii.register_function("middle::work", work, description="Leaves its work to a leaf")

stop = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())
stop.wait()
iii.shutdown()
