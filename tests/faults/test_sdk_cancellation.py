"""Promise P8 in the SDK: each public coroutine cancelled at any step leaves client, engine and task tree in order.

Client and engine are one process without sockets or threads, so a step of either is a step of the sweep. In the suite
every n-th step is taken, in the long form every one.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define
from public_coroutines import public_coroutines

import iii_trio.sdk
from iii_trio import Client, HttpRequest, InvocationTimeout, NotConnected, Reconnect, Trigger, Worker, open_client
from iii_trio.config import Live, PubSubSettings, StateSettings, StreamSettings
from iii_trio.engine import Engine, open_engine
from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.modules.state import StateModule
from iii_trio.modules.stream import StreamModule
from iii_trio.protocol import Json
from iii_trio.sdk.calls import PendingCall
from iii_trio.sdk.providers import Binding
from iii_trio.stores import open_memory
from iii_trio.testing import CancelAtStep, sweep, task_tree
from iii_trio.testing.raw import NoFrame, RawPort, RawWorker, open_port

SOON = Reconnect(first_s=0.1, jitter=0.0)
LATER_S = 40.0
"""After which nothing of a cancelled call or connection may be left: graces, time-outs and the probe of a name."""


@define(eq=False)
class World:
    """An engine with a worker in it that answers, and the way to connect to it."""

    core: Engine
    port: RawPort
    neighbour: RawWorker
    nursery: trio.Nursery
    unreachable: bool = False

    async def open_stream(self) -> trio.abc.Stream:
        """What the SDK dials."""
        await trio.lowlevel.checkpoint()
        if self.unreachable:
            raise ConnectionRefusedError("nobody listens")
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.port.listener.handle, theirs, name="engine's side")
        return ours

    def client(self) -> Any:
        """A client of its own, that comes back soon."""
        return open_client(open_stream=self.open_stream, name="guest", reconnect=SOON)

    def lose(self, client: Client) -> None:
        """The engine ends the client's connection."""
        peer = self.core.workers.get(client.worker_id or "")
        if peer is not None:
            peer.retire(1012, "for a test")

    def holds(self) -> tuple[Any, ...]:
        """What the core holds, without the counters of what has been."""
        s = self.core.statistics()
        return (s.functions, s.triggers, s.workers, s.running, s.waiting)


async def answer(worker: RawWorker, function_id: str) -> None:
    """Answer every call of a function with its payload."""
    while True:
        with suppress(NoFrame):
            call = await worker.next("invokefunction", function_id=function_id)
            worker.answer(call, result=call["data"])


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(open_engine())
        store = await stack.enter_async_context(open_memory())
        nursery = await stack.enter_async_context(trio.open_nursery())
        for module in (
            StateModule(Live(StateSettings()), store.key_value("state")),
            StreamModule(Live(StreamSettings()), store, listen=False),
            PubSubModule(Live(PubSubSettings())),
            IntrospectionModule(),
        ):
            await nursery.start(module.run, core)
        port = await stack.enter_async_context(open_port(core))
        neighbour = await port.connect(name="neighbour", features=["cancel.v1"])
        neighbour.register("a::silent")
        for function_id in ("a::echo", "engine::queue::enqueue", "iii::durable::publish"):
            neighbour.register(function_id)  # it is the queue, too
            nursery.start_soon(answer, neighbour, function_id)
        await neighbour.settled()
        yield World(core, port, neighbour, nursery)
        nursery.cancel_scope.cancel()


# -- coroutines of a client that is there -----------------------------------------------------------------------------


async def call(client: Client, _here: World) -> None:
    """Answered, structured, out of time, out of patience, and without an executor that answers."""
    assert await client.call("a::echo", {"n": 1}, into=dict[str, int]) is not None
    with pytest.raises(InvocationTimeout):
        await client.call("a::silent", timeout=0.5)
    with trio.move_on_after(0.5):
        await client.call("a::silent", timeout=None)


async def send(client: Client, _here: World) -> None:
    for number in range(3):
        await client.send("a::echo", number)


async def enqueue(client: Client, _here: World) -> None:
    assert await client.enqueue("default", "a::echo", {"n": 1})


async def publish(client: Client, _here: World) -> None:
    await client.publish("topic", 1)
    await client.publish("topic", 2, durable=True)


async def state(client: Client, _here: World) -> None:
    scope = client.state["scope"]
    await scope.set("k", 1)
    await scope.update("k", {"type": "increment", "path": "", "by": 1})
    assert await scope.get("k") == 2
    assert await scope.list() == [2]
    assert [value for _, value in await scope.items(limit=1)] == [2]
    assert await client.state.scopes() == ["scope"]
    await scope.delete("k")


