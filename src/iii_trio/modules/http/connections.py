"""Connections to an HTTP port: accepted, bounded in number, watched for idleness, and stopped in a bounded time.

Why not `hypercorn.trio.serve`. There, one malformed request can end the whole server (an `HTTP2-Settings` header that
is no base64 does); a client that stops reading holds up the shutdown for as long as it likes, because sending is
shielded without a deadline; a client of HTTP/2 that leaves can leave its request behind; and any number of connections
is let in. Here an error in a connection ends that connection, a write without progress breaks it, and stopping takes a
bounded time. It is also faster: one sweeper serves all connections where there a task per request watches for
idleness. What a client speaks is decided once, in `Connections._serve_one`: `http1` or, agreed on by TLS, `http2`.
Above either stands hypercorn's `HTTPStream` (`front`); the application itself also runs under `hypercorn.trio.serve`.

    serve ─ accept loops
          └ keeper (outlives cancellation by the grace) ─ sweeper · one task per connection ─ its requests
"""

import logging
import math
import os
import socket
import ssl
import struct
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ...protocol.limits import HANDSHAKE_S, STALL_S
from .hangups import Hangup
from .http1 import App, Conversation
from .http1_messages import Fields, Refused, refusal
from .http2 import Http2

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
MOVE_GRACE_S: Final = 10.0
"""How long requests may still run on connections to an address that is no longer listened on."""
SWEEP_S: Final = 1.0
CONNECTION: Final = "iii_trio.connection"
"""The key of the `Connection` in the ASGI scope's `state`."""


Refuse = Callable[[int, str], tuple[Fields, bytes]]
"""Header fields and body for a status that is no application's, and the reason for it."""


def in_silence(status: int, text: str) -> tuple[Fields, bytes]:
    """A `Refuse` that says nothing but the status."""
    return [], b""


