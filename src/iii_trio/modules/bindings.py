"""The provider behind a trigger type that fires by place (a topic, a scope and key): an index of the engine's bindings.

A module says how a config is read: into the place that the binding waits at, and its condition. What it gets is the
synchronous provider of spec/protocol.md §9 and a look-up that costs nothing for bindings elsewhere.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from attrs import define, field

from ..engine import Binding, Reason

P = TypeVar("P", bound=Hashable)


@define(eq=False)
class BindingIndex(Generic[P]):
    """`read` turns a binding into (place, condition function or None); it raises `TriggerRejected` for a bad config."""

    read: Callable[[Binding], tuple[P, str | None]]
    _places: dict[Binding, P] = field(factory=dict, init=False)
    _bindings: dict[P, dict[Binding, str | None]] = field(factory=dict, init=False)

    def at(self, place: P) -> tuple[tuple[Binding, str | None], ...]:
        """Every binding at a place with its condition, oldest first."""
        found = self._bindings.get(place)
        return () if found is None else tuple(found.items())

    def place_of(self, binding: Binding) -> P | None:
        """Where a binding waits; None if it is not here."""
        return self._places.get(binding)

    def bind(self, binding: Binding) -> None:
        """See `Provider.bind`."""
        self._put(binding, *self.read(binding))

    def replace(self, old: Binding, new: Binding) -> None:
        """See `Provider.replace`: the old one leaves its own place, wherever the new one goes."""
        place, condition = self.read(new)
        self._take(old)
        self._put(new, place, condition)

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """See `Provider.unbind`: others at its place stay."""
        self._take(binding)

    def _put(self, binding: Binding, place: P, condition: str | None) -> None:
        self._take(binding)
        self._places[binding] = place
        self._bindings.setdefault(place, {})[binding] = condition

    def _take(self, binding: Binding) -> None:
        if binding not in self._places:
            return
        place = self._places.pop(binding)
        here = self._bindings[place]
        del here[binding]
        if not here:
            del self._bindings[place]

    def __len__(self) -> int:
        return len(self._places)

    @property
    def places(self) -> int:
        """How many places have a binding."""
        return len(self._bindings)
