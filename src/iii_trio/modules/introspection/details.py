"""`engine::triggers::info` and `engine::registered-triggers::info`: one trigger type, one binding (§14)."""

from ...engine import DEFAULT_NAMESPACE, Call, Engine
from ...engine.triggers import ALIASES
from ...protocol import errors
from ...protocol.errors import WireError
from ..inputs import Fields
from . import rows, sight
from .rows import Row
from .workers import NOT_FOUND


def trigger_type(core: Engine, call: Call, fields: Fields) -> Row:
    """A TriggerTypeDetail, by `id` and `namespace`; an alias finds the type that it stands for.

    Raises `WireError`: `NOT_FOUND`, or `FORBIDDEN` for a type that the caller's session may not bind.
    """
    type_id, namespace = fields.text("id"), fields.text_or_none("namespace") or DEFAULT_NAMESPACE
    if not namespace.strip():
        raise WireError(errors.blank_namespace_text(), errors.INVALID_NAMESPACE)
    triggers = core.triggers
    claim = triggers.provider(namespace, type_id) or triggers.provider(namespace, ALIASES.get(type_id, type_id))
    session = call.origin.session
    refusal = None if session is None else session.check_type(type_id)
    if refusal is not None and (claim is None or claim.owner is not call.origin):
        raise refusal
    if claim is None:
        raise WireError(f"Trigger type '{type_id}' is not registered in namespace '{namespace}'.", NOT_FOUND)
    return rows.type_detail(core, claim)


def registered_trigger(core: Engine, call: Call, fields: Fields) -> Row:
    """One binding by `id`, in any state, with its trigger type and its function; null for either that is not there.

    Raises `WireError` with `NOT_FOUND`, also for a binding that the caller's session does not see.
    """
    viewer, binding_id = call.origin, fields.text("id")
    session = viewer.session
    binding = core.triggers.get(binding_id if session is None else session.triggers.get(binding_id, binding_id))
    if binding is None or not sight.binding(core, viewer, binding):
        raise WireError(f"Registered trigger '{binding_id}' was not found.", NOT_FOUND)
    claim, target = binding.claim, core.functions.get(binding.namespace, binding.function_id)
    callable_ = target is not None and sight.function(core, session, target.namespace, target.id)
    row = rows.binding_row(core, binding)
    del row["config_summary"]
    if binding.metadata.raw:
        row["metadata"] = rows.value_of(binding.metadata)
    return {
        **row,
        "trigger": rows.type_detail(core, claim) if claim is not None and sight.trigger_type(viewer, claim) else None,
        "function": rows.function_detail(core, target) if target is not None and callable_ else None,
    }
