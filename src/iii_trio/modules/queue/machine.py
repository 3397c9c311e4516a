"""One queue as a pure state machine: which message is delivered when, and what each ending means. No I/O, no clock.

Theory of operation. A message is an `Item`; its payload is somebody else's business. `seq`, its number in the log, is
its age and never changes while it lives. Items stand in *lanes*: in a standard queue one lane per target function, in a
fifo queue one per message group. A lane's head is the next to go: in a standard lane the oldest of the highest
priority, in a fifo lane the oldest. A standard lane lets any number of its items run at once, a fifo lane one, and its
head also while that waits for its next attempt. Where several lanes may go, the head of the highest priority does, then
the oldest.

    add ──> WAITING ──poll──> IN_FLIGHT ──finished──> SETTLING ──settled──> gone (acknowledged, or a dead letter)
            ^     ^               │                      │
            │     └─ RESTING <────┴─ nothing delivered   └─ to be tried again ──> DELAYED
            └───────────────────── time has come, `promoted` ─────────────────────────┘

`finished` says what must be written down, and only `settled`, called when that stands on disk, lets it count: the slot
is free, the lane goes on, the retry is scheduled. A lane whose head's function is not there is *held*: it costs no slot
and no attempt, and nothing in other lanes waits for it. In a standard queue that means: nothing waits but the messages
for that function. In a fifo queue it means: nothing waits but that group, whose order wins over everything. The same goes
for a function whose worker takes no more at the moment (`Busy`): what is for it rests as long as one message would.

What is in memory is bounded, however many messages wait: what is in flight, a record of each lane, the first message of
each, and up to `window` more, where deliveries are made. The rest is counted, and stands in the log in the order in
which it will be wanted (`window.py`); `poll` asks for it before it is needed, one read at a time. Delayed messages stand
in no order of the log until their time has come and it is told so (`Promote`): some of them are in memory and take
their places at once, of the others is known how many they are and when the first is due. (In a fifo queue they keep
their place, in which they hold up their group.) A queue that is new to the machine, or that becomes fifo or ceases to
be, is surveyed first: nothing begins until its lanes are counted, or in a fifo queue, whose lanes may be many and do
not wait for each other, nothing of a lane.

The log answers reads in line with writes: what a read shows is what has been told here before its answer is, no more
and no less. All reasoning about reads that are under way rests on that.

All times are seconds of one clock that only goes forward.
"""

import random
from collections.abc import Callable
from heapq import heappush
from math import inf
from typing import Final, TypeAlias

from attrs import define, field, frozen

from ...protocol.limits import FRAMES_PER_WAKEUP
from .lanes import SEQ, Item, Read, State, Target
from .verdicts import (
    Acknowledge,
    Bury,
    Busy,
    Ending,
    Failed,
    Interrupted,
    Persist,
    Policy,
    QueueCounts,
    Refused,
    Retry,
    Succeeded,
)
from .window import Window

BEGUN_AT_ONCE: Final = FRAMES_PER_WAKEUP
"""Deliveries begun in one step: with a thousand slots free, as after a pause, others get their turn in between."""

PUT_BACK_S: Final = 0.25
"""How long a message rests that could not be delivered, or all of them if their worker was too busy to take one."""


@frozen
class Deliver:
    """Make one delivery of `item`, then call `finished`."""

    item: Item


@frozen
class SetTimer:
    """Call `poll` again at `when` at the latest."""

    when: float


Effect: TypeAlias = Deliver | SetTimer | Read


