"""The HTTP module on real sockets, asked by an h11 client: what is on the wire, and how starting and stopping behave."""

import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import trio
from attrs import define, field
from trio.testing import wait_all_tasks_blocked

from iii_trio.config import CorsSettings, HttpSettings, Live, MiddlewareSettings
from iii_trio.engine import Binding, BindingState, Call, Engine, LocalPeer, Outcome, open_engine, open_local
from iii_trio.modules.http import HttpModule, asgi
from iii_trio.modules.http.connections import ConnectionStatistics
from iii_trio.protocol import Json
from iii_trio.protocol.errors import ConfigError, WireError

PATIENCE_S = 30


@define
class Reply:
    """What came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        code: str = Json(self.body).decode()["error"]["code"]
        return code


class Wire:
    """One connection of an HTTP/1.1 client."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.h11 = h11.Connection(h11.CLIENT)

    async def ask(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """Send a whole request and read the whole response; the connection is ready for the next one after it."""
        fields = {"host": "localhost"} | (headers or {})
        if body is not None:
            fields |= {"content-length": str(len(body)), "content-type": "application/json"}
        data = self.h11.send(h11.Request(method=method, target=target, headers=list(fields.items())))
        assert data is not None
        if body:
            data += self.h11.send(h11.Data(body)) or b""
        data += self.h11.send(h11.EndOfMessage()) or b""
        await self.stream.send_all(data)
        return await self.reply()

    async def reply(self) -> Reply:
        with trio.fail_after(PATIENCE_S):
            head: h11.Response | None = None
            body = b""
            while True:
                event = self.h11.next_event()
                if event is h11.NEED_DATA:
                    self.h11.receive_data(await self.stream.receive_some())
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    assert isinstance(event, h11.InformationalResponse), event
        assert head is not None
        if self.h11.our_state is h11.DONE and self.h11.their_state is h11.DONE:
            self.h11.start_next_cycle()
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Reply(head.status_code, headers, body)

    async def closed(self) -> bytes:
        """What still comes before the server closes."""
        data = b""
        with trio.fail_after(PATIENCE_S):
            try:
                while chunk := await self.stream.receive_some():
                    data += chunk
            except trio.BrokenResourceError:
                pass
        return data


@define
class House:
    """An engine with the HTTP module on a free port, and a peer that plays all workers."""

    core: Engine
    module: HttpModule
    peer: LocalPeer
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)
    bindings: int = field(default=0, init=False)

    @property
    def port(self) -> int:
        return self.module.addresses[0][1]

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """The module, in a scope of its own: stopping it cancels nothing of the test."""
        with self.scope:
            await self.module.run(self.core, task_status=task_status)
        self.ended.set()

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            yield Wire(stream)

    def route(
        self, path: str, handler: Any, *, task: bool = False, method: str = "GET", condition: str = ""
    ) -> Binding:
        """Register a function and bind a route to it."""
        self.bindings += 1
        function_id = f"f{self.bindings}"
        self.peer.register(function_id, handler, task=task)
        config = {"api_path": path, "http_method": method, "condition_function_id": condition}
        binding = Binding(id=f"t{self.bindings}", trigger_type="http", function_id=function_id, config=Json.of(config))
        self.core.triggers.register(binding)
        return binding

    def hanging(self, path: str) -> "Hanging":
        """A route whose handler never answers."""
        hanging = Hanging()
        self.route(path, hanging.handle, task=True)
        return hanging


@define
class Hanging:
    """A handler that only ends by being cancelled."""

    started: trio.Event = field(factory=trio.Event)
    cancelled: trio.Event = field(factory=trio.Event)
    released: trio.Event = field(factory=trio.Event)

    async def handle(self, call: Call, data: Json) -> Json:
        self.started.set()
        try:
            await self.released.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return Json.of({"body": "released"})


def answers(value: Any) -> Callable[[Call, Json], Outcome]:
    return lambda call, data: Outcome(Json.of(value))


