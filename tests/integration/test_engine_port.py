"""The worker port over real sockets: paths, refusals, taken addresses, handshakes (spec/protocol.md §1)."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from iii_trio.engine import Engine, Listener, bind, open_engine
from iii_trio.protocol.errors import ConfigError
from iii_trio.testing import dial

UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@asynccontextmanager
async def listening(handshake_timeout_s: float = 10.0) -> AsyncIterator[tuple[Engine, Listener, trio.Nursery]]:
    """An engine with a port on 127.0.0.1."""
    async with open_engine() as core, trio.open_nursery() as nursery:
        listener = Listener(core=core, host="127.0.0.1", port=0, handshake_timeout_s=handshake_timeout_s)
        await nursery.start(listener.run)
        yield core, listener, nursery
        nursery.cancel_scope.cancel()


async def exchange(listener: Listener, request: bytes) -> bytes:
    """What the port answers to some bytes, up to its hanging up."""
    stream = await trio.open_tcp_stream(*listener.addresses[0])
    async with stream:
        await stream.send_all(request)
        answer = b""
        with trio.fail_after(10):
            while chunk := await stream.receive_some(65536):
                answer += chunk
        return answer


@pytest.mark.parametrize(
    ("request_head", "status", "text"),
    [
        (UPGRADE % b"/nowhere", b"404", b"workers connect to /"),
        (UPGRADE % b"/ws/channels/x?key=y&dir=read", b"404", b"Channel not found"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"426", b""),
        (b"GET /otel HTTP/1.1\r\nHost: x\r\n\r\n", b"426", b""),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405", b""),
        (b"not http at all\r\n\r\n", b"400", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", b"431", b""),
    ],
)
async def test_what_is_no_worker_gets_an_http_answer(request_head: bytes, status: bytes, text: bytes) -> None:
    async with listening() as (core, listener, _):
        answer = await exchange(listener, request_head)
        assert answer.startswith(b"HTTP/1.1 " + status), answer[:80]
        assert text in answer
        await trio.testing.wait_all_tasks_blocked()
        assert listener.statistics().connections == 0
        assert len(core.workers) == 0


async def test_the_query_of_a_worker_url_does_not_matter() -> None:
    async with listening() as (_, listener, _):
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        async with stream:
            await stream.send_all(UPGRADE % b"/?token=x&y=%20")
            answer = b""
            while b"workerregistered" not in answer:
                answer += await stream.receive_some(65536)
            assert answer.startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost:", UPGRADE[:-2] % b"/"])
async def test_a_handshake_that_never_ends_is_ended(begun: bytes) -> None:
    async with listening(handshake_timeout_s=0.2) as (_, listener, nursery):
        worker = await dial(nursery, listener.addresses[0][1])
        answer = await exchange(listener, begun)
        assert answer == b""
        await worker.settled()
        assert listener.statistics().handshakes == 0


async def test_handshakes_that_never_end_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_trio.transport.waiting_room.PENDING_SOCKETS", 3)
    async with listening() as (_, listener, nursery):
        idle = [await trio.open_tcp_stream(*listener.addresses[0]) for _ in range(5)]
        with trio.fail_after(5):
            for stream in idle[:2]:
                assert await stream.receive_some(1) == b"", "the oldest make room"
        worker = await dial(nursery, listener.addresses[0][1])
        await worker.settled()
        assert listener.statistics().handshakes <= 3
        for stream in idle:
            await stream.aclose()


async def test_a_taken_address_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} is already in use \(the worker port\)"):
            await bind("127.0.0.1", port, "the worker port")


async def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(ConfigError, match=r"failed to bind to 192\.0\.2\.1:0 \(the worker port\)"):
        await bind("192.0.2.1", 0, "the worker port")


async def test_localhost_is_both_loopback_addresses_on_one_port() -> None:
    listeners = await bind("localhost", 0, "the worker port")
    try:
        names = [listener.socket.getsockname()[:2] for listener in listeners]
        assert names[0][0] == "127.0.0.1"
        assert {port for _, port in names} == {names[0][1]}
        assert {host for host, _ in names} <= {"127.0.0.1", "::1"}
    finally:
        for listener in listeners:
            listener.socket.close()


async def test_a_machine_without_ipv6_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    make = trio.socket.socket

    def without_ipv6(family: int, kind: int) -> trio.socket.SocketType:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return make(family, kind)

    monkeypatch.setattr(trio.socket, "socket", without_ipv6)
    (listener,) = await bind("localhost", 0, "the worker port")
    assert listener.socket.getsockname()[0] == "127.0.0.1"
    listener.socket.close()


@pytest.mark.parametrize("path", [b"/", b"/otel", b"/ws/channels/x?key=y&dir=read", b"/nowhere"])
async def test_pages_of_origins_that_are_not_allowed_get_a_403_and_nothing_else(
    path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    page = (UPGRADE % path)[:-2] + b"Origin: https://evil.example\r\n\r\n"
    async with listening() as (core, listener, nursery):
        listener.allowed_origins = ("https://app.example",)
        before = await dial(nursery, listener.addresses[0][1])
        for _ in range(2):
            answer = await exchange(listener, page)
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert b"origin 'https://evil.example' may not connect" in answer
            assert b"`allowed_origins` of iii-worker-manager" in answer
        assert listener.statistics().refused == 2
        assert caplog.text.count("https://evil.example") == 1
        assert str(listener.addresses[0][1]) in caplog.text
        after = await dial(nursery, listener.addresses[0][1])  # no browser: names no origin
        await before.settled()
        await after.settled()
        assert len(core.workers) == 2


@pytest.mark.parametrize("allowed", [None, ("*",), ("https://other.example", "https://APP.example:443")])
async def test_pages_of_allowed_origins_connect(allowed: tuple[str, ...] | None) -> None:
    async with listening() as (_, listener, _):
        listener.allowed_origins = allowed
        stream = await trio.open_tcp_stream(*listener.addresses[0])
        async with stream:
            await stream.send_all((UPGRADE % b"/")[:-2] + b"Origin: https://app.example\r\n\r\n")
            answer = b""
            while b"workerregistered" not in answer:
                answer += await stream.receive_some(65536)
            assert answer.startswith(b"HTTP/1.1 101")
