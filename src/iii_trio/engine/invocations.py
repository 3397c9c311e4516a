"""One invocation is one object: routed, answered, cancelled, stopped, and finished exactly once.

Which end of a call comes first, and what then, is the race table in `races.py`: every end below is one event, looked up
there and carried out by `Invocations._happened`.
"""

import logging
import math
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, Protocol

import trio
from attrs import define, field, frozen

from ..protocol import ABSENT, Json, cancellation, errors
from ..protocol.errors import WireError
from ..protocol.limits import CALLS_PER_PEER, CANCEL_GRACE_S, INVOCATION_S
from ..protocol.outcome import NOTHING, Outcome
from .deadlines import Bucket, Deadlines
from .events import Counters
from .functions import FunctionEntry, Functions
from .peer import DEFAULT_NAMESPACE, Caller, Peer
from .races import RACES, Event, Hears, State

if TYPE_CHECKING:
    from .access import Access

log = logging.getLogger(__name__)

MAX_NESTED: Final = 16

# for the way that every call goes: members of an Enum cost ten times a global
_RUNNING: Final = State.RUNNING
_DONE: Final = State.DONE
_ANSWER: Final = Event.ANSWER
_OUTCOME: Final = Hears.OUTCOME

STOPPED: Final = Outcome.failed(WireError("Invocation stopped", errors.INVOCATION_STOPPED))
SHUT_DOWN: Final = Outcome.failed(WireError("Invocation stopped: the engine is stopping", errors.INVOCATION_STOPPED))


class Cancellable(Protocol):
    """What runs for a call and can be told to end: a cancel scope, for instance."""

    def cancel(self, *, reason: str | None = None) -> None:
        """Nobody waits for it any more."""


@define(eq=False, repr=False)
class Call:
    """One invocation. `wire_id` is its id towards the executor, `reply_id` what its caller chose (None: no answer wanted).

    `deadline` and `started_at` are seconds of the engine's clock. `metadata` and the trace strings travel as they came.
    `injects` says whether the caller's id goes into the payload (spec/protocol.md §7.3).
    """

    core: "Invocations"
    function: FunctionEntry
    caller: Caller | None
    origin: Peer
    executor: Peer
    wire_id: str
    reply_id: str | None
    key: str
    deadline: float
    started_at: float
    metadata: bytes = b""
    traceparent: str | None = None
    baggage: str | None = None
    on_done: Callable[[Outcome], None] | None = None
    settle: bool = False
    injects: bool = False
    scope: Cancellable | None = None
    bucket: Bucket | None = None
    state: State = _RUNNING
    held: Outcome = NOTHING

    def finish(self, outcome: Outcome) -> None:
        """The executor's answer. Late and repeated answers are counted and dropped."""
        self.core.answered(self, outcome)

    def succeed(self, result: Json = ABSENT) -> None:
        """`finish` with a result."""
        self.core.answered(self, Outcome(result))

    def fail(self, error: WireError) -> None:
        """`finish` with an error of ours."""
        self.core.answered(self, Outcome.failed(error))

    def expire(self) -> None:
        """The deadline (or, for a tombstone, the grace) has passed."""
        self.core.expired(self)


@frozen
class InvocationStatistics:
    """Counters since the start; what runs now stands in the peers."""

    calls: int
    late_results: int
    timeouts: int
    cancelled: int


