"""Connections to endpoints: only to addresses that were checked, head and body in one send, bounded per host.

httpcore, the layer below httpx, keeps the connections and speaks HTTP/1.1. A client above it would bring what must not
be here: cookies that one function's endpoint sets for another's, redirects, proxies of the environment, decompression.
"""

import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import httpcore
import trio
from attrs import define, field, frozen

from ...engine import Deadlines, Timer
from ...protocol import errors
from ...protocol.errors import WireError
from ...protocol.limits import (
    CLOSE_S,
    HTTP_CONNECT_S,
    HTTP_HOST_BYTES,
    HTTP_HOST_RUNNING,
    HTTP_HOST_WAITING,
    HTTP_IDLE_S,
    HTTP_RESPONSE_ALL,
    KIB,
)
from . import addresses
from .targets import Header
from .urls import Endpoint

Key = tuple[str, str, int]

MAX_CAUSES: Final = 8
READ_BYTES: Final = 16 * KIB
"""Read at once at most: as much as an endpoint can make us parse, of the smallest pieces, before others have a turn."""


class Stopped(httpcore.ReadError):
    """Reading was given up by us."""


class OneSend(httpcore.AsyncNetworkStream):
    """A connection whose writes leave together, when the answer is waited for: some endpoints read no second segment."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._unsent: list[bytes] = []
        self._stopped = False

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Keep bytes for the next `read`: nothing is sent here, and nothing is waited for."""
        if buffer:
            self._unsent.append(buffer)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what is unsent, then read. A failed send is no error yet: the endpoint may have answered before."""
        if self._stopped:
            raise Stopped("no more of the answer is wanted")
        if self._unsent:
            message = b"".join(self._unsent)
            self._unsent.clear()
            try:
                await self._stream.write(message, timeout)
            except httpcore.WriteError:
                pass
        return await self._stream.read(min(max_bytes, READ_BYTES), timeout)

    def stop(self) -> None:
        """Let the next `read` fail: the way out of an answer that is too large, through every layer that is reading it."""
        self._stopped = True

    async def aclose(self) -> None:
        """Close, within `CLOSE_S` seconds whatever the endpoint does."""
        with trio.move_on_after(CLOSE_S):
            await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """The same over TLS. A handshake that does not succeed, or is cancelled, closes the connection."""
        try:
            return OneSend(await self._stream.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_S, shield=True):
                await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        """See httpcore."""
        return self._stream.get_extra_info(info)


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses only: a name that reaches this point has not been checked."""

    def __init__(self) -> None:
        self._network = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to an IP address. Raises `httpcore.ConnectError`."""
        if addresses.parse(host) is None:
            raise httpcore.ConnectError(f"{host} is no address")
        return OneSend(await self._network.connect_tcp(host, port, timeout, local_address, socket_options))


@frozen
class Answer:
    """A response read to its end."""

    status: int
    reason: bytes
    body: bytes


@define(eq=False)
class Reading:
    """How much of a response may be held: `limit` bytes of this one, `HTTP_RESPONSE_ALL` of all that are being read."""

    limit: int
    held: int = 0

    def refusal(self, size: int) -> WireError | None:
        """Why a response of which `size` bytes have come is not read on, if so."""
        if size > self.limit:
            text = f"the response has more than {self.limit} bytes (`response_limit` of http-functions)"
            return WireError(text, errors.PAYLOAD_TOO_LARGE)
        if self.held > HTTP_RESPONSE_ALL:
            text = f"responses of more than {HTTP_RESPONSE_ALL} bytes are being read at once; try again later"
            return WireError(text, errors.WORKER_OVERLOADED)
        return None


@define(eq=False)
class Link:
    """One connection to one address of a host."""

    address: str
    http: httpcore.AsyncHTTPConnection


@define(eq=False)
class Destination:
    """One host and port: its connections, the calls that use them, and those that wait for one.

    `held` are the bytes of their payloads, `good` is the address last connected to, `retiring` ends it when nobody calls.
    (Its connections are kept here and not in a pool of httpcore, whose costs grow with the square of their number.)
    """

    endpoint: Endpoint
    tls: ssl.SSLContext
    calls: int = 0
    held: int = 0
    slots: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(HTTP_HOST_RUNNING))
    good: str | None = None
    retiring: Timer | None = None
    used: int = 0
    _idle: list[Link] = field(factory=list)

    @contextmanager
    def admit(self, size: int) -> Iterator[None]:
        """Count a call with a body of `size` bytes. Raises `WireError` when the host has more than it keeps up with."""
        if self.calls >= HTTP_HOST_RUNNING + HTTP_HOST_WAITING or (self.calls and self.held + size > HTTP_HOST_BYTES):
            text = f"{self.endpoint.authority} does not keep up: {self.calls} calls of {self.held} bytes wait for it"
            raise WireError(text, errors.WORKER_OVERLOADED)
        self.calls += 1
        self.held += size
        try:
            yield
        finally:
            self.calls -= 1
            self.held -= size

    @property
    def connections(self) -> int:
        """How many are open or being opened."""
        return self.used + len(self._idle)

    @asynccontextmanager
    async def open(
        self, method: str, found: tuple[str, ...], headers: list[Header], target: bytes, body: bytes
    ) -> AsyncIterator[httpcore.Response]:
        """Send a request to the first of the addresses that can be connected to; the response, of which the head has come.

        At the end of the block its connection is kept if everything was read, else closed. Raises httpcore's
        `ConnectError` and `ConnectTimeout` when no address can be connected to: nothing has been sent then.
        """
        scheme = self.endpoint.scheme.encode()
        ordered = sorted(found, key=lambda address: address != self.good)
        self.used += 1
        try:
            for address in ordered:
                last = address is ordered[-1]
                url = httpcore.URL(scheme=scheme, host=address, port=self.endpoint.port, target=target)
                more = {
                    "sni_hostname": self.endpoint.host.rstrip("."),
                    "timeout": {} if last else {"connect": HTTP_CONNECT_S},
                }
                request = httpcore.Request(method, url, headers=headers, content=body, extensions=more)
                link = await self._link(address, url.origin)
                try:
                    response = await link.http.handle_async_request(request)
                    self.good = address
                    try:
                        yield response
                    finally:
                        with trio.CancelScope(deadline=trio.current_time() + CLOSE_S, shield=True):
                            await response.aclose()
                    return
                except (httpcore.ConnectError, httpcore.ConnectTimeout):
                    if last:
                        raise
                finally:
                    await self._give_back(link)
        finally:
            self.used -= 1

    async def _give_back(self, link: Link) -> None:
        """Keep a connection that can be used again, and close any other, in whatever state it was left."""
        if link.http.is_idle() and not link.http.is_closed() and len(self._idle) < HTTP_HOST_RUNNING:
            self._idle.append(link)
            return
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_S, shield=True):
            await link.http.aclose()

    async def _link(self, address: str, origin: httpcore.Origin) -> Link:
        """The connection that was used last, or a new one; the one that was not used for longest is closed in time."""
        if self._idle and self._idle[0].http.has_expired():
            await self._idle.pop(0).http.aclose()
        for place in reversed(range(len(self._idle))):
            if self._idle[place].address == address:
                link = self._idle.pop(place)
                if not link.http.has_expired():
                    return link
                await link.http.aclose()
        http = httpcore.AsyncHTTPConnection(
            origin, ssl_context=self.tls, keepalive_expiry=HTTP_IDLE_S, network_backend=PinnedBackend()
        )
        return Link(address, http)

    async def aclose(self) -> None:
        """Close what is idle."""
        while self._idle:
            await self._idle.pop().http.aclose()


async def read_answer(response: httpcore.Response, reading: Reading) -> Answer:
    """The whole response. Raises httpcore's errors when it breaks off, `WireError` when it is too large."""
    stream = response.extensions["network_stream"]
    chunks: list[bytes] = []
    size, refusal = 0, None
    try:
        async for chunk in response.aiter_stream():
            if refusal is None:
                chunks.append(chunk)
                size += len(chunk)
                reading.held += len(chunk)
                refusal = reading.refusal(size)
                if refusal is not None:
                    stream.stop()
            # One read may hold thousands of chunks, and getting the next is no checkpoint. Shielded, for an exception here
            # would leave httpcore's generators unfinished; a cancellation shows at the next read.
            await trio.lowlevel.cancel_shielded_checkpoint()
    except Stopped:
        assert refusal is not None
    finally:
        reading.held -= size
    if refusal is not None:
        raise refusal
    return Answer(response.status, response.extensions.get("reason_phrase", b""), b"".join(chunks))


