"""The outbox of durable triggers when the queue takes some events and refuses others: order, memory, and who waits for whom."""

import operator
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from module_harness import ask, bind, record, running
from trio.testing import MockClock

from iii_trio.config import Live, StateSettings
from iii_trio.engine import LATER, Call, Engine, Later, LocalPeer, Outcome
from iii_trio.modules.outbox import OutboxStatistics
from iii_trio.modules.state import StateModule
from iii_trio.protocol import Json
from iii_trio.protocol.errors import StoreError, WireError
from iii_trio.stores import Failed, open_memory

PAGE = 5


@define(eq=False)
class Queue:
    """A queue that says which keys it refuses, and how long it takes; `took` has (key, new value) of what it took."""

    core: Engine
    refused: Callable[[str], bool] = lambda _: False
    takes_s: Callable[[], float | None] = lambda: None
    took: list[tuple[str, int]] = field(factory=list)
    known: set[str] = field(factory=set)
    tries: int = 0

    def enqueue(self, call: Call, data: Json) -> Outcome | Later:
        fields = data.decode()
        self.tries += 1

        def decide() -> Outcome:
            event = fields["data"]
            if self.refused(event["key"]):
                return Outcome.failed(WireError("not this one", "enqueue_error"))
            assert fields["deduplication_key"] not in self.known, "enqueued twice"
            self.known.add(fields["deduplication_key"])
            self.took.append((event["key"], event["new_value"]))
            return Outcome(Json.of({}))

        seconds = self.takes_s()
        if seconds is None:
            return decide()
        self.core.deadlines.after(seconds, lambda: call.finish(decide()))
        return LATER

    def of(self, key: str) -> list[int]:
        """What it took of one key."""
        return [value for name, value in self.took if name == key]


@define(eq=False)
class Bench:
    """A state with one durable trigger for everything, and the queue that its events go into."""

    core: Engine
    user: LocalPeer
    state: StateModule
    queue: Queue

    async def put(self, key: str, value: int) -> None:
        await ask(self.user, "state::set", {"scope": "s", "key": key, "value": value})

    def outbox(self) -> OutboxStatistics:
        statistics = self.state.statistics().outbox
        assert statistics is not None
        assert statistics.held <= 2 * PAGE
        return statistics


@asynccontextmanager
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr("iii_trio.modules.outbox.OUTBOX_PAGE", PAGE)
    async with open_memory() as store:
        state = StateModule(Live(StateSettings()), store.key_value("state"))
        async with running(state) as (core, user):
            queue = Queue(core)
            user.register("engine::queue::enqueue", queue.enqueue)
            record(user, "events")
            bind(core, user, "state", "events", {"durable": True})
            yield Bench(core, user, state, queue)


