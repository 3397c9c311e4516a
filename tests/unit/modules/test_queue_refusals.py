"""The queue beyond its good days: its log refuses for a moment, a function is missing, a thousand slots are free."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import define, field
from queue_harness import configured, open_world, refusal, stats, taking
from trio.testing import MockClock

from iii_trio.config import QueueSettings
from iii_trio.engine import open_local
from iii_trio.modules.queue.machine import BEGUN_AT_ONCE, Deliver, QueueMachine, SetTimer
from iii_trio.modules.queue.verdicts import Policy
from iii_trio.protocol.errors import StoreError
from iii_trio.stores import Failed, JobLog, StoreFull, open_memory


@define(eq=False)
class Refusing:
    """A job log that refuses operations of these names so many times; `then` is called right after a refusal."""

    log: JobLog
    refusals: dict[str, int]
    error: StoreError = field(factory=lambda: StoreError("disk full"))
    then: Callable[[], Any] = lambda: None

    def __getattr__(self, name: str) -> Any:
        if not self.refusals.get(name):
            return getattr(self.log, name)
        self.refusals[name] -= 1

        def refuse(*args: Any, **how: Any) -> None:
            def refused() -> None:
                (args[-1])(Failed(self.error))
                self.then()

            trio.lowlevel.current_trio_token().run_sync_soon(refused)

        return refuse


async def test_a_subscriber_that_goes_while_a_read_waits_for_room_gets_its_messages_when_it_is_back(
    autojump_clock: MockClock,
) -> None:
    """The read is still owed when nothing else keeps the queue at work; without it nothing is read ever again."""
    async with open_memory() as store:
        async with open_world(store=store) as world:
            world.bind("f", {"topic": "t"})
            await world.publish("t", 1)
        log = Refusing(store.job_log(), {"lanes": 1}, StoreFull("busy"))
        async with open_world(log=log) as world:
            handler = world.serve("f")
            log.then = lambda: world.core.triggers.unregister("first")
            world.bind("f", {"topic": "t"}, id="first")
            await trio.sleep(60)
            assert log.refusals == {"lanes": 0}
            world.bind("f", {"topic": "t"}, id="second")
            assert await handler.wait(1) == [1]


async def test_what_was_published_before_the_first_subscriber_is_handed_over_when_the_log_can(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_memory() as store:
        log = Refusing(store.job_log(), {"adopt": 2})
        async with open_world(log=log) as world:
            for number in range(3):
                await world.publish("t", number)
            handler = world.serve("f")
            world.bind("f", {"topic": "t", "queue_config": {"type": "fifo"}})
            assert await handler.wait(3) == [0, 1, 2]
            assert world.module.statistics().unclaimed == 0
    assert "disk full" in caplog.text


async def test_a_subscriber_is_known_after_a_restart_though_the_log_refused_to_note_it(
    autojump_clock: MockClock,
) -> None:
    async with open_memory() as store:
        log = Refusing(store.job_log(), {"remember": 2})
        async with open_world(log=log) as world:
            world.bind("f", {"topic": "t"})
            await trio.sleep(10)
        async with open_world(store=store) as world:
            await world.publish("t", 1)  # its worker is not back yet
            handler = world.serve("f")
            world.bind("g", {"topic": "t"})
            assert world.module.statistics().unclaimed == 0
            world.bind("f", {"topic": "t"})
            assert await handler.wait(1) == [1]


async def test_a_subscriber_that_went_is_forgotten_though_the_log_refused_to(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Refusing(store.job_log(), {"forget": 2})
        async with open_world(log=log) as world:
            world.bind("f", {"topic": "t"})
            world.core.triggers.unregister("f")
            await trio.sleep(10)
        async with open_world(store=store) as world:
            await world.publish("t", 1)
            assert world.module.statistics().unclaimed == 1


async def test_a_subscriber_that_could_not_be_forgotten_is_there_as_before(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Refusing(store.job_log(), {"forget": 1})
        async with open_world(log=log) as world:
            async with open_local(world.core, "worker") as peer:
                world.bind("f", {"topic": "t"}, peer=peer)
            asked = {"topic": "t", "function_id": "f"}
            code, message = await refusal(world, "iii::queue::forget_subscriber", asked)
            assert (code, message) == ("forget_failed", "Failed to forget 'f' of topic 't': disk full")
            await world.publish("t", 1)
            assert (await world.ask("iii::queue::forget_subscriber", asked))["purged"] == 1


async def test_nothing_is_tried_again_when_the_module_has_ended(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Refusing(store.job_log(), {"remember": 100})
        async with open_world(log=log) as world:
            world.bind("f", {"topic": "t"})
            await trio.sleep(10.5)
            await world.stop()
            left = log.refusals["remember"]
            await trio.sleep(60)
            assert log.refusals["remember"] == left < 100


async def test_a_disk_that_refuses_for_long_is_told_of_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each delivery and each second would bury everything else that happens on such a day."""
    async with open_memory() as store:
        log = Refusing(store.job_log(), {"ack": 10_000})
        async with open_world(configured(one=QueueSettings(concurrency=20)), log=log) as world:
            handler = world.serve("f")
            for number in range(20):
                await world.enqueue("one", "f", number)
            await handler.wait(20)
            await trio.sleep(60.5)
            assert log.refusals["ack"] <= 10_000 - 20 * 60
            assert [line for line in caplog.messages if "disk full" in line] == [
                "queue one: the end of a delivery was not written down, trying again every second: disk full"
            ]
            log.refusals.clear()
            await trio.sleep(10)
            assert (await stats(world, "one"))["acknowledged"] == 20
            log.refusals["ack"] = 1
            await world.enqueue("one", "f", 20)
            await trio.sleep(10)
            assert len([line for line in caplog.messages if "disk full" in line]) == 2
            assert len(handler.seen) == 21


