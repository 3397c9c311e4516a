"""What the tests of the stream module share: the module over memory streams, and subscribers that read what they want."""

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import define, field
from module_harness import running

from iii_trio.config import Live, StreamSettings
from iii_trio.engine import Engine, LocalPeer
from iii_trio.modules.stream import StreamModule
from iii_trio.stores import Store, open_memory
from iii_trio.transport import Closed, Connection, connect

WAIT_S = 30.0


@asynccontextmanager
async def stream(store: Store | None = None, **settings: Any) -> AsyncIterator[tuple[Engine, LocalPeer, "Port"]]:
    """A stream module without a socket, a peer that uses it, and its port."""
    async with open_memory() as memory:
        module = StreamModule(Live(StreamSettings(**settings)), store or memory, listen=False)
        async with running(module) as (core, user), trio.open_nursery() as nursery:
            yield core, user, Port(module, nursery, nursery)
            nursery.cancel_scope.cancel()


def address(item: str | None = "i", group: str = "g", name: str = "s") -> dict[str, Any]:
    """The payload that names an item, or a group."""
    place = {"stream_name": name, "group_id": group}
    return place if item is None else {**place, "item_id": item}


@define(eq=False)
class Client:
    """A subscriber. `messages` are those that nobody has taken with `next` yet."""

    connection: Connection
    messages: deque[dict[str, Any]] = field(factory=deque)
    closed: Closed | None = None
    _news: trio.Event = field(factory=trio.Event)

    async def run(self, rest: bytes) -> None:
        self.closed = await self.connection.run(self._on_batch, rest=rest)
        self._wake()

    def _on_batch(self, frames: list[bytes]) -> None:
        self.messages.extend(json.loads(frame) for frame in frames)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def send(self, kind: str, subscription: str = "1", item: str | None = None, **names: Any) -> None:
        """Send a join or a leave."""
        data = {"subscriptionId": subscription, "streamName": "s", "groupId": "g", **names}
        if item is not None:
            data["id"] = item
        assert self.connection.push(json.dumps({"type": kind, "data": data}).encode())

    async def next(self) -> dict[str, Any]:
        """The next message."""
        with trio.fail_after(WAIT_S):
            while not self.messages:
                assert self.closed is None, self.closed
                await self._news.wait()
        return self.messages.popleft()

    async def event(self) -> Any:
        """What the next message tells: (id, type, data)."""
        message = await self.next()
        event = message["event"]
        return message["id"], event["type"], event.get("event", event.get("data"))

    async def events(self, count: int) -> list[Any]:
        """What the next messages tell."""
        return [await self.event() for _ in range(count)]

    async def join(self, subscription: str = "1", item: str | None = None, **names: Any) -> Any:
        """Join, and return the data of the `sync`."""
        self.send("join", subscription, item, **names)
        _, kind, data = await self.event()
        assert kind == "sync", (kind, data)
        return data

    async def end(self) -> Closed:
        """Wait until it has ended."""
        with trio.fail_after(WAIT_S):
            while self.closed is None:
                await self._news.wait()
        return self.closed

    async def close(self) -> None:
        """Hang up in good order."""
        self.connection.close(1000)
        await self.end()


@define
class Follower:
    """What a client that follows one group knows, by the rules of the official ones (spec/state-stream.md §7.8).

    `values` are the items by their `id`; the values of all items must have one.
    """

    values: dict[str, Any] = field(factory=dict)
    newest: int = 0
    stamps: list[int] = field(factory=list)
    sends: int = 0
    dropped: int = 0
    _seen: dict[str, int] = field(factory=dict)

    def take(self, message: dict[str, Any]) -> None:
        """One message of the group."""
        stamp, event, item = message["timestamp"], message["event"], message["id"]
        self.stamps.append(stamp)
        kind, data = event["type"], event.get("data")
        if kind == "sync" and item is not None:
            return  # for a subscription to that item
        if kind == "sync":
            if stamp >= self.newest:
                self.values = {one["id"]: one for one in data}
                self._seen.clear()
        elif kind == "event":
            self.sends += event["event"]["type"] == "wave"
            self.dropped += event["event"]["data"]["events"] if event["event"]["type"] == "iii:dropped" else 0
        elif kind == "create":
            self.values.setdefault(item, data)
        elif kind == "update":
            if stamp > self._seen.get(item, 0):
                self.values[item] = data
                self._seen[item] = stamp
            self.newest = stamp
        elif kind == "delete":
            self.values.pop(data["id"], None)
            self.newest = stamp


@define(eq=False)
class Port:
    """Where subscribers connect: in memory."""

    module: StreamModule
    serving: trio.Nursery
    nursery: trio.Nursery

    async def connect(self, target: str = "/", *, tight: bool = False, **headers: str) -> Client:
        """A subscriber; raises `HandshakeError` if it is refused. With `tight` nothing waits between the two ends."""
        here: trio.abc.Stream
        there: trio.abc.Stream
        here, there = trio.testing.lockstep_stream_pair() if tight else trio.testing.memory_stream_pair()
        self.serving.start_soon(self.module.handle, there)
        names = [(name.replace("_", "-"), value) for name, value in headers.items()]
        framing, rest = await connect(here, "engine", target, names)
        client = Client(Connection(here, framing))
        self.nursery.start_soon(client.run, rest)
        return client
