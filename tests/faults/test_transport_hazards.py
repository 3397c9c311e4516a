"""What goes wrong when a WebSocket library is used plainly as an RPC router, tried on ours over real sockets.

A cancelled send that tears the stream; two peers that both send first; a busy handler and unanswered pings; a ping to
a peer that is gone; one connection's failure that ends the server; handshakes that hold tasks; garbage without a code.
"""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from attrs import define, field
from trio.testing import wait_all_tasks_blocked
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from iii_trio.transport import CloseCode, Closed, Connection, HandshakeError, accept, connect

OnBatch = Callable[[list[bytes]], None]


@define
class Server:
    """A server of `Connection`s; `dispatch` makes the callback of a new one."""

    dispatch: Callable[[Connection], OnBatch]
    port: int = 0
    deadline_s: float = 5.0
    connections: list[Connection] = field(factory=list)
    ends: list[Closed] = field(factory=list)
    failures: list[Exception] = field(factory=list)
    refused: list[HandshakeError] = field(factory=list)
    dialled: list[trio.SocketStream] = field(factory=list)

    async def dial(self) -> trio.SocketStream:
        """A socket to the server; the fixture closes it if nobody else does."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.dialled.append(stream)
        return stream

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            _, framing, rest = await accept(stream, route=lambda _: None, deadline_s=self.deadline_s)
        except HandshakeError as error:
            self.refused.append(error)
            return
        connection = Connection(stream, framing)
        self.connections.append(connection)
        try:
            self.ends.append(await connection.run(self.dispatch(connection), rest=rest))
        except LookupError as error:
            self.failures.append(error)

    async def start(self, nursery: trio.Nursery) -> None:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, self.serve, [listener])


@define
class Raw:
    """A peer of its own kind: a plain socket and wsproto."""

    stream: trio.SocketStream
    protocol: Protocol = field(factory=lambda: Protocol(ConnectionType.CLIENT))

    @classmethod
    async def dial(cls, server: Server) -> "Raw":
        stream = await server.dial()
        await connect(stream, f"127.0.0.1:{server.port}", "/")
        return cls(stream)

    async def send(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(self.protocol.send(event) for event in events))

    async def until(self, done: Callable[[list[Event]], bool]) -> list[Event]:
        """All events up to the chunk in which `done` is satisfied."""
        events: list[Event] = []
        while not done(events):
            data = await self.stream.receive_some(1 << 20)
            assert data, f"the server hung up; so far {[type(event).__name__ for event in events]}"
            self.protocol.receive_data(bytes(data))
            events += self.protocol.events()
        return events

    async def texts(self, count: int) -> list[str]:
        """The next `count` whole text messages."""
        events = await self.until(
            lambda events: sum(isinstance(e, TextMessage) and e.message_finished for e in events) >= count
        )
        texts, parts = [], []
        for event in events:
            if isinstance(event, TextMessage):
                parts.append(event.data)
                if event.message_finished:
                    texts.append("".join(parts))
                    parts = []
        return texts

    async def close_code(self) -> int:
        events = await self.until(lambda events: any(isinstance(event, CloseConnection) for event in events))
        event = events[-1]
        assert isinstance(event, CloseConnection)
        return int(event.code)


def echo(connection: Connection) -> OnBatch:
    def on_batch(messages: list[bytes]) -> None:
        for message in messages:
            connection.push(message)

    return on_batch


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve(nursery: trio.Nursery) -> AsyncIterator[Serve]:
    """Start a server with this dispatch; the sockets dialled to it are closed after the test."""
    servers: list[Server] = []

    async def start(dispatch: Callable[[Connection], OnBatch], **options: float) -> Server:
        servers.append(Server(dispatch, **options))  # type: ignore[arg-type]
        await servers[-1].start(nursery)
        return servers[-1]

    yield start
    for server in servers:
        for stream in server.dialled:
            await trio.aclose_forcefully(stream)


def ignore(_: Connection) -> OnBatch:
    return lambda messages: None


async def test_a_cancelled_sender_never_tears_a_frame(serve: Serve) -> None:
    server = await serve(ignore)
    raw = await Raw.dial(server)
    await wait_all_tasks_blocked()
    [connection] = server.connections

    async def send() -> None:
        connection.push(b"A" * 30_000_000)
        await connection.wait_room()

    async with trio.open_nursery() as sender:
        sender.start_soon(send)
        await wait_all_tasks_blocked()
        assert connection.busy, "the peer does not read: the sender waits"
        sender.cancel_scope.cancel()
    connection.push(b"hello")
    with trio.fail_after(60):
        assert [len(text) for text in await raw.texts(2)] == [30_000_000, 5]


async def test_a_connection_cancelled_while_it_sends_ends_without_a_stray_frame() -> None:
    server = Server(ignore)
    async with trio.open_nursery() as serving:
        await server.start(serving)
        raw = await Raw.dial(server)
        await wait_all_tasks_blocked()
        server.connections[0].push(b"A" * 30_000_000)
        await wait_all_tasks_blocked()
        serving.cancel_scope.cancel()
    received = 0
    with trio.fail_after(60):
        try:
            while data := await raw.stream.receive_some(1 << 20):
                raw.protocol.receive_data(bytes(data))
                for event in raw.protocol.events():
                    assert isinstance(event, TextMessage)
                    assert set(event.data) <= {"A"}
                    received += len(event.data)
        except trio.BrokenResourceError:
            pass
    assert 0 < received < 30_000_000
    await raw.stream.aclose()


async def test_two_peers_that_both_send_before_they_read_do_not_block_each_other(serve: Serve) -> None:
    messages = [b"%d" % i + b"x" * 100_000 for i in range(200)]
    got: dict[str, list[bytes]] = {"server": [], "client": []}
    both = trio.Event()

    def collect(who: str) -> OnBatch:
        def on_batch(batch: list[bytes]) -> None:
            got[who] += batch
            if all(len(received) == len(messages) for received in got.values()):
                both.set()

        return on_batch

    def flood(connection: Connection) -> OnBatch:
        for message in messages:
            assert connection.push(message)
        return collect("server")

    server = await serve(flood)
    stream = await server.dial()
    framing, rest = await connect(stream, "127.0.0.1", "/")
    client = Connection(stream, framing)
    for message in messages:
        assert client.push(message)
    with trio.fail_after(60):
        async with trio.open_nursery() as clients:

            async def run() -> None:
                await client.run(collect("client"), rest=rest)

            clients.start_soon(run)
            await both.wait()
            client.close(CloseCode.NORMAL)
    assert got["server"] == messages
    assert got["client"] == messages


async def test_pings_are_answered_while_the_handler_is_busy(nursery: trio.Nursery, serve: Serve) -> None:
    send, receive = trio.open_memory_channel[bytes](100)

    def queue(_: Connection) -> OnBatch:
        def on_batch(messages: list[bytes]) -> None:
            for message in messages:
                send.send_nowait(message)

        return on_batch

    async def busy_handler() -> None:
        await receive.receive()
        await trio.sleep_forever()

    nursery.start_soon(busy_handler)
    server = await serve(queue)
    raw = await Raw.dial(server)
    await raw.send(TextMessage("x"), TextMessage("x"), TextMessage("x"), Ping(b"there?"))
    with trio.fail_after(60):
        assert await raw.until(bool) == [Pong(b"there?")]


async def test_a_ping_to_a_peer_that_is_gone_holds_nobody(serve: Serve) -> None:
    server = await serve(ignore)
    raw = await Raw.dial(server)
    await wait_all_tasks_blocked()
    [connection] = server.connections
    raw.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await raw.stream.aclose()
    for _ in range(100):
        connection.ping()
    with trio.fail_after(60):
        while not server.ends:
            await trio.lowlevel.checkpoint()
    assert (server.ends[0].code, server.ends[0].clean) == (CloseCode.ABNORMAL, False)
    connection.ping()
    assert not connection.push(b"late")


async def test_the_failure_of_one_connection_does_not_touch_the_others(serve: Serve) -> None:
    def fragile(connection: Connection) -> OnBatch:
        def on_batch(messages: list[bytes]) -> None:
            if b"boom" in messages:
                raise LookupError("boom in one connection")
            echo(connection)(messages)

        return on_batch

    server = await serve(fragile)
    good, bad = await Raw.dial(server), await Raw.dial(server)
    await bad.send(TextMessage("boom"))
    with trio.fail_after(60):
        assert await bad.close_code() == CloseCode.INTERNAL_ERROR
        await good.send(TextMessage("still here"))
        assert await good.texts(1) == ["still here"]
        await bad.send(CloseConnection(1011))
        assert await bad.stream.receive_some() == b""
        while not server.failures:
            await trio.lowlevel.checkpoint()


async def test_handshakes_that_are_given_up_hold_no_task(serve: Serve) -> None:
    server = await serve(ignore)
    await wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    streams = [await server.dial() for _ in range(20)]
    for stream in streams[::2]:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost:")
    for stream in streams:
        await stream.aclose()
    with trio.fail_after(60):
        while len(server.refused) < 20:
            await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_handshakes_that_stay_silent_are_cut_at_the_deadline(serve: Serve) -> None:
    server = await serve(ignore, deadline_s=0.05)
    streams = [await server.dial() for _ in range(20)]
    with trio.fail_after(60):
        for i, stream in enumerate(streams):
            # On a slow machine the first ones may have been cut before the last ones say anything.
            with suppress(trio.BrokenResourceError):
                if i % 2:
                    await stream.send_all(b"GET / HTTP/1.1\r\nHost:")
                assert await stream.receive_some() == b""
        while len(server.refused) < 20:
            await trio.lowlevel.checkpoint()
    assert {error.status for error in server.refused} == {None}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02hi", 1002),
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
        (b"\xc1\x80\0\0\0\0", 1002),
        (b"\xff" * 40, 1002),
        (b"\xff" * 3_000_000, 1002),
    ],
    ids=["unmasked", "not UTF-8", "reserved bit", "garbage", "much garbage"],
)
async def test_garbage_is_answered_with_a_close_frame_and_its_code(data: bytes, code: int, serve: Serve) -> None:
    server = await serve(ignore)
    raw = await Raw.dial(server)
    with trio.fail_after(60):
        async with trio.open_nursery() as sending:
            sending.start_soon(raw.stream.send_all, data)
            assert await raw.close_code() == code
        assert await raw.stream.receive_some() == b""
        await raw.stream.aclose()
        while not server.ends:
            await trio.lowlevel.checkpoint()
    assert server.ends[0].code == code


async def test_a_refused_client_gets_the_refusal_although_its_body_was_not_read(serve: Serve) -> None:
    server = await serve(ignore)
    stream = await server.dial()
    with trio.fail_after(60):
        async with trio.open_nursery() as sending:

            async def post() -> None:
                await stream.send_all(
                    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000)
                )

            sending.start_soon(post)
            answer = b""
            while data := await stream.receive_some():
                answer += data
        await stream.aclose()
    assert answer.startswith(b"HTTP/1.1 405 ")


async def test_a_peer_that_stops_reading_costs_the_others_nothing(serve: Serve) -> None:
    """One connection is fed far more than its peer takes; everybody else is answered as usual."""
    server = await serve(echo)
    stuck, good = await Raw.dial(server), await Raw.dial(server)
    await wait_all_tasks_blocked()
    with trio.fail_after(60):
        for _ in range(20):
            server.connections[0].push(os.urandom(500_000).hex().encode())
            await good.send(TextMessage("x"))
            assert await good.texts(1) == ["x"]
    assert server.connections[0].pending_bytes > 8 << 20
    await stuck.stream.aclose()


async def test_what_one_batch_forwards_leaves_at_once_and_in_order(serve: Serve) -> None:
    """Two senders, one receiver: direct writes and the writer's never mix, also when the socket is full in between."""
    server = await serve(ignore)

    def forward(_: Connection) -> OnBatch:
        def on_batch(messages: list[bytes]) -> None:
            for message in messages:
                server.connections[0].push(message)

        return on_batch

    server.dispatch = forward
    receiver = await Raw.dial(server)
    senders = [await Raw.dial(server), await Raw.dial(server)]
    rounds = 300

    async def send(raw: Raw, name: str) -> None:
        for i in range(rounds):
            await raw.send(TextMessage(f"{name} {i} " + "x" * (i * 97 % 30_000)))
            await trio.lowlevel.checkpoint()

    with trio.fail_after(60):
        async with trio.open_nursery() as sending:
            sending.start_soon(send, senders[0], "a")
            sending.start_soon(send, senders[1], "b")
        texts = await receiver.texts(2 * rounds)
    for name in "ab":
        assert [int(text.split()[1]) for text in texts if text.startswith(name)] == list(range(rounds))
    for text in texts:
        _, i, pad = text.split(" ")
        assert pad == "x" * (int(i) * 97 % 30_000)


