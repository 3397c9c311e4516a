"""The module `stream`: functions, trigger types and the port of the subscribers, put together (spec/state-stream.md)."""

import logging
import ssl
from contextlib import AsyncExitStack
from ipaddress import ip_address

import trio
from attrs import define, field, frozen

from ...config import Live, StreamSettings
from ...engine import Engine, Firing, bind, open_local
from ...engine.firing import FiringStatistics
from ...protocol.errors import ConfigError
from ...stores import Store
from ..outbox import OutboxStatistics
from ..remote import Remote
from . import formats
from .durable import make_durable
from .events import Group, Stamps
from .functions import StreamFunctions
from .providers import Providers
from .snapshots import Snapshots
from .sockets import Sockets, SocketStatistics
from .subscribers import Hub, HubStatistics
from .triggers import Watches

log = logging.getLogger(__name__)

WHAT = "`port` of the stream worker"


@frozen
class StreamStatistics:
    """What the module has done and holds; the parts are None while it does not run.

    `writes` that caused an event, `sends`, operations that `failed`, calls of `providers` under way, `bindings` of the
    three trigger types, durable ones whose worker is away included; `outbox`: events on their way into the queue.
    """

    writes: int
    sends: int
    failed: int
    providers: int
    bindings: int
    hub: HubStatistics | None
    sockets: SocketStatistics | None
    firing: FiringStatistics | None
    outbox: OutboxStatistics | None


@define(eq=False)
class _Parts:
    """What there is while the module runs."""

    functions: StreamFunctions
    hub: Hub
    sockets: Sockets
    firing: Firing


@define(eq=False)
class StreamModule:
    """The module. `store` holds the streams, each in a space of its own; the caller keeps it open for longer than `run`.

    With a `remote` that engine keeps them, but for those that providers here keep, and `store` is not used.

    With `tls` the port speaks TLS and nothing else. With `listen` off nothing is bound, and `handle` serves subscribers
    over streams of one's own. `addresses`: the (host, port) pairs it listens on, empty until it does.
    """

    settings: Live[StreamSettings]
    store: Store
    listen: bool = True
    remote: Remote | None = None
    tls: ssl.SSLContext | None = None
    addresses: tuple[tuple[str, int], ...] = field(default=(), init=False)
    _watches: Watches = field(factory=Watches, init=False)
    _parts: _Parts | None = field(default=None, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is told once subscribers can connect.

        Raises `ConfigError` for an address that cannot be bound and `StoreError` when the store cannot be read; nothing
        has been provided then.
        """
        listeners = await self._bind(self.settings.value) if self.listen else []
        try:
            async with open_local(core, "stream") as peer, AsyncExitStack() as stack:
                providers, stamps, firing = Providers(core, peer), Stamps(core.clock.wall_ms), Firing(peer)
                hub = Hub(stamps, Snapshots(self.store, providers, _warn, self.remote))
                durable = make_durable(core, peer, self.store, self._watches, stamps, remote=self.remote is not None)
                stack.callback(durable.outbox.close)
                functions = StreamFunctions(
                    self.settings, self.store, providers, self._watches, stamps, hub, firing, durable, self.remote
                )
                sockets = Sockets(core, peer, firing, hub, self._watches, self.settings, self.tls)
                self._parts = _Parts(functions, hub, sockets, firing)
                if self.remote is None:
                    await durable.provider.durable.load()
                    await durable.outbox.open()
                    durable.register(peer)
                functions.register(peer)
                peer.provide(
                    "stream",
                    durable.provider,
                    description="Calls a function with every event of a stream.",
                    config_format=formats.STREAM_CONFIG,
                    call_format=formats.STREAM_EVENT,
                )
                peer.provide(
                    "stream:join",
                    self._watches.join,
                    description="Asks a function whether a subscriber may join a stream.",
                    config_format=formats.SUBSCRIPTION_CONFIG,
                    call_format=formats.SUBSCRIPTION_EVENT,
                    return_format=formats.JOIN_RESULT,
                )
                peer.provide(
                    "stream:leave",
                    self._watches.leave,
                    description="Tells a function that a subscriber has left a stream.",
                    config_format=formats.SUBSCRIPTION_CONFIG,
                    call_format=formats.SUBSCRIPTION_EVENT,
                )
                with functions.following():
                    await sockets.serve(listeners, task_status=task_status)
        finally:
            for listener in listeners:
                listener.socket.close()
            self.addresses = ()
            self._parts = None

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one subscriber over a stream of one's own, from the handshake on; the module must be running."""
        assert self._parts is not None, "the module does not run"
        await self._parts.sockets.handle(stream)

    async def rebind(self, settings: StreamSettings) -> None:
        """Listen where `settings` say, then no longer where it did; nothing to do while the module does not run.

        Open sockets stay. Raises `ConfigError` for an address that cannot be bound: nothing has changed then. Only where
        the port stays and the host changes, the old one is released first, for both cannot be had at once.
        """
        if self._parts is None:
            return
        sockets, before = self._parts.sockets, self.addresses
        same_port = bool(before) and settings.port == before[0][1]
        if same_port:
            await sockets.listen_on(())
        try:
            listeners = await self._bind(settings)
        except ConfigError:
            if same_port:
                await sockets.listen_on(await self._bind(self.settings.value))
            raise
        await sockets.listen_on(listeners)

    async def _bind(self, settings: StreamSettings) -> list[trio.SocketListener]:
        listeners = await bind(settings.host, settings.port, WHAT)
        self.addresses = tuple(listener.socket.getsockname()[:2] for listener in listeners)
        for host, port in self.addresses:
            url = f"{'ws' if self.tls is None else 'wss'}://{f'[{host}]' if ':' in host else host}:{port}"
            log.info("stream subscribers connect to %s", url)
            if not ip_address(host).is_loopback and settings.auth_function is None:
                log.warning(
                    "%s IS OPEN TO THE NETWORK, WITHOUT AN AUTH FUNCTION: who reaches it can read every stream", url
                )
        return listeners

    def statistics(self) -> StreamStatistics:
        """A frozen picture of data, subscribers and deliveries."""
        parts, bindings = self._parts, len(self._watches)
        if parts is None:
            return StreamStatistics(0, 0, 0, 0, bindings, None, None, None, None)
        functions = parts.functions
        return StreamStatistics(
            writes=functions.writes,
            sends=functions.sends,
            failed=functions.failed,
            providers=functions.providers.running,
            bindings=bindings + len(functions.durable.provider.durable),
            hub=parts.hub.statistics(),
            sockets=parts.sockets.statistics(),
            firing=parts.firing.statistics(),
            outbox=functions.durable.outbox.statistics(),
        )


def _warn(group: Group, item: str | None, why: str) -> None:
    stream, group_id = group
    log.warning("no snapshot of stream %s, group %s, item %s could be read: %s", stream, group_id, item, why)
