"""Promise P8 for channels: cancelled at any step, both ends leave no channel, no socket and no task behind."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from iii_trio import Client, open_client
from iii_trio.engine import Engine, Listener, open_engine
from iii_trio.protocol.errors import WireError
from iii_trio.testing import CancelAtStep, sweep, task_tree

Subject = Callable[[Client, Client], Awaitable[None]]


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
    async def once(cancel: CancelAtStep) -> None:
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
                before, ends = task_tree(), listener.statistics()
                await cancel.run(partial(subject, one, other))
                await trio.sleep(400)  # the graces of closing, and the time after which unused channels expire
                channels = core.channels.statistics()
                assert (channels.open, channels.waiting, channels.bytes) == (0, 0, 0)
                assert listener.statistics() == ends
                assert task_tree() == before
                assert one.connection_state == other.connection_state == "connected"
                with pytest.raises(WireError, match="function_not_found"):
                    await one.call("nobody::is::this")
            nursery.cancel_scope.cancel()

    assert sweep(once, stride) * stride > 50, "it takes more steps than that"
