"""What the tests of the bridge share: two engines in memory, and a wire between them that can be cut, frozen and delayed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import define, field
from module_harness import running
from stream_harness import Port

from iii_trio.config import Live, PubSubSettings, StateSettings, StreamSettings
from iii_trio.engine import Engine, Listener, LocalPeer
from iii_trio.modules.bridge import Bridge
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.modules.state import StateModule
from iii_trio.modules.stream import StreamModule
from iii_trio.stores import open_memory
from iii_trio.transport import Connection, accept

URL = "ws://elsewhere:49134"


@define(eq=False)
class Wire:
    """Connections to an engine. `up` off refuses new ones; `open` off lets no byte pass, and tells nobody."""

    nursery: trio.Nursery
    core: Engine | None = None
    up: bool = True
    dials: int = 0
    _gate: trio.Event = field(factory=trio.Event)
    _scopes: list[trio.CancelScope] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._gate.set()

    async def open_stream(self) -> trio.abc.Stream:
        """For the bridge."""
        await trio.lowlevel.checkpoint()
        self.dials += 1
        if not self.up or self.core is None:
            raise ConnectionRefusedError("nobody listens")
        here, near = trio.testing.memory_stream_pair()
        far, there = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self._pass, near, far)
        self.nursery.start_soon(self.serve, there)
        return here

    async def serve(self, stream: trio.abc.Stream) -> None:
        """The engine's side."""
        assert self.core is not None
        await Listener(core=self.core).handle(stream)

    async def _pass(self, near: trio.abc.Stream, far: trio.abc.Stream) -> None:
        scope = trio.CancelScope()
        self._scopes.append(scope)
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, near, far, nursery)
                nursery.start_soon(self._pump, far, near, nursery)
        for stream in (near, far):
            await trio.aclose_forcefully(stream)

    async def _pump(self, source: trio.abc.Stream, sink: trio.abc.Stream, both: trio.Nursery) -> None:
        try:
            async for chunk in source:
                await self._gate.wait()
                await sink.send_all(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        both.cancel_scope.cancel()

    def cut(self) -> None:
        """End every connection."""
        for scope in self._scopes:
            scope.cancel()

    def freeze(self) -> None:
        """Nothing passes any more."""
        self._gate = trio.Event()

    def thaw(self) -> None:
        """What was held back passes."""
        self._gate.set()


@define(eq=False)
class Side:
    """One engine: a peer that uses it, and its port for subscribers."""

    core: Engine
    user: LocalPeer
    port: Port
    state: StateModule
    bridge: Bridge | None = None


@asynccontextmanager
async def side(bridge: Bridge | None = None, **state: Any) -> AsyncIterator[Side]:
    """An engine with state, streams and pub/sub; with a bridge they are kept by the engine at its other end."""
    async with open_memory() as store, trio.open_nursery() as nursery:
        kept = StateModule(Live(StateSettings(**state)), store.key_value("state"), bridge)
        streams = StreamModule(Live(StreamSettings()), store, listen=False, remote=bridge)
        modules = [kept, streams, PubSubModule(Live(PubSubSettings()))]
        async with running(*([] if bridge is None else [bridge]), *modules) as (core, user):
            yield Side(core, user, Port(streams, nursery, nursery), kept, bridge)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def bridged() -> AsyncIterator[tuple[Side, Side, Wire]]:
    """The engine that bridges, the one that keeps the data, and the wire between them, which is up."""
    async with trio.open_nursery() as nursery, side() as far:
        wire = Wire(nursery, far.core)
        async with side(Bridge(URL, open_stream=wire.open_stream)) as near:
            await linked(near)
            yield near, far, wire
        nursery.cancel_scope.cancel()


async def linked(near: Side) -> None:
    """Wait until the link is up and the other engine has read what it registers."""
    assert near.bridge is not None
    with trio.fail_after(60):
        while not near.bridge.statistics().connected:  # noqa: ASYNC110 - the bridge tells nobody
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked()


@define(eq=False)
class Reference:
    """The other end as an engine of another kind: no features, its frames as they come, answers as the test says."""

    frames: list[dict[str, Any]] = field(factory=list)
    connection: Connection | None = None
    _news: trio.Event = field(factory=trio.Event)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection."""
        _, framing, rest = await accept(stream, route=lambda _: None)
        self.connection = Connection(stream, framing)
        self.send({"type": "workerregistered", "worker_id": "w1"})
        await self.connection.run(self._take, rest=rest)

    def send(self, frame: dict[str, Any]) -> None:
        """One frame to the bridge."""
        assert self.connection is not None
        self.connection.push(json.dumps(frame).encode())

    def _take(self, batch: list[bytes]) -> None:
        self.frames += [json.loads(text) for text in batch]
        if any(frame["type"] == "ping" for frame in self.frames):
            self.frames = [frame for frame in self.frames if frame["type"] != "ping"]
            self.send({"type": "pong"})
        self._news.set()
        self._news = trio.Event()

    async def next(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next frame of that type with these fields."""
        with trio.fail_after(60):
            while True:
                for frame in self.frames:
                    if frame["type"] == kind and all(frame.get(name) == value for name, value in fields.items()):
                        self.frames.remove(frame)
                        return frame
                await self._news.wait()
