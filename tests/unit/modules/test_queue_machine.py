"""The queue's state machine: order, concurrency, retries, holds, what it keeps in memory, and a model of all of it."""

import tracemalloc
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iii_trio.modules.queue.lanes import Item, LaneRow, Promote, Read, Refill, Row, Survey, place_of
from iii_trio.modules.queue.machine import PUT_BACK_S, Deliver, Effect, QueueMachine, SetTimer
from iii_trio.modules.queue.verdicts import (
    BACKOFF_CEILING_MS,
    Acknowledge,
    Bury,
    Busy,
    Failed,
    Interrupted,
    Missing,
    Persist,
    Policy,
    Refused,
    Retry,
    Succeeded,
    backoff_ms,
)
from iii_trio.modules.queue.window import READ_AGAIN_S

A, B = ("default", "a"), ("default", "b")


@define(eq=False)
class Log:
    """What a log does for one queue: each change and each read happens in the order of the calls."""

    rows: dict[int, Row] = field(factory=dict)
    due: dict[int, float] = field(factory=dict)

    def write(self, row: Row, due: float = 0.0) -> None:
        self.rows[row.seq], self.due[row.seq] = row, due

    def settle(self, item: Item, verdict: Persist) -> None:
        row = self.rows.pop(item.seq)
        if isinstance(verdict, Retry):
            self.write(evolve(row, attempts=verdict.attempts, deliveries=item.deliveries, delayed=True), item.due)

    def read(self, read: Read, now: float) -> Callable[[QueueMachine], None]:
        """Do it; what is returned tells a machine the answer."""
        if isinstance(read, Survey):
            lanes = self._lanes(read)
            return lambda machine: machine.surveyed(read, lanes)
        if isinstance(read, Refill):
            pages = [
                self._lane(read.fifo, gap.key, lambda place, floor=gap.floor: place > floor)[: gap.limit]  # type: ignore[misc]
                for gap in read.gaps
            ]
            return lambda machine: machine.refilled(read, pages)
        rows = sorted((row for row in self.rows.values() if row.delayed), key=lambda row: self.due[row.seq])
        promoted = [evolve(row, delayed=False) for row in rows[: read.limit] if self.due[row.seq] <= now]
        self.rows.update((row.seq, row) for row in promoted)
        next_due = min((self.due[row.seq] for row in self.rows.values() if row.delayed), default=inf)
        return lambda machine: machine.promoted(promoted, next_due)

    def _lane(self, fifo: bool, key: tuple[str, str], within: Callable[[int], bool]) -> list[Row]:
        found = {}
        for row in self.rows.values():
            place = row.seq if fifo else place_of(row.seq, row.priority)
            if key == (("", row.group) if fifo else row.target) and (fifo or not row.delayed) and within(place):
                found[place] = row
        return [found[place] for place in sorted(found)]

    def _lanes(self, read: Survey) -> list[LaneRow]:
        keys = {
            ("", row.group) if read.fifo else row.target for row in self.rows.values() if read.fifo or not row.delayed
        }
        found = []
        for key in sorted(key for key in keys if read.after is None or key > read.after)[: read.limit]:
            rows = self._lane(read.fifo, key, lambda _: True)
            late = sum(row.delayed for row in rows)
            found.append(LaneRow(key, len(rows) - late, late, rows[0]))
        return found


class Rig:
    """A machine with a log that answers at once. What is not here is the machine's own."""

    def __init__(self, policy: Policy, missing: set[Any] | None = None, run: int = 256, window: int = 4096) -> None:
        absent = missing if missing is not None else set()
        self.log = Log()
        self.reads: list[Read] = []
        self.machine = QueueMachine(lambda target: target not in absent, run=run, window=window)
        self.machine.configure(policy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.machine, name)

    def add(
        self, seq: int, target: tuple[str, str], group: str = "", *, now: float, due: float = 0.0, **more: Any
    ) -> None:
        self.log.write(Row(seq, target, group, delayed=due > now, **more), due)
        self.machine.add(seq, target, group, due=due if due > now else None, **more)

    def poll(self, now: float) -> list[Effect]:
        found: list[Effect] = []
        while True:
            effects = self.machine.poll(now)
            reads = [effect for effect in effects if isinstance(effect, Survey | Refill | Promote)]
            found += [effect for effect in effects if isinstance(effect, Deliver)]
            for read in reads:
                self.reads.append(read)
                self.log.read(read, now)(self.machine)
            if not reads:
                return found + [effect for effect in effects if isinstance(effect, SetTimer)]

    def settled(self, item: Item, verdict: Persist, _now: float = 0.0) -> None:
        self.log.settle(item, verdict)
        self.machine.settled(item, verdict)

    def purge(self, limit: int) -> list[int]:
        spared = set(self.machine.begun)
        rows = [row for row in self.log.rows.values() if row.seq not in spared][:limit]
        for row in rows:
            del self.log.rows[row.seq]
        self.machine.removed(rows)
        return [row.seq for row in rows]


