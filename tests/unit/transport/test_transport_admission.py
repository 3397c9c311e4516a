"""Admission and sub-protocols of the upgrade, and pushes that leave as one batch."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from iii_trio.transport import (
    Connection,
    Framing,
    HandshakeError,
    Refusal,
    Request,
    accept,
    after_batch,
    connect,
    one_batch,
)

OFFER = "sec-websocket-protocol"


async def shake(
    *offered: str, protocols: tuple[str, ...] = (), refusal: Refusal | None = None, asked: list[str] | None = None
) -> bytes:
    """The server's answer to an upgrade that offers these sub-protocols, one header each."""
    here, there = trio.testing.memory_stream_pair()

    async def admit(request: Request) -> Refusal | None:
        await trio.lowlevel.checkpoint()
        if asked is not None:
            asked.append(request.path)
        return refusal

    async def serve() -> None:
        try:
            await accept(there, route=lambda _: None, admit=admit, protocols=protocols)
        except HandshakeError:
            pass

    head = [
        "GET /path HTTP/1.1",
        *("host: x", "upgrade: websocket", "connection: upgrade", "sec-websocket-version: 13"),
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
        *(f"{OFFER}: {names}" for names in offered),
    ]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await here.send_all(("\r\n".join(head) + "\r\n\r\n").encode())
        return bytes(await here.receive_some())


def agreed(answer: bytes) -> str | None:
    """The sub-protocol in an answer."""
    lines = answer.decode().lower().split("\r\n")
    return next((line.partition(": ")[2] for line in lines if line.startswith(OFFER)), None)


@pytest.mark.parametrize(
    ("offered", "protocols", "expected"),
    [
        ((), ("a",), None),
        (("a",), (), None),
        (("a, b",), ("b",), "b"),
        (("a", "b"), ("b",), "b"),
        (("a,b",), ("b", "a"), "b"),
        (("c",), ("a", "b"), None),
    ],
)
async def test_the_first_of_our_protocols_that_is_offered_is_agreed_on(
    offered: tuple[str, ...], protocols: tuple[str, ...], expected: str | None
) -> None:
    answer = await shake(*offered, protocols=protocols)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert agreed(answer) == expected


async def test_admission_is_asked_last_and_may_refuse() -> None:
    asked: list[str] = []
    answer = await shake(refusal=Refusal(401, "no"), asked=asked)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert asked == ["/path"]
    here, there = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            async def admit(request: Request) -> Refusal | None:
                raise AssertionError("not for a request that is no upgrade")

            with pytest.raises(HandshakeError):
                await accept(there, route=lambda _: None, admit=admit)

        nursery.start_soon(serve)
        await here.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await here.receive_some()).startswith(b"HTTP/1.1 426 ")


async def test_an_admission_that_takes_too_long_ends_with_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    here, there = trio.testing.memory_stream_pair()

    async def admit(request: Request) -> Refusal | None:
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            with pytest.raises(HandshakeError, match="within 3 s"):
                await accept(there, route=lambda _: None, admit=admit, deadline_s=3)

        nursery.start_soon(serve)
        with pytest.raises(HandshakeError):
            await connect(here, "x", "/")


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A running connection over a plain socket, and the other end of it as it is."""
    ours, theirs = trio.socket.socketpair()
    other = socket.socket(fileno=os.dup(theirs.fileno()))
    theirs.close()
    other.setblocking(False)
    connection = Connection(trio.SocketStream(ours), Framing())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run, lambda _: None)
        await trio.testing.wait_all_tasks_blocked()
        yield connection, other
        connection.abort()
        other.close()


def arrived(sock: socket.socket) -> bytes:
    """What has come, without waiting."""
    try:
        return sock.recv(4096)
    except BlockingIOError:
        return b""


async def test_what_is_pushed_in_one_batch_is_written_when_it_ends() -> None:
    async with pair() as (connection, other):
        with one_batch():
            connection.push(b"one")
            with one_batch():
                connection.push(b"two")
            assert arrived(other) == b"", "an inner block ends no batch"
        assert arrived(other) == b"\x81\x03one\x81\x03two"
        connection.push(b"three")
        assert arrived(other) == b"", "outside a batch the writer's turn is next"
        await trio.testing.wait_all_tasks_blocked()
        assert arrived(other) == b"\x81\x05three"


async def test_what_is_pushed_now_is_written_now() -> None:
    async with pair() as (connection, other):
        assert connection.push_now(b"one")
        assert arrived(other) == b"\x81\x03one"
        with one_batch():
            assert connection.push_now(b"two")
            assert arrived(other) == b"", "in a batch it leaves with the others"
        assert arrived(other) == b"\x81\x03two"


async def test_answers_are_written_before_what_is_put_off_runs() -> None:
    async with pair() as (connection, other):
        seen: list[bytes] = []
        with one_batch():
            connection.push(b"answer")
            assert after_batch(lambda: seen.append(arrived(other)))
        assert seen == [b"\x81\x06answer"]


async def test_what_is_put_off_to_the_end_of_a_batch_leaves_with_it() -> None:
    async with pair() as (connection, other):

        def last() -> None:
            assert after_batch(lambda: connection.push(b"very last") and None)
            connection.push(b"last")

        def fail() -> None:
            with one_batch():
                assert after_batch(last)
                raise ValueError("broken")

        assert not after_batch(last), "there is no batch"
        with one_batch():
            assert after_batch(last)
            connection.push(b"first")
            with one_batch():
                pass
        assert arrived(other) == b"\x81\x05first\x81\x04last\x81\x09very last"
        with pytest.raises(ValueError, match="broken"):
            fail()
        assert arrived(other) == b"\x81\x04last\x81\x09very last", "also when the batch fails"


async def test_a_batch_that_fails_has_said_what_it_said() -> None:
    async with pair() as (connection, other):

        def fail() -> None:
            with one_batch():
                connection.push(b"one")
                raise ValueError("broken")

        with pytest.raises(ValueError, match="broken"):
            fail()
        assert arrived(other) == b"\x81\x03one"
        with one_batch():
            connection.push(b"two")
        assert arrived(other) == b"\x81\x03two"
