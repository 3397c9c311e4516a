"""What the registrations of a session have to pass before they are applied: flags, hooks, prefix, and whose ids they claim.

Peers without a session never come here. Each function takes one frame as the worker sent it, and ends in its namesake in
`registrations.py`, with the ids under which things are stored, or in a refusal, which the worker is told. Where hooks and
prefix made other ids of its own, the session remembers which, so that the worker may go on speaking of what it registered
by the ids it knows (spec/protocol.md §14.4-14.6, §20.20, §20.24).
"""

import logging
from typing import TYPE_CHECKING, Final

from attrs import evolve

from ..protocol import NULL, Json, errors
from ..protocol.errors import WireError
from ..protocol.messages import (
    Message,
    RegisterFunction,
    RegisterTrigger,
    RegisterTriggerType,
    UnregisterFunction,
    UnregisterTrigger,
    UnregisterTriggerType,
)
from . import hooks, registrations
from .access import Session
from .hooks import FunctionVerdict, TriggerVerdict, TypeVerdict
from .peer import DEFAULT_NAMESPACE
from .registrations import WorkerProvider
from .triggers import ALIASES, INSTALL_HINTS, TypeClaim

if TYPE_CHECKING:
    from .remote import RemotePeer

log = logging.getLogger(__name__)

ENGINE_TYPES: Final = frozenset({*INSTALL_HINTS, *ALIASES, "cron", "log", "trace", "configuration"})


def apply(peer: "RemotePeer", session: Session, message: Message) -> None:
    """Do what a registration frame of a session says, as far as it may."""
    if isinstance(message, RegisterFunction):
        register_function(peer, session, message)
    elif isinstance(message, RegisterTrigger):
        register_trigger(peer, session, message)
    elif isinstance(message, UnregisterFunction):
        unregister_function(peer, session, message.id)
    elif isinstance(message, UnregisterTrigger):
        unregister_trigger(peer, session, message.id)
    elif isinstance(message, RegisterTriggerType):
        register_trigger_type(peer, session, message)
    elif isinstance(message, UnregisterTriggerType):
        unregister_trigger_type(peer, session, message)


def _keep(changed: Json, sent: Json) -> Json:
    """A hook's value, unless it left it out or said null."""
    return sent if changed.absent or changed == NULL else changed


def _rename(names: dict[str, str], sent: str, stored: str) -> None:
    if sent == stored:
        names.pop(sent, None)
    else:
        names[sent] = stored


def _complain(peer: "RemotePeer", what: str, why: str) -> None:
    text = f"{what} was not registered: {why}"
    log.warning("worker %s: %s", peer.label, errors.shorten(text))
    peer.complain(WireError(text, errors.FORBIDDEN))


# -- functions --------------------------------------------------------------------------------------------------------


def register_function(peer: "RemotePeer", session: Session, message: RegisterFunction) -> None:
    """A `registerfunction`: flag, hook, prefix, then whether the id may be a session's at all."""
    if not session.may_register_functions:
        _complain(peer, f"function '{message.id}'", "this session may not register functions")
        return

    def approved(verdict: FunctionVerdict) -> None:
        # without an id there is nothing to prefix: `registrations` refuses it
        named = verdict.function_id or message.id
        stored = session.prefixed(named) if named else named
        if _is_somebody_elses(peer, stored, message.id):
            return
        if session.functions.get(message.id, session.prefixed(message.id)) != stored:
            unregister_function(peer, session, message.id)
        changed = evolve(
            message,
            id=stored,
            description=message.description if verdict.description is None else verdict.description,
            metadata=_keep(verdict.metadata, message.metadata),
        )
        registrations.register_function(peer, changed, exposed_id=message.id)
        _rename(session.functions, message.id, stored)

    hook = session.hooks.function
    if hook is None:
        approved(FunctionVerdict())
        return
    request = {
        "function_id": message.id,
        "description": message.description,
        "metadata": message.metadata,
        "namespace": peer.namespace,
    }

    def denied(why: str) -> None:
        _complain(peer, f"function '{message.id}'", why)

    hooks.ask(peer, session, hook, request, hooks.read_function_verdict, approved, denied)