def echo(call: Call, data: Json) -> Outcome:
    return Outcome(Json.of({"body": data.decode()["body"]}))


def fails(call: Call, data: Json) -> Outcome:
    raise WireError("broken on purpose", "custom")


@asynccontextmanager
async def open_house(*, grace_s: float = PATIENCE_S, **settings: Any) -> AsyncIterator[House]:
    live = Live(HttpSettings(**({"host": "127.0.0.1", "port": 0} | settings)))
    module = HttpModule(live, grace_s=grace_s)
    with trio.fail_after(3 * PATIENCE_S):
        async with open_engine() as core, open_local(core, "workers") as peer, trio.open_nursery() as nursery:
            house = House(core, module, peer)
            await nursery.start(house.run)
            yield house
            house.scope.cancel()
    assert module.addresses == ()


# -- requests ---------------------------------------------------------------------------------------------------------


async def test_one_connection_serves_many_requests() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/echo", echo, method="POST")
        for number in range(20):
            reply = await wire.ask("POST", "/echo", b"[%d]" % number)
            assert (reply.status, reply.body) == (200, b"[%d]" % number)
            assert reply.headers["content-type"] == "application/json"
            assert "date" in reply.headers
        statistics = house.module.statistics()
        assert statistics.connections is not None
        assert statistics.exchange is not None
        assert (statistics.connections.open, statistics.exchange.requests) == (1, 20)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/n/:n", lambda call, data: Outcome(Json.of({"body": data.decode()["path_params"]["n"]})))
        await wire.stream.send_all(b"".join(b"GET /n/%d HTTP/1.1\r\nhost: x\r\n\r\n" % n for n in range(5)))
        received = b""
        with trio.fail_after(PATIENCE_S):
            while received.count(b'"4"') == 0:
                received += await wire.stream.receive_some()
        assert [received.count(b'"%d"' % n) for n in range(5)] == [1] * 5
        assert received.find(b'"0"') < received.find(b'"2"') < received.find(b'"4"')


async def test_a_response_leaves_in_one_write() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/x", answers({"body": "whole"}))
        for _ in range(5):
            await wire.stream.send_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
            with trio.fail_after(PATIENCE_S):
                assert (await wire.stream.receive_some()).endswith(b'\r\n\r\n"whole"')


async def test_every_status_on_the_wire_and_the_connection_lives_on() -> None:
    async with open_house(default_timeout=100, body_limit=1000) as house, house.wire() as wire:
        house.route("/ok", answers({"status_code": 201, "body": {"a": 1}}))
        house.route("/nothing", answers(None))
        house.route("/fails", fails)
        house.peer.register("no", answers(False))
        house.route("/guarded", answers(1), condition="no")
        house.route("/echo", echo, method="POST")
        house.hanging("/hangs")
        expected = {
            "/ok": 201,
            "/nothing": 204,
            "/fails": 500,
            "/guarded": 422,
            "/hangs": 504,
            "/nope": 404,
            "/echo": 405,
        }
        for path, status in expected.items():
            reply = await wire.ask("GET", path)
            assert reply.status == status, path
            assert reply.headers["access-control-allow-origin"] == "*"
        assert (await wire.ask("GET", "/fails")).code == "custom"
        assert (await wire.ask("GET", "/hangs")).code == "TIMEOUT"
        assert (await wire.ask("GET", "/echo")).headers["allow"] == "POST"
        too_large = await wire.ask("POST", "/echo", b"1" * 2000)
        assert (too_large.status, too_large.code) == (413, "PAYLOAD_TOO_LARGE")
        assert (await wire.ask("POST", "/echo", b"1" * 10)).body == b"1" * 10


async def test_head_has_no_body_on_the_wire() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/x", answers({"body": "text"}))
        head, get = await wire.ask("HEAD", "/x"), await wire.ask("GET", "/x")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "6")
        assert get.body == b'"text"'


