"""`state::*` against a dict of dicts, in any order, all calls under way at once; and what several workers count together."""

from contextlib import AsyncExitStack
from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from module_harness import ask, bind, record, running

from iii_trio.config import Live, StateSettings
from iii_trio.engine import LocalPeer, Outcome
from iii_trio.modules.state import StateModule
from iii_trio.protocol import Json
from iii_trio.stores import open_memory
from iii_trio.testing.raw import open_port

SCOPES = st.sampled_from(["", "a", "a:b"])
KEYS = st.sampled_from(["", "k", "ü"])
VALUES = st.one_of(st.none(), st.integers(-5, 5), st.text(max_size=3), st.just({"n": 1}))
COMMANDS = st.one_of(
    st.tuples(st.just("set"), SCOPES, KEYS, VALUES),
    st.tuples(st.just("get"), SCOPES, KEYS),
    st.tuples(st.just("delete"), SCOPES, KEYS),
    st.tuples(st.just("merge"), SCOPES, KEYS, st.dictionaries(st.sampled_from("nm"), st.integers(0, 9), max_size=2)),
    st.tuples(st.just("increment"), SCOPES, KEYS),
    st.tuples(st.just("list"), SCOPES),
    st.tuples(st.just("list_groups")),
)

Model = dict[str, dict[str, Any]]


def expect(model: Model, command: str, *details: Any) -> tuple[Any, tuple[str, Any, Any] | None]:
    """What a call answers, and its event as (kind, old, new); the model is as it is afterwards. ... is no result."""
    if command == "list_groups":
        return {"groups": sorted(model)}, None
    scope, *rest = details
    if command == "list":
        return list(model.get(scope, {}).values()), None
    key, *values = rest
    there = key in model.get(scope, {})
    old = model.get(scope, {}).get(key)
    if command == "get":
        return old if there else ..., None
    if command == "delete":
        if there:
            del model[scope][key]
            if not model[scope]:
                del model[scope]
        return old if there else ..., ("state:deleted", old, None)
    errors: list[Any] = []
    if command == "set":
        new = values[0]
    elif command == "merge":  # at the root, where what is no object stays as it is
        new = {**old, **values[0]} if isinstance(old, dict) else old if there else dict(values[0])
    else:
        number = old.get("n", 0) if isinstance(old, dict) else 0
        failed = there and not isinstance(old, dict)
        errors = ["increment.target_not_object"] if failed else []
        new = old if failed else {**(old or {}), "n": number + 1}
    model.setdefault(scope, {})[key] = new
    answer: dict[str, Any] = {"old_value": old, "new_value": new}
    if errors:
        answer["errors"] = errors
    return answer, ("state:updated" if there else "state:created", old, new)


def payload(command: str, *details: Any) -> tuple[str, dict[str, Any]]:
    """The function and the payload of a command."""
    names = ("scope", "key", "value")
    fields = dict(zip(names, details, strict=False))
    if command == "merge":
        ops: list[Any] = [{"type": "merge", "value": fields.pop("value")}]
        return "update", {**fields, "ops": ops}
    if command == "increment":
        return "update", {**fields, "ops": [{"type": "increment", "path": "n", "by": 1}]}
    return command, fields


@settings(max_examples=150, deadline=None)
@given(commands=st.lists(COMMANDS, max_size=40))
async def test_state_is_a_dict_of_dicts_and_its_events_are_its_history(commands: list[Any]) -> None:
    model: Model = {}
    async with open_memory() as store:
        module = StateModule(Live(StateSettings()), store.key_value("state"))
        async with running(module) as (core, user):
            events = record(user, "events")
            bind(core, user, "state", "events", {})
            outcomes: list[Outcome] = []
            expected, history = [], []
            for command in commands:
                function, data = payload(*command)
                user.call(f"state::{function}", Json.of(data), outcomes.append)
                answer, event = expect(model, *command)
                expected.append(answer)
                if event is not None:
                    history.append((command[1], command[2], *event))
            assert await ask(user, "state::list_groups") == {"groups": sorted(model)}
            await trio.testing.wait_all_tasks_blocked()
            answers = [... if one.result.absent else one.result.decode() for one in outcomes]
            for answer in answers:
                if isinstance(answer, dict) and "errors" in answer:
                    answer["errors"] = [error["code"] for error in answer["errors"]]
            assert sorted(map(repr, answers)) == sorted(map(repr, expected)), "reads may pass each other, no write does"
            seen = [
                (one["scope"], one["key"], one["event_type"], one["old_value"], one["new_value"])
                for one in events.payloads
            ]
            for place in {told[:2] for told in history}:
                assert [told for told in seen if told[:2] == place] == [told for told in history if told[:2] == place]
            assert (len(answers), len(seen)) == (len(commands), len(history))


async def test_a_thousand_increments_from_ten_workers_are_a_thousand() -> None:
    async with open_memory() as store, AsyncExitStack() as stack:
        module = StateModule(Live(StateSettings()), store.key_value("state"))
        core, user = await stack.enter_async_context(running(module))
        port = await stack.enter_async_context(open_port(core))
        workers = [await port.connect(name=f"w{number}") for number in range(10)]
        ops = [{"type": "increment", "path": "n", "by": 1}]
        calls = [
            (worker, worker.call("state::update", {"scope": "s", "key": "k", "ops": ops}))
            for _ in range(100)
            for worker in workers
        ]
        counted = [(await worker.result(call))["result"]["new_value"]["n"] for worker, call in calls]
        assert sorted(counted) == list(range(1, 1_001))
        assert await get(user) == {"n": 1_000}


async def get(user: LocalPeer) -> Any:
    return await ask(user, "state::get", {"scope": "s", "key": "k"})
