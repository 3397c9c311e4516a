"""One connection to the engine, from the first frame to the last: frames in, frames out, what is under way on it.

`run` drives a `Connection`; everything it reads is judged in synchronous functions here. What survives the
connection (registrations, limits, the client's nursery) is handed in and belongs to the supervisor.
"""

import logging
import math
import uuid
from collections import deque
from typing import Any, Final

import trio
from attrs import define, field, frozen
from cattrs import Converter

from iii_trio.protocol import cancellation, codec
from iii_trio.protocol import errors as wire
from iii_trio.protocol.errors import ProtocolError, WireError
from iii_trio.protocol.json import ABSENT, Json, JsonError
from iii_trio.protocol.limits import DEADLINE_S, MAX_MESSAGE, PING_AFTER_S
from iii_trio.protocol.messages import (
    Action,
    CancelInvocation,
    Error,
    ErrorBody,
    InvocationResult,
    InvokeFunction,
    Message,
    Ping,
    Pong,
    Reattach,
    RegisterTrigger,
    RegistrationRejected,
    TriggerRegistrationResult,
    UnregisterTrigger,
    WorkerRegistered,
)
from iii_trio.transport import CloseCode, Closed, Connection, ConnectionStatistics, Framing, Oversize

from . import errors
from .calls import Calls, CallStatistics, PendingCall
from .handlers import Handlers, HandlerStatistics, Limits, outcome
from .invocation import Invocation
from .providers import Bindings
from .registry import Registry

CANCEL_V1: Final = "cancel.v1"
DEADLINE_MS: Final = round(DEADLINE_S * 1000)
CHECK_S: Final = 5.0
"""How often the connection is checked for silence, and a paused reader let through for one batch."""

log = logging.getLogger("iii_trio.sdk")


@frozen
class Previous:
    """The connection before this one, as `reattach` names it."""

    worker_id: str
    token: str | None


@frozen
class SessionStatistics:
    """What one connection does and did."""

    worker_id: str | None
    """What the engine calls this connection; None until it said so."""
    features: frozenset[str]
    """What the engine understands beyond the base protocol."""
    calls: CallStatistics
    handlers: HandlerStatistics
    connection: ConnectionStatistics
    undecodable: int
    """Frames that were no messages."""


@define(eq=False)
class Barrier:
    """Waits until the engine has read everything sent before it. `passed` says whether it has, once `wait` returns."""

    passed: bool = False
    _over: trio.Event = field(factory=trio.Event)

    async def wait(self) -> None:
        """Until the engine has answered, or the connection has ended."""
        await self._over.wait()

    def lift(self, *, passed: bool) -> None:
        """Let everybody go on."""
        self.passed = passed
        self._over.set()


