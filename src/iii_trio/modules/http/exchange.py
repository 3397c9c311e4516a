"""One HTTP request, from its head to the decision what is answered (spec/http.md §6, §9, §11, §13–§15).

Theory of operation. A request is one task. While it waits for a function it waits for three things at once, without a
task for any of them: the function's outcome, which cancels the wait; the client's leaving, which is what it reads from
the connection meanwhile; and the deadline of the scope it waits in. Whatever comes first is fed to a
`ResponseDecision`, which is a table and no code; what comes later changes nothing. A call that has no outcome by then
is cancelled at its executor.
"""

import logging
from collections.abc import Mapping
from enum import Enum
from typing import Final

import trio
from attrs import define, field, frozen

from ...config import HttpSettings, Live
from ...engine.engine import Engine
from ...engine.invocations import NOTHING, Outcome
from ...engine.local import LocalPeer
from ...protocol import ABSENT, NULL, Json, JsonError, cancellation, errors
from . import cors
from .asgi import BodyTooLarge, Incoming, Receive, Scope, Send, write
from .messages import Request, Response, envelope, from_result, handler_input, new_error_id, read_request, skipped
from .routes import Match, NotAllowed, Route, Routes

log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 1
OVERLOADED: Final = frozenset({errors.WORKER_OVERLOADED, errors.TOO_MANY_CALLS})
"""Refusals by the engine itself that pass with time: 503 instead of 500."""


class Event(Enum):
    """What can happen to a request under way."""

    VALUE = "the handler returned a value"
    NOTHING = "the handler returned null, or nothing"
    ERROR = "the handler or the condition failed"
    BLOCKED = "the condition returned false"
    OVERSIZE = "the body is too large"
    DEADLINE = "the deadline has passed"
    DRAINING = "the engine began to stop before the body was here"
    CLIENT_GONE = "the client has left"


class Answer(Enum):
    """How a request ends."""

    RESULT = "what the handler returned"
    EMPTY = "204"
    FAILED = "500, or 503 for what passes with time"
    SKIPPED = "422"
    TOO_LARGE = "413"
    TIMED_OUT = "504"
    UNAVAILABLE = "503"
    NONE = "nobody is there to hear it"


ANSWERS: Final[Mapping[Event, Answer]] = {
    Event.VALUE: Answer.RESULT,
    Event.NOTHING: Answer.EMPTY,
    Event.ERROR: Answer.FAILED,
    Event.BLOCKED: Answer.SKIPPED,
    Event.OVERSIZE: Answer.TOO_LARGE,
    Event.DEADLINE: Answer.TIMED_OUT,
    Event.DRAINING: Answer.UNAVAILABLE,
    Event.CLIENT_GONE: Answer.NONE,
}


@define(eq=False)
class ResponseDecision:
    """What a request is answered with: the first event decides, by `ANSWERS`; later ones are ignored.

    `deadline` is Trio time. `function_id` is the function whose outcome is or was waited for.
    """

    deadline: float
    function_id: str = ""
    answer: Answer | None = field(default=None, init=False)
    outcome: Outcome = field(default=NOTHING, init=False)

    def feed(self, event: Event, outcome: Outcome = NOTHING) -> None:
        """Something has happened; `outcome` is the call's, for `VALUE` and `ERROR`."""
        if self.answer is None:
            self.answer, self.outcome = ANSWERS[event], outcome

    def feed_outcome(self, outcome: Outcome) -> None:
        """The handler's call has ended."""
        if not outcome.ok:
            self.feed(Event.ERROR, outcome)
        elif outcome.result in (ABSENT, NULL):
            self.feed(Event.NOTHING)
        else:
            self.feed(Event.VALUE, outcome)


@frozen
class Pending:
    """One request under way: what was asked, by whom, of which route, and what is decided."""

    request: Request
    incoming: Incoming
    match: Match
    decision: ResponseDecision


@frozen
class ExchangeStatistics:
    """Requests since the start, by how they ended, and those under way."""

    requests: int
    """All requests, OPTIONS included."""
    running: int
    """Requests that hold one of the slots of `concurrency_request_limit`."""
    waiting: int
    """Requests that wait for a slot."""
    unmatched: int
    """Answered 404 or 405."""
    refused: int
    """Answered 503 because the engine is draining."""
    answers: Mapping[Answer, int]
    """Of those that reached a route, how many ended in which way."""


