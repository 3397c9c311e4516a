"""The invocation a handler works for, found from anywhere below it (spec/sdk.md §12.2, Context)."""

import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field, frozen

from iii_trio.protocol import cancellation

if TYPE_CHECKING:
    from .client import Client


CONNECTION_LOST: Final = "connection_lost"
"""`Invocation.cancel_reason` where the connection to the engine is gone, and with it whoever would hear the result."""


@define(eq=False)
class Ending:
    """Why one invocation is cancelled; nobody yet when `reason` is None. Filled in once, by whoever cancels it."""

    reason: str | None = None


@frozen(kw_only=True, eq=False)
class Invocation:
    """One call this worker executes.

    `metadata` is what the caller or the trigger's registration put next to the payload, None if nothing.
    `deadline` is on Trio's clock (`trio.current_time()`), `math.inf` when nobody set one. `caller_worker_id` is the
    worker that called, None for triggers. `client` is the connection the call came through, for calls of one's own.
    """

    id: str
    function_id: str
    metadata: Any = None
    deadline: float = math.inf
    traceparent: str | None = None
    baggage: str | None = None
    caller_worker_id: str | None = None
    client: "Client" = field(repr=False)
    ending: Ending = field(factory=Ending, repr=False)

    def remaining(self) -> float:
        """Seconds until the deadline: `math.inf` without one, 0.0 when it has passed."""
        return max(0.0, self.deadline - trio.current_time())

    @property
    def cancel_reason(self) -> str | None:
        """Why the handler is being cancelled, for its clean-up; None while it is not.

        `caller_cancelled`, `caller_disconnected`, `deadline` or `shutdown`, as it began at the far end of the call
        tree, or `connection_lost`. Trio's `Cancelled` carries the same as its `reason` (`deadline` as its `source`).
        """
        if self.ending.reason is None and trio.current_time() >= self.deadline:
            return cancellation.DEADLINE
        return self.ending.reason


CURRENT: ContextVar[Invocation | None] = ContextVar("iii_trio_invocation", default=None)


def current_invocation() -> Invocation | None:
    """The invocation this task, one of its children or this worker thread runs for; None outside of handlers."""
    return CURRENT.get()