async def test_cors_on_the_wire() -> None:
    cors = CorsSettings(allowed_origins=("https://a",), allowed_methods=("GET", "POST"))
    async with open_house(cors=cors) as house, house.wire() as wire:
        house.route("/x", answers({"body": 1}))
        asked = {"origin": "https://a", "access-control-request-method": "POST"}
        preflight = await wire.ask("OPTIONS", "/anything", headers=asked)
        assert (preflight.status, preflight.body) == (200, b"")
        assert preflight.headers["access-control-allow-methods"] == "GET,POST"
        assert preflight.headers["access-control-allow-origin"] == "https://a"
        stranger = await wire.ask("GET", "/x", headers={"origin": "https://b"})
        assert stranger.status == 200
        assert "access-control-allow-origin" not in stranger.headers


async def test_a_large_response_and_a_large_request_arrive_whole() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/echo", echo, method="POST")
        body = b'"' + b"x" * 5_000_000 + b'"'
        assert (await wire.ask("POST", "/echo", body)).body == body


async def test_an_answer_to_an_upload_nobody_wants_is_readable() -> None:
    async with open_house(body_limit=1000) as house, house.wire() as wire:
        house.route("/echo", echo, method="POST")
        body = b"1" * 3_000_000
        assert (await wire.ask("POST", "/echo", body)).status == 413
        assert (await wire.ask("POST", "/nope", body)).status == 404
        assert (await wire.ask("POST", "/echo", b"[]")).body == b"[]"


async def test_an_upload_without_end_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "DISCARD_S", 0.1)
    async with open_house() as house, house.wire() as wire:
        await wire.stream.send_all(b"POST /nope HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (60_000, b"x" * 60_000)

        async def upload() -> None:
            while True:
                await wire.stream.send_all(chunk)

        with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError):
            await upload()
        while house.module.statistics().connections != ConnectionStatistics(open=0, idle=0, refused=0, failed=0):
            await trio.lowlevel.checkpoint()


async def test_a_client_that_asks_first_is_told_to_continue() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/echo", echo, method="POST")
        await wire.stream.send_all(
            b"POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
            b"content-type: application/json\r\ncontent-length: 2\r\n\r\n"
        )
        with trio.fail_after(PATIENCE_S):
            assert (await wire.stream.receive_some()).startswith(b"HTTP/1.1 100")
            await wire.stream.send_all(b"[]")
            assert (await wire.stream.receive_some()).endswith(b"\r\n\r\n[]")


async def test_a_client_that_asks_first_is_not_told_to_continue_before_middleware_has_let_it() -> None:
    async def guard(call: Call, data: Json) -> Json:
        await wait_all_tasks_blocked(0.01)  # until whatever the module had to say at once is said
        return Json.of({"action": "respond", "response": {"status_code": 401}})

    async with open_house(middleware=(MiddlewareSettings(function_id="guard"),)) as house, house.wire() as wire:
        house.peer.register("guard", guard, task=True)
        house.route("/echo", echo, method="POST")
        await wire.stream.send_all(
            b"POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
            b"content-type: application/json\r\ncontent-length: 2\r\n\r\n"
        )
        assert (await wire.closed()).startswith(b"HTTP/1.1 401 ")


async def test_a_hundred_requests_at_once() -> None:
    async with open_house() as house:
        everyone = trio.Event()
        inside = 0

        async def meet(call: Call, data: Json) -> Json:
            nonlocal inside
            inside += 1
            if inside == 100:
                everyone.set()
            await everyone.wait()
            return Json.of({"body": data.decode()["query_params"]["n"]})

        house.route("/meet", meet, task=True)
        replies: dict[int, bytes] = {}

        async def one(number: int) -> None:
            async with house.wire() as wire:
                replies[number] = (await wire.ask("GET", f"/meet?n={number}")).body

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
        assert replies == {number: b'"%d"' % number for number in range(100)}


async def test_routes_are_replaced_and_restored_under_an_open_connection() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/x", answers({"body": "first"}))
        second = house.route("x", answers({"body": "second"}))
        assert (await wire.ask("GET", "/x")).body == b'"second"'
        house.core.triggers.unregister(second.id)
        assert (await wire.ask("GET", "/x")).body == b'"first"'


