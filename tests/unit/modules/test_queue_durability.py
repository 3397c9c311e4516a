"""What survives: restarts, disks that fail, memory that is too small (promises P1–P3, spec/queue.md §9)."""

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from attrs import define, field
from queue_harness import BASE, configured, failing, open_world, taking
from trio.testing import MockClock

from iii_trio.config import QueueModuleSettings, QueueSettings
from iii_trio.modules.queue import dispatch
from iii_trio.protocol import Json
from iii_trio.protocol.errors import StoreError, WireError
from iii_trio.stores import Failed, Job, JobLog, NewJob, OnDone, StoreFull, open_memory

ONE = configured(one=QueueSettings(concurrency=1, max_retries=3, backoff_ms=1000))


GUARDED = {
    *("append", "ack", "retry", "dead_letter", "redrive", "redrive_one", "discard", "dead_letters"),
    *("clear", "note", "trim"),
}


@define(eq=False)
class Unsteady:
    """A job log that answers later, or refuses; everything else goes to `log`."""

    log: JobLog
    refusing: dict[str, int] = field(factory=dict)
    error: StoreError = field(factory=lambda: StoreError("disk full"))
    held: list[Any] | None = None

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.log, name)
        if name not in GUARDED:
            return operation

        def guarded(*args: Any, **how: Any) -> None:
            *rest, on_done = args
            if self.refusing.get(name, 0):
                self.refusing[name] -= 1
                trio.lowlevel.current_trio_token().run_sync_soon(on_done, Failed(self.error))
            elif self.held is not None and name != "append":
                self.held.append(lambda: operation(*args, **how))
            else:
                operation(*rest, on_done, **how)

        return guarded


