"""What somebody may send who means no good, or has a bug: everything is answered, and nothing of it grows without bound."""

from typing import Any

import pytest
import trio
from queue_harness import BASE, open_world, refusal, request_to, taking
from trio.testing import MockClock

from iii_trio.protocol.limits import QUEUE_BAGGAGE_CHARS, QUEUE_NAME_CHARS

LONG = "x" * (QUEUE_NAME_CHARS + 1)
NAMES = ["a@b\\c", "a::b", "\n", " ", "\u202e", "__proto__", "a\x00b", "ä𝄞" * 100, LONG[:-1], "queue@default", "%s{}$"]


@pytest.mark.parametrize(
    ("function_id", "payload", "key"),
    [
        ("iii::durable::publish", {"topic": LONG, "data": 1}, "topic"),
        ("emit", {"queue": LONG}, "queue"),
        ("engine::queue::enqueue", {**request_to("default"), "function_id": LONG}, "function_id"),
        ("engine::queue::enqueue", {**request_to("default"), "namespace": LONG}, "namespace"),
        ("engine::queue::enqueue", {**request_to("default"), "messageReceiptId": LONG}, "messageReceiptId"),
        ("engine::queue::enqueue", {**request_to("default"), "deduplication_key": LONG}, "deduplication_key"),
        ("queue::define", {"queue": LONG}, "queue"),
    ],
)
async def test_names_have_a_length(autojump_clock: MockClock, function_id: str, payload: Any, key: str) -> None:
    async with open_world() as world:
        code, message = await refusal(world, function_id, payload)
        assert code == "deserialization_error"
        assert message.endswith(f"`{key}` has 1025 characters; 1024 are the most")
        assert world.module.statistics().unclaimed == 0


async def test_a_topic_of_a_trigger_has_a_length(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.serve("f")
        binding = world.bind("f", {"topic": LONG})
        assert "1024 are the most" in str(binding.problem)


@pytest.mark.parametrize("name", NAMES)
async def test_every_name_works(autojump_clock: MockClock, name: str) -> None:
    async with open_world() as world:
        handler = world.serve(name)
        world.bind(name, {"topic": name})
        await world.publish(name, 1)
        assert await handler.wait(1) == [1]
        assert (await world.ask("engine::queue::list_topics"))[0]["broker_type"]
        if name == name.strip():
            assert (await world.ask("queue::define", {"queue": name}))["changed"]
            await world.enqueue(name, name, 2)
            assert await handler.wait(2) == [1, 2]
        for function_id in ("pause", "resume", "purge", "purge_dlq", "redrive"):
            answer = await world.ask(f"iii::queue::{function_id}", {"queue": name})
            assert answer["queue"] == name


async def test_a_group_of_any_length_is_a_group(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", taking(0.01))
        for n in range(6):
            await world.enqueue("payment", "f", {"transaction_id": ["y" * 100_000, n % 2], "n": n})
        await handler.wait_finished(6)
        for group in (0, 1):
            assert [data["n"] for data in handler.data if data["n"] % 2 == group] == [group, group + 2, group + 4]
        assert BASE.queue_configs["payment"].concurrency == 1


async def test_trace_context_that_is_too_long_is_left_out(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        fits = "k=" + "v" * (QUEUE_BAGGAGE_CHARS - 2)
        for baggage in (fits, fits + "v"):
            await world.enqueue("default", "f", 1, traceparent="t" * 9_000, baggage=baggage)
        await handler.wait(2)
        assert [(seen.traceparent, seen.baggage is None) for seen in handler.seen] == [(None, False), (None, True)]


@pytest.mark.parametrize("offset", [10**6, 2**63, 2**200])
async def test_behind_the_last_dead_letter_there_is_nothing(autojump_clock: MockClock, offset: int) -> None:
    async with open_world() as world:
        assert await world.dead("default", offset=offset) == []
        assert await world.dead("default", limit=offset) == []


async def test_thousands_of_topics_are_published_to_subscribed_and_left(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        count = 2_000
        for n in range(count):
            await world.publish(f"t{n}", n)
        assert world.module.statistics().unclaimed == count
        for n in range(count):
            world.bind("f", {"topic": f"t{n}"}, id=f"b{n}")
        assert sorted(await handler.wait(count)) == list(range(count))
        await trio.sleep(60)
        for n in range(count):
            world.core.triggers.unregister(f"b{n}")
        await trio.sleep(60)
        statistics = world.module.statistics()
        assert (len(statistics.queues), statistics.unclaimed) == (2, 0)
