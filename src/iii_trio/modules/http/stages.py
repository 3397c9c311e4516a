"""From a request on a route to the decision what its answer is: body, middleware, condition, handler (spec/http.md §6, §9–§12).

Theory of operation. A request is one task. While it waits for a function it waits for four things at once, without a
task for any of them: the function's outcome and the response channel, which step into the wait by callbacks; the
client's leaving, which is what it reads from the connection meanwhile, handing the body on as it comes; and the deadline
of the scope it waits in. Each is fed to a `ResponseDecision`, which is a table and no code.
"""

import math
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial

import trio
from attrs import define, field

from ...engine.engine import Engine
from ...engine.invocations import Outcome
from ...engine.local import LocalPeer
from ...engine.peer import DEFAULT_NAMESPACE
from ...protocol import Json, JsonError, cancellation, errors
from ...protocol.errors import WireError
from ...protocol.limits import DEADLINE_S, HTTP_BODIES_ALL
from ...transport import one_batch
from .asgi import Below, BodyTooLarge, NoRoom
from .decision import Event, ResponseDecision, Waiting
from .forms import is_small_form, read_form
from .messages import BadRequest, check_json, handler_input
from .middleware import middleware_input, read_verdict
from .pending import Pending
from .slots import Slots
from .streaming import Channelled


@define(eq=False)
class Stages:
    """What every request of one module goes through. `body_bytes`: what is held of bodies that are parsed."""

    core: Engine
    peer: LocalPeer
    slots: Slots
    body_bytes: int = field(default=0, init=False)

    async def decide(self, pending: Pending) -> None:
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
        if self.core.draining:
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
            pending.complaint = f"The body of the request was not here within {pending.limit_ms} ms"
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
        if self.body_bytes + size > HTTP_BODIES_ALL and self.body_bytes > pending.body_bytes:
            return False
        self.body_bytes += size
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
        alone = self.slots.running == 1
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

    def release(self, pending: Pending) -> None:
        """The request is over, and its body is not held any more."""
        self.body_bytes -= pending.body_bytes
