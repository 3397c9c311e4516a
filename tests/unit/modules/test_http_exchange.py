"""HTTP requests through the ASGI application, in an engine without sockets and under a virtual clock."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from trio.testing import MockClock, wait_all_tasks_blocked

from iii_trio.config import CorsSettings, HttpSettings, Live
from iii_trio.engine import (
    NOTHING,
    Binding,
    BindingState,
    Call,
    Engine,
    FunctionEntry,
    LocalPeer,
    Outcome,
    open_engine,
    open_local,
)
from iii_trio.modules.http import HttpModule, asgi
from iii_trio.modules.http.decision import Answer
from iii_trio.modules.http.messages import Response
from iii_trio.protocol import ABSENT, NULL, Json
from iii_trio.protocol.errors import WireError

JSON = {"content-type": "application/json"}


@define
class Reply:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return Json(self.body).decode()

    @property
    def code(self) -> str:
        code: str = self.json["error"]["code"]
        return code


class Client:
    """One request, as a server would hand it to the application; `left` it can be at any time."""

    def __init__(
        self, module: HttpModule, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        path, _, query = target.partition("?")
        fields = dict(headers or {}) | ({"content-length": str(len(body))} if body else {})
        self.scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "raw_path": path.encode(),
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        }
        self.module = module
        self.reply: Reply | None = None
        self.ended = trio.Event()
        self.ended_at = 0.0
        self._to_app, self._inbox = trio.open_memory_channel[dict[str, Any]](1000)
        if body or not fields.keys() & {"transfer-encoding", "content-length"}:
            self.sends(body, more=False)

    def sends(self, chunk: bytes, *, more: bool = True) -> None:
        self._to_app.send_nowait({"type": "http.request", "body": chunk, "more_body": more})

    def leaves(self) -> None:
        self._to_app.send_nowait({"type": "http.disconnect"})

    @property
    def unread(self) -> int:
        return self._inbox.statistics().current_buffer_used

    async def run(self) -> Reply | None:
        await self.module.app(self.scope, self._inbox.receive, self._send)
        self.ended_at = trio.current_time()
        self.ended.set()
        return self.reply

    async def _send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert self.reply is None
            headers = {name.decode(): value.decode() for name, value in message["headers"]}
            assert len(headers) == len(message["headers"])
            self.reply = Reply(message["status"], headers)
        else:
            assert self.reply is not None
            self.reply.body += message.get("body", b"")
        await trio.lowlevel.checkpoint()


@define
class House:
    """An engine with the module under test and a peer that plays all workers."""

    core: Engine
    module: HttpModule
    peer: LocalPeer
    settings: Live[HttpSettings]
    bindings: int = field(default=0, init=False)

    def route(self, path: str, function_id: str = "f", *, owner: LocalPeer | None = None, **more: Any) -> Binding:
        """Bind a route; `method`, `condition`, `namespace` and `metadata` as in a trigger message."""
        self.bindings += 1
        config = {"api_path": path, "http_method": more.get("method"), "condition_function_id": more.get("condition")}
        metadata = more.get("metadata")
        binding = Binding(
            id=f"t{self.bindings}",
            trigger_type="http",
            function_id=function_id,
            config=Json.of(config),
            metadata=ABSENT if metadata is None else Json.of(metadata),
            owner=owner,
            namespace=more.get("namespace", "default"),
        )
        self.core.triggers.register(binding)
        return binding

    def function(self, function_id: str, result: Any = None, namespace: str = "default") -> list[Any]:
        """A function that answers `result` at once; returns the list of what it was called with."""
        inputs: list[Any] = []

        def handler(call: Call, data: Json) -> Outcome:
            inputs.append(data.decode())
            return Outcome(Json.of(result))

        entry = FunctionEntry(
            id=function_id, namespace=namespace, owner=self.peer, builtin=True, handler=(False, handler)
        )
        self.core.functions.claim(entry)
        return inputs

    def slow(self, function_id: str, seconds: float) -> list[str]:
        """A function that answers after a time; returns what became of its calls."""
        story: list[str] = []

        async def handler(call: Call, data: Json) -> Json:
            story.append("started")
            try:
                await trio.sleep(seconds)
            except trio.Cancelled:
                story.append("cancelled")
                raise
            story.append("done")
            return Json.of({"body": "slow"})

        self.peer.register(function_id, handler, task=True)
        return story

    def client(self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Client:
        return Client(self.module, method, target, headers, body)

    async def ask(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Reply:
        reply = await self.client(method, target, headers, body).run()
        assert reply is not None
        return reply

    def change(self, **settings: Any) -> None:
        self.settings.set(evolve(self.settings.value, **settings))

    def answers(self, answer: Answer) -> int:
        statistics = self.module.statistics().exchange
        assert statistics is not None
        return statistics.answers[answer]


@asynccontextmanager
async def open_house(**settings: Any) -> AsyncIterator[House]:
    live = Live(HttpSettings(**settings))
    module = HttpModule(live, listen=False)
    async with open_engine() as core, trio.open_nursery() as nursery:
        await nursery.start(module.run, core)
        async with open_local(core, "workers") as peer:
            yield House(core, module, peer, live)
            assert core.statistics().running == 0
        nursery.cancel_scope.cancel()


# -- the whole way ----------------------------------------------------------------------------------------------------


async def test_a_request_reaches_its_function_and_the_result_becomes_the_response(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        inputs = house.function("hello", {"status_code": 201, "headers": {"x-a": "b"}, "body": {"message": "hi"}})
        house.route("hello/:name", "hello", method="POST")
        reply = await house.ask("/hello/you?q=1", "POST", JSON, b'{"a": [1]}')
        replied_id = reply.headers.pop("x-request-id")
        assert reply == Reply(
            201,
            {
                "content-type": "application/json",
                "x-a": "b",
                "access-control-allow-origin": "*",
                "access-control-expose-headers": "*",
                "vary": "origin, access-control-request-method, access-control-request-headers",
                "content-length": "16",
            },
            b'{"message":"hi"}',
        )
        (given,) = inputs
        assert given.pop("request_body")["direction"] == "read"
        assert given.pop("response")["direction"] == "write"
        request = given.pop("request")
        request_id = given["headers"].pop("x-request-id")
        assert replied_id == request_id == request.pop("id")
        assert request == {
            "path": "/hello/you",
            "query": "q=1",
            "scheme": "http",
            "client": "",
            "http_version": "1.1",
        }
        assert inputs == [
            {
                "query_params": {"q": "1"},
                "path_params": {"name": "you"},
                "headers": {"content-type": "application/json", "content-length": "10"},
                "path": "hello/:name",
                "method": "POST",
                "trigger": {"type": "http", "path": "hello/:name", "method": "POST"},
                "body": {"a": [1]},
            }
        ]


async def test_metadata_trace_and_baggage_go_with_the_call(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        calls: list[tuple[bytes, str | None, str | None]] = []

        def handler(call: Call, data: Json) -> Outcome:
            calls.append((call.metadata, call.traceparent, call.baggage))
            return NOTHING

        house.peer.register("f", handler)
        house.route("/x", metadata={"team": "a"})
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        await house.ask("/x", headers={"traceparent": trace, "baggage": "k=v"})
        assert calls == [(b'{"team":"a"}', trace, "k=v")]


@pytest.mark.parametrize("outcome", [NOTHING, Outcome(NULL)])
async def test_a_handler_that_returns_nothing_gives_204(
    outcome: Outcome,
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        house.peer.register("f", lambda call, data: outcome)
        house.route("/x")
        reply = await house.ask("/x")
        assert (reply.status, reply.body) == (204, b"")
        assert "content-length" not in reply.headers
        assert reply.headers["access-control-allow-origin"] == "*"


async def test_not_found_and_method_not_allowed(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        house.route("/x")
        house.route("/x", method="POST")
        missing, refused = await house.ask("/y"), await house.ask("/x", "PUT")
        assert (missing.status, missing.json) == (404, {"error": {"code": "NOT_FOUND", "message": "Not Found"}})
        assert (refused.status, refused.code) == (405, "METHOD_NOT_ALLOWED")
        assert refused.headers["allow"] == "GET,HEAD,POST"
        assert missing.headers["access-control-allow-origin"] == refused.headers["access-control-allow-origin"] == "*"


async def test_head_has_the_heads_of_get_and_no_body(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        inputs = house.function("f", {"body": "text"})
        house.route("/x")
        named = {"x-request-id": "one"}
        get, head = await house.ask("/x", headers=named), await house.ask("/x", "HEAD", named)
        assert (head.status, head.body, head.headers) == (200, b"", get.headers)
        assert (inputs[1]["method"], inputs[1]["trigger"]["method"]) == ("HEAD", "GET")


async def test_options_is_answered_for_any_path_and_a_route_gets_what_is_no_preflight(
    autojump_clock: MockClock,
) -> None:
    async with open_house(cors=CorsSettings(allowed_origins=("https://a",), allowed_methods=("GET",))) as house:
        inputs = house.function("f", {"body": 1})
        house.route("/x", method="OPTIONS")
        preflight = {"origin": "https://a", "access-control-request-method": "GET"}
        for path in ("/x", "/y"):
            reply = await house.ask(path, "OPTIONS", preflight)
            assert (reply.status, reply.body) == (200, b"")
            assert reply.headers["access-control-allow-origin"] == "https://a"
            assert reply.headers["access-control-allow-methods"] == "GET"
            assert reply.headers["vary"] == "origin, access-control-request-method, access-control-request-headers"
        house.change(cors=None)
        assert (await house.ask("/y", "OPTIONS")).headers["access-control-allow-methods"] == "*"
        assert inputs == []
        assert (await house.ask("/x", "OPTIONS")).json == 1
        assert inputs[0]["method"] == "OPTIONS"


# -- failures ---------------------------------------------------------------------------------------------------------


async def test_a_handlers_error_is_500_with_an_id_that_is_in_the_log(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with open_house() as house:

        def handler(call: Call, data: Json) -> Outcome:
            raise WireError("no such order", "orders::missing", "stack")

        house.peer.register("f", handler)
        house.route("/x")
        replies = [await house.ask("/x") for _ in range(2)]
        errors = [reply.json["error"] for reply in replies]
        assert [(e["code"], e["message"]) for e in errors] == [("orders::missing", "no such order")] * 2
        assert [reply.status for reply in replies] == [500, 500]
        assert errors[0]["error_id"] != errors[1]["error_id"]
        assert errors[0]["error_id"] in caplog.text
        assert "stack" not in str(errors)


async def test_clients_need_not_be_told_what_a_failed_function_said(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with open_house(expose_errors=False) as house:
        house.peer.register("f", lambda call, data: Outcome.failed(WireError("no table orders", "db::broken")))
        house.route("/x")
        reply = await house.ask("/x")
        error = reply.json["error"]
        assert (reply.status, error["code"], error["message"]) == (500, "INTERNAL_ERROR", "internal server error")
        assert f"db::broken: no table orders (error_id {error['error_id']})" in caplog.text


async def test_a_route_without_its_function_is_500(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        house.route("/x", "gone", namespace="orders")
        reply = await house.ask("/x")
        assert (reply.status, reply.code) == (500, "function_not_found")
        assert reply.json["error"]["message"] == "Function gone not found in namespace orders"


async def test_an_overloaded_worker_is_503_with_retry_after(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        house.peer.register("f", lambda call, data: Outcome.failed(WireError("busy", "worker_overloaded")))
        house.route("/x")
        reply = await house.ask("/x")
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "worker_overloaded", "1")


async def test_a_result_that_cannot_be_read_is_500_internal_error(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        house.peer.register("f", lambda call, data: Outcome(Json(b'{"body":1e999}')))
        house.route("/x")
        reply = await house.ask("/x")
        assert (reply.status, reply.code) == (500, "INTERNAL_ERROR")
        assert reply.json["error"]["message"] == "internal server error"


async def test_the_deadline_gives_504_with_cors_and_cancels_the_handler(
    autojump_clock: MockClock,
) -> None:
    async with open_house(default_timeout=1500) as house:
        story = house.slow("f", 100)
        house.route("/x")
        reply = await house.ask("/x")
        assert trio.current_time() == pytest.approx(1.5)
        assert (reply.status, reply.code) == (504, "TIMEOUT")
        assert reply.headers["access-control-allow-origin"] == "*"
        await wait_all_tasks_blocked()
        assert story == ["started", "cancelled"]
        assert house.answers(Answer.TIMED_OUT) == 1


@pytest.mark.parametrize(("timeout", "took_s"), [(700, 0.7), (5000, 5), (None, 1.5), ("1", 1.5), (0, 1.5), (True, 1.5)])
async def test_a_route_may_have_a_deadline_of_its_own(
    timeout: object, took_s: float, autojump_clock: MockClock
) -> None:
    async with open_house(default_timeout=1500) as house:
        house.slow("f", 100)
        config = Json.of({"api_path": "/x", "timeout_ms": timeout})
        house.core.triggers.register(Binding(id="t", trigger_type="http", function_id="f", config=config))
        reply = await house.ask("/x")
        assert (reply.status, trio.current_time()) == (504, pytest.approx(took_s))
        assert f"within {took_s * 1000:.0f} ms" in reply.json["error"]["message"]


async def test_a_body_that_does_not_come_is_not_what_its_function_lacked(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house(default_timeout=1500) as house:
        inputs = house.function("f")
        house.route("/x", method="POST")
        client = house.client("POST", "/x", JSON | {"content-length": "10"})
        client.sends(b"[1")
        reply = await client.run()
        assert reply is not None
        assert (reply.status, reply.code, inputs) == (504, "TIMEOUT", [])
        assert reply.json["error"]["message"] == "The body of the request was not here within 1500 ms"
        assert "waiting for the client" in caplog.text


async def test_a_route_may_have_as_much_time_as_it_likes(autojump_clock: MockClock) -> None:
    async with open_house(default_timeout=1500) as house:
        house.slow("f", 100)
        config = Json.of({"api_path": "/x", "timeout_ms": 10**400})  # more than a float holds
        house.core.triggers.register(Binding(id="t", trigger_type="http", function_id="f", config=config))
        assert ((await house.ask("/x")).status, trio.current_time()) == (200, pytest.approx(100))


async def test_a_handlers_own_timeout_error_is_500(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        house.peer.register("f", lambda call, data: Outcome.failed(WireError("g did not answer", "TIMEOUT")))
        house.route("/x")
        assert (await house.ask("/x")).status == 500


async def test_a_condition_is_told_what_remains_of_the_deadline_and_a_handler_may_stream_on(
    autojump_clock: MockClock,
) -> None:
    async with open_house(default_timeout=10_000) as house:
        left: list[float] = []

        def handler(call: Call, data: Json) -> Outcome:
            left.append(call.deadline - trio.current_time())
            return NOTHING

        house.peer.register("guard", handler)
        house.peer.register("f", handler)
        house.route("/x", condition="guard")
        await house.ask("/x")
        assert left[0] == pytest.approx(10, abs=0.05)
        assert left[1] > 3600


# -- clients that leave -----------------------------------------------------------------------------------------------


async def test_a_client_that_leaves_cancels_its_handler_and_gets_no_answer(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        story = house.slow("f", 100)
        house.route("/x")
        client = house.client("GET", "/x")
        nursery.start_soon(client.run)
        await wait_all_tasks_blocked()
        assert story == ["started"]
        client.leaves()
        await client.ended.wait()
        await wait_all_tasks_blocked()
        assert story == ["started", "cancelled"]
        assert client.reply is None
        assert trio.current_time() == 0
        assert house.answers(Answer.NONE) == 1


async def test_leaving_is_noticed_behind_a_body_nobody_reads(
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        story = house.slow("f", 100)
        house.route("/x", method="POST")
        client = house.client("POST", "/x", {"transfer-encoding": "chunked"})
        for _ in range(5):
            client.sends(b"x" * 1000)
        client.leaves()
        nursery.start_soon(client.run)
        await client.ended.wait()
        await wait_all_tasks_blocked()
        assert story == ["started", "cancelled"]


async def test_leaving_while_the_condition_runs_means_the_handler_never_does(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        story, inputs = house.slow("guard", 100), house.function("f")
        house.route("/x", condition="guard")
        client = house.client("GET", "/x")
        nursery.start_soon(client.run)
        await wait_all_tasks_blocked()
        client.leaves()
        await client.ended.wait()
        await wait_all_tasks_blocked()
        assert (story, inputs, client.reply) == (["started", "cancelled"], [], None)


async def test_a_cancelled_request_cancels_its_handler(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        story = house.slow("f", 100)
        house.route("/x")
        with trio.move_on_after(1):
            await house.client("GET", "/x").run()
        await wait_all_tasks_blocked()
        assert story == ["started", "cancelled"]


@pytest.mark.parametrize("reason", ["caller_disconnected", "deadline", "shutdown"])
async def test_the_handler_learns_why_it_is_cancelled(
    reason: str, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house(default_timeout=60_000) as house:
        reasons: list[str | None] = []

        async def handler(call: Call, data: Json) -> Json:
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                reasons.append(cancelled.reason)
                raise
            raise AssertionError

        house.peer.register("f", handler, task=True)
        house.route("/x")
        client, scope = house.client("GET", "/x"), trio.CancelScope()

        async def ask() -> None:
            with scope:
                await client.run()

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        if reason == "caller_disconnected":
            client.leaves()
        elif reason == "shutdown":
            scope.cancel()  # as the module's supervisor does
        else:
            await trio.sleep(60)
        await wait_all_tasks_blocked()
        assert reasons == [reason]


async def test_a_body_that_is_not_here_when_the_engine_begins_to_stop_is_too_late(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        inputs = house.function("f", {"body": 1})
        house.route("/x", method="POST")
        client = house.client("POST", "/x", {**JSON, "transfer-encoding": "chunked"})
        client.sends(b'{"a":')
        nursery.start_soon(client.run)
        await wait_all_tasks_blocked()
        assert await house.core.drain(0)
        client.sends(b"1}", more=False)
        await client.ended.wait()
        assert client.reply is not None
        assert (client.reply.status, client.reply.code) == (503, "engine_draining")
        assert client.reply.headers["connection"] == "close"
        assert (inputs, house.answers(Answer.UNAVAILABLE)) == ([], 1)


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (JSON, b'{"a":1}', {"a": 1}),
        ({"content-type": "Application/Merge-Patch+JSON"}, b"[1]", [1]),
        (JSON, b"", None),
        ({"content-type": "text/plain"}, b'{"a":1}', None),
        ({}, b'{"a":1}', None),
    ],
)
async def test_only_json_bodies_are_parsed(
    headers: dict[str, str], body: bytes, expected: object, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        inputs = house.function("f", {"body": 1})
        house.route("/x", method="POST")
        assert (await house.ask("/x", "POST", headers, body)).status == 200
        assert inputs[0]["body"] == expected


async def test_a_json_body_may_come_in_chunks(
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        inputs = house.function("f", {"body": 1})
        house.route("/x", method="POST")
        client = house.client("POST", "/x", JSON | {"transfer-encoding": "chunked"})
        nursery.start_soon(client.run)
        for chunk in (b'{"a"', b":1", b"}"):
            await wait_all_tasks_blocked()
            assert inputs == []
            client.sends(chunk)
        client.sends(b"", more=False)
        await client.ended.wait()
        assert inputs[0]["body"] == {"a": 1}


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_above_the_limit_is_413_and_the_rest_is_read_off(
    declared: bool, autojump_clock: MockClock
) -> None:
    async with open_house(body_limit=10) as house:
        inputs = house.function("f", {"body": 1})
        house.route("/x", method="POST")
        if declared:
            client = house.client("POST", "/x", JSON, b"[1,1,1,1,1,1]")
        else:
            client = house.client("POST", "/x", JSON | {"transfer-encoding": "chunked"})
            for chunk in (b"[1,1,1", b",1,1,1", b",1,1]"):
                client.sends(chunk)
            client.sends(b"", more=False)
        reply = await client.run()
        assert reply is not None
        assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE")
        assert "10 bytes" in reply.json["error"]["message"]
        assert client.unread == 0
        assert inputs == []
        assert house.answers(Answer.TOO_LARGE) == 1


async def test_a_declared_length_above_the_limit_is_refused_before_the_body_comes(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house(body_limit=10) as house:
        house.route("/x", method="POST")
        client = house.client("POST", "/x", JSON | {"content-length": "11"})
        nursery.start_soon(client.run)
        await wait_all_tasks_blocked()
        assert client.reply is not None
        assert client.reply.status == 413


async def test_a_body_of_exactly_the_limit_is_taken(
    autojump_clock: MockClock,
) -> None:
    async with open_house(body_limit=7) as house:
        house.function("f", {"body": 1})
        house.route("/x", method="POST")
        assert (await house.ask("/x", "POST", JSON, b'{"a":1}')).status == 200


async def test_a_body_that_never_ends_is_504_and_one_cut_short_is_nobodys(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house(default_timeout=2000) as house:
        inputs = house.function("f")
        house.route("/x", method="POST")
        slow, cut = (house.client("POST", "/x", JSON | {"transfer-encoding": "chunked"}) for _ in range(2))
        for client in (slow, cut):
            client.sends(b"[")
            nursery.start_soon(client.run)
        cut.leaves()
        await cut.ended.wait()
        assert (cut.reply, trio.current_time()) == (None, 0)
        await slow.ended.wait()
        assert slow.reply is not None
        assert slow.reply.status == 504
        assert inputs == []


async def test_an_answer_leaves_before_the_rest_of_the_upload_is_read(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        client = house.client("POST", "/nope", {"transfer-encoding": "chunked"})
        nursery.start_soon(client.run)
        await wait_all_tasks_blocked()
        assert client.reply is not None
        assert client.reply.code == "NOT_FOUND"
        assert not client.ended.is_set()
        for _ in range(3):
            client.sends(b"x" * 1000)
        client.sends(b"", more=False)
        await client.ended.wait()
        assert (client.unread, trio.current_time()) == (0, 0)
        # a client that goes on sending for ever is waited for, but not for long
        endless = house.client("POST", "/nope", {"transfer-encoding": "chunked"})
        await endless.run()
        assert trio.current_time() == 5


async def test_the_end_of_an_answer_is_not_waited_for_long_where_an_upload_does_not_end(
    autojump_clock: MockClock,
) -> None:
    said: list[bool] = []

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            said.append(message["more_body"])
            if not message["more_body"]:
                await trio.sleep_forever()

    async def receive() -> Mapping[str, Any]:
        await trio.sleep(1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    await asgi.write({"method": "POST"}, send, asgi.Incoming(receive, None), Response(404, body=b"no"))
    assert (said, trio.current_time()) == ([True, False], 10)


# -- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "status"), [(False, 422), (True, 200), (None, 200), (0, 200), ("", 200), ({"ok": False}, 200)]
)
async def test_only_false_blocks(
    verdict: object,
    status: int,
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        seen, inputs = house.function("guard", verdict), house.function("f", {"body": "done"})
        house.route("/x/:id", condition="guard", method="POST")
        reply = await house.ask("/x/1", "POST", JSON, b"[1]")
        assert reply.status == status
        assert (seen[0]["path_params"], seen[0]["body"]) == ({"id": "1"}, [1])
        assert len(inputs) == (status == 200)
        if status == 422:
            assert reply.json == {
                "error": {"code": "CONDITION_NOT_MET", "message": "Request condition not met"},
                "skipped": True,
            }


async def test_handler_and_condition_are_those_of_the_routes_namespace(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        house.function("guard", False)
        house.function("f", {"body": "default"})
        guard = house.function("guard", True, "orders")
        house.function("f", {"body": "orders"}, "orders")
        house.route("/default", condition="guard")
        house.route("/orders", condition="guard", namespace="orders")
        assert (await house.ask("/default")).status == 422
        assert (await house.ask("/orders")).json == "orders"
        assert len(guard) == 1


async def test_a_condition_that_fails_or_is_missing_is_500(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        inputs = house.function("f")

        def guard(call: Call, data: Json) -> Outcome:
            raise WireError("cannot tell", "guard_broken")

        house.peer.register("guard", guard)
        house.route("/broken", condition="guard")
        house.route("/missing", condition="nobody")
        broken, missing = await house.ask("/broken"), await house.ask("/missing")
        assert (broken.status, broken.code) == (500, "guard_broken")
        assert (missing.status, missing.code) == (500, "function_not_found")
        assert inputs == []


async def test_condition_and_handler_share_one_deadline(
    autojump_clock: MockClock,
) -> None:
    async with open_house(default_timeout=3000) as house:
        house.slow("guard", 2)
        story = house.slow("f", 2)
        house.route("/x", condition="guard")
        assert (await house.ask("/x")).status == 504
        assert trio.current_time() == pytest.approx(3)
        await wait_all_tasks_blocked()
        assert story == ["started", "cancelled"]


async def test_a_handler_is_not_begun_when_the_time_is_over(autojump_clock: MockClock) -> None:
    async with open_house(default_timeout=1000) as house:

        def guard(call: Call, data: Json) -> Outcome:
            autojump_clock.jump(2)
            return Outcome(Json(b"true"))

        house.peer.register("guard", guard)
        inputs = house.function("f", {"body": 1})
        house.route("/x", condition="guard")
        assert (await house.ask("/x")).status == 504
        assert inputs == []


# -- slots ------------------------------------------------------------------------------------------------------------


async def test_requests_above_the_limit_wait_in_order_and_waiting_costs_no_time(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house(concurrency_request_limit=2, default_timeout=2500) as house:
        house.slow("f", 1)
        house.route("/x")
        clients = [house.client("GET", "/x") for _ in range(6)]
        for client in clients:
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert (statistics.running, statistics.waiting) == (2, 4)
        for client in clients:
            await client.ended.wait()
        assert [client.ended_at for client in clients] == [1, 1, 2, 2, 3, 3]
        assert [client.reply.status if client.reply else None for client in clients] == [200] * 6


async def test_a_client_may_leave_while_it_waits_for_a_slot(
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    async with open_house(concurrency_request_limit=1) as house:
        story = house.slow("f", 10)
        inputs = house.function("g", {"body": 1})
        house.route("/x")
        house.route("/y", "g", method="POST")
        first, leaver = house.client("GET", "/x"), house.client("GET", "/x")
        stayer = house.client("POST", "/y", JSON | {"transfer-encoding": "chunked"})
        for client in (first, leaver, stayer):
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
        leaver.leaves()
        await leaver.ended.wait()
        assert (leaver.reply, trio.current_time()) == (None, 0)
        for chunk in (b"[1", b",2", b"]"):
            stayer.sends(chunk)
            await wait_all_tasks_blocked()
        assert stayer.unread == 2  # one chunk is kept, the others wait where they are
        stayer.sends(b"", more=False)
        await stayer.ended.wait()
        assert inputs[0]["body"] == [1, 2]
        assert story == ["started", "done"]


@pytest.mark.parametrize("checkpoints", range(12))
async def test_no_moment_of_cancellation_loses_a_slot(
    checkpoints: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house(concurrency_request_limit=1) as house:
        house.slow("f", 1)
        house.route("/x")
        first, second = house.client("GET", "/x"), house.client("GET", "/x")
        nursery.start_soon(first.run)
        await wait_all_tasks_blocked()
        scope = trio.CancelScope()

        async def run_second() -> None:
            with scope:
                await second.run()

        nursery.start_soon(run_second)
        await wait_all_tasks_blocked()
        await trio.sleep_until(1)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        scope.cancel()
        await first.ended.wait()
        await wait_all_tasks_blocked()
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert (statistics.running, statistics.waiting) == (0, 0)
        assert (await house.ask("/x")).status == 200


async def test_the_limit_can_be_raised_while_requests_wait(
    nursery: trio.Nursery,
    autojump_clock: MockClock,
) -> None:
    async with open_house(concurrency_request_limit=1) as house:
        house.slow("f", 1)
        house.route("/x")
        clients = [house.client("GET", "/x") for _ in range(3)]
        for client in clients[:2]:
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
        house.change(concurrency_request_limit=3)
        nursery.start_soon(clients[2].run)
        for client in clients:
            await client.ended.wait()
        assert [client.ended_at for client in clients] == [1, 1, 1]


# -- routes that come and go ------------------------------------------------------------------------------------------


async def test_a_newer_route_takes_over_and_the_older_one_returns_when_its_worker_goes(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        house.function("old", {"body": "old"})
        house.route("/x", "old")
        async with open_local(house.core, "newer worker") as newer:
            newer.register("new", lambda call, data: Outcome(Json(b'{"body":"new"}')))
            house.route("/x", "new", owner=newer)
            assert (await house.ask("/x")).json == "new"
        assert (await house.ask("/x")).json == "old"
        house.core.triggers.unregister("t1")
        assert (await house.ask("/x")).status == 404


async def test_a_worker_that_dies_during_the_call_is_500_and_its_routes_are_gone(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        async with open_local(house.core, "worker") as worker:

            async def hang(call: Call, data: Json) -> Json:
                await trio.sleep_forever()
                raise AssertionError

            worker.register("f", hang, task=True)
            house.route("/x", owner=worker)
            client = house.client("GET", "/x")
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
        await client.ended.wait()
        assert client.reply is not None
        assert (client.reply.status, client.reply.code) == (500, "invocation_stopped")
        assert (await house.ask("/x")).status == 404


async def test_routes_that_waited_for_the_module_are_served_and_bad_ones_are_refused_alone(
    autojump_clock: MockClock,
) -> None:
    module = HttpModule(Live(HttpSettings()), listen=False)
    async with open_engine() as core, trio.open_nursery() as nursery, open_local(core, "worker") as worker:
        worker.register("f", lambda call, data: Outcome(Json(b'{"body":"early"}')))
        bindings = [
            Binding(id=path, trigger_type="api", function_id="f", config=Json.of({"api_path": path}))
            for path in ("/early/*/x", "/early")
        ]
        for binding in bindings:
            core.triggers.register(binding)
        before = await Client(module, "GET", "/early").run()
        assert before is not None
        assert (before.status, before.headers["connection"]) == (503, "close")
        assert len(before.headers["x-request-id"]) == 32
        await nursery.start(module.run, core)
        reply = await Client(module, "GET", "/early").run()
        assert reply is not None
        assert reply.json == "early"
        assert [binding.state for binding in bindings] == [BindingState.REFUSED, BindingState.LIVE]
        nursery.cancel_scope.cancel()
    assert module.statistics().routes is None


async def test_discovery_shows_the_trigger_type(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        (claim,) = house.core.triggers.types()
        assert (claim.id, claim.description) == ("http", "HTTP API trigger")
        config = claim.config_format.decode()
        assert config["properties"]["http_method"]["enum"][:2] == ["GET", "HEAD"]
        assert config["required"] == ["api_path"]
        assert claim.call_format.decode()["required"] == ["query_params", "path_params", "headers", "path", "method"]


# -- states -----------------------------------------------------------------------------------------------------------


async def test_a_draining_engine_answers_503_and_finishes_what_runs(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house(concurrency_request_limit=1) as house:
        house.slow("f", 1)
        house.route("/x")
        running, waiting = house.client("GET", "/x"), house.client("GET", "/x")
        for client in (running, waiting):
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
        nursery.start_soon(house.core.drain, 5)
        await wait_all_tasks_blocked()
        late = await house.ask("/x")
        assert (late.status, late.code, late.headers["retry-after"]) == (503, "engine_draining", "1")
        assert late.headers["connection"] == "close"
        for client in (running, waiting):
            await client.ended.wait()
        assert running.reply is not None
        assert waiting.reply is not None
        assert (running.reply.status, waiting.reply.status) == (200, 503)
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert (statistics.requests, statistics.refused) == (3, 2)


async def test_lifespan_and_websockets(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        sent: list[Mapping[str, Any]] = []
        messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}, {"type": "websocket.connect"}]

        async def receive() -> Mapping[str, Any]:
            return messages.pop(0)

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(message)

        await house.module.app({"type": "lifespan"}, receive, send)
        await house.module.app({"type": "websocket"}, receive, send)
        assert [message["type"] for message in sent] == [
            "lifespan.startup.complete",
            "lifespan.shutdown.complete",
            "websocket.close",
        ]
