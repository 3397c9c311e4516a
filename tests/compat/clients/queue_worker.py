"""A worker of the official Python SDK, 0.11 or later, that uses queues: `queue_worker.py PREFIX`.

`PREFIX::call` calls a function, as an `action` if one is named, and tells how it ended; `PREFIX::work` and the handlers
of two topics note what they get, fail as often as the payload's `fail` says, and `PREFIX::seen` tells what they noted.
"""

import asyncio
import os
import sys
import threading
import warnings
from typing import Any

warnings.simplefilter("ignore", FutureWarning)

from iii import TriggerAction, register_worker  # type: ignore[import-untyped,unused-ignore]  # noqa: E402

prefix = sys.argv[1]
iii = register_worker(os.environ["III_URL"])
noted: dict[str, list[Any]] = {"work": [], "camel": [], "snake": []}
news = asyncio.Event()


def handler(name: str) -> Any:
    async def handle(data: Any) -> Any:
        before = noted[name].count(data)
        noted[name].append(data)
        news.set()
        if isinstance(data, dict) and before < data.get("fail", 0):
            raise ValueError("as often as wanted")
        return {"done": data}

    return handle


async def call(data: Any) -> Any:
    request = {"function_id": data["function_id"], "payload": data["payload"]}
    if "queue" in data:
        request["action"] = TriggerAction.Enqueue(queue=data["queue"])
    elif data.get("void"):
        request["action"] = TriggerAction.Void()
    try:
        return {"result": await iii.trigger_async(request)}
    except Exception as error:
        return {"raised": str(error)}


async def seen(data: Any) -> Any:
    while len(noted[data["name"]]) < data["count"]:
        news.clear()
        await news.wait()
    return noted[data["name"]]


TUNING = {
    "camel": {"type": "standard", "maxRetries": 1, "backoffDelayMs": 10, "concurrency": 2},
    "snake": {"type": "fifo", "max_retries": 1, "backoff_delay_ms": 10},
}

iii.register_function(f"{prefix}::call", call)
iii.register_function(f"{prefix}::seen", seen)
iii.register_function(f"{prefix}::work", handler("work"))
for name, tuning in TUNING.items():
    iii.register_function(f"{prefix}::{name}", handler(name))
    config = {"topic": f"{prefix}-{name}", "queue_config": tuning}
    iii.register_trigger({"type": "durable:subscriber", "function_id": f"{prefix}::{name}", "config": config})
iii.register_function(f"{prefix}::ready", handler("work"))
threading.Event().wait()
