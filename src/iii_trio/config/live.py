"""`Live`: a setting's current value and the news that it changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio
from attrs import define, field, frozen

T = TypeVar("T")


@frozen
class LiveStatistics:
    """A snapshot of one `Live`."""

    revision: int
    """How often the value has changed since it was created."""
    subscribers: int
    """Callbacks that hear of the next change."""
    waiting: int
    """Tasks inside `changed()`."""


@define(eq=False)
class Live(Generic[T]):
    """A value that may change while a module runs; whoever holds it reads `value` each time it decides something.

    One owner calls `set`; readers look, subscribe, or wait. Nothing is queued: a reader that is slow sees the newest
    value, not each one in between.
    """

    _value: T
    _revision: int = field(default=0, init=False)
    _subscribers: dict[object, Callable[[T, T], None]] = field(factory=dict, init=False)
    _waiting: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    @property
    def value(self) -> T:
        """The current value."""
        return self._value

    def set(self, new: T) -> bool:
        """Make `new` the value, wake `changed()`, then run the subscribers in the order they came.

        Returns False, and tells nobody, if `new` equals the current value. A subscriber must not raise: its exception
        reaches the caller of `set` and the subscribers after it are not run, but the value has changed already.
        """
        if new == self._value:
            return False
        old, self._value = self._value, new
        self._revision += 1
        self._waiting.unpark_all()
        for callback in list(self._subscribers.values()):
            callback(old, new)
        return True

    def subscribe(self, callback: Callable[[T, T], None]) -> Callable[[], None]:
        """Run `callback(old, new)` inside every `set` from now on. Returns the function that ends it."""
        token = object()
        self._subscribers[token] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(token, None)

        return unsubscribe

    async def changed(self, seen: T) -> T:
        """Wait until the value is not the object `seen` any more, and return it.

        A change between reading `seen` and calling this is not missed: it returns at once (after a checkpoint).
        Cancelling it loses nothing; the next call compares again.
        """
        if self._value is not seen:
            await trio.lowlevel.checkpoint()
        while self._value is seen:
            await self._waiting.park()
        return self._value

    def statistics(self) -> LiveStatistics:
        """How often it changed and who listens."""
        return LiveStatistics(self._revision, len(self._subscribers), len(self._waiting))
