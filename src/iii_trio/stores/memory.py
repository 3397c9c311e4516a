"""All four stores in memory: what tests and `store_method: in_memory` use, and what locks and broadcasts always use.

Nothing outlives the block. Operations are carried out by the store's own task at its next turn, in order, and answered
then: never inside the submitting call, so that code behaves as it does with a disk below.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from heapq import heapify, heappop, heappush
from itertools import islice
from time import time_ns

import trio
from attrs import define, field

from ..protocol.limits import STORE_BYTES, STORE_OPS
from .desk import FLUSH_S, Desk, Submission, carry_out
from .handles import JobLogHandle, KeyValueHandle
from .interfaces import BroadcastStatistics, Lease, LockStatistics, StoreStatistics
from .key_value import Change, Updated
from .memory_jobs import MemoryJobTable
from .results import A, Done, OnDone, Result, T
from .tables import Tables

STALE_TIMES = 1024
"""Times of keys that hold no longer, kept before they are cleared away."""


def _now_ms() -> int:
    return time_ns() // 1_000_000


@define(eq=False)
class _Space:
    """The keys of one space: value and time (Unix ms or None) by scope and key, and a heap of the times."""

    scopes: dict[str, dict[str, tuple[bytes, int | None]]] = field(factory=dict)
    timed: dict[tuple[str, str], int] = field(factory=dict)
    heap: list[tuple[int, str, str]] = field(factory=list)

    def time(self, scope: str, key: str, expires_at_ms: int | None) -> None:
        """Note when the time of a key is up. Times that are out of date stay in the heap until they are many."""
        if expires_at_ms is None:
            self.timed.pop((scope, key), None)
            return
        if self.timed.get((scope, key)) == expires_at_ms:
            return
        self.timed[scope, key] = expires_at_ms
        heappush(self.heap, (expires_at_ms, scope, key))
        if len(self.heap) > 2 * len(self.timed) + STALE_TIMES:
            self.heap = [(due_ms, *place) for place, due_ms in self.timed.items()]
            heapify(self.heap)

    def first(self) -> tuple[int, str, str] | None:
        """The key that is due first, and when."""
        while self.heap and self.timed.get(self.heap[0][1:]) != self.heap[0][0]:
            heappop(self.heap)
        return self.heap[0] if self.heap else None


def _alive(expires_at_ms: int | None, now_ms: int) -> bool:
    return expires_at_ms is None or expires_at_ms > now_ms


@define(eq=False)
class MemoryKeyValueTable:
    """`KeyValueTable` in dicts, which keep the order of insertion."""

    _spaces: dict[str, _Space] = field(factory=dict, init=False)

    def _scope(self, space: str, scope: str) -> dict[str, tuple[bytes, int | None]]:
        found = self._spaces.get(space)
        return {} if found is None else found.scopes.get(scope, {})

    def get(self, space: str, scope: str, key: str, now_ms: int = 0) -> bytes | None:
        """See `KeyValue.get`."""
        found = self._scope(space, scope).get(key)
        return None if found is None or not _alive(found[1], now_ms) else found[0]

    def set(self, space: str, scope: str, key: str, value: bytes, expires_at_ms: int | None = None) -> bytes | None:
        """See `KeyValue.set`."""
        place = self._spaces.setdefault(space, _Space())
        keys = place.scopes.setdefault(scope, {})
        old = keys.get(key)
        keys[key] = (value, expires_at_ms)
        place.time(scope, key, expires_at_ms)
        return old and old[0]

    def delete(self, space: str, scope: str, key: str) -> bytes | None:
        """See `KeyValue.delete`."""
        place = self._spaces.get(space, _Space())
        keys = place.scopes.get(scope, {})
        old = keys.pop(key, None)
        if old is None:
            return None
        place.time(scope, key, None)
        if not keys:
            del place.scopes[scope]
            if not place.scopes:
                del self._spaces[space]
        return old[0]

    def drop(self, space: str, scope: str, key: str) -> None:
        """See `KeyValueTable.drop`."""
        self.delete(space, scope, key)

    def update(
        self,
        space: str,
        scope: str,
        key: str,
        change: Callable[[bytes | None], Change[A]],
        expires_at_ms: int | None = None,
    ) -> Updated[A]:
        """See `KeyValue.update`."""
        old, until_ms = self._scope(space, scope).get(key, (None, None))
        decided = change(old)
        if decided.write is not None:
            self.set(space, scope, key, decided.write, until_ms if expires_at_ms is None else expires_at_ms)
        return Updated(old=old, new=old if decided.write is None else decided.write, answer=decided.answer)

    def items(self, space: str, scope: str, now_ms: int = 0) -> Iterator[tuple[str, bytes]]:
        """See `KeyValueTable.items`."""
        for key, (value, expires_at_ms) in self._scope(space, scope).items():
            if _alive(expires_at_ms, now_ms):
                yield key, value

    def sorted_items(
        self, space: str, scope: str, prefix: str, after: str | None, now_ms: int
    ) -> Iterator[tuple[str, bytes]]:
        """See `KeyValueTable.sorted_items`."""
        found = self.items(space, scope, now_ms)
        yield from sorted(item for item in found if item[0].startswith(prefix) and (after is None or item[0] > after))

    def scopes(
        self, space: str, prefix: str = "", after: str | None = None, limit: int | None = None, now_ms: int = 0
    ) -> list[str]:
        """See `KeyValue.scopes`."""
        found = sorted(self._spaces.get(space, _Space()).scopes)
        wanted = (scope for scope in found if scope.startswith(prefix) and (after is None or scope > after))
        return list(islice((scope for scope in wanted if any(self.items(space, scope, now_ms))), limit))

    def due(self, space: str, now_ms: int, limit: int) -> list[tuple[str, str, bytes]]:
        """See `KeyValueTable.due`."""
        place = self._spaces.get(space)
        if place is None:
            return []
        taken: list[tuple[int, str, str]] = []
        while len(taken) < limit and (first := place.first()) is not None and first[0] <= now_ms:
            heappop(place.heap)
            if first not in taken[-1:]:  # a time that was taken away and given again stands there twice
                taken.append(first)
        for time in taken:
            heappush(place.heap, time)
        return [(scope, key, place.scopes[scope][key][0]) for _, scope, key in taken]

    def next_expiry(self, space: str, after_ms: int = -1) -> int | None:
        """See `KeyValueTable.next_expiry`."""
        place = self._spaces.get(space)
        if place is None or (first := place.first()) is None:
            return None
        if first[0] > after_ms:
            return first[0]
        return min((due_ms for due_ms in place.timed.values() if due_ms > after_ms), default=None)

    def directory(self, prefix: str) -> list[tuple[str, str]]:
        """See `Store.directory`."""
        found = (space for space in self._spaces if space.startswith(prefix))
        return sorted((space, scope) for space in found for scope in self._spaces[space].scopes)


@define(eq=False)
class MemoryLock:
    """`Lock` for the tasks of one engine; `wall_ms` is Unix time in milliseconds."""

    _desk: Desk
    _wall_ms: Callable[[], int]
    _leases: dict[tuple[str, str], Lease] = field(factory=dict, init=False)
    _last_token: int = field(default=0, init=False)
    _sweep_at: int = field(default=1024, init=False)

    def acquire(self, index: str, key: str, owner: str, ttl_ms: int, on_done: OnDone[Lease | None]) -> None:
        """See `Lock.acquire`."""
        work = self._acquire
        self._submit(lambda _: work(index, key, owner, ttl_ms), on_done, (index, key, owner))

    def release(self, index: str, key: str, owner: str, on_done: OnDone[bool]) -> None:
        """See `Lock.release`."""
        work = self._release
        self._submit(lambda _: work(index, key, owner), on_done, (index, key, owner))

    def _submit(self, work: Callable[[Tables], T], on_done: OnDone[T], texts: tuple[str, ...]) -> None:
        self._desk.submit(work, on_done, lane="locks", writes=True, texts=texts)

    def _acquire(self, index: str, key: str, owner: str, ttl_ms: int) -> Lease | None:
        now = self._wall_ms()
        held = self._leases.get((index, key))
        if held is None or held.expires_at_ms <= now:
            # Counting from the wall clock keeps tokens growing over restarts, which forget the leases.
            self._last_token = max(self._last_token + 1, now)
            token = self._last_token
        elif held.owner == owner:
            token = held.token
        else:
            return None
        lease = Lease(owner=owner, token=token, expires_at_ms=now + ttl_ms)
        self._leases[index, key] = lease
        if len(self._leases) >= self._sweep_at:
            self._leases = {name: lease for name, lease in self._leases.items() if lease.expires_at_ms > now}
            self._sweep_at = max(1024, 2 * len(self._leases))
        return lease

    def _release(self, index: str, key: str, owner: str) -> bool:
        held = self._leases.get((index, key))
        if held is None or held.owner != owner:
            return False
        del self._leases[index, key]
        return held.expires_at_ms > self._wall_ms()

    def statistics(self) -> LockStatistics:
        """See `Lock.statistics`."""
        now = self._wall_ms()
        return LockStatistics(held=sum(lease.expires_at_ms > now for lease in self._leases.values()))


@define(eq=False)
class MemorySubscription:
    """One subscriber of a `MemoryBroadcast`; only that makes one."""

    on_message: Callable[[bytes], None]
    _leave: Callable[["MemorySubscription"], None]
    open: bool = field(default=True, init=False)

    def close(self) -> None:
        """See `Subscription.close`."""
        if self.open:
            self.open = False
            self._leave(self)


@define(eq=False)
class MemoryBroadcast:
    """`Broadcast` within one engine."""

    _desk: Desk
    _topics: dict[str, dict[MemorySubscription, None]] = field(factory=dict, init=False)
    _published: int = field(default=0, init=False)

    def subscribe(self, topic: str, on_message: Callable[[bytes], None]) -> MemorySubscription:
        """See `Broadcast.subscribe`."""

        def leave(subscription: MemorySubscription) -> None:
            listeners = self._topics[topic]
            del listeners[subscription]
            if not listeners:
                del self._topics[topic]

        subscription = MemorySubscription(on_message, leave)
        self._topics.setdefault(topic, {})[subscription] = None
        return subscription

    def publish(self, topic: str, payload: bytes, on_done: OnDone[int]) -> None:
        """See `Broadcast.publish`."""
        listeners = tuple(self._topics.get(topic, ()))
        self._published += 1

        def deliver(result: Result[int]) -> None:
            if isinstance(result, Done):
                for subscription in listeners:
                    if subscription.open:
                        subscription.on_message(payload)
            on_done(result)

        count = len(listeners)
        self._desk.submit(lambda _: count, deliver, lane="broadcast", writes=True, texts=(topic,), blobs=(payload,))

    def statistics(self) -> BroadcastStatistics:
        """See `Broadcast.statistics`."""
        subscribers = sum(map(len, self._topics.values()))
        return BroadcastStatistics(topics=len(self._topics), subscribers=subscribers, published=self._published)


@define(eq=False)
class MemoryStore:
    """`Store` in memory, and the place of locks and broadcasts; `open_memory` makes one."""

    _desk: Desk
    _wall_ms: Callable[[], int]
    _groups: int = field(default=0, init=False)
    _largest_group: int = field(default=0, init=False)
    _tables: Tables = field(factory=lambda: Tables(MemoryKeyValueTable(), MemoryJobTable()), init=False)

    def key_value(self, space: str) -> KeyValueHandle:
        """See `Store.key_value`."""
        return KeyValueHandle(space, self._desk)

    def job_log(self) -> JobLogHandle:
        """See `Store.job_log`."""
        return JobLogHandle(self._desk)

    def lock(self) -> MemoryLock:
        """A fresh set of locks: holders see each other only through the same `Lock`."""
        return MemoryLock(self._desk, self._wall_ms)

    def broadcast(self) -> MemoryBroadcast:
        """A fresh set of topics: publishers reach only the subscribers of the same `Broadcast`."""
        return MemoryBroadcast(self._desk)

    def directory(self, prefix: str, on_done: OnDone[list[tuple[str, str]]]) -> None:
        """See `Store.directory`."""
        work = self._tables.values.directory
        self._desk.submit(lambda _: work(prefix), on_done, lane=None, writes=False, texts=(prefix,))

    async def room(self) -> None:
        """See `Store.room`."""
        await self._desk.room()

    def statistics(self) -> StoreStatistics:
        """See `Store.statistics`."""
        return self._desk.statistics(groups=self._groups, largest_group=self._largest_group)

    def carry_out(self, group: list[Submission]) -> None:
        """What the desk calls with everything submitted since the last turn."""
        self._groups += 1
        self._largest_group = max(self._largest_group, len(group))
        carry_out(group, self._tables)


@asynccontextmanager
async def open_memory(
    *,
    wall_ms: Callable[[], int] = _now_ms,
    max_ops: int = STORE_OPS,
    max_bytes: int = STORE_BYTES,
    close_timeout_s: float = FLUSH_S,
) -> AsyncIterator[MemoryStore]:
    """A store in memory for the length of the block.

    `wall_ms` is the wall clock by which locks expire (Unix ms). At the end everything submitted is answered, within
    `close_timeout_s`, or `StoreError` is raised. As with every nursery, exceptions leave the block in a group.
    """
    desk = Desk("in memory", max_ops=max_ops, max_bytes=max_bytes)
    store = MemoryStore(desk, wall_ms)
    desk.carry_out = store.carry_out
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.run, name="store in memory")
        try:
            yield store
        finally:
            await desk.close(close_timeout_s)
