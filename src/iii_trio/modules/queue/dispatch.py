"""A queue at work: one nursery with a dispatcher, a memory channel and up to N consumers (design.md §3, §5.3).

The dispatcher asks the machine what may begin, hands each message over the channel and sleeps until something has
happened or a retry is due; it never polls. A consumer makes one delivery at a time and is free again when its verdict
stands on disk. Consumers are started as they are needed, never more than the queue's concurrency, and stay; when the
concurrency shrinks, the surplus leave after their next message.

Who cancels it: the module's nursery. A delivery that is cancelled leaves its message in the log, unacknowledged: it is
delivered again, with its attempt number, when the engine is back. A queue without shares (nobody subscribes, or it was
taken out of the configuration) ends its nursery when its last delivery has ended, and keeps its messages.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from ...engine import Engine, LocalPeer
from ...protocol import limits
from ...protocol.errors import StoreError
from ...stores.interfaces import Heading, Job, JobLog, StoreFull
from ...stores.waiting import WaitingJobLog
from .delivery import Attempt, Share
from .machine import (
    BACKOFF_CEILING_MS,
    Bury,
    Ending,
    Entry,
    Item,
    Missing,
    Persist,
    Policy,
    QueueCounts,
    QueueMachine,
    Refused,
    Retry,
    SetTimer,
    Target,
)
from .names import QueueKey

log = logging.getLogger(__name__)

SHELF_BYTES: Final = limits.QUEUE_SHELF
JOB_OVERHEAD: Final = 1_024
PAUSED: Final = "paused"
DRAINING: Final = "draining"
ADOPTING: Final = "adopting"
LOADING: Final = "loading"
"""Reasons to begin nothing: somebody's decision, the engine stops, older messages are still on their way, it starts."""

WRITE_AGAIN_S: Final = 1.0
"""Pause before a verdict that did not reach the disk is written again."""


@define(eq=False)
class Shelf:
    """Messages of all queues kept in memory between log and delivery, up to `limit` bytes; the rest is read back.

    `messages` counts the live messages of all queues, kept here or not, and those that wait for a first subscriber.
    """

    limit: int = SHELF_BYTES
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

    def drop(self, seq: int) -> None:
        """The message has ended."""
        self.messages -= 1
        job = self._jobs.pop(seq, None)
        if job is not None:
            self.size -= len(job.payload) + JOB_OVERHEAD


@frozen
class QueueStatistics:
    """One queue: `shares` are its live triggers (1 for a configured named queue), `consumers` its tasks.

    `policy` is how it treats its messages now, `paused` whether somebody has stopped it, `remembered` whether it is a
    destination that gets its copies whether or not its worker is there.
    """

    key: QueueKey
    counts: QueueCounts
    policy: Policy
    shares: int
    consumers: int
    paused: bool
    remembered: bool


@define
class _Crew:
    """The consumers of one life of a queue."""

    size: int = 0