async def stream(client: Client, _here: World) -> None:
    group = client.stream("s")["g"]
    await group.set("i", {"id": "i", "n": 1})
    await group.update("i", {"type": "increment", "path": "n", "by": 1})
    assert (await group.get("i"))["n"] == 2
    assert len(await group.list()) == 1
    assert await client.stream("s").groups() == ["g"]
    await group.send("typing", {"who": "me"})
    await group.delete("i")


async def wait(client: Client, _here: World) -> None:
    await client.wait_connected()
    await client.wait_registered()


async def relay(client: Client, _here: World) -> None:
    """Calls without a task: one that is answered, one that is given up."""
    answers: list[Json] = []
    ended = trio.Event()

    def on_end(call: PendingCall) -> None:
        answers.append(call.result)
        ended.set()

    await client.relay.wait_ready()
    assert (await client.relay.identified()).registered is not None
    assert client.relay.begin("a::echo", Json(b"1"), on_end) is not None
    silent = client.relay.begin("a::silent", Json(b"1"), on_end)
    assert silent is not None
    silent.give_up("caller_cancelled")
    await ended.wait()
    assert answers == [Json(b"1")]


async def reconnect(client: Client, here: World) -> None:
    """The connection is lost twice, once with the engine out of reach; who waits for it goes on with the next one."""
    here.lose(client)
    await trio.sleep(0.01)  # until it has heard of that
    await client.wait_connected()
    here.unreachable = True
    try:
        here.lose(client)
        await trio.sleep(0.01)
        with trio.move_on_after(0.5):
            await client.wait_connected()
    finally:
        here.unreachable = False
    await client.wait_registered()
    assert await client.call("a::echo", 1) == 1


WITH_A_CLIENT = [call, send, enqueue, publish, state, stream, wait, relay, reconnect]


def sweep_client(subject: Callable[[Client, World], Awaitable[None]], stride: int) -> int:
    async def once(cancel: CancelAtStep) -> None:
        async with world() as here, here.client() as client:
            await client.call("a::echo", 0)
            await trio.sleep(LATER_S)
            before, tasks = here.holds(), task_tree()
            await cancel.run(partial(subject, client, here))
            await trio.sleep(LATER_S)
            # the client is as good as it was
            statistics = client.statistics().session
            assert statistics is not None
            assert (statistics.calls.pending, statistics.handlers.running) == (0, 0)
            assert client.connection_state == "connected"
            assert await client.call("a::echo", "still here") == "still here"
            await trio.sleep(LATER_S)
            assert here.holds() == before
            assert task_tree() == tasks

    return sweep(once, stride)


# -- coroutines that make a client, and end it ------------------------------------------------------------------------


async def connecting(here: World) -> None:
    async with here.client() as client:
        assert await client.call("a::echo", 1) == 1


async def in_vain(here: World) -> None:
    here.unreachable = True
    try:
        with suppress(NotConnected):
            async with open_client(open_stream=here.open_stream, reconnect=Reconnect(max_retries=1)):
                raise AssertionError("there is no engine")
    finally:
        here.unreachable = False


async def responding(here: World) -> None:
    """A handler that streams its response, and a reader, each with a connection of its own."""
    worker = Worker("responder")

    @worker.function("respond")
    async def respond(request: HttpRequest) -> None:
        async with await request.respond(202, {"x-a": "b"}) as response:
            await response.send_all(b"body")

    async with here.client() as client, worker.connect(open_stream=here.open_stream):
        send, receive = await client.open_channel()
        async with receive, trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "respond", {"method": "GET", "response": send.ref})
            assert [data async for data in receive][-1] == b"body"


class Types:
    """A trigger type that takes its time."""

    async def bind(self, binding: Binding) -> None:
        await trio.sleep(0.1)

    async def unbind(self, binding_id: str) -> None:
        await trio.sleep(0.1)


def busy_worker() -> Worker:
    worker = Worker("busy")

    @worker.function("busy::sleep")
    async def sleep(seconds: float, *, client: Client) -> Any:
        await trio.sleep(seconds)
        return await client.call("a::echo", seconds)

    worker.provide("bell", Types())
    return worker


