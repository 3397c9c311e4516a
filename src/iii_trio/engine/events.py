"""What happened in the core, for whoever wants to know: synchronous taps and plain counters.

The set of events is closed and small. Metrics, availability triggers, observers and alerts attach here and nowhere
else; without a tap an event costs nothing but its object.
"""

from collections.abc import Callable

from attrs import define, field, frozen


@frozen
class WorkerConnected:
    """A connection was accepted; its first frame has been sent."""

    worker_id: str


@frozen
class WorkerUpdated:
    """A worker said who it is (`engine::workers::register` succeeded)."""

    worker_id: str


@frozen
class WorkerDisconnected:
    """A connection has given back its whole footprint."""

    worker_id: str


@frozen
class FunctionsChanged:
    """The set of callable functions is not what it was."""

    namespace: str
    function_id: str
    available: bool


@frozen
class TelemetryReceived:
    """A binary frame of telemetry came (spec/observability-introspection.md §1); `frame` has its 4-byte prefix.

    `worker_id` is the worker whose own connection it came over; None for sockets that are no workers. `guarded`: access
    control admitted that socket, so it is not to be believed about workers that are not under access control.
    """

    worker_id: str | None
    frame: bytes
    guarded: bool = False


Event = WorkerConnected | WorkerUpdated | WorkerDisconnected | FunctionsChanged | TelemetryReceived
Tap = Callable[[Event], None]


@define(eq=False)
class Events:
    """Taps are called in the order they were added, synchronously; a tap must not raise and must not block."""

    _taps: list[Tap] = field(factory=list)

    def tap(self, tap: Tap) -> Callable[[], None]:
        """Add a tap; returns the function that removes it."""
        self._taps.append(tap)
        return lambda: self._taps.remove(tap)

    def emit(self, event: Event) -> None:
        """Tell every tap."""
        for tap in tuple(self._taps):
            tap(event)


@define(eq=False)
class Counters:
    """Plain integers, read by statistics and exporters."""

    calls: int = 0
    bad_frames: int = 0
    late_results: int = 0
    timeouts: int = 0
    cancelled: int = 0
    refused: int = 0
