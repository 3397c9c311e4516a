"""Writing to one HTTP client, over a stream that takes as much as the test lets it, under a virtual clock."""

import socket

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from iii_trio.modules.http.connections import LINGER_S, STALL_S, WRITE_BYTES, Connection, in_silence


@define
class Socket:
    """What a connection does to its socket."""

    did: list[str] = field(factory=list)

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        self.did.append("shutdown")

    def close(self) -> None:
        self.did.append("close")


@define
class Slow:
    """A stream whose writes take `seconds` each."""

    seconds: float
    socket: Socket = field(factory=Socket)
    written: list[bytes] = field(factory=list)

    async def send_all(self, data: bytes) -> None:
        await trio.sleep(self.seconds)
        self.written.append(bytes(data))


def connection(stream: Slow) -> Connection:
    return Connection(stream, 60.0, in_silence)  # type: ignore[arg-type]


async def test_a_connection_is_not_quiet_while_it_writes(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    stream = Slow(1)
    client = connection(stream)
    assert client.quiet
    nursery.start_soon(client.send, b"first")
    await wait_all_tasks_blocked()
    assert not client.quiet
    await client.send(b"second")
    assert (client.quiet, stream.written) == (True, [b"first", b"second"])


async def test_a_write_that_makes_progress_may_take_long(autojump_clock: MockClock) -> None:
    stream = Slow(STALL_S - 1)
    await connection(stream).send(b"x" * (WRITE_BYTES * 3 + 1))
    assert trio.current_time() == pytest.approx(4 * (STALL_S - 1))
    assert [len(part) for part in stream.written] == [WRITE_BYTES] * 3 + [1]
    assert stream.socket.did == []


async def test_a_write_without_progress_cuts_the_client_and_raises_nothing(autojump_clock: MockClock) -> None:
    stream = Slow(10_000)
    await connection(stream).send(b"x" * (WRITE_BYTES * 3))
    assert trio.current_time() == pytest.approx(STALL_S)
    assert (stream.written, stream.socket.did) == ([], ["close"])


async def test_closing_says_so_and_gives_the_client_time(autojump_clock: MockClock) -> None:
    stream = Slow(0)
    client = connection(stream)
    await client.send(b"last words")
    client.close()
    assert (stream.written, stream.socket.did) == ([b"last words"], ["shutdown"])
    assert (client.idle, client.cut_at) == (True, LINGER_S)
    client.close()
    await client.send(b"more")
    assert (stream.written, stream.socket.did) == ([b"last words"], ["shutdown"])
