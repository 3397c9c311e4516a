"""The threads of a SQLite store: a writer that commits in groups, a reader beside it, and one that looks it over if due.

A read that meets a damaged row is carried out once more by the writer, which can set the row aside. The look at every row
takes a tenth of one core and ends with the store, finished or not.

They never touch Trio except through the token. Whatever ends one of them unexpectedly is raised in
the store's task instead (`Desk.fail`), so that a defect never leaves submitters waiting in silence. They are daemons: a
process that dies without closing its stores is not held up by them, and loses nothing that was answered.
"""

import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from time import monotonic
from typing import TypeVarTuple

import trio

from ..protocol import limits
from . import sqlite_check
from .desk import Desk, Submission
from .interfaces import Fsync
from .results import Failed, RowDamaged
from .sqlite_file import SqliteFile, read, tables_of

GROUP_OPS = limits.STORE_GROUP_OPS
"""Operations in one transaction: the rest gets the next one, so that answers keep flowing."""

GROUP_BYTES = limits.STORE_GROUP_BYTES
"""Bytes after which a transaction takes no further operation."""

PATIENCE_S = 0.002
"""How long patient operations wait for one that is not, to share its transaction and its place on the disk."""

UNFORCED_S = 1.0
"""The longest that something answered stays unforced where every write is to be forced (`JobLog.ack`)."""

_logger = logging.getLogger(__name__)

_Line = queue.SimpleQueue[Submission | None]
_Args = TypeVarTuple("_Args")


class Threads:
    """Start at construction, end at `stop`; the writer closes `file`, last of all."""

    def __init__(self, file: SqliteFile, desk: Desk, fsync_interval_s: float, token: trio.lowlevel.TrioToken) -> None:
        self._file = file
        self._desk = desk
        self._fsync_interval_s = fsync_interval_s
        self._token = token
        self._writes: _Line = queue.SimpleQueue()
        self._reads: _Line = queue.SimpleQueue()
        self._ended = trio.Event()
        self.checked = trio.Event()
        self._stopping = threading.Event()
        file.on_set_aside = lambda table, queue: self._tell(desk.tell, table, queue)
        name = file.path.name
        self._checker: threading.Thread | None = None
        if file.due:
            self._checker = threading.Thread(target=self._check, name=f"store-checker {name}", daemon=True)
            self._checker.start()
        else:
            self.checked.set()
        self._reader = threading.Thread(target=self._read, name=f"store-reader {name}", daemon=True)
        self._reader.start()
        threading.Thread(target=self._write, name=f"store-writer {name}", daemon=True).start()

    def put(self, submission: Submission) -> None:
        """Pass a submission on, to whichever thread may carry it out."""
        line = self._writes if submission.writes or self._desk.overtakes(submission) else self._reads
        line.put(submission)

    async def stop(self, timeout_s: float) -> None:
        """Carry out what is still queued, close the file, end both threads; a disk that hangs is left behind."""
        self._stopping.set()
        self._reads.put(None)
        self._writes.put(None)
        with trio.move_on_after(timeout_s, shield=True):
            await self._ended.wait()
        if not self._ended.is_set():
            _logger.error(
                "the store %s could not be closed within %g s: its disk hangs, and its lock stays with this process",
                self._file.path,
                timeout_s,
            )

    def _write(self) -> None:
        try:
            self._guard(self._serve_writes)
        finally:
            self._reader.join()
            self._stopping.set()
            if self._checker is not None:
                self._checker.join()
            self._file.close()
            self._tell(self._ended.set)

    def _read(self) -> None:
        self._guard(self._serve_reads)

    def _check(self) -> None:
        self._guard(self._look_over)
        self._tell(self.checked.set)

    def _look_over(self) -> None:
        path = str(self._file.path)
        sound: bool | None = False
        try:
            connection = self._file.reader()
            try:
                sound = sqlite_check.look_over(connection, path, self._stopping.wait)
            finally:
                connection.close()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter for a message that quotes a damaged schema
            sqlite_check.log_damage(path, str(error))
        if sound is not None:
            self._file.looked_over(sound)

    def _guard(self, serve: Callable[[], None]) -> None:
        try:
            serve()
        except BaseException as defect:  # noqa: BLE001 (raised again, in the store's task)
            self._tell(self._desk.fail, defect)

    def _tell(self, listener: Callable[[*_Args], object], *args: *_Args) -> None:
        """Call `listener` on the Trio thread; if its run is over, nobody is left to hear it."""
        try:
            self._token.run_sync_soon(listener, *args)
        except trio.RunFinishedError:
            _logger.warning("the store %s has outlived the run that opened it", self._file.path)

    def _serve_writes(self) -> None:
        # The thread's own clock: Trio's belongs to the loop, and a disk knows no virtual time.
        force_at: float | None = None
        stopping = False
        while not stopping:
            try:
                group, stopping = _drain(self._writes, None if force_at is None else max(0.0, force_at - monotonic()))
            except queue.Empty:
                group = []
            if group:
                self._file.commit(group, forced=any(one.forced for one in group))
                self._tell(self._desk.hand_back, group)
            force_at = self._force_in_time(force_at)

    def _force_in_time(self, force_at: float | None) -> float | None:
        """Force the log if `force_at` has come; returns when to do so, or to try again if the disk refuses."""
        if not self._file.unforced:
            return None
        now = monotonic()
        if force_at is None:
            return now + (UNFORCED_S if self._file.fsync is Fsync.ALWAYS else self._fsync_interval_s)
        if now < force_at:
            return force_at
        try:
            self._file.force()
        except OSError as error:
            _logger.error("the store %s could not be forced to the disk: %s", self._file.path, error.strerror)
            return monotonic() + self._fsync_interval_s
        return None

    def _serve_reads(self) -> None:
        connection = self._file.reader()
        try:
            tables = tables_of(connection)
            stopping = False
            while not stopping:
                group, stopping = _drain(self._reads, None)
                done = []
                for submission in group:
                    read(submission, tables, self._file.path)
                    result = submission.result
                    if isinstance(result, Failed) and isinstance(result.error, RowDamaged):
                        self._writes.put(submission)
                    else:
                        done.append(submission)
                if done:
                    self._tell(self._desk.hand_back, done)
        finally:
            connection.close()


def _drain(line: _Line, wait_s: float | None) -> tuple[list[Submission], bool]:
    """The next group, and whether the end was reached; `queue.Empty` if nothing came within `wait_s`."""
    group: list[Submission] = []
    size = 0
    patient, until = True, 0.0
    submission = line.get(timeout=wait_s)
    while submission is not None:
        group.append(submission)
        size += submission.size
        if len(group) >= GROUP_OPS or size >= GROUP_BYTES:
            return group, False
        patient = patient and submission.patient
        until = until or (monotonic() + PATIENCE_S if patient else 0.0)
        try:
            submission = line.get(timeout=max(0.0, until - monotonic())) if patient else line.get_nowait()
        except queue.Empty:
            return group, False
    return group, True
