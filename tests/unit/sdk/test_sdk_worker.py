"""Declarations: what the decorators make of a handler, before anything is connected."""

import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from sdk_fake_engine import fake_engine
from trio.testing import MockClock

from iii_trio import Binding, HttpRequest, Worker, open_client
from iii_trio.sdk.dial import Address, handshake_headers
from iii_trio.sdk.identity import default_name, worker_name


async def noop(payload: Any) -> None:
    return None


def registered(worker: Worker) -> list[dict[str, Any]]:
    """What the worker registers, as decoded frames."""

    async def collect() -> list[dict[str, Any]]:
        async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
            return (await engine.peer()).frames[1:-1]

    frames: list[dict[str, Any]] = trio.run(collect, clock=MockClock(autojump_threshold=0))
    return frames


def test_every_trigger_decorator_makes_its_binding() -> None:
    worker = Worker("w", namespace="team")

    @worker.http("post", "users/:id", condition="c", middleware=["m"])
    @worker.queue("orders", max_retries=3, backoff_ms=100, type="fifo")
    @worker.state(scope="s", key="k")
    @worker.state()
    @worker.subscribe("news", metadata={"m": 1})
    @worker.cron("0 0 9 * * *")
    @worker.on("webhook", {"path": "/x"}, trigger_namespace="hooks")
    async def busy(payload: Any) -> None:
        return None

    function, *triggers = registered(worker)
    assert function["id"] == "w::busy"
    assert {t["function_id"] for t in triggers} == {"w::busy"}
    assert {t["namespace"] for t in triggers} == {"team"}
    assert len({t["id"] for t in triggers}) == 7
    assert [(t["trigger_type"], t["config"]) for t in reversed(triggers)] == [
        (
            "http",
            {
                "api_path": "users/:id",
                "http_method": "POST",
                "middleware_function_ids": ["m"],
                "condition_function_id": "c",
            },
        ),
        (
            "durable:subscriber",
            {"topic": "orders", "queue_config": {"maxRetries": 3, "backoffDelayMs": 100, "type": "fifo"}},
        ),
        ("state", {"scope": "s", "key": "k"}),
        ("state", {}),
        ("subscribe", {"topic": "news"}),
        ("cron", {"expression": "0 0 9 * * *"}),
        ("webhook", {"path": "/x"}),
    ]
    assert triggers[0]["trigger_namespace"] == "hooks"
    assert triggers[2]["metadata"] == {"m": 1}


@pytest.mark.parametrize("function_first", [True, False])
def test_decorators_stack_in_any_order(function_first: bool) -> None:
    worker = Worker("w")
    decorators = [worker.function(id="named"), worker.http("GET", "/")]
    handler = noop
    for decorate in decorators if function_first else reversed(decorators):
        assert decorate(handler) is handler
    assert worker.functions == {"named": noop}
    assert [f["type"] for f in registered(worker)] == ["registerfunction", "registertrigger"]


def test_ids_are_derived_declared_once_and_not_blank() -> None:
    worker = Worker("w")
    worker.function()(noop)
    assert list(worker.functions) == ["w::noop"]
    assert list(_declared(Worker())) == ["noop"]
    with pytest.raises(ValueError, match="'w::noop' already"):
        worker.function("other")(noop)

    async def another() -> None: ...

    with pytest.raises(ValueError, match="'w::noop' is declared already"):
        worker.function("w::noop")(another)
    with pytest.raises(ValueError, match="blank"):
        Worker().function(" ")(noop)


def _declared(worker: Worker) -> dict[str, Any]:
    worker.subscribe("t")(noop)
    return worker.functions


def test_a_derived_id_that_is_taken_is_an_error_when_connecting() -> None:
    worker = Worker("w")
    worker.subscribe("t")(noop)

    async def explicit() -> None: ...

    worker.function("w::noop")(explicit)
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="declared already")):
        registered(worker)


def test_handlers_that_cannot_work_are_refused_where_they_are_declared() -> None:
    worker = Worker()

    async def two(payload: Any, other: int) -> None: ...

    async def stream(payload: Any) -> AsyncIterator[int]:
        yield 1

    def generator() -> Any:
        yield 1

    for handler, words in (
        (two, "nothing fills its parameter 'other'"),
        (stream, "generator"),
        (generator, "generator"),
    ):
        with pytest.raises(TypeError, match=words):
            worker.function("f")(handler)
        with pytest.raises(TypeError, match=words):
            worker.cron("* * * * * *")(handler)
    with pytest.raises(ValueError, match="concurrency"):
        worker.function("f", concurrency=0)(noop)
    with pytest.raises(ValueError, match="on_disconnect"):
        worker.function("f", on_disconnect="explode")(noop)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no HTTP method"):
        worker.http("FETCH", "/")
    with pytest.raises(ValueError, match="concurrency"):
        Worker(concurrency=0)


def test_annotations_that_cannot_be_found_are_named() -> None:
    worker = Worker()

    @worker.function("f")
    async def f(payload: "Missing") -> None:  # type: ignore[name-defined]  # noqa: F821
        return None

    with pytest.RaisesGroup(pytest.RaisesExc(TypeError, match="handler of function f: name 'Missing'")):
        registered(worker)


