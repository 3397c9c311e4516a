"""The worker port: accepts sockets, bounds handshakes, routes paths, and owns one nursery per connection.

listener ─ accept <address>: one for each
         ├ sweeper: pings the silent, ends the dead
         └ socket <address>, one for each: handshake, then a worker, a telemetry socket or an end of a channel
"""

import errno
import logging
import socket
import ssl
import uuid
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ..protocol import codec
from ..protocol.errors import ConfigError, WireError
from ..protocol.limits import ACCEPT_PAUSE_S, HANDSHAKE_S, LATE_WAKEUP_S, PEER_MESSAGE_DEFAULT, PEERS
from ..protocol.messages import Error, ErrorBody
from ..transport import Connection, Framing, HandshakeError, OriginGate, Oversize, Refusal, Request, WaitingRoom, accept
from . import channel_sockets
from .access import Session
from .channel_sockets import Attach
from .engine import Engine
from .events import TelemetryReceived
from .remote import RemotePeer
from .sessions import EVERYBODY, Rules, admit

log = logging.getLogger(__name__)

LOOPBACK: Final = ("127.0.0.1", "::1")
SWEEP_S: Final = 1.0
BACKLOG: Final = 1024
FAULTS: Final = frozenset((1002, 1007, 1009, 1013))
"""Close codes that a worker brought upon itself: it spoke no WebSocket, sent too much, or did not read."""
STOPPING: Final = "the engine is stopping"
FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What `accept` fails with when the process or the machine has no room for one more socket."""


@frozen
class ListenerStatistics:
    """Sockets in their `handshakes` (until admitted or gone), `connections`, and ends of channels; so far `refused` for
    their origin, for lack of a token or by an auth function, and `telemetry_frames` received.
    """

    handshakes: int
    connections: int
    channel_ends: int
    refused: int
    telemetry_frames: int


async def bind(host: str, port: int, what: str) -> list[trio.SocketListener]:
    """Listening sockets for `host:port`; `localhost` means both loopback addresses, port 0 one port for all of them.

    Raises `ConfigError` naming the address and `what` wanted it when it is taken or cannot be bound.
    """
    hosts = LOOPBACK if host == "localhost" else (host,)
    listeners: list[trio.SocketListener] = []
    try:
        for index, address in enumerate(hosts):
            try:
                sock = await _listening(address, port)
            except OSError as error:
                if index and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue  # a machine without IPv6
                raise _bind_error(error, address, port, what) from None
            port = port or sock.getsockname()[1]
            listeners.append(trio.SocketListener(sock))
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


async def _listening(address: str, port: int) -> trio.socket.SocketType:
    """One listening socket; whatever goes wrong, none is left open."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_error(error: OSError, address: str, port: int, what: str) -> ConfigError:
    shown = _shown(address, port)
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"address {shown} is already in use ({what}); stop the other program or choose another port")
    return ConfigError(f"failed to bind to {shown} ({what}): {error.strerror}")


