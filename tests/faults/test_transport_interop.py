"""The `websockets` library as the peer, in both roles: upgrade, fragments, 64 MiB both ways, pings, codes."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
from attrs import define, field
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from iii_trio.protocol.limits import MAX_MESSAGE
from iii_trio.transport import CloseCode, Closed, Connection, Oversize, Refusal, accept, connect


@define
class Foreign:
    """The foreign protocol on a socket. Messages are put together here: its events are frames."""

    stream: trio.SocketStream
    protocol: Protocol
    events: list[object] = field(factory=list)

    async def flush(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                await self.stream.send_all(data)
            else:
                await self.stream.send_eof()

    async def receive(self) -> None:
        data = await self.stream.receive_some(1 << 20)
        if data:
            self.protocol.receive_data(bytes(data))
        else:
            self.protocol.receive_eof()
        self.events += self.protocol.events_received()
        await self.flush()

    async def frame(self, *opcodes: Opcode) -> Frame:
        """The next frame of one of these kinds."""
        while True:
            while self.events:
                event = self.events.pop(0)
                if isinstance(event, Frame) and event.opcode in opcodes:
                    return event
            assert self.protocol.state is not State.CLOSED, f"closed: {self.protocol.close_exc}"
            await self.receive()

    async def message(self) -> tuple[bytes, int]:
        """The next message and the number of its frames."""
        frame = await self.frame(Opcode.TEXT, Opcode.BINARY)
        parts = [bytes(frame.data)]
        while not frame.fin:
            frame = await self.frame(Opcode.CONT)
            parts.append(bytes(frame.data))
        return b"".join(parts), len(parts)

    async def closed(self) -> None:
        while self.protocol.state is not State.CLOSED:
            await self.receive()


@define
class Ours:
    """A connection of ours that echoes, and what it heard."""

    connection: Connection
    texts: list[bytes] = field(factory=list)
    binaries: list[bytes] = field(factory=list)
    oversize: list[Oversize] = field(factory=list)
    end: Closed | None = None

    def echo(self, messages: list[bytes]) -> None:
        self.texts += messages
        for message in messages:
            self.connection.push(message)

    def echo_binary(self, data: bytes) -> None:
        self.binaries.append(data)
        self.connection.push_binary(data)

    async def run(self, rest: bytes) -> None:
        self.end = await self.connection.run(self.echo, rest=rest)


Pair = tuple[Ours, Foreign]


def ours_over(stream: trio.SocketStream, framing: object) -> Ours:
    ours = Ours(
        Connection(
            stream,
            framing,  # type: ignore[arg-type]
            on_binary=lambda data: ours.echo_binary(data),
            on_oversize=lambda report: ours.oversize.append(report),
        )
    )
    return ours


async def foreign_client(nursery: trio.Nursery) -> Pair:
    """Ours serves, `websockets` dials."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    pairs: list[Ours] = []

    async def serve(stream: trio.SocketStream) -> None:
        _, framing, rest = await accept(stream, route=lambda _: None)
        pairs.append(ours_over(stream, framing))
        await pairs[0].run(rest)

    nursery.start_soon(trio.serve_listeners, serve, [listener])
    port = listener.socket.getsockname()[1]
    protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/"), max_size=None)
    foreign = Foreign(await trio.open_tcp_stream("127.0.0.1", port), protocol)
    protocol.send_request(protocol.connect())
    await foreign.flush()
    while protocol.state is State.CONNECTING:
        await foreign.receive()
    while not pairs:
        await trio.lowlevel.checkpoint()
    return pairs[0], foreign