def _is_somebody_elses(peer: "RemotePeer", stored: str, exposed_id: str) -> bool:
    """Whether an id is out of a session's reach; it is told as any conflict is.

    That is what access control itself calls, what is or ever was the engine's, and what a trusted worker serves: a
    session does not even stand by for it, or it would have the next call when that worker restarts.
    """
    core = peer.core
    if (
        stored in core.access.protected
        or stored.startswith(registrations.RESERVED)
        or core.functions.belongs_to_engine(peer.namespace, stored)
    ):
        log.warning("worker %s may not register %r: the id belongs to the engine", peer.label, stored)
        registrations.reject_function(peer, exposed_id, "")
        return True
    serving = core.functions.get(peer.namespace, stored)
    if serving is not None and serving.owner.session is None:
        log.warning("worker %s may not register %r: %s serves it", peer.label, stored, serving.owner.id)
        registrations.reject_function(peer, exposed_id, serving.owner.id)
        return True
    return False


def unregister_function(peer: "RemotePeer", session: Session, function_id: str) -> None:
    """An `unregisterfunction`, by the id that the worker registered."""
    stored = session.functions.pop(function_id, None) or session.prefixed(function_id)
    entry = peer.functions.get((peer.namespace, stored))
    if entry is not None and entry.exposed_id == function_id:
        registrations.unregister_function(peer, stored)


# -- triggers ---------------------------------------------------------------------------------------------------------


def register_trigger(peer: "RemotePeer", session: Session, message: RegisterTrigger) -> None:
    """A `registertrigger`: the type, the hook, the type again if the hook changed it, the prefix, then the target."""
    if registrations.blank_namespace(message) is not None:
        registrations.register_trigger(peer, message)
        return

    def allowed(trigger_type: str) -> bool:
        error = session.check_type(trigger_type)
        if error is not None:
            registrations.refuse_trigger(peer, message, error.code, error.message)
        return error is None

    def approved(verdict: TriggerVerdict) -> None:
        trigger_type = verdict.trigger_type or message.trigger_type
        if not allowed(trigger_type):
            return
        changed = evolve(
            message,
            id=verdict.trigger_id or message.id,
            trigger_type=trigger_type,
            function_id=_target(peer, session, verdict.function_id or message.function_id, message.namespace),
            config=_keep(verdict.config, message.config),
        )
        earlier = session.triggers.get(message.id, message.id)
        registrations.register_trigger(peer, changed, sent=message)
        if changed.id in peer.bindings:
            if earlier != changed.id:
                _unregister_trigger(peer, earlier, message.id)
            _rename(session.triggers, message.id, changed.id)

    if not allowed(message.trigger_type):
        return
    hook = session.hooks.trigger
    if hook is None:
        approved(TriggerVerdict())
        return
    request = {
        "trigger_id": message.id,
        "trigger_type": message.trigger_type,
        "function_id": message.function_id,
        "config": message.config,
        "metadata": message.metadata,
        "namespace": message.namespace or DEFAULT_NAMESPACE,
    }

    def denied(why: str) -> None:
        text = f"trigger '{message.id}' was not registered: {errors.shorten(why)}"
        registrations.refuse_trigger(peer, message, errors.FORBIDDEN, text)

    hooks.ask(peer, session, hook, request, hooks.read_trigger_verdict, approved, denied)


def _target(peer: "RemotePeer", session: Session, function_id: str, namespace: str | None) -> str:
    """What a trigger's target is stored as: a function of this session under the id that its hook made of it."""
    renamed = session.functions.get(function_id) if (namespace or DEFAULT_NAMESPACE) == peer.namespace else None
    return renamed or session.prefixed(function_id)


def unregister_trigger(peer: "RemotePeer", session: Session, binding_id: str) -> None:
    """An `unregistertrigger`, by the id that the worker registered."""
    _unregister_trigger(peer, session.triggers.pop(binding_id, binding_id), binding_id)


