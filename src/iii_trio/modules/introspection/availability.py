"""The trigger types `engine::functions-available` and `engine::workers-available` (spec/observability-introspection.md §16).

Changes are gathered for a quarter of a second, so that a burst is one event and a function that came and went is none.
A subscriber has at most one delivery of the function list under way; what changes meanwhile is one more list, the
newest, after it. Events about workers keep their order; a repetition within one burst is told once.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from attrs import define, field, frozen

from ...engine import Binding, Delivered, Engine, Firing, LocalPeer, Outcome, Reason, Timer
from ...engine.access import Session
from ...engine.events import (
    Event,
    FunctionsChanged,
    TelemetryReceived,
    WorkerConnected,
    WorkerDisconnected,
    WorkerUpdated,
)
from ...protocol import Json
from ..inputs import object_schema
from . import sight
from .rows import function_summary

FUNCTIONS_AVAILABLE: Final = "engine::functions-available"
WORKERS_AVAILABLE: Final = "engine::workers-available"

COALESCE_S: Final = 0.24
"""A timer may be 10 ms late: a change is told within a quarter of a second."""
TOLD_S: Final = 10.0
"""How long (s) a subscriber may take to answer; then it is told of what has changed meanwhile."""
_ANY_CONFIG: Final = object_schema("AvailabilityTriggerConfig", {})

_WORKER_EVENTS: Final[dict[type[Event], str]] = {
    WorkerConnected: "worker_connected",
    WorkerUpdated: "worker_metadata_updated",
    WorkerDisconnected: "worker_disconnected",
}


@define(eq=False)
class Subscriber:
    """One binding: whether a delivery is under way, and whether the registry has changed since it was made.

    `told` has the workers of which a session under access control has heard: it hears of their end, too.
    """

    busy: bool = False
    stale: bool = False
    told: set[str] = field(factory=set)


@define(eq=False)
class Subscribers:
    """The provider of one of the two types. Any config will do."""

    known: dict[Binding, Subscriber] = field(factory=dict)

    def bind(self, binding: Binding) -> None:
        """See `Provider.bind`."""
        self.known[binding] = Subscriber()

    def replace(self, old: Binding, new: Binding) -> None:
        """See `Provider.replace`."""
        self.unbind(old, Reason.UNREGISTERED)
        self.bind(new)

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """See `Provider.unbind`."""
        self.known.pop(binding, None)


@frozen
class AvailabilityStatistics:
    """Bindings of the two types, and what is gathered for the next burst."""

    function_subscribers: int
    worker_subscribers: int
    functions_changed: int
    """Functions that came, went or were replaced since the last burst."""
    worker_events: int
    """Events about workers since the last burst."""


@define(eq=False)
class Availability:
    """Both types for one run of the module. `open` starts it; the function it returns ends it."""

    core: Engine
    firing: Firing
    _functions: Subscribers = field(factory=Subscribers, init=False)
    _workers: Subscribers = field(factory=Subscribers, init=False)
    _available: set[tuple[str, str]] = field(factory=set, init=False)
    _changed: set[tuple[str, str]] = field(factory=set, init=False)
    _worker_events: dict[tuple[str, str], None] = field(factory=dict, init=False)
    _timer: Timer | None = field(default=None, init=False)

    def open(self, peer: LocalPeer) -> Callable[[], None]:
        """Provide both types from `peer` and listen to the core; what is there already is no news."""
        peer.provide(
            FUNCTIONS_AVAILABLE,
            self._functions,
            description="Calls a function with the whole list when functions come or go.",
            config_format=_ANY_CONFIG,
        )
        peer.provide(
            WORKERS_AVAILABLE,
            self._workers,
            description="Calls a function when a worker connects, says who it is, or disconnects.",
            config_format=_ANY_CONFIG,
        )
        self._available.update((entry.namespace, entry.id) for entry in self.core.functions)
        remove_tap = self.core.events.tap(self._on_event)

        def close() -> None:
            remove_tap()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        return close

    def _on_event(self, event: Event) -> None:
        if isinstance(event, FunctionsChanged):
            self._changed.add((event.namespace, event.function_id))
        elif isinstance(event, TelemetryReceived) or not self._workers.known:
            return
        else:
            self._worker_events[_WORKER_EVENTS[type(event)], event.worker_id] = None
        if self._timer is None:
            self._timer = self.core.deadlines.after(COALESCE_S, self._burst)

    def _burst(self) -> None:
        self._timer = None
        changed, self._changed = self._changed, set()
        events, self._worker_events = self._worker_events, {}
        if self._take_over(changed):
            lists: dict[int, Json] = {}
            for binding in tuple(self._functions.known):
                self._tell_functions(binding, lists)
        for name, worker_id in events:
            payload = Json.of({"event": name, "worker_id": worker_id})
            for binding, subscriber in tuple(self._workers.known.items()):
                if self._may_hear(binding, subscriber, worker_id):
                    self.firing.fire(binding, payload, lane=WORKERS_AVAILABLE)

    def _may_hear(self, binding: Binding, subscriber: Subscriber, worker_id: str) -> bool:
        """Whether a subscriber sees that worker, or saw it before it left; without access control everybody does."""
        session = sight.session_of(binding)
        if session is None:
            return True
        peer = self.core.workers.get(worker_id)
        if peer is None:
            known = worker_id in subscriber.told
            subscriber.told.discard(worker_id)
            return known
        if not sight.worker(self.core, binding.owner, session, peer):
            return False
        subscriber.told.add(worker_id)
        return True

    def _take_over(self, changed: set[tuple[str, str]]) -> bool:
        """Bring the set of available functions up to date; False when it is what it was at the last burst."""
        news = False
        for key in changed:
            if self.core.functions.get(*key) is None:
                news = news or key in self._available
                self._available.discard(key)
            else:
                news = news or key not in self._available
                self._available.add(key)
        return news

    def _tell_functions(self, binding: Binding, lists: dict[int, Json]) -> None:
        """Deliver the list as it is now. `lists` keeps the texts of one burst, one for each session."""
        subscriber = self._functions.known.get(binding)
        if subscriber is None:
            return
        if subscriber.busy:
            subscriber.stale = True
            return
        subscriber.busy, subscriber.stale = True, False
        session = sight.session_of(binding)
        payload = lists.get(id(session))
        if payload is None:
            payload = lists[id(session)] = self._function_list(session)
        self.firing.fire(binding, payload, on_delivered=partial(self._told, binding, subscriber))

    def _told(self, binding: Binding, subscriber: Subscriber, _how: Delivered, _outcome: Outcome | None) -> None:
        subscriber.busy = False
        if subscriber.stale:
            self._tell_functions(binding, {})

    def _function_list(self, session: Session | None) -> Json:
        entries = [e for e in self.core.functions if sight.function(self.core, session, e.namespace, e.id)]
        entries.sort(key=lambda entry: (entry.id, entry.namespace))
        return Json.of({"event": "functions_changed", "functions": [function_summary(entry) for entry in entries]})

    def statistics(self) -> AvailabilityStatistics:
        """A frozen picture of the subscribers and of what is gathered."""
        return AvailabilityStatistics(
            function_subscribers=len(self._functions.known),
            worker_subscribers=len(self._workers.known),
            functions_changed=len(self._changed),
            worker_events=len(self._worker_events),
        )
