"""Trigger types a worker provides: who is told of bindings, in order, and how the engine hears the answer.

The engine sends `registertrigger` when somebody binds a function to the type and `unregistertrigger` when the binding
goes; the provider fires by calling the bound function (spec/protocol.md §9). After a reconnect every binding is
delivered again with the same id, so `bind` must take one that it has.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio
from attrs import define, field, frozen

from iii_trio.protocol import limits
from iii_trio.protocol.errors import TRIGGER_REGISTRATION_FAILED, WireError
from iii_trio.protocol.messages import ErrorBody, RegisterTrigger, TriggerRegistrationResult, UnregisterTrigger

from .errors import TRIGGER_TYPE_NOT_FOUND

BINDINGS_WAITING: Final = limits.WORKER_BINDINGS
"""Binding changes that may wait for their provider; further registrations are answered with an error."""

log = logging.getLogger("iii_trio.sdk")


@frozen(kw_only=True)
class Binding:
    """A function somebody bound to a provided trigger type.

    To fire it, call `function_id` in `namespace` (None: the engine's default) with `metadata` as the metadata.
    """

    id: str
    trigger_type: str
    function_id: str
    config: Any = None
    metadata: Any = None
    namespace: str | None = None


class TriggerProvider(Protocol):
    """What a worker gives to provide a trigger type. The calls come one after the other."""

    async def bind(self, binding: Binding) -> None:
        """Begin to fire `binding`, or replace the one of its id. Raises to refuse: the message goes to its owner."""

    async def unbind(self, binding_id: str) -> None:
        """Stop firing a binding; its id may be unknown."""


@frozen
class TriggerType:
    """A trigger type and its provider; the schemas describe a binding's config and the payload it fires with."""

    id: str
    provider: TriggerProvider
    description: str = ""
    config_schema: Any = None
    payload_schema: Any = None


@define(eq=False)
class Bindings:
    """Delivers binding changes of one connection to their providers, in the order of arrival."""

    _find: Callable[[str], TriggerType | None]
    _answer: Callable[[TriggerRegistrationResult], Awaitable[bool]]
    _refuse: Callable[[TriggerRegistrationResult], object]
    _send: trio.MemorySendChannel[RegisterTrigger | UnregisterTrigger] = field(init=False)
    _receive: trio.MemoryReceiveChannel[RegisterTrigger | UnregisterTrigger] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel(BINDINGS_WAITING)

    def change(self, frame: RegisterTrigger | UnregisterTrigger) -> None:
        """Queue a change; a registration that finds no room is refused."""
        try:
            self._send.send_nowait(frame)
        except trio.WouldBlock:
            if isinstance(frame, RegisterTrigger):
                self._refuse(_result(frame, WireError("too many bindings wait", TRIGGER_REGISTRATION_FAILED)))

    async def run(self) -> None:
        """Carry the changes out until cancelled."""
        async for frame in self._receive:
            if isinstance(frame, RegisterTrigger):
                await self._answer(_result(frame, await self._bind(frame)))
            else:
                await self._unbind(frame)

    async def _bind(self, frame: RegisterTrigger) -> WireError | None:
        trigger_type = self._find(frame.trigger_type)
        if trigger_type is None:
            return WireError("Trigger type not found", TRIGGER_TYPE_NOT_FOUND)
        binding = Binding(
            id=frame.id,
            trigger_type=frame.trigger_type,
            function_id=frame.function_id,
            config=frame.config.decode(),
            metadata=frame.metadata.decode(),
            namespace=frame.namespace,
        )
        failure: WireError | None = None
        try:
            await trigger_type.provider.bind(binding)
        except* Exception as errors:  # noqa: BLE001  a provider is a handler: the binding fails, not we
            error = _single(errors)
            log.warning("trigger type %s refuses binding %s: %s", frame.trigger_type, frame.id, error)
            code = error.code if isinstance(error, WireError) else TRIGGER_REGISTRATION_FAILED
            failure = WireError(error.message if isinstance(error, WireError) else str(error), code)
        return failure

    async def _unbind(self, frame: UnregisterTrigger) -> None:
        trigger_type = self._find(frame.trigger_type or "")
        if trigger_type is None:
            return
        try:
            await trigger_type.provider.unbind(frame.id)
        except* Exception as errors:
            log.error("unbinding %s of trigger type %s failed", frame.id, frame.trigger_type, exc_info=errors)


def _single(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _result(frame: RegisterTrigger, error: WireError | None) -> TriggerRegistrationResult:
    return TriggerRegistrationResult(
        id=frame.id,
        trigger_type=frame.trigger_type,
        function_id=frame.function_id,
        error=None if error is None else ErrorBody(code=error.code, message=error.message),
    )
