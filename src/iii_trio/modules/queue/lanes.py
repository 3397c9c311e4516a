"""What a queue keeps of its lanes in memory, and what it asks of the log for the rest (see `machine.py`).

A lane holds the *run* of its first messages, in order; behind the last of them, at its *floor*, begins the *tail*: so
many messages that stand in the log alone, whose number is known and whose order the log keeps. What comes with a place
before the floor goes into the run, what comes with one behind it adds to the tail. While there is no tail, all of the
lane is in memory, and the floor means nothing.
"""

from enum import Enum
from typing import Final, TypeAlias

from attrs import define, field, frozen

Target: TypeAlias = tuple[str, str]
"""(namespace, function id)."""

LaneKey: TypeAlias = tuple[str, str]
"""A lane of a standard queue: its target; of a fifo queue: ("", group)."""

HIGHEST_PRIORITY: Final = 255

_SEQ_BITS: Final = 56
SEQ: Final = (1 << _SEQ_BITS) - 1
"""The bits of a place that are the message's number."""

BEFORE_ALL: Final = -(HIGHEST_PRIORITY + 1) << _SEQ_BITS
"""A place before all others."""


def place_of(seq: int, priority: int) -> int:
    """A place in the order of delivery, least first: by priority, the highest first, then by number."""
    return seq - (priority << _SEQ_BITS) if priority else seq


def priority_at(place: int) -> int:
    """The priority of a place."""
    return -(place >> _SEQ_BITS)


class State(Enum):
    """Where an item stands; see `machine.py`."""

    WAITING = "waiting"
    RESTING = "resting"
    """Waiting, as far as the log knows, but not offered again for a moment."""
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
"""A message in memory: an item, or the route of one to which nothing has happened yet."""


def state_of(entry: Entry) -> State:
    """Where a message stands."""
    return entry.state if isinstance(entry, Item) else State.WAITING


def route_of(entry: Entry) -> Route:
    """What a message has in common with its neighbours."""
    return entry.route if isinstance(entry, Item) else entry


@define(eq=False, weakref_slot=False)
class Lane:
    """See the module. Places in a standard queue are `place_of`, in a fifo queue plain numbers."""

    key: LaneKey
    route: Route  # of its newest message
    run: list[int] = field(factory=list)
    floor: int = BEFORE_ALL
    tail: int = 0
    running: int = 0
    delayed: int = 0
    """In a fifo queue: how many of the lane are not due."""

    @property
    def size(self) -> int:
        """All that has not begun."""
        return len(self.run) + self.tail


# -- what is read of the log ------------------------------------------------------------------------------------------


@frozen
class Row:
    """A message as it stands in the log."""

    seq: int
    target: Target
    group: str = ""
    priority: int = 0
    attempts: int = 0
    deliveries: int = 0
    delayed: bool = False


@frozen
class LaneRow:
    """A lane as it stands in the log: how many messages of it wait or are in flight, how many are delayed, the first."""

    key: LaneKey
    waiting: int
    delayed: int
    head: Row


@frozen
class Survey:
    """Count up to `limit` lanes with keys greater than `after`, then call `surveyed`, or `unread`."""

    epoch: int
    fifo: bool
    after: LaneKey | None
    limit: int


@frozen
class Gap:
    """Up to `limit` messages of a lane behind `floor`."""

    key: LaneKey
    floor: int
    limit: int


@frozen
class Refill:
    """Read the messages in these gaps, then call `refilled`, or `unread`."""

    epoch: int
    fifo: bool
    gaps: tuple[Gap, ...]


@frozen
class Promote:
    """Let up to `limit` delayed messages whose time has come take their places, then call `promoted`, or `unread`."""

    limit: int


Read: TypeAlias = Survey | Refill | Promote