@define(eq=False, repr=False, kw_only=True)
class Listener:
    """One worker port. `addresses` is known once `run` has started; `host` and `port` as configured.

    `rules` say who may connect and what they may do; with `tls` the port speaks TLS and nothing else. `allowed_origins`
    are those whose web pages may connect, None for all; it may be set at any time and holds for those who come then.
    """

    core: Engine
    host: str = "localhost"
    port: int = 49134
    handshake_timeout_s: float = HANDSHAKE_S
    rules: Rules = EVERYBODY
    allowed_origins: tuple[str, ...] | None = None
    tls: ssl.SSLContext | None = None
    addresses: tuple[tuple[str, int], ...] = field(default=(), init=False)
    _origins: OriginGate = field(factory=lambda: OriginGate("the worker port", "iii-worker-manager"), init=False)
    _waiting_room: WaitingRoom = field(factory=WaitingRoom, init=False)
    _connections: dict[Connection, RemotePeer | None] = field(factory=dict, init=False)
    _channel_ends: dict[Connection, None] = field(factory=dict, init=False)
    _refused: int = field(default=0, init=False)
    _telemetry_frames: int = field(default=0, init=False)
    _closing: bool = field(default=False, init=False)
    _emptied: trio.Event | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.core.access.protected |= self.rules.protected()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bind, accept and serve until cancelled; `started()` once the port is open. Raises `ConfigError`."""
        bound = await bind(self.host, self.port, "the worker port")
        self.addresses = tuple(listener.socket.getsockname()[:2] for listener in bound)
        self._origins.port = f"the worker port {self.addresses[0][1]}"
        listeners: list[trio.abc.Listener[Any]] = [*bound]
        if self.tls is not None:
            # TLS shakes hands at the first read, which is within the deadline of the upgrade
            listeners = [trio.SSLListener(listener, self.tls, https_compatible=True) for listener in bound]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep, name="sweeper")
                for listener, (host, port) in zip(listeners, self.addresses, strict=True):
                    nursery.start_soon(self._accept, listener, nursery, name=f"accept {_shown(host, port)}")
                task_status.started()
                await trio.sleep_forever()
        finally:
            for listener in bound:  # cancelled before anybody listened, nobody else closes them
                listener.socket.close()

    async def _accept(self, listener: trio.abc.Listener[Any], nursery: trio.Nursery) -> None:
        """Take sockets in, each into a task of its own. (Trio's listeners skip over connections reset before that.)"""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                log.error("no socket can be accepted for %g s: %s", ACCEPT_PAUSE_S, error.strerror)
                await trio.sleep(ACCEPT_PAUSE_S)
            else:
                nursery.start_soon(self.handle, stream, name=f"socket {_peer_name(stream)}")
                del stream  # the task's alone from here on

    def close_all(self, code: int, reason: str) -> None:
        """Begin to close every connection; sockets that come now are refused."""
        self._closing = True
        for end in tuple(self._channel_ends):
            end.close(code, reason)
        for connection, peer in tuple(self._connections.items()):
            if peer is not None:
                peer.retire(code, reason)
            else:
                connection.close(code, reason)

    async def wait_closed(self) -> None:
        """Return when no connection is left."""
        while self._connections or self._channel_ends:
            if self._emptied is None:
                self._emptied = trio.Event()
            await self._emptied.wait()

    async def _sweep(self) -> None:
        while True:
            due = trio.current_time() + SWEEP_S
            await trio.sleep_until(due)
            now = trio.current_time()
            self._look_after(now, now - due > LATE_WAKEUP_S)

    def _look_after(self, now: float, late: bool) -> None:
        for connection, peer in tuple(self._connections.items()):
            if late:
                connection.last_heard = now  # we were the ones who did not listen
            connection.check_liveness(now)
            if peer is not None and connection.closing:
                # its socket takes its time to close; what it has registered is nobody's any more
                self.core.release(peer)

    # -- one socket ---------------------------------------------------------------------------------------------------

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one fresh stream from its handshake to its end; also how tests connect without a socket."""
        upgraded = None
        try:
            if self._closing:
                return
            with self._waiting_room.enter():
                try:
                    upgraded = await accept(stream, deadline_s=self.handshake_timeout_s, route=self._route)
                except HandshakeError as error:
                    log.debug("handshake failed: %s", error)
            if upgraded is not None:
                await self.serve(stream, *upgraded)
        finally:
            await trio.aclose_forcefully(stream)

    def _route(self, request: Request) -> Refusal | None:
        """The decision before the upgrade (spec/protocol.md §1); on `/` and `/otel` every program gets that far."""
        refusal = self._origins.refuse(request, self.allowed_origins)
        if refusal is not None:
            self._refused += 1
            return refusal
        refusal = channel_sockets.route(self.core.channels, request)
        if refusal is not None or request.path in ("/", "", "/otel") or request.path.startswith(channel_sockets.PATH):
            return refusal
        return Refusal(404, "Not found: workers connect to /")

    def _refusal(self, path: str) -> tuple[int, str] | None:
        """Close code and reason for a socket that cannot be served now, whoever it is.

        While the engine drains no worker comes in any more: its SDK tries again, and then meets the next engine.
        """
        if self._closing or (self.core.draining and path in ("/", "")):
            return 1012, STOPPING
        if len(self._connections) + len(self._channel_ends) >= PEERS:
            return 1013, "too many connections"
        return None

    async def _turn_away(self, stream: trio.abc.Stream, framing: Framing, code: int, reason: str, text: bytes) -> None:
        """Say why, if there is more to say than the Close frame does, and close; what it sends is dropped."""
        connection = Connection(stream, framing, budget=self.core.budget, name="refused")
        if text:
            connection.push(text)
        connection.close(code, reason)
        await connection.run(lambda _: None)

    async def serve(self, stream: trio.abc.Stream, request: Request, framing: Framing, rest: bytes = b"") -> None:
        """Serve one upgraded stream to its end; also how tests connect workers over memory streams.

        Until it is admitted nothing of it is read or announced. An end of a channel is admitted by its key alone.
        """
        asked = channel_sockets.read_url(request)
        if isinstance(asked, Attach):
            return await self._serve_channel(stream, framing, rest, asked)
        session, address, admitted = None, _address(stream), False
        with self._waiting_room.enter():
            refusal, text = self._refusal(request.path), b""
            if refusal is None:
                try:
                    session = await admit(self.core, self.rules, request, address)
                except WireError as error:
                    self._refused += 1
                    log.warning("%s was refused: %s", address, error.message)
                    text = codec.encode_message(Error(error=ErrorBody(code=error.code, message=error.message)))
                    refusal = 1008, "not admitted"
                refusal = self._refusal(request.path) or refusal
            if refusal is not None:
                await self._turn_away(stream, framing, *refusal, text)
            admitted = refusal is None
        if not admitted:
            await trio.aclose_forcefully(stream)
        elif request.path == "/otel":
            await self._serve_telemetry(stream, framing, rest, guarded=session is not None)
        else:
            await self._serve_worker(stream, framing, rest, address, session)
        return None

    async def _serve_channel(self, stream: trio.abc.Stream, framing: Framing, rest: bytes, asked: Attach) -> None:
        refusal = self._refusal(channel_sockets.PATH)
        if refusal is not None:
            with self._waiting_room.enter():
                await self._turn_away(stream, framing, *refusal, b"")
            return
        end = channel_sockets.make_end(self.core.channels, asked, stream, framing, self.core.budget)
        connection = end if isinstance(end, Connection) else end.connection
        self._channel_ends[connection] = None
        try:
            if isinstance(end, Connection):
                await end.run(lambda _texts: None, rest=rest)
            else:
                await end.run(rest)
        except Exception as error:  # noqa: BLE001 - frame dispatch
            _report(f"{asked.direction} end of channel {asked.channel_id}", error)
        finally:
            del self._channel_ends[connection]
            self._tell_if_empty()

    async def _serve_worker(
        self, stream: trio.abc.Stream, framing: Framing, rest: bytes, address: str, session: Session | None
    ) -> None:
        worker_id = str(uuid.uuid4())
        peer: RemotePeer

        def on_binary(data: bytes) -> None:
            peer.on_binary(data)

        def on_oversize(report: Oversize) -> None:
            peer.on_oversize(report)

        def on_pong(_payload: bytes) -> None:
            peer.on_heard()

        connection = Connection(
            stream,
            framing,
            on_binary=on_binary,
            on_oversize=on_oversize,
            on_pong=on_pong,
            budget=self.core.budget,
            name=f"worker {worker_id}",
        )
        peer = RemotePeer(
            id=worker_id,
            cap=PEER_MESSAGE_DEFAULT,
            injects=True,
            core=self.core,
            connection=connection,
            session=session,
            middleware=self.rules.middleware_function_id,
            address=address,
            connected_at_ms=self.core.clock.wall_ms(),
        )
        self._connections[connection] = peer
        try:
            self.core.attach(peer)
            closed = await connection.run(peer.on_batch, rest=rest)
            level = logging.WARNING if closed.code in FAULTS else logging.DEBUG
            log.log(level, "connection of worker %s ended with %d: %s", peer.label, closed.code, closed.reason)
        except Exception as error:  # noqa: BLE001 - frame dispatch
            _report(f"connection of worker {peer.label}", error)
        finally:
            self.core.release(peer)
            self._forget(connection)

    async def _serve_telemetry(self, stream: trio.abc.Stream, framing: Framing, rest: bytes, *, guarded: bool) -> None:
        def on_binary(data: bytes) -> None:
            self._telemetry_frames += 1
            self.core.events.emit(TelemetryReceived(None, data, guarded))

        def oversize(_report: Oversize) -> None:
            connection.close(1009, "telemetry frame above the limit")

        connection = Connection(
            stream,
            framing,
            on_binary=on_binary,
            on_oversize=oversize,
            budget=self.core.budget,
            name=f"telemetry from {_peer_name(stream)}",
        )
        self._connections[connection] = None
        try:
            await connection.run(lambda _texts: None, rest=rest)
        except Exception as error:  # noqa: BLE001 - frame dispatch
            _report("telemetry connection", error)
        finally:
            self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        del self._connections[connection]
        self._tell_if_empty()

    def _tell_if_empty(self) -> None:
        if not self._connections and not self._channel_ends and self._emptied is not None:
            self._emptied.set()
            self._emptied = None

    def statistics(self) -> ListenerStatistics:
        """A frozen picture of the port."""
        return ListenerStatistics(
            handshakes=len(self._waiting_room),
            connections=len(self._connections),
            channel_ends=len(self._channel_ends),
            refused=self._refused,
            telemetry_frames=self._telemetry_frames,
        )


def _report(what: str, error: Exception) -> None:
    """A bug in frame dispatch has ended one connection instead of the engine; it was closed with 1011."""
    incident = uuid.uuid4().hex[:12]
    log.error("%s failed (incident %s)", what, incident, exc_info=error)


def _peer(stream: trio.abc.Stream) -> tuple[str, int] | str:
    """Host and port of the other side, or a word for what has none."""
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:
            return "gone"
        return str(host), int(port)
    return "memory"


def _address(stream: trio.abc.Stream) -> str:
    peer = _peer(stream)
    return peer if isinstance(peer, str) else peer[0]


def _peer_name(stream: trio.abc.Stream) -> str:
    peer = _peer(stream)
    return peer if isinstance(peer, str) else _shown(*peer)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


__all__ = ["Listener", "ListenerStatistics", "bind"]
