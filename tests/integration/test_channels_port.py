"""Channels over real sockets: both ends as Trio streams, backpressure down to the writer, TLS with a token, keepalive."""

import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from attrs import define

from iii_trio import ChannelReceiver, ChannelSender, Client, open_client
from iii_trio.config import TlsSettings
from iii_trio.engine import Engine, Listener, Rules, open_engine
from iii_trio.host.access import server_context
from iii_trio.transport.keepalive import keep_alive

SIZE = 30_000_000


@define
class Lab:
    """An engine in this process, its port, and a client of it."""

    core: Engine
    url: str
    client: Client


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with open_engine() as core, trio.open_nursery() as nursery:
        listener = Listener(core=core, host="127.0.0.1", port=0)
        await nursery.start(listener.run)
        url = f"ws://127.0.0.1:{listener.addresses[0][1]}"
        with trio.fail_after(60):
            async with open_client(url) as client:
                yield Lab(core, url, client)
        nursery.cancel_scope.cancel()


async def quiet(progress: Callable[[], int]) -> int:
    """Wait until the number has not changed for a while; the number."""
    seen = -1
    while progress() != seen:
        seen = progress()
        await trio.sleep(0.2)
    return seen


async def test_both_ends_are_trio_streams(lab: Lab) -> None:
    async def make() -> tuple[ChannelSender, ChannelReceiver]:
        return await lab.client.open_channel()

    async def make_clogged() -> tuple[ChannelSender, ChannelReceiver]:
        send, receive = await lab.client.open_channel(buffer=1)

        async def fill() -> None:
            while True:
                await send.send_all(b"x" * 65_536)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill)
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
        return send, receive

    await trio.testing.check_one_way_stream(make, make_clogged)


async def test_a_writer_waits_for_its_reader_and_nothing_is_lost(lab: Lab) -> None:
    send, receive = await lab.client.open_channel(buffer=4)
    sent = 0

    async def write() -> None:
        nonlocal sent
        async with send:
            for _ in range(SIZE // 100_000):
                await send.send_all(b"x" * 100_000)
                sent += 100_000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        stuck = await quiet(lambda: sent)
        assert 0 < stuck < SIZE, "what the kernels and a queue of four hold, and no more"
        assert lab.core.channels.statistics().bytes <= 6 * 65_536
        assert len(await receive.receive_all(SIZE)) == SIZE
    assert lab.core.channels.statistics().bytes == 0


async def test_small_calls_go_on_beside_a_stream(lab: Lab) -> None:
    """Counted, not timed: between two calls no more than a bounded amount of the stream goes through."""
    send, receive = await lab.client.open_channel()
    through: list[int] = []
    received = 0

    async def read() -> None:
        nonlocal received
        async for data in receive:
            received += len(data)

    async def write() -> None:
        async with send:
            for _ in range(SIZE // 1_000_000):
                await send.send_all(b"x" * 1_000_000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        while received < SIZE:
            before = received
            await lab.client.call("engine::channels::create", {})
            through.append(received - before)
    assert len(through) > 20
    assert sorted(through)[len(through) // 2] < 2_000_000


@pytest.mark.parametrize("token", ["right", None])
async def test_tls_and_a_port_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None) -> None:
    """The key of an end is all it takes: refs go to workers whose SDK sends no token with it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    files = TlsSettings(certificate=str(tmp_path / "server.pem"), key=str(tmp_path / "server.key"))
    issued.cert_chain_pems[0].write_to_path(files.certificate)
    issued.private_key_pem.write_to_path(files.key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    monkeypatch.setenv("III_TOKEN", "right")
    with trio.fail_after(30):
        async with open_engine() as core, trio.open_nursery() as nursery:
            listener = Listener(
                core=core, host="127.0.0.1", port=0, rules=Rules(token="right"), tls=server_context(files)
            )
            await nursery.start(listener.run)
            url = f"wss://127.0.0.1:{listener.addresses[0][1]}"
            async with open_client(url, ssl_context=context) as client:
                send, receive = await client.open_channel()
                if token is None:
                    monkeypatch.delenv("III_TOKEN")
                async with receive:
                    async with send:
                        await send.send_all(b"x" * 300_000)
                    assert len(await receive.receive_all(300_000)) == 300_000
            nursery.cancel_scope.cancel()


async def test_a_vanished_host_is_found_out_by_the_kernel(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every end is asked for a sign of life, by the engine's side and by the SDK's."""
    asked: list[trio.abc.Stream] = []

    def spy(stream: trio.abc.Stream, idle_s: float) -> None:
        asked.append(stream)
        keep_alive(stream, idle_s)

    monkeypatch.setattr("iii_trio.engine.channel_sockets.keep_alive", spy)
    monkeypatch.setattr("iii_trio.sdk.channels.keep_alive", spy)
    send, receive = await lab.client.open_channel()
    await send.send("hello")
    assert await receive.receive() == "hello"
    assert len(asked) == 4
    for stream in asked:
        assert isinstance(stream, trio.SocketStream)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [stream.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [60, 20, 3]
    await send.aclose()
    await receive.aclose()


async def test_a_lost_connection_is_no_end(lab: Lab) -> None:
    async with open_client(lab.url) as other:
        send, receive = await lab.client.open_channel()
        theirs = other.channels.sender(send.ref)
        await theirs.send_all(b"half")
        assert await receive.receive_some() == b"half"
    with pytest.raises(trio.BrokenResourceError, match="its writer was lost"):
        await receive.receive_some()