def machine(policy: Policy, missing: set[Any] | None = None, **window: int) -> Rig:
    return Rig(policy, missing, **window)


def begun(queue: Rig, now: float = 0.0) -> list[Item]:
    return [effect.item for effect in queue.poll(now) if isinstance(effect, Deliver)]


def succeed(queue: Rig, item: Item, now: float = 0.0) -> None:
    queue.settled(item, _written(queue.finished(item, Succeeded(), now)), now)


def fail(queue: Rig, item: Item, now: float = 0.0) -> Retry | Bury:
    verdict = _written(queue.finished(item, Failed("no"), now))
    queue.settled(item, verdict, now)
    assert isinstance(verdict, Retry | Bury)
    return verdict


def _written(verdict: Any) -> Any:
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("base", "failures", "expected"),
    [
        (50, 1, 50),
        (50, 2, 100),
        (50, 3, 200),
        (1000, 1, 1000),
        (0, 9, 0),
        (1000, 60, BACKOFF_CEILING_MS),
        (1, 4_000_000_000, BACKOFF_CEILING_MS),
        (2**64 - 1, 1, BACKOFF_CEILING_MS),
    ],
)
def test_the_delay_doubles_up_to_a_ceiling(base: int, failures: int, expected: int) -> None:
    assert backoff_ms(base, failures) == expected


def test_the_oldest_goes_first_and_never_more_than_the_concurrency() -> None:
    queue = machine(Policy(concurrency=2))
    for seq in (3, 1, 2, 4):
        queue.add(seq, A if seq % 2 else B, now=0.0)
    first = begun(queue)
    assert [item.seq for item in first] == [1, 2]
    assert begun(queue) == []
    succeed(queue, first[1])
    assert [item.seq for item in begun(queue)] == [3]


def test_a_slot_is_free_and_a_retry_scheduled_only_when_the_verdict_is_written() -> None:
    queue = machine(Policy(concurrency=1, max_attempts=2, backoff_ms=100))
    queue.add(1, A, now=0.0)
    queue.add(2, A, now=0.0)
    (item,) = begun(queue)
    verdict = _written(queue.finished(item, Failed("no"), 0.0))
    assert begun(queue, 5.0) == []
    queue.settled(item, verdict, 5.0)
    assert [i.seq for i in begun(queue, 5.0)] == [1]  # its time had come while it was written down


def test_a_failing_message_is_retried_with_growing_delay_then_buried() -> None:
    queue = machine(Policy(concurrency=1, max_attempts=3, backoff_ms=50))
    queue.add(1, A, now=0.0)
    (item,) = begun(queue)
    assert fail(queue, item) == Retry(1, 50, "no")
    assert queue.poll(0.0) == [SetTimer(0.05)]
    (item,) = begun(queue, 0.05)
    assert item.seq == 1
    assert fail(queue, item, 0.05) == Retry(2, 100, "no")
    (item,) = begun(queue, 0.16)
    assert item.deliveries == 3
    assert fail(queue, item, 0.16) == Bury(3, "no")
    counts = queue.statistics()
    assert (counts.dead, counts.failures, counts.lanes, queue.live) == (1, 3, 0, 0)
    assert queue.poll(9.0) == []


def test_a_retry_whose_time_has_come_goes_before_younger_messages_and_delays_none_of_them() -> None:
    queue = machine(Policy(concurrency=1, max_attempts=9, backoff_ms=1000))
    for seq in (1, 2, 3):
        queue.add(seq, A, now=0.0)
    (first,) = begun(queue)
    fail(queue, first)
    (second,) = begun(queue)
    assert second.seq == 2
    succeed(queue, second, 1.0)
    assert [item.seq for item in begun(queue, 1.0)] == [1]


