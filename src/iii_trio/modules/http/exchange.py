"""One HTTP request, from its head to the last byte of its answer (spec/http.md §6, §9–§15).

A request gets a slot, goes through its stages (stages.py) to a decision, and what was decided is written or streamed. A
call that has no outcome when nobody is there to hear it is cancelled at its executor.
"""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Final

import trio
from attrs import define, field, frozen

from ...config import HttpSettings, Live
from ...engine.engine import Engine
from ...engine.local import LocalPeer
from ...protocol import cancellation, errors
from . import cors
from .access_log import logged
from .answers import dressed, not_served, of_failure, of_result, shed, unavailable
from .asgi import Incoming, Receive, Scope, Send, connection_of, finish, write
from .decision import REASONS, Answer, ResponseDecision
from .messages import (
    Request,
    Response,
    envelope,
    new_error_id,
    read_request,
    skipped,
    status_of,
    stream_headers,
)
from .middleware import TIMED_OUT
from .openapi import Document
from .pending import Pending
from .routes import Match, NotAllowed, Routes, fallback
from .slots import GONE, SHED, Slots
from .stages import Stages
from .streaming import GONE as CLIENT_GONE
from .streaming import Head, relay
from .unsent import Unsent

log = logging.getLogger(__name__)

READING: Final = ("GET", "HEAD")
"""How the OpenAPI document may be asked for."""
UNCOUNTED: Final = 64 * 1024
"""Bytes of a response that a socket takes at once as a rule."""


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
    _stages: Stages = field(init=False)
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
        self._stages = Stages(self.core, self.peer, self._slots)
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
            await self._stages.decide(pending)
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
        self._stages.release(pending)

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
                text = pending.complaint or f"No response within {pending.limit_ms} ms"
                missing = "the client" if pending.complaint else name
                log.warning("%s: %s (waiting for %s, error_id %s)", str(route), text, missing, error_id)
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
            body_bytes=self._stages.body_bytes,
            unsent_bytes=self._unsent.bytes,
            broken_off=self._unsent.broken_off,
            answers=dict(self._answers),
        )
