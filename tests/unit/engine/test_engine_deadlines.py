"""Timers: never early, late by at most the grain, a late wake-up reads first, and no bucket outlives its use."""

import time

import pytest
import trio
import trio.testing
from engine_sync import HandClock, SyncCore
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from iii_trio.engine import Clock, Deadlines, Timer
from iii_trio.engine.deadlines import TIDY_ABOVE


def grain(distance: float) -> float:
    return 0.01 if distance < 10 else 0.1 if distance < 600 else 1.0


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1e6), st.floats(0, 1e5), st.floats(0.0001, 3))
def test_a_timer_is_never_early_and_hardly_late(start: float, distance: float, step: float) -> None:
    clock = HandClock()
    clock.time = start
    deadlines = Deadlines(clock)
    fired: list[float] = []
    deadlines.at(start + distance, lambda: fired.append(clock.time))
    clock.time = start + distance - min(step, distance)
    deadlines.fire_due()
    if clock.time < start + distance:
        assert not fired
    clock.time = start + distance + grain(distance) * 1.001
    deadlines.fire_due()
    assert len(fired) == 1
    assert deadlines.statistics().timers == 0


def test_timers_of_one_bucket_fire_in_the_order_they_were_set() -> None:
    clock = HandClock()
    deadlines = Deadlines(clock)
    fired: list[int] = []
    for number in range(50):
        deadlines.at(1.0, lambda number=number: fired.append(number))  # type: ignore[misc]
    clock.time = 2.0
    deadlines.fire_due()
    assert fired == list(range(50))


def test_a_timer_can_be_cancelled_at_any_moment() -> None:
    clock = HandClock()
    deadlines = Deadlines(clock)
    fired: list[str] = []
    timers: dict[str, Timer] = {}

    def first() -> None:
        fired.append("first")
        timers["second"].cancel()
        timers["first"].cancel()

    timers["first"] = deadlines.at(1.0, first)
    timers["second"] = deadlines.at(1.0, lambda: fired.append("second"))
    third = deadlines.at(1.0, lambda: fired.append("third"))
    third.cancel()
    third.cancel()
    clock.time = 2.0
    deadlines.fire_due()
    timers["first"].cancel()
    assert fired == ["first"]
    assert deadlines.statistics().fired == 1


def test_what_a_timer_sets_for_now_waits_for_the_next_round() -> None:
    clock = HandClock()
    deadlines = Deadlines(clock)
    fired: list[int] = []

    def again() -> None:
        fired.append(len(fired))
        deadlines.after(0, again)

    deadlines.after(0, again)
    for _ in range(5):
        clock.time += 0.02
        deadlines.fire_due()
    assert len(fired) == 5


def test_buckets_that_nobody_needs_any_more_are_dropped() -> None:
    core = SyncCore()
    executor, caller = core.connect(version="1"), core.connect(version="1")
    executor.register("a::f")
    for number in range(3 * TIDY_ABOVE):
        call = caller.call("a::f", deadline_ms=number * 10_000_019)
        executor.answer(call)
        if number % 500 == 0:
            caller.take()
            executor.take()
    statistics = core.engine.deadlines.statistics()
    assert statistics.timers <= 2
    assert statistics.buckets <= TIDY_ABOVE + 10


def test_tidying_loses_no_timer() -> None:
    clock = HandClock()
    deadlines = Deadlines(clock)
    fired: list[int] = []
    kept = [deadlines.at(10 * number + 5, lambda number=number: fired.append(number)) for number in range(100)]  # type: ignore[misc]
    for number in range(TIDY_ABOVE + 1):
        deadlines.at(10_000 + 2 * number, fired.clear).cancel()
    deadlines.tidy()
    assert deadlines.statistics().buckets == len(kept)
    clock.time = 2_000
    deadlines.fire_due()
    assert fired == list(range(100))


# -- the task ---------------------------------------------------------------------------------------------------------


async def test_the_task_sleeps_until_the_next_timer_and_wakes_for_an_earlier_one(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    deadlines = Deadlines(Clock())
    nursery.start_soon(deadlines.run)
    await trio.testing.wait_all_tasks_blocked()
    fired: list[tuple[str, float]] = []
    began = trio.current_time()
    deadlines.after(100, lambda: fired.append(("late", trio.current_time() - began)))
    await trio.testing.wait_all_tasks_blocked()
    deadlines.after(5, lambda: fired.append(("soon", trio.current_time() - began)))
    await trio.sleep(200)
    assert [name for name, _ in fired] == ["soon", "late"]
    assert 5 <= fired[0][1] <= 5.011
    assert 100 <= fired[1][1] <= 100.11
    nursery.cancel_scope.cancel()


async def test_after_a_freeze_what_has_arrived_is_read_before_anything_expires(nursery: trio.Nursery) -> None:
    """A stopped process wakes up with answers in its sockets and deadlines in the past: the answers count."""
    deadlines = Deadlines(Clock())
    near, far = trio.testing.lockstep_stream_pair()
    heard: list[str] = []
    timer = deadlines.after(0.05, lambda: heard.append("expired"))

    async def reader() -> None:
        await far.receive_some(1)
        heard.append("read")
        timer.cancel()

    nursery.start_soon(reader)
    nursery.start_soon(deadlines.run)
    await trio.testing.wait_all_tasks_blocked()
    time.sleep(1.2)  # noqa: ASYNC251 - this is the freeze
    await near.send_all(b"x")
    await trio.testing.wait_all_tasks_blocked()
    assert heard == ["read"]
    nursery.cancel_scope.cancel()


async def test_the_two_times_move_together_in_tests(autojump_clock: MockClock) -> None:
    clock = Clock(epoch=1_700_000_000)
    now, wall = clock.now(), clock.wall()
    await trio.sleep(10)
    assert (clock.now() - now, clock.wall() - wall) == (10, 10)
    assert clock.wall_ms() == round(clock.wall() * 1000)
    assert Clock().wall() == pytest.approx(time.time(), abs=5)