async def test_everything_comes_back_after_a_restart(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        async with open_world(ONE, store) as world:
            world.serve("bad", failing())
            dead = await world.enqueue("one", "bad", "dead")
            await world.wait_dead("one", 1)
            retried = await world.enqueue("one", "bad", "retried")
            await trio.sleep(0.5)
            waiting = await world.enqueue("one", "absent", "waiting")
        async with open_world(ONE, store) as world:
            assert [letter["id"] for letter in await world.dead("one")] == [dead]
            assert await world.stats("one") == {"depth": 1, "consumer_count": 1, "dlq_depth": 1, "config": None}
            good, absent = world.serve("bad"), world.serve("absent")
            await good.wait(1)
            await absent.wait(1)
            assert good.seen[0].metadata["iii.queue"]["message_id"] == retried
            assert good.seen[0].attempt == 2  # it was not due: its first retry
            assert absent.seen[0].metadata["iii.queue"]["message_id"] == waiting
        async with open_world(ONE, store) as world:
            again = world.serve("bad")
            await trio.sleep(3600)
            assert again.seen == []


async def test_what_was_in_flight_is_delivered_again_with_its_number(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        async with open_world(ONE, store) as world:
            handler = world.serve("f", taking(float("inf")))
            receipt = await world.enqueue("one", "f", 1)
            await handler.wait(1)
            assert handler.seen[0].attempt is None
        async with open_world(ONE, store) as world:
            again = world.serve("f")
            await again.wait(1)
            assert again.seen[0].metadata == {"iii.queue": {"queue": "one", "message_id": receipt, "attempt": 2}}
            await trio.sleep(1)
            (queue,) = [q for q in world.module.statistics().queues if q.key.name == "one"]
            assert queue.counts.failures == 0


async def test_a_group_keeps_its_order_across_a_restart(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        async with open_world(BASE, store) as world:
            world.serve("f", failing())
            for n in range(4):
                await world.enqueue("payment", "f", {"transaction_id": "t", "n": n})
            await trio.sleep(0.05)  # the first waits for its second attempt
        async with open_world(BASE, store) as world:
            handler = world.serve("f")
            await handler.wait(4)
            assert [data["n"] for data in handler.data] == [0, 1, 2, 3]


async def test_a_drain_that_begins_at_any_step_repeats_nothing(autojump_clock: MockClock) -> None:
    for steps in range(30):
        seen: list[Any] = []
        async with open_memory() as store:
            async with open_world(configured(one=QueueSettings(concurrency=2)), store) as world:
                handler = world.serve("f", taking(0.5))
                for n in range(5):
                    await world.enqueue("one", "f", n)
                await trio.sleep(0.5)  # the first handlers end now
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                assert await world.core.drain(5.0)
                await world.stop()
                seen += handler.data
            async with open_world(configured(one=QueueSettings()), store) as world:
                handler = world.serve("f")
                await trio.sleep(10)
                seen += handler.data
        assert sorted(seen) == [0, 1, 2, 3, 4]


async def test_destinations_are_remembered_across_a_restart(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        async with open_world(store=store) as world:
            for name in ("a", "b", "c"):
                world.bind(name, {"topic": "t"})
            await world.publish("t", 1)
            world.core.triggers.unregister("c")
            await trio.sleep(1)
        async with open_world(store=store) as world:
            await world.publish("t", 2)
            handlers = {name: world.serve(name) for name in ("a", "b", "c")}
            for name in ("a", "b", "c"):
                world.bind(name, {"topic": "t"})
            await trio.sleep(60)
            assert sorted(handlers["a"].data) == sorted(handlers["b"].data) == [1, 2]
            assert handlers["c"].data == [1]  # stored before it unregistered, and kept


async def test_messages_without_a_subscriber_survive_and_are_claimed_later(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        async with open_world(store=store) as world:
            await world.publish("t", 1)
        async with open_world(store=store) as world:
            assert world.module.statistics().unclaimed == 1
            handler = world.serve("f")
            world.bind("f", {"topic": "t"})
            assert await handler.wait(1) == [1]


async def test_a_module_that_is_started_again_serves_the_same_bindings(autojump_clock: MockClock) -> None:
    async with open_world(QueueModuleSettings()) as world:
        handler = world.serve("f", taking(10))
        world.bind("f", {"topic": "t", "queue_config": {"concurrency": 1}})
        await world.publish("t", 1)
        await world.publish("t", 2)
        await handler.wait(1)
        await world.stop()
        with pytest.raises(WireError, match="not found"):
            await world.publish("t", 3)
        await world.start()
        await handler.wait_finished(2)
        assert handler.data == [1, 1, 2]
        assert [seen.attempt for seen in handler.seen] == [None, 2, 2]


async def test_no_receipt_before_the_message_is_stored(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        answers: list[Any] = []

        @define(eq=False)
        class Slow:
            log: JobLog
            waiting: list[tuple[Sequence[NewJob], OnDone[list[Job]]]] = field(factory=list)

            def append(self, jobs: Sequence[NewJob], on_done: OnDone[list[Job]]) -> None:
                self.waiting.append((jobs, on_done))

            def __getattr__(self, name: str) -> Any:
                return getattr(self.log, name)

        log = Slow(store.job_log())
        async with open_world(ONE, log=log) as world:
            handler = world.serve("f")
            request = {"queue": "one", "function_id": "f", "data": 1, "messageReceiptId": "r"}
            world.user.call("engine::queue::enqueue", Json.of(request), answers.append)
            world.user.call("iii::durable::publish", Json.of({"topic": "t", "data": 1}), answers.append)
            await trio.sleep(60)
            assert (answers, handler.seen) == ([], [])
            for jobs, on_done in log.waiting:
                log.log.append(jobs, on_done)
            await handler.wait(1)
            assert [outcome.ok for outcome in answers] == [True, True]


@pytest.mark.parametrize(
    ("function", "payload", "operation", "code", "message"),
    [
        (
            "engine::queue::enqueue",
            {"queue": "one", "function_id": "f", "data": 1, "messageReceiptId": "r"},
            "append",
            "enqueue_error",
            "enqueue to 'one' failed: disk full",
        ),
        (
            "iii::durable::publish",
            {"topic": "t", "data": 1},
            "append",
            "publish_failed",
            "Failed to publish to topic 't': disk full",
        ),
        (
            "iii::queue::redrive",
            {"queue": "one"},
            "redrive",
            "redrive_failed",
            "Failed to redrive DLQ for queue 'one': disk full",
        ),
        (
            "iii::queue::redrive_message",
            {"queue": "one", "message_id": "m"},
            "redrive_one",
            "redrive_message_failed",
            "Failed to redrive DLQ message 'm' for queue 'one': disk full",
        ),
        (
            "iii::queue::discard_message",
            {"queue": "one", "message_id": "m"},
            "discard",
            "discard_message_failed",
            "Failed to discard DLQ message: disk full",
        ),
        (
            "engine::queue::dlq_messages",
            {"topic": "one"},
            "dead_letters",
            "dlq_messages_failed",
            "Failed to browse DLQ messages: disk full",
        ),
    ],
)
async def test_a_write_that_fails_is_an_error_and_leaves_nothing(
    autojump_clock: MockClock, function: str, payload: Any, operation: str, code: str, message: str
) -> None:
    async with open_memory() as store:
        log = Unsteady(store.job_log())
        async with open_world(ONE, log=log) as world:
            bad = world.serve("bad", failing())
            await world.enqueue("one", "bad", 0)
            await world.wait_dead("one", 1)
            begun = len(bad.seen)
            log.refusing[operation] = 1
            with pytest.raises(WireError) as caught:
                await world.ask(function, payload)
            assert (caught.value.code, caught.value.message) == (code, message)
            assert world.module.statistics().unclaimed == 0
            handler = world.serve("f")
            await trio.sleep(60)
            assert handler.seen == []
            assert len(bad.seen) == begun
            assert await world.stats("one") == {"depth": 0, "consumer_count": 1, "dlq_depth": 1, "config": None}


@pytest.mark.parametrize("error", [StoreError("disk full"), StoreFull("busy")])
@pytest.mark.parametrize("operation", ["ack", "retry", "dead_letter"])
async def test_an_ending_that_cannot_be_written_is_written_later_and_holds_its_slot(
    autojump_clock: MockClock, operation: str, error: StoreError, caplog: pytest.LogCaptureFixture
) -> None:
    settings = configured(one=QueueSettings(concurrency=1, max_retries=2, backoff_ms=10))
    async with open_memory() as store:
        log = Unsteady(store.job_log(), refusing={operation: 3}, error=error)
        async with open_world(settings, log=log) as world:
            first = world.serve("first", failing(0 if operation == "ack" else 2))
            second = world.serve("second")
            await world.enqueue("one", "first", 1)
            await world.enqueue("one", "second", 2)
            await second.wait(1)
            await trio.sleep(60)
            assert log.refusing[operation] == 0
            assert len(first.seen) == (1 if operation == "ack" else 2)
            stats = await world.stats("one")
            assert (stats["depth"], stats["dlq_depth"]) == (0, 0 if operation == "ack" else 1)


async def test_the_next_of_a_group_waits_for_the_acknowledgement_on_disk(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Unsteady(store.job_log(), held=[])
        async with open_world(BASE, log=log) as world:
            handler = world.serve("f")
            for n in range(2):
                await world.enqueue("payment", "f", {"transaction_id": "t", "n": n})
            await trio.sleep(60)
            assert len(handler.seen) == 1
            assert log.held is not None
            held, log.held = log.held, None
            for operation in held:
                operation()
            await handler.wait(2)


async def test_what_does_not_fit_into_memory_is_read_back(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch.Shelf.__init__, "__defaults__", (3_000,))
    async with open_world(ONE) as world:
        for n in range(10):
            await world.enqueue("one", "f", {"n": n, "text": "x" * 500})
        assert 0 < world.module.statistics().shelf_bytes <= 3_000
        handler = world.serve("f")
        assert [data["n"] for data in await handler.wait(10)] == list(range(10))
        await trio.sleep(1)
        assert world.module.statistics().shelf_bytes == 0


async def test_a_message_that_vanished_from_the_log_blocks_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch.Shelf.__init__, "__defaults__", (0,))
    async with open_memory() as store, open_world(ONE, store) as world:
        await world.enqueue("one", "f", 1)
        gone: list[Any] = []
        store.job_log().ack(1, gone.append)
        await trio.sleep(1)
        assert gone[0].value is True
        await world.enqueue("one", "f", 2)
        handler = world.serve("f")
        assert await handler.wait(1) == [2]
        await trio.sleep(1)
        assert (await world.stats("one"))["depth"] == 0


async def test_all_copies_of_a_publish_are_one_operation(autojump_clock: MockClock) -> None:
    batches: list[int] = []

    async with open_memory() as store:
        log = store.job_log()

        @define(eq=False)
        class Counting:
            def append(self, jobs: Sequence[NewJob], on_done: OnDone[list[Job]]) -> None:
                batches.append(len(jobs))
                log.append(jobs, on_done)

            def __getattr__(self, name: str) -> Any:
                return getattr(log, name)

        async with open_world(log=Counting()) as world:
            for name in "abc":
                world.bind(name, {"topic": "t"})
            await world.publish("t", 1)
        assert batches == [3]


async def test_a_wall_clock_that_was_set_back_holds_nothing_longer_than_a_backoff(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        far = 1_700_000_000_000 + 400 * 24 * 3600 * 1000
        done: list[Any] = []
        job = NewJob("j", "queue@one", "default", "f", b"1", 3, 1000, far, far)
        store.job_log().append([job], done.append)
        await trio.sleep(1)
        async with open_world(ONE, store) as world:
            handler = world.serve("f")
            await trio.sleep(24 * 3600 + 10)
            assert handler.data == [1]


async def test_a_log_that_cannot_be_read_refuses_the_start(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = store.job_log()
    with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="closed"), flatten_subgroups=True, allow_unwrapped=True):
        async with open_world(log=log):
            raise AssertionError("started")
