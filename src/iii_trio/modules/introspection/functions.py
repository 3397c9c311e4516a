"""The introspection functions: lists of what is registered, health, the task tree, and the loggers of old SDKs.

spec/observability-introspection.md §10 (health), §7.3 (log functions), §14 (lists), §17 (what a session may see).
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ...__about__ import __version__
from ...engine import (
    DEFAULT_NAMESPACE,
    NOTHING,
    Binding,
    BindingState,
    Call,
    Engine,
    Firing,
    FunctionEntry,
    LocalPeer,
    Outcome,
    TypeClaim,
    open_local,
)
from ...engine.access import Session
from ...engine.firing import FiringStatistics
from ...engine.triggers import ALIASES
from ...protocol import Json, errors
from ...protocol.errors import WireError
from ..inputs import Fields, call_fields, object_schema
from . import baggage, details, rows, sight
from .availability import TOLD_S, Availability, AvailabilityStatistics
from .metrics import Telemetry, TelemetryStatistics
from .rows import Row
from .tasks import task_tree
from .workers import NOT_FOUND, Workers

worker_log = logging.getLogger("iii_trio.worker")

INVALID_ARGUMENTS: Final = "INVALID_ARGUMENTS"
BATCH: Final = 32
LOG_DETAILS: Final = 64 * 1024
"""Bytes of a log call above which only its message is kept: records are formatted on the loop."""

LEVELS: Final = {
    "trace": logging.DEBUG - 5,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_STATES: Final = {
    "live": frozenset({BindingState.LIVE}),
    "parked": frozenset({BindingState.PARKED}),
    "refused": frozenset({BindingState.REFUSED}),
    "all": frozenset({BindingState.LIVE, BindingState.PARKED, BindingState.REFUSED}),
}

_TEXT: Final = {"type": ["string", "null"]}
_TEXTS: Final = {"type": ["array", "null"], "items": {"type": "string"}}
_FLAG: Final = {"type": ["boolean", "null"]}
_FILTERS: Final = {"search": _TEXT, "prefix": _TEXT, "worker": _TEXT, "include_internal": _FLAG}
_LOG_INPUT: Final = object_schema(
    "LogInput",
    {"message": {"type": "string"}, "data": {}, "trace_id": _TEXT, "span_id": _TEXT, "service_name": _TEXT},
    ("message",),
)


def _list_of(title: str, key: str) -> dict[str, Any]:
    return object_schema(title, {key: {"type": "array", "items": {"type": "object"}}}, (key,))


@frozen
class IntrospectionStatistics:
    """What the module holds; all are None while it does not run."""

    availability: AvailabilityStatistics | None
    firing: FiringStatistics | None
    telemetry: TelemetryStatistics | None


@define(eq=False)
class IntrospectionModule:
    """The module; it has no settings. It stands beside the core and only reads it."""

    _availability: Availability | None = field(default=None, init=False)
    _telemetry: Telemetry | None = field(default=None, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is told once everything is registered."""
        async with open_local(core, rows.MODULE_NAME) as peer:
            telemetry = self._telemetry = Telemetry(core)
            self._register(core, peer, telemetry)
            self._availability = Availability(core, Firing(peer, handler_timeout_s=TOLD_S))
            close = self._availability.open(peer), telemetry.open()
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                for end in close:
                    end()
                self._availability = self._telemetry = None

    def _register(self, core: Engine, peer: LocalPeer, telemetry: Telemetry) -> None:
        workers = Workers(telemetry, core.clock.wall_ms())

        def add(
            function_id: str,
            handler: Callable[[Engine, Call, Fields], Any],
            description: str,
            request: dict[str, Any],
            response: dict[str, Any],
        ) -> None:
            def answer(call: Call, data: Json) -> Outcome:
                return Outcome(Json.of(handler(core, call, call_fields(call, data, optional=True))))

            peer.register(
                function_id, answer, description=description, request_format=request, response_format=response
            )

        add(
            "engine::functions::list",
            _functions_list,
            "All functions that can be called; on request those that were refused, with the reason.",
            object_schema("FunctionsListInput", {**_FILTERS, "workers": _TEXTS, "include_refused": _FLAG}),
            _list_of("FunctionsListResult", "functions"),
        )
        add(
            "engine::functions::info",
            _functions_info,
            "One function, or up to 32, with schemas and live triggers.",
            object_schema("FunctionsInfoInput", {"function_id": _TEXT, "function_ids": _TEXTS, "namespace": _TEXT}),
            object_schema("FunctionsInfoResult", {}),
        )
        add(
            "engine::triggers::list",
            partial(_types_list, "triggers", rows.type_summary),
            "All trigger types.",
            object_schema("TriggersListInput", _FILTERS),
            _list_of("TriggersListResult", "triggers"),
        )
        add(
            "engine::triggers::info",
            details.trigger_type,
            "One trigger type, with its schemas.",
            object_schema("TriggersInfoInput", {"id": {"type": "string"}, "namespace": _TEXT}, ("id",)),
            object_schema("TriggersInfoResult", {}, ("id", "namespace", "worker_name", "description")),
        )
        add(
            "engine::trigger-types::list",
            partial(_types_list, "trigger_types", rows.type_with_formats),
            "All trigger types with their schemas.",
            object_schema("TriggerTypesListInput", _FILTERS),
            _list_of("TriggerTypesListResult", "trigger_types"),
        )
        add(
            "engine::registered-triggers::list",
            _bindings_list,
            "Registered triggers; those that do not fire on request, with the reason.",
            object_schema(
                "RegisteredTriggersListInput",
                {
                    "search": _TEXT,
                    "trigger_type": _TEXT,
                    "function_id": _TEXT,
                    "worker": _TEXT,
                    "include_internal": _FLAG,
                    "include_inactive": _FLAG,
                    "state": {"type": ["string", "null"], "enum": [*_STATES, None]},
                },
            ),
            _list_of("RegisteredTriggersListResult", "registered_triggers"),
        )
        add(
            "engine::registered-triggers::info",
            details.registered_trigger,
            "One registered trigger, with its trigger type and its function.",
            object_schema("RegisteredTriggersInfoInput", {"id": {"type": "string"}}, ("id",)),
            object_schema("RegisteredTriggersInfoResult", {}, ("id", "trigger", "function")),
        )
        add(
            "engine::workers::list",
            workers.list,
            "All connected workers and the built-in ones.",
            object_schema("WorkersListInput", {"search": _TEXT, "runtime": _TEXT, "status": _TEXT}),
            _list_of("WorkersListResult", "workers"),
        )
        add(
            "engine::workers::info",
            workers.info,
            "One worker by name or id, with all that it registered and its newest metrics.",
            object_schema("WorkersInfoInput", {"name": _TEXT, "namespace": _TEXT, "id": _TEXT}),
            object_schema("WorkersInfoResult", {}, ("worker", "functions", "trigger_types", "registered_triggers")),
        )
        add(
            "engine::health::check",
            partial(_health, telemetry),
            "How the engine is, and in which state of its life.",
            object_schema("HealthCheckInput", {}),
            object_schema("HealthCheckResult", {}, ("status", "state", "components", "timestamp", "version")),
        )
        add(
            "engine::tree",
            lambda _core, _call, _fields: task_tree(),
            "The live tree of tasks.",
            object_schema("TreeInput", {}),
            object_schema("TreeResult", {}, ("name", "children")),
        )
        text = {"type": "string"}
        add(
            "engine::baggage::get",
            baggage.get,
            "One entry of the baggage that this call brings.",
            object_schema("BaggageGetInput", {"key": text}, ("key",)),
            object_schema("BaggageGetResult", {"value": _TEXT}, ("value",)),
        )
        add(
            "engine::baggage::get_all",
            baggage.get_all,
            "All of the baggage that this call brings.",
            object_schema("BaggageGetAllInput", {}),
            object_schema("BaggageGetAllResult", {"baggage": {"type": "object"}}, ("baggage",)),
        )
        add(
            "engine::baggage::set",
            baggage.put,
            "Checks an entry of baggage; what is to travel, an SDK sends along.",
            object_schema("BaggageSetInput", {"key": text, "value": text}, ("key", "value")),
            object_schema("BaggageSetResult", {"success": {"type": "boolean"}, "note": text}, ("success", "note")),
        )
        for name, level in LEVELS.items():
            peer.register(
                f"engine::log::{name}",
                partial(_log, level),
                description=f"Write a line to the engine's log, level {name}.",
                request_format=_LOG_INPUT,
            )

    def statistics(self) -> IntrospectionStatistics:
        """A frozen picture of subscribers, deliveries and telemetry."""
        running, telemetry = self._availability, self._telemetry
        return IntrospectionStatistics(
            availability=None if running is None else running.statistics(),
            firing=None if running is None else running.firing.statistics(),
            telemetry=None if telemetry is None else telemetry.statistics(),
        )


