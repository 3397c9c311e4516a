"""The engine's config file: which workers run, under which names, with which blocks.

Implements spec/pubsub-cron-config-cli.md §7.1–7.3: every generation's names and spellings come in, canonical names and
untouched blocks come out. The blocks themselves are read by blocks.py, when the host knows which module wants them.
"""

# ruff: noqa: RUF009  `setting()` is evaluated once on purpose: it makes a field

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from iii_trio.config.names import BY_SPELLING, EXTERNAL, WORKERS, WorkerName
from iii_trio.config.problems import ConfigError, Position, Problem, did_you_mean
from iii_trio.config.settings import setting
from iii_trio.config.structuring import structure
from iii_trio.config.yaml import YamlMapping, YamlSequence, load_yaml
from iii_trio.protocol.limits import BUFFERED_ALL, OUTBOX_HARD

GRACE_VARIABLE: Final = "III_NAMESPACE_GRACE_MS"
TOKEN_VARIABLE: Final = "III_TOKEN"
_ENTRY_KEYS: Final = ("name", "class", "image", "config")


@frozen
class Entry:
    """One worker to run."""

    name: str
    """Canonical name, a key of the table in names.py."""
    instance: str
    """`name`, or `name#1`, `name#2`… for the second and third entry of that name."""
    listed_as: str | None = None
    """The spelling in the file; None for a worker that runs without being listed."""
    config: Mapping[str, Any] = field(factory=dict)
    """Its block, environment expanded; a `YamlMapping` with positions if there is one in the file."""
    line: int | None = None

    @property
    def label(self) -> str:
        """What messages call it: as the user spelled it, else by its established name."""
        return self.listed_as or next(worker.established for worker in WORKERS if worker.canonical == self.name)


@frozen(kw_only=True)
class EngineConfig:
    """What the host starts: engine-wide settings and the workers in order, always-on ones included."""

    grace_ms: int
    """How long a connection's registrations wait for its namespace (spec/protocol.md §4.2), in ms."""
    shutdown_grace_ms: int
    """How long running work may take to end after a stop signal, in ms."""
    default_invocation_timeout_ms: int
    """Deadline of a call that names none, in ms; 0 = none."""
    slow_call_ms: int
    """Calls that take this long are named in the log, in ms; 0 = none."""
    max_buffered_bytes: int
    """What all sockets may buffer together, in bytes."""
    data_dir: Path
    """Where stores live that name no directory of their own."""
    entries: tuple[Entry, ...]
    token: str | None = field(default=None, repr=False)
    """What worker ports ask for that say of themselves neither a token nor an auth function; from `III_TOKEN`."""
    source: Path | None = None
    """The file read, or None."""
    notes: tuple[str, ...] = ()
    """Old spellings, ignored keys and skipped entries, one sentence each, to be logged once at start."""

    def find(self, name: str) -> tuple[Entry, ...]:
        """The entries with this canonical name, in order; the first is the main one."""
        return tuple(entry for entry in self.entries if entry.name == name)


@frozen(kw_only=True)
class EngineSettings:
    """The top level of a config file."""

    registration_namespace_grace_ms: int = setting(
        5000, tier="restart", unit="ms", ge=0, doc="How long registrations wait for the worker's namespace."
    )
    shutdown_grace_ms: int = setting(
        5000, tier="restart", unit="ms", ge=0, doc="How long running work may take to end after a stop signal."
    )
    default_invocation_timeout_ms: int = setting(
        3_600_000, tier="restart", unit="ms", ge=0, doc="Deadline of a call that names none; 0 means none."
    )
    slow_call_ms: int = setting(
        0, tier="restart", unit="ms", ge=0, doc="Calls that take this long are named in the log; 0 means none."
    )
    max_buffered_bytes: int = setting(
        BUFFERED_ALL,
        tier="restart",
        unit="bytes",
        ge=OUTBOX_HARD,
        doc="What all sockets may buffer together; above it the one that holds the most is closed.",
    )
    data_dir: str = setting("./data", tier="restart", nonempty=True, doc="Directory of the stores.")
    workers: Any = setting((), tier="restart", doc="The workers to run, in order.")
    modules: Any = setting((), tier="restart", doc="Older name of `workers`; its entries come after those.")
    port: int | None = setting(
        None, tier="restart", ge=0, le=65535, doc="Worker port of files up to 0.10; belongs to the worker manager."
    )


