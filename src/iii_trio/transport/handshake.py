"""Both sides of the HTTP upgrade that begins a WebSocket, each under a deadline (spec/protocol.md §1).

The request head is read byte-exactly up to its blank line, so that what follows it goes to the frames untouched, and
parsed by h11; wsproto then judges the upgrade and words the answer. Extensions are declined, and sub-protocols too
unless the caller of `accept` names them: an engine that routes payloads untouched gains nothing from compressing each
hop.

Whatever goes wrong, the stream is closed before the error is raised; until then nothing but the task that called is
held, and at most `HANDSHAKE_HEAD` bytes.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

import h11
import trio
from attrs import frozen
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, RejectData
from wsproto.events import Request as UpgradeRequest
from wsproto.utilities import RemoteProtocolError

from iii_trio.protocol.limits import HANDSHAKE_HEAD, HANDSHAKE_S
from iii_trio.transport.frames import Framing

LINGER_S: Final = 1.0
"""How long a refused client may take to read the refusal and hang up before its socket is closed."""

REFUSAL_BODY: Final = 64 * 1024
"""Most bytes of a server's refusal that a client reads for its error."""

_END_OF_HEAD: Final = b"\r\n\r\n"


class HandshakeError(Exception):
    """The upgrade did not happen; the stream is closed.

    `status` and `body` are the HTTP answer, sent or received; `status` is None if there was none (hung up, too slow).
    """

    def __init__(self, message: str, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


@frozen
class Request:
    """The head of an HTTP request. `path` and `query` (without `?`) are raw; header names are lower case."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]


@frozen
class Refusal:
    """An HTTP answer instead of the upgrade: status code, plain text, further headers."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...] = ()


Route = Callable[[Request], Refusal | None]
Admit = Callable[[Request], Awaitable[Refusal | None]]


async def accept(
    stream: trio.abc.Stream,
    *,
    route: Route,
    admit: Admit | None = None,
    protocols: Sequence[str] = (),
    deadline_s: float = HANDSHAKE_S,
    max_head: int = HANDSHAKE_HEAD,
) -> tuple[Request, Framing, bytes]:
    """Serve the upgrade on a fresh stream: the request, the framing for a `Connection`, and bytes that came early.

    `route` sees every well-formed request head and may refuse it; it should change nothing, for the upgrade itself
    may be refused after it (405 for another method than GET, 426 without an upgrade or with another version than 13,
    400 otherwise, 431 for a head above `max_head` bytes). `admit` is asked last, when nothing but it stands between the
    client and the upgrade. The first of `protocols` that the client offers is agreed on. Head and answer have
    `deadline_s` seconds together.

    Raises HandshakeError if there was no upgrade; the stream is closed then, and also when cancelled.
    """
    async with _bounded(stream, deadline_s):
        head, rest = await _read_head(stream, max_head)
        if not head:
            raise await _refuse(stream, Refusal(431, f"The request head exceeds {max_head} bytes.\n"))
        parser = h11.Connection(h11.SERVER)
        try:
            parser.receive_data(head)
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise await _refuse(stream, Refusal(400, f"Not an HTTP/1.1 request: {error}.\n")) from error
        if not isinstance(event, h11.Request):
            raise await _refuse(stream, Refusal(400, "Not an HTTP/1.1 request: the request line is missing.\n"))
        request = _request(event)
        websocket = WSConnection(ConnectionType.SERVER)
        refusal = route(request) or _upgrade(websocket, event, request)
        if refusal is None and admit is not None:
            refusal = await admit(request)
        if refusal is not None:
            raise await _refuse(stream, refusal)
        offered = _offered(request)
        agreed = next((name for name in protocols if name in offered), None)
        await stream.send_all(websocket.send(AcceptConnection(subprotocol=agreed)))
    return request, Framing(), rest


async def connect(
    stream: trio.abc.Stream,
    host: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    *,
    deadline_s: float = HANDSHAKE_S,
) -> tuple[Framing, bytes]:
    """Ask for the upgrade on a fresh stream: the framing for a `Connection`, and bytes that came early.

    `host` is the value of the Host header (with the port), `target` the path with its query, `headers` are added to
    those of the upgrade. All of it has `deadline_s` seconds.

    Raises HandshakeError if there was no upgrade, with status and body of the server's refusal, and ValueError if HTTP
    cannot carry an argument; the stream is closed then, and also when cancelled.
    """
    async with _bounded(stream, deadline_s):
        websocket = WSConnection(ConnectionType.CLIENT)
        extra = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        try:
            question = websocket.send(UpgradeRequest(host=host, target=target, extra_headers=extra))
        except (UnicodeError, h11.LocalProtocolError) as error:
            raise ValueError(f"no HTTP request can be made of host {host!r}, target {target!r}: {error}") from error
        await stream.send_all(question)
        head, rest = await _read_head(stream, HANDSHAKE_HEAD)
        try:
            websocket.receive_data(head)
            event = next(websocket.events(), None)
        except (RemoteProtocolError, UnicodeError) as error:
            raise HandshakeError(f"{host} did not answer as a WebSocket server: {error}") from error
        if isinstance(event, RejectConnection):
            body = await _read_refusal(stream, websocket, rest)
            raise HandshakeError(f"{host} refused the upgrade: {_phrase(event.status_code)}", event.status_code, body)
        if not isinstance(event, AcceptConnection):
            raise HandshakeError(f"{host} did not answer as a WebSocket server")
    return Framing(client=True), rest


@asynccontextmanager
async def _bounded(stream: trio.abc.Stream, deadline_s: float) -> AsyncIterator[None]:
    """A handshake's deadline; on every failure the stream is closed."""
    try:
        try:
            with trio.fail_after(deadline_s):
                yield
        except trio.TooSlowError:
            raise HandshakeError(f"the handshake was not complete within {deadline_s:g} s") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise HandshakeError("the connection was lost during the handshake") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def _read_head(stream: trio.abc.Stream, limit: int) -> tuple[bytes, bytes]:
    """A head with its blank line, and what came after it; no head if it is longer than `limit`."""
    buffer = bytearray()
    searched = 0
    while (blank := buffer.find(_END_OF_HEAD, searched)) < 0:
        if len(buffer) >= limit:
            return b"", b""
        searched = max(0, len(buffer) - len(_END_OF_HEAD) + 1)
        chunk = await stream.receive_some(min(limit - len(buffer), 16 * 1024))
        if not chunk:
            raise HandshakeError("the peer hung up during the handshake")
        buffer += chunk
    end = blank + len(_END_OF_HEAD)
    return bytes(buffer[:end]), bytes(buffer[end:])


def _request(event: h11.Request) -> Request:
    target = event.target.decode("ascii")
    if "://" in target.partition("?")[0]:
        # A proxy may send the absolute form (RFC 9112 §3.2.2).
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query = target.partition("?")
    headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers]
    return Request(event.method.decode("ascii"), path, query, headers)


