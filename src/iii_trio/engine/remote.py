"""A worker behind a socket: its frames become core calls, the core's calls become its frames.

`RemotePeer` is synchronous through and through. `listener.py` runs the socket and hands over batches of frames; what
is sent goes into the connection's outbox. A connection ends in `retire` or at the end of its socket, and both come to
`Engine.release`, once.
"""

import logging
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from ..protocol import NULL, Json, cancellation, codec, errors, trace
from ..protocol.codec import Envelope
from ..protocol.errors import ProtocolError, WireError
from ..protocol.limits import DEADLINE_S
from ..protocol.messages import (
    CancelInvocation,
    Error,
    ErrorBody,
    Message,
    Pong,
    Reattach,
    RegisterFunction,
    RegisterWorker,
    TriggerRegistrationResult,
    UnregisterFunction,
)
from ..transport import Connection, Oversize
from . import enqueues, guard, middleware, registrations
from .admission import REGISTRATIONS, Intake
from .deadlines import Timer
from .events import TelemetryReceived
from .invocations import Call, Outcome
from .peer import DEFAULT_NAMESPACE, Peer
from .probes import Probe
from .triggers import Binding

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger(__name__)

CANCEL_FEATURE: Final = "cancel.v1"
TELEMETRY: Final = (b"OTLP", b"MTRC", b"LOGS")
DEADLINE_MS: Final = round(DEADLINE_S * 1000)


@frozen
class RemoteStatistics:
    """One worker connection: calls it `waits` for and `runs`, its `functions`, `bindings`, `types`, `parked` frames."""

    waits: int
    runs: int
    functions: int
    bindings: int
    types: int
    parked: int
    pending_bytes: int


