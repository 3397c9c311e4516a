"""One line of the log for every request: what was asked, what was answered, how long it took. Never a query."""

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final

import trio

from .asgi import Send
from .messages import Request

log: Final = logging.getLogger("iii_trio.access")


@contextmanager
def logged(request: Request) -> Iterator[Callable[[Send], Send]]:
    """Log a line at the end of the block, of what went through the `send` that this gives for the server's own.

    The line: method, path, status ("-" for none), bytes of the body, milliseconds, client, id.
    """
    started, status, size = trio.current_time(), "-", 0

    def watched(send: Send) -> Send:
        async def counting(message: MutableMapping[str, Any]) -> None:
            nonlocal status, size
            status, size = _seen(message, status, size)
            await send(message)

        return counting

    try:
        yield watched
    finally:
        took = (trio.current_time() - started) * 1000
        client, name = request.client or "-", request.id or "-"
        log.info("%s %s %s %d %.1fms %s %s", request.method, request.path, status, size, took, client, name)


def refused(status: int, why: str, request: Request) -> None:
    """Log a line for what was no request: there is nothing to tell of it but why."""
    log.info("- - %s 0 0.0ms - %s (%s)", status, request.id or "-", why)


def _seen(message: Mapping[str, Any], status: str, size: int) -> tuple[str, int]:
    if message["type"] == "http.response.start":
        return str(message["status"]), size
    return status, size + len(message.get("body", b""))
