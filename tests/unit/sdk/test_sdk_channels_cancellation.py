"""Promise P8 for channels: cancelled at any step, both ends leave no channel, no socket and no task behind."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from iii_trio import Client, open_client
from iii_trio.engine import Engine, Listener, open_engine
from iii_trio.protocol.errors import WireError

MOST_STEPS = 600
Subject = Callable[[Client, Client], Awaitable[None]]


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


async def bytes_across(one: Client, other: Client) -> None:
    """Bytes from one worker to another, through a queue of one, to the end."""
    send, receive = await one.open_channel(buffer=1)
    theirs = other.channels.receiver(receive.ref)
    got: list[bytes] = []

    async def read() -> None:
        async with theirs:
            got.extend([data async for data in theirs])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        async with send:
            await send.send_all(b"x" * 200_000)
            await send.send("text")
    assert sum(map(len, got)) == 200_000


async def early_leave(one: Client, _other: Client) -> None:
    """A reader that leaves, and a writer that finds out."""
    send, receive = await one.open_channel()
    async with send, receive:
        await send.send("one")
        assert await receive.receive() == "one"
        await receive.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await keep_on(send.send)
    await send.aclose()


async def keep_on(send: Callable[[str], Awaitable[None]]) -> None:
    """Send until that fails."""
    while True:
        await send("x")
        await trio.sleep(1)


async def never_used(one: Client, _other: Client) -> None:
    """Both ends closed without ever having been used."""
    send, receive = await one.open_channel()
    async with receive:
        await send.aclose()


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("subject", [bytes_across, early_leave, never_used])
def test_nothing_stays_whenever_a_stream_is_cancelled(subject: Subject, stride: int) -> None:
    async def once(cancel: CancelAtStep) -> bool:
        core: Engine
        async with open_engine() as core, trio.open_nursery() as nursery:
            listener = Listener(core=core)

            async def open_stream() -> trio.abc.Stream:
                ours, theirs = trio.testing.memory_stream_pair()
                nursery.start_soon(listener.handle, theirs, name="socket")
                return ours

            clients = [open_client(open_stream=open_stream, name=name) for name in ("one", "other")]
            async with clients[0] as one, clients[1] as other:
                await trio.testing.wait_all_tasks_blocked()
                before, ends = tree(), listener.statistics()
                with cancel.scope:
                    cancel.armed = True
                    await subject(one, other)
                cancel.armed = False
                await trio.sleep(400)  # the graces of closing, and the time after which unused channels expire
                where = f"cancelled at step {cancel.at}"
                channels = core.channels.statistics()
                assert (channels.open, channels.waiting, channels.bytes) == (0, 0, 0), where
                assert listener.statistics() == ends, where
                assert tree() == before, where
                assert one.connection_state == other.connection_state == "connected", where
                with pytest.raises(WireError, match="function_not_found"):
                    await one.call("nobody::is::this")
            nursery.cancel_scope.cancel()
        return cancel.scope.cancelled_caught

    for at in range(1, MOST_STEPS, stride):
        cancel = CancelAtStep(at)
        cancelled = trio.run(once, cancel, clock=MockClock(autojump_threshold=0), instruments=[cancel])
        if not cancelled and cancel.steps < at:
            assert at > 50, "it takes more steps than that"
            return
    raise AssertionError(f"it takes more than {MOST_STEPS} steps")
