"""A queue at work: one nursery with a dispatcher, a memory channel and up to N consumers (design.md §3, §5.3).

Whatever happens to a queue (a message was stored, a slot is free again, a function appeared) leads to one question to
the machine, when the batch of callbacks under way is through: what may begin? What does and has its message at hand
begins in that very step, without a task, and leaves the engine right behind the receipts of that batch. Nothing polls:
the dispatcher sleeps until a retry is due, or something happened outside of a batch.

Only what must wait for the disk goes over the channel to a consumer: a message that has to be read back, a verdict that
could not be written. Consumers are started as they are needed, never more than the queue's concurrency, and stay; when
the concurrency shrinks, the surplus leave after their next message. For each function whose worker has too much to read
already, one task waits until that has read on; what is for the function rests meanwhile.

Who cancels it: the module's nursery. A delivery that is cancelled leaves its message in the log, unacknowledged: it is
delivered again, with its attempt number, when the engine is back. A queue without shares (nobody subscribes, or it was
taken out of the configuration) ends its nursery when its last delivery has ended, and keeps its messages.
"""

import logging
import math
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from ...engine import Engine, LocalPeer
from ...protocol.errors import StoreError
from ...stores.interfaces import Heading, Job, JobLog, QueueCensus
from ...stores.results import Done, Failed, OnDone, Result, RowDamaged, StoreClosed, StoreFull
from ...stores.waiting import WaitingJobLog
from ...transport import Connection, after_batch
from .delivery import Attempt, Share
from .lanes import Item, Promote, Read, Refill, Survey, Target
from .machine import QueueMachine, SetTimer
from .names import QueueKey
from .reading import LogTime, Reader, Shelf
from .verdicts import Bury, Busy, Ending, Missing, Persist, Policy, QueueCounts, Refused, Retry

log = logging.getLogger(__name__)

PAUSED: Final = "paused"
DRAINING: Final = "draining"
ADOPTING: Final = "adopting"
LOADING: Final = "loading"
PURGING: Final = "purging"
"""Reasons to begin nothing: somebody's decision, the engine stops, older messages are on their way, it starts, or they go."""

ENDED: Final = Failed(StoreClosed("The queue module has ended in between; what was done until then stays done."))
"""The answer to who asked for more than was done when the module ended."""

FOUND: Final = 100
"""Messages read back by one operation."""

WRITE_AGAIN_S: Final = 1.0
"""Pause before a verdict that did not reach the disk is written again."""


@frozen
class QueueStatistics:
    """One queue: `shares` are its live triggers (1 for a configured named queue), `consumers` its tasks.

    `policy` is how it treats its messages now, `paused` whether somebody has stopped it, `remembered` whether it is a
    destination that gets its copies whether or not its worker is there. What `consumers` wait for: see the module.
    """

    key: QueueKey
    counts: QueueCounts
    policy: Policy
    shares: int
    consumers: int
    paused: bool
    remembered: bool


