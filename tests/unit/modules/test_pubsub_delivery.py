"""`publish` and `subscribe`: who gets what, and what is refused."""

from typing import Any

import pytest
import trio
import trio.testing
from module_harness import ask, bind, record, running

from iii_trio.config import Live, PubSubSettings
from iii_trio.engine import BindingState, Outcome
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import TriggerRejected, WireError


@pytest.fixture
def module() -> PubSubModule:
    return PubSubModule(Live(PubSubSettings()))


async def test_a_message_arrives_as_it_was_published_and_only_on_its_topic(module: PubSubModule) -> None:
    async with running(module) as (core, user):
        orders, others = record(user, "on.orders"), record(user, "on::others")
        bind(core, user, "subscribe", "on.orders", {"topic": "shop.orders"})
        bind(core, user, "subscribe", "on::others", {"topic": "shop"})

        result = await user.invoke("publish", Json.of({"topic": "shop.orders", "data": {"message": [1, None]}}))

        assert result.absent
        assert orders.payloads == [{"message": [1, None]}]
        assert others.payloads == []


async def test_null_is_a_message_and_nobody_listening_is_no_error(module: PubSubModule) -> None:
    async with running(module) as (core, user):
        assert await ask(user, "publish", {"topic": "empty", "data": 1}) is None
        heard = record(user, "heard")
        bind(core, user, "subscribe", "heard", {"topic": "t"})
        await ask(user, "publish", {"topic": "t", "data": None})
        assert heard.payloads == [None]
        assert module.statistics().published == 2


async def test_every_subscription_is_called_once_also_those_of_one_function(module: PubSubModule) -> None:
    async with running(module) as (core, user):
        heard = record(user, "heard")
        for number in range(3):
            bind(core, user, "subscribe", "heard", {"topic": "t"}, id=f"s{number}", metadata={"n": number})
        await ask(user, "publish", {"topic": "t", "data": "x"})
        assert heard.payloads == ["x"] * 3
        assert heard.metadata == [{"n": 0}, {"n": 1}, {"n": 2}]


async def test_one_subscription_that_goes_leaves_the_others(module: PubSubModule) -> None:
    async with running(module) as (core, user):
        one, two = record(user, "one"), record(user, "two")
        bind(core, user, "subscribe", "one", {"topic": "t"})
        bind(core, user, "subscribe", "two", {"topic": "t"})
        core.triggers.unregister("one")
        await ask(user, "publish", {"topic": "t", "data": 1})
        assert (one.payloads, two.payloads) == ([], [1])
        core.triggers.unregister("two")
        assert (module.statistics().topics, module.statistics().subscriptions) == (0, 0)


async def test_the_same_id_again_moves_the_subscription(module: PubSubModule) -> None:
    async with running(module) as (core, user):
        heard = record(user, "heard")
        bind(core, user, "subscribe", "heard", {"topic": "old"}, id="s")
        bind(core, user, "subscribe", "heard", {"topic": "new"}, id="s")
        await ask(user, "publish", {"topic": "old", "data": "old"})
        await ask(user, "publish", {"topic": "new", "data": "new"})
        assert heard.payloads == ["new"]


@pytest.mark.parametrize(
    ("answer", "delivered"),
    [
        (Outcome(Json.of(False)), False),
        (Outcome(Json.of(0)), True),
        (Outcome(NULL), True),
        (Outcome.failed(WireError("no")), False),
    ],
    ids=["false", "zero", "null", "error"],
)
async def test_a_condition_sees_the_message_and_blocks_with_false_or_an_error(
    module: PubSubModule, answer: Outcome, delivered: bool
) -> None:
    async with running(module) as (core, user):
        condition, heard = record(user, "condition", answer), record(user, "heard")
        config = {"topic": "t", "condition_function_id": "condition"}
        bind(core, user, "subscribe", "heard", config, metadata="m")
        await ask(user, "publish", {"topic": "t", "data": {"a": 1}})
        assert condition.payloads == [{"a": 1}]
        assert condition.metadata == [None]
        assert heard.payloads == ([{"a": 1}] if delivered else [])


async def test_publish_does_not_wait_for_handlers_nor_hear_of_their_failures(
    module: PubSubModule, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(module) as (core, user):
        done = trio.Event()

        async def slow(call: Any, data: Json) -> Json:
            await trio.sleep(60)
            done.set()
            raise WireError("too late")

        user.register("slow", slow, task=True)
        bind(core, user, "subscribe", "slow", {"topic": "t"})
        bind(core, user, "subscribe", "nobody", {"topic": "t"})
        before = trio.current_time()
        await ask(user, "publish", {"topic": "t", "data": 1})
        assert trio.current_time() == before
        await done.wait()
        await trio.testing.wait_all_tasks_blocked()
        firing = module.statistics().firing
        assert firing is not None
        assert (firing.failed, firing.running) == (2, 0)


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        ({}, "missing field `topic`"),
        ({"topic": 3}, "expected a string"),
        ({"topic": ""}, "`topic` is empty"),
        (None, "invalid type: null, expected an object"),
        ({"topic": "t", "condition_function_id": ""}, "`condition_function_id` is empty"),
        ({"topic": "t", "condition_function_id": 1}, "expected a string"),
    ],
)
async def test_a_bad_config_is_refused_and_the_earlier_subscription_stays(
    module: PubSubModule, config: Any, detail: str
) -> None:
    async with running(module) as (core, user):
        heard = record(user, "heard")
        bind(core, user, "subscribe", "heard", {"topic": "t"}, id="s")
        with pytest.raises(TriggerRejected, match=detail) as caught:
            bind(core, user, "subscribe", "heard", config, id="s")
        assert caught.value.code == "trigger_registration_failed"
        await ask(user, "publish", {"topic": "t", "data": 1})
        assert heard.payloads == [1]


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"topic": "", "data": 1}, "topic_not_set"),
        ({"topic": "t"}, "deserialization_error"),
        ({"data": 1}, "deserialization_error"),
        ({"topic": None, "data": 1}, "deserialization_error"),
        (None, "deserialization_error"),
    ],
)
async def test_bad_input_is_refused(module: PubSubModule, payload: Any, code: str) -> None:
    async with running(module) as (_, user):
        with pytest.raises(WireError) as caught:
            await ask(user, "publish", payload)
        assert caught.value.code == code
        assert module.statistics().published == 0


async def test_subscriptions_park_while_the_module_is_down_and_are_back_with_it(module: PubSubModule) -> None:
    async with running() as (core, user), trio.open_nursery() as nursery:
        heard = record(user, "heard")
        binding = bind(core, user, "subscribe", "heard", {"topic": "t"})
        assert binding.state is BindingState.PARKED
        first = trio.CancelScope()
        nursery.start_soon(_run_in, first, module, core)
        await trio.testing.wait_all_tasks_blocked()
        await ask(user, "publish", {"topic": "t", "data": 1})
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert binding.state is BindingState.PARKED
        assert module.statistics().subscriptions == 0
        with pytest.raises(WireError, match="function_not_found"):
            await ask(user, "publish", {"topic": "t", "data": 2})
        await nursery.start(module.run, core)
        await ask(user, "publish", {"topic": "t", "data": 3})
        assert heard.payloads == [1, 3]
        nursery.cancel_scope.cancel()


async def _run_in(scope: trio.CancelScope, module: PubSubModule, core: Any) -> None:
    with scope:
        await module.run(core)
