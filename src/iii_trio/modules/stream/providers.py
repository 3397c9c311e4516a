"""Streams whose data a worker keeps: the functions `stream::get(NAME)` and so on, found at each call (§3.1)."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from attrs import define, field

from ...engine import DEFAULT_NAMESPACE, Call, Engine, LocalPeer, Outcome
from ...protocol import Json, cancellation, errors
from ...protocol.errors import WireError
from ...protocol.limits import CONDITION_S, STREAM_PROVIDER_CALLS

SNAPSHOT_S: Final = CONDITION_S
"""How long a provider may take to answer for a subscriber's snapshot."""

End = Callable[[], None]
Step = Callable[[End], None]
"""Begins something and calls its argument when that has ended."""


@define(eq=False)
class Providers:
    """Calls of providers; `running` are those under way, at most `STREAM_PROVIDER_CALLS`."""

    core: Engine
    peer: LocalPeer
    running: int = field(default=0, init=False)

    def has(self, operation: str, stream: str) -> bool:
        """Whether a worker serves this operation of this stream now."""
        return self.core.functions.get(DEFAULT_NAMESPACE, function_id(operation, stream)) is not None

    def call(
        self,
        operation: str,
        stream: str,
        data: Json,
        on_done: Callable[[Outcome], None],
        call: Call | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        """Ask the provider; for `call` it has as long as that has left, and gets its trace.

        Where `call` is given up, so is the provider's; a `lasting` one (of a write) is left to end, so that what it did
        is told.
        """
        if self.running >= STREAM_PROVIDER_CALLS:
            text = (
                f"{STREAM_PROVIDER_CALLS} calls of stream providers are under way already; "
                "does a provider write to its own stream?"
            )
            on_done(Outcome.failed(WireError(text, errors.WORKER_OVERLOADED)))
            return
        timeout_s: float | None = SNAPSHOT_S
        if call is not None:  # a deadline of 0 is none
            timeout_s = max(call.deadline - self.core.clock.now(), 0.001) if call.deadline else None
        self.running += 1
        asked = _Asked(self, on_done)
        if call is not None and not lasting:
            call.scope = asked
        asked.asking = self.peer.call(
            function_id(operation, stream),
            data,
            asked.done,
            namespace=DEFAULT_NAMESPACE,
            timeout_s=timeout_s,
            traceparent=None if call is None else call.traceparent,
            baggage=None if call is None else call.baggage,
        )


@define(eq=False)
class _Asked:
    """A provider's call under way; `on_done` is None once it has ended."""

    providers: Providers
    on_done: Callable[[Outcome], None] | None
    asking: Call | None = None

    def done(self, outcome: Outcome) -> None:
        on_done, self.on_done = self.on_done, None
        if on_done is not None:
            self.providers.running -= 1
            on_done(outcome)

    def cancel(self, *, reason: str | None = None) -> None:
        """See `Cancellable`."""
        if self.on_done is None or self.asking is None:
            return
        reason = cancellation.known(reason)
        self.providers.peer.cancel_call(self.asking, reason)
        self.done(Outcome.failed(WireError(f"the call was cancelled: {reason}", errors.INVOCATION_CANCELLED)))


def function_id(operation: str, stream: str) -> str:
    """The id under which a provider serves an operation."""
    return f"stream::{operation}({stream})"


@define(eq=False)
class _Turn:
    waiting: deque[tuple[bool, Step]] = field(factory=deque)
    running: int = 0
    alone: bool = False
    advancing: bool = False


@define(eq=False)
class Turns:
    """Steps at one place in the order in which they come: those that are exclusive alone, all others side by side.

    An update of a provider that has no update of its own is two calls, a get and a set: between them no other write of
    the same item may reach the provider, nor be on its way there.
    """

    _turns: dict[tuple[str, str, str], _Turn] = field(factory=dict, init=False)

    def take(self, place: tuple[str, str, str], step: Step, *, exclusive: bool) -> None:
        """Begin `step`, now or when those before it have ended."""
        turn = self._turns.get(place)
        if turn is None:
            turn = self._turns[place] = _Turn()
        turn.waiting.append((exclusive, step))
        self._advance(place, turn)

    def _advance(self, place: tuple[str, str, str], turn: _Turn) -> None:
        if turn.advancing:
            return  # a step that ended at once is followed up by the loop below
        turn.advancing = True
        while turn.waiting and not turn.alone and (not turn.running or not turn.waiting[0][0]):
            turn.alone, step = turn.waiting.popleft()
            turn.running += 1
            step(partial(self._ended, place, turn))
        turn.advancing = False
        if not turn.running:
            del self._turns[place]

    def _ended(self, place: tuple[str, str, str], turn: _Turn) -> None:
        turn.running -= 1
        turn.alone = False
        self._advance(place, turn)

    def __len__(self) -> int:
        return len(self._turns)
