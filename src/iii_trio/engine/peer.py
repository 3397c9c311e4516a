"""Who takes part: the two synchronous protocols by which peers meet, and what every peer has of its own.

`Executor.submit` and `Caller.deliver` neither raise nor await. A worker's socket, a built-in module and, later, a link to
another engine implement them, and the core treats them alike.
"""

from typing import TYPE_CHECKING, Protocol

from attrs import define, field

from ..protocol import Json

if TYPE_CHECKING:
    from ..protocol.errors import WireError
    from .access import Session
    from .channels import Channel
    from .functions import FunctionEntry
    from .invocations import Call, Outcome
    from .triggers import Binding, TypeClaim

DEFAULT_NAMESPACE = "default"


class Executor(Protocol):
    """The side that runs calls."""

    running: "dict[str, Call]"

    def submit(self, call: "Call", data: Json) -> None:
        """Take a call that already stands in `running`. What cannot be taken is finished with an error, at once."""

    def cancel(self, call: "Call", reason: str) -> None:
        """The caller's side of a call has ended; stop it if you can. The call stays a tombstone until it answers."""


class Caller(Protocol):
    """The side that waits for answers."""

    calls: "dict[str, Call]"

    def deliver(self, call: "Call", outcome: "Outcome") -> None:
        """The call has ended; it stands in no table any more."""


@define(eq=False, repr=False, kw_only=True)
class Peer:
    """What any peer owns; `Engine.release` gives all of it back, once, in one synchronous step.

    `id` is the worker id. `caller_pair` is what is spliced into the payloads of its calls. `session` of None means a
    trusted peer. `cap` is the largest message (bytes) it takes; `injects` says whether its id goes into the payloads of
    its calls. `live` counts the calls it made that have not ended, whether or not it waits for them.
    """

    id: str
    name: str | None = None
    namespace: str = DEFAULT_NAMESPACE
    session: "Session | None" = None
    features: frozenset[str] = frozenset()
    cap: int
    hops: int = 0
    injects: bool = False
    leaving: bool = False
    live: int = 0
    calls: "dict[str, Call]" = field(factory=dict)
    running: "dict[str, Call]" = field(factory=dict)
    functions: "dict[tuple[str, str], FunctionEntry]" = field(factory=dict)
    bindings: "dict[str, Binding]" = field(factory=dict)
    types: "list[TypeClaim]" = field(factory=list)
    channels: "dict[str, Channel]" = field(factory=dict)
    caller_pair: bytes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.caller_pair = b'{"_caller_worker_id":"%s"' % self.id.encode()

    @property
    def behind(self) -> bool:
        """Whether it reads more slowly than is sent to it, so that more work had better go elsewhere, or wait."""
        return False

    def submit(self, call: "Call", data: Json) -> None:
        """See `Executor.submit`."""
        raise NotImplementedError

    def cancel(self, call: "Call", reason: str) -> None:
        """See `Executor.cancel`."""
        raise NotImplementedError

    def deliver(self, call: "Call", outcome: "Outcome") -> None:
        """See `Caller.deliver`."""
        raise NotImplementedError

    def complain(self, error: "WireError") -> None:
        """Something this peer sent was refused, and has no answer of its own; worker sockets are told."""

    def binding_refused(self, binding: "Binding", error: "WireError") -> None:
        """A provider refused one of this peer's bindings after it had been accepted; worker sockets are told."""
