"""What a worker's registration frames do to the registries (spec/protocol.md §5, §9).

Each function is one synchronous step: validate, change, then tell. Refusals go to the sender alone.
"""

import logging
from typing import TYPE_CHECKING, Final

from ..protocol import ABSENT, Json, codec, errors
from ..protocol.errors import TriggerRejected, WireError
from ..protocol.limits import BINDINGS_PER_PEER, FUNCTIONS_PER_PEER, REGISTERED_BYTES, TYPES_PER_PEER
from ..protocol.messages import (
    ErrorBody,
    Message,
    RegisterFunction,
    RegisterTrigger,
    RegisterTriggerType,
    RegistrationRejected,
    TriggerRegistrationResult,
    UnregisterFunction,
    UnregisterTrigger,
    UnregisterTriggerType,
)
from .functions import FunctionEntry
from .peer import DEFAULT_NAMESPACE
from .triggers import Binding, Reason, TypeClaim

if TYPE_CHECKING:
    from .remote import RemotePeer

log = logging.getLogger(__name__)

RESERVED: Final = "engine::"
REPLACEABLE: Final = "engine::queue::"
UNBIND_EXTRA: Final = len("un")


def apply(peer: "RemotePeer", message: Message) -> None:
    """Do what a registration frame of a trusted worker says; services are accepted, and nobody reads them."""
    if isinstance(message, RegisterFunction):
        register_function(peer, message)
    elif isinstance(message, RegisterTrigger):
        register_trigger(peer, message)
    elif isinstance(message, UnregisterFunction):
        unregister_function(peer, message.id)
    elif isinstance(message, UnregisterTrigger):
        unregister_trigger(peer, message.id)
    elif isinstance(message, RegisterTriggerType):
        register_trigger_type(peer, message)
    elif isinstance(message, UnregisterTriggerType):
        peer.core.triggers.withdraw_type(peer, message.namespace or peer.namespace, message.id)


def register_function(peer: "RemotePeer", message: RegisterFunction, exposed_id: str = "") -> None:
    """Claim a function id for `peer`. A clash is answered once the incumbent has shown whether it lives.

    `exposed_id` is the id by which the worker knows the function, where it is stored under another one.
    """
    core, key = peer.core, (peer.namespace, message.id)
    exposed_id = exposed_id or message.id
    if not message.id:
        peer.complain(WireError("a function needs a non-empty id", errors.INVALID_MESSAGE))
        return
    serving = core.functions.get(*key)
    taken = serving is not None and serving.builtin and not message.id.startswith(REPLACEABLE)
    if message.id.startswith(RESERVED) and (peer.namespace != DEFAULT_NAMESPACE or taken):
        log.warning("worker %s may not register %r: the id belongs to the engine", peer.label, message.id)
        reject_function(peer, exposed_id, "")
        return
    if len(peer.functions) >= FUNCTIONS_PER_PEER and key not in peer.functions:
        peer.complain(WireError(f"more than {FUNCTIONS_PER_PEER} functions on one connection", errors.FORBIDDEN))
        return
    entry = FunctionEntry(
        id=message.id,
        namespace=peer.namespace,
        owner=peer,
        description=_shown_text(message.description),
        metadata=_shown(peer, message.id, "metadata", message.metadata),
        request_format=_shown(peer, message.id, "request_format", message.request_format),
        response_format=_shown(peer, message.id, "response_format", message.response_format),
        exposed_id=exposed_id,
        invocation=message.invocation,
    )
    if entry.invocation:
        try:
            core.delegation.admit(entry)
        except WireError as error:
            core.delegation.refuse(entry, error)
            return
    incumbent = core.functions.claim(entry)
    core.delegation.claimed(entry)
    if incumbent.owner is peer:
        log.debug("worker %s registered %s in %s", peer.label, message.id, peer.namespace)
        return

    def answered(alive: bool) -> None:
        now, own = core.functions.get(*key), peer.functions.get(key)
        if peer.leaving or now is None or now.owner is peer or own is None or own.replicas is not None:
            return
        if alive or now is not incumbent:
            log.warning("function %r in %r is served by %s; %s stands by", key[1], key[0], now.owner.id, peer.label)
            reject_function(peer, exposed_id, now.owner.id)
        else:
            core.retire(incumbent.owner, 1012, "silent while its function was claimed")

    core.probe(incumbent.owner, answered)


