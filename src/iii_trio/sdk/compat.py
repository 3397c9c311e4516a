"""`III` and its companions: the calls of other SDKs' documents, for programs that are not Trio's (spec/sdk.md §12.2).

    iii = III("ws://localhost:49134", worker_name="embedding")

    @iii.function(id="embedding::generate", description="…")
    async def generate(data): ...

    iii.serve()

The client lives on a thread of its own, which starts with the constructor. Handlers run there, `async def`s under Trio
and plain functions in threads of it. The blocking calls are for every other thread; those that end in `_async` can be
awaited in any event loop, and inside handlers.
"""

import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, ClassVar, Final, TypeVar, overload

from attrs import field, frozen

from iii_trio.protocol.errors import WireError

from . import identity
from .background import Background, Completion, in_event_loop
from .client import CALL_TIMEOUT_S, Client
from .connect import Options, connected
from .dial import Address
from .errors import NotConnected
from .functions import Function, HandlerFunction
from .handlers import CONCURRENCY
from .providers import TriggerProvider, TriggerType
from .registry import Trigger
from .serving import STOP_SIGNALS
from .supervisor import ConnectionState, Reconnect

F = TypeVar("F", bound=HandlerFunction)
T = TypeVar("T")

CONNECT_S: Final = 30.0
"""How long `register_worker` waits for the first connection."""

log = logging.getLogger("iii_trio.sdk")


class TriggerAction:
    """How a request is carried out: waited for when it has none, else one of these."""

    @frozen
    class Enqueue:
        """Put it into the named queue; the result is `{"messageReceiptId": …}`."""

        queue: str
        type: ClassVar[str] = "enqueue"

    @frozen
    class Void:
        """Do not wait for it; the result is None."""

        type: ClassVar[str] = "void"


@frozen(kw_only=True)
class InitOptions:
    """Options of `register_worker` and `III`.

    `invocation_timeout_ms` holds for calls that name none. `enable_metrics_reporting`, `otel` and `telemetry` are
    accepted and have no effect.
    """

    worker_name: str | None = None
    worker_description: str | None = None
    namespace: str | None = None
    invocation_timeout_ms: float = CALL_TIMEOUT_S * 1000
    headers: Mapping[str, str] = field(factory=dict)
    reconnection_config: Reconnect = field(factory=Reconnect)
    enable_metrics_reporting: bool = True
    otel: Any = None
    telemetry: Any = None


@frozen
class FunctionRef:
    """A registered function."""

    id: str
    unregister: Callable[[], None] = field(repr=False)


@frozen
class TriggerRef:
    """A registered trigger."""

    id: str
    unregister: Callable[[], None] = field(repr=False)


@frozen(kw_only=True)
class _Request:
    """What `call` and `trigger` were asked, in one shape."""

    function_id: str
    payload: Any = None
    action: Any = None
    timeout_ms: float | None = None
    metadata: Any = None
    namespace: str | None = None

    @classmethod
    def read(cls, request: str | Mapping[str, Any], payload: Any, options: Mapping[str, Any]) -> "_Request":
        if isinstance(request, str):
            return cls(function_id=request, payload=payload, **options)
        known = {"function_id", "payload", "action", "timeout_ms", "metadata", "namespace"}
        fields = {k: v for k, v in {**request, **options}.items() if k in known}
        if "function_id" not in fields:
            raise ValueError(f"a request names its function_id; this one has {sorted(request)}")
        return cls(**fields)

    async def carry_out(self, client: Client, default_timeout_ms: float) -> Any:
        timeout_s = (default_timeout_ms if self.timeout_ms is None else self.timeout_ms) / 1000
        match self.action:
            case None:
                return await client.call(
                    self.function_id,
                    self.payload,
                    timeout=timeout_s,
                    namespace=self.namespace,
                    metadata=self.metadata,
                )
            case TriggerAction.Enqueue(queue=queue) | {"type": "enqueue", "queue": queue}:
                receipt = await client.enqueue(
                    queue, self.function_id, self.payload, timeout=timeout_s, namespace=self.namespace
                )
                return {"messageReceiptId": receipt}
            case TriggerAction.Void() | {"type": "void"}:
                await client.send(self.function_id, self.payload, namespace=self.namespace, metadata=self.metadata)
                return None
        raise ValueError(
            f"action is TriggerAction.Enqueue(queue), TriggerAction.Void() or nothing, not {self.action!r}"
        )


