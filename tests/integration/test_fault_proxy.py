"""The network that fails on request does what it is asked to, and nothing else."""

from collections.abc import AsyncIterator

import pytest
import trio
from attrs import define, field

from iii_trio.testing import FaultProxy, open_proxy

REQUEST = b"GET /some?x=1 HTTP/1.1\r\nhost: x\r\n\r\n"
UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


@define(eq=False)
class Far:
    """The engine's end: it answers the upgrade, greets, and then repeats what it gets."""

    got: list[bytes] = field(factory=list)
    ended: trio.Event = field(factory=trio.Event)

    async def serve(self, stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(UPGRADED + b"hello")
        try:
            async for data in stream:
                self.got.append(bytes(data))
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass
        self.ended.set()


@pytest.fixture
async def far() -> Far:
    return Far()


@pytest.fixture
async def proxy(far: Far, nursery: trio.Nursery) -> AsyncIterator[FaultProxy]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, far.serve, listeners)
    async with open_proxy(listeners[0].socket.getsockname()[1]) as opened:
        yield opened


async def read(stream: trio.SocketStream, count: int) -> bytes:
    got = b""
    with trio.fail_after(5):
        while len(got) < count:
            data = await stream.receive_some()
            assert data
            got += data
    return got


async def connect(proxy: FaultProxy) -> trio.SocketStream:
    stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
    await stream.send_all(REQUEST)
    assert await read(stream, len(UPGRADED) + 5) == UPGRADED + b"hello"
    return stream


async def test_bytes_pass_and_a_link_knows_its_path(proxy: FaultProxy) -> None:
    async with await connect(proxy) as stream:
        link = await proxy.up("/some")
        assert proxy.live("/some") == [link]
        assert proxy.live("/") == []
        await stream.send_all(b"x" * 1_000_000)
        assert await read(stream, 1_000_000) == b"x" * 1_000_000
    await proxy.released(link)
    assert proxy.live("/some") == []


async def test_a_cut_ends_one_side_at_once_and_the_other_when_asked(proxy: FaultProxy, far: Far) -> None:
    async with await connect(proxy) as stream:
        [link] = proxy.cut(0.2)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(10):
            await stream.receive_some()
        assert not far.ended.is_set()
        await proxy.released(link)
        assert link.released_at is not None
        assert link.cut_at is not None
        assert link.released_at - link.cut_at >= 0.2
        with trio.fail_after(10):
            await far.ended.wait()


async def test_the_next_connection_can_come_before_the_last_one_ends(proxy: FaultProxy, far: Far) -> None:
    async with await connect(proxy):
        [old] = proxy.cut(until_next=True)
        await trio.sleep(0.1)
        assert not far.ended.is_set()
        async with await connect(proxy):
            await proxy.released(old)
            new = await proxy.up("/some", after=old)
            assert old.released_at is not None
            assert new.up_at is not None
            assert new.up_at <= old.released_at


async def test_a_frozen_link_says_nothing_until_it_thaws(proxy: FaultProxy, far: Far) -> None:
    async with await connect(proxy) as stream:
        link = await proxy.up("/some")
        link.freeze()
        await stream.send_all(b"anybody?")
        with trio.move_on_after(0.1) as waited:
            await stream.receive_some()
        assert waited.cancelled_caught
        assert far.got == []
        link.thaw()
        assert await read(stream, 8) == b"anybody?"


async def test_delay_and_dribble(proxy: FaultProxy, far: Far) -> None:
    async with await connect(proxy) as stream:
        proxy.delay_s = 0.05
        began = trio.current_time()
        await stream.send_all(b"x")
        await read(stream, 1)
        assert trio.current_time() - began >= 0.1
        proxy.delay_s, proxy.dribble_s = 0.0, 0.001
        far.got.clear()
        await stream.send_all(b"0123456789")
        assert await read(stream, 10) == b"0123456789"
        assert b"".join(far.got) == b"0123456789"
        assert len(far.got) > 1, "not in one piece"  # how many pieces is up to who runs on this machine, too


async def test_refused_connections_are_reset(proxy: FaultProxy) -> None:
    proxy.refusing = True
    stream = await trio.open_tcp_stream("127.0.0.1", proxy.port)
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    assert proxy.links == []
    await stream.aclose()
