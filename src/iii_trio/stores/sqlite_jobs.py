"""The job log in SQLite: live jobs, dead letters, destinations, taken keys and notes.

`seq` is given out from memory and grows over both tables, so that a job that returns from the dead goes behind all
others and the newest dead letter has the largest.
"""

import sqlite3
from collections.abc import Sequence
from operator import attrgetter, itemgetter
from typing import Any, Final

from attrs import evolve

from .checksums import checksum, damaged
from .interfaces import DeadLetter, Destination, Heading, Job, NewJob, Note, Once, Trimmed

_COMMON: Final = """seq INTEGER PRIMARY KEY, id TEXT NOT NULL, queue TEXT NOT NULL, namespace TEXT NOT NULL,
    function_id TEXT, max_attempts INTEGER NOT NULL, backoff_ms INTEGER NOT NULL, created_at_ms INTEGER NOT NULL,
    due_at_ms INTEGER NOT NULL, group_id TEXT, traceparent TEXT, baggage TEXT, message_id TEXT,
    priority INTEGER NOT NULL, attempts INTEGER NOT NULL, error TEXT, checksum INTEGER NOT NULL, metadata BLOB,
    payload BLOB NOT NULL"""

SCHEMA: Final = (
    f"CREATE TABLE jobs ({_COMMON}) STRICT",
    "CREATE INDEX jobs_unclaimed ON jobs(queue, seq) WHERE function_id IS NULL",
    f"CREATE TABLE dead (failed_at_ms INTEGER NOT NULL, {_COMMON}) STRICT",
    "CREATE INDEX dead_queue ON dead(queue, seq)",
    "CREATE INDEX dead_id ON dead(id)",
    "CREATE INDEX dead_message ON dead(message_id) WHERE message_id IS NOT NULL",
    "CREATE INDEX dead_age ON dead(queue, failed_at_ms)",
    """CREATE TABLE destinations (topic TEXT NOT NULL, namespace TEXT NOT NULL, function_id TEXT NOT NULL,
    checksum INTEGER NOT NULL) STRICT""",
    "CREATE UNIQUE INDEX destinations_key ON destinations(topic, namespace, function_id)",
    """CREATE TABLE taken_keys (queue TEXT NOT NULL, key TEXT NOT NULL, until_ms INTEGER NOT NULL,
    checksum INTEGER NOT NULL) STRICT""",
    "CREATE UNIQUE INDEX taken_keys_key ON taken_keys(queue, key)",
    "CREATE INDEX taken_keys_until ON taken_keys(until_ms)",
    """CREATE TABLE notes (kind TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL,
    checksum INTEGER NOT NULL) STRICT""",
    "CREATE UNIQUE INDEX notes_key ON notes(kind, name)",
)

EXPIRED_KEYS: Final = 100
"""Keys dropped, if their time is over, for each that is taken."""

# In the order of the attributes of `Job`, so that a row makes one.
_NAMES: Final = (
    *("id", "queue", "namespace", "function_id", "payload", "max_attempts", "backoff_ms", "created_at_ms", "due_at_ms"),
    *("group_id", "traceparent", "baggage", "message_id", "metadata", "priority", "seq", "attempts", "error"),
)
_WIDTH: Final = len(_NAMES)
_PAYLOAD: Final = _NAMES.index("payload")
_METADATA: Final = _NAMES.index("metadata")
_short: Final = itemgetter(*(index for index in range(_WIDTH) if index not in (_PAYLOAD, _METADATA)))
_as_row: Final = attrgetter(*_NAMES)

JOB_COLUMNS: Final = f"{', '.join(_NAMES)}, NULL, checksum"
DEAD_COLUMNS: Final = f"{', '.join(_NAMES)}, failed_at_ms, checksum"
DESTINATION_COLUMNS: Final = "topic, namespace, function_id, checksum"
KEY_COLUMNS: Final = "queue, key, until_ms, checksum"
NOTE_COLUMNS: Final = "kind, name, value, checksum"
_HEADING_COLUMNS: Final = "seq, queue, namespace, function_id, group_id, priority, attempts, created_at_ms, due_at_ms"

