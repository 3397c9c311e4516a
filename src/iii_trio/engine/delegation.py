"""Functions that a worker owns and a module runs: a `registerfunction` that says how to invoke it (spec/protocol.md §6).

Such a function is claimed, stands by, is listed, unregistered and released like any other; only its calls go elsewhere.
One module at a time, the delegate, runs them. While it is being restarted the claims stay, and calls are told so. A
registration that the delegate does not admit is no claim: its worker is told why, and so is who calls it later.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from attrs import define, field, frozen

from ..protocol import Json, errors
from ..protocol.errors import WireError
from ..protocol.limits import REFUSED_FUNCTIONS
from .functions import FunctionEntry
from .invocations import Call
from .peer import Peer

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger(__name__)

NOT_CONFIGURED: Final = (
    "HTTP-invoked functions are off in this engine; list the worker `iii-http-functions` in its configuration file"
)
NOT_RUNNING: Final = "the worker that runs HTTP-invoked functions is not running at the moment; try again later"


class Delegate(Protocol):
    """The module that runs functions which workers have registered."""

    def admit(self, entry: FunctionEntry) -> None:
        """Set `entry.executor` and `entry.handler`, so that calls of it come here. Raises `WireError` to refuse it."""

    def verify(self, entry: FunctionEntry) -> None:
        """`entry` has just been claimed: check what takes time, and call `Delegation.refuse` if that fails."""


@frozen
class Refusal:
    """A registration that was refused: by whose `owner`, of which function, and why. `at_ms` is Unix time."""

    owner: Peer
    namespace: str
    function_id: str
    error: WireError
    at_ms: int


@frozen
class DelegationStatistics:
    """Whether the delegate is `running`, and how many `refused` registrations are remembered."""

    running: bool
    refused: int


@define(eq=False, repr=False)
class Delegation:
    """Between the claims and the delegate; everything here is synchronous."""

    core: "Engine"
    _delegate: Delegate | None = field(default=None, init=False)
    _configured: bool = field(default=False, init=False)
    _refusals: "OrderedDict[tuple[Peer, str, str], Refusal]" = field(factory=OrderedDict, init=False)

    # -- the module ---------------------------------------------------------------------------------------------------

    def open(self, delegate: Delegate) -> None:
        """`delegate` runs these functions from now on, also those that were claimed before it was there."""
        self._delegate = delegate
        self._configured = True
        for entry in self._claims():
            try:
                delegate.admit(entry)
            except WireError as error:
                self.refuse(entry, error)

    def close(self) -> None:
        """The delegate stops: its functions stay claimed and answer that they do not run."""
        self._delegate = None
        for entry in self._claims():
            self._suspend(entry)

    def _claims(self) -> list[FunctionEntry]:
        return [entry for peer in self.core.workers for entry in peer.functions.values() if entry.invocation]

    def _suspend(self, entry: FunctionEntry) -> None:
        entry.executor = self.core.local
        entry.handler = (False, _not_running)

    # -- registrations ------------------------------------------------------------------------------------------------

    def admit(self, entry: FunctionEntry) -> None:
        """Make a registration callable before it is claimed. Raises `WireError` when that cannot be."""
        if self._delegate is not None:
            self._delegate.admit(entry)
        elif self._configured:
            self._suspend(entry)
        else:
            raise WireError(NOT_CONFIGURED, errors.HTTP_FUNCTIONS_UNAVAILABLE)

    def claimed(self, entry: FunctionEntry) -> None:
        """A registration of this kind, or of any other, holds its claim: an earlier refusal is history."""
        self.forget(entry.owner, entry.namespace, entry.id)
        if entry.invocation and self._delegate is not None:
            self._delegate.verify(entry)

    def refuse(self, entry: FunctionEntry, error: WireError) -> None:
        """Give back what claim its owner has on the id, and tell the owner why; the reason is kept for later callers."""
        owner, namespace, function_id = entry.owner, entry.namespace, entry.id
        if owner.leaving:
            return
        self.core.functions.release(owner, namespace, function_id)
        self._refusals.pop((owner, namespace, function_id), None)
        while len(self._refusals) >= REFUSED_FUNCTIONS:
            self._refusals.popitem(last=False)
        refusal = Refusal(owner, namespace, function_id, error, self.core.clock.wall_ms())
        self._refusals[owner, namespace, function_id] = refusal
        shown = errors.shorten(error.message)
        log.warning(
            "function %r of worker %s was not registered: %s: %s", entry.exposed_id, owner.id, error.code, shown
        )
        owner.complain(WireError(f"function '{entry.exposed_id}' was not registered: {shown}", error.code))

    # -- why a function is not there ----------------------------------------------------------------------------------

    def why_missing(self, namespace: str, function_id: str) -> str:
        """A sentence for who looks for a function whose registration was refused last; "" if none was."""
        for refusal in reversed(self._refusals.values()):
            if (refusal.namespace, refusal.function_id) == (namespace, function_id):
                error = refusal.error
                return f"Its registration was refused: {error.code}: {errors.shorten(error.message)}"
        return ""

    def refusals(self) -> Iterator[Refusal]:
        """Every refused registration of a connected worker, the oldest first; at most `REFUSED_FUNCTIONS`."""
        return iter(tuple(self._refusals.values()))

    def forget(self, owner: Peer, namespace: str, function_id: str) -> None:
        """The owner has registered the id in another way, or given it up."""
        self._refusals.pop((owner, namespace, function_id), None)

    def release(self, owner: Peer) -> None:
        """The owner leaves, and what it was refused is of interest to nobody any more."""
        for key in [key for key in self._refusals if key[0] is owner]:
            del self._refusals[key]

    def statistics(self) -> DelegationStatistics:
        """A frozen picture."""
        return DelegationStatistics(running=self._delegate is not None, refused=len(self._refusals))


def _not_running(call: Call, data: Json) -> None:
    raise WireError(NOT_RUNNING, errors.HTTP_FUNCTIONS_UNAVAILABLE)
