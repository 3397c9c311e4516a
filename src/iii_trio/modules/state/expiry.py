"""Keys that are there for a time: one timer for the earliest of them, whatever their number.

Readers never see a key whose time is up, for they say when they read. What removes it, and tells of that, is a sweep: by
the timer, or ahead of a write to the very key.
"""

import logging
from collections.abc import Callable

from attrs import define, field

from ...engine import Engine
from ...engine.deadlines import Timer
from ...protocol.errors import StoreError
from ...protocol.limits import EXPIRED_KEYS
from ...stores import Expired, Failed, KeyValue, Result, WaitingKeyValue
from .triggers import Telling

log = logging.getLogger(__name__)

LONGEST_SLEEP_S = 60.0
"""The wall clock may be set meanwhile, and the machine may sleep: then keys go this much late, though nobody reads them."""
AGAIN_S = 1.0
"""Pause after a sweep that the store could not do."""


@define(eq=False)
class Expiry:
    """See the module. Made for one life of it; `expired` counts keys removed."""

    core: Engine
    store: KeyValue
    telling: Telling
    expired: int = field(default=0, init=False)
    _due_ms: int | None = field(default=None, init=False)
    _noted_ms: int | None = field(default=None, init=False)
    """The earliest time that was given since the sweep that is under way."""
    _sweeping: bool = field(default=False, init=False)
    _timer: Timer | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    async def open(self) -> None:
        """Learn when the first key is due. Raises `StoreError`."""
        due_ms = await WaitingKeyValue(self.store).next_expiry()
        if due_ms is not None:
            self.note(due_ms)

    def close(self) -> None:
        """No sweep any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def note(self, due_ms: int) -> None:
        """A key gets a time (Unix ms)."""
        if self._noted_ms is None or due_ms < self._noted_ms:
            self._noted_ms = due_ms
        if self._due_ms is None or due_ms < self._due_ms:
            self._due_ms = due_ms
            self._wait()

    def ahead_of_write(self, scope: str, key: str) -> None:
        """Remove the key first, if its time is up, so that a write finds what readers see. Raises `StoreError`."""
        if self._due_ms is None:
            return
        now_ms = self.core.clock.wall_ms()
        if self._due_ms <= now_ms:
            self._submit(now_ms, 1, lambda _: None, (scope, key))

    def _wait(self, at_least_s: float = 0.0) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due_ms is None or self._sweeping or self._closed:
            return
        left_s = (self._due_ms - self.core.clock.wall_ms()) / 1000
        self._timer = self.core.deadlines.after(max(at_least_s, min(left_s, LONGEST_SLEEP_S)), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now_ms = self.core.clock.wall_ms()
        if self._due_ms is None or self._due_ms > now_ms:
            self._wait()
            return
        self._sweeping, self._noted_ms = True, None
        try:
            self._submit(now_ms, EXPIRED_KEYS, self._swept, None)
        except StoreError as error:
            self._swept(Failed(error))

    def _submit(
        self, now_ms: int, limit: int, then: Callable[[Result[Expired]], None], place: tuple[str, str] | None
    ) -> None:
        recorded = self.telling.expirations(limit)

        def done(result: Result[Expired]) -> None:
            if not isinstance(result, Failed):
                self.expired += len(result.value.removed)
                for scope, key, value in result.value.removed:
                    self.telling.tell(None, scope, key, value, None)
                if recorded is not None:
                    self.telling.outbox.taken_in(recorded.rows)
            then(result)

        beside = None if recorded is None else recorded.beside
        self.store.expire(now_ms, limit, done, place=place, beside=beside)

    def _swept(self, result: Result[Expired]) -> None:
        self._sweeping = False
        if isinstance(result, Failed):
            log.error("keys whose time is up could not be removed, trying again: %s", result.error)
            self._wait(AGAIN_S)
            return
        times = [time for time in (result.value.next_ms, self._noted_ms) if time is not None]
        self._due_ms = min(times, default=None)
        self._wait()