_SELECT: Final = f"SELECT {JOB_COLUMNS} FROM jobs"
_SELECT_DEAD: Final = f"SELECT {DEAD_COLUMNS} FROM dead"
_PLACES: Final = ", ".join("?" * (_WIDTH + 1))
_INSERT: Final = f"INSERT INTO jobs ({', '.join(_NAMES)}, checksum) VALUES ({_PLACES})"
_INSERT_DEAD: Final = f"INSERT INTO dead ({', '.join(_NAMES)}, failed_at_ms, checksum) VALUES ({_PLACES}, ?)"


def sound(row: tuple[Any, ...]) -> bool:
    """Whether a row of `JOB_COLUMNS` or `DEAD_COLUMNS` matches its checksum."""
    return bool(_checksum(row, row[_WIDTH]) == row[-1])


def sound_short(row: tuple[Any, ...]) -> bool:
    """Whether a row of `DESTINATION_COLUMNS`, `KEY_COLUMNS` or `NOTE_COLUMNS` matches its checksum."""
    return bool(checksum(row[:3]) == row[3])


def _checksum(row: tuple[Any, ...], failed_at_ms: int | None = None) -> int:
    return checksum((*_short(row), failed_at_ms), row[_PAYLOAD], row[_METADATA])


def _job(row: tuple[Any, ...]) -> Job:
    job = Job(*row[:_WIDTH])
    if not sound(row):
        raise damaged(f"job {job.id!r} of queue {job.queue!r}")
    return job


