"""What the introspection functions show to whom: to a connection under access control what it may use, and its own.

Without a session everybody sees everything. Decided the stricter way than spec/observability-introspection.md §17 has
it, for what it lists among its weak spots (§21): ids, configurations, addresses and process ids of others stay hidden.
"""

from ...engine import Binding, Engine, FunctionEntry, Peer, TypeClaim
from ...engine.access import Session


def function(core: Engine, session: Session | None, namespace: str, function_id: str) -> bool:
    """A function that it may call."""
    if session is None:
        return True
    entry = core.functions.get(namespace, function_id)
    return core.access.check(session, namespace, function_id, entry) is None


def session_of(shown: Binding) -> Session | None:
    """Whose eyes a binding's events are for: its owner's, or those of who made it to outlast the connection."""
    return shown.session if shown.owner is None else shown.owner.session


def served_by(core: Engine, viewer: Peer | None, session: Session | None, peer: Peer) -> list[FunctionEntry]:
    """The functions of `peer` that `viewer`, whose session it is, sees, by id; all of its own."""
    entries = (
        entry
        for (namespace, function_id), entry in peer.functions.items()
        if viewer is peer or function(core, session, namespace, function_id)
    )
    return sorted(entries, key=lambda entry: entry.id)


def trigger_type(viewer: Peer, claim: TypeClaim) -> bool:
    """A trigger type that it may bind functions to, or provides."""
    return viewer.session is None or claim.owner is viewer or viewer.session.check_type(claim.id) is None


def binding(core: Engine, viewer: Peer, shown: Binding) -> bool:
    """A binding of a function that it may call, or one that it made."""
    return shown.owner is viewer or function(core, viewer.session, shown.namespace, shown.function_id)


def worker(core: Engine, viewer: Peer | None, session: Session | None, peer: Peer) -> bool:
    """Itself, and whoever serves a function that it may call."""
    return session is None or viewer is peer or bool(served_by(core, viewer, session, peer))
