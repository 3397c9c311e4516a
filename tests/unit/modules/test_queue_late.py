"""Answers of the log that come when the module has ended: nothing is begun by them, and the next start sees all of it."""

from typing import Any

import pytest
import trio
from attrs import define, field
from queue_harness import World, configured, failing, open_world, taking
from trio.testing import MockClock

from iii_trio.config import QueueSettings
from iii_trio.modules.queue import operations, queues
from iii_trio.protocol import Json
from iii_trio.protocol.errors import StoreError
from iii_trio.stores import Failed, JobLog, OnDone, Result, WaitingJobLog, open_memory

SETTINGS = configured(one=QueueSettings(max_retries=1))
MESSAGES = 7


@define(eq=False)
class Late:
    """A job log that does what it is asked at once, and from `begin` to `end` answers nothing of it."""

    log: JobLog
    asked: list[str] = field(factory=list)
    _answers: list[tuple[OnDone[Any], Result[Any]]] | None = None

    def begin(self) -> None:
        self._answers = []
        self.asked.clear()

    def end(self) -> None:
        for on_done, result in self._held():
            on_done(result)

    def refuse(self, error: StoreError) -> None:
        """An end, with this for an answer."""
        for on_done, _result in self._held():
            on_done(Failed(error))

    def _held(self) -> list[tuple[OnDone[Any], Result[Any]]]:
        answers, self._answers = self._answers or [], None
        return answers

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.log, name)
        if name in ("statistics", "room", "listen"):
            return operation

        def late(*args: Any, **more: Any) -> None:
            *rest, on_done = args
            self.asked.append(name)

            def answered(result: Any) -> None:
                if self._answers is None:
                    on_done(result)
                else:
                    self._answers.append((on_done, result))

            operation(*rest, answered, **more)

        return late


async def fill(world: World, what: str) -> None:
    """Dead letters or waiting messages of queue "one", or messages of topic "t" that nobody has claimed."""
    if what in ("redrive", "purge_dlq"):
        world.serve("f", failing())
    for n in range(MESSAGES):
        if what in ("adopt", "purge_topic"):
            await world.publish("t", n)
        else:
            await world.enqueue("one", "f", n)
    await trio.sleep(60)
    if world.core.functions.get("default", "f"):
        world.core.functions.release(world.user, "default", "f")


@pytest.mark.parametrize("what", ["redrive", "purge_dlq", "purge", "purge_topic", "adopt"])
async def test_what_goes_on_by_pages_ends_with_the_module(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Otherwise the next start counts what is moved behind its back, and a shutdown waits for all of it."""
    for module in (operations, queues):
        monkeypatch.setattr(module, "PAGE", 2)
    async with open_memory() as store:
        log = Late(store.job_log())
        async with open_world(SETTINGS, log=log) as world:
            await fill(world, what)
            log.begin()
            if what == "adopt":
                world.bind("f", {"topic": "t"})
            else:
                asked = Json.of({"queue": "t" if what == "purge_topic" else "one"})
                world.user.call(f"iii::queue::{what.removesuffix('_topic')}", asked, lambda _: None)
            await trio.testing.wait_all_tasks_blocked()
            await world.stop()
            before = list(log.asked)
            log.end()
            await trio.sleep(60)
            assert log.asked == before
            await world.start()
            census = await WaitingJobLog(store.job_log()).census()
            statistics = world.module.statistics()
            live = sum(queue.counts.waiting for queue in statistics.queues) + statistics.unclaimed
            assert live == sum(queue.live for queue in census.queues)
            dead = await WaitingJobLog(store.job_log()).dead_counts()
            assert sum(queue.counts.dead for queue in statistics.queues) == sum(dead.values())
            assert 0 < live + sum(dead.values()) <= MESSAGES


async def test_a_definition_that_is_written_when_the_module_has_ended_starts_no_queue(
    autojump_clock: MockClock,
) -> None:
    async with open_memory() as store:
        log = Late(store.job_log())
        async with open_world(SETTINGS, log=log) as world:
            log.begin()
            world.user.call("queue::define", Json.of({"queue": "new"}), lambda _: None)
            await trio.testing.wait_all_tasks_blocked()
            await world.stop()
            log.end()
            await world.start()
            assert "new" in {queue.key.name for queue in world.module.statistics().queues}


async def test_settings_that_come_while_the_log_is_being_counted_wait_until_it_is(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Late(store.job_log())
        async with open_world(SETTINGS, log=log) as world:
            for n in range(MESSAGES):
                await world.enqueue("one", "f", n)
            await world.stop()
            log.begin()
            world.nursery.start_soon(world.start)
            await trio.testing.wait_all_tasks_blocked()
            world.settings.set(configured(one=QueueSettings(max_retries=1, concurrency=1), two=QueueSettings()))
            log.end()
            await trio.testing.wait_all_tasks_blocked()
            assert {queue.key.name for queue in world.module.statistics().queues} == {"default", "one", "two"}
            handler = world.serve("f", taking(1))
            await handler.wait(1)
            assert handler.seen[0].attempt == 2  # it may have been delivered before the module ended
            purged = await world.ask("iii::queue::purge", {"queue": "one"})
            assert purged == {"queue": "one", "purged": MESSAGES - 1}


@pytest.mark.parametrize("steps", range(5))
async def test_a_verdict_refused_while_the_module_is_being_cancelled_is_left_to_the_next_start(
    autojump_clock: MockClock, steps: int
) -> None:
    async with open_memory() as store:
        log = Late(store.job_log())
        async with open_world(SETTINGS, log=log) as world:
            handler = world.serve("f", taking(1))
            await world.enqueue("one", "f", 1)
            log.begin()
            await handler.wait_finished(1)
            await trio.testing.wait_all_tasks_blocked()
            assert log.asked == ["ack"]
            world.cancel()
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            log.refuse(StoreError("the disk is full"))
            await world.stop()
