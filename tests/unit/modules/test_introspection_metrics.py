"""Telemetry frames: accepted on both paths, counted by kind, and the newest gauges of each worker shown with it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from module_harness import ask, running
from trio.testing import MockClock, wait_all_tasks_blocked

from iii_trio.engine import Engine, LocalPeer
from iii_trio.engine.access import ExposeFilter, Pattern
from iii_trio.engine.sessions import Rules
from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.protocol.limits import TELEMETRY_READ
from iii_trio.testing.raw import RawPort, RawWorker, open_port

PREFIX = "iii.worker."


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[Engine, LocalPeer, RawPort]]:
    async with running(IntrospectionModule()) as (core, user), open_port(core) as port:
        yield core, user, port


def gauge(name: str, worker_id: str | None, **value: Any) -> dict[str, Any]:
    attributes = [{"key": "worker.name", "value": {"stringValue": "shop"}}]
    if worker_id is not None:
        attributes.append({"key": "worker.id", "value": {"stringValue": worker_id}})
    return {"name": PREFIX + name, "gauge": {"dataPoints": [{"attributes": attributes, "timeUnixNano": "1", **value}]}}


def metrics(*gauges: Any) -> bytes:
    document = {"resourceMetrics": [{"resource": {}, "scopeMetrics": [{"scope": {}, "metrics": list(gauges)}]}]}
    return b"MTRC" + json.dumps(document).encode()


async def send(worker: RawWorker, *frames: bytes) -> None:
    for frame in frames:
        assert worker.connection.push_binary(frame)
    await wait_all_tasks_blocked()


async def latest(user: LocalPeer, worker: RawWorker) -> Any:
    info = await ask(user, "engine::workers::info", {"id": worker.worker_id})
    return info["worker"].get("latest_metrics")


async def test_the_newest_gauges_are_shown_with_their_worker(autojump_clock: MockClock) -> None:
    async with engine() as (core, user, port):
        worker = await port.connect(name="shop", runtime="node")
        await worker.settled()
        socket = await port.open("/otel")
        assert await latest(user, worker) is None
        every = {
            "memory.heap_used": ("memory_heap_used", {"asDouble": 1.5}, 1.5),
            "memory.heap_total": ("memory_heap_total", {"asInt": "2000000000000"}, 2000000000000),
            "memory.rss": ("memory_rss", {"asInt": 3}, 3),
            "memory.external": ("memory_external", {"asInt": "-4"}, -4),
            "cpu.user_micros": ("cpu_user_micros", {"asInt": 5}, 5),
            "cpu.system_micros": ("cpu_system_micros", {"asInt": 6}, 6),
            "cpu.percent": ("cpu_percent", {"asDouble": 7.25}, 7.25),
            "event_loop.lag_ms": ("event_loop_lag_ms", {"asDouble": 0.0}, 0.0),
            "uptime_seconds": ("uptime_seconds", {"asDouble": 9.0}, 9.0),
        }
        await send(socket, metrics(*(gauge(name, worker.worker_id, **value) for name, (_, value, _) in every.items())))
        shown = await latest(user, worker)
        assert shown == {
            **{name: value for name, _, value in every.values()},
            "timestamp_ms": core.clock.wall_ms(),
            "runtime": "node",
        }
        [row] = (await ask(user, "engine::workers::list", {"search": "shop"}))["workers"]
        assert row["latest_metrics"] == shown
        # each gauge has its newest value, for two minutes
        await trio.sleep(100)
        await send(socket, metrics(gauge("memory.rss", worker.worker_id, asInt=30)))
        assert (await latest(user, worker))["memory_rss"] == 30
        await trio.sleep(30)
        newest = await latest(user, worker)
        assert {key for key in newest if key != "timestamp_ms"} == {"memory_rss", "runtime"}
        assert newest["timestamp_ms"] == core.clock.wall_ms() - 30_000
        await trio.sleep(100)
        assert await latest(user, worker) is None


async def test_a_worker_speaks_for_itself_alone(autojump_clock: MockClock) -> None:
    async with engine() as (_, user, port):
        one, other = await port.connect(name="one"), await port.connect(name="other")
        await one.settled()
        await other.settled()
        await send(
            one,
            metrics(gauge("memory.rss", other.worker_id, asInt=666)),
            metrics(gauge("cpu.percent", one.worker_id, asInt=1), gauge("uptime_seconds", None, asInt=2)),
        )
        assert await latest(user, other) is None
        shown = await latest(user, one)
        assert (shown["cpu_percent"], shown["uptime_seconds"]) == (1, 2)
        # an old SDK's second socket is no worker: it names the one that it belongs to
        ghost = await port.connect()
        await send(ghost, metrics(gauge("memory.rss", other.worker_id, asInt=7), gauge("memory.rss", "gone", asInt=8)))
        assert (await latest(user, other))["memory_rss"] == 7


BAD = [
    b"MTRC",
    b"MTRC{",
    b"MTRC[]",
    b'MTRC"x"',
    b"MTRC\xff\xfe",
    b"MTRC" + b"[" * 100_000,
    b"MTRC" + b" " * TELEMETRY_READ + b"{}",
]
ODD = [
    {"resourceMetrics": None},
    {"resourceMetrics": {}},
    {"resourceMetrics": [1, None, {"scopeMetrics": [{"metrics": [1, {"name": 2}, {"name": PREFIX + "memory.rss"}]}]}]},
    {"resourceMetrics": [{"scopeMetrics": [{"metrics": [gauge("memory.rss", "?", asInt="1e9")]}]}]},
    {"resourceMetrics": [{"scopeMetrics": [{"metrics": [gauge("memory.rss", "?", asDouble=True)]}]}]},
    {"resourceMetrics": [{"scopeMetrics": [{"metrics": [gauge("memory.rss", "?", asInt="9" * 500)]}]}]},
    {"resourceMetrics": [{"scopeMetrics": [{"metrics": [gauge("memory.rss", "?")]}]}]},
]


async def test_what_is_no_metric_costs_nothing(autojump_clock: MockClock) -> None:
    async with engine() as (_, user, port):
        worker = await port.connect(name="shop")
        await worker.settled()
        odd = json.dumps(ODD).replace('"?"', json.dumps(worker.worker_id))
        await send(worker, *BAD, *(b"MTRC" + json.dumps(item).encode() for item in json.loads(odd)))
        assert await latest(user, worker) is None
        # one misshapen metric does not spoil the others of its frame
        await send(worker, metrics(7, {"name": None}, gauge("memory.rss", worker.worker_id, asInt=1)))
        assert (await latest(user, worker))["memory_rss"] == 1
        assert worker.closed is None


@pytest.mark.parametrize("path", ["/", "/otel"])
async def test_frames_are_counted_by_kind(path: str, autojump_clock: MockClock) -> None:
    module = IntrospectionModule()
    async with running(module) as (core, user), open_port(core) as port:
        socket = await port.open(path)
        await send(socket, b"OTLP{}", b"OTLP{}", b"LOGS{}", b"MTRC{}", b"MTRC!")
        others = 0
        if path == "/otel":
            await send(socket, b"WHAT", b"")
            others = 2
        health = await ask(user, "engine::health::check")
        counts = health["components"]["engine"]["details"]["telemetry_frames"]
        assert counts == {"traces": 2, "logs": 1, "metrics": 2, "others": others, "unread": 1}
        statistics = module.statistics().telemetry
        assert statistics is not None
        assert (statistics.traces, statistics.unread, statistics.workers) == (2, 1, 0)
        # neither socket is a worker
        assert health["components"]["engine"]["details"]["workers"] == 0
        assert core.statistics().workers.connected == 0
    assert module.statistics().telemetry is None


async def test_what_a_worker_reported_goes_with_it(autojump_clock: MockClock) -> None:
    module = IntrospectionModule()
    async with running(module) as (core, _user), open_port(core) as port:
        worker = await port.connect(name="shop")
        await worker.settled()
        await send(worker, metrics(gauge("memory.rss", worker.worker_id, asInt=1)))
        statistics = module.statistics().telemetry
        assert statistics is not None
        assert statistics.workers == 1
        worker.cut()
        await port.gone(worker)
        statistics = module.statistics().telemetry
        assert statistics is not None
        assert statistics.workers == 0


async def test_a_guarded_telemetry_socket_does_not_speak_for_trusted_workers(autojump_clock: MockClock) -> None:
    """Whoever is admitted there may name any worker; it is believed about workers under access control alone."""
    async with engine() as (core, user, port):
        trusted = await port.connect(name="trusted")
        expose = (ExposeFilter(pattern=Pattern.of("engine::*")),)
        guarded_port = RawPort(core, port.nursery, Rules(token="sesame", expose=expose))
        headers = {"authorization": "Bearer sesame"}
        guest = await guarded_port.greeted(await guarded_port.open(headers=headers), name="guest")
        await guest.settled()
        socket = await guarded_port.open("/otel", headers=headers)
        for worker in (trusted, guest):
            await send(socket, metrics(gauge("cpu.percent", worker.worker_id, asDouble=99.0)))
        assert await latest(user, trusted) is None
        assert (await latest(user, guest))["cpu_percent"] == 99.0
