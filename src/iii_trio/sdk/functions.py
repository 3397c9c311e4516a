"""A declared function: its handler, how the handler wants to be called, and the frame that registers it.

How a handler is called (spec/sdk.md §3, §12): its first positional parameter gets the payload, structured by its
annotation. Parameters named `metadata`, `invocation` and `client`, second or later or keyword-only, get what their
names say. A handler without parameters gets nothing. A plain function runs in a thread, an `async def` in a task.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Final, Literal, get_origin, get_type_hints

import attrs
from attrs import define, field, frozen
from cattrs import Converter

from iii_trio.protocol.json import ABSENT, Json
from iii_trio.protocol.messages import RegisterFunction

from .invocation import Invocation
from .schema import schema_of
from .structuring import CONVERTER, encode, prepare, structure

HandlerFunction = Callable[..., Any]
OnDisconnect = Literal["cancel", "finish"]

INJECTED: Final = frozenset({"metadata", "invocation", "client"})


@frozen
class Signature:
    """The parameters of a handler.

    `payload` is the name of the parameter that gets the payload, None when there is none; `wants` are the injected
    names it declares; `is_async` tells a coroutine function from one that needs a thread.
    """

    payload: str | None
    wants: frozenset[str]
    is_async: bool

    @classmethod
    def of(cls, handler: HandlerFunction) -> "Signature":
        """Read a handler's parameters. Raises `TypeError` for one that cannot be called with what a call brings."""
        name = getattr(handler, "__qualname__", repr(handler))
        if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
            raise TypeError(f"handler {name} is a generator; a handler returns one value")
        payload: str | None = None
        wants: set[str] = set()
        for position, parameter in enumerate(inspect.signature(handler).parameters.values()):
            positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
            if position == 0 and (positional or parameter.kind is parameter.VAR_POSITIONAL):
                payload = parameter.name
            elif parameter.name in INJECTED and parameter.kind is not parameter.POSITIONAL_ONLY:
                wants.add(parameter.name)
            elif parameter.default is parameter.empty and (positional or parameter.kind is parameter.KEYWORD_ONLY):
                raise TypeError(
                    f"handler {name}: nothing fills its parameter {parameter.name!r}. The first parameter gets the "
                    f"payload; further ones must have a default or be named {', '.join(sorted(INJECTED))}."
                )
        is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        return cls(payload, frozenset(wants), is_async)


def _hints(handler: HandlerFunction) -> dict[str, Any]:
    target = inspect.unwrap(handler)
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    if not inspect.isroutine(target):
        target = type(target).__call__
    return get_type_hints(target)


@define(kw_only=True, eq=False)
class Function:
    """One function a worker provides.

    `concurrency` is how many invocations of it run at once, None for no limit of its own. `on_disconnect` says what
    happens to running handlers when the connection is lost: "cancel", or "finish" and drop the result. `validate` of
    False hands the payload over as it was decoded. Formats of None are made from the annotations.
    """

    id: str
    handler: HandlerFunction
    description: str | None = None
    metadata: Any = None
    concurrency: int | None = None
    on_disconnect: OnDisconnect = "cancel"
    validate: bool = True
    request_format: Any = None
    response_format: Any = None
    converter: Converter = CONVERTER
    signature: Signature = field(init=False)
    _hint: Any = field(init=False, default=Any)

    def __attrs_post_init__(self) -> None:
        if not self.id.strip():
            raise ValueError("a function id must not be blank")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"function {self.id}: concurrency must be at least 1, not {self.concurrency}")
        if self.on_disconnect not in ("cancel", "finish"):
            raise ValueError(f"function {self.id}: on_disconnect is 'cancel' or 'finish', not {self.on_disconnect!r}")
        self.signature = Signature.of(self.handler)

    def resolve(self) -> None:
        """Look the annotations up, for payload and formats. Raises `TypeError` for one that names nothing."""
        try:
            hints = _hints(self.handler)
            request_hint = hints.get(self.signature.payload or "", Any)
            prepare(request_hint)
        except (NameError, SyntaxError) as error:
            raise TypeError(
                f"annotations of the handler of function {self.id}: {error}. Names in annotations must be found in the "
                "handler's module at run time."
            ) from error
        if self.validate:
            self._hint = request_hint
        if self.request_format is None:
            self.request_format = schema_of(request_hint)
        if self.response_format is None:
            self.response_format = schema_of(hints.get("return", Any))

    @property
    def sees_response(self) -> bool:
        """Whether the handler gets a payload's member `response`: not if it takes none, or a class without such a field."""
        if self.signature.payload is None:
            return False
        cls = get_origin(self._hint) or self._hint
        fielded = isinstance(cls, type) and (attrs.has(cls) or dataclasses.is_dataclass(cls))
        # a converter of the worker's own may put anything anywhere
        return not fielded or self.converter is not CONVERTER or "response" in get_type_hints(cls)

    def frame(self) -> RegisterFunction:
        """The registration as it goes over the wire."""

        def optional(value: Any) -> Json:
            return ABSENT if value is None else encode(value, self.converter)

        return RegisterFunction(
            id=self.id,
            description=self.description,
            request_format=optional(self.request_format),
            response_format=optional(self.response_format),
            metadata=optional(self.metadata),
        )

    def arguments(self, invocation: Invocation, payload: Any) -> tuple[list[Any], dict[str, Any]]:
        """Arguments for a call with the decoded `payload`, by position and by name. Raises `Mismatch`."""
        positional = [structure(payload, self._hint, self.converter)] if self.signature.payload else []
        keywords: dict[str, Any] = {}
        for name in self.signature.wants:
            keywords[name] = invocation if name == "invocation" else getattr(invocation, name)
        return positional, keywords
