"""What a configuration asks the host to run: every block read and checked before anything is opened."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from ..config import (
    AdminSettings,
    ConfigError,
    EngineConfig,
    Entry,
    HttpSettings,
    Problem,
    PubSubSettings,
    QueueModuleSettings,
    StateSettings,
    WorkerManagerSettings,
    YamlMapping,
    read_settings,
)

log = logging.getLogger(__name__)

NOT_HERE: Final = ("stream", "cron", "configuration", "observability", "telemetry", "http-functions", "exec", "bridge")
"""Workers that a configuration may list and that this release does not have."""


@frozen(kw_only=True)
class Overrides:
    """What the command line says over the file; None leaves the file's. `host` holds for workers and HTTP."""

    host: str | None = None
    port: int | None = None
    http_port: int | None = None
    data_dir: Path | None = None


@define(kw_only=True)
class Plan:
    """What is to run. `listeners` are the worker ports, the main one first; a module that is None does not run."""

    data_dir: Path
    listeners: list[WorkerManagerSettings] = field(factory=list)
    http: HttpSettings | None = None
    state: StateSettings | None = None
    queue: QueueModuleSettings | None = None
    pubsub: PubSubSettings | None = None
    admin: AdminSettings | None = None
    notes: list[str] = field(factory=list)

    def store_files(self) -> dict[str, Path]:
        """The file of each worker's store by the worker's name; workers that keep their data in memory have none."""
        directories = {
            name: settings.adapter.directory(self.data_dir / name)
            for name, settings in (("state", self.state), ("queue", self.queue))
            if settings is not None
        }
        return {name: file_in(directory) for name, directory in directories.items() if directory is not None}


def file_in(directory: Path) -> Path:
    """The store's file in its directory."""
    return directory.absolute() / "store.sqlite3"


def make_plan(config: EngineConfig, overrides: Overrides) -> Plan:
    """Read every block and say in the log where each worker's settings come from.

    Raises `ConfigError` naming file, line and key.
    """
    plan = Plan(data_dir=overrides.data_dir or Path(config.data_dir), notes=list(config.notes))
    for entry in config.entries:
        if entry.name == "worker-manager":
            first = not plan.listeners
            changes = _given(host=overrides.host, port=overrides.port) if first else {}
            plan.listeners.append(_read(plan, config, entry, WorkerManagerSettings, changes))
        elif entry.name == "http":
            changes = _given(host=overrides.host, port=overrides.http_port)
            plan.http = _read(plan, config, entry, HttpSettings, changes)
            _refuse(entry, "middleware", plan.http.middleware or None)
        elif entry.name == "state":
            plan.state = _read(plan, config, entry, StateSettings)
        elif entry.name == "queue":
            plan.queue = _read(plan, config, entry, QueueModuleSettings)
        elif entry.name == "pubsub":
            plan.pubsub = _read(plan, config, entry, PubSubSettings)
        elif entry.name == "admin":
            plan.admin = _read(plan, config, entry, AdminSettings)
        elif entry.name in NOT_HERE and entry.listed_as is not None:
            where = f"{config.source}:{entry.line}: " if config.source is not None else ""
            plan.notes.append(f"{where}'{entry.listed_as}' is not part of this release and does not run")
    return plan


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _read(
    plan: Plan, config: EngineConfig, entry: Entry, cls: type[Any], changes: Mapping[str, Any] | None = None
) -> Any:
    """The settings of one entry with the command line's `changes`; their sources go to the log, remarks to the notes."""
    structured = read_settings(cls, entry)
    plan.notes += structured.notes
    changes = changes or {}
    in_file = sorted(structured.given - set(changes))
    sources = [f"{', '.join(in_file)} from {config.source}"] if in_file else []
    sources += [f"{', '.join(changes)} from the command line"] if changes else []
    log.info("worker %s: %s", entry.label, "; ".join([*sources, "the rest defaults"]) if sources else "defaults")
    return evolve(structured.settings, **changes)


def _refuse(entry: Entry, key: str, value: object) -> None:
    """Refuse a setting that restricts access and that this release cannot honour."""
    if value is None:
        return
    position = None
    if isinstance(entry.config, YamlMapping):
        spelled = key if key in entry.config else _camel(key)
        position = entry.config.key_position(spelled) if spelled in entry.config else entry.config.position
    text = (
        "this release cannot do that, and does not start with less access control than configured; "
        "take the key out to run without it"
    )
    raise ConfigError(f"failed to create worker '{entry.label}'", [Problem(text, key, position)])


def _camel(key: str) -> str:
    first, *rest = key.split("_")
    return first + "".join(word.capitalize() for word in rest)
