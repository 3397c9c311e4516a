"""What a message may ask for and what a queue may be bounded by: delay, priority, keys, length, backoff (spec §2.6, §3)."""

from itertools import pairwise
from typing import Any

import pytest
import trio
from queue_harness import configured, failing, open_world, refusal, request_to, stats, taking
from trio.testing import MockClock

from iii_trio.config import QueueSettings
from iii_trio.protocol.errors import WireError
from iii_trio.stores import open_memory

ONE = configured(one=QueueSettings(concurrency=1, max_retries=1, backoff_ms=10))


# -- limits and options of messages


async def test_a_full_queue_refuses_and_takes_again(autojump_clock: MockClock) -> None:
    async with open_world(configured(one=QueueSettings(concurrency=1, max_length=2))) as world:
        handler = world.serve("f", taking(5))
        async with trio.open_nursery() as nursery:
            for n in range(2):
                nursery.start_soon(world.enqueue, "one", "f", n)
        code, message = await refusal(world, "engine::queue::enqueue", request_to("one"))
        assert code == "enqueue_error"
        assert message.startswith("Queue 'one' is full: max_length is 2")
        await handler.wait_finished(1)
        await trio.sleep(0.1)
        await world.enqueue("one", "f", 2)
        assert sorted(await handler.wait_finished(3)) == [0, 1, 2]


async def test_messages_on_their_way_to_the_disk_count(autojump_clock: MockClock) -> None:
    async with open_world(configured(one=QueueSettings(concurrency=1, max_length=2))) as world:
        world.serve("f", taking(5))
        outcomes: list[str] = []

        async def one() -> None:
            try:
                await world.enqueue("one", "f")
            except WireError as error:
                outcomes.append(error.message[:20])

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one)
        assert outcomes == ["Queue 'one' is full:"] * 3


async def test_there_is_a_bound_on_all_messages_together(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iii_trio.modules.queue.queues.QUEUE_MESSAGES", 3)
    async with open_world(ONE) as world:
        await world.enqueue("one", "f")
        await world.publish("t")
        world.bind("a", {"topic": "u"})
        world.bind("b", {"topic": "u"})
        assert (await refusal(world, "iii::durable::publish", {"topic": "u", "data": 1}))[0] == "queue_full"
        await world.enqueue("one", "f")
        assert (await refusal(world, "engine::queue::enqueue", request_to("one")))[0] == "queue_full"
        await world.ask("iii::queue::purge", {"queue": "one"})
        await world.publish("u")


async def test_a_delayed_message_waits_and_others_do_not(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(), slow=QueueSettings(delay_ms=5_000))
    async with open_memory() as store:
        async with open_world(settings, store) as world:
            handler = world.serve("f")
            start = trio.current_time()
            await world.enqueue("one", "f", "late", delay_ms=2_000)
            await world.enqueue("slow", "f", "slow")
            await world.enqueue("slow", "f", "hurried", delay_ms=0)
            await world.enqueue("one", "f", "now")
            assert (await stats(world, "one"))["delayed"] == 1
            assert sorted(await handler.wait(2)) == ["hurried", "now"]
            assert (await handler.wait(4))[2:] == ["late", "slow"]
            assert [round(seen.at - start, 1) for seen in handler.seen[2:]] == [2.0, 5.0]
            assert [seen.attempt for seen in handler.seen] == [None] * 4
            await world.enqueue("one", "f", "after the restart", delay_ms=1_000 * 86_400 * 30)
        async with open_world(settings, store) as world:
            handler = world.serve("f")
            await trio.sleep(86_400 * 29)
            assert handler.seen == []
            await trio.sleep(86_400)
            await handler.wait(1)


async def test_a_delayed_message_of_a_group_keeps_its_place(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        await world.enqueue("payment", "f", {"transaction_id": "a", "n": 1}, delay_ms=1_000)
        await world.enqueue("payment", "f", {"transaction_id": "a", "n": 2})
        await world.enqueue("payment", "f", {"transaction_id": "b", "n": 3})
        await handler.wait(3)
        assert [data["n"] for data in handler.data] == [3, 1, 2]


async def test_a_subscriber_may_want_its_messages_later_and_a_publish_may_too(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        now, later = world.serve("now"), world.serve("later")
        world.bind("now", {"topic": "t"})
        world.bind("later", {"topic": "t", "queue_config": {"delaySeconds": 3}})
        start = trio.current_time()
        await world.publish("t", 1)
        await later.wait(1)
        await world.ask("iii::durable::publish", {"queue": "t", "data": 2, "delay_ms": 10_000})
        await now.wait(2)
        await later.wait(2)
        assert [round(seen.at - start) for seen in now.seen] == [0, 13]
        assert [round(seen.at - start) for seen in later.seen] == [3, 13]


async def test_priority_comes_from_the_payload_or_from_the_sender(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=1, priority_field="p", max_priority=9))
    async with open_memory() as store:
        async with open_world(settings, store) as world:
            for n, p in enumerate([0, 5, 9, None, 200]):
                await world.enqueue("one", "f", {"n": n, "p": p})
            await world.enqueue("one", "f", {"n": 5, "p": 0}, priority=7)
            handler = world.serve("f")
            await handler.wait(3)
        async with open_world(settings, store) as world:
            after = world.serve("f")
            order = [data["n"] for data in handler.data]
            await after.wait(6 - len(handler.finished))
            assert order[:3] == [2, 4, 5]
            assert [data["n"] for data in after.data][-2:] == [0, 3]


async def test_a_topics_message_may_have_a_priority(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.bind("f", {"topic": "t", "queue_config": {"concurrency": 1}})
        await world.publish("t", "low")
        await world.ask("iii::durable::publish", {"topic": "t", "data": "high", "priority": 1})
        handler = world.serve("f")
        assert await handler.wait(2) == ["high", "low"]


async def test_a_repetition_is_receipted_and_not_stored(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(deduplication_field="id", deduplication_window_ms=10_000))
    async with open_memory() as store:
        async with open_world(settings, store) as world:
            handler = world.serve("f")
            await world.enqueue("one", "f", {"id": 1})
            again = await world.ask("engine::queue::enqueue", request_to("one", {"id": 1}))
            assert again == {"messageReceiptId": "r", "deduplicated": True}
            await world.enqueue("one", "f", {"id": 2})
            await world.ask("engine::queue::enqueue", request_to("one", {}, deduplication_key="1"))
            await world.enqueue("one", "f", {"no": "id"})
            await world.enqueue("one", "f", {"no": "id"})
            await trio.sleep(1)
            assert handler.data == [{"id": 1}, {"id": 2}, {"no": "id"}, {"no": "id"}]
            assert (await stats(world, "one"))["waiting"] == 0
        async with open_world(settings, store) as world:
            handler = world.serve("f")
            again = await world.ask("engine::queue::enqueue", request_to("one", {"id": 1}))
            assert again["deduplicated"]
            await trio.sleep(10)
            await world.enqueue("one", "f", {"id": 1})
            await handler.wait(1)


async def test_a_repeated_publish_reaches_no_subscriber_twice(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        a, b = world.serve("a"), world.serve("b")
        world.bind("a", {"topic": "t"})
        world.bind("b", {"topic": "t"})
        for _ in range(3):
            await world.ask("iii::durable::publish", {"topic": "t", "data": 1, "deduplication_key": "k"})
        await world.ask("iii::durable::publish", {"topic": "early", "data": 1, "deduplication_key": "k"})
        await world.ask("iii::durable::publish", {"topic": "early", "data": 1, "deduplication_key": "k"})
        await trio.sleep(60)
        assert a.data == b.data == [1]
        assert world.module.statistics().unclaimed == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"delay_ms": -1}, "`delay_ms` must be a whole number, 0 or more"),
        ({"delay_ms": 10**12}, "`delay_ms` must be at most 31622400000"),
        ({"priority": 256}, "`priority` must be at most 255"),
        ({"priority": "high"}, "`priority` must be a whole number"),
        ({"deduplication_key": 1}, "`deduplication_key` must be a string"),
    ],
)
async def test_options_that_do_not_fit_are_refused(
    autojump_clock: MockClock, more: dict[str, Any], message: str
) -> None:
    async with open_world() as world:
        code, text = await refusal(world, "engine::queue::enqueue", request_to("default", **more))
        assert code == "deserialization_error"
        assert message in text


