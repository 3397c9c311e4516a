"""The trigger type `state`: which events go where, in which order, and what stops them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from module_harness import ask, bind, record, running

from iii_trio.config import Live, StateSettings
from iii_trio.engine import BindingState, Call, Engine, FunctionEntry, LocalPeer, Outcome, open_local
from iii_trio.modules.bindings import BindingIndex
from iii_trio.modules.state import StateModule, read_config
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import TriggerRejected, WireError
from iii_trio.stores import open_memory
from iii_trio.testing.raw import open_port


@asynccontextmanager
async def state() -> AsyncIterator[tuple[Engine, LocalPeer, StateModule]]:
    async with open_memory() as store:
        module = StateModule(Live(StateSettings()), store.key_value("state"))
        async with running(module) as (core, user):
            yield core, user, module


def event(kind: str, old: Any, new: Any, scope: str = "s", key: str = "k") -> dict[str, Any]:
    return {
        "type": "state",
        "event_type": f"state:{kind}",
        "scope": scope,
        "key": key,
        "old_value": old,
        "new_value": new,
    }


async def put(user: LocalPeer, value: Any, scope: str = "s", key: str = "k") -> None:
    await ask(user, "state::set", {"scope": scope, "key": key, "value": value})


async def test_events_have_exactly_six_keys_and_say_what_happened() -> None:
    async with state() as (core, user, _):
        events = record(user, "events")
        bind(core, user, "state", "events", {}, metadata={"mine": 1})
        at = {"scope": "s", "key": "k"}
        await put(user, 1)
        await put(user, 1)
        await ask(user, "state::update", {**at, "ops": [{"type": "increment", "path": "", "by": 1}]})
        await ask(user, "state::update", {**at, "ops": [{"type": "set", "path": "field", "value": 1}]})
        await ask(user, "state::delete", at)
        await ask(user, "state::delete", at)
        await ask(user, "state::update", {**at, "ops": [{"type": "set", "path": "", "value": None}]})
        await put(user, 0)
        await ask(user, "state::get", at)
        await ask(user, "state::list", at)
        assert await events.wait(8) == [
            event("created", None, 1),
            event("updated", 1, 1),
            event("updated", 1, 2),
            event("updated", 2, 2),  # every op failed: written and announced all the same
            event("deleted", 2, None),
            event("deleted", None, None),
            event("created", None, None),
            event("updated", None, 0),  # a stored null counts as present
        ]
        assert events.metadata == [{"mine": 1}] * 8


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({}, {"a/1", "a/2", "b/1", "/"}),
        ({"scope": None, "key": None, "other": 1}, {"a/1", "a/2", "b/1", "/"}),
        ({"scope": "a"}, {"a/1", "a/2"}),
        ({"key": "1"}, {"a/1", "b/1"}),
        ({"scope": "a", "key": "1"}, {"a/1"}),
        ({"scope": "", "key": ""}, {"/"}),
        ({"scope": ""}, {"/"}),
        ({"scope": "*"}, set()),
    ],
)
async def test_scope_and_key_choose_exactly(config: dict[str, Any], keys: set[str]) -> None:
    async with state() as (core, user, _):
        events = record(user, "events")
        bind(core, user, "state", "events", config)
        for scope, key in [("a", "1"), ("a", "2"), ("b", "1"), ("", "")]:
            await put(user, 1, scope, key)
        assert {f"{e['scope']}/{e['key']}" for e in events.payloads} == keys


@pytest.mark.parametrize(
    ("answer", "delivered"),
    [
        (Outcome(Json.of(False)), False),
        (Outcome(NULL), True),
        (Outcome(), True),
        (Outcome(Json.of(0)), True),
        (Outcome.failed(WireError("broken")), False),
    ],
    ids=["false", "null", "nothing", "zero", "error"],
)
async def test_a_condition_decides(answer: Outcome, delivered: bool) -> None:
    async with state() as (core, user, _):
        condition, events = record(user, "condition", answer), record(user, "events")
        bind(core, user, "state", "events", {"condition_function_id": "condition"}, metadata=1)
        await put(user, 1)
        assert condition.payloads == [event("created", None, 1)]
        assert condition.metadata == [None]
        assert events.payloads == ([event("created", None, 1)] if delivered else [])


async def test_target_and_condition_are_those_of_the_bindings_namespace() -> None:
    async with state() as (core, user, _):
        wrong, heard = record(user, "f"), record(user, "unused")
        wrong_condition = record(user, "c", Outcome(Json.of(False)))
        for name in ("f", "c"):
            core.functions.claim(FunctionEntry(id=name, namespace="mine", owner=user, handler=(False, heard)))
        bind(core, user, "state", "f", {"condition_function_id": "c"}, namespace="mine")
        await put(user, 1)
        assert len(heard.payloads) == 2
        assert wrong.payloads == wrong_condition.payloads == []


async def test_the_writer_has_its_answer_before_the_event_goes_out() -> None:
    async with state() as (core, _user, _), open_port(core) as port:
        worker = await port.connect(name="w")
        worker.register("on-change")
        worker.send(
            {"type": "registertrigger", "id": "t", "trigger_type": "state", "function_id": "on-change", "config": {}}
        )
        # the binding counts for a write that is sent right behind it
        call = worker.call("state::set", {"scope": "s", "key": "k", "value": 7})
        first, second = await worker.next(), await worker.next()
        assert (first["type"], first["invocation_id"]) == ("invocationresult", call)
        assert (second["type"], second["function_id"]) == ("invokefunction", "on-change")
        assert second["data"] == event("created", None, 7)


async def test_events_of_one_key_come_one_after_the_other_in_the_order_of_the_writes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with state() as (core, user, _):
        seen: list[tuple[str, Any, str]] = []
        all_seen = trio.Event()

        async def slow(call: Call, data: Json) -> Json:
            change = data.decode()
            seen.append((change["key"], change["new_value"], "begins"))
            await trio.sleep(10 - change["new_value"])
            seen.append((change["key"], change["new_value"], "ends"))
            if len(seen) == 8:
                all_seen.set()
            return NULL

        user.register("slow", slow, task=True)
        bind(core, user, "state", "slow", {"scope": "s"})
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(3):
                user.call("state::set", Json.of({"scope": "s", "key": "a", "value": number}), lambda _: None)
            nursery.start_soon(put, user, 9, "s", "b")
        assert trio.current_time() == started
        await all_seen.wait()
        of_a = [(value, what) for key, value, what in seen if key == "a"]
        assert of_a == [(number, what) for number in range(3) for what in ("begins", "ends")]
        assert seen.index(("b", 9, "ends")) < seen.index(("a", 0, "ends")), "another key does not wait"


async def test_the_switch_is_live_and_a_late_subscriber_hears_nothing_of_before() -> None:
    async with state() as (core, user, module):
        events = record(user, "events")
        bind(core, user, "state", "events", {})
        module.settings.set(StateSettings(triggers_enabled=False))
        await put(user, "silent")
        module.settings.set(StateSettings())
        await put(user, "heard")
        assert [e["new_value"] for e in events.payloads] == ["heard"]


async def test_a_handler_that_fails_disturbs_neither_writer_nor_the_others() -> None:
    async with state() as (core, user, module):
        record(user, "broken", Outcome.failed(WireError("no")))
        events = record(user, "events")
        for name in ("broken", "missing", "events"):
            bind(core, user, "state", name, {})
        await put(user, 1)
        await put(user, 2)
        assert len(events.payloads) == 2
        firing = module.statistics().firing
        assert firing is not None
        assert (firing.failed, firing.handled) == (4, 2)


@pytest.mark.parametrize(
    ("config", "detail"),
    [
        (None, "invalid type: null, expected an object"),
        ("s", "invalid type: a string, expected an object"),
        ({"scope": 1}, "invalid type: integer `1`, expected a string"),
        ({"key": ["k"]}, "invalid type: an array, expected a string"),
        ({"condition_function_id": True}, "invalid type: boolean `true`, expected a string"),
        ({"condition_function_id": ""}, "`condition_function_id` is empty"),
    ],
)
async def test_a_bad_config_is_refused_and_the_earlier_binding_stays(config: Any, detail: str) -> None:
    async with state() as (core, user, module):
        events = record(user, "events")
        bind(core, user, "state", "events", {"key": "k"}, id="t")
        with pytest.raises(TriggerRejected) as caught:
            bind(core, user, "state", "events", config, id="t")
        assert caught.value.code == "trigger_registration_failed"
        assert caught.value.message.startswith("Failed to parse trigger config: ")
        assert detail in caught.value.message
        await put(user, 1)
        assert len(events.payloads) == 1
        assert module.statistics().bindings == 1


async def test_the_same_id_again_moves_a_binding_and_unregistering_ends_it() -> None:
    async with state() as (core, user, module):
        events = record(user, "events")
        bind(core, user, "state", "events", {"key": "old"}, id="t")
        bind(core, user, "state", "events", {"key": "new"}, id="t")
        await put(user, 1, key="old")
        await put(user, 2, key="new")
        core.triggers.unregister("t")
        await put(user, 3, key="new")
        assert [e["new_value"] for e in events.payloads] == [2]
        assert module.statistics().bindings == 0


async def test_bindings_wait_while_the_module_is_down_and_the_data_stays() -> None:
    async with open_memory() as store, running() as (core, user), trio.open_nursery() as nursery:
        module = StateModule(Live(StateSettings()), store.key_value("state"))
        events = record(user, "events")
        binding = bind(core, user, "state", "events", {})
        assert binding.state is BindingState.PARKED
        for value in (1, 2):
            async with trio.open_nursery() as life:
                await life.start(module.run, core)
                await put(user, value)
                life.cancel_scope.cancel()
            assert binding.state is BindingState.PARKED
            assert module.statistics().firing is None
        assert events.payloads == [event("created", None, 1), event("updated", 1, 2)]
        nursery.cancel_scope.cancel()


async def test_a_write_is_announced_although_its_caller_is_gone() -> None:
    async with state() as (core, user, _):
        events = record(user, "events")
        bind(core, user, "state", "events", {})
        async with open_local(core, "brief") as brief:
            brief.call("state::set", Json.of({"scope": "s", "key": "k", "value": 1}), lambda _: None)
            assert core.statistics().running == 1
        assert await events.wait(1) == [event("created", None, 1)]
        assert await ask(user, "state::get", {"scope": "s", "key": "k"}) == 1


async def test_looking_up_a_write_does_not_visit_bindings_elsewhere() -> None:
    async with running() as (core, user):
        index = BindingIndex(read_config)
        for number in range(100):
            index.bind(bind(core, user, "state", f"f{number}", {"scope": "s", "key": f"k{number}"}))
        assert [binding.function_id for binding, _ in index.at(("s", "k7"))] == ["f7"]
        assert index.at(("s", None)) == ()
        assert (len(index), index.places) == (100, 100)
