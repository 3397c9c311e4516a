"""Why work was cancelled: the four reasons of `cancelinvocation`, and how Trio carries them (design.md §6).

A reason begins where somebody gives up and travels with the cancellation through every process of a call tree: it
stands in the frame, in the `reason` of Trio's `Cancelled`, and in the frames that this cancellation causes in turn.
"""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import trio

CALLER_CANCELLED: Final = "caller_cancelled"
"""Whoever called does not want the answer any more."""
CALLER_DISCONNECTED: Final = "caller_disconnected"
"""Whoever called is gone: a lost worker connection, an HTTP client that hung up."""
DEADLINE: Final = "deadline"
"""The time that the call had is over."""
SHUTDOWN: Final = "shutdown"
"""The engine, or the worker that runs the call, is stopping."""

REASONS: Final = frozenset({CALLER_CANCELLED, CALLER_DISCONNECTED, DEADLINE, SHUTDOWN})


def known(reason: str | None) -> str:
    """`reason` if it is one of the four; a peer's own words, or none at all, are `caller_cancelled`."""
    return reason if reason is not None and reason in REASONS else CALLER_CANCELLED


def reason_of(cancelled: "trio.Cancelled") -> str:
    """The reason that a cancellation carries: a scope's `cancel(reason=…)`, or `deadline` when a scope's time was up."""
    return DEADLINE if cancelled.source == "deadline" else known(cancelled.reason)
