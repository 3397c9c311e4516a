"""From a configuration to a running process: settings, stores, engine, modules, worker port, children, and the way down.

serve ─ stores ─ engine ─ modules ─ worker port (last: an open port means ready) ─ children
stop  ─ drain: root work stops, nested calls go on ─ worker sockets closed 1012 · children · HTTP ─ modules ─ stores

The way down takes `shutdown_grace_ms`, whatever hangs: `DRAIN_SHARE` of it is for running calls, `UNWIND_SHARE` for
those that are cancelled then, so that they can clean up, `ENDING_SHARE` for sockets, children and HTTP connections to
end, all at the same time, and the rest for what is left. Only the stores are not hurried: what was acknowledged is on
disk anyway, and what was not is being written.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio
from attrs import define, field, frozen

from ..config import EngineConfig, Live
from ..engine import Engine, Listener, open_engine
from ..engine.engine import EngineStatistics
from ..engine.listener import ListenerStatistics
from ..modules.configuration import ConfigurationModule, EntryFiles, Registry
from ..modules.http import HttpModule
from ..modules.introspection import IntrospectionModule
from ..stores import Folder, Store, StoreStatistics
from .adopt import Adoption
from .backups import FOLDER, BackupModule
from .checks import check_plan, remarks
from .children import Children, resolve_scripts
from .crew import MAKERS, Crew
from .output import LEVELS_VARIABLE, ScriptLog
from .plan import Overrides, Plan, make_plan
from .ports import Ports, address_url
from .reload import Reload
from .signals import StopSignals
from .stores import open_stores
from .supervise import Supervised, SupervisedStatistics

log = logging.getLogger(__name__)

DRAIN_SHARE: Final = 0.6
UNWIND_SHARE: Final = 0.1
ENDING_SHARE: Final = 0.2
STOPPING: Final = "the engine is stopping"


@frozen
class HostStatistics:
    """Everything that runs in this process."""

    engine: EngineStatistics
    modules: tuple[SupervisedStatistics, ...]
    stores: tuple[StoreStatistics, ...]
    listeners: tuple[ListenerStatistics, ...]


@define(eq=False)
class Running:
    """A running engine and its parts. `ending_s`: how long (s) sockets may take to close when it stops.

    Those in `on_move` are called when a port may have become another one; they must not wait or raise.
    """

    core: Engine
    ending_s: float
    crew: Crew
    worker_ports: Ports
    adoption: Adoption
    on_move: list[Callable[[], None]] = field(factory=list)
    _ends_at: float | None = field(default=None, init=False)

    @property
    def modules(self) -> dict[str, Supervised]:
        """The supervisor of every built-in worker by its canonical name."""
        return self.crew.modules

    @property
    def http(self) -> HttpModule | None:
        """The HTTP module, where one runs."""
        return self.crew.http

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The worker ports, the main one first."""
        return self.worker_ports.listeners

    @property
    def stores(self) -> tuple[Store, ...]:
        """Every store that is open."""
        return tuple(self.crew.stores.opened.values())

    @property
    def worker_url(self) -> str:
        """Where workers of this machine connect."""
        main = self.listeners[0]
        host, port = main.addresses[0]
        return address_url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, secure=main.tls is not None)

    def child_environment(self) -> dict[str, str]:
        """What the environment of a worker on this machine needs to connect."""
        token = self.listeners[0].rules.token
        return {"III_URL": self.worker_url, LEVELS_VARIABLE: "1", **({} if token is None else {"III_TOKEN": token})}

    def ports(self) -> dict[str, tuple[str, int]]:
        """The first address of each port: `worker`, and `http` and `stream` where they are served at the moment."""
        ports = {"worker": self.listeners[0].addresses[0]}
        for name, module in (("http", self.http), ("stream", self.crew.stream)):
            if module is not None and module.addresses:
                ports[name] = module.addresses[0]
        return ports

    def moved(self) -> None:
        """A port may have become another one."""
        for tell in tuple(self.on_move):
            tell()

    def close(self) -> None:
        """Begin to close what faces outward: worker sockets, with a code after which every SDK reconnects, and HTTP."""
        if self._ends_at is not None:
            return
        self._ends_at = trio.current_time() + self.ending_s
        for listener in self.listeners:
            listener.close_all(1012, STOPPING)
        for name in ("http", "stream"):
            if name in self.modules:
                self.modules[name].stop()

    async def wait_closed(self) -> None:
        """Wait for the worker sockets, no longer than `ending_s` after `close`, and also when cancelled."""
        assert self._ends_at is not None
        with trio.CancelScope(deadline=self._ends_at, shield=True):
            for listener in self.listeners:
                await listener.wait_closed()

    def statistics(self) -> HostStatistics:
        """A frozen picture of everything."""
        return HostStatistics(
            engine=self.core.statistics(),
            modules=tuple(module.statistics() for module in self.modules.values()),
            stores=tuple(store.statistics() for store in self.stores),
            listeners=tuple(listener.statistics() for listener in self.listeners),
        )