def test_a_fifo_group_goes_one_by_one_and_waits_for_its_failing_head_while_other_groups_go_on() -> None:
    queue = machine(Policy(fifo=True, concurrency=3, max_attempts=2, backoff_ms=1000))
    for seq, group in ((1, "x"), (2, "x"), (3, "y"), (4, "y")):
        queue.add(seq, A, group, now=0.0)
    x1, y3 = begun(queue)
    assert (x1.seq, y3.seq) == (1, 3)
    fail(queue, x1)
    succeed(queue, y3)
    assert [item.seq for item in begun(queue)] == [4]
    assert begun(queue, 0.9) == []
    (again,) = begun(queue, 1.0)
    assert again is x1
    assert isinstance(fail(queue, again, 1.0), Bury)
    assert [item.seq for item in begun(queue, 1.0)] == [2]


def test_messages_for_a_missing_function_are_held_without_slot_or_attempt_and_block_nobody_else() -> None:
    missing = {A}
    queue = machine(Policy(concurrency=1), missing)
    for seq in (1, 2):
        queue.add(seq, A, now=0.0)
    queue.add(3, B, now=0.0)
    assert [item.seq for item in begun(queue)] == [3]
    assert queue.statistics().held == 2
    assert not queue.appeared(B)
    missing.clear()
    assert queue.appeared(A)
    assert begun(queue) == []  # the slot is taken
    queue.configure(Policy(concurrency=3))
    assert [(item.seq, item.attempts, item.deliveries) for item in begun(queue)] == [(1, 0, 1), (2, 0, 1)]
    assert queue.statistics().held == 0


def test_a_fifo_group_is_held_by_its_head_and_by_nothing_else() -> None:
    missing = {A}
    queue = machine(Policy(fifo=True, concurrency=5), missing)
    queue.add(1, A, "x", now=0.0)
    queue.add(2, B, "x", now=0.0)
    queue.add(3, B, "y", now=0.0)
    assert [item.seq for item in begun(queue)] == [3]
    missing.clear()
    queue.appeared(A)
    assert [item.seq for item in begun(queue)] == [1]


@pytest.mark.parametrize(
    ("ending", "at_once", "deliveries"),
    [(Busy(), False, 0), (Refused(), False, 0), (Missing(), True, 0), (Interrupted(), True, 1)],
)
def test_what_was_no_attempt_counts_none(ending: Any, at_once: bool, deliveries: int) -> None:
    queue = machine(Policy(concurrency=1, max_attempts=1))
    queue.add(1, A, now=0.0)
    (item,) = begun(queue)
    assert queue.finished(item, ending, 0.0) is None
    assert (item.attempts, item.deliveries) == (0, deliveries)
    assert bool(begun(queue)) is at_once
    assert bool(begun(queue, PUT_BACK_S)) is not at_once


@pytest.mark.parametrize("fifo", [False, True])
def test_a_busy_worker_is_asked_now_and_then_and_not_for_each_message(fifo: bool) -> None:
    """Else a slow reader would keep the engine at work with all that waits for it, again and again."""
    queue = machine(Policy(fifo=fifo, concurrency=2))
    for seq in range(1, 10):
        queue.add(seq, A, f"group {seq}", now=0.0)
    queue.add(10, B, "another", now=0.0)
    asked = 0
    for now in (0.0, 0.0, 0.1, PUT_BACK_S, PUT_BACK_S, 2 * PUT_BACK_S):
        for item in begun(queue, now):
            if item.target == B:
                succeed(queue, item, now)
            else:
                asked += 1
                assert item.seq in (1, 2)
                queue.finished(item, Busy(), now)
    assert asked == 3 * 2
    assert queue.live == 9
    assert queue.machine.poll(2 * PUT_BACK_S) == [SetTimer(3 * PUT_BACK_S)]
    assert [item.seq for item in begun(queue, 3 * PUT_BACK_S)] == [1, 2]


def test_no_concurrency_and_a_pause_begin_nothing() -> None:
    queue = machine(Policy(concurrency=0))
    queue.add(1, A, now=0.0)
    assert queue.poll(0.0) == []
    queue.configure(Policy(concurrency=1))
    queue.machine.paused = True
    assert queue.poll(0.0) == []
    assert queue.waiting == 1


