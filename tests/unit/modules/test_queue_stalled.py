"""Workers that share a function: one that stops reading its socket takes no messages from the others' hands."""

from typing import Any

import trio
import trio.testing
from queue_harness import open_world
from trio.testing import MockClock

from iii_trio.engine import Outcome
from iii_trio.protocol import Json
from iii_trio.protocol.limits import OUTBOX_BUSY, STALL_S
from iii_trio.testing.raw import RawPort, RawWorker
from iii_trio.transport import Connection, Framing, Request

MESSAGES = 20


async def join(port: RawPort, nursery: trio.Nursery, name: str) -> RawWorker:
    """A worker that serves `f` with others; its stream takes no byte that it does not read."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    nursery.start_soon(port.listener.serve, theirs, Request("GET", "/", "", []), Framing())
    worker = RawWorker(Connection(ours, Framing(client=True)))
    await nursery.start(worker.run)
    await port.greeted(worker, name=name)
    worker.register("f", metadata={"iii.shared": True})
    await worker.settled()
    return worker


async def test_a_worker_that_stops_reading_leaves_the_messages_to_those_who_share_with_it(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        large = Json(b'"%s"' % (b"x" * (OUTBOX_BUSY // 2)))
        port = RawPort(world.core, nursery)
        stalled, reader = await join(port, nursery, "stalled"), await join(port, nursery, "reader")
        handled: list[Any] = []

        async def serve() -> None:
            while True:
                call = await reader.next("invokefunction")
                handled.append(call["data"])
                reader.answer(call, result=None)

        nursery.start_soon(serve)
        world.user.register("large", lambda _call, _data: Outcome(large))
        stalled.connection.pause_reading()
        for _ in range(3):
            stalled.call("large")
        await trio.testing.wait_all_tasks_blocked()
        entry = world.core.functions.get("default", "f")
        assert entry is not None
        assert entry.owner.behind, "the test means the one that stands for all"
        began = trio.current_time()
        for number in range(MESSAGES):
            await world.enqueue("default", "f", number)
        await trio.testing.wait_all_tasks_blocked()
        assert handled == list(range(MESSAGES))
        assert trio.current_time() - began < STALL_S / 10
        nursery.cancel_scope.cancel()
