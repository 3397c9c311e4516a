"""The calls this connection waits for: who waits, and how each of them ends exactly once. No I/O."""

from collections.abc import Callable

import trio
from attrs import define, field, frozen

from iii_trio.protocol.json import ABSENT, Json

from .errors import InvocationError, InvocationStopped


@frozen
class CallStatistics:
    """Counters of one connection's outgoing calls."""

    pending: int
    """Calls that wait for their answer."""
    answered: int
    """Answers delivered to a waiting call."""
    abandoned: int
    """Calls whose caller was cancelled or out of time before the answer."""
    stray: int
    """Answers nobody waited for: late ones, mostly."""


@define(eq=False)
class PendingCall:
    """One call under way; `done` is set, and `on_end` called, when `result` or `error` holds its outcome."""

    id: str
    function_id: str
    done: trio.Event = field(factory=trio.Event)
    result: Json = ABSENT
    error: InvocationError | None = None
    on_end: "Callable[[PendingCall], None] | None" = None

    def end(self, result: Json, error: InvocationError | None) -> None:
        """This is its outcome."""
        self.result, self.error = result, error
        self.done.set()
        if self.on_end is not None:
            self.on_end(self)

    def outcome(self) -> Json:
        """The result, `ABSENT` if the answer had none; raises the error."""
        if self.error is not None:
            raise self.error
        return self.result


@define(eq=False)
class Calls:
    """Every pending call of one connection, by invocation id."""

    _pending: dict[str, PendingCall] = field(factory=dict)
    _answered: int = 0
    _abandoned: int = 0
    _stray: int = 0

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self, call: PendingCall) -> None:
        """Take a call in; done before its frame is sent, so that no answer can come too early."""
        self._pending[call.id] = call

    def function_of(self, invocation_id: str) -> str | None:
        """What the pending call of this id calls; None when nobody waits for it."""
        call = self._pending.get(invocation_id)
        return None if call is None else call.function_id

    def finish(self, invocation_id: str, result: Json, error: InvocationError | None) -> None:
        """Deliver an answer; one that nobody waits for is counted and dropped."""
        call = self._pending.pop(invocation_id, None)
        if call is None:
            self._stray += 1
            return
        self._answered += 1
        call.end(result, error)

    def withdraw(self, call: PendingCall) -> bool:
        """Forget a call; True when it was still pending, which means that its caller gives up."""
        if self._pending.pop(call.id, None) is None:
            return False
        self._abandoned += 1
        return True

    def stop(self, reason: str) -> None:
        """End every pending call with `InvocationStopped`: its connection is lost, its answer cannot come."""
        pending, self._pending = self._pending, {}
        for call in pending.values():
            call.end(ABSENT, InvocationStopped(reason, function_id=call.function_id, invocation_id=call.id))

    def statistics(self) -> CallStatistics:
        """A snapshot of the counters."""
        return CallStatistics(len(self._pending), self._answered, self._abandoned, self._stray)
