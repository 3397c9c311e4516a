"""An engine that does only what a test says: it accepts connections, records frames, and sends frames."""

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing
from attrs import define, field

from iii_trio.transport import Closed, Connection, HandshakeError, Request, accept

FEATURES = ("cancel.v1",)


@define(eq=False)
class Peer:
    """One accepted connection: every frame of the SDK in order, decoded."""

    connection: Connection
    request: Request
    worker_id: str
    frames: list[dict[str, Any]] = field(factory=list)
    closed: Closed | None = None
    _answer_pings: bool = True
    _unread: int = 0
    _news: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def take(self, batch: list[bytes]) -> None:
        for text in batch:
            frame = json.loads(text)
            if frame["type"] == "ping" and self._answer_pings:
                self.send({"type": "pong"})
            self.frames.append(frame)
        self._news.unpark_all()

    def send(self, frame: dict[str, Any]) -> None:
        self.connection.push(json.dumps(frame).encode())

    def send_raw(self, text: bytes) -> None:
        self.connection.push(text)

    async def receive(self, type_name: str | None = None) -> dict[str, Any]:
        """The next frame that was not received yet, of a type if one is named; pings are passed over."""
        with trio.fail_after(1000):
            while True:
                while self._unread < len(self.frames):
                    frame = self.frames[self._unread]
                    self._unread += 1
                    if frame["type"] == type_name or (type_name is None and frame["type"] != "ping"):
                        return frame
                await self._news.park()

    async def call(self, function_id: str, data: Any = None, invocation_id: str = "", **extra: Any) -> str:
        """Send an invocation; its id."""
        invocation_id = invocation_id or f"00000000-0000-4000-8000-{len(self.frames):012d}"
        self.send(
            {
                "type": "invokefunction",
                "invocation_id": invocation_id,
                "function_id": function_id,
                "data": data,
                **extra,
            }
        )
        return invocation_id

    async def ask(self, function_id: str, data: Any = None, **extra: Any) -> dict[str, Any]:
        """Send an invocation and wait for its `invocationresult`."""
        invocation_id = await self.call(function_id, data, **extra)
        answer = await self.receive("invocationresult")
        assert answer["invocation_id"] == invocation_id
        return answer

    def answer(self, call: dict[str, Any], result: Any = None, error: Any = None) -> None:
        """Answer a call of the SDK."""
        outcome = {"result": result} if error is None else {"error": error}
        self.send(
            {
                "type": "invocationresult",
                "invocation_id": call["invocation_id"],
                "function_id": call["function_id"],
                **outcome,
            }
        )

    def types(self) -> list[str]:
        return [frame["type"] for frame in self.frames]

    async def settle(self) -> None:
        """Let everything run that can."""
        await trio.testing.wait_all_tasks_blocked()

    async def wait_closed(self) -> Closed:
        with trio.fail_after(1000):
            while self.closed is None:
                await self._news.park()
        return self.closed

    async def run(self, rest: bytes) -> None:
        self.closed = await self.connection.run(self.take, rest=rest)
        self._news.unpark_all()


@define(eq=False)
class FakeEngine:
    """`open_stream` is for the SDK; `peer()` waits for the next connection it makes."""

    nursery: trio.Nursery
    features: tuple[str, ...] | None = FEATURES
    greets: bool = True
    answers_pings: bool = True
    unreachable: bool = False
    lockstep: bool = False
    dialled_at: list[float] = field(factory=list)
    peers: list[Peer] = field(factory=list)
    _new: Any = field(factory=lambda: trio.open_memory_channel[Peer](math.inf))

    async def open_stream(self) -> trio.abc.Stream:
        self.dialled_at.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.unreachable:
            raise ConnectionRefusedError("nobody listens")
        pair = trio.testing.lockstep_stream_pair if self.lockstep else trio.testing.memory_stream_pair
        ours, theirs = pair()
        self.nursery.start_soon(self.serve, theirs)
        return ours

    async def serve(self, stream: trio.abc.Stream) -> None:
        try:
            request, framing, rest = await accept(stream, route=lambda _: None)
        except HandshakeError:
            return
        number = len(self.peers) + 1
        peer = Peer(
            Connection(stream, framing, name="engine"), request, f"worker-{number}", answer_pings=self.answers_pings
        )
        self.peers.append(peer)
        if self.greets:
            greeting = {"type": "workerregistered", "worker_id": peer.worker_id, "reattach_token": f"token-{number}"}
            peer.send(greeting if self.features is None else {**greeting, "features": self.features})
        self._new[0].send_nowait(peer)
        await peer.run(rest)

    async def peer(self) -> Peer:
        with trio.fail_after(1000):
            peer: Peer = await self._new[1].receive()
        return peer


@asynccontextmanager
async def fake_engine(**options: Any) -> AsyncIterator[FakeEngine]:
    async with trio.open_nursery() as nursery:
        yield FakeEngine(nursery, **options)
        nursery.cancel_scope.cancel()
