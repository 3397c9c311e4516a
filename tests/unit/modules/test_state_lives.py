"""`state::*` against a dict of dicts over many lives of the store, with times that run out, pages, and calls all at once."""

import tempfile
from functools import partial
from itertools import groupby
from pathlib import Path
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
from iii_trio.stores import Fsync, open_sqlite

SCOPES = st.sampled_from(["", "a", "A"])
KEYS = st.sampled_from(["", "k", "kk", "ü", "\x00"])
TIMES = st.sampled_from([None, None, 500, 1500, 3500])
"""Times run out half a second away from anything else that happens."""
COMMANDS = st.one_of(
    st.tuples(st.just("set"), SCOPES, KEYS, st.integers(0, 9), TIMES),
    st.tuples(st.just("add"), SCOPES, KEYS, st.integers(1, 9), TIMES),
    st.tuples(st.just("delete"), SCOPES, KEYS),
    st.tuples(st.just("get"), SCOPES, KEYS),
    st.tuples(st.just("list"), SCOPES),
    st.tuples(st.just("page"), SCOPES, st.sampled_from([None, "k"]), st.none() | KEYS, st.sampled_from([None, 1, 2])),
    st.tuples(st.just("groups"), st.none() | SCOPES, st.sampled_from([None, 1])),
    st.tuples(st.just("sleep"), st.integers(1, 3)),
    st.just(("restart",)),
)


class Model:
    """What the state must hold: value and time (s, or None) by scope and key; and what has happened to each key."""

    def __init__(self) -> None:
        self.scopes: dict[str, dict[str, tuple[int, float | None]]] = {}
        self.history: list[tuple[Any, ...]] = []

    def happened(self, scope: str, key: str, old: int | None, new: int | None) -> None:
        kind = "deleted" if new is None else "created" if old is None else "updated"
        self.history.append((scope, key, f"state:{kind}", old, new))

    def write(self, scope: str, key: str, old: int | None, new: int, until: float | None) -> Any:
        self.scopes.setdefault(scope, {})[key] = (new, until)
        self.happened(scope, key, old, new)
        return {"old_value": old, "new_value": new}

    def remove(self, scope: str, key: str) -> int | None:
        old, _ = self.scopes.get(scope, {}).pop(key, (None, None))
        if not self.scopes.get(scope, {None: 0}):
            del self.scopes[scope]
        return old

    def advance(self, now: float) -> None:
        due = [(s, k) for s, keys in self.scopes.items() for k, (_, until) in keys.items() if until and until <= now]
        for scope, key in due:
            self.happened(scope, key, self.remove(scope, key), None)

    def expect(self, now: float, command: str, *details: Any) -> Any:
        """What a call answers; ... is no result."""
        if command == "groups":
            after, limit = details
            return {"groups": [one for one in sorted(self.scopes) if after is None or one > after][:limit]}
        scope, *rest = details
        keys = self.scopes.get(scope, {})
        if command == "list":
            return [value for value, _ in keys.values()]
        if command == "page":
            prefix, after, limit = rest
            found = sorted(key for key in keys if key.startswith(prefix or "") and (after is None or key > after))
            if (prefix, after, limit) == (None, None, None):
                found = list(keys)
            return [{"key": key, "value": keys[key][0]} for key in found[:limit]]
        key = rest[0]
        old, until = keys.get(key, (None, None))
        if command == "get":
            return ... if old is None else old
        if command == "delete":
            self.remove(scope, key)
            self.happened(scope, key, old, None)
            return ... if old is None else old
        number, ttl = rest[1:]
        given = None if ttl is None else now + ttl / 1000
        if command == "set":
            return self.write(scope, key, old, number, given)
        return self.write(scope, key, old, (old or 0) + number, given or until)


def call(command: str, *details: Any) -> tuple[str, dict[str, Any]]:
    """The function and the payload of a command."""
    names = {
        "set": ("scope", "key", "value", "ttl_ms"),
        "add": ("scope", "key", "by", "ttl_ms"),
        "page": ("scope", "prefix", "after", "limit"),
        "groups": ("after", "limit"),
    }.get(command, ("scope", "key"))
    fields = dict(zip(names, details, strict=False))
    if command == "add":
        fields["ops"] = [{"type": "increment", "path": "", "by": fields.pop("by")}]
        return "update", fields
    if command == "page":
        return "list", {**fields, "keys": True}
    return {"groups": "list_groups"}.get(command, command), fields


async def live(file: Path, commands: list[Any], model: Model) -> None:
    """One life of the store: all calls between two pauses are under way at once."""
    async with open_sqlite(file, inline=True, fsync=Fsync.NEVER) as store:
        module = StateModule(Live(StateSettings()), store.key_value("state"))
        async with running(module) as (core, user):
            events = record(user, "events")
            bind(core, user, "state", "events", {})
            begun = len(model.history)
            for asleep, some in groupby(commands, lambda command: command[0] == "sleep"):
                if asleep:
                    for _, seconds in some:
                        await trio.sleep(seconds)
                        model.advance(trio.current_time())
                else:
                    await burst(user, list(some), model)
            seen = [
                (one["scope"], one["key"], one["event_type"], one["old_value"], one["new_value"])
                for one in await events.wait(len(model.history) - begun)
            ]
            told = model.history[begun:]
            for place in {one[:2] for one in told}:
                assert [one for one in seen if one[:2] == place] == [one for one in told if one[:2] == place]
            assert len(seen) == len(told)


async def burst(user: LocalPeer, commands: list[Any], model: Model) -> None:
    now = trio.current_time()
    outcomes: dict[int, Outcome] = {}
    for number, command in enumerate(commands):
        function, payload = call(*command)
        user.call(f"state::{function}", Json.of(payload), partial(outcomes.__setitem__, number))
    expected = [model.expect(now, *command) for command in commands]
    await ask(user, "state::list_groups")
    while len(outcomes) < len(commands):
        await trio.lowlevel.checkpoint()
    for number, command in enumerate(commands):
        outcome = outcomes[number]
        assert outcome.ok, (command, outcome)
        answer = ... if outcome.result.absent else outcome.result.decode()
        assert answer == expected[number], command


@settings(max_examples=60, deadline=None)
@given(commands=st.lists(COMMANDS, max_size=50))
def test_state_is_a_dict_of_dicts_over_all_its_lives(commands: list[Any]) -> None:
    async def main() -> None:
        model = Model()
        with tempfile.TemporaryDirectory() as directory:
            lives = [list(some) for end, some in groupby(commands, lambda one: one == ("restart",)) if not end]
            for some in [*lives, []]:
                await live(Path(directory, "s.db"), some, model)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
