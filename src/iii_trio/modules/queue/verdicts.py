"""How a queue treats its messages, how deliveries end, and what then must be written down (see `machine.py`)."""

from typing import Final, TypeAlias

from attrs import frozen

BACKOFF_CEILING_MS: Final = 24 * 60 * 60 * 1000
"""No retry is scheduled later than this, whatever base and number of failures."""


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


# -- endings: how a delivery ended, as the one who made it saw it -----------------------------------------------------


@frozen
class Succeeded:
    """The handler answered, or a condition said that it need not be asked."""


@frozen
class Failed:
    """A failed attempt; `error` is what will stand in the log and, in the end, at the dead letter."""

    error: str


@frozen
class Busy:
    """Nothing was delivered, because the worker takes no more now: all that is for its function rests for a moment."""


@frozen
class Refused:
    """Nothing was delivered, because the message could not be read or the engine stops: this one rests for a moment."""


@frozen
class Missing:
    """Nothing was delivered, because the function is not there: the lane is held until it is."""


@frozen
class Interrupted:
    """The engine itself ended the delivery: it is repeated, and no attempt is counted."""


Ending: TypeAlias = Succeeded | Failed | Busy | Refused | Missing | Interrupted


# -- verdicts: what must be written down ------------------------------------------------------------------------------


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


Persist: TypeAlias = Acknowledge | Retry | Bury


@frozen
class QueueCounts:
    """How many items of a queue stand where, and what has become of the others since the engine started."""

    waiting: int
    """Due, and not begun; `held` ones included."""
    held: int
    """Waiting in lanes whose function is not there."""
    delayed: int
    """Waiting for their time, or for the time of their next attempt."""
    in_flight: int
    """Delivered, or their ending is being written down."""
    dead: int
    """Dead letters."""
    lanes: int
    """Functions (standard) or groups (fifo) with live messages."""
    acknowledged: int
    failures: int
    """Failed attempts."""
