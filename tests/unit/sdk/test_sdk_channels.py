"""Channels of the SDK against the real engine, in one process over memory streams: both ends, both views, every end."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from iii_trio import ChannelReceiver, ChannelSender, Client, Worker, open_client
from iii_trio.engine import Engine, Listener, open_engine
from iii_trio.sdk import InvocationError, schema_of
from iii_trio.sdk.dial import Address
from iii_trio.transport import Request, accept

StreamPair = Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]]


@attrs.define
class Lab:
    """An engine without sockets; `requests` are the upgrades it was asked for."""

    core: Engine
    listener: Listener
    nursery: trio.Nursery
    pair: StreamPair = trio.testing.memory_stream_pair

    async def open_stream(self) -> trio.abc.Stream:
        ours, theirs = self.pair()
        self.nursery.start_soon(self.listener.handle, theirs)
        return ours

    async def free(self) -> None:
        """By now the engine holds no channel."""
        await trio.sleep(10)
        assert self.core.channels.statistics().open == 0
        assert self.core.channels.statistics().bytes == 0


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with open_engine() as core, trio.open_nursery() as nursery:
        yield Lab(core, Listener(core=core), nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of(lab: Lab) -> AsyncIterator[Client]:
    async with open_client(open_stream=lab.open_stream) as client:
        yield client


async def send_on(end: ChannelSender) -> None:
    """Send until that fails."""
    while True:
        await end.send_all(b"x" * 100_000)
        await trio.sleep(1)


async def test_bytes_and_texts_arrive_in_order(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    async with client_of(lab) as client:
        send, receive = await client.open_channel(buffer=2)
        sent: list[str | bytes] = ["ä€🙂", b"\0\1", "", b"x" * 65_536, "two", b"", b"last"]

        async def write() -> None:
            async with send:
                for message in sent:
                    await send.send(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            got = [await receive.receive() for _ in sent]
            with pytest.raises(trio.EndOfChannel):
                await receive.receive()
            assert await receive.receive_some() == b"", "the end stays the end"
        assert got == sent
        await receive.aclose()
        await lab.free()


async def test_views_pass_over_the_other_kind(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    async with client_of(lab) as client:
        send, receive = await client.open_channel()
        async with send.messages as texts:
            await texts.send("skipped")
            await send.send_all(b"abc")
            await texts.send("one")
            await send.send_all(b"skipped")
            await texts.send("two")
        async with receive:
            assert await receive.receive_some(2) == b"ab"
            assert await receive.receive() == b"c", "what was left of a message comes first"
            assert [text async for text in receive.messages] == ["one", "two"]


async def test_large_bytes_cross_a_small_buffer(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    data = bytes(range(256)) * 4_000
    async with client_of(lab) as client, trio.open_nursery() as nursery:
        send, receive = await client.open_channel(buffer=1)

        async def write() -> None:
            async with send:
                await send.send_all(memoryview(data))
                await send.send(data)

        nursery.start_soon(write)
        assert await receive.receive_all(2 * len(data)) == data * 2
        await receive.aclose()

        send, receive = await client.open_channel()
        nursery.start_soon(write)
        with pytest.raises(ValueError, match="more than 1000 bytes"):
            await receive.receive_all(1_000)
        await receive.aclose()
        nursery.cancel_scope.cancel()


async def test_a_slow_receiver_holds_its_sender_back(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    """The streams below hold nothing, so what is under way is in the buffers of engine and SDK."""
    async with client_of(lab) as client, trio.open_nursery() as nursery:
        send, receive = await client.open_channel(buffer=2)
        lab.pair = trio.testing.lockstep_stream_pair
        sent, closed = [], trio.Event()

        async def write() -> None:
            async with send:
                for number in range(40):
                    await send.send_all(bytes([number]) * 50_000)
                    sent.append(number)
            closed.set()

        nursery.start_soon(write)
        got = [await receive.receive()]
        await trio.sleep(2_000)
        assert len(sent) < 30
        while len(sent) < 40:
            got.append(await receive.receive())
            await trio.sleep(50)
        await trio.sleep(1_000)
        assert not closed.is_set(), "closing waits until the engine has taken everything"
        got += [data async for data in receive]
        await closed.wait()
        assert got == [bytes([number]) * 50_000 for number in range(40)]


async def test_both_ends_are_trio_streams(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    async with client_of(lab) as client:

        async def make() -> tuple[ChannelSender, ChannelReceiver]:
            return await client.open_channel()

        async def make_clogged() -> tuple[ChannelSender, ChannelReceiver]:
            """The memory streams below hold any amount: what holds back is the outbox, as a socket would fill it."""
            lab.pair = trio.testing.lockstep_stream_pair
            try:
                send, receive = await client.open_channel(buffer=1)
                with trio.move_on_after(1):
                    while True:
                        await send.send_all(b"x" * 65_536)
            finally:
                lab.pair = trio.testing.memory_stream_pair
            return send, receive

        await trio.testing.check_one_way_stream(make, make_clogged)
        await lab.free()


async def test_a_handler_gets_live_ends_and_they_end_with_it(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    worker = Worker("upper")

    @attrs.define
    class Job:
        source: ChannelReceiver
        target: ChannelSender
        fail: bool = False

    @worker.function("upper")
    async def upper(job: Job) -> str:
        async for data in job.source:
            await job.target.send_all(data.upper())
            if job.fail:
                await trio.sleep(1)  # what was sent is on its way
                raise ValueError("no more")
        return "done"

    @worker.function("quiet")
    async def quiet(target: ChannelSender) -> None:
        """Returns without a word: an empty stream."""

    @worker.function("relay")
    async def relay(target: ChannelSender, *, client: Client) -> object:
        return await client.call("hello", target)

    @worker.function("hello")
    async def hello(target: ChannelSender) -> None:
        await target.send("hello")

    async with worker.connect(open_stream=lab.open_stream), client_of(lab) as client:
        for fail in (False, True):
            ours, source = await client.open_channel()
            target, result = await client.open_channel()
            async with trio.open_nursery() as nursery:
                outcome: list[object] = []

                async def call(payload: dict[str, object], outcome: list[object] = outcome) -> None:
                    try:
                        outcome.append(await client.call("upper", payload))
                    except InvocationError as error:
                        outcome.append(error.message)

                nursery.start_soon(call, {"source": source.ref, "target": target, "fail": fail})
                await ours.send_all(b"abc")
                assert await result.receive_some() == b"ABC"
                if fail:
                    with pytest.raises(trio.BrokenResourceError, match="cut off: 1011"):
                        await result.receive_some()
                    with pytest.raises(trio.BrokenResourceError):
                        await send_on(ours)
                else:
                    await ours.aclose()
                    assert await result.receive_some() == b""
            assert outcome == (["no more"] if fail else ["done"])
            await ours.aclose()
            await result.aclose()

        send, receive = await client.open_channel()
        await client.call("quiet", send)
        assert await receive.receive_some() == b""

        send, receive = await client.open_channel()
        await client.call("relay", send)
        assert [text async for text in receive.messages] == ["hello"], "what was handed on is not closed by the first"

        with pytest.raises(InvocationError, match=r"expected the write end of a channel, got its read end"):
            await client.call("quiet", receive.ref)
        with pytest.raises(InvocationError, match=r"expected the ref of a channel.*source"):
            await client.call("upper", {"source": {}, "target": send.ref})
        await lab.free()


async def test_ends_come_with_results_and_from_plain_json(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    worker = Worker("store")

    @worker.function("read")
    async def read(name: str, *, client: Client) -> ChannelReceiver:
        send, receive = await client.open_channel()
        await send.send_all(name.encode())
        await send.aclose()
        return receive

    async with worker.connect(open_stream=lab.open_stream), client_of(lab) as client:
        receive = await client.call("read", "typed", into=ChannelReceiver)
        assert await receive.receive_some() == b"typed"
        receive = client.channels.receiver(await client.call("read", "plain"))
        assert await receive.receive_some() == b"plain"
        assert "access_key" not in repr(receive._link.ref)
        with pytest.raises(ValueError, match="expected the write end"):
            client.channels.sender(receive.ref)


@pytest.mark.parametrize("how", ["abort", "exception", "cancelled", "cancelled close", "client ends"])
async def test_truncation_is_no_end(lab: Lab, autojump_clock: trio.testing.MockClock, how: str) -> None:
    async with client_of(lab) as reader:
        with trio.CancelScope() as scope:
            async with client_of(lab) as writer:
                send, receive = await writer.open_channel()
                receive = reader.channels.receiver(receive.ref)
                await send.send_all(b"some")
                assert await receive.receive_some(1) == b"s"
                if how == "abort":
                    send.abort()
                elif how == "exception":
                    with pytest.raises(ZeroDivisionError):
                        async with send:
                            raise ZeroDivisionError
                elif how == "cancelled":
                    async with send:
                        scope.cancel()
                        await trio.sleep_forever()
                elif how == "cancelled close":
                    with trio.CancelScope() as own:
                        own.cancel()
                        await send.aclose()
        assert await receive.receive_some() == b"ome", "what was sent is still there"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError, match="cut off: 1011"):
                await receive.receive_some()
        with pytest.raises(trio.ClosedResourceError if how != "client ends" else trio.BrokenResourceError):
            await send.send("more")
        await lab.free()


async def test_an_end_closed_unused_says_so_unless_it_was_handed_on(
    lab: Lab, autojump_clock: trio.testing.MockClock
) -> None:
    async with client_of(lab) as client:
        send, receive = await client.open_channel()
        await send.aclose()
        assert await receive.receive_some() == b""

        send, receive = await client.open_channel()
        send.abort()
        with pytest.raises(trio.BrokenResourceError):
            await receive.receive_some()

        send, receive = await client.open_channel()
        await send.send("x")
        await receive.aclose()
        with pytest.raises(trio.BrokenResourceError, match="1001 the reader has left"):
            await send_on(send)

        send, receive = await client.open_channel()
        await receive.aclose()
        with pytest.raises(trio.BrokenResourceError, match="404"):
            await send.send("there is no channel any more")

        send, receive = await client.open_channel()
        other = client.channels.sender(send.ref)
        await send.aclose()
        await other.send("by somebody else")
        assert await receive.receive() == "by somebody else"
        await other.aclose()
        await lab.free()


async def test_a_channel_that_is_not_there(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    async with client_of(lab) as client:
        send, receive = await client.open_channel()
        wrong = {**send.ref, "access_key": receive.ref["access_key"]}
        for end in (client.channels.sender(wrong), client.channels.sender({**wrong, "channel_id": "nobody/s"})):
            with pytest.raises(trio.BrokenResourceError, match="404") as caught:
                await end.send("x")
            assert wrong["access_key"] not in str(caught.value)
            await end.aclose()
        missing = client.channels.receiver({**receive.ref, "channel_id": "x"})
        with pytest.raises(trio.BrokenResourceError, match="404"):
            await missing.receive()


async def test_the_ends_of_a_closed_client_are_broken(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    async with client_of(lab) as client:
        send, receive = await client.open_channel()
        used, _ = await client.open_channel()
        await used.send("x")
    for end in (send, used):
        with pytest.raises(trio.BrokenResourceError):
            await end.send("x")
        await end.aclose()
    with pytest.raises(trio.BrokenResourceError, match="the client is closed"):
        await receive.receive()
    await receive.aclose()


async def test_nobody_waits_for_a_reader_that_never_comes(lab: Lab, autojump_clock: trio.testing.MockClock) -> None:
    async with client_of(lab) as client:
        send, _ = await client.open_channel(buffer=1)
        with trio.fail_after(400), pytest.raises(trio.BrokenResourceError, match="nobody attached its other end"):
            await send_on(send)
        await lab.free()


async def test_headers_token_and_query_go_with_an_end(
    lab: Lab, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("III_TOKEN", "secret")
    requests: list[Request] = []

    async def serve(stream: trio.abc.Stream) -> None:
        request, framing, rest = await accept(stream, route=lambda request: None)
        requests.append(request)
        path = request.path.removeprefix("/p")
        await lab.listener.serve(stream, attrs.evolve(request, path=path), framing, rest)

    async def open_stream() -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        lab.nursery.start_soon(serve, theirs)
        return ours

    async with open_client("ws://h:1/p/?t=1", open_stream=open_stream, headers={"X-Tenant": "blue"}) as client:
        send, receive = await client.open_channel()
        async with send:
            await send.send("hello")
        assert await receive.receive() == "hello"
    assert len(requests) == 3
    for request in requests:
        assert ("x-tenant", "blue") in request.headers
        assert ("authorization", "Bearer secret") in request.headers
        assert request.query.startswith("t=1")
        assert request.path.startswith("/p/")


def test_an_end_has_the_schema_of_its_ref() -> None:
    for end, direction in ((ChannelSender, "write"), (ChannelReceiver, "read")):
        schema = schema_of(end)
        assert schema is not None
        assert schema["required"] == ["channel_id", "access_key", "direction"]
        assert schema["properties"]["direction"] == {"const": direction}


def test_the_address_of_an_end() -> None:
    def target(url: str) -> str:
        return Address.parse(url).of_channel("i/d", "k+&y", "read").target

    assert target("ws://h:1") == "/ws/channels/i%2Fd?key=k%2B%26y&dir=read"
    assert target("ws://h:1/p/?t=1") == "/p/ws/channels/i%2Fd?t=1&key=k%2B%26y&dir=read"
