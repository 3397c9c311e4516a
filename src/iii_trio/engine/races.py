"""The race table of `cancel.v1` (design.md §6): what becomes of a call, whatever happens to it in whichever order.

A call has two sides, the caller's and the executor's, and they may end at different times. Where both stand is one
`State`, what happens is one `Event`, what follows is one `Row` of `RACES`; `invocations.py` goes by nothing else:

    state      event               next       the caller                         the executor
    ---------  ------------------  ---------  ---------------------------------  ---------------------------
    running    answer              done       gets the answer
    running    executor left       done       gets invocation_stopped
    running    deadline            tombstone  gets TIMEOUT                       is told: deadline
    running    deadline, settling  held       gets TIMEOUT, but not yet          is told: deadline
    running    cancelled           tombstone  hears nothing                      is told: the caller's reason
    running    caller left         tombstone  hears nothing                      is told: caller_disconnected
    running    shutdown            held       gets invocation_stopped, not yet   is told: shutdown
    held       answer              done       gets it if it is a result, else
                                              what was held back                 came late
    held       executor left       done       gets what was held back
    held       grace is over       done       gets what was held back
    held       cancelled           tombstone  hears nothing
    held       caller left         tombstone  hears nothing
    held       shutdown            held
    tombstone  answer              done                                          came late
    tombstone  executor left       done
    tombstone  grace is over       done
    tombstone  cancelled           tombstone
    tombstone  caller left         tombstone
    tombstone  shutdown            tombstone
    done       answer              done                                          came late
    done       executor left       done
    done       cancelled           done
    done       caller left         done
    done       shutdown            done

A RUNNING call stands in `executor.running` and, if somebody waits for it, in `caller.calls`. Where its caller's side
ends first, a TOMBSTONE stays in `executor.running` until the executor answers, leaves, or `CANCEL_GRACE_S` is over: a
late answer is counted and never delivered, and its id is not used again meanwhile. HELD is a tombstone whose caller
waits for that, too: with `settle`, so that a queue never redelivers while a first delivery runs, and in a shutdown,
which gives executors a moment to come to their end.

Only executors that know `cancel.v1` are told anything; the others answer into the tombstone. A frame about an id that
is in no table of its sender is ignored: only the executor's connection answers a call, only the caller's cancels it.
"""

from enum import Enum
from typing import Final

from attrs import frozen


class State(Enum):
    """Where a call stands."""

    __hash__ = object.__hash__  # members are single objects, and every answer looks its row up

    RUNNING = "running"
    HELD = "held"
    TOMBSTONE = "tombstone"
    DONE = "done"


class Event(Enum):
    """What may happen to a call. A call `settles` whose caller wants the executor's end before it hears anything."""

    __hash__ = object.__hash__

    ANSWER = "answer"
    EXECUTOR_LEFT = "executor left"
    DEADLINE = "deadline"
    DEADLINE_SETTLING = "deadline, settling"
    GRACE = "grace is over"
    CANCELLED = "cancelled"
    CALLER_LEFT = "caller left"
    SHUTDOWN = "shutdown"


class Hears(Enum):
    """What the caller hears of an event."""

    NOTHING = "nothing now"
    OUTCOME = "the outcome that the event brings"
    LATER = "the outcome that the event brings, once the executor's side has ended"
    BETTER = "the outcome that the event brings if it is a result, else the one held back"
    HELD = "the outcome held back"
    NEVER = "nothing any more"


@frozen
class Row:
    """What follows: the `next` state, what the caller hears, whether the executor is told to stop, or came `late`."""

    next: State
    hears: Hears = Hears.NOTHING
    told: bool = False
    late: bool = False


def _rows() -> dict[tuple[State, Event], Row]:
    running, held, tombstone, done = State.RUNNING, State.HELD, State.TOMBSTONE, State.DONE
    nothing = {Event.CANCELLED, Event.CALLER_LEFT, Event.SHUTDOWN}
    return {
        (running, Event.ANSWER): Row(done, Hears.OUTCOME),
        (running, Event.EXECUTOR_LEFT): Row(done, Hears.OUTCOME),
        (running, Event.DEADLINE): Row(tombstone, Hears.OUTCOME, told=True),
        (running, Event.DEADLINE_SETTLING): Row(held, Hears.LATER, told=True),
        (running, Event.CANCELLED): Row(tombstone, Hears.NEVER, told=True),
        (running, Event.CALLER_LEFT): Row(tombstone, Hears.NEVER, told=True),
        (running, Event.SHUTDOWN): Row(held, Hears.LATER, told=True),
        (held, Event.ANSWER): Row(done, Hears.BETTER, late=True),
        (held, Event.EXECUTOR_LEFT): Row(done, Hears.HELD),
        (held, Event.GRACE): Row(done, Hears.HELD),
        (held, Event.CANCELLED): Row(tombstone, Hears.NEVER),
        (held, Event.CALLER_LEFT): Row(tombstone, Hears.NEVER),
        (held, Event.SHUTDOWN): Row(held),
        (tombstone, Event.ANSWER): Row(done, late=True),
        (tombstone, Event.EXECUTOR_LEFT): Row(done),
        (tombstone, Event.GRACE): Row(done),
        **{(tombstone, event): Row(tombstone) for event in nothing},
        (done, Event.ANSWER): Row(done, late=True),
        **{(done, event): Row(done) for event in nothing | {Event.EXECUTOR_LEFT}},
    }


RACES: Final = _rows()
"""Every pair that can come to pass; any other is a bug and raises `KeyError`."""
