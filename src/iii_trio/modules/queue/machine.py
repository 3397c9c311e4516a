"""One queue as a pure state machine: which message is delivered when, and what each ending means. No I/O, no clock.

Theory of operation. A message is an `Item`; its payload is somebody else's business. `seq`, its number in the log, is
its age and never changes while it lives. Items stand in *lanes*: in a standard queue one lane per target function, in a
fifo queue one per message group. A lane is a heap by age; its head is the next to go. A standard lane lets any number
of its items run at once, a fifo lane one, and its head also while that waits for its next attempt.

    add ──> WAITING ──poll──> IN_FLIGHT ──finished──> SETTLING ──settled──> gone (acknowledged, or a dead letter)
               ^                  │                      │
               │                  └─ nothing delivered   └─ to be tried again ──> DELAYED
               └───────────────────── time has come ──────────────────────────────┘

`finished` says what must be written down, and only `settled`, called when that stands on disk, lets it count: the slot
is free, the lane goes on, the retry is scheduled. A lane whose head's function is not there is *held*: it costs no slot
and no attempt, and nothing in other lanes waits for it. In a standard queue that means: nothing waits but the messages
for that function. In a fifo queue it means: nothing waits but that group, whose order wins over everything.

All times are seconds of one clock that only goes forward.
"""

from collections.abc import Callable
from enum import Enum
from heapq import heappop, heappush
from typing import Final, TypeAlias

from attrs import define, field, frozen

BACKOFF_CEILING_MS: Final = 24 * 60 * 60 * 1000
"""No retry is scheduled later than this, whatever base and number of failures."""

PUT_BACK_S: Final = 0.25
"""How long a message rests whose worker was too busy to take it."""

Target: TypeAlias = tuple[str, str]
"""(namespace, function id)."""


def backoff_ms(base_ms: int, failures: int) -> int:
    """Delay before the next attempt after `failures` (at least 1) failed ones: base · 2^(failures − 1), with a ceiling."""
    if base_ms <= 0:
        return 0
    return min(BACKOFF_CEILING_MS, base_ms << min(failures - 1, BACKOFF_CEILING_MS.bit_length()))


@frozen
class Policy:
    """How a queue treats its messages now; it may change at any time and holds from the next decision on.

    `concurrency` of 0 pauses the queue. `max_attempts` is the number of failed attempts that makes a dead letter, at
    least 1. `backoff_ms` is the base delay.
    """

    fifo: bool = False
    concurrency: int = 0
    max_attempts: int = 3
    backoff_ms: int = 1000


class State(Enum):
    """Where an item stands; see the module."""

    WAITING = "waiting"
    DELAYED = "delayed"
    IN_FLIGHT = "in flight"
    SETTLING = "settling"


@define(eq=False)
class Item:
    """A message as the machine sees it: `attempts` have failed, `deliveries` were begun, this one included.

    `deliveries` may exceed `attempts` by more than 1: after a restart or a redrive, and when an attempt did not count.
    """

    seq: int
    target: Target
    group: str
    attempts: int
    deliveries: int
    due: float
    state: State


# -- endings: how a delivery ended, as the one who made it saw it -----------------------------------------------------


@frozen
class Succeeded:
    """The handler answered, or a condition said that it need not be asked."""


@frozen
class Failed:
    """A failed attempt; `error` is what will stand in the log and, in the end, at the dead letter."""

    error: str


@frozen
class Refused:
    """Nothing was delivered, because the worker or the engine was too busy: tried again shortly, no attempt counted."""


@frozen
class Missing:
    """Nothing was delivered, because the function is not there: the lane is held until it is."""


@frozen
class Interrupted:
    """The engine itself ended the delivery: it is repeated, and no attempt is counted."""


Ending: TypeAlias = Succeeded | Failed | Refused | Missing | Interrupted


# -- effects: what the machine wants done -----------------------------------------------------------------------------


@frozen
class Deliver:
    """Make one delivery of `item`, then call `finished`."""

    item: Item


@frozen
class SetTimer:
    """Call `poll` again at `when` at the latest."""

    when: float


@frozen
class Acknowledge:
    """Remove the message from the log, then call `settled`."""


@frozen
class Retry:
    """Write down that `attempts` have failed and that the next is due in `delay_ms`, then call `settled`."""

    attempts: int
    delay_ms: int
    error: str


