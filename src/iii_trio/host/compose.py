"""From a configuration to a running process: settings, stores, engine, modules, worker port, children, and the way down.

serve ─ stores ─ engine ─ modules ─ worker port (last: an open port means ready) ─ children
stop  ─ drain: root work stops, nested calls go on ─ grace ─ sockets closed 1012 ─ children ─ modules ─ stores
"""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, evolve, field

from ..config import (
    EngineConfig,
    Entry,
    HttpSettings,
    Live,
    PubSubSettings,
    QueueModuleSettings,
    StateSettings,
    WorkerManagerSettings,
    read_settings,
)
from ..engine import Engine, Listener, open_engine
from ..modules.http import HttpModule
from ..modules.introspection import IntrospectionModule
from ..modules.pubsub import PubSubModule
from ..modules.queue import QueueModule
from ..modules.state import StateModule
from ..protocol.errors import ConfigError
from ..protocol.limits import CLOSE_S
from ..stores import Store, open_memory, open_sqlite
from .children import Children, resolve_scripts
from .supervise import Module, supervise

log = logging.getLogger(__name__)

NOT_HERE: Final = ("stream", "cron", "configuration", "observability", "telemetry", "http-functions", "exec", "bridge")
"""Workers that a configuration may list and that this release does not have."""


@define(kw_only=True)
class Overrides:
    """What the command line says over the file: a port or host of None leaves the file's."""

    host: str | None = None
    port: int | None = None
    http_port: int | None = None
    data_dir: Path | None = None


@define(eq=False)
class Running:
    """A running engine and the parts a caller may ask about."""

    core: Engine
    config: EngineConfig
    listeners: tuple[Listener, ...]
    http: HttpModule | None

    @property
    def worker_url(self) -> str:
        """Where workers of this machine connect."""
        host, port = self.listeners[0].addresses[0]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"ws://[{shown}]:{port}" if ":" in shown else f"ws://{shown}:{port}"

    def ports(self) -> dict[str, tuple[str, int]]:
        """The first address of each port: `worker`, and `http` where it is served."""
        ports = {"worker": self.listeners[0].addresses[0]}
        if self.http is not None:
            ports["http"] = self.http.addresses[0]
        return ports


@define(eq=False)
class _Plan:
    """What the configuration asks for, checked before anything is opened."""

    listeners: list[WorkerManagerSettings] = field(factory=list)
    http: HttpSettings | None = None
    state: StateSettings | None = None
    queue: QueueModuleSettings | None = None
    pubsub: PubSubSettings | None = None
    notes: list[str] = field(factory=list)


def plan(config: EngineConfig, overrides: Overrides) -> _Plan:
    """Read every block. Raises `ConfigError` naming file, line and key; nothing has been started then."""
    result = _Plan(notes=list(config.notes))

    def block(cls: type[Any], entry: Entry) -> Any:
        structured = read_settings(cls, entry)
        result.notes += structured.notes
        given = ", ".join(structured.given)
        source = f"{given} from {config.source}, the rest defaults" if given else "defaults"
        log.info("worker %s: %s", entry.label, source)
        return structured.settings

    for entry in config.entries:
        if entry.name == "worker-manager":
            settings: WorkerManagerSettings = block(WorkerManagerSettings, entry)
            if settings.rbac is not None or settings.middleware_function_id is not None:
                # never open a port more widely than its owner asked for
                what = "rbac" if settings.rbac is not None else "middleware_function_id"
                raise ConfigError(
                    f"'{entry.label}' asks for '{what}', which this release does not have; the engine does not start "
                    "with less access control than configured. Remove the key to run without it."
                )
            result.listeners.append(settings)
        elif entry.name == "http":
            result.http = block(HttpSettings, entry)
        elif entry.name == "state":
            result.state = block(StateSettings, entry)
        elif entry.name == "queue":
            result.queue = block(QueueModuleSettings, entry)
        elif entry.name == "pubsub":
            result.pubsub = block(PubSubSettings, entry)
        elif entry.name in NOT_HERE and entry.listed_as is not None:
            result.notes.append(f"'{entry.listed_as}' is not part of this release and does not run")
    first = result.listeners[0]
    result.listeners[0] = evolve(
        first, host=overrides.host or first.host, port=first.port if overrides.port is None else overrides.port
    )
    if result.http is not None:
        result.http = evolve(
            result.http,
            host=overrides.host or result.http.host,
            port=result.http.port if overrides.http_port is None else overrides.http_port,
        )
    return result


