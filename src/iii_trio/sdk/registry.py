"""What one client registers with the engine, kept for every reconnect. No I/O: changes are synchronous.

The order of `frames` is the order of spec/sdk.md §12.2: trigger types, functions, triggers.
"""

import uuid
from collections.abc import Iterator
from typing import Any

from attrs import define, field, frozen

from iii_trio.protocol.json import ABSENT
from iii_trio.protocol.messages import (
    Message,
    RegisterTrigger,
    RegisterTriggerType,
    UnregisterFunction,
    UnregisterTrigger,
    UnregisterTriggerType,
)

from .functions import Function
from .providers import TriggerType
from .structuring import encode


@frozen(kw_only=True)
class Trigger:
    """A trigger a function is bound to: any trigger type's name and its configuration.

    `metadata` arrives as the invocation's metadata whenever it fires. `namespace` is where the target function lives,
    `trigger_namespace` where the type's provider does; None leaves both to the rules of spec/protocol.md §9.
    """

    trigger_type: str
    config: Any = None
    metadata: Any = None
    namespace: str | None = None
    trigger_namespace: str | None = None


@define(eq=False)
class Registry:
    """Functions, bindings and trigger types of one client; ids are unique in each."""

    namespace: str | None = None
    _functions: dict[str, Function] = field(factory=dict)
    _bindings: dict[str, RegisterTrigger] = field(factory=dict)
    _types: dict[str, TriggerType] = field(factory=dict)

    def function(self, function_id: str) -> Function | None:
        """The function of that id."""
        return self._functions.get(function_id)

    def trigger_type(self, type_id: str) -> TriggerType | None:
        """The trigger type of that id, if this client provides it."""
        return self._types.get(type_id)

    def add_function(self, function: Function) -> Message:
        """Take a function in; its frame. Raises `ValueError` when the id is taken, `TypeError` for bad annotations."""
        if function.id in self._functions:
            raise ValueError(f"function id '{function.id}' is declared already")
        function.resolve()
        frame = function.frame()
        self._functions[function.id] = function
        return frame

    def add_binding(self, function_id: str, trigger: Trigger, binding_id: str | None = None) -> RegisterTrigger:
        """Bind a function, known or not, to a trigger; its frame, whose `id` names the binding from now on."""
        frame = RegisterTrigger(
            id=binding_id or str(uuid.uuid4()),
            trigger_type=trigger.trigger_type,
            function_id=function_id,
            config=encode(trigger.config),
            metadata=ABSENT if trigger.metadata is None else encode(trigger.metadata),
            namespace=trigger.namespace or self.namespace,
            trigger_namespace=trigger.trigger_namespace,
        )
        self._bindings[frame.id] = frame
        return frame

    def add_type(self, trigger_type: TriggerType) -> Message:
        """Become the provider of a trigger type; its frame. Raises `ValueError` when the id is taken."""
        if trigger_type.id in self._types:
            raise ValueError(f"trigger type '{trigger_type.id}' is declared already")
        self._types[trigger_type.id] = trigger_type
        return _type_frame(trigger_type)

    def remove_function(self, function_id: str) -> bool:
        """Forget a function; False when there was none."""
        return self._functions.pop(function_id, None) is not None

    def remove_binding(self, binding_id: str) -> RegisterTrigger | None:
        """Forget a binding and return it."""
        return self._bindings.pop(binding_id, None)

    def remove_type(self, type_id: str) -> bool:
        """Forget a trigger type; False when there was none."""
        return self._types.pop(type_id, None) is not None

    def frames(self) -> Iterator[Message]:
        """Everything registered, as it is sent on every new connection."""
        for trigger_type in self._types.values():
            yield _type_frame(trigger_type)
        for function in self._functions.values():
            yield function.frame()
        yield from self._bindings.values()

    def withdrawals(self) -> Iterator[Message]:
        """What takes everything back, triggers first; nothing is forgotten here, for handlers may still be called."""
        for binding in self._bindings.values():
            yield UnregisterTrigger(id=binding.id, trigger_type=binding.trigger_type)
        for function_id in self._functions:
            yield UnregisterFunction(id=function_id)
        for type_id in self._types:
            yield UnregisterTriggerType(id=type_id, namespace=self.namespace)


def _type_frame(trigger_type: TriggerType) -> RegisterTriggerType:
    def optional(schema: Any) -> Any:
        return ABSENT if schema is None else encode(schema)

    return RegisterTriggerType(
        id=trigger_type.id,
        description=trigger_type.description,
        trigger_request_format=optional(trigger_type.config_schema),
        call_request_format=optional(trigger_type.payload_schema),
    )
