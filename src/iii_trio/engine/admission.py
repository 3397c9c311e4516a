"""The intake of one connection: which frames wait, and for what.

Registrations are applied in the order they came in, one after the other: they wait until the connection's namespace is
known, and behind one whose hook is being asked (spec/protocol.md §4.2, §14.6). A call waits only for the newest
registration of the very id it calls (§20.5). Results, cancels and pings never wait. Beyond the bounds the socket is not
read, so a peer that never says who it is costs its own bytes and nothing else.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import define, field, frozen

from ..protocol.limits import PARKED_BYTES, PARKED_FRAMES
from .deadlines import Timer

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
class WaitingCall:
    """A call that waits for the registration `behind`. `call_id` is the id it came with, `timer` what ends the waiting."""

    apply: Callable[[], None]
    size: int
    call_id: str | None
    behind: "Parked"
    timer: Timer | None = None

    def stop_timer(self) -> None:
        """It waits no more."""
        if self.timer is not None:
            self.timer.cancel()


@define(eq=False)
class Parked:
    """A registration that waits for its turn. `id` is the function it is about; `calls` wait for it."""

    apply: Callable[[], None]
    size: int
    id: str | None
    calls: deque[WaitingCall] = field(factory=deque)


@frozen
class IntakeStatistics:
    """Frames and bytes that wait; `open` when nothing waits and the next registration will not."""

    parked: int
    parked_bytes: int
    open: bool


@define(eq=False)
class Intake:
    """The two gates. `pause` and `resume` stop and start the reading of the socket."""

    pause: Callable[[], None]
    resume: Callable[[], None]
    _open: bool = False
    _barred: bool = False
    _held: bool = False
    _applying: bool = False
    _current: Parked | None = None
    _queue: deque[Parked] = field(factory=deque)
    _newest: dict[str, Parked] = field(factory=dict)
    _frames: int = 0
    _bytes: int = 0
    _paused: bool = False

    def register(self, apply: Callable[[], None], size: int, function_id: str | None = None) -> None:
        """A registration has come, in a frame of `size` bytes: apply it now or when its turn comes.

        `function_id` is the id by which calls that wait for it will name its function.
        """
        parked = Parked(apply, size, function_id)
        self._queue.append(parked)
        if function_id is not None:
            self._newest[function_id] = parked
        self._count(1, size)
        self._proceed()
        self._stop_reading()

    def holds_call(self, function_id: str) -> bool:
        """Whether a call has to wait now: a registration of its id does."""
        return function_id in self._newest and not self._barred

    def park_call(self, apply: Callable[[], None], size: int, function_id: str, call_id: str | None) -> WaitingCall:
        """Keep a call for which `holds_call` is true until that registration has been applied.

        The timer that its caller may give it is cancelled when it waits no more.
        """
        parked = self._newest[function_id]
        call = WaitingCall(apply, size, call_id, parked)
        parked.calls.append(call)
        self._count(1, size)
        self._stop_reading()
        return call

    # -- the gates ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """The namespace is known: registrations are applied from now on, those that wait first."""
        self._open = True
        self._barred = False
        self._proceed()

    def bar(self) -> None:
        """The connection has no namespace it may work in: registrations go on waiting, calls do not wait for them."""
        self._barred = True
        for parked in tuple(self._queue):
            self._make_calls(parked)

    def hold(self) -> None:
        """The registration that is being applied asks a hook: until `release` no other one is applied."""
        self._held = True

    def release(self) -> None:
        """The hook has answered and its registration is through."""
        self._held = False
        self._proceed()

    def _proceed(self) -> None:
        """One thing after the other: a registration, the calls that waited for it, the next registration."""
        if self._applying:
            return
        self._applying = True
        try:
            while not self._held:
                if self._current is not None:
                    self._through(self._current)
                elif self._open and self._queue:
                    self._current = self._queue.popleft()
                    self._current.apply()
                else:
                    break
        finally:
            self._applying = False

    def _through(self, parked: Parked) -> None:
        """The current registration has been applied or refused."""
        self._count(-1, -parked.size)
        if parked.id is not None and self._newest.get(parked.id) is parked:
            del self._newest[parked.id]
        self._make_calls(parked)
        self._current = None

    def _make_calls(self, parked: Parked) -> None:
        while parked.calls:
            call = parked.calls[0]
            self.take_out(call)
            call.apply()

    # -- what waits ---------------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether so much waits that the socket is not read."""
        return self._paused

    def _count(self, frames: int, size: int) -> None:
        self._frames += frames
        self._bytes += size
        if self._paused and self._frames <= PARKED_FRAMES // 2 and self._bytes <= PARKED_BYTES // 2:
            self._paused = False
            self.resume()

    def _stop_reading(self) -> None:
        if not self._paused and (self._frames >= PARKED_FRAMES or self._bytes >= PARKED_BYTES):
            self._paused = True
            self.pause()

    def take_out(self, call: WaitingCall) -> None:
        """A call waits no more: it is made, has been cancelled, or its time is over."""
        call.behind.calls.remove(call)
        self._count(-1, -call.size)
        call.stop_timer()

    def withdraw(self, call_id: str) -> bool:
        """A call that still waits has been cancelled: it is not made. False when none of that id waits."""
        for call in self._waiting():
            if call.call_id == call_id:
                self.take_out(call)
                return True
        return False

    def _waiting(self) -> tuple[WaitingCall, ...]:
        parked = [*self._queue] if self._current is None else [self._current, *self._queue]
        return tuple(call for one in parked for call in one.calls)

    def discard(self) -> None:
        """The connection has ended: what waits is dropped."""
        for call in self._waiting():
            call.behind.calls.clear()
            call.stop_timer()
        self._current = None
        self._queue.clear()
        self._newest.clear()
        self._frames = self._bytes = 0

    def statistics(self) -> IntakeStatistics:
        """A frozen picture of the gates."""
        waits = bool(self._frames) or self._held or not self._open
        return IntakeStatistics(parked=self._frames, parked_bytes=self._bytes, open=not waits)
