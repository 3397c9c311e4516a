"""A worker of the official Python SDK with routes of every kind; started by test_http_official.py."""

import asyncio
import os
import threading
from typing import Any

from iii import StreamResponse, register_worker  # type: ignore[import-untyped,unused-ignore]

iii = register_worker(os.environ["III_URL"])
NAMES: list[str] = []


def route(method: str, path: str, handler: Any, **config: Any) -> None:
    """Register a handler under its name, and bind it to a route."""
    name = f"py::{handler.__name__}"
    if name not in NAMES:
        NAMES.append(name)
        iii.register_function(name, handler)
    iii.register_trigger(
        {"type": "http", "function_id": name, "config": {"api_path": path, "http_method": method, **config}}
    )


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    """What JSON came, parsed and raw."""
    raw = await request["request_body"].read_all()
    return {"status_code": 201, "body": {"parsed": request["body"], "raw": raw.decode()}}


async def inspect(request: dict[str, Any]) -> dict[str, Any]:
    """The request without its channels."""
    return {"status_code": 200, "body": {k: v for k, v in request.items() if k not in ("request_body", "response")}}


async def xml(request: dict[str, Any]) -> dict[str, Any]:
    """A text of another type."""
    return {"status_code": 200, "headers": {"content-type": "text/xml"}, "body": "<a/>"}


async def upload(request: dict[str, Any]) -> dict[str, Any]:
    """How much came, whatever it was."""
    reader = request["request_body"]
    data = await reader.read_all()
    return {"status_code": 200, "body": {"bytes": len(data), "sum": sum(data), "none": request["body"] is None}}


async def download(request: dict[str, Any]) -> None:
    """A body of two million bytes, streamed."""
    response = StreamResponse(request["response"])
    await response.status(206)
    await response.headers({"content-type": "application/pdf", "x-kind": "stream"})
    writer = request["response"]
    for _ in range(20):
        await writer.write(bytes(range(250)) * 400)
    await writer.close_async()


async def events(request: dict[str, Any]) -> None:
    """Server-sent events; the next one is sent when the client has sent a byte."""
    response = StreamResponse(request["response"])
    await response.headers({"content-type": "text/event-stream", "connection": "keep-alive"})
    writer = request["response"]
    number = 0
    async for chunk in request["request_body"]:
        for _ in chunk:
            number += 1
            await writer.write(b"data: %d\n\n" % number)
    await writer.close_async()


async def accepted(request: dict[str, Any]) -> None:
    """Status and headers without a body."""
    response = StreamResponse(request["response"])
    await response.status(202)
    await response.headers({"location": "/jobs/1"})
    await request["response"].close_async()


async def late(request: dict[str, Any]) -> None:
    """Returns before it writes, as fire-and-forget senders do."""
    writer = request["response"]

    async def write() -> None:
        await asyncio.sleep(0.05)
        await writer.write(b"late but whole")
        await writer.close_async()

    TASKS.append(asyncio.create_task(write()))


TASKS: list[Any] = []


async def dies(request: dict[str, Any]) -> None:
    """Its process ends in the middle of its body."""
    await request["response"].write(b"half")
    os._exit(1)


async def allow(data: dict[str, Any]) -> dict[str, Any]:
    """A middleware that lets everything through, and says who asks."""
    return {"action": "continue", "context": {"user": data["request"]["headers"].get("x-user")}}


async def deny(data: dict[str, Any]) -> dict[str, Any]:
    """A middleware that lets nothing through."""
    return {"action": "respond", "response": {"status_code": 403, "body": {"why": "no"}}}


iii.register_function("py::allow", allow)
iii.register_function("py::deny", deny)
route("POST", "py/echo", echo)
route("GET", "py/inspect/:id", inspect, middleware_function_ids=["py::allow"])
route("POST", "py/xml", xml)
route("POST", "py/upload", upload, middleware_function_ids=["py::allow"])
route("GET", "py/download", download)
route("POST", "py/events", events)
route("GET", "py/accepted", accepted)
route("GET", "py/late", late)
route("GET", "py/dies", dies)
route("GET", "py/denied", inspect, middleware_function_ids=["py::allow", "py::deny"])
threading.Event().wait()
