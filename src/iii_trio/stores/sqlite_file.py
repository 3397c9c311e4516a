"""One SQLite file: who may open it, what version it has, how a group of operations becomes one transaction.

Synchronous and free of threads; `sqlite.py` decides who calls it. Opening takes, in this order: the directory, the lock
file beside the database (held until `close`; it is never deleted, so that two engines can never hold different files of
one name), the database in WAL mode, its migrations and a probing write; nothing of this takes longer for a large file.
Whether every row is to be looked at, and when, is the matter of `sqlite_check.py`.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import time_ns
from typing import Any, Final

from attrs import define, evolve, field

from ..protocol import limits
from ..protocol.errors import StoreError
from . import sqlite_check, sqlite_jobs, sqlite_kv
from .desk import Submission, carry_out
from .interfaces import Fsync
from .results import Failed, RowDamaged, StoreInUse
from .tables import Tables

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (*sqlite_kv.SCHEMA, *sqlite_jobs.SCHEMA, *sqlite_check.SCHEMA),
    sqlite_kv.EXPIRY,
    sqlite_jobs.ORDER,
    sqlite_check.HISTORY,
)
"""Statements that lead from version n to n + 1; a version once released never changes."""

APPLICATION_ID: Final = 0x69696974
"""Marks the file as ours ("iiit"), so that another program's database is never touched."""

WAL_LIMIT: Final = limits.STORE_WAL
"""Bytes to which the write-ahead log is cut back after a burst."""

OLDEST_SQLITE: Final = (3, 37)
"""The first with STRICT tables, whose columns hold the types they say."""

SMALLEST_DATABASE: Final = 512
"""Bytes of SQLite's smallest page; a few bytes of something else it would take for a new database, and overwrite."""

_logger = logging.getLogger(__name__)

_SYNCHRONOUS: Final = {Fsync.ALWAYS: "FULL", Fsync.INTERVAL: "NORMAL", Fsync.NEVER: "OFF"}


