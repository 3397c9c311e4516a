"""The question to one connection: is anybody there? (spec/protocol.md §20.7)

It is asked when somebody claims what the connection holds. Every inbound frame answers it, a pong for instance; so do,
at the deadline, bytes of an unfinished frame. A connection that we do not read ourselves owes us no answer.
"""

from collections.abc import Callable

from attrs import define, field

from ..protocol.limits import PROBE_S
from ..transport import Connection
from .admission import Intake
from .deadlines import Deadlines, Timer


@define(eq=False, repr=False)
class Probe:
    """The question and everybody who waits for the answer; one for any number of them."""

    connection: Connection
    intake: Intake
    deadlines: Deadlines
    asked_by: list[Callable[[bool], None]] = field(factory=list, init=False)
    _since: float = field(default=0.0, init=False)
    _timer: Timer | None = field(default=None, init=False)

    def ask(self, answered: Callable[[bool], None]) -> None:
        """Call `answered(True)` at the next inbound frame, or `answered(False)` after `PROBE_S` seconds of silence."""
        if self._timer is None:
            self._since = self.deadlines.clock.now()
            self._timer = self.deadlines.at(self._since + PROBE_S, self._over)
            self.connection.ping()
        self.asked_by.append(answered)

    def _over(self) -> None:
        self.answer(alive=self.intake.paused or self.connection.last_heard > self._since)

    def answer(self, *, alive: bool) -> None:
        """Tell everybody who asked; nobody asks any more then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        asked_by, self.asked_by = self.asked_by, []
        for answered in asked_by:
            answered(alive)
