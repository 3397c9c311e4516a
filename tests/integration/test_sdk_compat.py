"""`III` and its companions over real sockets: threads, event loops, signals, exit."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

sys.path.append(str(Path(__file__).parents[1] / "unit" / "sdk"))

import trio.lowlevel
from sdk_fake_engine import FakeEngine, Peer, fake_engine

from iii_sdk import III, InitOptions, InvocationError, RegistrationRejected, TriggerAction, register_worker
from iii_trio import NotConnected, Reconnect

in_thread = trio.to_thread.run_sync


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[tuple[FakeEngine, str]]:
    """A fake engine on a port of its own, and its URL."""
    with trio.fail_after(30):
        async with fake_engine(**options) as engine:
            listeners = await engine.nursery.start(partial(trio.serve_tcp, engine.serve, 0, host="127.0.0.1"))
            yield engine, f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"


@asynccontextmanager
async def client_of(url: str, **options: Any) -> AsyncIterator[III]:
    iii = await in_thread(partial(III, url, **options))
    try:
        yield iii
    finally:
        await iii.shutdown()


async def serve_calls(peer: Peer, **results: Any) -> None:
    """Answer every call by its function id; unknown ones with an error."""
    while True:
        call = await peer.receive("invokefunction")
        name = call["function_id"].replace("::", "_")
        if "invocation_id" not in call:
            continue
        if call.get("action", {}).get("type") == "enqueue":
            peer.answer(call, {"messageReceiptId": f"receipt for {call['action']['queue']}"})
        elif name in results:
            peer.answer(call, results[name])
        else:
            peer.answer(call, error={"code": "function_not_found", "message": f"no {name}"})


async def test_decorated_functions_are_registered_at_once_and_run_on_the_clients_thread() -> None:
    async with listening() as (engine, url), client_of(url, worker_name="embedding") as iii:
        peer = await engine.peer()
        assert (await peer.receive("invokefunction"))["data"]["name"] == "embedding"
        threads: list[threading.Thread] = []

        @iii.function(id="embedding::generate", description="text to vector")
        async def generate(data: dict[str, Any]) -> dict[str, Any]:
            await trio.lowlevel.checkpoint()
            threads.append(threading.current_thread())
            return {"dim": len(data["text"])}

        @iii.trigger(type="http", config={"api_path": "hello", "http_method": "GET"})
        @iii.function(id="plain")
        def plain(data: Any) -> Any:
            threads.append(threading.current_thread())
            return iii.call("other::f", {"from": "thread"})

        frame = await peer.receive("registerfunction")
        assert (frame["id"], frame["description"]) == ("embedding::generate", "text to vector")
        frame = await peer.receive("registertrigger")
        assert (frame["trigger_type"], frame["function_id"]) == ("http", "plain")
        assert (await peer.ask("embedding::generate", {"text": "abc"}))["result"] == {"dim": 3}
        await peer.call("plain")
        call = await peer.receive("invokefunction")
        assert call["data"] == {"from": "thread"}
        peer.answer(call, "answered")
        assert (await peer.receive("invocationresult"))["result"] == "answered"
        main = threading.current_thread()
        assert threads[0].daemon
        assert main not in threads
        assert threads[0] is not threads[1]
    assert (await peer.wait_closed()).code == 1000
    assert peer.types()[-2:] == ["unregisterfunction", "ping"]


async def test_requests_as_dicts_and_in_words() -> None:
    async with listening() as (engine, url), client_of(url) as iii:
        peer = await engine.peer()
        assert await in_thread(iii.wait_connected)
        engine.nursery.start_soon(partial(serve_calls, peer, math_add=3))
        request = {"function_id": "math::add", "payload": {"a": 1}, "timeout_ms": 5000, "metadata": {"m": 1}}
        assert await in_thread(iii.trigger, request) == 3
        sent = next(f for f in peer.frames if f.get("function_id") == "math::add")
        assert (sent["data"], sent["metadata"]) == ({"a": 1}, {"m": 1})
        assert sent["deadline_ms"] <= 5000
        assert await in_thread(iii.call, "math::add", {"a": 1}) == 3
        enqueue = {"function_id": "greet::process", "payload": 1, "action": TriggerAction.Enqueue(queue="default")}
        assert await in_thread(iii.trigger, enqueue) == {"messageReceiptId": "receipt for default"}
        enqueue["action"] = {"type": "enqueue", "queue": "q"}
        assert await iii.trigger_async(enqueue) == {"messageReceiptId": "receipt for q"}
        void = {"function_id": "state::set", "payload": {"scope": "s"}, "action": TriggerAction.Void()}
        assert await in_thread(iii.trigger, void) is None
        with pytest.raises(InvocationError, match="no nothing"):
            await in_thread(iii.call, "nothing")
        with pytest.raises(ValueError, match="function_id"):
            await in_thread(iii.call, {"payload": 1})
        with pytest.raises(ValueError, match="action"):
            await in_thread(iii.call, {"function_id": "f", "action": "later"})
        assert iii.get_connection_state() == "connected"
        assert iii.worker_id == "worker-1"
        assert iii.get_address() == url
        states: list[str] = []
        (await in_thread(iii.add_connection_state_listener, states.append))()
        assert states == ["connected"]


async def test_calls_are_awaited_in_trio_in_asyncio_and_in_handlers() -> None:
    async with listening() as (engine, url), client_of(url) as iii:
        peer = await engine.peer()

        @iii.function(id="handler")
        async def handler() -> Any:
            with pytest.raises(RuntimeError, match="call_async"):
                iii.call("f")
            return await iii.call_async("other")

        async def in_asyncio() -> Any:
            return await iii.call_async("other")

        engine.nursery.start_soon(partial(serve_calls, peer, other="yes"))
        assert await iii.call_async("other") == "yes"
        assert await in_thread(asyncio.run, in_asyncio()) == "yes"
        await peer.call("handler")
        while "invocationresult" not in peer.types():
            await peer._news.park()
        assert peer.frames[-1]["result"] == "yes"


async def test_awaiting_no_longer_cancels_the_call() -> None:
    async with listening() as (engine, url), client_of(url) as iii:
        peer, called = await engine.peer(), threading.Event()

        async def come() -> None:
            while (await peer.receive("invokefunction"))["function_id"] != "never":
                pass

        async def given_up_in_asyncio() -> None:
            call = asyncio.ensure_future(iii.call_async("never"))
            await asyncio.to_thread(called.wait)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, lambda: asyncio.run(given_up_in_asyncio()))
            await come()
            called.set()
            assert (await peer.receive("cancelinvocation"))["reason"] == "caller_cancelled"

        async def given_up() -> None:
            await iii.call_async("never")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(given_up)
            await come()
            nursery.cancel_scope.cancel()
        assert (await peer.receive("cancelinvocation"))["reason"] == "caller_cancelled"


async def test_functions_and_triggers_are_taken_back() -> None:
    async with listening() as (engine, url), client_of(url) as iii:
        peer = await engine.peer()

        async def handler(payload: Any) -> Any:
            return payload

        function = iii.register_function({"id": "f", "description": "old form"}, handler)
        trigger = iii.register_trigger({"type": "queue", "function_id": "f", "config": {"topic": "t"}})
        assert (await peer.receive("registerfunction"))["description"] == "old form"
        assert (await peer.receive("registertrigger"))["id"] == trigger.id
        with pytest.raises(ValueError, match="declared already"):
            iii.register_function("f", handler)
        with pytest.raises(ValueError, match="'function_id'"):
            iii.register_trigger({"type": "queue"})
        with pytest.raises(TypeError, match="cannot be called"):
            iii.register_function("g", {"url": "http://x"})  # type: ignore[arg-type]
        trigger.unregister()
        function.unregister()
        assert (await peer.receive("unregistertrigger"))["id"] == trigger.id
        assert (await peer.receive("unregisterfunction"))["id"] == "f"


class Fickle(Mapping[str, Any]):
    """A payload that cannot be read."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        return iter("a")

    def __getitem__(self, key: str) -> Any:
        raise LookupError(key)