def test_many_free_slots_are_filled_in_several_steps() -> None:
    """A queue that is resumed must not keep everybody else waiting until the last of its messages is on its way."""
    queue = QueueMachine(lambda _: True, Policy(fifo=True, concurrency=1_300))
    for seq in range(1, 1_501):
        queue.add(seq, ("default", "f"), f"group {seq}")
    began, steps = list[int](), list[int]()
    while True:
        effects = queue.poll(7.0)
        numbers = [effect.item.seq for effect in effects if isinstance(effect, Deliver)]
        steps.append(len(numbers))
        began += numbers
        if SetTimer(7.0) not in effects:
            break
    assert began == list(range(1, 1_301))
    assert steps == [BEGUN_AT_ONCE, BEGUN_AT_ONCE, 1_300 - 2 * BEGUN_AT_ONCE]


async def test_what_did_not_begin_in_the_first_step_begins_in_the_next(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(type="fifo", message_group_field="group", concurrency=900))
    async with open_world(settings) as world:
        await world.ask("iii::queue::pause", {"queue": "one"})
        handler = world.serve("f", taking(1))
        for number in range(900):
            await world.enqueue("one", "f", {"group": number})
        await world.ask("iii::queue::resume", {"queue": "one"})
        await handler.wait(900)
        assert handler.peak == 900


def test_counting_what_is_held_asks_for_each_function_once() -> None:
    """The groups that wait for a missing function may be a hundred thousand, and the loop stands still meanwhile."""
    asked: list[tuple[str, str]] = []

    def available(target: tuple[str, str]) -> bool:
        asked.append(target)
        return False

    queue = QueueMachine(available, Policy(fifo=True, concurrency=3))
    for seq in range(1, 1_001):
        queue.add(seq, ("default", "f"), f"group {seq % 500}")
    queue.poll(0.0)
    asked.clear()
    assert queue.statistics().held == 1_000
    assert asked == [("default", "f")]


async def test_messages_are_counted_as_held_by_function(autojump_clock: MockClock) -> None:
    async with open_world(configured(one=QueueSettings(concurrency=2))) as world:
        for function_id in ("a", "a", "b"):
            await world.enqueue("one", function_id)
        counts = world.module.statistics().queues
        assert [queue.counts.held for queue in counts if queue.key.name == "one"] == [3]
        handler = world.serve("a")
        await handler.wait_finished(2)
        await trio.sleep(1)
        counts = world.module.statistics().queues
        assert [(queue.counts.held, queue.counts.waiting) for queue in counts if queue.key.name == "one"] == [(1, 1)]
