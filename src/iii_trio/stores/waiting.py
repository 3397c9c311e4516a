"""Store operations for tasks: submit, wait for the answer, return it or raise it.

Cancelled before the submission, an operation is not done; cancelled after it, it is done and its answer unheard. While
the store is full these wait for room, where the callback form is refused: sockets refuse, tasks wait.
"""

from collections.abc import Callable, Sequence

import outcome
import trio
from attrs import frozen

from .interfaces import (
    Census,
    DeadLetter,
    Destination,
    Heading,
    Job,
    JobLog,
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
from .key_value import Beside, Change, Expired, KeyValue, Look, Updated
from .results import A, OnDone, Result, T


async def settle(submit: Callable[[OnDone[T]], None]) -> T:
    """Call `submit` with a callback and wait until it is called; return the value or raise the `StoreError`.

    `lease: Lease | None = await settle(lambda done: lock.acquire("cron", "daily", "me", 5000, done))`; type checkers
    take the result's type from the annotation. A cancellation that is pending now prevents the submission; a later one
    ends the wait and leaves the operation to be done.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    task = trio.lowlevel.current_task()
    heard = True

    def on_done(result: "Result[T]") -> None:
        if heard:
            trio.lowlevel.reschedule(task, outcome.Value(result))

    def stop_listening(_: Callable[[], object]) -> trio.lowlevel.Abort:
        nonlocal heard
        heard = False
        return trio.lowlevel.Abort.SUCCEEDED

    submit(on_done)
    result: Result[T] = await trio.lowlevel.wait_task_rescheduled(stop_listening)
    return result.unwrap()


@frozen
class WaitingKeyValue:
    """The operations of a `KeyValue`, awaited; they raise `StoreError` and are otherwise as described there."""

    kv: KeyValue

    async def get(self, scope: str, key: str, *, now_ms: int = 0) -> bytes | None:
        """See `KeyValue.get`."""
        await self.kv.room()
        return await settle(lambda done: self.kv.get(scope, key, done, now_ms=now_ms))

    async def set(
        self,
        scope: str,
        key: str,
        value: bytes,
        *,
        expires_at_ms: int | None = None,
        beside: Beside | None = None,
    ) -> bytes | None:
        """See `KeyValue.set`."""
        await self.kv.room()
        return await settle(
            lambda done: self.kv.set(scope, key, value, done, expires_at_ms=expires_at_ms, beside=beside)
        )

    async def delete(self, scope: str, key: str, *, beside: Beside | None = None) -> bytes | None:
        """See `KeyValue.delete`."""
        await self.kv.room()
        return await settle(lambda done: self.kv.delete(scope, key, done, beside=beside))

    async def update(
        self,
        scope: str,
        key: str,
        change: Callable[[bytes | None], Change[A]],
        *,
        expires_at_ms: int | None = None,
        beside: Beside | None = None,
    ) -> Updated[A]:
        """See `KeyValue.update`."""
        await self.kv.room()
        return await settle(
            lambda done: self.kv.update(scope, key, change, done, expires_at_ms=expires_at_ms, beside=beside)
        )

    async def expire(self, now_ms: int, limit: int, *, place: tuple[str, str] | None = None) -> Expired:
        """See `KeyValue.expire`."""
        await self.kv.room()
        return await settle(lambda done: self.kv.expire(now_ms, limit, done, place=place))

    async def next_expiry(self) -> int | None:
        """See `KeyValue.next_expiry`."""
        await self.kv.room()
        return await settle(lambda done: self.kv.next_expiry(done))

    async def scan(
        self,
        scope: str,
        look: Look[T],
        *,
        by_key: bool = False,
        prefix: str = "",
        after: str | None = None,
        now_ms: int = 0,
    ) -> T:
        """See `KeyValue.scan`."""
        await self.kv.room()
        return await settle(
            lambda done: self.kv.scan(scope, look, done, by_key=by_key, prefix=prefix, after=after, now_ms=now_ms)
        )

    async def values(self, scope: str) -> list[bytes]:
        """See `KeyValue.values`."""
        await self.kv.room()
        return await settle(lambda done: self.kv.values(scope, done))

    async def items(self, scope: str) -> list[tuple[str, bytes]]:
        """See `KeyValue.items`."""
        await self.kv.room()
        return await settle(lambda done: self.kv.items(scope, done))

    async def values_in_line(self, scope: str) -> list[bytes]:
        """See `KeyValue.values_in_line`."""
        await self.kv.room()
        return await settle(lambda done: self.kv.values_in_line(scope, done))

    async def scopes(
        self, *, prefix: str = "", after: str | None = None, limit: int | None = None, now_ms: int = 0
    ) -> list[str]:
        """See `KeyValue.scopes`."""
        await self.kv.room()
        return await settle(lambda done: self.kv.scopes(done, prefix=prefix, after=after, limit=limit, now_ms=now_ms))


@frozen
class WaitingJobLog:
    """The operations of a `JobLog`, awaited; they raise `StoreError` and are otherwise as described there."""

    log: JobLog

    async def append(self, jobs: Sequence[NewJob]) -> list[Job]:
        """See `JobLog.append`."""
        await self.log.room()
        return await settle(lambda done: self.log.append(jobs, done))

    async def append_once(self, jobs: Sequence[NewJob], once: Once) -> list[Job]:
        """See `JobLog.append_once`."""
        await self.log.room()
        return await settle(lambda done: self.log.append_once(jobs, once, done))

    async def load(self, after: int = 0, limit: int = 1000) -> list[Job]:
        """See `JobLog.load`."""
        await self.log.room()
        return await settle(lambda done: self.log.load(after, limit, done))

    async def ack(self, seq: int) -> bool:
        """See `JobLog.ack`."""
        await self.log.room()
        return await settle(lambda done: self.log.ack(seq, done))

    async def find(self, seqs: Sequence[int]) -> list[Job]:
        """See `JobLog.find`."""
        await self.log.room()
        return await settle(lambda done: self.log.find(seqs, done))

    async def census(self) -> Census:
        """See `JobLog.census`."""
        await self.log.room()
        return await settle(self.log.census)

    async def lanes(
        self, queue: str, by_group: bool, after: LaneKey | None = None, limit: int = 1000
    ) -> list[LaneCensus]:
        """See `JobLog.lanes`."""
        await self.log.room()
        return await settle(lambda done: self.log.lanes(queue, by_group, after, limit, done))

    async def pages(self, queue: str, stretches: Sequence[Stretch], max_bytes: int) -> list[Page]:
        """See `JobLog.pages`."""
        await self.log.room()
        return await settle(lambda done: self.log.pages(queue, stretches, max_bytes, done))

    async def promote(self, queue: str, now_ms: int, limit: int = 1000, max_bytes: int = 0) -> Promoted:
        """See `JobLog.promote`."""
        await self.log.room()
        return await settle(lambda done: self.log.promote(queue, now_ms, limit, max_bytes, done))

    async def retry(self, seq: int, attempts: int, deliveries: int, due_at_ms: int, error: str) -> bool:
        """See `JobLog.retry`."""
        await self.log.room()
        return await settle(lambda done: self.log.retry(seq, attempts, deliveries, due_at_ms, error, done))

    async def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int) -> bool:
        """See `JobLog.dead_letter`."""
        await self.log.room()
        return await settle(lambda done: self.log.dead_letter(seq, attempts, error, failed_at_ms, done))

    async def clear(self, queue: str, through: int, spared: Sequence[int] = (), limit: int = 1000) -> list[Heading]:
        """See `JobLog.clear`."""
        await self.log.room()
        return await settle(lambda done: self.log.clear(queue, through, spared, limit, done))

    async def remove_unclaimed(self, queue: str, limit: int = 1000) -> int:
        """See `JobLog.remove_unclaimed`."""
        await self.log.room()
        return await settle(lambda done: self.log.remove_unclaimed(queue, limit, done))

    async def adopt(
        self, from_queue: str, to_queue: str, namespace: str, function_id: str, limit: int = 1000
    ) -> list[Job]:
        """See `JobLog.adopt`."""
        await self.log.room()
        return await settle(lambda done: self.log.adopt(from_queue, to_queue, namespace, function_id, limit, done))

    async def dead_letters(self, queues: Sequence[str], offset: int = 0, limit: int = 50) -> list[DeadLetter]:
        """See `JobLog.dead_letters`."""
        await self.log.room()
        return await settle(lambda done: self.log.dead_letters(queues, offset, limit, done))

    async def dead_count(self, queue: str) -> int:
        """See `JobLog.dead_count`."""
        await self.log.room()
        return await settle(lambda done: self.log.dead_count(queue, done))

    async def dead_counts(self) -> dict[str, int]:
        """See `JobLog.dead_counts`."""
        await self.log.room()
        return await settle(lambda done: self.log.dead_counts(done))

    async def redrive(self, queue: str, limit: int, due_at_ms: int) -> list[Job]:
        """See `JobLog.redrive`."""
        await self.log.room()
        return await settle(lambda done: self.log.redrive(queue, limit, due_at_ms, done))

    async def redrive_one(self, queue: str, job_id: str, due_at_ms: int) -> Job | None:
        """See `JobLog.redrive_one`."""
        await self.log.room()
        return await settle(lambda done: self.log.redrive_one(queue, job_id, due_at_ms, done))

    async def discard(self, queue: str, job_id: str) -> bool:
        """See `JobLog.discard`."""
        await self.log.room()
        return await settle(lambda done: self.log.discard(queue, job_id, done))

    async def trim(self, queue: str, keep: int, before_ms: int, limit: int = 1000) -> Trimmed:
        """See `JobLog.trim`."""
        await self.log.room()
        return await settle(lambda done: self.log.trim(queue, keep, before_ms, limit, done))

    async def remember(self, topic: str, namespace: str, function_id: str) -> bool:
        """See `JobLog.remember`."""
        await self.log.room()
        return await settle(lambda done: self.log.remember(topic, namespace, function_id, done))

    async def forget(self, topic: str, namespace: str, function_id: str) -> bool:
        """See `JobLog.forget`."""
        await self.log.room()
        return await settle(lambda done: self.log.forget(topic, namespace, function_id, done))

    async def destinations(self) -> list[Destination]:
        """See `JobLog.destinations`."""
        await self.log.room()
        return await settle(lambda done: self.log.destinations(done))

    async def note(self, kind: str, name: str, value: bytes | None) -> bool:
        """See `JobLog.note`."""
        await self.log.room()
        return await settle(lambda done: self.log.note(kind, name, value, done))

    async def notes(self) -> list[Note]:
        """See `JobLog.notes`."""
        await self.log.room()
        return await settle(lambda done: self.log.notes(done))
