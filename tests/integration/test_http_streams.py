"""Streamed responses and bodies on real sockets: flushing, backpressure, truncation, clients that stop reading."""

import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define
from test_http_server import PATIENCE_S, House, Wire, open_house

from iii_trio.engine import Binding, Call, FunctionEntry
from iii_trio.engine.channel_streams import ChannelReader, ChannelWriter
from iii_trio.modules.http import connections
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import WireError

Handler = Callable[[ChannelReader, ChannelWriter], Awaitable[Json]]


@define
class Streams:
    """A house whose `/x` is served by a handler with both ends of its channels."""

    house: House

    def serve(self, handler: Handler) -> None:
        async def run(call: Call, data: Json) -> Json:
            value = data.decode()
            body, response = value["request_body"], value["response"]
            reading = self.house.core.channels.find(body["channel_id"], body["access_key"], "read")
            writing = self.house.core.channels.find(response["channel_id"], response["access_key"], "write")
            assert reading is not None
            assert writing is not None
            async with ChannelReader(reading) as reader:
                return await handler(reader, ChannelWriter(writing))

        entry = FunctionEntry(id="f", namespace="default", owner=self.house.peer, handler=(True, run))
        self.house.core.functions.claim(entry)
        config = Json.of({"api_path": "x", "http_method": "POST"})
        self.house.core.triggers.register(Binding(id="x", trigger_type="http", function_id="f", config=config))

    async def begin(self, wire: Wire, rest: bytes = b"content-length: 0\r\n\r\n", version: bytes = b"1.1") -> None:
        await wire.stream.send_all(b"POST /x HTTP/" + version + b"\r\nhost: x\r\n" + rest)

    async def idle(self) -> None:
        """Wait until nothing of a request is left."""
        with trio.fail_after(PATIENCE_S):
            while self.house.core.channels.statistics().open or self.house.core.statistics().running:  # noqa: ASYNC110
                await trio.sleep(0.01)


@asynccontextmanager
async def streaming(handler: Handler) -> AsyncIterator[tuple[Streams, Wire]]:
    async with open_house() as house, house.wire() as wire:
        streams = Streams(house)
        streams.serve(handler)
        yield streams, wire
        await streams.idle()


async def until(wire: Wire, text: bytes) -> bytes:
    received = b""
    with trio.fail_after(PATIENCE_S):
        while text not in received:
            data = await wire.stream.receive_some()
            assert data, received
            received += data
    return received