def _shown(peer: "RemotePeer", what: str, field: str, value: Json) -> Json:
    """Something that listings repeat to everybody, or nothing if it is too large for that."""
    if len(value.raw) <= REGISTERED_BYTES:
        return value
    text = f"`{field}` of {what!r} has {len(value.raw)} bytes and is left out: {REGISTERED_BYTES} are the most"
    log.warning("worker %s: %s", peer.label, errors.shorten(text))
    peer.complain(WireError(text, errors.PAYLOAD_TOO_LARGE))
    return ABSENT


def _shown_text(text: str | None) -> str | None:
    return text if text is None else text[:REGISTERED_BYTES]


def reject_function(peer: "RemotePeer", exposed_id: str, owner_id: str) -> None:
    """Tell `peer` that a function it wants to register is somebody else's; "" is the engine."""
    peer.send(
        RegistrationRejected(
            code=errors.FUNCTION_NAMESPACE_CONFLICT,
            namespace=peer.namespace,
            function_id=exposed_id,
            owner_worker_id=owner_id,
        )
    )


def unregister_function(peer: "RemotePeer", function_id: str) -> None:
    """Give a claim back; not holding one is no error."""
    peer.core.delegation.forget(peer, peer.namespace, function_id)
    peer.core.functions.release(peer, peer.namespace, function_id)


def blank_namespace(message: RegisterTrigger) -> str | None:
    """The name of a namespace field that was named and left blank, if there is one."""
    for name, value in (("namespace", message.namespace), ("trigger_namespace", message.trigger_namespace)):
        if value is not None and not value.strip():
            return name
    return None


def refuse_trigger(peer: "RemotePeer", sent: RegisterTrigger, code: str, text: str) -> None:
    """Tell `peer` that the trigger it sent was not registered."""
    log.warning("trigger %s (%s -> %s): %s", sent.id, sent.trigger_type, sent.function_id, text)
    peer.send(refused_result(sent, code, text))


def register_trigger(peer: "RemotePeer", message: RegisterTrigger, sent: RegisterTrigger | None = None) -> None:
    """Bind a function to a trigger; only failures are answered.

    `sent` is the frame as the worker sent it, where things are stored under other ids.
    """

    def refuse(code: str, text: str) -> None:
        refuse_trigger(peer, sent or message, code, text)

    blank = blank_namespace(message)
    if blank is not None:
        refuse(errors.INVALID_NAMESPACE, errors.blank_namespace_text(blank))
        return
    if len(peer.bindings) >= BINDINGS_PER_PEER and message.id not in peer.bindings:
        refuse(errors.TRIGGER_REGISTRATION_FAILED, f"more than {BINDINGS_PER_PEER} triggers on one connection")
        return
    namespace = message.namespace or DEFAULT_NAMESPACE
    held = peer.core.triggers.get(message.id)
    if peer.session is not None and held is not None and held.owner is not peer:
        refuse(errors.FORBIDDEN, f"trigger '{message.id}' belongs to somebody else")
        return
    if peer.session is not None:
        entry = peer.core.functions.get(namespace, message.function_id)
        if peer.core.access.check(peer.session, namespace, message.function_id, entry) is not None:
            text = f"function '{message.function_id}' not allowed in namespace '{namespace}'"
            refuse(errors.FORBIDDEN, text)
            return
    binding = Binding(
        id=message.id,
        trigger_type=message.trigger_type,
        function_id=message.function_id,
        config=message.config,
        metadata=message.metadata,
        owner=peer,
        namespace=namespace,
        trigger_namespace=message.trigger_namespace,
        home=peer.namespace,
        as_sent=sent,
    )
    try:
        peer.core.triggers.register(binding)
    except TriggerRejected as error:
        refuse(errors.TRIGGER_REGISTRATION_FAILED, error.message)


