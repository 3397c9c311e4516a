"""What a built-in module holds: a peer without a socket, by which it registers, provides, and calls like any worker.

Handlers come in two kinds. An *inline* handler is a plain function `(call, data)` that answers now by returning an
`Outcome`, or returns `LATER`, keeps the call, and answers from a store's callback with `call.finish(…)`. A *task*
handler is an async function `(call, data)` that returns a `Json`; it runs as one task in the module's nursery, is
limited in number, and is cancelled when its caller is gone. Both refuse by raising `WireError`.
"""

import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field, frozen

from ..protocol import ABSENT, NULL, Json, cancellation, errors
from ..protocol.errors import WireError
from ..protocol.limits import MAX_MESSAGE, TASK_HANDLERS
from .channels import Channel
from .functions import FunctionEntry
from .invocations import Call, Outcome
from .peer import DEFAULT_NAMESPACE, Peer
from .triggers import Binding, Provider, TypeClaim

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger(__name__)


class Later:
    """Type of `LATER`."""


LATER: Final = Later()

InlineHandler = Callable[[Call, Json], Outcome | Later]
TaskHandler = Callable[[Call, Json], Awaitable[Json]]


@frozen
class LocalStatistics:
    """Calls this module `waits` for, calls it `runs`, of which `tasks` are tasks."""

    waits: int
    runs: int
    tasks: int


