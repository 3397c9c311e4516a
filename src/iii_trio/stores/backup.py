"""Backups of SQLite stores: copies taken while the stores are in use, all of one moment, and put back.

A snapshot is a read transaction, opened without a checkpoint in between for all files of a backup. Whatever had been
acknowledged by then is in it, and nothing is in it whose cause is not: a write that somebody made after hearing of
another one, in whichever file, was submitted by the same thread that takes the snapshots, so after that other one.

A backup is a directory: one database per name, plain files that go along, and `manifest.json` with the checksum of each,
written last. It is made under another name and renamed when it is whole, so that what has the name is complete.
"""

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from ..protocol.errors import StoreError
from .sqlite_file import SqliteFile, locked, sync_directory

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
_STEP_PAGES: Final = 1024


@define(eq=False)
class Snapshot:
    """One store as it stood at one moment; `SqliteStore.snapshot` takes it. Its holder closes it."""

    path: Path
    _connection: sqlite3.Connection

    def copy_to(self, target: Path, keep_on: Callable[[], None] = lambda: None) -> None:
        """Write the store into a new database, checked and on disk when this returns. Blocks, for long.

        `keep_on` is called every few megabytes; what it raises ends the copying. Raises `StoreError`.
        """
        try:
            copy = sqlite3.connect(target, isolation_level=None, check_same_thread=False)
            try:
                self._connection.backup(copy, pages=_STEP_PAGES, progress=lambda *_: keep_on())
                copy.execute("PRAGMA journal_mode = DELETE").fetchall()  # one file, without a log beside it
                findings = [text for (text,) in copy.execute("PRAGMA quick_check(1)")]
            finally:
                copy.close()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} could not be copied to {target}: {error}. Check the disk.") from error
        if findings != ["ok"]:
            raise StoreError(f"The copy of {self.path} is damaged: {findings[0]}. Check memory and disk.")
        _sync(target)

    def close(self) -> None:
        """Let the store forget the moment."""
        self._connection.close()


def take_snapshot(file: SqliteFile) -> Snapshot:
    """The file as it stands now, whatever is written to it later. Raises `StoreError`."""
    try:
        connection = file.reader()
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # only reading begins the transaction
    except sqlite3.Error as error:
        raise StoreError(f"{file.path} could not be read: {error}. Check the disk.") from error
    return Snapshot(file.path, connection)


@frozen
class BackupFile:
    """One database of a backup: the names of the stores it holds, file name, bytes, and SHA-256 in hexadecimal."""

    names: tuple[str, ...]
    file: str
    bytes: int
    sha256: str


@frozen
class Folder:
    """A directory in which `files()` are the engine's own; what else is in there is nobody's business here."""

    directory: Path
    files: Callable[[], Iterable[Path]]


@frozen
class Manifest:
    """What a backup holds. `made_at`: UTC, ISO 8601; `release`: of the engine that made it.

    `folders`: plain files by the name of their folder, each with its path in there, as `file` below the backup.
    """

    made_at: str
    release: str
    files: tuple[BackupFile, ...]
    folders: Mapping[str, tuple[BackupFile, ...]] = field(factory=dict)


def write_backup(
    directory: Path,
    snapshots: Mapping[str, Snapshot],
    *,
    folders: Mapping[str, Folder],
    made_at: str,
    release: str,
    keep_on: Callable[[], None] = lambda: None,
) -> Manifest:
    """Write a backup of `snapshots` (by store name; names may share one) and of the files of `folders`. Blocks, for long.

    Nothing of it is left when it fails. Raises `StoreError`.
    """
    if directory.exists():
        raise StoreError(f"{directory} is there already. Choose another name, or take it away.")
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        plain = {name: _copy_files(folder, partial / name) for name, folder in folders.items()}
        files = []
        for snapshot, names in _by_snapshot(snapshots):
            target = partial / f"{names[0]}.sqlite3"
            snapshot.copy_to(target, keep_on)
            files.append(BackupFile(names, target.name, target.stat().st_size, _digest(target)))
        manifest = Manifest(made_at, release, tuple(files), plain)
        _write_manifest(partial / MANIFEST, manifest)
        sync_directory(partial)
        partial.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StoreError(
            f"No backup was made in {directory}: {error.strerror}. Check rights and free space."
        ) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _by_snapshot(snapshots: Mapping[str, Snapshot]) -> list[tuple[Snapshot, tuple[str, ...]]]:
    grouped: dict[int, tuple[Snapshot, list[str]]] = {}
    for name, snapshot in snapshots.items():
        grouped.setdefault(id(snapshot), (snapshot, []))[1].append(name)
    return [(snapshot, tuple(names)) for snapshot, names in grouped.values()]


def _copy_files(folder: Folder, target: Path) -> tuple[BackupFile, ...]:
    target.mkdir()
    copied = []
    for source in folder.files():
        copy = target / source.relative_to(folder.directory)
        copy.parent.mkdir(exist_ok=True)
        try:
            shutil.copy2(source, copy)
        except FileNotFoundError:  # taken away since it was listed
            continue
        _sync(copy)
        sync_directory(copy.parent)
        file = copy.relative_to(target.parent).as_posix()
        copied.append(BackupFile((target.name,), file, copy.stat().st_size, _digest(copy)))
    return tuple(copied)


