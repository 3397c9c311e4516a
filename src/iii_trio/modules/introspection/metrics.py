"""What workers report of themselves: the telemetry frames that arrive, counted, and the newest gauges of each worker.

spec/observability-introspection.md §1 (frames), §2.3 (metrics), §8.2 (gauges), §14 (`latest_metrics`). Traces and logs
are accepted and counted; nothing is done with them here.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from attrs import define, field, frozen

from ...engine import Engine
from ...engine.events import Event, TelemetryReceived, WorkerDisconnected
from ...protocol import Json, JsonError
from ...protocol.limits import TELEMETRY_READ

log = logging.getLogger(__name__)

KINDS: Final = {b"OTLP": "traces", b"MTRC": "metrics", b"LOGS": "logs"}
FRESH_S: Final = 120.0
"""How long (s) a value counts as the present one."""

_PREFIX: Final = "iii.worker."
_GAUGES: Final = {
    "memory.heap_used": "memory_heap_used",
    "memory.heap_total": "memory_heap_total",
    "memory.rss": "memory_rss",
    "memory.external": "memory_external",
    "cpu.user_micros": "cpu_user_micros",
    "cpu.system_micros": "cpu_system_micros",
    "cpu.percent": "cpu_percent",
    "event_loop.lag_ms": "event_loop_lag_ms",
    "uptime_seconds": "uptime_seconds",
}


@frozen
class TelemetryStatistics:
    """Frames received so far, by kind; `others` began with no known prefix, `unread` were no JSON or above the bound."""

    traces: int
    metrics: int
    logs: int
    others: int
    unread: int
    workers: int
    """Workers whose gauges are kept."""


@frozen
class _Reading:
    """One value of one gauge; `at` is the engine's clock."""

    value: float
    at: float
    at_ms: int


@define(eq=False)
class Telemetry:
    """Counts the frames of all connections and keeps the newest gauges of connected workers.

    A worker's own connection speaks for that worker alone; a telemetry socket, which has no worker id of its own, for
    the worker that it names, under access control only if that worker is too.
    """

    core: Engine
    _frames: dict[str, int] = field(factory=lambda: dict.fromkeys((*KINDS.values(), "others"), 0), init=False)
    _unread: int = field(default=0, init=False)
    _gauges: dict[str, dict[str, _Reading]] = field(factory=dict, init=False)

    def open(self) -> Callable[[], None]:
        """Listen to the core from now on; the function that ends that."""
        return self.core.events.tap(self._on_event)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, TelemetryReceived):
            self._on_frame(event)
        elif isinstance(event, WorkerDisconnected):
            self._gauges.pop(event.worker_id, None)

    def _on_frame(self, event: TelemetryReceived) -> None:
        sender, frame = event.worker_id, event.frame
        kind = KINDS.get(frame[:4], "others")
        self._frames[kind] += 1
        if kind != "metrics":
            return
        document: Any = None
        if len(frame) <= TELEMETRY_READ:
            try:
                document = Json(frame[4:]).decode()
            except JsonError as error:
                log.debug("a frame of metrics that is no JSON: %s", error)
        if not isinstance(document, dict):
            self._unread += 1
            return
        now, now_ms = self.core.clock.now(), self.core.clock.wall_ms()
        for name, worker_id, value in _gauges_in(document):
            worker = worker_id or sender
            if worker is not None and sender in (None, worker) and self._may_tell(event, worker):
                self._gauges.setdefault(worker, {})[name] = _Reading(value, now, now_ms)

    def _may_tell(self, event: TelemetryReceived, worker_id: str) -> bool:
        peer = self.core.workers.get(worker_id)
        return peer is not None and (peer.session is not None or not event.guarded)

    def latest(self, worker_id: str) -> dict[str, Any] | None:
        """`latest_metrics` of a worker, without its `runtime`: None when it reported nothing in the last two minutes."""
        oldest = self.core.clock.now() - FRESH_S
        fresh = {name: one for name, one in self._gauges.get(worker_id, {}).items() if one.at >= oldest}
        if not fresh:
            return None
        values: dict[str, Any] = {name: fresh[name].value for name in _GAUGES.values() if name in fresh}
        return {**values, "timestamp_ms": max(one.at_ms for one in fresh.values())}

    def counts(self) -> dict[str, int]:
        """Frames received so far, by kind, as health shows them."""
        return {**self._frames, "unread": self._unread}

    def statistics(self) -> TelemetryStatistics:
        """A frozen picture of the counters."""
        return TelemetryStatistics(**self._frames, unread=self._unread, workers=len(self._gauges))


def _gauges_in(document: dict[str, Any]) -> Iterator[tuple[str, str | None, float]]:
    """Name, `worker.id` and value of every gauge of §8.2; what has another shape than it should is passed over."""
    for resource in _list(document, "resourceMetrics"):
        for scope in _list(resource, "scopeMetrics"):
            for metric in _list(scope, "metrics"):
                name = metric.get("name")
                if not isinstance(name, str) or not name.startswith(_PREFIX):
                    continue
                shown = _GAUGES.get(name.removeprefix(_PREFIX))
                gauge = metric.get("gauge") or metric.get("sum")
                if shown is None or not isinstance(gauge, dict):
                    continue
                for point in _list(gauge, "dataPoints"):
                    value = _value(point)
                    if value is not None:
                        yield shown, _worker_of(point), value


def _list(holder: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = holder.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _value(point: dict[str, Any]) -> float | None:
    """The number of a data point: `asDouble`, or `asInt` as an integer or its decimal text."""
    value = point.get("asDouble", point.get("asInt"))
    if isinstance(value, str):
        return int(value) if value.removeprefix("-").isdecimal() and len(value) <= 20 else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _worker_of(point: dict[str, Any]) -> str | None:
    for attribute in _list(point, "attributes"):
        value = attribute.get("value")
        if attribute.get("key") == "worker.id" and isinstance(value, dict):
            worker_id = value.get("stringValue")
            return worker_id if isinstance(worker_id, str) else None
    return None