async def foreign_server(nursery: trio.Nursery) -> Pair:
    """`websockets` serves, ours dials."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    dialled = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    protocol = ServerProtocol(max_size=None)
    foreign = Foreign(await listener.accept(), protocol)
    await listener.aclose()
    made: list[Ours] = []

    async def dial() -> None:
        framing, rest = await connect(dialled, "127.0.0.1", "/")
        made.append(ours_over(dialled, framing))
        await made[0].run(rest)

    nursery.start_soon(dial)
    while not foreign.events:
        await foreign.receive()
    protocol.send_response(protocol.accept(foreign.events.pop()))  # type: ignore[arg-type]
    await foreign.flush()
    while not made:
        await trio.lowlevel.checkpoint()
    return made[0], foreign


@pytest.fixture(params=[foreign_client, foreign_server], ids=["foreign client", "foreign server"])
async def pair(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[Pair]:
    make: Callable[[trio.Nursery], Awaitable[Pair]] = request.param
    ours, foreign = await make(nursery)
    yield ours, foreign
    await trio.aclose_forcefully(foreign.stream)


async def test_text_binary_and_ping_in_both_directions(pair: Pair) -> None:
    ours, foreign = pair
    foreign.protocol.send_text("grüße".encode())
    foreign.protocol.send_binary(b"\x00\xff")
    foreign.protocol.send_ping(b"hey")
    await foreign.flush()
    with trio.fail_after(60):
        assert await foreign.message() == ("grüße".encode(), 1)
        assert await foreign.message() == (b"\x00\xff", 1)
        ours.connection.ping()
        assert (await foreign.frame(Opcode.PONG, Opcode.PING)).opcode in (Opcode.PONG, Opcode.PING)
    assert ours.texts == ["grüße".encode()]
    assert ours.binaries == [b"\x00\xff"]


async def test_64_mib_both_ways_in_fragments_with_a_ping_in_between(pair: Pair) -> None:
    ours, foreign = pair
    unit = '{"k":"0123456789 é"}'.encode()
    message = (unit * (MAX_MESSAGE // len(unit))).ljust(MAX_MESSAGE)
    mib = 1 << 20

    async def send() -> None:
        for i in range(0, MAX_MESSAGE, mib):
            first, last = i == 0, i + mib >= MAX_MESSAGE
            piece = message[i : i + mib]
            if first:
                foreign.protocol.send_text(piece, fin=last)
            else:
                foreign.protocol.send_continuation(piece, fin=last)
            await foreign.flush()

    with trio.fail_after(60):
        await send()
        answered = 0
        parts: list[bytes] = []
        while True:
            frame = await foreign.frame(Opcode.TEXT, Opcode.CONT, Opcode.PONG)
            if frame.opcode is Opcode.PONG:
                answered = len(parts)
                continue
            parts.append(bytes(frame.data))
            if frame.fin:
                break
            if len(parts) == 1:
                foreign.protocol.send_ping(b"while you send")
                await foreign.flush()
    assert b"".join(parts) == message
    assert len(parts) == 64
    assert 0 < answered < 64, "the pong came between two fragments"
    assert ours.texts == [message]


async def test_64_mib_in_a_single_frame(pair: Pair) -> None:
    _, foreign = pair
    foreign.protocol.send_binary(b"\xfe" * MAX_MESSAGE)
    with trio.fail_after(60):
        await foreign.flush()
        data, frames = await foreign.message()
    assert data == b"\xfe" * MAX_MESSAGE
    assert frames == 64


async def test_one_byte_more_is_reported_and_the_connection_goes_on(pair: Pair) -> None:
    ours, foreign = pair
    foreign.protocol.send_text(b"7" * (MAX_MESSAGE + 1))
    foreign.protocol.send_text(b"next")
    with trio.fail_after(60):
        await foreign.flush()
        assert await foreign.message() == (b"next", 1)
    assert ours.oversize == [Oversize(b"7" * 65536, MAX_MESSAGE + 1)]
    assert ours.texts == [b"next"]


async def test_our_close(pair: Pair) -> None:
    ours, foreign = pair
    ours.connection.push(b"last words")
    ours.connection.close(CloseCode.RESTART, "restart")
    with trio.fail_after(60):
        assert await foreign.message() == (b"last words", 1)
        await foreign.closed()
        while ours.end is None:
            await trio.lowlevel.checkpoint()
    assert (foreign.protocol.close_code, foreign.protocol.close_reason) == (1012, "restart")
    assert ours.end == Closed(1012, "restart", clean=True)


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (4000, ""), (None, "")])
async def test_their_close(pair: Pair, code: int | None, reason: str) -> None:
    ours, foreign = pair
    foreign.protocol.send_close(code, reason)
    await foreign.flush()
    with trio.fail_after(60):
        await foreign.closed()
        while ours.end is None:
            await trio.lowlevel.checkpoint()
    assert ours.end == Closed(code or 1005, reason, clean=True)
    assert foreign.protocol.close_code == (code or 1005)


async def test_a_refused_upgrade_reaches_the_foreign_client(nursery: trio.Nursery) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve(stream: trio.SocketStream) -> None:
        with pytest.raises(Exception, match="404"):
            await accept(stream, route=lambda _: Refusal(404, "Channel not found"))

    nursery.start_soon(trio.serve_listeners, serve, [listener])
    port = listener.socket.getsockname()[1]
    protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/ws/channels/1"))
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        foreign = Foreign(stream, protocol)
        protocol.send_request(protocol.connect())
        with trio.fail_after(60):
            await foreign.flush()
            while protocol.handshake_exc is None:
                await foreign.receive()
    assert "404" in str(protocol.handshake_exc)
