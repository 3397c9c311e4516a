"""One queue as a pure state machine: which message is delivered when, and what each ending means. No I/O, no clock.

Theory of operation. A message is an `Item`; its payload is somebody else's business. `seq`, its number in the log, is
its age and never changes while it lives. Items stand in *lanes*: in a standard queue one lane per target function, in a
fifo queue one per message group. A lane is a heap; its head is the next to go: in a standard lane the oldest of the
highest priority, in a fifo lane the oldest. A standard lane lets any number of its items run at once, a fifo lane one,
and its head also while that waits for its next attempt. Where several lanes may go, the head of the highest priority
does, then the oldest.

    add ──> WAITING ──poll──> IN_FLIGHT ──finished──> SETTLING ──settled──> gone (acknowledged, or a dead letter)
               ^                  │                      │
               │                  └─ nothing delivered   └─ to be tried again ──> DELAYED
               └───────────────────── time has come ──────────────────────────────┘

`finished` says what must be written down, and only `settled`, called when that stands on disk, lets it count: the slot
is free, the lane goes on, the retry is scheduled. A lane whose head's function is not there is *held*: it costs no slot
and no attempt, and nothing in other lanes waits for it. In a standard queue that means: nothing waits but the messages
for that function. In a fifo queue it means: nothing waits but that group, whose order wins over everything.

A message that only waits costs a few bytes, so that a million may: it is no object of its own but a number in its lane
and a `Route`, which it shares with its neighbours. It becomes an `Item` when something happens to it. Every input costs
the same, however many messages wait (but for `configure` with another `fifo`, which places them all anew).

All times are seconds of one clock that only goes forward.
"""

import random
from collections.abc import Callable, Iterator, Sequence
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

HIGHEST_PRIORITY: Final = 255

_SEQ_BITS: Final = 56
_SEQ: Final = (1 << _SEQ_BITS) - 1


def backoff_ms(base_ms: int, failures: int, ceiling_ms: int = BACKOFF_CEILING_MS) -> int:
    """Delay before the next attempt after `failures` (at least 1) failed ones: base · 2^(failures − 1), with a ceiling."""
    if base_ms <= 0:
        return 0
    return min(ceiling_ms, BACKOFF_CEILING_MS, base_ms << min(failures - 1, BACKOFF_CEILING_MS.bit_length()))


@frozen
class Policy:
    """How a queue treats its messages now; it may change at any time and holds from the next decision on.

    `concurrency` of 0 pauses the queue. `max_attempts` is the number of failed attempts that makes a dead letter, at
    least 1. `backoff_ms` is the base delay, which doubles with each failure (not if `backoff_fixed`) up to
    `backoff_max_ms`; a `jitter` of 0.2 makes it shorter by up to 20 %, by chance.
    """

    fifo: bool = False
    concurrency: int = 0
    max_attempts: int = 3
    backoff_ms: int = 1000
    backoff_max_ms: int = BACKOFF_CEILING_MS
    backoff_fixed: bool = False
    jitter: float = 0.0

    def delay_ms(self, failures: int, chance: float) -> int:
        """The delay after so many failures; `chance` is a number from 0 to 1."""
        delay = backoff_ms(self.backoff_ms, 1 if self.backoff_fixed else failures, self.backoff_max_ms)
        return round(delay * (1 - self.jitter * chance))


class State(Enum):
    """Where an item stands; see the module."""

    WAITING = "waiting"
    DELAYED = "delayed"
    IN_FLIGHT = "in flight"
    SETTLING = "settling"

    __hash__ = object.__hash__  # Enum's own is written in Python, and a key of dicts is what these are


@frozen
class Route:
    """What neighbours in a queue have in common: function, group, priority, and how often they may have been delivered."""

    target: Target
    group: str
    priority: int
    deliveries: int


@define(eq=False, weakref_slot=False)
class Item:
    """A message as the machine sees it: `attempts` have failed, `deliveries` were begun, this one included.

    `deliveries` may exceed `attempts` by more than 1: after a restart or a redrive, and when an attempt did not count.
    """

    seq: int
    route: Route
    attempts: int
    deliveries: int
    due: float
    state: State

    @property
    def target(self) -> Target:
        """The function it is for."""
        return self.route.target


Entry: TypeAlias = Route | Item
"""A message in the table: an item, or the route of one to which nothing has happened yet."""


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


@define(eq=False, weakref_slot=False)
class _Lane:
    key: Target | str
    route: Route  # of its newest message
    heap: list[int] = field(factory=list)  # standard: ranks; fifo: numbers
    running: int = 0
    delayed: int = 0  # fifo: how many in the heap are not due


