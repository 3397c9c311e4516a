"""A worker of the official Python SDK whose handlers return nothing; started by test_http_null_results.py."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from iii import StreamResponse, register_worker  # type: ignore[import-untyped,unused-ignore]

iii = register_worker(os.environ["III_URL"])
TASKS: list[Any] = []


def later(work: Callable[[dict[str, Any]], Awaitable[None]]) -> Callable[[dict[str, Any]], Awaitable[None]]:
    """A handler that returns at once and leaves the work to a task in the background."""

    async def handler(request: dict[str, Any]) -> None:
        TASKS.append(asyncio.create_task(work(request)))

    return handler


async def none(request: dict[str, Any]) -> None:
    """Never touches the channel of the response."""


async def slow(request: dict[str, Any]) -> None:
    """Opens its writer after two seconds, as one does who waits for the first word of a long answer."""
    await asyncio.sleep(2)
    await request["response"].write(b"late but whole")
    await request["response"].close_async()


async def head_first(request: dict[str, Any]) -> None:
    """Sends the head at once, and the body when nobody else would be waited for any more."""
    await StreamResponse(request["response"]).status(203)
    await asyncio.sleep(3.5)
    await request["response"].write(b"much later")
    await request["response"].close_async()


for name, function in {"none": none, "slow": later(slow), "head": later(head_first)}.items():
    iii.register_function(f"py::{name}", function)
    iii.register_trigger({"type": "http", "function_id": f"py::{name}", "config": {"api_path": f"py/{name}"}})
threading.Event().wait()
