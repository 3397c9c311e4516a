"""What a configuration asks the host to run: every block read and checked before anything is opened."""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import define, evolve, field, frozen

from ..config import (
    AdminSettings,
    ConfigError,
    ConfigurationSettings,
    EngineConfig,
    Entry,
    HttpFunctionsSettings,
    HttpSettings,
    Position,
    Problem,
    PubSubSettings,
    QueueModuleSettings,
    StateSettings,
    StreamSettings,
    Structured,
    WorkerManagerSettings,
    YamlMapping,
    read_settings,
)
from ..protocol import errors

log = logging.getLogger(__name__)

NOT_HERE: Final = ("cron", "observability", "telemetry", "exec", "bridge")
"""Workers that a configuration may list and that this release does not have."""

THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})


@frozen(kw_only=True)
class Overrides:
    """What the command line says over the file; None leaves the file's. `host` holds for all ports."""

    host: str | None = None
    port: int | None = None
    http_port: int | None = None
    stream_port: int | None = None
    data_dir: Path | None = None


@frozen(kw_only=True)
class Block:
    """What file and command line say about one worker: `file` over the defaults, `flags` over that."""

    entry: Entry
    file: Structured[Any]
    flags: Mapping[str, Any] = field(factory=dict)
    source: Path | None = None

    @property
    def settings(self) -> Any:
        """The settings, as far as nothing else is stored."""
        return evolve(self.file.settings, **self.flags)

    @property
    def place(self) -> str:
        """`FILE:LINE: ` of the worker, or nothing where no file lists it."""
        return f"{self.source}:{self.entry.line}: " if self.source is not None and self.entry.line else ""

    def located(self, error: errors.ConfigError) -> ConfigError:
        """The error with the worker's name, and with the place in the file of each key that has none yet."""
        found = (error.problems if isinstance(error, ConfigError) else ()) or (Problem(str(error)),)
        problems = [evolve(one, position=one.position or self._position(one.key)) for one in found]
        return ConfigError(f"failed to create worker '{self.entry.label}'", problems)

    def _position(self, key: str) -> Position | None:
        holder: Any = self.entry.config
        position = None
        for part in key.split("."):
            if not isinstance(holder, YamlMapping):
                break
            position = holder.position
            if part not in holder:
                break
            position, holder = holder.value_position(part), holder[part]
        return position

    def sources(self, stored: Collection[str] = (), place: str = "") -> str:
        """Where each setting comes from, in words; `stored` are those that the entry kept in `place` has."""
        layers = (
            (sorted(self.file.given - set(stored) - set(self.flags)), str(self.source)),
            (sorted(set(stored) - set(self.flags)), place),
            (list(self.flags), "the command line"),
        )
        said = [f"{', '.join(names)} from {origin}" for names, origin in layers if names]
        return "; ".join([*said, "the rest defaults"]) if said else "defaults"


@define(kw_only=True)
class Plan:
    """What is to run. `listeners` are the worker ports, the main one first; a module that is None does not run."""

    data_dir: Path
    blocks: dict[str, Block] = field(factory=dict)
    """The same, worker by worker in the order of the file, by instance."""
    configuration: ConfigurationSettings = field(factory=ConfigurationSettings)
    listeners: list[WorkerManagerSettings] = field(factory=list)
    http: HttpSettings | None = None
    http_functions: HttpFunctionsSettings | None = None
    state: StateSettings | None = None
    stream: StreamSettings | None = None
    queue: QueueModuleSettings | None = None
    pubsub: PubSubSettings | None = None
    admin: AdminSettings | None = None
    notes: list[str] = field(factory=list)

    def store_files(self) -> dict[str, Path]:
        """The file of each worker's store by the worker's name; workers that keep their data in memory have none."""
        directories = {
            name: settings.adapter.directory(self.data_dir / name)
            for name, settings in (("state", self.state), ("stream", self.stream), ("queue", self.queue))
            if settings is not None
        }
        return {name: file_in(directory) for name, directory in directories.items() if directory is not None}

    def entries_directory(self) -> Path | None:
        """Where configuration entries are kept: as configured, else beside ./data, else inside the data directory."""
        adapter = self.configuration.adapter
        if adapter.name != "fs":
            return None
        if adapter.config.directory is not None:
            return Path(adapter.config.directory)
        return Path("config") if self.data_dir == Path("data") else self.data_dir / "config"