@pytest.mark.parametrize("what", ["ping", "push", "push_binary"])
async def test_a_batch_never_writes_into_a_frame_that_its_target_is_sending(what: str, serve: Serve) -> None:
    """The writer waits inside a frame, its socket gets room again, and a batch has something for it at that moment."""
    server = await serve(ignore)
    slow = await Raw.dial(server)
    await wait_all_tasks_blocked()
    [target] = server.connections
    target.push(b"A" * 30_000_000)
    await wait_all_tasks_blocked()
    received: list[bytes] = []

    def interfere(_: Connection) -> OnBatch:
        def on_batch(messages: list[bytes]) -> None:
            with suppress(BlockingIOError):
                while True:
                    received.append(os.read(slow.stream.socket.fileno(), 1 << 20))
            {
                "ping": target.ping,
                "push": lambda: target.push(b"B"),
                "push_binary": lambda: target.push_binary(b"B"),
            }[what]()

        return on_batch

    server.dispatch = interfere
    trigger = await Raw.dial(server)
    await trigger.send(TextMessage("now"))
    with trio.fail_after(60):
        while not received:
            await trio.lowlevel.checkpoint()
        for data in received:
            slow.protocol.receive_data(data)
        wanted = {"ping": Ping, "push": TextMessage, "push_binary": BytesMessage}[what]
        text = ""
        others: list[Event] = []
        pending = list(slow.protocol.events())
        while not (len(text) >= 30_000_000 and others):
            for event in pending or await slow.until(bool):
                if isinstance(event, TextMessage) and len(text) < 30_000_000:
                    text += event.data
                else:
                    assert isinstance(event, wanted), event
                    others.append(event)
            pending = []
    assert text == "A" * 30_000_000
    assert len(others) == 1


async def test_messages_of_a_client_that_leaves_without_a_close_are_all_heard(serve: Serve) -> None:
    """A script that sends and exits: what it sent counts, although our writes to it fail."""
    got: list[bytes] = []

    def answer(connection: Connection) -> OnBatch:
        def on_batch(messages: list[bytes]) -> None:
            got.extend(messages)
            for _ in messages:
                connection.push(b"y" * 1000)

        return on_batch

    server = await serve(answer)
    raw = await Raw.dial(server)
    await raw.send(*(TextMessage(f"{i}") for i in range(2000)))
    await raw.stream.aclose()
    with trio.fail_after(60):
        while not server.ends:
            await trio.lowlevel.checkpoint()
    assert got == [b"%d" % i for i in range(2000)]
