"""HTTP connections: hypercorn's Trio server on every accepted socket, inside bounds of our own.

Why not `hypercorn.trio.serve`, whose accept loop this file replaces: one malformed request can end it and with it every
connection (an `HTTP2-Settings` header that is no base64 does), it sends under a shield without a deadline, so that a
client which stops reading holds up the shutdown for as long as it likes, and it admits any number of connections.
Here an error in a connection ends that connection, a write that makes no progress breaks it, and stopping takes a
bounded time. hypercorn also starts a task per request to watch for idleness; here one sweeper serves all connections.

    serve ─ accept loops
          └ keeper (outlives cancellation by the grace) ─ sweeper · one task per connection ─ its requests
"""

import logging
import math
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import trio
from attrs import define, field, frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import TrioSingleTask, WorkerContext
from hypercorn.typing import ConnectionState

from ...protocol.limits import HANDSHAKE_HEAD, STALL_S

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 10_000
IDLE_S: Final = 75.0
"""How long a connection may wait for a request, or for the rest of a request's head."""
WRITE_BYTES: Final = 256 * 1024
"""A write of this size must get through within `STALL_S`."""
STOP_GRACE_S: Final = 3.0
SWEEP_S: Final = 1.0
CONNECTION: Final = "iii_trio.connection"
"""The key of the `Connection` in the ASGI scope's `state`."""


@define(eq=False)
class Connection:
    """One client's socket, as hypercorn drives it: the methods it calls on a stream, with bounds.

    `idle_since` is the Trio time since when no request has been under way, None while one is.
    """

    _stream: trio.SocketStream
    idle_since: float | None = field(factory=trio.current_time, init=False)
    _writing: trio.Lock = field(factory=trio.Lock, init=False)
    _holding: bool = field(default=False, init=False)
    _held: list[bytes] = field(factory=list, init=False)

    @property
    def socket(self) -> trio.socket.SocketType:
        """The socket, of which hypercorn asks the addresses."""
        return self._stream.socket

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes) -> None:
        """See `trio.abc.SendStream`. A client that takes nothing for `STALL_S` is cut: `trio.BrokenResourceError`."""
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
        """Send what was held. A client that is gone is no error here: its connection ends by itself."""
        self._holding = False
        data = b"".join(self._held)
        self._held.clear()
        if data:
            try:
                await self._write(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.abort()

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
                    self.abort()
                    raise trio.BrokenResourceError(f"the client took nothing for {STALL_S:.0f} s")
        finally:
            self._writing.release()

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`. Never waits for a write: a write under way is broken by it."""
        await self.flush()
        try:
            self._stream.socket.shutdown(socket.SHUT_WR)
        except OSError:
            raise trio.BrokenResourceError("the client is gone") from None

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._stream.aclose()

    def idle(self, since: float = math.inf) -> bool:
        """Whether nothing has been under way since `since` (Trio time), the bytes of the last response included."""
        return self.idle_since is not None and self.idle_since <= since and not (self._held or self._writing.locked())

    def abort(self) -> None:
        """Close the socket now; whoever reads or writes it gets `trio.ClosedResourceError`."""
        self._stream.socket.close()


class _IdleWatch(TrioSingleTask):
    """In the place of hypercorn's idle task: notes the time and leaves the rest to the sweeper."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    async def restart(self, task_group: Any, action: Callable[..., Awaitable[None]]) -> None:
        self._connection.idle_since = trio.current_time()

    async def stop(self) -> None:
        self._connection.idle_since = None


@frozen
class ConnectionStatistics:
    """Connections now `open`, of which `idle` have no request under way; `refused` at the bound, `failed` by a bug."""

    open: int
    idle: int
    refused: int
    failed: int


@define(eq=False, kw_only=True)
class Connections:
    """Everything accepted on one set of listeners, until it is stopped."""

    app: Callable[..., Awaitable[None]]
    max_connections: int = MAX_CONNECTIONS
    idle_s: float = IDLE_S
    grace_s: float = STOP_GRACE_S
    _config: Config = field(init=False)
    _context: WorkerContext = field(factory=lambda: WorkerContext(None), init=False)
    _open: set[Connection] = field(factory=set, init=False)
    _emptied: trio.Event = field(factory=trio.Event, init=False)
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
        async with trio.open_nursery() as nursery:
            try:
                connections: trio.Nursery = await nursery.start(self._keep, stopping, name="connections")
                accept = partial(trio.serve_listeners, self._serve_one, list(listeners), handler_nursery=connections)
                await nursery.start(accept, name="accept")
                task_status.started()
                await trio.sleep_forever()
            finally:
                stopping.set()

    async def _keep(self, stopping: trio.Event, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True  # bounded: `stopping` is set on every way out of `serve`
            task_status.started(nursery)
            while not stopping.is_set():
                with trio.move_on_after(SWEEP_S):
                    await stopping.wait()
                self._close_idle(trio.current_time() - self.idle_s)
            await self._context.terminated.set()  # from now on a connection ends with its response
            with trio.move_on_after(self.grace_s):
                while self._open:
                    self._close_idle()
                    self._emptied = trio.Event()
                    with trio.move_on_after(SWEEP_S):
                        await self._emptied.wait()
            for connection in tuple(self._open):
                connection.abort()
            nursery.cancel_scope.cancel()

    def _close_idle(self, since: float = math.inf) -> None:
        for connection in tuple(self._open):
            if connection.idle(since):
                connection.abort()

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        connection = Connection(stream)
        if len(self._open) >= self.max_connections:
            self._refused += 1
            connection.abort()
            return
        self._open.add(connection)
        state = ConnectionState({CONNECTION: connection})
        server = TCPServer(ASGIWrapper(self.app), self._config, self._context, state, connection)  # type: ignore[arg-type]
        server.idle_task = _IdleWatch(connection)
        try:
            await server.run()
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
        idle = sum(connection.idle() for connection in self._open)
        return ConnectionStatistics(open=len(self._open), idle=idle, refused=self._refused, failed=self._failed)


__all__ = ["CONNECTION", "Connection", "ConnectionStatistics", "Connections"]
