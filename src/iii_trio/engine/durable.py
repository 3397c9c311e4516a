"""Durable triggers: bindings that no connection owns, made by a call (spec/protocol.md §10.1, §10.2).

They survive every worker, their maker and their provider included, and end with the engine. Whoever makes one for a
type that a worker provides hears of that worker's refusal; what was refused is not kept.
"""

import uuid
from typing import TYPE_CHECKING, Any, Final

from attrs import define, frozen

from ..protocol import ABSENT, NULL, Json, codec, errors
from ..protocol.errors import ProtocolError, TriggerRejected, WireError, bad_input
from ..protocol.limits import BINDINGS_PER_PEER, PROVIDER_ACK_S
from .deadlines import Timer
from .invocations import Call, Outcome
from .local import LATER, Later, LocalPeer
from .peer import DEFAULT_NAMESPACE
from .registrations import WorkerProvider
from .triggers import Binding, BindingState, rejection

if TYPE_CHECKING:
    from .access import Session
    from .engine import Engine

REGISTER: Final = "engine::register_trigger"
UNREGISTER: Final = "engine::unregister_trigger"
_TEXT: Final = {"type": "string", "minLength": 1}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}


@frozen
class RegisterInput:
    """The payload of `engine::register_trigger`."""

    trigger_type: str
    function_id: str
    config: Json = NULL
    metadata: Json = ABSENT
    trigger_namespace: str | None = None


@frozen
class UnregisterInput:
    """The payload of `engine::unregister_trigger`; the type is not looked at."""

    id: str
    trigger_type: str | None = None


_read_register = codec.reader(RegisterInput)
_read_unregister = codec.reader(UnregisterInput)


def _object(title: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": properties, "required": required}


@frozen
class Durable:
    """The two functions."""

    core: "Engine"

    def register(self, peer: LocalPeer) -> None:
        """Serve them through `peer`."""
        peer.register(
            REGISTER,
            self.register_trigger,
            description="Bind a function to a trigger that outlives its maker",
            request_format=_object(
                "RegisterTriggerInput",
                {
                    "trigger_type": _TEXT,
                    "function_id": _TEXT,
                    "config": {},
                    "metadata": {},
                    "trigger_namespace": _TEXT_OR_NULL,
                },
                ["trigger_type", "function_id"],
            ),
            response_format=_object("RegisterTriggerResult", {"id": {"type": "string"}}, ["id"]),
        )
        peer.register(
            UNREGISTER,
            self.unregister_trigger,
            description="Take a trigger out, whoever made it",
            request_format=_object("UnregisterTriggerInput", {"id": _TEXT, "trigger_type": _TEXT_OR_NULL}, ["id"]),
            response_format=_object("UnregisterTriggerResult", {"removed": {"type": "boolean"}}, ["removed"]),
        )

    def register_trigger(self, call: Call, data: Json) -> Outcome | Later:
        """`engine::register_trigger`. Result: `{"id": uuid}`, also for a type that nobody provides yet.

        For a type of a worker the answer waits for that worker's, at most 10 s; silence is consent, and so is its loss.
        Raises `WireError`: bad input, a blank namespace, `FORBIDDEN`, `trigger_registration_failed`.
        """
        try:
            wanted = _read_register(data.raw)
        except ProtocolError as error:
            raise bad_input(REGISTER, str(error)) from None
        if not wanted.trigger_type or not wanted.function_id:
            raise bad_input(REGISTER, "`trigger_type` and `function_id` must not be empty")
        space = wanted.trigger_namespace
        if space is not None and not space.strip():
            raise WireError(errors.blank_namespace_text("trigger_namespace"), errors.INVALID_NAMESPACE)
        session, function_id = call.origin.session, wanted.function_id
        if session is not None:
            refusal = session.check_type(wanted.trigger_type)
            if refusal is not None:
                raise refusal
            function_id = session.prefixed(function_id)
            self._check(session, function_id, space or DEFAULT_NAMESPACE)
        binding = Binding(
            id=str(uuid.uuid4()),
            trigger_type=wanted.trigger_type,
            function_id=function_id,
            config=wanted.config,
            metadata=wanted.metadata,
            trigger_namespace=space,
            session=session,
        )
        triggers = self.core.triggers
        if triggers.durable >= BINDINGS_PER_PEER:
            text = f"more than {BINDINGS_PER_PEER} durable triggers"
            raise WireError(text, errors.TRIGGER_REGISTRATION_FAILED)
        try:
            triggers.register(binding)
        except TriggerRejected as error:
            raise rejection(error) from None
        if binding.claim is None or not isinstance(binding.claim.provider, WorkerProvider):
            return _accepted(binding)
        waiting = _Waiting(self.core, call, binding)
        binding.on_answer = waiting.answered
        waiting.timer = self.core.deadlines.after(PROVIDER_ACK_S, binding.answered)
        return LATER

    def unregister_trigger(self, call: Call, data: Json) -> Outcome:
        """`engine::unregister_trigger`. Result: `{"removed": bool}`, false for an unknown id.

        Any trigger on a trusted connection; a session under access control its own, and durable ones of functions that
        it may call. The entry is always removed: a provider that cannot be told any more is losing its connection.
        """
        try:
            wanted = _read_unregister(data.raw)
        except ProtocolError as error:
            raise bad_input(UNREGISTER, str(error)) from None
        binding, session = self.core.triggers.get(wanted.id), call.origin.session
        if binding is not None and session is not None and binding.owner is not call.origin:
            if binding.owner is not None:
                raise WireError(f"trigger '{binding.id}' belongs to somebody else", errors.FORBIDDEN)
            self._check(session, binding.function_id, DEFAULT_NAMESPACE)
        removed = binding is not None and self.core.triggers.unregister(binding.id) is not None
        return Outcome(Json.of({"removed": removed}))

    def _check(self, session: "Session", function_id: str, trigger_namespace: str) -> None:
        """Who may not call a function may not have it called either."""
        entry = self.core.functions.get(DEFAULT_NAMESPACE, function_id)
        allowed = session.permits(DEFAULT_NAMESPACE) and session.permits(trigger_namespace)
        if not allowed or self.core.access.check(session, DEFAULT_NAMESPACE, function_id, entry) is not None:
            text = f"function '{function_id}' not allowed in namespace '{DEFAULT_NAMESPACE}'"
            raise WireError(text, errors.FORBIDDEN)


@define(eq=False)
class _Waiting:
    """A call of `engine::register_trigger` whose answer is up to a provider."""

    core: "Engine"
    call: Call
    binding: Binding
    timer: Timer | None = None

    def answered(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.binding.state is BindingState.REFUSED:
            why = self.binding.why
            self.core.triggers.unregister(self.binding.id)  # its maker has no id to do that with
            self.call.fail(WireError(why, errors.TRIGGER_REGISTRATION_FAILED))
        else:
            self.call.finish(_accepted(self.binding))


def _accepted(binding: Binding) -> Outcome:
    return Outcome(Json.of({"id": binding.id}))
