"""The job log in SQLite: live jobs, dead letters, destinations, taken keys and notes.

`seq` is given out from memory and grows over both tables, so that a job that returns from the dead goes behind all
others and the newest dead letter has the largest.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any, Final

from attrs import evolve

from ..protocol.limits import MAX_MESSAGE
from .checksums import checksum, damaged
from .interfaces import (
    Census,
    DeadLetter,
    Destination,
    Heading,
    Job,
    LaneCensus,
    LaneKey,
    NewJob,
    Note,
    Once,
    Page,
    Promoted,
    QueueCensus,
    Stretch,
    Trimmed,
)

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

ORDER: Final = (
    "ALTER TABLE jobs ADD COLUMN deliveries INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE jobs ADD COLUMN delayed INTEGER NOT NULL DEFAULT 0",
    """UPDATE jobs SET delayed = 1, checksum = job_checksum_delayed(id, queue, namespace, function_id, payload,
    max_attempts, backoff_ms, created_at_ms, due_at_ms, group_id, traceparent, baggage, message_id, metadata, priority,
    seq, attempts, error, checksum) WHERE due_at_ms > created_at_ms OR attempts > 0""",
    """CREATE INDEX jobs_targets ON jobs(queue, namespace, function_id, priority DESC, seq)
    WHERE delayed = 0 AND function_id IS NOT NULL""",
    "CREATE INDEX jobs_groups ON jobs(queue, ifnull(group_id, ''), seq, delayed)",
    "CREATE INDEX jobs_delayed ON jobs(queue, due_at_ms, created_at_ms) WHERE delayed = 1",
)
"""The migration that gives jobs their order in the file: by function, by group, and by time while they are delayed."""

EXPIRED_KEYS: Final = 100
"""Keys dropped, if their time is over, for each that is taken."""

# In the order of the attributes of `Job`, so that a row makes one.
_NAMES: Final = (
    *("id", "queue", "namespace", "function_id", "payload", "max_attempts", "backoff_ms", "created_at_ms", "due_at_ms"),
    *("group_id", "traceparent", "baggage", "message_id", "metadata", "priority", "seq", "attempts", "error"),
)
_STATE: Final = ("deliveries", "delayed")  # of live jobs only
_WIDTH: Final = len(_NAMES) + len(_STATE)
_PAYLOAD: Final = _NAMES.index("payload")
_METADATA: Final = _NAMES.index("metadata")
_short: Final = itemgetter(*(index for index in range(len(_NAMES)) if index not in (_PAYLOAD, _METADATA)))
_as_row: Final = attrgetter(*_NAMES)

# Before the checksum stands what it covers beside the names: of a live job its state, of a dead one its time.
JOB_COLUMNS: Final = f"{', '.join((*_NAMES, *_STATE))}, nullif(2 * deliveries + delayed, 0), checksum"
DEAD_COLUMNS: Final = f"{', '.join(_NAMES)}, 0, 0, failed_at_ms, checksum"
DESTINATION_COLUMNS: Final = "topic, namespace, function_id, checksum"
KEY_COLUMNS: Final = "queue, key, until_ms, checksum"
NOTE_COLUMNS: Final = "kind, name, value, checksum"
_HEADING_NAMES: Final = (
    *("seq", "queue", "namespace", "function_id", "group_id", "priority", "attempts"),
    *("created_at_ms", "due_at_ms", "deliveries", "delayed"),
)
_HEADING_COLUMNS: Final = ", ".join(_HEADING_NAMES)
_heading: Final = itemgetter(*((*_NAMES, *_STATE).index(name) for name in _HEADING_NAMES))

_SELECT: Final = f"SELECT {JOB_COLUMNS} FROM jobs"
_SELECT_DEAD: Final = f"SELECT {DEAD_COLUMNS} FROM dead"
_PLACES: Final = ", ".join("?" * len(_NAMES))
_INSERT: Final = f"INSERT INTO jobs ({', '.join((*_NAMES, *_STATE))}, checksum) VALUES ({_PLACES}, ?, ?, ?)"
_INSERT_DEAD: Final = f"INSERT INTO dead ({', '.join(_NAMES)}, failed_at_ms, checksum) VALUES ({_PLACES}, ?, ?)"

_NEWEST: Final = "SELECT max(coalesce((SELECT max(seq) FROM jobs), 0), coalesce((SELECT max(seq) FROM dead), 0))"
_TARGET: Final = "queue = ? AND delayed = 0 AND namespace = ? AND function_id = ?"
_OF_PRIORITY: Final = (
    f"{_SELECT} INDEXED BY jobs_targets WHERE {_TARGET} AND priority = ? AND seq > ? ORDER BY seq LIMIT ?"
)
_OF_LOWER: Final = (
    f"{_SELECT} INDEXED BY jobs_targets WHERE {_TARGET} AND priority < ? ORDER BY priority DESC, seq LIMIT ?"
)
_GROUP: Final = "queue = ? AND ifnull(group_id, '')"
_OF_GROUP: Final = f"{_SELECT} INDEXED BY jobs_groups WHERE {_GROUP} = ? AND seq > ? ORDER BY seq LIMIT ?"
_DUE: Final = (
    f"{_SELECT} INDEXED BY jobs_delayed WHERE queue = ? AND delayed = 1 AND due_at_ms <= ? ORDER BY due_at_ms LIMIT ?"
)


def sound(row: tuple[Any, ...]) -> bool:
    """Whether a row of `JOB_COLUMNS` or `DEAD_COLUMNS` matches its checksum."""
    return bool(_checksum(row, row[-2]) == row[-1])


def sound_short(row: tuple[Any, ...]) -> bool:
    """Whether a row of `DESTINATION_COLUMNS`, `KEY_COLUMNS` or `NOTE_COLUMNS` matches its checksum."""
    return bool(checksum(row[:3]) == row[3])


def _checksum(row: tuple[Any, ...], beside: int | None) -> int:
    return checksum((*_short(row), beside), row[_PAYLOAD], row[_METADATA])


def _live_checksum(job: Job) -> int:
    return _checksum(_as_row(job), _state(job))


def _state(job: Job) -> int | None:
    """As `JOB_COLUMNS` has it: None for a job as it was appended, and for all jobs of files from before there was one."""
    return 2 * job.deliveries + job.delayed or None


def prepare(connection: sqlite3.Connection) -> None:
    """Give a connection the functions that migrations call."""

    def delayed(*row: Any) -> Any:
        return _checksum(row, 1) if _checksum(row, None) == row[-1] else row[-1]  # what is damaged stays so

    connection.create_function("job_checksum_delayed", len(_NAMES) + 1, delayed)


def _job(row: tuple[Any, ...], table: str = "jobs") -> Job:
    job = Job(*row[:_WIDTH])
    if not sound(row):
        raise damaged(f"job {job.id!r} of queue {job.queue!r}", table, job.seq)
    return job


def _bounded(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The first of these rows, until their payloads fill a message of the largest size; more are a matter of another page."""
    size = 0
    for row in rows:
        yield row
        size += len(row[_PAYLOAD])
        if size >= MAX_MESSAGE:
            return


