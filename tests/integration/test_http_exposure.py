"""What the open internet does to an HTTP port, on real sockets: dribbling, idling, stalling, pipelining, vanishing.

Every test ends by looking for what is left: connections, requests, channels and calls. The long forms run an engine of
their own, whose memory is measured.
"""

import logging
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
import trio.testing
from attrs import define, field
from test_http_connections import OK, REQUEST, read_to_end, read_until, serving
from test_http_server import PATIENCE_S, House, Wire, answers, open_house
from test_http_streams import Handler, Streams, until

from iii_trio import HttpRequest, HttpResponse, NotConnected, Reconnect, Worker
from iii_trio.config import MiddlewareSettings
from iii_trio.engine import Binding, Call, FunctionEntry, Listener
from iii_trio.engine.channel_streams import ChannelReader, ChannelWriter
from iii_trio.modules.http import connections, unsent
from iii_trio.modules.http.exchange import ExchangeStatistics
from iii_trio.protocol import Json
from iii_trio.testing.process import EngineProcess, run_engine

RESET = struct.pack("ii", 1, 0)


async def nothing_left(house: House) -> None:
    """Wait until no request, call, channel or connection is left."""
    with trio.fail_after(PATIENCE_S):
        while True:
            statistics = house.module.statistics()
            exchange, sockets = statistics.exchange, statistics.connections
            assert exchange is not None
            assert sockets is not None
            under_way = (exchange.running, exchange.waiting, exchange.streaming, sockets.open)
            core = (house.core.statistics().running, house.core.channels.statistics().open)
            if not any(under_way + core):
                return
            await trio.sleep(0.01)


# -- heads that dribble -----------------------------------------------------------------------------------------------


async def test_a_request_that_comes_byte_by_byte_is_a_request_like_any_other() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/echo", lambda call, data: answers({"body": data.decode()["body"]})(call, data), method="POST")
        request = (
            b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 5\r\n\r\n[1,2]"
            b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            b"3\r\n[3,\r\n2\r\n4]\r\n0\r\n\r\n"
        )
        for position in range(len(request)):
            await wire.stream.send_all(request[position : position + 1])
            await trio.lowlevel.checkpoint()
        received = await until(wire, b"[3,4]")
        assert received.count(b"HTTP/1.1 200") == 2
        assert b"\r\n\r\n[1,2]" in received


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 501, "NOT_IMPLEMENTED"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nno header\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"x" * 100_000, 431, "REQUEST_HEADER_FIELDS_TOO_LARGE"),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505, "HTTP_VERSION_NOT_SUPPORTED"),
    ],
)
async def test_what_is_no_request_is_told_why_with_an_id_that_is_in_the_log(
    sent: bytes, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "iii_trio.access")
    async with open_house(access_log=True) as house, house.wire() as wire:
        await wire.stream.send_all(sent)
        wire.h11.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        wire.h11.send(h11.EndOfMessage())
        reply = await wire.reply()
        assert (reply.status, reply.code) == (status, code)
        assert reply.headers["x-request-id"] in caplog.text
        assert reply.headers["access-control-allow-origin"] == "*"
        assert reply.headers["connection"] == "close"
        assert reply.headers["content-type"] == "application/json"
        assert await wire.closed() == b""


async def test_a_head_that_dribbles_on_is_cut_at_the_idle_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.02)
    async with serving(idle_s=0.3) as server, server.dial() as slow:
        sent = 0

        async def dribble() -> None:
            nonlocal sent
            await slow.send_all(b"GET / HTTP/1.1\r\nx: ")
            while True:
                await slow.send_all(b"x")
                sent += 1
                await trio.sleep(0.01)

        with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError):
            await dribble()
        assert 0 < sent < PATIENCE_S * 100


# -- sockets that do nothing ------------------------------------------------------------------------------------------


async def test_idle_sockets_hold_nobody_up_and_are_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.02)
    async with serving(idle_s=2.0) as server:
        idle = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(50)]
        async with server.dial() as stream:
            for _ in range(20):
                await stream.send_all(REQUEST)
                await read_until(stream, OK)
            assert server.connections.statistics().open == 51
        with trio.fail_after(PATIENCE_S):
            for stream in idle:
                assert await read_to_end(stream) == b""
                await stream.aclose()
            while server.connections.statistics().open:
                await trio.lowlevel.checkpoint()


# -- clients that stop reading ----------------------------------------------------------------------------------------


