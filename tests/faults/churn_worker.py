"""One worker of the churn test: a connection that registers much, calls everybody, answers as it likes, and ends badly.

Raw frames over real sockets. A *good* worker answers every call at once and truly; the others answer, fail, call on,
answer twice or not at all, as the dice say.
"""

import json
import random
import socket
import struct
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import trio
from attrs import define, field

from iii_trio.transport import Closed, Connection, connect

WORKERS: Final = 10
FUNCTIONS: Final = 100
SHARED: Final = 5
TOPICS: Final = 4
WAIT_S: Final = 30.0

Frame = dict[str, Any]


def function_ids(number: int) -> list[str]:
    """What worker `number` registers: its own functions, and some that every worker claims."""
    own = [f"w{number}::f{index}" for index in range(FUNCTIONS)]
    return [*own, *(f"shared::f{index}" for index in range(SHARED))]


def triggers(number: int) -> list[Frame]:
    """What worker `number` binds: every built-in type under several names, and a type that a worker provides."""
    bound: list[tuple[str, Frame]] = []
    for index in range(TOPICS):
        bound += [
            ("http", {"api_path": f"w{number}/r{index}", "http_method": "POST" if index % 2 else "GET"}),
            ("api", {"api_path": f"shared/:name/r{index}"}),
            ("queue", {"topic": f"topic-{index}"}),
            ("durable:subscriber", {"topic": f"own-{number}"}),
            ("state", {"scope": f"scope-{index}"}),
            ("subscribe", {"topic": f"topic-{index}"}),
            ("subscribe", {"topic": f"asked-{index}", "condition_function_id": f"w{(number + 1) % WORKERS}::f0"}),
            ("churn", {"anything": index}),
        ]
    bound += [("engine::functions-available", {}), ("engine::workers-available", {})]
    return [
        {
            "type": "registertrigger",
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{number}/{place}")),
            "trigger_type": kind,
            "function_id": f"w{number}::f{place % FUNCTIONS}",
            "config": config,
            "metadata": {"place": place},
        }
        for place, (kind, config) in enumerate(bound)
    ]