@asynccontextmanager
async def open_host(config: EngineConfig, overrides: Overrides | None = None) -> AsyncIterator[Running]:
    """Everything but children and signals, for the length of the block; leaving it closes workers, modules and stores.

    Raises `ConfigError` or `StoreError` with a text for the user when something cannot start.
    """
    overrides = overrides or Overrides()
    wanted = plan(config, overrides)
    for note in wanted.notes:
        log.warning("%s", note)
    data_dir = overrides.data_dir or config.data_dir
    async with AsyncExitStack() as stack:
        opened: dict[Path, Store] = {}

        async def store(directory: Path | None) -> Store:
            if directory is None:
                return await stack.enter_async_context(open_memory())
            path = directory.absolute() / "store.sqlite3"
            if path not in opened:
                opened[path] = await stack.enter_async_context(open_sqlite(path))
            return opened[path]

        modules: dict[str, Callable[[], Module]] = {}
        if wanted.state is not None:
            values = (await store(wanted.state.adapter.directory(data_dir / "state"))).key_value("state")
            modules["state"] = partial(StateModule, Live(wanted.state), values)
        if wanted.queue is not None:
            jobs = (await store(wanted.queue.adapter.directory(data_dir / "queue"))).job_log()
            modules["queue"] = partial(QueueModule, Live(wanted.queue), jobs)
        if wanted.pubsub is not None:
            modules["pubsub"] = partial(PubSubModule, Live(wanted.pubsub))
        modules["introspection"] = IntrospectionModule
        http: HttpModule | None = None
        if wanted.http is not None:
            http = HttpModule(Live(wanted.http))
            modules["http"] = partial(_same, http)

        core = await stack.enter_async_context(
            open_engine(grace_s=config.grace_ms / 1000, default_timeout_s=config.default_invocation_timeout_ms / 1000)
        )
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        for name, make in modules.items():
            await nursery.start(partial(supervise, core, name, make), name=f"supervise {name}")
        listeners = tuple(
            Listener(
                core=core,
                host=settings.host,
                port=settings.port,
                handshake_timeout_s=settings.handshake_timeout_ms / 1000,
            )
            for settings in wanted.listeners
        )
        for listener in listeners:
            await nursery.start(listener.run, name="worker port")
            for host, port in listener.addresses:
                if host in ("0.0.0.0", "::"):
                    log.warning("the worker port %s is open to the network WITHOUT access control", port)
                log.info("workers connect to %s:%d", f"[{host}]" if ":" in host else host, port)
        core.serving()
        try:
            yield Running(core, config, listeners, http)
        finally:
            for listener in listeners:
                listener.close_all(1012, "the engine is stopping")
            with trio.move_on_after(CLOSE_S) as closing:
                closing.shield = True
                for listener in listeners:
                    await listener.wait_closed()


def _same(module: HttpModule) -> HttpModule:
    """The HTTP module keeps its addresses over a restart, so it is one object."""
    return module


async def serve(
    config: EngineConfig,
    overrides: Overrides | None = None,
    *,
    scripts: tuple[str, ...] = (),
    reload: bool = False,
    environ: Mapping[str, str] | None = None,
    on_line: Callable[[str, str], None] | None = None,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until SIGINT or SIGTERM, then drain and stop; a second signal exits the process at once.

    `scripts` run as supervised children once the engine serves. `on_line(name, line)` gets what they print.
    Raises `ConfigError`, `StoreError` or `ScriptError` when something cannot start; nothing is left running then.
    """
    resolved = resolve_scripts(scripts)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            async with open_host(config, overrides) as running, trio.open_nursery() as children:
                if resolved:
                    env = {**(os.environ if environ is None else environ), "III_URL": running.worker_url}
                    await children.start(Children(resolved, env, on_line or _log_line, reload).run, name="children")
                task_status.started(running)
                number = await anext(signals)
                nursery.start_soon(_exit_at_second_signal, signals, name="second signal")
                grace_s = config.shutdown_grace_ms / 1000
                log.info("%s: draining, at most %.1f s", signal.Signals(number).name, grace_s)
                if not await running.core.drain(grace_s):
                    log.warning("calls are still running after the grace; they are cancelled")
                for listener in running.listeners:
                    listener.close_all(1012, "the engine is stopping")
                children.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
    log.info("stopped")


async def _exit_at_second_signal(signals: AsyncIterator[int]) -> None:
    number = await anext(signals)
    os._exit(128 + number)


def _log_line(name: str, line: str) -> None:
    log.info("%s", line, extra={"source": name})