async def test_a_client_that_stops_reading_events_costs_a_bounded_amount_and_slows_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "STALL_S", 1.0)
    monkeypatch.setattr(connections, "LINGER_S", 0.1)
    written, ended = 0, trio.Event()

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        nonlocal written
        try:
            while True:
                await response.send_all(b"data: " + b"x" * 20_000 + b"\n\n")
                written += 1
        finally:
            ended.set()
        raise AssertionError

    async with open_house() as house, house.wire() as wire:
        Streams(house).serve(handler)
        house.route("/ping", answers({"body": "pong"}))
        await wire.stream.send_all(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        await until(wire, b"data: ")
        most = 0
        async with house.wire() as other:
            while not ended.is_set():  # held back, and in the end cut off
                with trio.fail_after(PATIENCE_S):
                    assert (await other.ask("GET", "/ping")).body == b'"pong"'
                most = max(most, house.core.channels.statistics().bytes)
            assert (await other.ask("GET", "/ping")).body == b'"pong"'
        assert most < 8_000_000
        assert written < 2_000
        await nothing_left(house)


async def test_responses_that_nobody_reads_are_bounded_all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsent, "HTTP_UNSENT_ALL", 50_000_000)
    async with open_house() as house:
        body = "x" * 20_000_000
        house.route("/big", answers({"headers": {"content-type": "text/plain"}, "body": body}))
        stalled = [await trio.open_tcp_stream("127.0.0.1", house.port) for _ in range(5)]

        def statistics() -> ExchangeStatistics:
            found = house.module.statistics().exchange
            assert found is not None
            return found

        for number, stream in enumerate(stalled):
            await stream.send_all(asks("/big"))
            assert (await stream.receive_some(8)) == b"HTTP/1.1"
            assert statistics().broken_off == max(0, number - 1)
        assert statistics().unsent_bytes == 40_000_000
        async with house.wire() as wire:
            assert (await wire.ask("GET", "/big")).body == body.encode()
        assert [len(await read_to_end(stream)) > len(body) for stream in stalled[:3]] == [False] * 3
        for stream in stalled:
            await stream.aclose()
        await nothing_left(house)
        assert (statistics().unsent_bytes, statistics().broken_off) == (0, 4)


# -- requests in a row ------------------------------------------------------------------------------------------------


def asks(*paths: str) -> bytes:
    return b"".join(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode() for path in paths)


async def test_a_slow_request_at_the_front_keeps_the_order() -> None:
    async with open_house() as house, house.wire() as wire:
        slow = house.hanging("/slow")
        house.route("/n/:n", lambda call, data: answers({"body": data.decode()["path_params"]["n"]})(call, data))
        await wire.stream.send_all(asks("/slow", *(f"/n/{number}" for number in range(50))))
        await slow.started.wait()
        slow.released.set()
        received = await until(wire, b'"49"')
        bodies = [part.partition(b"HTTP/1.1")[0] for part in received.split(b"\r\n\r\n")[1:]]
        assert bodies == [b'"released"', *(b'"%d"' % number for number in range(50))]


@pytest.mark.parametrize("reset", [True, False])
async def test_a_client_that_leaves_in_the_middle_of_a_row_cancels_what_runs_and_nothing_more_begins(
    reset: bool,
) -> None:
    async with open_house() as house:
        hanging, begun = house.hanging("/slow"), 0

        def count(call: Call, data: Json) -> Any:
            nonlocal begun
            begun += 1
            return answers({"body": 1})(call, data)

        house.route("/n", count)
        async with house.wire() as wire:
            await wire.stream.send_all(asks("/n", "/n", "/slow", "/n", "/n"))
            await hanging.started.wait()
            if reset:
                wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        with trio.fail_after(PATIENCE_S):
            await hanging.cancelled.wait()
        await nothing_left(house)
        assert begun == 2


# -- uploads that are given up ----------------------------------------------------------------------------------------

