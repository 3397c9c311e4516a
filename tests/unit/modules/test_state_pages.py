"""Lists in pages, by prefix and with keys; and names of every kind, over restarts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from module_harness import ask, running

from iii_trio.config import Live, StateSettings
from iii_trio.engine import LocalPeer
from iii_trio.modules.state import StateModule
from iii_trio.protocol import Json
from iii_trio.protocol.errors import WireError
from iii_trio.stores import Fsync, open_memory, open_sqlite
from iii_trio.testing.raw import open_port

AWKWARD = ["", "\x00", "a", "A", "a\x00b", "a/b", "ä", "\u2028", "\uffff", "\U0001f600", "x" * 10_000, "%00", "a b"]


@asynccontextmanager
async def state(directory: Path | None = None) -> AsyncIterator[LocalPeer]:
    opening = open_memory() if directory is None else open_sqlite(directory / "s.db", inline=True, fsync=Fsync.NEVER)
    async with opening as store:
        module = StateModule(Live(StateSettings()), store.key_value("state"))
        async with running(module) as (_, user):
            yield user


async def put(user: LocalPeer, key: str, value: Any, scope: str = "s") -> None:
    await ask(user, "state::set", {"scope": scope, "key": key, "value": value})


async def listed(user: LocalPeer, **more: Any) -> Any:
    return await ask(user, "state::list", {"scope": "s", **more})


@pytest.fixture(params=["memory", "sqlite"])
async def user(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalPeer]:
    async with state(None if request.param == "memory" else tmp_path) as peer:
        yield peer


async def test_without_options_a_list_is_what_it_always_was(user: LocalPeer) -> None:
    for key in ("c", "a", "b"):
        await put(user, key, key * 2)
    assert await listed(user) == ["cc", "aa", "bb"]
    assert await listed(user, prefix=None, after=None, limit=None, keys=None) == ["cc", "aa", "bb"]
    assert await listed(user, keys=False) == ["cc", "aa", "bb"]
    assert await listed(user, keys=True) == [{"key": key, "value": key * 2} for key in ("c", "a", "b")]


async def test_pages_come_by_key_and_miss_nothing_that_stays(user: LocalPeer) -> None:
    keys = [f"k{number:02}" for number in range(25)]
    for key in reversed(keys):
        await put(user, key, {"of": key})
    seen: list[str] = []
    after = None
    while page := await listed(user, limit=4, keys=True, **({} if after is None else {"after": after})):
        seen += [one["key"] for one in page]
        after = seen[-1]
        await ask(user, "state::delete", {"scope": "s", "key": after})  # where a page ended need not stay
        await put(user, "j-before", 1)
    assert seen == keys
    assert await listed(user, limit=1) == [1]


async def test_a_prefix_is_a_prefix(user: LocalPeer) -> None:
    for key in ("user:2", "user:1", "user", "users", "user:\U0010ffff", "use", "v", "USER:1"):
        await put(user, key, key)
    assert await listed(user, prefix="user:") == ["user:1", "user:2", "user:\U0010ffff"]
    assert await listed(user, prefix="user:", after="user:1", limit=1) == ["user:2"]
    assert await listed(user, prefix="user:", after="a") == ["user:1", "user:2", "user:\U0010ffff"]
    assert await listed(user, prefix="user:", after="z") == []
    assert await listed(user, prefix="") == [
        "USER:1",
        "use",
        "user",
        "user:1",
        "user:2",
        "user:\U0010ffff",
        "users",
        "v",
    ]
    assert await listed(user, prefix="none") == []


async def test_groups_come_in_pages_too(user: LocalPeer) -> None:
    scopes = ["", "a", "b:1", "b:2", "b:3", "c"]
    for scope in reversed(scopes):
        await put(user, "1", 1, scope)
        await put(user, "2", 1, scope)

    async def groups(**more: Any) -> list[str]:
        answer: list[str] = (await ask(user, "state::list_groups", more))["groups"]
        return answer

    assert await groups() == scopes
    assert await groups(limit=2) == ["", "a"]
    assert await groups(limit=2, after="a") == ["b:1", "b:2"]
    assert await groups(prefix="b:") == ["b:1", "b:2", "b:3"]
    assert await groups(prefix="b:", after="b:2") == ["b:3"]
    assert await groups(prefix="b:", after="a", limit=1) == ["b:1"]
    assert await groups(after="c") == []


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        ("list", {"limit": 0}, "is not between 1 and"),
        ("list", {"limit": 1.5}, "expected a whole number"),
        ("list", {"prefix": 1}, "field `prefix`: invalid type"),
        ("list", {"after": []}, "field `after`: invalid type"),
        ("list", {"keys": "yes"}, "field `keys`: invalid type: a string, expected a boolean"),
        ("list_groups", {"limit": "1"}, "expected a whole number"),
        ("list_groups", {"after": 1}, "field `after`: invalid type"),
    ],
)
async def test_options_that_do_not_fit_are_refused(function: str, options: Any, text: str) -> None:
    async with state() as user:
        with pytest.raises(WireError, match=text) as caught:
            await ask(user, f"state::{function}", {"scope": "s", **options})
        assert caught.value.code == "deserialization_error"


async def test_an_answer_that_its_caller_cannot_take_is_refused_and_says_how_to_ask() -> None:
    async with state() as user:
        for number in range(30):
            await put(user, f"{number:02}", "x" * 1000)
            await put(user, "k", 1, f"{number:02}" + "x" * 1000)
        user.cap = 20_000
        for function, code, text in (
            ("list", "LIST_ERROR", "Failed to list values: the answer would take more than 18976 bytes"),
            ("list_groups", "LIST_GROUPS_ERROR", "Failed to list groups: the answer would take more than 18976 bytes"),
        ):
            with pytest.raises(WireError, match=text) as caught:
                await ask(user, f"state::{function}", {"scope": "s"})
            assert caught.value.code == code
            assert "`limit`" in caught.value.message
        assert len(await listed(user, limit=10)) == 10
        assert len((await ask(user, "state::list_groups", {"limit": 10}))["groups"]) == 10


async def test_a_worker_gets_its_pages_over_the_wire() -> None:
    async with open_memory() as store:
        module = StateModule(Live(StateSettings()), store.key_value("state"))
        async with running(module) as (core, user), open_port(core) as port:
            for key in ("b", "a"):
                await put(user, key, key)
            worker = await port.connect(name="w")
            answer = await worker.ask("state::list", {"scope": "s", "keys": True, "limit": 1})
            assert answer["result"] == [{"key": "a", "value": "a"}]


async def test_any_name_survives_a_restart(tmp_path: Path) -> None:
    async with state(tmp_path) as user:
        for scope in AWKWARD:
            for key in AWKWARD:
                await put(user, key, [scope[:20], key[:20]], scope)
    async with state(tmp_path) as user:
        assert await ask(user, "state::list_groups") == {"groups": sorted(AWKWARD)}
        for scope in AWKWARD:
            found = await ask(user, "state::list", {"scope": scope, "keys": True})
            assert [one["key"] for one in found] == AWKWARD
            assert [one["value"] for one in found] == [[scope[:20], key[:20]] for key in AWKWARD]
            assert await ask(user, "state::get", {"scope": scope, "key": ""}) == [scope[:20], ""]


async def test_half_a_surrogate_pair_is_no_name() -> None:
    async with state() as user:
        for function in ("set", "get", "delete", "update", "list"):
            payload = Json(b'{"scope":"\\ud800","key":"k","value":1,"ops":[]}')
            with pytest.raises(WireError):
                await user.invoke(f"state::{function}", payload)
        assert await ask(user, "state::list_groups") == {"groups": []}
