"""What our HTTP/1.1 does on a socket beside the plain answer: asking first, refusing in the middle, ends, fairness."""

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from test_http_connections import OK, REQUEST, answer, read_to_end, read_until, says_ok, serving
from trio.testing import wait_all_tasks_blocked

from iii_trio.modules.http import asgi
from iii_trio.modules.http.http1 import STEP_BYTES
from iii_trio.modules.http.http1_messages import RequestParser

POST = b"POST / HTTP/1.1\r\nhost: x\r\n"


async def body_of(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body + b" and left"
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    await answer(send, await body_of(receive))


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"content-length: 5\r\n", b"hello"),
        (b"transfer-encoding: chunked\r\n", b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nt: u\r\n\r\n"),
    ],
    ids=["length", "chunks"],
)
async def test_a_client_that_asks_first_is_told_when_its_body_is_wanted(framing: bytes, body: bytes) -> None:
    async with serving(echo) as server, server.dial() as stream:
        for _ in range(2):
            await stream.send_all(POST + b"expect: 100-continue\r\n" + framing + b"\r\n")
            assert await read_until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(body)
            assert (await read_until(stream, b"hello")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_client_whose_body_is_not_wanted_is_not_told_to_send_it_and_not_waited_for() -> None:
    async with serving() as server, server.dial() as stream:
        await stream.send_all(POST + b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        received = await read_to_end(stream)
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nconnection: close\r\n" in received
        assert received.endswith(OK)


async def test_an_application_that_waits_for_a_body_that_breaks_off_is_told_and_so_is_the_client() -> None:
    bodies: list[bytes] = []

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        bodies.append(await body_of(receive))

    async with serving(app) as server, server.dial() as stream:
        await stream.send_all(POST + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await stream.send_all(b"zz\r\n")
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert bodies == [b"hello and left"]
        assert server.connections.statistics().failed == 0


async def test_what_came_before_garbage_is_answered_first() -> None:
    async with serving() as server, server.dial() as stream:
        await stream.send_all(REQUEST * 2 + b"GET / HTTP/1.1\r\nbad header\r\n\r\n" + REQUEST)
        received = await read_to_end(stream)
        assert received.count(b"HTTP/1.1 200") == 2
        assert received.count(b"HTTP/1.1 ") == 3
        assert received.rindex(b"HTTP/1.1 400") > received.rindex(b"HTTP/1.1 200")


@pytest.mark.parametrize("keep", [b"", b"connection: keep-alive\r\n"])
async def test_http_1_0_gets_one_response_that_ends_with_the_connection(keep: bytes) -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        await send({"type": "http.response.body", "body": b"thing"})

    async with serving(app) as server, server.dial() as stream:
        await stream.send_all((b"GET / HTTP/1.0\r\n" + keep + b"\r\n") * 2)
        head, _, body = (await read_to_end(stream)).partition(b"\r\n\r\n")
        assert body == b"something"
        assert b"chunked" not in head


@pytest.mark.parametrize("body", [b"too long", b"short"])
async def test_a_body_of_another_length_than_declared_costs_the_connection(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": body[:5], "more_body": True})
        await send({"type": "http.response.body", "body": body[5:]})

    async with serving(app) as server, server.dial() as stream:
        await stream.send_all(REQUEST)
        assert (await read_to_end(stream)).endswith(b"\r\n\r\n" + body[:5])
        assert server.connections.statistics().failed == 1
        assert "than its content-length" in caplog.text


async def test_an_application_that_does_not_answer_is_a_500() -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Says nothing."""

    async with serving(app) as server, server.dial() as stream:
        await stream.send_all(REQUEST)
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 500 ")


async def test_a_pending_receive_hears_that_the_response_is_complete_and_the_next_request_is_served() -> None:
    heard: list[str] = []

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"

        async def listen() -> None:
            heard.append((await receive())["type"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            await answer(send)

    async with serving(app) as server, server.dial() as stream:
        for _ in range(2):
            await stream.send_all(REQUEST)
            await read_until(stream, OK)
        assert heard[0] == "http.disconnect"


async def test_of_many_requests_at_once_only_some_are_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    most, parsers = 0, []
    feed = RequestParser.feed

    def counting(self: RequestParser, data: bytes) -> None:
        nonlocal most
        feed(self, data)
        parsers.append(self)
        most = max(most, len(self.arrived))

    monkeypatch.setattr(RequestParser, "feed", counting)
    async with serving() as server, server.dial() as stream:
        await stream.send_all(REQUEST * 2000)
        received = b""
        while received.count(OK) < 2000:
            received += await stream.receive_some()
        assert 1 <= most <= STEP_BYTES // len(REQUEST) + 2
        assert len(parsers) > 5


async def test_a_client_with_a_thousand_requests_at_once_lets_others_through() -> None:
    order: list[str] = []
    begun = trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        order.append(scope["path"])
        begun.set()
        await says_ok(scope, receive, send)

    async with serving(app) as server, server.dial() as greedy, server.dial() as other:
        await greedy.send_all(b"GET /g HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
        await begun.wait()
        await other.send_all(REQUEST)
        await read_until(other, OK)
        received = b""
        while received.count(OK) < 1000:
            received += await greedy.receive_some()
        assert order.index("/") < 500
        assert len(order) == 1001


async def test_a_stream_that_is_complete_ends_before_the_rest_of_an_upload_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asgi, "DISCARD_BYTES", 10_000)

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await asgi.begin(send, 200, [], b"a stream", more=True)
        await asgi.finish(send, asgi.Incoming(receive, None, asgi.connection_of(scope)))

    async with serving(app) as server, server.dial() as stream:
        await stream.send_all(POST + b"content-length: 1000000\r\n\r\n" + bytes(20_000))
        assert (await read_to_end(stream)).endswith(b"8\r\na stream\r\n0\r\n\r\n")
