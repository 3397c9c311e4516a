"""The handles of a store: each operation of `KeyValue` and `JobLog` becomes a submission to the store's desk.

They are the same for every store; stores differ in the tables behind the desk (`tables.py`).
"""

from collections.abc import Callable, Collection, Sequence

from attrs import define, field

from .desk import MAX_VALUE, Desk, too_large
from .interfaces import (
    Census,
    DeadLetter,
    Destination,
    Heading,
    Job,
    JobLogStatistics,
    LaneCensus,
    LaneKey,
    NewJob,
    Note,
    Once,
    Page,
    Promoted,
    Stretch,
    Trimmed,
)
from .key_value import Beside, Change, Entry, Expired, KeyValueStatistics, Look, Updated
from .results import A, Done, OnDone, Result, RowDamaged, T
from .tables import JobTable, Tables

_JOBS = "jobs"
"""The lane of everything in the job log."""


@define(eq=False)
class KeyValueHandle:
    """`KeyValue` on one space of the tables behind `desk`."""

    space: str
    _desk: Desk
    _reads: int = field(default=0, init=False)
    _writes: int = field(default=0, init=False)

    def get(self, scope: str, key: str, on_done: OnDone[bytes | None], *, now_ms: int = 0) -> None:
        """See `KeyValue.get`."""
        space = self.space
        self._read(lambda tables: tables.values.get(space, scope, key, now_ms), on_done, scope, key)

    def set(
        self,
        scope: str,
        key: str,
        value: bytes,
        on_done: OnDone[bytes | None],
        *,
        expires_at_ms: int | None = None,
        beside: Beside | None = None,
    ) -> None:
        """See `KeyValue.set`."""
        space = self.space

        def work(tables: Tables) -> bytes | None:
            if beside is None:
                return tables.values.set(space, scope, key, value, expires_at_ms)
            entries = _storable(beside(tables.values.get(space, scope, key), value))
            old = tables.values.set(space, scope, key, value, expires_at_ms)
            _put(tables, entries)
            return old

        self._write(work, on_done, scope, key, value)

    def delete(self, scope: str, key: str, on_done: OnDone[bytes | None], *, beside: Beside | None = None) -> None:
        """See `KeyValue.delete`."""
        space = self.space

        def work(tables: Tables) -> bytes | None:
            if beside is None:
                return tables.values.delete(space, scope, key)
            entries = _storable(beside(tables.values.get(space, scope, key), None))
            old = tables.values.delete(space, scope, key)
            _put(tables, entries)
            return old

        self._write(work, on_done, scope, key)

    def update(
        self,
        scope: str,
        key: str,
        change: Callable[[bytes | None], Change[A]],
        on_done: OnDone[Updated[A]],
        *,
        expires_at_ms: int | None = None,
        beside: Beside | None = None,
    ) -> None:
        """See `KeyValue.update`."""
        space = self.space
        entries: list[Entry] = []

        def checked(old: bytes | None) -> Change[A]:
            decided = change(old)
            if decided.write is not None:
                if len(decided.write) > MAX_VALUE:
                    raise too_large(len(decided.write))
                if beside is not None:
                    entries.extend(_storable(beside(old, decided.write)))
            return decided

        def work(tables: Tables) -> Updated[A]:
            updated = tables.values.update(space, scope, key, checked, expires_at_ms)
            _put(tables, entries)
            return updated

        self._write(work, on_done, scope, key)

    def expire(
        self,
        now_ms: int,
        limit: int,
        on_done: OnDone[Expired],
        *,
        place: tuple[str, str] | None = None,
        beside: Callable[[str, str, bytes], Sequence[Entry]] | None = None,
    ) -> None:
        """See `KeyValue.expire`."""
        space = self.space

        def work(tables: Tables) -> Expired:
            values = tables.values
            if place is None:
                due = values.due(space, now_ms, limit)
            else:
                value = values.get(space, *place)
                is_due = value is not None and values.get(space, *place, now_ms) is None
                due = [(*place, value)] if is_due and value is not None else []
            entries = [] if beside is None else _storable([entry for one in due for entry in beside(*one)])
            for scope, key, _ in due:
                values.delete(space, scope, key)
            _put(tables, entries)
            if place is not None:
                return Expired(tuple(due), None)
            return Expired(tuple(due), now_ms if len(due) == limit else values.next_expiry(space, now_ms))

        scope, key = ("", "") if place is None else place
        self._write(work, on_done, scope, key)

    def next_expiry(self, on_done: OnDone[int | None]) -> None:
        """See `KeyValue.next_expiry`."""
        space = self.space
        self._desk.submit(
            lambda tables: tables.values.next_expiry(space), on_done, lane=None, writes=False, texts=(space,)
        )

    def sibling(self, space: str) -> "KeyValueHandle":
        """See `KeyValue.sibling`."""
        return KeyValueHandle(space, self._desk)

    def values(self, scope: str, on_done: OnDone[list[bytes]]) -> None:
        """See `KeyValue.values`."""
        self.scan(scope, lambda items: [value for _, value in items], on_done)

    def items(self, scope: str, on_done: OnDone[list[tuple[str, bytes]]]) -> None:
        """See `KeyValue.items`."""
        self.scan(scope, list, on_done)

    def values_in_line(self, scope: str, on_done: OnDone[list[bytes]]) -> None:
        """See `KeyValue.values_in_line`: it waits its turn among the writes, and writes nothing."""
        space = self.space
        self._reads += 1
        self._desk.submit(
            lambda tables: [value for _, value in tables.values.items(space, scope)],
            on_done,
            lane=(space, scope),
            writes=True,
            texts=(space, scope),
        )

    def scan(
        self,
        scope: str,
        look: Look[T],
        on_done: OnDone[T],
        *,
        by_key: bool = False,
        prefix: str = "",
        after: str | None = None,
        now_ms: int = 0,
    ) -> None:
        """See `KeyValue.scan`."""
        space = self.space

        def work(tables: Tables) -> T:
            if by_key:
                return look(tables.values.sorted_items(space, scope, prefix, after, now_ms))
            items = tables.values.items(space, scope, now_ms)
            return look(item for item in items if item[0].startswith(prefix)) if prefix else look(items)

        self._read(work, on_done, scope, prefix, after, long=True)

    def scopes(
        self,
        on_done: OnDone[list[str]],
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int | None = None,
        now_ms: int = 0,
    ) -> None:
        """See `KeyValue.scopes`."""
        space = self.space
        self._reads += 1
        self._desk.submit(
            lambda tables: tables.values.scopes(space, prefix, after, limit, now_ms),
            on_done,
            lane=None,
            writes=False,
            texts=(space, prefix, after),
            long=True,
        )

    async def room(self) -> None:
        """See `KeyValue.room`."""
        await self._desk.room()

    def statistics(self) -> KeyValueStatistics:
        """See `KeyValue.statistics`."""
        return KeyValueStatistics(space=self.space, reads=self._reads, writes=self._writes)

    def _read(
        self, work: Callable[[Tables], T], on_done: OnDone[T], scope: str, *names: str | None, long: bool = False
    ) -> None:
        self._reads += 1
        texts, lane = (self.space, scope, *names), (self.space, scope)
        self._desk.submit(work, on_done, lane=lane, writes=False, texts=texts, long=long)

    def _write(self, work: Callable[[Tables], T], on_done: OnDone[T], scope: str, key: str, value: bytes = b"") -> None:
        self._writes += 1
        self._desk.submit(
            work, on_done, lane=(self.space, scope), writes=True, texts=(self.space, scope, key), blobs=(value,)
        )


