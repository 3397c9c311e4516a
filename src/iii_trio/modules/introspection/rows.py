"""Rows of the introspection functions: what the core holds, in the shapes of spec/observability-introspection.md §14.

Plain functions of the engine; every row is a fresh dict.
"""

from collections.abc import Iterable
from typing import Any, Final

from ...__about__ import __version__
from ...config import WORKERS
from ...engine import (
    DEFAULT_NAMESPACE,
    Binding,
    BindingState,
    Engine,
    FunctionEntry,
    LocalPeer,
    Peer,
    Refusal,
    RemotePeer,
    TypeClaim,
)
from ...protocol import Json, JsonError, errors
from ...protocol.limits import MAX_DEPTH
from ...protocol.scan import deeper_than

Row = dict[str, Any]

MODULE_NAME: Final = "engine-functions"
_ESTABLISHED: Final = {worker.canonical: worker.established for worker in WORKERS}
_DESCRIPTIONS: Final = {
    "engine-functions": "The engine about itself: what is registered, who is connected, what runs.",
    "http": "Serves functions over HTTP.",
    "http-functions": "Runs functions that workers registered as HTTP endpoints.",
    "pubsub": "Delivers published messages to every subscription of a topic.",
    "queue": "Durable queues and topics, with retries and dead letters.",
    "state": "Distributed key-value state management with reactive change triggers.",
}
SUMMARY_CHARS: Final = 80
_VALUE_LEVELS: Final = MAX_DEPTH - 8
"""Levels of a registered value that are shown: rows and frames add some, and nobody reads more than `MAX_DEPTH`."""
_TELEMETRY: Final = ("language", "project_name", "framework")


def value_of(text: Json) -> Any:
    """A registered value as plain data; None for nothing, and for text that another peer's decoder would choke on."""
    raw = text.raw
    if raw.count(b"{") + raw.count(b"[") > _VALUE_LEVELS and deeper_than(raw, _VALUE_LEVELS):
        return None
    try:
        return text.decode()
    except JsonError:
        return None


def module_of(peer: LocalPeer) -> str:
    """The canonical name of the module behind a local peer; the core itself counts as this module."""
    return MODULE_NAME if peer.name == "engine" else peer.name or peer.id


def worker_name(peer: Peer) -> str | None:
    """The name that lists show for a peer: a worker's own, or the established one of a built-in."""
    if not isinstance(peer, LocalPeer):
        return peer.name
    module = module_of(peer)
    return _ESTABLISHED.get(module, module)


def owner_name(owner: Peer | None, item_id: str) -> str:
    """Who serves a function or a trigger type; the id's first segment when nobody with a name does. Never empty."""
    name = None if owner is None else worker_name(owner)
    return name or item_id.partition("::")[0] or item_id


def function_summary(entry: FunctionEntry) -> Row:
    """A FunctionSummary. Ours adds `replicas`: how many workers serve a shared function."""
    row: Row = {
        "function_id": entry.id,
        "namespace": entry.namespace,
        "worker_name": owner_name(entry.owner, entry.id),
        "description": entry.description,
        "metadata": value_of(entry.metadata),
        "replicas": None if entry.replicas is None else len(entry.replicas),
    }
    return _without_none(row, ("description", "metadata", "replicas"))


def refused_function(refusal: Refusal) -> Row:
    """A registration that was refused: which, by whom it was asked for, and why; ours."""
    return {
        "function_id": refusal.function_id,
        "namespace": refusal.namespace,
        "worker_name": owner_name(refusal.owner, refusal.function_id),
        "code": refusal.error.code,
        "reason": errors.shorten(refusal.error.message),
        "refused_at_ms": refusal.at_ms,
    }


def function_detail(core: Engine, entry: FunctionEntry) -> Row:
    """A FunctionDetail, with the live bindings of the function."""
    bindings = [
        {"id": binding.id, "trigger_type": type_shown(binding), "config": value_of(binding.config)}
        for binding in core.triggers
        if binding.state is BindingState.LIVE
        and (binding.namespace, binding.function_id) == (entry.namespace, entry.id)
    ]
    row: Row = {
        **function_summary(entry),
        "request_schema": value_of(entry.request_format),
        "response_schema": value_of(entry.response_format),
        "registered_triggers": bindings,
    }
    return _without_none(row, ("request_schema", "response_schema"))