@define(eq=False, kw_only=True)
class ActiveQueue:
    """One queue: its machine, its shares, and while it has any, its nursery in `nursery`.

    `remembered`: a destination that gets a copy of everything published to its topic, also while it has no share.
    `arriving`: messages on their way into the log. `on_buried` is called after a message has become a dead letter,
    `on_left` after one has ended that was in flight when the last share went. `closed`: the module has ended, and an
    answer that comes late begins nothing more.
    """

    key: QueueKey
    core: Engine
    peer: LocalPeer
    log: JobLog
    shelf: Shelf
    time: LogTime
    nursery: trio.Nursery
    on_buried: Callable[["ActiveQueue"], None]
    on_left: Callable[["ActiveQueue"], None]
    remembered: bool = False
    arriving: int = 0
    closed: bool = False
    machine: QueueMachine = field(init=False)
    shares: dict[str, Share] = field(factory=dict, init=False)
    _reader: Reader = field(init=False)
    _holds: set[str] = field(factory=set, init=False)
    _purges: int = field(default=0, init=False)
    _serving: bool = field(default=False, init=False)
    _consumers: int = field(default=0, init=False)
    _wake: trio.Event = field(factory=trio.Event, init=False)
    _stirred: bool = field(default=False, init=False)
    _due: float = field(default=math.inf, init=False)  # when the dispatcher wakes by itself
    _line: trio.MemorySendChannel[Item | Attempt | Read] | None = field(default=None, init=False)  # to the consumers
    _in_line: int = field(default=0, init=False)  # and with them
    _tasks: trio.Nursery | None = field(default=None, init=False)
    _unwritable: bool = field(default=False, init=False)  # it was said that a verdict could not be written
    _awaited: set[Target] = field(factory=set, init=False)  # whose worker is busy, and is waited for

    def __attrs_post_init__(self) -> None:
        self.machine = QueueMachine(self._available, let_go=self.shelf.let_go)
        self._reader = Reader(
            self.log, self.machine, self.shelf, self.time, self.key.text, self._stir, self._wait_for_room
        )
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

    def restore(self, counted: QueueCensus) -> None:
        """So many messages stood in the log when the engine started."""
        next_due = math.inf if counted.next_due_ms is None else self.time.from_ms(counted.next_due_ms)
        self.machine.restore(counted.live - counted.delayed, counted.delayed, next_due, self.time.newest)
        self.shelf.messages += counted.live
        self._stir()

    def take_in(self, job: Job) -> None:
        """A message stands in the log."""
        self.machine.add(
            job.seq,
            (job.namespace, job.function_id or ""),
            job.group_id or "",
            priority=job.priority,
            due=self.time.from_ms(job.due_at_ms) if job.delayed else None,
            attempts=job.attempts,
            deliveries=self.time.deliveries(job),
        )
        self.shelf.messages += 1
        if self.machine.holds(job.seq):
            self.shelf.put(job)
        self._stir()

    def purge(self, page: int, on_done: OnDone[int]) -> None:
        """Remove all that waits or is delayed from the log, `page` messages at a time; answers how many.

        Nothing begins meanwhile. What comes meanwhile stays, and what is in flight goes on.
        """
        total, through = 0, self.machine.newest
        self._purges += 1
        self.hold(PURGING)

        def next_page() -> None:
            if self.closed:
                on_done(ENDED)
                return
            self.log.clear(self.key.text, through, self.machine.begun, page, removed)

        def removed(result: Result[list[Heading]]) -> None:
            nonlocal total
            if isinstance(result, Done):
                self.machine.removed([self._reader.row(heading) for heading in result.value])
                for heading in result.value:
                    self.shelf.drop(heading.seq)
                total += len(result.value)
                if len(result.value) == page:
                    next_page()
                    return
            self._purges -= 1
            if not self._purges:
                self.release(PURGING)
            on_done(Done(total) if isinstance(result, Done) else result)

        next_page()

    def revive(self, job: Job) -> None:
        """A dead letter was redriven: `job` is what stands in the log now."""
        self.machine.exhumed(1)
        self.take_in(job)

    def appeared(self, target: Target) -> None:
        """A function has become callable."""
        if self.machine.appeared(target):
            self._stir()

    def hold(self, reason: str) -> None:
        """Begin nothing any more, until `release` of the same reason; what is in flight may end."""
        self._holds.add(reason)
        self.machine.paused = True

    def release(self, reason: str) -> None:
        """Go on, unless there is another reason to wait."""
        self._holds.discard(reason)
        self.machine.paused = bool(self._holds)
        self._stir()

    def is_held(self, reason: str) -> bool:
        """Whether it waits for that reason, be it among others."""
        return reason in self._holds

    def wait_for_room(self, target: Target, connection: Connection) -> None:
        """The worker of a function is `busy`: go on with what is for it as soon as that has read on."""
        if self._tasks is not None and not self.closed and target not in self._awaited:
            self._awaited.add(target)
            self._tasks.start_soon(self._await_room, target, connection, name=f"room for {target[1]}")

    def finished(self, item: Item, ending: Ending) -> Persist | None:
        """A delivery has ended; what is returned must be written down before `settled`."""
        verdict = self.machine.finished(item, ending, self.core.clock.now())
        if verdict is None:
            self._stir()
        return verdict

    def settled(self, item: Item, verdict: Persist) -> None:
        """A verdict stands on disk."""
        self.machine.settled(item, verdict)
        self._unwritable = False
        if not isinstance(verdict, Retry):
            self.shelf.drop(item.seq)
        self._stir()
        if isinstance(verdict, Bury):
            self.on_buried(self)
        if not self.shares:
            self.on_left(self)

    def put_off(self, attempt: Attempt) -> None:
        """The verdict of a delivery could not be written down: a consumer tries again, unless the module has ended."""
        self._queue_up(attempt)

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
        self._stir()

    def _least_loaded(self) -> Share | None:
        found, least = None, 1.0
        for share in self.shares.values():
            load = share.running / share.policy.concurrency if share.policy.concurrency else 1.0
            if load < least:
                found, least = share, load
        return found

    # -- what it does about it: all synchronous -----------------------------------------------------------------------

    def _stir(self) -> None:
        if not self._stirred:
            self._stirred = True
            if not after_batch(self._dispatch):
                self._wake.set()

    def _dispatch(self) -> None:
        if self._line is None:
            self._stirred = False
        elif self._begin() < self._due or not self._busy:
            self._wake.set()

    def _begin(self) -> float:
        """Begin what may begin; returns when to ask again, if nothing happens."""
        self._stirred = False
        due, absent = math.inf, list[Item]()
        for effect in self.machine.poll(self.core.clock.now()):
            if isinstance(effect, SetTimer):
                due = effect.when
            elif isinstance(effect, Survey | Refill | Promote):
                self._reader.read(effect)
            elif self.machine.rests(effect.item.target):  # since a moment ago, by one that was taken with it
                self.finished(effect.item, Busy())
            elif (job := self.shelf.get(effect.item.seq)) is not None:
                self._deliver(effect.item, job)
            else:
                absent.append(effect.item)
        for first in range(0, len(absent), FOUND):
            self._find(absent[first : first + FOUND])
        return due

    def _find(self, items: list[Item]) -> None:
        """Deliver what is not at hand: read back together, and where that fails each by itself."""

        def found(result: Result[list[Job]]) -> None:
            if self._line is None:
                return
            jobs = {job.seq: job for job in result.value} if isinstance(result, Done) else {}
            for item in items:
                job = jobs.get(item.seq)
                if job is None:
                    self._queue_up(item)
                else:
                    self._deliver(item, job)

        try:
            self.log.find([item.seq for item in items], found)
        except StoreError as error:
            found(Failed(error))

    def _deliver(self, item: Item, job: Job) -> None:
        share = self._least_loaded()
        if share is None:
            self.finished(item, Missing())  # its trigger went while it was on its way
        else:
            Attempt(self, item, job, share).begin()

    def _wait_for_room(self, read: Read) -> None:
        if self._line is None:
            self.machine.unread(read, self.core.clock.now())
        else:
            self._queue_up(read)

    def _queue_up(self, waiting: Item | Attempt | Read) -> None:
        if self._line is not None:
            self._line.send_nowait(waiting)
            self._in_line += 1
            self._wake.set()

    # -- its tasks ----------------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Dispatch until there are no shares, and what had begun has ended."""
        # what is in flight never exceeds the concurrency, and nothing else ever lies in the channel: it needs no bound of
        # its own, and handing over a message costs no turn of the loop
        line, receive = trio.open_memory_channel[Item | Attempt | Read](math.inf)
        self._line = line
        async with trio.open_nursery() as nursery, line:
            self._tasks = nursery
            try:
                while self._busy:
                    self._wake = trio.Event()
                    self._due = self._begin()
                    while self._consumers < min(self._in_line, self._most_consumers):
                        self._consumers += 1
                        nursery.start_soon(self._consume, receive, name=f"consumer of {self.key.name}")
                    with trio.move_on_at(self._due):
                        await self._wake.wait()
                self._serving = False
                nursery.cancel_scope.cancel()  # whoever waits for a worker to read on need not any more
            finally:
                # also when cancelled: what is answered while the consumers end finds nobody to hand anything to
                self._line, self._tasks = None, None

    @property
    def _busy(self) -> bool:
        """Whether there is or may be something to do; a read that waits for room must be made, or none ever is again."""
        return bool(self.shares or self.machine.in_flight or self._in_line)

    @property
    def _most_consumers(self) -> int:
        return max(1, self.machine.policy.concurrency)

    async def _consume(self, receive: trio.MemoryReceiveChannel[Item | Attempt | Read]) -> None:
        try:
            async for waiting in receive:
                if isinstance(waiting, Attempt):
                    await self._write_again(waiting)
                elif isinstance(waiting, Item):
                    await self._read_and_deliver(waiting)
                else:
                    await self.log.room()
                    self._reader.read(waiting)
                self._in_line -= 1
                if not self._busy:
                    self._wake.set()
                if self._consumers > self._most_consumers:
                    return
        finally:
            self._consumers -= 1
            self._wake.set()  # what is in line may have been left to this one

    async def _await_room(self, target: Target, connection: Connection) -> None:
        try:
            await connection.wait_room()
        finally:
            self._awaited.discard(target)
        if not connection.busy and self.machine.rested(target):  # else it is about to end, unread
            self._stir()

    async def _read_and_deliver(self, item: Item) -> None:
        try:
            job = await self._read(item)
        except RowDamaged as error:  # and could not be set aside: the log says so, and nobody gets it
            log.error("queue %s: message %d is given up: %s", self.key.name, item.seq, error)
            self.settled(item, self.machine.lost(item))
            return
        except StoreError as error:
            log.error("queue %s: a message could not be read back: %s", self.key.name, error)
            self.finished(item, Refused())
            return
        if job is None:
            log.error("queue %s: message %d is not in the log any more", self.key.name, item.seq)
            self.settled(item, self.machine.lost(item))
            return
        self._deliver(item, job)

    async def _read(self, item: Item) -> Job | None:
        jobs = await WaitingJobLog(self.log).load(item.seq - 1, 1)
        return jobs[0] if jobs and jobs[0].seq == item.seq else None

    async def _write_again(self, attempt: Attempt) -> None:
        error = attempt.unwritten
        if isinstance(error, StoreFull):
            await self.log.room()
        else:
            if not self._unwritable:
                self._unwritable = True
                text = "queue %s: the end of a delivery was not written down, trying again every second: %s"
                log.error(text, self.key.name, error)
            await trio.sleep(WRITE_AGAIN_S)
        attempt.write_again()

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
