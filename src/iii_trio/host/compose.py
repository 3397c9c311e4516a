"""From a configuration to a running process: settings, stores, engine, modules, worker port, children, and the way down.

serve ─ stores ─ engine ─ modules ─ worker port (last: an open port means ready) ─ children
stop  ─ drain: root work stops, nested calls go on ─ worker sockets closed 1012 · children · HTTP ─ modules ─ stores

The way down takes `shutdown_grace_ms`, whatever hangs: `DRAIN_SHARE` of it is for running calls, `ENDING_SHARE` for
sockets, children and HTTP connections to end, all at the same time, and the rest for what is left. Only the stores are
not hurried: what was acknowledged is on disk anyway, and what was not is being written.
"""

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from ..config import EngineConfig, HttpSettings, Live
from ..engine import Engine, Listener, open_engine
from ..engine.engine import EngineStatistics
from ..engine.listener import ListenerStatistics
from ..modules.http import HttpModule
from ..modules.introspection import IntrospectionModule
from ..modules.pubsub import PubSubModule
from ..modules.queue import QueueModule
from ..modules.state import StateModule
from ..stores import SqliteStore, Store, StoreStatistics, open_memory, open_sqlite
from .access import WorkerPort
from .admin import AdminModule
from .backups import FOLDER, BackupModule
from .children import Children, resolve_scripts
from .plan import Overrides, Plan, make_plan
from .signals import StopSignals
from .supervise import Module, Supervised, SupervisedStatistics

log = logging.getLogger(__name__)