def test_becoming_fifo_keeps_every_message_and_waits_for_what_runs() -> None:
    queue = machine(Policy(concurrency=2, max_attempts=5, backoff_ms=1000))
    for seq in (1, 2, 3, 4):
        queue.add(seq, A, "x", now=0.0)
    first, second = begun(queue)
    fail(queue, first)
    (third,) = begun(queue)
    queue.configure(Policy(fifo=True, concurrency=2, max_attempts=5, backoff_ms=1000))
    succeed(queue, second, 1.0)
    assert begun(queue, 1.0) == []
    succeed(queue, third, 1.0)
    assert [item.seq for item in begun(queue, 1.0)] == [1]


def test_restored_messages_keep_attempts_and_due_time() -> None:
    queue = machine(Policy(concurrency=1, max_attempts=3))
    queue.add(7, A, now=10.0, due=12.0, attempts=2, deliveries=3)
    assert queue.poll(10.0) == [SetTimer(12.0)]
    (item,) = begun(queue, 12.0)
    assert item.deliveries == 4
    assert isinstance(fail(queue, item, 12.0), Bury)


def test_the_highest_priority_goes_first_then_the_oldest() -> None:
    queue = machine(Policy(concurrency=1))
    for seq, (target, priority) in enumerate([(A, 0), (B, 0), (A, 9), (B, 255), (A, 255), (B, 9)], 1):
        queue.add(seq, target, priority=priority, now=0.0)
    order = []
    while items := begun(queue):
        order += [item.seq for item in items]
        succeed(queue, items[0])
    assert order == [4, 5, 3, 6, 1, 2]


def test_in_a_fifo_queue_priority_decides_between_groups_and_never_within_one() -> None:
    queue = machine(Policy(fifo=True, concurrency=1))
    for seq, (group, priority) in enumerate([("x", 0), ("y", 5), ("x", 9), ("y", 0)], 1):
        queue.add(seq, A, group, priority=priority, now=0.0)
    order = []
    while items := begun(queue):
        order += [item.seq for item in items]
        succeed(queue, items[0])
    assert order == [2, 1, 3, 4]


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (Policy(backoff_ms=100), [100, 200, 400, 800]),
        (Policy(backoff_ms=100, backoff_max_ms=250), [100, 200, 250, 250]),
        (Policy(backoff_ms=100, backoff_fixed=True), [100, 100, 100, 100]),
        (Policy(backoff_ms=100, jitter=0.5), [75, 150, 300, 600]),
        (Policy(backoff_ms=100, backoff_max_ms=50), [50, 50, 50, 50]),
    ],
)
def test_a_policy_caps_steadies_or_scatters_the_delay(policy: Policy, delays: list[int]) -> None:
    assert [policy.delay_ms(failures, 0.5) for failures in range(1, 5)] == delays


def test_jitter_shortens_a_delay_by_chance() -> None:
    chances = iter([0.0, 1.0])
    queue = machine(Policy(concurrency=1, max_attempts=9, backoff_ms=100, jitter=0.2))
    queue.machine.chance = lambda: next(chances)
    queue.add(1, A, now=0.0)
    (item,) = begun(queue)
    verdict = fail(queue, item)
    assert isinstance(verdict, Retry)
    assert verdict.delay_ms == 100
    (item,) = begun(queue, 0.1)
    verdict = fail(queue, item)
    assert isinstance(verdict, Retry)
    assert verdict.delay_ms == 160


@pytest.mark.parametrize("fifo", [False, True])
def test_a_purge_removes_what_has_not_begun_and_nothing_else(fifo: bool) -> None:
    queue = machine(Policy(fifo=fifo, concurrency=2, max_attempts=9), missing := {B}, run=2, window=3)
    for seq in range(1, 41):
        queue.add(seq, (A, B)[seq % 2], f"g{seq // 2 % 3}", now=0.0, due=5.0 * (seq % 5 == 0), attempts=seq % 4 == 3)
    running = begun(queue)
    assert len(running) == 2
    purged = queue.purge(15)
    assert (queue.unbegun, queue.live) == (25 - len(running), 25)
    for item in running:
        succeed(queue, item)
    missing.clear()
    queue.appeared(B)
    order = []
    while items := begun(queue, 9.0):
        for item in items:
            order.append(item.seq)
            succeed(queue, item, 9.0)
    assert sorted([*order, *purged, *(item.seq for item in running)]) == list(range(1, 41))
    assert (queue.live, queue.statistics().lanes, queue.log.rows) == (0, 0, {})
    queue.add(50, A, now=9.0)
    assert queue.purge(10) == [50]
    assert (queue.live, queue.statistics().lanes) == (0, 0)