def file_in(directory: Path) -> Path:
    """The store's file in its directory."""
    return directory.absolute() / "store.sqlite3"


def make_plan(config: EngineConfig, overrides: Overrides) -> Plan:
    """Read and check every block. Raises `ConfigError` naming file, line and key."""
    plan = Plan(data_dir=overrides.data_dir or Path(config.data_dir), notes=list(config.notes))
    for entry in config.entries:
        if entry.name != entry.instance and entry.name != "worker-manager":
            where = f"{config.source}:{entry.line}: " if config.source is not None else ""
            plan.notes.append(
                f"{where}'{entry.label}' stands there again; one of a kind runs, and the first one counts"
            )
        elif entry.name == "configuration":
            plan.configuration = _read(plan, config, entry, ConfigurationSettings)
        elif entry.name == "worker-manager":
            first = not plan.listeners
            changes = _given(host=overrides.host, port=overrides.port) if first else {}
            plan.listeners.append(_read(plan, config, entry, WorkerManagerSettings, changes))
        elif entry.name == "http":
            changes = _given(host=overrides.host, port=overrides.http_port)
            plan.http = _read(plan, config, entry, HttpSettings, changes)
        elif entry.name == "http-functions":
            plan.http_functions = _read(plan, config, entry, HttpFunctionsSettings)
        elif entry.name == "state":
            plan.state = _read(plan, config, entry, StateSettings)
        elif entry.name == "stream":
            changes = _given(host=overrides.host, port=overrides.stream_port)
            plan.stream = _read(plan, config, entry, StreamSettings, changes)
        elif entry.name == "queue":
            plan.queue = _read(plan, config, entry, QueueModuleSettings)
        elif entry.name == "pubsub":
            plan.pubsub = _read(plan, config, entry, PubSubSettings)
        elif entry.name == "admin":
            plan.admin = _read(plan, config, entry, AdminSettings)
        elif entry.name in NOT_HERE and entry.listed_as is not None:
            where = f"{config.source}:{entry.line}: " if config.source is not None else ""
            plan.notes.append(f"{where}'{entry.listed_as}' is not part of this release and does not run")
    _refuse_own_port(plan)
    return plan


def _refuse_own_port(plan: Plan) -> None:
    """An engine that bridged to itself would ask itself for ever."""
    for name, settings in (("state", plan.state), ("stream", plan.stream)):
        bridge = None if settings is None else settings.adapter.bridge
        if bridge is None:
            continue
        try:
            parts = urlsplit(bridge[0])
            host, port = (parts.hostname or "").lower(), parts.port or {"wss": 443}.get(parts.scheme, 80)
        except ValueError:
            continue  # who makes the link says what is wrong with it
        if host in THIS_MACHINE and any(port == listener.port for listener in plan.listeners):
            text = f"{bridge[0]} is this engine's own worker port; name the engine that keeps the data"
            raise plan.blocks[name].located(ConfigError("", [Problem(text, "adapter.config.bridge_url")]))


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _read(
    plan: Plan, config: EngineConfig, entry: Entry, cls: type[Any], changes: Mapping[str, Any] | None = None
) -> Any:
    """The settings of one entry with the command line's `changes`; remarks go to the notes."""
    structured = read_settings(cls, entry)
    plan.notes += structured.notes
    block = plan.blocks[entry.instance] = Block(entry=entry, file=structured, flags=changes or {}, source=config.source)
    return block.settings
