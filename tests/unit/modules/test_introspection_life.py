"""Availability events, health, the task tree, and the loggers of old SDKs."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from module_harness import ask, bind, record, running

from iii_trio.__about__ import __version__
from iii_trio.engine import Call, Engine, LocalPeer
from iii_trio.engine.access import INFRASTRUCTURE, ExposeFilter, Pattern, Session
from iii_trio.modules.introspection import IntrospectionModule, task_tree
from iii_trio.modules.introspection.tasks import MAX_LEVELS
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import WireError
from iii_trio.testing.raw import RawPort, open_port

FUNCTIONS = "engine::functions-available"
WORKERS = "engine::workers-available"
WINDOW = 0.25  # s, within which a change is told


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[Engine, LocalPeer, RawPort]]:
    async with running(IntrospectionModule()) as (core, user), open_port(core) as port:
        yield core, user, port


def function_ids(payload: dict[str, Any]) -> set[str]:
    return {row["function_id"] for row in payload["functions"]}


async def test_a_burst_of_registrations_is_one_event_within_the_window(autojump_clock: trio.testing.MockClock) -> None:
    async with engine() as (core, user, _):
        news = record(user, "news")
        bind(core, user, FUNCTIONS, "news", {}, metadata={"m": 1})
        await trio.sleep(1)
        assert len(news.payloads) == 1  # the subscriber's own function is news, too
        began = trio.current_time()
        for number in range(20):
            record(user, f"f{number}")
            await trio.sleep(0.01)
        await news.wait(2)
        assert trio.current_time() - began <= WINDOW
        await trio.sleep(1)
        assert len(news.payloads) == 2
        payload = news.payloads[1]
        assert payload["event"] == "functions_changed"
        assert {"f0", "f19", "news", "engine::tree"} <= function_ids(payload)
        assert payload["functions"][0].keys() >= {"function_id", "namespace", "worker_name"}
        assert news.metadata == [{"m": 1}] * 2


async def test_what_came_and_went_within_the_window_or_only_changed_is_no_event(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with engine() as (core, user, _):
        news = record(user, "news")
        bind(core, user, FUNCTIONS, "news", None)
        await news.wait(1)
        record(user, "brief")
        user.unregister("brief")
        user.register("news", news, description="The same function, described.")
        await trio.sleep(1)
        assert len(news.payloads) == 1
        record(user, "lasting")
        await news.wait(2)
        user.unregister("lasting")
        await news.wait(3)
        assert ["lasting" in function_ids(payload) for payload in news.payloads] == [False, True, False]


async def test_a_slow_subscriber_gets_the_newest_list_next_and_none_after_it_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with engine() as (core, user, _):
        lists: list[set[str]] = []
        got_two = trio.Event()

        async def slow(call: Call, data: Json) -> Json:
            lists.append(function_ids(data.decode()))
            if len(lists) == 2:
                got_two.set()
            await trio.sleep(8)
            return NULL

        user.register("slow", slow, task=True)
        bind(core, user, FUNCTIONS, "slow", {})
        await trio.sleep(1)
        for number in range(5):
            record(user, f"f{number}")
            await trio.sleep(1)
        assert len(lists) == 1
        with trio.fail_after(60):
            await got_two.wait()
        assert {f"f{number}" for number in range(5)} <= lists[1]
        record(user, "late")
        await trio.sleep(1)
        core.triggers.unregister("slow")
        await trio.sleep(30)
        assert len(lists) == 2


async def test_a_session_is_told_of_what_it_may_call(autojump_clock: trio.testing.MockClock) -> None:
    async with engine() as (core, user, port):
        worker = await port.connect(name="w")
        worker.register("mine")
        worker.send(
            {"type": "registertrigger", "id": "t", "trigger_type": FUNCTIONS, "function_id": "mine", "config": {}}
        )
        await worker.settled()
        peer = core.workers.get(worker.worker_id)
        assert peer is not None
        peer.session = Session(expose=(ExposeFilter(pattern=Pattern.of("public::*")),))
        record(user, "public::a")
        record(user, "secret::b")
        call = await worker.next("invokefunction")
        # beside what was granted, what every session may call
        assert function_ids(call["data"]) == {"public::a", *INFRASTRUCTURE}


async def test_the_life_of_a_worker_is_told_in_order(autojump_clock: trio.testing.MockClock) -> None:
    async with engine() as (core, user, port):
        events = record(user, "events")
        bind(core, user, WORKERS, "events", {})
        worker = await port.connect(name="w")
        for _ in range(3):
            worker.introduce(name="w")
        await worker.settled()
        began = trio.current_time()
        await events.wait(2)
        assert trio.current_time() - began <= WINDOW
        worker.cut()
        assert await events.wait(3) == [
            {"event": name, "worker_id": worker.worker_id}
            for name in ("worker_connected", "worker_metadata_updated", "worker_disconnected")
        ]
        await trio.sleep(1)
        assert len(events.payloads) == 3


async def test_nothing_is_gathered_without_a_subscriber_and_nothing_is_left_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    module = IntrospectionModule()
    async with running() as (core, user), open_port(core) as port, trio.open_nursery() as nursery:
        before = core.statistics()
        async with trio.open_nursery() as life:
            await life.start(module.run, core)
            await (await port.connect(name="w")).settled()
            assert module.statistics().availability is not None
            assert module.statistics().availability.worker_events == 0  # type: ignore[union-attr]
            record(user, "pending")
            life.cancel_scope.cancel()
        assert module.statistics().availability is None
        assert core.deadlines.statistics().timers == before.deadlines.timers
        record(user, "unheard")
        assert core.deadlines.statistics().timers == before.deadlines.timers
        after = core.statistics()
        assert after.triggers == before.triggers
        assert after.functions.serving == before.functions.serving + 2
        await nursery.start(module.run, core)
        assert (await ask(user, "engine::health::check"))["status"] == "healthy"
        nursery.cancel_scope.cancel()


async def test_health_shows_the_state_of_the_engine(autojump_clock: trio.testing.MockClock) -> None:
    async with engine() as (core, user, port):
        worker = await port.connect(name="w")
        bind(core, user, "nobody-has-it", "f", {})
        await worker.settled()
        health = await ask(user, "engine::health::check", {})
        assert (health["status"], health["state"], health["version"]) == ("healthy", "ready", __version__)
        assert health["timestamp"] == core.clock.wall_ms()
        details = health["components"]["engine"]["details"]
        assert (details["workers"], details["triggers"]["parked"], details["running_calls"]) == (1, 1, 1)
        for name in ("otel", "metrics", "logs", "spans"):
            assert health["components"][name] == {"status": "disabled", "details": None}
        core.modules.update(http="running", queue="restarting (incident 1234)")
        health = await ask(user, "engine::health::check")
        assert health["status"] == health["components"]["modules"]["status"] == "degraded"
        assert health["components"]["modules"]["details"]["queue"] == "restarting (incident 1234)"
        assert health["components"]["engine"]["status"] == "healthy"
        core.modules["queue"] = "running"
        core.serving()
        health = await ask(user, "engine::health::check")
        assert (health["status"], health["state"]) == ("healthy", "serving")
        await core.drain(1)
        health = await ask(user, "engine::health::check")
        assert (health["status"], health["state"]) == ("degraded", "draining")


def paths(node: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    here = (*above, node["name"])
    return [here, *(path for child in node["children"] for path in paths(child, here))]


async def test_the_tree_shows_every_task_under_its_owner() -> None:
    async with engine() as (_, user, port), trio.open_nursery() as nursery:
        await port.connect(name="w")

        async def parent() -> None:
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever, name="child")
                inner.start_soon(trio.sleep_forever, name="child")

        async def waits(call: Call, data: Json) -> Json:
            await trio.sleep_forever()
            raise AssertionError

        user.register("waits", waits, task=True)
        pending = user.call("waits", NULL, lambda _: None)
        assert pending is not None
        nursery.start_soon(parent, name="parent")
        await trio.testing.wait_all_tasks_blocked()
        found = paths(await ask(user, "engine::tree"))
        assert sum(path[-2:] == ("parent", "child") for path in found) == 2
        assert {"deadlines", "call waits", "raw connection"} <= {path[-1] for path in found}
        nursery.cancel_scope.cancel()


async def test_two_nurseries_of_one_task_are_told_apart() -> None:
    async def double() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever, name="in outer")
            inner.start_soon(trio.sleep_forever, name="in inner")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(double, name="double")
        await trio.testing.wait_all_tasks_blocked()
        found = paths(task_tree())
        assert any(path[-3:] == ("double", "nursery 1", "in outer") for path in found)
        assert any(path[-3:] == ("double", "nursery 2", "in inner") for path in found)
        nursery.cancel_scope.cancel()


async def test_a_very_deep_tree_is_cut_so_that_it_can_be_read() -> None:
    async def nest(levels: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nest if levels else _sleep, levels - 1, name=f"level {levels}")

    async with engine() as (_, _user, port), trio.open_nursery() as nursery:
        worker = await port.connect(name="w")
        nursery.start_soon(nest, 2 * MAX_LEVELS)
        await trio.testing.wait_all_tasks_blocked()
        answer = await worker.ask("engine::tree")
        found = paths(answer["result"])
        assert max(map(len, found)) == MAX_LEVELS + 1
        assert max(found, key=len)[-1] == "… 1 more, too deep to show"
        nursery.cancel_scope.cancel()


async def _sleep(_levels: int) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(("level", "number"), [("trace", 5), ("debug", 10), ("info", 20), ("warn", 30), ("error", 40)])
async def test_old_loggers_write_to_the_engines_log(level: str, number: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1, "iii_trio.worker")
    async with engine() as (_, user, _port):
        payload = {"message": "hello %s", "trace_id": "", "span_id": "b7", "function_name": "f", "data": {"a": 1}}
        result = await user.invoke(f"engine::log::{level}", Json.of(payload))
        assert result.absent
        [logged] = [entry for entry in caplog.records if entry.name == "iii_trio.worker"]
        assert (logged.levelno, logged.getMessage()) == (number, "hello %s")
        extra = vars(logged)
        assert (extra["source"], extra["span_id"], extra["data"]) == ("f", "b7", {"a": 1})
        assert "trace_id" not in extra


async def test_log_lines_name_their_sender_and_huge_details_stay_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iii_trio.worker")
    async with engine() as (_, user, port):
        worker = await port.connect(name="shop")
        await worker.ask("engine::log::info", {"message": "big", "data": "x" * 100_000})
        await worker.ask("engine::log::debug", {"message": "not wanted"})
        await worker.ask("engine::log::warn", {"message": "named", "service_name": "api", "data": [1]})
        lines = [vars(entry) for entry in caplog.records if entry.name == "iii_trio.worker"]
        assert [(line["source"], line["msg"] % line["args"], line.get("data")) for line in lines] == [
            ("shop", "big", None),
            ("api", "named", [1]),
        ]
        with pytest.raises(WireError, match="missing field `message`"):
            await ask(user, "engine::log::info", {})


async def test_a_subscriber_that_never_answers_is_told_again_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with engine() as (_, user, port):
        worker = await port.connect(name="w")
        worker.register("never")
        bind = {"id": "t", "trigger_type": FUNCTIONS, "function_id": "never", "config": {}}
        worker.send({"type": "registertrigger", **bind})
        first = await worker.next("invokefunction")
        record(user, "new")
        began = trio.current_time()
        second = await worker.next("invokefunction")
        assert "new" not in function_ids(first["data"])
        assert "new" in function_ids(second["data"])
        assert trio.current_time() - began < 11
