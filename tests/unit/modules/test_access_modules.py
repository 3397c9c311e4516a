"""What modules make of sessions: filtered lists, and deliveries that name no caller, whoever wrote the payload."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from iii_trio.config import Live, PubSubSettings, QueueModuleSettings
from iii_trio.engine import Clock, ExposeFilter, Pattern, Rules, open_engine
from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.modules.queue import QueueModule
from iii_trio.stores import open_memory
from iii_trio.testing.raw import RawPort, RawWorker

EXPOSE = tuple(
    ExposeFilter(pattern=Pattern.of(pattern))
    for pattern in (
        "public::*",
        "engine::functions::*",
        "engine::registered-triggers::list",
        "publish",
        "iii::durable::publish",
    )
)


@frozen
class World:
    """Modules, a trusted worker that serves `public::f` and `private::f`, and a guest under access control."""

    guarded: RawPort
    served: RawWorker
    guest: RawWorker


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    """An engine with the modules that these tests need."""
    async with (
        open_engine(clock=Clock(epoch=1_700_000_000)) as core,
        open_memory() as store,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(IntrospectionModule().run, core)
        await nursery.start(PubSubModule(Live(PubSubSettings())).run, core)
        await nursery.start(QueueModule(Live(QueueModuleSettings()), store.job_log()).run, core)
        trusted, guarded = RawPort(core, nursery), RawPort(core, nursery, Rules(expose=EXPOSE))
        served = await trusted.connect(name="server")
        for function_id in ("public::f", "private::f"):
            served.register(function_id, description=function_id)
        await served.settled()
        yield World(guarded, served, await guarded.connect(name="guest"))
        nursery.cancel_scope.cancel()


def bind(worker: RawWorker, binding_id: str, trigger_type: str, function_id: str, config: Any) -> None:
    """Send a `registertrigger`."""
    frame = {"type": "registertrigger", "id": binding_id, "trigger_type": trigger_type, "function_id": function_id}
    worker.send({**frame, "config": config})


async def test_a_session_sees_what_it_may_call(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        listed = await world.guest.ask("engine::functions::list", {"include_internal": True})
        seen = {row["function_id"] for row in listed["result"]["functions"]}
        assert {"public::f", "engine::functions::list", "engine::log::info"} <= seen
        assert not seen & {"private::f", "engine::health::check", "engine::workers::list"}
        info = await world.guest.ask("engine::functions::info", {"function_id": "private::f"})
        assert info["error"]["code"] == "FORBIDDEN"
        info = await world.guest.ask(
            "engine::functions::info", {"function_ids": ["public::f", "private::f", "nowhere"]}
        )
        assert [row.get("error") for row in info["result"]["functions"]] == [None, "forbidden", "not_found"]
        assert (await world.guest.ask("engine::workers::list"))["error"]["code"] == "FORBIDDEN"


async def test_a_session_sees_triggers_of_what_it_may_call(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        bind(world.served, "a", "subscribe", "public::f", {"topic": "t"})
        bind(world.served, "b", "subscribe", "private::f", {"topic": "t"})
        await world.served.settled()
        listed = await world.guest.ask("engine::registered-triggers::list", {})
        assert [row["id"] for row in listed["result"]["registered_triggers"]] == ["a"]


async def test_a_session_is_told_of_functions_that_it_may_call(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.guest.register("public::watch")
        bind(world.guest, "w", "engine::functions-available", "public::watch", {})
        await world.guest.settled()
        world.served.register("public::g")
        world.served.register("private::g")
        rows = (await world.guest.next("invokefunction"))["data"]["functions"]
        seen = {row["function_id"] for row in rows}
        assert "public::g" in seen
        assert not any(function_id.startswith("private::") for function_id in seen)


@pytest.mark.parametrize("key", ['"_caller_worker_id"', '"\\u005fcaller_worker\\u005fid"'])
@pytest.mark.parametrize("way", ["enqueue", "topic", "publish"])
async def test_a_forged_caller_does_not_arrive(autojump_clock: MockClock, way: str, key: str) -> None:
    async with open_world() as world:
        forged = f'{{{key}:"forged","a":1}}'
        head = '{"type":"invokefunction","action":{"type":"void"},'
        if way == "enqueue":
            head = head.replace('{"type":"void"}', '{"type":"enqueue","queue":"default"}')
            frame = f'{head}"function_id":"public::f","data":{forged}}}'
        elif way == "topic":
            bind(world.served, "a", "durable:subscriber", "public::f", {"topic": "t"})
            frame = f'{head}"function_id":"iii::durable::publish","data":{{"topic":"t","data":{forged}}}}}'
        else:
            bind(world.served, "a", "subscribe", "public::f", {"topic": "t"})
            frame = f'{head}"function_id":"publish","data":{{"topic":"t","data":{forged}}}}}'
        await world.served.settled()
        world.guest.send_text(frame.encode())
        call = await world.served.next("invokefunction", function_id="public::f")
        assert call["data"] == {"a": 1}
        world.served.answer(call, result=None)
        await world.served.settled()
