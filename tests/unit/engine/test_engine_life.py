"""The life of connections and of the engine: liveness, release, telemetry, drain, the end of a port."""

import json
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from engine_sync import SyncCore
from trio.testing import MockClock

from iii_trio.engine import Engine, EngineState, Listener
from iii_trio.engine.events import Event, FunctionsChanged, TelemetryReceived, WorkerConnected, WorkerDisconnected
from iii_trio.engine.remote import _HANDLERS
from iii_trio.protocol.limits import DEAD_AFTER_S, PING_AFTER_S
from iii_trio.testing.raw import RawPort, RawWorker, open_port
from iii_trio.transport import Closed, Connection, Framing, Request


async def raw(port: RawPort, path: str = "/", **options: Any) -> Connection:
    """One end of a connection to the port whose other end is being served; nothing runs it yet."""
    ours, theirs = trio.testing.memory_stream_pair()
    port.nursery.start_soon(port.listener.serve, theirs, Request("GET", path, "", []), Framing(), name="served")
    return Connection(ours, Framing(client=True), name="client", **options)


# -- liveness ---------------------------------------------------------------------------------------------------------


async def test_a_silent_connection_ends_and_a_quiet_one_does_not(
    autojump_clock: MockClock, core: Engine, port: RawPort
) -> None:
    port.nursery.start_soon(port.listener._sweep)
    quiet = await port.connect(name="quiet")
    quiet.register("a::quiet")
    silent, theirs = trio.testing.memory_stream_pair()
    port.nursery.start_soon(port.listener.serve, theirs, Request("GET", "/", "", []), Framing())
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    assert port.listener.statistics().connections == 2
    while port.listener.statistics().connections == 2:  # noqa: ASYNC110 - by the virtual clock
        await trio.sleep(1)
    assert DEAD_AFTER_S <= trio.current_time() - began <= DEAD_AFTER_S + 10
    await trio.sleep(10 * DEAD_AFTER_S)
    assert quiet.closed is None
    assert core.functions.get("default", "a::quiet") is not None
    await silent.aclose()


async def test_a_freeze_of_the_engine_is_not_the_silence_of_its_workers(
    mock_clock: MockClock, core: Engine, port: RawPort
) -> None:
    port.nursery.start_soon(port.listener._sweep)
    worker = await port.connect(name="patient")
    await worker.settled()
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(10 * DEAD_AFTER_S)
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(3):
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
    assert worker.closed is None
    assert core.workers.get(worker.worker_id) is not None
    mock_clock.jump(PING_AFTER_S)


async def test_what_a_connection_that_is_ending_had_registered_is_nobodys(
    autojump_clock: MockClock, core: Engine, port: RawPort
) -> None:
    """A violation ends a connection at once, but its socket has five seconds to close."""
    port.nursery.start_soon(port.listener._sweep)
    worker = await port.connect(name="odd")
    worker.register("a::f")
    await worker.settled()
    peer = core.workers.get(worker.worker_id)
    assert peer is not None
    peer.connection.close(1002, "as if it had violated the protocol")
    worker.connection.pause_reading()
    with trio.fail_after(2):
        while core.functions.get("default", "a::f") is not None:  # noqa: ASYNC110 - by the virtual clock
            await trio.sleep(0.1)
    assert len(core.workers) == 0


async def test_a_probe_of_a_slow_sender_is_answered_by_its_bytes() -> None:
    core = SyncCore()
    holder, claimant = core.connect(version="1"), core.connect(version="1")
    holder.register("a::f")
    claimant.register("a::f")
    core.advance(4)
    holder.connection.last_heard = core.clock.now()  # part of a frame, which is no frame yet
    core.advance(2)
    assert [frame["owner_worker_id"] for frame in claimant.take("registrationrejected")] == [holder.id]
    assert not holder.gone


async def test_a_probe_of_a_connection_that_is_ending_is_answered_at_once() -> None:
    core = SyncCore()
    holder, claimant = core.connect(version="1"), core.connect(version="1")
    holder.register("a::f")
    holder.connection.close(1002, "a violation")
    claimant.register("a::f")
    assert holder.gone
    assert claimant.take("registrationrejected") == []
    entry = core.engine.functions.get("default", "a::f")
    assert entry is not None
    assert entry.owner is claimant.peer


