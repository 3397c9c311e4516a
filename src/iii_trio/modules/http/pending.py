"""One request under way: everything that its stages find out about it, and what runs for it."""

from typing import Any

from attrs import define, field

from ...config import HttpSettings
from ...engine.deadlines import Timer
from ...engine.invocations import Call, Outcome
from ...protocol import cancellation
from .asgi import Incoming
from .decision import ResponseDecision
from .messages import Request, Response
from .routes import Match
from .streaming import Channelled


@define(eq=False)
class Pending:
    """One request under way: what was asked, by whom, of which route, what is decided, and what runs for it."""

    request: Request
    incoming: Incoming
    match: Match
    decision: ResponseDecision
    settings: HttpSettings
    context: dict[str, Any] | None = field(default=None, init=False)
    response: Response | None = field(default=None, init=False)
    """What a middleware has answered."""
    complaint: str = field(default="", init=False)
    """What is wrong with the body."""
    body_bytes: int = field(default=0, init=False)
    """What is held of the body in one piece."""
    in_middleware: bool = field(default=False, init=False)
    limit_ms: int = field(init=False)
    """How long what runs now may take."""
    channels: Channelled | None = field(default=None, init=False)
    call: Call | None = field(default=None, init=False)
    outcome: Outcome | None = field(default=None, init=False)
    """The handler's, once its call has ended."""
    leftover: Timer | None = field(default=None, init=False)
    reason: str | None = field(default=cancellation.SHUTDOWN, init=False)
    """Why the handler is cancelled if it still runs when the request is over; None if it may run on for a while."""

    def __attrs_post_init__(self) -> None:
        self.limit_ms = self.timeout_ms

    @property
    def timeout_ms(self) -> int:
        """How long the request may take up to the head of its response."""
        return self.match.route.timeout_ms or self.settings.default_timeout

    @property
    def namespace(self) -> str:
        """Where the route's functions are looked up."""
        return self.match.route.binding.namespace

    def ended(self, outcome: Outcome) -> None:
        """The handler's call has ended, whatever has become of the request meanwhile."""
        self.outcome = outcome
        if self.leftover is not None:
            self.leftover.cancel()
        self.decision.feed_outcome(outcome)
        if self.channels is not None:
            self.channels.wake()
