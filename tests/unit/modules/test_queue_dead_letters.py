"""Dead letters: browse, redrive, discard, and what the inspection functions say (spec/queue.md §5, §6, cases 30–38)."""

from typing import Any

import pytest
import trio
from queue_harness import World, configured, failing, open_world
from trio.testing import MockClock

from iii_trio.config import QueueModuleSettings, QueueSettings
from iii_trio.modules.queue import queues
from iii_trio.protocol.errors import WireError

ORDERS = configured(orders=QueueSettings(concurrency=1, max_retries=2, backoff_ms=50))


async def bury(world: World, *numbers: int, queue: str = "orders") -> list[str]:
    """Let messages die; returns their receipts."""
    world.serve("f", failing())
    receipts = [await world.enqueue(queue, "f", {"n": n}) for n in numbers]
    await world.wait_dead(queue, len(numbers))
    return receipts


async def test_redrive_returns_all_of_them_oldest_first_with_fresh_attempts(autojump_clock: MockClock) -> None:
    async with open_world(ORDERS) as world:
        await bury(world, 0, 1, 2)
        assert (await world.stats("orders"))["dlq_depth"] == 3
        good = world.serve("f")
        assert await world.ask("iii::queue::redrive", {"queue": "orders"}) == {"queue": "orders", "redriven": 3}
        assert [data["n"] for data in await good.wait(3)] == [0, 1, 2]
        assert [seen.attempt for seen in good.seen] == [2, 2, 2]  # marked: they have been delivered before
        await trio.sleep(60)
        assert await world.dead("orders") == []
        assert await world.stats("orders") == {"depth": 0, "consumer_count": 1, "dlq_depth": 0, "config": None}


async def test_redriven_messages_get_all_their_attempts_again(autojump_clock: MockClock) -> None:
    async with open_world(ORDERS) as world:
        handler = world.serve("f", failing(5))
        await world.enqueue("orders", "f")
        for _ in range(2):
            await world.wait_dead("orders", 1)
            await world.ask("iii::queue::redrive", {"topic": "orders"})
            await trio.sleep(60)
        assert len(handler.seen) == 6
        assert len(handler.finished) == 1
        assert await world.dead("orders") == []


async def test_redriven_messages_go_behind_those_that_wait(autojump_clock: MockClock) -> None:
    async with open_world(ORDERS) as world:
        await bury(world, 0)
        world.user.core.functions.release(world.user, "default", "f")
        await world.enqueue("orders", "f", {"n": 1})
        await world.ask("iii::queue::redrive", {"queue": "orders"})
        handler = world.serve("f")
        assert [data["n"] for data in await handler.wait(2)] == [1, 0]


async def test_a_message_that_dies_again_is_not_redriven_twice(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "PAGE", 5)
    settings = configured(orders=QueueSettings(concurrency=100, max_retries=1))
    async with open_world(settings) as world:
        await bury(world, *range(101))
        answer = await world.ask("iii::queue::redrive", {"queue": "orders"})
        assert answer["redriven"] == 101
        await trio.sleep(10)
        assert (await world.stats("orders"))["dlq_depth"] == 101


async def test_one_message_is_redriven_or_discarded_by_its_receipt(autojump_clock: MockClock) -> None:
    async with open_world(ORDERS) as world:
        first, second, third = await bury(world, 0, 1, 2)
        good = world.serve("f")

        async def one(function: str, message_id: str) -> int:
            answer = await world.ask(function, {"queue": "orders", "message_id": message_id})
            assert (answer["queue"], answer["message_id"]) == ("orders", message_id)
            count = answer["redriven"]
            assert isinstance(count, int)
            return count

        assert await one("iii::queue::redrive_message", second) == 1
        assert [data["n"] for data in await good.wait(1)] == [1]
        assert await one("iii::queue::redrive_message", second) == 0
        assert await one("iii::queue::discard_message", first) == 1
        assert await one("iii::queue::discard_message", "unknown") == 0
        assert [letter["id"] for letter in await world.dead("orders")] == [third]
        assert (await world.stats("orders"))["dlq_depth"] == 1
        await trio.sleep(60)
        assert len(good.seen) == 1


@pytest.mark.parametrize(
    ("function", "payload", "code", "message"),
    [
        ("iii::queue::redrive", {"queue": ""}, "queue_not_set", "Queue name is required"),
        ("iii::queue::redrive_message", {"queue": "", "message_id": "x"}, "queue_not_set", "Queue name is required"),
        (
            "iii::queue::discard_message",
            {"queue": "q", "message_id": ""},
            "message_id_not_set",
            "Message ID is required",
        ),
        ("engine::queue::topic_stats", {"topic": ""}, "topic_required", "topic is required"),
        ("engine::queue::dlq_messages", {"queue": ""}, "topic_required", "topic is required"),
        ("iii::queue::redrive", {}, "deserialization_error", "missing field `queue`"),
        ("iii::queue::redrive", {"queue": "a", "topic": "a"}, "deserialization_error", "duplicate field `queue`"),
        ("iii::queue::redrive_message", {"queue": "a"}, "deserialization_error", "missing field `message_id`"),
        ("engine::queue::topic_stats", None, "deserialization_error", "must be a JSON object"),
        ("engine::queue::dlq_messages", {"topic": "a", "limit": -1}, "deserialization_error", "`limit` must be"),
        ("engine::queue::dlq_messages", {"topic": "a", "offset": "1"}, "deserialization_error", "`offset` must be"),
    ],
)
async def test_what_does_not_fit_is_refused(
    autojump_clock: MockClock, function: str, payload: Any, code: str, message: str
) -> None:
    async with open_world(ORDERS) as world:
        with pytest.raises(WireError) as caught:
            await world.ask(function, payload)
        assert caught.value.code == code
        assert message in caught.value.message


