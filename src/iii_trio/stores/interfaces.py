"""What every store offers: key-value, job log, lock and broadcast as protocols, and the values that cross them.

Every operation is submitted synchronously and answered through a callback: `kv.set(scope, key, value, on_done)` returns
at once, and `on_done` is called on the Trio thread once the operation stands on disk (or has failed, with nothing
changed). Four rules hold for every implementation, and the conformance suite checks them:

- `on_done` is called exactly once, never inside the submitting call, and writes take effect and are answered in the
  order of their submission (reads may pass each other). It may submit further operations. It must not raise: an
  exception in it is a defect, stops the store and leaves the block that opened it.
- A read submitted after a write sees that write, answered or not.
- All refusals arrive as `Failed`, so that a submitter has one path for errors. Only a closed store raises
  (`StoreClosed`).
- Values are opaque bytes: a store never looks into them.

Tasks use the same operations through `waiting.py`.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Generic, NoReturn, Protocol, TypeAlias, TypeVar

from attrs import frozen

from ..protocol.errors import StoreError

T = TypeVar("T")
A = TypeVar("A")


class StoreClosed(StoreError):
    """The store has been closed, or has stopped after a defect; nothing can be submitted any more."""


class StoreFull(StoreError):
    """Too many operations wait for the disk; this one was not done. Try again later, or wait for `room()`."""


class StoreInUse(StoreError):
    """Another engine holds the file; the text names file and process."""


class RowDamaged(StoreError):
    """A row does not match its checksum; it is left as it is, and set aside when the store is opened next."""


@frozen
class Done(Generic[T]):
    """The operation stands on disk and answered `value`."""

    value: T

    def unwrap(self) -> T:
        """The value."""
        return self.value


@frozen
class Failed:
    """The operation was not done; `error` says why and what to do."""

    error: StoreError

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        raise self.error


Result: TypeAlias = Done[T] | Failed
OnDone: TypeAlias = Callable[[Done[T] | Failed], None]


class Fsync(enum.Enum):
    """When written data is forced to the disk. A crash of the process loses nothing in any of them."""

    ALWAYS = "always"
    """Before a write is answered; a power failure loses nothing that was answered. The default."""
    INTERVAL = "interval"
    """Every few seconds; a power failure loses at most that much."""
    NEVER = "never"
    """When the operating system pleases; a power failure may damage the file. For tests and scratch data."""


@frozen
class Change(Generic[A]):
    """What an update function decides: `write` is the new value, or None to leave everything as it is.

    `answer` is handed through to the submitter.
    """

    write: bytes | None
    answer: A


@frozen
class Updated(Generic[A]):
    """The result of an update: value before (None if there was none), value after, and the function's own answer."""

    old: bytes | None
    new: bytes | None
    answer: A


@frozen
class KeyValueStatistics:
    """Operations submitted through one key-value handle."""

    space: str
    reads: int
    """get, values, items and scopes."""
    writes: int
    """set, delete and update."""


class KeyValue(Protocol):
    """Values by scope and key within one space (spec/state-stream.md §2, §8). Any strings will do, empty ones too.

    Each operation is atomic; those on one key take effect in the order of submission.
    """

    def get(self, scope: str, key: str, on_done: OnDone[bytes | None]) -> None:
        """Answer the value, or None."""

    def set(self, scope: str, key: str, value: bytes, on_done: OnDone[bytes | None]) -> None:
        """Store `value` and answer the previous one, or None. Overwriting keeps the key's place in the order."""

    def delete(self, scope: str, key: str, on_done: OnDone[bytes | None]) -> None:
        """Remove the key and answer the removed value, or None."""

    def update(
        self, scope: str, key: str, change: Callable[[bytes | None], Change[A]], on_done: OnDone[Updated[A]]
    ) -> None:
        """Read, let `change` decide, write: one atomic step.

        `change` is a pure function of the current value; it may run on another thread, must not wait for anything, and
        may raise nothing but `StoreError` (which fails this operation and writes nothing).
        """

    def values(self, scope: str, on_done: OnDone[list[bytes]]) -> None:
        """Answer the scope's values in the order in which their keys were first set; [] for an unknown scope."""

    def items(self, scope: str, on_done: OnDone[list[tuple[str, bytes]]]) -> None:
        """As `values`, with the keys."""

    def values_in_line(self, scope: str, on_done: OnDone[list[bytes]]) -> None:
        """As `values`, in line with the writes: exactly those that are answered before it show in the answer."""

    def scopes(self, on_done: OnDone[list[str]]) -> None:
        """Answer the scopes that hold at least one key, sorted by code point."""

    async def room(self) -> None:
        """Wait until the store accepts operations."""

    def statistics(self) -> KeyValueStatistics:
        """Counters of this handle."""


