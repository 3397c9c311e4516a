"""Whatever an engine sends and wherever a caller is cancelled, the client stays whole."""

import json
import logging
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from sdk_fake_engine import fake_engine
from trio.testing import MockClock

from iii_trio import Client, Worker, current_invocation, open_client
from iii_trio.protocol import messages
from iii_trio.transport import Oversize

TYPES = sorted(cls.TYPE for cls in messages.ALL if cls.TYPE not in ("registrationrejected", "ping", "pong"))
KEYS = ["invocation_id", "function_id", "data", "result", "error", "id", "trigger_type", "config", "deadline_ms"]
KEYS += ["metadata", "reason", "features", "worker_id", "traceparent", "namespace", "code", "message"]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6) | st.sampled_from(["", "f", "known", "x" * 9]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=4,
)
frames = st.builds(
    lambda kind, rest: {**rest, "type": kind},
    st.sampled_from(TYPES) | st.just("unheard-of"),
    st.dictionaries(st.sampled_from(KEYS), values, max_size=6),
)


@given(st.lists(frames, max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_frame_brings_the_client_down(batch: list[dict[str, Any]]) -> None:
    worker = Worker("w")

    @worker.function("f")
    async def f(payload: Any) -> Any:
        return payload

    async def run() -> None:
        async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
            peer = await engine.peer()
            for frame in batch:
                peer.send(frame)
            await peer.settle()
            await peer.call("f", "still there", invocation_id="last")
            while (await peer.receive("invocationresult"))["invocation_id"] != "last":
                pass
            assert peer.frames[-1]["result"] == "still there"

    logging.disable(logging.CRITICAL)
    try:
        trio.run(run, clock=MockClock(autojump_threshold=0))
    finally:
        logging.disable(logging.NOTSET)


async def test_numbers_beyond_all_bounds_cost_their_call_at_most(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("f")
    async def f(payload: Any) -> Any:
        return payload

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        for key, number in (("metadata", b'{"x": 1e999}'), ("data", b"1e999"), ("deadline_ms", b"1" + 400 * b"0")):
            peer.send_raw(
                b'{"type": "invokefunction", "function_id": "f", "invocation_id": "%s", "%s": %s}'
                % (key.encode(), key.encode(), number)
            )
        answers = {}
        while len(answers) < 3:
            answer = await peer.receive("invocationresult")
            answers[answer["invocation_id"]] = answer
        for key in ("metadata", "data"):
            assert answers[key]["error"]["code"] == "INVALID_INPUT"
            assert "out of range" in answers[key]["error"]["message"]
        assert answers["deadline_ms"]["result"] is None
        assert (await peer.ask("f", "still there"))["result"] == "still there"


async def test_every_call_is_answered_once_whatever_the_order(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        results: dict[int, int] = {}

        async def call(number: int) -> None:
            results[number] = await client.call("double", number)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(call, number)
            await peer.settle()
            calls = [f for f in peer.frames if "invocation_id" in f]
            assert len({f["invocation_id"] for f in calls}) == 100
            for frame in reversed(calls):
                peer.answer(frame, 2 * frame["data"])
                peer.answer(frame, "twice")
        assert results == {n: 2 * n for n in range(100)}


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step of a task, or of any task; before anything for n = 0."""

    def __init__(self, n: int, task: trio.lowlevel.Task | None = None) -> None:
        self.left = n
        self.task = task
        self.scope = trio.CancelScope()
        if n == 0:
            self.scope.cancel()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.task is None or task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def _cancelled_at(n: int, client: Client, handler_calls: list[int]) -> bool:
    """Call and send, cancelled at the n-th step; False when there was no such step."""
    sweep = CancelAtStep(n, trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(sweep)
    try:
        with sweep.scope:
            assert await client.call("echo", n) == n
            await client.send("note", n)
            handler_calls.append(n)
    finally:
        trio.lowlevel.remove_instrument(sweep)
    return sweep.left <= 0


async def test_a_call_cancelled_at_any_checkpoint_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()

        async def echo() -> None:
            while True:
                call = await peer.receive("invokefunction")
                if "invocation_id" in call:
                    peer.answer(call, call["data"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            await peer.settle()
            living = trio.lowlevel.current_statistics().tasks_living
            through: list[int] = []
            n = 0
            while await _cancelled_at(n, client, through):
                await peer.settle()
                statistics = client.statistics().session
                assert statistics is not None
                assert statistics.calls.pending == 0
                assert trio.lowlevel.current_statistics().tasks_living == living
                assert client.connection_state == "connected"
                n += 1
            assert n >= 3
            assert through
            nursery.cancel_scope.cancel()
        calls = {f["invocation_id"] for f in peer.frames if "invocation_id" in f and f["type"] == "invokefunction"}
        cancelled = [f["invocation_id"] for f in peer.frames if f["type"] == "cancelinvocation"]
        assert len(cancelled) == len(set(cancelled))
        assert set(cancelled) <= calls


@pytest.mark.parametrize("engine_closes", [False, True])
async def test_a_block_cancelled_at_any_step_of_any_task_leaves_none_behind(
    autojump_clock: MockClock, engine_closes: bool
) -> None:
    worker = Worker("w")

    @worker.function("f")
    async def f(*, client: Client) -> None:
        await client.call("g", timeout=3)

    async with fake_engine() as engine:
        living = trio.lowlevel.current_statistics().tasks_living
        n, sweep = 0, CancelAtStep(0)
        while sweep.left <= 0:
            sweep = CancelAtStep(n)
            trio.lowlevel.add_instrument(sweep)
            with sweep.scope:
                async with worker.connect(open_stream=engine.open_stream) as client:
                    peer = engine.peers[-1]
                    await peer.call("f")
                    if engine_closes:
                        peer.connection.close(1012)
                    await client.send("note")
                    await trio.sleep(1)
            trio.lowlevel.remove_instrument(sweep)
            await trio.testing.wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == living
            assert all(peer.closed is not None for peer in engine.peers)
            n += 1
        assert n > 30


async def test_an_oversized_message_ends_only_what_it_was_about(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("f")
    async def f(payload: Any) -> Any:
        return payload

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        session = client._supervisor.current
        assert session is not None
        head = json.dumps({"type": "invokefunction", "invocation_id": "i", "function_id": "f", "data": "xx"}).encode()
        session._on_oversize(Oversize(head[:-4], 10**9))
        answer = await peer.receive("invocationresult")
        assert (answer["invocation_id"], answer["error"]["code"]) == ("i", "payload_too_large")
        session._on_oversize(Oversize(b"\x00", 10**9))
        assert (await peer.ask("f", 1))["result"] == 1


async def test_the_logger_names_function_and_invocation(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker("w")

    @worker.function("f")
    async def f(*, client: Client) -> None:
        client.log.info("within", {"n": 1})
        client.log.debug("unheard")
        client.log.warn("odd", object)
        client.log.error("bad")

    with caplog.at_level(logging.INFO, "iii_trio.worker"):
        async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
            await (await engine.peer()).ask("f", traceparent="00-a-b-01")
            client.log.info("outside")
    records = [record for record in caplog.records if record.name == "iii_trio.worker"]
    assert records[0].getMessage() == 'f: within {"n":1}'
    assert [record.levelname for record in records] == ["INFO", "WARNING", "ERROR", "INFO"]
    assert vars(records[0])["iii_function"] == "f"
    assert vars(records[0])["iii_worker"] == "w"
    assert vars(records[0])["iii_traceparent"] == "00-a-b-01"
    assert vars(records[0])["iii_data"] == {"n": 1}
    assert records[3].getMessage() == "outside"
    assert records[0].funcName == "f"
    assert current_invocation() is None