class SqliteJobTable:
    """`JobTable` on one connection. Only one of a file's connections writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        newest = "SELECT max(coalesce((SELECT max(seq) FROM jobs), 0), coalesce((SELECT max(seq) FROM dead), 0))"
        self._last_seq: int = self._execute(newest).fetchone()[0]

    def append(self, jobs: Sequence[NewJob]) -> list[Job]:
        """See `JobLog.append`."""
        return [self._insert(Job.numbered(self._next_seq(), new)) for new in jobs]

    def append_once(self, jobs: Sequence[NewJob], once: Once) -> list[Job]:
        """See `JobLog.append_once`."""
        expired = "SELECT rowid FROM taken_keys WHERE until_ms <= ? LIMIT ?"
        self._execute(f"DELETE FROM taken_keys WHERE rowid IN ({expired})", (once.now_ms, EXPIRED_KEYS))
        row = (once.queue, once.key, once.until_ms)
        taken = self._execute(
            f"INSERT INTO taken_keys ({KEY_COLUMNS}) VALUES (?, ?, ?, ?) ON CONFLICT(queue, key) DO UPDATE "
            "SET until_ms = excluded.until_ms, checksum = excluded.checksum WHERE taken_keys.until_ms <= ?",
            (*row, checksum(row), once.now_ms),
        ).rowcount
        return self.append(jobs) if taken else []

    def headings(self, after: int, limit: int) -> list[Heading]:
        """See `JobLog.headings`. Checksums were looked at when the file was opened, and are again on delivery."""
        statement = f"SELECT {_HEADING_COLUMNS} FROM jobs WHERE seq > ? ORDER BY seq LIMIT ?"
        return [Heading(*row) for row in self._execute(statement, (after, limit))]

    def load(self, after: int, limit: int) -> list[Job]:
        """See `JobLog.load`."""
        return [_job(row) for row in self._execute(f"{_SELECT} WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))]

    def ack(self, seq: int) -> bool:
        """See `JobLog.ack`."""
        return self._execute("DELETE FROM jobs WHERE seq = ?", (seq,)).rowcount > 0

    def retry(self, seq: int, attempts: int, due_at_ms: int, error: str) -> bool:
        """See `JobLog.retry`."""
        job = self._find(seq)
        if job is None:
            return False
        failed = evolve(job, attempts=attempts, due_at_ms=due_at_ms, error=error)
        statement = "UPDATE jobs SET attempts = ?, due_at_ms = ?, error = ?, checksum = ? WHERE seq = ?"
        self._execute(statement, (attempts, due_at_ms, error, _checksum(_as_row(failed)), seq))
        return True

    def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int) -> bool:
        """See `JobLog.dead_letter`."""
        job = self._find(seq)
        if job is None:
            return False
        row = _as_row(evolve(job, seq=self._next_seq(), attempts=attempts, error=error))
        self._execute(_INSERT_DEAD, (*row, failed_at_ms, _checksum(row, failed_at_ms)))
        return self.ack(seq)

    def remove(self, seqs: Sequence[int]) -> int:
        """See `JobLog.remove`."""
        return sum(self.ack(seq) for seq in seqs)

    def remove_unclaimed(self, queue: str, limit: int) -> int:
        """See `JobLog.remove_unclaimed`."""
        found = "SELECT seq FROM jobs WHERE queue = ? AND function_id IS NULL ORDER BY seq LIMIT ?"
        return self._execute(f"DELETE FROM jobs WHERE seq IN ({found})", (queue, limit)).rowcount

    def adopt(self, from_queue: str, to_queue: str, namespace: str, function_id: str, limit: int) -> list[Job]:
        """See `JobLog.adopt`."""
        unclaimed = f"{_SELECT} WHERE queue = ? AND function_id IS NULL ORDER BY seq LIMIT ?"
        rows = self._execute(unclaimed, (from_queue, limit))
        jobs = [evolve(_job(row), queue=to_queue, namespace=namespace, function_id=function_id) for row in rows]
        for job in jobs:
            self._execute(
                "UPDATE jobs SET queue = ?, namespace = ?, function_id = ?, checksum = ? WHERE seq = ?",
                (to_queue, namespace, function_id, _checksum(_as_row(job)), job.seq),
            )
        return jobs

    def dead_letters(self, queues: Sequence[str], offset: int, limit: int) -> list[DeadLetter]:
        """See `JobLog.dead_letters`."""
        places = ", ".join("?" * len(queues))
        rows = self._execute(
            f"{_SELECT_DEAD} WHERE queue IN ({places}) ORDER BY seq DESC LIMIT ? OFFSET ?", (*queues, limit, offset)
        )
        return [DeadLetter(job=_job(row), failed_at_ms=row[_WIDTH]) for row in rows]

    def dead_counts(self) -> dict[str, int]:
        """See `JobLog.dead_counts`."""
        return dict(self._execute("SELECT queue, count(*) FROM dead GROUP BY queue"))

    def redrive(self, queue: str, limit: int, due_at_ms: int) -> list[Job]:
        """See `JobLog.redrive`."""
        rows = self._execute(f"{_SELECT_DEAD} WHERE queue = ? ORDER BY seq LIMIT ?", (queue, limit))
        return [self._revive(dead, due_at_ms) for dead in [_job(row) for row in rows]]

    def redrive_one(self, queue: str, job_id: str, due_at_ms: int) -> Job | None:
        """See `JobLog.redrive_one`."""
        seq = self._find_dead(queue, job_id)
        if seq is None:
            return None
        return self._revive(_job(self._execute(f"{_SELECT_DEAD} WHERE seq = ?", (seq,)).fetchone()), due_at_ms)

    def discard(self, queue: str, job_id: str) -> bool:
        """See `JobLog.discard`."""
        seq = self._find_dead(queue, job_id)
        if seq is None:
            return False
        return self._execute("DELETE FROM dead WHERE seq = ?", (seq,)).rowcount > 0

    def trim(self, queue: str, keep: int, before_ms: int, limit: int) -> Trimmed:
        """See `JobLog.trim`."""
        beyond = "SELECT seq FROM dead WHERE queue = ? ORDER BY seq DESC LIMIT 1 OFFSET ?"
        newest = self._execute(beyond, (queue, keep)).fetchone()
        excess = "SELECT seq FROM dead WHERE queue = ? AND seq <= ?"
        old = "SELECT seq FROM dead WHERE queue = ? AND failed_at_ms < ?"
        found = f"SELECT seq FROM ({excess} UNION {old}) ORDER BY seq LIMIT ?"
        values = (queue, 0 if newest is None else newest[0], queue, before_ms, limit)
        count = self._execute(f"DELETE FROM dead WHERE seq IN ({found})", values).rowcount
        oldest = self._execute("SELECT min(failed_at_ms) FROM dead WHERE queue = ?", (queue,)).fetchone()
        return Trimmed(count, oldest[0])

    def remember(self, destination: Destination) -> bool:
        """See `JobLog.remember`."""
        row = (destination.topic, destination.namespace, destination.function_id)
        statement = f"INSERT INTO destinations ({DESTINATION_COLUMNS}) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
        return self._execute(statement, (*row, checksum(row))).rowcount > 0

    def forget(self, destination: Destination) -> bool:
        """See `JobLog.forget`."""
        row = (destination.topic, destination.namespace, destination.function_id)
        statement = "DELETE FROM destinations WHERE topic = ? AND namespace = ? AND function_id = ?"
        return self._execute(statement, row).rowcount > 0

    def destinations(self) -> list[Destination]:
        """See `JobLog.destinations`."""
        answer = []
        statement = f"SELECT {DESTINATION_COLUMNS} FROM destinations ORDER BY topic, namespace, function_id"
        for row in self._execute(statement):
            if not sound_short(row):
                raise damaged(f"destination {row[2]!r} of topic {row[0]!r}")
            answer.append(Destination(*row[:3]))
        return answer

    def note(self, note: Note) -> bool:
        """See `JobLog.note`."""
        row = (note.kind, note.name, note.value)
        known = self.drop_note(note.kind, note.name)
        self._execute(f"INSERT INTO notes ({NOTE_COLUMNS}) VALUES (?, ?, ?, ?)", (*row, checksum(row)))
        return known

    def drop_note(self, kind: str, name: str) -> bool:
        """See `JobLog.note`."""
        return self._execute("DELETE FROM notes WHERE kind = ? AND name = ?", (kind, name)).rowcount > 0

    def notes(self) -> list[Note]:
        """See `JobLog.notes`."""
        answer = []
        for row in self._execute(f"SELECT {NOTE_COLUMNS} FROM notes ORDER BY kind, name"):
            if not sound_short(row):
                raise damaged(f"note {row[0]!r} about {row[1]!r}")
            answer.append(Note(*row[:3]))
        return answer

    def _next_seq(self) -> int:
        self._last_seq += 1
        return self._last_seq

    def _insert(self, job: Job) -> Job:
        row = _as_row(job)
        self._execute(_INSERT, (*row, _checksum(row)))
        return job

    def _find(self, seq: int) -> Job | None:
        row = self._execute(f"{_SELECT} WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else _job(row)

    def _find_dead(self, queue: str, job_id: str) -> int | None:
        # two look-ups by index, and not one that reads every dead letter of the queue
        by_id = "SELECT seq FROM dead WHERE +queue = ? AND id = ?"
        by_message = "SELECT seq FROM dead WHERE +queue = ? AND message_id = ?"
        statement = f"SELECT min(seq) FROM ({by_id} UNION ALL {by_message})"
        (seq,) = self._execute(statement, (queue, job_id, queue, job_id)).fetchone()
        return None if seq is None else int(seq)

    def _revive(self, dead: Job, due_at_ms: int) -> Job:
        self._execute("DELETE FROM dead WHERE seq = ?", (dead.seq,))
        return self._insert(evolve(dead, seq=self._next_seq(), attempts=0, error=None, due_at_ms=due_at_ms))
