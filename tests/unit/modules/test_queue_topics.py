"""Topics: who gets a copy, conditions, retries per subscriber, and who is away (spec/queue.md §7, cases 20–29)."""

from typing import Any

import pytest
import trio
from queue_harness import configured, failing, open_world, taking, topic_defaults
from trio.testing import MockClock

from iii_trio.config import QueueModuleSettings, QueueSettings
from iii_trio.engine import BindingState, open_local
from iii_trio.protocol import Json
from iii_trio.protocol.errors import TriggerRejected, WireError


def answering(wanted: Any) -> Any:
    """A condition: whether `category` of the payload is `wanted`."""

    async def behave(_number: int, data: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return data["category"] == wanted

    return behave


async def test_a_condition_chooses_and_its_sibling_gets_all(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        some, every = world.serve("some"), world.serve("every")
        condition = world.serve("is_important", answering("important"))
        world.bind("some", {"topic": "mail", "condition_function_id": "is_important"})
        world.bind("every", {"topic": "mail"})
        for category in ("spam", "important", "spam"):
            await world.publish("mail", {"category": category})
        await every.wait(3)
        await trio.sleep(60)
        assert some.data == [{"category": "important"}]
        assert len(condition.seen) == 3
        assert (await world.stats("mail"))["depth"] == 0
        assert await world.dead("mail") == []


@pytest.mark.parametrize("value", [True, None, 0, "false", {}])
async def test_only_exactly_false_blocks(autojump_clock: MockClock, value: Any) -> None:
    async def behave(_number: int, _data: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return value

    async with open_world() as world:
        handler = world.serve("f")
        world.serve("condition", behave)
        world.bind("f", {"topic": "t", "_condition_path": "condition"})
        await world.publish("t", 1)
        assert await handler.wait(1) == [1]


@pytest.mark.parametrize("registered", [True, False])
async def test_a_failing_condition_is_a_failed_attempt(autojump_clock: MockClock, registered: bool) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        if registered:
            world.serve("condition", failing())
        world.bind("f", {"topic": "t", "condition_function_id": "condition", "queue_config": {"maxRetries": 1}})
        await world.publish("t", 1)
        (letter,) = await world.wait_dead("t", 1)
        assert letter["retries"] == 2
        assert letter["error"].startswith("Condition function error: ")
        assert handler.seen == []


async def test_each_function_gets_one_copy_and_triggers_of_one_function_compete(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = world.serve("a"), world.serve("b")
        world.bind("a", {"topic": "t"})
        world.bind("b", {"topic": "t"}, id="b1")
        world.bind("b", {"topic": "t"}, id="b2")
        for n in range(5):
            await world.publish("t", {"n": n})
        await one.wait(5)
        await two.wait(5)
        await trio.sleep(60)
        assert sorted(d["n"] for d in one.data) == sorted(d["n"] for d in two.data) == [0, 1, 2, 3, 4]
        assert await world.stats("t") == {"depth": 0, "consumer_count": 3, "dlq_depth": 0, "config": None}


async def test_each_trigger_of_a_function_adds_its_slots(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", taking(1))
        world.bind("f", {"topic": "t", "queue_config": {"concurrency": 2}}, id="one")
        world.bind("f", {"topic": "t", "queue_config": {"concurrency": 1}}, id="two", metadata={"by": "two"})
        for n in range(6):
            await world.publish("t", n)
        await handler.wait_finished(6)
        assert handler.peak == 3
        assert sum(seen.metadata == {"by": "two"} for seen in handler.seen) == 2


async def test_after_an_unregister_only_the_others_receive(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = world.serve("a"), world.serve("b")
        world.bind("a", {"topic": "t"})
        world.bind("b", {"topic": "t"})
        await world.publish("t", 1)
        await two.wait(1)
        world.core.triggers.unregister("b")
        await world.publish("t", 2)
        await one.wait(2)
        await trio.sleep(60)
        assert two.data == [1]
        assert (await world.stats("t"))["depth"] == 0


async def test_target_and_condition_are_looked_up_in_the_triggers_namespace(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", namespace="orders")
        condition = world.serve("condition", answering("x"), namespace="orders")
        world.bind("f", {"topic": "t", "condition_function_id": "condition"}, namespace="orders")
        await world.publish("t", {"category": "x"})
        await handler.wait(1)
        assert len(condition.seen) == 1


async def test_one_function_in_two_namespaces_is_two_destinations(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        here, there = world.serve("f"), world.serve("f", namespace="orders")
        world.bind("f", {"topic": "t"}, id="here")
        world.bind("f", {"topic": "t"}, id="there", namespace="orders")
        await world.publish("t", 1)
        await here.wait(1)
        await there.wait(1)


@pytest.mark.parametrize("config", [None, {}, {"topic": ""}, {"topic": 5}, [], "t"])
async def test_a_trigger_without_topic_is_refused(autojump_clock: MockClock, config: Any) -> None:
    async with open_world() as world:
        with pytest.raises(TriggerRejected, match="topic is required for durable:subscriber triggers") as caught:
            world.bind("f", config)
        assert caught.value.code == "trigger_registration_failed"
        assert world.core.triggers.get("f") is None


@pytest.mark.parametrize("trigger_type", ["durable:subscriber", "queue", "event"])
@pytest.mark.parametrize("publish", ["iii::durable::publish", "enqueue", "emit"])
async def test_every_generations_names_work(autojump_clock: MockClock, trigger_type: str, publish: str) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        world.bind("f", {"topic": "t"}, trigger_type=trigger_type)
        assert (await world.user.invoke(publish, Json.of({"topic": "t", "data": {"n": 1}}))).absent
        assert await handler.wait(1) == [{"n": 1}]


async def test_the_aliases_are_internal_and_emit_needs_no_data(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for alias in ("enqueue", "emit"):
            entry = world.core.functions.get("default", alias)
            assert entry is not None
            assert entry.metadata.decode() == {"internal": True}
        handler = world.serve("f")
        world.bind("f", {"topic": "t"})
        await world.ask("emit", {"topic": "t"})
        assert await handler.wait(1) == [None]
        with pytest.raises(WireError, match="missing field `data`"):
            await world.ask("enqueue", {"topic": "t"})


@pytest.mark.parametrize(
    ("payload", "code", "message"),
    [
        ({"topic": "", "data": 1}, "topic_not_set", "Topic is not set"),
        ({"data": 1}, "deserialization_error", "Failed to deserialize input for iii::durable::publish: missing field"),
        ({"topic": 5, "data": 1}, "deserialization_error", "`topic` must be a string"),
        (7, "deserialization_error", "must be a JSON object"),
    ],
)
async def test_a_publish_that_does_not_fit_is_refused(
    autojump_clock: MockClock, payload: Any, code: str, message: str
) -> None:
    async with open_world() as world:
        with pytest.raises(WireError) as caught:
            await world.ask("iii::durable::publish", payload)
        assert caught.value.code == code
        assert message in caught.value.message


async def test_a_fifo_subscriber_retries_in_place(autojump_clock: MockClock) -> None:
    async with open_world() as world:

        async def behave(number: int, _data: Any) -> None:
            await trio.sleep(0.01)
            if number == 1:
                raise WireError("once", "invocation_failed")

        handler = world.serve("f", behave)
        world.bind("f", {"topic": "t", "queue_config": {"type": "fifo", "backoffDelayMs": 500, "concurrency": 5}})
        await world.publish("t", 1)
        await world.publish("t", 2)
        assert await handler.wait_finished(2) == [1, 2]
        assert handler.data == [1, 1, 2]
        assert handler.peak == 1


async def test_one_fifo_trigger_makes_the_destination_fifo(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", taking(1))
        world.bind("f", {"topic": "t", "queue_config": {"type": "fifo"}}, id="one")
        world.bind("f", {"topic": "t"}, id="two")
        for n in range(4):
            await world.publish("t", n)
        assert await handler.wait_finished(4) == [0, 1, 2, 3]
        assert handler.peak == 1


async def test_a_function_that_goes_before_its_turn_costs_no_attempt(autojump_clock: MockClock) -> None:
    async with open_world() as world:

        async def take_away(_number: int, _data: Any) -> bool:
            await trio.lowlevel.checkpoint()
            world.core.functions.release(world.user, "default", "f")
            return True

        world.serve("f")
        condition = world.serve("condition", take_away)
        world.bind("f", {"topic": "t", "condition_function_id": "condition", "queue_config": {"maxRetries": 0}})
        await world.publish("t", 1)
        await trio.sleep(3600)
        assert len(condition.seen) == 1
        assert await world.dead("t") == []
        condition.behaviour = taking(0)
        handler = world.serve("f")
        assert await handler.wait(1) == [1]
        assert handler.seen[0].attempt is None


@pytest.mark.parametrize(
    ("settings", "config", "attempts", "first_delay"),
    [
        ({}, {}, 3, 1.0),
        ({"max_attempts": 2, "backoff_ms": 20}, {}, 2, 0.02),
        ({}, {"queue_config": {"maxRetries": 1, "backoffDelayMs": 50}}, 2, 0.05),
        ({}, {"queue_config": {"max_retries": 1, "backoff_ms": 50}}, 2, 0.05),
        ({}, {"queue_config": {"maxRetries": 0}}, 1, None),
        ({}, {"queue_config": {"maxRetries": "many", "backoffDelayMs": -1, "unknown": 1}}, 3, 1.0),
        ({}, {"max_retries": 1, "queue_config": {"maxRetries": 5}}, 2, 1.0),
        ({}, {"metadata": {"infrastructure": {"queue": {"maxRetries": 1, "type": "fifo"}}}}, 2, 1.0),
    ],
)
async def test_retries_of_a_subscriber(
    autojump_clock: MockClock, settings: Any, config: Any, attempts: int, first_delay: float | None
) -> None:
    async with open_world(topic_defaults(**settings)) as world:
        handler = world.serve("f", failing())
        world.bind("f", {"topic": "t", **config})
        await world.publish("t", 1)
        (letter,) = await world.wait_dead("t", 1)
        await trio.sleep(3600)
        assert len(handler.seen) == letter["retries"] == attempts
        if first_delay is not None:
            assert handler.seen[1].at - handler.seen[0].at == pytest.approx(first_delay, abs=0.005)


async def test_tuning_applies_to_messages_stored_before(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", failing())
        for n in range(2):
            await world.publish("t", n)
        world.bind("f", {"topic": "t", "queue_config": {"maxRetries": 1, "backoffDelayMs": 10}})
        letters = await world.wait_dead("t", 2)
        assert len(handler.seen) == 4
        assert {letter["retries"] for letter in letters} == {2}


async def test_zero_concurrency_pauses(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        world.bind("f", {"topic": "t", "queue_config": {"concurrency": 0}})
        await world.publish("t", 1)
        await trio.sleep(3600)
        assert handler.seen == []
        world.bind("f", {"topic": "t", "queue_config": {"concurrency": 1}})
        assert await handler.wait(1) == [1]


async def test_what_was_published_before_the_first_subscriber_is_handed_to_it(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        for n in range(3):
            await world.publish("t", n)
        assert (await world.stats("t"))["depth"] == 3
        first, second = world.serve("a"), world.serve("b")
        world.bind("a", {"topic": "t", "queue_config": {"type": "fifo"}})
        world.bind("b", {"topic": "t"})
        await world.publish("t", 3)
        assert await first.wait(4) == [0, 1, 2, 3]
        await trio.sleep(60)
        assert second.data == [3]
        assert world.module.statistics().unclaimed == 0


async def test_a_publish_on_its_way_when_the_first_subscriber_comes_is_handed_to_it(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        done: list[Any] = []
        world.user.call("iii::durable::publish", Json.of({"topic": "t", "data": 1}), done.append)
        world.bind("f", {"topic": "t"})
        assert await handler.wait(1) == [1]
        assert done[0].ok


async def test_a_destination_whose_worker_is_away_gets_its_copies(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        stayed = world.serve("stays")
        world.bind("stays", {"topic": "t"})
        async with open_local(world.core, "worker") as worker:
            gone = world.serve("f", peer=worker)
            world.bind("f", {"topic": "t"}, peer=worker)
            await world.publish("t", 1)
            await gone.wait_finished(1)
            await trio.sleep(1)
        await world.publish("t", 2)
        await stayed.wait(2)
        await trio.sleep(3600)
        assert (await world.stats("t"))["depth"] == 1
        async with open_local(world.core, "worker") as worker:
            back = world.serve("f", peer=worker)
            world.bind("f", {"topic": "t"}, peer=worker)
            assert await back.wait(1) == [2]
            await trio.sleep(1)
        assert stayed.data == [1, 2]


async def test_a_trigger_that_went_lets_its_deliveries_end(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", taking(5))
        world.bind("f", {"topic": "t", "queue_config": {"concurrency": 1}})
        await world.publish("t", 1)
        await world.publish("t", 2)
        await handler.wait(1)
        world.core.triggers.unregister("f")
        await handler.wait_finished(1)
        await trio.sleep(60)
        assert handler.data == [1]
        assert (await world.stats("t"))["depth"] == 1  # stored until the function subscribes again
        world.bind("f", {"topic": "t"})
        await handler.wait_finished(2)


async def test_a_re_registered_trigger_replaces_the_old_one(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        world.bind("f", {"topic": "old"})
        new = world.bind("f", {"topic": "new"})
        assert new.state is BindingState.LIVE
        await world.publish("old", 1)
        await world.publish("new", 2)
        await handler.wait(1)
        await trio.sleep(60)
        assert handler.data == [2]
        assert [row["name"] for row in await world.ask("engine::queue::list_topics")] == ["default", "new", "payment"]


async def test_a_refused_replacement_leaves_the_old_trigger(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        world.bind("f", {"topic": "t"})
        with pytest.raises(TriggerRejected):
            world.bind("f", {})
        await world.publish("t", 1)
        await handler.wait(1)


async def test_trigger_metadata_comes_along_and_the_attempt_number_joins_it(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        tuning = {"maxRetries": 1, "backoffDelayMs": 10}
        objects, texts = world.serve("objects", failing(1)), world.serve("texts", failing(1))
        world.bind("objects", {"topic": "t", "queue_config": tuning}, metadata={"k": "v"})
        world.bind("texts", {"topic": "t", "queue_config": tuning}, metadata="plain")
        await world.publish("t", 1, traceparent="00-a-b-01", baggage="k=v")
        await objects.wait_finished(1)
        await texts.wait_finished(1)
        assert objects.seen[0].metadata == {"k": "v"}
        again = objects.seen[1]
        assert again.metadata["k"] == "v"
        marker = again.metadata["iii.queue"]
        assert (marker["queue"], marker["attempt"]) == ("t", 2)
        assert (again.traceparent, again.baggage) == ("00-a-b-01", "k=v")
        assert [seen.metadata for seen in texts.seen] == ["plain", "plain"]


async def test_topics_and_functions_whose_names_run_together_are_kept_apart(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        one, two = world.serve("b::c"), world.serve("c")
        world.bind("b::c", {"topic": "a"})
        world.bind("c", {"topic": "a::b"})
        await world.publish("a", 1)
        await world.publish("a::b", 2)
        assert await one.wait(1) == [1]
        assert await two.wait(1) == [2]


async def test_lists_show_queues_and_subscribed_topics_only(autojump_clock: MockClock) -> None:
    async with open_world(configured(orders=QueueSettings(concurrency=4))) as world:
        world.bind("f", {"topic": "mail"}, id="one")
        world.bind("f", {"topic": "mail"}, id="two")
        await world.publish("nobody", 1)
        assert await world.ask("engine::queue::list_topics", {"_caller_worker_id": "x"}) == [
            {"name": "default", "broker_type": "function_queue", "subscriber_count": 10},
            {"name": "mail", "broker_type": "builtin", "subscriber_count": 2},
            {"name": "orders", "broker_type": "function_queue", "subscriber_count": 4},
        ]
        assert await world.ask("engine::queue::dlq_topics") == [
            {"topic": "default", "broker_type": "function_queue", "message_count": 0},
            {"topic": "mail", "broker_type": "builtin", "message_count": 0},
            {"topic": "orders", "broker_type": "function_queue", "message_count": 0},
        ]


async def test_a_topic_that_nobody_wants_any_more_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with open_world(QueueModuleSettings()) as world:
        before = world.module.statistics()
        for n in range(50):
            world.bind("f", {"topic": f"t{n}"})
        world.core.triggers.unregister("f")
        await trio.sleep(1)
        assert len(world.module.statistics().queues) == len(before.queues)
        tasks = [task for task in _queue_tasks() if "t4" in task]
        assert tasks == []


def _queue_tasks() -> list[str]:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    names, stack = [], [root]
    while stack:
        task = stack.pop()
        names.append(task.name)
        for nursery in task.child_nurseries:
            stack.extend(nursery.child_tasks)
    return [name for name in names if name.startswith(("queue ", "consumer of "))]


@pytest.mark.parametrize("how", ["handled", "purge", "discard", "purge_dlq", "age"])
async def test_what_is_left_of_an_unregistered_trigger_goes_with_its_last_message(
    autojump_clock: MockClock, how: str
) -> None:
    settings = topic_defaults(max_attempts=1, dead_letter_max_age_ms=600_000)
    async with open_world(settings) as world:
        handler = world.serve("f", taking(1) if how == "handled" else failing())
        if how == "purge":
            world.core.functions.release(world.user, "default", "f")
        world.bind("f", {"topic": "t"})
        await world.publish("t", 1)
        if how == "handled":
            await handler.wait(1)
        else:
            await trio.sleep(10)
        world.core.triggers.unregister("f")
        queues = {queue.key.name: queue for queue in world.module.statistics().queues}
        assert queues["t"].counts.in_flight + queues["t"].counts.waiting + queues["t"].counts.dead == 1
        if how == "discard":
            (letter,) = await world.dead("t")
            await world.ask("iii::queue::discard_message", {"queue": "t", "message_id": letter["id"]})
        elif how in ("purge", "purge_dlq"):
            await world.ask(f"iii::queue::{how}", {"queue": "t"})
        else:
            await trio.sleep(660)
        assert [queue.key.name for queue in world.module.statistics().queues] == ["default"]


async def test_the_config_format_is_published(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        (claim,) = [claim for claim in world.core.triggers.types() if claim.id == "durable:subscriber"]
        assert claim.config_format.decode()["required"] == ["topic"]
