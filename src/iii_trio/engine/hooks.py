"""The functions that decide on a session's registrations: what they are asked, and what they may answer (§14.6).

A hook is called in namespace `default` and has `HOOK_S` seconds. While it thinks, the connection's further registrations
wait behind the one it is asked about; results, cancels and pings pass, so a worker may serve the hook of its own
session. An object allows, with the changes it names; null in one of its fields keeps what the worker sent. Everything
else denies: an error, no answer in time, no such function, anything but an object.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import frozen

from ..protocol import ABSENT, Json, codec
from ..protocol.errors import ProtocolError
from ..protocol.limits import HOOK_S, MAX_DEPTH
from .access import Session
from .invocations import Outcome

if TYPE_CHECKING:
    from .remote import RemotePeer

V = TypeVar("V")


@frozen(kw_only=True)
class FunctionVerdict:
    """What the function hook changes; None, `ABSENT` and null keep what the worker sent."""

    function_id: str | None = None
    description: str | None = None
    metadata: Json = ABSENT


@frozen(kw_only=True)
class TriggerVerdict:
    """What the trigger hook changes, otherwise as `FunctionVerdict`."""

    trigger_id: str | None = None
    trigger_type: str | None = None
    function_id: str | None = None
    config: Json = ABSENT


@frozen(kw_only=True)
class TypeVerdict:
    """What the trigger type hook changes, otherwise as `FunctionVerdict`."""

    trigger_type_id: str | None = None
    description: str | None = None


read_function_verdict: Final = codec.reader(FunctionVerdict)
read_trigger_verdict: Final = codec.reader(TriggerVerdict)
read_type_verdict: Final = codec.reader(TypeVerdict)


def ask(
    peer: "RemotePeer",
    session: Session,
    hook: str,
    request: dict[str, Any],
    read: Callable[[bytes], V],
    approved: Callable[[V], None],
    denied: Callable[[str], None],
) -> None:
    """Ask `hook` about a registration of `peer`; `approved(verdict)` or `denied(why)` follows, possibly at once.

    `request` is the hook's input without the session's `context`. Neither callback is called once the peer leaves.
    """
    core = peer.core
    data = codec.encode_object({**request, "context": session.context})
    if codec.nests_too_deep(data):
        denied(f"it nests deeper than {MAX_DEPTH - 2} levels")
        return
    answered = False

    def done(outcome: Outcome) -> None:
        nonlocal answered
        answered = True
        peer.hook = None
        if peer.leaving:
            return
        # whoever answered, this peer's frames are applied now: its calls get the time of this moment
        core.invocations.tick()
        try:
            verdict = _verdict(outcome, read)
        except ProtocolError as error:
            denied(str(error))
        else:
            approved(verdict)
        peer.intake.release()

    peer.intake.hold()
    call = core.local.call(hook, Json(data), done, timeout_s=HOOK_S)
    if not answered:
        peer.hook = call


def _verdict(outcome: Outcome, read: Callable[[bytes], V]) -> V:
    """The verdict of an object. Raises `ProtocolError` saying in which way anything else denies."""
    if not outcome.ok:
        raise ProtocolError(outcome.exception().message)
    if not outcome.result.raw.lstrip().startswith(b"{"):
        raise ProtocolError("its hook returned no object")
    try:
        return read(outcome.result.raw)
    except ProtocolError as error:
        raise ProtocolError(f"its hook returned what cannot be used: {error}") from None
