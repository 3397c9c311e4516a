"""What every store offers: `KeyValue` (`key_value.py`), job log, lock and broadcast as protocols, and what crosses them.

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
from typing import Protocol, TypeAlias

from attrs import frozen

from .key_value import KeyValue
from .results import OnDone


class Fsync(enum.Enum):
    """When written data is forced to the disk. A crash of the process loses nothing in any of them."""

    ALWAYS = "always"
    """Before a write is answered; a power failure loses nothing that was answered. The default.

    One exception: that a delivered job has ended (`JobLog.ack`) is forced within a second; lost, it comes again."""
    INTERVAL = "interval"
    """Every few seconds; a power failure loses at most that much."""
    NEVER = "never"
    """When the operating system pleases; a power failure may damage the file. For tests and scratch data."""


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

    `attempts` counts failures; `error` is the last one's text. `deliveries` is what was said of them when the job was
    written last. A `delayed` job is not in the order of its queue until `promote` puts it there.
    """

    seq: int = 0
    attempts: int = 0
    error: str | None = None
    deliveries: int = 0
    delayed: bool = False

    @classmethod
    def numbered(cls, seq: int, new: NewJob) -> "Job":
        """`new` as it stands in the log under `seq`: delayed, if it is due later than it was made."""
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
            delayed=new.due_at_ms > new.created_at_ms,
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
    deliveries: int
    delayed: bool


LaneKey: TypeAlias = tuple[str, str]
"""A lane of a queue: (namespace, function id) of all jobs for one function, or ("", group) of all jobs of one group."""


@frozen
class QueueCensus:
    """The live jobs of one queue: how many, how many of them delayed, and when the first of those is due (Unix ms)."""

    queue: str
    live: int
    delayed: int
    next_due_ms: int | None


@frozen
class Census:
    """The live jobs of all queues that have any. `newest_seq` is the largest number in the log.

    `delayed_since_ms` (Unix ms) is when the youngest of the delayed jobs was made; 0 if there are none.
    """

    queues: tuple[QueueCensus, ...]
    newest_seq: int
    delayed_since_ms: int


@frozen
class LaneCensus:
    """One lane: its first job, how many wait in it, and how many are delayed (which only a lane of a group tells)."""

    key: LaneKey
    waiting: int
    delayed: int
    head: Heading


@frozen
class Stretch:
    """A part of a lane: up to `limit` jobs behind the place (`priority`, `seq`).

    The jobs for one function stand in the order of priority, highest first, then `seq`, without the delayed ones. Those
    of one group (`by_group`) stand in the order of `seq`, the delayed ones among them; their priority does not matter.
    """

    key: LaneKey
    by_group: bool
    priority: int
    seq: int
    limit: int


Page: TypeAlias = list[Job | Heading]
"""Jobs in their order, as headings where one is damaged or where the page's bytes are used up."""


@frozen
class Promoted:
    """Jobs that have taken their place in the order, and when the next delayed one is due (Unix ms), if there is one."""

    jobs: Page
    next_due_ms: int | None


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

    A job whose row is damaged is not answered by anything: it is set aside when it is met, as if it had not been there.

    The log belongs to exactly one engine (its lock file sees to that), so *claiming* a job, *extending* the claim and
    *reclaiming* it are matters of the engine's memory and cost no write: with `pages` and `promote` the log hands over
    what comes next, and the claim with it; a lease is a deadline of the engine; after a crash the next start
    reclaims whatever was in flight. Only what must survive is an operation here: the job, its failures, its end.
    """

    def listen(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        """Call `listener` with "jobs" or "dead" and the name of the queue for each damaged job that is set aside.

        Until what is returned is called, once.
        """

    def append(self, jobs: Sequence[NewJob], on_done: OnDone[list[Job]]) -> None:
        """Store all of them or none (the copies of one publish), and answer them with their `seq`."""

    def append_once(self, jobs: Sequence[NewJob], once: Once, on_done: OnDone[list[Job]]) -> None:
        """`append`, unless the key of `once` is taken: then nothing is stored, and the answer is [].

        The key is taken from now on until its time; keys whose time is over are dropped by and by.
        """

    def load(self, after: int, limit: int, on_done: OnDone[list[Job]]) -> None:
        """Answer up to `limit` live jobs with `seq` > `after`, in order; [] is the end. Start with 0."""

    def find(self, seqs: Sequence[int], on_done: OnDone[list[Job]]) -> None:
        """Answer those of these live jobs that are there, in order."""

    def census(self, on_done: OnDone[Census]) -> None:
        """Count the live jobs of every queue: all that a start needs to know."""

    def lanes(
        self, queue: str, by_group: bool, after: LaneKey | None, limit: int, on_done: OnDone[list[LaneCensus]]
    ) -> None:
        """Answer up to `limit` lanes of a queue with a key > `after`, in the order of their keys; [] is the end.

        This, `pages` and `promote` keep their place among the writes: what they answer is what all writes that were
        answered before have made of the log, and nothing else.
        """

    def pages(self, queue: str, stretches: Sequence[Stretch], max_bytes: int, on_done: OnDone[list[Page]]) -> None:
        """Answer each of these stretches, with payloads of up to `max_bytes` in all."""

    def promote(self, queue: str, now_ms: int, limit: int, max_bytes: int, on_done: OnDone[Promoted]) -> None:
        """Let up to `limit` delayed jobs that are due at `now_ms` take their place in the order; answers them."""

    def ack(self, seq: int, on_done: OnDone[bool], *, patient: bool = False) -> None:
        """Remove a finished job; answers whether it was there.

        Answered, it survives a crash of the process, and a power failure within a second or with the next write that is
        forced, whichever comes first: lost, it costs a delivery that is repeated. With `patient` nobody waits for the
        answer, which may take some milliseconds longer, so that the removal shares the next write's transaction.
        """

    def retry(
        self, seq: int, attempts: int, deliveries: int, due_at_ms: int, error: str, on_done: OnDone[bool]
    ) -> None:
        """Write down a failed attempt (a nack) and when the next is due: the job is delayed until then.

        Answers whether it was there.
        """

    def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int, on_done: OnDone[bool]) -> None:
        """Move the job to the dead letters of its queue; answers whether it was there."""

    def clear(
        self, queue: str, through: int, spared: Sequence[int], limit: int, on_done: OnDone[list[Heading]]
    ) -> None:
        """Drop up to `limit` live jobs of `queue` with `seq` <= `through`, but for those `spared`; answers them."""

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

        They count as delivered once, and are not delayed.
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
    """Damaged rows in quarantine, set aside since the start or before."""
    checking: bool
    """Whether a look at every row is under way beside the work."""


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
