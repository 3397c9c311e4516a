"""HTTP/1.1 connections: hypercorn's protocol and application tasks on every accepted socket, inside bounds of our own.

Why this file drives hypercorn's `H11Protocol` itself where `hypercorn.trio.serve` would do it. There, one malformed
request can end the whole server (an `HTTP2-Settings` header that is no base64 does); a client that stops reading holds
up the shutdown for as long as it likes, because sending is shielded without a deadline; a client of HTTP/2 that leaves
can leave its request behind; and any number of connections is let in. Here an error in a connection ends that
connection, a write without progress breaks it, HTTP/2 and WebSocket are not offered, and stopping takes a bounded time.
It is also faster: no task per request that watches for idleness, since one sweeper serves all connections, and no lock,
shield and system call per piece of a response.

    serve ─ accept loops
          └ keeper (outlives cancellation by the grace) ─ sweeper · one task per connection ─ its requests
"""

import logging
import math
import socket
import ssl
import struct
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import h11
import trio
from attrs import define, field, frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from ...protocol.limits import HANDSHAKE_HEAD, STALL_S

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 10_000
IDLE_S: Final = 75.0
"""How long a connection may wait for a request, or for the rest of a request's head."""
LINGER_S: Final = 2.0
"""How long a connection that we close is read from, so that a reset does not overtake our last answer."""
READ_BYTES: Final = 64 * 1024
WRITE_BYTES: Final = 256 * 1024
"""A write of this size must get through within `STALL_S`."""
STOP_GRACE_S: Final = 3.0
SWEEP_S: Final = 1.0
CONNECTION: Final = "iii_trio.connection"
"""The key of the `Connection` in the ASGI scope's `state`."""


class _Http1(H11Protocol):
    """hypercorn's HTTP/1.1 alone: offers to switch to HTTP/2 or WebSocket are ignored, as HTTP allows."""

    async def _check_protocol(self, event: h11.Request) -> None:
        return

    async def _create_stream(self, request: h11.Request) -> None:
        if any(name == b"upgrade" for name, _ in request.headers):
            headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
            request = h11.Request(
                method=request.method, target=request.target, headers=headers, http_version=request.http_version
            )
        await super()._create_stream(request)


