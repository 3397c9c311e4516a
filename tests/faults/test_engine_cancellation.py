"""Promise P8 in the core: cancelled at any step, its coroutines leave tables and task tree as they were."""

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from iii_trio.engine import Call, Engine, Listener, LocalPeer, open_engine, open_local
from iii_trio.protocol import EMPTY_OBJECT, Json
from iii_trio.protocol.errors import WireError
from iii_trio.testing.raw import RawPort, RawWorker, open_port

MOST_STEPS = 400


@define(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope after the n-th step that any task of the run takes while it is armed."""

    at: int
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    steps: int = 0
    armed: bool = False

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        """Count, and cancel when it is time."""
        if self.armed:
            self.steps += 1
            if self.steps == self.at:
                self.scope.cancel()


def tree() -> list[str]:
    """The names of all tasks of the run."""
    root = trio.lowlevel.current_root_task()
    names, waiting = [], [root]
    while waiting:
        task = waiting.pop()
        assert task is not None
        names.append(task.name)
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return sorted(names)


def holds(core: Engine) -> tuple[Any, ...]:
    """What the core holds, without the counters of what has been."""
    s = core.statistics()
    return (s.functions, s.triggers, s.workers, s.running, s.waiting, s.deadlines.timers)


Subject = Callable[[Engine, RawPort, RawWorker], Awaitable[None]]


def sweep(subject: Subject) -> int:
    """Run `subject` again and again, cancelled one step later each time, until it ends first; the number of runs."""

    async def once(cancel: CancelAtStep) -> bool:
        async with open_engine() as core, open_port(core) as port:
            neighbour = await port.connect(name="neighbour")
            neighbour.register("a::echo")
            await neighbour.settled()

            async def echo() -> None:
                while True:
                    call = await neighbour.next("invokefunction", function_id="a::echo")
                    neighbour.answer(call, result=call["data"])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo)
                await trio.testing.wait_all_tasks_blocked()
                before, tasks = holds(core), tree()
                with cancel.scope:
                    cancel.armed = True
                    await subject(core, port, neighbour)
                cancel.armed = False
                await trio.sleep(20)  # the graces of calls and connections
                assert holds(core) == before, f"cancelled at step {cancel.at}"
                assert tree() == tasks, f"cancelled at step {cancel.at}"
                assert (await neighbour.ask("a::missing"))["error"]["code"] == "function_not_found"
                nursery.cancel_scope.cancel()
        return cancel.scope.cancelled_caught

    for at in range(1, MOST_STEPS):
        cancel = CancelAtStep(at)
        cancelled = trio.run(once, cancel, clock=MockClock(autojump_threshold=0), instruments=[cancel])
        if not cancelled and cancel.steps < at:
            return at
    raise AssertionError(f"it takes more than {MOST_STEPS} steps")


async def invoke(core: Engine, _port: RawPort, _neighbour: RawWorker) -> None:
    """A call of a module through another module's task to a worker and back."""
    async with open_local(core, "relay") as relay:

        async def handler(_call: Call, data: Json) -> Json:
            return await relay.invoke("a::echo", data)

        relay.register("m::relay", handler, task=True)
        assert await core.local.invoke("m::relay", EMPTY_OBJECT) == EMPTY_OBJECT


async def modules(core: Engine, _port: RawPort, neighbour: RawWorker) -> None:
    """A module that serves, provides, is called, and ends."""

    @asynccontextmanager
    async def module() -> Any:
        async with open_local(core, "module") as peer:
            peer.register("m::wait", wait, task=True)
            peer.provide("T", Silent())
            yield peer

    async def wait(_call: Call, _data: Json) -> Json:
        await trio.sleep(1)
        return EMPTY_OBJECT

    async with module() as peer:
        assert isinstance(peer, LocalPeer)
        call = neighbour.call("m::wait")
        await neighbour.result(call)
        await neighbour.settled()
        with pytest.raises(WireError):
            await peer.invoke("m::missing")


class Silent:
    """A provider that takes everything."""

    def bind(self, _binding: object) -> None:
        """Take it."""

    def replace(self, _old: object, _new: object) -> None:
        """Take it."""

    def unbind(self, _binding: object, _reason: object) -> None:
        """Let it go."""


async def serve(_core: Engine, port: RawPort, neighbour: RawWorker) -> None:
    """The whole life of a worker's connection, cancelled with whatever it was doing."""
    async with trio.open_nursery() as nursery:
        guest = RawPort(port.core, nursery)
        guest.listener = port.listener
        worker = await guest.connect(name="guest")
        worker.register("g::f")
        worker.send({"type": "registertriggertype", "id": "G", "description": ""})
        bind = {"type": "registertrigger", "id": "g", "trigger_type": "G", "function_id": "g::f", "config": 1}
        worker.send(bind)
        await worker.next("registertrigger")
        call = neighbour.call("g::f")
        worker.answer(await worker.next("invokefunction"), result=1)
        await neighbour.result(call)
        worker.call("a::echo")
        worker.cut()
        await port.gone(worker)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("subject", [invoke, modules, serve])
def test_cancelled_at_any_step_it_leaves_everything_as_it_was(subject: Subject) -> None:
    assert sweep(subject) > 10


async def listen(core: Engine, _port: RawPort, _neighbour: RawWorker) -> None:
    """A port that opens, takes a connection that says nothing, and closes."""
    async with trio.open_nursery() as nursery:
        listener = Listener(core=core, host="127.0.0.1", port=0)
        await nursery.start(listener.run)
        async with await trio.open_tcp_stream(*listener.addresses[0]):
            await trio.sleep(0.5)
        nursery.cancel_scope.cancel()


def test_a_port_that_is_cancelled_at_any_step_is_closed() -> None:
    """An open socket would be a ResourceWarning, which is an error here."""
    assert sweep(listen) > 10


def test_the_sweep_finds_what_is_left_behind() -> None:
    async def leaky(core: Engine, _port: RawPort, _neighbour: RawWorker) -> None:
        core.local.register("m::left", lambda _call, data: None)  # type: ignore[arg-type,return-value]
        await trio.sleep(1)
        core.local.unregister("m::left")

    with pytest.RaisesGroup(pytest.RaisesExc(AssertionError, match="cancelled at step"), flatten_subgroups=True):
        sweep(leaky)
