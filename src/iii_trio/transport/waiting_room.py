"""Where sockets are until they have shaken hands and been admitted: bounded, and never full for those who come."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from ..protocol.limits import PENDING_SOCKETS


@define(eq=False)
class WaitingRoom:
    """The sockets of one port that are no connections yet; `len` says how many.

    When too many are in there, the oldest is cancelled: an honest peer needs a millisecond, so who has been at it the
    longest is none.
    """

    _handshakes: dict[trio.CancelScope, None] = field(factory=dict, init=False)

    def __len__(self) -> int:
        return len(self._handshakes)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be in there for the length of the block, which may be cancelled."""
        if len(self._handshakes) >= PENDING_SOCKETS:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        with trio.CancelScope() as scope:
            self._handshakes[scope] = None
            try:
                yield
            finally:
                self._handshakes.pop(scope, None)