@define(eq=False, kw_only=True)
class ActiveQueue:
    """One queue: its machine, its shares, and while it has any, its nursery in `nursery`.

    `remembered`: a destination that gets a copy of everything published to its topic, also while it has no share.
    `arriving`: messages on their way into the log. `on_buried` is called after a message has become a dead letter.
    """

    key: QueueKey
    core: Engine
    peer: LocalPeer
    log: JobLog
    shelf: Shelf
    nursery: trio.Nursery
    on_buried: Callable[["ActiveQueue"], None]
    remembered: bool = False
    arriving: int = 0
    machine: QueueMachine = field(init=False)
    shares: dict[str, Share] = field(factory=dict, init=False)
    _holds: set[str] = field(factory=set, init=False)
    _serving: bool = field(default=False, init=False)
    _consumers: int = field(default=0, init=False)
    _wake: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.machine = QueueMachine(self._available)
        if self.core.draining:
            self.hold(DRAINING)

    def _available(self, target: Target) -> bool:
        return self.core.functions.get(*target) is not None

    # -- what happens to it: all synchronous --------------------------------------------------------------------------

    def offer(self, share_id: str, share: Share) -> None:
        """Add a share or replace the one of that id; the newest says how attempts are counted and spaced."""
        self.shares.pop(share_id, None)
        self.shares[share_id] = share
        self._configure()
        if not self._serving:
            self._serving = True
            self.nursery.start_soon(self.serve, name=f"queue {self.key.name}")

    def withdraw(self, share_id: str) -> None:
        """Take a share out; its deliveries run to their end."""
        self.shares.pop(share_id, None)
        self._configure()

    def take_in(self, job: Job | Heading, *, deliveries: int = 0) -> None:
        """A message stands in the log. `deliveries` of 1 or more: it may have been delivered before."""
        now = self.core.clock.now()
        # a wall clock that was set back must not hold a message longer than it was ever meant to wait
        longest_ms = BACKOFF_CEILING_MS if job.attempts else max(0, job.due_at_ms - job.created_at_ms)
        delay_ms = min(job.due_at_ms - self.core.clock.wall_ms(), longest_ms)
        self.machine.add(
            job.seq,
            (job.namespace, job.function_id or ""),
            job.group_id or "",
            priority=job.priority,
            now=now,
            due=now + delay_ms / 1000 if delay_ms > 0 else 0.0,
            attempts=job.attempts,
            deliveries=deliveries,
        )
        self.shelf.messages += 1
        if isinstance(job, Job):
            self.shelf.put(job)
        self._wake.set()

    def put_back(self, taken: Sequence[tuple[int, Entry]]) -> None:
        """What was taken out of the machine was not removed from the log."""
        self.machine.put_back(taken)
        self._wake.set()

    def revive(self, job: Job) -> None:
        """A dead letter was redriven: `job` is what stands in the log now."""
        self.machine.exhumed(1)
        self.take_in(job, deliveries=1)

    def appeared(self, target: Target) -> None:
        """A function has become callable."""
        if self.machine.appeared(target):
            self._wake.set()

    def hold(self, reason: str) -> None:
        """Begin nothing any more, until `release` of the same reason; what is in flight may end."""
        self._holds.add(reason)
        self.machine.paused = True

    def release(self, reason: str) -> None:
        """Go on, unless there is another reason to wait."""
        self._holds.discard(reason)
        self.machine.paused = bool(self._holds)
        self._wake.set()

    def is_held(self, reason: str) -> bool:
        """Whether it waits for that reason, be it among others."""
        return reason in self._holds

    def finished(self, item: Item, ending: Ending) -> Persist | None:
        """A delivery has ended; what is returned must be written down before `settled`."""
        verdict = self.machine.finished(item, ending, self.core.clock.now())
        if verdict is None:
            self._wake.set()
        return verdict

    def settled(self, item: Item, verdict: Persist) -> None:
        """A verdict stands on disk."""
        self.machine.settled(item, verdict, self.core.clock.now())
        if not isinstance(verdict, Retry):
            self.shelf.drop(item.seq)
        self._wake.set()
        if isinstance(verdict, Bury):
            self.on_buried(self)

    @property
    def length(self) -> int:
        """Live messages, those on their way into the log included."""
        return self.machine.live + self.arriving

    @property
    def empty(self) -> bool:
        """True when neither live messages nor dead letters are left."""
        return not self.length and not self.machine.dead

    def _configure(self) -> None:
        policy = self.machine.policy
        if self.shares:
            *_, newest = self.shares.values()
            fifo = any(share.policy.fifo for share in self.shares.values())
            concurrency = sum(share.policy.concurrency for share in self.shares.values())
            policy = evolve(newest.policy, fifo=fifo, concurrency=concurrency)
        else:
            policy = evolve(policy, concurrency=0)
        self.machine.configure(policy)
        self._wake.set()

    def _least_loaded(self) -> Share | None:
        free = [share for share in self.shares.values() if share.running < share.policy.concurrency]
        return min(free, key=lambda share: share.running / share.policy.concurrency, default=None)

    # -- its tasks ----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Dispatch until there are no shares, then let the consumers end what they have begun."""
        # what is in flight never exceeds the concurrency, and nothing else ever lies in the channel: it needs no bound of
        # its own, and handing over a message costs no turn of the loop
        send, receive = trio.open_memory_channel[Item](math.inf)
        # a queue that gets a share again begins anew beside consumers that still end what they had begun
        crew = _Crew()
        async with trio.open_nursery() as nursery, send:
            while self.shares:
                self._wake = trio.Event()
                timer = math.inf
                for effect in self.machine.poll(self.core.clock.now()):
                    if isinstance(effect, SetTimer):
                        timer = effect.when
                    else:
                        send.send_nowait(effect.item)
                while crew.size < min(self.machine.in_flight, self.machine.policy.concurrency):
                    crew.size += 1
                    nursery.start_soon(self._consume, receive, crew, name=f"consumer of {self.key.name}")
                with trio.move_on_at(timer):
                    await self._wake.wait()
            self._serving = False

    async def _consume(self, receive: trio.MemoryReceiveChannel[Item], crew: "_Crew") -> None:
        self._consumers += 1
        try:
            async for item in receive:
                await self._deliver(item)
                if crew.size > max(1, self.machine.policy.concurrency):
                    return
        finally:
            self._consumers -= 1
            crew.size -= 1

    async def _deliver(self, item: Item) -> None:
        try:
            job = self.shelf.get(item.seq) or await self._read(item)
        except StoreError as error:
            log.error("queue %s: a message could not be read back: %s", self.key.name, error)
            self.finished(item, Refused())
            return
        if job is None:
            log.error("queue %s: message %d is not in the log any more", self.key.name, item.seq)
            self.settled(item, self.machine.lost(item))
            return
        share = self._least_loaded()
        if share is None:
            self.finished(item, Missing())  # its trigger went while it was on its way
            return
        attempt = Attempt(self, item, job, share)
        attempt.begin()
        await attempt.over.wait()
        while attempt.unwritten is not None:
            await self._wait_to_write(attempt.unwritten)
            attempt.write_again()
            await attempt.over.wait()

    async def _read(self, item: Item) -> Job | None:
        jobs = await WaitingJobLog(self.log).load(item.seq - 1, 1)
        return jobs[0] if jobs and jobs[0].seq == item.seq else None

    async def _wait_to_write(self, error: StoreError) -> None:
        if isinstance(error, StoreFull):
            await self.log.room()
            return
        log.error("queue %s: the end of a delivery could not be written down, trying again: %s", self.key.name, error)
        await trio.sleep(WRITE_AGAIN_S)

    def statistics(self) -> QueueStatistics:
        """A frozen picture of this queue."""
        return QueueStatistics(
            key=self.key,
            counts=self.machine.statistics(),
            policy=self.machine.policy,
            shares=len(self.shares),
            consumers=self._consumers,
            paused=self.is_held(PAUSED),
            remembered=self.remembered,
        )
