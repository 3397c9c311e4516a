"""What operators do: purge, pause, define, forget, retention, statistics (spec/queue.md §6), over restarts too."""

from itertools import pairwise
from typing import Any

import pytest
import trio
from attrs import evolve
from queue_harness import BASE, World, configured, failing, open_world, taking, topic_defaults
from test_queue_durability import Unsteady
from trio.testing import MockClock

from iii_trio.config import QueueModuleSettings, QueueSettings
from iii_trio.engine import open_local
from iii_trio.modules.queue import operations, retention
from iii_trio.protocol.errors import WireError
from iii_trio.stores import open_memory

ONE = configured(one=QueueSettings(concurrency=1, max_retries=1, backoff_ms=10))


async def refusal(world: World, function_id: str, payload: Any) -> tuple[str, str]:
    with pytest.raises(WireError) as caught:
        await world.ask(function_id, payload)
    return caught.value.code, caught.value.message


async def stats(world: World, name: str) -> Any:
    (row,) = await world.ask("engine::queue::stats", {"queue": name})
    return row


# -- purge


async def test_a_purge_drops_what_waits_and_lets_what_runs_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "PAGE", 3)
    async with open_memory() as store:
        async with open_world(ONE, store) as world:
            handler = world.serve("f", taking(5))
            for n in range(8):
                await world.enqueue("one", "f", n)
            await world.enqueue("one", "f", "later", delay_ms=60_000)
            await handler.wait(1)
            assert await world.ask("iii::queue::purge", {"queue": "one"}) == {"queue": "one", "purged": 8}
            assert world.module.statistics().shelf_bytes < 2_000
            assert await handler.wait_finished(1) == [0]
            await trio.sleep(100)
            await world.enqueue("one", "f", "after")
            assert await handler.wait_finished(2) == [0, "after"]
            assert await world.ask("iii::queue::purge", {"topic": "one"}) == {"queue": "one", "purged": 0}
        async with open_world(ONE, store) as world:
            assert (await world.stats("one"))["depth"] == 0