async def serving(here: World) -> None:
    """A worker that is started, serves, provides a trigger type, and is stopped."""
    async with trio.open_nursery() as nursery:
        client = await nursery.start(
            partial(busy_worker().run, reconnect=SOON, open_stream=here.open_stream), name="worker"
        )
        binding = client.add_trigger("a::echo", Trigger(trigger_type="bell", config={}))
        answered = await here.neighbour.ask("busy::sleep", 0.2)
        assert answered["result"] == 0.2
        here.neighbour.call("busy::sleep", 0.2, action={"type": "void"})
        client.remove_trigger(binding)
        await trio.sleep(0.15)
        nursery.cancel_scope.cancel()


async def draining(here: World) -> None:
    """A handler ends in time, another one is cancelled, and the connection is closed."""
    async with busy_worker().connect(open_stream=here.open_stream) as client:
        for seconds in (0.5, 60):
            here.neighbour.call("busy::sleep", seconds, action={"type": "void"})
        await here.neighbour.settled()
        await trio.sleep(0.1)
        await client.drain(1)
        await client.aclose()


WITHOUT_A_CLIENT = [connecting, in_vain, responding, serving, draining]


def sweep_world(subject: Callable[[World], Awaitable[None]], stride: int) -> int:
    async def once(cancel: CancelAtStep) -> None:
        async with world() as here:
            before, tasks = here.holds(), task_tree()
            await cancel.run(partial(subject, here))
            await trio.sleep(LATER_S)
            assert here.holds() == before
            assert task_tree() == tasks
            # who comes next under the same names finds them free
            async with here.client() as client, busy_worker().connect(open_stream=here.open_stream):
                assert await client.call("busy::sleep", 0) == 0

    return sweep(once, stride)


STRIDES = [7, pytest.param(1, marks=pytest.mark.long)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("subject", WITH_A_CLIENT)
def test_a_client_is_as_good_as_before(subject: Callable[[Client, World], Awaitable[None]], stride: int) -> None:
    assert sweep_client(subject, stride) >= 2


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("subject", WITHOUT_A_CLIENT)
def test_nothing_is_left_of_a_client(subject: Callable[[World], Awaitable[None]], stride: int) -> None:
    assert sweep_world(subject, stride) >= 2


def test_the_sweep_finds_what_is_left_behind() -> None:
    async def leaky(client: Client, here: World) -> None:
        here.core.local.register("m::left", lambda _call, data: None)  # type: ignore[arg-type,return-value]
        await client.call("a::echo")
        here.core.local.unregister("m::left")

    with pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
        sweep_client(leaky, 1)


SUBJECTS: dict[str, tuple[str, ...]] = {
    "call": ("client.Client.call", "session.Session.wait_room", "supervisor.Supervisor.session"),
    "send": ("client.Client.send",),
    "enqueue": ("client.Client.enqueue",),
    "publish": ("client.Client.publish",),
    "state": (
        *(f"builtins.Scope.{name}" for name in ("get", "set", "update", "delete", "list", "items")),
        "builtins.State.scopes",
    ),
    "stream": (
        *(f"builtins.Group.{name}" for name in ("get", "set", "update", "delete", "list", "send")),
        "builtins.Stream.groups",
    ),
    "wait": ("client.Client.wait_connected", "client.Client.wait_registered", "supervisor.Supervisor.wait_registered"),
    "relay": ("relay.Relay.wait_ready", "relay.Relay.identified"),
    "reconnect": ("supervisor.Supervisor.run", "dial.dial", "session.Session.run"),
    "connecting": ("connect.connected", "session.Barrier.wait"),
    "responding": ("models.HttpRequest.respond",),
    "serving": (
        *("worker.Worker.run", "handlers.Handlers.run", "providers.Bindings.run"),
        *("providers.TriggerProvider.bind", "providers.TriggerProvider.unbind"),
    ),
    "draining": (
        "client.Client.drain",
        "client.Client.aclose",
        "handlers.Handlers.wait_idle",
        "supervisor.Supervisor.stop",
    ),
}
ELSEWHERE = ("channels.", "client.Client.open_channel")
"""Swept in tests/unit/sdk/test_sdk_channels_cancellation.py, with a worker at either end."""


def test_no_public_coroutine_of_the_sdk_is_left_out() -> None:
    assert SUBJECTS.keys() <= {subject.__name__ for subject in (*WITH_A_CLIENT, *WITHOUT_A_CLIENT)}
    named = {name for names in SUBJECTS.values() for name in names}
    assert {name for name in public_coroutines(iii_trio.sdk) if not name.startswith(ELSEWHERE)} == named
