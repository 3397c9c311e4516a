"""The invocation a handler works for, found from anywhere below it (spec/sdk.md §12.2, Context)."""

import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import trio
from attrs import field, frozen

if TYPE_CHECKING:
    from .client import Client


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

    def remaining(self) -> float:
        """Seconds until the deadline: `math.inf` without one, 0.0 when it has passed."""
        return max(0.0, self.deadline - trio.current_time())


CURRENT: ContextVar[Invocation | None] = ContextVar("iii_trio_invocation", default=None)


def current_invocation() -> Invocation | None:
    """The invocation this task, one of its children or this worker thread runs for; None outside of handlers."""
    return CURRENT.get()
