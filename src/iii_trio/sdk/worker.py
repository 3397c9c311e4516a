"""Declarations of a worker: functions and what triggers them. No I/O: importable, and connectable more than once.

worker = Worker("hello")

@worker.http("GET", "/hello")
async def hello(request: HttpRequest) -> dict[str, str]:
    return {"message": "hi"}

worker.serve()
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from ssl import SSLContext
from typing import Any, Final, NoReturn, TypeVar

import trio
from attrs import define, field
from cattrs import Converter

from . import identity
from .client import DRAIN_S, Client
from .connect import Options, connected
from .dial import OpenStream
from .functions import Function, HandlerFunction, OnDisconnect, Signature
from .handlers import CONCURRENCY
from .providers import TriggerProvider, TriggerType
from .registry import Registry, Trigger
from .serving import serve
from .structuring import CONVERTER
from .supervisor import Reconnect

F = TypeVar("F", bound=HandlerFunction)

HTTP_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_QUEUE_KEYS: Final = {"backoff_ms": "backoffDelayMs"}


@define(eq=False)
class _Declared:
    """What the decorators said about one handler so far."""

    handler: HandlerFunction
    function: Function | None = None
    triggers: list[Trigger] = field(factory=list)


class Worker:
    """A named set of functions and triggers, to be served by an engine.

    `name` appears in the engine's lists and is held by one live worker at a time; None means `III_WORKER_NAME`, else
    `hostname:pid`. `III_WORKER_NAME`, when set, wins over the argument, so that a deployment can name its replicas.
    `namespace` of None means `III_NAMESPACE`, else the engine's default. `concurrency` is how many handlers run at
    once over all functions; one that waits for a call back into this worker counts, too. `headers` go with the
    handshake. `converter` is a cattrs converter with hooks of one's own; make it with `make_converter()`.

    The decorators return the handler unchanged and may be stacked in any order. A handler with a trigger and without
    `@worker.function` gets the id `<worker name>::<handler name>`.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        namespace: str | None = None,
        description: str | None = None,
        concurrency: int = CONCURRENCY,
        headers: Mapping[str, str] | None = None,
        converter: Converter = CONVERTER,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self.name = name
        self.namespace = identity.namespace_of(namespace)
        self.description = description
        self.concurrency = concurrency
        self.headers = dict(headers or {})
        self.converter = converter
        self._declared: dict[HandlerFunction, _Declared] = {}
        self._types: dict[str, TriggerType] = {}

    # -- declarations

    def function(
        self,
        id: str | None = None,
        *,
        description: str | None = None,
        metadata: Any = None,
        concurrency: int | None = None,
        on_disconnect: OnDisconnect = "cancel",
        validate: bool = True,
        request_format: Any = None,
        response_format: Any = None,
    ) -> Callable[[F], F]:
        """Provide the decorated handler as function `id`.

        `description` and `metadata` (any JSON) show in the engine's lists; formats of None are JSON Schemas made from
        the annotations. `concurrency` limits how many invocations of it run at once. `on_disconnect="finish"` lets
        running handlers end when the connection is lost, their results dropped. `validate=False` hands payloads over
        as they were decoded; otherwise one that does not fit the annotation is answered with `INVALID_INPUT`.

        Raises `ValueError` for a blank or taken id, `TypeError` for a handler that cannot be called with a payload.
        """

        def declare(handler: F) -> F:
            declared = self._declare(handler)
            if declared.function is not None:
                raise ValueError(f"this handler is function '{declared.function.id}' already")
            function = Function(
                id=self._derived_id(handler) if id is None else id,
                handler=handler,
                description=description,
                metadata=metadata,
                concurrency=concurrency,
                on_disconnect=on_disconnect,
                validate=validate,
                request_format=request_format,
                response_format=response_format,
                converter=self.converter,
            )
            if any(other.function and other.function.id == function.id for other in self._declared.values()):
                raise ValueError(f"function id '{function.id}' is declared already")
            declared.function = function
            return handler

        return declare

    def http(
        self,
        method: str,
        path: str,
        *,
        condition: str | None = None,
        middleware: Iterable[str] = (),
        timeout_ms: int | None = None,
        metadata: Any = None,
    ) -> Callable[[F], F]:
        """Call the handler for HTTP requests: `path` may have parameters (`/users/:id`).

        The handler gets an `HttpRequest` (annotate it so, or take the dict) and returns an `HttpResponse` or a dict
        of its keys. `condition` and `middleware` are function ids (spec/http.md §9, §10). `timeout_ms` is how long a
        request may take up to the head of its response; without it the engine's `default_timeout` counts.
        """
        if method.upper() not in HTTP_METHODS:
            raise ValueError(f"{method!r} is no HTTP method; use one of {', '.join(sorted(HTTP_METHODS))}")
        config: dict[str, Any] = {"api_path": path, "http_method": method.upper()}
        if chain := list(middleware):
            config["middleware_function_ids"] = chain
        if timeout_ms is not None:
            config["timeout_ms"] = timeout_ms
        return self.on("http", config, condition=condition, metadata=metadata)

    def queue(
        self, topic: str, *, condition: str | None = None, metadata: Any = None, **queue_config: Any
    ) -> Callable[[F], F]:
        """Call the handler for every message published durably to `topic`, with retries (spec/queue.md §7).

        `queue_config` are the settings of its queue: `type` ("standard" or "fifo"), `max_retries`, `concurrency`,
        `backoff_ms` …; snake_case is turned into the wire's camelCase.
        """
        config: dict[str, Any] = {"topic": topic}
        if queue_config:
            config["queue_config"] = {_QUEUE_KEYS.get(k, _camel(k)): v for k, v in queue_config.items()}
        return self.on("durable:subscriber", config, condition=condition, metadata=metadata)

    def state(
        self,
        *,
        scope: str | None = None,
        key: str | None = None,
        condition: str | None = None,
        metadata: Any = None,
        durable: bool = False,
        queue: str | None = None,
    ) -> Callable[[F], F]:
        """Call the handler after every change of the engine's state in `scope`, at `key`; None stands for any.

        With `durable` every change is delivered at least once, through `queue` (None: `default`), with its retries and
        dead letters; what is written while no worker is there waits for one.
        """
        places = (("scope", scope), ("key", key), ("queue", queue))
        config: dict[str, Any] = {name: value for name, value in places if value is not None}
        if durable:
            config["durable"] = True
        return self.on("state", config, condition=condition, metadata=metadata)

    def stream(
        self,
        name: str,
        *,
        group: str | None = None,
        item: str | None = None,
        condition: str | None = None,
        metadata: Any = None,
        durable: bool = False,
        queue: str | None = None,
    ) -> Callable[[F], F]:
        """Call the handler with every event of the stream `name`, in `group`, about `item`; None stands for any.

        `durable` and `queue`: see `state`.
        """
        places = (("stream_name", name), ("group_id", group), ("item_id", item), ("queue", queue))
        config: dict[str, Any] = {key: value for key, value in places if value is not None}
        if durable:
            config["durable"] = True
        return self.on("stream", config, condition=condition, metadata=metadata)

    def subscribe(self, topic: str, *, condition: str | None = None, metadata: Any = None) -> Callable[[F], F]:
        """Call the handler for what is published to `topic` while this worker is connected."""
        return self.on("subscribe", {"topic": topic}, condition=condition, metadata=metadata)

    def cron(self, expression: str, *, condition: str | None = None, metadata: Any = None) -> Callable[[F], F]:
        """Call the handler on a schedule; seconds come first: `0 0 9 * * *` is nine o'clock every day."""
        return self.on("cron", {"expression": expression}, condition=condition, metadata=metadata)

    def on(
        self,
        trigger_type: str,
        config: Mapping[str, Any] | None = None,
        *,
        condition: str | None = None,
        metadata: Any = None,
        trigger_namespace: str | None = None,
    ) -> Callable[[F], F]:
        """Bind the handler to any trigger type, built in or provided by a worker, with its `config`.

        `condition` is the id of a function that is asked first; `metadata` arrives as the invocation's metadata.
        """
        settings = dict(config or {})
        if condition is not None:
            settings["condition_function_id"] = condition
        trigger = Trigger(
            trigger_type=trigger_type, config=settings, metadata=metadata, trigger_namespace=trigger_namespace
        )

        def declare(handler: F) -> F:
            self._declare(handler).triggers.append(trigger)
            return handler

        return declare

    def provide(
        self,
        trigger_type: str,
        provider: TriggerProvider,
        *,
        description: str = "",
        config_schema: Any = None,
        payload_schema: Any = None,
    ) -> None:
        """Provide a trigger type of one's own; `provider` is told of every binding. Raises `ValueError` if taken."""
        if trigger_type in self._types:
            raise ValueError(f"trigger type '{trigger_type}' is declared already")
        self._types[trigger_type] = TriggerType(trigger_type, provider, description, config_schema, payload_schema)

    @property
    def functions(self) -> dict[str, HandlerFunction]:
        """The handlers by function id, those with derived ids included."""
        return {self._id_of(declared): declared.handler for declared in self._declared.values()}

    def _declare(self, handler: HandlerFunction) -> _Declared:
        declared = self._declared.get(handler)
        if declared is None:
            Signature.of(handler)  # a handler that cannot work is refused where it is declared
            declared = self._declared[handler] = _Declared(handler)
        return declared

    def _derived_id(self, handler: HandlerFunction) -> str:
        name: str = getattr(handler, "__name__", type(handler).__name__)
        return f"{self.name}::{name}" if self.name else name

    def _id_of(self, declared: _Declared) -> str:
        return self._derived_id(declared.handler) if declared.function is None else declared.function.id

    def _fill(self, registry: Registry) -> None:
        for trigger_type in self._types.values():
            registry.add_type(trigger_type)
        for declared in self._declared.values():
            function = declared.function or Function(
                id=self._derived_id(declared.handler), handler=declared.handler, converter=self.converter
            )
            registry.add_function(function)
            for trigger in declared.triggers:
                registry.add_binding(function.id, trigger)

    # -- running it

    def connect(
        self,
        url: str | None = None,
        *,
        reconnect: Reconnect | None = None,
        wait: bool = True,
        ssl_context: SSLContext | None = None,
        open_stream: OpenStream | None = None,
    ) -> AbstractAsyncContextManager[Client]:
        """Serve from within a block: `async with worker.connect() as client: …`.

        The block begins when the engine has read the registrations (`wait=False`: at once) and ends by closing the
        connection; running handlers are cancelled then, unless `client.drain()` let them finish before. A lost
        connection is dialled again for ever, unless `reconnect` says otherwise. `url` of None is `III_URL`, else
        `ws://127.0.0.1:49134`. `open_stream` replaces TCP by a stream of one's own.

        Raises `RegistrationRejected` out of the block when the engine refuses this worker, `NotConnected` when
        `reconnect` has come to its end.
        """
        options = Options(
            url=url,
            headers=self.headers,
            reconnect=reconnect or Reconnect(),
            wait=wait,
            ssl_context=ssl_context,
            open_stream=open_stream,
        )
        return connected(
            options,
            name=identity.worker_name(self.name),
            namespace=self.namespace,
            description=self.description,
            concurrency=self.concurrency,
            converter=self.converter,
            fill=self._fill,
        )

    async def run(
        self,
        url: str | None = None,
        *,
        reconnect: Reconnect | None = None,
        open_stream: OpenStream | None = None,
        task_status: trio.TaskStatus[Client] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Serve until cancelled: `client = await nursery.start(worker.run, url)` returns when registered.

        Raises as `connect` does.
        """
        async with self.connect(url, reconnect=reconnect, open_stream=open_stream) as client:
            task_status.started(client)
            await trio.sleep_forever()
        raise AssertionError("sleep_forever returned")

    def serve(self, url: str | None = None, *, drain_timeout: float = DRAIN_S) -> None:
        """Run as a program: connect and serve until SIGINT or SIGTERM, then drain and return.

        Draining takes the registrations back and waits up to `drain_timeout` seconds for running handlers; a second
        signal cancels them. Logging is configured to standard error if nobody has. Raises as `connect` does.
        """
        serve(lambda: self.connect(url, wait=False), drain_timeout)


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