@frozen
class NewJob:
    """A job as it is appended (spec/queue.md §5.3, §15).

    Times are Unix milliseconds. `function_id` is None while nobody has subscribed to the topic yet. `metadata` and
    `payload` are opaque. `priority` is 0 to 255, the highest first.
    """

    id: str
    queue: str
    namespace: str
    function_id: str | None
    payload: bytes
    max_attempts: int
    backoff_ms: int
    created_at_ms: int
    due_at_ms: int
    group_id: str | None = None
    traceparent: str | None = None
    baggage: str | None = None
    message_id: str | None = None
    metadata: bytes | None = None
    priority: int = 0


@frozen
class Job(NewJob):
    """A live job. `seq` names it in the log and grows with every job that is appended or redriven.

    `attempts` counts failures; `error` is the last one's text.
    """

    seq: int = 0
    attempts: int = 0
    error: str | None = None

    @classmethod
    def numbered(cls, seq: int, new: NewJob) -> "Job":
        """`new` as it stands in the log under `seq`."""
        return cls(
            new.id,
            new.queue,
            new.namespace,
            new.function_id,
            new.payload,
            new.max_attempts,
            new.backoff_ms,
            new.created_at_ms,
            new.due_at_ms,
            new.group_id,
            new.traceparent,
            new.baggage,
            new.message_id,
            new.metadata,
            new.priority,
            seq,
        )


@frozen
class Heading:
    """What the order of delivery needs of a live job, without what it carries; the fields are those of `Job`."""

    seq: int
    queue: str
    namespace: str
    function_id: str | None
    group_id: str | None
    priority: int
    attempts: int
    created_at_ms: int
    due_at_ms: int


@frozen
class Once:
    """A key that keeps a message from being stored a second time: until `until_ms`, counted as of `now_ms` (Unix ms)."""

    queue: str
    key: str
    now_ms: int
    until_ms: int


@frozen
class Note:
    """Something that was decided about a queue and must survive: `kind` and `name` tell what, `value` is opaque."""

    kind: str
    name: str
    value: bytes


@frozen
class Trimmed:
    """`count` dead letters were dropped; the oldest that is left failed at `oldest_ms` (Unix ms), None if none is."""

    count: int
    oldest_ms: int | None


@frozen
class DeadLetter:
    """A job that was given up.

    `job` has the attempts and the error of its end; its `seq` is its place among the dead. `failed_at_ms` is Unix
    milliseconds.
    """

    job: Job
    failed_at_ms: int


@frozen(order=True)
class Destination:
    """A function that gets its own copy of everything published to a topic (spec/queue.md §7.2, §15)."""

    topic: str
    namespace: str
    function_id: str


@frozen
class JobLogStatistics:
    """Operations submitted through one job-log handle; `appended` counts jobs."""

    appended: int
    acknowledged: int
    retried: int
    dead_lettered: int
    redriven: int
    """Requests to redrive, one entry or many."""
    discarded: int
    removed: int
    """Live jobs that were to be removed unhandled."""


