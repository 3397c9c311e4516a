"""The signals that stop the engine: the first one asks it to drain, a second one ends the process at once."""

import os
import signal
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Final, Self

import trio
from attrs import define, field

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
ECHO_S: Final = 0.2
"""A signal that comes so soon after the first is the same request: `timeout`, for one, sends its signal twice."""


@define(eq=False)
class StopSignals:
    """A context manager around everything that is to stop in order; in the main thread, in or outside of Trio.

    The second signal does not go through the event loop: it works however stuck the loop is, or the disk, or the output.
    """

    number: int | None = field(default=None, init=False)
    """The first signal, once it has come."""
    _since: float = field(default=0.0, init=False)
    _waiting: tuple[trio.lowlevel.TrioToken, trio.Event] | None = field(default=None, init=False)
    _before: dict[int, Any] = field(factory=dict, init=False)

    def __enter__(self) -> Self:
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def name(self) -> str:
        """What the first signal is called, `SIGTERM` for one; empty while there is none."""
        return "" if self.number is None else signal.Signals(self.number).name

    async def wait(self) -> None:
        """Wait for the first signal. One task may do that."""
        event = trio.Event()
        self._waiting = trio.lowlevel.current_trio_token(), event
        try:
            if self.number is None:
                await event.wait()
            else:
                await trio.lowlevel.checkpoint()
        finally:
            self._waiting = None

    def _received(self, number: int, _frame: FrameType | None) -> None:
        # real time, and not Trio's: signals come from outside of it, and perhaps before there is any
        if self.number is None:
            self.number, self._since = number, monotonic()
            if self._waiting is not None:
                token, event = self._waiting
                token.run_sync_soon(event.set)
        elif monotonic() - self._since >= ECHO_S:
            os.write(2, b"a second signal: ending at once\n")
            os._exit(128 + number)
