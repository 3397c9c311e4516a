"""What the tests of the small modules share: modules in an engine without sockets, and a worker beside them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio
from attrs import define, field

from iii_trio.engine import NOTHING, Binding, Call, Clock, Engine, LocalPeer, Outcome, open_engine, open_local
from iii_trio.protocol import ABSENT, Json


class Module(Protocol):
    """What `running` starts."""

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None]) -> None: ...


@asynccontextmanager
async def running(*modules: Module) -> AsyncIterator[tuple[Engine, LocalPeer]]:
    """An engine with these modules, and the peer of somebody who uses them."""
    async with open_engine(clock=Clock(epoch=1_700_000_000)) as core, trio.open_nursery() as nursery:
        for module in modules:
            await nursery.start(module.run, core)
        async with open_local(core, "user") as user:
            yield core, user
        nursery.cancel_scope.cancel()


@define
class Recorder:
    """A function that keeps what it is called with; `answer` is its result."""

    answer: Outcome = NOTHING
    payloads: list[Any] = field(factory=list)
    metadata: list[Any] = field(factory=list)
    _changed: trio.Event = field(factory=trio.Event)

    def __call__(self, call: Call, data: Json) -> Outcome:
        self.payloads.append(data.decode())
        self.metadata.append(Json(call.metadata).decode())
        self._changed.set()
        self._changed = trio.Event()
        return self.answer

    async def wait(self, count: int) -> list[Any]:
        """The payloads, once there are `count` of them; fails after 30 s."""
        with trio.fail_after(30):
            while len(self.payloads) < count:
                await self._changed.wait()
        return self.payloads


def record(peer: LocalPeer, function_id: str, answer: Outcome = NOTHING) -> Recorder:
    """Register a recorder."""
    recorder = Recorder(answer)
    peer.register(function_id, recorder)
    return recorder


def bind(core: Engine, peer: LocalPeer, trigger_type: str, function_id: str, config: Any, **more: Any) -> Binding:
    """Bind a function of `peer`; the id is the function's unless given."""
    more.setdefault("id", function_id)
    metadata = more.pop("metadata", None)
    binding = Binding(
        trigger_type=trigger_type,
        function_id=function_id,
        config=Json.of(config),
        metadata=ABSENT if metadata is None else Json.of(metadata),
        owner=peer,
        **more,
    )
    core.triggers.register(binding)
    return binding


async def ask(peer: LocalPeer, function_id: str, payload: Any = None, **more: Any) -> Any:
    """Call a function and decode what it returns."""
    return (await peer.invoke(function_id, Json.of(payload), **more)).decode()