@define(eq=False)
class Exchange:
    """Answers requests. `serve` is an ASGI application for scopes of type `http`."""

    core: Engine
    peer: LocalPeer
    routes: Routes
    settings: Live[HttpSettings]
    _slots: trio.CapacityLimiter = field(init=False)
    _requests: int = field(default=0, init=False)
    _unmatched: int = field(default=0, init=False)
    _refused: int = field(default=0, init=False)
    _answers: dict[Answer, int] = field(factory=lambda: dict.fromkeys(Answer, 0), init=False)

    def __attrs_post_init__(self) -> None:
        self._slots = trio.CapacityLimiter(self.settings.value.concurrency_request_limit)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or return without an answer when its client has left."""
        self._requests += 1
        request = read_request(scope)
        incoming = Incoming(receive, request.length)
        rules = self.settings.value.cors
        if request.method == "OPTIONS":
            response: Response | None = cors.preflight(rules, request.origin)
        else:
            response = await self._answer(request, incoming)
            if response is not None:
                response = cors.decorate(response, rules, request.origin)
        if response is not None:
            await write(scope, send, incoming, response)

    async def _answer(self, request: Request, incoming: Incoming) -> Response | None:
        if self._draining():
            return self._unavailable()
        found = self.routes.find(request.method, request.path)
        if not isinstance(found, Match):
            self._unmatched += 1
            return _not_served(found)
        if not await self._take_slot(incoming):
            self._answers[Answer.NONE] += 1
            return None
        try:
            if self._draining():
                return self._unavailable()
            settings = self.settings.value
            decision = ResponseDecision(trio.current_time() + settings.default_timeout / 1000)
            await self._decide(Pending(request, incoming, found, decision), settings.body_limit)
        finally:
            self._slots.release_on_behalf_of(incoming)
        return self._respond(decision, found.route, settings)

    # -- slots --------------------------------------------------------------------------------------------------------

    async def _take_slot(self, incoming: Incoming) -> bool:
        """Wait for one of the slots, first come first served; False when the client left before it came to that."""
        slots, limit = self._slots, self.settings.value.concurrency_request_limit
        if slots.total_tokens != limit:
            slots.total_tokens = limit
        try:
            slots.acquire_on_behalf_of_nowait(incoming)
        except trio.WouldBlock:
            pass
        else:
            return True
        taken = False
        try:
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    await incoming.until_gone_keeping_body()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(leave, name="waiting for a slot")
                await slots.acquire_on_behalf_of(incoming)
                taken = True
                nursery.cancel_scope.cancel()
        except BaseException:
            if taken:  # cancelled between getting the slot and using it
                slots.release_on_behalf_of(incoming)
            raise
        return taken

    # -- stages -------------------------------------------------------------------------------------------------------

    async def _decide(self, pending: Pending, body_limit: int) -> None:
        """Body, condition, handler: each stage runs if none before it has decided."""
        decision, route = pending.decision, pending.match.route
        body = await self._read_body(pending, body_limit) if pending.request.has_json else b""
        if self._draining():
            decision.feed(Event.DRAINING)  # a body may take its time, and nothing has been called yet
        if decision.answer is not None:
            return
        data = handler_input(pending.request, pending.match, body)
        if route.condition is not None:
            outcome = await self._call(pending, route.condition, data, ABSENT)
            if outcome is None:
                return
            if not outcome.ok:
                decision.feed(Event.ERROR, outcome)
                return
            if outcome.result.is_false():
                decision.feed(Event.BLOCKED)
                return
        outcome = await self._call(pending, route.binding.function_id, data, route.binding.metadata)
        if outcome is not None:
            decision.feed_outcome(outcome)

    async def _read_body(self, pending: Pending, limit: int) -> bytes:
        body = b""
        with trio.CancelScope(deadline=pending.decision.deadline) as scope:
            try:
                body = await pending.incoming.read(limit)
            except BodyTooLarge:
                pending.decision.feed(Event.OVERSIZE)
        if pending.incoming.gone:
            pending.decision.feed(Event.CLIENT_GONE)
        elif scope.cancelled_caught:
            pending.decision.feed(Event.DEADLINE)
        return body

    async def _call(self, pending: Pending, function_id: str, data: Json, metadata: Json) -> Outcome | None:
        """The outcome of a function in the route's namespace; None when the decision has fallen without it."""
        decision = pending.decision
        decision.function_id = function_id
        left = decision.deadline - trio.current_time()
        if left <= 0:
            decision.feed(Event.DEADLINE)
            return None
        outcomes: list[Outcome] = []
        with trio.CancelScope(deadline=decision.deadline) as waiting:

            def on_done(outcome: Outcome) -> None:
                outcomes.append(outcome)
                waiting.cancel()

            call = self.peer.call(
                function_id,
                data,
                on_done,
                namespace=pending.match.route.binding.namespace,
                timeout_s=left,
                metadata=metadata,
                traceparent=pending.request.traceparent,
                baggage=pending.request.baggage,
            )
            reason = cancellation.SHUTDOWN
            try:
                if not outcomes:
                    await pending.incoming.until_gone()
                    reason = cancellation.CALLER_DISCONNECTED
            finally:
                if call is not None and not outcomes:
                    if trio.current_time() >= decision.deadline:
                        reason = cancellation.DEADLINE
                    self.peer.cancel_call(call, reason)
        if trio.current_time() >= decision.deadline and not (outcomes and outcomes[0].ok):
            decision.feed(Event.DEADLINE)  # also when the engine's own timer for the call was the faster one
        elif not outcomes:
            decision.feed(Event.CLIENT_GONE)
        return None if decision.answer is not None else outcomes[0]

    # -- responses ----------------------------------------------------------------------------------------------------

    def _respond(self, decision: ResponseDecision, route: Route, settings: HttpSettings) -> Response | None:
        assert decision.answer is not None
        self._answers[decision.answer] += 1
        match decision.answer:
            case Answer.RESULT:
                return self._described(decision, route)
            case Answer.EMPTY:
                # nobody but the handler could have described a response, and it described none
                return Response(204)
            case Answer.FAILED:
                return self._failed(decision, route)
            case Answer.SKIPPED:
                return skipped()
            case Answer.TOO_LARGE:
                text = f"Request body too large: at most {settings.body_limit} bytes are accepted"
                return envelope(413, "PAYLOAD_TOO_LARGE", text)
            case Answer.TIMED_OUT:
                error_id = new_error_id()
                text = f"No response within {settings.default_timeout} ms"
                log.warning("%s: %s (waiting for %s, error_id %s)", route, text, decision.function_id, error_id)
                return envelope(504, errors.TIMEOUT, text, error_id=error_id)
            case Answer.UNAVAILABLE:
                return self._unavailable()
            case Answer.NONE:
                return None

    def _described(self, decision: ResponseDecision, route: Route) -> Response:
        try:
            return from_result(decision.outcome.result.decode())
        except JsonError as error:
            error_id = new_error_id()
            log.error("%s: the result of %s: %s (error_id %s)", route, decision.function_id, error, error_id)
            return envelope(500, "INTERNAL_ERROR", "internal server error", error_id=error_id)

    def _failed(self, decision: ResponseDecision, route: Route) -> Response:
        error, error_id = decision.outcome.exception(), new_error_id()
        log.error("%s: %s failed: %s (error_id %s)", route, decision.function_id, error, error_id)
        if error.code in OVERLOADED:
            headers = ((b"retry-after", b"%d" % RETRY_AFTER_S),)
            return envelope(503, error.code, error.message, error_id=error_id, headers=headers)
        return envelope(500, error.code, error.message, error_id=error_id)

    def _draining(self) -> bool:
        return self.core.draining

    def _unavailable(self) -> Response:
        self._refused += 1
        return unavailable()

    def statistics(self) -> ExchangeStatistics:
        """A frozen picture of the requests."""
        slots = self._slots.statistics()
        return ExchangeStatistics(
            requests=self._requests,
            running=slots.borrowed_tokens,
            waiting=slots.tasks_waiting,
            unmatched=self._unmatched,
            refused=self._refused,
            answers=dict(self._answers),
        )


def unavailable() -> Response:
    """The answer to every request while the engine drains, or the module is not up: 503, and the connection ends."""
    text = "The engine is shutting down or starting; try again"
    headers = ((b"retry-after", b"%d" % RETRY_AFTER_S),)
    return envelope(503, errors.ENGINE_DRAINING, text, headers=headers, close=True)


def _not_served(found: NotAllowed | None) -> Response:
    if found is None:
        return envelope(404, "NOT_FOUND", "Not Found")
    allow = ((b"allow", ",".join(found.methods).encode()),)
    return envelope(405, "METHOD_NOT_ALLOWED", "Method Not Allowed", headers=allow)
