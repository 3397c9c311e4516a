"""Looks a SQLite file over, at once or beside the work, and sets damaged rows aside.

Every row carries a checksum, and every read compares it. A row that does not match is handed to nobody: it moves to the
table `quarantine` (as JSON, blobs in hexadecimal) with a line in the log and a count in the store's statistics, when an
operation meets it or when a file is looked over before it is used; the others stay.

Looking at every row takes seconds per million, so the start does not wait for it. `History` says what is due: nothing
for a file that was closed in order and has passed within `GOOD_FOR_MS`; else `look_over` goes through the file beside the
work, in steps with pauses, and says what it finds. If something was found, the next start looks first
(`set_damaged_aside`) and refuses a file that is damaged beyond rows, because what is missing then cannot be told.
"""

import json
import logging
import sqlite3
from collections.abc import Callable
from time import perf_counter, time_ns
from typing import Any, Final

from attrs import frozen

from ..protocol.errors import StoreError
from . import sqlite_jobs, sqlite_kv

SCHEMA: Final = (
    """CREATE TABLE quarantine (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, source TEXT NOT NULL,
    content TEXT NOT NULL) STRICT""",
)
HISTORY: Final = (
    """CREATE TABLE checks (id INTEGER PRIMARY KEY, passed_at_ms INTEGER NOT NULL, closed INTEGER NOT NULL,
    damaged INTEGER NOT NULL) STRICT""",
    "INSERT INTO checks VALUES (1, 0, 0, 0)",
)
"""The migration that lets a file say when it was looked over, whether it was closed in order, what was found."""

GOOD_FOR_MS: Final = 7 * 24 * 3_600_000
"""How long a look at every row holds for a file that is closed in order each time."""

STEP_ROWS: Final = 100
"""Rows between two pauses of `look_over`."""

PAUSE: Final = 9.0
"""Pauses of `look_over`, as a multiple of the time that its steps take: a tenth of one core."""

WORTH_TELLING: Final = 10_000
"""Rows of a file that took a while to look at; of a smaller one that is sound nobody needs to hear."""

PROGRESS_OPS: Final = 100_000
"""Steps of SQLite's machine after which a long statement looks whether it is to end."""

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


@frozen
class History:
    """What a file says of itself: when every row was last found sound (Unix ms), how it was closed, what was found."""

    passed_at_ms: int
    closed: bool
    damaged: bool

    @property
    def due(self) -> bool:
        """Whether every row is to be looked at again."""
        age_ms = time_ns() // 1_000_000 - self.passed_at_ms
        return self.damaged or not self.closed or not 0 <= age_ms < GOOD_FOR_MS


def read_history(connection: sqlite3.Connection) -> History:
    """What the file says; one that says nothing is to be looked over."""
    row = connection.execute("SELECT passed_at_ms, closed, damaged FROM checks WHERE id = 1").fetchone()
    return History(0, False, False) if row is None else History(row[0], row[1] == 1, row[2] != 0)


def write_history(connection: sqlite3.Connection, history: History) -> None:
    """Let the file say so."""
    row = (history.passed_at_ms, history.closed, history.damaged)
    connection.execute("INSERT OR REPLACE INTO checks VALUES (1, ?, ?, ?)", row)


# -- before the file is used ------------------------------------------------------------------------------------------


def set_damaged_aside(connection: sqlite3.Connection, path: str) -> None:
    """Check every row and move the damaged ones to `quarantine`.

    Raises `StoreError` if the file is damaged beyond rows, and `sqlite3.Error` if it cannot even be read.
    """
    for checked in _CHECKED:
        rows = connection.execute(f"SELECT rowid, {checked.columns} FROM {checked.table} NOT INDEXED ORDER BY rowid")
        bad = [row for row in rows if not checked.sound(row[1:])]
        if bad:
            connection.execute("BEGIN IMMEDIATE")
            _move(connection, checked.table, [column[0] for column in rows.description[1:]], bad)
            connection.execute("COMMIT")
            for row in bad:
                log_set_aside(row[0], checked.table, path)
    findings = [text for (text,) in connection.execute("PRAGMA integrity_check(3)")]
    if findings != ["ok"]:
        raise StoreError(
            f"{path} is damaged: {'; '.join(findings)}. Nothing was lost by looking. Restore a backup, or move the file "
            "away and save what can be read with the command `sqlite3 FILE .recover`."
        )


def count_set_aside(connection: sqlite3.Connection) -> int:
    """Rows in quarantine, old ones too."""
    (aside,) = connection.execute("SELECT count(*) FROM quarantine").fetchone()
    return int(aside)


