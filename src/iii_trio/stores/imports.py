"""Putting values from elsewhere into store files, all of them or none; the engine must not run."""

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from time import time_ns

from attrs import frozen

from ..protocol.errors import StoreError
from .desk import Submission, unsuitable
from .interfaces import Fsync
from .key_value import Entry
from .sqlite_file import SqliteFile, open_file
from .tables import Tables


class Existing(Enum):
    """What happens to keys that a store has already."""

    REFUSE = "refuse"
    KEEP = "keep"
    OVERWRITE = "overwrite"


@frozen
class Imported:
    """What an import did to one store, or would do: keys `new` there, and those that were there, `existing`."""

    new: int
    existing: int


def import_values(
    stores: Mapping[Path, Sequence[Entry]], existing: Existing, *, dry_run: bool = False
) -> dict[Path, Imported]:
    """Put the entries of each store file into it, in their order; the file is made if it is missing. Blocks, for long.

    Nothing changes if anything cannot be stored, or is there already and `existing` is REFUSE. Each file is one
    transaction, after all of them have been checked. Raises `StoreError`, and `StoreInUse` if an engine has a file.
    """
    for entries in stores.values():
        for entry in entries:
            problem = unsuitable((entry.space, entry.scope, entry.key), (entry.value,), ())
            if problem is not None:
                raise problem
    with ExitStack() as stack:
        files: dict[Path, SqliteFile] = {}
        there: dict[Path, set[tuple[str, str, str]]] = {}
        for path, entries in stores.items():
            if dry_run and not path.exists():
                there[path] = set()
                continue
            file = files[path] = open_file(path, Fsync.ALWAYS, check=False)
            stack.callback(file.close)
            there[path] = _there(file, entries)
        known = [key for keys in there.values() for key in keys]
        if known and existing is Existing.REFUSE:
            _, scope, key = min(known)
            raise StoreError(
                f"{len(known)} of the keys are there already, {key!r} in {scope!r} for one; nothing was imported. "
                "Say with --overwrite or --keep which of the values is to stay."
            )
        if not dry_run:
            for path, file in files.items():
                kept = there[path] if existing is Existing.KEEP else set()
                _write(file, [entry for entry in stores[path] if _key(entry) not in kept])
    return {path: Imported(len(entries) - len(there[path]), len(there[path])) for path, entries in stores.items()}


def _key(entry: Entry) -> tuple[str, str, str]:
    return entry.space, entry.scope, entry.key


def _there(file: SqliteFile, entries: Sequence[Entry]) -> set[tuple[str, str, str]]:
    now_ms = time_ns() // 1_000_000  # a key whose time is up only waits to be removed
    try:
        return {_key(entry) for entry in entries if file.tables.values.get(*_key(entry), now_ms) is not None}
    except sqlite3.Error as error:
        raise StoreError(f"{file.path} could not be read: {error}. Check the disk.") from error


def _write(file: SqliteFile, entries: Sequence[Entry]) -> None:
    def work(tables: Tables) -> None:
        for entry in entries:
            tables.values.set(*_key(entry), entry.value)

    submission = Submission(work, on_done=lambda _: None, size=0, lane=None, writes=True)
    file.commit([submission])
    assert submission.result is not None
    submission.result.unwrap()
