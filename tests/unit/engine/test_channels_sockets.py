"""Channel ends behind sockets: the URL's decision, order, pieces, backpressure, close codes, pings, stalls, shutdown."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.testing
from attrs import define, field

from iii_trio.engine import Channel, ChannelReader, ChannelWriter, Engine, EngineState
from iii_trio.testing.raw import RawPort
from iii_trio.transport import Closed, Connection, Framing, HandshakeError, Outbox, connect
from iii_trio.transport.frames import Binary

StreamPair = Callable[[], tuple[Any, Any]]


@define(eq=False)
class End:
    """A raw end: what came, in order, and how it ended."""

    stream: Any
    framing: Framing
    got: list[bytes] = field(factory=list, init=False)
    pongs: list[bytes] = field(factory=list, init=False)
    closed: Closed | None = field(default=None, init=False)
    connection: Connection = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connection = Connection(
            self.stream,
            self.framing,
            on_binary=self.got.append,
            on_pong=self.pongs.append,
            outbox=Outbox(masked=True, busy_mark=1),
            stall_s=100_000,
        )

    async def run(self, rest: bytes) -> None:
        self.closed = await self.connection.run(self.got.extend, rest=rest)


def query_of(channel: Channel, direction: str) -> str:
    key = channel.write_key if direction == "write" else channel.read_key
    return f"key={key}&dir={direction}"


async def attach(
    port: RawPort, channel: Channel, direction: str, pair: StreamPair = trio.testing.memory_stream_pair
) -> End:
    ours, theirs = pair()
    port.nursery.start_soon(port.listener.handle, theirs)
    framing, rest = await connect(ours, "h", f"/ws/channels/{channel.id}?{query_of(channel, direction)}")
    end = End(ours, framing)
    port.nursery.start_soon(end.run, rest)
    return end


async def refusal(port: RawPort, target: str) -> tuple[int | None, bytes]:
    ours, theirs = trio.testing.memory_stream_pair()
    port.nursery.start_soon(port.listener.handle, theirs)
    with pytest.raises(HandshakeError) as caught:
        await connect(ours, "h", target)
    return caught.value.status, caught.value.body


async def test_the_url_is_judged_before_the_upgrade(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    base, own = f"/ws/channels/{channel.id}", query_of(channel, "read")
    not_found = (404, b"Channel not found")
    assert await refusal(port, f"/ws/channels/unknown?{own}") == not_found
    assert await refusal(port, f"{base}x?{own}") == not_found
    assert await refusal(port, f"{base}?key={channel.write_key}&dir=read") == not_found
    assert await refusal(port, f"{base}?key={channel.read_key}&dir=write") == not_found
    assert await refusal(port, f"{base}?key=%ff&dir=read") == not_found
    for query in ("", "dir=read", "key=&dir=read"):
        status, body = await refusal(port, f"{base}?{query}")
        assert (status, b"`key`" in body) == (400, True)
    for query in ("key=k", "key=k&dir=", "key=k&dir=READ", "key=k&dir=both"):
        status, body = await refusal(port, f"{base}?{query}")
        assert (status, b"`dir`" in body) == (400, True)
    assert (await refusal(port, "/ws/other"))[0] == 404
    assert not channel.paired


@pytest.mark.parametrize("shape", ["plain", "encoded", "behind a query", "before 0.24"])
async def test_the_urls_that_sdks_build(
    core: Engine, port: RawPort, shape: str, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    own = query_of(channel, "read")
    encoded = "".join(f"%{byte:02x}" for byte in channel.read_key.encode())
    target = {
        "plain": f"/ws/channels/{channel.id}?{own}",
        "encoded": f"/ws/channels/{quote(channel.id)}?dir=read&key={encoded}",
        "behind a query": f"/ws/channels/{channel.id}?token=x%2Fy&{own}",
        "before 0.24": f"/?token=x/ws/channels/{channel.id}?{own}",
    }[shape]
    ours, theirs = trio.testing.memory_stream_pair()
    port.nursery.start_soon(port.listener.handle, theirs)
    await connect(ours, "h", target)
    await trio.testing.wait_all_tasks_blocked()
    assert channel.reader.value == "attached"
    assert len(core.workers) == 0


@pytest.mark.parametrize("first", ["write", "read"])
async def test_messages_cross_in_order_whoever_comes_first(
    core: Engine, port: RawPort, first: str, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    writer = await attach(port, channel, "write") if first == "write" else None
    reader = await attach(port, channel, "read") if first == "read" else None
    writer = writer or await attach(port, channel, "write")
    for item in ("ä€🙂".encode(), Binary(b"\0\1"), b"", b"two", Binary(b""), Binary(b"x" * 200_000)):
        assert writer.connection.push_binary(item.data) if isinstance(item, Binary) else writer.connection.push(item)
    writer.connection.close(1000, "stream_complete")
    await trio.sleep(20)
    assert writer.closed is not None
    assert writer.closed == Closed(1000, "stream_complete", clean=True)
    reader = reader or await attach(port, channel, "read")
    await trio.sleep(20)
    assert reader.got[:5] == ["ä€🙂".encode(), b"\0\1", b"", b"two", b""]
    assert [len(piece) for piece in reader.got[5:]] == [65_536, 65_536, 65_536, 3_392]
    assert reader.closed == Closed(1005, "", clean=True)
    assert core.channels.statistics().open == port.listener.statistics().channel_ends == 0


@pytest.mark.parametrize(
    ("how", "complete"), [(1000, True), (None, True), (1001, False), (1011, False), (4000, False), ("cut", False)]
)
async def test_how_a_writer_ends_is_how_its_reader_ends(
    core: Engine, port: RawPort, how: Any, complete: bool, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    writer, reader = await attach(port, channel, "write"), await attach(port, channel, "read")
    writer.connection.push(b"some")
    await trio.sleep(1)
    if how == "cut":
        writer.connection.abort()
    else:
        writer.connection.close(how)
    await trio.sleep(20)
    assert reader.got == [b"some"]
    assert reader.closed is not None
    assert reader.closed.clean
    assert reader.closed.code == (1005 if complete else 1011)
    assert ("its writer was lost" in reader.closed.reason) == (not complete)
    assert core.channels.statistics().open == port.listener.statistics().channel_ends == 0


async def test_a_second_attach_is_closed_at_once(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    ends = {direction: await attach(port, channel, direction) for direction in ("write", "read")}
    for direction in ends:
        second = await attach(port, channel, direction)
        await trio.sleep(1)
        assert second.closed == Closed(1005, "", clean=True)
    ends["write"].connection.push(b"not disturbed")
    await trio.sleep(1)
    assert ends["read"].got == [b"not disturbed"]
    assert port.listener.statistics().channel_ends == 2


async def test_a_writer_hears_that_its_reader_has_left(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    for full in (False, True):
        channel = core.channels.create(None, 1)
        writer, reader = await attach(port, channel, "write"), await attach(port, channel, "read")
        if full:
            reader.connection.pause_reading()
            for _ in range(20):
                writer.connection.push_binary(b"x" * 100_000)
            await trio.sleep(1)
        reader.connection.abort()
        await trio.sleep(20)
        assert writer.closed is not None
        assert (writer.closed.code, writer.closed.reason) == (1001, "the reader has left")
        assert core.channels.statistics().open == core.channels.statistics().bytes == 0
        assert port.listener.statistics().channel_ends == 0


async def test_a_slow_reader_holds_its_writer_back_and_nothing_is_lost(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    channel, size, count = core.channels.create(None, 4), 50_000, 60
    writer = await attach(port, channel, "write", trio.testing.lockstep_stream_pair)
    sent = []

    async def write() -> None:
        for number in range(count):
            await writer.connection.wait_room()
            writer.connection.push_binary(bytes([number]) * size)
            sent.append(number)

    port.nursery.start_soon(write)
    await trio.sleep(1)
    assert len(sent) < 12, "the engine stopped reading: four messages in the queue, some on their way"
    assert channel.statistics().items <= 6
    await trio.sleep(200)
    reader = await attach(port, channel, "read", trio.testing.lockstep_stream_pair)
    for _ in range(40):
        reader.connection.pause_reading()
        await trio.sleep(100)  # far beyond what a worker's socket would be allowed
        assert reader.closed is None
        reader.connection.resume_reading()
        await trio.sleep(0.001)
    await trio.sleep(10)
    writer.connection.close(1000)
    await trio.sleep(10)
    assert reader.got == [bytes([number]) * size for number in range(count)]
    assert reader.closed == Closed(1005, "", clean=True)
    assert channel.statistics().peak_items <= 6


async def test_a_reader_may_be_slow_after_the_writer_has_gone(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    writer = await attach(port, channel, "write")
    reader = await attach(port, channel, "read", trio.testing.lockstep_stream_pair)
    reader.connection.pause_reading()
    for number in range(4):
        writer.connection.push_binary(bytes([number]) * 50_000)
    writer.connection.close(1000)
    await trio.sleep(1_000)
    assert writer.closed == Closed(1000, "", clean=True)
    assert core.channels.statistics().bytes == 0, "the rest waits in the reader's outbox, and the Close frame behind it"
    reader.connection.resume_reading()
    await trio.sleep(10)
    assert reader.got == [bytes([number]) * 50_000 for number in range(4)]
    assert reader.closed == Closed(1005, "", clean=True)


async def test_a_reader_that_takes_nothing_for_an_hour_is_given_up(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None, 1)
    writer = await attach(port, channel, "write", trio.testing.lockstep_stream_pair)
    reader = await attach(port, channel, "read", trio.testing.lockstep_stream_pair)
    reader.connection.pause_reading()
    for _ in range(40):
        writer.connection.push_binary(b"x" * 50_000)
    await trio.sleep(3_500)
    assert writer.closed is None
    await trio.sleep(200)
    assert writer.closed is not None
    assert writer.closed.code == 1001
    assert core.channels.statistics().open == core.channels.statistics().bytes == 0


async def test_idle_ends_are_left_alone_and_their_pings_answered(
    core: Engine, port: RawPort, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    await nursery.start(port.listener.run)  # its sweeper pings workers, and retires those that do not answer
    channel = core.channels.create(None)
    writer, reader = await attach(port, channel, "write"), await attach(port, channel, "read")
    await trio.sleep(10_000)
    assert writer.closed is reader.closed is None
    assert writer.connection.statistics().bytes_in == reader.connection.statistics().bytes_in == 0
    asked = [end.connection.ping() for end in (writer, reader)]
    await trio.sleep(1)
    assert [*writer.pongs, *reader.pongs] == asked
    reader.connection.push(b"readers have nothing to say")
    reader.connection.push(b"x" * 100_000)
    await trio.sleep(1)
    assert reader.closed is None
    nursery.cancel_scope.cancel()


async def test_a_writer_above_the_limit_is_cut_off(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    writer, reader = await attach(port, channel, "write"), await attach(port, channel, "read")
    head = b"\x82\xff" + (64 * 1024 * 1024 + 1).to_bytes(8, "big") + bytes(4)
    await writer.stream.send_all(head + bytes(1_000_000))
    await trio.sleep(10)
    assert writer.closed is not None
    assert writer.closed.code == 1009
    assert reader.closed is not None
    assert reader.closed.code == 1011


async def test_ends_in_the_engine_meet_ends_behind_sockets(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    reader = await attach(port, channel, "read")
    async with ChannelWriter(channel) as body:
        await body.send_all(b"request body")
        await body.send("text")
    await trio.sleep(1)
    assert reader.got == [b"request body", b"text"]
    assert reader.closed == Closed(1005, "", clean=True)

    channel = core.channels.create(None)
    writer = await attach(port, channel, "write")
    async with ChannelReader(channel) as response:
        writer.connection.push(b'{"type":"set_status","status_code":201}')
        writer.connection.push_binary(b"page")
        assert await response.receive() == '{"type":"set_status","status_code":201}'
        assert await response.receive() == b"page"
        writer.connection.abort()
        with pytest.raises(trio.BrokenResourceError, match="its writer was lost"):
            await response.receive()
    assert core.channels.statistics().open == 0


async def test_the_end_of_the_engine_is_no_end_of_a_stream(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    channel = core.channels.create(None)
    writer, reader = await attach(port, channel, "write"), await attach(port, channel, "read")
    core.state = EngineState.DRAINING
    late = core.channels.create(None)
    streaming = await attach(port, late, "write")
    await trio.sleep(1)
    assert streaming.closed is None, "a handler that still runs may still stream"
    port.listener.close_all(1012, "the engine is stopping")
    with trio.fail_after(6):
        await port.listener.wait_closed()
    await trio.sleep(1)
    for end in (writer, reader, streaming):
        assert end.closed is not None
        assert end.closed.code == 1012
    with pytest.raises(HandshakeError):
        await attach(port, core.channels.create(None), "write")
    assert core.channels.statistics().bytes == 0


async def test_no_worker_comes_in_while_the_engine_drains(
    core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
) -> None:
    before = await port.connect()
    core.state = EngineState.DRAINING
    late = await port.open()
    closed = await late.wait_closed()
    assert (closed.code, closed.reason) == (1012, "the engine is stopping"), "a code after which every SDK tries again"
    assert not late.frames
    await before.settled()
