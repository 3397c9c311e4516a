"""A worker of the official Python SDK, any release: `release_worker.py PREFIX`.

Its functions are `PREFIX::echo` and so on; `PREFIX::call` makes the calls that a test wants this SDK to make, and tells
how they ended. `POST /PREFIX/things/:id` answers with what it was asked.
"""

import asyncio
import hashlib
import importlib.metadata
import os
import sys
import threading
from typing import Any

import iii as sdk  # type: ignore[import-untyped,unused-ignore]

prefix, url = sys.argv[1], os.environ["III_URL"]
release = tuple(map(int, importlib.metadata.version("iii-sdk").split(".")))
old = release < (0, 9)
"""Until 0.8 everything happens on the user's own event loop, and a call is `trigger(id, data)`, or in 0.2 `call`."""

worker: Any = None


async def echo(data: Any) -> Any:
    return data


async def nothing(data: Any) -> None:
    return None


async def is_null(data: Any) -> bool:
    return data is None


async def large(data: Any) -> str:
    size = int(data["bytes"])
    return ("0123456789" * (size // 10 + 1))[:size]


async def crash(data: Any) -> None:
    raise ValueError("the handler has crashed")


async def decline(data: Any) -> None:
    """Raise the SDK's own error with a code, in releases that have one; before that errors are nothing but a text."""
    error = getattr(sdk, "InvocationError", None) or getattr(sdk, "IIIInvocationError", None)
    raise error("card_declined", "not enough money") if error else RuntimeError("not enough money")


async def call(data: Any) -> Any:
    """Call `function_id`, with no payload if `data` has none; the result, what it measures, or what the SDK raised."""
    function_id, payload = data["function_id"], data.get("payload")
    try:
        if release < (0, 3):
            result = await worker.call(function_id, payload)
        elif old:
            result = await worker.trigger(function_id, payload)
        else:
            given = {"payload": payload} if "payload" in data else {}
            result = await worker.trigger_async({"function_id": function_id, **given})
    except Exception as error:
        told = {name: getattr(error, name, None) for name in ("code", "message", "stacktrace")}
        return {"raised": type(error).__name__, "text": str(error), **told}
    if data.get("measure"):
        return {"length": len(result), "sha256": hashlib.sha256(result.encode()).hexdigest()}
    return {"result": result}


async def page(data: Any) -> Any:
    asked = {"id": data["path_params"]["id"], "query": data["query_params"], "body": data["body"]}
    return {"status_code": 201, "headers": {"x-prefix": prefix}, "body": asked}


functions = {
    "echo": echo,
    "nothing": nothing,
    "is_null": is_null,
    "large": large,
    "crash": crash,
    "decline": decline,
    "call": call,
    "page": page,
}
route = {"api_path": f"{prefix}/things/:id", "http_method": "POST"}


def register() -> None:
    for name, handler in functions.items():
        worker.register_function(f"{prefix}::{name}", handler)
    if old:
        worker.register_trigger("api", f"{prefix}::page", route)  # what `http` was called until 0.10
    else:
        worker.register_trigger({"type": "http", "function_id": f"{prefix}::page", "config": route})


async def run_old() -> None:
    global worker
    worker = sdk.III(url)
    register()
    await worker.connect()
    await asyncio.Event().wait()


if old:
    asyncio.run(run_old())
else:
    worker = sdk.register_worker(url)
    register()
    threading.Event().wait()
