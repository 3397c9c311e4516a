"""The core without an event loop: a clock turned by hand, connections that are lists, workers that send frames."""

import json
import uuid
from collections.abc import Callable
from typing import Any

from attrs import define, field

from iii_trio.engine import Clock, Engine, LocalPeer, RemotePeer
from iii_trio.engine.access import Session
from iii_trio.protocol.limits import MAX_MESSAGE, PEER_MESSAGE_DEFAULT


class HandClock(Clock):
    """A clock that stands until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(epoch=1_700_000_000)
        self.time = 0.0

    def now(self) -> float:
        """Seconds since the start."""
        return self.time


@define(eq=False)
class FakeConnection:
    """What a `RemotePeer` sees of its connection; `full` refuses whatever is pushed, like a full outbox."""

    sent: list[bytes] = field(factory=list)
    full: bool = False
    busy: bool = False
    overloaded: bool = False
    pending_bytes: int = 0
    message_limit: int = MAX_MESSAGE
    last_heard: float = 0.0
    closed: tuple[int, str] | None = None
    paused: bool = False
    pings: int = 0
    on_push: Callable[[bytes], object] = lambda _frame: None

    @property
    def closing(self) -> bool:
        """Whether it takes no more messages."""
        return self.closed is not None

    def push(self, frame: bytes) -> bool:
        """Take one frame."""
        if self.full or self.closing:
            return False
        self.sent.append(frame)
        self.on_push(frame)
        return True

    def ping(self) -> bytes:
        """Count a ping."""
        self.pings += 1
        return b"ping"

    def pause_reading(self) -> None:
        """Remember it."""
        self.paused = True

    def resume_reading(self) -> None:
        """Remember it."""
        self.paused = False

    def close(self, code: int, reason: str = "") -> None:
        """Remember the first cause."""
        self.closed = self.closed or (code, reason)


@define(eq=False)
class SyncWorker:
    """One connection to a `SyncCore`, from the far side."""

    core: Engine
    peer: RemotePeer
    connection: FakeConnection

    @property
    def id(self) -> str:
        """The worker id."""
        return self.peer.id

    @property
    def gone(self) -> bool:
        """Whether its footprint has been given back."""
        return self.peer.leaving

    def send(self, *frames: dict[str, Any] | bytes) -> None:
        """One batch of frames arrives at the engine."""
        self.connection.last_heard = self.core.clock.now()
        self.peer.on_batch([frame if isinstance(frame, bytes) else json.dumps(frame).encode() for frame in frames])

    def introduce(self, **data: Any) -> None:
        """Say who it is."""
        body = {"runtime": "test", "pid": 1, **data}
        self.send({"type": "invokefunction", "function_id": "engine::workers::register", "data": body, "action": VOID})

    def register(self, function_id: str) -> None:
        """Claim a function."""
        self.send({"type": "registerfunction", "id": function_id})

    def call(self, function_id: str, data: Any = None, **fields: Any) -> str:
        """Call a function; returns the id."""
        call_id = str(fields.pop("invocation_id", None) or uuid.uuid4())
        frame = {"type": "invokefunction", "invocation_id": call_id, "function_id": function_id, "data": data}
        self.send({**frame, **fields})
        return call_id

    def answer(self, invocation_id: str, **fields: Any) -> None:
        """Answer a call."""
        self.send({"type": "invocationresult", "invocation_id": invocation_id, "function_id": "f", **fields})

    def cut(self) -> None:
        """Its socket has ended."""
        self.connection.close(1006)
        self.core.release(self.peer)

    def take(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The frames it was sent since the last `take`; with `kind` only those of that type, the others are lost."""
        frames = [json.loads(frame) for frame in self.connection.sent]
        self.connection.sent.clear()
        return [frame for frame in frames if kind in (None, frame["type"])]


VOID = {"type": "void"}


@define(eq=False)
class SyncCore:
    """An engine whose time and frames a test moves by hand."""

    clock: HandClock = field(factory=HandClock)
    default_timeout_s: float = 60.0
    engine: Engine = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.engine = Engine(clock=self.clock, default_timeout_s=self.default_timeout_s)
        self.engine.local = self.local("engine")
        self.engine.local.register("engine::workers::register", self.engine.workers.register)

    def local(self, name: str) -> LocalPeer:
        """A module's peer; it has no nursery, so its handlers are inline."""
        peer = LocalPeer(id=str(uuid.uuid4()), name=name, cap=MAX_MESSAGE, core=self.engine, nursery=None)  # type: ignore[arg-type]
        self.engine.attach_local(peer)
        return peer

    def connect(self, *, session: Session | None = None, **introduction: Any) -> SyncWorker:
        """A worker that has been greeted; with keywords it has introduced itself. Without a `session` it is trusted."""
        connection = FakeConnection()
        peer = RemotePeer(
            id=str(uuid.uuid4()),
            cap=PEER_MESSAGE_DEFAULT,
            injects=True,
            core=self.engine,
            connection=connection,  # type: ignore[arg-type]
            session=session,
            address="test",
            connected_at_ms=0,
        )
        self.engine.attach(peer)
        worker = SyncWorker(self.engine, peer, connection)
        worker.take()
        if introduction:
            worker.introduce(**introduction)
        return worker

    def advance(self, seconds: float, step: float = 0.25) -> None:
        """Let time pass in steps, firing what is due after each."""
        for _ in range(round(seconds / step)):
            self.clock.time += step
            self.engine.deadlines.fire_due()
