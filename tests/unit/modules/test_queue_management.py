"""What operators do: purge, pause, define, forget, retention, statistics (spec/queue.md §6), over restarts too."""

from typing import Any

import pytest
import trio
from attrs import evolve
from queue_harness import BASE, configured, failing, open_world, refusal, request_to, stats, taking, topic_defaults
from test_queue_durability import Unsteady
from trio.testing import MockClock

from iii_trio.config import QueueModuleSettings, QueueSettings
from iii_trio.engine import open_local
from iii_trio.modules.queue import operations, retention
from iii_trio.stores import open_memory

ONE = configured(one=QueueSettings(concurrency=1, max_retries=1, backoff_ms=10))


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
        log = Unsteady(store.job_log(), refusing={"clear": 1})
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
            assert (await refusal(world, "engine::queue::enqueue", request_to("new")))[1] == "Queue 'new' not found"
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
            assert (await refusal(world, "engine::queue::enqueue", request_to("new")))[1] == "Queue 'new' not found"
        async with open_world(BASE, store) as world:
            assert (await refusal(world, "engine::queue::enqueue", request_to("new")))[1] == "Queue 'new' not found"


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
        ({"queue": "q", "config": {"delay_ms": -1}}, "delay_ms: must be at least 0, not -1"),
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
            assert (await refusal(world, "engine::queue::enqueue", request_to("q")))[1] == "Queue 'q' not found"


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
            assert (await refusal(world, "engine::queue::enqueue", request_to("odd")))[1] == "Queue 'odd' not found"