@define(eq=False, repr=False, kw_only=True)
class RemotePeer(Peer):
    """One worker connection.

    `middleware` is the function that its calls go through, `hook` the call by which a hook is being asked. `lease` is the
    namespace and name that it holds, `wanted` what it asked for last.
    """

    core: "Engine"
    connection: Connection
    address: str
    connected_at_ms: int
    reattach_token: str = field(factory=lambda: str(uuid.uuid4()))
    middleware: str | None = None
    hook: Call | None = None
    info: RegisterWorker | None = None
    description: str | None = None
    namespace_fixed: bool = False
    lease: tuple[str, str] | None = None
    wanted: tuple[str, str] | None = None
    announced: bool = False
    telemetry_frames: int = 0
    enqueues: int = 0
    intake: Intake = field(init=False)
    _grace: Timer | None = field(default=None, init=False)
    _probe: Probe = field(init=False)
    _bad_kinds: set[str] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.intake = Intake(self.connection.pause_reading, self.connection.resume_reading)
        self._probe = Probe(self.connection, self.intake, self.core.deadlines)

    @property
    def label(self) -> str:
        """How log lines call it."""
        return f"{self.name} ({self.id})" if self.name else self.id

    # -- what it sends us ---------------------------------------------------------------------------------------------

    def on_batch(self, frames: list[bytes]) -> None:
        """A batch of text frames, in order; called by the connection's reader."""
        self.core.invocations.tick()
        if self._probe.asked_by:
            self._probe.answer(alive=True)
        if not self.announced:
            self.core.announce(self)
        for frame in frames:
            if self.leaving:
                return
            try:
                envelope = codec.open_envelope(frame)
            except ProtocolError as error:
                self._bad_frame(frame, str(error))
                continue
            kind = envelope.type
            if kind == "invocationresult":
                self._on_result(envelope, frame)
            elif kind == "invokefunction":
                self._on_invoke(envelope, frame)
            else:
                self._on_other(kind, frame)

    def on_binary(self, frame: bytes) -> None:
        """A binary message: telemetry, or a protocol message in binary dress (spec/protocol.md §1)."""
        if frame[:4] in TELEMETRY:
            self.telemetry_frames += 1
            self.core.events.emit(TelemetryReceived(self.id if self.announced else None, frame))
            return
        try:
            frame.decode()
        except UnicodeDecodeError as error:
            # what is forwarded goes out as text, and text that is no UTF-8 would cost its receiver the connection
            self._bad_frame(frame, f"a binary message that is neither telemetry nor UTF-8: {error.reason}")
        else:
            self.on_batch([frame])

    def on_heard(self) -> None:
        """Anything at all arrived, a pong for instance."""
        if self._probe.asked_by:
            self._probe.answer(alive=True)

    def on_oversize(self, oversize: Oversize) -> None:
        """A message above the limit was skipped: answer it if it named a call, else the connection ends with 1009."""
        kind, invocation_id, function_id = codec.salvage(oversize.head)
        limit = self.connection.message_limit
        error = WireError(errors.too_large_text(oversize.size, limit), errors.PAYLOAD_TOO_LARGE)
        if invocation_id is None:
            log.warning("worker %s sent a message of %d bytes; the limit is %d", self.label, oversize.size, limit)
            self.retire(1009, f"message of {oversize.size} bytes; the limit is {limit}")
        elif kind == "invocationresult":
            call = self._running(invocation_id)
            if call is not None:
                call.fail(error)
        elif not self.leaving:
            self.reply(invocation_id, function_id, Outcome.failed(error))

    def _on_other(self, kind: str, frame: bytes) -> None:
        try:
            if kind in REGISTRATIONS:
                message = codec.read_message(kind, frame)
                function_id = message.id if isinstance(message, RegisterFunction | UnregisterFunction) else None
                if function_id is not None and self.session is not None:
                    function_id = self.session.prefixed(function_id)
                self.intake.register(lambda: self._apply(message), len(frame), function_id)
            elif kind in _HANDLERS:
                _HANDLERS[kind](self, codec.read_message(kind, frame))
            elif not codec.is_known(kind):
                self._bad_frame(frame, f"unknown message type {kind!r}")
        except ProtocolError as error:
            self._bad_frame(frame, str(error))

    def _apply(self, message: Message) -> None:
        if self.leaving:
            return
        if self.session is None:
            registrations.apply(self, message)
        else:
            guard.apply(self, self.session, message)

    def _on_invoke(self, envelope: Envelope, frame: bytes) -> None:
        function_id = envelope.function_id
        if function_id is None:
            self._bad_frame(frame, "an invokefunction needs a function_id")
            return
        if self.intake.holds_call(function_id):
            self._park(envelope, function_id, frame)
        else:
            self._invoke(envelope, function_id, frame)

    def _park(self, envelope: Envelope, function_id: str, frame: bytes) -> None:
        """Let a call wait for the registration of its function; its deadline runs meanwhile."""
        timeout_s = _timeout(envelope)
        if timeout_s is None and self.core.default_timeout_s > 0:
            timeout_s = self.core.default_timeout_s
        due = None if timeout_s is None else self.core.clock.now() + timeout_s

        def make() -> None:
            self._invoke(envelope, function_id, frame, due)

        def expire() -> None:
            self.intake.take_out(waiting)
            make()

        call_id = codec.canonical_id(envelope.invocation_id or "")
        waiting = self.intake.park_call(make, len(frame), function_id, call_id)
        if due is not None:
            waiting.timer = self.core.deadlines.at(due, expire)

    def _invoke(self, envelope: Envelope, function_id: str, frame: bytes, due: float | None = None) -> None:
        """Make a call, or refuse it. One that waited is `due` at that time, in seconds of the engine's clock."""
        if self.leaving:
            return
        reply_id = envelope.invocation_id
        if reply_id is not None:
            reply_id = codec.canonical_id(reply_id)
            if reply_id is None:
                self._bad_frame(frame, f"invocation_id {envelope.invocation_id!r} is no UUID")
                return
        namespace = envelope.namespace
        if namespace is not None and not namespace.strip():
            error = WireError(errors.blank_namespace_text(), errors.INVALID_NAMESPACE)
            self._refuse(reply_id, function_id, Outcome.failed(error), envelope)
            return
        action = None
        if envelope.action:
            try:
                action = codec.read_action(bytes(envelope.action))
            except ProtocolError as error:
                self._bad_frame(frame, f"action: {error}")
                return
            if action is not None and action.type not in ("enqueue", "void"):
                self._bad_frame(frame, f"unknown action {action.type!r}; the engine knows void and enqueue")
                return
        void = action is not None and action.type == "void"
        timeout_s, metadata = _timeout(envelope), envelope.metadata
        if due is not None:
            timeout_s = due - self.core.clock.now()
            if timeout_s <= 0:
                self.core.counters.timeouts += 1
                text = f"{function_id} was not called in time: it waited for this connection's own registration of it"
                outcome = Outcome.failed(WireError(text, errors.TIMEOUT))
                self._refuse(None if void else reply_id, function_id, outcome, envelope)
                return
        if self.middleware is not None and middleware.applies(self, self.middleware, namespace, function_id):
            refused = middleware.call(self, self.middleware, envelope, function_id, namespace, reply_id, timeout_s)
            if refused is not None:
                self._refuse(reply_id, function_id, refused, envelope)
            return
        if action is not None and not void:
            refused = enqueues.call(self, envelope, function_id, namespace, reply_id, action, timeout_s)
            if refused is not None:
                self._refuse(reply_id, function_id, refused, envelope)
            return
        started = self.core.invocations.route(
            self,
            function_id,
            Json(bytes(envelope.data)),
            namespace=namespace,
            reply_id=None if void else reply_id,
            timeout_s=timeout_s,
            metadata=bytes(metadata) if metadata else b"",
            traceparent=envelope.traceparent,
            baggage=envelope.baggage,
        )
        if isinstance(started, Outcome):
            self._refuse(None if void else reply_id, function_id, started, envelope)

    def _refuse(self, reply_id: str | None, function_id: str, outcome: Outcome, envelope: Envelope) -> None:
        """A call that never started: an answer if one is awaited, else an `error` frame, which no SDK minds.

        What is forbidden is answered in any case, under an id that is nobody's (spec/protocol.md §14.3).
        """
        self.core.counters.refused += 1
        if reply_id is not None:
            self.reply(reply_id, function_id, outcome, envelope.traceparent, envelope.baggage)
            return
        error = outcome.exception()
        shown = errors.shorten(str(error))
        log.warning("worker %s: call of %s without a reply failed: %s", self.label, function_id[:200], shown)
        if error.code == errors.FORBIDDEN:
            self.reply(str(uuid.uuid4()), function_id, outcome, envelope.traceparent, envelope.baggage)
        else:
            self.complain(error)

    def _on_result(self, envelope: Envelope, frame: bytes) -> None:
        if envelope.invocation_id is None:
            self._bad_frame(frame, "an invocationresult needs an invocation_id")
            return
        call = self.running.get(envelope.invocation_id) or self._running(envelope.invocation_id)
        if call is None:
            self.core.counters.late_results += 1
            return
        error = codec.read_error(bytes(envelope.error)) if envelope.error else b""
        self.core.invocations.finish(call, Outcome(Json(bytes(envelope.result)), error))

    def _running(self, invocation_id: str) -> Call | None:
        """A call this connection runs: nobody else can answer it."""
        call = self.running.get(invocation_id)
        if call is None:
            canonical = codec.canonical_id(invocation_id)
            call = self.running.get(canonical) if canonical is not None else None
        return call

    def _bad_frame(self, frame: bytes, detail: str) -> None:
        """Undecodable: whoever can be named gets an error; the rest is counted, and logged once per kind."""
        if not frame.strip():
            return
        self.core.counters.bad_frames += 1
        detail = errors.shorten(detail)
        kind, invocation_id, function_id = codec.salvage(frame)
        label = kind or "unknown"
        if label not in self._bad_kinds and len(self._bad_kinds) < 100:
            self._bad_kinds.add(label)
            log.warning("worker %s sent a bad %s frame: %s (logged once per kind)", self.label, label, detail)
        error = WireError(f"undecodable {label} frame: {detail}", errors.INVALID_MESSAGE)
        if kind == CancelInvocation.TYPE:
            invocation_id = None  # the call that it names goes on, and gets its one answer later
        call = self._running(invocation_id) if invocation_id is not None and kind != "invokefunction" else None
        if call is not None:
            call.fail(error)
        elif invocation_id is not None and kind != "invocationresult":
            self.reply(invocation_id, function_id, Outcome.failed(error))
        elif invocation_id is None:
            self.complain(error)

    # -- what it is told ----------------------------------------------------------------------------------------------

    def send(self, message: Message) -> bool:
        """Queue one frame that is not hot. False when the connection is ending."""
        return self._push(codec.encode_message(message))

    def complain(self, error: WireError) -> None:
        """Tell it what was wrong with something that has no answer of its own; every SDK ignores or logs this frame."""
        self.send(Error(error=ErrorBody(code=error.code, message=errors.shorten(error.message))))

    def _push(self, frame: bytes) -> bool:
        if self.leaving:
            return False
        if self.connection.push(frame):
            return True
        # flat: giving its footprint back answers others, whose outboxes may be full as well
        self.core.invocations.flat(self.retire, 1013, "the outbox is full: this worker does not read its socket")
        return False

    def reply(
        self,
        reply_id: str,
        function_id: str,
        outcome: Outcome,
        traceparent: str | None = None,
        baggage: str | None = None,
    ) -> None:
        """Send an `invocationresult` for a call of this peer."""
        head = b'{"type":"invocationresult","invocation_id":%s,"function_id":%s' % (
            codec.encode_value(reply_id),
            codec.encode_value(function_id),
        )
        self._answer(head, outcome, traceparent, baggage)

    def _answer(self, head: bytes, outcome: Outcome, traceparent: str | None, baggage: str | None) -> None:
        """The rest of an `invocationresult`. What this peer cannot take becomes an error, for its call alone."""
        tail = b"}"
        if traceparent:
            tail = b',"traceparent":' + codec.encode_value(traceparent) + tail
        if baggage:
            tail = b',"baggage":' + codec.encode_value(baggage) + tail
        if outcome.error:
            frame = b"".join((head, b',"error":', outcome.error, tail))
        elif outcome.result.raw:
            frame = b"".join((head, b',"result":', outcome.result.raw, tail))
        else:
            frame = head + tail
        if len(frame) > self.cap:
            error = WireError(errors.too_large_text(len(frame), self.cap), errors.PAYLOAD_TOO_LARGE)
            frame = b"".join((head, b',"error":', codec.encode_error(error), b"}"))
        self._push(frame)

    # -- Executor and Caller ------------------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """See `Peer.behind`."""
        return self.connection.busy

    def submit(self, call: Call, data: Json) -> None:
        """See `Executor.submit`: the payload's text goes out as it came in, the caller's id spliced into it."""
        if self.connection.overloaded:
            text = f"worker {self.label} does not keep up: {self.connection.pending_bytes} bytes wait for it"
            call.fail(WireError(text, errors.WORKER_OVERLOADED))
            return
        raw = data.raw
        raw = codec.splice_caller(raw, call.origin.caller_pair) if call.injects else codec.strip_caller(raw)
        if call.traceparent or call.baggage or call.metadata or CANCEL_FEATURE in self.features:
            tail = self._extras(call)
        else:
            tail = b"}"
        frame = b"".join(
            (b'{"type":"invokefunction","invocation_id":"', call.wire_id.encode(), call.function.wire, raw, tail)
        )
        if len(frame) > self.cap:
            call.fail(WireError(errors.too_large_text(len(frame), self.cap), errors.PAYLOAD_TOO_LARGE))
        elif not self._push(frame):
            call.fail(WireError("Invocation stopped", errors.INVOCATION_STOPPED))

    def _extras(self, call: Call) -> bytes:
        out = b""
        if call.traceparent:
            out += b',"traceparent":' + codec.encode_value(call.traceparent)
        if call.traceparent or call.baggage:
            out += b',"baggage":' + codec.encode_value(trace.with_function(call.baggage, call.function.id))
        if call.metadata and call.metadata != NULL.raw:
            out += b',"metadata":' + call.metadata
        if call.deadline and CANCEL_FEATURE in self.features:
            left = max(1, round((call.deadline - call.started_at) * 1000))
            out += b',"deadline_ms":%d' % left
        return out + b"}"

    def cancel(self, call: Call, reason: str) -> None:
        """See `Executor.cancel`: workers that know `cancel.v1` are told, the others answer into a tombstone."""
        if CANCEL_FEATURE in self.features:
            self.send(CancelInvocation(invocation_id=call.wire_id, reason=reason))

    def deliver(self, call: Call, outcome: Outcome) -> None:
        """See `Caller.deliver`."""
        if call.on_done is not None:
            call.on_done(outcome)
            return
        assert call.reply_id is not None
        head = b"".join((b'{"type":"invocationresult","invocation_id":"', call.reply_id.encode(), call.function.echo))
        self._answer(head, outcome, call.traceparent, call.baggage)

    def binding_refused(self, binding: Binding, error: WireError) -> None:
        """A provider that came later refused one of this worker's bindings."""
        self.send(registrations.refused_result(binding, errors.TRIGGER_REGISTRATION_FAILED, error.message))

    # -- identity and life --------------------------------------------------------------------------------------------

    def begin(self, grace_s: float, features: tuple[str, ...]) -> None:
        """The connection is accepted: greet it and give it `grace_s` seconds to name its namespace."""
        self._push(
            codec.encode_value(
                {
                    "type": "workerregistered",
                    "worker_id": self.id,
                    "reattach_token": self.reattach_token,
                    "features": features,
                }
            )
        )
        self._grace = self.core.deadlines.after(grace_s, self._grace_over)

    def _grace_over(self) -> None:
        self._grace = None
        if self.namespace_fixed:
            return
        if self.session is not None and not self.session.permits(DEFAULT_NAMESPACE):
            self.bar_namespace(self.session.refusal(DEFAULT_NAMESPACE))
            return
        if self.intake.statistics().parked:
            log.warning("worker %s named no namespace in time; it works in 'default'", self.label)
        self.fix_namespace(DEFAULT_NAMESPACE)

    def bar_namespace(self, error: WireError) -> None:
        """It has named no namespace that it may work in: its registrations stay unapplied until it does."""
        if not self.namespace_fixed:
            self.stop_grace()
            self.core.invocations.tick()
            self.intake.bar()
        log.warning("worker %s: %s", self.label, errors.shorten(error.message))
        self.complain(error)

    def fix_namespace(self, namespace: str) -> None:
        """From now on this connection's registrations apply, in `namespace`; it never changes again."""
        if not self.namespace_fixed:
            self.namespace = namespace
            self.namespace_fixed = True
        self.stop_grace()
        # calls that waited are made now, which may be in a timer and long after the batch they came in
        self.core.invocations.tick()
        self.intake.open()

    def stop_grace(self) -> None:
        """It has named its namespace; what is still to be decided is whether it gets the name it wants."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def probe(self, answered: Callable[[bool], None]) -> None:
        """Ask whether anybody is there, see `Probe.ask`.

        A connection that is ending already is gone: it gives its footprint back, and the answer is no.
        """
        if self.connection.closing:
            self.core.release(self)
            answered(False)
            return
        self._probe.ask(answered)

    def retire(self, code: int, reason: str) -> None:
        """End this connection: its footprint is given back now, its socket closes with `code`."""
        self.core.release(self)
        self.connection.close(code, reason)

    def released(self) -> None:
        """The footprint has been given back; called by `Engine.release` only."""
        self.intake.discard()
        if self.hook is not None:
            self.core.local.cancel_call(self.hook, cancellation.CALLER_DISCONNECTED)
            self.hook = None
        self.stop_grace()
        self._probe.answer(alive=False)

    def statistics(self) -> RemoteStatistics:
        """A frozen picture of this connection."""
        return RemoteStatistics(
            waits=len(self.calls),
            runs=len(self.running),
            functions=len(self.functions),
            bindings=len(self.bindings),
            types=len(self.types),
            parked=self.intake.statistics().parked,
            pending_bytes=self.connection.pending_bytes,
        )

    # -- the frames that are neither hot nor registrations ------------------------------------------------------------

    def _on_reattach(self, message: Reattach) -> None:
        self.core.workers.reattach(self, message.previous_worker_id, message.reattach_token)

    def _on_ping(self, _message: Message) -> None:
        self.send(Pong())

    def _on_cancel(self, message: CancelInvocation) -> None:
        call_id = codec.canonical_id(message.invocation_id) or ""
        call = self.calls.get(call_id)
        if call is not None:
            self.core.invocations.cancel(call, cancellation.known(message.reason))
        else:
            self.intake.withdraw(call_id)

    def _on_trigger_result(self, message: TriggerRegistrationResult) -> None:
        error = message.error
        if error is None:
            self.core.triggers.answered(self, message.id, None)
            return
        code, text = errors.shorten(error.code, 200), errors.shorten(error.message)
        binding = self.core.triggers.answered(self, message.id, ErrorBody(code=code, message=text))
        if binding is not None and isinstance(binding.owner, RemotePeer):
            binding.owner.send(registrations.refused_result(binding, code, text))


def _timeout(envelope: Envelope) -> float | None:
    """The deadline that a call brought along, in seconds from its receipt."""
    deadline_ms = envelope.deadline_ms
    return None if deadline_ms is None else max(0, min(deadline_ms, DEADLINE_MS)) / 1000


_HANDLERS: Final[dict[str, Callable[..., None]]] = {
    Reattach.TYPE: RemotePeer._on_reattach,
    "ping": RemotePeer._on_ping,
    CancelInvocation.TYPE: RemotePeer._on_cancel,
    TriggerRegistrationResult.TYPE: RemotePeer._on_trigger_result,
}
