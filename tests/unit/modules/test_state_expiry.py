"""Keys with a time: exact for readers, told when they go, kept over restarts, one timer however many there are."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from module_harness import ask, bind, record, running
from trio.testing import MockClock

from iii_trio.config import Live, StateSettings
from iii_trio.engine import Clock, Engine, LocalPeer
from iii_trio.modules.state import StateModule
from iii_trio.protocol import Json
from iii_trio.protocol.errors import StoreError, WireError
from iii_trio.stores import Failed, Fsync, open_memory, open_sqlite

AT = {"scope": "s", "key": "k"}


@asynccontextmanager
async def state(directory: Path | None = None) -> AsyncIterator[tuple[Engine, LocalPeer, StateModule]]:
    opening = open_memory() if directory is None else open_sqlite(directory / "s.db", inline=True, fsync=Fsync.NEVER)
    async with opening as store:
        module = StateModule(Live(StateSettings()), store.key_value("state"))
        async with running(module) as (core, user):
            yield core, user, module


async def put(user: LocalPeer, key: str, value: Any, **more: Any) -> Any:
    return await ask(user, "state::set", {"scope": "s", "key": key, "value": value, **more})


async def missing(user: LocalPeer, key: str) -> bool:
    return (await user.invoke("state::get", Json.of({"scope": "s", "key": key}))).absent


async def test_a_key_is_there_until_its_time_and_not_a_moment_longer(autojump_clock: MockClock) -> None:
    async with state() as (core, user, module):
        events = record(user, "events")
        bind(core, user, "state", "events", {})
        await put(user, "k", 1, ttl_ms=1000)
        await put(user, "stays", 2)
        await trio.sleep(0.999)
        assert await ask(user, "state::get", AT) == 1
        await trio.sleep(0.001)
        assert await missing(user, "k")
        assert await ask(user, "state::list", {"scope": "s"}) == [2]
        await trio.sleep(0.2)
        assert events.payloads[2:] == [
            {"type": "state", "event_type": "state:deleted", **AT, "old_value": 1, "new_value": None}
        ]
        assert module.statistics().expired == 1


async def test_a_reader_at_the_very_moment_sees_nothing_though_it_is_still_stored(autojump_clock: MockClock) -> None:
    async with state() as (core, user, module):
        await put(user, "k", 1, ttl_ms=1000)
        late = core.deadlines.clock.now() + 1.0
        answers: list[Any] = []

        def look() -> None:
            user.call("state::get", Json.of(AT), lambda one: answers.append(one.result.absent))
            user.call("state::list", Json.of({"scope": "s"}), lambda one: answers.append(one.result.decode()))
            user.call("state::list_groups", Json.of({}), lambda one: answers.append(one.result.decode()))
            answers.append(module.statistics().expired)

        await trio.sleep_until(late)
        look()
        await trio.sleep(1)
        assert sorted(map(repr, answers)) == sorted(map(repr, [0, True, [], {"groups": []}]))


@pytest.mark.parametrize(
    ("function", "payload", "answer", "kinds"),
    [
        ("set", {"value": 2}, {"old_value": None, "new_value": 2}, ["created", "deleted", "created"]),
        (
            "update",
            {"ops": [{"type": "increment", "path": "", "by": 5}]},
            {"old_value": None, "new_value": 5},
            ["created", "deleted", "created"],
        ),
        ("delete", {}, None, ["created", "deleted", "deleted"]),
    ],
)
async def test_a_write_at_the_very_moment_finds_no_key(
    autojump_clock: MockClock, function: str, payload: Any, answer: Any, kinds: list[str]
) -> None:
    async with state() as (core, user, _):
        events = record(user, "events")
        bind(core, user, "state", "events", {})
        await put(user, "k", 1, ttl_ms=1000)
        await put(user, "other", 1)
        await trio.sleep_until(core.clock.now() + 1.0)
        assert await ask(user, f"state::{function}", {**AT, **payload}) == answer
        await trio.sleep(10)
        told = [one for one in events.payloads if one["key"] == "k"]
        assert [one["event_type"] for one in told] == [f"state:{kind}" for kind in kinds]
        assert (told[1]["old_value"], told[2]["old_value"]) == (1, None)
        assert await ask(user, "state::list", {"scope": "s"}) == [1] + ([] if answer is None else [answer["new_value"]])


async def test_set_without_a_time_removes_it_and_an_update_keeps_it_or_gives_another(autojump_clock: MockClock) -> None:
    async with state() as (_, user, module):
        ops = [{"type": "increment", "path": "", "by": 1}]
        for key in ("plain", "kept", "longer", "shorter"):
            await put(user, key, 1, ttl_ms=1000)
        await put(user, "plain", 2)
        await ask(user, "state::update", {"scope": "s", "key": "kept", "ops": ops})
        await ask(user, "state::update", {"scope": "s", "key": "longer", "ops": ops, "ttl_ms": 3000})
        await ask(user, "state::update", {"scope": "s", "key": "shorter", "ops": ops, "ttl_ms": 100})
        await ask(user, "state::update", {"scope": "s", "key": "none", "ops": [], "ttl_ms": 100})
        await trio.sleep(0.5)
        assert await missing(user, "shorter")
        await trio.sleep(1)
        assert await missing(user, "kept")
        assert await ask(user, "state::get", {"scope": "s", "key": "longer"}) == 2
        await trio.sleep(2)
        assert await ask(user, "state::list", {"scope": "s"}) == [2]
        assert module.statistics().expired == 3


async def test_the_time_is_kept_over_a_restart_and_runs_on_meanwhile(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with state(tmp_path) as (_, user, _module):
        await put(user, "soon", 1, ttl_ms=5000)
        await put(user, "later", 2, ttl_ms=60_000)
        await put(user, "kept", 3)
    await trio.sleep(10)
    async with state(tmp_path) as (core, user, module):
        assert await ask(user, "state::list", {"scope": "s"}) == [2, 3]
        await trio.sleep(0.1)
        assert module.statistics().expired == 1
        await trio.sleep(60)
        assert await ask(user, "state::list", {"scope": "s"}) == [3]
        assert (module.statistics().expired, core.deadlines.statistics().timers) == (2, 0)


async def test_ten_thousand_keys_need_one_timer_and_go_together(autojump_clock: MockClock) -> None:
    async with state() as (core, user, module):
        for number in range(10_000):
            user.call(
                "state::set",
                Json.of({"scope": "s", "key": str(number), "value": number, "ttl_ms": 60_000}),
                lambda _: None,
            )
            if number % 1000 == 999:
                await put(user, "soon", 1, ttl_ms=50_000)
        assert len(await ask(user, "state::list", {"scope": "s"})) == 10_001
        timers = core.deadlines.statistics().timers
        assert timers <= 2  # this timer, and the deadline of a call
        await trio.sleep(70)
        assert await ask(user, "state::list_groups") == {"groups": []}
        assert module.statistics().expired == 10_001


@pytest.mark.parametrize(
    ("ttl", "text"),
    [
        (0, "is not between 1 and"),
        (-1, "is not between 1 and"),
        (10**18, "is not between 1 and"),
        (1.5, "expected a whole number"),
        (True, "expected a whole number"),
        ("1", "expected a whole number"),
    ],
)
async def test_a_time_that_is_none_is_refused(ttl: Any, text: str) -> None:
    async with state() as (_, user, _module):
        for function, more in (("set", {"value": 1}), ("update", {"ops": []})):
            with pytest.raises(WireError, match=text) as caught:
                await ask(user, f"state::{function}", {**AT, **more, "ttl_ms": ttl})
            assert caught.value.code == "deserialization_error"
        assert await ask(user, "state::set", {**AT, "value": 1, "ttl_ms": None}) == {"old_value": None, "new_value": 1}


class Clocked(Clock):
    """A wall clock that somebody sets."""

    def __init__(self) -> None:
        super().__init__(epoch=1_700_000_000)
        self.set_by = 0.0

    def wall(self) -> float:
        return super().wall() + self.set_by


async def test_a_clock_that_is_set_moves_the_time_with_it(autojump_clock: MockClock) -> None:
    async with state() as (core, user, module):
        clock = core.clock = core.deadlines.clock = Clocked()
        await put(user, "k", 1, ttl_ms=10_000)
        clock.set_by = -3600.0
        await trio.sleep(60)
        assert await ask(user, "state::get", AT) == 1
        clock.set_by = 0.0
        await put(user, "later", 1, ttl_ms=3_000_000)
        clock.set_by = 3600.0
        assert await missing(user, "k")
        assert await missing(user, "later")
        await trio.sleep(61)  # however far off they were
        assert module.statistics().expired == 2


async def test_a_sweep_that_fails_is_tried_again(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with state() as (_, user, module):
        await put(user, "k", 1, ttl_ms=1000)
        tries: list[int] = []
        kind = type(module.store)
        expire = kind.expire

        def failing(self: Any, now_ms: int, limit: int, on_done: Any, **more: Any) -> None:
            tries.append(now_ms)
            if len(tries) == 1:
                on_done(Failed(StoreError("the disk is full")))
            else:
                expire(self, now_ms, limit, on_done, **more)

        monkeypatch.setattr(kind, "expire", failing)
        await trio.sleep(5)
        assert (len(tries), module.statistics().expired) == (2, 1)
