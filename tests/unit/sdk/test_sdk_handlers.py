"""Handlers: how they are called, limited, cancelled, and how their ends are answered."""

import logging
import threading
from typing import Any

import pytest
import trio
from attrs import frozen
from sdk_fake_engine import Peer, fake_engine
from trio.testing import MockClock

from iii_trio import Client, HttpRequest, HttpResponse, Invocation, InvocationError, Worker
from iii_trio.sdk import handlers

AJAR = "00000000-0000-4000-8000-00000000aaaa"


@frozen
class Order:
    id: int
    note: str | None = None


async def test_results_and_their_absence(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("typed")
    async def typed(order: Order) -> Order:
        return Order(order.id + 1)

    @worker.function("raw")
    async def raw(payload: Any) -> Any:
        return payload

    @worker.function("nothing")
    async def nothing() -> None:
        return None

    @worker.function("http")
    async def http(request: HttpRequest) -> HttpResponse:
        return HttpResponse(201, {"x-path": request.path}, {"id": request.path_params["id"], "got": request.body})

    @worker.function("empty")
    async def empty(request: HttpRequest) -> None:
        return None

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        answer = await peer.ask("typed", {"id": 1, "_caller_worker_id": "w-1"})
        assert answer["result"] == {"id": 2, "note": None}
        assert "error" not in answer
        assert (await peer.ask("raw", {"a": [1, None], "_caller_worker_id": "w"}))["result"]["a"] == [1, None]
        answer = await peer.ask("nothing", {"a": 1})
        assert "result" in answer
        assert answer["result"] is None
        request = {"method": "GET", "path": "/u/:id", "path_params": {"id": "7"}, "body": [1], "trigger": {}}
        assert (await peer.ask("http", request))["result"] == {
            "status_code": 201,
            "headers": {"x-path": "/u/:id"},
            "body": {"id": "7", "got": [1]},
        }
        assert (await peer.ask("empty", request))["result"]["status_code"] == 204
        assert (await peer.ask("unknown"))["error"] == {
            "code": "function_not_found",
            "message": "Function 'unknown' not found",
        }


async def test_a_payload_that_does_not_fit_is_refused_before_the_handler_runs(autojump_clock: MockClock) -> None:
    worker = Worker("w")
    ran = []

    @worker.function("typed")
    async def typed(order: Order) -> None:
        ran.append(order)

    @worker.function("lenient", validate=False)
    async def lenient(order: Order) -> Any:
        return order

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        error = (await peer.ask("typed", {"id": "one"}))["error"]
        assert error == {"code": "INVALID_INPUT", "message": "payload of typed: expected an integer, got text @ $.id"}
        assert (await peer.ask("typed"))["error"]["message"] == "payload of typed: expected an object, got null"
        assert ran == []
        assert (await peer.ask("lenient", {"id": "one"}))["result"] == {"id": "one"}


async def test_injected_parameters(autojump_clock: MockClock) -> None:
    worker = Worker("w")
    seen: dict[str, Any] = {}

    @worker.function("all")
    async def everything(payload: Any, metadata: Any, *, invocation: Invocation, client: Client) -> None:
        seen.update(payload=payload, metadata=metadata, invocation=invocation, client=client)

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        await peer.ask("all", {"_caller_worker_id": "w-7"}, metadata={"m": 1})
        assert seen["metadata"] == {"m": 1}
        assert seen["client"] is client
        assert (seen["invocation"].function_id, seen["invocation"].caller_worker_id) == ("all", "w-7")
        await peer.ask("all", 5)
        assert (seen["payload"], seen["metadata"], seen["invocation"].caller_worker_id) == (5, None, None)


async def test_what_a_handler_raises_is_answered_and_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker("w")

    @worker.function("plain")
    async def plain() -> None:
        raise LookupError("no such order")

    @worker.function("typed")
    async def typed() -> None:
        raise InvocationError("too poor", "insufficient_funds")

    @worker.function("group")
    async def group() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plain)

    @worker.function("unspeakable")
    async def unspeakable() -> Any:
        return {"a": object()}

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        for function_id in ("plain", "group"):
            answer = await peer.ask(function_id)
            assert "result" not in answer
            assert answer["error"]["code"] == "invocation_failed"
            assert answer["error"]["message"] == "no such order"
            assert "LookupError: no such order" in answer["error"]["stacktrace"]
            assert 'raise LookupError("no such order")' in answer["error"]["stacktrace"]
            assert "sdk/handlers.py" not in answer["error"]["stacktrace"]
        answer = await peer.ask("typed")
        assert (answer["error"]["code"], answer["error"]["message"]) == ("insufficient_funds", "too poor")
        answer = await peer.ask("unspeakable")
        assert answer["error"]["code"] == "serialization_error"
        assert "result of unspeakable" in answer["error"]["message"]
        statistics = client.statistics().session
        assert statistics is not None
        assert (statistics.handlers.failed, statistics.handlers.running) == (4, 0)
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 2
    assert all("invocation 0000" in record.getMessage() and record.exc_info for record in failures)