def _unregister_trigger(peer: "RemotePeer", stored: str, sent_id: str) -> None:
    """Take out what `sent_id` became, unless another trigger of the worker has taken its place since."""
    binding = peer.bindings.get(stored)
    if binding is not None and binding.as_sent is not None and binding.as_sent.id == sent_id:
        registrations.unregister_trigger(peer, stored)


# -- trigger types ----------------------------------------------------------------------------------------------------


def register_trigger_type(peer: "RemotePeer", session: Session, message: RegisterTriggerType) -> None:
    """A `registertriggertype`: flag, hook, then whether the session may provide it in that namespace."""

    def denied(why: str) -> None:
        _complain(peer, f"trigger type '{message.id}'", why)

    def approved(verdict: TypeVerdict) -> None:
        changed = evolve(
            message,
            id=verdict.trigger_type_id or message.id,
            description=message.description if verdict.description is None else verdict.description,
        )
        _claim_type(peer, session, message.id, changed)

    if not session.may_register_types:
        denied("this session may not register trigger types")
        return
    hook = session.hooks.trigger_type
    if hook is None:
        approved(TypeVerdict())
        return
    request = {"trigger_type_id": message.id, "description": message.description}
    hooks.ask(peer, session, hook, request, hooks.read_type_verdict, approved, denied)


def _claim_type(peer: "RemotePeer", session: Session, sent_id: str, message: RegisterTriggerType) -> None:
    """Provide a type that nobody else provides: whoever did would lose everybody's bindings to the newcomer.

    A provider that shows no sign of life when asked is retired, so that a worker that comes back finds its type free.
    """
    core, namespace = peer.core, peer.namespace if message.namespace is None else message.namespace
    what = f"trigger type '{sent_id}'"
    # a blank one goes on to `registrations`, which refuses it
    if namespace.strip() and namespace != peer.namespace and namespace not in session.namespaces:
        _complain(peer, what, f"namespace '{namespace}' is not this session's")
        return
    if namespace == DEFAULT_NAMESPACE and (message.id in ENGINE_TYPES or message.id.startswith(registrations.RESERVED)):
        _complain(peer, what, f"'{message.id}' in namespace '{namespace}' is the engine's own")
        return
    incumbent = core.triggers.provider(namespace, message.id)
    session.claiming[namespace, sent_id] = message

    def answered(alive: bool) -> None:
        now = core.triggers.provider(namespace, message.id)
        if peer.leaving or session.claiming.get((namespace, sent_id)) is not message:
            return  # it has left or thought better of it while the incumbent was asked
        del session.claiming[namespace, sent_id]
        if now is not None and now.owner is not peer and (alive or now is not incumbent):
            _complain(peer, what, f"another worker provides '{message.id}' in namespace '{namespace}'")
            return
        if now is not None and now.owner is not peer:
            core.retire(now.owner, 1012, "silent while its trigger type was claimed")
        earlier = _own_type(peer, namespace, sent_id)
        if earlier is not None and earlier.id != message.id:
            core.triggers.withdraw(earlier)
        registrations.register_trigger_type(peer, message, exposed_id=sent_id)

    if incumbent is None or incumbent.owner is peer:
        answered(False)
    else:
        core.probe(incumbent.owner, answered)


def unregister_trigger_type(peer: "RemotePeer", session: Session, message: UnregisterTriggerType) -> None:
    """An `unregistertriggertype`, by the id that the worker registered."""
    namespace = message.namespace or peer.namespace
    session.claiming.pop((namespace, message.id), None)
    own = _own_type(peer, namespace, message.id)
    if own is not None:
        peer.core.triggers.withdraw(own)


def _own_type(peer: "RemotePeer", namespace: str, sent_id: str) -> TypeClaim | None:
    """What the worker provides in that namespace and knows by that id, whatever its hook has made of it."""
    for claim in peer.types:
        provider = claim.provider
        if claim.namespace == namespace and isinstance(provider, WorkerProvider) and provider.type_id == sent_id:
            return claim
    return None