def _rows(files: Iterable[BackupFile]) -> list[dict[str, Any]]:
    return [{"stores": f.names, "file": f.file, "bytes": f.bytes, "sha256": f.sha256} for f in files]


def _read_rows(rows: Any) -> Iterator[BackupFile]:
    for row in rows:
        path = Path(row["file"])
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{path} is outside of it")
        yield BackupFile(tuple(row["stores"]), row["file"], row["bytes"], row["sha256"])


def _write_manifest(path: Path, manifest: Manifest) -> None:
    content = {
        "format": FORMAT,
        "made_at": manifest.made_at,
        "release": manifest.release,
        "files": _rows(manifest.files),
        "folders": {name: _rows(files) for name, files in manifest.folders.items()},
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    _sync(path)


def read_manifest(directory: Path) -> Manifest:
    """What a backup holds. Raises `StoreError` when `directory` is none, or one of a newer release."""
    try:
        content: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
        if content["format"] > FORMAT:
            raise StoreError(
                f"{directory} was made by a newer release ({content['release']}). Restore it with that one."
            )
        folders = {name: tuple(_read_rows(rows)) for name, rows in content["folders"].items()}
        return Manifest(content["made_at"], content["release"], tuple(_read_rows(content["files"])), folders)
    except FileNotFoundError:
        raise StoreError(f"{directory} is no backup: it has no {MANIFEST}.") from None
    except OSError as error:
        raise StoreError(f"{directory} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{directory / MANIFEST} is damaged ({error}). Use another backup.") from error


def check_backup(directory: Path) -> Manifest:
    """Read every byte of a backup. Raises `StoreError` when something is missing or has changed since it was made."""
    manifest = read_manifest(directory)
    for file in chain(manifest.files, *manifest.folders.values()):
        path = directory / file.file
        try:
            intact = path.stat().st_size == file.bytes and _digest(path) == file.sha256
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}. Use another backup.") from error
        if not intact:
            raise StoreError(f"{path} has changed since the backup was made. Use another backup.")
    return manifest


def restore_backup(
    directory: Path, stores: Mapping[str, Path], *, folders: Mapping[str, Folder], aside: str
) -> tuple[Manifest, list[Path]]:
    """Put a backup in the place of the stores (their files by name) and folders; the engine must not run.

    What stood there is moved into a directory `aside` beside it, numbered if there is one, never deleted; returns those.
    The backup is read whole and every file is copied before the first one changes. Raises `StoreError`, and `StoreInUse`
    if an engine has a file.
    """
    manifest = check_backup(directory)
    databases = {_target(file, stores, directory): directory / file.file for file in manifest.files}
    back = {name: folders[name] for name in manifest.folders if name in folders}
    targets = dict(databases)
    for name, folder in back.items():
        for file in manifest.folders[name]:
            targets[folder.directory / Path(file.file).relative_to(name)] = directory / file.file
    old = [(target.parent, Path(f"{target}{end}")) for target in databases for end in ("", "-wal", "-shm")]
    for folder in back.values():
        ours = {*folder.files(), *(target for target in targets if target.is_relative_to(folder.directory))}
        old += [(folder.directory, path) for path in sorted(ours - databases.keys())]
    aside = _unused(aside, [base for base, _ in old])
    moved: list[Path] = []
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        with locked(list(databases)):
            for target, source in targets.items():
                shutil.copy2(source, _new(target))
                _sync(_new(target))
            for base, path in old:
                moved += _move_aside(base, path, aside)
            for target in targets:
                _new(target).rename(target)
                sync_directory(target.parent)
    except OSError as error:
        raise StoreError(f"{directory} could not be restored: {error.strerror} ({error.filename}).") from error
    finally:
        for target in targets:
            with suppress(OSError):
                _new(target).unlink()
    return manifest, list(dict.fromkeys(moved))


def _target(file: BackupFile, stores: Mapping[str, Path], directory: Path) -> Path:
    found = {stores[name] for name in file.names if name in stores}
    if len(found) != 1 or len(file.names) != len([name for name in file.names if name in stores]):
        known = ", ".join(sorted(stores)) or "none"
        raise StoreError(
            f"{directory / file.file} holds the stores {', '.join(file.names)}; the configuration keeps these in files: "
            f"{known}, and not all in one place. Restore with the configuration that the backup was made under."
        )
    return found.pop()


def _new(target: Path) -> Path:
    return target.with_name(target.name + ".restored")


def _unused(name: str, places: Iterable[Path]) -> str:
    """`name`, or the first of `name-2`, `name-3` … that is in none of the places."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    there = set(places)
    return next(found for found in names if not any((place / found).exists() for place in there))


def _move_aside(base: Path, path: Path, aside: str) -> list[Path]:
    if not path.exists():
        return []
    place = base / aside / path.relative_to(base)
    place.parent.mkdir(parents=True, exist_ok=True)
    path.rename(place)
    return [base / aside]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