async def test_what_goes_wrong_with_a_request_is_raised_where_it_was_made() -> None:
    def odd(data: "no annotation") -> None:  # type: ignore[valid-type]  # noqa: F722
        del data

    def fussy(state: str) -> None:
        raise LookupError(state)

    async with listening() as (engine, url), client_of(url) as iii:
        peer = await engine.peer()
        with pytest.raises(TypeError, match="annotations of the handler of function odd: "):
            await trio.to_thread.run_sync(iii.register_function, "odd", odd, abandon_on_cancel=True)
        with pytest.raises(LookupError):
            await trio.to_thread.run_sync(iii.add_connection_state_listener, fussy, abandon_on_cancel=True)
        with pytest.raises(LookupError):
            await iii.call_async("f", Fickle())
        iii.register_function("f", lambda data: data)
        assert (await peer.receive("registerfunction"))["id"] == "f"
        peer.connection.close(1012)
        await engine.peer()


async def test_register_worker_waits_for_the_connection_and_raises_a_rejection() -> None:
    async with listening() as (engine, url):
        options = InitOptions(worker_name="named", worker_description="d", namespace="n", headers={"X-A": "b"})
        iii = await in_thread(register_worker, url, options)
        assert iii.get_connection_state() == "connected"
        peer = await engine.peer()
        told = peer.frames[0]["data"]
        assert (told["name"], told["description"], told["namespace"]) == ("named", "d", "n")
        assert dict(peer.request.headers)["x-a"] == "b"
        await iii.shutdown()
        assert iii.get_connection_state() == "disconnected"
        with pytest.raises(InvocationError, match="SHUTDOWN"):
            await iii.call_async("f")
        with pytest.raises(InvocationError, match="SHUTDOWN"):
            iii.register_trigger({"type": "t", "function_id": "f"})
        await iii.shutdown()

    async with listening(answers_pings=False) as (engine, url):
        failures: list[BaseException] = []

        def register() -> None:
            try:
                register_worker(url, InitOptions(worker_name="taken"))
            except RegistrationRejected as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, register)
            peer = await engine.peer()
            await peer.receive("invokefunction")
            rejection = {"namespace": "default", "worker_name": "taken", "owner_worker_id": "w"}
            peer.send({"type": "registrationrejected", "code": "WORKER_NAMESPACE_CONFLICT", **rejection})
            await peer.wait_closed()
        assert len(failures) == 1