# -- functions --------------------------------------------------------------------------------------------------------


def _functions_list(core: Engine, call: Call, fields: Fields) -> Row:
    """`engine::functions::list`: internal functions only on request, and to a session only what it may call.

    Ours: with `include_refused` a second list, `refused`, has the registrations that were refused, and why.
    """
    search, prefix = fields.text_or_none("search"), fields.text_or_none("prefix")
    one, several = fields.text_or_none("worker"), fields.texts_or_none("workers")
    workers = None if one is None and several is None else {*(several or ()), *(() if one is None else (one,))}
    with_internal = fields.flag("include_internal")
    found: list[FunctionEntry] = []
    for entry in core.functions:
        if not with_internal and _internal(entry):
            continue
        if prefix is not None and not entry.id.startswith(prefix):
            continue
        if workers is not None and rows.owner_name(entry.owner, entry.id) not in workers:
            continue
        if not _contains(search, entry.id, entry.description):
            continue
        if sight.function(core, call.origin.session, entry.namespace, entry.id):
            found.append(entry)
    found.sort(key=lambda entry: (_rank(search, entry.id), entry.id, entry.namespace))
    result: Row = {"functions": [rows.function_summary(entry) for entry in found]}
    if fields.flag("include_refused"):
        result["refused"] = [
            rows.refused_function(refusal)
            for refusal in core.delegation.refusals()
            if sight.function(core, call.origin.session, refusal.namespace, refusal.function_id)
            and (prefix is None or refusal.function_id.startswith(prefix))
            and (workers is None or rows.owner_name(refusal.owner, refusal.function_id) in workers)
            and _contains(search, refusal.function_id)
        ]
    return result


