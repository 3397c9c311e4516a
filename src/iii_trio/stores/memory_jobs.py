"""The job log in memory: what tests and `store_method: in_memory` use. Nothing outlives the store."""

from collections.abc import Sequence
from itertools import islice
from math import inf

from attrs import define, evolve, field
from sortedcontainers import SortedList

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

EXPIRED_KEYS = 100
"""Keys looked at, to be dropped if their time is over, for each that is taken."""

_LAST = chr(0x10FFFF) * 2
"""Behind every text of the orders: the largest code point is no character, and nobody's name begins with two of it."""


@define(eq=False)
class MemoryJobTable:
    """`JobTable` in dicts keyed by `seq`, which therefore are in its order, with the orders of delivery beside them."""

    _jobs: dict[int, Job] = field(factory=dict, init=False)
    _targets: SortedList = field(factory=SortedList, init=False)  # (queue, namespace, function, -priority, seq)
    _groups: SortedList = field(factory=SortedList, init=False)  # (queue, group, seq)
    _delayed: SortedList = field(factory=SortedList, init=False)  # (queue, due, seq)
    _dead: dict[int, DeadLetter] = field(factory=dict, init=False)
    _destinations: set[Destination] = field(factory=set, init=False)
    _once: dict[tuple[str, str], int] = field(factory=dict, init=False)  # key -> until, soonest first
    _notes: dict[tuple[str, str], Note] = field(factory=dict, init=False)
    _last_seq: int = field(default=0, init=False)

    def append(self, jobs: Sequence[NewJob]) -> list[Job]:
        """See `JobLog.append`."""
        return [self._add(job) for job in jobs]

    def append_once(self, jobs: Sequence[NewJob], once: Once) -> list[Job]:
        """See `JobLog.append_once`."""
        name = (once.queue, once.key)
        if self._once.get(name, 0) > once.now_ms:
            return []
        over = [name for name, until_ms in islice(self._once.items(), EXPIRED_KEYS) if until_ms <= once.now_ms]
        for one in over:
            del self._once[one]
        self._once.pop(name, None)
        self._once[name] = once.until_ms
        return self.append(jobs)

    def load(self, after: int, limit: int) -> list[Job]:
        """See `JobLog.load`."""
        return list(islice((job for job in self._jobs.values() if job.seq > after), limit))

    def find(self, seqs: Sequence[int]) -> list[Job]:
        """See `JobLog.find`."""
        return [self._jobs[seq] for seq in sorted(set(seqs)) if seq in self._jobs]

    def census(self) -> Census:
        """See `JobLog.census`."""
        counts: dict[str, list[int]] = {}
        for job in self._jobs.values():
            count = counts.setdefault(job.queue, [0, 0])
            count[0] += 1
            count[1] += job.delayed
        since_ms = max((self._jobs[seq].created_at_ms for _, _, seq in self._delayed), default=0)
        queues = (QueueCensus(name, live, late, self._next_due(name)) for name, (live, late) in counts.items())
        return Census(tuple(queues), self._last_seq, since_ms)

    def lanes(self, queue: str, by_group: bool, after: LaneKey | None, limit: int) -> list[LaneCensus]:
        """See `JobLog.lanes`."""
        order = self._groups if by_group else self._targets
        least = (queue,) if after is None else (queue, after[1], inf) if by_group else (queue, *after, inf)
        found: dict[LaneKey, list[Job]] = {}
        for place in order.irange(least, (queue, _LAST)):
            key = ("", place[1]) if by_group else (place[1], place[2])
            if key not in found and len(found) == limit:
                break
            found.setdefault(key, []).append(self._jobs[place[-1]])
        return [
            LaneCensus(key, sum(not job.delayed for job in jobs), sum(job.delayed for job in jobs), _heading(jobs[0]))
            for key, jobs in found.items()
        ]

    def pages(self, queue: str, stretches: Sequence[Stretch], max_bytes: int) -> list[Page]:
        """See `JobLog.pages`."""
        answer: list[Page] = []
        for stretch in stretches:
            if stretch.by_group:
                places = self._groups.irange((queue, stretch.key[1], stretch.seq + 1), (queue, stretch.key[1], inf))
            else:
                lane = (queue, *stretch.key)
                places = self._targets.irange((*lane, -stretch.priority, stretch.seq + 1), (*lane, inf))
            page, max_bytes = _page([self._jobs[place[-1]] for place in islice(places, stretch.limit)], max_bytes)
            answer.append(page)
        return answer

    def promote(self, queue: str, now_ms: int, limit: int, max_bytes: int) -> Promoted:
        """See `JobLog.promote`."""
        due = list(islice(self._delayed.irange((queue,), (queue, now_ms, inf)), limit))
        promoted = [evolve(self._jobs[seq], delayed=False) for _, _, seq in due]
        for job in promoted:
            self._replace(job)
        return Promoted(_page(promoted, max_bytes)[0], self._next_due(queue))

    def ack(self, seq: int) -> bool:
        """See `JobLog.ack`."""
        return self._take(seq) is not None

    def retry(self, seq: int, attempts: int, deliveries: int, due_at_ms: int, error: str) -> bool:
        """See `JobLog.retry`."""
        job = self._jobs.get(seq)
        if job is None:
            return False
        failed = evolve(job, attempts=attempts, deliveries=deliveries, due_at_ms=due_at_ms, error=error, delayed=True)
        self._replace(failed)
        return True

    def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int) -> bool:
        """See `JobLog.dead_letter`."""
        job = self._take(seq)
        if job is None:
            return False
        place = self._next_seq()
        dead = evolve(job, seq=place, attempts=attempts, error=error, deliveries=0, delayed=False)
        self._dead[place] = DeadLetter(job=dead, failed_at_ms=failed_at_ms)
        return True

    def clear(self, queue: str, through: int, spared: Sequence[int], limit: int) -> list[Heading]:
        """See `JobLog.clear`."""
        kept = set(spared)
        places = self._groups.irange((queue,), (queue, _LAST))
        found = list(islice((seq for _, _, seq in places if seq <= through and seq not in kept), limit))
        headings = [_heading(self._jobs[seq]) for seq in found]
        for seq in found:
            self.ack(seq)
        return headings

    def remove_unclaimed(self, queue: str, limit: int) -> int:
        """See `JobLog.remove_unclaimed`."""
        return sum(self.ack(job.seq) for job in self._unclaimed(queue, limit))

    def adopt(self, from_queue: str, to_queue: str, namespace: str, function_id: str, limit: int) -> list[Job]:
        """See `JobLog.adopt`."""
        found = self._unclaimed(from_queue, limit)
        adopted = [evolve(job, queue=to_queue, namespace=namespace, function_id=function_id) for job in found]
        for job in adopted:
            self._replace(job)
        return adopted

    def dead_letters(self, queues: Sequence[str], offset: int, limit: int) -> list[DeadLetter]:
        """See `JobLog.dead_letters`."""
        found = (letter for letter in reversed(self._dead.values()) if letter.job.queue in queues)
        return list(islice(found, offset, offset + limit))

    def dead_counts(self) -> dict[str, int]:
        """See `JobLog.dead_counts`."""
        counts: dict[str, int] = {}
        for letter in self._dead.values():
            counts[letter.job.queue] = counts.get(letter.job.queue, 0) + 1
        return counts

    def redrive(self, queue: str, limit: int, due_at_ms: int) -> list[Job]:
        """See `JobLog.redrive`."""
        found = list(islice((seq for seq, letter in self._dead.items() if letter.job.queue == queue), limit))
        return [self._revive(seq, due_at_ms) for seq in found]

    def redrive_one(self, queue: str, job_id: str, due_at_ms: int) -> Job | None:
        """See `JobLog.redrive_one`."""
        seq = self._find_dead(queue, job_id)
        return None if seq is None else self._revive(seq, due_at_ms)

    def discard(self, queue: str, job_id: str) -> bool:
        """See `JobLog.discard`."""
        seq = self._find_dead(queue, job_id)
        return seq is not None and self._dead.pop(seq, None) is not None

    def trim(self, queue: str, keep: int, before_ms: int, limit: int) -> Trimmed:
        """See `JobLog.trim`."""
        mine = [letter for letter in self._dead.values() if letter.job.queue == queue]
        excess = max(0, len(mine) - keep)
        old = [letter for place, letter in enumerate(mine) if place < excess or letter.failed_at_ms < before_ms]
        for letter in old[:limit]:
            del self._dead[letter.job.seq]
        left = [letter.failed_at_ms for letter in self._dead.values() if letter.job.queue == queue]
        return Trimmed(min(len(old), limit), min(left, default=None))

    def remember(self, destination: Destination) -> bool:
        """See `JobLog.remember`."""
        if destination in self._destinations:
            return False
        self._destinations.add(destination)
        return True

    def forget(self, destination: Destination) -> bool:
        """See `JobLog.forget`."""
        if destination not in self._destinations:
            return False
        self._destinations.remove(destination)
        return True

    def destinations(self) -> list[Destination]:
        """See `JobLog.destinations`."""
        return sorted(self._destinations)

    def note(self, note: Note) -> bool:
        """See `JobLog.note`."""
        known = (note.kind, note.name) in self._notes
        self._notes[note.kind, note.name] = note
        return known

    def drop_note(self, kind: str, name: str) -> bool:
        """See `JobLog.note`."""
        return self._notes.pop((kind, name), None) is not None

    def notes(self) -> list[Note]:
        """See `JobLog.notes`."""
        return [self._notes[name] for name in sorted(self._notes)]

    def _unclaimed(self, queue: str, limit: int) -> list[Job]:
        found = (job for job in self._jobs.values() if job.queue == queue and job.function_id is None)
        return list(islice(found, limit))

    def _next_seq(self) -> int:
        self._last_seq += 1
        return self._last_seq

    def _add(self, new: NewJob) -> Job:
        job = Job.numbered(self._next_seq(), new)
        self._put(job)
        return job

    def _find_dead(self, queue: str, job_id: str) -> int | None:
        for seq, letter in self._dead.items():
            if letter.job.queue == queue and job_id in (letter.job.id, letter.job.message_id):
                return seq
        return None

    def _revive(self, seq: int, due_at_ms: int) -> Job:
        dead = self._dead.pop(seq).job
        job = evolve(dead, seq=self._next_seq(), attempts=0, error=None, due_at_ms=due_at_ms, deliveries=1)
        self._put(job)
        return job

    # -- the orders ---------------------------------------------------------------------------------------------------

    def _put(self, job: Job) -> None:
        self._jobs[job.seq] = job
        self._enter(job)

    def _enter(self, job: Job) -> None:
        self._groups.add((job.queue, job.group_id or "", job.seq))
        if job.delayed:
            self._delayed.add((job.queue, job.due_at_ms, job.seq))
        elif job.function_id is not None:
            self._targets.add((job.queue, job.namespace, job.function_id, -job.priority, job.seq))

    def _leave(self, job: Job) -> None:
        self._groups.remove((job.queue, job.group_id or "", job.seq))
        if job.delayed:
            self._delayed.remove((job.queue, job.due_at_ms, job.seq))
        elif job.function_id is not None:
            self._targets.remove((job.queue, job.namespace, job.function_id, -job.priority, job.seq))

    def _take(self, seq: int) -> Job | None:
        job = self._jobs.pop(seq, None)
        if job is not None:
            self._leave(job)
        return job

    def _replace(self, job: Job) -> None:
        """Let a job be another, under the same number and at the same place in the dict."""
        self._leave(self._jobs[job.seq])
        self._jobs[job.seq] = job
        self._enter(job)

    def _next_due(self, queue: str) -> int | None:
        return next((due for _, due, _ in self._delayed.irange((queue,), (queue, inf))), None)


def _heading(job: Job) -> Heading:
    return Heading(
        *(job.seq, job.queue, job.namespace, job.function_id, job.group_id, job.priority, job.attempts),
        *(job.created_at_ms, job.due_at_ms, job.deliveries, job.delayed),
    )


def _page(jobs: Sequence[Job], max_bytes: int) -> tuple[Page, int]:
    """Jobs as a page, and the bytes that are left."""
    page: Page = []
    for job in jobs:
        if len(job.payload) <= max_bytes:
            max_bytes -= len(job.payload)
            page.append(job)
        else:
            page.append(_heading(job))
    return page, max_bytes