# -- release ----------------------------------------------------------------------------------------------------------


def test_everything_is_given_back_in_order_and_once() -> None:
    """spec/protocol.md §13: functions, calls, triggers, types, the name, and at last the news."""
    core = SyncCore()
    engine = core.engine
    history: list[str] = []

    def note(name: str, frame: bytes) -> None:
        history.append(f"{name} {json.loads(frame)['type']}")

    leaver, provider, caller = core.connect(name="leaver"), core.connect(version="1"), core.connect(version="1")
    for worker, name in ((provider, "provider"), (caller, "caller")):
        worker.connection.on_push = partial(note, name)
    provider.send({"type": "registertriggertype", "id": "T", "description": ""})
    leaver.register("a::f")
    leaver.send({"type": "registertriggertype", "id": "U", "description": ""})
    leaver.send({"type": "registertrigger", "id": "its", "trigger_type": "T", "function_id": "a::f", "config": 1})
    caller.send({"type": "registertrigger", "id": "other", "trigger_type": "U", "function_id": "g", "config": 1})
    caller.call("a::f")
    leaver.call("a::f")
    history.clear()

    def tap(event: object) -> None:
        if isinstance(event, FunctionsChanged):
            history.append(f"function {event.available}")
        elif isinstance(event, WorkerDisconnected):
            other = engine.triggers.get("other")
            assert other is not None
            history.append(f"gone, name free: {not engine.workers._names}, type {other.state.value}")

    engine.events.tap(tap)
    leaver.cut()
    leaver.cut()
    engine.release(leaver.peer)
    assert history == [
        "function False",
        "caller invocationresult",
        "provider unregistertrigger",
        "gone, name free: True, type parked",
    ]
    assert engine.statistics().running == 0


def test_a_connection_that_never_spoke_was_never_there() -> None:
    core = SyncCore()
    events: list[object] = []
    core.engine.events.tap(events.append)
    silent, speaker = core.connect(), core.connect()
    silent.cut()
    speaker.send({"type": "ping"})
    speaker.cut()
    assert events == [WorkerConnected(speaker.id), WorkerDisconnected(speaker.id)]
    assert core.engine.deadlines.statistics().timers == 0


# -- telemetry --------------------------------------------------------------------------------------------------------


@define(eq=False)
class Sink:
    """Takes telemetry frames until it is told to fail."""

    frames: list[bytes] = field(factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, TelemetryReceived):
            if event.frame == b"OTLPfail":
                raise RuntimeError("a bug in the sink")
            self.frames.append(event.frame)


async def test_a_telemetry_socket_is_no_worker(autojump_clock: MockClock, core: Engine, port: RawPort) -> None:
    sink = Sink()
    core.events.tap(sink)
    client = await raw(port, "/otel")
    port.nursery.start_soon(client.run, lambda _texts: None)
    for frame in (b"OTLP{}", b"MTRC{}", b"LOGS{}"):
        client.push_binary(frame)
    client.push(b'{"type":"registerfunction","id":"a::f"}')
    await trio.testing.wait_all_tasks_blocked()
    assert sink.frames == [b"OTLP{}", b"MTRC{}", b"LOGS{}"]
    assert port.listener.statistics().telemetry_frames == 3
    assert len(core.workers) == 0
    client.close(1000)