DRAIN_SHARE: Final = 0.7
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
    """A running engine and its parts. `ending_s`: how long (s) sockets may take to close when it stops."""

    core: Engine
    ending_s: float
    stores: tuple[Store, ...]
    modules: Mapping[str, Supervised]
    listeners: tuple[Listener, ...]
    http: HttpModule | None
    _ends_at: float | None = field(default=None, init=False)

    @property
    def worker_url(self) -> str:
        """Where workers of this machine connect."""
        main = self.listeners[0]
        host, port = main.addresses[0]
        return _url({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, secure=main.tls is not None)

    def child_environment(self) -> dict[str, str]:
        """What the environment of a worker on this machine needs to connect."""
        token = self.listeners[0].rules.token
        return {"III_URL": self.worker_url, **({} if token is None else {"III_TOKEN": token})}

    def ports(self) -> dict[str, tuple[str, int]]:
        """The first address of each port: `worker`, and `http` where it is served."""
        ports = {"worker": self.listeners[0].addresses[0]}
        if self.http is not None:
            ports["http"] = self.http.addresses[0]
        return ports

    def close(self) -> None:
        """Begin to close what faces outward: worker sockets, with a code after which every SDK reconnects, and HTTP."""
        if self._ends_at is not None:
            return
        self._ends_at = trio.current_time() + self.ending_s
        for listener in self.listeners:
            listener.close_all(1012, STOPPING)
        if "http" in self.modules:
            self.modules["http"].stop()

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
    plan = make_plan(config, overrides or Overrides())
    for note in plan.notes:
        log.warning("%s", note)
    ports = [WorkerPort.of(settings, config.token) for settings in plan.listeners]
    ending_s = config.shutdown_grace_ms / 1000 * ENDING_SHARE
    async with AsyncExitStack() as stack:
        stores = _Stores(stack)
        makers = await _modules_with_stores(plan, stores)
        if plan.pubsub is not None:
            makers["pubsub"] = partial(PubSubModule, Live(plan.pubsub))
        makers["introspection"] = IntrospectionModule
        makers["backups"] = partial(BackupModule, plan.data_dir / FOLDER, stores.kept, {})
        http = None if plan.http is None else HttpModule(Live(plan.http), grace_s=ending_s)
        if http is not None:
            makers["http"] = partial(_again, http)
        core = await stack.enter_async_context(
            open_engine(grace_s=config.grace_ms / 1000, default_timeout_s=config.default_invocation_timeout_ms / 1000)
        )
        if config.slow_call_ms:
            core.invocations.slow_s = config.slow_call_ms / 1000
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        modules = {name: Supervised(core, name, make) for name, make in makers.items()}
        for name, supervised in modules.items():
            await nursery.start(supervised.run, name=f"supervisor of {name}")
        if http is not None:
            _keep_port(http)
        listeners = tuple([await _listen(core, nursery, port) for port in ports])
        core.serving()
        running = Running(core, ending_s, tuple(stores.opened.values()), modules, listeners, http)
        if plan.admin is not None:
            make_admin = partial(AdminModule, Live(plan.admin), running.statistics)
            modules["admin"] = Supervised(core, "admin", make_admin)
            await nursery.start(modules["admin"].run, name="supervisor of admin")
        try:
            yield running
        finally:
            running.close()
            await running.wait_closed()


@define(eq=False)
class _Stores:
    """The stores of this process, each opened once; `stack` closes them. `kept`: those on disk, by name."""

    stack: AsyncExitStack
    opened: dict[Path | str, Store] = field(factory=dict)
    kept: dict[str, SqliteStore] = field(factory=dict)

    async def open(self, name: str, file: Path | None) -> Store:
        """The store in a file, or one in memory for `name` alone."""
        key = name if file is None else file
        if key not in self.opened:
            opening = open_sqlite(key) if isinstance(key, Path) else open_memory()
            self.opened[key] = await self.stack.enter_async_context(opening)
        store = self.opened[key]
        if isinstance(store, SqliteStore):
            self.kept[name] = store
        return store


async def _modules_with_stores(plan: Plan, stores: _Stores) -> dict[str, Callable[[], Module]]:
    makers: dict[str, Callable[[], Module]] = {}
    files = plan.store_files()
    if plan.state is not None:
        store = await stores.open("state", files.get("state"))
        makers["state"] = partial(StateModule, Live(plan.state), store.key_value("state"))
    if plan.queue is not None:
        store = await stores.open("queue", files.get("queue"))
        makers["queue"] = partial(QueueModule, Live(plan.queue), store.job_log())
    return makers


def _again(http: HttpModule) -> HttpModule:
    """The HTTP module is one object for all its lives: who holds it finds the addresses of the present one."""
    return http


def _keep_port(http: HttpModule) -> None:
    """A port that the system chose is this engine's from now on, also when the module has to start again."""
    settings: Live[HttpSettings] = http.settings
    settings.set(evolve(settings.value, port=http.addresses[0][1]))


async def _listen(core: Engine, nursery: trio.Nursery, worker_port: WorkerPort) -> Listener:
    listener = worker_port.listener(core)
    await nursery.start(listener.run, name="worker port")
    for host, port in listener.addresses:
        url = _url(host, port, secure=listener.tls is not None)
        log.info("workers connect to %s%s", url, ", with a token" if listener.rules.token is not None else "")
        if not ip_address(host).is_loopback and not listener.rules.restricts:
            log.warning(
                "%s IS OPEN TO THE NETWORK, WITHOUT ACCESS CONTROL: who reaches it can call and replace everything", url
            )
    return listener


def _url(host: str, port: int, *, secure: bool) -> str:
    scheme = "wss" if secure else "ws"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


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
                    resolved, running.child_environment(), _log_line, reload, stop_grace_s=running.ending_s
                )
                await children.start(service.run, name="children")
            on_ready(running)
            up = True
            await asked.wait()
            log.info("%s: stopping, within %.1f s", stop.name, grace_s)
            if not await running.core.drain(grace_s * DRAIN_SHARE):
                log.warning("%d calls did not end in time and are cancelled", running.core.statistics().running)
            running.close()
            children.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    log.info("stopped" if up else f"stopped by {stop.name} before everything was up")


def _log_line(name: str, line: str) -> None:
    log.info("%s", line, extra={"source": name})
