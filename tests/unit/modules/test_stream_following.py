"""Nobody who follows a stream ends on a stale value: joins amid writes, slow readers, and both in any order."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from module_harness import ask
from stream_harness import Client, Follower, address, stream

from iii_trio.config import StreamSettings
from iii_trio.config.structuring import structure
from iii_trio.engine import Call, LocalPeer
from iii_trio.protocol import Json
from iii_trio.protocol.limits import STREAM_BACKLOG_BYTES, STREAM_OUTBOX
from iii_trio.stores import Fsync, Store, open_memory, open_sqlite

LATEST_TICK = 40
LARGE = "x" * 50_000
FEW = structure(StreamSettings, {"adapter": {"config": {"channel_size": 5}}}, summary="").settings
"""Settings under which five events wait for a subscriber."""


@asynccontextmanager
async def memory(directory: Path) -> AsyncIterator[Store]:
    async with open_memory() as store:
        yield store


@asynccontextmanager
async def inline(directory: Path) -> AsyncIterator[Store]:
    async with open_sqlite(directory / "store.db", fsync=Fsync.NEVER, inline=True) as store:
        yield store


@asynccontextmanager
async def threads(directory: Path) -> AsyncIterator[Store]:
    async with open_sqlite(directory / "store.db", fsync=Fsync.NEVER) as store:
        yield store


Opener = Callable[[Path], AbstractAsyncContextManager[Store]]


async def count_up(user: LocalPeer) -> int:
    ops = [{"type": "increment", "path": "n", "by": 1}]
    return int((await ask(user, "stream::update", {**address(), "ops": ops}))["new_value"]["n"])


def number_of(data: Any) -> int:
    """The counter in the data of an item or of a group."""
    value = data[0] if isinstance(data, list) and data else data
    return int(value["n"]) if value else 0


@pytest.mark.parametrize("opener", [memory, inline])
@pytest.mark.parametrize("item", [None, "i"])
async def test_a_join_at_any_moment_misses_nothing_and_repeats_nothing(
    opener: Opener, item: str | None, tmp_path: Path
) -> None:
    """The writes begin at every tick of the join; whatever is in its `sync`, the events go on exactly behind it."""
    shown: set[int] = set()
    async with opener(tmp_path) as store, stream(store) as (_, user, port):
        for tick in range(LATEST_TICK):
            client = await port.connect()
            first = await count_up(user)

            async def write(tick: int) -> None:
                for _ in range(tick):
                    await trio.lowlevel.checkpoint()
                async with trio.open_nursery() as writes:
                    for _ in range(3):
                        writes.start_soon(count_up, user)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, tick)
                client.send("join", item=item)
            last = await count_up(user)
            message = await client.next()
            assert message["event"]["type"] == "sync"
            at = number_of(message["event"]["data"])
            shown.add(at - first)
            stamps = [message["timestamp"]]
            while at < last:
                message = await client.next()
                stamps.append(message["timestamp"])
                at += 1
                assert message["event"] == {"type": "update", "data": {"n": at}}
            assert stamps == sorted(set(stamps))
            await client.close()
            assert not client.messages
    assert min(shown) == 0, "no write came behind a sync"
    assert max(shown) >= 3, "no write came before a sync"


async def test_joins_amid_writes_with_threads_below(tmp_path: Path) -> None:
    """As above, where the store's threads decide when an answer comes."""
    async with threads(tmp_path) as store, stream(store) as (_, user, port):
        stop = False

        async def write() -> None:
            while not stop:
                await count_up(user)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(write)
            for turn in range(60):
                client = await port.connect()
                at = number_of(await client.join(item="i" if turn % 2 else None))
                for _ in range(3):
                    at += 1
                    assert (await client.event())[2] == {"n": at}
                await client.close()
            stop = True


async def test_a_snapshot_that_takes_long_to_read_is_in_line_with_the_writes(tmp_path: Path) -> None:
    """A write that comes while a large group is being read would be on disk, and told, long before its snapshot."""
    async with threads(tmp_path) as store, stream(store) as (_, user, port):
        await count_up(user)
        async with trio.open_nursery() as nursery:
            for number in range(3_000):
                nursery.start_soon(put, user, str(number), 0)
        for _ in range(3):
            client = await port.connect()
            client.send("join")
            while port.module.statistics().hub.subscriptions == 0:  # type: ignore[union-attr]
                await trio.lowlevel.checkpoint()
            written = await count_up(user)
            message = await client.next()
            assert message["event"]["type"] == "sync"
            at = number_of(message["event"]["data"])
            while at < written:
                at += 1
                assert (await client.event())[2] == {"n": at}
            await client.close()


