"""The crew: every built-in worker that runs, made from its settings, supervised, changed and ended one by one."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, evolve, field

from ..config import LOOPBACK, Live, StateAdapter, StreamAdapter
from ..engine import Engine
from ..modules.bridge import Bridge
from ..modules.http import HttpModule, check_settings
from ..modules.http_functions import HttpFunctionsModule
from ..modules.pubsub import PubSubModule
from ..modules.queue import QueueModule
from ..modules.state import StateModule
from ..modules.stream import StreamModule
from ..protocol.errors import IIIError
from .access import server_context
from .admin import AdminModule
from .adopt import Adopted, Adoption, Hands
from .bridges import Bridges
from .definitions import QueueEntry
from .plan import Block, file_in
from .stores import Stores
from .supervise import Module, Supervised

log = logging.getLogger(__name__)

Make = Callable[[], Module]


@define(eq=False, kw_only=True)
class Crew:
    """The built-in workers. `modules` has the supervisor of each by its canonical name, in the order of their starts.

    `ending_s`: how long (s) HTTP requests may take to end when the port stops. `picture`: what the admin port counts.
    `on_change` is called when a worker has been started, ended or changed in what it listens on.
    """

    core: Engine
    nursery: trio.Nursery
    stores: Stores
    adoption: Adoption
    data_dir: Path
    ending_s: float
    picture: Callable[[], object]
    on_change: Callable[[], None] = lambda: None
    modules: dict[str, Supervised] = field(factory=dict)
    bridges: Bridges = field(factory=Bridges, init=False)

    async def start(self, block: Block) -> None:
        """Start the worker of a block. Raises `StartError`, `StoreError` or `ConfigError`, with nothing left behind."""
        adopted = self.adoption.read(block, CHECKS.get(block.entry.name, lambda _: None))
        try:
            try:
                await self._start(adopted)
            except IIIError as error:
                # what somebody stored must not keep the engine from starting, nor open a port that was closed to others
                if not adopted.stored or _widens(adopted.declared, block.settings):
                    raise
                log.error("the stored settings of %s are not used: %s", block.entry.label, error)
                adopted.without_stored()
                await self._start(adopted)
            await self._end_bridges(adopted.name)
        except BaseException:
            self.adoption.forget(adopted)
            raise
        self.on_change()

    async def _start(self, adopted: Adopted) -> None:
        make = await MAKERS[adopted.name](self, adopted.live, adopted.declared)
        adopted.hands = self._hands(adopted)
        await self.supervise(adopted.name, make)
        adopted.live.set(self._bound(adopted, adopted.live.value))
        adopted.note_chosen()

    async def supervise(self, name: str, make: Make) -> None:
        """Start a module that has no settings of its own. Raises `StartError`."""
        supervised = Supervised(self.core, name, make)
        await self.nursery.start(supervised.run, name=f"supervisor of {name}")
        self.modules[name] = supervised

    async def stop(self, name: str) -> None:
        """End a worker for good: its functions and trigger types go, bindings on them are parked."""
        await self._end(name)
        adopted = self.adoption.get(name)
        if adopted is not None:
            await self.adoption.withdraw(adopted)
        await self._end_bridges(name)
        self.on_change()

    async def _end(self, name: str) -> None:
        supervised = self.modules.pop(name)
        supervised.stop()
        await supervised.ended.wait()
        self.core.modules.pop(name, None)

    async def remote(self, worker: str, adapter: StateAdapter | StreamAdapter) -> Bridge | None:
        """The link to the engine that a worker's adapter names; None if it names none. Raises `ConfigError`.

        It stays until `_end_bridges` finds that the worker has come to run on another one, or not at all.
        """
        if adapter.bridge is None:
            return None
        async with self.bridges.busy:
            name, bridge = self.bridges.get(*adapter.bridge)
            self.bridges.promised[worker] = bridge
            if name not in self.modules:
                # one object for all its lives: who holds it finds the present one
                await self.supervise(name, lambda: bridge)
        return bridge

    async def _end_bridges(self, worker: str) -> None:
        """A worker runs on what it holds now: end links that nobody holds any more, nor is about to."""
        async with self.bridges.busy:
            self.bridges.promised.pop(worker, None)
            workers = [self.modules[name].module for name in ("state", "stream") if name in self.modules]
            held = [module.remote for module in workers if isinstance(module, StateModule | StreamModule)]
            for name in self.bridges.drop([*held, *self.bridges.promised.values()]):
                await self._end(name)

    @property
    def http(self) -> HttpModule | None:
        """The HTTP module, or None where none runs."""
        return self._http() if "http" in self.modules else None

    @property
    def stream(self) -> StreamModule | None:
        """The stream module, or None where none runs."""
        module = self.modules["stream"].module if "stream" in self.modules else None
        assert module is None or isinstance(module, StreamModule)
        return module

    def _http(self) -> HttpModule:
        module = self.modules["http"].module
        assert isinstance(module, HttpModule)
        return module

    def _hands(self, adopted: Adopted) -> Hands:
        rebind = partial(self._become, REBINDS.get(adopted.name, Crew._restart), adopted)
        check = CHECKS.get(adopted.name, lambda _: None)
        return Hands(check=check, rebind=rebind, restart=partial(self._become, Crew._restart, adopted))

    async def _become(
        self, change: Callable[["Crew", Adopted, Any], Awaitable[Any]], adopted: Adopted, settings: Any
    ) -> Any:
        """Carry a change out and tell of it, also of one that has failed half-way."""
        try:
            return await change(self, adopted, settings)
        finally:
            self.on_change()

    async def _restart(self, adopted: Adopted, settings: Any) -> Any:
        """Make everything it needs anew, then start it again on that. Raises `IIIError`; it runs as before then."""
        before = adopted.live.value
        try:
            make = await MAKERS[adopted.name](self, adopted.live, settings)
            adopted.live.set(settings)
            await self.modules[adopted.name].replace(make)
        except BaseException:
            adopted.live.set(before)
            raise
        finally:
            await self._end_bridges(adopted.name)
        return self._bound(adopted, settings)

    def _bound(self, adopted: Adopted, settings: Any) -> Any:
        """The settings with the port that is bound: it stays this engine's, also when the module has to start again."""
        module = self.modules[adopted.name].module
        if isinstance(module, HttpModule | StreamModule | AdminModule) and module.addresses:
            return evolve(settings, port=module.addresses[0][1])
        return settings

    async def _rebind_http(self, adopted: Adopted, settings: Any) -> Any:
        await self._http().rebind(settings)
        return self._bound(adopted, settings)

    async def _rebind_stream(self, adopted: Adopted, settings: Any) -> Any:
        stream = self.stream
        if stream is None or settings.adapter != adopted.declared.adapter or settings.tls != adopted.declared.tls:
            return await self._restart(adopted, settings)
        await stream.rebind(settings)
        return self._bound(adopted, settings)