# -- retries


async def test_backoff_can_be_capped_and_fixed(autojump_clock: MockClock) -> None:
    capped = QueueSettings(max_retries=5, backoff_ms=100, backoff_max_ms=250)
    fixed = QueueSettings(max_retries=4, backoff_ms=100, backoff_type="fixed")
    async with open_world(configured(capped=capped, fixed=fixed)) as world:
        for name, gaps in [("capped", [0.1, 0.2, 0.25, 0.25]), ("fixed", [0.1, 0.1, 0.1])]:
            handler = world.serve(name, failing())
            await world.enqueue(name, name)
            await world.wait_dead(name, 1)
            times = [seen.at for seen in handler.seen]
            assert [round(b - a, 3) for a, b in pairwise(times)] == gaps


async def test_jitter_spreads_retries(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=100, max_retries=2, backoff_ms=1_000, backoff_jitter=0.5))
    async with open_world(settings) as world:
        handler = world.serve("f", failing())
        for n in range(50):
            await world.enqueue("one", "f", n)
        await handler.wait(100)
        times = [seen.at for seen in handler.seen[50:]]
        assert max(times) - min(times) > 0.2
        assert all(0.5 <= time - handler.seen[0].at <= 1.1 for time in times)


async def test_a_subscriber_may_fix_its_backoff_and_its_time(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", failing())
        tuning = {"maxRetries": 3, "backoffDelayMs": 1_000, "backoffType": "fixed"}
        world.bind("f", {"topic": "t", "queue_config": tuning})
        await world.publish("t")
        await handler.wait(4)
        times = [seen.at for seen in handler.seen]
        assert [round(b - a) for a, b in pairwise(times)] == [1, 1, 1]
        world.serve("slow", taking(100))
        world.bind("slow", {"topic": "u", "queue_config": {"maxRetries": 0, "visibilityTimeout": 7}})
        await world.publish("u")
        (letter,) = await world.wait_dead("u", 1)
        assert letter["error"] == "TIMEOUT: slow did not answer within 7000 ms"