async def test_unknown_names_are_no_errors(autojump_clock: MockClock) -> None:
    async with open_world(ORDERS) as world:
        assert await world.ask("iii::queue::redrive", {"queue": "?"}) == {"queue": "?", "redriven": 0}
        answer = await world.ask("iii::queue::redrive_message", {"queue": "?", "message_id": "m"})
        assert answer == {"queue": "?", "message_id": "m", "redriven": 0}
        assert await world.stats("?") == {"depth": 0, "consumer_count": 0, "dlq_depth": 0, "config": None}
        assert await world.dead("?") == []
        assert await world.ask("iii::queue::redrive", {"queue": "orders"}) == {"queue": "orders", "redriven": 0}


async def test_browsing_pages_newest_first_and_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_world(ORDERS) as world:
        receipts = await bury(world, 0, 1, 2, 3, 4)
        newest_first = list(reversed(receipts))
        assert [letter["id"] for letter in await world.dead("orders")] == newest_first
        assert [letter["id"] for letter in await world.dead("orders", offset=1, limit=2)] == newest_first[1:3]
        assert await world.dead("orders", offset=5) == []
        assert await world.dead("orders", limit=0) == []
        (letter,) = await world.dead("orders", limit=1)
        assert set(letter) == {"id", "payload", "error", "failed_at", "retries", "size_bytes"}
        assert letter["size_bytes"] == len(b'{"n":4}')
        assert (await world.stats("orders"))["dlq_depth"] == 5


async def test_fifty_are_shown_unless_asked(autojump_clock: MockClock) -> None:
    async with open_world(configured(orders=QueueSettings(max_retries=1))) as world:
        world.serve("f", failing())
        for n in range(60):
            await world.enqueue("orders", "f", n)
        await trio.sleep(10)
        assert len(await world.dead("orders")) == 50
        assert len(await world.dead("orders", limit=100)) == 60


async def test_a_topics_dead_letters_are_those_of_all_its_subscribers(autojump_clock: MockClock) -> None:
    async with open_world(QueueModuleSettings()) as world:
        for name in "ab":
            world.serve(name, failing())
            world.bind(name, {"topic": "t", "queue_config": {"maxRetries": 0}})
        await world.publish("t", 1)
        await world.publish("t", 2)
        letters = await world.wait_dead("t", 4)
        assert [letter["payload"] for letter in letters] == [2, 2, 1, 1]
        assert (await world.stats("t"))["dlq_depth"] == 4
        rows = await world.ask("engine::queue::dlq_topics")
        assert {"topic": "t", "broker_type": "builtin", "message_count": 4} in rows

        chosen = letters[-1]["id"]
        await world.ask("iii::queue::discard_message", {"topic": "t", "message_id": chosen})
        assert chosen not in [letter["id"] for letter in await world.dead("t")]
        good = [world.serve(name) for name in "ab"]
        assert await world.ask("iii::queue::redrive", {"queue": "t"}) == {"queue": "t", "redriven": 3}
        await trio.sleep(10)
        assert sum(len(handler.seen) for handler in good) == 3


async def test_dead_letters_are_seen_and_redriven_without_a_subscriber(autojump_clock: MockClock) -> None:
    async with open_world(QueueModuleSettings()) as world:
        world.serve("f", failing())
        world.bind("f", {"topic": "t", "queue_config": {"maxRetries": 0}})
        await world.publish("t", 1)
        await world.wait_dead("t", 1)
        world.core.triggers.unregister("f")
        assert (await world.stats("t"))["dlq_depth"] == 1
        assert (await world.ask("iii::queue::redrive", {"queue": "t"}))["redriven"] == 1
        good = world.serve("f")
        world.bind("f", {"topic": "t"})
        assert await good.wait(1) == [1]


async def test_a_queue_and_a_topic_of_one_name_mean_the_queue(autojump_clock: MockClock) -> None:
    async with open_world(ORDERS) as world:
        world.serve("f", failing())
        world.bind("f", {"topic": "orders", "queue_config": {"maxRetries": 0}})
        await world.publish("orders", "topic")
        await trio.sleep(1)
        await bury(world, 1)
        assert [letter["payload"] for letter in await world.dead("orders")] == [{"n": 1}]
        assert (await world.stats("orders"))["consumer_count"] == 1
