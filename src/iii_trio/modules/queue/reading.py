"""What a queue reads of the log while it works: the machine says what, this asks, and tells it the answer.

Every read is an operation on the log, answered by a callback. At most one of each kind is under way for a queue.
"""

import logging
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Final

from attrs import define, field

from ...engine import Clock
from ...protocol import limits
from ...protocol.errors import StoreError
from ...stores import Done, Heading, Job, JobLog, LaneCensus, Page, Promoted, Result, StoreFull, Stretch
from .lanes import SEQ, LaneRow, Promote, Read, Refill, Row, Survey, priority_at
from .machine import QueueMachine

log = logging.getLogger(__name__)

PAGE_BYTES: Final = limits.QUEUE_PAGE
JOB_OVERHEAD: Final = 1_024

STEP_MS: Final = 1_000
"""A wall clock that is so far ahead was set, or the machine has slept."""


@define(eq=False)
class Shelf:
    """Payloads of messages of all queues that are near their delivery, up to `limit` bytes; the rest is read back.

    `messages` counts the live messages of all queues, kept here or not, and those that wait for a first subscriber.
    """

    limit: int = limits.QUEUE_SHELF
    size: int = field(default=0, init=False)
    messages: int = field(default=0, init=False)
    _jobs: dict[int, Job] = field(factory=dict, init=False)

    def put(self, job: Job) -> None:
        """Keep a message if there is room."""
        size = len(job.payload) + JOB_OVERHEAD
        if self.size + size <= self.limit:
            self._jobs[job.seq] = job
            self.size += size

    def get(self, seq: int) -> Job | None:
        """The message, or None when it has to be read from the log."""
        return self._jobs.get(seq)

    def let_go(self, seq: int) -> None:
        """The message is not near its delivery any more."""
        job = self._jobs.pop(seq, None)
        if job is not None:
            self.size -= len(job.payload) + JOB_OVERHEAD

    def drop(self, seq: int) -> None:
        """The message has ended."""
        self.messages -= 1
        self.let_go(seq)


@define(eq=False)
class LogTime:
    """The time by which messages are made and due: the wall clock's, as long as that does not go back.

    It goes on with Trio's clock, and follows the wall clock forward (after the machine has slept). So a message that was
    delayed before somebody set the clock back waits no longer than it was meant to. `newest` is the largest number in
    the log at the start, `since_ms` when the youngest of its delayed messages was made.
    """

    _clock: Clock
    newest: int = 0
    since_ms: int = 0
    start_ms: int = field(init=False)
    _offset_ms: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.start_ms = max(self._clock.wall_ms(), self.since_ms)
        self._offset_ms = self.start_ms - self._clock.now() * 1000

    def now(self) -> float:
        """Seconds of Trio's clock."""
        return self._clock.now()

    def now_ms(self) -> int:
        """Unix milliseconds."""
        now = self._clock.now()
        behind_ms = self._clock.wall_ms() - self.to_ms(now)
        if behind_ms > STEP_MS:
            self._offset_ms += behind_ms
        return self.to_ms(now)

    def to_ms(self, when: float) -> int:
        """A time of Trio's clock in Unix milliseconds."""
        return round(self._offset_ms + when * 1000)

    def from_ms(self, unix_ms: int) -> float:
        """The other way round."""
        return (unix_ms - self._offset_ms) / 1000

    def deliveries(self, job: Job | Heading) -> int:
        """How often a message may have been delivered.

        The log does not say what was in flight when the engine ended: what was due at the start counts as delivered
        once more, so that a repeated delivery is always marked as one.
        """
        repeated = job.seq <= self.newest and job.due_at_ms <= self.start_ms
        return max(job.deliveries, job.attempts) + repeated


@define(eq=False)
class Reader:
    """See the module. `changed` is called after each answer, `wait` with a read for which the store has no room now."""

    _log: JobLog
    _machine: QueueMachine
    _shelf: Shelf
    _time: LogTime
    _queue: str
    _changed: Callable[[], None]
    _wait: Callable[[Read], None]

    def read(self, read: Read) -> None:
        """Ask the log; returns at once."""
        room = max(0, min(PAGE_BYTES, self._shelf.limit - self._shelf.size))
        try:
            if isinstance(read, Survey):
                told = partial(self._answered, read, self._surveyed)
                self._log.lanes(self._queue, read.fifo, read.after, read.limit, told)
            elif isinstance(read, Refill):
                stretches = [
                    Stretch(gap.key, read.fifo, priority_at(gap.floor), gap.floor & SEQ, gap.limit) for gap in read.gaps
                ]
                self._log.pages(self._queue, stretches, room, partial(self._answered, read, self._refilled))
            else:
                told = partial(self._answered, read, self._promoted)
                self._log.promote(self._queue, self._time.now_ms(), read.limit, room, told)
        except StoreError as error:
            self._failed(read, error)

    def row(self, job: Job | Heading) -> Row:
        """A message as the machine wants it."""
        return Row(
            job.seq,
            (job.namespace, job.function_id or ""),
            job.group_id or "",
            job.priority,
            job.attempts,
            self._time.deliveries(job),
            bool(job.delayed),
        )

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answered(self, read: Any, tell: Callable[[Any, Any], None], result: Result[Any]) -> None:
        if isinstance(result, Done):
            tell(read, result.value)
            self._changed()
        else:
            self._failed(read, result.error)

    def _failed(self, read: Read, error: StoreError) -> None:
        if isinstance(error, StoreFull):
            self._wait(read)
            return
        log.error("queue %s: what comes next could not be read, trying again: %s", self._queue, error)
        self._machine.unread(read, self._time.now())
        self._changed()

    def _surveyed(self, read: Survey, lanes: list[LaneCensus]) -> None:
        rows = [LaneRow(lane.key, lane.waiting, lane.delayed, self.row(lane.head)) for lane in lanes]
        self._machine.surveyed(read, rows)

    def _refilled(self, read: Refill, pages: list[Page]) -> None:
        self._machine.refilled(read, [[self.row(job) for job in page] for page in pages])
        for page in pages:
            self._keep(page)

    def _promoted(self, read: Promote, answer: Promoted) -> None:
        next_due = inf if answer.next_due_ms is None else self._time.from_ms(answer.next_due_ms)
        self._machine.promoted([self.row(job) for job in answer.jobs], next_due)
        self._keep(answer.jobs)

    def _keep(self, page: Page) -> None:
        for job in page:
            if isinstance(job, Job) and self._machine.holds(job.seq) and self._shelf.get(job.seq) is None:
                self._shelf.put(job)
