"""The stream port: accepts subscribers, admits them before the upgrade, and owns one nursery for each (§7.1, §7.2).

port ─ accept loops
     ├ sweeper: pings the silent, ends the dead
     └ socket <address>, one for each: handshake, then reader and writer · frames (joins, leaves) · pump (falls behind, catches up)
"""

import logging
import ssl
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ...config import Live, StreamSettings
from ...engine import Engine, Firing, LocalPeer
from ...engine.sessions import query_params
from ...protocol import NULL, Json
from ...protocol.limits import LATE_WAKEUP_S, STREAM_MESSAGE, STREAM_OUTBOX, STREAM_SOCKETS
from ...transport import Connection, Framing, HandshakeError, OriginGate, Outbox, Refusal, Request, WaitingRoom, accept
from .sessions import Session, ask_auth, read_path
from .subscribers import Hub
from .triggers import Watches

log = logging.getLogger(__name__)

SWEEP_S: Final = 1.0
PROTOCOLS: Final = ("Authorization",)
"""Browsers put their token beside this word in place of a header, and hang up unless it is agreed on (§7.1)."""
STOPPING: Final = "The engine is stopping.\n"


@frozen
class SocketStatistics:
    """Sockets in their `handshakes`, `open` ones; so far `refused`: by the auth function, for
    their origin, at a bound, or while draining.
    """

    handshakes: int
    open: int
    refused: int


