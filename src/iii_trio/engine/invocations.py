"""One invocation is one object: routed, answered, cancelled, stopped, and finished exactly once.

Life of a `Call`, as the code below walks it:

    route ──> RUNNING ──answer──────────────────────────────> DONE
                 │ ──executor left──────────────────────────> DONE  (invocation_stopped)
                 │ ──caller cancelled, caller left, deadline─> TOMBSTONE ──answer or grace──> DONE

While RUNNING it stands in `caller.calls` (if somebody waits) and in `executor.running`. A TOMBSTONE stands only in
`executor.running`: the caller's side ended at once, and a late answer is counted, never delivered. Two exceptions are
asked for by the caller: `settle` holds the outcome back until the executor's side has ended too, so that a queue never
redelivers while the first delivery still runs (design.md §6).
"""

import logging
import math
import uuid
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from ..protocol import ABSENT, Json, errors
from ..protocol.errors import WireError
from ..protocol.limits import CALLS_PER_PEER, INVOCATION_S
from ..protocol.outcome import NOTHING, Outcome
from .deadlines import Bucket, Deadlines
from .events import Counters
from .functions import FunctionEntry, Functions
from .peer import DEFAULT_NAMESPACE, Caller, Peer

if TYPE_CHECKING:
    from .access import Access

log = logging.getLogger(__name__)

CANCEL_GRACE_S: Final = 5.0
MAX_NESTED: Final = 16


class State(Enum):
    """Where a call stands; see the module's head."""

    RUNNING = "running"
    TOMBSTONE = "tombstone"
    DONE = "done"


RUNNING: Final = State.RUNNING
TOMBSTONE: Final = State.TOMBSTONE
DONE: Final = State.DONE


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
    scope: object = None
    bucket: Bucket | None = None
    state: State = RUNNING
    held: Outcome | None = None

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
            text = errors.not_found_text(function_id, space, elsewhere, internal=internal)
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
        executor = entry.owner
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
        self.finish(call, outcome)

    def finish(self, call: Call, outcome: Outcome) -> None:
        """The executor's side has ended with `outcome`; deliver it if somebody still waits."""
        state = call.state
        if state is DONE:
            self.counters.late_results += 1
            return
        call.state = DONE
        self._settled(call)
        call.executor.running.pop(call.wire_id, None)
        if call.bucket is not None:
            del call.bucket[call]
            call.bucket = None
        if state is RUNNING:
            self._count(call, failed=bool(outcome.error))
            self._hand_over(call, outcome)
            return
        self.counters.late_results += 1
        if call.held is not None:
            held, call.held = call.held, None
            # an answer that came within the grace is the better outcome for a caller that waited for it
            self._hand_over(call, outcome if outcome.ok else held)

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

    def end(self, call: Call, reason: str, outcome: Outcome | None) -> None:
        """End the caller's side: deliver `outcome` (None: nobody listens any more) and leave a tombstone."""
        if call.state is not RUNNING:
            if outcome is None and call.state is TOMBSTONE:
                self._forget(call)
            return
        call.state = TOMBSTONE
        if call.bucket is not None:
            del call.bucket[call]
        self._now = self.deadlines.clock.now()
        self.deadlines.add(self._now + CANCEL_GRACE_S, call)
        self._count(call, failed=outcome is not None)
        if outcome is None:
            self._forget(call)
        elif call.settle:
            call.held = outcome
        else:
            self._hand_over(call, outcome)
        call.executor.cancel(call, reason)

    def _forget(self, call: Call) -> None:
        if call.caller is not None:
            call.caller.calls.pop(call.key, None)
        call.caller = call.held = None

    def cancel(self, call: Call, reason: str = "caller_cancelled") -> None:
        """The caller does not want the answer any more: no outcome is delivered."""
        call.on_done = None
        if call.state is RUNNING:
            self.counters.cancelled += 1
        self.end(call, reason, None)

    def expired(self, call: Call) -> None:
        """A deadline: `TIMEOUT` to the caller; for a tombstone the end of the grace."""
        self.tick()
        if call.state is TOMBSTONE:
            call.state = DONE
            self._settled(call)
            call.executor.running.pop(call.wire_id, None)
            if call.held is not None:
                held, call.held = call.held, None
                self._hand_over(call, held)
            return
        self.counters.timeouts += 1
        ms = round((call.deadline - call.started_at) * 1000)
        text = f"{call.function.id} did not answer within {ms} ms"
        self.end(call, "deadline", Outcome.failed(WireError(text, errors.TIMEOUT)))

    def release(self, peer: Peer) -> None:
        """Disconnect cleanup (spec/protocol.md §13.3): stop what it ran, forget what it waited for."""
        self.tick()
        stopped = Outcome.failed(WireError("Invocation stopped", errors.INVOCATION_STOPPED))
        for call in list(peer.running.values()):
            self.finish(call, stopped)
        for call in list(peer.calls.values()):
            self.end(call, "caller_disconnected", None)

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