async def test_every_event_leaves_at_once_and_the_connection_is_used_again() -> None:
    more = trio.Event()

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await response.send('{"type":"set_headers","headers":{"content-type":"text/event-stream"}}')
        await response.send_all(b"data: 1\n\n")
        await more.wait()
        await response.send_all(b"data: 2\n\n")
        await response.aclose()
        return NULL

    async with streaming(handler) as (streams, wire):
        await streams.begin(wire)
        first = await until(wire, b"data: 1\n\n\r\n")
        assert b"transfer-encoding: chunked" in first.lower()
        assert b"data: 2" not in first
        more.set()
        await until(wire, b"data: 2\n\n\r\n0\r\n\r\n")
        await wire.stream.send_all(b"GET /missing HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(wire, b"404")


async def test_a_client_that_reads_slowly_holds_its_writer_back_and_gets_everything() -> None:
    size, written = 8_000_000, 0

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        nonlocal written
        async with response:
            for _ in range(size // 50_000):
                await response.send_all(b"x" * 50_000)
                written += 50_000
        return NULL

    async with streaming(handler) as (streams, wire):
        await streams.begin(wire, b"connection: close\r\ncontent-length: 0\r\n\r\n")
        await until(wire, b"\r\n\r\n")
        before = -1
        while before != written:  # the sockets fill up, then the channel does
            before = written
            await trio.sleep(0.05)
        assert written < size
        assert (await wire.closed()).count(b"x") > size - 200_000
        assert written == size


async def test_an_upload_without_a_reader_is_held_back_too() -> None:
    go, got = trio.Event(), 0

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        nonlocal got
        await go.wait()
        while data := await body.receive_some():
            got += len(data)
        return Json.of({"body": got})

    async with streaming(handler) as (streams, wire):
        size = 40_000_000
        await streams.begin(wire, b"content-length: %d\r\n\r\n" % size)
        sent = 0
        with trio.move_on_after(1):
            while sent < size:
                await wire.stream.send_all(b"x" * 100_000)
                sent += 100_000
        assert sent < size
        assert streams.house.core.channels.statistics().bytes < 8_000_000
        go.set()
        wire.stream.socket.close()  # a part of a write may have been lost with the cancellation above


async def held_back(wire: Wire, size: int = 100_000_000) -> None:
    """Send an upload until no more of it is taken."""
    wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
    stuck = False
    while not stuck:
        with trio.move_on_after(0.2) as patience:
            await wire.stream.send_all(b"x" * 10_000)
        stuck = patience.cancelled_caught


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is noticed when the handler reads on")
@pytest.mark.parametrize("where", ["handler", "condition"])
async def test_a_client_that_leaves_behind_an_upload_that_is_held_back_is_noticed(where: str) -> None:
    cancelled = trio.Event()

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    async def guard(call: Call, data: Json) -> Json:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    async with streaming(handler) as (streams, wire):
        if where == "condition":
            streams.house.peer.register("guard", guard, task=True)
            streams.house.core.triggers.unregister("x")
            config = Json.of({"api_path": "x", "http_method": "POST", "condition_function_id": "guard"})
            binding = Binding(id="x", trigger_type="http", function_id="f", config=config)
            streams.house.core.triggers.register(binding)
        await streams.begin(wire, b"content-length: 100000000\r\n\r\n")
        await held_back(wire)
        assert not cancelled.is_set()
        wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await wire.stream.aclose()
        with trio.fail_after(PATIENCE_S):
            await cancelled.wait()
        await no_connections(streams.house)


@pytest.mark.parametrize("held", [True, False])
async def test_a_client_that_closes_its_half_has_left(held: bool) -> None:
    cancelled = trio.Event()

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        try:
            if not held:
                while await body.receive_some():
                    pass
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    if held and sys.platform != "linux":
        pytest.skip("elsewhere it is noticed when the handler reads on")
    async with streaming(handler) as (streams, wire):
        size = 600_000  # more than a channel holds, less than the sockets do
        await streams.begin(wire, b"content-length: %d\r\n\r\n" % size)
        await wire.stream.send_all(b"x" * size)
        await wire.stream.send_eof()
        with trio.fail_after(PATIENCE_S):
            await cancelled.wait()
        await no_connections(streams.house)


async def no_connections(house: House) -> None:
    """Wait until every connection has ended."""
    with trio.fail_after(PATIENCE_S):
        while (statistics := house.module.statistics().connections) is None or statistics.open:  # noqa: ASYNC110
            await trio.sleep(0.01)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_what_is_cut_off_does_not_look_whole(version: bytes) -> None:
    fail = trio.Event()

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await response.send_all(b"half")
        await fail.wait()
        response.abort()
        raise WireError("no more", "broken")

    async with streaming(handler) as (streams, wire):
        await streams.begin(wire, version=version)
        await until(wire, b"half")
        fail.set()
        if version == b"1.0":  # there, the end of the connection is the end of the body
            with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError):
                await wire.stream.receive_some()
        else:
            assert b"0\r\n\r\n" not in await wire.closed()


async def test_a_client_that_leaves_stops_the_writer() -> None:
    broken = trio.Event()

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        try:
            while True:
                await response.send_all(b"x")
                await trio.sleep(0.01)
        except (trio.BrokenResourceError, trio.Cancelled):
            broken.set()
            raise
        raise AssertionError

    async with streaming(handler) as (streams, wire):
        await streams.begin(wire)
        await until(wire, b"x")
        await wire.stream.aclose()
        with trio.fail_after(PATIENCE_S):
            await broken.wait()


async def test_a_client_that_stops_reading_is_cut_and_its_handler_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.2)
    monkeypatch.setattr(connections, "LINGER_S", 0.1)
    ended = trio.Event()

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        try:
            while True:
                await response.send_all(b"x" * 60_000)
        finally:
            ended.set()
        raise AssertionError

    async with streaming(handler) as (streams, wire):
        await streams.begin(wire)
        with trio.fail_after(PATIENCE_S):
            await ended.wait()
