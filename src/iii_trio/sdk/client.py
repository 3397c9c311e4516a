"""The user's handle on a connection: call, enqueue, send, publish, state (spec/sdk.md §12)."""

import math
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar, overload

import trio
from attrs import define, evolve, frozen
from cattrs import Converter

from iii_trio.protocol import cancellation, codec
from iii_trio.protocol import errors as wire
from iii_trio.protocol.errors import WireError, blank_namespace_text
from iii_trio.protocol.json import ABSENT, Json, JsonError
from iii_trio.protocol.limits import MAX_MESSAGE
from iii_trio.protocol.messages import (
    Action,
    InvokeFunction,
    Message,
    UnregisterFunction,
    UnregisterTrigger,
    UnregisterTriggerType,
)

from .builtins import DEFAULT_NAMESPACE, State, Stream
from .calls import PendingCall
from .channels import CREATE, ChannelEnds, ChannelReceiver, ChannelSender, arriving
from .errors import InvalidResult, InvocationTimeout, PayloadTooLarge
from .functions import Function
from .invocation import current_invocation
from .providers import TriggerType
from .registry import Registry, Trigger
from .relay import Relay
from .session import CANCEL_V1
from .structuring import Mismatch, encode, structure
from .supervisor import CONFIRM_S, ConnectionState, Supervisor, SupervisorStatistics
from .telemetry import Logger

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 30.0
DRAIN_S: Final = 10.0
CANCELLED_ANSWERS_S: Final = 1.0
"""How long the answers of handlers cancelled at the end of a drain may take."""

_HOME_ONLY: Final = ("engine::", "configuration::")
_VOID: Final = Action(type="void")