def _internal(entry: FunctionEntry) -> bool:
    if entry.id.startswith("engine::"):
        return not entry.id.startswith("engine::queue::")
    metadata = rows.value_of(entry.metadata)
    return isinstance(metadata, dict) and metadata.get("internal") is True


def _rank(search: str | None, function_id: str) -> int:
    """How well an id fits a search: 0 it starts with it or has it as a segment, 1 contains it, 2 only its description."""
    if search is None:
        return 0
    needle, subject = search.lower(), function_id.lower()
    if subject.startswith(needle) or needle in subject.split("::"):
        return 0
    return 1 if needle in subject else 2


def _functions_info(core: Engine, call: Call, fields: Fields) -> Row:
    """`engine::functions::info`: one FunctionDetail, or `{"functions": […]}` with a marker for each that cannot be shown."""
    single, batch = fields.text_or_none("function_id"), fields.values.get("function_ids")
    namespace = fields.text_or_none("namespace")
    session = call.origin.session
    if namespace is not None and not namespace.strip():
        raise WireError(errors.blank_namespace_text(), errors.INVALID_NAMESPACE)
    if single is not None and batch is not None:
        raise WireError("pass either `function_id` or `function_ids`, not both", INVALID_ARGUMENTS)
    if single is not None:
        return rows.function_detail(core, _find(core, session, single, namespace))
    if batch is None:
        raise WireError("missing field `function_id` (or `function_ids` for a batch)", INVALID_ARGUMENTS)
    if not isinstance(batch, list) or not batch or not all(isinstance(item, str) for item in batch):
        raise WireError("`function_ids` must be a non-empty array of function ids", INVALID_ARGUMENTS)
    wanted = list(dict.fromkeys(batch))
    if len(wanted) > BATCH:
        raise WireError(f"too many function_ids (max {BATCH})", INVALID_ARGUMENTS)
    return {"functions": [_detail_or_marker(core, session, function_id, namespace) for function_id in wanted]}


def _detail_or_marker(core: Engine, session: Session | None, function_id: str, namespace: str | None) -> Row:
    try:
        return rows.function_detail(core, _find(core, session, function_id, namespace))
    except WireError as error:
        return {"function_id": function_id, "error": "forbidden" if error.code == errors.FORBIDDEN else "not_found"}


def _find(core: Engine, session: Session | None, function_id: str, namespace: str | None) -> FunctionEntry:
    """A bare id: `default` first, else the one namespace that has it. A named namespace is strict.

    Raises `WireError`, `NOT_FOUND` or `FORBIDDEN`, which tells a session nothing of what it does not see.
    """

    def seen(space: str) -> bool:
        return sight.function(core, session, space, function_id)

    spaces = core.functions.namespaces_of(function_id)
    space = namespace or (spaces[0] if len(spaces) == 1 else DEFAULT_NAMESPACE)
    entry = core.functions.get(space, function_id)
    if entry is not None and seen(space):
        return entry
    if not spaces:
        why = core.delegation.why_missing(space, function_id) if seen(space) else ""
        raise WireError(f"Function '{function_id}' is not registered.{why and f' {why}.'}", NOT_FOUND)
    spaces = [one for one in spaces if seen(one)]
    if entry is not None or not spaces:
        raise WireError(f"Function '{function_id}' is not visible to this session.", errors.FORBIDDEN)
    text = (
        f"Function '{function_id}' is ambiguous: it is registered in namespace(s): {', '.join(spaces)}. "
        "Pass `namespace` to select one."
    )
    raise WireError(text, NOT_FOUND)


# -- triggers ---------------------------------------------------------------------------------------------------------


