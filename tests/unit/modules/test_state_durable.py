"""Durable state triggers: recorded with the write, delivered by the queue, whoever is away or restarts meanwhile."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import trio
from attrs import define
from module_harness import Recorder, ask, bind, record
from trio.testing import MockClock

from iii_trio.config import Live, QueueModuleSettings, QueueSettings, StateSettings
from iii_trio.engine import NOTHING, Clock, Engine, LocalPeer, Outcome, open_engine, open_local
from iii_trio.modules.queue import QueueModule
from iii_trio.modules.state import StateModule
from iii_trio.protocol import Json
from iii_trio.protocol.errors import StoreError, TriggerRejected, WireError
from iii_trio.stores import Failed, Fsync, Store, WaitingKeyValue, open_memory, open_sqlite

AT = {"scope": "s", "key": "k"}
DURABLE = {"scope": "s", "durable": True}
FIFO = {"order": QueueSettings(type="fifo", message_group_field="key", backoff_ms=10)}


@define(eq=False)
class House:
    """An engine with state and queue, each of which can be ended and started."""

    core: Engine
    nursery: trio.Nursery
    stores: tuple[Store, Store]
    queues: Mapping[str, QueueSettings]
    state: StateModule
    _ends: dict[str, trio.CancelScope]

    async def start(self, name: str, module: Any) -> None:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with trio.CancelScope() as self._ends[name]:
                self.core.modules[name] = "running"
                await module.run(self.core, task_status=task_status)

        await self.nursery.start(run)

    async def start_queue(self) -> None:
        settings = QueueModuleSettings(queue_configs=MappingProxyType(dict(self.queues)))
        await self.start("queue", QueueModule(Live(settings), self.stores[1].job_log()))

    async def start_state(self) -> None:
        self.state = StateModule(self.state.settings, self.stores[0].key_value("state"))
        await self.start("state", self.state)

    async def stop(self, name: str) -> None:
        self._ends[name].cancel()
        self.core.modules[name] = "restarting"
        await trio.testing.wait_all_tasks_blocked()

    def outbox(self) -> int:
        statistics = self.state.statistics().outbox
        return -1 if statistics is None else statistics.recorded


@asynccontextmanager
async def house(
    directory: Path | None = None, *, queue: bool = True, queues: Mapping[str, QueueSettings] | None = None
) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        if directory is None:
            stores = [await stack.enter_async_context(open_memory()) for _ in range(2)]
        else:
            opening = [open_sqlite(directory / name, inline=True, fsync=Fsync.NEVER) for name in ("s.db", "q.db")]
            stores = [await stack.enter_async_context(one) for one in opening]
        core = await stack.enter_async_context(open_engine(clock=Clock(epoch=1_700_000_000)))
        nursery = await stack.enter_async_context(trio.open_nursery())
        state = StateModule(Live(StateSettings()), stores[0].key_value("state"))
        one = House(core, nursery, (stores[0], stores[1]), queues or {}, state, {})
        await one.start_state()
        if queue:
            await one.start_queue()
        yield one
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def worker(
    one: House, config: Any = DURABLE, answer: Outcome = NOTHING, **more: Any
) -> AsyncIterator[tuple[LocalPeer, Recorder]]:
    """A worker with the handler `events`, bound; leaving is its disconnect."""
    async with open_local(one.core, "worker") as peer:
        events = record(peer, "events", answer)
        bind(one.core, peer, "state", "events", config, **more)
        yield peer, events


async def put(peer: LocalPeer, value: Any, key: str = "k", **more: Any) -> None:
    await ask(peer, "state::set", {"scope": "s", "key": key, "value": value, **more})


def event(kind: str, old: Any, new: Any, key: str = "k") -> dict[str, Any]:
    told = {"type": "state", "event_type": f"state:{kind}", "scope": "s", "key": key}
    return {**told, "old_value": old, "new_value": new}


async def test_every_change_arrives_once_through_the_queue(autojump_clock: MockClock) -> None:
    async with house() as one, worker(one, metadata={"mine": 1}) as (peer, events):
        await put(peer, 1)
        await put(peer, 2)
        await ask(peer, "state::update", {**AT, "ops": [{"type": "increment", "path": "", "by": 1}]})
        await ask(peer, "state::update", {**AT, "ops": [{"type": "increment", "path": "x", "by": 1}]})
        await ask(peer, "state::update", {**AT, "key": "none", "ops": []})  # writes nothing, tells nothing
        await ask(peer, "state::delete", AT)
        await ask(peer, "state::delete", AT)
        expected = [
            event("created", None, 1),
            event("updated", 1, 2),
            event("updated", 2, 3),
            event("updated", 3, 3),
            event("deleted", 3, None),
            event("deleted", None, None),
        ]
        seen = await events.wait(6)
        assert sorted(map(repr, seen)) == sorted(map(repr, expected))
        assert events.metadata == [{"mine": 1}] * 6
        await trio.sleep(60)
        assert (len(events.payloads), one.outbox()) == (6, 0)


async def test_a_failing_handler_is_tried_again_and_ends_as_a_dead_letter(autojump_clock: MockClock) -> None:
    fails = Outcome.failed(WireError("not today", "NOPE"))
    async with house() as one, worker(one, answer=fails, metadata={"mine": 1}) as (peer, events):
        await put(peer, 1)
        await trio.sleep(600)
        assert [one["new_value"] for one in events.payloads] == [1, 1, 1]
        assert [one.get("iii.queue", {}).get("attempt") for one in events.metadata] == [None, 2, 3]
        assert all(one["mine"] == 1 for one in events.metadata)
        [letter] = await ask(peer, "engine::queue::dlq_messages", {"topic": "default"})
        assert letter["payload"] == event("created", None, 1)


async def test_a_fifo_queue_keeps_the_order_of_the_writes_to_a_key(autojump_clock: MockClock) -> None:
    config = {**DURABLE, "queue": "order"}
    async with house(queues=FIFO) as one, worker(one, config) as (peer, events):
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(put, peer, number, f"k{number % 3}")
        seen = await events.wait(60)
        for key in ("k0", "k1", "k2"):
            history = [(one["old_value"], one["new_value"]) for one in seen if one["key"] == key]
            assert [old for old, _ in history] == [None, *(new for _, new in history[:-1])]


async def test_the_condition_is_asked_when_the_event_is_delivered(autojump_clock: MockClock) -> None:
    config = {**DURABLE, "condition_function_id": "wanted"}
    async with house() as one, open_local(one.core, "judge") as judge:
        wanted = record(judge, "wanted", Outcome(Json.of(False)))
        async with worker(one, config) as (peer, events):
            await put(peer, 1)
            assert await wanted.wait(1) == [event("created", None, 1)]
            wanted.answer = Outcome(Json.of(True))
            await put(peer, 2)
            assert await events.wait(1) == [event("updated", 1, 2)]
            await trio.sleep(60)
            assert len(events.payloads) == 1


async def test_what_is_written_while_the_worker_is_away_waits_for_it(autojump_clock: MockClock) -> None:
    async with house() as one, open_local(one.core, "writer") as writer:
        async with worker(one):
            pass
        await put(writer, 1)
        await put(writer, 2)
        [row] = (await ask(writer, "state::list_triggers"))["triggers"]
        assert (row["function_id"], row["scope"], row["key"], row["live"]) == ("events", "s", None, False)
        async with worker(one) as (_, events):
            assert sorted(one["new_value"] for one in await events.wait(2)) == [1, 2]
            assert (await ask(writer, "state::list_triggers"))["triggers"][0]["live"]


async def test_who_unregisters_or_is_forgotten_is_told_no_more(autojump_clock: MockClock) -> None:
    async with house() as one, open_local(one.core, "writer") as writer:
        async with worker(one):
            one.core.triggers.unregister("events")
            await put(writer, 1)
            assert await ask(writer, "state::list_triggers") == {"triggers": [], "waiting": 0}
        async with worker(one):
            assert await ask(writer, "state::forget_trigger", {"function_id": "events"}) == {"forgotten": 0}
        assert await ask(writer, "state::forget_trigger", {"function_id": "events"}) == {"forgotten": 1}
        await put(writer, 2)
        async with open_local(one.core, "worker") as peer:
            events = record(peer, "events")
            await trio.sleep(60)
            assert events.payloads == []


async def test_a_trigger_that_is_registered_anew_watches_only_its_new_place(autojump_clock: MockClock) -> None:
    async with house() as one, worker(one, {**DURABLE, "key": "old"}) as (peer, events):
        bind(one.core, peer, "state", "events", {**DURABLE, "key": "new"})
        await put(peer, 1, "old")
        await put(peer, 1, "new")
        await trio.sleep(60)
        assert [told["key"] for told in events.payloads] == ["new"]
        bind(one.core, peer, "state", "events", {"scope": "s", "key": "plain"})
        for key in ("old", "new", "plain"):
            await put(peer, 2, key)
        await trio.sleep(60)
        assert [told["key"] for told in events.payloads] == ["new", "plain"]
        bind(one.core, peer, "state", "events", DURABLE)
        await put(peer, 3, "plain")
        await trio.sleep(60)
        assert [told["key"] for told in events.payloads] == ["new", "plain", "plain"]


async def test_a_worker_that_comes_back_without_durable_gets_each_event_once(autojump_clock: MockClock) -> None:
    async with house() as one, open_local(one.core, "writer") as writer:
        async with worker(one):
            async with open_local(one.core, "second") as second:  # the first one holds it still
                bind(one.core, second, "state", "events", {"scope": "s"}, id="plain")
            assert len((await ask(writer, "state::list_triggers"))["triggers"]) == 1
        async with worker(one, {"scope": "s"}) as (_, events):
            assert (await ask(writer, "state::list_triggers"))["triggers"] == []
            await put(writer, 1)
            await trio.sleep(60)
            assert len(events.payloads) == 1
        async with worker(one):
            pass
        async with worker(one, {"scope": "other"}) as (peer, events):
            bind(one.core, peer, "state", "events", {"scope": "s"})  # the same id, elsewhere
            await put(writer, 2)
            await trio.sleep(60)
            assert len(events.payloads) == 1


async def test_who_takes_over_without_durable_gets_each_event_once_when_the_other_has_left(
    autojump_clock: MockClock,
) -> None:
    async with house() as one, open_local(one.core, "writer") as writer, open_local(one.core, "new") as new:
        async with worker(one) as (peer, _):
            bind(one.core, peer, "state", "events", {"scope": "s"}, id="both")
        assert len((await ask(writer, "state::list_triggers"))["triggers"]) == 1  # it wanted both, and comes back
        async with worker(one):
            bind(one.core, new, "state", "events", {"scope": "s"}, id="plain")
        assert (await ask(writer, "state::list_triggers"))["triggers"] == []
        events = record(new, "events")
        await put(writer, 1)
        await trio.sleep(60)
        assert len(events.payloads) == 1


async def test_watches_come_and_go_at_one_place_in_any_order() -> None:
    async with house() as one, open_local(one.core, "worker") as peer:
        for number in range(4):
            record(peer, f"f{number}")
            bind(one.core, peer, "state", f"f{number}", DURABLE, id=f"b{number}")
        bind(one.core, peer, "state", "f1", {**DURABLE, "condition_function_id": "f0"}, id="b1")
        one.core.triggers.unregister("b2")
        life = one.state._life
        assert life is not None
        durable = life.telling.watches.durable
        here = [(watch.function_id, watch.condition) for watch in durable.places["s", None]]
        assert here == [("f0", None), ("f3", None), ("f1", "f0")]
        for number in (0, 1, 3):
            one.core.triggers.unregister(f"b{number}")
        assert not durable.places


async def test_what_the_store_does_not_let_go_of_is_taken_out_later(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house() as one, worker(one) as (peer, events):
        kind = type(one.state.store)
        delete = kind.delete
        tries: list[str] = []

        def busy(self: Any, scope: str, key: str, on_done: Any, **more: Any) -> None:
            tries.append(key)
            if len(tries) <= 3:
                on_done(Failed(StoreError("the store is busy")))
            else:
                delete(self, scope, key, on_done, **more)

        monkeypatch.setattr(kind, "delete", busy)
        for number in range(2):
            await put(peer, number)
        await events.wait(2)
        await trio.sleep(60)
        assert len(tries) == 5
        outbox = WaitingKeyValue(one.stores[0].key_value("state/outbox"))
        assert await outbox.scopes() == []
        assert len(events.payloads) == 2


async def test_two_workers_with_one_function_get_each_event_once_between_them(autojump_clock: MockClock) -> None:
    async with house() as one, worker(one, id="a") as (peer, events), open_local(one.core, "second") as second:
        bind(one.core, second, "state", "events", DURABLE, id="b")
        await put(peer, 1)
        await trio.sleep(60)
        assert len(events.payloads) == 1
        one.core.triggers.unregister("a")
        await put(peer, 2)
        assert len(await events.wait(2)) == 2


async def test_events_wait_for_a_queue_that_restarts_and_go_at_once_when_it_is_back(autojump_clock: MockClock) -> None:
    async with house(queues=FIFO) as one, worker(one, {**DURABLE, "queue": "order"}) as (peer, events):
        await one.stop("queue")
        bind(one.core, peer, "state", "events", {**DURABLE, "queue": "order"}, id="second")  # a restart refuses nobody
        for number in range(5):
            await put(peer, number)
        await trio.sleep(30)  # the pause between tries has grown
        assert (events.payloads, one.outbox()) == ([], 5)
        await one.start_queue()
        before = trio.current_time()
        assert [told["new_value"] for told in await events.wait(5)] == [0, 1, 2, 3, 4]
        assert trio.current_time() - before < 0.1


async def test_the_log_says_why_events_wait_also_after_the_queue_was_away(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "iii_trio.modules.outbox")
    queues = {"order": QueueSettings(type="fifo", message_group_field="nothing", backoff_ms=10)}
    async with house(queues=queues) as one, worker(one, {**DURABLE, "queue": "order"}) as (peer, _):
        await one.stop("queue")
        await put(peer, 1)
        await trio.sleep(30)
        await one.start_queue()
        await trio.sleep(30)
        said = [(record.levelname, record.getMessage().rpartition("again: ")[2]) for record in caplog.records]
        assert [(level, text.partition(":")[0]) for level, text in said] == [
            ("INFO", "function_not_found"),
            ("WARNING", "enqueue_error"),
        ]
        assert "requires field 'nothing'" in said[1][1]


async def test_what_does_not_fit_in_memory_is_read_back_in_order(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iii_trio.modules.outbox.OUTBOX_PAGE", 3)
    async with house(queues=FIFO) as one, worker(one, {**DURABLE, "queue": "order"}) as (peer, events):
        await one.stop("queue")
        for number in range(20):
            await put(peer, number)
        await trio.sleep(1)
        statistics = one.state.statistics().outbox
        assert statistics is not None
        assert (statistics.recorded, statistics.held) == (20, 3)
        await one.start_queue()
        await put(peer, 20)
        await trio.sleep(60)
        assert [told["new_value"] for told in events.payloads] == list(range(21))
        assert one.outbox() == 0


async def test_an_unfinished_outbox_is_delivered_by_the_next_engine(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with house(tmp_path, queues=FIFO) as one, worker(one, {**DURABLE, "queue": "order"}) as (peer, _):
        await one.stop("queue")
        for number in range(4):
            await put(peer, number)
    async with house(tmp_path, queues=FIFO) as one, open_local(one.core, "writer") as writer:
        await put(writer, 4)  # the trigger is known before its worker is back
        async with worker(one, {**DURABLE, "queue": "order"}) as (_, events):
            assert [told["new_value"] for told in await events.wait(5)] == [0, 1, 2, 3, 4]
            await trio.sleep(60)
            assert (len(events.payloads), one.outbox()) == (5, 0)


async def test_an_event_that_the_queue_has_already_is_not_delivered_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with house(tmp_path) as one, worker(one) as (peer, events):
        space = one.stores[0].key_value("state/outbox")
        kept: list[tuple[str, bytes]] = []

        def copied(items: Any) -> None:
            kept.extend(items)

        await one.stop("queue")
        await put(peer, 1)
        await WaitingKeyValue(space).scan("default", copied)
        await one.start_queue()
        await events.wait(1)
    # as if the engine had died after the receipt and before the row was taken out
    async with open_sqlite(tmp_path / "s.db", inline=True) as store:
        for key, row in kept:
            store.key_value("state/outbox").set("default", key, row, lambda result: result.unwrap())
    async with house(tmp_path) as one, worker(one) as (_, events):
        await trio.sleep(60)
        assert (events.payloads, one.outbox(), len(kept)) == ([], 0, 1)


async def test_a_restart_of_the_state_module_loses_nothing(autojump_clock: MockClock) -> None:
    async with house() as one, worker(one) as (peer, events):
        await one.stop("queue")
        for number in range(3):
            await put(peer, number)
        peer.call("state::set", Json.of({**AT, "value": 3}), lambda _: None)  # on its way while the module ends
        one._ends["state"].cancel()
        await one.start_state()
        await put(peer, 4)
        await one.start_queue()
        assert sorted(told["new_value"] for told in await events.wait(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"durable": "yes"}, "field `durable`: invalid type: a string, expected a boolean"),
        ({"durable": True, "queue": ""}, "field `queue` is empty"),
        ({"durable": True, "queue": "typo"}, "there is no queue 'typo'"),
    ],
)
async def test_a_config_that_does_not_fit_is_refused(config: Any, text: str) -> None:
    async with house() as one, open_local(one.core, "worker") as peer:
        with pytest.raises(TriggerRejected, match=text):
            bind(one.core, peer, "state", "events", config)
        assert (await ask(peer, "state::list_triggers"))["triggers"] == []


async def test_without_a_queue_a_durable_trigger_is_refused_and_others_are_not() -> None:
    async with house(queue=False) as one, worker(one, {"queue": "ignored"}) as (peer, events):
        with pytest.raises(TriggerRejected, match="needs the queue: add the built-in worker 'queue'"):
            bind(one.core, peer, "state", "events", DURABLE, id="durable")
        await put(peer, 1)
        assert len(await events.wait(1)) == 1


async def test_a_full_outbox_refuses_the_writes_it_is_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iii_trio.modules.outbox.OUTBOX_EVENTS", 2)
    async with house() as one, worker(one) as (peer, events):
        await one.stop("queue")
        await put(peer, 1)
        await put(peer, 2)
        for name, more in (("set", {"value": 3}), ("delete", {}), ("update", {"ops": []})):
            with pytest.raises(WireError, match="too many events of durable triggers wait"):
                await ask(peer, f"state::{name}", {**AT, **more})
        assert await ask(peer, "state::get", AT) == 2
        await ask(peer, "state::set", {"scope": "other", "key": "k", "value": 1})
        await one.start_queue()
        await events.wait(2)
        await put(peer, 4)
        assert len(await events.wait(3)) == 3


async def test_triggers_that_are_switched_off_record_nothing(autojump_clock: MockClock) -> None:
    async with house() as one, worker(one) as (peer, events):
        one.state.settings.set(StateSettings(triggers_enabled=False))
        await put(peer, 1, ttl_ms=1000)
        await trio.sleep(60)
        one.state.settings.set(StateSettings())
        await put(peer, 2)
        assert await events.wait(1) == [event("created", None, 2)]


async def test_a_key_whose_time_is_up_tells_durably_too(autojump_clock: MockClock) -> None:
    async with house() as one, worker(one) as (peer, events):
        await put(peer, 1, ttl_ms=5000)
        await events.wait(1)
        await trio.sleep(6)
        assert (await events.wait(2))[1] == event("deleted", 1, None)
        assert one.outbox() == 0


async def test_a_refused_write_records_nothing(autojump_clock: MockClock) -> None:
    async with house() as one, worker(one) as (peer, events):
        await put(peer, [1, 2, 3])
        one.state.settings.set(StateSettings(max_value_bytes=3))
        with pytest.raises(WireError, match="max_value_bytes"):
            await ask(peer, "state::update", {**AT, "ops": [{"type": "append", "value": 4}]})
        await trio.sleep(60)
        assert (len(events.payloads), one.outbox()) == (1, 0)


async def test_a_write_that_meets_an_expired_key_is_told_behind_its_end_also_when_read_back(
    autojump_clock: MockClock,
) -> None:
    async with house(queues=FIFO) as one, worker(one, {**DURABLE, "queue": "order"}) as (peer, events):
        await one.stop("queue")
        await put(peer, 1, ttl_ms=2)
        await trio.sleep(0.005)  # its time is up, and the sweep has not come
        await put(peer, 2)
        one._ends["state"].cancel()
        await one.start_state()  # nothing is in memory any more
        await one.start_queue()
        expected = [event("created", None, 1), event("deleted", 1, None), event("created", None, 2)]
        assert await events.wait(3) == expected
