"""A worker of the official Python SDK, any release from 0.11 on: `official_worker.py PREFIX`.

Its functions are `PREFIX::echo` and so on; `PREFIX::call` makes the calls that a test wants this SDK to make, and tells
how they ended. `GET /PREFIX` answers with the prefix.
"""

import asyncio
import os
import sys
import threading
from typing import Any

from iii import register_worker  # type: ignore[import-untyped,unused-ignore]

prefix = sys.argv[1]
iii = register_worker(os.environ["III_URL"])


async def echo(data: Any) -> Any:
    return data


def nothing(data: Any) -> None:
    """A handler in a thread of its own, without a result."""


async def is_null(data: Any) -> bool:
    return data is None


async def large(data: Any) -> str:
    return "x" * int(data["bytes"])


async def crash(data: Any) -> None:
    raise ValueError("the handler has crashed")


async def leave(data: Any) -> None:
    """End the process at once, in the middle of the call."""
    os._exit(3)


async def identity(data: Any) -> Any:
    """The id that the engine gave this connection: another one after a reconnect."""
    return iii.worker_id


async def call(data: Any) -> Any:
    """Call `function_id`, without a payload if `data` has none; the result, its length, or what the SDK raised."""
    request = {key: data[key] for key in ("function_id", "payload") if key in data}
    try:
        result = await iii.trigger_async(request)
    except Exception as error:
        told = {name: getattr(error, name, None) for name in ("code", "message", "stacktrace")}
        return {"raised": type(error).__name__, "text": str(error), **told}
    return {"length": len(result)} if data.get("measure") else {"result": result}


async def job(data: Any) -> None:
    """A job that takes a moment; what is printed has been done."""
    await asyncio.sleep(0.02)
    print("done", data["job"], flush=True)


async def page(data: Any) -> Any:
    return {"status_code": 200, "body": {"prefix": prefix}}


functions = {
    "echo": echo,
    "nothing": nothing,
    "is_null": is_null,
    "large": large,
    "crash": crash,
    "leave": leave,
    "identity": identity,
    "call": call,
    "job": job,
    "page": page,
}
for name, handler in functions.items():
    iii.register_function(f"{prefix}::{name}", handler)
iii.register_trigger(
    {"type": "http", "function_id": f"{prefix}::page", "config": {"api_path": prefix, "http_method": "GET"}}
)
threading.Event().wait()