@pytest.mark.parametrize("fifo", [False, True])
def test_memory_is_bounded_however_many_messages_wait(fifo: bool) -> None:
    count, lanes = 30_000, 100
    queue = machine(Policy(fifo=fifo, concurrency=1))
    tracemalloc.start()
    for seq in range(1, count + 1):
        queue.machine.add(seq, ("default", f"f{seq % lanes}"), f"g{seq % lanes}")
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert current < 1_500_000
    assert queue.live == count


def test_a_group_that_waits_costs_little_memory() -> None:
    groups = 5_000
    queue = machine(Policy(fifo=True, concurrency=1))
    names = [f"g{number}" for number in range(groups)]
    tracemalloc.start()
    for seq, name in enumerate(names, 1):
        queue.machine.add(seq, A, name)
        queue.machine.add(seq + groups, A, name)
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert current / groups < 800


@pytest.mark.parametrize("fifo", [False, True])
def test_what_stood_in_the_log_is_surveyed_and_then_delivered_in_order(fifo: bool) -> None:
    queue = machine(Policy(fifo=fifo, concurrency=1), run=2, window=2)
    for seq in range(1, 31):
        queue.log.write(Row(seq, (A, B)[seq % 2], f"g{seq % 3}", priority=seq % 3))
    queue.restore(30, 0, inf, 30)
    assert (queue.live, queue.waiting, queue.newest) == (30, 30, 30)
    order = []
    while items := begun(queue):
        order.append(items[0].seq)
        succeed(queue, items[0])
    # in the fifo queue the priority is that of the group, whose number it is here
    assert order == sorted(range(1, 31), key=lambda seq: (-(seq % 3), seq))
    assert (queue.live, queue.statistics().lanes) == (0, 0)


def test_groups_do_not_wait_until_all_of_them_are_counted() -> None:
    queue = QueueMachine(lambda _: True, Policy(fifo=True, concurrency=9), lanes_read=2)
    log = Log()
    for seq in range(1, 7):
        log.write(Row(seq, A, f"g{seq % 3}"))
    queue.restore(6, 0, inf, 6)
    order = []
    while len(order) < 3:
        for effect in queue.poll(0.0):
            if isinstance(effect, Deliver):
                order.append(effect.item.seq)
            elif not isinstance(effect, SetTimer):
                log.read(effect, 0.0)(queue)
        if len(order) == 2:
            queue.add(7, A, "g2")  # of a group that is not counted yet: it is seen when it is
            log.write(Row(7, A, "g2"))
            order.append(0)
    assert order == [1, 3, 0]
    assert queue.live == 7


def test_a_read_is_asked_for_before_the_run_is_at_its_end_and_one_at_a_time() -> None:
    queue = machine(Policy(concurrency=100), run=10)
    for seq in range(1, 31):
        queue.add(seq, A, now=0.0)
    queue.machine.policy = Policy(concurrency=5)
    effects = queue.machine.poll(0.0)
    (refill,) = [effect for effect in effects if isinstance(effect, Refill)]
    assert [effect.item.seq for effect in effects if isinstance(effect, Deliver)] == [1, 2, 3, 4, 5]
    assert (refill.gaps[0].floor, refill.gaps[0].limit) == (10, 5)
    assert queue.machine.poll(0.0) == []
    queue.log.read(refill, 0.0)(queue.machine)
    assert [queue.holds(seq) for seq in (15, 16)] == [True, False]


def test_what_is_cut_off_while_a_read_is_under_way_is_not_skipped() -> None:
    queue = machine(Policy(concurrency=1), run=2)
    for seq in range(1, 9):
        queue.add(seq, A, now=0.0)
    first, refill = queue.machine.poll(0.0)
    assert isinstance(first, Deliver)
    answer = queue.log.read(refill, 0.0)
    for seq in range(9, 13):
        queue.add(seq, A, now=0.0, priority=1)  # more than stay in memory: 2 is cut off, before the place that is read
    assert not queue.holds(2)
    answer(queue.machine)
    succeed(queue, first.item)
    order = []
    while items := begun(queue):
        order.append(items[0].seq)
        succeed(queue, items[0])
    assert order == [9, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8]


