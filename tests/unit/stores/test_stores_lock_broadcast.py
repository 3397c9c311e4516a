"""Conformance of `Lock` and `Broadcast` as `open_memory` makes them."""

from collections.abc import AsyncIterator

import pytest
import trio

from iii_trio.stores import Broadcast, Lease, Lock, MemoryStore, open_memory, settle


class Wall:
    """A wall clock that the test moves."""

    def __init__(self) -> None:
        self.now_ms = 1_718_900_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def memory(wall: Wall) -> AsyncIterator[MemoryStore]:
    async with open_memory(wall_ms=wall) as store:
        yield store


async def acquire(lock: Lock, owner: str, key: str = "daily", ttl_ms: int = 1000) -> Lease | None:
    return await settle(lambda done: lock.acquire("cron", key, owner, ttl_ms, done))


async def release(lock: Lock, owner: str, key: str = "daily") -> bool:
    return await settle(lambda done: lock.release("cron", key, owner, done))


async def test_one_owner_at_a_time(memory: MemoryStore, wall: Wall) -> None:
    lock = memory.lock()
    lease = await acquire(lock, "a")
    assert lease is not None
    assert (lease.owner, lease.expires_at_ms) == ("a", wall.now_ms + 1000)
    assert await acquire(lock, "b") is None
    assert await acquire(lock, "b", key="hourly") is not None
    assert lock.statistics().held == 2


async def test_the_holder_renews_and_keeps_its_token(memory: MemoryStore, wall: Wall) -> None:
    lock = memory.lock()
    first = await acquire(lock, "a")
    wall.now_ms += 600
    second = await acquire(lock, "a")
    assert first is not None
    assert second == Lease("a", first.token, wall.now_ms + 1000)
    wall.now_ms += 600
    assert await acquire(lock, "b") is None


async def test_an_expired_lock_is_free_and_the_next_token_is_larger(memory: MemoryStore, wall: Wall) -> None:
    lock = memory.lock()
    first = await acquire(lock, "a")
    wall.now_ms += 1000
    assert lock.statistics().held == 0
    second = await acquire(lock, "b")
    assert first is not None
    assert second is not None
    assert second.token > first.token
    assert not await release(lock, "a")
    assert await acquire(lock, "a") is None


async def test_an_owner_that_lost_its_lease_gets_a_new_token(memory: MemoryStore, wall: Wall) -> None:
    lock = memory.lock()
    first = await acquire(lock, "a")
    wall.now_ms += 1000
    second = await acquire(lock, "a")
    assert first is not None
    assert second is not None
    assert second.token > first.token


async def test_only_the_owner_releases(memory: MemoryStore) -> None:
    lock = memory.lock()
    await acquire(lock, "a")
    assert not await release(lock, "b")
    assert await release(lock, "a")
    assert not await release(lock, "a")
    assert await acquire(lock, "b") is not None


async def test_releasing_an_expired_lease_says_that_it_was_lost(memory: MemoryStore, wall: Wall) -> None:
    lock = memory.lock()
    await acquire(lock, "a")
    wall.now_ms += 5000
    assert not await release(lock, "a")


async def test_tokens_grow_over_a_restart(wall: Wall) -> None:
    tokens = []
    for _ in range(3):
        async with open_memory(wall_ms=wall) as store:
            lease = await acquire(store.lock(), "a")
            assert lease is not None
            tokens.append(lease.token)
        wall.now_ms += 1
    assert tokens == sorted(set(tokens))


async def test_expired_leases_do_not_pile_up(memory: MemoryStore, wall: Wall) -> None:
    lock = memory.lock()
    for number in range(3000):
        lock.acquire("cron", str(number), "a", 10, lambda _: None)
        if number % 500 == 0:
            wall.now_ms += 10
            await acquire(lock, "a", key=f"turn {number}")
    assert len(lock._leases) < 2100


async def test_everyone_hears_everything_in_one_order(memory: MemoryStore) -> None:
    broadcast: Broadcast = memory.broadcast()
    heard: dict[str, list[bytes]] = {"a": [], "b": []}
    subscriptions = [broadcast.subscribe("t", heard[name].append) for name in heard]
    other: list[bytes] = []
    broadcast.subscribe("other", other.append)
    assert broadcast.statistics().subscribers == 3
    for number in range(100):
        broadcast.publish("t", b"%d" % number, lambda _: None)
    reached: int = await settle(lambda done: broadcast.publish("t", b"last", done))
    assert reached == 2
    expected = [*(b"%d" % number for number in range(100)), b"last"]
    assert heard == {"a": expected, "b": expected}
    assert other == []
    for subscription in subscriptions:
        subscription.close()
        subscription.close()
    reached = await settle(lambda done: broadcast.publish("t", b"nobody", done))
    assert reached == 0
    statistics = broadcast.statistics()
    assert (statistics.topics, statistics.subscribers, statistics.published) == (1, 1, 102)


async def test_a_subscriber_hears_only_what_is_published_while_it_is_there(memory: MemoryStore) -> None:
    broadcast = memory.broadcast()
    early: list[bytes] = []
    late: list[bytes] = []
    subscription = broadcast.subscribe("t", early.append)
    broadcast.publish("t", b"1", lambda _: None)
    broadcast.subscribe("t", late.append)
    broadcast.publish("t", b"2", lambda _: None)
    subscription.close()
    reached: int = await settle(lambda done: broadcast.publish("t", b"3", done))
    assert reached == 1
    assert early == []
    assert late == [b"2", b"3"]


async def test_a_message_may_lead_to_the_next(memory: MemoryStore) -> None:
    broadcast = memory.broadcast()
    heard: list[bytes] = []
    done = trio.Event()

    def echo(payload: bytes) -> None:
        heard.append(payload)
        if len(heard) < 5:
            broadcast.publish("t", payload + b"!", lambda _: None)
        else:
            done.set()

    broadcast.subscribe("t", echo)
    broadcast.publish("t", b"hello", lambda _: None)
    with trio.fail_after(5):
        await done.wait()
    assert heard[-1] == b"hello!!!!"
