"""Both directions of one ASGI request: what arrives, bounded, and how a response leaves."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol

import trio
from attrs import define, field

from .connections import CONNECTION
from .messages import Response

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DISCARD_S: Final = 5.0
"""How long, and how much of it, the rest of a request is read after its answer."""
DISCARD_BYTES: Final = 16 * 1024 * 1024


class Below(Protocol):
    """What an application may want of the socket below a request, beside `receive` and `send`."""

    @property
    def complete(self) -> bool:
        """Whether the whole body of the request has come."""

    @property
    def gone(self) -> bool:
        """Whether the client has left, although there may be more of the body to read."""

    @property
    def broken(self) -> bool:
        """Whether nothing gets through to the client any more."""

    async def news(self) -> None:
        """Return when something has happened: bytes have come, the client has left, somebody calls `wake`."""

    def wake(self) -> None:
        """Let `news` return."""

    def abort(self, *, reset: bool = False) -> None:
        """End the request now, so that its client sees it break off; see `Connection.abort`."""


class BodyTooLarge(Exception):
    """The request's body is larger than it may be."""


class NoRoom(Exception):
    """There is no memory to be had for the request's body, because others have it."""


@define(eq=False)
class Incoming:
    """What a client still sends: its body, once, and then the news that it has left.

    `length` is the declared length, None for a chunked body. `complete`: the whole body has arrived. `gone`: the client
    has left, or its connection broke.
    """

    _receive: Receive
    length: int | None
    below: Below | None = None
    complete: bool = field(init=False)
    gone: bool = field(default=False, init=False)
    _early: bytes = field(default=b"", init=False)

    def __attrs_post_init__(self) -> None:
        self.complete = self.length == 0

    @property
    def here(self) -> bool:
        """Whether the whole body has arrived, so that nobody has to wait for it."""
        return self.complete or (self.below is not None and self.below.complete)

    async def next(self) -> bytes:
        """Some more of the body, possibly nothing; waits for the client to leave once the body is complete."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
            return b""
        self.complete = not message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def read(self, limit: int, take: Callable[[int], bool]) -> bytes:
        """The body, of at most `limit` bytes; what there is of it when the client leaves.

        `take` is asked for room for every piece. Raises `BodyTooLarge`, and `NoRoom` where `take` says so.
        """
        if self.length is not None and self.length > limit:
            raise BodyTooLarge
        chunks, size = [self._early], len(self._early)
        self._early = b""
        while not self.complete and not self.gone:
            chunk = await self.next()
            size += len(chunk)
            if size > limit:
                raise BodyTooLarge
            if not take(len(chunk)):
                raise NoRoom
            chunks.append(chunk)
        return b"".join(chunks)

    def take_early(self) -> bytes:
        """What `until_gone_keeping_body` has kept, once."""
        early, self._early = self._early, b""
        return early

    async def until_gone_keeping_body(self) -> None:
        """Return when the client has left. The body is wanted later: asking for it now could make a client send it.

        Where nothing else tells of its leaving, one chunk is read and kept.
        """
        while not self.gone:
            if self.below is not None or (self._early and not self.complete):
                await self.left()
            else:
                self._early += await self.next()

    async def left(self) -> None:
        """Return when the client has left, without reading on; the rest of its body is of no use then."""
        if self.below is None:
            await trio.sleep_forever()
        while not self.below.gone:
            await self.below.news()
        self.gone = True

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
    await begin(send, response.status, headers, body, more=not incoming.complete)
    if not incoming.complete:
        await finish(send, incoming)


def connection_of(scope: Scope) -> Below | None:
    """What is below a request; None under another server."""
    connection: Below | None = scope.get("state", {}).get(CONNECTION)
    return connection


async def begin(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes, *, more: bool) -> None:
    """Send a head and the first or only part of its body."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def finish(send: Send, incoming: Incoming) -> None:
    """End a response of which everything has been sent, after what the client still sends has been read off.

    Of a client that has still not sent all of it no more is wanted: what is below ends the connection after the end of
    the response, or resets the stream.
    """
    if incoming.complete:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return
    await incoming.discard()
    with trio.move_on_after(DISCARD_S):  # it may not read either
        await send({"type": "http.response.body", "body": b"", "more_body": False})
