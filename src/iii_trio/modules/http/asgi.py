"""Both directions of one ASGI request: what arrives, bounded, and how a response leaves."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

import trio
from attrs import define, field

from .connections import CONNECTION, Connection
from .messages import Response

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DISCARD_S: Final = 5.0
"""How long, and how much of it, the rest of a request is read after its answer."""
DISCARD_BYTES: Final = 16 * 1024 * 1024
COALESCED: Final = 64 * 1024
"""Largest body in bytes that leaves in one write with its head."""


class BodyTooLarge(Exception):
    """The request's body is larger than it may be."""


@define(eq=False)
class Incoming:
    """What a client still sends: its body, once, and then the news that it has left.

    `length` is the declared length, None for a chunked body. `complete`: the whole body has arrived. `gone`: the client
    has left, or its connection broke.
    """

    _receive: Receive
    length: int | None
    complete: bool = field(init=False)
    gone: bool = field(default=False, init=False)
    _early: bytes = field(default=b"", init=False)

    def __attrs_post_init__(self) -> None:
        self.complete = self.length == 0

    async def next(self) -> bytes:
        """Some more of the body, possibly nothing; waits for the client to leave once the body is complete."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            return b""
        self.complete = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def read(self, limit: int) -> bytes:
        """The body, of at most `limit` bytes; what there is of it when the client leaves. Raises `BodyTooLarge`."""
        if self.length is not None and self.length > limit:
            raise BodyTooLarge
        chunks, size = [self._early], len(self._early)
        self._early = b""
        while not self.complete and not self.gone:
            chunk = await self.next()
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge
            chunks.append(chunk)
        return b"".join(chunks)

    def take_early(self) -> bytes:
        """What `until_gone_keeping_body` has kept, once."""
        early, self._early = self._early, b""
        return early

    async def until_gone_keeping_body(self) -> None:
        """Return when the client has left. The body is still wanted: one chunk is kept, the rest is left to wait."""
        while not self.gone:
            if self._early and not self.complete:
                await trio.sleep_forever()
            self._early += await self.next()

    async def discard(self) -> None:
        """Read off the rest of the body, for so long and so much that a client which still sends gets its answer."""
        left = DISCARD_BYTES
        with trio.move_on_after(DISCARD_S):
            while not self.complete and not self.gone and left > 0:
                left -= len(await self.next())


async def write(scope: Scope, send: Send, incoming: Incoming, response: Response) -> None:
    """Send a response, its head and a small body in one write; a HEAD request gets the head alone.

    When the client is still sending, the answer leaves first and the rest of the request is read off after it: closing
    on unread data would reset the connection and could take the answer with it.
    """
    headers = list(response.headers)
    if response.has_body:
        headers.append((b"content-length", b"%d" % len(response.body)))
    if response.close:
        headers.append((b"connection", b"close"))
    body = b"" if scope["method"] == "HEAD" else response.body
    await begin(scope, send, response.status, headers, body, more=not incoming.complete)
    if not incoming.complete:
        await finish(scope, send, incoming)


def connection_of(scope: Scope) -> Connection | None:
    """The socket below a request; None under another server."""
    connection: Connection | None = scope.get("state", {}).get(CONNECTION)
    return connection


async def begin(
    scope: Scope, send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, more: bool
) -> None:
    """Send a head and the first or only part of its body, in one write if that is small."""
    connection = connection_of(scope)
    start = {"type": "http.response.start", "status": status, "headers": headers}
    first = {"type": "http.response.body", "body": body, "more_body": more}
    if connection is not None and len(body) <= COALESCED:
        with connection.held():
            await send(start)
            await send(first)
        await connection.flush()
    else:
        await send(start)
        await send(first)


async def finish(scope: Scope, send: Send, incoming: Incoming) -> None:
    """End a response of which everything has been sent, after what the client still sends has been read off."""
    if not incoming.complete:
        await incoming.discard()
        connection = connection_of(scope)
        if connection is not None and not incoming.complete:
            connection.abort()  # it could not be used again, and ending it in order would wait for its reader
            return
    await send({"type": "http.response.body", "body": b"", "more_body": False})