def log_set_aside(row: int, table: str, path: str, what: str = "") -> None:
    """Say so, for everybody to see; `what` names the row."""
    _logger.error(
        "damaged row %d of table %s in %s was set aside in quarantine%s", row, table, path, what and f": {what}"
    )


# -- while it is in use -----------------------------------------------------------------------------------------------


def set_row_aside(connection: sqlite3.Connection, table: str, row: int) -> str | None:
    """Move one row to `quarantine`, inside the transaction under way, and let the next start look first.

    Returns the name of the queue for a job, "" for anything else, and None for a row that is gone or sound. It takes as
    long as building the table's indexes anew (seconds per million rows).
    """
    checked = next(checked for checked in _CHECKED if checked.table == table)
    cursor = connection.execute(f"SELECT rowid, {checked.columns} FROM {table} NOT INDEXED WHERE rowid = ?", (row,))
    names = [column[0] for column in cursor.description[1:]]
    bad = [found for found in cursor if not checked.sound(found[1:])]
    if not bad:
        return None
    _move(connection, table, names, bad)
    connection.execute("UPDATE checks SET damaged = 1")
    return str(bad[0][1 + names.index("queue")]) if table in ("jobs", "dead") else ""


def look_over(connection: sqlite3.Connection, path: str, pause: Callable[[float], bool]) -> bool | None:
    """Look at every row and at SQLite's own books, a step at a time; True if all of it is sound.

    Between steps it calls `pause` with the seconds to wait; when that answers True, it ends with None. What is damaged
    is said in the log, and left where it lies: whoever meets it, or the next start, sets it aside.
    """
    sound, count = True, 0
    for checked in _CHECKED:
        after: int | None = -(2**63)
        while after is not None:
            began = perf_counter()
            bad, after, step = _step(connection, checked, after)
            for row in bad:
                sound = False
                _logger.error(
                    "row %d of table %s in %s is damaged: it is handed to nobody, and set aside when it is met, or at the "
                    "next start",
                    *(row, checked.table, path),
                )
            count += step
            if pause((perf_counter() - began) * PAUSE):
                return None
    connection.set_progress_handler(lambda: pause(0.0), PROGRESS_OPS)
    try:
        findings = [text for (text,) in connection.execute("PRAGMA integrity_check(3)")]
    except sqlite3.OperationalError:
        if pause(0.0):
            return None
        raise
    finally:
        connection.set_progress_handler(None, 0)
    if findings != ["ok"]:
        log_damage(path, "; ".join(findings))
        return False
    level = logging.DEBUG if sound and count < WORTH_TELLING else logging.INFO
    _logger.log(level, "all %d rows of %s were looked at beside the work%s", count, path, sound * ", and are sound")
    return sound


def log_damage(path: str, found: str) -> None:
    """Say that a file that is in use is damaged beyond rows."""
    _logger.error(
        "%s is damaged: %s. Something may be missing from what it answers; the next start refuses it. Restore a backup, "
        "or move the file away and save what can be read with the command `sqlite3 FILE .recover`.",
        *(path, found),
    )


def _step(connection: sqlite3.Connection, checked: _Checked, after: int) -> tuple[list[int], int | None, int]:
    """The next rows behind `after`: which are damaged, the last of them (None: there are no more), how many."""
    statement = (
        f"SELECT rowid, {checked.columns} FROM {checked.table} NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT ?"
    )
    bad, last, count = list[int](), after, 0
    for row in connection.execute(statement, (after, STEP_ROWS)):
        last, count = row[0], count + 1
        if not checked.sound(row[1:]):
            bad.append(last)
    return bad, last if count == STEP_ROWS and last > after else None, count


def _move(connection: sqlite3.Connection, table: str, names: list[str], bad: list[tuple[Any, ...]]) -> None:
    """Inside a transaction. Indexes are built anew, because a damaged row no longer matches its entries in them."""
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = ? AND sql IS NOT NULL", (table,)
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX {name}")
    for rowid, *values in bad:
        content = json.dumps({name: _readable(value) for name, value in zip(names, values, strict=True)})
        row = (time_ns() // 1_000_000, table, content)
        connection.execute("INSERT INTO quarantine (at_ms, source, content) VALUES (?, ?, ?)", row)
        connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (rowid,))
    for _, sql in indexes:
        connection.execute(sql)


def _readable(value: object) -> object:
    return {"hex": value.hex()} if isinstance(value, bytes) else value