async def test_a_result_above_the_limit_becomes_an_error(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("huge")
    async def huge() -> str:
        return "x" * (64 * 2**20)

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        answer = await (await engine.peer()).ask("huge")
        assert answer["error"]["code"] == "payload_too_large"


async def test_cancelinvocation_cancels_the_handler_with_the_reason(autojump_clock: MockClock) -> None:
    worker = Worker("w")
    cleaned_up: list[str] = []

    @worker.function("wait")
    async def wait() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            cleaned_up.append(str(cancelled))
            raise

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        await peer.call("wait", invocation_id=AJAR)
        await peer.settle()
        peer.send({"type": "cancelinvocation", "invocation_id": "someone-else's"})
        peer.send({"type": "cancelinvocation", "invocation_id": AJAR, "reason": "caller_disconnected"})
        answer = await peer.receive("invocationresult")
        assert answer["error"] == {
            "code": "invocation_cancelled",
            "message": "wait was cancelled: caller_disconnected",
        }
        assert "caller_disconnected" in cleaned_up[0]
        statistics = client.statistics().session
        assert statistics is not None
        assert statistics.handlers.cancelled == 1


async def test_what_is_read_in_the_moment_in_which_the_handlers_end_is_left_alone(autojump_clock: MockClock) -> None:
    """A client that is cancelled may have read an invocation already that its reader has not looked at."""
    worker = Worker("w")

    @worker.function("f")
    async def f() -> None:
        raise AssertionError("it is too late")

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        session = client._supervisor.current
        assert session is not None
        session.handlers.stop()
        await peer.settle()
        await peer.call("f")
        await peer.settle()
        assert peer.closed is None
        assert session.statistics().handlers.running == 0


async def test_a_handler_that_is_cancelled_before_its_turn_does_not_begin(autojump_clock: MockClock) -> None:
    worker = Worker("w")
    begun: list[str] = []

    @worker.function("quick")
    async def quick() -> None:
        begun.append("quick")

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.settle()
        peer.send({"type": "invokefunction", "invocation_id": AJAR, "function_id": "quick", "data": None})
        peer.send({"type": "cancelinvocation", "invocation_id": AJAR, "reason": "caller_cancelled"})
        assert (await peer.receive("invocationresult"))["error"]["code"] == "invocation_cancelled"
        assert not begun
        assert "result" in await peer.ask("quick")


async def test_a_cancelled_handler_cancels_its_own_calls(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("outer")
    async def outer(*, client: Client) -> Any:
        return await client.call("inner")

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("outer", invocation_id=AJAR)
        inner = await _call_of(peer, "inner")
        peer.send({"type": "cancelinvocation", "invocation_id": AJAR, "reason": "caller_cancelled"})
        cancel = await peer.receive("cancelinvocation")
        assert cancel["invocation_id"] == inner["invocation_id"]
        assert (await peer.receive("invocationresult"))["error"]["code"] == "invocation_cancelled"


async def _call_of(peer: Peer, function_id: str) -> dict[str, Any]:
    while (call := await peer.receive("invokefunction"))["function_id"] != function_id:
        pass
    return call


async def test_a_handler_ends_with_its_deadline(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("wait")
    async def wait() -> None:
        await trio.sleep_forever()

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        began = trio.current_time()
        answer = await peer.ask("wait", deadline_ms=1500)
        assert answer["error"]["code"] == "TIMEOUT"
        assert trio.current_time() - began == 1.5


async def test_a_lost_connection_cancels_handlers_except_those_that_finish(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker("w")
    ends: list[str] = []

    @worker.function("cancelled")
    async def cancelled() -> None:
        try:
            await trio.sleep(100)
        finally:
            ends.append("cancelled")

    @worker.function("crashes")
    async def crashes() -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                await trio.sleep(100)
        finally:
            raise ValueError("while cleaning up")

    @worker.function("finishes", on_disconnect="finish")
    async def finishes() -> None:
        await trio.sleep(100)
        ends.append("finished")

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        for function_id in ("cancelled", "crashes", "finishes"):
            await peer.call(function_id, invocation_id=AJAR[:-1] + str(len(function_id) % 10))
        await peer.settle()
        peer.connection.abort()
        second = await engine.peer()
        assert ends == ["cancelled"]
        assert "while cleaning up" in caplog.text
        await trio.sleep(200)
        assert ends == ["cancelled", "finished"]
        assert client.connection_state == "connected"
        assert "invocationresult" not in second.types()


async def test_a_function_runs_as_often_at_once_as_it_says_and_all_as_the_worker_says(
    autojump_clock: MockClock,
) -> None:
    worker = Worker("w", concurrency=3)
    running = {"narrow": 0, "wide": 0}
    peak: list[tuple[int, int]] = []

    async def work(name: str) -> None:
        running[name] += 1
        peak.append((running["narrow"], running["wide"]))
        await trio.sleep(1)
        running[name] -= 1

    @worker.function("narrow", concurrency=2)
    async def narrow() -> None:
        await work("narrow")

    @worker.function("wide")
    async def wide() -> None:
        await work("wide")

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        began = trio.current_time()
        for number in range(12):
            await peer.call("narrow" if number % 2 else "wide", invocation_id=f"{AJAR[:-2]}{number:02d}")
        for _ in range(12):
            await peer.receive("invocationresult")
        assert max(n for n, _ in peak) == 2
        assert max(n + w for n, w in peak) == 3
        assert trio.current_time() - began <= 5


async def test_beyond_the_backlog_the_socket_is_not_read_until_handlers_have_ended(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "BACKLOG", 5)
    worker = Worker("w", concurrency=1)

    @worker.function("f")
    async def f() -> None:
        await trio.sleep(0.5)

    payload = "x" * 60_000  # about one to a chunk: what one read brings is taken whole
    async with (
        fake_engine(lockstep=True) as engine,
        worker.connect(open_stream=engine.open_stream) as client,
    ):
        peer = await engine.peer()
        held: list[int] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for number in range(40):
                    await peer.call("f", payload, invocation_id=f"{AJAR[:-2]}{number:02d}")
                    await trio.sleep(0.01)

            @nursery.start_soon
            async def watch() -> None:
                await trio.sleep(2)
                statistics = client.statistics().session
                assert statistics is not None
                held.append(statistics.handlers.waiting)
                assert statistics.connection.reading_paused

            for _ in range(40):
                await peer.receive("invocationresult")
        assert held[0] <= 7
        assert client.connection_state == "connected"
        assert len(engine.peers) == 1


async def test_a_full_backlog_does_not_hold_back_the_answers_handlers_wait_for(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "BACKLOG", 3)
    monkeypatch.setattr(handlers, "BACKLOG_HARD", 10)
    worker = Worker("w", concurrency=1)

    @worker.function("nested")
    async def nested(*, client: Client) -> Any:
        return await client.call("inner", timeout=3)

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        for number in range(20):
            await peer.call("nested", invocation_id=f"{AJAR[:-2]}{number:02d}")
        await peer.settle()
        refused = [f for f in peer.frames if f["type"] == "invocationresult"]
        assert {f["error"]["code"] for f in refused} <= {"worker_overloaded"}
        began = trio.current_time()
        for _ in range(20 - len(refused)):
            call = await _call_of(peer, "inner")
            peer.answer(call, "deep")
        await peer.settle()
        answers = [f for f in peer.frames if f["type"] == "invocationresult"]
        assert len(answers) == 20
        assert sum(f.get("result") == "deep" for f in answers) == 20 - len(refused)
        assert trio.current_time() - began < 1


async def test_plain_functions_run_in_threads_and_may_call() -> None:
    worker = Worker("w")
    threads: list[str] = []

    @worker.function("sync")
    def sync(payload: int, invocation: Invocation) -> Any:
        threads.append(threading.current_thread().name)
        return invocation.client.from_thread.call("inner", payload + 1)

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("sync", 1, traceparent="00-t-s-01")
        inner = await _call_of(peer, "inner")
        assert (inner["data"], inner["traceparent"]) == (2, "00-t-s-01")
        peer.answer(inner, "done")
        assert (await peer.receive("invocationresult"))["result"] == "done"
        assert threads != [threading.current_thread().name]


async def test_draining_takes_registrations_back_and_lets_handlers_finish(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.subscribe("t")
    @worker.function("slow")
    async def slow(seconds: float) -> str:
        await trio.sleep(seconds)
        return "done"

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        await peer.call("slow", 5, invocation_id=AJAR[:-1] + "1")
        await peer.call("slow", 50, invocation_id=AJAR[:-1] + "2")
        await peer.settle()
        began = trio.current_time()
        await client.drain(10)
        assert trio.current_time() - began == pytest.approx(10)
        await peer.settle()
        tail = [f for f in peer.frames if f["type"] in ("unregistertrigger", "unregisterfunction", "invocationresult")]
        assert [f["type"] for f in tail] == [
            "unregistertrigger",
            "unregisterfunction",
            "invocationresult",
            "invocationresult",
        ]
        assert tail[1]["id"] == "slow"
        assert tail[2]["result"] == "done"
        assert tail[3]["error"]["message"] == "slow was cancelled: shutdown"
    assert len(engine.dialled_at) == 1


async def test_draining_serves_what_was_routed_before_it(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("f")
    async def f() -> str:
        await trio.sleep(1)
        return "served"

    async with fake_engine(answers_pings=False) as engine, worker.connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.drain)
            await peer.receive("unregisterfunction")
            answer = await peer.ask("f")
            assert answer["result"] == "served"


async def test_functions_added_and_removed_while_connected(autojump_clock: MockClock) -> None:
    from iii_trio import Function

    async def late(payload: Any) -> Any:
        return payload

    async with fake_engine() as engine, Worker("w").connect(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        client.add_function(Function(id="late", handler=late))
        assert (await peer.receive("registerfunction"))["id"] == "late"
        with pytest.raises(ValueError, match="declared already"):
            client.add_function(Function(id="late", handler=late))
        assert (await peer.ask("late", 3))["result"] == 3
        client.remove_function("late")
        client.remove_function("late")
        assert (await peer.receive("unregisterfunction"))["id"] == "late"
        assert (await peer.ask("late", 3))["error"]["code"] == "function_not_found"


async def test_an_invocation_that_comes_twice_runs_once(autojump_clock: MockClock) -> None:
    worker = Worker("w")
    ran = []

    @worker.function("f")
    async def f() -> None:
        ran.append(1)
        await trio.sleep(1)

    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        await peer.call("f", invocation_id=AJAR)
        await peer.call("f", invocation_id=AJAR)
        await peer.receive("invocationresult")
        await trio.sleep(5)
        assert ran == [1]
        assert peer.types().count("invocationresult") == 1
