"""What state and streams see of another engine that keeps their data: calls of its functions, and its events (§10).

`modules/bridge.py` implements it; `host/` hands it to the modules whose adapter is `bridge`.
"""

from collections.abc import Callable
from typing import Final, Protocol

from ..engine import Call, Outcome
from ..protocol import Json, errors
from ..protocol.errors import WireError

VALUE_TOO_LARGE: Final = "VALUE_TOO_LARGE"
AS_THEY_ARE: Final = frozenset({VALUE_TOO_LARGE, errors.DESERIALIZATION_ERROR})
"""Codes by which clients know that it is their input that was refused; they come through as the other engine sent them."""


class Follower(Protocol):
    """Who wants the other engine's stream events."""

    def heard(self, wrapper: Json) -> None:
        """An event of a stream, as its subscribers get it."""

    def back(self) -> None:
        """From now on events come; there may have been some before, unheard."""


class Remote(Protocol):
    """Another engine."""

    @property
    def url(self) -> str:
        """Where it is."""

    @property
    def announces(self) -> bool:
        """Whether it tells every follower of every event of its streams by itself, custom events included."""

    def request(
        self,
        function_id: str,
        data: Json,
        on_done: Callable[[Outcome], None],
        call: Call | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        """Call one of its functions for `call`, or for this engine itself; `on_done` is called once, maybe at once.

        Requests leave in this order. It takes 30 s at most, also while the other engine is away. Where `call` is given
        up, the other side is told; a `lasting` request (a write) is left to end, once it has been sent, so that what it
        did is known.
        """

    def follow(self, follower: Follower) -> Callable[[], None]:
        """Hear its stream events; returns what ends that. One follower at a time."""


def failure(outcome: Outcome, code: str, summary: str) -> WireError:
    """The error for a request that failed: `<summary> via bridge: <why>` under the usual code."""
    error = outcome.exception()
    if error.code in AS_THEY_ARE:
        return error
    return WireError(f"{summary} via bridge: {error.message}", code)