def _widens(stored: Any, otherwise: Any) -> bool:
    """Whether a port that was to be reachable from this machine alone would be reachable from others."""
    hosts = [getattr(settings, "host", LOOPBACK) for settings in (stored, otherwise)]
    return _is_loopback(hosts[0]) and not _is_loopback(hosts[1])


def _is_loopback(host: str) -> bool:
    try:
        return host == LOOPBACK or ip_address(host).is_loopback
    except ValueError:
        return False


async def _make_state(crew: Crew, live: Live[Any], settings: Any) -> Make:
    directory = settings.adapter.directory(crew.data_dir / "state")
    store = await crew.stores.open("state", None if directory is None else file_in(directory))
    return partial(StateModule, live, store.key_value("state"), await crew.remote("state", settings.adapter))


async def _make_stream(crew: Crew, live: Live[Any], settings: Any) -> Make:
    directory = settings.adapter.directory(crew.data_dir / "stream")
    store = await crew.stores.open("stream", None if directory is None else file_in(directory))
    tls = None if settings.tls is None else server_context(settings.tls)
    return partial(StreamModule, live, store, remote=await crew.remote("stream", settings.adapter), tls=tls)


async def _make_queue(crew: Crew, live: Live[Any], settings: Any) -> Make:
    directory = settings.adapter.directory(crew.data_dir / "queue")
    store = await crew.stores.open("queue", None if directory is None else file_in(directory))
    keeper = None if crew.adoption.registry.files is None else QueueEntry(crew.adoption)
    return partial(QueueModule, live, store.job_log(), keeper)


async def _make_http(crew: Crew, live: Live[Any], settings: Any) -> Make:
    # one object for all its lives: who holds it finds the addresses of the present one
    tls = None if settings.tls is None else server_context(settings.tls)
    http = HttpModule(live, grace_s=crew.ending_s, tls=tls)
    return lambda: http


async def _make_admin(crew: Crew, live: Live[Any], settings: Any) -> Make:
    return partial(AdminModule, live, crew.picture)


async def _make_pubsub(crew: Crew, live: Live[Any], settings: Any) -> Make:
    return partial(PubSubModule, live)


async def _make_http_functions(crew: Crew, live: Live[Any], settings: Any) -> Make:
    return partial(HttpFunctionsModule, live)


MAKERS: Final[Mapping[str, Callable[[Crew, Live[Any], Any], Awaitable[Make]]]] = {
    "state": _make_state,
    "stream": _make_stream,
    "queue": _make_queue,
    "pubsub": _make_pubsub,
    "http-functions": _make_http_functions,
    "http": _make_http,
    "admin": _make_admin,
}
"""How each worker with settings is made from them, in the order of their starts."""

REBINDS: Final[Mapping[str, Callable[[Crew, Adopted, Any], Awaitable[Any]]]] = {
    "http": Crew._rebind_http,
    "stream": Crew._rebind_stream,
}
"""How a worker with a port listens elsewhere; all others are started again."""

CHECKS: Final[Mapping[str, Callable[[Any], None]]] = {"http": check_settings}
"""What the settings class of a worker admits and this release cannot do."""
