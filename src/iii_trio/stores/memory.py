"""All four stores in memory: what tests and `store_method: in_memory` use, and what locks and broadcasts always use.

Nothing outlives the block. Operations are carried out by the store's own task at its next turn, in order, and answered
then: never inside the submitting call, so that code behaves as it does with a disk below.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from time import time_ns

import trio
from attrs import define, evolve, field

from ..protocol.limits import STORE_BYTES, STORE_OPS
from .desk import FLUSH_S, Desk, Submission, carry_out
from .handles import JobLogHandle, KeyValueHandle
from .interfaces import (
    A,
    BroadcastStatistics,
    Change,
    DeadLetter,
    Destination,
    Done,
    Heading,
    Job,
    Lease,
    LockStatistics,
    NewJob,
    Note,
    Once,
    OnDone,
    Result,
    StoreStatistics,
    T,
    Trimmed,
    Updated,
)
from .tables import Tables

EXPIRED_KEYS = 100
"""Keys looked at, to be dropped if their time is over, for each that is taken."""


def _now_ms() -> int:
    return time_ns() // 1_000_000


@define(eq=False)
class MemoryKeyValueTable:
    """`KeyValueTable` in dicts, which keep the order of insertion."""

    _spaces: dict[str, dict[str, dict[str, bytes]]] = field(factory=dict, init=False)

    def get(self, space: str, scope: str, key: str) -> bytes | None:
        """See `KeyValue.get`."""
        return self._spaces.get(space, {}).get(scope, {}).get(key)

    def set(self, space: str, scope: str, key: str, value: bytes) -> bytes | None:
        """See `KeyValue.set`."""
        keys = self._spaces.setdefault(space, {}).setdefault(scope, {})
        old = keys.get(key)
        keys[key] = value
        return old

    def delete(self, space: str, scope: str, key: str) -> bytes | None:
        """See `KeyValue.delete`."""
        scopes = self._spaces.get(space, {})
        keys = scopes.get(scope, {})
        old = keys.pop(key, None)
        if old is not None and not keys:
            del scopes[scope]
            if not scopes:
                del self._spaces[space]
        return old

    def update(self, space: str, scope: str, key: str, change: Callable[[bytes | None], Change[A]]) -> Updated[A]:
        """See `KeyValue.update`."""
        old = self.get(space, scope, key)
        decided = change(old)
        if decided.write is not None:
            self.set(space, scope, key, decided.write)
        return Updated(old=old, new=old if decided.write is None else decided.write, answer=decided.answer)

    def items(self, space: str, scope: str) -> list[tuple[str, bytes]]:
        """See `KeyValue.items`."""
        return list(self._spaces.get(space, {}).get(scope, {}).items())

    def scopes(self, space: str) -> list[str]:
        """See `KeyValue.scopes`."""
        return sorted(self._spaces.get(space, {}))

    def directory(self, prefix: str) -> list[tuple[str, str]]:
        """See `Store.directory`."""
        found = (space for space in self._spaces if space.startswith(prefix))
        return sorted((space, scope) for space in found for scope in self._spaces[space])


@define(eq=False)
class MemoryJobTable:
    """`JobTable` in dicts keyed by `seq`, which therefore are in its order."""

    _jobs: dict[int, Job] = field(factory=dict, init=False)
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

    def headings(self, after: int, limit: int) -> list[Heading]:
        """See `JobLog.headings`."""
        return [
            Heading(
                *(job.seq, job.queue, job.namespace, job.function_id, job.group_id),
                *(job.priority, job.attempts, job.created_at_ms, job.due_at_ms),
            )
            for job in self.load(after, limit)
        ]

    def load(self, after: int, limit: int) -> list[Job]:
        """See `JobLog.load`."""
        return list(islice((job for job in self._jobs.values() if job.seq > after), limit))

    def ack(self, seq: int) -> bool:
        """See `JobLog.ack`."""
        return self._jobs.pop(seq, None) is not None

    def retry(self, seq: int, attempts: int, due_at_ms: int, error: str) -> bool:
        """See `JobLog.retry`."""
        job = self._jobs.get(seq)
        if job is None:
            return False
        self._jobs[seq] = evolve(job, attempts=attempts, due_at_ms=due_at_ms, error=error)
        return True

    def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int) -> bool:
        """See `JobLog.dead_letter`."""
        job = self._jobs.pop(seq, None)
        if job is None:
            return False
        place = self._next_seq()
        dead = evolve(job, seq=place, attempts=attempts, error=error)
        self._dead[place] = DeadLetter(job=dead, failed_at_ms=failed_at_ms)
        return True

    def remove(self, seqs: Sequence[int]) -> int:
        """See `JobLog.remove`."""
        return sum(self.ack(seq) for seq in seqs)

    def remove_unclaimed(self, queue: str, limit: int) -> int:
        """See `JobLog.remove_unclaimed`."""
        return self.remove([job.seq for job in self._unclaimed(queue, limit)])

    def adopt(self, from_queue: str, to_queue: str, namespace: str, function_id: str, limit: int) -> list[Job]:
        """See `JobLog.adopt`."""
        found = self._unclaimed(from_queue, limit)
        adopted = [evolve(job, queue=to_queue, namespace=namespace, function_id=function_id) for job in found]
        self._jobs.update((job.seq, job) for job in adopted)
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
        self._jobs[job.seq] = job
        return job

    def _find_dead(self, queue: str, job_id: str) -> int | None:
        for seq, letter in self._dead.items():
            if letter.job.queue == queue and job_id in (letter.job.id, letter.job.message_id):
                return seq
        return None

    def _revive(self, seq: int, due_at_ms: int) -> Job:
        job = evolve(self._dead.pop(seq).job, seq=self._next_seq(), attempts=0, error=None, due_at_ms=due_at_ms)
        self._jobs[job.seq] = job
        return job


@define(eq=False)
class MemoryLock:
    """`Lock` for the tasks of one engine; `wall_ms` is Unix time in milliseconds."""

    _desk: Desk
    _wall_ms: Callable[[], int]
    _leases: dict[tuple[str, str], Lease] = field(factory=dict, init=False)
    _last_token: int = field(default=0, init=False)
    _sweep_at: int = field(default=1024, init=False)

    def acquire(self, index: str, key: str, owner: str, ttl_ms: int, on_done: OnDone[Lease | None]) -> None:
        """See `Lock.acquire`."""
        work = self._acquire
        self._submit(lambda _: work(index, key, owner, ttl_ms), on_done, (index, key, owner))

    def release(self, index: str, key: str, owner: str, on_done: OnDone[bool]) -> None:
        """See `Lock.release`."""
        work = self._release
        self._submit(lambda _: work(index, key, owner), on_done, (index, key, owner))

    def _submit(self, work: Callable[[Tables], T], on_done: OnDone[T], texts: tuple[str, ...]) -> None:
        self._desk.submit(work, on_done, lane="locks", writes=True, texts=texts)

    def _acquire(self, index: str, key: str, owner: str, ttl_ms: int) -> Lease | None:
        now = self._wall_ms()
        held = self._leases.get((index, key))
        if held is None or held.expires_at_ms <= now:
            # Counting from the wall clock keeps tokens growing over restarts, which forget the leases.
            self._last_token = max(self._last_token + 1, now)
            token = self._last_token
        elif held.owner == owner:
            token = held.token
        else:
            return None
        lease = Lease(owner=owner, token=token, expires_at_ms=now + ttl_ms)
        self._leases[index, key] = lease
        if len(self._leases) >= self._sweep_at:
            self._leases = {name: lease for name, lease in self._leases.items() if lease.expires_at_ms > now}
            self._sweep_at = max(1024, 2 * len(self._leases))
        return lease

    def _release(self, index: str, key: str, owner: str) -> bool:
        held = self._leases.get((index, key))
        if held is None or held.owner != owner:
            return False
        del self._leases[index, key]
        return held.expires_at_ms > self._wall_ms()

    def statistics(self) -> LockStatistics:
        """See `Lock.statistics`."""
        now = self._wall_ms()
        return LockStatistics(held=sum(lease.expires_at_ms > now for lease in self._leases.values()))


@define(eq=False)
class MemorySubscription:
    """One subscriber of a `MemoryBroadcast`; only that makes one."""

    on_message: Callable[[bytes], None]
    _leave: Callable[["MemorySubscription"], None]
    open: bool = field(default=True, init=False)

    def close(self) -> None:
        """See `Subscription.close`."""
        if self.open:
            self.open = False
            self._leave(self)


@define(eq=False)
class MemoryBroadcast:
    """`Broadcast` within one engine."""

    _desk: Desk
    _topics: dict[str, dict[MemorySubscription, None]] = field(factory=dict, init=False)
    _published: int = field(default=0, init=False)

    def subscribe(self, topic: str, on_message: Callable[[bytes], None]) -> MemorySubscription:
        """See `Broadcast.subscribe`."""

        def leave(subscription: MemorySubscription) -> None:
            listeners = self._topics[topic]
            del listeners[subscription]
            if not listeners:
                del self._topics[topic]

        subscription = MemorySubscription(on_message, leave)
        self._topics.setdefault(topic, {})[subscription] = None
        return subscription

    def publish(self, topic: str, payload: bytes, on_done: OnDone[int]) -> None:
        """See `Broadcast.publish`."""
        listeners = tuple(self._topics.get(topic, ()))
        self._published += 1

        def deliver(result: Result[int]) -> None:
            if isinstance(result, Done):
                for subscription in listeners:
                    if subscription.open:
                        subscription.on_message(payload)
            on_done(result)

        count = len(listeners)
        self._desk.submit(lambda _: count, deliver, lane="broadcast", writes=True, texts=(topic,), blobs=(payload,))

    def statistics(self) -> BroadcastStatistics:
        """See `Broadcast.statistics`."""
        subscribers = sum(map(len, self._topics.values()))
        return BroadcastStatistics(topics=len(self._topics), subscribers=subscribers, published=self._published)


@define(eq=False)
class MemoryStore:
    """`Store` in memory, and the place of locks and broadcasts; `open_memory` makes one."""

    _desk: Desk
    _wall_ms: Callable[[], int]
    _groups: int = field(default=0, init=False)
    _largest_group: int = field(default=0, init=False)
    _tables: Tables = field(factory=lambda: Tables(MemoryKeyValueTable(), MemoryJobTable()), init=False)

    def key_value(self, space: str) -> KeyValueHandle:
        """See `Store.key_value`."""
        return KeyValueHandle(space, self._desk)

    def job_log(self) -> JobLogHandle:
        """See `Store.job_log`."""
        return JobLogHandle(self._desk)

    def lock(self) -> MemoryLock:
        """A fresh set of locks: holders see each other only through the same `Lock`."""
        return MemoryLock(self._desk, self._wall_ms)

    def broadcast(self) -> MemoryBroadcast:
        """A fresh set of topics: publishers reach only the subscribers of the same `Broadcast`."""
        return MemoryBroadcast(self._desk)

    def directory(self, prefix: str, on_done: OnDone[list[tuple[str, str]]]) -> None:
        """See `Store.directory`."""
        work = self._tables.values.directory
        self._desk.submit(lambda _: work(prefix), on_done, lane=None, writes=False, texts=(prefix,))

    async def room(self) -> None:
        """See `Store.room`."""
        await self._desk.room()

    def statistics(self) -> StoreStatistics:
        """See `Store.statistics`."""
        return self._desk.statistics(groups=self._groups, largest_group=self._largest_group)

    def carry_out(self, group: list[Submission]) -> None:
        """What the desk calls with everything submitted since the last turn."""
        self._groups += 1
        self._largest_group = max(self._largest_group, len(group))
        carry_out(group, self._tables)


@asynccontextmanager
async def open_memory(
    *,
    wall_ms: Callable[[], int] = _now_ms,
    max_ops: int = STORE_OPS,
    max_bytes: int = STORE_BYTES,
    close_timeout_s: float = FLUSH_S,
) -> AsyncIterator[MemoryStore]:
    """A store in memory for the length of the block.

    `wall_ms` is the wall clock by which locks expire (Unix ms). At the end everything submitted is answered, within
    `close_timeout_s`, or `StoreError` is raised. As with every nursery, exceptions leave the block in a group.
    """
    desk = Desk("in memory", max_ops=max_ops, max_bytes=max_bytes)
    store = MemoryStore(desk, wall_ms)
    desk.carry_out = store.carry_out
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.run, name="store in memory")
        try:
            yield store
        finally:
            await desk.close(close_timeout_s)
