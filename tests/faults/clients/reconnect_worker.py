"""A worker of the official Python SDK, any release: `reconnect_worker.py PREFIX`.

Its functions are `PREFIX::f0` to `PREFIX::f9`, which answer with their number and what they got; `GET /PREFIX/0` and
`GET /PREFIX/1` are routes to the first two.
"""

import asyncio
import importlib.metadata
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import iii as sdk  # type: ignore[import-untyped,unused-ignore]

prefix, url = sys.argv[1], os.environ["III_URL"]
release = tuple(map(int, importlib.metadata.version("iii-sdk").split(".")))


def function(number: int) -> Callable[[Any], Awaitable[Any]]:
    async def answer(data: Any) -> Any:
        if isinstance(data, dict) and "query_params" in data:
            return {"status_code": 200, "body": {"number": number}}
        return {"number": number, "data": data}

    return answer


async def old() -> None:
    """Until 0.8 everything happens on the user's own event loop."""
    worker = sdk.III(url)
    for number in range(10):
        worker.register_function(f"{prefix}::f{number}", function(number))
    for number in range(2):
        config = {"api_path": f"{prefix}/{number}", "http_method": "GET"}
        worker.register_trigger("http", f"{prefix}::f{number}", config)
    await worker.connect()
    await asyncio.Event().wait()


def new() -> None:
    worker = sdk.register_worker(url)
    for number in range(10):
        worker.register_function(f"{prefix}::f{number}", function(number))
    for number in range(2):
        config = {"api_path": f"{prefix}/{number}", "http_method": "GET"}
        worker.register_trigger({"type": "http", "function_id": f"{prefix}::f{number}", "config": config})
    threading.Event().wait()


if release < (0, 9):
    asyncio.run(old())
else:
    new()