@define(eq=False, kw_only=True)
class Session:
    """One connection; it runs once.

    `client` is what handlers find in their invocation. `confirmed` passes when the engine has read the registrations;
    `rejected` holds the error when it refused this worker for good, `refused` what it said of a connection it did not
    admit.
    """

    stream: trio.abc.Stream
    framing: Framing
    registry: Registry
    limits: Limits
    lasting: trio.Nursery
    converter: Converter
    client: Any
    rejected: errors.RegistrationRejected | None = field(init=False, default=None)
    refused: ErrorBody | None = field(init=False, default=None)
    registered: WorkerRegistered | None = field(init=False, default=None)
    identified: trio.Event = field(init=False, factory=trio.Event)
    """Set when `registered` is there, and when it will not come."""
    ended: trio.Event = field(init=False, factory=trio.Event)
    features: frozenset[str] = field(init=False, default=frozenset())
    confirmed: Barrier = field(init=False)
    handlers: Handlers = field(init=False)
    _connection: Connection = field(init=False)
    _calls: Calls = field(init=False, factory=Calls)
    _bindings: Bindings = field(init=False)
    _paused: bool = field(init=False, default=False)
    _barriers: deque[Barrier] = field(init=False, factory=deque)
    _undecodable: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._connection = Connection(
            self.stream,
            self.framing,
            on_oversize=self._on_oversize,
            cancel_code=CloseCode.NORMAL,
            name="engine connection",
        )
        self.handlers = Handlers(self.limits, self.lasting, self.converter, self._answer, self._balance)
        self._bindings = Bindings(self.registry.trigger_type, self._send_when_room, self.push)

    # -- the life of the connection

    def greet(self, greeting: Json, previous: Previous | None) -> None:
        """Queue the first frames in the order of spec/sdk.md §12.2, the ping that confirms them last."""
        if previous is not None:
            self.push(Reattach(previous_worker_id=previous.worker_id, reattach_token=previous.token))
        self.push(InvokeFunction(function_id="engine::workers::register", data=greeting, action=Action(type="void")))
        for frame in self.registry.frames():
            self.push(frame)
        self.confirmed = self.barrier()

    async def run(self, rest: bytes) -> Closed:
        """Serve the connection until it ends; all that was under way on it has been told by then."""
        async with trio.open_nursery() as nursery:
            try:
                await self.lasting.start(self.handlers.run, name="handlers")
                nursery.start_soon(self._keep_alive, name="keep-alive")
                nursery.start_soon(self._bindings.run, name="trigger providers")
                closed = await self._connection.run(self._on_batch, rest=rest)
            finally:
                self.identified.set()
                self.ended.set()
                self._calls.stop("the connection to the engine was lost")
                self.handlers.stop()
                while self._barriers:
                    self._barriers.popleft().lift(passed=False)
            nursery.cancel_scope.cancel()
        return closed

    def close(self) -> None:
        """Begin to end with 1000: what is queued goes out first."""
        self._connection.close(CloseCode.NORMAL)

    async def _keep_alive(self) -> None:
        last_ping = trio.current_time()
        while True:
            await trio.sleep(CHECK_S)
            now = trio.current_time()
            if not self._paused:
                self._connection.check_liveness(now)
            elif now - last_ping >= PING_AFTER_S:
                self._connection.ping()  # the engine hears that we live, though we do not read
                last_ping = now
            self._set_paused(False)  # one batch gets in: cancellations, and the engine sees its bytes move

    # -- outgoing

    @property
    def closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._connection.closing

    def push(self, message: Message) -> bool:
        """Queue a message at once, for registrations and other small ones; False when the connection is ending."""
        return self._connection.push(codec.encode_message(message))

    @property
    def busy(self) -> bool:
        """Whether so much waits in the outbox that nothing should be added."""
        return self._connection.busy

    async def wait_room(self) -> None:
        """Wait until the outbox has room; returns, too, when the connection is ending."""
        while self._connection.busy and not self._connection.closing:
            await self._connection.wait_room()

    def push_text(self, text: bytes) -> bool:
        """Queue an encoded message; False when the connection is ending. Wait for room before."""
        return self._connection.push(text)

    async def _send_when_room(self, message: Message) -> bool:
        await self.wait_room()
        return self.push(message)

    async def _answer(self, result: InvocationResult) -> bool:
        text = codec.encode_message(result)
        if len(text) > MAX_MESSAGE:
            text = codec.encode_message(
                InvocationResult(
                    invocation_id=result.invocation_id,
                    function_id=result.function_id,
                    error=ErrorBody(code=wire.PAYLOAD_TOO_LARGE, message=wire.too_large_text(len(text), MAX_MESSAGE)),
                )
            )
        await self.wait_room()
        return self._connection.push_now(text) if self.handlers.alone else self._connection.push(text)

    def barrier(self) -> Barrier:
        """What waits until the engine has read all that was sent until now: it answers pings in the order of frames.

        An engine that does not answer application-level pings never lets it pass: wait with a deadline.
        """
        self._barriers.append(Barrier())
        self.push(Ping())
        return self._barriers[-1]

    # -- calls

    def begin_call(self, call: PendingCall, text: bytes) -> bool:
        """Register a call and send its frame; False when the connection is ending, and then nothing happened."""
        if self._connection.closing:
            return False
        self._calls.begin(call)
        self._balance()
        # one call at a time is a caller who waits for it; many share a write
        if self._connection.push_now(text) if len(self._calls) == 1 else self._connection.push(text):
            return True
        self._calls.withdraw(call)
        return False

    def end_call(self, call: PendingCall, reason: str) -> None:
        """Its caller waits no more: if no answer came, the engine is told, provided that it understands."""
        if self._calls.withdraw(call) and CANCEL_V1 in self.features:
            self.push(CancelInvocation(invocation_id=call.id, reason=reason))

    # -- incoming

    def _on_batch(self, frames: list[bytes]) -> None:
        for frame in frames:
            try:
                envelope = codec.open_envelope(frame)
                if envelope.type == "invocationresult":
                    self._on_result(envelope)
                elif envelope.type == "invokefunction":
                    self._on_invocation(envelope)
                elif codec.is_known(envelope.type):
                    self._on_message(codec.read_message(envelope.type, frame))
            except ProtocolError as error:
                self._on_garbage(frame, str(error))
        self._balance()

    def _on_result(self, envelope: codec.Envelope) -> None:
        invocation_id = envelope.invocation_id or ""
        function_id = self._calls.function_of(invocation_id)
        body = codec.read_error(bytes(envelope.error))
        error = None
        if body and function_id is not None:
            error = errors.invocation_error(codec.error_body(body), function_id, invocation_id)
        self._calls.finish(invocation_id, Json(bytes(envelope.result)), error)

    def _on_invocation(self, envelope: codec.Envelope) -> None:
        function_id = envelope.function_id or ""
        data = Json(bytes(envelope.data))
        deadline_ms = envelope.deadline_ms
        budget_s = math.inf if deadline_ms is None else max(0, min(deadline_ms, DEADLINE_MS)) / 1000
        metadata, failure = None, None
        try:
            metadata = Json(bytes(envelope.metadata)).decode()
        except JsonError as error:  # like a payload's: JSON, but with a number that is none to us, for instance
            failure = WireError(f"metadata of a call of {function_id}: {error}", errors.INVALID_INPUT)
        invocation = Invocation(
            id=envelope.invocation_id or str(uuid.uuid4()),
            function_id=function_id,
            metadata=metadata,
            deadline=trio.current_time() + budget_s,
            traceparent=envelope.traceparent,
            baggage=envelope.baggage,
            client=self.client,
        )
        function = self.registry.function(function_id)
        if function is None:
            failure = WireError(f"Function '{function_id}' not found", wire.FUNCTION_NOT_FOUND)
        elif failure is None:
            failure = self.handlers.start(function, invocation, data)
        if failure is not None:
            self.push(outcome(invocation, None, failure))

    def _on_message(self, message: Message) -> None:
        match message:
            case CancelInvocation():
                self.handlers.cancel(message.invocation_id, cancellation.known(message.reason))
            case WorkerRegistered():
                self.registered = message
                self.features = frozenset(message.features or ())
                self.identified.set()
            case Pong():
                if self._barriers:
                    self._barriers.popleft().lift(passed=True)
            case Ping():
                self.push(Pong())
            case RegistrationRejected():
                self._on_rejection(message)
            case RegisterTrigger() | UnregisterTrigger():
                self._bindings.change(message)
            case TriggerRegistrationResult(error=ErrorBody() as error):
                log.error(
                    "trigger registration failed for '%s' (%s): %s", message.id, message.trigger_type, error.message
                )
            case Error():
                self.refused = message.error
                log.error("the engine refuses this connection: %s: %s", message.error.code, message.error.message)

    def _on_rejection(self, message: RegistrationRejected) -> None:
        if message.code == wire.FUNCTION_NAMESPACE_CONFLICT:
            log.warning(
                "function '%s' is provided by worker %s in namespace '%s'; ours is not called while that one serves",
                message.function_id,
                message.owner_worker_id,
                message.namespace,
            )
        else:
            self.rejected = errors.registration_rejected(message)
            self._connection.close(CloseCode.NORMAL)

    def _on_garbage(self, frame: bytes, why: str) -> None:
        """A frame that is no message. One that names a call ends it; the first of all is logged."""
        self._undecodable += 1
        if self._undecodable == 1:
            log.warning("the engine sent a frame that cannot be read (%s); others like it are only counted", why)
        self._end_by_head(frame, wire.INVALID_MESSAGE, f"the engine's frame cannot be read: {why}")

    def _on_oversize(self, report: Oversize) -> None:
        """A message above the limit, skipped by the connection."""
        text = wire.too_large_text(report.size, MAX_MESSAGE)
        log.warning("skipped a message of the engine: %s", text)
        self._end_by_head(report.head, wire.PAYLOAD_TOO_LARGE, text)

    def _end_by_head(self, head: bytes, code: str, text: str) -> None:
        """End what an unusable frame was about: a call of ours, or an invocation for us."""
        type_name, invocation_id, function_id = codec.salvage(head)
        if invocation_id is None:
            return
        body = ErrorBody(code=code, message=text)
        if type_name == "invocationresult":
            called = self._calls.function_of(invocation_id) or function_id
            self._calls.finish(invocation_id, ABSENT, errors.invocation_error(body, called, invocation_id))
        elif type_name == "invokefunction":
            self.push(InvocationResult(invocation_id=invocation_id, function_id=function_id, error=body))

    # -- back-pressure

    def _balance(self) -> None:
        """Read on unless too many invocations wait; but never stop while answers to our own calls are expected."""
        self._set_paused(self.handlers.full and not len(self._calls))

    def _set_paused(self, paused: bool) -> None:
        if paused == self._paused:
            return
        self._paused = paused
        if paused:
            self._connection.pause_reading()
        else:
            self._connection.resume_reading()

    def statistics(self) -> SessionStatistics:
        """A snapshot of the connection and all that is under way on it."""
        return SessionStatistics(
            worker_id=None if self.registered is None else self.registered.worker_id,
            features=self.features,
            calls=self._calls.statistics(),
            handlers=self.handlers.statistics(),
            connection=self._connection.statistics(),
            undecodable=self._undecodable,
        )