@define(eq=False, repr=False, kw_only=True)
class LocalPeer(Peer):
    """A module's peer; made by `open_local` only, which gives its footprint back at the end."""

    core: "Engine"
    nursery: trio.Nursery
    task_limit: int = TASK_HANDLERS
    tasks: int = field(default=0, init=False)

    # -- what a module registers --------------------------------------------------------------------------------------

    def register(
        self,
        function_id: str,
        handler: InlineHandler | TaskHandler,
        *,
        task: bool = False,
        description: str | None = None,
        request_format: Any = None,
        response_format: Any = None,
        metadata: Any = None,
    ) -> FunctionEntry:
        """Serve `function_id` in namespace `default`. Formats are JSON Schemas; `task` tells the kind of handler."""

        def text(value: Any) -> Json:
            return ABSENT if value is None else Json.of(value)

        entry = FunctionEntry(
            id=function_id,
            namespace=DEFAULT_NAMESPACE,
            owner=self,
            description=description,
            request_format=text(request_format),
            response_format=text(response_format),
            metadata=text(metadata),
            builtin=True,
            handler=(task, handler),
        )
        self.core.functions.claim(entry)
        return entry

    def unregister(self, function_id: str) -> None:
        """Stop serving `function_id`."""
        self.core.functions.release(self, DEFAULT_NAMESPACE, function_id)

    def provide(
        self,
        type_id: str,
        provider: Provider,
        *,
        description: str = "",
        config_format: Any = None,
        call_format: Any = None,
        return_format: Any = None,
    ) -> TypeClaim:
        """Provide a trigger type in namespace `default`; parked bindings of the type are bound before this returns.

        The formats are JSON Schemas: of a binding's config, of what its function is called with, of what it returns.
        """
        return self.core.triggers.provide(
            TypeClaim(
                id=type_id,
                namespace=DEFAULT_NAMESPACE,
                owner=self,
                provider=provider,
                description=description,
                config_format=ABSENT if config_format is None else Json.of(config_format),
                call_format=ABSENT if call_format is None else Json.of(call_format),
                return_format=ABSENT if return_format is None else Json.of(return_format),
            )
        )

    def open_channel(self, buffer_size: int | None = None) -> Channel:
        """A channel of this module's, for `buffer_size` messages (64); it fails when this peer is released.

        One end is used here, by `ChannelWriter` or `ChannelReader`, the other goes to a worker as `channel.ref(…)`.
        Raises `WireError` when this module has too many.
        """
        return self.core.channels.create(self, buffer_size)

    # -- calls it makes -----------------------------------------------------------------------------------------------

    def call(
        self,
        function_id: str,
        data: Json,
        on_done: Callable[[Outcome], None],
        *,
        namespace: str | None = None,
        timeout_s: float | None = None,
        metadata: Json = ABSENT,
        traceparent: str | None = None,
        baggage: str | None = None,
        settle: bool = False,
    ) -> Call | None:
        """Call a function; `on_done` is called once with the outcome, possibly before this returns.

        None is returned for a call that was refused (no such function, for instance). `timeout_s` of None takes the
        engine's default. With `settle` the outcome is held back until the executor's side has ended too (its answer, or
        5 s of grace after a timeout). Cancel with `cancel_call`, after which `on_done` is not called; the same holds for
        every call that is under way when this peer is released. A released peer calls nobody: its calls are refused.
        """
        invocations = self.core.invocations
        if self.leaving:
            gone = WireError(f"{self.name} has stopped", errors.INVOCATION_STOPPED)
            invocations.flat(on_done, Outcome.failed(gone))
            return None
        invocations.tick()
        started = invocations.route(
            self,
            function_id,
            data.or_null(),
            namespace=namespace,
            timeout_s=timeout_s,
            metadata=metadata.raw,
            traceparent=traceparent,
            baggage=baggage,
            on_done=on_done,
            settle=settle,
            internal=True,
        )
        if isinstance(started, Outcome):
            invocations.flat(on_done, started)
            return None
        return started

    def cancel_call(self, call: Call, reason: str = cancellation.CALLER_CANCELLED) -> None:
        """Give a call up; its `on_done` will not be called. `reason` is one of `cancellation.REASONS`."""
        self.core.invocations.cancel(call, reason)

    async def invoke(
        self,
        function_id: str,
        data: Json = NULL,
        *,
        namespace: str | None = None,
        timeout_s: float | None = None,
        metadata: Json = ABSENT,
        traceparent: str | None = None,
        baggage: str | None = None,
    ) -> Json:
        """`call`, awaited: the result, or `WireError`.

        Cancelled, it cancels the call at its executor, which is told the reason. What has been answered is always
        returned: if this is cancelled, either nothing was called or the answer had not come.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        done = trio.Event()
        outcomes: list[Outcome] = []

        def on_done(outcome: Outcome) -> None:
            outcomes.append(outcome)
            done.set()

        call = self.call(
            function_id,
            data,
            on_done,
            namespace=namespace,
            timeout_s=timeout_s,
            metadata=metadata,
            traceparent=traceparent,
            baggage=baggage,
        )
        if outcomes:
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            reason = cancellation.CALLER_CANCELLED
            try:
                await done.wait()
            except trio.Cancelled as cancelled:
                reason = cancellation.reason_of(cancelled)
                raise
            finally:
                if call is not None and not outcomes:
                    self.cancel_call(call, reason)
        if outcomes[0].ok:
            return outcomes[0].result
        raise outcomes[0].exception()

    # -- Executor and Caller ------------------------------------------------------------------------------------------

    def submit(self, call: Call, data: Json) -> None:
        """See `Executor.submit`."""
        task, handler = call.function.handler
        if task:
            if self.tasks >= self.task_limit:
                text = f"{self.task_limit} calls of {self.name} are running already; try again later"
                call.fail(WireError(text, errors.WORKER_OVERLOADED))
                return
            self.tasks += 1
            # made here and not in the task: the call may be cancelled before its task runs for the first time
            call.scope = scope = trio.CancelScope()
            self.nursery.start_soon(self._run, handler, call, data, scope, name=f"call {call.function.id}")
            return
        try:
            answer = handler(call, data)
        except WireError as error:
            call.fail(error)
        except Exception as error:  # noqa: BLE001 - handler call, a bug in one call is one failed call
            call.fail(self._crashed(call, error))
        else:
            if isinstance(answer, Outcome):
                call.finish(answer)

    async def _run(self, handler: TaskHandler, call: Call, data: Json, scope: trio.CancelScope) -> None:
        try:
            with scope:
                try:
                    call.succeed(await handler(call, data))
                except WireError as error:
                    call.fail(error)
                except Exception as error:  # noqa: BLE001 - handler call
                    call.fail(self._crashed(call, error))
            if scope.cancelled_caught:
                call.fail(WireError("the call was cancelled", errors.INVOCATION_CANCELLED))
        finally:
            self.tasks -= 1

    def _crashed(self, call: Call, error: Exception) -> WireError:
        incident = uuid.uuid4().hex[:12]
        log.error("built-in %s failed (incident %s)", call.function.id, incident, exc_info=error)
        return WireError(f"internal error in {call.function.id} (incident {incident})", errors.INVOCATION_FAILED)

    def cancel(self, call: Call, reason: str) -> None:
        """See `Executor.cancel`: a task is cancelled; an inline handler that answers later is left to answer, unless it
        has put something that can be cancelled into `call.scope`.
        """
        if call.scope is not None:
            call.scope.cancel(reason=reason)

    def deliver(self, call: Call, outcome: Outcome) -> None:
        """See `Caller.deliver`."""
        if call.on_done is not None:
            self.core.invocations.flat(self._tell, call, outcome)

    def _tell(self, call: Call, outcome: Outcome) -> None:
        if call.on_done is not None:  # cancelled meanwhile
            call.on_done(outcome)

    def statistics(self) -> LocalStatistics:
        """A frozen picture of this peer."""
        return LocalStatistics(waits=len(self.calls), runs=len(self.running), tasks=self.tasks)


@asynccontextmanager
async def open_local(core: "Engine", name: str, task_limit: int = TASK_HANDLERS) -> AsyncIterator[LocalPeer]:
    """A module's peer for the length of the block; leaving cancels its tasks and releases its whole footprint.

    At most `task_limit` calls of task handlers run at once; more are refused with `worker_overloaded`.
    """
    async with trio.open_nursery() as nursery:
        peer = LocalPeer(
            id=str(uuid.uuid4()), name=name, cap=MAX_MESSAGE, core=core, nursery=nursery, task_limit=task_limit
        )
        core.attach_local(peer)
        try:
            yield peer
        finally:
            core.release(peer)
            nursery.cancel_scope.cancel()


__all__ = ["LATER", "Binding", "InlineHandler", "Later", "LocalPeer", "LocalStatistics", "TaskHandler", "open_local"]