HALF = b"x" * 1_000
PHASES = {
    "in the head": b"POST /x HTTP/1.1\r\nhost:",
    "before a body that is parsed": b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: 10\r\n\r\n",
    "in a body that is parsed": b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n2\r\n[1\r\n",
    "in the head of a chunk": b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3",
    "while a middleware runs": b"POST /gated HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + HALF,
    "while the condition runs": b"POST /guarded HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + HALF,
    "while the handler reads": b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + HALF,
    "while the handler reads chunks": b"POST /x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3e8\r\n" + HALF + b"\r\n",
    "while the response streams": b"POST /streams HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + HALF,
    "after the whole body": b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n" + HALF,
    "after an answer that came before its end": b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n"
    + HALF,
}
RUN_NOTHING = ("in the head", "before a body that is parsed", "in a body that is parsed", "after an answer that came ")


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("phase", PHASES)
async def test_an_upload_given_up_leaves_nothing(phase: str, reset: bool) -> None:
    runs = not phase.startswith(RUN_NOTHING)
    started, cancelled = trio.Event(), trio.Event()

    async def hang() -> Json:
        started.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            cancelled.set()
            raise
        raise AssertionError

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        try:
            async for _ in body:
                pass
        except trio.BrokenResourceError:
            pass  # what came is not everything, as the body's end says
        return await hang()

    async def streams(body: ChannelReader, response: ChannelWriter) -> Json:
        await response.send_all(b"first")
        return await hang()

    async def gate(call: Call, data: Json) -> Json:
        if data.decode()["request"]["path"] == "/gated":
            await hang()
        return Json.of({"action": "continue"})

    async def guard(call: Call, data: Json) -> Json:
        return await hang()

    async with open_house(middleware=(MiddlewareSettings(function_id="gate"),)) as house:
        house.peer.register("gate", gate, task=True)
        house.peer.register("guard", guard, task=True)
        Streams(house).serve(handler)
        serve(house, "/streams", streams)
        for path, condition in (("/gated", None), ("/guarded", "guard")):
            config = Json.of({"api_path": path, "http_method": "POST", "condition_function_id": condition})
            house.core.triggers.register(Binding(id=path, trigger_type="http", function_id="f", config=config))
        async with house.wire() as wire:
            await wire.stream.send_all(PHASES[phase])
            with trio.fail_after(PATIENCE_S):
                if "reads" in phase or "head of a chunk" in phase:
                    while not house.core.statistics().running:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                elif runs:
                    await started.wait()
                elif phase.startswith("after an answer"):
                    await until(wire, b"HTTP/1.1 404")
                else:
                    await trio.sleep(0.05)
            if reset:
                wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if started.is_set():
            with trio.fail_after(PATIENCE_S):
                await cancelled.wait()
        await nothing_left(house)
        statistics = house.module.statistics().connections
        assert statistics is not None
        assert statistics.failed == 0


def serve(house: House, path: str, handler: Handler) -> None:
    """Another route with a handler that streams."""

    async def run(call: Call, data: Json) -> Json:
        value = data.decode()
        body, response = value["request_body"], value["response"]
        reading = house.core.channels.find(body["channel_id"], body["access_key"], "read")
        writing = house.core.channels.find(response["channel_id"], response["access_key"], "write")
        assert reading is not None
        assert writing is not None
        async with ChannelReader(reading) as reader:
            return await handler(reader, ChannelWriter(writing))

    entry = FunctionEntry(id=path, namespace="default", owner=house.peer, handler=(True, run))
    house.core.functions.claim(entry)
    config = Json.of({"api_path": path, "http_method": "POST"})
    house.core.triggers.register(Binding(id=f"of {path}", trigger_type="http", function_id=path, config=config))


# -- workers that die -------------------------------------------------------------------------------------------------


@define
class Mortal:
    """A worker over streams in memory, which can be made to die."""

    house: House
    nursery: trio.Nursery
    streams: list[trio.abc.Stream] = field(factory=list)
    dead: bool = False

    async def open_stream(self) -> trio.abc.Stream:
        if self.dead:
            raise OSError("it is dead")
        ours, theirs = trio.testing.memory_stream_pair()
        self.streams.append(ours)
        self.nursery.start_soon(Listener(core=self.house.core).handle, theirs)
        return ours

    async def die(self) -> None:
        """All its connections end at once, as those of a killed process do."""
        self.dead = True
        for stream in self.streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def mortal(worker: Worker) -> AsyncIterator[tuple[House, Mortal, Wire]]:
    """A worker that serves routes, and a client's connection; nothing is left in the end."""
    async with open_house() as house, house.wire() as wire:
        async with trio.open_nursery() as nursery:
            process = Mortal(house, nursery)
            with suppress(NotConnected):
                async with worker.connect(open_stream=process.open_stream, reconnect=Reconnect(max_retries=0)):
                    yield house, process, wire
            nursery.cancel_scope.cancel()
        await wire.stream.aclose()
        await nothing_left(house)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_a_worker_that_dies_in_the_middle_of_a_response_leaves_none_that_looks_whole(
    declared: bool, version: str
) -> None:
    worker = Worker("dies")

    @worker.http("GET", "x")
    @worker.function("f")
    async def f(request: HttpRequest) -> None:
        response = await request.respond(200, {"content-length": "8"} if declared else None)
        await response.send_all(b"half")
        await trio.sleep_forever()

    async with mortal(worker) as (house, process, wire):
        await wire.stream.send_all(b"GET /x HTTP/%s\r\nhost: x\r\n\r\n" % version.encode())
        received = await until(wire, b"half")
        await process.die()
        aborted = False
        with trio.fail_after(PATIENCE_S):
            try:
                while data := await wire.stream.receive_some():
                    received += data
            except trio.BrokenResourceError:
                aborted = True
        # a body may say how long it is, or how it ends; where neither is said, only a reset tells that this is no end
        assert aborted or declared or b"chunked" in received.lower()
        assert not received.endswith(b"0\r\n\r\n")
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert statistics.truncated == 1


async def test_a_worker_that_dies_before_it_answers_is_an_error_at_once() -> None:
    worker = Worker("dies")
    begun = trio.Event()

    @worker.http("GET", "x")
    @worker.function("f")
    async def f(request: HttpRequest) -> HttpResponse:
        begun.set()
        await trio.sleep_forever()
        raise AssertionError

    async with mortal(worker) as (_, process, wire):
        await wire.stream.send_all(asks("/x"))
        await begun.wait()
        await process.die()
        reply = await until(wire, b"}}")
        assert reply.startswith(b"HTTP/1.1 500")
        assert b"invocation_stopped" in reply


# -- the big forms ----------------------------------------------------------------------------------------------------


def resident_kib(engine: EngineProcess, key: str = "VmRSS") -> int:
    """Of an engine's process, in KiB; `VmHWM` for the most it ever was."""
    text = Path(f"/proc/{engine.process.pid}/status").read_text()
    return int(text.split(f"{key}:")[1].split()[0])


@pytest.mark.long
async def test_a_thousand_idle_sockets_and_what_each_costs(tmp_path: Path) -> None:
    async with run_engine(tmp_path) as engine:
        async with await trio.open_tcp_stream("127.0.0.1", engine.http_port) as warm:
            assert (await Wire(warm).ask("GET", "/nowhere")).status == 404
            before = resident_kib(engine)
            idle = [await trio.open_tcp_stream("127.0.0.1", engine.http_port) for _ in range(1_000)]
            for stream in idle[::2]:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost:")
            for _ in range(200):
                assert (await Wire(warm).ask("GET", "/nowhere")).status == 404
            each = (resident_kib(engine) - before) / 1_000
            print(f"{each:.1f} KiB per idle connection")
            assert each < 64
            for stream in idle:
                await stream.aclose()
        assert await engine.stop() == 0


@pytest.mark.long
async def test_an_upload_of_a_gigabyte_takes_no_memory(tmp_path: Path) -> None:
    worker = Worker("sink")
    size = 1_000_000_000
    got = 0

    @worker.http("POST", "sink")
    @worker.function("sink")
    async def sink(request: HttpRequest) -> HttpResponse:
        nonlocal got
        got = pause = 0
        async for chunk in request.request_body:
            got += len(chunk)
            if got > pause and got < size // 10:  # for a while it is much slower than its client
                pause = got + 1_000_000
                await trio.sleep(0.05)
        return HttpResponse(body=got)

    async with run_engine(tmp_path) as engine, worker.connect(engine.url):
        async with await trio.open_tcp_stream("127.0.0.1", engine.http_port) as stream:
            assert (await Wire(stream).ask("GET", "/nowhere")).status == 404
            before = resident_kib(engine)
            await stream.send_all(b"POST /sink HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
            began, block = trio.current_time(), b"x" * 1_000_000
            for _ in range(size // len(block)):
                await stream.send_all(block)
            received = b""
            while not received.endswith(str(size).encode()):
                received += await stream.receive_some()
            took, most = trio.current_time() - began, resident_kib(engine, "VmHWM") - before
            print(f"{size / took / 1e6:.0f} MB/s, {most / 1024:.0f} MiB more than before at most")
            assert got == size
            assert most < 64 * 1024
        assert await engine.stop() == 0