def _types_list(key: str, shape: Callable[[TypeClaim], Row], core: Engine, call: Call, fields: Fields) -> Row:
    """`engine::triggers::list` and its older sibling: the trigger types somebody provides."""
    search, prefix = fields.text_or_none("search"), fields.text_or_none("prefix")
    worker, with_internal = fields.text_or_none("worker"), fields.flag("include_internal")
    found = [
        claim
        for claim in core.triggers.types()
        if (with_internal or not claim.id.startswith("engine::"))
        and sight.trigger_type(call.origin, claim)
        and claim.id.startswith(prefix or "")
        and _is(worker, rows.owner_name(claim.owner, claim.id))
        and _contains(search, claim.id, claim.description)
    ]
    found.sort(key=lambda claim: (claim.id, claim.namespace))
    return {key: [shape(claim) for claim in found]}


def _bindings_list(core: Engine, call: Call, fields: Fields) -> Row:
    """`engine::registered-triggers::list`: live bindings, or with `state` or `include_inactive` others, and why."""
    search, trigger_type = fields.text_or_none("search"), fields.text_or_none("trigger_type")
    function_id, worker = fields.text_or_none("function_id"), fields.text_or_none("worker")
    with_internal = fields.flag("include_internal")
    state = fields.text_or_none("state") or ("all" if fields.flag("include_inactive") else "live")
    states = _STATES.get(state)
    if states is None:
        raise fields.refuse(f"field `state` is '{state}', expected one of {', '.join(_STATES)}")
    if trigger_type is not None:
        trigger_type = ALIASES.get(trigger_type, trigger_type)

    def wanted(binding: Binding) -> bool:
        return (
            binding.state in states
            and (with_internal or not binding.function_id.startswith("engine::"))
            and _is(function_id, binding.function_id)
            and (trigger_type is None or trigger_type in (rows.type_shown(binding), binding.type_id))
            and _contains(search, binding.id, rows.type_shown(binding), binding.function_id)
            and sight.binding(core, call.origin, binding)
        )

    found = [rows.binding_row(core, binding) for binding in core.triggers if wanted(binding)]
    return {"registered_triggers": [row for row in found if _is(worker, row["worker_name"])]}


# -- health and logs --------------------------------------------------------------------------------------------------


def _health(telemetry: Telemetry, core: Engine, call: Call, fields: Fields) -> Row:
    """`engine::health::check` (§10). Ours adds `state` and the components `engine` and `modules`.

    Degraded is an engine that drains, and one with a module that is being restarted.
    """
    picture = core.statistics()
    triggers = picture.triggers
    engine = {
        "id": core.id,
        "workers": picture.workers.connected,
        "functions": picture.functions.serving,
        "trigger_types": triggers.types,
        "triggers": {"live": triggers.live, "parked": triggers.parked, "refused": triggers.refused},
        "running_calls": picture.running,
        "telemetry_frames": telemetry.counts(),
    }
    components = {
        "engine": _component(not core.draining, engine),
        "modules": _component(all(state == "running" for state in core.modules.values()), dict(core.modules)),
    }
    healthy = all(component["status"] == "healthy" for component in components.values())
    disabled = {"status": "disabled", "details": None}
    return {
        "status": "healthy" if healthy else "degraded",
        "state": core.state.value,
        "components": {**components, **dict.fromkeys(("otel", "metrics", "logs", "spans"), disabled)},
        "timestamp": core.clock.wall_ms(),
        "version": __version__,
    }


def _component(healthy: bool, details: Row) -> Row:
    return {"status": "healthy" if healthy else "degraded", "details": details}


def _log(level: int, call: Call, data: Json) -> Outcome:
    """`engine::log::<level>` (§7.3): one record of the logger `iii_trio.worker`, whose source is the service; no result."""
    fields = call_fields(call, data)
    message = fields.text("message")
    service = fields.text_or_none("service_name") or fields.text_or_none("function_name") or call.origin.name
    details = {"trace_id": fields.text_or_none("trace_id"), "span_id": fields.text_or_none("span_id")}
    if worker_log.isEnabledFor(level):
        extra: dict[str, Any] = {"source": service or "unknown"}
        if len(data) <= LOG_DETAILS:
            extra.update({name: value for name, value in details.items() if value})
            extra.update({"data": fields.values["data"]} if fields.values.get("data") is not None else {})
        worker_log.log(level, "%s", message, extra=extra)
    return NOTHING


def _is(wanted: str | None, value: str | None) -> bool:
    return wanted is None or wanted == value


def _contains(search: str | None, *subjects: str | None) -> bool:
    """Whether a search, case aside, is found in one of the subjects; no search finds everything."""
    return search is None or any(search.lower() in subject.lower() for subject in subjects if subject is not None)