def test_a_read_that_fails_is_tried_again_after_a_moment() -> None:
    queue = machine(Policy(concurrency=1, backoff_ms=100), run=2)
    for seq in range(1, 9):
        queue.add(seq, A, now=0.0)
    _, refill = queue.machine.poll(0.0)
    assert isinstance(refill, Refill)
    queue.unread(refill, 0.0)
    assert queue.machine.poll(0.0) == [SetTimer(READ_AGAIN_S)]
    assert queue.machine.poll(READ_AGAIN_S) == [refill]
    queue.log.read(refill, 0.0)(queue.machine)
    queue.add(9, B, now=2.0, due=3.0)
    (promote,) = queue.machine.poll(3.0)
    assert isinstance(promote, Promote)
    queue.unread(promote, 3.0)
    assert queue.machine.poll(3.0) == [SetTimer(3.0 + READ_AGAIN_S)]


def test_what_others_took_out_of_the_log_is_missed_by_nobody() -> None:
    queue = machine(Policy(concurrency=1), run=2)
    for seq in range(1, 9):
        queue.add(seq, A, now=0.0)
    for seq in (5, 6, 7, 8):
        del queue.log.rows[seq]
    order = []
    while items := begun(queue):
        order.append(items[0].seq)
        succeed(queue, items[0])
    assert order == [1, 2, 3, 4]
    assert queue.live == 0


