"""Queues of which only a part is in memory: what comes next is read from the log, whatever happens meanwhile."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from queue_harness import configured, failing, open_world, stats, taking
from trio.testing import MockClock

from iii_trio.config import QueueSettings
from iii_trio.engine import Clock
from iii_trio.modules.queue import dispatch
from iii_trio.modules.queue.machine import QueueMachine
from iii_trio.modules.queue.reading import LogTime
from iii_trio.protocol.errors import StoreError
from iii_trio.stores import Failed, JobLog, NewJob, StoreFull, WaitingJobLog, open_memory

ONE = configured(one=QueueSettings(concurrency=1, max_retries=3, backoff_ms=1000))
GROUPS = configured(one=QueueSettings(type="fifo", message_group_field="g", concurrency=3, backoff_ms=1000))


@pytest.fixture(autouse=True)
def small_window() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small = partial(QueueMachine, run=4, window=4, lanes_read=2, promoted_at_once=3)
        patch.setattr(dispatch, "QueueMachine", small)
        yield


@define(eq=False)
class Refusing:
    """A job log that refuses some reads; everything else goes to `log`."""

    log: JobLog
    refusals: dict[str, list[StoreError]] = field(factory=dict)

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.log, name)
        errors = self.refusals.get(name)
        if not errors:
            return operation

        def refused(*args: Any, **_: Any) -> None:
            trio.lowlevel.current_trio_token().run_sync_soon(args[-1], Failed(errors.pop()))

        return refused


async def test_a_deep_queue_is_delivered_in_order_and_keeps_few_payloads(autojump_clock: MockClock) -> None:
    async with open_world(ONE) as world:
        for n in range(200):
            await world.enqueue("one", "f", n)
        assert world.module.statistics().shelf_bytes < 6 * 1_100
        assert (await stats(world, "one"))["waiting"] == 200
        handler = world.serve("f", taking(0.01))
        assert await handler.wait_finished(200) == list(range(200))
        assert handler.seen[-1].at - handler.seen[0].at == pytest.approx(1.99)  # nobody waited for a page
        await trio.sleep(1)
        assert world.module.statistics().shelf_bytes == 0


async def test_messages_for_an_absent_function_stand_in_nobodys_way(autojump_clock: MockClock) -> None:
    async with open_world(ONE) as world:
        for n in range(50):
            await world.enqueue("one", "absent", n)
        for n in range(50):
            await world.enqueue("one", "f", n)
        handler = world.serve("f")
        assert await handler.wait_finished(50) == list(range(50))
        await trio.sleep(1)
        row = await stats(world, "one")
        assert (row["waiting"], row["held"]) == (50, 50)
        absent = world.serve("absent")
        assert await absent.wait_finished(50) == list(range(50))


@pytest.mark.parametrize("error", [StoreError("I/O error"), StoreFull("busy")])
@pytest.mark.parametrize("operation", ["pages", "lanes", "promote", "find"])
async def test_a_read_that_fails_is_repeated(
    autojump_clock: MockClock, operation: str, error: StoreError, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_memory() as store:
        async with open_world(ONE, store) as world:
            for n in range(30):
                await world.enqueue("one", "f", n, delay_ms=1_000 if n % 3 == 0 else 0)
        log = Refusing(store.job_log(), {operation: [error] * (1 if operation == "find" else 2)})
        async with open_world(ONE, log=log) as world:
            handler = world.serve("f")
            await trio.sleep(60)
            assert log.refusals == {operation: []}
            assert sorted(handler.finished) == list(range(30))
    told = "could not be read, trying again: I/O error" in caplog.text
    assert told is (operation != "find" and not isinstance(error, StoreFull))


async def test_delayed_messages_beyond_the_window_come_when_they_are_due_and_by_priority(
    autojump_clock: MockClock,
) -> None:
    async with open_world(ONE) as world:
        handler = world.serve("f")
        for n in range(20):
            await world.enqueue("one", "f", n, delay_ms=5_000 + n % 2 * 1_000, priority=n % 2)
        assert (await stats(world, "one"))["delayed"] == 20
        await trio.sleep(4.9)
        assert handler.seen == []
        await trio.sleep(60)
        assert sorted(handler.data[:10]) == list(range(0, 20, 2))
        assert sorted(handler.data[10:]) == list(range(1, 20, 2))
        assert [seen.attempt for seen in handler.seen] == [None] * 20


async def test_many_retries_at_once_all_come_back_with_their_numbers(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=20, max_retries=3, backoff_ms=1000))
    async with open_world(settings) as world:
        handler = world.serve("f", failing(40))
        for n in range(40):
            await world.enqueue("one", "f", n)
        await trio.sleep(60)
        assert sorted(handler.finished) == list(range(40))
        assert [seen.attempt for seen in handler.seen] == [None] * 40 + [2] * 40
        assert await world.dead("one") == []


async def test_a_deep_queue_may_become_fifo_and_standard_again(autojump_clock: MockClock) -> None:
    async with open_world(GROUPS) as world:
        await world.ask("iii::queue::pause", {"queue": "one"})
        for n in range(60):
            await world.enqueue("one", "f", {"g": n % 5, "n": n})
        world.settings.set(ONE)
        await world.ask("iii::queue::resume", {"queue": "one"})
        handler = world.serve("f", taking(1))
        await handler.wait_finished(10)
        world.settings.set(GROUPS)
        assert (await stats(world, "one"))["waiting"] >= 48
        await handler.wait_finished(60)
        assert [data["n"] for data in handler.finished[:10]] == list(range(10))
        for group in range(5):
            numbers = [data["n"] for data in handler.finished if data["g"] == group]
            assert numbers == sorted(numbers)
            assert len(numbers) == 12


async def test_a_purge_takes_what_stands_in_the_log_alone_too(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(GROUPS) as world:
        handler = world.serve("f", taking(5))
        for n in range(40):
            await world.enqueue("one", "f", {"g": n % 5, "n": n}, delay_ms=n % 2 * 60_000)
        await handler.wait(3)
        assert await world.ask("iii::queue::purge", {"queue": "one"}) == {"queue": "one", "purged": 37}
        row = await stats(world, "one")
        assert [row[name] for name in ("waiting", "held", "delayed", "in_flight")] == [0, 0, 0, 3]
        await world.enqueue("one", "f", {"g": 0, "n": 99})
        await trio.sleep(3600)
        assert len(handler.finished) == 4
        assert handler.finished[-1]["n"] == 99
        assert world.module.statistics().shelf_bytes == 0


async def test_a_clock_that_was_set_back_holds_no_delayed_message_longer_than_it_was_meant_to_wait(
    autojump_clock: MockClock,
) -> None:
    async with open_memory() as store:
        far = 1_700_000_000_000 + 400 * 24 * 3600 * 1000
        job = NewJob("j", "queue@one", "default", "f", b"1", 3, 1000, far, far + 60_000)
        await WaitingJobLog(store.job_log()).append([job])
        async with open_world(ONE, store) as world:
            handler = world.serve("f")
            await trio.sleep(59)
            assert handler.data == []
            await trio.sleep(2)
            assert handler.data == [1]


async def test_the_time_of_the_log_follows_the_wall_clock_forward_and_never_back(autojump_clock: MockClock) -> None:
    class Set(Clock):
        ahead_s = 0.0

        def wall(self) -> float:
            return 1_700_000_000 + trio.current_time() + self.ahead_s

    clock = Set()
    time = LogTime(clock)
    began_ms = time.now_ms()
    for ahead_s, expected_ms in ((0.5, 0), (-3_600.0, 0), (7_200.0, 7_200_000), (0.0, 7_200_000)):
        clock.ahead_s = ahead_s
        assert time.now_ms() - began_ms == expected_ms
    await trio.sleep(5)
    assert time.now_ms() - began_ms == 7_205_000
    assert time.to_ms(time.from_ms(began_ms)) == began_ms
    assert time.from_ms(time.now_ms()) == pytest.approx(trio.current_time())