@define(eq=False)
class Connection:
    """One client's socket, on which HTTP/1.1 is spoken.

    `idle` says that no request is under way; `cut_at` is the Trio time at which the sweeper ends the connection.
    `unanswered`: a bug that ends the connection leaves a request without an answer.
    """

    _stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    _idle_s: float
    refuse: Refuse
    idle: bool = field(default=True, init=False)
    cut_at: float = field(init=False)
    unanswered: bool = field(default=False, init=False)
    socket: trio.socket.SocketType = field(init=False)
    """What is below, under TLS too."""
    hangup: Hangup = field(init=False)
    _plain: bool = field(init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _closing: bool = field(default=False, init=False)
    _writing: trio.Lock = field(factory=trio.Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self.cut_at = trio.current_time() + self._idle_s
        stream = self._stream
        self._plain = isinstance(stream, trio.SocketStream)
        self.socket = stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket
        self.hangup = Hangup(self.socket)

    async def run(self, app: App, stopping: trio.Event) -> None:
        """Serve the client until either side closes, or with one more response once `stopping` is set."""
        try:
            client, server = _address(self.socket.getpeername()), _address(self.socket.getsockname())
        except OSError:
            return  # gone before it was accepted
        with self._scope:
            await Conversation(self, stopping, app, CONNECTION, not self._plain, client, server).run()

    async def receive(self) -> bytes:
        """Some bytes; none when the client will send no more, or is gone."""
        if self.socket.fileno() < 0:
            return b""
        try:
            if not self._plain:
                return bytes(await self._stream.receive_some(READ_BYTES))
            while True:
                # by the descriptor, and when something is there to be had; Trio's own way tries first, mostly in vain
                await trio.lowlevel.wait_readable(self.socket)
                try:
                    return os.read(self.socket.fileno(), READ_BYTES)
                except BlockingIOError:
                    continue
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return b""

    async def send(self, data: bytes) -> None:
        """Write. A client that is gone is no error, and one that takes nothing is cut.

        It is no checkpoint where the socket takes everything at once, as it takes nearly all responses.
        """
        if self._closing:
            return
        part: bytes | memoryview = data
        if self._plain and not self._writing.locked():
            try:
                sent = os.write(self.socket.fileno(), data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._break()
                return
            if sent == len(data):
                return
            part = memoryview(data)[sent:]
        await self._write(part)

    async def _write(self, data: bytes | memoryview) -> None:
        async with self._writing:
            try:
                for start in range(0, len(data), WRITE_BYTES):
                    with trio.move_on_after(STALL_S) as patience:
                        await self._stream.send_all(data[start : start + WRITE_BYTES])
                    if patience.cancelled_caught:
                        log.info("an HTTP client took nothing for %.0f s: its connection is cut", STALL_S)
                        self._break()
                        return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._break()

    async def decline(self, refused: Refused) -> None:
        """Say why what has come is no request; nothing follows."""
        await self.send(refusal(refused.status, *self.refuse(refused.status, str(refused))))

    async def apologize(self) -> None:
        """Say that a request has no answer, if there is one; nothing follows."""
        if self.unanswered:
            await self.decline(Refused(500, "internal server error"))
            self.close()

    def rest(self) -> None:
        """A request has ended; the next one may take its time."""
        self.idle = True
        self.cut_at = trio.current_time() + self._idle_s

    def close(self) -> None:
        """Send no more; the client gets `LINGER_S` to notice and to close."""
        if not self._closing:
            self._end_soon()
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self._break()

    def _break(self) -> None:
        """Nothing gets through any more: reading hears of it, tells the request, and has `LINGER_S` for that."""
        self.socket.close()
        self.hangup.close()
        self._end_soon()

    def _end_soon(self) -> None:
        self._closing = self.idle = True
        self.cut_at = trio.current_time() + LINGER_S

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way, the bytes of the last response included."""
        return self.idle and not self._writing.locked()

    @property
    def broken(self) -> bool:
        """Whether nothing gets through to the client any more."""
        return self._closing

    def retire(self) -> None:
        """End the connection, which is quiet."""
        self.abort()

    def abort(self, *, reset: bool = False) -> None:
        """End the connection now, with whatever still runs for it; its client sees it break off.

        With `reset` it also does where the end of the connection would mean the end of the body (HTTP/1.0).
        """
        if reset and self.socket.fileno() >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        self.hangup.close()
        self._scope.cancel()


@define(eq=False)
class _Accepting:
    """The accept loops of one set of listeners: what ends them, and whether their sockets are closed.

    `stopping`: the connections they have let in end with their next response, or at `until` (Trio time).
    """

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)
    stopping: trio.Event = field(factory=trio.Event)
    until: float = math.inf


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

    app: App
    max_connections: int = MAX_CONNECTIONS
    idle_s: float = IDLE_S
    grace_s: float = STOP_GRACE_S
    tls: ssl.SSLContext | None = None
    refuse: Refuse = in_silence
    _open: dict[Connection | Http2, _Accepting] = field(factory=dict, init=False)
    _emptied: trio.Event = field(factory=trio.Event, init=False)
    _start_accepting: Callable[..., Awaitable[_Accepting]] | None = field(default=None, init=False)
    _accepting: _Accepting | None = field(default=None, init=False)
    _refused: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)

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

        With no listeners nothing is accepted. Connections to the listeners before are closed: idle ones now, the others
        with their response, and after `MOVE_GRACE_S` in any case.
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
            before.until = trio.current_time() + MOVE_GRACE_S
            self._say_last(before)
            for connection, accepting in tuple(self._open.items()):
                if accepting is before and connection.quiet:
                    connection.retire()

    def _say_last(self, accepting: _Accepting) -> None:
        """From now on, connections that were let in there end with their response."""
        accepting.stopping.set()
        for connection, through in self._open.items():
            if through is accepting and isinstance(connection, Http2):
                connection.say_goodbye()

    async def _accept(
        self,
        handlers: trio.Nursery,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[_Accepting],
    ) -> None:
        accepting = _Accepting()
        serve_one = partial(self._serve_one, accepting)
        accept = partial(trio.serve_listeners, serve_one, listeners, handler_nursery=handlers)
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
            for accepting in set(self._open.values()):
                self._say_last(accepting)
            with trio.move_on_after(self.grace_s):
                while self._open:
                    self._cut()
                    self._emptied = trio.Event()
                    with trio.move_on_after(SWEEP_S):
                        await self._emptied.wait()
            nursery.cancel_scope.cancel()

    def _cut(self, before: float = math.inf) -> None:
        """End the connections that have nothing under way and had to have by `before`; without it, all of them."""
        now = trio.current_time()
        for connection, accepting in tuple(self._open.items()):
            if accepting.until <= now:
                connection.abort()
            elif connection.quiet and connection.cut_at <= before:
                connection.retire()

    async def _serve_one(self, accepting: _Accepting, stream: trio.SocketStream) -> None:
        if len(self._open) >= self.max_connections:
            self._refused += 1
            stream.socket.close()
            return
        secured = (
            stream if self.tls is None else trio.SSLStream(stream, self.tls, server_side=True, https_compatible=True)
        )
        first = Connection(secured, self.idle_s, self.refuse)
        connection: Connection | Http2 = first
        self._open[connection] = accepting
        try:
            agreed = await _shaken_hands(secured) if isinstance(secured, trio.SSLStream) else "http/1.1"
            if agreed == "h2" and isinstance(secured, trio.SSLStream):
                del self._open[connection]
                second = connection = Http2(secured, self.app, CONNECTION, self.idle_s, self._incident)
                self._open[connection] = accepting
                await second.run()
            elif agreed is not None:
                await first.run(self.app, accepting.stopping)
        except Exception as error:
            # a bug that one client meets must not end the others' connections
            log.error("an HTTP connection failed (incident %s)", self._incident(), exc_info=error)
            await first.apologize()
        finally:
            connection.abort()
            self._open.pop(connection, None)
            if not self._open:
                self._emptied.set()

    def _incident(self) -> str:
        """Count a bug; what the log calls it."""
        self._failed += 1
        return uuid.uuid4().hex[:12]

    def statistics(self) -> ConnectionStatistics:
        """A frozen picture of the connections."""
        idle = sum(connection.idle for connection in self._open)
        return ConnectionStatistics(open=len(self._open), idle=idle, refused=self._refused, failed=self._failed)


def _address(name: Any) -> tuple[str, int] | None:
    """Host and port of an address; None for a socket that has none, such as a Unix one."""
    return (name[0], name[1]) if isinstance(name, tuple) else None


async def _shaken_hands(stream: "trio.SSLStream[trio.SocketStream]") -> str | None:
    """What the client wants to speak, once it has shaken hands; None if it does not, or left."""
    agreed: str | None = None
    with trio.move_on_after(HANDSHAKE_S):
        try:
            await stream.do_handshake()
            agreed = stream.selected_alpn_protocol() or "http/1.1"
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    return agreed


__all__ = ["CONNECTION", "Connection", "ConnectionStatistics", "Connections"]