async def test_a_client_that_disconnects_cancels_its_handler() -> None:
    async with open_house() as house:
        hanging = house.hanging("/x")
        async with house.wire() as wire:
            await wire.stream.send_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
            await hanging.started.wait()
        await hanging.cancelled.wait()


async def test_a_client_that_resets_cancels_its_handler() -> None:
    async with open_house() as house:
        hanging = house.hanging("/x")
        async with house.wire() as wire:
            await wire.stream.send_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
            await hanging.started.wait()
            wire.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await hanging.cancelled.wait()


# -- starting and stopping --------------------------------------------------------------------------------------------


async def test_localhost_means_both_loopback_addresses() -> None:
    async with open_house(host="localhost") as house:
        assert house.module.addresses[0][0] == "127.0.0.1"
        assert len({port for _, port in house.module.addresses}) == 1
        for address, port in house.module.addresses:
            async with await trio.open_tcp_stream(address, port) as stream:
                assert (await Wire(stream).ask("GET", "/")).status == 404


async def test_a_taken_port_stops_the_start_and_names_the_address_and_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        module = HttpModule(Live(HttpSettings(host="127.0.0.1", port=port)))
        async with open_engine() as core:
            waiting = Binding(id="t", trigger_type="http", function_id="f", config=Json.of({"api_path": "/x"}))
            core.triggers.register(waiting)
            with pytest.raises(ConfigError) as refused:
                await module.run(core)
            assert f"address 127.0.0.1:{port} is already in use" in str(refused.value)
            assert "port" in str(refused.value)
            assert waiting.state is BindingState.PARKED


async def test_an_address_others_can_reach_gets_a_loud_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with open_house(host="0.0.0.0"):
            pass
        assert any("other machines" in r.message and r.levelno == logging.WARNING for r in caplog.records)
        caplog.clear()
        async with open_house():
            pass
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


async def test_a_draining_engine_answers_503_and_closes_the_connection() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/x", answers({"body": 1}))
        assert (await wire.ask("GET", "/x")).status == 200
        await house.core.drain(0)
        reply = await wire.ask("GET", "/x")
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "engine_draining", "1")
        assert await wire.closed() == b""


async def test_stopping_lets_a_running_request_end_and_closes_idle_connections_at_once() -> None:
    async with open_house() as house, house.wire() as running, house.wire() as idle:
        hanging = house.hanging("/x")
        assert (await idle.ask("GET", "/")).status == 404
        await running.stream.send_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
        await hanging.started.wait()
        house.scope.cancel()
        with trio.fail_after(PATIENCE_S):
            assert await idle.closed() == b""
            hanging.released.set()
            answer = await running.closed()
            assert answer.endswith(b'\r\n\r\n"released"')
            assert answer.count(b"HTTP/1.1 200") == 1  # the second one of the connection never began


async def test_stopping_cuts_off_what_does_not_end() -> None:
    async with open_house(grace_s=0.1) as house, house.wire() as wire:
        hanging = house.hanging("/x")
        await wire.stream.send_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
        await hanging.started.wait()
        house.scope.cancel()
        with trio.fail_after(PATIENCE_S):
            assert await wire.closed() == b""
            await hanging.cancelled.wait()


async def test_a_module_that_runs_again_serves_the_bindings_that_stayed() -> None:
    async with open_engine() as core, open_local(core, "workers") as peer:
        peer.register("f", answers({"body": 1}))
        config = Json.of({"api_path": "/x"})
        core.triggers.register(Binding(id="t", trigger_type="http", function_id="f", config=config))
        module = HttpModule(Live(HttpSettings(host="127.0.0.1", port=0)))
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(module.run, core)
                async with await trio.open_tcp_stream(*module.addresses[0]) as stream:
                    assert (await Wire(stream).ask("GET", "/x")).body == b"1"
                nursery.cancel_scope.cancel()
