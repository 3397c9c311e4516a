"""What a request is answered with: one table of the race between result, response channel, client and clock (§12).

A request ends by the first thing that decides. Two things do not decide but wait for more: a handler that returned
nothing may still write to the response channel, and a handler whose writer was lost may still return something.

    event                        call and channel    returned nothing    writer lost
    value                        result              -                   result
    nothing, or null             returned nothing    -                   described
    error                        failed              -                   failed
    bytes on the channel         stream              stream              -
    channel closed, no bytes     described           described           -
    writer lost, no bytes        writer lost         described           -
    nobody came to write         -                   empty               -

Everything else (deadline, client gone, a middleware's answer …) decides alike in all three. When a result and bytes of
the channel come in one wake-up, the bytes count: what is said twice was said on the channel first.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from attrs import define, field

from ...engine.invocations import NOTHING, Outcome
from ...protocol import ABSENT, NULL, cancellation


class Event(Enum):
    """What can happen to a request under way."""

    VALUE = "the handler returned a value"
    NOTHING = "the handler returned null, or nothing"
    ERROR = "the handler, its condition or a middleware failed"
    BYTES = "the handler wrote to the response channel"
    CLOSED = "the response channel was closed and carried no bytes"
    LOST = "the writer of the response channel was lost before it wrote bytes"
    UNUSED = "the handler returned nothing, and nobody has come to write"
    BLOCKED = "the condition returned false"
    RESPONDED = "a middleware has answered"
    MALFORMED = "the body is not what its content type says"
    OVERSIZE = "the body is too large"
    CROWDED = "there is no memory for the body"
    DEADLINE = "the deadline has passed"
    DRAINING = "the engine began to stop before the body was here"
    CLIENT_GONE = "the client has left"


class Answer(Enum):
    """How a request ends."""

    RESULT = "what the handler returned"
    STREAM = "what comes through the response channel"
    DESCRIBED = "status and headers of the response channel, without a body"
    EMPTY = "204"
    FAILED = "500, or 503 for what passes with time"
    SKIPPED = "422"
    RESPONDED = "what a middleware answered"
    MALFORMED = "400"
    TOO_LARGE = "413"
    SHED = "503, for others have what it takes"
    TIMED_OUT = "504"
    UNAVAILABLE = "503"
    NONE = "nobody is there to hear it"


class Waiting(Enum):
    """What may still decide a request."""

    BOTH = "the call and the response channel"
    CHANNEL = "the response channel: the handler returned nothing"
    CALL = "the call: the writer of the response channel was lost"


ALWAYS: Final[Mapping[Event, Answer]] = {
    Event.BLOCKED: Answer.SKIPPED,
    Event.RESPONDED: Answer.RESPONDED,
    Event.MALFORMED: Answer.MALFORMED,
    Event.OVERSIZE: Answer.TOO_LARGE,
    Event.CROWDED: Answer.SHED,
    Event.DEADLINE: Answer.TIMED_OUT,
    Event.DRAINING: Answer.UNAVAILABLE,
    Event.CLIENT_GONE: Answer.NONE,
}
"""What decides at any time."""

RACE: Final[Mapping[tuple[Waiting, Event], Answer | Waiting]] = {
    (Waiting.BOTH, Event.VALUE): Answer.RESULT,
    (Waiting.BOTH, Event.NOTHING): Waiting.CHANNEL,
    (Waiting.BOTH, Event.ERROR): Answer.FAILED,
    (Waiting.BOTH, Event.BYTES): Answer.STREAM,
    (Waiting.BOTH, Event.CLOSED): Answer.DESCRIBED,
    (Waiting.BOTH, Event.LOST): Waiting.CALL,
    (Waiting.CHANNEL, Event.BYTES): Answer.STREAM,
    (Waiting.CHANNEL, Event.CLOSED): Answer.DESCRIBED,
    (Waiting.CHANNEL, Event.LOST): Answer.DESCRIBED,
    (Waiting.CHANNEL, Event.UNUSED): Answer.EMPTY,
    (Waiting.CALL, Event.VALUE): Answer.RESULT,
    (Waiting.CALL, Event.NOTHING): Answer.DESCRIBED,
    (Waiting.CALL, Event.ERROR): Answer.FAILED,
}
"""The race between call and channel. What is not in it cannot happen, and changes nothing."""

REASONS: Final[Mapping[Answer, str]] = {
    Answer.NONE: cancellation.CALLER_DISCONNECTED,
    Answer.TIMED_OUT: cancellation.DEADLINE,
}
"""Why a handler that still runs is cancelled, by how its request has ended; else it may run on for a while."""

OVERTAKEN: Final = frozenset({Answer.RESULT, Answer.FAILED})
"""Answers in whose place bytes count that came in the same wake-up."""


_NOTHING: Final = (ABSENT.raw, NULL.raw)


def _ignore() -> None:
    """Nobody waits."""


@define(eq=False)
class ResponseDecision:
    """What a request is answered with, by the table of this module.

    `deadline` is Trio time. `function_id` is the function whose outcome is or was waited for. `on_step` is called,
    synchronously, whenever something is decided or something else is waited for.
    """

    deadline: float
    function_id: str = ""
    answer: Answer | None = field(default=None, init=False)
    waiting: Waiting = field(default=Waiting.BOTH, init=False)
    outcome: Outcome = field(default=NOTHING, init=False)
    on_step: Callable[[], None] = field(default=_ignore, init=False)
    _taken: bool = field(default=False, init=False)

    def feed(self, event: Event, outcome: Outcome = NOTHING) -> None:
        """Something has happened; `outcome` is the call's, for `VALUE` and `ERROR`."""
        if self.answer is not None:
            if event is Event.BYTES and self.answer in OVERTAKEN and not self._taken:
                self.answer = Answer.STREAM
            return
        step = ALWAYS.get(event) or RACE.get((self.waiting, event), self.waiting)
        if step is self.waiting:
            return
        if isinstance(step, Waiting):
            self.waiting = step
        else:
            self.answer, self.outcome = step, outcome
        self.on_step()

    def feed_outcome(self, outcome: Outcome) -> None:
        """The handler's call has ended."""
        if not outcome.ok:
            self.feed(Event.ERROR, outcome)
        elif outcome.result.raw in _NOTHING:
            self.feed(Event.NOTHING)
        else:
            self.feed(Event.VALUE, outcome)

    def take(self) -> Answer:
        """The answer, from now on unchangeable. Only after something has decided."""
        assert self.answer is not None
        self._taken = True
        return self.answer
