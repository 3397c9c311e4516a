"""The stream port over real sockets: many subscribers and one that stalls, restarts, addresses, and what a crash leaves."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from attrs import define, field

from iii_trio import Append, Increment, InvocationStopped, Worker, open_client
from iii_trio.config import Live, StreamSettings, default_config, load_config
from iii_trio.engine import open_engine
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides
from iii_trio.host.supervise import StartError, leaves
from iii_trio.modules.stream import StreamModule
from iii_trio.modules.stream.subscribers import HubStatistics
from iii_trio.sdk import Change
from iii_trio.stores import open_memory
from iii_trio.testing.process import run_engine
from iii_trio.transport import Closed, Connection, Outbox, connect

WAIT_S = 60.0
JOIN = {"type": "join", "data": {"subscriptionId": "1", "streamName": "s", "groupId": "g"}}
PLACE = {"stream_name": "s", "group_id": "g"}


@define(eq=False)
class Reader:
    """A subscriber of group g; `seen` are the (type, data) of what it was told."""

    connection: Connection
    seen: list[tuple[str, Any]] = field(factory=list)
    closed: Closed | None = None
    news: trio.Event = field(factory=trio.Event)

    async def run(self, rest: bytes) -> None:
        self.closed = await self.connection.run(self._on_batch, rest=rest)
        self._tell()

    def _on_batch(self, frames: list[bytes]) -> None:
        for frame in frames:
            event = json.loads(frame)["event"]
            self.seen.append((event["type"], event.get("data")))
        self._tell()

    def _tell(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def has(self, count: int) -> list[tuple[str, Any]]:
        while len(self.seen) < count:
            assert self.closed is None, self.closed
            await self.news.wait()
        return self.seen

    async def end(self) -> Closed:
        while self.closed is None:
            await self.news.wait()
        return self.closed


async def reader(nursery: trio.Nursery, port: int, target: str = "/") -> Reader:
    """A subscriber that has joined."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    framing, rest = await connect(stream, "engine", target)
    one = Reader(Connection(stream, framing))
    nursery.start_soon(one.run, rest)
    if target == "/":
        assert one.connection.push(json.dumps(JOIN).encode())
    return one


