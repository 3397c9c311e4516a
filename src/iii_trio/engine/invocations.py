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

import uuid
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from ..protocol import ABSENT, Json, codec, errors
from ..protocol.errors import WireError
from ..protocol.limits import CALLS_PER_PEER, INVOCATION_S
from .deadlines import Deadlines, Expiring
from .events import Counters
from .functions import FunctionEntry, Functions
from .peer import DEFAULT_NAMESPACE, Caller, Peer

if TYPE_CHECKING:
    from .access import Access

CANCEL_GRACE_S: Final = 5.0


@frozen
class Outcome:
    """How a call ended: `error` is the wire body's text, empty on success; `result` may be `ABSENT` or null."""

    result: Json = ABSENT
    error: bytes = b""

    @classmethod
    def failed(cls, error: WireError) -> "Outcome":
        """The outcome of an error of ours."""
        return cls(ABSENT, codec.encode_error(error))

    @property
    def ok(self) -> bool:
        """True unless it carries an error."""
        return not self.error

    def exception(self) -> WireError:
        """The error as an exception; only for outcomes that are not `ok`."""
        body = codec.error_body(self.error)
        return WireError(body.message, body.code, body.stacktrace)


NOTHING: Final = Outcome()


class State(Enum):
    """Where a call stands; see the module's head."""

    RUNNING = "running"
    TOMBSTONE = "tombstone"
    DONE = "done"


@define(eq=False, repr=False)
class Call:
    """One invocation. `wire_id` is its id towards the executor, `reply_id` what its caller chose (None: no answer wanted).

    `deadline` and `started_at` are seconds of the engine's clock. `metadata` and the trace strings travel as they came.
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
    scope: object = None
    bucket: set[Expiring] | None = None
    state: State = State.RUNNING
    held: Outcome | None = None

    def finish(self, outcome: Outcome) -> None:
        """The executor's answer. Late and repeated answers are counted and dropped."""
        self.core.finish(self, outcome)

    def succeed(self, result: Json = ABSENT) -> None:
        """`finish` with a result."""
        self.core.finish(self, Outcome(result))

    def fail(self, error: WireError) -> None:
        """`finish` with an error of ours."""
        self.core.finish(self, Outcome.failed(error))

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
    """Routing. Everything here is synchronous: what raises is a bug, what fails is an outcome."""

    functions: Functions
    deadlines: Deadlines
    counters: Counters
    access: "Access"
    default_timeout_s: float = INVOCATION_S
    _default_bucket: set[Expiring] | None = field(default=None, init=False)
    _default_deadline: float = field(default=0.0, init=False)
    _now: float = field(default=0.0, init=False)
    _active: int = field(default=0, init=False)
    _idle: trio.Event | None = field(default=None, init=False)

    async def wait_idle(self) -> None:
        """Return when no call runs any more."""
        while self._active:
            self._idle = self._idle or trio.Event()
            await self._idle.wait()

    def _settled(self) -> None:
        self._active -= 1
        if not self._active and self._idle is not None:
            self._idle.set()
            self._idle = None

    def tick(self) -> float:
        """Read the clock once for a whole batch of frames; returns seconds of the engine's clock."""
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
        waits = reply_id is not None or on_done is not None
        calls = origin.calls
        if waits:
            if len(calls) >= CALLS_PER_PEER:
                text = f"{CALLS_PER_PEER} calls of this connection are waiting for answers; let some finish first"
                return Outcome.failed(WireError(text, errors.TOO_MANY_CALLS))
            if reply_id is None:
                key = str(uuid.uuid4())
            else:
                # a caller that re-uses an id that is still pending gets both answers, under the id it chose
                key = reply_id if reply_id not in calls else str(uuid.uuid4())
        else:
            key = str(uuid.uuid4())
        executor = entry.owner
        running = executor.running
        wire_id = key if key not in running else str(uuid.uuid4())
        now = self._now or self.tick()
        call = Call(
            self, entry, origin if waits else None, origin, executor, wire_id, reply_id, key, 0.0, now,
            metadata, traceparent, baggage, on_done, settle,
        )  # fmt: skip
        if timeout_s is None:
            bucket = self._default_bucket
            if bucket is not None:
                call.deadline = self._default_deadline
                bucket.add(call)
                call.bucket = bucket
        else:
            call.deadline = now + timeout_s
            self.deadlines.add(call.deadline, call)
        self.counters.calls += 1
        self._active += 1
        running[wire_id] = call
        if waits:
            calls[key] = call
        executor.submit(call, data)
        return call

    # -- ends --------------------------------------------------------------------------------------------------------

    def finish(self, call: Call, outcome: Outcome) -> None:
        """The executor's side has ended with `outcome`; deliver it if somebody still waits."""
        if call.state is State.DONE:
            self.counters.late_results += 1
            return
        buried = call.state is State.TOMBSTONE
        call.state = State.DONE
        self._settled()
        call.executor.running.pop(call.wire_id, None)
        if call.bucket is not None:
            call.bucket.discard(call)
            call.bucket = None
        entry = call.function
        entry.count += 1
        entry.seconds += self._now - call.started_at
        if outcome.error:
            entry.errors += 1
        if buried:
            self.counters.late_results += 1
            if call.held is not None:
                held, call.held = call.held, None
                # an answer that came within the grace is the better outcome for a caller that waited for it
                self._hand_over(call, outcome if outcome.ok else held)
            return
        self._hand_over(call, outcome)

    def _hand_over(self, call: Call, outcome: Outcome) -> None:
        caller = call.caller
        if caller is None:
            return
        call.caller = None
        caller.calls.pop(call.key, None)
        caller.deliver(call, outcome)

    def end(self, call: Call, reason: str, outcome: Outcome | None) -> None:
        """End the caller's side: deliver `outcome` (None: nobody listens any more) and leave a tombstone."""
        if call.state is not State.RUNNING:
            if outcome is None and call.state is State.TOMBSTONE:
                self._forget(call)
            return
        call.state = State.TOMBSTONE
        if call.bucket is not None:
            call.bucket.discard(call)
        self.deadlines.add(self.deadlines.clock.now() + CANCEL_GRACE_S, call)
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
        self.counters.cancelled += 1
        self.end(call, reason, None)

    def expired(self, call: Call) -> None:
        """A deadline: `TIMEOUT` to the caller; for a tombstone the end of the grace."""
        self.tick()
        if call.state is State.TOMBSTONE:
            call.state = State.DONE
            self._settled()
            call.executor.running.pop(call.wire_id, None)
            if call.held is not None:
                held, call.held = call.held, None
                self._hand_over(call, held)
            return
        self.counters.timeouts += 1
        call.function.errors += 1
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
