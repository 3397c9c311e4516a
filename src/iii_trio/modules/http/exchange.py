"""One HTTP request, from its head to the last byte of its answer (spec/http.md §6, §9–§15).

Theory of operation. A request is one task. While it waits for a function it waits for four things at once, without a
task for any of them: the function's outcome and the response channel, which step into the wait by callbacks; the
client's leaving, which is what it reads from the connection meanwhile, handing the body on as it comes; and the deadline
of the scope it waits in. Each is fed to a `ResponseDecision`, which is a table and no code. A call that has no outcome
when nobody is there to hear it is cancelled at its executor.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ...config import HttpSettings, Live
from ...engine.deadlines import Timer
from ...engine.engine import Engine
from ...engine.invocations import Call, Outcome
from ...engine.local import LocalPeer
from ...engine.peer import DEFAULT_NAMESPACE
from ...protocol import Json, JsonError, cancellation, errors
from ...protocol.errors import WireError
from ...protocol.limits import DEADLINE_S, HTTP_BODIES_ALL
from ...transport import one_batch
from . import cors
from .access_log import logged
from .answers import dressed, not_served, of_failure, of_result, shed, unavailable
from .asgi import Below, BodyTooLarge, Incoming, NoRoom, Receive, Scope, Send, connection_of, finish, write
from .decision import REASONS, Answer, Event, ResponseDecision, Waiting
from .forms import is_small_form, read_form
from .messages import (
    BadRequest,
    Request,
    Response,
    check_json,
    envelope,
    handler_input,
    new_error_id,
    read_request,
    skipped,
    status_of,
    stream_headers,
)
from .middleware import TIMED_OUT, middleware_input, read_verdict
from .openapi import Document
from .routes import Match, NotAllowed, Routes, fallback
from .slots import GONE, SHED, Slots
from .streaming import GONE as CLIENT_GONE
from .streaming import Channelled, Head, relay
from .unsent import Unsent

log = logging.getLogger(__name__)

READING: Final = ("GET", "HEAD")
"""How the OpenAPI document may be asked for."""
UNCOUNTED: Final = 64 * 1024
"""Bytes of a response that a socket takes at once as a rule."""


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


@frozen
class ExchangeStatistics:
    """Requests since the start, by how they ended, and those under way."""

    requests: int
    """All requests, OPTIONS included."""
    running: int
    """Requests that hold one of the slots of `concurrency_request_limit`."""
    waiting: int
    """Requests that wait for a slot."""
    streaming: int
    """Responses that stream now; they hold no slot."""
    truncated: int
    """Streams that were broken off because something failed."""
    shed: int
    """Answered 503 because there was no slot to be had."""
    unmatched: int
    """Answered 404 or 405."""
    refused: int
    """Answered 503 because the engine is draining."""
    body_bytes: int
    """Of bodies that are parsed, of requests under way."""
    unsent_bytes: int
    """Of responses that their clients have not taken yet; small ones are not counted."""
    broken_off: int
    """Responses given up because clients that do not read held too many of them."""
    answers: Mapping[Answer, int]
    """Of those that reached a route, how many ended in which way."""


@define(eq=False)
class Exchange:
    """Answers requests. `serve` is an ASGI application for scopes of type `http`."""

    core: Engine
    peer: LocalPeer
    routes: Routes
    settings: Live[HttpSettings]
    _slots: Slots = field(init=False)
    _unsent: Unsent = field(factory=Unsent, init=False)
    _body_bytes: int = field(default=0, init=False)
    _document: Document = field(init=False)
    _requests: int = field(default=0, init=False)
    _unmatched: int = field(default=0, init=False)
    _refused: int = field(default=0, init=False)
    _shed: int = field(default=0, init=False)
    _streaming: int = field(default=0, init=False)
    _truncated: int = field(default=0, init=False)
    _answers: dict[Answer, int] = field(factory=lambda: dict.fromkeys(Answer, 0), init=False)

    def __attrs_post_init__(self) -> None:
        self._slots = Slots(self.settings)
        self._document = Document(self.routes, self.core.functions)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or return without an answer when its client has left."""
        self._requests += 1
        settings = self.settings.value
        request = read_request(scope, settings.request_id_header, settings.trust_proxy)
        incoming = Incoming(receive, request.length, connection_of(scope))
        if settings.access_log:
            with logged(request) as send_logged:
                await self._serve(scope, send_logged(send), request, incoming)
        else:
            await self._serve(scope, send, request, incoming)

    async def _serve(self, scope: Scope, send: Send, request: Request, incoming: Incoming) -> None:
        response = await self._answer(scope, send, request, incoming)
        if response is not None:
            response = dressed(response, request, self.settings.value)
            if len(response.body) <= UNCOUNTED or incoming.below is None:
                await write(scope, send, incoming, response)
            else:
                with self._unsent.holding(len(response.body), incoming.below):
                    await write(scope, send, incoming, response)

    async def _answer(self, scope: Scope, send: Send, request: Request, incoming: Incoming) -> Response | None:
        """The response still to be written; None when there is none, or it has been streamed."""
        settings = self.settings.value
        found = self.routes.find(request.method, request.path, settings.ignore_trailing_slash)
        if request.method == "OPTIONS" and (request.is_preflight or not isinstance(found, Match)):
            return cors.preflight(settings.cors, request.origin)
        if self._draining():
            return self._unavailable()
        if found is None and settings.openapi_path and request.path == "/" + settings.openapi_path.lstrip("/"):
            if request.method in READING:
                return await self._document.answer(request)
            found = NotAllowed(READING)
        if found is None and settings.not_found_function:
            found = fallback(request.method, request.path, settings.not_found_function)
        if not isinstance(found, Match):
            self._unmatched += 1
            return not_served(found)
        slot = await self._slots.take(incoming)
        if slot is GONE:
            self._answers[Answer.NONE] += 1
            return None
        if slot is SHED:
            self._shed += 1
            return shed()
        holds = True
        pending: Pending | None = None
        try:
            if self._draining():
                return self._unavailable()
            settings = self.settings.value
            timeout_ms = found.route.timeout_ms or settings.default_timeout
            decision = ResponseDecision(trio.current_time() + timeout_ms / 1000)
            pending = Pending(request, incoming, found, decision, settings)
            await self._decide(pending)
            self._slots.give_back(incoming)
            holds = False
            if decision.take() is not Answer.STREAM:
                return self._respond(pending)
            self._answers[Answer.STREAM] += 1
            await self._stream(scope, send, pending)
            return None
        finally:
            if holds:
                self._slots.give_back(incoming)
            if pending is not None:
                self._release(pending)

    # -- stages -------------------------------------------------------------------------------------------------------

    async def _decide(self, pending: Pending) -> None:
        """Middleware, body, condition, the route's middleware, handler: each runs if none before it has decided."""
        decision, route, incoming = pending.decision, pending.match.route, pending.incoming
        keeping = incoming.until_gone_keeping_body
        for item in pending.settings.middleware:
            if item.phase == "preHandler":
                if not await self._middleware(pending, item.function_id, keeping, item.timeout_ms):
                    return
        parsed, raw = b"", b""
        if pending.request.has_json or is_small_form(pending.request):
            parsed, raw = await self._read_body(pending)
        if self._draining():
            decision.feed(Event.DRAINING)  # a body may take its time, and nothing has been called yet
        if decision.answer is not None:
            return
        pending.channels = channels = Channelled.open(self.core, incoming, decision, raw)
        if route.condition is not None and not await self._condition(pending, route.condition, parsed):
            return
        for function_id in route.middleware:
            if not await self._middleware(pending, function_id, channels.body.pump):
                return
        await self._handle(pending, channels, handler_input(pending.request, pending.match, parsed, pending.context))

    async def _read_body(self, pending: Pending) -> tuple[bytes, bytes]:
        """A body that is parsed, as JSON and as it came; one that cannot be parsed, or is not here, has decided."""
        decision, request, incoming = pending.decision, pending.request, pending.incoming
        body = parsed = b""
        late = False
        take = partial(self._take_room, pending)
        try:
            if incoming.here:
                body = await incoming.read(pending.settings.body_limit, take)
            else:
                with trio.CancelScope(deadline=decision.deadline) as scope:
                    body = await incoming.read(pending.settings.body_limit, take)
                late = scope.cancelled_caught
        except BodyTooLarge:
            decision.feed(Event.OVERSIZE)
            return b"", b""
        except NoRoom:
            decision.feed(Event.CROWDED)
            return b"", b""
        if incoming.gone:
            decision.feed(Event.CLIENT_GONE)
        elif late:
            decision.feed(Event.DEADLINE)
        elif body:
            try:
                if (coding := request.headers.get("content-encoding", "").lower()) not in ("", "identity"):
                    raise BadRequest(f"the body is compressed ({coding}), which is not undone here: send it as it is")
                if request.has_json:
                    check_json(body)
                    parsed = body
                else:
                    parsed = read_form(request, body)
            except BadRequest as error:
                pending.complaint = str(error)
                decision.feed(Event.MALFORMED)
        return parsed, body

    def _take_room(self, pending: Pending, size: int) -> bool:
        """Let a request hold some more of its body; False when the others hold so much that there is no room."""
        if self._body_bytes + size > HTTP_BODIES_ALL and self._body_bytes > pending.body_bytes:
            return False
        self._body_bytes += size
        pending.body_bytes += size
        return True

    async def _condition(self, pending: Pending, function_id: str, parsed: bytes) -> bool:
        """Whether the condition lets the request through."""
        assert pending.channels is not None
        data = handler_input(pending.request, pending.match, parsed, pending.context)
        outcome = await self._call(pending, function_id, pending.namespace, data, pending.channels.body.pump)
        if outcome is None:
            return False
        if not outcome.ok:
            pending.decision.feed(Event.ERROR, outcome)
        elif outcome.result.is_false():
            pending.decision.feed(Event.BLOCKED)
        return pending.decision.answer is None

    async def _middleware(
        self, pending: Pending, function_id: str, watch: Callable[[], Awaitable[None]], timeout_ms: int | None = None
    ) -> bool:
        """Whether a middleware lets the request through; it is looked up in the route's namespace, then in `default`."""
        decision, namespace = pending.decision, pending.namespace
        if pending.context is None:
            pending.context = {}
        if self.core.functions.get(namespace, function_id) is None:
            namespace = DEFAULT_NAMESPACE
        data = middleware_input(pending.request, pending.match, pending.context)
        pending.in_middleware = True
        outcome = await self._call(pending, function_id, namespace, data, watch, timeout_ms)
        if outcome is None:
            return False
        pending.in_middleware = False
        if not outcome.ok:
            decision.feed(Event.ERROR, outcome)
            return False
        try:
            pending.response = read_verdict(outcome.result.decode(), pending.context)
        except JsonError as error:
            decision.feed(Event.ERROR, Outcome.failed(WireError(str(error), errors.INVOCATION_FAILED)))
        except WireError as error:
            decision.feed(Event.ERROR, Outcome.failed(error))
        if pending.response is not None:
            decision.feed(Event.RESPONDED)
        return decision.answer is None

    async def _call(
        self,
        pending: Pending,
        function_id: str,
        namespace: str,
        data: Json,
        watch: Callable[[], Awaitable[None]],
        timeout_ms: int | None = None,
    ) -> Outcome | None:
        """The outcome of a function before the handler; None when the decision has fallen without it.

        `watch` returns when the client has left. The function has `timeout_ms`, or what the settings give to each, and
        never longer than the request.
        """
        decision, settings = pending.decision, pending.settings
        decision.function_id = function_id
        now = trio.current_time()
        limit = timeout_ms or settings.middleware_timeout or pending.timeout_ms
        deadline = min(decision.deadline, now + limit / 1000)
        left = deadline - now
        if left <= 0:
            decision.feed(Event.DEADLINE)
            return None
        pending.limit_ms = pending.timeout_ms if deadline == decision.deadline else limit
        outcomes: list[Outcome] = []
        with trio.CancelScope(deadline=deadline) as waiting:

            def on_done(outcome: Outcome) -> None:
                outcomes.append(outcome)
                waiting.cancel()

            call = self.peer.call(
                function_id,
                data,
                on_done,
                namespace=namespace,
                timeout_s=left,
                traceparent=pending.request.traceparent,
                baggage=pending.request.baggage,
            )
            reason = cancellation.SHUTDOWN
            try:
                if not outcomes:
                    await watch()
                    reason = cancellation.CALLER_DISCONNECTED
            finally:
                if call is not None and not outcomes:
                    if trio.current_time() >= deadline:
                        reason = cancellation.DEADLINE
                    self.peer.cancel_call(call, reason)
        if trio.current_time() >= deadline and not (outcomes and outcomes[0].ok):
            decision.feed(Event.DEADLINE)  # also when the engine's own timer for the call was the faster one
        elif not outcomes:
            decision.feed(Event.CLIENT_GONE)
        if decision.answer is not None:
            return None
        pending.limit_ms = pending.timeout_ms
        return outcomes[0]

    async def _handle(self, pending: Pending, channels: Channelled, data: Json) -> None:
        """Call the handler and wait until its outcome, the response channel, the client or the clock has decided.

        The call has no deadline of its own: one that streams may go on as long as it likes, one that does not is
        cancelled with its request.
        """
        decision, binding, request = pending.decision, pending.match.route.binding, pending.request
        incoming = pending.incoming
        decision.function_id = binding.function_id
        if trio.current_time() >= decision.deadline:
            decision.feed(Event.DEADLINE)
            return
        alone = self._slots.running == 1
        # many requests that come together leave in one write, and a single one without a detour by the worker's writer
        with one_batch() if alone else nullcontext():
            pending.call = self.peer.call(
                binding.function_id,
                channels.input(data),
                pending.ended,
                namespace=binding.namespace,
                timeout_s=DEADLINE_S,
                metadata=binding.metadata,
                traceparent=request.traceparent,
                baggage=request.baggage,
            )
        patience = math.inf
        while decision.answer is None:
            unused = decision.waiting is Waiting.CHANNEL and not channels.expected
            if unused and patience == math.inf:
                patience = trio.current_time() + self._unused_s(pending)
            deadline = min(decision.deadline, patience) if unused else decision.deadline
            if trio.current_time() >= deadline:
                decision.feed(Event.UNUSED if unused else Event.DEADLINE)
                return
            if incoming.below is not None and incoming.complete:
                await self._wait(decision, incoming.below, deadline)
                continue
            with trio.CancelScope(deadline=deadline) as waiting:
                decision.on_step = waiting.cancel
                await channels.body.pump()
                decision.feed(Event.CLIENT_GONE)

    async def _wait(self, decision: ResponseDecision, below: Below, deadline: float) -> None:
        """Wait for the next step of a decision, with no body left to hand on.

        The same could be had from a cancel scope around `receive`, at four times the cost: this is the way that nearly
        every request goes.
        """
        waiting = decision.waiting
        decision.on_step = below.wake
        timer = self.core.deadlines.at(deadline, below.wake)
        try:
            while decision.answer is None and decision.waiting is waiting and trio.current_time() < deadline:
                if below.gone:
                    decision.feed(Event.CLIENT_GONE)
                else:
                    await below.news()
        finally:
            timer.cancel()

    def _unused_s(self, pending: Pending) -> float:
        """How long (s) to wait for a writer after a null: not at all for a built-in, which writes to no channel."""
        binding = pending.match.route.binding
        entry = self.core.functions.get(binding.namespace, binding.function_id)
        return 0 if entry is None or entry.builtin else pending.settings.null_result_timeout / 1000

    # -- streams ------------------------------------------------------------------------------------------------------

    async def _stream(self, scope: Scope, send: Send, pending: Pending) -> None:
        """Send what the handler writes. What is cut off ends the connection, so that its client can tell."""
        assert pending.channels is not None
        channels, request = pending.channels, pending.request
        headers, length = stream_headers(channels.response.fields)
        status = status_of({"status_code": channels.response.status})
        described = dressed(Response(status, headers), request, self.settings.value)
        head = Head(described.status, described.headers, length)
        idle_s = pending.settings.stream_idle_timeout / 1000
        cut: str | None = CLIENT_GONE
        self._streaming += 1
        try:
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    await channels.body.pump()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(watch, name="client of a stream")
                cut = await relay(scope, send, channels.response, head, lambda: pending.outcome, idle_s)
                nursery.cancel_scope.cancel()
        finally:
            self._streaming -= 1
        if cut is None:
            pending.reason = None
            await finish(send, pending.incoming)
            return
        pending.reason = cancellation.CALLER_DISCONNECTED
        if cut is not CLIENT_GONE and not pending.incoming.gone:
            self._truncated += 1
            name = pending.decision.function_id
            log.warning("%s: the response of %s is cut off: %s", str(pending.match.route), name, cut)
            connection = connection_of(scope)
            if connection is None:
                raise trio.BrokenResourceError(f"the response is cut off: {cut}")
            connection.abort(reset=request.http_version == "1.0")

    def _release(self, pending: Pending) -> None:
        """The request is over. A call that nobody waits for is cancelled; what runs on after its answer gets some time."""
        call, pending.call = pending.call, None  # else the two would hold each other until the collector comes by
        if call is not None and pending.outcome is None:
            if pending.reason is None:
                seconds = pending.settings.default_timeout / 1000
                give_up = partial(self.peer.cancel_call, call, cancellation.DEADLINE)
                pending.leftover = self.core.deadlines.after(seconds, give_up)
            else:
                self.peer.cancel_call(call, pending.reason)
        if pending.channels is not None:
            pending.channels.release()
        self._body_bytes -= pending.body_bytes

    # -- responses ----------------------------------------------------------------------------------------------------

    def _respond(self, pending: Pending) -> Response | None:
        decision, settings, route = pending.decision, pending.settings, pending.match.route
        assert decision.answer is not None
        self._answers[decision.answer] += 1
        pending.reason = REASONS.get(decision.answer)
        name = decision.function_id
        match decision.answer:
            case Answer.RESULT:
                if pending.channels is not None and pending.channels.described:
                    text = "%s: %s set a status or headers, and then returned a value: they are dropped"
                    log.warning(text, str(route), name)
                return of_result(decision.outcome, name, route)
            case Answer.DESCRIBED | Answer.STREAM:
                assert pending.channels is not None
                described = pending.channels.response
                return Response(status_of({"status_code": described.status}), stream_headers(described.fields)[0])
            case Answer.EMPTY:
                # nobody but the handler could have described a response, and it described none
                return Response(204)
            case Answer.FAILED:
                return of_failure(decision.outcome, name, route, expose=settings.expose_errors)
            case Answer.SKIPPED:
                return skipped()
            case Answer.RESPONDED:
                return pending.response
            case Answer.MALFORMED:
                return envelope(400, "BAD_REQUEST", pending.complaint)
            case Answer.TOO_LARGE:
                text = f"Request body too large: at most {settings.body_limit} bytes are accepted"
                return envelope(413, "PAYLOAD_TOO_LARGE", text)
            case Answer.SHED:
                self._shed += 1
                return shed()
            case Answer.TIMED_OUT:
                error_id = new_error_id()
                text = f"No response within {pending.limit_ms} ms"
                log.warning("%s: %s (waiting for %s, error_id %s)", str(route), text, name, error_id)
                if pending.in_middleware:
                    return envelope(504, TIMED_OUT, "Middleware timeout", error_id=error_id)
                return envelope(504, errors.TIMEOUT, text, error_id=error_id)
            case Answer.UNAVAILABLE:
                return self._unavailable()
            case Answer.NONE:
                return None

    def _draining(self) -> bool:
        return self.core.draining

    def _unavailable(self) -> Response:
        self._refused += 1
        return unavailable()

    def statistics(self) -> ExchangeStatistics:
        """A frozen picture of the requests."""
        return ExchangeStatistics(
            requests=self._requests,
            running=self._slots.running,
            waiting=self._slots.waiting,
            streaming=self._streaming,
            truncated=self._truncated,
            shed=self._shed,
            unmatched=self._unmatched,
            refused=self._refused,
            body_bytes=self._body_bytes,
            unsent_bytes=self._unsent.bytes,
            broken_off=self._unsent.broken_off,
            answers=dict(self._answers),
        )