@define(eq=False)
class SqliteFile:
    """An open file; `open_file` makes one. Its methods are called by one thread at a time.

    `history` is what it said when it was opened; `due`: every row was to be looked at then. `on_set_aside` is called with
    table and queue of each job that was set aside.
    """

    path: Path
    fsync: Fsync
    set_aside: int
    history: sqlite_check.History
    due: bool
    _connection: sqlite3.Connection
    _lock: int
    tables: Tables = field(init=False)
    groups: int = field(default=0, init=False)
    largest_group: int = field(default=0, init=False)
    failed_groups: int = field(default=0, init=False)
    on_set_aside: Callable[[str, str], object] = field(default=lambda *_: None, init=False)
    _passed_at_ms: int = field(default=0, init=False)  # looked over since, or never
    _damaged: bool = field(default=False, init=False)  # found since; never taken back
    _met: list[tuple[RowDamaged, str]] = field(factory=list, init=False)  # set aside by the transaction under way
    unforced: bool = field(default=False, init=False)
    """Whether something that was committed is not on the disk yet; the next forced commit, or `force`, puts it there."""
    _forcing: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tables = tables_of(self._connection)
        self._forcing = self.fsync is Fsync.ALWAYS

    def commit(self, group: Sequence[Submission], *, forced: bool = True) -> None:
        """Carry out the group in one transaction and commit it; every submission has its result afterwards.

        What is not `forced` is in the file, as far as the operating system is concerned, but not on the disk yet. (The
        same log holds all of it, in order: to force a later commit forces those before it.)

        If the transaction does not reach the disk, every write in it has failed and nothing was changed; reads are
        answered from what stands. (After a failed sync only the disk knows what it kept: should the process die before
        the next commit, SQLite may find the group complete in the log.)
        """
        changes = self._connection.total_changes
        try:
            if self.fsync is Fsync.ALWAYS and forced is not self._forcing:
                self._connection.execute(
                    f"PRAGMA synchronous = {_SYNCHRONOUS[Fsync.ALWAYS if forced else Fsync.INTERVAL]}"
                )
                self._forcing = forced
            self._connection.execute("BEGIN IMMEDIATE")
            carry_out(group, self.tables, self._set_aside)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(group, error)
        else:
            if self._connection.total_changes != changes:  # what changes nothing writes nothing, and forces nothing
                self.unforced = not self._forcing and self.fsync is not Fsync.NEVER
            self.groups += 1
            self.largest_group = max(self.largest_group, len(group))
            if self._met:
                self._tell()

    def _set_aside(self, error: RowDamaged) -> bool:
        """Take a damaged row out of the way of the transaction under way; False if that cannot be done now.

        Where more is damaged than the row, its indexes may not be built anew: that fails nobody but who has asked for it.
        """
        self._connection.execute("SAVEPOINT aside")
        try:
            queue = sqlite_check.set_row_aside(self._connection, error.table, error.row)
        except sqlite3.Error as failure:
            _logger.error(
                "row %d of table %s in %s stays where it lies: %s", error.row, error.table, self.path, failure
            )
            self._connection.execute("ROLLBACK TO aside")  # a full disk has ended the whole transaction: no use then
            queue = None
        self._connection.execute("RELEASE aside")
        if queue is not None:
            self._met.append((error, queue))
        return queue is not None

    def _tell(self) -> None:
        for error, queue in self._met:
            sqlite_check.log_set_aside(error.row, error.table, str(self.path), str(error).partition(". ")[0])
            if queue:
                self.on_set_aside(error.table, queue)
        self.set_aside += len(self._met)
        self._damaged = True
        self._met.clear()

    def looked_over(self, sound: bool) -> None:
        """Every row was looked at since the file was opened. Any thread may say so."""
        if sound:
            self._passed_at_ms = time_ns() // 1_000_000
        else:
            self._damaged = True

    def _history(self) -> sqlite_check.History:
        """What the next start is to know."""
        before = self.history
        return sqlite_check.History(
            self._passed_at_ms or before.passed_at_ms,
            closed=before.closed or self._passed_at_ms > 0,
            damaged=before.damaged or self._damaged,
        )

    def _give_up(self, group: Sequence[Submission], error: sqlite3.Error) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._met.clear()
        self.failed_groups += 1
        failure = StoreError(f"Nothing was written to {self.path}: {error}. Check the disk and its free space.")
        for submission in group:
            if submission.writes:
                submission.result = Failed(failure)
            else:
                read(submission, self.tables, self.path)
        # On a full disk this lets the log be used again from its start, so that what needs no new room goes on.
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def reader(self) -> sqlite3.Connection:
        """A second connection that only reads; its maker closes it."""
        connection = _connect(self.path)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def force(self) -> None:
        """Force the write-ahead log to the disk; the database file follows at checkpoints."""
        log = os.open(f"{self.path}-wal", os.O_RDONLY)
        try:
            os.fsync(log)
        finally:
            os.close(log)
        self.unforced = False

    def close(self) -> None:
        """Move the log into the database, close it and let others have it.

        What is never forced is not closed in order either: a power cut may still take any of it.
        """
        try:
            if self.fsync is not Fsync.NEVER:
                with contextlib.suppress(sqlite3.Error):  # then it is looked over once more than it needs
                    sqlite_check.write_history(self._connection, self._history())
            self._connection.close()
        finally:
            os.close(self._lock)


def tables_of(connection: sqlite3.Connection) -> Tables:
    """Everything in the file, through this connection."""
    return Tables(sqlite_kv.SqliteKeyValueTable(connection), sqlite_jobs.SqliteJobTable(connection))


def read(submission: Submission, tables: Tables, path: Path) -> None:
    """Carry out a read by itself, outside any transaction."""
    try:
        carry_out([submission], tables)
    except sqlite3.Error as error:
        submission.result = Failed(StoreError(f"{path} could not be read: {error}. Check the disk."))


