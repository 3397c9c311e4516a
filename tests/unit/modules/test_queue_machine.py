"""The queue's state machine: order, concurrency, retries, holds, and a Hypothesis model of all of it together."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iii_trio.modules.queue.machine import (
    BACKOFF_CEILING_MS,
    PUT_BACK_S,
    Acknowledge,
    Bury,
    Deliver,
    Failed,
    Interrupted,
    Item,
    Missing,
    Policy,
    QueueMachine,
    Refused,
    Retry,
    SetTimer,
    Succeeded,
    backoff_ms,
)

A, B = ("default", "a"), ("default", "b")


def machine(policy: Policy, missing: set[Any] | None = None) -> QueueMachine:
    absent = missing if missing is not None else set()
    made = QueueMachine(lambda target: target not in absent)
    made.configure(policy)
    return made


def begun(queue: QueueMachine, now: float = 0.0) -> list[Item]:
    return [effect.item for effect in queue.poll(now) if isinstance(effect, Deliver)]


def succeed(queue: QueueMachine, item: Item, now: float = 0.0) -> None:
    queue.settled(item, _written(queue.finished(item, Succeeded(), now)), now)


def fail(queue: QueueMachine, item: Item, now: float = 0.0) -> Retry | Bury:
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
    assert begun(queue, 0.05) == [item]
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
    [(Refused(), False, 0), (Missing(), True, 0), (Interrupted(), True, 1)],
)
def test_what_was_no_attempt_counts_none(ending: Any, at_once: bool, deliveries: int) -> None:
    queue = machine(Policy(concurrency=1, max_attempts=1))
    queue.add(1, A, now=0.0)
    (item,) = begun(queue)
    assert queue.finished(item, ending, 0.0) is None
    assert (item.attempts, item.deliveries) == (0, deliveries)
    assert bool(begun(queue)) is at_once
    assert bool(begun(queue, PUT_BACK_S)) is not at_once


def test_no_concurrency_and_a_pause_begin_nothing() -> None:
    queue = machine(Policy(concurrency=0))
    queue.add(1, A, now=0.0)
    assert queue.poll(0.0) == []
    queue.configure(Policy(concurrency=1))
    queue.paused = True
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
    queue = QueueMachine(lambda _: True, Policy(concurrency=1, max_attempts=9, backoff_ms=100, jitter=0.2))
    queue.chance = lambda: next(chances)
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
def test_what_is_taken_out_is_all_that_has_not_begun_and_can_be_put_back(fifo: bool) -> None:
    queue = machine(Policy(fifo=fifo, concurrency=2, max_attempts=9), missing := {B})
    for seq in range(1, 21):
        queue.add(seq, (A, B)[seq % 2], f"g{seq % 3}", now=0.0, due=5.0 * (seq % 5 == 0), attempts=seq % 4 == 3)
    running = begun(queue)
    pages = list(queue.take_out(4))
    assert [len(page) for page in pages[:-1]] == [4] * (len(pages) - 1)
    taken = [seq for page in pages for seq, _ in page]
    assert sorted(taken + [item.seq for item in running]) == list(range(1, 21))
    assert (queue.unbegun, queue.live) == (0, len(running))
    assert begun(queue, 9.0) == []
    for item in running:
        succeed(queue, item)
    assert queue.statistics().lanes == 0
    for page in pages:
        queue.put_back(page)
    missing.clear()
    order = []
    while items := begun(queue, 9.0):
        for item in items:
            order.append(item.seq)
            succeed(queue, item, 9.0)
    assert sorted(order) == sorted(taken)
    assert (queue.live, queue.statistics().lanes) == (0, 0)


def test_no_more_is_taken_out_than_there_was() -> None:
    queue = machine(Policy(concurrency=0))
    for seq in range(10):
        queue.add(seq, A, now=0.0)
    total = 0
    for page in queue.take_out(3):
        total += len(page)
        for seq, _ in page:
            queue.add(100 + seq, A, now=0.0)
    assert total == 10
    assert queue.live == 10


def test_messages_that_wait_cost_little_memory() -> None:
    count, groups = 100_000, 10_000
    queue = machine(Policy(fifo=True, concurrency=1))
    tracemalloc.start()
    for seq in range(count):
        queue.add(seq, A, f"g{seq % groups}", now=0.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / count < 250  # bytes a message, its share of the group included


class Model(RuleBasedStateMachine):
    """Whatever happens: order per group, the bounds, every message ends, and none is delivered twice at a time."""

    TARGETS = (("default", "a"), ("default", "b"), ("other", "a"))

    def __init__(self) -> None:
        super().__init__()
        self.missing: set[tuple[str, str]] = set()
        self.queue = QueueMachine(lambda target: target not in self.missing)
        self.policy = Policy()
        self.now = 0.0
        self.seq = 0
        self.alive: dict[int, tuple[tuple[str, str], str, int]] = {}  # seq -> target, group, failures
        self.due: dict[int, float] = {}
        self.priority: dict[int, int] = {}
        self.delivered: dict[int, int] = {}
        self.running: dict[int, Item] = {}
        self.settling: dict[int, tuple[Item, Any]] = {}
        self.ended: set[int] = set()

    @initialize(fifo=st.booleans())
    def begin(self, fifo: bool) -> None:
        self.configure(fifo, 3, 2)

    @rule(
        function=st.sampled_from(TARGETS),
        group=st.sampled_from("xxy"),
        delay=st.sampled_from([0.0, 0.0, 0.5]),
        priority=st.sampled_from([0, 0, 0, 1, 255]),
    )
    def add(self, function: tuple[str, str], group: str, delay: float, priority: int) -> None:
        self.seq += 2
        self._add(self.seq, function, group, delay, priority)

    @rule(function=st.sampled_from(TARGETS), group=st.sampled_from("xxy"), back=st.sampled_from([1, 3, 5]))
    def adopt(self, function: tuple[str, str], group: str, back: int) -> None:
        seq = self.seq - back
        if seq > 0 and seq not in self.alive and seq not in self.ended:
            self._add(seq, function, group, 0.0)

    def _add(self, seq: int, function: tuple[str, str], group: str, delay: float, priority: int = 0) -> None:
        due = self.now + delay if delay else 0.0
        self.queue.add(seq, function, group, priority=priority, now=self.now, due=due)
        self.priority[seq] = priority
        self.alive[seq] = (function, group, 0)
        self.due[seq] = due
        self.delivered[seq] = 0

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.1, 0.3, 5.0]))
    def poll(self, seconds: float) -> None:
        self.now += seconds
        for effect in self.queue.poll(self.now):
            if isinstance(effect, SetTimer):
                assert effect.when > self.now
                continue
            item = effect.item
            target, group, failures = self.alive[item.seq]
            assert item.seq not in self.running
            assert item.seq not in self.settling
            assert target not in self.missing
            assert self.due[item.seq] <= self.now
            assert item.attempts == failures
            first = min(self._could_run(), key=lambda seq: (-self.priority[seq], seq))
            assert item.seq == first, "a message was overtaken"
            assert len(self.running) + len(self.settling) < self.policy.concurrency
            if self.policy.fifo:
                older = [seq for seq, (_, other, _) in self.alive.items() if other == group and seq < item.seq]
                assert not older, "a fifo group was overtaken"
                assert all(self.alive[seq][1] != group for seq in (*self.running, *self.settling))
            self.delivered[item.seq] += 1
            assert item.deliveries == self.delivered[item.seq]
            self.running[item.seq] = item
        if len(self.running) + len(self.settling) < self.policy.concurrency:
            assert not self._could_run(), "a message is stuck"

    def _could_run(self) -> list[int]:
        free = [seq for seq in self.alive if seq not in self.running and seq not in self.settling]
        able = [seq for seq in free if self.due[seq] <= self.now and self.alive[seq][0] not in self.missing]
        if not self.policy.fifo:
            return able
        busy = {self.alive[seq][1] for seq in (*self.running, *self.settling)}
        heads = {
            group: min(s for s, (_, g, _) in self.alive.items() if g == group) for group in "xy" if self._has(group)
        }
        return [seq for seq in able if self.alive[seq][1] not in busy and seq == heads[self.alive[seq][1]]]

    def _has(self, group: str) -> bool:
        return any(other == group for _, other, _ in self.alive.values())

    @precondition(lambda self: self.running)
    @rule(data=st.data(), ending=st.sampled_from([Succeeded(), Failed("x"), Refused(), Missing(), Interrupted()]))
    def finish(self, data: st.DataObject, ending: Any) -> None:
        item = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        verdict = self.queue.finished(item, ending, self.now)
        if isinstance(ending, Succeeded):
            assert verdict == Acknowledge()
        elif isinstance(ending, Failed):
            target, group, failures = self.alive[item.seq]
            self.alive[item.seq] = (target, group, failures + 1)
            assert isinstance(verdict, Bury if failures + 1 >= self.policy.max_attempts else Retry)
            if isinstance(verdict, Retry):
                self.due[item.seq] = self.now + verdict.delay_ms / 1000
        else:
            assert verdict is None
            self.delivered[item.seq] -= not isinstance(ending, Interrupted)
            self.due[item.seq] = self.now + PUT_BACK_S if isinstance(ending, Refused) else 0.0
            return
        self.settling[item.seq] = (item, verdict)

    @precondition(lambda self: self.settling)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        item, verdict = self.settling.pop(data.draw(st.sampled_from(sorted(self.settling))))
        self.queue.settled(item, verdict, self.now)
        if not isinstance(verdict, Retry):
            del self.alive[item.seq]
            self.ended.add(item.seq)

    @rule(page=st.integers(1, 3))
    def purge(self, page: int) -> None:
        """All that has not begun is taken out; some of it comes back, as if the disk had refused its removal."""
        for number, entries in enumerate(self.queue.take_out(page)):
            if number % 2:
                self.queue.put_back(entries)
                continue
            for seq, _ in entries:
                assert seq not in self.running
                assert seq not in self.settling
                del self.alive[seq]

    @rule(function=st.sampled_from(TARGETS))
    def lose(self, function: tuple[str, str]) -> None:
        self.missing.add(function)

    @rule(function=st.sampled_from(TARGETS))
    def regain(self, function: tuple[str, str]) -> None:
        self.missing.discard(function)
        self.queue.appeared(function)

    @precondition(lambda self: not self.running and not self.settling)
    @rule(fifo=st.booleans(), concurrency=st.integers(0, 4), attempts=st.integers(1, 3))
    def reconfigure(self, fifo: bool, concurrency: int, attempts: int) -> None:
        self.configure(fifo, concurrency, attempts)

    def configure(self, fifo: bool, concurrency: int, attempts: int) -> None:
        self.policy = Policy(fifo, concurrency, attempts, 100)
        self.queue.configure(self.policy)

    @invariant()
    def counts_are_right(self) -> None:
        counts = self.queue.statistics()
        assert counts.in_flight == len(self.running) + len(self.settling)
        assert counts.waiting + counts.delayed + counts.in_flight == len(self.alive) == self.queue.live
        assert counts.acknowledged + counts.dead == len(self.ended)
        assert counts.held <= counts.waiting

    def teardown(self) -> None:
        """Let everything run to its end: no message may be left behind."""
        for function in self.TARGETS:
            self.missing.discard(function)
            self.queue.appeared(function)
        self.policy = Policy(self.policy.fifo, 2, 1, 100)
        self.queue.configure(self.policy)
        for _ in range(4 * len(self.alive) + 4):
            for item, verdict in self.settling.values():
                self.queue.settled(item, verdict, self.now)
                if not isinstance(verdict, Retry):
                    del self.alive[item.seq]
                    self.ended.add(item.seq)
            self.settling.clear()
            for item in self.running.values():
                self.settling[item.seq] = (item, self.queue.finished(item, Succeeded(), self.now))
            self.running.clear()
            self.now += 10.0
            for effect in self.queue.poll(self.now):
                if isinstance(effect, Deliver):
                    self.running[effect.item.seq] = effect.item
        assert not self.alive
        assert self.queue.statistics().lanes == 0


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
