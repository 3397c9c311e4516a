"""Ends of channels that come with a payload or a result: however that goes wrong, who holds the other end is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from iii_trio import ChannelReceiver, ChannelSender, Client, HttpRequest, InvocationError, Worker, open_client
from iii_trio.engine import Engine, Listener, open_engine
from iii_trio.sdk import InvalidResult


@attrs.define
class Job:
    """What the handlers get."""

    first: ChannelSender
    second: ChannelSender
    number: int = 0


@asynccontextmanager
async def connected(worker: Worker) -> AsyncIterator[tuple[Engine, Client]]:
    async with open_engine() as core, trio.open_nursery() as nursery:
        listener = Listener(core=core)

        async def open_stream() -> trio.abc.Stream:
            ours, theirs = trio.testing.lockstep_stream_pair()
            nursery.start_soon(listener.handle, theirs)
            return ours

        async with worker.connect(open_stream=open_stream), open_client(open_stream=open_stream) as client:
            yield core, client
            await trio.sleep(10)
            assert core.channels.statistics().open == 0
        nursery.cancel_scope.cancel()


async def cut_off(end: ChannelReceiver) -> None:
    """The end is told, long before the channel would expire, that what came is not everything."""
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
        await end.receive_all(100_000_000)
    await end.aclose()


async def test_a_payload_that_does_not_fit_aborts_the_ends_in_it(autojump_clock: trio.testing.MockClock) -> None:
    worker = Worker("ends")

    @worker.function("f")
    async def f(job: Job) -> None:
        """Never runs."""

    async with connected(worker) as (_, client):
        (one, first), (two, second) = await client.open_channel(), await client.open_channel()
        with pytest.raises(InvocationError, match="INVALID_INPUT"):
            await client.call("f", {"first": one.ref, "second": two.ref, "number": "none"})
        await cut_off(first)
        await cut_off(second)


async def test_a_result_that_does_not_fit_aborts_the_ends_in_it(autojump_clock: trio.testing.MockClock) -> None:
    worker = Worker("ends")
    kept: list[ChannelReceiver] = []

    @worker.function("f")
    async def f(*, client: Client) -> object:
        (one, first), (two, second) = await client.open_channel(), await client.open_channel()
        kept.extend((first, second))
        return {"first": one.ref, "second": two.ref, "number": "none"}

    async with connected(worker) as (_, client):
        with pytest.raises(InvalidResult):
            await client.call("f", into=Job)
        for end in kept:
            await cut_off(end)


async def test_a_handler_cancelled_while_its_ends_close_leaves_none_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    worker = Worker("ends")

    @worker.function("f")
    async def f(job: Job) -> None:
        await job.second.send_all(b"y")
        with trio.move_on_after(1):
            while True:  # more than there is room for: closing has to wait for a reader
                await job.first.send_all(b"x" * 65_536)

    async with connected(worker) as (_, client):
        (one, first), (two, second) = await client.open_channel(1), await client.open_channel(1)
        with trio.move_on_after(5):
            await client.call("f", {"first": one.ref, "second": two.ref})
        await cut_off(second)
        await cut_off(first)


@attrs.frozen
class Wanted:
    count: int


@attrs.frozen(kw_only=True)
class NumbersRequest(HttpRequest):
    """A request whose parameters have types."""

    query_params: Wanted  # type: ignore[assignment]


async def test_a_request_class_of_ones_own_has_the_channels_too(autojump_clock: trio.testing.MockClock) -> None:
    worker = Worker("ends")

    @worker.function("f")
    async def f(request: NumbersRequest) -> None:
        await request.response.send_all(bytes(request.query_params.count))

    async with connected(worker) as (_, client):
        response, read = await client.open_channel()
        assert await client.call("f", {"query_params": {"count": "3"}, "response": response.ref}) is None
        async with read:
            assert await read.receive_all(10) == bytes(3)


async def test_an_unused_end_whose_close_is_cancelled_while_it_connects_is_no_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with connected(Worker("ends")) as (_, client):
        one, first = await client.open_channel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.aclose)
            await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await cut_off(first)
