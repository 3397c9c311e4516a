"""Running handlers: one task each, under limits, with deadline and cancellation (spec/sdk.md §12.2, design.md §6).

Every connection has its own `Handlers`, whose nursery lives as long as the connection: when that is lost, the engine
has failed its calls already, so their handlers are cancelled. A handler declared `on_disconnect="finish"` runs in
the client's nursery instead, and its result is dropped.

Back-pressure has three steps. Invocations beyond the limits wait in their tasks. Above `BACKLOG` of them the socket is
not read any more, unless calls of our own wait for answers, which come by the same socket. Above `BACKLOG_HARD`, which
is reached only because of such calls, an invocation is refused with `worker_overloaded`.
"""

import logging
import traceback
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary

import trio
from attrs import define, evolve, field, frozen
from cattrs import Converter

from iii_trio.protocol import errors as wire
from iii_trio.protocol import limits
from iii_trio.protocol.errors import WireError
from iii_trio.protocol.json import ABSENT, Json, JsonError
from iii_trio.protocol.messages import ErrorBody, InvocationResult

from .channels import CutOff, arriving
from .errors import INVALID_INPUT, SERIALIZATION_ERROR
from .functions import Function
from .invocation import CONNECTION_LOST, CURRENT, Invocation
from .models import HttpRequest, HttpResponse
from .structuring import Mismatch, encode

CONCURRENCY: Final = limits.WORKER_HANDLERS
"""Handlers of one worker that run at once, unless it says otherwise."""
THREADS: Final = limits.WORKER_THREADS
"""Threads for handlers that are plain functions."""
BACKLOG: Final = limits.WORKER_BACKLOG
"""Invocations that may wait for a limit before the socket is not read any more; the batch in hand comes on top."""
BACKLOG_HARD: Final = limits.WORKER_BACKLOG_HARD
"""Invocations that may wait at all."""
STACKTRACE_CHARS: Final = 16 * 1024
"""Of a stack trace, the last part is sent: it names where the error was raised."""

EMPTY_RESPONSE: Final = HttpResponse(204)
"""Said at once: after a null the engine waits, for somebody may still write to the response's channel."""

log = logging.getLogger("iii_trio.sdk")


@frozen
class HandlerStatistics:
    """What one connection's handlers do and did."""

    running: int
    """Invocations accepted and not ended, the waiting ones included."""
    waiting: int
    """Invocations that wait for a limit."""
    succeeded: int
    """Handlers that returned a result."""
    failed: int
    """Invocations that ended in an error: raised, bad input, bad result, over its deadline."""
    cancelled: int
    """Handlers cancelled by `cancelinvocation` or by the drain."""
    refused: int
    """Invocations refused with `worker_overloaded`."""
    dropped: int
    """Outcomes that nobody heard, because the connection was gone."""


@define(eq=False)
class Limits:
    """The limits all connections of one client share; made inside a Trio run."""

    worker: trio.CapacityLimiter
    threads: trio.CapacityLimiter
    _functions: WeakKeyDictionary[Function, trio.CapacityLimiter] = field(factory=WeakKeyDictionary)

    def of(self, function: Function) -> trio.CapacityLimiter | None:
        """The function's own limiter; None when it declared no `concurrency`."""
        if function.concurrency is None:
            return None
        limiter = self._functions.get(function)
        if limiter is None:
            limiter = self._functions[function] = trio.CapacityLimiter(function.concurrency)
        return limiter


@define(eq=False)
class _Running:
    """One invocation from its frame to its answer."""

    invocation: Invocation
    function: Function
    data: Json
    scope: trio.CancelScope
    waiting: bool = True

    def end(self, reason: str) -> bool:
        """Note why it is cancelled; False when that has been noted before."""
        ending = self.invocation.ending
        if ending.reason is not None:
            return False
        ending.reason = reason
        return True


