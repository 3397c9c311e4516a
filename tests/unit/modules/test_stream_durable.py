"""Durable `stream` triggers: every event is recorded before its caller is answered, and delivered by the queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import pytest
import trio
from module_harness import Recorder, ask, bind, record, running
from stream_harness import address
from trio.testing import MockClock

from iii_trio.config import Live, QueueModuleSettings, QueueSettings, StreamSettings
from iii_trio.engine import NOTHING, Engine, LocalPeer, Outcome, open_local
from iii_trio.modules.queue import QueueModule
from iii_trio.modules.stream import StreamModule
from iii_trio.protocol import Json
from iii_trio.protocol.errors import TriggerRejected, WireError
from iii_trio.stores import open_memory

DURABLE = {"stream_name": "s", "durable": True}


@asynccontextmanager
async def house(**queues: QueueSettings) -> AsyncIterator[tuple[Engine, LocalPeer, StreamModule]]:
    async with open_memory() as store:
        module = StreamModule(Live(StreamSettings()), store, listen=False)
        settings = QueueModuleSettings(queue_configs=MappingProxyType(queues))
        queue = QueueModule(Live(settings), store.job_log())
        async with running(module, queue) as (core, user):
            yield core, user, module


@asynccontextmanager
async def worker(core: Engine, config: Any = DURABLE, answer: Outcome = NOTHING) -> AsyncIterator[Recorder]:
    async with open_local(core, "worker") as peer:
        events = record(peer, "events", answer)
        bind(core, peer, "stream", "events", config, metadata={"mine": 1})
        yield events


def told(events: Recorder) -> list[tuple[Any, Any]]:
    return sorted((one["event"]["type"], repr(one["event"].get("data"))) for one in events.payloads)


async def test_writes_removals_and_sends_arrive_once(autojump_clock: MockClock) -> None:
    async with house() as (core, user, module), worker(core) as events:
        await ask(user, "stream::set", {**address(), "data": 1})
        await ask(user, "stream::set", {**address(), "data": 2})
        ops = [{"type": "increment", "path": "", "by": 1}]
        await ask(user, "stream::update", {**address(), "ops": ops})
        await ask(user, "stream::delete", address())
        await ask(user, "stream::delete", address())  # nothing was there: no event
        await ask(user, "stream::update", {**address("none"), "ops": []})
        await ask(user, "stream::set", {**address(name="other"), "data": 1})
        assert await ask(user, "stream::send", {**address(None), "type": "t", "data": 9}) is None
        await trio.sleep(60)
        assert told(events) == [("create", "1"), ("delete", "3"), ("event", "None"), ("update", "2"), ("update", "3")]
        assert events.metadata == [{"mine": 1}] * 5
        one = next(one for one in events.payloads if one["event"]["type"] == "create")
        assert {name: one[name] for name in ("type", "streamName", "groupId", "id")} == {
            "type": "stream",
            "streamName": "s",
            "groupId": "g",
            "id": "i",
        }
        stamps = sorted(one["timestamp"] for one in events.payloads)
        assert len(set(stamps)) == 5
        outbox = module.statistics().outbox
        assert outbox is not None
        assert (outbox.recorded, outbox.enqueued) == (0, 5)


async def test_what_is_written_while_the_worker_is_away_waits_and_failures_are_tried_again(
    autojump_clock: MockClock,
) -> None:
    async with house() as (core, user, module):
        async with worker(core, {**DURABLE, "group_id": "g"}):
            pass
        assert module.statistics().bindings == 1
        await ask(user, "stream::set", {**address(), "data": 1})
        await ask(user, "stream::set", {**address(group="elsewhere"), "data": 1})
        async with worker(core, {**DURABLE, "group_id": "g"}, Outcome.failed(WireError("no", "NO"))) as events:
            await trio.sleep(600)
            assert told(events) == [("create", "1")] * 3
            assert len(await ask(user, "engine::queue::dlq_messages", {"topic": "default"})) == 1


async def test_what_a_provider_keeps_is_recorded_too(autojump_clock: MockClock) -> None:
    async with house() as (core, user, _), worker(core) as events:
        record(user, "stream::set(s)", Outcome(Json.of({"old_value": None, "new_value": 5})))
        record(user, "stream::delete(s)", Outcome(Json.of({"old_value": 5})))
        assert await ask(user, "stream::set", {**address(), "data": 4}) == {"old_value": None, "new_value": 5}
        assert await ask(user, "stream::delete", address()) == {"old_value": 5}
        await trio.sleep(60)
        assert told(events) == [("create", "5"), ("delete", "5")]


async def test_the_outbox_and_the_triggers_are_no_streams(autojump_clock: MockClock) -> None:
    async with house() as (core, user, _):
        async with worker(core):
            pass
        await ask(user, "stream::set", {**address(), "data": 1})
        assert await ask(user, "stream::list_all") == {"stream": [{"id": "s", "groups": ["g"]}], "count": 1}


async def test_a_full_outbox_refuses_the_events_it_is_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iii_trio.modules.outbox.OUTBOX_EVENTS", 0)
    async with house() as (core, user, _), worker(core) as events:
        for name, more, code in (
            ("set", {"data": 1}, "STREAM_SET_ERROR"),
            ("update", {"ops": []}, "STREAM_UPDATE_ERROR"),
            ("delete", {}, "STREAM_DELETE_ERROR"),
            ("send", {"type": "t", "data": 1, "id": "i"}, "STREAM_SEND_ERROR"),
        ):
            with pytest.raises(WireError, match="too many events of durable triggers wait") as refused:
                await ask(user, f"stream::{name}", {**address(), **more})
            assert refused.value.code == code
        assert (await user.invoke("stream::get", Json.of(address()))).absent
        await ask(user, "stream::set", {**address(name="other"), "data": 1})
        assert events.payloads == []


async def test_an_event_that_its_queue_refuses_holds_up_its_own_kind_and_no_other(autojump_clock: MockClock) -> None:
    items = QueueSettings(type="fifo", message_group_field="id")
    async with house(items=items) as (core, user, module), worker(core, {**DURABLE, "queue": "items"}) as events:
        await ask(
            user, "stream::send", {**address(None), "type": "t", "data": 1}
        )  # no item, which the queue insists on
        for number in range(20):
            await ask(user, "stream::set", {**address(f"i{number % 4}"), "data": number})
        await trio.sleep(5)
        assert len(events.payloads) == 20
        outbox = module.statistics().outbox
        assert outbox is not None
        assert (outbox.recorded, outbox.waiting) == (1, 1)


async def test_without_a_queue_a_durable_trigger_is_refused() -> None:
    async with (
        open_memory() as store,
        running(StreamModule(Live(StreamSettings()), store, listen=False)) as (core, user),
    ):
        record(user, "events")
        with pytest.raises(TriggerRejected, match="needs the queue"):
            bind(core, user, "stream", "events", DURABLE)
        with pytest.raises(TriggerRejected, match="Failed to deserialize stream trigger: field `durable`"):
            bind(core, user, "stream", "events", {**DURABLE, "durable": 1})


async def test_triggers_of_workers_that_do_not_come_back_are_listed_and_let_go(autojump_clock: MockClock) -> None:
    async with house() as (core, user, module):
        async with worker(core, {**DURABLE, "group_id": "g"}):
            listed = await ask(user, "stream::list_triggers")
            assert listed["triggers"][0]["live"]
            assert await ask(user, "stream::forget_trigger", {"function_id": "events"}) == {"forgotten": 0}
        row = {"function_id": "events", "namespace": "default", "stream_name": "s", "group_id": "g", "item_id": None}
        row |= {"queue": "default", "condition_function_id": None, "live": False}
        assert await ask(user, "stream::list_triggers", {}) == {"triggers": [row], "waiting": 0}
        with pytest.raises(WireError, match="missing field `function_id`"):
            await ask(user, "stream::forget_trigger", {})
        assert await ask(user, "stream::forget_trigger", {"function_id": "events", "namespace": "n"}) == {
            "forgotten": 0
        }
        assert await ask(user, "stream::forget_trigger", {"function_id": "events"}) == {"forgotten": 1}
        await ask(user, "stream::set", {**address(), "data": 1})
        assert await ask(user, "stream::list_triggers") == {"triggers": [], "waiting": 0}
        async with open_local(core, "worker") as peer:
            events = record(peer, "events")
            await trio.sleep(60)
            assert events.payloads == []
        assert module.statistics().bindings == 0
