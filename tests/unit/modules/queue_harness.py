"""What the tests of the queue share: an engine with the queue over a store, and workers beside it, without sockets."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field, frozen

from iii_trio.config import Live, QueueAdapter, QueueModuleSettings, QueueSettings, QueueStoreSettings
from iii_trio.engine import (
    DEFAULT_NAMESPACE,
    Binding,
    Call,
    Clock,
    Engine,
    FunctionEntry,
    LocalPeer,
    open_engine,
    open_local,
)
from iii_trio.modules.queue import QueueModule
from iii_trio.protocol import ABSENT, Json
from iii_trio.protocol.errors import WireError
from iii_trio.stores import JobLog, MemoryStore, OnDone, Result, open_memory

PATIENCE_S = 3600.0
"""Virtual seconds after which a test gives up waiting."""


@frozen
class Seen:
    """One call of a handler; `at` is Trio's time, `metadata` of None means that there was none."""

    data: Any
    at: float
    metadata: Any
    traceparent: str | None
    baggage: str | None

    @property
    def attempt(self) -> Any:
        """The attempt number the delivery was marked with, or None."""
        return (self.metadata or {}).get("iii.queue", {}).get("attempt")


Behaviour = Callable[[int, Any], Awaitable[Any]]
"""What a handler does: (number of the call, from 1; data) -> result."""


async def _nothing(_number: int, _data: Any) -> Any:
    await trio.lowlevel.checkpoint()


@define(eq=False)
class Handler:
    """A function that keeps what it is called with and then behaves as it is told; `seen` counts begun calls."""

    behaviour: Behaviour = _nothing
    seen: list[Seen] = field(factory=list)
    running: int = 0
    peak: int = 0
    finished: list[Any] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    async def __call__(self, call: Call, data: Json) -> Json:
        value = data.decode()
        metadata = Json(call.metadata).decode() if call.metadata else None
        self.seen.append(Seen(value, trio.current_time(), metadata, call.traceparent, call.baggage))
        self.running += 1
        self.peak = max(self.peak, self.running)
        self._tell()
        try:
            result = await self.behaviour(len(self.seen), value)
        finally:
            self.running -= 1
        self.finished.append(value)
        self._tell()
        return Json.of(result)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    @property
    def data(self) -> list[Any]:
        """The payloads, in the order of the calls."""
        return [seen.data for seen in self.seen]

    async def wait(self, count: int) -> list[Any]:
        """The payloads, once there are `count` calls."""
        with trio.fail_after(PATIENCE_S):
            while len(self.seen) < count:
                await self._news.wait()
        return self.data

    async def wait_finished(self, count: int) -> list[Any]:
        """What was handled without error, in the order of the ends, once there are `count`."""
        with trio.fail_after(PATIENCE_S):
            while len(self.finished) < count:
                await self._news.wait()
        return self.finished


def failing(times: float = float("inf")) -> Behaviour:
    """Fail so many times, then succeed."""

    async def behave(number: int, _data: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if number <= times:
            raise WireError("forced failure", "invocation_failed", "somewhere")

    return behave


def taking(seconds: float) -> Behaviour:
    """Succeed after a while."""

    async def behave(_number: int, _data: Any) -> Any:
        await trio.sleep(seconds)

    return behave


@define(eq=False)
class Watched:
    """A job log that tells when a message has become a dead letter."""

    log: JobLog
    news: trio.Event = field(factory=trio.Event)

    def dead_letter(self, seq: int, attempts: int, error: str, failed_at_ms: int, on_done: OnDone[bool]) -> None:
        def told(result: Result[bool]) -> None:
            on_done(result)
            self.news.set()
            self.news = trio.Event()

        self.log.dead_letter(seq, attempts, error, failed_at_ms, told)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)