class JobLog(Protocol):
    """The durable side of the queues (spec/queue.md §5, §9, §15).

    The log belongs to exactly one engine (its lock file sees to that), so *claiming* a job, *extending* the claim and
    *reclaiming* it are matters of the engine's memory and cost no write: `headings` at the start hand over every live
    job, and with it the claim on all of them; a lease is a deadline of the engine; after a crash the next start
    reclaims whatever was in flight. Only what must survive is an operation here: the job, its failures, its end.
    """

    def append(self, jobs: Sequence[NewJob], on_done: OnDone[list[Job]]) -> None:
        """Store all of them or none (the copies of one publish), and answer them with their `seq`."""

    def append_once(self, jobs: Sequence[NewJob], once: Once, on_done: OnDone[list[Job]]) -> None:
        """`append`, unless the key of `once` is taken: then nothing is stored, and the answer is [].

        The key is taken from now on until its time; keys whose time is over are dropped by and by.
        """

    def load(self, after: int, limit: int, on_done: OnDone[list[Job]]) -> None:
        """Answer up to `limit` live jobs with `seq` > `after`, in order; [] is the end. Start with 0."""

    def headings(self, after: int, limit: int, on_done: OnDone[list[Heading]]) -> None:
        """As `load`, without payloads: what a start reads of a million jobs."""

    def ack(self, seq: int, on_done: OnDone[bool]) -> None:
        """Remove a finished job; answers whether it was there."""

    def retry(self, seq: int, attempts: int, due_at_ms: int, error: str, on_done: OnDone[bool]) -> None:
        """Write down a failed attempt (a nack) and when the next is due; answers whether the job was there."""

    def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int, on_done: OnDone[bool]) -> None:
        """Move the job to the dead letters of its queue; answers whether it was there."""

    def remove(self, seqs: Sequence[int], on_done: OnDone[int]) -> None:
        """Drop live jobs that nobody wants any more; answers how many were there."""

    def remove_unclaimed(self, queue: str, limit: int, on_done: OnDone[int]) -> None:
        """Drop up to `limit` jobs of `queue` that have no function yet, oldest first; answers how many there were."""

    def adopt(
        self, from_queue: str, to_queue: str, namespace: str, function_id: str, limit: int, on_done: OnDone[list[Job]]
    ) -> None:
        """Hand jobs of `from_queue` that have no function yet to the first subscriber: up to `limit`, oldest first.

        Answers them, in order. They keep `seq`, and with it their order.
        """

    def dead_letters(self, queues: Sequence[str], offset: int, limit: int, on_done: OnDone[list[DeadLetter]]) -> None:
        """Browse the dead letters of these queues together, newest first."""

    def dead_count(self, queue: str, on_done: OnDone[int]) -> None:
        """Answer the number of dead letters of one queue."""

    def dead_counts(self, on_done: OnDone[dict[str, int]]) -> None:
        """Answer the number of dead letters of every queue that has any."""

    def redrive(self, queue: str, limit: int, due_at_ms: int, on_done: OnDone[list[Job]]) -> None:
        """Return up to `limit` dead letters to their queue, oldest first, behind the live jobs, with no attempts.

        Answers the jobs as they stand now (new `seq`); fewer than `limit` means that none is left.
        """

    def redrive_one(self, queue: str, job_id: str, due_at_ms: int, on_done: OnDone[Job | None]) -> None:
        """As `redrive` for the one whose `id` or `message_id` is `job_id`; None if there is none."""

    def discard(self, queue: str, job_id: str, on_done: OnDone[bool]) -> None:
        """Drop the dead letter whose `id` or `message_id` is `job_id`; answers whether there was one."""

    def trim(self, queue: str, keep: int, before_ms: int, limit: int, on_done: OnDone[Trimmed]) -> None:
        """Drop dead letters, oldest first: those beyond the newest `keep`, and those that failed before `before_ms`.

        At most `limit` at once; a `count` of less means that no more are to go.
        """

    def remember(self, topic: str, namespace: str, function_id: str, on_done: OnDone[bool]) -> None:
        """Keep a destination, so that it gets its copies while its worker is away; answers whether it is new."""

    def forget(self, topic: str, namespace: str, function_id: str, on_done: OnDone[bool]) -> None:
        """Drop a destination that unregistered; answers whether it was known."""

    def destinations(self, on_done: OnDone[list[Destination]]) -> None:
        """Answer every remembered destination, sorted."""

    def note(self, kind: str, name: str, value: bytes | None, on_done: OnDone[bool]) -> None:
        """Keep a note, in the place of an earlier one, or drop it (None); answers whether there was one."""

    def notes(self, on_done: OnDone[list[Note]]) -> None:
        """Answer every note, sorted by kind and name."""

    async def room(self) -> None:
        """Wait until the store accepts operations."""

    def statistics(self) -> JobLogStatistics:
        """Counters of this handle."""


