"""`state::*`: results, null and nothing, refusals, and what a failing store means for the caller."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from module_harness import ask, bind, record, running

from iii_trio.config import Live, StateSettings
from iii_trio.engine import Engine, LocalPeer
from iii_trio.modules.state import StateModule
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import StoreError, WireError
from iii_trio.stores import Failed, KeyValue, KeyValueStatistics, StoreClosed, open_memory
from iii_trio.testing.raw import open_port

A = {"scope": "s", "key": "k"}


@asynccontextmanager
async def state(**settings: Any) -> AsyncIterator[tuple[Engine, LocalPeer, StateModule]]:
    async with open_memory() as store:
        module = StateModule(Live(StateSettings(**settings)), store.key_value("state"))
        async with running(module) as (core, user):
            yield core, user, module


async def test_set_answers_the_value_before_and_the_value_now() -> None:
    async with state() as (_, user, _module):
        first = {"name": "ü", "list": [1, 2.5, None, {"deep": True}]}
        assert await ask(user, "state::set", {**A, "value": first}) == {"old_value": None, "new_value": first}
        assert await ask(user, "state::set", {**A, "value": 2}) == {"old_value": first, "new_value": 2}
        assert await ask(user, "state::get", A) == 2


async def test_the_value_may_be_called_data_and_value_wins() -> None:
    async with state() as (_, user, _module):
        await ask(user, "state::set", {**A, "data": "old spelling"})
        assert await ask(user, "state::get", A) == "old spelling"
        await ask(user, "state::set", {**A, "data": "old spelling", "value": "new"})
        assert await ask(user, "state::get", A) == "new"


async def test_null_is_kept_and_is_not_nothing() -> None:
    async with state() as (_, user, _module):
        assert (await user.invoke("state::get", Json.of(A))).absent
        await ask(user, "state::set", {**A, "value": None})
        assert await user.invoke("state::get", Json.of(A)) == NULL
        assert await ask(user, "state::list", {"scope": "s"}) == [None]


async def test_delete_answers_the_bare_value_or_nothing() -> None:
    async with state() as (_, user, _module):
        await ask(user, "state::set", {**A, "value": {"a": 1}})
        assert await ask(user, "state::delete", A) == {"a": 1}
        assert (await user.invoke("state::delete", Json.of(A))).absent
        assert (await user.invoke("state::get", Json.of(A))).absent


async def test_a_worker_sees_nothing_and_null_as_different_frames() -> None:
    async with state() as (core, _user, _module), open_port(core) as port:
        worker = await port.connect(name="w")
        assert "result" not in await worker.ask("state::get", A)
        # all at once: each call sees what the ones before it did
        calls = [
            worker.call("state::set", {**A, "value": None}),
            worker.call("state::get", A),
            worker.call("state::delete", A),
            worker.call("state::get", A),
        ]
        answers = [await worker.result(call) for call in calls]
        assert [answer.get("result", "nothing") for answer in answers] == [
            {"old_value": None, "new_value": None},
            None,
            None,
            "nothing",
        ]
        assert not any("error" in answer for answer in answers)


async def test_lists_keep_the_order_of_first_setting_and_groups_are_sorted() -> None:
    async with state() as (_, user, _module):
        assert await ask(user, "state::list", {"scope": "none"}) == []
        assert await ask(user, "state::list_groups", {}) == {"groups": []}
        for scope, key, value in [("z", "2", "b"), ("z", "1", "a"), ("", "", "empty"), ("z", "2", "B")]:
            await ask(user, "state::set", {"scope": scope, "key": key, "value": value})
        assert await ask(user, "state::list", {"scope": "z"}) == ["B", "a"]
        assert await ask(user, "state::list", {"scope": ""}) == ["empty"]
        assert await ask(user, "state::list_groups", None) == {"groups": ["", "z"]}


async def test_two_deletes_at_once_give_the_value_to_one_of_them() -> None:
    async with state() as (_, user, _module):
        await ask(user, "state::set", {**A, "value": "only once"})
        results: list[Any] = []

        async def delete() -> None:
            results.append(await ask(user, "state::delete", A))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(delete)
            nursery.start_soon(delete)
        assert sorted(results, key=str) == [None, "only once"]


@pytest.mark.parametrize(
    ("before", "ops", "after"),
    [
        ({"name": "n"}, [{"type": "set", "path": "count", "value": 5}], {"name": "n", "count": 5}),
        ({"events": []}, [{"type": "append", "path": "events", "value": {"a": 1}}], {"events": [{"a": 1}]}),
        ("hello", [{"type": "append", "value": " "}, {"type": "append", "value": "world"}], "hello world"),
        (
            {"s": {"x": 1}},
            [{"type": "merge", "path": ["s", "abc"], "value": {"y": 2}}],
            {"s": {"x": 1, "abc": {"y": 2}}},
        ),
        (1, [{"type": "decrement", "path": "", "by": 3}], -2),
        ({"a": 1}, [{"type": "remove", "path": "a"}], {}),
    ],
)
async def test_update_changes_what_is_there(before: Any, ops: list[Any], after: Any) -> None:
    async with state() as (_, user, _module):
        await ask(user, "state::set", {**A, "value": before})
        assert await ask(user, "state::update", {**A, "ops": ops}) == {"old_value": before, "new_value": after}
        assert await ask(user, "state::get", A) == after


async def test_update_reports_the_ops_that_failed_and_does_the_others() -> None:
    async with state() as (_, user, _module):
        ops = [{"type": "increment", "path": "n", "by": 2}, {"type": "append", "path": "n", "value": "x"}]
        result = await ask(user, "state::update", {**A, "ops": ops})
        [error] = result.pop("errors")
        assert result == {"old_value": None, "new_value": {"n": 2}}
        assert (error["op_index"], error["code"]) == (1, "append.type_mismatch")


@pytest.mark.parametrize("ops", [[], [{"type": "set", "path": "__proto__", "value": 1}]], ids=["none", "failed"])
async def test_an_update_without_success_does_not_create_its_key(ops: list[Any]) -> None:
    async with state() as (core, user, _module):
        events = record(user, "events")
        bind(core, user, "state", "events", {})
        result = await ask(user, "state::update", {**A, "ops": ops})
        assert (result["old_value"], result["new_value"], len(result.get("errors", []))) == (None, {}, len(ops))
        assert await ask(user, "state::list_groups") == {"groups": []}
        assert events.payloads == []


async def test_updates_at_the_same_time_lose_nothing() -> None:
    async with state() as (_, user, _module):
        ops = [{"type": "increment", "path": "n", "by": 1}]
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask, user, "state::update", {**A, "ops": ops})
        assert await ask(user, "state::get", A) == {"n": 100}


async def test_an_update_cannot_nest_deeper_than_peers_can_read() -> None:
    async with state() as (_, user, _module):
        deep: Any = "leaf"
        for _ in range(100):
            deep = [deep]
        ops = [{"type": "append", "path": [f"p{n}" for n in range(30)], "value": deep}]
        with pytest.raises(WireError, match="nested deeper than 126 levels") as caught:
            await ask(user, "state::update", {**A, "ops": ops})
        assert caught.value.code == "UPDATE_ERROR"
        assert (await user.invoke("state::get", Json.of(A))).absent


FUNCTIONS = ["state::set", "state::get", "state::delete", "state::update"]


@pytest.mark.parametrize(
    ("function_id", "payload", "detail"),
    [
        *[(name, {"key": "k", "value": 1, "ops": []}, "missing field `scope`") for name in FUNCTIONS],
        *[(name, {"scope": "s", "value": 1, "ops": []}, "missing field `key`") for name in FUNCTIONS],
        *[(name, {**A, "key": 1}, "invalid type: integer `1`, expected a string") for name in FUNCTIONS],
        *[(name, None, "invalid type: null, expected an object") for name in [*FUNCTIONS, "state::list"]],
        ("state::set", A, "missing field `value`"),
        ("state::update", A, "missing field `ops`"),
        ("state::update", {**A, "ops": {}}, "ops"),
        ("state::update", {**A, "ops": [{"type": "explode"}]}, "explode"),
        ("state::list", {"scope": None}, "invalid type: null, expected a string"),
        ("state::list_groups", [], "invalid type: an array, expected an object"),
    ],
)
async def test_bad_input_is_refused_with_a_detail(function_id: str, payload: Any, detail: str) -> None:
    async with state() as (_, user, module):
        with pytest.raises(WireError) as caught:
            await ask(user, function_id, payload)
        assert caught.value.code == "deserialization_error"
        assert caught.value.message.startswith(f"Failed to deserialize input for {function_id}: ")
        assert detail in caught.value.message
        assert module.statistics().store == KeyValueStatistics("state", 0, 0)


async def test_a_value_above_the_limit_is_refused_and_the_limit_is_live() -> None:
    async with state(max_value_bytes=8) as (core, user, module):
        events = record(user, "events")
        bind(core, user, "state", "events", {})
        await ask(user, "state::set", {**A, "value": "ü" * 3})  # 8 bytes of text with its quotes
        with pytest.raises(WireError) as caught:
            await ask(user, "state::set", {**A, "value": "ü" * 4})
        assert caught.value.code == "VALUE_TOO_LARGE"
        assert caught.value.message == "value of 10 bytes exceeds the configured max_value_bytes limit of 8"
        module.settings.set(StateSettings(max_value_bytes=9))
        with pytest.raises(WireError, match="limit of 9"):
            await ask(user, "state::set", {**A, "value": "ü" * 4})
        module.settings.set(StateSettings())
        await ask(user, "state::set", {**A, "value": "ü" * 4})
        assert [event["new_value"] for event in events.payloads] == ["üüü", "üüüü"]
        assert module.statistics().too_large == 2


async def test_an_update_does_not_grow_a_value_beyond_the_limit_but_may_shrink_it() -> None:
    async with state() as (_, user, module):
        await ask(user, "state::set", {**A, "value": [1, 2, 3, 4, 5]})
        module.settings.set(StateSettings(max_value_bytes=5))
        with pytest.raises(WireError, match="value of 13 bytes exceeds") as caught:
            await ask(user, "state::update", {**A, "ops": [{"type": "append", "value": 6}]})
        assert caught.value.code == "VALUE_TOO_LARGE"
        assert await ask(user, "state::get", A) == [1, 2, 3, 4, 5]
        await ask(user, "state::update", {**A, "ops": [{"type": "set", "path": "", "value": [1, 2, 3]}]})
        assert await ask(user, "state::get", A) == [1, 2, 3]


class BrokenStore:
    """A store that can be read at the start; then its disk is full, or it has been closed."""

    def __init__(self, store: KeyValue, *, closed: bool) -> None:
        self.store = store
        self.closed = closed
        self.broken = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not self.broken or name in ("sibling", "statistics"):
            return getattr(self.store, name)

        def operation(*args: Any, **options: Any) -> None:
            if self.closed:
                raise StoreClosed("the store is closed")
            trio.lowlevel.spawn_system_task(self._answer, next(filter(callable, reversed(args))))

        return operation

    async def _answer(self, on_done: Callable[[Any], None]) -> None:
        on_done(Failed(StoreError("the disk is full")))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    ("function_id", "code", "text"),
    [
        ("state::set", "SET_ERROR", "Failed to set value"),
        ("state::get", "GET_ERROR", "Failed to get value"),
        ("state::delete", "DELETE_ERROR", "Failed to delete value"),
        ("state::update", "UPDATE_ERROR", "Failed to update value"),
        ("state::list", "LIST_ERROR", "Failed to list values"),
        ("state::list_groups", "LIST_GROUPS_ERROR", "Failed to list groups"),
    ],
)
async def test_what_the_store_cannot_do_is_an_error_and_no_event(
    closed: bool, function_id: str, code: str, text: str
) -> None:
    async with open_memory() as memory:
        store = BrokenStore(memory.key_value("state"), closed=closed)
        module = StateModule(Live(StateSettings()), store)  # type: ignore[arg-type]
        await fails(module, store, closed, function_id, code, text)


async def fails(module: StateModule, store: BrokenStore, closed: bool, function_id: str, code: str, text: str) -> None:
    async with running(module) as (core, user):
        store.broken = True
        events = record(user, "events")
        bind(core, user, "state", "events", {})
        with pytest.raises(WireError) as caught:
            await ask(user, function_id, {**A, "value": 1, "ops": []})
        reason = "the store is closed" if closed else "the disk is full"
        assert (caught.value.code, caught.value.message) == (code, f"{text}: {reason}")
        assert events.payloads == []
        assert module.statistics().failed == 1
