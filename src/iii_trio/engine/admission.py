"""The intake of one connection: which frames wait, and for what.

A registration waits until the connection's namespace is known; a call waits only while a registration of the very id it
calls is waiting (spec/protocol.md §4.2, §20.5). Results, cancels and pings never wait. Beyond the bounds the socket is
not read, so a peer that never says who it is costs its own bytes and nothing else.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from attrs import define, field, frozen

from ..protocol.limits import PARKED_BYTES, PARKED_FRAMES

REGISTRATIONS: Final = frozenset(
    {
        "registerfunction",
        "unregisterfunction",
        "registertriggertype",
        "unregistertriggertype",
        "registertrigger",
        "unregistertrigger",
        "registerservice",
    }
)


@define(eq=False)
class Parked:
    """One waiting frame: `apply` is what happens to it when the gate opens.

    `id` is the function it registers; `call_id` the id of the call it is, if an answer is awaited.
    """

    apply: Callable[[], None]
    size: int
    id: str | None
    call_id: str | None


@frozen
class IntakeStatistics:
    """Frames and bytes that wait; `open` when nothing waits any more."""

    parked: int
    parked_bytes: int
    open: bool


@define(eq=False)
class Intake:
    """The gate. `pause` and `resume` stop and start the reading of the socket."""

    pause: Callable[[], None]
    resume: Callable[[], None]
    _open: bool = False
    _opening: bool = False
    _parked: deque[Parked] = field(factory=deque)
    _bytes: int = 0
    _ids: Counter[str] = field(factory=Counter)
    _paused: bool = False

    @property
    def holds_registrations(self) -> bool:
        """Whether a registration has to wait now."""
        return not self._open

    def holds_call(self, function_id: str) -> bool:
        """Whether a call has to wait now: a registration of its id does."""
        return bool(self._ids) and function_id in self._ids

    def park(
        self, apply: Callable[[], None], size: int, function_id: str | None = None, call_id: str | None = None
    ) -> None:
        """Keep a frame of `size` bytes for later, in order."""
        self._parked.append(Parked(apply, size, function_id, call_id))
        self._bytes += size
        if function_id is not None:
            self._ids[function_id] += 1
        if not self._paused and (len(self._parked) >= PARKED_FRAMES or self._bytes >= PARKED_BYTES):
            self._paused = True
            self.pause()

    def open(self) -> None:
        """Apply everything that waits, in order, and let the rest through from now on."""
        if self._open or self._opening:
            return
        self._opening = True
        while self._parked:
            parked = self._parked.popleft()
            self._bytes -= parked.size
            if parked.id is not None:
                self._ids[parked.id] -= 1
                if not self._ids[parked.id]:
                    del self._ids[parked.id]
            parked.apply()
        self._open = True
        if self._paused:
            self._paused = False
            self.resume()

    def withdraw(self, call_id: str) -> bool:
        """A call that still waits has been cancelled: it is not made. False when none of that id waits."""
        for parked in self._parked:
            if parked.call_id == call_id:
                self._parked.remove(parked)
                self._bytes -= parked.size
                return True
        return False

    def discard(self) -> None:
        """The connection has ended: what waits is dropped."""
        self._parked.clear()
        self._ids.clear()
        self._bytes = 0
        self._open = True

    def statistics(self) -> IntakeStatistics:
        """A frozen picture of the gate."""
        return IntakeStatistics(parked=len(self._parked), parked_bytes=self._bytes, open=self._open)