def unregister_trigger(peer: "RemotePeer", binding_id: str) -> None:
    """Drop a binding. A trusted worker may drop any; a session under access control only its own."""
    binding = peer.core.triggers.get(binding_id)
    if binding is not None and (peer.session is None or binding.owner is peer):
        peer.core.triggers.unregister(binding_id)


def register_trigger_type(peer: "RemotePeer", message: RegisterTriggerType, exposed_id: str = "") -> None:
    """Make `peer` the provider of a trigger type; `exposed_id` is the id by which it knows it, if that is another."""
    namespace = peer.namespace if message.namespace is None else message.namespace
    if not namespace.strip():
        peer.complain(WireError(errors.blank_namespace_text(), errors.INVALID_NAMESPACE))
        return
    if len(peer.types) >= TYPES_PER_PEER and all((t.namespace, t.id) != (namespace, message.id) for t in peer.types):
        peer.complain(WireError(f"more than {TYPES_PER_PEER} trigger types on one connection", errors.FORBIDDEN))
        return
    peer.core.triggers.provide(
        TypeClaim(
            id=message.id,
            namespace=namespace,
            owner=peer,
            provider=WorkerProvider(peer, exposed_id or message.id, namespace),
            description=_shown_text(message.description) or "",
            config_format=_shown(peer, message.id, "trigger_request_format", message.trigger_request_format),
            call_format=_shown(peer, message.id, "call_request_format", message.call_request_format),
        )
    )


class WorkerProvider:
    """A trigger type behind a socket: bindings go out as frames, refusals come back as frames (spec/protocol.md §9.4)."""

    def __init__(self, peer: "RemotePeer", type_id: str, namespace: str) -> None:
        self.peer = peer
        self.type_id = type_id
        self.namespace = namespace

    def bind(self, binding: Binding) -> None:
        """Send `registertrigger`; the binding is live at once, its provider's answer is not awaited."""
        frame = RegisterTrigger(
            id=binding.id,
            trigger_type=self.type_id,
            function_id=binding.function_id,
            config=binding.config.or_null(),
            metadata=binding.metadata,
            namespace=None if binding.namespace == DEFAULT_NAMESPACE else binding.namespace,
            trigger_namespace=None if self.namespace == DEFAULT_NAMESPACE else self.namespace,
        )
        size = len(codec.encode_message(frame)) + UNBIND_EXTRA
        if size > self.peer.cap:
            # it would end the provider's connection, and again whenever the provider is back
            raise TriggerRejected(errors.too_large_text(size, self.peer.cap))
        if not self.peer.send(frame):
            raise TriggerRejected(f"the provider of '{self.type_id}' is leaving or does not read its socket")

    def replace(self, old: Binding, new: Binding) -> None:
        """Send `registertrigger` again, without unregistering first, as providers expect."""
        self.bind(new)

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """Send `unregistertrigger`, unless it was the provider itself that refused or left.

        It knows a binding by id and type: one that it has been given in the place of this one, for another namespace in
        which it provides the type, would end with it.
        """
        if reason is Reason.REJECTED or self.peer.leaving or self._serves(binding.id):
            return
        self.peer.send(
            UnregisterTrigger(
                id=binding.id,
                trigger_type=self.type_id,
                function_id=binding.function_id,
                config=binding.config.or_null(),
                metadata=binding.metadata,
            )
        )

    def _serves(self, binding_id: str) -> bool:
        """Whether this worker serves a binding of that id under this name of its type now, in whatever namespace."""
        binding = self.peer.core.triggers.get(binding_id)
        provider = None if binding is None or binding.claim is None else binding.claim.provider
        return isinstance(provider, WorkerProvider) and provider.peer is self.peer and provider.type_id == self.type_id


def refused_result(trigger: Binding | RegisterTrigger, code: str, text: str) -> TriggerRegistrationResult:
    """The frame that tells a trigger's owner that it is not bound; it keeps the ids and the type name the owner used."""
    sent = trigger.as_sent or trigger if isinstance(trigger, Binding) else trigger
    return TriggerRegistrationResult(
        id=sent.id,
        trigger_type=sent.trigger_type,
        function_id=sent.function_id,
        error=ErrorBody(code=code, message=text),
    )