class Model(RuleBasedStateMachine):
    """Whatever happens: order per group, the bounds, every message ends, and none is delivered twice at a time.

    Everything goes through a line, as the operations on a log do: it happens when it is submitted, and the machine
    hears of it later, in order.
    """

    TARGETS = (("default", "a"), ("default", "b"), ("other", "a"))

    def __init__(self) -> None:
        super().__init__()
        self.missing: set[tuple[str, str]] = set()
        self.log = Log()
        self.line: deque[Callable[[], None]] = deque()
        self.policy = Policy()
        self.now = 0.0
        self.seq = 0
        self.used: set[int] = set()
        # what the machine has heard of
        self.alive: dict[int, tuple[tuple[str, str], str, int]] = {}  # seq -> target, group, failures
        self.priority: dict[int, int] = {}
        self.delayed: dict[int, float] = {}
        self.resting: dict[int, float] = {}
        self.busy: dict[tuple[str, str], float] = {}
        self.delivered: dict[int, int] = {}
        self.running: dict[int, Item] = {}
        self.settling: dict[int, Item] = {}
        self.ended: set[int] = set()
        self.purging = 0

    @initialize(
        fifo=st.booleans(),
        run=st.integers(2, 3),
        window=st.integers(0, 3),
        lanes=st.integers(1, 2),
        promoted=st.integers(1, 2),
    )
    def begin(self, fifo: bool, run: int, window: int, lanes: int, promoted: int) -> None:
        self.queue = QueueMachine(
            lambda target: target not in self.missing,
            run=run,
            window=window,
            lanes_read=lanes,
            promoted_at_once=promoted,
        )
        self.window = window
        self.configure(fifo, 3, 2)

    def heard(self, count: int) -> None:
        for _ in range(min(count, len(self.line))):
            self.line.popleft()()

    @rule(count=st.integers(1, 4))
    def hear(self, count: int) -> None:
        self.heard(count)

    @rule(
        function=st.sampled_from(TARGETS),
        group=st.sampled_from("xxyz"),
        delay=st.sampled_from([0.0, 0.0, 0.0, 0.5]),
        priority=st.sampled_from([0, 0, 0, 1, 255]),
        count=st.integers(1, 6),
    )
    def add(self, function: tuple[str, str], group: str, delay: float, priority: int, count: int) -> None:
        for _ in range(count):
            self.seq += 2
            self._add(self.seq, function, group, delay, priority)

    @rule(function=st.sampled_from(TARGETS), group=st.sampled_from("xxy"), back=st.sampled_from([1, 3, 5, 21]))
    def adopt(self, function: tuple[str, str], group: str, back: int) -> None:
        seq = self.seq - back
        if seq > 0 and seq not in self.used:
            self._add(seq, function, group, 0.0)

    def _add(self, seq: int, function: tuple[str, str], group: str, delay: float, priority: int = 0) -> None:
        due = self.now + delay if delay else None
        self.used.add(seq)
        self.log.write(Row(seq, function, group, priority, delayed=delay > 0), due or 0.0)

        def added() -> None:
            self.queue.add(seq, function, group, priority=priority, due=due)
            self.priority[seq] = priority
            self.alive[seq] = (function, group, 0)
            self.delivered[seq] = 0
            if due is not None:
                self.delayed[seq] = due

        self.line.append(added)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.1, 0.3, 5.0]))
    def poll(self, seconds: float) -> None:
        self.now += seconds
        self.resting = {seq: due for seq, due in self.resting.items() if due > self.now}
        self.busy = {target: due for target, due in self.busy.items() if due > self.now}
        for effect in self.queue.poll(self.now):
            if isinstance(effect, SetTimer):
                assert effect.when > self.now
            elif isinstance(effect, Deliver):
                self._begun(effect.item)
            else:
                answer = self.log.read(effect, self.now)
                self.line.append(lambda answer=answer: self._answered(answer))  # type: ignore[misc]
        free = len(self.running) + len(self.settling) < self.policy.concurrency
        if free and not self.line and not self.purging:
            assert not self._could_run(held=False), "a message is stuck"

    def _answered(self, answer: Callable[[QueueMachine], None]) -> None:
        answer(self.queue)
        # the log tells here what was promoted; whatever was so and is heard of is not delayed any more
        for seq in list(self.delayed):
            row = self.log.rows.get(seq)
            if row is not None and not row.delayed:
                del self.delayed[seq]

    def _begun(self, item: Item) -> None:
        target, group, failures = self.alive[item.seq]
        assert item.seq not in self.running
        assert item.seq not in self.settling
        assert target not in self.missing
        assert not self.purging
        assert item.seq not in self.resting
        assert target not in self.busy
        assert self.delayed.get(item.seq, 0.0) <= self.now
        self.delayed.pop(item.seq, None)
        assert item.attempts == failures
        first = min([item.seq, *self._could_run(held=True)], key=lambda seq: (-self.priority[seq], seq))
        assert item.seq == first, "a message was overtaken"
        assert len(self.running) + len(self.settling) < self.policy.concurrency
        if self.policy.fifo:
            older = [seq for seq, (_, other, _) in self.alive.items() if other == group and seq < item.seq]
            assert not older, "a fifo group was overtaken"
            assert all(self.alive[seq][1] != group for seq in (*self.running, *self.settling))
        self.delivered[item.seq] += 1
        assert item.deliveries == self.delivered[item.seq]
        self.running[item.seq] = item

    def _could_run(self, *, held: bool) -> list[int]:
        free = [seq for seq in self.alive if seq not in self.running and seq not in self.settling]
        able = [seq for seq in free if not self._sleeps(seq) and seq not in self.resting]
        able = [seq for seq in able if self.alive[seq][0] not in (*self.missing, *self.busy)]
        if not self.policy.fifo:
            return able
        busy = {self.alive[seq][1] for seq in (*self.running, *self.settling)}
        groups = {group for _, group, _ in self.alive.values()} - busy
        heads = {min(s for s, (_, g, _) in self.alive.items() if g == group) for group in groups}
        # the head of another group may be on its way into memory: groups do not wait for each other
        return [seq for seq in able if seq in heads and (self.queue.holds(seq) or not held)]

    def _sleeps(self, seq: int) -> bool:
        """Delayed, as far as anybody has heard; what is in memory wakes by itself."""
        held = not self.policy.fifo and self.queue.holds(seq)
        return seq in self.delayed and not (held and self.delayed[seq] <= self.now)

    @precondition(lambda self: self.running)
    @rule(
        data=st.data(), ending=st.sampled_from([Succeeded(), Failed("x"), Busy(), Refused(), Missing(), Interrupted()])
    )
    def finish(self, data: st.DataObject, ending: Any) -> None:
        item = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        self._finish(item, ending)

    def _finish(self, item: Item, ending: Any) -> None:
        verdict = self.queue.finished(item, ending, self.now)
        if verdict is None:
            self.delivered[item.seq] -= not isinstance(ending, Interrupted)
            if isinstance(ending, Interrupted):  # the log is not told: it is at the end of an engine's life
                self.log.rows[item.seq] = evolve(self.log.rows[item.seq], deliveries=item.deliveries)
            if isinstance(ending, Refused):
                self.resting[item.seq] = self.now + PUT_BACK_S
            if isinstance(ending, Busy):
                self.busy[item.target] = self.now + PUT_BACK_S
            return
        if isinstance(ending, Succeeded):
            assert verdict == Acknowledge()
        else:
            target, group, failures = self.alive[item.seq]
            self.alive[item.seq] = (target, group, failures + 1)
            assert isinstance(verdict, Bury if failures + 1 >= self.policy.max_attempts else Retry)
        self.log.settle(item, verdict)
        self.settling[item.seq] = item

        def settled() -> None:
            del self.settling[item.seq]
            self.queue.settled(item, verdict)
            if isinstance(verdict, Retry):
                self.delayed[item.seq] = item.due
            else:
                del self.alive[item.seq]
                self.ended.add(item.seq)

        self.line.append(settled)

    @rule(limit=st.integers(1, 9))
    def purge(self, limit: int) -> None:
        """Some of what has not begun is removed; nothing begins meanwhile."""
        self.queue.paused = True
        self.purging += 1
        spared = set(self.queue.begun)
        rows = [row for row in self.log.rows.values() if row.seq not in spared and row.seq <= self.queue.newest]
        rows = rows[:limit]
        for row in rows:
            del self.log.rows[row.seq]

        def removed() -> None:
            self.purging -= 1
            self.queue.paused = self.purging > 0
            self.queue.removed(rows)
            for row in rows:
                del self.alive[row.seq]
                self.delayed.pop(row.seq, None)
                self.resting.pop(row.seq, None)
                self.ended.add(row.seq)
                self.purged += 1

        self.line.append(removed)

    purged = 0

    @rule(function=st.sampled_from(TARGETS))
    def lose(self, function: tuple[str, str]) -> None:
        self.missing.add(function)

    @rule(function=st.sampled_from(TARGETS))
    def regain(self, function: tuple[str, str]) -> None:
        self.missing.discard(function)
        self.queue.appeared(function)

    @rule(fifo=st.booleans(), concurrency=st.integers(0, 4), attempts=st.integers(1, 3))
    def reconfigure(self, fifo: bool, concurrency: int, attempts: int) -> None:
        self.configure(fifo, concurrency, attempts)

    def configure(self, fifo: bool, concurrency: int, attempts: int) -> None:
        if fifo is not self.policy.fifo:
            self.resting.clear()  # it is forgotten that they rested
            self.busy.clear()
        self.policy = Policy(fifo, concurrency, attempts, 100)
        self.queue.configure(self.policy)

    @rule()
    def reading_fails(self) -> None:
        """A read that the log refuses."""
        for effect in self.queue.poll(self.now):
            if isinstance(effect, Deliver):
                self._begun(effect.item)
            elif not isinstance(effect, SetTimer):
                self.queue.unread(effect, self.now - 2 * READ_AGAIN_S)  # it may be tried again at once

    @invariant()
    def counts_are_right(self) -> None:
        if not hasattr(self, "queue"):
            return
        counts = self.queue.statistics()
        assert counts.in_flight == len(self.running) + len(self.settling)
        assert counts.waiting + counts.delayed + counts.in_flight == len(self.alive) == self.queue.live
        assert counts.acknowledged + counts.dead == len(self.ended) - self.purged
        assert counts.held <= counts.waiting

    def teardown(self) -> None:
        """Let everything run to its end: no message may be left behind."""
        if not hasattr(self, "queue"):
            return
        for function in self.TARGETS:
            self.missing.discard(function)
            self.queue.appeared(function)
        self.policy = Policy(self.policy.fifo, 2, 1, 100)
        self.queue.configure(self.policy)
        for _ in range(12 * len(self.log.rows) + 20):
            self.heard(len(self.line))
            for item in list(self.running.values()):
                del self.running[item.seq]
                self._finish(item, Succeeded())
            self.poll(10.0)
        self.heard(len(self.line))
        assert not self.alive
        assert not self.log.rows
        assert self.queue.statistics().lanes == 0
        assert self.queue.statistics().delayed == 0


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