async def test_partials_methods_and_callable_objects_are_handlers(autojump_clock: MockClock) -> None:
    async def add(n: int, *, by: int = 0) -> int:
        return n + by

    class Service:
        async def double(self, n: int) -> int:
            return 2 * n

        async def __call__(self, n: int) -> int:
            return -n

    worker = Worker("w")
    service = Service()
    worker.function("partial")(functools.partial(add, by=3))
    worker.function("method")(service.double)
    worker.function("object")(service)
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        assert [f["request_format"]["type"] for f in peer.frames[1:4]] == ["integer"] * 3
        for function_id, result in (("partial", 8), ("method", 10), ("object", -5)):
            assert (await peer.ask(function_id, 5))["result"] == result
            assert (await peer.ask(function_id, "x"))["error"]["code"] == "INVALID_INPUT"


def test_given_formats_and_http_models() -> None:
    worker = Worker("w")

    @worker.function("given", request_format={"type": "array"}, response_format={"type": "null"})
    async def given(payload: int) -> int:
        return payload

    @worker.function("http")
    async def http(request: HttpRequest) -> dict[str, Any]:
        return {}

    frames = registered(worker)
    assert (frames[0]["request_format"], frames[0]["response_format"]) == ({"type": "array"}, {"type": "null"})
    assert "path_params" in frames[1]["request_format"]["properties"]


async def test_one_worker_may_be_connected_twice(autojump_clock: MockClock) -> None:
    worker = Worker("w")
    worker.subscribe("t")(noop)
    async with (
        fake_engine() as engine,
        worker.connect(open_stream=engine.open_stream),
        worker.connect(open_stream=engine.open_stream),
    ):
        frames = [frame for _ in range(2) for frame in (await engine.peer()).frames]
        assert len({frame["id"] for frame in frames if frame["type"] == "registertrigger"}) == 2


async def test_run_starts_when_registered(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    worker = Worker("w")
    worker.function("f")(noop)
    async with fake_engine() as engine, trio.open_nursery() as tasks:

        async def run(task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
            await worker.run(open_stream=engine.open_stream, task_status=task_status)

        client = await tasks.start(run)
        assert client.worker_id == "worker-1"
        assert "registerfunction" in engine.peers[0].types()
        tasks.cancel_scope.cancel()


async def test_a_worker_provides_a_trigger_type(autojump_clock: MockClock) -> None:
    bound: dict[str, Binding] = {}

    class Timer:
        async def bind(self, binding: Binding) -> None:
            await trio.sleep(1)
            if binding.config is None:
                raise ValueError("a timer needs a config")
            bound[binding.id] = binding

        async def unbind(self, binding_id: str) -> None:
            bound.pop(binding_id, None)

    worker = Worker("w")
    worker.provide("timer", Timer(), description="ticks", config_schema={"type": "object"})
    with pytest.raises(ValueError, match="declared already"):
        worker.provide("timer", Timer())
    async with fake_engine() as engine, worker.connect(open_stream=engine.open_stream):
        peer = await engine.peer()
        frame = await peer.receive("registertriggertype")
        assert (frame["id"], frame["description"], frame["trigger_request_format"]) == (
            "timer",
            "ticks",
            {"type": "object"},
        )
        binding = {"type": "registertrigger", "id": "b", "trigger_type": "timer", "function_id": "f", "namespace": "n"}
        peer.send({**binding, "config": {"s": 1}, "metadata": 5})
        peer.send({**binding, "id": "c", "config": None})
        peer.send({**binding, "id": "d", "trigger_type": "unknown", "config": {}})
        answer = await peer.receive("triggerregistrationresult")
        assert answer == {"type": "triggerregistrationresult", "id": "b", "trigger_type": "timer", "function_id": "f"}
        assert (bound["b"].config, bound["b"].metadata, bound["b"].namespace) == ({"s": 1}, 5, "n")
        error = (await peer.receive("triggerregistrationresult"))["error"]
        assert error == {"code": "trigger_registration_failed", "message": "a timer needs a config"}
        assert (await peer.receive("triggerregistrationresult"))["error"]["code"] == "trigger_type_not_found"
        peer.send({"type": "unregistertrigger", "id": "b", "trigger_type": "timer"})
        await peer.settle()
        assert bound == {}


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("III_URL", raising=False)
    assert Address.parse().url == "ws://127.0.0.1:49134"
    monkeypatch.setenv("III_URL", "ws://engine:1234/base?x=1")
    address = Address.parse()
    assert (address.host, address.port, address.target, address.host_header) == (
        "engine",
        1234,
        "/base?x=1",
        "engine:1234",
    )
    assert Address.parse("wss://a.b").port == 443
    assert Address.parse("wss://a.b").host_header == "a.b"
    assert Address.parse("ws://[::1]:5").host_header == "[::1]:5"
    for bad in ("http://x", "localhost:49134", "ws://", "ws://x:99999"):
        with pytest.raises(ValueError, match="URL"):
            Address.parse(bad)
        with pytest.raises(ValueError, match="URL"):
            trio.run(_enter, bad)


async def _enter(url: str) -> None:
    async with open_client(url):
        pass


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("III_WORKER_NAME", raising=False)
    assert worker_name("mine") == "mine"
    assert default_name() != default_name()
    monkeypatch.setenv("III_WORKER_NAME", "deployed-1")
    assert worker_name("mine") == "deployed-1"
    monkeypatch.setenv("III_NAMESPACE", " ")
    assert Worker().namespace is None
    monkeypatch.setenv("III_NAMESPACE", "team")
    assert Worker().namespace == "team"
    assert Worker(namespace="other").namespace == "other"
    with pytest.raises(ValueError, match="empty"):
        Worker(namespace=" ")


def test_a_blank_token_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("III_TOKEN", " ")
    assert handshake_headers({"A": "b"}) == [("A", "b")]