@frozen
class Bury:
    """Move the message to the dead letters after `attempts` failures, then call `settled`."""

    attempts: int
    error: str


Effect: TypeAlias = Deliver | SetTimer
Persist: TypeAlias = Acknowledge | Retry | Bury


@frozen
class QueueCounts:
    """How many items of a queue stand where, and what has become of the others since the engine started."""

    waiting: int
    """Due, and not begun; `held` ones included."""
    held: int
    """Waiting in lanes whose function is not there."""
    delayed: int
    """Waiting for the time of their next attempt."""
    in_flight: int
    """Delivered, or their ending is being written down."""
    dead: int
    """Dead letters."""
    lanes: int
    """Functions (standard) or groups (fifo) with live messages."""
    acknowledged: int
    failures: int
    """Failed attempts."""


@define(eq=False)
class _Lane:
    key: Target | str
    heap: list[int] = field(factory=list)
    running: int = 0


@define(eq=False)
class QueueMachine:
    """See the module. `available` tells whether a function is there now; it must be a plain look-up."""

    available: Callable[[Target], bool]
    policy: Policy = field(factory=Policy)
    paused: bool = False
    dead: int = field(default=0, init=False)
    acknowledged: int = field(default=0, init=False)
    failures: int = field(default=0, init=False)
    _items: dict[int, Item] = field(factory=dict, init=False)
    _counts: dict[State, int] = field(factory=lambda: dict.fromkeys(State, 0), init=False)
    _lanes: dict[Target | str, _Lane] = field(factory=dict, init=False)
    _ready: list[int] = field(factory=list, init=False)  # heads of lanes that may go; entries may be stale
    _delayed: list[tuple[float, int]] = field(factory=list, init=False)  # (due, seq); entries may be stale
    _held: dict[Target, set[Target | str]] = field(factory=dict, init=False)

    # -- queries ------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Deliveries that hold a slot."""
        return self._counts[State.IN_FLIGHT] + self._counts[State.SETTLING]

    @property
    def waiting(self) -> int:
        """Items that are due and not begun."""
        return self._counts[State.WAITING]

    @property
    def live(self) -> int:
        """All items that are not dead letters."""
        return len(self._items)

    def statistics(self) -> QueueCounts:
        """A frozen picture of the queue."""
        held = {key for keys in self._held.values() for key in keys}
        return QueueCounts(
            waiting=self.waiting,
            held=sum(self._is_held(self._lanes[key]) for key in held if key in self._lanes),
            delayed=self._counts[State.DELAYED],
            in_flight=self.in_flight,
            dead=self.dead,
            lanes=len(self._lanes),
            acknowledged=self.acknowledged,
            failures=self.failures,
        )

    def _is_held(self, lane: _Lane) -> int:
        """How many waiting items of a lane its missing function keeps back."""
        if not lane.heap or self.available(self._items[lane.heap[0]].target):
            return 0
        return sum(self._items[seq].state is State.WAITING for seq in lane.heap)

    # -- inputs -------------------------------------------------------------------------------------------------------

    def add(
        self,
        seq: int,
        target: Target,
        group: str = "",
        *,
        now: float,
        due: float = 0.0,
        attempts: int = 0,
        deliveries: int = 0,
    ) -> None:
        """A message that stands in the log. `group` matters in fifo queues only; `due` in the past means at once."""
        if seq in self._items:
            raise AssertionError(f"message {seq} is in the queue already")
        state = State.DELAYED if due > now else State.WAITING
        item = Item(seq, target, group, attempts, deliveries, due, state)
        self._items[seq] = item
        self._counts[state] += 1
        self._place(item)

    def configure(self, policy: Policy) -> None:
        """A new policy; what is in flight goes on, and counts against the new concurrency."""
        reordered = policy.fifo is not self.policy.fifo
        self.policy = policy
        if reordered:
            self._lanes.clear()
            self._ready.clear()
            self._delayed.clear()
            self._held.clear()
            for item in self._items.values():
                if item.state in (State.WAITING, State.DELAYED):
                    self._place(item)
                else:
                    self._lane(item).running += 1

    def pause(self) -> None:
        """Begin no delivery any more; what is in flight may end."""
        self.paused = True

    def appeared(self, target: Target) -> bool:
        """A function has become callable; True if lanes were held for it, and `poll` is worth while."""
        keys = self._held.pop(target, None)
        if keys is None:
            return False
        for key in keys:
            lane = self._lanes.get(key)
            if lane is not None and lane.heap:
                heappush(self._ready, lane.heap[0])
        return True

    def poll(self, now: float) -> list[Effect]:
        """Begin every delivery that may begin now, the oldest first; the last effect says when to ask again, if ever."""
        self._wake_delayed(now)
        effects: list[Effect] = []
        free = 0 if self.paused else self.policy.concurrency - self.in_flight
        while free > 0 and self._ready:
            item = self._items.get(heappop(self._ready))
            if item is None or item.state is not State.WAITING:
                continue
            lane = self._lane(item)
            if lane.heap[0] != item.seq or (self.policy.fifo and lane.running):
                continue
            if not self.available(item.target):
                self._held.setdefault(item.target, set()).add(lane.key)
                continue
            heappop(lane.heap)
            lane.running += 1
            item.deliveries += 1
            self._move(item, State.IN_FLIGHT)
            if not self.policy.fifo and lane.heap:
                heappush(self._ready, lane.heap[0])
            effects.append(Deliver(item))
            free -= 1
        if self._delayed:
            effects.append(SetTimer(self._delayed[0][0]))
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
            delay_ms = backoff_ms(self.policy.backoff_ms, item.attempts)
            item.due = now + delay_ms / 1000
            return Retry(item.attempts, delay_ms, ending.error)
        if not isinstance(ending, Interrupted):
            item.deliveries -= 1
        if isinstance(ending, Refused):
            item.due = now + PUT_BACK_S
        self._again(item, now)
        return None

    def lost(self, item: Item) -> Persist:
        """The message of an item in flight is not in the log any more: there is nothing to do but to settle it."""
        self._move(item, State.SETTLING)
        return Acknowledge()

    def settled(self, item: Item, written: Persist, now: float) -> None:
        """What `finished` returned stands on disk."""
        if item.state is not State.SETTLING:
            raise AssertionError(f"message {item.seq} is {item.state.value}")
        if isinstance(written, Retry):
            self._again(item, now)
            return
        if isinstance(written, Bury):
            self.dead += 1
        else:
            self.acknowledged += 1
        self._vacate(item)
        self._counts[item.state] -= 1
        del self._items[item.seq]

    def buried(self, count: int) -> None:
        """So many dead letters of the queue stood in the log already."""
        self.dead += count

    def exhumed(self, count: int) -> None:
        """So many dead letters were redriven or discarded."""
        self.dead -= count

    # -- steps --------------------------------------------------------------------------------------------------------

    def _move(self, item: Item, state: State) -> None:
        self._counts[item.state] -= 1
        self._counts[state] += 1
        item.state = state

    def _lane(self, item: Item) -> _Lane:
        key = item.group if self.policy.fifo else item.target
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key)
        return lane

    def _place(self, item: Item) -> None:
        """Put a waiting or delayed item where `poll` finds it: a fifo lane keeps its delayed items, as they block it."""
        lane = self._lane(item)
        if item.state is State.DELAYED:
            heappush(self._delayed, (item.due, item.seq))
        if item.state is State.WAITING or self.policy.fifo:
            heappush(lane.heap, item.seq)
            if lane.heap[0] == item.seq:
                heappush(self._ready, item.seq)

    def _wake_delayed(self, now: float) -> None:
        while self._delayed:
            due, seq = self._delayed[0]
            item = self._items.get(seq)
            stale = item is None or item.state is not State.DELAYED or item.due != due
            if not stale and due > now:
                return
            heappop(self._delayed)
            if item is None or stale:
                continue
            self._move(item, State.WAITING)
            lane = self._lane(item)
            if not self.policy.fifo:
                heappush(lane.heap, seq)
            if lane.heap[0] == seq:
                heappush(self._ready, seq)

    def _again(self, item: Item, now: float) -> None:
        """Back to its place: an item is older than all that waits behind it, so it is next when its time has come."""
        self._move(item, State.DELAYED if item.due > now else State.WAITING)
        self._place(item)
        self._vacate(item)

    def _vacate(self, item: Item) -> None:
        """Give the item's place in its lane free: a standard lane's head is ready already, a fifo lane's becomes so."""
        lane = self._lane(item)
        lane.running -= 1
        if lane.heap:
            if self.policy.fifo:
                heappush(self._ready, lane.heap[0])
        elif not lane.running:
            del self._lanes[lane.key]
