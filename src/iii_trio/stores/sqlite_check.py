"""Looks a SQLite file over when it is opened: sets damaged rows aside, refuses a file that is damaged beyond rows.

Every row carries a checksum. Rows that do not match move to the table `quarantine` (as JSON, blobs in hexadecimal) with
a line in the log for each and a count in the store's statistics; the others stay. Damage to the file's own structure
(SQLite's integrity check finds it) refuses the start, because what is missing then cannot be told.
"""

import json
import logging
import sqlite3
from collections.abc import Callable
from time import time_ns
from typing import Any, Final

from attrs import frozen

from ..protocol.errors import StoreError
from . import sqlite_jobs, sqlite_kv

SCHEMA: Final = (
    """CREATE TABLE quarantine (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, source TEXT NOT NULL,
    content TEXT NOT NULL) STRICT""",
)

_logger = logging.getLogger(__name__)


@frozen
class _Checked:
    """A table with checksums: `sound` judges rows of `columns`."""

    table: str
    columns: str
    sound: Callable[[tuple[Any, ...]], bool]


_CHECKED: Final = (
    _Checked("kv", sqlite_kv.COLUMNS, sqlite_kv.sound),
    _Checked("jobs", sqlite_jobs.JOB_COLUMNS, sqlite_jobs.sound),
    _Checked("dead", sqlite_jobs.DEAD_COLUMNS, sqlite_jobs.sound),
    _Checked("destinations", sqlite_jobs.DESTINATION_COLUMNS, sqlite_jobs.sound_short),
    _Checked("taken_keys", sqlite_jobs.KEY_COLUMNS, sqlite_jobs.sound_short),
    _Checked("notes", sqlite_jobs.NOTE_COLUMNS, sqlite_jobs.sound_short),
)


def set_damaged_aside(connection: sqlite3.Connection, path: str) -> int:
    """Check every row, move the damaged ones to `quarantine`; returns how many rows stand there now, old ones too.

    Raises `StoreError` if the file is damaged beyond rows, and `sqlite3.Error` if it cannot even be read.
    """
    for checked in _CHECKED:
        rows = connection.execute(f"SELECT rowid, {checked.columns} FROM {checked.table} NOT INDEXED ORDER BY rowid")
        bad = [row for row in rows if not checked.sound(row[1:])]
        if bad:
            names = [column[0] for column in rows.description[1:]]
            _move(connection, checked.table, names, bad)
            for row in bad:
                _logger.error(
                    "damaged row %d of table %s in %s was set aside in quarantine", row[0], checked.table, path
                )
    findings = [text for (text,) in connection.execute("PRAGMA integrity_check(3)")]
    if findings != ["ok"]:
        raise StoreError(
            f"{path} is damaged: {'; '.join(findings)}. Nothing was lost by looking. Restore a backup, or move the file "
            "away and save what can be read with the command `sqlite3 FILE .recover`."
        )
    (aside,) = connection.execute("SELECT count(*) FROM quarantine").fetchone()
    return int(aside)


def _move(connection: sqlite3.Connection, table: str, names: list[str], bad: list[tuple[Any, ...]]) -> None:
    """In one transaction. Indexes are built anew, because a damaged row no longer matches its entries in them."""
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL", (table,)
    ).fetchall()
    connection.execute("BEGIN IMMEDIATE")
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    for rowid, *values in bad:
        content = json.dumps({name: _readable(value) for name, value in zip(names, values, strict=True)})
        row = (time_ns() // 1_000_000, table, content)
        connection.execute("INSERT INTO quarantine (at_ms, source, content) VALUES (?, ?, ?)", row)
        connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))
    for _, sql in indexes:
        connection.execute(sql)
    connection.execute("COMMIT")


def _readable(value: object) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else value