def _offered(request: Request) -> set[str]:
    """The sub-protocols that the client would speak; the list may be spread over several headers."""
    lists = (value for name, value in request.headers if name == "sec-websocket-protocol")
    return {name.strip() for value in lists for name in value.split(",")}


def _upgrade(websocket: WSConnection, event: h11.Request, request: Request) -> Refusal | None:
    """Put the upgrade to wsproto; say why not."""
    if request.method != "GET":
        return Refusal(405, "Only GET is served here.\n", (("allow", "GET"),))
    headers = dict(request.headers)
    if headers.get("upgrade", "").lower() != "websocket":
        return Refusal(
            426, "This is a WebSocket endpoint.\n", (("upgrade", "websocket"), ("sec-websocket-version", "13"))
        )
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        return Refusal(400, "An upgrade request carries no body.\n")
    try:
        websocket.initiate_upgrade_connection(list(event.headers), event.target)
    except RemoteProtocolError as error:
        hint = error.event_hint
        if isinstance(hint, RejectConnection) and hint.status_code == 426:
            return Refusal(426, "Only WebSocket version 13 is served here.\n", (("sec-websocket-version", "13"),))
        return Refusal(400, f"Not a WebSocket upgrade: {error}.\n")
    except UnicodeError:
        return Refusal(400, "Not a WebSocket upgrade: a header is not ASCII.\n")
    return None


def _phrase(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


async def _refuse(stream: trio.abc.Stream, refusal: Refusal) -> HandshakeError:
    """Send the refusal and let the client read it; the error to raise then."""
    body = refusal.body.encode()
    head = [
        f"HTTP/1.1 {_phrase(refusal.status)}",
        *(f"{name}: {value}" for name, value in refusal.headers),
        "content-type: text/plain; charset=utf-8",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    await stream.send_all("\r\n".join(head).encode("latin-1") + _END_OF_HEAD + body)
    if isinstance(stream, trio.abc.HalfCloseableStream):
        # Closing a socket with unread bytes in it resets the connection, and the reset would overtake the refusal.
        with trio.move_on_after(LINGER_S):
            await stream.send_eof()
            while await stream.receive_some(16 * 1024):
                pass
    return HandshakeError(f"refused with {_phrase(refusal.status)}: {refusal.body.strip()}", refusal.status, body)


async def _read_refusal(stream: trio.abc.Stream, websocket: WSConnection, rest: bytes) -> bytes:
    """The body of a refusal, as far as it comes and at most about `REFUSAL_BODY` bytes of it."""
    body = bytearray()
    chunk: bytes | bytearray = rest
    try:
        while len(body) < REFUSAL_BODY:
            if chunk:
                websocket.receive_data(bytes(chunk))
            for event in websocket.events():
                if isinstance(event, RejectData):
                    body += event.data
                    if event.body_finished:
                        return bytes(body)
            chunk = await stream.receive_some(16 * 1024)
            if not chunk:
                break
    except (RemoteProtocolError, trio.BrokenResourceError):
        pass
    return bytes(body)