@define(eq=False)
class Destinations:
    """Every host that is being called or has been just now; `nursery` runs the closing of those that are not any more."""

    deadlines: Deadlines
    tls: ssl.SSLContext
    nursery: trio.Nursery
    _open: dict[Key, Destination] = field(factory=dict, init=False)

    @contextmanager
    def use(self, endpoint: Endpoint, size: int) -> Iterator[Destination]:
        """The destination of a call, which is counted for the length of the block. Raises `WireError` as `admit` does."""
        key = (endpoint.scheme, endpoint.host, endpoint.port)
        destination = self._open.get(key)
        if destination is None:
            destination = self._open[key] = Destination(endpoint, self.tls)
        if destination.retiring is not None:
            destination.retiring.cancel()
            destination.retiring = None
        with destination.admit(size):
            try:
                yield destination
            finally:
                if destination.calls == 1:
                    destination.retiring = self.deadlines.after(HTTP_IDLE_S, partial(self._retire, key))

    def _retire(self, key: Key) -> None:
        destination = self._open.pop(key)
        self.nursery.start_soon(destination.aclose, name=f"close idle connections to {destination.endpoint.host}")

    async def aclose(self) -> None:
        """Close everything, within `CLOSE_S` seconds, also when cancelled."""
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_S, shield=True):
            async with trio.open_nursery() as closing:
                for destination in self._open.values():
                    if destination.retiring is not None:
                        destination.retiring.cancel()
                    closing.start_soon(destination.aclose, name=f"close {destination.endpoint.host}")
        self._open.clear()

    def __iter__(self) -> Iterator[Destination]:
        return iter(tuple(self._open.values()))


def cause(error: BaseException) -> str:
    """The texts of an error and of what caused it, without those that say nothing or say it again."""
    texts: list[str] = []
    pending: list[BaseException | None] = [error]
    while pending and len(texts) < MAX_CAUSES:
        one = pending.pop(0)
        if one is None:
            continue
        said = one.message if isinstance(one, WireError) else str(one)
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions
        elif said and not any(said in text for text in texts):
            texts.append(said)
        pending.append(one.__cause__ or one.__context__)
    return errors.shorten(": ".join(texts) or type(error).__name__)