def type_summary(claim: TypeClaim) -> Row:
    """A TriggerTypeSummary."""
    return {
        "id": claim.id,
        "namespace": claim.namespace,
        "worker_name": owner_name(claim.owner, claim.id),
        "description": claim.description,
    }


def type_with_formats(claim: TypeClaim) -> Row:
    """A trigger type as engines up to 0.20 listed it: the summary with both schemas, under the names of the wire."""
    row: Row = {
        **type_summary(claim),
        "trigger_request_format": value_of(claim.config_format),
        "call_request_format": value_of(claim.call_format),
    }
    return _without_none(row, ("trigger_request_format", "call_request_format"))


def type_detail(core: Engine, claim: TypeClaim) -> Row:
    """A TriggerTypeDetail; `instance_count` has the live bindings of this very provider."""
    row: Row = {
        **type_summary(claim),
        "configuration_schema": value_of(claim.config_format),
        "request_schema": value_of(claim.call_format),
        "response_schema": value_of(claim.return_format),
        "instance_count": sum(binding.claim is claim for binding in core.triggers),
    }
    return _without_none(row, ("configuration_schema", "request_schema", "response_schema"))


def type_shown(binding: Binding) -> str:
    """The trigger type of a binding: the one that serves it, else its canonical name."""
    return binding.type_id if binding.claim is None else binding.claim.id


def binding_row(core: Engine, binding: Binding) -> Row:
    """A RegisteredTriggerSummary. Ours adds `namespace` (the target's), `state`, and `why` where it is not live."""
    target = core.functions.get(binding.namespace, binding.function_id)
    config = value_of(binding.config)
    text = Json.of(config).raw.decode()
    row: Row = {
        "id": binding.id,
        "trigger_type": type_shown(binding),
        "function_id": binding.function_id,
        "namespace": binding.namespace,
        "worker_name": owner_name(None if target is None else target.owner, binding.function_id),
        "config": config,
        "config_summary": text if len(text) <= SUMMARY_CHARS else f"{text[:SUMMARY_CHARS]}…",
        "state": binding.state.value,
        "why": binding.why or None,
    }
    return _without_none(row, ("why",))


def remote_row(peer: RemotePeer, functions: list[str]) -> Row:
    """A WorkerSummary of a connected worker with these `functions`. Ours adds them, `pid`, `telemetry`, `internal`."""
    info = peer.info
    return {
        "name": peer.name,
        "description": peer.description,
        "version": info and info.version,
        "id": peer.id,
        "namespace": peer.namespace,
        "runtime": info and info.runtime,
        "os": info and info.os,
        "status": "connected",
        "function_count": len(functions),
        "connected_at_ms": peer.connected_at_ms,
        "active_invocations": len(peer.calls) + len(peer.running),
        "isolation": info and info.isolation,
        "ip_address": peer.address,
        "functions": functions,
        "pid": info and info.pid,
        "telemetry": _telemetry(None if info is None else info.telemetry),
        "internal": False,
    }


def _telemetry(told: dict[str, Any] | None) -> Row | None:
    """What a worker told of its project; whatever else it told, such as a key of somebody's, is for nobody (§15)."""
    if told is None:
        return None
    return {key: value if isinstance(value := told.get(key), str) else None for key in _TELEMETRY}


def module_row(module: str, peers: Iterable[Peer], functions: list[str], started_at_ms: int) -> Row:
    """A WorkerSummary of a built-in module with these `functions`."""
    return {
        "name": _ESTABLISHED.get(module, module),
        "description": _DESCRIPTIONS.get(module),
        "version": __version__,
        "id": module,
        "namespace": DEFAULT_NAMESPACE,
        "runtime": "engine",
        "os": None,
        "status": "available",
        "function_count": len(functions),
        "connected_at_ms": started_at_ms,
        "active_invocations": sum(len(peer.calls) + len(peer.running) for peer in peers),
        "isolation": "in-process",
        "ip_address": None,
        "functions": functions,
        "pid": None,
        "telemetry": None,
        "internal": any(worker.canonical == module and worker.always_on for worker in WORKERS),
    }


def _without_none(row: Row, keys: tuple[str, ...]) -> Row:
    for key in keys:
        if row[key] is None:
            del row[key]
    return row
