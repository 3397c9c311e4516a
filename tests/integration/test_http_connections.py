"""What clients do to a server: stall, dribble, send garbage, leave. Each costs its own connection and nothing else."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define
from trio.testing import wait_all_tasks_blocked

from iii_trio.engine import bind
from iii_trio.modules.http import connections
from iii_trio.modules.http.connections import Connections
from iii_trio.modules.http.http1_messages import RequestParser

PATIENCE_S = 30
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
OK = b"\r\n\r\nok"

App = Callable[[Mapping[str, Any], Any, Any], Awaitable[None]]


async def answer(send: Any, body: bytes = b"ok") -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def says_ok(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    await answer(send)


@define
class Server:
    """Connections that run, their port, and the scope whose cancellation stops them, and only them."""

    connections: Connections
    port: int
    scope: trio.CancelScope
    ended: trio.Event

    @asynccontextmanager
    async def dial(self) -> AsyncIterator[trio.SocketStream]:
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            yield stream

    async def stop(self) -> None:
        """Cancel, and wait for the end."""
        self.scope.cancel()
        with trio.fail_after(PATIENCE_S):
            await self.ended.wait()


@asynccontextmanager
async def serving(app: App = says_ok, **settings: Any) -> AsyncIterator[Server]:
    served = Connections(app=app, **settings)
    listeners = await bind("127.0.0.1", 0, "test")
    server = Server(served, listeners[0].socket.getsockname()[1], trio.CancelScope(), trio.Event())

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        with server.scope:
            await served.serve(listeners, task_status=task_status)
        server.ended.set()

    with trio.fail_after(3 * PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            yield server
            server.scope.cancel()
    assert served.statistics().open == 0


async def read_until(stream: trio.SocketStream, ending: bytes) -> bytes:
    received = b""
    while not received.endswith(ending):
        chunk = await stream.receive_some()
        assert chunk, received
        received += chunk
    return received


async def read_to_end(stream: trio.SocketStream) -> bytes:
    received = []
    try:
        while chunk := await stream.receive_some():
            received.append(chunk)
    except trio.BrokenResourceError:
        pass
    return b"".join(received)


# -- the two halves of a gone client: what hypercorn tells an application, and what it does not ----------------------


async def test_a_pending_receive_hears_that_the_client_has_gone() -> None:
    heard: list[Mapping[str, Any]] = []
    done = trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        heard.append(await receive())
        waiting.set()
        heard.append(await receive())
        done.set()

    waiting = trio.Event()
    async with serving(app) as server:
        async with server.dial() as stream:
            await stream.send_all(REQUEST)
            await waiting.wait()
        await done.wait()
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]


async def test_sending_to_a_gone_client_raises_nothing_so_receive_must_be_watched() -> None:
    gone, done = trio.Event(), trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await gone.wait()
        for _ in range(50):
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        message = {"type": "http.request", "more_body": False}
        while message["type"] != "http.disconnect":
            message = await receive()
        done.set()

    async with serving(app) as server:
        async with server.dial() as stream:
            await stream.send_all(REQUEST)
            await read_until(stream, b"first\r\n")
        gone.set()
        await done.wait()


# -- clients that stall -----------------------------------------------------------------------------------------------


def big_answer(sending: trio.Event) -> App:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/big":
            sending.set()
            await answer(send, b"x" * 20_000_000)
        else:
            await answer(send)

    return app


async def test_a_client_that_reads_nothing_does_not_hold_up_the_stop() -> None:
    sending = trio.Event()
    async with serving(big_answer(sending), grace_s=0.1) as server, server.dial() as stalled:
        await stalled.send_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await sending.wait()
        await server.stop()


async def test_a_client_that_reads_nothing_is_cut_and_the_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.1)
    async with serving(big_answer(trio.Event())) as server, server.dial() as stalled, server.dial() as lively:
        await stalled.send_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        while server.connections.statistics().open == 2:
            await lively.send_all(REQUEST)
            await read_until(lively, OK)
        assert server.connections.statistics().failed == 0


async def test_a_slow_reader_that_goes_on_reading_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_S", 1.0)
    async with serving(big_answer(trio.Event())) as server, server.dial() as slow:
        await slow.send_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        left, pauses = 20_000_000, 30
        while left > 0:
            left -= len(await slow.receive_some(2_000_000))
            if pauses:
                pauses -= 1
                await trio.sleep(0.02)
        assert server.connections.statistics().open == 1


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost:", REQUEST], ids=["nothing", "half a head", "request"])
async def test_a_connection_without_a_request_is_closed_after_a_while(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.02)
    async with serving(idle_s=0.5 if sent == REQUEST else 0.1) as server, server.dial() as stream:
        await stream.send_all(sent)
        received = await read_to_end(stream)
        assert received.endswith(OK) if sent == REQUEST else received == b""


async def test_a_request_that_takes_long_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.02)
    async with serving(big_answer(trio.Event()), idle_s=0.5) as server, server.dial() as stream:
        await stream.send_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await trio.sleep(1)  # the answer waits in our buffers for longer than a connection may idle
        with trio.fail_after(PATIENCE_S):
            assert len(await read_to_end(stream)) > 20_000_000


# -- garbage ----------------------------------------------------------------------------------------------------------

GARBAGE = {
    "no http": b"\x00\xff\x16\x03\x01\r\n\r\n",
    "bad header": b"GET / HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    "endless head": b"GET / HTTP/1.1\r\nx: " + b"x" * 200_000,
    "bad chunk": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "settings that are no base64": (
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA0\r\n\r\n"
    ),
    "settings that are no settings": (
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\n\r\n"
    ),
    "broken http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    "half a websocket": (
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\xff\xff"
    ),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_ends_its_own_connection_and_no_other(garbage: bytes) -> None:
    async with serving() as server, server.dial() as neighbour:
        await neighbour.send_all(REQUEST)
        await read_until(neighbour, OK)
        for _ in range(3):
            async with server.dial() as stream:
                try:
                    await stream.send_all(garbage)
                    await stream.send_eof()
                except trio.BrokenResourceError:
                    pass  # refused before all of it was sent
                await read_to_end(stream)
        await neighbour.send_all(REQUEST)
        await read_until(neighbour, OK)
        async with server.dial() as newcomer:
            await newcomer.send_all(REQUEST)
            await read_until(newcomer, OK)


async def test_a_refusal_is_readable_although_the_client_goes_on_sending() -> None:
    async with serving() as server, server.dial() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nx: " + b"x" * 1_000_000)
        received = await read_until(stream, b"\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 431")
        assert server.connections.statistics().open == 1
    assert server.connections.statistics().failed == 0


async def test_a_closed_connection_is_cut_when_the_client_does_not_close_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.02)
    monkeypatch.setattr(connections, "LINGER_S", 0.1)
    async with serving() as server, server.dial() as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await read_to_end(stream)).endswith(OK)
        while server.connections.statistics().open:
            await trio.lowlevel.checkpoint()


async def test_what_follows_a_last_request_cuts_no_response_short_and_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.2)
    monkeypatch.setattr(connections, "LINGER_S", 0.1)

    async def closes(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        await wait_all_tasks_blocked(0.01)  # until what the client sent has been looked at
        await send({"type": "http.response.body", "body": b"ok"})

    async with serving(closes) as server, server.dial() as stream:
        await stream.send_all(REQUEST * 3)
        received = await read_to_end(stream)
        assert (received.count(b"HTTP/1.1"), received[-8:]) == (1, b"first ok")
        while server.connections.statistics().open:
            await trio.lowlevel.checkpoint()


async def test_an_aborted_connection_ends_whatever_waits_for_it() -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await wait_all_tasks_blocked(0.02)  # until nothing more of the upload can be taken in
        scope["state"][connections.CONNECTION].abort()

    async with serving(app) as server, server.dial() as stream:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n"
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(head + bytes(100_000_000))
        while server.connections.statistics().open:
            await trio.lowlevel.checkpoint()


async def test_a_bug_in_a_connection_is_counted_logged_with_an_id_and_costs_that_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    feed = RequestParser.feed

    def buggy(self: RequestParser, data: bytes) -> None:
        if data.startswith(b"BUG"):
            raise RuntimeError("on purpose")
        feed(self, data)

    monkeypatch.setattr(RequestParser, "feed", buggy)
    async with serving() as server, server.dial() as neighbour:
        async with server.dial() as stream:
            await stream.send_all(b"BUG")
            assert await read_to_end(stream) == b""
        assert server.connections.statistics().failed == 1
        assert "an HTTP connection failed (incident" in caplog.text
        await neighbour.send_all(REQUEST)
        await read_until(neighbour, OK)


@pytest.mark.parametrize(
    "offer",
    [
        b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        (
            b"connection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
        ),
    ],
    ids=["http/2", "websocket"],
)
async def test_an_offer_to_switch_protocols_is_ignored_and_the_request_answered(offer: bytes) -> None:
    async with serving() as server, server.dial() as stream:
        for _ in range(2):
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n" + offer + b"\r\n")
            assert (await read_until(stream, OK)).startswith(b"HTTP/1.1 200")


async def test_an_application_that_crashes_costs_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/middle":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if scope["path"] != "/":
            raise RuntimeError("on purpose")
        await answer(send)

    async with serving(app) as server, server.dial() as stream, server.dial() as middle, server.dial() as other:
        await stream.send_all(b"GET /crash HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 500")
        await middle.send_all(b"GET /middle HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await read_to_end(middle)).endswith(b"\r\n\r\nhalf")
        await other.send_all(REQUEST)
        await read_until(other, OK)
        assert "on purpose" in caplog.text


# -- the number of connections ----------------------------------------------------------------------------------------


async def test_connections_above_the_bound_are_refused_until_one_leaves() -> None:
    async with serving(max_connections=2) as server, server.dial() as first:
        async with server.dial() as second:
            for stream in (first, second):
                await stream.send_all(REQUEST)
                await read_until(stream, OK)
            async with server.dial() as third:
                assert await read_to_end(third) == b""
            assert server.connections.statistics().refused == 1
            assert server.connections.statistics().idle == 2
        while server.connections.statistics().open > 1:
            await trio.lowlevel.checkpoint()
        async with server.dial() as fourth:
            await fourth.send_all(REQUEST)
            await read_until(fourth, OK)


async def test_connections_to_an_address_that_is_left_end_with_their_response(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.02)
    monkeypatch.setattr(connections, "MOVE_GRACE_S", 1.5)
    begun, go = trio.Event(), trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/waits":
            begun.set()
            await go.wait()
        elif scope["path"] == "/hangs":
            await trio.sleep_forever()
        await answer(send)

    async with serving(app) as server:
        async with server.dial() as idle, server.dial() as waits, server.dial() as hangs:
            await idle.send_all(REQUEST)
            await read_until(idle, OK)
            await waits.send_all(b"GET /waits HTTP/1.1\r\nhost: x\r\n\r\n")
            await hangs.send_all(b"GET /hangs HTTP/1.1\r\nhost: x\r\n\r\n")
            await begun.wait()
            listeners = await bind("127.0.0.1", 0, "test")
            server.port = listeners[0].socket.getsockname()[1]
            await server.connections.listen_on(listeners)
            assert await read_to_end(idle) == b""
            go.set()
            last = await read_to_end(waits)
            assert last.endswith(OK)
            assert b"connection: close" in last.lower()
            assert await read_to_end(hangs) == b""
            async with server.dial() as new:
                await new.send_all(REQUEST)
                assert b"connection: close" not in (await read_until(new, OK)).lower()
        while server.connections.statistics().open:
            await trio.lowlevel.checkpoint()


async def test_a_cancelled_start_leaves_nothing_behind() -> None:
    served = Connections(app=says_ok)
    listeners = await bind("127.0.0.1", 0, "test")
    with trio.fail_after(PATIENCE_S), trio.CancelScope() as scope:
        scope.cancel()
        await served.serve(listeners)
    assert scope.cancelled_caught
    for listener in listeners:
        listener.socket.close()