@define(eq=False)
class Handlers:
    """The handlers that run for one connection.

    `answer` waits for room, sends a result, and says whether the connection took it. `on_change` is called whenever an
    invocation stops waiting or ends.
    """

    _limits: Limits
    _lasting: trio.Nursery
    _converter: Converter
    _answer: Callable[[InvocationResult], Awaitable[bool]]
    _on_change: Callable[[], None]
    _nursery: trio.Nursery = field(init=False)
    _over: trio.Event = field(init=False, factory=trio.Event)
    _running: dict[str, _Running] = field(init=False, factory=dict)
    _idle: trio.Event | None = field(init=False, default=None)
    _waiting: int = field(init=False, default=0)
    _succeeded: int = field(init=False, default=0)
    _failed: int = field(init=False, default=0)
    _cancelled: int = field(init=False, default=0)
    _refused: int = field(init=False, default=0)
    _dropped: int = field(init=False, default=0)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the tasks of the handlers until `stop`; ends when the last of them has unwound."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            try:
                await self._over.wait()
            finally:
                self._over.set()  # cancelled, too, no more are begun
            for running in self._running.values():
                if running.function.on_disconnect != "finish":
                    running.end(CONNECTION_LOST)
            self._nursery.cancel_scope.cancel(reason=CONNECTION_LOST)

    def stop(self) -> None:
        """The connection is gone: cancel every handler but those that may finish."""
        self._over.set()

    @property
    def full(self) -> bool:
        """Whether so many invocations wait that no more should be read."""
        return self._waiting >= BACKLOG

    @property
    def alone(self) -> bool:
        """Whether no more than one invocation is accepted and not ended."""
        return len(self._running) <= 1

    def start(self, function: Function, invocation: Invocation, data: Json) -> WireError | None:
        """Begin an invocation; returns the error to answer with when it cannot be taken."""
        if invocation.id in self._running:
            log.warning("invocation %s came twice; the second is ignored", invocation.id)
            return None
        if self._over.is_set():
            return None  # it was read in the very moment of the end
        if self._waiting >= BACKLOG_HARD:
            self._refused += 1
            return WireError(f"{self._waiting} invocations are waiting already", wire.WORKER_OVERLOADED)
        running = _Running(invocation, function, data, trio.CancelScope(deadline=invocation.deadline))
        self._running[invocation.id] = running
        self._waiting += 1
        nursery = self._lasting if function.on_disconnect == "finish" else self._nursery
        nursery.start_soon(self._run, running, name=f"handler {function.id}")
        return None

    def cancel(self, invocation_id: str, reason: str) -> None:
        """Cancel one handler; its answer will be `invocation_cancelled`. Unknown ids are ignored."""
        running = self._running.get(invocation_id)
        if running is not None and running.end(reason):
            running.scope.cancel(reason=reason)

    async def wait_idle(self) -> None:
        """Wait until no handler runs."""
        while self._running:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()

    def cancel_all(self, reason: str) -> None:
        """Cancel every handler, each with an answer."""
        for invocation_id in list(self._running):
            self.cancel(invocation_id, reason)

    def statistics(self) -> HandlerStatistics:
        """A snapshot of the counters."""
        return HandlerStatistics(
            running=len(self._running),
            waiting=self._waiting,
            succeeded=self._succeeded,
            failed=self._failed,
            cancelled=self._cancelled,
            refused=self._refused,
            dropped=self._dropped,
        )

    # -- one invocation

    async def _run(self, running: _Running) -> None:
        result: Json | None = None
        failure: WireError | None = None
        try:
            try:
                with running.scope:
                    result = await self._call_limited(running)
            except* Exception as errors:  # noqa: BLE001  a handler's failure is its caller's, not ours
                failure = _failure(running.invocation, errors)
            if running.scope.cancelled_caught and failure is None:
                failure = _ended_by(running)
            await self._conclude(running, result, failure)
        finally:
            self._forget(running)

    async def _call_limited(self, running: _Running) -> Json:
        own, worker = self._limits.of(running.function), self._limits.worker
        if own is not None:
            await _acquire(own)
        try:
            await _acquire(worker)
            try:
                return await self._call(running)
            finally:
                worker.release()
        finally:
            if own is not None:
                own.release()

    async def _call(self, running: _Running) -> Json:
        self._begin(running)
        function, invocation = running.function, running.invocation
        try:
            payload = running.data.decode()
            if isinstance(payload, dict) and isinstance(caller := payload.get("_caller_worker_id"), str):
                invocation = evolve(invocation, caller_worker_id=caller)
            with arriving(invocation.client.channels) as ends:
                positional, keywords = function.arguments(invocation, payload)
        except (Mismatch, JsonError) as error:
            raise WireError(f"payload of {function.id}: {error}", INVALID_INPUT) from error
        CURRENT.set(invocation)
        async with ends:
            if function.signature.is_async:
                result = await function.handler(*positional, **keywords)
            else:
                result = await trio.to_thread.run_sync(
                    lambda: function.handler(*positional, **keywords),
                    limiter=self._limits.threads,
                    thread_name=f"handler {function.id}",
                )
            if result is None and _is_unanswered(function, payload, positional):
                result = EMPTY_RESPONSE
            try:
                return encode(result, self._converter)
            except Mismatch as error:
                raise WireError(f"result of {function.id}: {error}", SERIALIZATION_ERROR) from error

    def _begin(self, running: _Running) -> None:
        running.waiting = False
        self._waiting -= 1
        self._on_change()

    async def _conclude(self, running: _Running, result: Json | None, failure: WireError | None) -> None:
        if failure is None:
            self._succeeded += 1
        elif failure.code == wire.INVOCATION_CANCELLED and running.invocation.ending.reason is not None:
            self._cancelled += 1
        else:
            self._failed += 1
        if not await self._answer(outcome(running.invocation, result, failure)):
            self._dropped += 1

    def _forget(self, running: _Running) -> None:
        self._running.pop(running.invocation.id, None)
        if running.waiting:
            self._waiting -= 1
        if not self._running and self._idle is not None:
            self._idle.set()
            self._idle = None
        self._on_change()


