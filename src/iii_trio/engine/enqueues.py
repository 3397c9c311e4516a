"""`action: enqueue` is a call of the queue provider in the caller's name (spec/protocol.md §7.2).

The caller gets a receipt once the provider has stored the job. Like a call through the middleware it is re-targeting,
never an await: what is refused never reaches the provider.
"""

import logging
from typing import TYPE_CHECKING, Any, Final

from ..protocol import Json, codec, errors, trace
from ..protocol.codec import Envelope
from ..protocol.errors import WireError
from ..protocol.limits import ENQUEUES_PER_PEER, MAX_DEPTH
from ..protocol.messages import Action
from .invocations import Outcome
from .peer import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from .remote import RemotePeer

log = logging.getLogger(__name__)

ENQUEUE: Final = "engine::queue::enqueue"


def call(
    peer: "RemotePeer",
    envelope: Envelope,
    function_id: str,
    namespace: str | None,
    reply_id: str | None,
    action: Action,
    timeout_s: float | None,
) -> Outcome | None:
    """Enqueue what `peer` called; the outcome by which that was refused, or None.

    The receipt or the provider's error is the answer under `reply_id`; without one an error is complained of. A caller
    whose deadline (`timeout_s` from now, None for the engine's own) passes first is told `TIMEOUT`, and cannot know:
    the message may be stored or not.
    """
    core, session, space = peer.core, peer.session, namespace or DEFAULT_NAMESPACE
    if session is not None:
        refusal = core.access.check(session, space, function_id, core.functions.get(space, function_id))
        if refusal is not None:
            return Outcome.failed(refusal)
    if peer.enqueues >= ENQUEUES_PER_PEER:
        text = f"{ENQUEUES_PER_PEER} enqueues of this connection wait for their receipts; let some finish first"
        return Outcome.failed(WireError(text, errors.TOO_MANY_CALLS))
    receipt = core.invocations.new_id()
    traceparent, baggage = envelope.traceparent or None, envelope.baggage or None
    request: dict[str, Any] = {
        "queue": action.queue or "",
        "function_id": function_id,
        "messageReceiptId": receipt,
        "traceparent": traceparent,
        "baggage": trace.with_function(baggage, function_id) if traceparent or baggage else None,
    }
    if space != DEFAULT_NAMESPACE:
        request["namespace"] = space
    for option in ("delay_ms", "priority", "deduplication_key"):  # only what was said: a provider may know none
        if (value := getattr(action, option)) is not None:
            request[option] = value
    data = codec.encode_value(request)[:-1] + b',"data":' + bytes(envelope.data) + b"}"
    if codec.nests_too_deep(data):
        text = f"the payload nests deeper than {MAX_DEPTH - 2} levels"
        return Outcome.failed(WireError(text, errors.INVALID_MESSAGE))

    def done(outcome: Outcome) -> None:
        peer.enqueues -= 1
        if outcome.ok:  # the provider's own receipt does not count, not even a repetition's (spec/queue.md §2.3)
            result = Outcome(Json(b'{"messageReceiptId":"%s"}' % receipt.encode()))
        elif timeout_s is not None and core.clock.now() >= began + timeout_s:
            text = f"no receipt within {round(timeout_s * 1000)} ms; the message may be stored all the same"
            result = Outcome.failed(WireError(text, errors.TIMEOUT))
        else:
            result = Outcome.failed(errors.enqueue_error(outcome.exception()))
        if reply_id is not None:
            peer.reply(reply_id, function_id, result, traceparent, baggage)
        elif not outcome.ok:
            error = result.exception()
            shown = errors.shorten(str(error))
            log.warning("worker %s: enqueue of %s failed: %s", peer.label, function_id[:200], shown)
            peer.complain(error)

    peer.enqueues += 1
    began = core.clock.now()
    core.local.call(ENQUEUE, Json(data), done, timeout_s=timeout_s, traceparent=traceparent, baggage=baggage)
    return None