@define(eq=False)
class Sight:
    """What the workers of one run have seen, all together."""

    answers: int = 0
    served: int = 0
    refused: int = 0
    closes: list[int] = field(factory=list)
    news: trio.Event = field(factory=trio.Event)

    def tell(self) -> None:
        """Something has changed."""
        self.news.set()
        self.news = trio.Event()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that frames bring about."""
        with trio.move_on_after(WAIT_S):
            while not condition():
                await self.news.wait()
            return
        raise AssertionError(f"no {what} within {WAIT_S} s")


@define(eq=False, kw_only=True)
class Churner:
    """One connection of worker `number`; made by `join`."""

    number: int
    dice: random.Random
    sight: Sight
    stream: trio.SocketStream
    connection: Connection
    good: bool = False
    holding: bool = False
    """Keep the answers back until somebody calls `let_go`."""
    introduced: bool = False
    worker_id: str = ""
    token: str = ""
    pongs: int = 0
    rejected: list[Frame] = field(factory=list)
    held: deque[Frame] = field(factory=deque)
    closed: Closed | None = None
    _outer: dict[str, Frame] = field(factory=dict)
    _calls: deque[str] = field(factory=lambda: deque(maxlen=50))

    async def run(self, rest: bytes, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the connection to its end."""
        task_status.started()
        self.closed = await self.connection.run(self._on_batch, rest=rest)
        self.sight.closes.append(self.closed.code)
        self.sight.tell()

    # -- what it gets

    def _on_batch(self, frames: list[bytes]) -> None:
        for text in frames:
            frame = json.loads(text)
            kind = frame["type"]
            if kind == "invokefunction":
                self._serve(frame)
            elif kind == "invocationresult":
                self.sight.answers += 1
                outer = self._outer.pop(frame["invocation_id"], None)
                if outer is not None:
                    self.answer(outer, frame.get("result"))
            elif kind == "workerregistered":
                self.worker_id, self.token = frame["worker_id"], frame["reattach_token"]
            elif kind == "pong":
                self.pongs += 1
            elif kind == "registrationrejected":
                self.rejected.append(frame)
            elif kind == "registertrigger" and not self.good and self.dice.random() < 0.2:
                error = {"code": "no", "message": "not today"}
                keys = {key: frame[key] for key in ("id", "trigger_type", "function_id")}
                self.send({"type": "triggerregistrationresult", **keys, "error": error})
        self.sight.tell()

    def _serve(self, frame: Frame) -> None:
        self.sight.served += 1
        if "invocation_id" not in frame:
            return
        if self.holding:
            self.held.append(frame)
            return
        luck = self.dice.random()
        if self.good or luck < 0.6:
            self.answer(frame, {"by": self.number})
        elif luck < 0.7:
            self.send({**_reply(frame), "error": {"code": "broken", "message": "as the dice say"}})
        elif luck < 0.9:
            self._outer[self.call(self.somebody())] = frame
        elif luck < 0.95:
            self.answer(frame, 1)
            self.answer(frame, 2)

    def let_go(self) -> None:
        """Answer what was held back, and everything from now on."""
        self.holding = False
        while self.held:
            self.answer(self.held.popleft(), None)

    # -- what it sends

    def send(self, frame: Frame) -> None:
        """Send one frame, if there is still a connection."""
        self.connection.push(json.dumps(frame).encode())

    def answer(self, frame: Frame, result: Any) -> None:
        """Answer a call."""
        self.send({**_reply(frame), "result": result})

    def call(self, function_id: str, data: Any = None, **fields: Any) -> str:
        """Call a function; the id of the call."""
        invocation_id = str(uuid.UUID(int=self.dice.getrandbits(128), version=4))
        self._calls.append(invocation_id)
        head = {"type": "invokefunction", "invocation_id": invocation_id, "function_id": function_id}
        self.send({**head, "data": data, **fields})
        return invocation_id

    def somebody(self) -> str:
        """A function of anybody's, perhaps one that is not there."""
        if self.dice.random() < 0.1:
            return f"shared::f{self.dice.randrange(SHARED + 1)}"
        return f"w{self.dice.randrange(WORKERS)}::f{self.dice.randrange(FUNCTIONS)}"

    def introduce(self) -> None:
        """Say who it is; every connection of this worker has the same name."""
        about = {"runtime": "test", "version": "1", "pid": 1, "name": f"churn-{self.number}"}
        self.introduced = True
        about["features"] = ["cancel.v1"] if self.number % 2 else []
        self.call("engine::workers::register", about, action={"type": "void"})

    def registrations(self) -> list[Frame]:
        """Everything it registers, in the order in which it does."""
        frames: list[Frame] = [{"type": "registerfunction", "id": one} for one in function_ids(self.number)]
        frames += triggers(self.number)
        if self.number < 2:  # two that provide the type to which all bind
            frames.insert(0, {"type": "registertriggertype", "id": "churn", "description": "comes and goes"})
        return frames

    def register(self) -> None:
        """Introduce itself, first or last, and register everything."""
        early = self.dice.random() < 0.5
        if early:
            self.introduce()
        for frame in self.registrations():
            self.send(frame)
        if not early:
            self.introduce()

    async def settled(self) -> None:
        """Wait until the engine has handled what was sent so far."""
        wanted = self.pongs + 1
        self.send({"type": "ping"})
        await self.sight.until(lambda: self.pongs >= wanted or self.closed is not None, "pong")

    def step(self) -> None:
        """Do one of the things that workers do."""
        dice, topic, data = self.dice, f"topic-{self.dice.randrange(TOPICS)}", {"n": self.dice.randrange(1000)}
        match dice.randrange(14):
            case 0 | 1 | 2:
                self.call(self.somebody(), data)
            case 3:
                self.call(self.somebody(), data, action={"type": "void"})
            case 4:
                self.call(self.somebody(), data, deadline_ms=dice.randrange(30))
            case 5:
                self.call(f"w{dice.randrange(WORKERS)}::f1", data, action={"type": "enqueue", "queue": "default"})
            case 6:
                self.call("enqueue", {"topic": dice.choice([topic, f"own-{self.number}"]), "data": data})
            case 7:
                self.call("publish", {"topic": dice.choice([topic, "asked-1"]), "data": data})
            case 8:
                scope = f"scope-{dice.randrange(TOPICS)}"
                self.call("state::set", {"scope": scope, "key": f"k{dice.randrange(9)}", "value": data})
            case 9:
                self.call("engine::functions::info", {"function_id": self.somebody()})
            case 10 if self._calls:
                self.send({"type": "cancelinvocation", "invocation_id": dice.choice(self._calls), "reason": "x"})
            case 11:
                self.send(dice.choice(triggers(self.number)))  # once more: it replaces itself
            case 12:
                one = dice.choice(self.registrations())
                self.send({**one, "type": "un" + one["type"]})
            case _:
                self.connection.push(dice.choice([b"{", b'{"type":"nonsense"}', b'{"type":"invokefunction"}']))

    # -- how it ends

    def cut(self) -> None:
        """The process died: its socket is closed by the system."""
        self.connection.abort()

    def reset(self) -> None:
        """The machine died: the engine gets a reset, perhaps in the middle of a frame."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.abort()

    def close(self) -> None:
        """An orderly end."""
        self.connection.close(1000, "done")

    def freeze(self) -> None:
        """The connection is there, and nobody is."""
        self.connection.pause_reading()

    async def gone(self) -> None:
        """Wait until the connection has ended on this side."""
        await self.sight.until(lambda: self.closed is not None, f"end of {self.worker_id}")


def _reply(frame: Frame) -> Frame:
    return {"type": "invocationresult", **{key: frame[key] for key in ("invocation_id", "function_id")}}


async def join(
    nursery: trio.Nursery, port: int, number: int, dice: random.Random, sight: Sight, *, good: bool = False
) -> Churner:
    """A connection of worker `number` that the engine has greeted."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    framing, rest = await connect(stream, f"127.0.0.1:{port}", "/")
    connection = Connection(stream, framing, name=f"churn-{number}")
    churner = Churner(number=number, dice=dice, sight=sight, stream=stream, connection=connection, good=good)
    await nursery.start(churner.run, rest)
    await sight.until(lambda: bool(churner.worker_id) or churner.closed is not None, "greeting")
    return churner
