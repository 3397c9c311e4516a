"""Both sides of the upgrade over memory streams: what is accepted, what is refused and how, and every deadline."""

import base64
import hashlib
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, TextMessage
from wsproto.events import Request as UpgradeRequest

from iii_trio.protocol.limits import HANDSHAKE_HEAD, HANDSHAKE_S
from iii_trio.transport import HandshakeError, Refusal, Request, accept, connect
from iii_trio.transport.handshake import LINGER_S

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def ask(target: str = "/", method: str = "GET", drop: tuple[str, ...] = (), **more: str) -> bytes:
    """An upgrade request; a header is replaced by keyword (`_` for `-`) or dropped by name."""
    headers = {
        "Host": "127.0.0.1:49134",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": KEY.decode(),
        "Sec-WebSocket-Version": "13",
    }
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if name not in drop]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def welcome(_: Request) -> Refusal | None:
    return None


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    data = b""
    while chunk := await stream.receive_some():
        data += chunk
    return data


async def refused(data: bytes, route: object = welcome) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of the refusal that `data` gets; the stream is closed afterwards."""
    ours, theirs = memory_stream_pair()
    raised: list[HandshakeError] = []

    async def serve() -> None:
        with pytest.raises(HandshakeError) as info:
            await accept(ours, route=route)  # type: ignore[arg-type]
        raised.append(info.value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await theirs.send_all(data)
        answer = await receive_all(theirs)
        await theirs.aclose()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert headers["content-length"] == str(len(body))
    assert headers["connection"] == "close"
    code = int(status.split()[1])
    assert (raised[0].status, raised[0].body) == (code, body)
    return code, headers, body.decode()


class TestAccept:
    @pytest.mark.parametrize("step", [1, 7, 10_000])
    async def test_the_upgrade_in_chunks_with_early_frames(self, step: int, nursery: trio.Nursery) -> None:
        ours, theirs = lockstep_stream_pair()
        data = ask("/?a=1&b=%20", Cookie="k=v") + b"\x81\x80frames"

        async def send() -> None:
            for i in range(0, len(data), step):
                await theirs.send_all(data[i : i + step])

        answer = b""

        async def read() -> None:
            nonlocal answer
            answer = bytes(await theirs.receive_some())

        nursery.start_soon(send)
        nursery.start_soon(read)
        request, framing, rest = await accept(ours, route=welcome)
        await wait_all_tasks_blocked()
        assert (request.method, request.path, request.query) == ("GET", "/", "a=1&b=%20")
        assert ("host", "127.0.0.1:49134") in request.headers
        assert ("cookie", "k=v") in request.headers
        assert not framing.client
        assert (b"\x81\x80frames").startswith(rest)
        if step == 10_000:
            assert rest == b"\x81\x80frames"
        token = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-accept: " + token in answer.replace(b"Sec-WebSocket-Accept", b"sec-websocket-accept")

    async def test_extensions_and_subprotocols_are_declined(self, nursery: trio.Nursery) -> None:
        ours, theirs = memory_stream_pair()
        await theirs.send_all(
            ask(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits", Sec_WebSocket_Protocol="iii, x")
        )
        await accept(ours, route=welcome)
        answer = bytes(await theirs.receive_some()).lower()
        assert b"sec-websocket-extensions" not in answer
        assert b"sec-websocket-protocol" not in answer

    async def test_header_names_are_lower_case_and_kept_when_they_repeat(self) -> None:
        ours, theirs = memory_stream_pair()
        await theirs.send_all(ask()[:-2] + b"X-Name: one\r\nX-NAME: tw\xf6\r\n\r\n")
        request, _, _ = await accept(ours, route=welcome)
        assert [value for name, value in request.headers if name == "x-name"] == ["one", "twö"]

    async def test_the_absolute_form_of_a_proxy(self) -> None:
        ours, theirs = memory_stream_pair()
        await theirs.send_all(ask("http://engine:49134/otel?x=http://y/z"))
        request, _, _ = await accept(ours, route=welcome)
        assert (request.path, request.query) == ("/otel", "x=http://y/z")

    async def test_the_route_sees_the_request_and_may_refuse_it(self) -> None:
        seen: list[Request] = []

        def route(request: Request) -> Refusal:
            seen.append(request)
            return Refusal(404, "Channel not found", (("x-why", "gone"),))

        status, headers, body = await refused(ask("/ws/channels/1?key=k&dir=read"), route)
        assert (status, body, headers["x-why"]) == (404, "Channel not found", "gone")
        assert (seen[0].path, seen[0].query) == ("/ws/channels/1", "key=k&dir=read")

    async def test_the_route_comes_before_everything_else(self) -> None:
        status, _, _ = await refused(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", lambda _: Refusal(404, "no"))
        assert status == 404

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426),
            (ask(Upgrade="h2c"), 426),
            (ask(Sec_WebSocket_Version="8"), 426),
            (ask(method="POST"), 405),
            (ask(method="HEAD"), 405),
            (ask(drop=("Host",)), 400),
            (ask(drop=("Connection",)), 400),
            (ask(drop=("Sec-WebSocket-Key",)), 400),
            (ask(drop=("Sec-WebSocket-Version",)), 400),
            (ask(Content_Length="5") + b"hello", 400),
            (ask(Connection="Upgrade\xff"), 400),
            (ask(Host="\xff"), 400),
            (b"\x16\x03\x01 TLS hello\r\n\r\n", 400),
            (b"\r\n\r\n", 400),
            (b"GET /\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nx: " + b"y" * HANDSHAKE_HEAD, 431),
        ],
    )
    async def test_refusals(self, data: bytes, status: int) -> None:
        found, headers, body = await refused(data)
        assert found == status
        assert body.endswith(".\n")
        if status == 426:
            assert headers["sec-websocket-version"] == "13"
        if status == 405:
            assert headers["allow"] == "get"

    @pytest.mark.parametrize("data", [b"", b"GET", ask()[:-1]])
    async def test_heads_that_stay_incomplete_are_cut_at_the_deadline(
        self, data: bytes, autojump_clock: MockClock
    ) -> None:
        ours, theirs = memory_stream_pair()
        if data:
            await theirs.send_all(data)
        with pytest.raises(HandshakeError, match="10 s") as info:
            await accept(ours, route=welcome)
        assert info.value.status is None
        assert trio.current_time() == HANDSHAKE_S
        assert await receive_all(theirs) == b""

    async def test_a_dribble_does_not_extend_the_deadline(
        self, nursery: trio.Nursery, autojump_clock: MockClock
    ) -> None:
        ours, theirs = memory_stream_pair()

        async def dribble() -> None:
            with suppress(trio.BrokenResourceError):
                for byte in ask():
                    await trio.sleep(0.5)
                    await theirs.send_all(bytes([byte]))

        async with trio.open_nursery() as aside:
            aside.start_soon(dribble)
            with pytest.raises(HandshakeError, match="3 s"):
                await accept(ours, route=welcome, deadline_s=3)
            assert trio.current_time() == 3
            aside.cancel_scope.cancel()

    async def test_a_client_that_does_not_read_the_answer_is_cut_too(self, autojump_clock: MockClock) -> None:
        ours, theirs = lockstep_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.send_all, ask())
            with pytest.raises(HandshakeError):
                await accept(ours, route=welcome)
        assert trio.current_time() == HANDSHAKE_S

    async def test_a_refused_client_that_stays_is_cut_soon(self, autojump_clock: MockClock) -> None:
        ours, theirs = memory_stream_pair()
        await theirs.send_all(ask())
        with pytest.raises(HandshakeError, match="404 Not Found: no"):
            await accept(ours, route=lambda _: Refusal(404, "no"))
        assert trio.current_time() == LINGER_S
        assert b"404" in await receive_all(theirs)

    @pytest.mark.parametrize("data", [b"", b"GET / HT"])
    async def test_a_client_that_hangs_up(self, data: bytes) -> None:
        ours, theirs = memory_stream_pair()
        if data:
            await theirs.send_all(data)
        await theirs.aclose()
        with pytest.raises(HandshakeError, match="hung up"):
            await accept(ours, route=welcome)

    async def test_a_cancelled_handshake_closes_the_stream(self) -> None:
        ours, theirs = memory_stream_pair()
        with trio.CancelScope() as scope:
            scope.cancel()
            await accept(ours, route=welcome)
        assert await receive_all(theirs) == b""


class TestConnect:
    async def answered(self, answer: bytes, **options: float) -> tuple[object, bytes]:
        """What `connect` makes of a fixed answer, and the request it sent."""
        ours, theirs = memory_stream_pair()
        await theirs.send_all(answer)
        await theirs.send_eof()
        try:
            await connect(ours, "engine:49134", "/?x=1", [("Authorization", "Bearer t")], **options)
        except HandshakeError as error:
            return error, await receive_all(theirs)
        raise AssertionError("the fixed answer was accepted")

    async def test_with_wsproto_as_the_server(self, nursery: trio.Nursery) -> None:
        ours, theirs = memory_stream_pair()
        server = WSConnection(ConnectionType.SERVER)
        requests: list[UpgradeRequest] = []

        async def serve() -> None:
            while not requests:
                server.receive_data(bytes(await theirs.receive_some()))
                requests.extend(event for event in server.events() if isinstance(event, UpgradeRequest))
            await theirs.send_all(server.send(AcceptConnection()) + server.send(TextMessage("early")))

        nursery.start_soon(serve)
        framing, rest = await connect(ours, "[::1]:49134", "/otel?x=1", [("Authorization", "Bearer t")])
        assert framing.client
        assert (requests[0].host, requests[0].target) == ("[::1]:49134", "/otel?x=1")
        assert (b"authorization", b"Bearer t") in requests[0].extra_headers
        assert requests[0].extensions == []
        framing.receive(rest)
        assert framing.next_batch() == [b"early"]

    async def test_with_accept_as_the_server(self, nursery: trio.Nursery) -> None:
        ours, theirs = memory_stream_pair()
        requests: list[Request] = []

        async def serve() -> None:
            request, _, _ = await accept(theirs, route=welcome)
            requests.append(request)

        nursery.start_soon(serve)
        await connect(ours, "localhost:49134", "/", [("x-worker", "me")])
        assert ("x-worker", "me") in requests[0].headers

    @pytest.mark.parametrize("length", [b"content-length: 9\r\n", b"transfer-encoding: chunked\r\n", b""])
    async def test_a_refusal_raises_with_status_and_body(self, length: bytes) -> None:
        body = b"9\r\nnot today\r\n0\r\n\r\n" if b"chunked" in length else b"not today"
        error, _ = await self.answered(b"HTTP/1.1 503 Service Unavailable\r\n" + length + b"\r\n" + body)
        assert isinstance(error, HandshakeError)
        assert (error.status, error.body) == (503, b"not today")
        assert "503 Service Unavailable" in str(error)

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"HTTP/1.1 101 Switch",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
            SWITCHING + b"Connection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
            SWITCHING + b"Connection: \xff\r\n\r\n",
            b"x" * (HANDSHAKE_HEAD + 10),
        ],
    )
    async def test_anything_else_raises_without_a_status(self, answer: bytes) -> None:
        ours, theirs = memory_stream_pair()
        if answer:
            await theirs.send_all(answer)
        await theirs.send_eof()
        with pytest.raises(HandshakeError) as info:
            await connect(ours, "engine", "/")
        assert info.value.status is None
        assert b"GET / HTTP/1.1" in await receive_all(theirs)

    async def test_a_server_that_does_not_answer(self, autojump_clock: MockClock) -> None:
        ours, theirs = memory_stream_pair()
        with pytest.raises(HandshakeError, match=r"2\.5 s"):
            await connect(ours, "engine", "/", deadline_s=2.5)
        assert trio.current_time() == 2.5
        assert await receive_all(theirs)

    @pytest.mark.parametrize(("host", "target"), [("x" * 70, "/"), ("engine", "/a b"), ("engine", "/ü")])
    async def test_arguments_that_http_cannot_carry(self, host: str, target: str) -> None:
        ours, theirs = memory_stream_pair()
        with pytest.raises(ValueError, match="no HTTP request"):
            await connect(ours, host, target)
        assert await receive_all(theirs) == b""
