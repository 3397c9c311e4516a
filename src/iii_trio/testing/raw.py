"""Workers as raw frames: an engine in this process, and peers that send and expect exactly what a test says.

Everything runs over memory streams: no socket, no thread, so it works under Trio's virtual clock.
"""

import json
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import trio
import trio.testing
from attrs import define, field

from ..engine import EVERYBODY, Engine, Listener, Rules
from ..engine.events import WorkerDisconnected
from ..transport import Closed, Connection, Framing, Oversize, Request, connect

WAIT_S = 30.0


class NoFrame(AssertionError):
    """The frame a test waits for did not come."""


@define(eq=False, repr=False)
class RawWorker:
    """A worker that speaks frames. `worker_id` and `reattach_token` come from the engine's greeting.

    `rest` are bytes that came with the answer to the upgrade.
    """

    connection: Connection
    rest: bytes = b""
    frames: deque[dict[str, Any]] = field(factory=deque, init=False)
    worker_id: str = field(default="", init=False)
    reattach_token: str = field(default="", init=False)
    closed: Closed | None = field(default=None, init=False)
    _news: trio.Event = field(factory=trio.Event, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the connection to its end; `closed` tells how it ended."""
        task_status.started()
        self.closed = await self.connection.run(self._on_batch, rest=self.rest)
        self._wake()

    def _on_batch(self, frames: list[bytes]) -> None:
        self.frames.extend(json.loads(frame) for frame in frames)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # -- sending

    def send(self, frame: dict[str, Any]) -> None:
        """Send one frame."""
        self.send_text(json.dumps(frame).encode())

    def send_text(self, text: bytes) -> None:
        """Send one text message, whatever is in it."""
        if not self.connection.push(text):
            raise AssertionError("the connection has ended")

    def call(self, function_id: str, data: Any = None, **fields: Any) -> str:
        """Send an `invokefunction`; returns its id."""
        invocation_id = str(fields.pop("invocation_id", None) or uuid.uuid4())
        frame = {"type": "invokefunction", "invocation_id": invocation_id, "function_id": function_id, "data": data}
        self.send({**frame, **fields})
        return invocation_id

    def introduce(self, **data: Any) -> None:
        """Send the void `engine::workers::register` by which every worker says who it is."""
        body = {"runtime": "test", "version": "1.0.0", "pid": 1, **data}
        self.send(
            {
                "type": "invokefunction",
                "function_id": "engine::workers::register",
                "data": body,
                "action": {"type": "void"},
            }
        )

    def register(self, function_id: str, **fields: Any) -> None:
        """Send a `registerfunction`."""
        self.send({"type": "registerfunction", "id": function_id, **fields})

    def answer(self, invocation: dict[str, Any], **fields: Any) -> None:
        """Answer a call: `result=…` or `error=…`."""
        keys = {"invocation_id": invocation["invocation_id"], "function_id": invocation["function_id"]}
        self.send({"type": "invocationresult", **keys, **fields})

    # -- receiving

    async def next(self, kind: str | None = None, **fields: Any) -> dict[str, Any]:
        """The next frame of that type with these fields; frames before it stay queued. Raises `NoFrame` after 30 s."""
        with trio.move_on_after(WAIT_S):
            while True:
                for frame in self.frames:
                    if kind in (None, frame["type"]) and all(frame.get(k) == v for k, v in fields.items()):
                        self.frames.remove(frame)
                        return frame
                if self.closed is not None:
                    break
                await self._news.wait()
        raise NoFrame(f"no {kind} with {fields}; have {list(self.frames)}, closed: {self.closed}")

    async def result(self, invocation_id: str) -> dict[str, Any]:
        """The answer of a call."""
        return await self.next("invocationresult", invocation_id=invocation_id)

    async def ask(self, function_id: str, data: Any = None, **fields: Any) -> dict[str, Any]:
        """`call`, then `result`."""
        return await self.result(self.call(function_id, data, **fields))

    async def settled(self) -> None:
        """Return when the engine has handled everything sent so far: a ping has come back."""
        self.send({"type": "ping"})
        await self.next("pong")

    async def wait_closed(self) -> Closed:
        """How the connection ended. Raises `NoFrame` after 60 s."""
        with trio.move_on_after(2 * WAIT_S):
            while self.closed is None:
                await self._news.wait()
            return self.closed
        raise NoFrame("the connection did not end")

    def cut(self) -> None:
        """Be gone, without a Close frame."""
        self.connection.abort()


@define(eq=False, repr=False)
class RawPort:
    """Connects raw workers to an engine without a socket; `rules` are those of the port."""

    core: Engine
    nursery: trio.Nursery
    rules: Rules = EVERYBODY
    listener: Listener = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.listener = Listener(core=self.core, rules=self.rules, port=0)

    async def open(
        self, path: str = "/", query: str = "", headers: Mapping[str, str] = MappingProxyType({})
    ) -> RawWorker:
        """A worker whose upgrade has been served; nothing has been waited for."""
        ours, theirs = trio.testing.memory_stream_pair()
        request = Request("GET", path, query, list(headers.items()))
        self.nursery.start_soon(self.listener.serve, theirs, request, Framing(), name="raw connection")
        worker = RawWorker(Connection(ours, Framing(client=True), on_oversize=_ignore, name="raw worker"))
        await self.nursery.start(worker.run)
        return worker

    async def connect(self, **introduction: Any) -> RawWorker:
        """A connected worker; with keywords it has also introduced itself with them."""
        return await self.greeted(await self.open(), **introduction)

    async def greeted(self, worker: RawWorker, **introduction: Any) -> RawWorker:
        """An opened worker once it is admitted; with keywords it has also introduced itself with them."""
        greeting = await worker.next("workerregistered")
        worker.worker_id, worker.reattach_token = greeting["worker_id"], greeting["reattach_token"]
        if introduction:
            worker.introduce(**introduction)
        return worker

    async def gone(self, worker: RawWorker) -> None:
        """Return once the engine has released this worker's connection. Raises `NoFrame` after 120 s."""
        gone = trio.Event()

        def tap(event: object) -> None:
            if event == WorkerDisconnected(worker.worker_id):
                gone.set()

        remove = self.core.events.tap(tap)
        try:
            with trio.move_on_after(4 * WAIT_S):
                if self.core.workers.get(worker.worker_id) is not None:
                    await gone.wait()
                return
        finally:
            remove()
        raise NoFrame("the engine keeps the connection")


async def dial(nursery: trio.Nursery, port: int) -> RawWorker:
    """A worker that has connected to a port of 127.0.0.1 and been greeted; it runs in `nursery`."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    framing, rest = await connect(stream, f"127.0.0.1:{port}", "/")
    worker = RawWorker(Connection(stream, framing, on_oversize=_ignore, name="raw worker"), rest)
    await nursery.start(worker.run)
    greeting = await worker.next("workerregistered")
    worker.worker_id, worker.reattach_token = greeting["worker_id"], greeting["reattach_token"]
    return worker


def _ignore(_report: Oversize) -> None:
    """A raw worker does not mind what it is sent."""


@asynccontextmanager
async def open_port(core: Engine) -> AsyncIterator[RawPort]:
    """A port for raw workers, for the length of the block."""
    async with trio.open_nursery() as nursery:
        yield RawPort(core, nursery)
        nursery.cancel_scope.cancel()
