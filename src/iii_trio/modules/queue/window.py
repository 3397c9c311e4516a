"""The messages of one queue in their order: a part of it in memory, the rest in the log (theory: `machine.py`).

A `Window` knows which message is next, which are asleep and which lanes are to be filled up; what becomes of a message
that has been taken is decided by the machine.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from math import inf
from typing import Final

from attrs import define, field

from .lanes import (
    SEQ,
    Entry,
    Gap,
    Item,
    Lane,
    LaneKey,
    LaneRow,
    Promote,
    Read,
    Refill,
    Route,
    Row,
    State,
    Survey,
    Target,
    place_of,
    route_of,
    state_of,
)
from .verdicts import Policy

READ_AGAIN_S: Final = 1.0
"""Pause after a read that failed."""

RUN: Final = 256
"""Messages of one lane in memory, where deliveries are made; it is filled up when half of them are left."""

WINDOW: Final = 4_096
"""Messages of a queue in memory beyond the first of each lane."""

LANES: Final = 250
"""Lanes counted by one read."""

GAPS: Final = 64
"""Lanes filled up by one read."""

PROMOTED: Final = 256
"""Messages whose time has come and that take their places by one write."""

_SLEEPING: Final = (State.DELAYED, State.RESTING)


@define(eq=False)
class Window:
    """See the module. `available` tells whether a function is there now; it must be a plain look-up.

    `let_go` is called with the number of each message that leaves memory and stays in the log. `run` is 2 or more.
    """

    available: Callable[[Target], bool]
    policy: Policy = field(factory=Policy)
    let_go: Callable[[int], None] = field(default=lambda _: None)
    run: int = RUN
    window: int = WINDOW
    lanes_read: int = LANES
    promoted_at_once: int = PROMOTED
    newest: int = field(default=0, init=False)
    """The largest number that was ever in the queue."""
    _items: dict[int, Entry] = field(factory=dict, init=False)
    _begun: set[int] = field(factory=set, init=False)  # in flight or settling
    _counts: dict[State, int] = field(factory=lambda: dict.fromkeys(State, 0), init=False)
    _lanes: dict[LaneKey, Lane] = field(factory=dict, init=False)
    _in_runs: int = field(default=0, init=False)
    _heads: dict[Target, list[int]] = field(factory=dict, init=False)  # places of heads that may go; may be stale
    _ready: list[tuple[int, Target]] = field(factory=list, init=False)  # the first of each; entries may be stale
    _asleep: list[tuple[float, int]] = field(factory=list, init=False)  # (due, seq) in memory; entries may be stale
    _awake: set[int] = field(factory=set, init=False)  # were delayed; the log has not said that they are not any more
    _held: set[Target] = field(factory=set, init=False)  # whose first head was found to have no function
    _resting: dict[Target, float] = field(factory=dict, init=False)  # functions of which nothing is taken until then
    _next_due: float = field(default=inf, init=False)  # of what is delayed in the log
    _thirsty: dict[LaneKey, None] = field(factory=dict, init=False)  # lanes that are to be filled up
    _dry: list[tuple[int, LaneKey]] = field(factory=list, init=False)  # (floor, lane) of a standard queue; may be stale
    _surveying: bool = field(default=False, init=False)
    _cursor: LaneKey | None = field(default=None, init=False)  # lanes up to here are surveyed
    _epoch: int = field(default=0, init=False)
    _reading: bool = field(default=False, init=False)
    _promoting: bool = field(default=False, init=False)
    _read_at: float = field(default=0.0, init=False)  # not before

    # -- queries ------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Deliveries that hold a slot."""
        return len(self._begun)

    @property
    def begun(self) -> list[int]:
        """The numbers of what is in flight."""
        return list(self._begun)

    @property
    def waiting(self) -> int:
        """Messages that are due and not begun."""
        return self._counts[State.WAITING]

    @property
    def delayed(self) -> int:
        """Messages that are not due."""
        return self._counts[State.DELAYED] + self._counts[State.RESTING]

    @property
    def live(self) -> int:
        """All messages that are not dead letters."""
        return self.unbegun + self.in_flight

    @property
    def unbegun(self) -> int:
        """Messages that are not in flight: due, held or delayed."""
        return self.waiting + self.delayed

    def holds(self, seq: int) -> bool:
        """Whether a message is in memory."""
        return seq in self._items

    def rests(self, target: Target) -> bool:
        """Whether nothing that is for this function is taken at the moment, because its worker was busy."""
        return target in self._resting

    def rested(self, target: Target) -> bool:
        """The worker of a function takes more again; True if it rested until now, and `poll` is worth while."""
        if self._resting.pop(target, None) is None:
            return False
        if heads := self._heads.get(target):
            heappush(self._ready, (heads[0], target))
        return True

    # -- messages in and out ------------------------------------------------------------------------------------------

    def restore(self, waiting: int, delayed: int, next_due: float, newest: int) -> None:
        """So many messages stood in the log already; they are surveyed before anything begins."""
        self._counts[State.WAITING] += waiting
        self._counts[State.DELAYED] += delayed
        self._next_due = min(self._next_due, next_due)
        self.newest = max(self.newest, newest)
        self._survey()

    def add(
        self,
        seq: int,
        target: Target,
        group: str = "",
        *,
        priority: int = 0,
        due: float | None = None,
        attempts: int = 0,
        deliveries: int = 0,
    ) -> None:
        """A message stands in the log now; `due`: delayed until then.

        `group` matters in fifo queues only, and there a `priority` (0 to 255) matters between groups only.
        """
        if seq in self._items:
            raise AssertionError(f"message {seq} is in the queue already")
        self.newest = max(self.newest, seq)
        if due is None:
            self._counts[State.WAITING] += 1
        else:
            self._counts[State.DELAYED] += 1
            self._next_due = min(self._next_due, due)
            if not self.policy.fifo:
                if not self._surveying and len(self._asleep) < self.window:
                    route = self._route(self._lanes.get(target), target, group, priority, deliveries)
                    self._items[seq] = Item(seq, route, attempts, deliveries, due, State.DELAYED)
                    heappush(self._asleep, (due, seq))
                return
        if not self._is_ahead(self._key(target, group)):
            self._admit(seq, target, group, priority, attempts, deliveries, due)

    def removed(self, rows: Iterable[Row]) -> None:
        """These messages were removed from the log; none of them is in flight."""
        for row in rows:
            entry = self._items.pop(row.seq, None)
            state = (State.DELAYED if row.delayed else State.WAITING) if entry is None else state_of(entry)
            self._counts[state] -= 1
            self._awake.discard(row.seq)
            key = self._key(row.target, row.group)
            lane = self._lanes.get(key)
            if lane is None or self._is_ahead(key) or (state is not State.WAITING and not self.policy.fifo):
                continue
            if entry is None:
                lane.tail -= 1
            else:
                del lane.run[bisect_left(lane.run, self._place(row.seq, route_of(entry)))]
                self._in_runs -= 1
            lane.delayed -= state is not State.WAITING
            if entry is not None or not lane.size:
                self._offer(lane)

    # -- answers of the log -------------------------------------------------------------------------------------------

    def surveyed(self, read: Survey, rows: Sequence[LaneRow]) -> None:
        """What `read` has counted; fewer lanes than its limit are the last."""
        if read.epoch != self._epoch:
            return
        self._reading = False
        # what is in flight is counted in its lane, unless the log still takes it for delayed
        counted = Counter(
            self._key(route.target, route.group)
            for seq, route in ((seq, route_of(self._items[seq])) for seq in self._begun)
            if self.policy.fifo or seq not in self._awake
        )
        for row in rows:
            self._cursor, head = row.key, row.head
            lane = self._lane(self._route(None, head.target, head.group, head.priority, head.deliveries))
            lane.tail, lane.delayed = max(0, row.waiting + row.delayed - counted[row.key]), row.delayed
            if lane.tail and head.seq not in self._items:
                self._append(lane, head)
            self._offer(lane)
        self._surveying = len(rows) == read.limit

    def refilled(self, read: Refill, pages: Sequence[Sequence[Row]]) -> None:
        """What stands in the gaps of `read`."""
        if read.epoch != self._epoch:
            return
        self._reading = False
        for gap, rows in zip(read.gaps, pages, strict=True):
            lane = self._lanes.get(gap.key)
            if lane is None or lane.floor != gap.floor or not lane.tail:
                continue  # what it begins with has left the memory meanwhile, or the log
            for row in rows:
                if row.seq in self._items:
                    lane.floor = self._place(row.seq, route_of(self._items[row.seq]))
                else:
                    self._append(lane, row)
            if len(rows) < gap.limit and lane.tail:  # somebody else has taken them out of the log
                self._counts[State.WAITING] -= lane.tail
                lane.tail = 0
            self._offer(lane)

    def promoted(self, rows: Sequence[Row], next_due: float) -> None:
        """These delayed messages have taken their places; the next is due at `next_due`."""
        self._promoting = False
        self._next_due = next_due
        for row in rows:
            if row.seq in self._awake:
                self._awake.remove(row.seq)
                continue
            self._counts[State.DELAYED] -= 1
            self._counts[State.WAITING] += 1
            key = self._key(row.target, row.group)
            if self._is_ahead(key):
                continue
            item = self._items.get(row.seq)
            if isinstance(item, Item):
                item.state = State.WAITING
            if self.policy.fifo:
                lane = self._lane(self._route(None, row.target, row.group, row.priority, row.deliveries))
                lane.delayed -= 1
                self._offer(lane)
            elif isinstance(item, Item):
                self._return(item)
            else:
                self._admit(row.seq, row.target, row.group, row.priority, row.attempts, row.deliveries, None)

    def unread(self, read: Read, now: float) -> None:
        """`read` has failed: it is tried again after a moment."""
        if isinstance(read, Promote):
            self._promoting = False
        elif read.epoch == self._epoch:
            self._reading = False
            if isinstance(read, Refill):
                self._thirsty.update(dict.fromkeys(gap.key for gap in read.gaps))
        self._read_at = now + READ_AGAIN_S

    # -- reading ------------------------------------------------------------------------------------------------------

    def _survey(self) -> None:
        self._epoch += 1
        self._reading = False
        self._cursor = None
        self._surveying = self.unbegun > 0

    def _is_ahead(self, key: LaneKey) -> bool:
        """Whether a lane is to be surveyed yet: what happens in it is seen then."""
        return self._surveying and (self._cursor is None or key > self._cursor)

    def _reads(self, now: float) -> list[Read]:
        reads: list[Read] = []
        if self._read_at > now:
            return reads
        if self._next_due <= now and not self._promoting:
            self._promoting = True
            reads.append(Promote(self.promoted_at_once))
        if self._reading:
            return reads
        if self._surveying:
            self._reading = True
            reads.append(Survey(self._epoch, self.policy.fifo, self._cursor, self.lanes_read))
        elif self._thirsty and (gaps := self._gaps()):
            self._reading = True
            reads.append(Refill(self._epoch, self.policy.fifo, tuple(gaps)))
        return reads

    def _gaps(self) -> list[Gap]:
        gaps: list[Gap] = []
        room = self._room()
        while self._thirsty and len(gaps) < GAPS:
            key = next(iter(self._thirsty))
            del self._thirsty[key]
            lane = self._lanes.get(key)
            if lane is None or not lane.tail or (lane.run and room <= 0):
                continue
            limit = max(1, min(self.run - len(lane.run), room // 8))  # so that the last lanes get something too
            room -= limit
            gaps.append(Gap(key, lane.floor, limit))
        return gaps

    def _room(self) -> int:
        """How many messages more, beyond the first of each lane, the memory takes."""
        return self.window - max(0, self._in_runs - len(self._lanes))

    def _barrier(self) -> int:
        """What has a place behind this must wait until the log has said what stands before it."""
        while self._dry:
            floor, key = self._dry[0]
            lane = self._lanes.get(key)
            if lane is not None and lane.tail and not lane.run and lane.floor == floor:
                return floor
            heappop(self._dry)
        return self._ready[0][0]

    # -- steps --------------------------------------------------------------------------------------------------------

    def _take(self) -> Item | None:
        """Take the message that may go next out of its lane; it is in flight then. None: none may go."""
        while self._ready:
            if self._dry and self._ready[0][0] > self._barrier():
                return None
            place, target = heappop(self._ready)
            heads = self._heads.get(target)
            if not heads or heads[0] != place:
                continue
            if target in self._resting:
                continue
            if not self.available(target):
                self._held.add(target)
                continue
            heappop(heads)
            if heads:
                heappush(self._ready, (heads[0], target))
            else:
                del self._heads[target]
            seq = place & SEQ
            entry = self._items.get(seq)
            if entry is None or state_of(entry) is not State.WAITING:
                continue
            lane = self._lanes.get(self._key(target, route_of(entry).group))
            if lane is None or not lane.run or lane.run[0] & SEQ != seq or (self.policy.fifo and lane.running):
                continue
            del lane.run[0]
            self._in_runs -= 1
            lane.running += 1
            item = self._item(seq, entry)
            self._move(item, State.IN_FLIGHT)
            self._begun.add(seq)
            if lane.tail and len(lane.run) <= self.run // 2:
                self._thirsty[lane.key] = None
            if not self.policy.fifo:
                self._offer(lane)
            return item
        return None

    def _wakes(self, now: float) -> float:
        """When to look again, if nothing happens before."""
        when = min(self._resting.values(), default=inf)
        if self._asleep:
            when = min(when, self._asleep[0][0])
        if not self._promoting:
            when = min(when, max(self._next_due, self._read_at))
        if self._read_at > now and (self._surveying or self._thirsty):
            when = min(when, self._read_at)
        return when

    def _reorder(self) -> None:
        """The lanes are others from now on: what has not begun is to be found in the log."""
        for seq in list(self._items):
            if seq not in self._begun:
                self._forget(seq)
        self._lanes.clear()
        self._in_runs = 0
        for waiting in (self._heads, self._ready, self._asleep, self._held, self._resting, self._thirsty, self._dry):
            waiting.clear()
        for seq in self._begun:
            self._lane(route_of(self._items[seq])).running += 1
        self._survey()

    def _move(self, item: Item, state: State) -> None:
        self._counts[item.state] -= 1
        self._counts[state] += 1
        item.state = state

    def _key(self, target: Target, group: str) -> LaneKey:
        return ("", group) if self.policy.fifo else target

    def _place(self, seq: int, route: Route) -> int:
        return seq if self.policy.fifo else place_of(seq, route.priority)

    def _lane(self, route: Route) -> Lane:
        key = self._key(route.target, route.group)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, route)
        return lane

    @staticmethod
    def _route(lane: Lane | None, target: Target, group: str, priority: int, deliveries: int) -> Route:
        """A route, the lane's own if it is like that: most messages are like the one before."""
        route = None if lane is None else lane.route
        if (
            route is None
            or route.target != target
            or route.group != group
            or route.priority != priority
            or route.deliveries != deliveries
        ):
            return Route(target, group, priority, deliveries)
        return route

    def _item(self, seq: int, entry: Entry) -> Item:
        """The message as an item of its own, from now on."""
        if isinstance(entry, Route):
            entry = self._items[seq] = Item(seq, entry, 0, entry.deliveries, 0.0, State.WAITING)
        return entry

    def _admit(
        self, seq: int, target: Target, group: str, priority: int, attempts: int, deliveries: int, due: float | None
    ) -> None:
        """Put a message that the log has in its place, in memory or behind it."""
        lane = self._lanes.get(self._key(target, group))
        route = self._route(lane, target, group, priority, deliveries)
        if lane is None:
            lane = self._lane(route)
        lane.route = route
        lane.delayed += due is not None
        place = self._place(seq, route)
        if self._is_behind(lane, place):
            lane.tail += 1
            return
        entry: Entry = route
        if attempts or due is not None:
            state = State.WAITING if due is None else State.DELAYED
            entry = Item(seq, route, attempts, deliveries, due or 0.0, state)
            if due is not None:
                heappush(self._asleep, (due, seq))
        self._items[seq] = entry
        self._insert(lane, place)

    def _is_behind(self, lane: Lane, place: int) -> bool:
        """Whether a place belongs to the tail, which begins there if the run is full."""
        if lane.tail:
            return place > lane.floor
        if not lane.run or place < lane.run[-1] or (len(lane.run) < self.run and self._room() > 0):
            return False
        lane.floor = lane.run[-1]
        return True

    def _insert(self, lane: Lane, place: int) -> None:
        insort(lane.run, place)
        self._in_runs += 1
        if lane.run[0] == place:
            self._offer(lane)
        most = self.run if self._room() > -self.window else 1
        if len(lane.run) > 2 * most:
            self._cut(lane, most)

    def _cut(self, lane: Lane, most: int) -> None:
        """Leave so many messages of a lane in memory; the rest becomes a part of its tail."""
        cut = lane.run[most:]
        del lane.run[most:]
        self._in_runs -= len(cut)
        lane.floor = lane.run[-1]
        for place in cut:
            self._to_tail(lane, place & SEQ)

    def _to_tail(self, lane: Lane, seq: int) -> None:
        """A message that has its place in a lane leaves the memory; what is delayed keeps its place in a fifo lane only."""
        counted = state_of(self._items[seq]) is not State.WAITING
        late = self._forget(seq)
        if self.policy.fifo:
            lane.delayed += late - counted
            lane.tail += 1
        else:
            lane.tail += not late

    def _append(self, lane: Lane, row: Row) -> None:
        """The first message of the tail comes into memory."""
        route = self._route(lane, row.target, row.group, row.priority, row.deliveries)
        lane.route = route
        lane.floor = self._place(row.seq, route)
        lane.tail -= 1
        entry: Entry = route
        if row.attempts or row.delayed:
            state = State.DELAYED if row.delayed else State.WAITING
            entry = Item(row.seq, route, row.attempts, row.deliveries, 0.0, state)
        self._items[row.seq] = entry
        lane.run.append(lane.floor)
        self._in_runs += 1

    def _forget(self, seq: int) -> bool:
        """A message leaves the memory; returns whether it is delayed, as far as the log knows."""
        state = state_of(self._items.pop(seq))
        late = state is State.DELAYED or seq in self._awake
        self._awake.discard(seq)
        self._counts[state] -= 1
        self._counts[State.DELAYED if late else State.WAITING] += 1
        self.let_go(seq)
        return late

    def _offer(self, lane: Lane) -> None:
        """Let `poll` look at the head of a lane, and see to it that it has one."""
        if lane.run:
            seq = lane.run[0] & SEQ
            route = route_of(self._items[seq])
            target, place = route.target, place_of(seq, route.priority)
            heads = self._heads.setdefault(target, [])
            heappush(heads, place)
            if heads[0] == place and target not in self._held:
                heappush(self._ready, (place, target))
        elif lane.tail:
            self._thirsty[lane.key] = None
            if not self.policy.fifo:
                heappush(self._dry, (lane.floor, lane.key))
        elif not lane.running:
            del self._lanes[lane.key]

    def _rest(self, target: Target, until: float) -> None:
        """Take nothing that is for this function before then, or before it has `rested`."""
        self._resting[target] = until

    def _wake(self, now: float) -> None:
        """Functions have rested; what is asleep in memory and due takes its place."""
        for target in [target for target, until in self._resting.items() if until <= now]:
            self.rested(target)
        while self._asleep:
            due, seq = self._asleep[0]
            item = self._items.get(seq)
            if not isinstance(item, Item) or item.state not in _SLEEPING or item.due != due:
                heappop(self._asleep)
                continue
            if due > now:
                return
            heappop(self._asleep)
            if item.state is State.DELAYED:
                self._awake.add(seq)
            self._move(item, State.WAITING)
            if self.policy.fifo:
                lane = self._lane(item.route)
                lane.delayed -= 1
                self._offer(lane)
            else:
                self._return(item)

    def _return(self, item: Item) -> None:
        """Back to its place: an item is older than most that waits, so it is next when its time has come."""
        if self._is_ahead(self._key(item.target, item.route.group)):
            self._forget(item.seq)
            return
        lane = self._lane(item.route)
        place = self._place(item.seq, item.route)
        lane.delayed += item.state is not State.WAITING
        if self._is_behind(lane, place):
            self._to_tail(lane, item.seq)
            self._offer(lane)
        else:
            self._insert(lane, place)

    def _vacate(self, item: Item) -> None:
        """Give the item's place in its lane free."""
        lane = self._lane(item.route)
        lane.running -= 1
        if self.policy.fifo or not (lane.run or lane.tail):
            self._offer(lane)
