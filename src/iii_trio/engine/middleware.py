"""Calls that go through a function of the operator's first (spec/protocol.md §15): re-targeting, never an await.

A middleware gets the call as its input and answers it in the target's place, usually after calling the target itself
over a connection of its own. It is looked up in the namespace of the call and then in `default` (§20.26); without one
the call fails. The engine does not apply the call's action: that, too, is the middleware's to do.
"""

from typing import TYPE_CHECKING

from ..protocol import EMPTY_OBJECT, Json, codec, errors
from ..protocol.codec import Envelope
from ..protocol.errors import WireError
from ..protocol.limits import MAX_DEPTH
from .invocations import Outcome
from .peer import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from .functions import FunctionEntry
    from .remote import RemotePeer

BUILT_IN = "engine::"


def _serving(peer: "RemotePeer", middleware: str, space: str) -> "FunctionEntry | None":
    functions = peer.core.functions
    return functions.get(space, middleware) or functions.get(DEFAULT_NAMESPACE, middleware)


def applies(peer: "RemotePeer", middleware: str, namespace: str | None, function_id: str) -> bool:
    """Whether a call of `peer` goes through its port's middleware.

    The engine's own `engine::…` functions are called directly, and so is everything by a connection that serves the
    middleware: it would call itself for ever. (One that only stands by for it does not serve it.)
    """
    space = namespace or DEFAULT_NAMESPACE
    entry = peer.core.functions.get(space, function_id)
    if entry is not None and entry.builtin and function_id.startswith(BUILT_IN):
        return False
    serving = _serving(peer, middleware, space)
    if serving is None:
        return True
    own = peer.functions.get((serving.namespace, middleware))
    return own is None or (own is not serving and own.replicas is None)


def call(
    peer: "RemotePeer",
    middleware: str,
    envelope: Envelope,
    function_id: str,
    namespace: str | None,
    reply_id: str | None,
    timeout_s: float | None,
) -> Outcome | None:
    """Call the middleware in the place of what `peer` called; the outcome by which that was refused, or None.

    Its result or error is the answer under `reply_id`, with the id of the function that was called.
    """
    core, session, space = peer.core, peer.session, namespace or DEFAULT_NAMESPACE
    if session is not None:
        refusal = core.access.check(session, space, function_id, core.functions.get(space, function_id))
        if refusal is not None:
            return Outcome.failed(refusal)
    data = codec.encode_object(
        {
            "function_id": function_id,
            "payload": Json(codec.strip_caller(bytes(envelope.data))),
            "action": Json(bytes(envelope.action)),
            "context": EMPTY_OBJECT if session is None else session.context,
            "namespace": space,
        }
    )
    if codec.nests_too_deep(data):
        text = f"the payload nests deeper than {MAX_DEPTH - 2} levels, which the middleware's input has no room for"
        return Outcome.failed(WireError(text, errors.INVALID_MESSAGE))
    traceparent, baggage, metadata = envelope.traceparent, envelope.baggage, envelope.metadata

    def done(outcome: Outcome) -> None:
        assert reply_id is not None
        peer.reply(reply_id, function_id, outcome, traceparent, baggage)

    serving = _serving(peer, middleware, space)
    started = core.invocations.route(
        peer,
        middleware,
        Json(data),
        namespace=DEFAULT_NAMESPACE if serving is None else serving.namespace,
        reply_id=reply_id,
        timeout_s=timeout_s,
        metadata=bytes(metadata) if metadata else b"",
        traceparent=traceparent,
        baggage=baggage,
        on_done=None if reply_id is None else done,
        internal=True,
    )
    return started if isinstance(started, Outcome) else None
