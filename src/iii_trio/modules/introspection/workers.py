"""`engine::workers::list` and `engine::workers::info`: who is connected, and every module (§14, §15)."""

from collections.abc import Iterable
from typing import Any, Final

from attrs import frozen

from ...engine import DEFAULT_NAMESPACE, Binding, BindingState, Call, Engine, LocalPeer, Peer, RemotePeer
from ...protocol import errors
from ...protocol.errors import WireError
from ..inputs import Fields
from . import rows, sight
from .metrics import Telemetry
from .rows import Row

NOT_FOUND: Final = "NOT_FOUND"


@frozen
class Workers:
    """Both functions. `started_at_ms` (Unix) is when the modules are said to have come."""

    telemetry: Telemetry
    started_at_ms: int

    def list(self, core: Engine, call: Call, fields: Fields) -> Row:
        """All connected workers, whether they told a pid or not, and every module; to a session those that it sees."""
        search, runtime, status = (fields.text_or_none(name) for name in ("search", "runtime", "status"))
        found = [
            row
            for row in (self._row(core, call.origin, peers) for peers in _everybody(core))
            if row is not None
            and (search is None or search.lower() in (row["name"] or "").lower())
            and runtime in (None, row["runtime"])
            and status in (None, row["status"])
        ]
        return {"workers": sorted(found, key=lambda row: (row["name"] or row["id"], row["id"]))}

    def info(self, core: Engine, call: Call, fields: Fields) -> Row:
        """One worker by `name` (and `namespace`), or by `id`: a WorkerDetail with all that it registered.

        Raises `WireError` with `NOT_FOUND`, also for a worker that a session does not see.
        """
        name, worker_id = fields.text_or_none("name"), fields.text_or_none("id")
        namespace = fields.text_or_none("namespace")
        if namespace is not None and not namespace.strip():
            raise WireError(errors.blank_namespace_text(), errors.INVALID_NAMESPACE)
        if name is None and worker_id is None:
            raise fields.refuse("missing field `name`")
        known = {(row["id"], row["name"], row["namespace"]): (peers, row) for peers, row in self._seen(core, call)}
        if worker_id is not None:
            keys = [key for key in known if key[0] == worker_id and namespace in (None, key[2])]
            if not keys:
                raise WireError(f"Worker '{worker_id}' is not connected.", NOT_FOUND)
            key = keys[0]
        else:
            assert name is not None
            # a module is found by its short name as well, where no worker has it
            found = {key[2]: key for key in known if key[0] == name} | {key[2]: key for key in known if key[1] == name}
            key = _choose(name, namespace, found)
        peers, row = known[key]
        detail = {key: value for key, value in row.items() if value is not None or key != "pid"}
        return {"worker": detail, **_registered(core, call.origin, peers)}

    def _seen(self, core: Engine, call: Call) -> "Iterable[tuple[tuple[Peer, ...], Row]]":
        for peers in _everybody(core):
            row = self._row(core, call.origin, peers)
            if row is not None:
                yield peers, row

    def _row(self, core: Engine, viewer: Peer, peers: tuple[Peer, ...]) -> Row | None:
        """The row of one worker, or None when `viewer` does not see it. Of others a session sees no whereabouts."""
        if not any(sight.worker(core, viewer, viewer.session, peer) for peer in peers):
            return None
        served = (entry for peer in peers for entry in sight.served_by(core, viewer, viewer.session, peer))
        functions = sorted({entry.id for entry in served})
        (first, *_) = peers
        if isinstance(first, LocalPeer):
            return rows.module_row(rows.module_of(first), peers, functions, self.started_at_ms)
        assert isinstance(first, RemotePeer)
        row = rows.remote_row(first, functions)
        metrics = self.telemetry.latest(first.id)
        if metrics is not None:
            row["latest_metrics"] = {**metrics, "runtime": row["runtime"]}
        if viewer.session is not None and viewer is not first:
            row.update(dict.fromkeys(("ip_address", "pid", "telemetry"), None))
            row.pop("latest_metrics", None)
        return row


def _everybody(core: Engine) -> list[tuple[Any, ...]]:
    """Every worker as the peers that it is: one connection, or the peers of one module."""
    modules: dict[str, list[LocalPeer]] = {}
    for peer in core.locals():
        modules.setdefault(rows.module_of(peer), []).append(peer)
    return [*((peer,) for peer in core.workers), *map(tuple, modules.values())]


def _choose(name: str, namespace: str | None, found: dict[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    """The rule of namespaces: a named one is strict; else `default` wins, then the only one. Raises `NOT_FOUND`."""
    spaces = ", ".join(sorted(found))
    if not found:
        raise WireError(f"Worker '{name}' is not connected.", NOT_FOUND)
    if namespace is not None and namespace not in found:
        text = (
            f"Worker '{name}' is not connected in the requested namespace; it is connected in namespace(s): {spaces}."
        )
        raise WireError(text, NOT_FOUND)
    chosen = namespace or (DEFAULT_NAMESPACE if DEFAULT_NAMESPACE in found else None)
    if chosen is None and len(found) > 1:
        text = (
            f"Worker '{name}' is ambiguous: it is connected in namespace(s): {spaces}. "
            "Pass `namespace` to disambiguate."
        )
        raise WireError(text, NOT_FOUND)
    return found[chosen] if chosen is not None else next(iter(found.values()))


def _registered(core: Engine, viewer: Peer, peers: tuple[Peer, ...]) -> Row:
    """What a worker serves and provides, and the live triggers of its functions."""

    def serves(binding: Binding) -> bool:
        target = core.functions.get(binding.namespace, binding.function_id)
        return target is not None and target.owner in peers

    claims = [claim for claim in core.triggers.types() if claim.owner in peers and sight.trigger_type(viewer, claim)]
    functions = [entry for peer in peers for entry in sight.served_by(core, viewer, viewer.session, peer)]
    return {
        "functions": [
            rows.function_summary(entry) for entry in sorted(functions, key=lambda entry: (entry.id, entry.namespace))
        ],
        "trigger_types": [rows.type_summary(claim) for claim in sorted(claims, key=lambda claim: claim.id)],
        "registered_triggers": [
            rows.binding_row(core, binding)
            for binding in core.triggers
            if binding.state is BindingState.LIVE and serves(binding) and sight.binding(core, viewer, binding)
        ],
    }