def open_file(path: str | os.PathLike[str], fsync: Fsync, *, check: bool, first: bool = True) -> SqliteFile:
    """Open or create the file; `check` looks every row over (5 s per million values, 10 s per million jobs).

    Not `first`: only if damage was found when it was last used; else it is left to the caller, who sees whether it is
    `due`.

    Raises `StoreInUse` if another engine has it and `StoreError` if it cannot be used, each saying what to do.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StoreError(f"SQLite 3.37 or newer is needed; this Python brings {sqlite3.sqlite_version}.")
    absolute = Path(os.path.realpath(path))
    _make_directories(absolute.parent)
    lock = _take_lock(absolute)
    connection: sqlite3.Connection | None = None
    try:
        if 0 < _size(absolute) < SMALLEST_DATABASE:
            raise StoreError(f"{absolute} is cut off or no database at all. Restore a backup, or move it away.")
        connection = _connect(absolute)
        _prepare(connection, absolute, fsync)
        sync_directory(absolute.parent)
        history = sqlite_check.read_history(connection)
        due = check and history.due
        if check and (first or history.damaged):
            sqlite_check.set_damaged_aside(connection, str(absolute))
            history, due = sqlite_check.History(time_ns() // 1_000_000, closed=True, damaged=False), False
        sqlite_check.write_history(connection, evolve(history, closed=False))  # until `close` says otherwise
        set_aside = sqlite_check.count_set_aside(connection)
        return SqliteFile(absolute, fsync, set_aside, history, due, connection, lock)
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for a message that quotes a damaged schema
        _close(connection, lock)
        raise StoreError(
            f"{absolute} cannot be used as a store: {error}. If the file is not ours or is damaged, move it away or "
            "restore a backup; if the disk is full or read-only, choose another data directory."
        ) from error
    except BaseException:
        _close(connection, lock)
        raise


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _close(connection: sqlite3.Connection | None, lock: int) -> None:
    if connection is not None:
        connection.close()
    os.close(lock)


def _make_directories(directory: Path) -> None:
    try:
        missing = [parent for parent in (directory, *directory.parents) if not parent.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        for created in missing:
            sync_directory(created.parent)
    except OSError as error:
        raise StoreError(
            f"The data directory {directory} cannot be made: {error.strerror}. Choose another one, or fix its rights."
        ) from error


def sync_directory(directory: Path) -> None:
    """A new name is on disk only when its directory is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(paths: Iterable[Path]) -> Iterator[None]:
    """Keep engines away from these files for the length of the block. Raises `StoreInUse` if one has a file."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.callback(os.close, _take_lock(path))
        yield


def _take_lock(path: Path) -> int:
    name = f"{path}.lock"
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"The data directory of {path} cannot be written: {error.strerror}. Choose another one, or fix its rights."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise StoreInUse(
            f"{path} is in use by another engine (process {holder}, which holds {name}). "
            "Stop that process, or give this engine a data directory of its own."
        ) from error
    except OSError as error:
        os.close(lock)
        raise StoreError(f"{name} cannot be locked: {error.strerror}. Keep the data on a local disk.") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    # Text that a turned bit has made undecodable must reach the checksum, not stop the query.
    connection.text_factory = _lenient
    return connection


def _lenient(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def _prepare(connection: sqlite3.Connection, path: Path, fsync: Fsync) -> None:
    """Refuse what is not ours, then modes, migrations and a write that proves that the file can be written."""
    version = _pragma(connection, "user_version")
    application = _pragma(connection, "application_id")
    foreign = application != APPLICATION_ID if version else bool(connection.execute(_ANY_TABLE).fetchone())
    if foreign or _pragma(connection, "encoding") != "UTF-8":
        raise StoreError(f"{path} is the database of another program. Choose another file; this one was not changed.")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer release (format {version}, this one knows {len(MIGRATIONS)}). "
            "Use that release, or another data directory."
        )
    connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[fsync]}")
    if _pragma(connection, "journal_mode = WAL") != "wal":
        raise StoreError(f"{path} lies where SQLite cannot keep a write-ahead log. Keep the data on a local disk.")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}").fetchall()
    connection.execute("PRAGMA cell_size_check = ON")
    sqlite_jobs.prepare(connection)
    connection.execute("BEGIN IMMEDIATE")
    for migration in MIGRATIONS[version:]:
        for statement in migration:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.execute("COMMIT")


_ANY_TABLE: Final = "SELECT 1 FROM sqlite_master LIMIT 1"


def _pragma(connection: sqlite3.Connection, text: str) -> Any:
    return connection.execute(f"PRAGMA {text}").fetchone()[0]