@define(eq=False, repr=False)
class Invocations:
    """Routing. Everything here is synchronous: what raises is a bug, what fails is an outcome.

    Calls that run for `slow_s` seconds or longer are named in the log when they end.
    """

    functions: Functions
    deadlines: Deadlines
    counters: Counters
    access: "Access"
    default_timeout_s: float = INVOCATION_S
    slow_s: float = math.inf
    why_missing: Callable[[str, str], str] = lambda namespace, function_id: ""
    _default_bucket: Bucket | None = field(default=None, init=False)
    _default_deadline: float = field(default=0.0, init=False)
    _now: float = field(default=0.0, init=False)
    _active: int = field(default=0, init=False)
    _idle: trio.Event | None = field(default=None, init=False)
    _id_head: str = field(factory=lambda: str(uuid.uuid4())[:24], init=False)
    _serial: int = field(default=0, init=False)
    _nested: int = field(default=0, init=False)
    _put_off: deque[tuple[Callable[..., None], tuple[object, ...]]] = field(factory=deque, init=False)

    async def wait_idle(self) -> None:
        """Return when no call runs any more."""
        while self._active:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()

    def _settled(self, call: Call) -> None:
        call.origin.live -= 1
        self._active -= 1
        if not self._active and self._idle is not None:
            self._idle.set()
            self._idle = None

    def new_id(self) -> str:
        """A fresh UUID for a call whose caller chose none: unique, not secret, and ten times cheaper than `uuid4`."""
        self._serial += 1
        return f"{self._id_head}{self._serial:012x}"

    def flat(self, step: Callable[..., None], *args: object) -> None:
        """Run `step(*args)` now or, inside many others, once those have returned.

        Where one ended call starts the next, which ends at once and starts the next, the stack does not grow with the
        length of the chain.
        """
        if self._nested >= MAX_NESTED:
            self._put_off.append((step, args))
            return
        self._nested += 1
        try:
            step(*args)
            while self._put_off and self._nested == 1:
                step, args = self._put_off.popleft()
                step(*args)
        finally:
            self._nested -= 1

    def tick(self) -> float:
        """Read the clock once for a whole batch of frames; returns seconds of the engine's clock.

        What routes calls for a worker's frames ticks first: the bucket of default deadlines holds for one step only.
        """
        self.deadlines.tidy()
        now = self._now = self.deadlines.clock.now()
        if self.default_timeout_s > 0:
            self._default_deadline = now + self.default_timeout_s
            self._default_bucket = self.deadlines.bucket(self._default_deadline)
        return now

    def route(
        self,
        origin: Peer,
        function_id: str,
        data: Json,
        *,
        namespace: str | None = None,
        reply_id: str | None = None,
        timeout_s: float | None = None,
        metadata: bytes = b"",
        traceparent: str | None = None,
        baggage: str | None = None,
        on_done: Callable[[Outcome], None] | None = None,
        settle: bool = False,
        internal: bool = False,
    ) -> Call | Outcome:
        """Start a call for `origin`, or return the outcome by which it was refused (spec/protocol.md §7.1).

        `reply_id` or `on_done` make `origin` wait for it; without either the call outlives its caller. `timeout_s`
        of None takes the default. `internal` calls are the engine's own: no access check, and the not-found text
        without a hint. The call may already be done when this returns.
        """
        space = DEFAULT_NAMESPACE if namespace is None else namespace
        entry = self.functions.get(space, function_id)
        if not internal and origin.session is not None:
            refusal = self.access.check(origin.session, space, function_id, entry)
            if refusal is not None:
                return Outcome.failed(refusal)
        if entry is None:
            elsewhere = () if internal else self.functions.namespaces_of(function_id)
            text = errors.not_found_text(function_id, space, elsewhere, self.why_missing(space, function_id), internal)
            return Outcome.failed(WireError(text, errors.FUNCTION_NOT_FOUND))
        if origin.live >= CALLS_PER_PEER:
            text = f"{CALLS_PER_PEER} calls of this connection have not ended; let some finish first"
            return Outcome.failed(WireError(text, errors.TOO_MANY_CALLS))
        waits = reply_id is not None or on_done is not None
        calls = origin.calls
        key = self.new_id() if reply_id is None else reply_id
        while key in calls:
            key = self.new_id()  # a caller that re-uses an id that is still pending gets both answers, under its id
        if entry.replicas is not None:
            entry = entry.replicas.choose()
        executor = entry.executor
        running = executor.running
        wire_id = key
        while wire_id in running:
            wire_id = self.new_id()
        now = self._now or self.tick()
        call = Call(
            self, entry, origin if waits else None, origin, executor, wire_id, reply_id, key, 0.0, now,
            metadata, traceparent, baggage, on_done, settle, origin.injects and not internal,
        )  # fmt: skip
        if timeout_s is None:
            bucket = self._default_bucket
            if bucket is not None:
                call.deadline = self._default_deadline
                bucket[call] = None
                call.bucket = bucket
        else:
            call.deadline = now + timeout_s
            self.deadlines.add(call.deadline, call)
        self.counters.calls += 1
        self._active += 1
        origin.live += 1
        running[wire_id] = call
        if waits:
            calls[key] = call
        executor.submit(call, data)
        return call

    # -- ends --------------------------------------------------------------------------------------------------------

    def answered(self, call: Call, outcome: Outcome) -> None:
        """`finish` for those who do not read the clock themselves."""
        self._now = self.deadlines.clock.now()
        self._happened(call, _ANSWER, outcome)

    def finish(self, call: Call, outcome: Outcome) -> None:
        """The executor's side has ended with `outcome`; deliver it if somebody still waits."""
        self._happened(call, _ANSWER, outcome)

    def cancel(self, call: Call, reason: str = cancellation.CALLER_CANCELLED) -> None:
        """The caller does not want the answer any more: no outcome is delivered, and the executor is told why."""
        call.on_done = None
        if call.state is State.RUNNING:
            self.counters.cancelled += 1
        self._now = self.deadlines.clock.now()
        self._happened(call, Event.CANCELLED, NOTHING, reason)

    def expired(self, call: Call) -> None:
        """A deadline: `TIMEOUT` to the caller; for what its caller's side has left already, the end of the grace."""
        self.tick()
        if call.state is not State.RUNNING:
            self._happened(call, Event.GRACE, NOTHING)
            return
        self.counters.timeouts += 1
        ms = round((call.deadline - call.started_at) * 1000)
        outcome = Outcome.failed(WireError(f"{call.function.id} did not answer within {ms} ms", errors.TIMEOUT))
        event = Event.DEADLINE_SETTLING if call.settle else Event.DEADLINE
        self._happened(call, event, outcome, cancellation.DEADLINE)

    def release(self, peer: Peer) -> None:
        """Disconnect cleanup (spec/protocol.md §13.3): stop what it ran, forget what it waited for."""
        self.tick()
        for call in list(peer.running.values()):
            self._happened(call, Event.EXECUTOR_LEFT, STOPPED)
        for call in list(peer.calls.values()):
            self._happened(call, Event.CALLER_LEFT, NOTHING, cancellation.CALLER_DISCONNECTED)

    async def stop(self, peers: Iterable[Peer], unwind_s: float) -> None:
        """Cancel every call that `peers` run, for `shutdown`, and give them `unwind_s` seconds to come to an end.

        Whoever waits gets what was answered in that time, else `invocation_stopped`; nothing runs when this returns.
        """
        self.tick()
        running = [call for peer in peers for call in peer.running.values()]
        log.warning("%d calls did not end in time and are cancelled", len(running))
        for call in running:
            self._happened(call, Event.SHUTDOWN, SHUT_DOWN, cancellation.SHUTDOWN)
        with trio.move_on_after(unwind_s):
            await self.wait_idle()
        self.tick()
        for call in running:
            if call.state is not State.DONE:
                self._happened(call, Event.GRACE, NOTHING)

    def _happened(self, call: Call, event: Event, outcome: Outcome, reason: str = "") -> None:
        """One event, by its row: first every table is put right, then whoever is to hear of it hears of it."""
        before = call.state
        row = RACES[before, event]
        if row.late:
            self.counters.late_results += 1
        state = row.next
        if state is before:
            return
        call.state = state
        if before is _RUNNING:
            self._count(call, failed=bool(outcome.error))
        if call.bucket is not None and (before is _RUNNING or state is _DONE):
            del call.bucket[call]
            call.bucket = None
        if state is _DONE:
            self._settled(call)
            call.executor.running.pop(call.wire_id, None)
        elif before is _RUNNING:
            self.deadlines.add(self._now + CANCEL_GRACE_S, call)
        hears = row.hears
        if hears is _OUTCOME:
            self._hand_over(call, outcome)
        elif hears is Hears.LATER:
            call.held = outcome
        elif hears is Hears.NEVER:
            if call.caller is not None:
                call.caller.calls.pop(call.key, None)
            call.caller, call.held = None, NOTHING
        elif hears is not Hears.NOTHING:
            held, call.held = call.held, NOTHING
            self._hand_over(call, outcome if hears is Hears.BETTER and outcome.ok else held)
        if row.told:
            call.executor.cancel(call, reason)

    def _count(self, call: Call, *, failed: bool) -> None:
        """Once for every call, when it stops running."""
        entry = call.function
        took = self._now - call.started_at
        entry.count += 1
        entry.seconds += took
        if failed:
            entry.errors += 1
        if took >= self.slow_s:
            _log_slow(call, took, failed=failed)

    def _hand_over(self, call: Call, outcome: Outcome) -> None:
        caller = call.caller
        if caller is None:
            return
        call.caller = None
        caller.calls.pop(call.key, None)
        caller.deliver(call, outcome)

    def statistics(self) -> InvocationStatistics:
        """A frozen picture of the counters."""
        c = self.counters
        return InvocationStatistics(c.calls, c.late_results, c.timeouts, c.cancelled)


def _log_slow(call: Call, took: float, *, failed: bool) -> None:
    log.warning(
        "slow call: %s in namespace %s %s after %.3f s (call %s, executed by %s, called by %s)",
        call.function.id,
        call.function.namespace,
        "failed" if failed else "ended",
        took,
        call.wire_id,
        call.executor.id,
        call.origin.id,
    )


__all__ = ["NOTHING", "Call", "InvocationStatistics", "Invocations", "Outcome", "State"]