@define(eq=False)
class QueueMachine:
    """See the module. `available` tells whether a function is there now; it must be a plain look-up."""

    available: Callable[[Target], bool]
    policy: Policy = field(factory=Policy)
    paused: bool = False
    """Begin no delivery; what is in flight may end."""
    chance: Callable[[], float] = random.random
    dead: int = field(default=0, init=False)
    acknowledged: int = field(default=0, init=False)
    failures: int = field(default=0, init=False)
    _items: dict[int, Entry] = field(factory=dict, init=False)
    _counts: dict[State, int] = field(factory=lambda: dict.fromkeys(State, 0), init=False)
    _lanes: dict[Target | str, _Lane] = field(factory=dict, init=False)
    _ready: list[int] = field(factory=list, init=False)  # ranks of heads that may go; entries may be stale
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

    @property
    def unbegun(self) -> int:
        """Items that are not in flight: due, held or delayed."""
        return self._counts[State.WAITING] + self._counts[State.DELAYED]

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
        if not lane.heap:
            return 0
        head = self._items[lane.heap[0] & _SEQ]
        if _state(head) is not State.WAITING or self.available(_route(head).target):
            return 0
        return len(lane.heap) - lane.delayed

    # -- inputs -------------------------------------------------------------------------------------------------------

    def add(
        self,
        seq: int,
        target: Target,
        group: str = "",
        *,
        priority: int = 0,
        now: float,
        due: float = 0.0,
        attempts: int = 0,
        deliveries: int = 0,
    ) -> None:
        """A message that stands in the log; `due` in the past means at once.

        `group` matters in fifo queues only, and there a `priority` (0 to 255) matters between groups only.
        """
        if seq in self._items:
            raise AssertionError(f"message {seq} is in the queue already")
        lane = self._lanes.get(group if self.policy.fifo else target)
        route = None if lane is None else lane.route
        # compared by hand, not with a new route: most messages are like the one before
        if (
            route is None
            or route.target != target
            or route.group != group
            or route.priority != priority
            or route.deliveries != deliveries
        ):
            route = Route(target, group, priority, deliveries)
        entry: Entry = route
        if due > now:
            entry = Item(seq, route, attempts, deliveries, due, State.DELAYED)
        elif attempts:
            entry = Item(seq, route, attempts, deliveries, due, State.WAITING)
        self._insert(seq, entry)

    def configure(self, policy: Policy) -> None:
        """A new policy; what is in flight goes on, and counts against the new concurrency."""
        reordered = policy.fifo is not self.policy.fifo
        self.policy = policy
        if reordered:
            self._lanes.clear()
            self._ready.clear()
            self._delayed.clear()
            self._held.clear()
            for seq, entry in self._items.items():
                if _state(entry) in (State.WAITING, State.DELAYED):
                    self._place(seq, entry)
                else:
                    self._lane(_route(entry)).running += 1

    def take_out(self, page: int) -> Iterator[list[tuple[int, Entry]]]:
        """Take what is not begun out of the queue, up to `page` messages at each step of the iterator.

        Between the steps the queue may go on. Messages that come meanwhile may be taken too, but never more in all than
        there are now. What is taken is out; `put_back` returns it.
        """
        left, taken = self.unbegun, []
        for key in list(self._lanes):
            while left and (lane := self._lanes.get(key)) is not None and lane.heap:
                left -= 1
                # from the end: a heap without its last leaf is still a heap
                taken.append(self._extract(lane.heap.pop() & _SEQ, lane))
                if len(taken) == page:
                    yield taken
                    taken = []
        while left and self._delayed:
            due, seq = self._delayed.pop()
            entry = self._items.get(seq)
            if isinstance(entry, Item) and entry.state is State.DELAYED and entry.due == due:
                left -= 1
                taken.append(self._extract(seq, None))
                if len(taken) == page:
                    yield taken
                    taken = []
        if taken:
            yield taken

    def put_back(self, taken: Sequence[tuple[int, Entry]]) -> None:
        """Return what `take_out` has taken."""
        for seq, entry in taken:
            self._insert(seq, entry)

    def appeared(self, target: Target) -> bool:
        """A function has become callable; True if lanes were held for it, and `poll` is worth while."""
        keys = self._held.pop(target, None)
        if keys is None:
            return False
        for key in keys:
            lane = self._lanes.get(key)
            if lane is not None and lane.heap:
                self._offer(lane)
        return True

    def poll(self, now: float) -> list[Effect]:
        """Begin every delivery that may begin now, the oldest first; the last effect says when to ask again, if ever."""
        self._wake_delayed(now)
        effects: list[Effect] = []
        free = 0 if self.paused else self.policy.concurrency - self.in_flight
        while free > 0 and self._ready:
            seq = heappop(self._ready) & _SEQ
            entry = self._items.get(seq)
            if entry is None or _state(entry) is not State.WAITING:
                continue
            route = _route(entry)
            lane = self._lane(route)
            if lane.heap[0] & _SEQ != seq or (self.policy.fifo and lane.running):
                continue
            if not self.available(route.target):
                self._held.setdefault(route.target, set()).add(lane.key)
                continue
            heappop(lane.heap)
            lane.running += 1
            item = self._item(seq, entry)
            item.deliveries += 1
            self._move(item, State.IN_FLIGHT)
            if not self.policy.fifo and lane.heap:
                self._offer(lane)
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
            delay_ms = self.policy.delay_ms(item.attempts, self.chance())
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

    def _lane(self, route: Route) -> _Lane:
        key = route.group if self.policy.fifo else route.target
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, route)
        return lane

    def _item(self, seq: int, entry: Entry) -> Item:
        """The message as an item of its own, from now on."""
        if isinstance(entry, Route):
            entry = self._items[seq] = Item(seq, entry, 0, entry.deliveries, 0.0, State.WAITING)
        return entry

    def _insert(self, seq: int, entry: Entry) -> None:
        self._items[seq] = entry
        self._counts[_state(entry)] += 1
        self._place(seq, entry)

    def _extract(self, seq: int, lane: _Lane | None) -> tuple[int, Entry]:
        """Take a message out that is in no heap any more; `lane` is the one it stood in."""
        entry = self._items.pop(seq)
        state = _state(entry)
        self._counts[state] -= 1
        if lane is not None:
            lane.delayed -= state is State.DELAYED
            if not lane.heap and not lane.running:
                del self._lanes[lane.key]
        return seq, entry

    def _place(self, seq: int, entry: Entry) -> None:
        """Put a waiting or delayed item where `poll` finds it: a fifo lane keeps its delayed items, as they block it."""
        route = _route(entry)
        fifo = self.policy.fifo
        if isinstance(entry, Item) and entry.state is State.DELAYED:
            heappush(self._delayed, (entry.due, seq))
            if not fifo:
                return
            self._lane(route).delayed += 1
        lane = self._lane(route)
        lane.route = route
        place = seq if fifo else _rank(seq, route)
        heappush(lane.heap, place)
        if lane.heap[0] == place:
            heappush(self._ready, _rank(seq, route))

    def _offer(self, lane: _Lane) -> None:
        """Let `poll` look at the head of a lane."""
        seq = lane.heap[0] & _SEQ
        heappush(self._ready, _rank(seq, _route(self._items[seq])))

    def _wake_delayed(self, now: float) -> None:
        while self._delayed:
            due, seq = self._delayed[0]
            item = self._items.get(seq)
            if not isinstance(item, Item) or item.state is not State.DELAYED or item.due != due:
                heappop(self._delayed)
                continue
            if due > now:
                return
            heappop(self._delayed)
            self._move(item, State.WAITING)
            if not self.policy.fifo:
                self._place(seq, item)
                continue
            lane = self._lane(item.route)
            lane.delayed -= 1
            if lane.heap[0] == seq:
                self._offer(lane)

    def _again(self, item: Item, now: float) -> None:
        """Back to its place: an item is older than all that waits behind it, so it is next when its time has come."""
        self._move(item, State.DELAYED if item.due > now else State.WAITING)
        self._place(item.seq, item)
        self._vacate(item)

    def _vacate(self, item: Item) -> None:
        """Give the item's place in its lane free: a standard lane's head is ready already, a fifo lane's becomes so."""
        lane = self._lane(item.route)
        lane.running -= 1
        if lane.heap:
            if self.policy.fifo:
                self._offer(lane)
        elif not lane.running:
            del self._lanes[lane.key]


def _state(entry: Entry) -> State:
    return entry.state if isinstance(entry, Item) else State.WAITING


def _route(entry: Entry) -> Route:
    return entry.route if isinstance(entry, Item) else entry


def _rank(seq: int, route: Route) -> int:
    """The place in the order of delivery, least first; its lower bits are the number."""
    return seq - (route.priority << _SEQ_BITS) if route.priority else seq