async def test_a_purge_of_a_topic_takes_all_copies_and_what_nobody_claimed(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for n in range(3):
            await world.publish("t", n)
        assert await world.ask("iii::queue::purge", {"queue": "t"}) == {"queue": "t", "purged": 3}
        world.bind("a", {"topic": "t"})
        world.bind("b", {"topic": "t"})
        await world.publish("t", "x")
        assert (await world.stats("t"))["depth"] == 2
        assert await world.ask("iii::queue::purge", {"queue": "t"}) == {"queue": "t", "purged": 2}
        assert (await world.stats("t"))["depth"] == 0
        assert await world.ask("iii::queue::purge", {"queue": "nothing"}) == {"queue": "nothing", "purged": 0}


async def test_a_purge_that_the_disk_refuses_loses_nothing(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Unsteady(store.job_log(), refusing={"remove": 1})
        async with open_world(ONE, log=log) as world:
            for n in range(3):
                await world.enqueue("one", "f", n)
            code, message = await refusal(world, "iii::queue::purge", {"queue": "one"})
            assert (code, message) == ("purge_failed", "Failed to purge 'one': disk full")
            handler = world.serve("f")
            assert await handler.wait_finished(3) == [0, 1, 2]


async def test_all_dead_letters_are_dropped_at_once(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "PAGE", 2)
    async with open_world(ONE) as world:
        world.serve("bad", failing())
        for n in range(5):
            await world.enqueue("one", "bad", n)
        await world.wait_dead("one", 5)
        assert await world.ask("iii::queue::purge_dlq", {"queue": "one"}) == {"queue": "one", "discarded": 5}
        assert await world.dead("one") == []
        assert (await world.stats("one"))["dlq_depth"] == 0
        assert await world.ask("iii::queue::purge_dlq", {"queue": "one"}) == {"queue": "one", "discarded": 0}


# -- pause


async def test_a_paused_queue_takes_messages_and_delivers_them_when_resumed(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        async with open_world(ONE, store) as world:
            handler = world.serve("f", taking(1))
            await world.enqueue("one", "f", "running")
            await handler.wait(1)
            answer = await world.ask("iii::queue::pause", {"queue": "one"})
            assert answer == {"queue": "one", "paused": True, "changed": True}
            assert not (await world.ask("iii::queue::pause", {"queue": "one"}))["changed"]
            await world.enqueue("one", "f", "waiting")
            await trio.sleep(60)
            assert handler.finished == ["running"]
            assert (await stats(world, "one"))["paused"]
        async with open_world(ONE, store) as world:
            handler = world.serve("f")
            await trio.sleep(60)
            assert handler.seen == []
            answer = await world.ask("iii::queue::resume", {"queue": "one"})
            assert answer == {"queue": "one", "paused": False, "changed": True}
            assert await handler.wait(1) == ["waiting"]
        async with open_world(ONE, store) as world:
            assert not (await stats(world, "one"))["paused"]


async def test_a_paused_topic_pauses_every_subscriber_those_to_come_too(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        a, b = world.serve("a"), world.serve("b")
        world.bind("a", {"topic": "t"})
        await world.ask("iii::queue::pause", {"queue": "t"})
        world.bind("b", {"topic": "t"})
        await world.publish("t", 1)
        await trio.sleep(60)
        assert a.seen == b.seen == []
        await world.ask("iii::queue::resume", {"queue": "t"})
        assert await a.wait(1) == await b.wait(1) == [1]


async def test_a_drain_is_not_ended_by_a_resume(autojump_clock: MockClock) -> None:
    async with open_world(ONE) as world:
        handler = world.serve("f")
        await world.ask("iii::queue::pause", {"queue": "one"})
        await world.enqueue("one", "f")
        assert await world.core.drain(1.0)
        world.module._queues.pause(set())  # type: ignore[union-attr]
        await trio.sleep(60)
        assert handler.seen == []


async def test_what_there_is_not_cannot_be_paused(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for function_id in ("iii::queue::pause", "iii::queue::resume"):
            code, message = await refusal(world, function_id, {"queue": "nothing"})
            assert (code, message) == ("queue_not_found", "there is no queue or topic 'nothing'")
            assert (await refusal(world, function_id, {"queue": ""}))[0] == "queue_not_set"


# -- define


async def test_a_defined_queue_works_at_once_and_outlives_a_restart(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        config = {"type": "fifo", "message_group_field": "g", "max_retries": 1}
        async with open_world(BASE, store) as world:
            assert (await refusal(world, "engine::queue::enqueue", enqueue("new")))[1] == "Queue 'new' not found"
            handler = world.serve("f")
            answer = await world.ask("queue::define", {"queue": "new", "config": config})
            assert answer == {"queue": "new", "changed": True}
            await world.enqueue("new", "f", {"g": 1})
            await handler.wait(1)
            again = await world.ask("queue::define", {"queue": "new", "config": {**config, "concurrency": 10}})
            assert again == {"queue": "new", "changed": False}
        async with open_world(BASE, store) as world:
            handler = world.serve("f")
            await world.enqueue("new", "f", {"g": 2})
            await handler.wait(1)
            assert (await stats(world, "new"))["type"] == "fifo"
            assert await world.ask("queue::undefine", {"queue": "new"}) == {"queue": "new", "changed": True}
            assert await world.ask("queue::undefine", {"queue": "new"}) == {"queue": "new", "changed": False}
            assert (await refusal(world, "engine::queue::enqueue", enqueue("new")))[1] == "Queue 'new' not found"
        async with open_world(BASE, store) as world:
            assert (await refusal(world, "engine::queue::enqueue", enqueue("new")))[1] == "Queue 'new' not found"


def enqueue(queue: str, data: Any = None, **more: Any) -> dict[str, Any]:
    return {"queue": queue, "function_id": "f", "data": data, "messageReceiptId": "r", **more}


async def test_a_definition_stands_before_the_settings_until_they_change(autojump_clock: MockClock) -> None:
    async with open_world(ONE) as world:
        await world.ask("queue::define", {"queue": "one", "config": {"concurrency": 7}})
        assert (await stats(world, "one"))["concurrency"] == 7
        world.settings.set(configured(one=ONE.queue_configs["one"], other=QueueSettings()))
        assert (await stats(world, "one"))["concurrency"] == 7
        world.settings.set(configured(one=QueueSettings(concurrency=3)))
        await trio.sleep(1)
        assert (await stats(world, "one"))["concurrency"] == 3


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"queue": " ", "config": {}}, "queue name is required"),
        ({"queue": " q", "config": {}}, "queue name must not have leading or trailing whitespace"),
        ({"queue": "q", "config": {"type": "lifo"}}, "Queue 'q' has invalid type 'lifo'"),
        ({"queue": "q", "config": {"type": "fifo"}}, "'message_group_field' is not set"),
        ({"queue": "q", "config": {"concurrency": 0}}, "it must be at least 1"),
        ({"queue": "q", "config": {"retries": 1}}, "unknown key"),
        ({"queue": "q", "config": 3}, "expected a mapping"),
        ({"config": {}}, "missing field `queue`"),
    ],
)
async def test_a_definition_that_does_not_fit_is_refused(autojump_clock: MockClock, payload: Any, message: str) -> None:
    async with open_world() as world:
        assert message in (await refusal(world, "queue::define", payload))[1]
        assert {row["name"] for row in await world.ask("engine::queue::stats")} == {"default", "payment"}


async def test_a_definition_without_config_has_the_defaults(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        assert (await world.ask("queue::define", {"queue": "plain"}))["changed"]
        assert (await stats(world, "plain"))["concurrency"] == QueueSettings().concurrency


async def test_what_the_disk_refuses_is_not_in_force(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Unsteady(store.job_log(), refusing={"note": 3})
        async with open_world(ONE, log=log) as world:
            code, message = await refusal(world, "queue::define", {"queue": "q"})
            assert (code, message) == ("define_failed", "Failed to define 'q': disk full")
            code, message = await refusal(world, "iii::queue::pause", {"queue": "one"})
            assert (code, message) == ("pause_failed", "Failed to pause 'one': disk full")
            assert (await refusal(world, "queue::undefine", {"queue": "one"}))[0] == "define_failed"
            assert not (await stats(world, "one"))["paused"]
            assert (await refusal(world, "engine::queue::enqueue", enqueue("q")))[1] == "Queue 'q' not found"


# -- subscribers that will not come back


async def test_a_subscriber_that_never_comes_back_is_forgotten_with_its_messages(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        async with open_world(topic_defaults(max_attempts=1), store) as world:
            stays = world.serve("stays")
            world.bind("stays", {"topic": "t"})
            gone = {"topic": "t", "function_id": "gone"}
            async with open_local(world.core, "guest") as guest:
                world.serve("gone", failing(), peer=guest)
                world.bind("gone", {"topic": "t"}, peer=guest)
                await world.publish("t", 1)
                await world.wait_dead("t", 1)
                code, message = await refusal(world, "iii::queue::forget_subscriber", gone)
                assert code == "subscriber_live"
                assert "1 trigger(s)" in message
            await world.publish("t", 2)
            await stays.wait(2)
            rows = await world.ask("engine::queue::stats", {"topic": "t"})
            assert [(row["function_id"], row["subscribers"], row["waiting"], row["dead"]) for row in rows] == [
                ("gone", 0, 1, 1),
                ("stays", 1, 0, 0),
            ]
            answer = await world.ask("iii::queue::forget_subscriber", gone)
            assert answer == {"topic": "t", "namespace": "default", "function_id": "gone", "purged": 2}
            await world.publish("t", 3)
            await stays.wait(3)
            assert len(await world.ask("engine::queue::stats", {"topic": "t"})) == 1
            assert (await refusal(world, "iii::queue::forget_subscriber", gone))[0] == "subscriber_not_found"
        async with open_world(topic_defaults(max_attempts=1), store) as world:
            assert await world.dead("t") == []
            rows = await world.ask("engine::queue::stats", {"topic": "t"})
            assert [row["function_id"] for row in rows] == ["stays"]


# -- retention


async def test_only_the_newest_dead_letters_are_kept(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(max_retries=1, dead_letter_max_count=2))
    async with open_world(settings) as world:
        world.serve("bad", failing())
        for n in range(5):
            await world.enqueue("one", "bad", n)
            await trio.sleep(1)
        assert [letter["payload"] for letter in await world.dead("one")] == [4, 3]
        assert (await world.stats("one"))["dlq_depth"] == 2


async def test_dead_letters_are_dropped_when_their_time_is_over(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PAGE", 1)
    settings = topic_defaults(max_attempts=1, dead_letter_max_age_ms=60_000)
    async with open_memory() as store:
        async with open_world(settings, store) as world:
            world.serve("bad", failing())
            world.bind("bad", {"topic": "t"})
            for n in range(3):
                await world.publish("t", n)
                await trio.sleep(25)
            assert [letter["payload"] for letter in await world.dead("t")] == [2, 1]
        async with open_world(settings, store) as world:  # its clock goes on where the other's stood
            await trio.sleep(30)
            assert [letter["payload"] for letter in await world.dead("t")] == [2]
            await trio.sleep(10)
            assert await world.dead("t") == []
            assert (await world.stats("t"))["dlq_depth"] == 0


async def test_retention_that_is_made_stricter_holds_at_once_and_failures_are_tried_again(
    autojump_clock: MockClock,
) -> None:
    async with open_memory() as store:
        log = Unsteady(store.job_log(), refusing={"trim": 1})
        async with open_world(ONE, log=log) as world:
            world.serve("bad", failing())
            for n in range(3):
                await world.enqueue("one", "bad", n)
            await world.wait_dead("one", 3)
            world.settings.set(configured(one=evolve(ONE.queue_configs["one"], dead_letter_max_count=1)))
            await trio.sleep(1)
            assert len(await world.dead("one")) == 3
            await trio.sleep(retention.AGAIN_S)
            assert [letter["payload"] for letter in await world.dead("one")] == [2]


# -- limits and options of messages


async def test_a_full_queue_refuses_and_takes_again(autojump_clock: MockClock) -> None:
    async with open_world(configured(one=QueueSettings(concurrency=1, max_length=2))) as world:
        handler = world.serve("f", taking(5))
        async with trio.open_nursery() as nursery:
            for n in range(2):
                nursery.start_soon(world.enqueue, "one", "f", n)
        code, message = await refusal(world, "engine::queue::enqueue", enqueue("one"))
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
        assert (await refusal(world, "engine::queue::enqueue", enqueue("one")))[0] == "queue_full"
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
            again = await world.ask("engine::queue::enqueue", enqueue("one", {"id": 1}))
            assert again == {"messageReceiptId": "r", "deduplicated": True}
            await world.enqueue("one", "f", {"id": 2})
            await world.ask("engine::queue::enqueue", enqueue("one", {}, deduplication_key="1"))
            await world.enqueue("one", "f", {"no": "id"})
            await world.enqueue("one", "f", {"no": "id"})
            await trio.sleep(1)
            assert handler.data == [{"id": 1}, {"id": 2}, {"no": "id"}, {"no": "id"}]
            assert (await stats(world, "one"))["waiting"] == 0
        async with open_world(settings, store) as world:
            handler = world.serve("f")
            again = await world.ask("engine::queue::enqueue", enqueue("one", {"id": 1}))
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
        code, text = await refusal(world, "engine::queue::enqueue", enqueue("default", **more))
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


# -- many


async def test_redriving_thousands_lets_others_have_their_turn(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=200, max_retries=1), other=QueueSettings())
    async with open_world(settings) as world:
        world.serve("bad", failing())
        async with trio.open_nursery() as nursery:
            for n in range(2_000):
                nursery.start_soon(world.enqueue, "one", "bad", n)
        await trio.sleep(60)
        assert (await world.stats("one"))["dlq_depth"] == 2_000
        good = world.serve("bad")
        beside = world.serve("beside")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.ask, "iii::queue::redrive", {"queue": "one"})
            await world.enqueue("other", "beside")
            await beside.wait(1)
            seen = len(good.seen)
        assert seen < 2_000
        await good.wait_finished(2_000)


async def test_messages_from_before_the_first_subscriber_come_in_order_however_many(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for n in range(600):
            await world.publish("t", n)
        handler = world.serve("f")
        world.bind("f", {"topic": "t", "queue_config": {"type": "fifo"}})
        await world.publish("t", 600)
        assert await handler.wait(601) == list(range(601))


async def test_what_the_first_subscriber_leaves_behind_goes_to_the_next(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for n in range(600):
            await world.publish("t", n)
        world.bind("gone", {"topic": "t"})
        handler = world.serve("f")
        world.bind("f", {"topic": "t"})
        world.core.triggers.unregister("gone")
        await handler.wait(600 - 256)
        assert world.module.statistics().unclaimed == 0


async def test_statistics_tell_of_every_queue(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.serve("f")
        world.bind("f", {"topic": "t"}, namespace="default")
        await world.enqueue("default", "absent")
        await trio.sleep(1)
        rows = {row["name"]: row for row in await world.ask("engine::queue::stats")}
        assert set(rows) == {"default", "payment", "t"}
        assert rows["default"] == {
            "kind": "queue",
            "name": "default",
            "type": "standard",
            "concurrency": 3,
            "paused": False,
            "subscribers": 1,
            "remembered": True,
            "waiting": 1,
            "held": 1,
            "delayed": 0,
            "in_flight": 0,
            "dead": 0,
            "lanes": 1,
            "acknowledged": 0,
            "failures": 0,
        }
        assert (rows["t"]["kind"], rows["t"]["function_id"], rows["t"]["namespace"]) == ("topic", "f", "default")
        assert await world.ask("engine::queue::stats", {"queue": "nothing"}) == []


async def test_a_definition_that_is_not_understood_is_kept_and_said(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_memory() as store:
        store.job_log().note("queue", "odd", b'{"color":"red"}', lambda _: None)
        async with open_world(QueueModuleSettings(), store) as world:
            assert "'odd' was defined in a way" in caplog.text
            assert (await refusal(world, "engine::queue::enqueue", enqueue("odd")))[1] == "Queue 'odd' not found"
