"""What a worker's registration frames do to the registries (spec/protocol.md §5, §9).

Each function is one synchronous step: validate, change, then tell. Refusals go to the sender alone.
"""

import logging
from typing import TYPE_CHECKING, Final

from ..protocol import codec, errors
from ..protocol.errors import TriggerRejected, WireError
from ..protocol.limits import BINDINGS_PER_PEER, FUNCTIONS_PER_PEER, TYPES_PER_PEER
from ..protocol.messages import (
    ErrorBody,
    RegisterFunction,
    RegisterTrigger,
    RegisterTriggerType,
    RegistrationRejected,
    TriggerRegistrationResult,
    UnregisterTrigger,
)
from .functions import FunctionEntry
from .peer import DEFAULT_NAMESPACE
from .triggers import ALIASES, Binding, Reason, TypeClaim

if TYPE_CHECKING:
    from .remote import RemotePeer

log = logging.getLogger(__name__)

RESERVED: Final = "engine::"
REPLACEABLE: Final = "engine::queue::"
UNBIND_EXTRA: Final = len("un")


def register_function(peer: "RemotePeer", message: RegisterFunction) -> None:
    """Claim a function id for `peer`. A clash is answered once the incumbent has shown whether it lives."""
    core, key = peer.core, (peer.namespace, message.id)
    if not message.id:
        peer.complain(WireError("a function needs a non-empty id", errors.INVALID_MESSAGE))
        return
    if not message.invocation.absent:
        text = f"function '{message.id}' was not registered: HTTP-invoked functions are not available in this engine"
        log.warning("worker %s: %s", peer.label, text)
        peer.complain(WireError(text, errors.INVALID_MESSAGE))
        return
    serving = core.functions.get(*key)
    taken = serving is not None and serving.builtin and not message.id.startswith(REPLACEABLE)
    if message.id.startswith(RESERVED) and (peer.namespace != DEFAULT_NAMESPACE or taken):
        log.warning("worker %s may not register %r: the id belongs to the engine", peer.label, message.id)
        _reject(peer, key, "")
        return
    if len(peer.functions) >= FUNCTIONS_PER_PEER and key not in peer.functions:
        peer.complain(WireError(f"more than {FUNCTIONS_PER_PEER} functions on one connection", errors.FORBIDDEN))
        return
    entry = FunctionEntry(
        id=message.id,
        namespace=peer.namespace,
        owner=peer,
        description=message.description,
        metadata=message.metadata,
        request_format=message.request_format,
        response_format=message.response_format,
    )
    incumbent = core.functions.claim(entry)
    if incumbent.owner is peer:
        log.debug("worker %s registered %s in %s", peer.label, message.id, peer.namespace)
        return

    def answered(alive: bool) -> None:
        now = core.functions.get(*key)
        if peer.leaving or now is None or now.owner is peer or peer.functions.get(key) is None:
            return
        if alive or now is not incumbent:
            log.warning("function %r in %r is served by %s; %s stands by", key[1], key[0], now.owner.id, peer.label)
            _reject(peer, key, now.owner.id)
        else:
            core.retire(incumbent.owner, 1012, "silent while its function was claimed")

    core.probe(incumbent.owner, answered)


def _reject(peer: "RemotePeer", key: tuple[str, str], owner_id: str) -> None:
    peer.send(
        RegistrationRejected(
            code=errors.FUNCTION_NAMESPACE_CONFLICT, namespace=key[0], function_id=key[1], owner_worker_id=owner_id
        )
    )


def unregister_function(peer: "RemotePeer", function_id: str) -> None:
    """Give a claim back; not holding one is no error."""
    peer.core.functions.release(peer, peer.namespace, function_id)


def register_trigger(peer: "RemotePeer", message: RegisterTrigger) -> None:
    """Bind a function to a trigger; only failures are answered."""

    def refuse(code: str, text: str) -> None:
        log.warning("trigger %s (%s -> %s): %s", message.id, message.trigger_type, message.function_id, text)
        peer.send(
            TriggerRegistrationResult(
                id=message.id,
                trigger_type=message.trigger_type,
                function_id=message.function_id,
                error=ErrorBody(code=code, message=text),
            )
        )

    for name, value in (("namespace", message.namespace), ("trigger_namespace", message.trigger_namespace)):
        if value is not None and not value.strip():
            refuse(errors.INVALID_NAMESPACE, errors.blank_namespace_text(name))
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


def register_trigger_type(peer: "RemotePeer", message: RegisterTriggerType) -> None:
    """Make `peer` the provider of a trigger type."""
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
            provider=WorkerProvider(peer, message.id, namespace),
            description=message.description,
            config_format=message.trigger_request_format,
            call_format=message.call_request_format,
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
            trigger_type=self._name(binding),
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
        """Send `unregistertrigger`, unless it was the provider itself that refused or left."""
        if reason is Reason.REJECTED or self.peer.leaving:
            return
        self.peer.send(
            UnregisterTrigger(
                id=binding.id,
                trigger_type=self._name(binding),
                function_id=binding.function_id,
                config=binding.config.or_null(),
                metadata=binding.metadata,
            )
        )

    def _name(self, binding: Binding) -> str:
        return self.type_id if binding.trigger_type in ALIASES else binding.trigger_type


def refused_result(binding: Binding, code: str, text: str) -> TriggerRegistrationResult:
    """The frame that tells a binding's owner that its provider said no; it keeps the type name the owner used."""
    return TriggerRegistrationResult(
        id=binding.id,
        trigger_type=binding.trigger_type,
        function_id=binding.function_id,
        error=ErrorBody(code=code, message=text),
    )