@asynccontextmanager
async def open_host(config: EngineConfig, overrides: Overrides | None = None) -> AsyncIterator[Running]:
    """Everything but children and signals, for the length of the block; leaving it closes workers, modules and stores.

    Raises `ConfigError`, `StoreError` or `StartError` with a text for the user when something cannot start; what had
    started is closed then.
    """
    overrides = overrides or Overrides()
    plan = make_plan(config, overrides)
    wanted = check_plan(plan, config.token)
    for note in (*plan.notes, *remarks(plan)):
        log.warning("%s", note)
    ending_s = config.shutdown_grace_ms / 1000 * ENDING_SHARE
    registry = await _open_registry(plan, config.source)
    adoption = Adoption(registry)
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(open_stores())
        core = await stack.enter_async_context(
            open_engine(grace_s=config.grace_ms / 1000, default_timeout_s=config.default_invocation_timeout_ms / 1000)
        )
        core.budget.limit = config.max_buffered_bytes
        if config.slow_call_ms:
            core.invocations.slow_s = config.slow_call_ms / 1000
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        ports = Ports(core, nursery, config.token, ending_s)
        crew = Crew(
            core=core,
            nursery=nursery,
            stores=stores,
            adoption=adoption,
            data_dir=plan.data_dir,
            ending_s=ending_s,
            picture=lambda: running.statistics(),
        )
        running = Running(core, ending_s, crew, ports, adoption)
        ports.on_change = crew.on_change = running.moved
        configuration = Live(plan.configuration)
        await _start_crew(crew, plan, ConfigurationModule(configuration, registry))
        adoption.log_sources(plan.blocks.values())
        for worker_port in wanted:
            await ports.add(worker_port)
        core.serving()
        if config.source is not None:
            reload = Reload(config, overrides, plan, crew, ports, adoption, configuration)
            await crew.supervise("reload", lambda: reload)
        try:
            yield running
        finally:
            running.close()
            await running.wait_closed()


async def _open_registry(plan: Plan, source: Path | None) -> Registry:
    """The configuration as it is stored: what the workers are made from. Raises `StoreError`."""
    directory = plan.entries_directory()
    files = None if directory is None else EntryFiles(directory.absolute(), source)
    registry = Registry(files=files, wall_ms=lambda: time.time_ns() // 1_000_000)
    await registry.load()
    return registry


async def _start_crew(crew: Crew, plan: Plan, configuration: ConfigurationModule) -> None:
    await crew.supervise("configuration", lambda: configuration)
    await crew.supervise("introspection", IntrospectionModule)
    files = configuration.registry.files
    folders = {} if files is None else {"configuration": Folder(files.directory, files.files)}
    await crew.supervise("backups", partial(BackupModule, crew.data_dir / FOLDER, crew.stores.kept, folders))
    for name in MAKERS:
        block = plan.blocks.get(name)
        if block is not None:
            await crew.start(block)
    await crew.supervise("settings", lambda: crew.adoption)


async def serve(
    config: EngineConfig,
    overrides: Overrides | None = None,
    *,
    stop: StopSignals,
    scripts: tuple[str, ...] = (),
    reload: bool = False,
    on_ready: Callable[[Running], None] = lambda running: None,
) -> None:
    """Run until the first stop signal, then drain and stop.

    `scripts` run as supervised children once the engine serves, with III_URL set; what they print goes to the log.
    `on_ready` is called when everything listens. Raises `ConfigError`, `StoreError`, `StartError` or `ScriptError` when
    something cannot start; nothing is left running then.
    """
    resolved = resolve_scripts(scripts)
    grace_s = config.shutdown_grace_ms / 1000
    asked, up = trio.Event(), False

    async def watch() -> None:
        await stop.wait()
        asked.set()
        if not up:
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, name="stop signals")
        async with open_host(config, overrides) as running, trio.open_nursery() as children:
            if resolved:
                service = Children(
                    resolved, running.child_environment(), ScriptLog().line, reload, stop_grace_s=running.ending_s
                )
                await children.start(service.run, name="children")
                running.on_move.append(lambda: service.move(running.child_environment()))
            on_ready(running)
            up = True
            await asked.wait()
            log.info("%s: stopping, within %.1f s", stop.name, grace_s)
            await running.core.drain(grace_s * DRAIN_SHARE, grace_s * UNWIND_SHARE)
            running.close()
            children.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    log.info("stopped" if up else f"stopped by {stop.name} before everything was up")
