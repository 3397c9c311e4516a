"""What the SDK puts on the wire, in which order, and what a reconnect repeats."""

import logging
import math

import pytest
import trio
from sdk_fake_engine import fake_engine
from trio.testing import MockClock

from iii_trio import (
    InvocationStopped,
    NotConnected,
    Reconnect,
    RegistrationRejected,
    Trigger,
    Worker,
    open_client,
)


def hello_worker() -> Worker:
    worker = Worker("hello", description="says hello")

    @worker.http("get", "/hello")
    @worker.function("hello::api", description="says hello", metadata={"owner": "us"})
    async def hello(name: str) -> str:
        return f"hello {name}"

    return worker


async def test_first_frames_are_metadata_then_functions_then_triggers(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, hello_worker().connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        assert peer.types() == ["invokefunction", "registerfunction", "registertrigger", "ping"]
        register, function, trigger, _ = peer.frames
        assert register["function_id"] == "engine::workers::register"
        assert register["action"] == {"type": "void"}
        assert "invocation_id" not in register
        told = register["data"]
        assert told["runtime"] == "python-trio"
        assert told["name"] == "hello"
        assert told["description"] == "says hello"
        assert told["features"] == ["cancel.v1", "large-messages.v1"]
        assert told.keys() >= {"version", "os", "pid"}
        assert function["id"] == "hello::api"
        assert function["metadata"] == {"owner": "us"}
        assert function["request_format"]["type"] == "string"
        assert function["response_format"]["type"] == "string"
        assert trigger["trigger_type"] == "http"
        assert trigger["config"] == {"api_path": "/hello", "http_method": "GET"}
        assert trigger["function_id"] == "hello::api"
        assert client.worker_id == "worker-1"
        assert client.connection_state == "connected"
    assert peer.closed is not None
    assert (peer.closed.code, peer.closed.clean) == (1000, True)


async def test_token_and_headers_go_with_the_handshake(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("III_TOKEN", "secret")
    async with fake_engine() as engine:
        async with open_client("ws://host/p?t=1", open_stream=engine.open_stream, headers={"X-Team": "a"}):
            request = (await engine.peer()).request
            assert (request.path, request.query) == ("/p", "t=1")
            headers = dict(request.headers)
            assert headers["authorization"] == "Bearer secret"
            assert headers["x-team"] == "a"
        async with open_client("ws://host", open_stream=engine.open_stream, headers={"authorization": "mine"}):
            assert dict((await engine.peer()).request.headers)["authorization"] == "mine"


async def test_connect_waits_until_the_engine_has_read_the_registrations(autojump_clock: MockClock) -> None:
    async with fake_engine(answers_pings=False) as engine:
        began = trio.current_time()
        async with hello_worker().connect(open_stream=engine.open_stream):
            assert trio.current_time() - began == pytest.approx(5)
        async with hello_worker().connect(open_stream=engine.open_stream, wait=False) as client:
            assert client.connection_state in ("disconnected", "connecting")


async def test_a_reconnect_reattaches_and_repeats_everything_in_order(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with fake_engine() as engine, hello_worker().connect(open_stream=engine.open_stream) as client:
        first = await engine.peer()
        binding = client.add_trigger("hello::api", Trigger(trigger_type="subscribe", config={"topic": "t"}))
        gone = client.add_trigger("hello::api", Trigger(trigger_type="subscribe", config={"topic": "u"}))
        client.remove_trigger(gone)
        first.connection.abort()
        await first.wait_closed()

        async def call_while_away() -> None:
            assert await client.call("other::f", 1) == 2

        nursery.start_soon(call_while_away)
        second = await engine.peer()
        call = await second.receive("invokefunction")
        assert call["function_id"] == "engine::workers::register"
        call = await second.receive("invokefunction")
        assert second.types() == [
            "reattach",
            "invokefunction",
            "registerfunction",
            "registertrigger",
            "registertrigger",
            "ping",
            "invokefunction",
        ]
        assert second.frames[0] == {
            "type": "reattach",
            "previous_worker_id": "worker-1",
            "reattach_token": "token-1",
        }
        assert [frame["id"] for frame in second.frames[3:5]] == [
            next(frame["id"] for frame in first.frames if frame["type"] == "registertrigger"),
            binding,
        ]
        second.answer(call, 2)
        await second.settle()


async def test_pauses_grow_to_thirty_seconds_and_begin_anew_after_a_good_connection(
    autojump_clock: MockClock,
) -> None:
    policy = Reconnect(jitter=0)
    async with fake_engine(unreachable=True) as engine:
        connecting = open_client(open_stream=engine.open_stream, wait=False, reconnect=policy)
        async with connecting as client:
            await trio.sleep(1 + 2 + 4 + 8 + 16 + 30 * 3 + 1)
            pauses = [b - a for a, b in zip(engine.dialled_at, engine.dialled_at[1:], strict=False)]
            assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
            assert client.connection_state == "reconnecting"
            engine.unreachable = False
            peer = await engine.peer()
            await client.wait_registered()
            engine.dialled_at.clear()
            ended_at = trio.current_time()
            peer.connection.close(1000)
            await engine.peer()
            assert engine.dialled_at[0] - ended_at == 1


async def test_a_connection_that_ends_before_it_is_confirmed_does_not_reset_the_pause(
    autojump_clock: MockClock,
) -> None:
    async with fake_engine(answers_pings=False) as engine:
        async with open_client(open_stream=engine.open_stream, wait=False, reconnect=Reconnect(jitter=0)):
            for _ in range(4):
                (await engine.peer()).connection.close(1008)
        pauses = [b - a for a, b in zip(engine.dialled_at, engine.dialled_at[1:], strict=False)]
        assert pauses == [1, 2, 4]


async def test_states_are_told_at_once_and_at_every_change(autojump_clock: MockClock) -> None:
    states: list[str] = []
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream, wait=False) as client:
        client.add_connection_state_listener(states.append)
        ignored: list[str] = []
        client.add_connection_state_listener(ignored.append)()
        await client.wait_connected()
        (await engine.peer()).connection.abort()
        await engine.peer()
        await client.wait_connected()
    assert states == ["disconnected", "connecting", "connected", "reconnecting", "connected", "disconnected"]
    assert ignored == ["disconnected"]


async def test_a_name_conflict_ends_the_block(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine:
        with pytest.raises(RegistrationRejected, match="held by the live worker w-9") as caught:  # noqa: PT012
            async with hello_worker().connect(open_stream=engine.open_stream):
                (await engine.peer()).send(
                    {
                        "type": "registrationrejected",
                        "code": "WORKER_NAMESPACE_CONFLICT",
                        "namespace": "default",
                        "worker_name": "hello",
                        "owner_worker_id": "w-9",
                    }
                )
                await trio.sleep_forever()
        assert caught.value.code == "WORKER_NAMESPACE_CONFLICT"
        assert caught.value.owner_worker_id == "w-9"
        await trio.sleep(100)
        assert len(engine.dialled_at) == 1


async def test_a_function_conflict_is_a_warning(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with fake_engine() as engine, hello_worker().connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        with caplog.at_level(logging.WARNING, "iii_trio.sdk"):
            peer.send(
                {
                    "type": "registrationrejected",
                    "code": "FUNCTION_NAMESPACE_CONFLICT",
                    "namespace": "default",
                    "function_id": "hello::api",
                    "owner_worker_id": "w-9",
                }
            )
            assert (await peer.ask("hello::api", "you"))["result"] == "hello you"
        assert "hello::api" in caplog.text


async def test_retries_that_are_used_up_end_the_block(autojump_clock: MockClock) -> None:
    async with fake_engine(unreachable=True) as engine:
        with pytest.raises(NotConnected, match="nobody listens"):
            async with open_client(open_stream=engine.open_stream, reconnect=Reconnect(max_retries=0)):
                pytest.fail("there is no engine")
        with pytest.raises(NotConnected):
            async with open_client(open_stream=engine.open_stream, reconnect=Reconnect(max_retries=2), wait=False) as c:
                await c.call("f", timeout=None)
        assert len(engine.dialled_at) == 1 + 3


async def test_an_error_of_the_block_comes_out_as_it_is(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine:
        with pytest.raises(KeyError, match="mine"):
            async with open_client(open_stream=engine.open_stream):
                raise KeyError("mine")
        peer = await engine.peer()
        assert (await peer.wait_closed()).code == 1000


async def test_cancelling_the_block_ends_it_at_once_with_a_close(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine:
        with trio.move_on_after(50) as scope:
            async with hello_worker().connect(open_stream=engine.open_stream):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() - engine.dialled_at[0] == pytest.approx(50, abs=1)
        assert (await engine.peers[0].wait_closed()).code == 1000


async def test_calls_under_way_stop_with_the_connection_and_later_calls_wait_for_the_next(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()

        async def cut() -> None:
            await peer.receive("invokefunction")
            await peer.receive("invokefunction")
            peer.connection.abort()

        nursery.start_soon(cut)
        with pytest.raises(InvocationStopped):
            await client.call("slow::f")
        engine.unreachable = True
        with pytest.raises(trio.TooSlowError):
            await client.call("slow::f", timeout=1.5)
        assert client.statistics().session is None


async def test_a_silent_engine_is_given_up_and_dialled_again(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        peer.connection.pause_reading()
        began = trio.current_time()
        await engine.peer()
        assert 60 <= trio.current_time() - began <= 70
        await client.wait_connected()
        assert client.connection_state == "connected"


async def test_application_pings_are_answered_and_garbage_is_survived(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        for text in (b"{", b"[]", b'{"type":"invocationresult"}', b'{"type":"nonsense"}', b'{"type":7}', b"\xf0\x9f"):
            if text != b"\xf0\x9f":
                peer.send_raw(text)
        peer.send({"type": "ping"})
        await peer.receive("pong")
        assert client.connection_state == "connected"
        statistics = client.statistics().session
        assert statistics is not None
        assert statistics.undecodable == 3
    assert caplog.text.count("cannot be read") == 1


async def test_what_was_sent_is_flushed_before_the_close(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine:
        async with open_client(open_stream=engine.open_stream) as client:
            for n in range(50):
                await client.send("metrics::count", n)
        peer = engine.peers[0]
        await peer.wait_closed()
        voids = [f for f in peer.frames if f.get("function_id") == "metrics::count"]
        assert [f["data"] for f in voids] == list(range(50))
        assert all(f["action"] == {"type": "void"} and "invocation_id" not in f for f in voids)


async def test_a_closed_client_says_so(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        await client.aclose()
        assert client.connection_state == "disconnected"
        with pytest.raises(NotConnected):
            await client.call("f")
        with pytest.raises(NotConnected):
            await client.send("f")


def test_jitter_stays_within_thirty_percent() -> None:
    import random

    dice = random.Random(1)
    policy = Reconnect()
    for attempt in range(200):
        expected = min(2.0**attempt, 30.0)
        assert 0.7 * expected <= policy.delay(attempt, dice) <= 1.3 * expected
    assert math.isfinite(policy.delay(10_000, dice))