class SqliteJobTable:
    """`JobTable` on one connection. Only one of a file's connections writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._last_seq: int = self._execute(_NEWEST).fetchone()[0]

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
        if taken:
            return self.append(jobs)
        self._check_key(once)
        return []

    def _check_key(self, once: Once) -> None:
        """That a key is taken must not be the word of a damaged row."""
        known = f"SELECT {KEY_COLUMNS}, rowid FROM taken_keys WHERE queue = ? AND key = ?"
        *row, rowid = self._execute(known, (once.queue, once.key)).fetchone()
        if not sound_short(tuple(row)):
            raise damaged(f"key {once.key!r} of queue {once.queue!r}", "taken_keys", rowid)

    def find(self, seqs: Sequence[int]) -> list[Job]:
        """See `JobLog.find`."""
        places = ", ".join("?" * len(seqs))
        return [_job(row) for row in self._execute(f"{_SELECT} WHERE seq IN ({places}) ORDER BY seq", tuple(seqs))]

    def census(self) -> Census:
        """See `JobLog.census`."""
        counts = "SELECT queue, count(*), sum(delayed) FROM jobs INDEXED BY jobs_groups GROUP BY queue"
        times = (
            "SELECT queue, min(due_at_ms), max(created_at_ms) FROM jobs INDEXED BY jobs_delayed WHERE delayed = 1 "
            "GROUP BY queue"
        )
        delayed = {queue: (due_ms, since_ms) for queue, due_ms, since_ms in self._execute(times)}
        return Census(
            tuple(
                QueueCensus(queue, live, late, delayed[queue][0] if late else None)
                for queue, live, late in self._execute(counts)
            ),
            self._execute(_NEWEST).fetchone()[0],  # by the file: other connections give numbers too
            max((since_ms for _, since_ms in delayed.values()), default=0),
        )

    def lanes(self, queue: str, by_group: bool, after: LaneKey | None, limit: int) -> list[LaneCensus]:
        """See `JobLog.lanes`."""
        behind, (first, second) = (">=", ("", "")) if after is None else (">", after)
        if by_group:
            rows = self._execute(
                f"SELECT lane, waiting, late, {_HEADING_COLUMNS} FROM (SELECT ifnull(group_id, '') AS lane, "
                "count(*) AS size, count(*) - sum(delayed) AS waiting, sum(delayed) AS late, min(seq) AS head "
                f"FROM jobs INDEXED BY jobs_groups WHERE {_GROUP} {behind} ? "
                "GROUP BY ifnull(group_id, '') ORDER BY ifnull(group_id, '') LIMIT ?) JOIN jobs ON seq = head "
                "ORDER BY lane",
                (queue, second, limit),
            )
            return [LaneCensus(("", row[0]), row[1], row[2], Heading(*row[3:])) for row in rows]
        counted = self._execute(
            "SELECT namespace, function_id, count(*) FROM jobs INDEXED BY jobs_targets WHERE queue = ? AND "
            f"delayed = 0 AND function_id IS NOT NULL AND (namespace, function_id) {behind} (?, ?) "
            "GROUP BY namespace, function_id ORDER BY namespace, function_id LIMIT ?",
            (queue, first, second, limit),
        ).fetchall()
        head = (
            f"SELECT {_HEADING_COLUMNS} FROM jobs INDEXED BY jobs_targets WHERE {_TARGET} "
            "ORDER BY priority DESC, seq LIMIT 1"
        )
        return [
            LaneCensus((namespace, function_id), waiting, 0, Heading(*row))
            for namespace, function_id, waiting in counted
            for row in self._execute(head, (queue, namespace, function_id))
        ]

    def pages(self, queue: str, stretches: Sequence[Stretch], max_bytes: int) -> list[Page]:
        """See `JobLog.pages`."""
        answer: list[Page] = []
        for stretch in stretches:
            rows = self._stretch(queue, stretch)
            page, max_bytes = _page(rows, max_bytes)
            answer.append(page)
        return answer

    def _stretch(self, queue: str, stretch: Stretch) -> list[tuple[Any, ...]]:
        if stretch.by_group:
            return self._execute(_OF_GROUP, (queue, stretch.key[1], stretch.seq, stretch.limit)).fetchall()
        lane, limit = (queue, *stretch.key), stretch.limit
        rows = self._execute(_OF_PRIORITY, (*lane, stretch.priority, stretch.seq, limit)).fetchall()
        if len(rows) < limit:
            rows += self._execute(_OF_LOWER, (*lane, stretch.priority, limit - len(rows))).fetchall()
        return rows

    def promote(self, queue: str, now_ms: int, limit: int, max_bytes: int) -> Promoted:
        """See `JobLog.promote`."""
        jobs: Page = []
        statement = "UPDATE jobs SET delayed = 0, checksum = ? WHERE seq = ?"
        for row in self._execute(_DUE, (queue, now_ms, limit)).fetchall():
            if not sound(row):
                heading = evolve(Heading(*_heading(row)), delayed=False)
                self._execute(statement, (row[-1], heading.seq))  # it stays damaged, and is never delivered
                jobs.append(heading)
                continue
            job = evolve(Job(*row[:_WIDTH]), delayed=False)
            self._execute(statement, (_live_checksum(job), job.seq))
            max_bytes -= len(job.payload)
            jobs.append(job if max_bytes >= 0 else evolve(Heading(*_heading(row)), delayed=False))
        first = "SELECT min(due_at_ms) FROM jobs INDEXED BY jobs_delayed WHERE queue = ? AND delayed = 1"
        return Promoted(jobs, self._execute(first, (queue,)).fetchone()[0])

    def clear(self, queue: str, through: int, spared: Sequence[int], limit: int) -> list[Heading]:
        """See `JobLog.clear`."""
        kept = set(spared)
        found = f"SELECT {_HEADING_COLUMNS} FROM jobs INDEXED BY jobs_groups WHERE queue = ? AND seq <= ?"
        rows = (row for row in self._execute(found, (queue, through)) if row[0] not in kept)
        headings = [Heading(*row) for row in islice(rows, limit)]
        for heading in headings:
            self.ack(heading.seq)
        return headings

    def load(self, after: int, limit: int) -> list[Job]:
        """See `JobLog.load`."""
        return [_job(row) for row in self._execute(f"{_SELECT} WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))]

    def ack(self, seq: int) -> bool:
        """See `JobLog.ack`."""
        return self._execute("DELETE FROM jobs WHERE seq = ?", (seq,)).rowcount > 0

    def retry(self, seq: int, attempts: int, deliveries: int, due_at_ms: int, error: str) -> bool:
        """See `JobLog.retry`."""
        job = self._find(seq)
        if job is None:
            return False
        failed = evolve(job, attempts=attempts, deliveries=deliveries, due_at_ms=due_at_ms, error=error, delayed=True)
        self._execute(
            "UPDATE jobs SET attempts = ?, deliveries = ?, due_at_ms = ?, error = ?, delayed = 1, checksum = ? "
            "WHERE seq = ?",
            (attempts, deliveries, due_at_ms, error, _live_checksum(failed), seq),
        )
        return True

    def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int) -> bool:
        """See `JobLog.dead_letter`."""
        job = self._find(seq)
        if job is None:
            return False
        row = _as_row(evolve(job, seq=self._next_seq(), attempts=attempts, error=error))
        self._execute(_INSERT_DEAD, (*row, failed_at_ms, _checksum(row, failed_at_ms)))
        return self.ack(seq)

    def remove_unclaimed(self, queue: str, limit: int) -> int:
        """See `JobLog.remove_unclaimed`."""
        found = "SELECT seq FROM jobs WHERE queue = ? AND function_id IS NULL ORDER BY seq LIMIT ?"
        return self._execute(f"DELETE FROM jobs WHERE seq IN ({found})", (queue, limit)).rowcount

    def adopt(self, from_queue: str, to_queue: str, namespace: str, function_id: str, limit: int) -> list[Job]:
        """See `JobLog.adopt`."""
        unclaimed = f"{_SELECT} WHERE queue = ? AND function_id IS NULL ORDER BY seq LIMIT ?"
        rows = self._execute(unclaimed, (from_queue, limit))
        found = [_job(row) for row in _bounded(rows)]
        jobs = [evolve(job, queue=to_queue, namespace=namespace, function_id=function_id) for job in found]
        for job in jobs:
            self._execute(
                "UPDATE jobs SET queue = ?, namespace = ?, function_id = ?, checksum = ? WHERE seq = ?",
                (to_queue, namespace, function_id, _live_checksum(job), job.seq),
            )
        return jobs

    def dead_letters(self, queues: Sequence[str], offset: int, limit: int) -> list[DeadLetter]:
        """See `JobLog.dead_letters`."""
        places = ", ".join("?" * len(queues))
        rows = self._execute(
            f"{_SELECT_DEAD} WHERE queue IN ({places}) ORDER BY seq DESC LIMIT ? OFFSET ?", (*queues, limit, offset)
        )
        return [DeadLetter(job=_job(row, "dead"), failed_at_ms=row[-2]) for row in _bounded(rows)]

    def dead_counts(self) -> dict[str, int]:
        """See `JobLog.dead_counts`."""
        return dict(self._execute("SELECT queue, count(*) FROM dead GROUP BY queue"))

    def redrive(self, queue: str, limit: int, due_at_ms: int) -> list[Job]:
        """See `JobLog.redrive`."""
        rows = self._execute(f"{_SELECT_DEAD} WHERE queue = ? ORDER BY seq LIMIT ?", (queue, limit))
        return [self._revive(dead, due_at_ms) for dead in [_job(row, "dead") for row in _bounded(rows)]]

    def redrive_one(self, queue: str, job_id: str, due_at_ms: int) -> Job | None:
        """See `JobLog.redrive_one`."""
        seq = self._find_dead(queue, job_id)
        if seq is None:
            return None
        row = self._execute(f"{_SELECT_DEAD} WHERE seq = ?", (seq,)).fetchone()
        return self._revive(_job(row, "dead"), due_at_ms)

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
        # each side is cut to a page by itself: a union is made whole before anything is taken of it
        excess = "SELECT seq FROM dead WHERE queue = ? AND seq <= ? ORDER BY seq LIMIT ?"
        old = "SELECT seq FROM dead WHERE queue = ? AND failed_at_ms < ? ORDER BY seq LIMIT ?"
        found = f"SELECT * FROM ({excess}) UNION SELECT * FROM ({old}) ORDER BY 1 LIMIT ?"
        values = (queue, 0 if newest is None else newest[0], limit, queue, before_ms, limit, limit)
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
        statement = f"SELECT {DESTINATION_COLUMNS}, rowid FROM destinations ORDER BY topic, namespace, function_id"
        for row in self._execute(statement):
            if not sound_short(row):
                raise damaged(f"destination {row[2]!r} of topic {row[0]!r}", "destinations", row[4])
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
        for row in self._execute(f"SELECT {NOTE_COLUMNS}, rowid FROM notes ORDER BY kind, name"):
            if not sound_short(row):
                raise damaged(f"note {row[0]!r} about {row[1]!r}", "notes", row[4])
            answer.append(Note(*row[:3]))
        return answer

    def _next_seq(self) -> int:
        self._last_seq += 1
        return self._last_seq

    def _insert(self, job: Job) -> Job:
        row = _as_row(job)
        self._execute(_INSERT, (*row, job.deliveries, job.delayed, _checksum(row, _state(job))))
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
        job = evolve(dead, seq=self._next_seq(), attempts=0, error=None, due_at_ms=due_at_ms, deliveries=1)
        return self._insert(job)


def _page(rows: list[tuple[Any, ...]], max_bytes: int) -> tuple[Page, int]:
    """Rows of `JOB_COLUMNS` as a page, and the bytes that are left."""
    page: Page = []
    for row in rows:
        payload = row[_PAYLOAD]
        if isinstance(payload, bytes) and len(payload) <= max_bytes and sound(row):
            max_bytes -= len(payload)
            page.append(Job(*row[:_WIDTH]))
        else:
            page.append(Heading(*_heading(row)))
    return page, max_bytes