def load_config(path: Path, environ: Mapping[str, str]) -> EngineConfig:
    """Read the config file at `path`, expanding environment placeholders from `environ`.

    Raises `ConfigError`, listing as many problems as one reading can find.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"Config file not found: '{path}'. Name another one with --config, or leave --config out to run the "
            "default set of workers."
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"Failed to read config file '{path}': byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise ConfigError(f"Failed to read config file '{path}': {error.strerror or error}") from error
    return evolve(parse_config(text, str(path), environ), source=path)


def parse_config(text: str, source: str, environ: Mapping[str, str]) -> EngineConfig:
    """`load_config` for a text in hand; `source` is the file name that messages carry."""
    summary = f"Failed to parse config file '{source}'"
    try:
        document = load_yaml(text, source=source, environ=environ)
    except ConfigError as error:
        raise ConfigError(summary, error.problems) from error
    top = structure(EngineSettings, document, summary=summary)  # type: ignore[arg-type]  # refused if no mapping
    reading = _Reading(source, list(top.notes))
    listed = [*reading.items(document, "workers"), *reading.items(document, "modules")]
    if reading.problems:
        raise ConfigError(summary, reading.problems)
    entries = [entry for raw, position in listed if (entry := reading.entry(raw, position)) is not None]
    if reading.problems:
        raise ConfigError(summary, reading.problems)
    _refuse_duplicates(source, entries)
    return _engine_config(
        top.settings, reading.legacy_port(document, _numbered([*entries, *_missing(entries)])), reading.notes, environ
    )


def default_config(environ: Mapping[str, str]) -> EngineConfig:
    """What runs without a file: the default set of spec §7.2 (with queue) on its defaults."""
    chosen = [worker for worker in WORKERS if worker.default_set]
    return _engine_config(EngineSettings(), [_unlisted(worker) for worker in chosen], [], environ)


@define
class _Reading:
    """One pass over the listed entries."""

    source: str
    notes: list[str]
    problems: list[Problem] = field(factory=list)

    def items(self, document: object, key: str) -> Iterator[tuple[object, Position]]:
        """The entries under `workers:` or `modules:`."""
        if not isinstance(document, YamlMapping) or key not in document:
            return
        listed = document[key]
        if not isinstance(listed, YamlSequence):
            found = "nothing" if listed is None else "something else"
            message = f"expected a list of workers, but found {found}; an empty list is written `{key}: []`"
            self.problems.append(Problem(message, key, document.value_position(key)))
            return
        if key == "modules" and len(listed):
            self.notes.append(f"{document.key_position(key)}: 'modules' is the old spelling of 'workers'")
        for index, item in enumerate(listed):
            yield item, listed.item_position(index)

    def entry(self, raw: object, position: Position) -> Entry | None:
        """One listed entry; None if it was refused (a problem stands in the list) or skipped (a note does)."""
        if not isinstance(raw, YamlMapping):
            example = f"; write `- name: {raw}`" if isinstance(raw, str) else ""
            self._refuse(f"expected a mapping with the key `name`{example}", position)
            return None
        spelled = self._spelled(raw)
        if spelled is None:
            return None
        worker = BY_SPELLING.get(spelled)
        if worker is None:
            self._unknown(spelled, raw)
            return None
        if raw.get("image") is not None:
            self._refuse(
                f"Worker '{spelled}' is a built-in worker and cannot have an 'image' field. "
                "Remove 'image' or use a different name.",
                raw.key_position("image"),
            )
            return None
        for key in raw:
            if key not in _ENTRY_KEYS:
                hint = did_you_mean(key, _ENTRY_KEYS)
                self.notes.append(f"{raw.key_position(key)}: the key '{key}' of '{spelled}' is ignored{hint}")
        config = raw.get("config")
        if config is not None and not isinstance(config, YamlMapping):
            self._refuse(f"expected the config of '{spelled}' to be a mapping", raw.value_position("config"))
            return None
        return Entry(worker.canonical, worker.canonical, spelled, {} if config is None else config, position.line)

    def _spelled(self, raw: YamlMapping) -> str | None:
        given = [key for key in ("name", "class") if raw.get(key) is not None]
        if len(given) != 1:
            message = "expected either `name` or `class`, but found both" if given else "expected a `name`"
            self._refuse(message, raw.position)
            return None
        [key] = given
        spelled = raw[key]
        if not isinstance(spelled, str):
            self._refuse(f"expected the {key} of a worker to be text", raw.value_position(key))
            return None
        if key == "class" and (worker := BY_SPELLING.get(spelled)) is not None:
            self.notes.append(
                f"{raw.key_position(key)}: 'class: {spelled}' is the old spelling of 'name: {worker.established}'"
            )
        return spelled

    def _unknown(self, spelled: str, raw: YamlMapping) -> None:
        position = raw.value_position("name" if raw.get("name") is not None else "class")
        if spelled in EXTERNAL:
            self.notes.append(f"{position}: '{spelled}' is an external program that this engine does not run; skipped")
            return
        known = [worker.established for worker in WORKERS]
        self._refuse(
            f"unknown worker '{spelled}'{did_you_mean(spelled, BY_SPELLING) or '.'} Only built-in workers stand here; "
            f"workers of your own connect by themselves. Known names: {', '.join(known)}",
            position,
        )

    def _refuse(self, message: str, position: Position) -> None:
        self.problems.append(Problem(message, position=position))

    def legacy_port(self, document: object, entries: Sequence[Entry]) -> list[Entry]:
        """`entries` with the top-level `port` of ≤ 0.10 moved into the first worker manager."""
        if not isinstance(document, YamlMapping) or document.get("port") is None:
            return list(entries)
        position = document.value_position("port")
        manager = next(entry for entry in entries if entry.name == "worker-manager")
        if "port" in manager.config:
            self.notes.append(f"{position}: the top-level 'port' is ignored, '{manager.label}' has its own")
            return list(entries)
        self.notes.append(f"{position}: the top-level 'port' is the old place of the port of '{manager.label}'")
        block = manager.config if isinstance(manager.config, YamlMapping) else YamlMapping(position, {})
        moved = evolve(manager, config=block.with_item("port", document["port"], position))
        return [moved if entry is manager else entry for entry in entries]


def _refuse_duplicates(source: str, entries: Sequence[Entry]) -> None:
    """Refuse two spellings of one worker: it would be unclear which block counts."""
    lines = []
    for worker in WORKERS:
        listed = {entry.listed_as: entry.line for entry in reversed(entries) if entry.name == worker.canonical}
        present = [spelling for spelling in worker.spellings if spelling in listed]
        lines += [
            f"- '{older}' is the deprecated name for '{present[-1]}', but both are present. "
            f"Remove '{older}' from your configuration. ({source}:{listed[older]})"
            for older in present[:-1]
        ]
    if lines:
        raise ConfigError("\n".join(["Duplicate worker configurations:", *lines]))


def _missing(entries: Sequence[Entry]) -> list[Entry]:
    listed = {entry.name for entry in entries}
    return [_unlisted(worker) for worker in WORKERS if worker.always_on and worker.canonical not in listed]


def _unlisted(worker: WorkerName) -> Entry:
    return Entry(worker.canonical, worker.canonical)


def _numbered(entries: Sequence[Entry]) -> list[Entry]:
    seen: Counter[str] = Counter()
    numbered = []
    for entry in entries:
        repeated = seen[entry.name]
        seen[entry.name] += 1
        numbered.append(evolve(entry, instance=f"{entry.name}#{repeated}") if repeated else entry)
    return numbered


def _engine_config(
    settings: EngineSettings, entries: Sequence[Entry], notes: Sequence[str], environ: Mapping[str, str]
) -> EngineConfig:
    grace_ms = settings.registration_namespace_grace_ms
    if (override := environ.get(GRACE_VARIABLE)) is not None:
        if not (override.isascii() and override.isdigit()):
            raise ConfigError(f"{GRACE_VARIABLE}: expected a whole number of milliseconds, but found '{override}'")
        grace_ms = int(override)
    return EngineConfig(
        grace_ms=grace_ms,
        shutdown_grace_ms=settings.shutdown_grace_ms,
        default_invocation_timeout_ms=settings.default_invocation_timeout_ms,
        slow_call_ms=settings.slow_call_ms,
        max_buffered_bytes=settings.max_buffered_bytes,
        data_dir=Path(settings.data_dir),
        entries=tuple(entries),
        token=environ.get(TOKEN_VARIABLE, "").strip() or None,
        notes=tuple(notes),
    )