@define(eq=False)
class QueueMachine(Window):
    """See the module; its arguments are those of the window."""

    paused: bool = False
    """Begin no delivery; what is in flight may end."""
    chance: Callable[[], float] = random.random
    dead: int = field(default=0, init=False)
    acknowledged: int = field(default=0, init=False)
    failures: int = field(default=0, init=False)

    def statistics(self) -> QueueCounts:
        """A frozen picture of the queue."""
        return QueueCounts(
            waiting=self.waiting,
            held=self._held_messages(),
            delayed=self.delayed,
            in_flight=self.in_flight,
            dead=self.dead,
            lanes=len(self._lanes),
            acknowledged=self.acknowledged,
            failures=self.failures,
        )

    def _held_messages(self) -> int:
        """How many waiting messages their lanes' missing functions keep back; of a fifo queue every lane is looked at."""
        missing = {target for target in self._held if not self.available(target)}
        if not missing:
            return 0
        lanes, items, fifo, held = self._lanes, self._items, self.policy.fifo, 0
        for lane in lanes.values() if fifo else [lanes[target] for target in missing if target in lanes]:
            run = lane.run  # this is written out because the lanes may be a hundred thousand, and everybody waits
            if run and not (fifo and lane.running):
                head = items[run[0] & SEQ]
                if isinstance(head, Item):
                    if head.state is not State.WAITING:
                        continue
                    head = head.route
                if head.target in missing:
                    held += len(run) + lane.tail - lane.delayed
        return held

    def buried(self, count: int) -> None:
        """So many dead letters of the queue stood in the log already."""
        self.dead += count

    def exhumed(self, count: int) -> None:
        """So many dead letters were redriven or discarded."""
        self.dead -= count

    # -- what changes -------------------------------------------------------------------------------------------------

    def configure(self, policy: Policy) -> None:
        """A new policy; what is in flight goes on, and counts against the new concurrency."""
        reordered = policy.fifo is not self.policy.fifo
        self.policy = policy
        if reordered:
            self._reorder()

    def appeared(self, target: Target) -> bool:
        """A function has become callable; True if lanes were held for it, and `poll` is worth while."""
        if target not in self._held:
            return False
        self._held.remove(target)
        heads = self._heads.get(target)
        if heads:
            heappush(self._ready, (heads[0], target))
        return True

    # -- deliveries ---------------------------------------------------------------------------------------------------

    def poll(self, now: float) -> list[Effect]:
        """Begin the deliveries that may begin now, the oldest first, and ask for what will be needed.

        The last effect says when to ask again, if ever: at once, if these are the `BEGUN_AT_ONCE` and not all.
        """
        self._wake(now)
        effects: list[Effect] = []
        counting = self._surveying and not self.policy.fifo
        free = 0 if self.paused or counting else self.policy.concurrency - self.in_flight
        most = min(free, BEGUN_AT_ONCE)
        while len(effects) < most and (item := self._take()) is not None:
            item.deliveries += 1
            effects.append(Deliver(item))
        more = len(effects) == BEGUN_AT_ONCE < free and bool(self._ready)
        effects.extend(self._reads(now))
        when = now if more else self._wakes(now)
        if when < inf:
            effects.append(SetTimer(when))
        return effects

    def finished(self, item: Item, ending: Ending, now: float) -> Persist | None:
        """A delivery has ended. What is returned must be written down, then `settled`; None: there is nothing to write."""
        if item.state is not State.IN_FLIGHT:
            raise AssertionError(f"message {item.seq} is {item.state.value}")
        if isinstance(ending, Succeeded):
            self._move(item, State.SETTLING)
            return Acknowledge()
        if isinstance(ending, Failed):
            self.failures += 1
            item.attempts += 1
            self._move(item, State.SETTLING)
            if item.attempts >= self.policy.max_attempts:
                return Bury(item.attempts, ending.error)
            delay_ms = self.policy.delay_ms(item.attempts, self.chance())
            item.due = now + delay_ms / 1000
            return Retry(item.attempts, delay_ms, ending.error)
        if not isinstance(ending, Interrupted):
            item.deliveries -= 1
        self._begun.discard(item.seq)
        if isinstance(ending, Refused):
            item.due = now + PUT_BACK_S
            self._move(item, State.RESTING)
            heappush(self._asleep, (item.due, item.seq))
            if self.policy.fifo:
                self._return(item)
        else:
            if isinstance(ending, Busy):
                self._rest(item.target, now + PUT_BACK_S)
            self._move(item, State.WAITING)
            self._return(item)
        self._vacate(item)
        return None

    def lost(self, item: Item) -> Persist:
        """The message of an item in flight is not in the log any more: there is nothing to do but to settle it."""
        self._move(item, State.SETTLING)
        return Acknowledge()

    def settled(self, item: Item, written: Persist) -> None:
        """What `finished` returned stands on disk."""
        if item.state is not State.SETTLING:
            raise AssertionError(f"message {item.seq} is {item.state.value}")
        self._begun.discard(item.seq)
        self._awake.discard(item.seq)
        if isinstance(written, Retry):
            self._move(item, State.DELAYED)
            self._next_due = min(self._next_due, item.due)
            if self.policy.fifo:
                self._return(item)
            elif self._surveying or len(self._asleep) >= self.window:
                self._forget(item.seq)
            if item.seq in self._items:  # what has left it in its lane is woken by the log
                heappush(self._asleep, (item.due, item.seq))
        else:
            self._counts[item.state] -= 1
            del self._items[item.seq]
            if isinstance(written, Bury):
                self.dead += 1
            else:
                self.acknowledged += 1
        self._vacate(item)