@define(eq=False)
class _Accepting:
    """The accept loops on one set of listeners. `ended`: the listeners are closed, and their addresses free."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)


@define(eq=False)
class Sockets:
    """Everything accepted on the stream port."""

    core: Engine
    peer: LocalPeer
    firing: Firing
    hub: Hub
    watches: Watches
    settings: Live[StreamSettings]
    tls: ssl.SSLContext | None = None
    _open: dict[Connection, None] = field(factory=dict, init=False)
    _origins: OriginGate = field(factory=lambda: OriginGate("the stream port", "iii-stream"), init=False)
    _waiting_room: WaitingRoom = field(factory=WaitingRoom, init=False)
    _refused: int = field(default=0, init=False)
    _start_accepting: Callable[..., Awaitable[_Accepting]] | None = field(default=None, init=False)
    _accepting: _Accepting | None = field(default=None, init=False)

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and serve until cancelled; `started()` once clients can connect. Cancelled, sockets close with 1012."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep, name="stream sweeper")
            self._start_accepting = partial(nursery.start, self._accept, nursery, name="stream accept")
            try:
                await self.listen_on(listeners)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._start_accepting = None

    async def listen_on(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Accept on these from now on, then no longer on those before, which are closed; `serve` must be running.

        With no listeners nothing is accepted. Sockets that are open stay open.
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
        try:
            with accepting.scope:
                async with trio.open_nursery() as nursery:
                    served: list[Any] = [*listeners]
                    if self.tls is not None:  # the handshake comes with the first read, within the upgrade's deadline
                        served = [trio.SSLListener(one, self.tls, https_compatible=True) for one in listeners]
                    serve = partial(trio.serve_listeners, self.handle, served, handler_nursery=handlers)
                    await nursery.start(serve, name="stream accept loop")
                    task_status.started(accepting)
        finally:
            for listener in listeners:  # cancelled before anybody listened, nobody else closes them
                listener.socket.close()
            accepting.ended.set()

    async def _sweep(self) -> None:
        while True:
            due = trio.current_time() + SWEEP_S
            await trio.sleep_until(due)
            now = trio.current_time()
            for connection in tuple(self._open):
                if now - due > LATE_WAKEUP_S:
                    connection.last_heard = now  # we were the ones who did not listen
                connection.check_liveness(now)

    # -- one socket ---------------------------------------------------------------------------------------------------

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one fresh stream from its handshake to its end; also how tests connect without a socket."""
        contexts: list[Json] = []
        admitted = None
        try:
            with self._waiting_room.enter():
                try:
                    admitted = await accept(
                        stream,
                        route=self._route,
                        admit=partial(self._admit, stream, contexts),
                        protocols=PROTOCOLS,
                    )
                except HandshakeError as error:
                    log.debug("a stream subscriber's handshake failed: %s", error)
            if admitted is not None:
                request, framing, rest = admitted
                await self._serve(stream, request, framing, rest, contexts[0])
        except Exception as error:
            incident = uuid.uuid4().hex[:12]
            log.error("a stream subscriber's connection failed (incident %s)", incident, exc_info=error)
        finally:
            await trio.aclose_forcefully(stream)

    def _route(self, request: Request) -> Refusal | None:
        """Every path is served; an engine that stops takes nobody in, and pages of other origins may be kept out."""
        refusal = None
        if self.core.draining:
            refusal = Refusal(503, STOPPING, (("retry-after", "1"),))
        else:
            refusal = self._origins.refuse(request, self.settings.value.allowed_origins)
        self._refused += refusal is not None
        return refusal

    async def _admit(self, stream: trio.abc.Stream, contexts: list[Json], request: Request) -> Refusal | None:
        """Ask the auth function there is at this moment; its context goes to `contexts`."""
        function_id = self.settings.value.auth_function
        if function_id is None:
            contexts.append(NULL)
            return None
        refusals: list[Refusal] = []
        address = _address(stream)

        def refused(status: int, why: str) -> None:
            log.warning("%s was refused at the stream port: %s", address, why)
            refusals.append(Refusal(status, "Not admitted.\n" if status == 401 else "Try again later.\n"))

        context = await ask_auth(self.peer, function_id, Json.of(auth_input(request, address)), refused)
        if context is None:
            self._refused += 1
            return refusals[0]
        contexts.append(context)
        return None

    async def _serve(
        self, stream: trio.abc.Stream, request: Request, framing: Framing, rest: bytes, context: Json
    ) -> None:
        session: Session

        def on_binary(data: bytes) -> None:
            session.on_binary(data)

        connection = Connection(
            stream,
            framing,
            outbox=Outbox(busy_mark=STREAM_OUTBOX),
            on_binary=on_binary,
            budget=self.core.budget,
            name=f"subscriber {_address(stream)}",
        )
        connection.message_limit = STREAM_MESSAGE
        if len(self._open) >= STREAM_SOCKETS:
            self._refused += 1
            connection.close(1013, "too many subscribers")
            await connection.run(lambda _: None)
            return
        size = self.settings.value.adapter.config.channel_size
        subscriber = self.hub.open(connection, context, size)
        session = Session(connection, subscriber, self.hub, self.watches, self.peer, self.firing)
        self._open[connection] = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.serve, read_path(request.path), name=f"{connection.name} frames")
                nursery.start_soon(subscriber.pump, name=f"{connection.name} pump")
                await connection.run(session.on_frames, rest=rest)
                nursery.cancel_scope.cancel()
        finally:
            del self._open[connection]
            # of a module that stops nobody hears any more: what it calls is cancelled with it
            session.end(told=self._start_accepting is not None)

    def statistics(self) -> SocketStatistics:
        """A frozen picture of the port."""
        return SocketStatistics(len(self._waiting_room), len(self._open), self._refused)


def auth_input(request: Request, address: str) -> dict[str, object]:
    """What an auth function is asked (§7.2). The last of repeated headers counts; those that are not ASCII are left out."""
    headers = {name.lower(): value for name, value in request.headers if value.isascii()}
    return {"headers": headers, "path": request.path, "query_params": query_params(request.query), "addr": address}


def _address(stream: trio.abc.Stream) -> str:
    """Host and port of the other side, or a word for what has none."""
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if isinstance(stream, trio.SocketStream):
        try:
            host, port = stream.socket.getpeername()[:2]
        except OSError:
            return "gone"
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return "memory"