async def stalled(port: int) -> trio.SocketStream:
    """A subscriber that has joined and reads nothing; its system holds little for it."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    stream = trio.SocketStream(sock)
    framing, _ = await connect(stream, "engine", "/stream/s/g")
    data = {"subscriptionId": "large", "streamName": "s", "groupId": "large"}
    outbox = Outbox(masked=framing.client)
    outbox.put(json.dumps({"type": "join", "data": data}).encode())
    await stream.send_all(outbox.take())
    return stream


@asynccontextmanager
async def host(directory: Path, text: str | None = None) -> AsyncIterator[Running]:
    overrides = Overrides(data_dir=directory / "data", port=0, http_port=0, stream_port=None if text else 0)
    config = default_config({})
    if text is not None:
        (directory / "config.yaml").write_text(text)
        config = load_config(directory / "config.yaml", {})
    with trio.fail_after(WAIT_S):
        async with open_host(config, overrides) as running:
            yield running


def picture_of(stream: StreamModule) -> HubStatistics:
    picture = stream.statistics().hub
    assert picture is not None
    return picture


def port_of(running: Running) -> int:
    return running.ports()["stream"][1]


@pytest.mark.parametrize("many", [150, pytest.param(1_000, marks=pytest.mark.long)])
async def test_many_subscribers_and_one_that_stalls(tmp_path: Path, many: int) -> None:
    events = 8
    large = {"stream_name": "s", "group_id": "large", "data": "x" * 200_000}
    async with host(tmp_path) as running, open_client(running.worker_url) as client, trio.open_nursery() as nursery:
        port = port_of(running)
        deaf = await stalled(port)
        stream = running.crew.stream
        assert stream is not None
        readers = [await reader(nursery, port) for _ in range(many)]
        for one in readers:
            assert await one.has(1) == [("sync", [])]
        while picture_of(stream).dropped == 0:
            await client.call("stream::set", {**large, "item_id": "i"})
        for number in range(events):
            await client.call("stream::set", {**PLACE, "item_id": "i", "data": number})
        for one in readers:
            told = await one.has(events + 1)
            assert [data for _, data in told[1:]] == list(range(events))
        picture = stream.statistics()
        assert picture.hub is not None
        assert picture.sockets is not None
        # the deaf one is closed after 30 s, which may be before all others are there
        assert many <= picture.hub.subscribers == picture.sockets.open <= many + 1
        assert picture.hub.delivered >= many * (events + 1)
        await trio.aclose_forcefully(deaf)
        nursery.cancel_scope.cancel()


async def test_streams_outlive_a_restart_and_subscribers_are_sent_to_it(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        async with host(tmp_path) as running, open_client(running.worker_url) as client:
            one = await reader(nursery, port_of(running), "/stream/s/g")
            assert await one.has(1) == [("sync", [])]
            await client.call("stream::set", {**PLACE, "item_id": "i", "data": {"id": "i"}})
            assert await one.has(2) == [("sync", []), ("create", {"id": "i"})]
        with trio.fail_after(WAIT_S):
            assert (await one.end()).code == 1012
        async with host(tmp_path) as running:
            again = await reader(nursery, port_of(running))
            assert await again.has(1) == [("sync", [{"id": "i"}])]
            nursery.cancel_scope.cancel()


async def test_a_taken_port_stops_the_start_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        overrides = Overrides(
            data_dir=tmp_path / "data", port=0, http_port=0, stream_port=taken.getsockname()[1], host="127.0.0.1"
        )
        with pytest.raises((StartError, ExceptionGroup)) as failed:
            async with open_host(default_config({}), overrides):
                pytest.fail("it started")
        [error] = leaves(failed.value)
        assert str(error).startswith("failed to initialize worker 'stream': address 127.0.0.1:")
        assert "is already in use (`port` of the stream worker)" in str(error)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_a_changed_port_is_bound_before_the_old_one_goes_and_open_sockets_stay(tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    text = f"workers: [{{name: iii-stream, config: {{port: {first}, host: 127.0.0.1, adapter: {{name: in_memory}}}}}}]"
    async with (
        host(tmp_path, text) as running,
        open_client(running.worker_url) as client,
        trio.open_nursery() as nursery,
    ):
        assert port_of(running) == first
        one = await reader(nursery, first)
        await one.has(1)
        await client.call("configuration::set", {"id": "iii-stream", "value": {"port": second}})
        await client.call("iii-stream::on-config-change", {})
        assert port_of(running) == second
        two = await reader(nursery, second)
        await two.has(1)
        with pytest.raises(OSError, match="failed"):
            await reader(nursery, first)
        await client.call("stream::set", {**PLACE, "item_id": "i", "data": 1})
        for follower in (one, two):
            assert await follower.has(2) == [("sync", []), ("create", 1)]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            number = taken.getsockname()[1]
            await client.call("configuration::set", {"id": "iii-stream", "value": {"port": number}})
            await client.call("iii-stream::on-config-change", {})
            assert port_of(running) == second
        nursery.cancel_scope.cancel()


async def test_a_port_is_released_before_it_is_bound_again() -> None:
    async with open_memory() as store, open_engine() as core, trio.open_nursery() as nursery:
        module = StreamModule(Live(StreamSettings(host="127.0.0.1", port=0)), store)
        await nursery.start(module.run, core)
        settings = StreamSettings(host="127.0.0.1", port=module.addresses[0][1])
        for _ in range(20):  # whether the old listener is closed in time was a matter of the order of tasks
            await module.rebind(settings)
        one = await reader(nursery, settings.port)
        assert await one.has(1) == [("sync", [])]
        nursery.cancel_scope.cancel()


async def test_no_acknowledged_write_is_lost_to_kill_9(tmp_path: Path) -> None:
    """Killed amid writes, twice: what was answered is there, in order, and shown to the next subscriber."""
    with trio.fail_after(WAIT_S):
        acknowledged: dict[str, int] = {}
        for run in range(3):
            async with run_engine(tmp_path) as engine, trio.open_nursery() as nursery:
                one = await reader(nursery, engine.stream_port)
                [(kind, data)] = await one.has(1)
                shown = {value["id"]: value["n"] for value in data}
                assert kind == "sync"
                assert all(shown.get(item, -1) >= number for item, number in acknowledged.items())
                if run == 2:
                    nursery.cancel_scope.cancel()
                    break

                async def write(url: str, item: str, begin: int) -> None:
                    async with open_client(url) as client:
                        number = begin
                        with suppress(InvocationStopped):  # by the kill
                            while True:
                                payload = {**PLACE, "item_id": item, "data": {"id": item, "n": number}}
                                await client.call("stream::set", payload)
                                acknowledged[item] = number
                                number += 1

                for item in "abcd":
                    nursery.start_soon(write, engine.url, item, 1_000 * (run + 1))
                await one.has(200)
                before = dict(acknowledged)
                await engine.kill()
                nursery.cancel_scope.cancel()
            assert len(before) == 4


async def test_a_worker_of_our_own_writes_and_follows(tmp_path: Path) -> None:
    worker, told = Worker("w"), list[Any]()

    @worker.stream("chat", group="g")
    @worker.function("w::told")
    async def keep(event: Any) -> None:
        told.append((event["id"], event["event"]["type"]))

    @attrs.frozen
    class Message:
        text: str

    async with host(tmp_path) as running, worker.connect(running.worker_url) as client:
        group = client.stream("chat")["g"]
        assert await group.get("1") is None
        assert await group.set("1", {"text": "a"}) == Change(old_value=None, new_value={"text": "a"})
        assert await group.get("1", into=Message) == Message("a")
        change = await group.update("1", Append(value="b", path="text"), Increment(path="text"))
        assert (change.new_value, [error["code"] for error in change.errors]) == (
            {"text": "ab"},
            ["increment.not_number"],
        )
        await client.stream("chat")["other"].set("1", None)
        assert await client.stream("chat").groups() == ["g", "other"]
        assert await group.list() == [{"text": "ab"}]
        await group.send("typing", {"who": "me"})
        await group.send("read", item="1")
        assert await group.delete("1") == {"text": "ab"}
        assert await group.delete("1") is None
        await client.call("w::told", {"id": "marker", "event": {"type": "marker"}})
        while len(told) < 6:
            await client.call("stream::list_all")
        assert [one for one in told if one[0] != "marker"] == [
            ("1", "create"),
            ("1", "update"),
            (None, "event"),
            ("1", "event"),
            ("1", "delete"),
        ]