async def put(user: LocalPeer, item: str, value: Any, group: str = "g") -> None:
    await ask(user, "stream::set", {**address(item, group), "data": {"id": item, "v": value}})


async def wave(user: LocalPeer) -> None:
    await ask(user, "stream::send", {**address(None), "type": "wave", "data": None})


async def follow(client: Client, follower: Follower, marker: str) -> None:
    """Take what comes until the item `marker` is known."""
    while marker not in follower.values:
        follower.take(await client.next())


async def test_a_reader_that_stalls_holds_up_nobody_and_gets_up_to_date() -> None:
    async with stream() as (_, user, port):
        stalled, quick = await port.connect(tight=True), await port.connect()
        for client in (stalled, quick):
            assert await client.join() == []
        stalled.connection.pause_reading()
        for number in range(100):
            await put(user, f"{number % 7}", LARGE + str(number))
            await wave(user)
        await ask(user, "stream::delete", address("3"))
        fast = Follower()
        for _ in range(201):
            fast.take(await quick.next())
        assert (fast.sends, len(fast.values)) == (100, 6)
        picture = port.module.statistics().hub
        assert picture is not None
        assert picture.dropped > 0
        [lagging] = [one for one in port.module._parts.hub._subscribers if one._backlog or one._stale]  # type: ignore[union-attr]
        assert lagging.statistics().backlog_bytes <= STREAM_BACKLOG_BYTES
        assert lagging.sink.pending_bytes < STREAM_OUTBOX + 2 * len(LARGE)  # type: ignore[attr-defined]
        stalled.connection.resume_reading()
        await put(user, "end", 1)
        slow = Follower()
        await follow(stalled, slow, "end")
        await trio.testing.wait_all_tasks_blocked()
        for message in stalled.messages:
            slow.take(message)
        await follow(quick, fast, "end")
        assert slow.values == fast.values
        assert slow.stamps == sorted(set(slow.stamps))
        assert slow.dropped > 0
        assert slow.sends + slow.dropped == 100, "who missed custom events is told how many"
        await put(user, "after", 2)
        await follow(stalled, slow, "after")


async def test_a_stalled_reader_with_few_small_events_is_bounded_by_their_number() -> None:
    async with stream() as (_, user, port):
        port.module.settings.set(FEW)
        client = await port.connect(tight=True)
        await client.join()
        client.connection.pause_reading()
        await put(user, "large", "x" * 2 * STREAM_OUTBOX)
        for number in range(5):
            await put(user, "small", number)
        [lagging] = port.module._parts.hub._subscribers  # type: ignore[union-attr]
        before = lagging.statistics().backlog
        await put(user, "small", "one more")
        after = lagging.statistics()
        assert before <= 5
        assert after.backlog <= 5
        client.connection.resume_reading()
        follower = Follower()
        await put(user, "end", 1)
        await follow(client, follower, "end")
        assert follower.values["small"]["v"] == "one more"


async def test_a_reader_that_takes_nothing_for_long_is_ended(autojump_clock: trio.testing.MockClock) -> None:
    async with stream() as (_, user, port):
        client = await port.connect(tight=True)
        await client.join()
        client.connection.pause_reading()
        for number in range(20):
            await put(user, str(number), LARGE)
        await trio.sleep(40)
        assert port.module.statistics().hub.subscribers == 0  # type: ignore[union-attr]


