"""The synchronous channel: order, bounds, ends as data, owners, expiry; and its ends inside the engine as Trio streams."""

from collections import deque
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iii_trio.engine import Channel, ChannelReader, ChannelWriter, Clock, Deadlines, Engine, open_local
from iii_trio.engine.channels import Channels, Direction, EndState, Item
from iii_trio.protocol import ABSENT, Json
from iii_trio.protocol.errors import WireError
from iii_trio.protocol.limits import CHANNEL_BYTES, CHANNEL_BYTES_ALL, CHANNELS_PER_PEER
from iii_trio.testing.raw import RawPort
from iii_trio.transport.frames import Binary


@define
class Stub:
    """An end that only remembers what it was told."""

    told: list[str] = field(factory=list)

    def on_room(self) -> None:
        self.told.append("room")

    def on_over(self, reason: str) -> None:
        self.told.append(f"over: {reason}")

    def on_items(self) -> None:
        self.told.append("items")


@pytest.fixture
def channels() -> Channels:
    return Channels(Deadlines(Clock()))


def drain(channel: Channel) -> list[Item]:
    items = []
    while (item := channel.take()) is not None:
        items.append(item)
    return items


class TestTransitions:
    async def test_each_end_attaches_once_in_any_order(self, channels: Channels) -> None:
        for first, second in (("writer", "reader"), ("reader", "writer")):
            channel = channels.create(None)
            for end in (first, second):
                attach = getattr(channel, f"attach_{end}")
                assert attach(Stub())
                assert not attach(Stub())
        assert channels.statistics().waiting == 0

    async def test_items_wait_for_the_reader_and_keep_their_order(self, channels: Channels) -> None:
        channel, reader = channels.create(None), Stub()
        assert not channel.put(b"nobody writes yet")
        channel.attach_writer(Stub())
        sent: list[Item] = [b"one", Binary(b"\0"), b"", Binary(b"")]
        assert all(channel.put(item) for item in sent)
        channel.finish()
        assert not channel.put(b"late")
        channel.attach_reader(reader)
        assert not channel.drained
        assert drain(channel) == sent
        assert channel.drained
        assert channel.ending is not None
        assert channel.ending.complete
        assert channels.statistics().open == 1, "until the reader has gone with it"
        channel.leave("done")
        assert channels.statistics() == channels.statistics().__class__(0, 0, 0, 1, 0)

    async def test_a_full_queue_stops_its_writer_until_half_of_it_is_free(self, channels: Channels) -> None:
        channel, writer, reader = channels.create(None, 4), Stub(), Stub()
        channel.attach_writer(writer)
        channel.attach_reader(reader)
        for _ in range(3):
            channel.put(b"x")
        assert not channel.stopped
        channel.put(b"x")
        assert channel.stopped
        channel.put(b"what was on its way")
        assert channel.statistics().items == channel.statistics().peak_items == 5
        for _ in range(2):
            channel.take()
            assert writer.told == []
        channel.take()
        assert writer.told == ["room"]
        assert not channel.stopped
        assert reader.told == ["items"], "told when there was nothing before"

    async def test_bytes_are_bounded_in_one_channel_and_in_all(self, channels: Channels) -> None:
        large = Binary(bytes(CHANNEL_BYTES))
        crowd = [channels.create(None) for _ in range(CHANNEL_BYTES_ALL // CHANNEL_BYTES + 1)]
        writers = [Stub() for _ in crowd]
        for channel, writer in zip(crowd, writers, strict=True):
            channel.attach_writer(writer)
            channel.attach_reader(Stub())
        for channel in crowd[:-1]:
            channel.put(large)
            assert channel.stopped
        last, writer = crowd[-1], writers[-1]
        last.put(b"small")
        assert last.stopped, "all together hold too much"
        last.put(b"small")
        last.take()
        assert last.stopped
        last.take()
        assert writer.told == ["room"], "an empty channel gets on all the same"
        for channel in crowd:
            channel.leave("enough")
        assert channels.statistics().bytes == 0

    async def test_truncated_data_is_told_after_the_last_item(self, channels: Channels) -> None:
        channel, reader = channels.create(None), Stub()
        channel.attach_reader(reader)
        channel.attach_writer(Stub())
        channel.put(b"half")
        channel.lost("its writer was lost")
        channel.finish()
        assert not channel.drained
        assert drain(channel) == [b"half"]
        assert channel.drained
        assert channel.ending is not None
        assert (channel.ending.complete, channel.ending.reason) == (False, "its writer was lost")

    async def test_a_lost_writer_without_a_reader_leaves_nothing(self, channels: Channels) -> None:
        channel = channels.create(None)
        channel.attach_writer(Stub())
        channel.put(b"half")
        channel.lost("its writer was lost")
        assert channels.statistics().open == channels.statistics().bytes == 0
        assert not channel.attach_reader(Stub())

    async def test_a_reader_that_leaves_tells_the_writer(self, channels: Channels) -> None:
        channel, writer = channels.create(None), Stub()
        channel.attach_writer(writer)
        channel.attach_reader(Stub())
        channel.put(b"unread")
        channel.leave("the reader has left")
        channel.leave("again")
        assert writer.told == ["over: the reader has left"]
        assert not channel.put(b"more")
        assert (channel.writer, channel.reader) == (EndState.DONE, EndState.DONE)
        assert channels.statistics().open == channels.statistics().bytes == 0

    @pytest.mark.parametrize(
        ("asked", "capacity"), [(None, 64), (-3, 1), (0, 1), (7, 7), (1_024, 1_024), (10**30, 1_024)]
    )
    async def test_the_size_asked_for_is_brought_into_bounds(
        self, channels: Channels, asked: int | None, capacity: int
    ) -> None:
        assert channels.create(None, asked).capacity == capacity

    async def test_a_key_opens_its_own_end_only(self, channels: Channels) -> None:
        channel = channels.create(None)
        ends: tuple[Direction, ...] = ("read", "write")
        for direction in ends:
            for of in ends:
                key = channel.ref(of)["access_key"]
                assert (channels.find(channel.id, key, direction) is channel) == (direction == of)
            assert channels.find(channel.id, "ä\ud800", direction) is None
            assert channels.find("unknown", channel.write_key, direction) is None


class Model(RuleBasedStateMachine):
    """A channel against a deque: what was put comes out, in order, and the ends are as they were told to be."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Channels(Deadlines(Clock(epoch=0)))
        self.registry.deadlines.clock.now = lambda: 0.0  # type: ignore[method-assign]
        self.channel = self.registry.create(None, 3)
        self.writer, self.reader = Stub(), Stub()
        self.queue: deque[Item] = deque()
        self.gone = False
        self.ended = False

    @rule()
    def attach_writer(self) -> None:
        could = self.channel.writer is EndState.FREE
        assert self.channel.attach_writer(self.writer) == could

    @rule()
    def attach_reader(self) -> None:
        could = self.channel.reader is EndState.FREE
        assert self.channel.attach_reader(self.reader) == could

    @rule(size=st.integers(0, 3), text=st.booleans())
    def put(self, size: int, text: bool) -> None:
        item: Item = b"x" * size if text else Binary(b"x" * size)
        if self.channel.put(item):
            assert not self.gone
            assert not self.ended
            self.queue.append(item)
            assert self.channel.stopped or len(self.queue) < 3

    @precondition(lambda self: self.channel.reader is EndState.ATTACHED)
    @rule()
    def take(self) -> None:
        assert self.channel.take() == (self.queue.popleft() if self.queue else None)

    @precondition(lambda self: self.channel.writer is EndState.ATTACHED)
    @rule(complete=st.booleans())
    def end(self, complete: bool) -> None:
        self.ended = True
        if complete:
            self.channel.finish()
        else:
            self.channel.lost("lost")
            self._given_up()

    @rule()
    def fail(self) -> None:
        self.ended = True
        self.channel.fail("gone")
        self._given_up()

    @precondition(lambda self: self.channel.reader is EndState.ATTACHED)
    @rule()
    def leave(self) -> None:
        self.channel.leave("left")
        self.gone = True
        self.queue.clear()

    def _given_up(self) -> None:
        if self.channel.reader is not EndState.ATTACHED:
            self.gone = True
            self.queue.clear()

    @invariant()
    def holds(self) -> None:
        sizes = sum(len(item.data) if isinstance(item, Binary) else len(item) for item in self.queue)
        statistics = self.registry.statistics()
        assert statistics.bytes == self.channel.held_bytes == sizes
        assert self.channel.statistics().items == len(self.queue)
        assert statistics.open == (0 if self.gone else 1)
        assert (self.channel.expiry is None) == (self.gone or self.channel.paired)
        if self.ended and not self.queue:
            assert self.channel.drained


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


class TestOwners:
    async def test_expiry_ends_what_nobody_attached(
        self, core: Engine, caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
    ) -> None:
        kept, half, unread = (core.channels.create(None) for _ in range(3))
        for channel in (kept, half):
            channel.attach_reader(Stub())
        kept.attach_writer(Stub())
        writer = Stub()
        unread.attach_writer(writer)
        unread.put(b"unread")
        await trio.sleep(299)
        assert core.channels.statistics().open == 3
        await trio.sleep(3)
        assert core.channels.statistics().open == 2, "the reader of one is still to be told"
        assert core.channels.statistics().expired == 2
        assert [record.message for record in caplog.records] == [
            f"channel {half.id} of the engine expired: no writer ever came",
            f"channel {unread.id} of the engine expired: no reader ever came",
        ]
        assert half.drained
        assert writer.told == ["over: the channel expired: nobody attached its other end within 300 s"]
        assert kept.ending is None
        assert core.deadlines.statistics().timers == 0

    async def test_what_a_gone_worker_left_unattached_ends_and_what_streams_goes_on(
        self, core: Engine, port: RawPort, autojump_clock: trio.testing.MockClock
    ) -> None:
        worker = await port.connect(name="owner")
        before = core.statistics().channels
        created: list[Channel] = []
        for _ in range(3):
            answer = (await worker.ask("engine::channels::create", {"buffer_size": 2}))["result"]
            assert list(answer) == ["writer", "reader"]
            reader = answer["reader"]
            assert set(reader) == {"channel_id", "access_key", "direction"}
            found = core.channels.find(reader["channel_id"], reader["access_key"], "read")
            assert found is not None
            assert answer["writer"] == found.ref("write")
            assert answer["writer"]["access_key"] != reader["access_key"]
            created.append(found)
        streams, finished, waits = created
        ends = [Stub() for _ in created]
        for channel, end in zip(created, ends, strict=True):
            channel.attach_writer(end)
        streams.attach_reader(Stub())
        finished.put(b"all")
        finished.finish()
        worker.cut()
        await port.gone(worker)
        assert ends[2].told == ["over: the worker that created the channel has gone"]
        assert core.channels.statistics().open == 1
        assert streams.ending is None
        streams.put(b"still here")
        streams.finish()
        assert drain(streams) == [b"still here"]
        streams.leave("done")
        assert core.channels.statistics().open == before.open
        assert waits.owner is None

    async def test_channels_of_a_module_end_with_it(self, core: Engine, autojump_clock: trio.testing.MockClock) -> None:
        async with open_local(core, "module") as peer:
            writer = ChannelWriter(peer.open_channel())
            reader = Stub()
            writer._channel.attach_reader(reader)
            await writer.send("said")
        assert writer._channel.ending is not None
        assert not writer._channel.ending.complete
        with pytest.raises(trio.BrokenResourceError, match="has gone"):
            await writer.send("more")

    async def test_one_owner_has_so_many(self, core: Engine, autojump_clock: trio.testing.MockClock) -> None:
        async with open_local(core, "module") as peer:
            for _ in range(CHANNELS_PER_PEER):
                peer.open_channel()
            with pytest.raises(WireError, match="10000 channels") as caught:
                peer.open_channel()
            assert caught.value.code == "too_many_channels"
        assert core.channels.statistics().open == 0
        assert core.deadlines.statistics().timers == 0

    @pytest.mark.parametrize("payload", [ABSENT, None, {}, {"buffer_size": None}, {"buffer_size": 5, "more": 1}])
    async def test_create_takes_what_sdks_send(
        self, core: Engine, payload: Any, autojump_clock: trio.testing.MockClock
    ) -> None:
        data = payload if isinstance(payload, Json) else Json.of(payload)
        async with open_local(core, "module") as peer:
            answer = (await peer.invoke("engine::channels::create", data)).decode()
            assert [answer[end]["direction"] for end in ("writer", "reader")] == ["write", "read"]

    @pytest.mark.parametrize(
        "payload", [b"7", b"[]", b'{"buffer_size":"7"}', b'{"buffer_size":true}', b'{"buffer_size":1.5}']
    )
    async def test_create_refuses_the_rest(
        self, core: Engine, payload: bytes, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with open_local(core, "module") as peer:
            with pytest.raises(WireError, match="buffer_size") as caught:
                await peer.invoke("engine::channels::create", Json(payload))
            assert caught.value.code == "deserialization_error"


class TestStreams:
    async def test_both_ends_are_trio_streams(self, core: Engine, autojump_clock: trio.testing.MockClock) -> None:
        async def make() -> tuple[ChannelWriter, ChannelReader]:
            channel = core.channels.create(None)
            return ChannelWriter(channel), ChannelReader(channel)

        async def make_clogged() -> tuple[ChannelWriter, ChannelReader]:
            channel = core.channels.create(None, 1)
            writer, reader = ChannelWriter(channel), ChannelReader(channel)
            await writer.send_all(b"x")
            return writer, reader

        await trio.testing.check_one_way_stream(make, make_clogged)
        assert core.channels.statistics().open == 0

    async def test_an_end_is_somebodys_or_nobodys(self, core: Engine, autojump_clock: trio.testing.MockClock) -> None:
        channel = core.channels.create(None)
        async with ChannelWriter(channel), ChannelReader(channel):
            for end in (ChannelWriter, ChannelReader):
                with pytest.raises(trio.BusyResourceError, match="has, or had, another"):
                    end(channel)

    async def test_text_is_not_cut_and_so_has_a_limit(
        self, core: Engine, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
    ) -> None:
        monkeypatch.setattr("iii_trio.transport.message_streams.MAX_MESSAGE", 10)
        channel = core.channels.create(None)
        async with ChannelWriter(channel) as writer, ChannelReader(channel) as reader:
            with pytest.raises(ValueError, match="a text of 12 bytes; 10 is the most"):
                await writer.send("€€€€")
            await writer.send("€€€")
            await writer.send(b"x" * 12)
            assert [await reader.receive(), await reader.receive()] == ["€€€", b"x" * 12]

    async def test_truncation_is_no_end(self, core: Engine, autojump_clock: trio.testing.MockClock) -> None:
        for how in ("abort", "exception", "cancel"):
            channel = core.channels.create(None)
            writer, reader = ChannelWriter(channel), ChannelReader(channel)
            await writer.send_all(b"some")
            if how == "abort":
                writer.abort("enough")
            elif how == "exception":
                with pytest.raises(ZeroDivisionError):
                    async with writer:
                        raise ZeroDivisionError
            else:
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await writer.aclose()
            assert await reader.receive() == b"some"
            with pytest.raises(trio.BrokenResourceError, match="cut off"):
                await reader.receive()
        assert core.channels.statistics().open == 0