@pytest.mark.parametrize("count", [1, 2, PAGE, 3 * PAGE])
async def test_a_key_that_is_refused_holds_up_no_other_however_many_events_it_has(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    async with bench(monkeypatch) as one:
        one.queue.refused = lambda key: True
        for number in range(count):
            await one.put("bad", number)
        for number in range(3 * PAGE):
            await one.put("good", number)
        one.queue.refused = lambda key: key == "bad"
        await trio.sleep(30)
        assert one.queue.of("good") == list(range(3 * PAGE))
        await one.put("good", -1)
        await trio.sleep(1)
        assert one.queue.of("good")[-1] == -1
        assert (one.outbox().recorded, one.outbox().waiting, one.outbox().held) == (count, 1, 1)
        one.queue.refused = lambda _: False
        await trio.sleep(30)
        assert one.queue.of("bad") == list(range(count))
        assert (one.outbox().recorded, one.outbox().held) == (0, 0)


async def test_a_queue_that_refuses_everything_holds_up_no_other_queue(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(monkeypatch) as one:
        one.core.triggers.unregister("events")
        for name in ("shut", "open"):
            record(one.user, name)
            bind(one.core, one.user, "state", name, {"key": name, "durable": True, "queue": name})
        one.queue.refused = lambda key: key == "shut"
        for number in range(4 * PAGE):
            await one.put("shut", number)
            await one.put("open", number)
            assert one.queue.of("open") == [*range(number + 1)]


async def test_a_key_that_is_refused_holds_up_no_other_after_a_restart_either(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iii_trio.modules.outbox.OUTBOX_PAGE", PAGE)
    async with open_memory() as store:
        queue: Queue | None = None
        for refused in (("bad", "worse", "good"), ("bad",)):
            async with running(StateModule(Live(StateSettings()), store.key_value("state"))) as (core, user):
                queue = Queue(core, partial(operator.contains, refused))
                user.register("engine::queue::enqueue", queue.enqueue)
                record(user, "events")
                bind(core, user, "state", "events", {"durable": True})
                for number in range(3 * PAGE if len(refused) > 1 else 0):
                    for key in refused:
                        await ask(user, "state::set", {"scope": "s", "key": key, "value": number})
                await trio.sleep(60)
        assert queue is not None
        assert (queue.of("good"), queue.of("worse")) == ([*range(3 * PAGE)],) * 2
        assert queue.of("bad") == []


async def test_where_everything_is_refused_looking_costs_little(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench(monkeypatch) as one:
        one.queue.refused = lambda _: True
        for number in range(20 * PAGE):
            await one.put(f"k{number}", number)
        await trio.sleep(100)
        before = one.queue.tries
        await trio.sleep(100)
        assert one.queue.tries - before <= 2 * PAGE * 11
        one.queue.refused = lambda _: False
        await trio.sleep(200)
        assert sorted(value for _, value in one.queue.took) == list(range(20 * PAGE))


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_is_refused_and_when_each_key_keeps_its_order_and_each_event_gets_in_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(seed)
    keys = [f"k{number}" for number in range(dice.choice((1, 3, 8, 20)))]
    async with bench(monkeypatch) as one:
        stuck: set[str] = set()
        kind = type(one.state.store)
        delete, scan = kind.delete, kind.scan

        def sometimes(self: Any, scope: str, key: str, on_done: Any, **more: Any) -> None:
            if self.space == "state/outbox" and dice.random() < 0.1:
                on_done(Failed(StoreError("the store is busy")))
            else:
                delete(self, scope, key, on_done, **more)

        def slowly(self: Any, scope: str, look: Any, on_done: Any, **more: Any) -> None:
            def done(result: Any) -> None:
                one.core.deadlines.after(dice.choice((0.0, 0.1, 3.0)), lambda: on_done(result))

            scan(self, scope, look, done, **more)

        monkeypatch.setattr(kind, "delete", sometimes)
        monkeypatch.setattr(kind, "scan", slowly)
        one.queue.refused = lambda key: key in stuck or dice.random() < 0.2
        one.queue.takes_s = lambda: dice.choice((None, 0.0, 0.05, 1.5))
        written: dict[str, list[int]] = {key: [] for key in keys}
        for number in range(120):
            if dice.random() < 0.1:
                stuck ^= {dice.choice(keys)}
            key = dice.choice(keys)
            await one.put(key, number)
            written[key].append(number)
            if dice.random() < 0.1:
                await trio.sleep(dice.choice((0.01, 1, 5, 15)))
            one.outbox()
        for key in keys:
            assert one.queue.of(key) == written[key][: len(one.queue.of(key))]
        stuck = {keys[0]} if len(keys) > 1 else set()
        await trio.sleep(1000)
        for key in set(keys) - stuck:
            assert one.queue.of(key) == written[key]
        stuck.clear()
        await trio.sleep(1000)
        assert {key: one.queue.of(key) for key in keys} == written
        assert (one.outbox().recorded, one.outbox().held, one.outbox().waiting) == (0, 0, 0)
