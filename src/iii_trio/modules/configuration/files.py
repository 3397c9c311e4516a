"""The store of entries: a directory with one YAML file for each value that somebody set (spec/pubsub-cron-config-cli.md §4.6).

Everything here is plain blocking code, run in a thread by the registry, one call at a time. A write is on disk, its
directory included, when it returns. A file that cannot be read is a file that cannot be read: it deletes nothing.
"""

import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ...config import ConfigError, load_yaml
from ...protocol import ABSENT, NULL, Json, JsonError
from ...protocol.errors import StoreError, WireError
from .entries import ConfigurationEntry, check_id

SUFFIX: Final = ".yaml"
HISTORY: Final = ".history"
_TEMPORARY: Final = ".tmp"
_MODE: Final = 0o600  # values hold secrets
_SPECIAL: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON writes as it is, and YAML takes for line breaks or for no text at all."""


@frozen
class Past:
    """A value that was set: when (Unix ms) and by whom, a worker or `file`. ABSENT: it was taken back."""

    value: Json
    at_ms: int
    by: str


@frozen
class Loaded:
    """What a directory holds: the entries by id, and what could not be read, one sentence for each file."""

    entries: Mapping[str, ConfigurationEntry]
    broken: Mapping[Path, str]


@define(eq=False)
class EntryFiles:
    """The directory. `paths` has the file of each entry; a hand-made one may be called anything that ends in `.yaml`.

    `config` is the engine's config file, which may lie in there and is no entry.
    """

    directory: Path
    config: Path | None = None
    paths: dict[str, Path] = field(factory=dict, init=False)

    def load(self) -> Loaded:
        """Read every file. A directory that is not there holds nothing. Raises `StoreError` if it cannot be listed."""
        try:
            found = [path for path in self.directory.iterdir() if path.suffix == SUFFIX and path.is_file()]
            files = sorted(path for path in found if self.config is None or path != self.config.absolute())
        except FileNotFoundError:
            files = []
        except OSError as error:
            raise StoreError(f"cannot read the directory {self.directory}: {error.strerror or error}") from None
        entries: dict[str, ConfigurationEntry] = {}
        broken: dict[Path, str] = {}
        paths: dict[str, Path] = {}
        for path in files:
            try:
                entry = read_entry(path)
            except ConfigError as error:
                broken[path] = str(error)
                continue
            if entry.id in entries:
                broken[path] = f"{path}: the entry '{entry.id}' stands in {paths[entry.id].name} already"
                continue
            entries[entry.id], paths[entry.id] = entry, path
        # an entry whose file is broken now keeps its place: the next write repairs that very file
        kept = {entry_id: path for entry_id, path in self.paths.items() if path in broken and entry_id not in paths}
        self.paths = {**kept, **paths}
        return Loaded(entries, broken)

    def write(self, entry: ConfigurationEntry) -> None:
        """Put an entry's file in place of the one before. Raises `StoreError`: that one is unchanged then."""
        path = self.paths.get(entry.id, self.directory / f"{entry.id}{SUFFIX}")
        _replace(path, entry_text(entry))
        self.paths[entry.id] = path

    def remove(self, entry_id: str) -> None:
        """Take an entry's file away; none is fine. Raises `StoreError`."""
        path = self.paths.get(entry_id)
        if path is None:
            return
        try:
            path.unlink(missing_ok=True)
            _sync_directory(path.parent)
        except OSError as error:
            raise StoreError(f"cannot remove {path}: {error.strerror or error}") from None
        self.paths.pop(entry_id, None)

    def read_history(self, entry_id: str) -> list[Past]:
        """The values set so far, newest first; empty for what cannot be read."""
        try:
            rows = json.loads((self.directory / HISTORY / f"{entry_id}.json").read_bytes())
            return [Past(_value(row), int(row["at_ms"]), str(row["by"])) for row in rows]
        except (OSError, ValueError, TypeError, KeyError):
            return []

    def write_history(self, entry_id: str, values: Sequence[Past]) -> None:
        """Replace an entry's history. Raises `StoreError`."""
        rows = [
            {"at_ms": past.at_ms, "by": past.by, **({} if past.value.absent else {"value": past.value.decode()})}
            for past in values
        ]
        _replace(self.directory / HISTORY / f"{entry_id}.json", json.dumps(rows, ensure_ascii=False) + "\n")

    def read_schema(self, entry_id: str) -> Json:
        """The schema that an entry had last; NULL if it is not known."""
        try:
            return Json.of(json.loads(self._schema_path(entry_id).read_bytes()))
        except (OSError, ValueError, RecursionError):
            return NULL

    def write_schema(self, entry_id: str, schema: Json) -> None:
        """Remember an entry's schema. Raises `StoreError`."""
        _replace(self._schema_path(entry_id), json.dumps(schema.decode(), ensure_ascii=False) + "\n")

    def files(self) -> list[Path]:
        """Every file that belongs to an entry. What else is in the directory is somebody else's."""
        return [*self.paths.values(), *sorted((self.directory / HISTORY).glob("*.json"))]

    def _schema_path(self, entry_id: str) -> Path:
        return self.directory / HISTORY / f"{entry_id}.schema.json"


def read_entry(path: Path) -> ConfigurationEntry:
    """The entry in a file, without a schema: only its owner has that. Raises `ConfigError` saying what is wrong with it."""
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    document = load_yaml(text, source=str(path))
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path}: expected a mapping with the keys id, name, description and value")
    texts: dict[str, str] = {}
    for key in ("id", "name", "description"):
        value = document.get(key, "" if key != "id" else None)
        if not isinstance(value, str):
            raise ConfigError(f"{path}: expected a text under '{key}'")
        texts[key] = value
    check_file_id(path, texts["id"])
    try:
        metadata = ABSENT if document.get("metadata") is None else Json.of(plain(document["metadata"]))
        kept = Json.of(plain(document.get("value")))
        return ConfigurationEntry(
            id=texts["id"], name=texts["name"], description=texts["description"], kept=kept, metadata=metadata
        )
    except (ValueError, TypeError, JsonError) as error:
        raise ConfigError(f"{path}: holds what JSON has no value for: {error}") from None


def check_file_id(path: Path, entry_id: str) -> None:
    """Raises `ConfigError` for an id that no entry may have."""
    try:
        check_id(entry_id)
    except WireError as error:
        raise ConfigError(f"{path}: {error.message}") from None


def entry_text(entry: ConfigurationEntry) -> str:
    """The file of an entry. What a reader of YAML could take for something else is written as JSON, which YAML contains."""
    document: dict[str, Any] = {"id": entry.id, "name": entry.name, "description": entry.description}
    document["value"] = entry.kept.decode()
    if not entry.metadata.absent:
        document["metadata"] = entry.metadata.decode()
    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.allow_unicode = True
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    try:
        writer.dump(document, stream)
        text = stream.getvalue()
        if plain(load_yaml(text, source="")) == document:
            return text
    except (ConfigError, YAMLError, RecursionError):
        pass
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in document.items()]
    return _SPECIAL.sub(lambda found: f"\\u{ord(found[0]):04x}", "".join(lines))


def plain(value: Any) -> Any:
    """A YAML value as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _value(row: Mapping[str, Any]) -> Json:
    return Json.of(row["value"]) if "value" in row else ABSENT


def _replace(path: Path, text: str) -> None:
    """Write a file in one step and onto the disk; its permissions stay what they were."""
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o7777 if path.exists() else _MODE
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from None


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