class III:
    """A connection to an engine on a thread of its own; made and used from any thread.

    `url` of None is `III_URL`, else `ws://127.0.0.1:49134`. The keyword arguments win over those of `options`. The
    constructor does not wait for the connection, and calls do within their time. Raises `ValueError` for a bad URL.
    """

    def __init__(
        self,
        url: str | None = None,
        options: InitOptions | None = None,
        *,
        worker_name: str | None = None,
        namespace: str | None = None,
        description: str | None = None,
        headers: Mapping[str, str] | None = None,
        concurrency: int = CONCURRENCY,
    ) -> None:
        given = options or InitOptions()
        self._address = Address.parse(url)
        self._timeout_ms = given.invocation_timeout_ms
        self._name = worker_name or given.worker_name
        self._ids: dict[HandlerFunction, str] = {}
        connect = partial(
            connected,
            Options(
                url=self._address.url,
                headers=headers or given.headers,
                reconnect=given.reconnection_config,
                wait=False,
            ),
            name=identity.worker_name(self._name),
            namespace=identity.namespace_of(namespace or given.namespace),
            description=description or given.worker_description,
            concurrency=concurrency,
        )
        self._background = Background(connect)
        self._background.start()

    # -- functions and triggers

    def function(
        self,
        id: str | None = None,
        *,
        description: str | None = None,
        metadata: Any = None,
        request_format: Any = None,
        response_format: Any = None,
    ) -> Callable[[F], F]:
        """Register the decorated handler, `async` or not, at once; without an `id`, as `<worker name>::<its name>`."""

        def register(handler: F) -> F:
            self.register_function(
                id or self._derived_id(handler),
                handler,
                description=description,
                metadata=metadata,
                request_format=request_format,
                response_format=response_format,
            )
            return handler

        return register

    def register_function(
        self,
        function_id: str | Mapping[str, Any],
        handler: HandlerFunction,
        *,
        description: str | None = None,
        metadata: Any = None,
        request_format: Any = None,
        response_format: Any = None,
    ) -> FunctionRef:
        """Register a handler at once. Older documents give `{"id": …, "description": …}` in the place of the id.

        Raises `ValueError` for a blank or taken id, `TypeError` for what cannot be called with a payload.
        """
        if not callable(handler):
            raise TypeError(f"a handler is a function; {type(handler).__name__} cannot be called")
        named = {"id": function_id} if isinstance(function_id, str) else function_id
        function = Function(
            id=str(named.get("id") or ""),
            handler=handler,
            description=description or named.get("description"),
            metadata=metadata if metadata is not None else named.get("metadata"),
            request_format=request_format,
            response_format=response_format,
        )
        self._background.apply(lambda client: client.add_function(function))
        self._ids[handler] = function.id
        return FunctionRef(function.id, partial(self._forget, Client.remove_function, function.id))

    def register_trigger(self, trigger: Mapping[str, Any]) -> TriggerRef:
        """Bind a function: `{"type", "function_id", "config", "metadata"?, "namespace"?, "trigger_namespace"?}`.

        The type may be called `trigger_type`. A refusal by the type's provider is logged.
        """
        kind, function_id = trigger.get("type") or trigger.get("trigger_type"), trigger.get("function_id")
        if not kind or not function_id:
            raise ValueError(f"a trigger needs 'type' and 'function_id'; this one has {sorted(trigger)}")
        bound = Trigger(
            trigger_type=kind,
            config=trigger.get("config"),
            metadata=trigger.get("metadata"),
            namespace=trigger.get("namespace"),
            trigger_namespace=trigger.get("trigger_namespace"),
        )
        binding_id = self._background.apply(lambda client: client.add_trigger(function_id, bound))
        return TriggerRef(binding_id, partial(self._forget, Client.remove_trigger, binding_id))

    def register_trigger_type(self, trigger_type: Mapping[str, Any], provider: TriggerProvider) -> None:
        """Provide `{"id", "description"?, "trigger_request_format"?, "call_request_format"?}`; raises `ValueError`."""
        provided = TriggerType(
            str(trigger_type["id"]),
            provider,
            trigger_type.get("description") or "",
            trigger_type.get("trigger_request_format"),
            trigger_type.get("call_request_format"),
        )
        self._background.apply(lambda client: client.add_trigger_type(provided))

    def unregister_trigger_type(self, trigger_type: Mapping[str, Any]) -> None:
        """Provide `{"id"}` no longer."""
        self._forget(Client.remove_trigger_type, str(trigger_type["id"]))

    def _forget(self, remove: Callable[[Client, str], None], name: str) -> None:
        self._background.apply(lambda client: remove(client, name))

    def _derived_id(self, handler: HandlerFunction) -> str:
        return f"{self._name}::{handler.__name__}" if self._name else handler.__name__

    # -- calls

    @overload
    def trigger(self, request: str | Mapping[str, Any], payload: Any = ..., **options: Any) -> Any: ...

    @overload
    def trigger(
        self, *, type: str, config: Any = ..., function_id: str | None = ..., metadata: Any = ...
    ) -> Callable[[F], F]: ...

    def trigger(
        self,
        request: str | Mapping[str, Any] | None = None,
        payload: Any = None,
        *,
        type: str | None = None,
        config: Any = None,
        function_id: str | None = None,
        **options: Any,
    ) -> Any:
        """With a request, the same as `call`. With `type=`, a decorator that binds the handler to a trigger:

        `@iii.trigger(type="http", config={"api_path": "hello", "http_method": "GET"})`, above or without
        `@iii.function`; it registers a handler that is not registered yet.
        """
        if type is None:
            if request is None:
                raise TypeError("trigger() takes a request, or type= as a decorator")
            return self.call(request, payload, **options)

        def bind(handler: F) -> F:
            bound_id = function_id or self._ids.get(handler)
            if bound_id is None:
                bound_id = self.register_function(self._derived_id(handler), handler).id
            self.register_trigger({"type": type, "function_id": bound_id, "config": config, **options})
            return handler

        return bind

    def call(self, request: str | Mapping[str, Any], payload: Any = None, **options: Any) -> Any:
        """Call a function and block until its result is there.

        `request` is a function id, with `payload` and options, or the dict `{"function_id", "payload", "action"?,
        "timeout_ms"?, "metadata"?, "namespace"?}`. Raises as `Client.call`, and `RuntimeError` on the client's own
        thread, where `call_async` is to be awaited.
        """
        if self._background.inside:
            raise RuntimeError("this call would block the thread that has to answer it; await call_async() in handlers")
        return self._background.submit(self._work(request, payload, options)).result()

    def call_async(self, request: str | Mapping[str, Any], payload: Any = None, **options: Any) -> Awaitable[Any]:
        """`call`, to be awaited: in a handler, in asyncio, in Trio."""
        work = self._work(request, payload, options)
        return work() if self._background.inside else Completion(self._background.submit(work))

    def trigger_async(self, request: str | Mapping[str, Any], payload: Any = None, **options: Any) -> Awaitable[Any]:
        """The same as `call_async`, as other SDKs name it."""
        return self.call_async(request, payload, **options)

    def _work(self, request: str | Mapping[str, Any], payload: Any, options: Mapping[str, Any]) -> Callable[[], Any]:
        read = _Request.read(request, payload, options)

        async def work() -> Any:
            return await read.carry_out(self._background.client, self._timeout_ms)

        return work

    # -- the connection

    def get_connection_state(self) -> ConnectionState:
        """One of `disconnected`, `connecting`, `connected`, `reconnecting`, `failed`."""
        if self.failure is not None:
            return "failed"
        return "disconnected" if self._background.ended.done() else self._background.client.connection_state

    def add_connection_state_listener(self, listener: Callable[[ConnectionState], object]) -> Callable[[], None]:
        """Call `listener`, on the client's thread, with the state now and at every change; returns what ends that."""
        unlisten = self._background.apply(lambda client: client.add_connection_state_listener(listener))
        return lambda: self._background.apply(lambda _: unlisten())

    @property
    def worker_id(self) -> str | None:
        """What the engine calls the present connection; None while there is none."""
        return None if self._background.ended.done() else self._background.client.worker_id

    @property
    def failure(self) -> WireError | None:
        """Why the connection ended for good; None while there is hope, and after `shutdown`."""
        return self._background.failure

    def get_address(self) -> str:
        """The URL this client connects to."""
        return self._address.url

    def wait_connected(self, timeout: float = CONNECT_S) -> bool:
        """Block until the engine has read the registrations made so far, at most `timeout` seconds.

        False when the time was over; raises `NotConnected` when there will be no connection.
        """
        future = self._background.submit(lambda: self._background.client.wait_registered())
        try:
            future.result(timeout)
        except TimeoutError:
            future.cancel()
            return False
        return True

    def shutdown(self) -> Awaitable[None]:
        """Take the registrations back, let running handlers finish (at most 10 s), close the connection.

        Await what it returns in any event loop. Where there is no event loop it blocks until the client has ended. A
        handler of this client does not wait: the client ends when it has returned.
        """
        ended = self._background.stop()
        if self._background.handling:
            ended = Future()
            ended.set_result(None)
        elif not in_event_loop():
            ended.result()
        return Completion(ended)

    def serve(self) -> None:
        """Block until SIGINT or SIGTERM, then shut down; raises what the engine refused this worker with.

        Off the main thread, where signals cannot be received, it blocks until `shutdown`.
        """
        stop = threading.Event()
        self._background.ended.add_done_callback(lambda _: stop.set())
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, lambda *_: stop.set()) for number in STOP_SIGNALS}
        try:
            stop.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        self._background.stop().result()
        if self.failure is not None:
            raise self.failure


def register_worker(address: str | None = None, options: InitOptions | None = None) -> III:
    """An `III` that is connected, if the engine answers within 30 s; otherwise it goes on trying, with a warning.

    Raises `RegistrationRejected` when the engine refuses this worker, `NotConnected` when retries are exhausted.
    """
    iii = III(address, options)
    try:
        if not iii.wait_connected():
            log.warning("no connection to %s within %.0f s; it is tried further", iii.get_address(), CONNECT_S)
    except NotConnected as error:
        raise iii.failure or error from None
    return iii