async def test_a_bug_behind_telemetry_costs_that_socket_alone(
    autojump_clock: MockClock, core: Engine, port: RawPort, caplog: pytest.LogCaptureFixture
) -> None:
    core.events.tap(Sink())
    neighbour = await port.connect(name="neighbour")
    client = await raw(port, "/otel")
    closed: list[Closed] = []

    async def run() -> None:
        closed.append(await client.run(lambda _texts: None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        client.push_binary(b"OTLPfail")
    assert closed[0].code == 1011
    await trio.testing.wait_all_tasks_blocked()
    assert "a bug in the sink" in caplog.text
    assert "incident" in caplog.text
    await neighbour.settled()


async def test_a_bug_in_dispatch_costs_one_connection(
    autojump_clock: MockClock,
    core: Engine,
    port: RawPort,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    victim, neighbour = await port.connect(name="victim"), await port.connect(name="neighbour")
    victim.register("a::f")
    await victim.settled()
    monkeypatch.setitem(_HANDLERS, "ping", None)  # a bug
    victim.send({"type": "ping"})
    assert (await victim.wait_closed()).code == 1011
    assert (await neighbour.ask("a::f"))["error"]["code"] == "function_not_found"
    await trio.testing.wait_all_tasks_blocked()
    assert "incident" in caplog.text


async def test_old_workers_send_telemetry_on_their_own_socket(
    autojump_clock: MockClock, core: Engine, port: RawPort
) -> None:
    client = await raw(port)
    port.nursery.start_soon(client.run, lambda _texts: None)
    client.push_binary(b"OTLP{}")
    await trio.testing.wait_all_tasks_blocked()
    assert len(core.workers) == 0, "nobody has said anything yet"
    client.push_binary(b'{"type":"ping"}')
    await trio.testing.wait_all_tasks_blocked()
    assert [peer.telemetry_frames for peer in core.workers] == [1]
    client.close(1000)


# -- drain and the end ------------------------------------------------------------------------------------------------


async def test_a_drain_tells_everybody_and_waits_for_running_calls(
    autojump_clock: MockClock, core: Engine, port: RawPort
) -> None:
    executor, caller = await port.connect(name="executor"), await port.connect(name="caller")
    executor.register("a::f")
    await executor.settled()
    call = caller.call("a::f")
    invocation = await executor.next("invokefunction")
    told: list[str] = []
    core.on_drain(lambda: told.append("first"))
    core.on_drain(lambda: told.append("second"))()
    drained: list[bool] = []

    async def drain() -> None:
        drained.append(await core.drain(30))

    port.nursery.start_soon(drain)
    await trio.testing.wait_all_tasks_blocked()
    assert core.draining
    assert told == ["first"]
    nested = executor.call("a::f", "nested calls of running handlers still route")
    executor.answer(await executor.next("invokefunction", invocation_id=nested))
    await executor.result(nested)
    assert drained == []
    executor.answer(invocation, result=1)
    await caller.result(call)
    await trio.testing.wait_all_tasks_blocked()
    assert drained == [True]


async def test_a_drain_ends_with_its_grace(autojump_clock: MockClock, core: Engine, port: RawPort) -> None:
    executor, caller = await port.connect(name="executor"), await port.connect(name="caller")
    executor.register("a::f")
    await executor.settled()
    caller.call("a::f")
    await executor.next("invokefunction")
    began = trio.current_time()
    assert not await core.drain(3)
    assert trio.current_time() - began == pytest.approx(3)
    assert core.state is EngineState.DRAINING


async def test_an_idle_engine_is_drained_at_once(autojump_clock: MockClock, core: Engine) -> None:
    began = trio.current_time()
    core.serving()
    assert core.state is EngineState.SERVING
    assert await core.drain(30)
    assert trio.current_time() == began


async def test_closing_a_port_ends_everybody_with_a_code_that_brings_them_back(
    autojump_clock: MockClock, core: Engine
) -> None:
    async with open_port(core) as port:
        workers = [await port.connect(name=f"worker {number}") for number in range(3)]
        client = await raw(port, "/otel")
        port.nursery.start_soon(client.run, lambda _texts: None)
        await trio.testing.wait_all_tasks_blocked()
        gone: list[int] = []

        async def wait() -> None:
            await port.listener.wait_closed()
            gone.append(1)

        port.nursery.start_soon(wait)
        port.nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        port.listener.close_all(1012, "the engine is stopping")
        assert len(core.workers) == 0, "what they had is given back before they have gone"
        assert [(await worker.wait_closed()).code for worker in workers] == [1012, 1012, 1012]
        await trio.testing.wait_all_tasks_blocked()
        assert gone == [1, 1], "everybody who waits for the end is told of it"
        late = await raw(port)
        assert (await late.run(lambda _texts: None)).code == 1012, "who comes now is sent away with the same code"
        await port.listener.wait_closed()


async def test_too_many_connections_are_turned_away(
    autojump_clock: MockClock, core: Engine, port: RawPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iii_trio.engine.listener.PEERS", 1)
    worker = await port.connect(name="first")
    client = await raw(port)
    assert (await client.run(lambda _texts: None)).code == 1013
    worker.cut()
    await port.gone(worker)
    second: RawWorker = await port.connect(name="second")
    await second.settled()
    assert isinstance(port.listener, Listener)