def _storable(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Look at what is to be set beside a write, before anything is. Raises `StoreError`."""
    for entry in entries:
        if len(entry.value) > MAX_VALUE:
            raise too_large(len(entry.value))
    return entries


def _put(tables: Tables, entries: Sequence[Entry]) -> None:
    """Set what stands beside a write that has been made: nothing may fail here that would leave the write alone."""
    for entry in entries:
        place = entry.space, entry.scope, entry.key
        try:
            tables.values.set(*place, entry.value)
        except RowDamaged:  # what stands there is lost in any case
            tables.values.drop(*place)
            tables.values.set(*place, entry.value)


@define(eq=False)
class JobLogHandle:
    """`JobLog` on the tables behind `desk`."""

    _desk: Desk
    _appended: int = field(default=0, init=False)
    _acknowledged: int = field(default=0, init=False)
    _retried: int = field(default=0, init=False)
    _dead_lettered: int = field(default=0, init=False)
    _redriven: int = field(default=0, init=False)
    _discarded: int = field(default=0, init=False)
    _removed: int = field(default=0, init=False)

    def listen(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        """See `JobLog.listen`."""
        return self._desk.listen(listener)

    def append(self, jobs: Sequence[NewJob], on_done: OnDone[list[Job]]) -> None:
        """See `JobLog.append`."""
        kept = tuple(jobs)
        self._store(kept, lambda table: table.append(kept), on_done)

    def append_once(self, jobs: Sequence[NewJob], once: Once, on_done: OnDone[list[Job]]) -> None:
        """See `JobLog.append_once`."""
        kept = tuple(jobs)
        self._store(kept, lambda table: table.append_once(kept, once), on_done, once)

    def _store(
        self,
        kept: tuple[NewJob, ...],
        work: Callable[[JobTable], list[Job]],
        on_done: OnDone[list[Job]],
        once: Once | None = None,
    ) -> None:
        self._appended += len(kept)
        texts: list[str | None] = [] if once is None else [once.queue, once.key]
        blobs: list[bytes | None] = []
        numbers: list[int] = [] if once is None else [once.now_ms, once.until_ms]
        for job in kept:
            texts += (job.id, job.queue, job.namespace, job.function_id, job.group_id)
            texts += (job.traceparent, job.baggage, job.message_id)
            blobs += (job.payload, job.metadata)
            numbers += (job.max_attempts, job.backoff_ms, job.created_at_ms, job.due_at_ms, job.priority)
        self._write(work, on_done, texts, numbers, blobs)

    def load(self, after: int, limit: int, on_done: OnDone[list[Job]]) -> None:
        """See `JobLog.load`."""
        self._read(lambda table: table.load(after, max(limit, 0)), on_done, (), (after, limit))

    def find(self, seqs: Sequence[int], on_done: OnDone[list[Job]]) -> None:
        """See `JobLog.find`."""
        kept = tuple(seqs)
        self._read(lambda table: table.find(kept), on_done, (), kept)

    def census(self, on_done: OnDone[Census]) -> None:
        """See `JobLog.census`."""
        self._read(lambda table: table.census(), on_done)

    # These three read, but in line with the writes.

    def lanes(
        self, queue: str, by_group: bool, after: LaneKey | None, limit: int, on_done: OnDone[list[LaneCensus]]
    ) -> None:
        """See `JobLog.lanes`."""
        self._write(
            lambda table: table.lanes(queue, by_group, after, max(limit, 0)), on_done, (queue,), (limit,), forced=False
        )

    def pages(self, queue: str, stretches: Sequence[Stretch], max_bytes: int, on_done: OnDone[list[Page]]) -> None:
        """See `JobLog.pages`."""
        kept = tuple(stretches)
        self._write(lambda table: table.pages(queue, kept, max_bytes), on_done, (queue,), (max_bytes,), forced=False)

    def promote(self, queue: str, now_ms: int, limit: int, max_bytes: int, on_done: OnDone[Promoted]) -> None:
        """See `JobLog.promote`."""
        numbers = (now_ms, limit, max_bytes)
        self._write(
            lambda table: table.promote(queue, now_ms, max(limit, 0), max_bytes),
            on_done,
            (queue,),
            numbers,
            forced=False,
        )

    def ack(self, seq: int, on_done: OnDone[bool], *, patient: bool = False) -> None:
        """See `JobLog.ack`."""
        self._acknowledged += 1
        self._write(lambda table: table.ack(seq), on_done, (), (seq,), forced=False, patient=patient)

    def retry(
        self, seq: int, attempts: int, deliveries: int, due_at_ms: int, error: str, on_done: OnDone[bool]
    ) -> None:
        """See `JobLog.retry`."""
        self._retried += 1
        numbers = (seq, attempts, deliveries, due_at_ms)
        self._write(lambda table: table.retry(seq, attempts, deliveries, due_at_ms, error), on_done, (error,), numbers)

    def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int, on_done: OnDone[bool]) -> None:
        """See `JobLog.dead_letter`."""
        self._dead_lettered += 1
        numbers = (seq, attempts, failed_at_ms)
        self._write(lambda table: table.dead_letter(seq, attempts, error, failed_at_ms), on_done, (error,), numbers)

    def clear(
        self, queue: str, through: int, spared: Sequence[int], limit: int, on_done: OnDone[list[Heading]]
    ) -> None:
        """See `JobLog.clear`."""
        kept, most = tuple(spared), max(limit, 0)

        def counted(result: Result[list[Heading]]) -> None:
            if isinstance(result, Done):
                self._removed += len(result.value)
            on_done(result)

        self._write(lambda table: table.clear(queue, through, kept, most), counted, (queue,), (through, *kept, limit))

    def remove_unclaimed(self, queue: str, limit: int, on_done: OnDone[int]) -> None:
        """See `JobLog.remove_unclaimed`."""
        self._write(lambda table: table.remove_unclaimed(queue, max(limit, 0)), on_done, (queue,), (limit,))

    def adopt(
        self, from_queue: str, to_queue: str, namespace: str, function_id: str, limit: int, on_done: OnDone[list[Job]]
    ) -> None:
        """See `JobLog.adopt`."""
        texts, most = (from_queue, to_queue, namespace, function_id), max(limit, 0)
        self._write(
            lambda table: table.adopt(from_queue, to_queue, namespace, function_id, most), on_done, texts, (limit,)
        )

    def dead_letters(self, queues: Sequence[str], offset: int, limit: int, on_done: OnDone[list[DeadLetter]]) -> None:
        """See `JobLog.dead_letters`."""
        kept = tuple(queues)
        first, most = max(offset, 0), max(limit, 0)
        self._read(lambda table: table.dead_letters(kept, first, most), on_done, kept, (offset, limit))

    def dead_count(self, queue: str, on_done: OnDone[int]) -> None:
        """See `JobLog.dead_count`."""
        self._read(lambda table: table.dead_counts().get(queue, 0), on_done, (queue,))

    def dead_counts(self, on_done: OnDone[dict[str, int]]) -> None:
        """See `JobLog.dead_counts`."""
        self._read(lambda table: table.dead_counts(), on_done)

    def redrive(self, queue: str, limit: int, due_at_ms: int, on_done: OnDone[list[Job]]) -> None:
        """See `JobLog.redrive`."""
        self._redriven += 1
        numbers = (limit, due_at_ms)
        self._write(lambda table: table.redrive(queue, max(limit, 0), due_at_ms), on_done, (queue,), numbers)

    def redrive_one(self, queue: str, job_id: str, due_at_ms: int, on_done: OnDone[Job | None]) -> None:
        """See `JobLog.redrive_one`."""
        self._redriven += 1
        texts = (queue, job_id)
        self._write(lambda table: table.redrive_one(queue, job_id, due_at_ms), on_done, texts, (due_at_ms,))

    def discard(self, queue: str, job_id: str, on_done: OnDone[bool]) -> None:
        """See `JobLog.discard`."""
        self._discarded += 1
        self._write(lambda table: table.discard(queue, job_id), on_done, (queue, job_id))

    def trim(self, queue: str, keep: int, before_ms: int, limit: int, on_done: OnDone[Trimmed]) -> None:
        """See `JobLog.trim`."""
        numbers, most = (keep, before_ms, limit), max(limit, 0)
        self._write(lambda table: table.trim(queue, max(keep, 0), before_ms, most), on_done, (queue,), numbers)

    def remember(self, topic: str, namespace: str, function_id: str, on_done: OnDone[bool]) -> None:
        """See `JobLog.remember`."""
        destination = Destination(topic, namespace, function_id)
        self._write(lambda table: table.remember(destination), on_done, (topic, namespace, function_id))

    def forget(self, topic: str, namespace: str, function_id: str, on_done: OnDone[bool]) -> None:
        """See `JobLog.forget`."""
        destination = Destination(topic, namespace, function_id)
        self._write(lambda table: table.forget(destination), on_done, (topic, namespace, function_id))

    def destinations(self, on_done: OnDone[list[Destination]]) -> None:
        """See `JobLog.destinations`."""
        self._read(lambda table: table.destinations(), on_done)

    def note(self, kind: str, name: str, value: bytes | None, on_done: OnDone[bool]) -> None:
        """See `JobLog.note`."""

        def work(table: JobTable) -> bool:
            return table.drop_note(kind, name) if value is None else table.note(Note(kind, name, value))

        self._write(work, on_done, (kind, name), (), (value,))

    def notes(self, on_done: OnDone[list[Note]]) -> None:
        """See `JobLog.notes`."""
        self._read(lambda table: table.notes(), on_done)

    async def room(self) -> None:
        """See `JobLog.room`."""
        await self._desk.room()

    def statistics(self) -> JobLogStatistics:
        """See `JobLog.statistics`."""
        return JobLogStatistics(
            appended=self._appended,
            acknowledged=self._acknowledged,
            retried=self._retried,
            dead_lettered=self._dead_lettered,
            redriven=self._redriven,
            discarded=self._discarded,
            removed=self._removed,
        )

    def _read(
        self,
        work: Callable[[JobTable], T],
        on_done: OnDone[T],
        texts: Collection[str] = (),
        numbers: Collection[int] = (),
    ) -> None:
        self._desk.submit(
            lambda tables: work(tables.jobs), on_done, lane=_JOBS, writes=False, texts=texts, numbers=numbers
        )

    def _write(
        self,
        work: Callable[[JobTable], T],
        on_done: OnDone[T],
        texts: Collection[str | None] = (),
        numbers: Collection[int] = (),
        blobs: Collection[bytes | None] = (),
        *,
        forced: bool = True,
        patient: bool = False,
    ) -> None:
        self._desk.submit(
            lambda tables: work(tables.jobs),
            on_done,
            lane=_JOBS,
            writes=True,
            texts=texts,
            numbers=numbers,
            blobs=blobs,
            forced=forced,
            patient=patient,
        )
