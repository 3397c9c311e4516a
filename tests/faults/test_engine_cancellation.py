"""Promise P8 in the core: cancelled at any step, its coroutines leave tables and task tree as they were."""

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from public_coroutines import public_coroutines

import iii_trio.engine
from iii_trio.engine import Call, Engine, Listener, LocalPeer, Rules, calls_wait, open_engine, open_local
from iii_trio.protocol import EMPTY_OBJECT, Json
from iii_trio.protocol.errors import WireError
from iii_trio.testing import CancelAtStep, sweep, task_tree
from iii_trio.testing.raw import NoFrame, RawPort, RawWorker, open_port
from iii_trio.transport import connect


def holds(core: Engine) -> tuple[Any, ...]:
    """What the core holds, without the counters of what has been."""
    s = core.statistics()
    return (s.functions, s.triggers, s.workers, s.running, s.waiting, s.deadlines.timers)


Subject = Callable[[Engine, RawPort, RawWorker], Awaitable[None]]


def sweep_core(subject: Subject, *, rules: Rules | None = None) -> int:
    """`sweep` a subject beside a worker that goes on working."""

    async def once(cancel: CancelAtStep) -> None:
        async with open_engine() as core, open_port(core) as port:
            neighbour = await port.connect(name="neighbour")
            neighbour.register("a::echo")
            neighbour.register("a::admit")
            await neighbour.settled()

            async def answer(function_id: str) -> None:
                while True:
                    with suppress(NoFrame):
                        call = await neighbour.next("invokefunction", function_id=function_id)
                        neighbour.answer(call, result=call["data"])

            if rules is not None:
                port.listener.rules = rules
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, "a::echo")
                nursery.start_soon(answer, "a::admit")
                await trio.testing.wait_all_tasks_blocked()
                before, tasks = holds(core), task_tree()
                await cancel.run(lambda: subject(core, port, neighbour))
                await trio.sleep(20)  # the graces of calls and connections
                assert holds(core) == before
                assert task_tree() == tasks
                assert (await neighbour.ask("a::missing"))["error"]["code"] == "function_not_found"
                nursery.cancel_scope.cancel()

    return sweep(once)


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


async def handle(_core: Engine, port: RawPort, _neighbour: RawWorker) -> None:
    """A fresh stream from its first byte: handshake, greeting, and the wait until a port has no connection left."""
    listener = Listener(core=port.core)
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery, ours:
        nursery.start_soon(listener.handle, theirs)
        await connect(ours, "test", "/")
        nursery.start_soon(listener.wait_closed)
        await trio.sleep(0.1)
        listener.close_all(1012, "over")
        await trio.aclose_forcefully(ours)


async def admission(_core: Engine, port: RawPort, _neighbour: RawWorker) -> None:
    """A connection of which an auth function decides; it works under access control, and leaves."""
    async with trio.open_nursery() as nursery:
        guest = RawPort(port.core, nursery)
        guest.listener = port.listener
        worker = await guest.connect(name="guest")
        worker.register("g::f")
        await worker.settled()
        nursery.cancel_scope.cancel()


async def unwinding(core: Engine, _port: RawPort, _neighbour: RawWorker) -> None:
    """What a drain does to calls: waits for those that end, cancels the others, and waits for them once more."""
    async with open_local(core, "slow") as slow, trio.open_nursery() as nursery:

        async def handler(_call: Call, _data: Json) -> Json:
            await trio.sleep(60)
            return EMPTY_OBJECT

        slow.register("m::slow", handler, task=True)
        core.local.call("m::slow", EMPTY_OBJECT, lambda _outcome: None)
        core.local.call("a::echo", EMPTY_OBJECT, lambda _outcome: None)
        nursery.start_soon(core.invocations.wait_idle)
        with trio.move_on_after(1):
            await core.invocations.wait_idle()
        await core.invocations.stop([slow], 1)


async def handover(core: Engine, _port: RawPort, neighbour: RawWorker) -> None:
    """A module that is replaced while it runs one call and another one waits for its successor."""

    async def slow(_call: Call, _data: Json) -> Json:
        await trio.sleep(1)
        return EMPTY_OBJECT

    async with open_local(core, "after") as after, open_local(core, "before") as before:
        before.register("m::slow", slow, task=True)
        first = neighbour.call("m::slow")
        await neighbour.settled()
        async with calls_wait(core, [before], 5):
            second = neighbour.call("m::slow")
            await neighbour.settled()
            core.release(before)
            after.register("m::slow", slow, task=True)
        for call in (first, second):
            assert (await neighbour.result(call))["result"] == {}


AUTH = Rules(auth_function_id="a::admit")


@pytest.mark.parametrize("subject", [invoke, modules, serve, handle, unwinding, handover])
def test_cancelled_at_any_step_it_leaves_everything_as_it_was(subject: Subject) -> None:
    assert sweep_core(subject) > 10


def test_cancelled_at_any_step_of_its_admission_a_connection_leaves_nothing() -> None:
    assert sweep_core(admission, rules=AUTH) > 10


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
    assert sweep_core(listen) > 10


def test_an_engine_that_is_cancelled_at_any_step_is_gone() -> None:
    """Opened, worked with, drained: nothing but the caller's own task is left of it."""

    async def whole() -> None:
        async with open_engine() as core, open_port(core) as port:
            worker = await port.connect(name="w")
            worker.register("w::f")
            await worker.settled()
            core.serving()
            worker.call("w::f")
            await worker.next("invokefunction")
            assert not await core.drain(1, 1)

    async def once(cancel: CancelAtStep) -> None:
        before = task_tree()
        await cancel.run(whole)
        assert task_tree() == before

    assert sweep(once) > 10


def test_the_sweep_finds_what_is_left_behind() -> None:
    async def leaky(core: Engine, _port: RawPort, _neighbour: RawWorker) -> None:
        core.local.register("m::left", lambda _call, data: None)  # type: ignore[arg-type,return-value]
        await trio.sleep(1)
        core.local.unregister("m::left")

    with pytest.RaisesGroup(AssertionError, flatten_subgroups=True) as caught:
        sweep_core(leaky)
    assert caught.value.__notes__ == ["cancelled at step 1"]


SUBJECTS: dict[str, tuple[str, ...]] = {
    "invoke": ("local.LocalPeer.invoke", "local.open_local"),
    "serve": ("listener.Listener.serve",),
    "handle": ("listener.Listener.handle", "listener.Listener.wait_closed"),
    "admission": ("sessions.admit",),
    "unwinding": ("invocations.Invocations.wait_idle", "invocations.Invocations.stop"),
    "handover": ("handover.calls_wait",),
    "listen": ("listener.Listener.run", "listener.bind"),
    "whole": ("engine.open_engine", "engine.Engine.drain", "deadlines.Deadlines.run"),
}
ELSEWHERE = ("channel_sockets.", "channel_streams.")
"""Ends of channels are swept together with those of the SDK, in test_sdk_cancellation.py."""


def test_no_public_coroutine_of_the_core_is_left_out() -> None:
    named = {name for names in SUBJECTS.values() for name in names}
    found = {name for name in public_coroutines(iii_trio.engine) if not name.startswith(ELSEWHERE)}
    assert found == named