async def _acquire(limiter: trio.CapacityLimiter) -> None:
    """As `limiter.acquire`, but where there is room, the turn is not given away: a handler begins in the one it has."""
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        limiter.acquire_nowait()
    except trio.WouldBlock:
        await limiter.acquire()


def outcome(invocation: Invocation, result: Json | None, failure: WireError | None) -> InvocationResult:
    """The answer's frame; a handler that returned None answers `result: null` (spec/sdk.md §5)."""
    error = None
    if failure is not None:
        error = ErrorBody(code=failure.code, message=failure.message, stacktrace=failure.stacktrace)
    return InvocationResult(
        invocation_id=invocation.id,
        function_id=invocation.function_id,
        result=result if result is not None and error is None else ABSENT,
        error=error,
        traceparent=invocation.traceparent,
        baggage=invocation.baggage,
    )


def _is_unanswered(function: Function, payload: Any, positional: list[Any]) -> bool:
    """Whether a handler was called by an HTTP request, and neither has nor had the response's channel in use."""
    if positional and isinstance(positional[0], HttpRequest):
        return not positional[0].responding
    trigger = payload.get("trigger") if isinstance(payload, dict) and "response" in payload else None
    return isinstance(trigger, dict) and trigger.get("type") == "http" and not function.sees_response


def _ended_by(running: _Running) -> WireError:
    invocation = running.invocation
    reason = invocation.ending.reason
    if reason is not None:
        return WireError(f"{invocation.function_id} was cancelled: {reason}", wire.INVOCATION_CANCELLED)
    return WireError(f"{invocation.function_id} ran past its deadline", wire.TIMEOUT)


def _from_handler(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the handler; all of it where the handler is not in it."""
    found, step = trace, trace
    while step is not None:
        if step.tb_frame.f_code.co_filename == __file__ and step.tb_next is not None:
            found = step.tb_next
        step = step.tb_next
    return found


def _failure(invocation: Invocation, errors: BaseExceptionGroup[Any]) -> WireError:
    """The error to answer with, and one line in the log with the invocation's id."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    error = error.with_traceback(_from_handler(error.__traceback__))
    if isinstance(error, WireError) and error.code == INVALID_INPUT and error.__cause__ is not None:
        log.info("invocation %s: %s", invocation.id, error.message)
        return WireError(error.message, error.code)
    trace = "".join(traceback.format_exception(error))[-STACKTRACE_CHARS:]
    if isinstance(error, WireError):
        log.info("invocation %s of %s: %s", invocation.id, invocation.function_id, error)
        return WireError(error.message, error.code, error.stacktrace or trace)
    if isinstance(error, CutOff):  # such as an HTTP client that leaves: whose call it is has heard of it, or has left
        log.info("invocation %s of %s: %s", invocation.id, invocation.function_id, error)
    else:
        log.error("invocation %s of %s failed", invocation.id, invocation.function_id, exc_info=error)
    return WireError(str(error) or type(error).__name__, wire.INVOCATION_FAILED, trace)