@frozen
class StoreStatistics:
    """What one store is doing."""

    path: str | None
    """The file, or None in memory."""
    pending: int
    """Operations submitted and not answered yet."""
    pending_bytes: int
    """Their size."""
    peak_pending: int
    """The most that ever waited at once."""
    answered: int
    """Operations answered, refused ones included."""
    refused: int
    """Operations refused because too many waited."""
    groups: int
    """Transactions committed; many operations share one."""
    largest_group: int
    """The most operations in one transaction."""
    failed_groups: int
    """Transactions that did not reach the disk."""
    set_aside: int
    """Damaged rows in quarantine, from this start or an earlier one."""


class Store(Protocol):
    """One place where things are kept: a file, or memory."""

    def key_value(self, space: str) -> KeyValue:
        """A handle on one space; handles are cheap, and those of one space show the same data."""

    def job_log(self) -> JobLog:
        """A handle on the job log."""

    def directory(self, prefix: str, on_done: OnDone[list[tuple[str, str]]]) -> None:
        """Answer every (space, scope) that holds a key and whose space begins with `prefix`, sorted."""

    async def room(self) -> None:
        """Wait until the store accepts operations."""

    def statistics(self) -> StoreStatistics:
        """What the store is doing."""


@frozen
class Lease:
    """A lock held by `owner` until `expires_at_ms` (Unix ms).

    `token` is larger than that of every lease granted before, also before a restart: whoever guards a resource with
    it can refuse a holder that has been overtaken.
    """

    owner: str
    token: int
    expires_at_ms: int


@frozen
class LockStatistics:
    """`held` locks, not expired ones."""

    held: int


class Lock(Protocol):
    """Mutual exclusion with an expiry (spec/state-stream.md §8)."""

    def acquire(self, index: str, key: str, owner: str, ttl_ms: int, on_done: OnDone[Lease | None]) -> None:
        """Answer a lease, or None while another owner holds it. Its holder renews it and keeps the token."""

    def release(self, index: str, key: str, owner: str, on_done: OnDone[bool]) -> None:
        """Give the lock back; answers whether `owner` held it."""

    def statistics(self) -> LockStatistics:
        """The locks held now."""


@frozen
class BroadcastStatistics:
    """Who listens: `topics` with a subscriber, `subscribers` in all, messages `published` so far."""

    topics: int
    subscribers: int
    published: int


class Subscription(Protocol):
    """Somebody's interest in a topic."""

    def close(self) -> None:
        """No message is delivered after this call returns."""


class Broadcast(Protocol):
    """Messages to whoever listens now, kept nowhere; in one order per topic, the same for all subscribers."""

    def subscribe(self, topic: str, on_message: Callable[[bytes], None]) -> Subscription:
        """Have `on_message` called, on the Trio thread, for everything published to `topic` from now on."""

    def publish(self, topic: str, payload: bytes, on_done: OnDone[int]) -> None:
        """Deliver to every subscriber, then answer how many there were."""

    def statistics(self) -> BroadcastStatistics:
        """Who listens."""