@define(eq=False)
class Client:
    """A connection to an engine, kept up by reconnecting; made by `Worker.connect` and `open_client`.

    All methods are for tasks of the Trio run that opened it; `from_thread` is for handlers that are plain functions.
    While the connection is away, calls wait for the next one within their time.
    """

    name: str
    namespace: str | None
    log: Logger
    channels: ChannelEnds
    """Makes live ends of refs that came as plain JSON: `client.channels.receiver(payload["body"])`."""
    _supervisor: Supervisor
    _registry: Registry
    _converter: Converter

    # -- calls

    @overload
    async def call(
        self,
        function_id: str,
        payload: Any = ...,
        *,
        timeout: float | None = ...,
        namespace: str | None = ...,
        metadata: Any = ...,
        into: type[T],
    ) -> T: ...

    @overload
    async def call(
        self,
        function_id: str,
        payload: Any = ...,
        *,
        timeout: float | None = ...,
        namespace: str | None = ...,
        metadata: Any = ...,
        into: Any = ...,
    ) -> Any: ...

    async def call(
        self,
        function_id: str,
        payload: Any = None,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
        namespace: str | None = None,
        metadata: Any = None,
        into: Any = None,
    ) -> Any:
        """Call a function and wait for its result: decoded JSON, or an `into` structured from it.

        `payload` and `metadata` are JSON types, attrs classes, dataclasses and the like. `timeout` is in seconds, None
        for no time of its own; the deadlines of surrounding cancel scopes hold in any case, and the executor is told
        what remains. `namespace` of None is this client's own, or the engine's for ids starting `engine::`.

        Cancelled or out of time, the call is abandoned, and an engine with `cancel.v1` cancels it at the executor; it
        may have had its effect all the same. The executor is told why: `deadline`, the reason of this handler's own
        cancellation or of `CancelScope.cancel(reason=…)` if it is one of the four, else `caller_cancelled`. Without an
        answer because a connection was lost it is not repeated.

        Raises `InvocationTimeout`, `FunctionNotFound`, `Forbidden`, `InvocationStopped`, `InvocationCancelled`,
        `PayloadTooLarge`, `InvalidPayload`, `NotConnected`, or `InvocationError` with the executor's code;
        `InvalidResult` when the result does not fit `into`; `TypeError` for a payload that is not JSON.
        """
        return await self._call(None, function_id, payload, timeout, namespace, metadata, into)

    async def enqueue(
        self,
        queue: str,
        function_id: str,
        payload: Any = None,
        *,
        timeout: float | None = CALL_TIMEOUT_S,
        namespace: str | None = None,
        delay: float | None = None,
        priority: int | None = None,
        deduplication_key: str | None = None,
    ) -> str:
        """Put a message for `function_id` into a named queue; its receipt, once it is stored.

        `delay` is how long (s) it waits before its first delivery; None is the queue's own delay. Messages of a higher
        `priority` (0 to 255) go first. A message whose `deduplication_key` came a short while ago is not stored again.

        Raises as `call` does; `InvocationError` with code `enqueue_error` when there is no such queue, or when it is
        full.
        """
        delay_ms = None if delay is None else round(delay * 1000)
        action = Action(
            type="enqueue", queue=queue, delay_ms=delay_ms, priority=priority, deduplication_key=deduplication_key
        )
        receipt = await self._call(action, function_id, payload, timeout, namespace, None, None)
        if not isinstance(receipt, dict) or not isinstance(receipt.get("messageReceiptId"), str):
            raise InvalidResult(f"the engine's receipt is {receipt!r}", function_id=function_id)
        return str(receipt["messageReceiptId"])

    async def send(
        self, function_id: str, payload: Any = None, *, namespace: str | None = None, metadata: Any = None
    ) -> None:
        """Call a function without waiting for it: returns when the frame is on its way, which may take a reconnect.

        Nothing tells whether the function ran. Cancelled, the frame was not sent. Raises `PayloadTooLarge`,
        `NotConnected`, and `TypeError` for a payload that is not JSON.
        """
        frame = self._invocation(None, _VOID, function_id, payload, namespace, metadata)
        text = _text(frame)
        while True:
            session = await self._supervisor.session()
            await session.wait_room()
            if session.push_text(text):
                break
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def publish(self, topic: str, data: Any, *, durable: bool = False) -> None:
        """Publish to a topic: to the subscribers there are now, or, `durable`, to every queue bound to it."""
        function_id = "iii::durable::publish" if durable else "publish"
        await self.call(function_id, {"topic": topic, "data": data}, namespace=DEFAULT_NAMESPACE)

    async def open_channel(
        self, buffer: int | None = None, *, timeout: float | None = CALL_TIMEOUT_S
    ) -> tuple[ChannelSender, ChannelReceiver]:
        """A channel from one worker to another: one end is used here, the `.ref` of the other goes into a payload.

        The engine holds up to `buffer` messages (64 when None, at most 1,024) for a reader that is slower than its
        writer. The channel belongs to this connection until both ends are connected: it ends with it, and if an end is
        never used, after 5 min. Raises as `call` does.
        """
        refs = await self.call(CREATE, {"buffer_size": buffer}, timeout=timeout, namespace=DEFAULT_NAMESPACE)
        try:
            return self.channels.sender(refs["writer"]), self.channels.receiver(refs["reader"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidResult(f"the engine's answer is no channel: {error}", function_id=CREATE) from None

    def stream(self, name: str) -> Stream:
        """One stream: `client.stream("name")["group"].set(item, value)`."""
        return Stream(self, name)

    @property
    def state(self) -> State:
        """The engine's key-value store: `client.state["scope"].get("key")`."""
        return State(self)

    @property
    def from_thread(self) -> "FromThread":
        """The same calls, blocking, for handlers that are plain functions and run in threads."""
        return FromThread(self)

    async def _call(
        self,
        action: Action | None,
        function_id: str,
        payload: Any,
        timeout: float | None,
        namespace: str | None,
        metadata: Any,
        into: Any,
    ) -> Any:
        invocation_id = str(uuid.uuid4())
        with trio.move_on_after(math.inf if timeout is None else timeout):
            frame = self._invocation(invocation_id, action, function_id, payload, namespace, metadata)
            result = await self._answer(PendingCall(invocation_id, function_id), frame)
            try:
                with arriving(self.channels):
                    return structure(result.decode(), into, self._converter)
            except (Mismatch, JsonError) as error:
                raise InvalidResult(
                    f"result of {function_id}: {error}", function_id=function_id, invocation_id=invocation_id
                ) from error
        ms = round((timeout or 0.0) * 1000)
        raise InvocationTimeout(
            f"invocation timed out after {ms}ms", function_id=function_id, invocation_id=invocation_id
        )

    async def _answer(self, call: PendingCall, frame: InvokeFunction) -> Json:
        """Send a call over the connection there is, or the next one, and wait for its outcome."""
        while True:
            session = await self._supervisor.session()
            await session.wait_room()
            remaining_s = trio.current_effective_deadline() - trio.current_time()
            if remaining_s < math.inf and CANCEL_V1 in session.features:
                frame = evolve(frame, deadline_ms=max(0, round(remaining_s * 1000)))
            if session.begin_call(call, _text(frame)):
                break
        reason = cancellation.CALLER_CANCELLED
        try:
            await call.done.wait()
        except trio.Cancelled as cancelled:
            reason = cancellation.reason_of(cancelled)
            raise
        finally:
            session.end_call(call, reason)
        return call.outcome()

    def _invocation(
        self,
        invocation_id: str | None,
        action: Action | None,
        function_id: str,
        payload: Any,
        namespace: str | None,
        metadata: Any,
    ) -> InvokeFunction:
        if namespace is not None and not namespace.strip():
            raise ValueError(blank_namespace_text())
        if namespace is None and not function_id.startswith(_HOME_ONLY):
            namespace = self.namespace
        context = current_invocation()
        try:
            data = encode(payload, self._converter)
            extra = ABSENT if metadata is None else encode(metadata, self._converter)
        except Mismatch as error:
            raise TypeError(f"payload for {function_id}: {error}") from error
        return InvokeFunction(
            invocation_id=invocation_id,
            function_id=function_id,
            data=data,
            action=action,
            namespace=namespace,
            metadata=extra,
            traceparent=None if context is None else context.traceparent,
            baggage=None if context is None else context.baggage,
        )

    # -- the connection

    @property
    def connection_state(self) -> ConnectionState:
        """One of `disconnected`, `connecting`, `connected`, `reconnecting`, `failed`."""
        return self._supervisor.state

    @property
    def failure(self) -> WireError | None:
        """Why the connection ended for good: `RegistrationRejected` or `NotConnected`; None while there is hope."""
        return self._supervisor.failure

    @property
    def worker_id(self) -> str | None:
        """What the engine calls the present connection; None until it said so."""
        session = self._supervisor.current
        return None if session is None or session.registered is None else session.registered.worker_id

    def add_connection_state_listener(self, listener: Callable[[ConnectionState], object]) -> Callable[[], None]:
        """Call `listener` with the state now and at every change, in this Trio run; returns what ends that."""
        return self._supervisor.listen(listener)

    @property
    def relay(self) -> Relay:
        """Calls without a task, for who passes on the calls of others."""
        return Relay(self._supervisor)

    async def wait_connected(self) -> None:
        """Wait until there is a connection. Raises `NotConnected` if there will be none."""
        await self._supervisor.session()

    async def wait_registered(self) -> None:
        """Wait until the engine has read all registrations made so far.

        An engine that does not answer pings is taken to have done so after 5 s. Raises `NotConnected`.
        """
        await self._supervisor.wait_registered()

    async def drain(self, timeout: float = DRAIN_S) -> None:
        """Take every registration back and let the running handlers finish, for at most `timeout` seconds.

        Handlers that still run then are cancelled, and their callers get `invocation_cancelled`. Calls of one's own
        keep working, but a connection lost from here on is not replaced.
        """
        self._supervisor.no_more()
        session = self._supervisor.current
        if session is None:
            return
        for frame in self._registry.withdrawals():
            session.push(frame)
        with trio.move_on_after(timeout) as scope:
            # What the engine routed before it read the withdrawals is here when it answers.
            with trio.move_on_after(CONFIRM_S):
                await session.barrier().wait()
            await session.handlers.wait_idle()
        if scope.cancelled_caught:
            session.handlers.cancel_all(cancellation.SHUTDOWN)
            with trio.move_on_after(CANCELLED_ANSWERS_S):
                await session.handlers.wait_idle()

    async def aclose(self) -> None:
        """Send what is queued, close the connection with 1000, and wait for the end, at most 5 s."""
        await self._supervisor.stop()

    def statistics(self) -> SupervisorStatistics:
        """A snapshot of the connection."""
        return self._supervisor.statistics()

    # -- registrations while it runs

    def add_function(self, function: Function) -> None:
        """Provide one more function from now on; several may be added before the engine is told.

        Raises `ValueError` when this client has one of that id, `TypeError` for annotations that cannot be found.
        """
        self._tell(self._registry.add_function(function))

    def remove_function(self, function_id: str) -> None:
        """Provide a function no longer; unknown ids are ignored. Invocations that run are not touched."""
        if self._registry.remove_function(function_id):
            self._tell(UnregisterFunction(id=function_id))

    def add_trigger(self, function_id: str, trigger: Trigger) -> str:
        """Bind a function, of any worker, to a trigger; the id of the binding. Refusals are logged."""
        frame = self._registry.add_binding(function_id, trigger)
        self._tell(frame)
        return frame.id

    def remove_trigger(self, binding_id: str) -> None:
        """Drop a binding; unknown ids are ignored."""
        frame = self._registry.remove_binding(binding_id)
        if frame is not None:
            self._tell(UnregisterTrigger(id=binding_id, trigger_type=frame.trigger_type))

    def add_trigger_type(self, trigger_type: TriggerType) -> None:
        """Provide a trigger type. Raises `ValueError` when this client has one of that id."""
        self._tell(self._registry.add_type(trigger_type))

    def remove_trigger_type(self, type_id: str) -> None:
        """Provide a trigger type no longer; its bindings are parked by the engine."""
        if self._registry.remove_type(type_id):
            self._tell(UnregisterTriggerType(id=type_id, namespace=self.namespace))

    def _tell(self, message: Message) -> None:
        """Tell the engine now, if connected; otherwise the next connection begins with it."""
        if self._supervisor.current is not None:
            self._supervisor.current.push(message)


@frozen
class FromThread:
    """A client's calls for code that runs in a thread Trio started, such as a handler that is a plain function.

    They raise what the asynchronous ones raise, and are cancelled with the handler.
    """

    _client: Client

    def call(self, function_id: str, payload: Any = None, **options: Any) -> Any:
        """`Client.call`, blocking."""
        return self.run(partial(self._client.call, function_id, payload, **options))

    def enqueue(self, queue: str, function_id: str, payload: Any = None, **options: Any) -> str:
        """`Client.enqueue`, blocking."""
        return self.run(partial(self._client.enqueue, queue, function_id, payload, **options))

    def send(self, function_id: str, payload: Any = None, **options: Any) -> None:
        """`Client.send`, blocking until the frame is on its way."""
        self.run(partial(self._client.send, function_id, payload, **options))

    def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Any other asynchronous function, such as `client.state["scope"].get`, blocking."""
        return trio.from_thread.run(function, *args)


def _text(frame: InvokeFunction) -> bytes:
    text = codec.encode_message(frame)
    if len(text) > MAX_MESSAGE:
        raise PayloadTooLarge(
            wire.too_large_text(len(text), MAX_MESSAGE),
            function_id=frame.function_id,
            invocation_id=frame.invocation_id,
        )
    return text