async def test_a_handler_in_a_thread_that_calls_after_the_end_is_told_so() -> None:
    async with listening() as (engine, url), client_of(url, worker_name="taken") as iii:
        begun, failed, over = threading.Event(), threading.Event(), threading.Event()
        told: list[BaseException] = []

        @iii.function(id="f")
        def f() -> None:
            begun.set()
            failed.wait(20)
            for _ in range(3):
                try:
                    iii.call("g")
                except NotConnected as error:
                    told.append(error)
            over.set()

        await in_thread(iii.add_connection_state_listener, lambda state: failed.set() if state == "failed" else None)
        peer = await engine.peer()
        await peer.receive("registerfunction")
        await peer.call("f")
        await in_thread(begun.wait)
        rejection = {"namespace": "default", "worker_name": "taken", "owner_worker_id": "w"}
        peer.send({"type": "registrationrejected", "code": "WORKER_NAMESPACE_CONFLICT", **rejection})
        assert await in_thread(over.wait, 10), "it waits for ever"
        await iii.shutdown()
        assert [str(error) for error in told] == [f"NOT_CONNECTED: {iii.failure}"] * 3
        assert isinstance(iii.failure, RegistrationRejected)


@pytest.mark.parametrize("in_task", [False, True])
async def test_a_handler_may_shut_the_client_down(in_task: bool) -> None:
    async with listening() as (engine, url), client_of(url) as iii:

        def stop() -> str:
            iii.shutdown()
            return "as you wish"

        async def stop_in_task() -> str:
            await iii.shutdown()
            return "as you wish"

        iii.register_function("stop", stop_in_task if in_task else stop)
        peer = await engine.peer()
        await peer.receive("registerfunction")
        await peer.call("stop")
        assert (await peer.receive("invocationresult")).get("result") == "as you wish"
        assert (await peer.wait_closed()).code == 1000


async def test_an_engine_that_is_not_there() -> None:
    with trio.fail_after(10):
        options = InitOptions(reconnection_config=Reconnect(max_retries=0))
        with pytest.raises(NotConnected, match=r"cannot connect to ws://127\.0\.0\.1:9: .*refused"):
            await in_thread(register_worker, "ws://127.0.0.1:9", options)
    with pytest.raises(ValueError, match="no WebSocket URL"):
        III("http://127.0.0.1")


