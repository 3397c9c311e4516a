"""How long dead letters are kept: dropped by number when one comes, by age when their time comes. Nothing polls.

For each queue with a limit there is at most one operation on the log at a time, and at most one timer: for the moment
in which the oldest dead letter that is left becomes too old.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from attrs import define, field, frozen

from ...engine import Engine, Timer
from ...stores import Done, JobLog, Result, Trimmed
from .dispatch import ActiveQueue
from .names import QueueKey

log = logging.getLogger(__name__)

PAGE: Final = 1_000
"""Dead letters dropped by one operation."""

ALL: Final = 2**62

LONGEST_SLEEP_S: Final = 86_400.0
"""A timer that is set further ahead looks again after a day: the wall clock may have been set meanwhile."""

AGAIN_S: Final = 60.0
"""Pause after an operation that failed."""


@frozen
class Rule:
    """The newest `max_count` are kept, none longer than `max_age_ms`; None is no limit."""

    max_count: int | None = None
    max_age_ms: int | None = None


@define(eq=False)
class Retention:
    """See the module; `rule` tells what holds for a queue now, `on_dropped` hears of one that has fewer."""

    _core: Engine
    _log: JobLog
    _rule: Callable[[QueueKey], Rule]
    _on_dropped: Callable[[ActiveQueue], None]
    _timers: dict[QueueKey, Timer] = field(factory=dict, init=False)
    _busy: set[QueueKey] = field(factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    def look(self, queue: ActiveQueue, *, fresh: bool = False) -> None:
        """The dead letters of a queue have changed, or with `fresh` the rule for them has."""
        key, rule = queue.key, self._rule(queue.key)
        if not queue.machine.dead or key in self._busy or self._closed:
            return
        aging = rule.max_age_ms is not None and (fresh or key not in self._timers)
        if aging or self._over(queue, rule):
            self._trim(queue)

    @staticmethod
    def _over(queue: ActiveQueue, rule: Rule) -> bool:
        return rule.max_count is not None and queue.machine.dead > rule.max_count

    def close(self) -> None:
        """Drop nothing any more."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _trim(self, queue: ActiveQueue) -> None:
        rule = self._rule(queue.key)
        keep = ALL if rule.max_count is None else rule.max_count
        before_ms = 0 if rule.max_age_ms is None else self._core.clock.wall_ms() - rule.max_age_ms
        self._busy.add(queue.key)
        self._log.trim(queue.key.text, keep, before_ms, PAGE, partial(self._trimmed, queue))

    def _trimmed(self, queue: ActiveQueue, result: Result[Trimmed]) -> None:
        key = queue.key
        self._busy.discard(key)
        if not isinstance(result, Done):
            log.error("queue %s: old dead letters could not be dropped, trying again: %s", key.name, result.error)
            self._wait(queue, AGAIN_S)
            return
        queue.machine.exhumed(result.value.count)
        if result.value.count:
            log.info("queue %s: %d old dead letters were dropped", key.name, result.value.count)
            self._on_dropped(queue)
        if self._closed:
            return
        rule, oldest_ms = self._rule(key), result.value.oldest_ms
        if result.value.count == PAGE or self._over(queue, rule):
            self._trim(queue)
            return
        if rule.max_age_ms is None or oldest_ms is None:
            return
        self._wait(queue, (oldest_ms + rule.max_age_ms - self._core.clock.wall_ms() + 1) / 1000)

    def _wait(self, queue: ActiveQueue, seconds: float) -> None:
        def over() -> None:
            self._timers.pop(queue.key, None)
            self.look(queue)

        if self._closed:
            return
        old = self._timers.pop(queue.key, None)
        if old is not None:
            old.cancel()
        self._timers[queue.key] = self._core.deadlines.after(min(max(seconds, 0.0), LONGEST_SLEEP_S), over)