@define(eq=False)
class World:
    """An engine with a queue module; `user` calls and serves functions, as any worker would."""

    core: Engine
    log: Watched
    module: QueueModule
    settings: Live[QueueModuleSettings]
    user: LocalPeer
    nursery: trio.Nursery
    _scope: trio.CancelScope = field(factory=trio.CancelScope)
    _ended: trio.Event = field(factory=trio.Event)

    # -- the module

    async def start(self) -> None:
        """Start the queue module."""
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        await self.nursery.start(self._run)

    def cancel(self) -> None:
        """Begin to end the queue module, as a crash would; the workers stay."""
        self._scope.cancel()

    async def stop(self) -> None:
        """`cancel`, and wait for the end."""
        self.cancel()
        await self._ended.wait()

    async def _run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            try:
                await self.module.run(self.core, task_status=task_status)
            finally:
                self._ended.set()

    # -- what a worker does

    def serve(
        self, function_id: str, behaviour: Behaviour = _nothing, namespace: str = DEFAULT_NAMESPACE, peer: Any = None
    ) -> Handler:
        """Register a function of `peer` (the user unless given)."""
        handler = Handler(behaviour)
        entry = FunctionEntry(id=function_id, namespace=namespace, owner=peer or self.user, handler=(True, handler))
        self.core.functions.claim(entry)
        return handler

    def bind(self, function_id: str, config: Any, **more: Any) -> Binding:
        """Bind a function to a topic; `peer`, `id`, `trigger_type`, `metadata` and `namespace` by keyword."""
        metadata = more.pop("metadata", None)
        binding = Binding(
            id=more.pop("id", function_id),
            trigger_type=more.pop("trigger_type", "durable:subscriber"),
            function_id=function_id,
            config=Json.of(config),
            metadata=ABSENT if metadata is None else Json.of(metadata),
            owner=more.pop("peer", self.user),
            **more,
        )
        self.core.triggers.register(binding)
        return binding

    # -- what a caller does

    async def ask(self, function_id: str, payload: Any = None, **more: Any) -> Any:
        """Call a function and decode what it returns."""
        return (await self.user.invoke(function_id, Json.of(payload), **more)).decode()

    async def enqueue(self, queue: str, function_id: str, data: Any = None, **more: Any) -> str:
        """Enqueue as the engine does for `action: enqueue`; returns the receipt."""
        receipt = more.pop("receipt", None) or f"receipt-{next(_numbers)}"
        request = {"queue": queue, "function_id": function_id, "data": data, "messageReceiptId": receipt, **more}
        answer = await self.ask("engine::queue::enqueue", request)
        assert answer == {"messageReceiptId": receipt}
        return receipt

    async def publish(self, topic: str, data: Any = None, **more: Any) -> None:
        """Publish to a topic."""
        answer = await self.user.invoke("iii::durable::publish", Json.of({"topic": topic, "data": data}), **more)
        assert answer.absent

    async def dead(self, name: str, **more: Any) -> list[Any]:
        """The dead letters of a queue or topic, newest first."""
        letters = await self.ask("engine::queue::dlq_messages", {"topic": name, **more})
        assert isinstance(letters, list)
        return letters

    async def wait_dead(self, name: str, count: int) -> list[Any]:
        """The dead letters, once there are `count`."""
        with trio.fail_after(PATIENCE_S):
            while True:
                news = self.log.news
                letters = await self.dead(name, limit=1000)
                if len(letters) >= count:
                    return letters
                await news.wait()

    async def stats(self, name: str) -> Any:
        """`engine::queue::topic_stats`."""
        return await self.ask("engine::queue::topic_stats", {"topic": name})


async def refusal(world: World, function_id: str, payload: Any) -> tuple[str, str]:
    """Code and message by which a call fails."""
    with pytest.raises(WireError) as caught:
        await world.ask(function_id, payload)
    return caught.value.code, caught.value.message


async def stats(world: World, name: str) -> Any:
    """The one row of `engine::queue::stats` about a queue."""
    (row,) = await world.ask("engine::queue::stats", {"queue": name})
    return row


def request_to(queue: str, data: Any = None, **more: Any) -> dict[str, Any]:
    """What `engine::queue::enqueue` is asked."""
    return {"queue": queue, "function_id": "f", "data": data, "messageReceiptId": "r", **more}


def _count() -> Any:
    number = 0
    while True:
        number += 1
        yield number


_numbers = _count()


def configured(**queues: QueueSettings) -> QueueModuleSettings:
    """Settings with these named queues."""
    return QueueModuleSettings(queue_configs=queues)


def topic_defaults(**values: Any) -> QueueModuleSettings:
    """Settings with these defaults for topic subscribers."""
    return QueueModuleSettings(adapter=QueueAdapter(config=QueueStoreSettings(**values)))


BASE = configured(
    default=QueueSettings(concurrency=3, max_retries=2, backoff_ms=100, poll_interval_ms=50),
    payment=QueueSettings(
        type="fifo", message_group_field="transaction_id", concurrency=1, max_retries=2, backoff_ms=100
    ),
)
"""Configuration "B" of spec/queue.md §16."""


@asynccontextmanager
async def open_world(
    settings: QueueModuleSettings = BASE, store: MemoryStore | None = None, log: JobLog | None = None
) -> AsyncIterator[World]:
    """An engine with a queue over `log`, over a log of `store`, or over a memory of its own."""
    if log is None and store is None:
        async with open_memory() as own, open_world(settings, own) as world:
            yield world
        return
    inner = log or (store.job_log() if store is not None else None)
    assert inner is not None
    journal = Watched(inner)
    live = Live(settings)
    module = QueueModule(live, journal)
    async with (
        open_engine(clock=Clock(epoch=1_700_000_000)) as core,
        open_local(core, "user") as user,
        trio.open_nursery() as nursery,
    ):
        world = World(core, journal, module, live, user, nursery)
        await world.start()
        yield world
        await world.stop()
