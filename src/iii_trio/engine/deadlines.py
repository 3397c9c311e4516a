"""Every timer of the core: a clock, one heap of buckets, one task.

Timers are grouped in buckets, because most of them never fire: a call's deadline is one dict insertion when it starts
and one removal when it is answered, whatever the number of calls in flight. A timer never fires early; it fires late
by at most its bucket's grain (10 ms below 10 s, 100 ms below 10 min, 1 s above). Timers of one bucket fire in the
order in which they were added.
"""

import time
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, Protocol

import trio
from attrs import define, field, frozen

from ..protocol.limits import LATE_WAKEUP_S

TIDY_ABOVE: Final = 10_000
"""Buckets kept, however many of them are empty: more than calls with usual deadlines ever have."""


class Clock:
    """The two times of the house: `now()` is Trio's clock in seconds, `wall()` Unix time in seconds.

    With `epoch` the wall clock follows Trio's (it reads `epoch` at Trio time 0): tests under a virtual clock see both
    move together.
    """

    def __init__(self, epoch: float | None = None) -> None:
        self._epoch = epoch

    def now(self) -> float:
        """Seconds on Trio's clock; only differences mean anything."""
        return trio.current_time()

    def wall(self) -> float:
        """Unix time in seconds."""
        return time.time() if self._epoch is None else self._epoch + trio.current_time()

    def wall_ms(self) -> int:
        """Unix time in whole milliseconds."""
        return int(self.wall() * 1000)


class Expiring(Protocol):
    """What a bucket holds. `bucket` is set by `Deadlines.add` and cleared when the timer is taken out or fires."""

    bucket: "Bucket | None"

    def expire(self) -> None:
        """The deadline has passed; called once, synchronously."""


Bucket = dict[Expiring, None]


@define(eq=False)
class Timer:
    """A callback at a time; `cancel()` takes it out, at any moment and any number of times."""

    callback: Callable[[], None]
    bucket: Bucket | None = None

    def expire(self) -> None:
        """Run the callback."""
        self.callback()

    def cancel(self) -> None:
        """The callback will not run, unless it has."""
        if self.bucket is not None:
            del self.bucket[self]
            self.bucket = None


@frozen
class DeadlineStatistics:
    """`timers` waiting, in `buckets`; `fired` so far."""

    timers: int
    buckets: int
    fired: int


@define(eq=False, repr=False)
class Deadlines:
    """The heap. `add` and `at` are synchronous; `run` is the one task that fires what is due."""

    clock: Clock
    _buckets: dict[float, Bucket] = field(factory=dict, init=False)
    _heap: list[float] = field(factory=list, init=False)
    _fired: int = field(default=0, init=False)
    _sleeping: trio.CancelScope | None = field(default=None, init=False)
    _wakes_at: float = field(default=float("inf"), init=False)
    _tidy_above: int = field(default=TIDY_ABOVE, init=False)

    def add(self, when: float, entry: Expiring) -> None:
        """Let `entry.expire()` be called at `when` (seconds of the clock) or shortly after."""
        bucket = entry.bucket = self.bucket(when)
        bucket[entry] = None

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` at `when` (seconds of the clock); returns the timer, which can be cancelled."""
        timer = Timer(callback)
        self.add(when, timer)
        return timer

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """`at`, counted from now."""
        return self.at(self.clock.now() + seconds, callback)

    def bucket(self, when: float) -> Bucket:
        """The bucket of a time: hot callers keep it for the length of one wake-up."""
        distance = when - self.clock.now()
        grain = 100 if distance < 10 else 10 if distance < 600 else 1
        key = (int(when * grain) + 1) / grain
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = {}
            heappush(self._heap, key)
            if key < self._wakes_at and self._sleeping is not None:
                self._sleeping.cancel()
        return bucket

    def tidy(self) -> None:
        """Drop buckets that hold nothing any more, once they are many; nobody may use an empty one afterwards."""
        if len(self._heap) <= self._tidy_above:
            return
        self._buckets = {when: bucket for when, bucket in self._buckets.items() if bucket}
        self._heap = sorted(self._buckets)
        self._tidy_above = TIDY_ABOVE + 2 * len(self._heap)

    def fire_due(self) -> None:
        """Fire everything whose time has come. What a timer adds for the past fires in the next round."""
        now = self.clock.now()
        while self._heap and self._heap[0] <= now:
            bucket = self._buckets.pop(heappop(self._heap))
            for entry in tuple(bucket):
                if entry.bucket is not bucket:
                    continue  # taken out by one that fired before it
                entry.bucket = None
                self._fired += 1
                entry.expire()

    async def run(self) -> None:
        """Fire timers until cancelled. After a wake-up more than 1 s late, readers run before anything expires."""
        while True:
            self._wakes_at = self._heap[0] if self._heap else float("inf")
            with trio.CancelScope() as self._sleeping:
                await trio.sleep_until(self._wakes_at)
            self._sleeping = None
            if self.clock.now() - self._wakes_at > LATE_WAKEUP_S:
                for _ in range(3):
                    await trio.lowlevel.checkpoint()
            self.fire_due()

    def statistics(self) -> DeadlineStatistics:
        """A frozen picture of the heap."""
        return DeadlineStatistics(
            timers=sum(len(bucket) for bucket in self._buckets.values()), buckets=len(self._buckets), fired=self._fired
        )