@define(eq=False)
class Connection:
    """One client's socket: feeds hypercorn what arrives, and writes what it gives out.

    `idle` says that no request is under way; `cut_at` is the Trio time at which the sweeper ends the connection.
    """

    _stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    _idle_s: float
    idle: bool = field(default=True, init=False)
    cut_at: float = field(init=False)
    _protocol: _Http1 = field(init=False)
    _reader: trio.lowlevel.Task = field(init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _closing: bool = field(default=False, init=False)
    _writing: trio.Lock = field(factory=trio.Lock, init=False)
    _holding: bool = field(default=False, init=False)
    _held: list[bytes] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.cut_at = trio.current_time() + self._idle_s

    @property
    def _socket(self) -> trio.socket.SocketType:
        stream = self._stream
        return stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket

    async def run(self, app: AppWrapper, config: Config, context: WorkerContext) -> None:
        """Serve the client until either side closes; returns when its last request has ended."""
        sock = self._socket
        try:
            client, server = (parse_socket_addr(sock.family, name) for name in (sock.getpeername(), sock.getsockname()))
        except OSError:
            return  # gone before it was accepted
        self._reader = trio.lowlevel.current_task()
        with self._scope:
            async with TaskGroup() as tasks:
                state = ConnectionState({CONNECTION: self})
                tls = isinstance(self._stream, trio.SSLStream)
                self._protocol = _Http1(app, config, context, tasks, state, tls, client, server, self._on_event)
                try:
                    while data := await self._stream.receive_some(READ_BYTES):
                        if not self._closing:
                            await self._protocol.handle(RawData(bytes(data)))
                    if not self._closing:
                        await self._protocol.handle(RawData(b""))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                await self._protocol.handle(Closed())

    async def _on_event(self, event: Event) -> None:
        """What hypercorn has to say: bytes for the client, a request that began or ended, the end."""
        if isinstance(event, RawData):
            await self.send(event.data)
        elif isinstance(event, Updated):
            self.idle = event.idle
            self.cut_at = trio.current_time() + self._idle_s if event.idle else math.inf
        elif self._protocol.connection.our_state is h11.SEND_BODY and trio.lowlevel.current_task() is self._reader:
            pass  # what a client sends behind its last request must not cut the response short that is under way
        else:
            await self.close()
            await self._protocol.handle(Closed())

    async def send(self, data: bytes) -> None:
        """Write, or hold for `flush`; a client that is gone is no error, and one that takes nothing is cut."""
        if self._holding:
            self._held.append(data)
        elif data:
            await self._write(data)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep what is sent inside the block, for `flush` to send it in one write."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    async def flush(self) -> None:
        """Send what was held."""
        data = b"".join(self._held)
        self._held.clear()
        if data:
            await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()
        try:
            for start in range(0, len(data), WRITE_BYTES):
                part = data if len(data) <= WRITE_BYTES else memoryview(data)[start : start + WRITE_BYTES]
                with trio.move_on_after(STALL_S) as patience:
                    await self._stream.send_all(part)
                if patience.cancelled_caught:
                    log.info("an HTTP client took nothing for %.0f s: its connection is cut", STALL_S)
                    self._break()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._break()
        finally:
            self._writing.release()

    async def close(self) -> None:
        """Send what was held and then no more; the client gets `LINGER_S` to notice and to close."""
        await self.flush()
        if not self._closing:
            self._end_soon()
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._break()

    def _break(self) -> None:
        """Nothing gets through any more: reading hears of it, tells the requests, and has `LINGER_S` for that."""
        self._socket.close()
        self._end_soon()

    def _end_soon(self) -> None:
        self._closing = self.idle = True
        self.cut_at = trio.current_time() + LINGER_S

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way, the bytes of the last response included."""
        return self.idle and not self._held and not self._writing.locked()

    @property
    def broken(self) -> bool:
        """Whether nothing gets through to the client any more."""
        return self._closing

    def abort(self, *, reset: bool = False) -> None:
        """End the connection now, with whatever still runs for it; its client sees it break off.

        With `reset` it also does where the end of the connection would mean the end of the body (HTTP/1.0).
        """
        if reset and self._socket.fileno() >= 0:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
        self._scope.cancel()


@frozen(eq=False)
class _Accepting:
    """The accept loops of one set of listeners: what ends them, and whether their sockets are closed."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)


@frozen
class ConnectionStatistics:
    """Connections now `open`, of which `idle` have no request under way; `refused` at the bound, `failed` by a bug."""

    open: int
    idle: int
    refused: int
    failed: int


@define(eq=False, kw_only=True)
class Connections:
    """Everything accepted on one set of listeners, until it is stopped; with `tls` they speak nothing else."""

    app: Callable[..., Awaitable[None]]
    max_connections: int = MAX_CONNECTIONS
    idle_s: float = IDLE_S
    grace_s: float = STOP_GRACE_S
    tls: ssl.SSLContext | None = None
    _config: Config = field(init=False)
    _context: WorkerContext = field(factory=lambda: WorkerContext(None), init=False)
    _open: set[Connection] = field(factory=set, init=False)
    _emptied: trio.Event = field(factory=trio.Event, init=False)
    _start_accepting: Callable[..., Awaitable[_Accepting]] | None = field(default=None, init=False)
    _accepting: _Accepting | None = field(default=None, init=False)
    _refused: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        config = self._config = Config()
        config.errorlog = log
        config.include_server_header = False
        config.h11_max_incomplete_size = HANDSHAKE_HEAD
        config.keep_alive_max_requests = 2**63

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve until cancelled; `started()` once clients can connect.

        When cancelled it closes the listeners and the idle connections, lets running requests end for up to `grace_s`
        seconds, cuts off the rest and returns, all under a shield that lasts no longer than that.
        """
        stopping = trio.Event()
        kept: list[trio.Nursery] = []
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            # not `nursery.start`: cancelled in the middle, that would wait for the shielded task it is to set free
            nursery.start_soon(self._keep, stopping, kept, ready, name="connections")
            try:
                await ready.wait()
                self._start_accepting = partial(nursery.start, self._accept, kept[0], name="accept")
                await self.listen_on(listeners)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._start_accepting = None
                stopping.set()

    async def listen_on(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Accept on these from now on, then no longer on those before, which are closed; `serve` must be running.

        With no listeners nothing is accepted. Connections that are open stay open.
        """
        assert self._start_accepting is not None
        before, self._accepting = self._accepting, None
        try:
            if listeners:
                self._accepting = await self._start_accepting(list(listeners))
        finally:
            if before is not None:
                before.scope.cancel()
        if before is not None:
            await before.ended.wait()

    async def _accept(
        self,
        handlers: trio.Nursery,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[_Accepting],
    ) -> None:
        accepting = _Accepting()
        accept = partial(trio.serve_listeners, self._serve_one, listeners, handler_nursery=handlers)
        try:
            with accepting.scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(accept, name="accept loop")
                    task_status.started(accepting)
        finally:
            for listener in listeners:  # cancelled before anybody listened, nobody else closes them
                listener.socket.close()
            accepting.ended.set()

    async def _keep(self, stopping: trio.Event, kept: list[trio.Nursery], ready: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True  # bounded: `stopping` is set on every way out of `serve`
            kept.append(nursery)
            ready.set()
            while not stopping.is_set():
                with trio.move_on_after(SWEEP_S):
                    await stopping.wait()
                self._cut(trio.current_time())
            await self._context.terminated.set()  # from now on a connection ends with its response
            with trio.move_on_after(self.grace_s):
                while self._open:
                    self._cut()
                    self._emptied = trio.Event()
                    with trio.move_on_after(SWEEP_S):
                        await self._emptied.wait()
            nursery.cancel_scope.cancel()

    def _cut(self, before: float = math.inf) -> None:
        """End the connections that have nothing under way and had to have by `before`; without it, all of them."""
        for connection in tuple(self._open):
            if connection.quiet and connection.cut_at <= before:
                connection.abort()

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        secured = (
            stream if self.tls is None else trio.SSLStream(stream, self.tls, server_side=True, https_compatible=True)
        )
        connection = Connection(secured, self.idle_s)  # TLS shakes hands at the first read, while the sweeper watches
        if len(self._open) >= self.max_connections:
            self._refused += 1
            connection.abort()
            return
        self._open.add(connection)
        try:
            await connection.run(ASGIWrapper(self.app), self._config, self._context)
        except Exception as error:
            # what one client sends must not end the others' connections; hypercorn's parsers do raise
            self._failed += 1
            incident = uuid.uuid4().hex[:12]
            log.error("an HTTP connection failed (incident %s)", incident, exc_info=error)
        finally:
            connection.abort()
            self._open.discard(connection)
            if not self._open:
                self._emptied.set()

    def statistics(self) -> ConnectionStatistics:
        """A frozen picture of the connections."""
        idle = sum(connection.idle for connection in self._open)
        return ConnectionStatistics(open=len(self._open), idle=idle, refused=self._refused, failed=self._failed)


__all__ = ["CONNECTION", "Connection", "ConnectionStatistics", "Connections"]