SCRIPTS = {
    "serve": """
        iii = III(worker_name="script")
        @iii.function(id="f")
        async def f(data): return data
        iii.serve()
    """,
    "asyncio": """
        import asyncio, signal
        iii = III(worker_name="script")
        @iii.function(id="f")
        async def f(data): return data
        async def main():
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            await stop.wait()
            await iii.shutdown()
        asyncio.run(main())
    """,
    "plain": """
        import signal, threading
        iii = III(worker_name="script")
        @iii.function(id="f")
        async def f(data): return data
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        stop.wait()
    """,
    "worker": """
        from iii_trio import Worker
        worker = Worker("script")
        @worker.function("f")
        async def f(data): return data
        worker.serve()
    """,
}


@asynccontextmanager
async def program(command: list[str], url: str) -> AsyncIterator[trio.Process]:
    environment = {**os.environ, "III_URL": url, "PYTHONWARNINGS": "error"}
    environment.pop("III_WORKER_NAME", None)
    process = await trio.lowlevel.open_process(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def output_of(process: trio.Process) -> str:
    assert process.stdout is not None
    return b"".join([chunk async for chunk in process.stdout]).decode()


@pytest.mark.parametrize("name", SCRIPTS)
async def test_programs_of_every_form_end_cleanly_on_sigterm(name: str) -> None:
    script = "from iii_sdk import III\n" + textwrap.dedent(SCRIPTS[name])
    async with listening() as (engine, url), program(["-c", script], url) as process:
        peer = await engine.peer()
        await peer.receive("registerfunction")
        assert (await peer.ask("f", 1))["result"] == 1
        process.send_signal(signal.SIGTERM)
        assert (await peer.wait_closed()).code == 1000
        assert await process.wait() == 0
        output = await output_of(process)
        assert "Traceback" not in output
        assert "Warning" not in output


async def test_serve_lets_handlers_finish_and_a_second_signal_cancels_them() -> None:
    script = """
        import trio
        from iii_trio import Worker
        worker = Worker("script")
        @worker.function("f")
        async def f(seconds: float):
            await trio.sleep(seconds)
            return "done"
        worker.serve()
    """
    async with listening() as (engine, url):
        async with program(["-c", textwrap.dedent(script)], url) as process:
            peer = await engine.peer()
            await peer.receive("registerfunction")
            await peer.call("f", 0.3)
            process.send_signal(signal.SIGTERM)
            assert (await peer.receive("unregisterfunction"))["id"] == "f"
            assert (await peer.receive("invocationresult"))["result"] == "done"
            assert await process.wait() == 0
        async with program(["-c", textwrap.dedent(script)], url) as process:
            peer = await engine.peer()
            await peer.receive("registerfunction")
            await peer.call("f", 60)
            process.send_signal(signal.SIGINT)
            await peer.receive("unregisterfunction")
            process.send_signal(signal.SIGINT)
            with trio.fail_after(30):
                assert await process.wait() == 0
            assert "invocationresult" not in peer.types()


async def test_the_hello_example_as_a_process() -> None:
    example = Path(__file__).parents[2] / "examples" / "hello_worker.py"
    async with listening() as (engine, url), program([str(example)], url) as process:
        peer = await engine.peer()
        trigger = await peer.receive("registertrigger")
        assert trigger["config"] == {"api_path": "hello", "http_method": "GET"}
        await peer.call("hello::api", {"method": "GET", "path": "hello", "query_params": {}})
        enqueued = await peer.receive("invokefunction")
        assert enqueued["action"] == {"type": "enqueue", "queue": "default"}
        peer.answer(enqueued, {"messageReceiptId": "r"})
        assert (await peer.receive("invocationresult"))["result"] == {
            "status_code": 200,
            "headers": {},
            "body": {
                "message": "Hello request received! Processing in background.",
                "status": "processing",
                "appName": "III App",
            },
        }
        await peer.call(enqueued["function_id"], enqueued["data"])
        stored = await peer.receive("invokefunction")
        assert stored["function_id"] == "state::set"
        assert stored["data"]["scope"] == "greetings"
        assert stored["data"]["value"]["text"] == "Hello, world!"
        peer.answer(stored, {"old_value": None, "new_value": stored["data"]["value"]})
        assert (await peer.receive("invocationresult"))["result"] is None
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert "greeting stored" in await output_of(process)