def provide(user: LocalPeer) -> None:
    """A worker that keeps stream s in a dict; between an answer and its arrival anything may happen."""
    kept: dict[str, Any] = {}

    def operation(change: Callable[[Any], Any]) -> Callable[[Call, Json], Any]:
        async def handle(call: Call, data: Json) -> Json:
            await trio.lowlevel.checkpoint()
            answer = Json.of(change(data.decode()))
            await trio.lowlevel.checkpoint()
            return answer

        return handle

    def replace(payload: Any) -> Any:
        old, kept[payload["item_id"]] = kept.get(payload["item_id"]), payload["data"]
        return {"old_value": old, "new_value": payload["data"]}

    changes: dict[str, Callable[[Any], Any]] = {
        "get": lambda payload: kept.get(payload["item_id"]),
        "set": replace,
        "delete": lambda payload: {"old_value": kept.pop(payload["item_id"], None)},
        "list": lambda payload: list(kept.values()),
    }
    for name, change in changes.items():
        user.register(f"stream::{name}(s)", operation(change), task=True)


CLIENTS = st.integers(0, 2)
ITEMS = st.sampled_from("abc")
COMMANDS = st.one_of(
    st.tuples(st.just("put"), ITEMS, st.booleans()),
    st.tuples(st.just("update"), ITEMS),
    st.tuples(st.just("delete"), ITEMS),
    st.tuples(st.just("wave")),
    st.tuples(st.just("join"), CLIENTS, st.one_of(st.none(), ITEMS)),
    st.tuples(st.just("leave"), CLIENTS),
    st.tuples(st.just("stall"), CLIENTS),
    st.tuples(st.just("resume"), CLIENTS),
    st.tuples(st.just("hang up"), CLIENTS),
    st.tuples(st.just("settle")),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=st.lists(COMMANDS, max_size=40), provided=st.booleans())
async def test_whatever_happens_followers_end_with_what_is_stored(
    monkeypatch: pytest.MonkeyPatch, commands: list[Any], provided: bool
) -> None:
    """Writes against a dict, subscribers against the rules of official clients, in any order and without waiting.

    With `provided` a worker keeps the data, and takes its time.
    """
    monkeypatch.setattr("iii_trio.modules.stream.sockets.STREAM_OUTBOX", 1_000)
    model: dict[str, Any] = {}
    number = 0
    async with stream() as (_, user, port):
        port.module.settings.set(FEW)
        if provided:
            provide(user)
        clients = [await port.connect(tight=True) for _ in range(3)]
        followers = [Follower() for _ in range(3)]
        joined = [False] * 3
        for command, *details in commands:
            number += 1
            if command == "put":
                item, large = details
                value = {"id": item, "v": "x" * 2_000 * large + str(number)}
                result = await ask(user, "stream::set", {**address(item), "data": value})
                assert result == {"old_value": model.get(item), "new_value": value}
                model[item] = value
            elif command == "update":
                [item] = details
                ops = [{"type": "merge", "value": {"id": item, "u": number}}]
                result = await ask(user, "stream::update", {**address(item), "ops": ops})
                value = {**model.get(item, {}), "id": item, "u": number}
                assert result == {"old_value": model.get(item), "new_value": value}
                model[item] = value
            elif command == "delete":
                [item] = details
                assert await ask(user, "stream::delete", address(item)) == {"old_value": model.pop(item, None)}
            elif command == "wave":
                await wave(user)
            elif command == "settle":
                await trio.testing.wait_all_tasks_blocked()
            else:
                which = details[0]
                client = clients[which]
                if command == "join":
                    item = details[1]
                    if item is None:
                        client.send("join", "group")
                        joined[which] = True
                    else:
                        client.send("join", "item", item)
                elif command == "leave":
                    client.send("leave", "group")
                    joined[which] = False
                elif command == "stall":
                    client.connection.pause_reading()
                elif command == "resume":
                    client.connection.resume_reading()
                else:
                    client.connection.abort()
                    clients[which], followers[which], joined[which] = await port.connect(tight=True), Follower(), False
        for client, follower, is_in in zip(clients, followers, joined, strict=True):
            client.connection.resume_reading()
            await trio.testing.wait_all_tasks_blocked()
            for message in client.messages:
                if message["groupId"] == "g":
                    follower.take(message)
            assert provided or follower.stamps == sorted(set(follower.stamps))
            if is_in:
                assert follower.values == model
        assert await ask(user, "stream::list", address(None)) == list(model.values())
        hub = port.module.statistics().hub
        assert hub is not None
        assert hub.subscribers == 3
        for client in clients:  # a cancelled server would wait for them to read its farewell
            client.connection.abort()
            await client.end()
