"""The table of all queues: named ones, the destinations of topics, and how messages get into them.

A message is stored first and taken in second: every method that makes or moves messages submits an operation to the
log, and the callback of that operation puts what now stands on disk into the queue it belongs to, whether anybody still
waits for it or not.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field, frozen

from ...config import Live, QueueModuleSettings, QueueSettings
from ...engine import DEFAULT_NAMESPACE, Engine, LocalPeer
from ...protocol import Json, codec, errors
from ...protocol.errors import ProtocolError, WireError
from ...stores import Done, Failed, Job, JobLog, NewJob, OnDone, Result, WaitingJobLog
from .delivery import Share
from .dispatch import ActiveQueue, QueueStatistics, Shelf
from .machine import BACKOFF_CEILING_MS, Target
from .names import Kind, QueueKey
from .requests import members

log = logging.getLogger(__name__)

PAGE: Final = 256
"""Messages per operation on the log, when all of them are read or redriven."""

_CONFIGURED: Final = "configuration"
"""The id of a named queue's share."""


@frozen
class QueuesStatistics:
    """All queues; `unclaimed` messages wait for their topic's first subscriber, `shelf_bytes` are held in memory."""

    queues: tuple[QueueStatistics, ...]
    unclaimed: int
    shelf_bytes: int


@frozen
class Message:
    """What somebody wants delivered: the payload, and the trace context that goes with it."""

    data: Json
    traceparent: str | None = None
    baggage: str | None = None


def group_of(queue: str, settings: QueueSettings, data: Json) -> str | None:
    """The message group of a payload, None in a standard queue. Raises `WireError` (spec/queue.md §2.4)."""
    if settings.type != "fifo":
        return None
    name = settings.message_group_field
    if name is None:
        text = f"FIFO queue '{queue}' requires 'message_group_field' to be configured"
        raise WireError(text, errors.ENQUEUE_ERROR)
    raw = (members(data.raw) or {}).get(name)
    if raw is None:
        text = f"FIFO queue '{queue}' requires field '{name}' in data, but it was not found"
        raise WireError(text, errors.ENQUEUE_ERROR)
    if bytes(raw) == b"null":
        raise WireError(f"FIFO queue '{queue}': field '{name}' must not be null", errors.ENQUEUE_ERROR)
    try:
        return codec.canonical_text(codec.decode_value(bytes(raw))).decode()
    except ProtocolError:
        return bytes(raw).decode(errors="replace")  # a number beyond all bounds: its text is as good a name


@define(eq=False, kw_only=True)
class Queues:
    """See the module. Made by the queue module, which owns `nursery`; call `load` before anything else."""

    core: Engine
    peer: LocalPeer
    log: JobLog
    settings: Live[QueueModuleSettings]
    nursery: trio.Nursery
    shelf: Shelf = field(factory=Shelf)
    _queues: dict[QueueKey, ActiveQueue] = field(factory=dict, init=False)
    _topics: dict[str, dict[Target, ActiveQueue]] = field(factory=dict, init=False)
    _subscribed: dict[str, ActiveQueue] = field(factory=dict, init=False)
    _unclaimed: Counter[str] = field(factory=Counter, init=False)

    # -- start and change ---------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take in everything the log holds.

        The log does not say what was in flight: whatever was due counts as delivered once more than it has failed, so
        that a repeated delivery is always marked as one, and no number is used twice.
        """
        journal = WaitingJobLog(self.log)
        for known in await journal.destinations():
            self._destination(known.topic, (known.namespace, known.function_id)).remembered = True
        for text, count in (await journal.dead_counts()).items():
            self._queue(QueueKey.parse(text)).machine.buried(count)
        after, now_ms = 0, self.core.clock.wall_ms()
        while jobs := await journal.load(after, PAGE):
            for job in jobs:
                if job.function_id is None:
                    self._unclaimed[QueueKey.parse(job.queue).name] += 1
                else:
                    self._queue(QueueKey.parse(job.queue)).take_in(
                        job, deliveries=job.attempts + (job.due_at_ms <= now_ms)
                    )
            after = jobs[-1].seq
        self.apply()

    def apply(self) -> None:
        """Let the named queues be what the settings say now; those they do not name stop, and keep their messages."""
        configs = self.settings.value.queue_configs
        for name, config in configs.items():
            queue = self._queue(QueueKey(Kind.NAMED, name))
            share = Share(
                concurrency=config.concurrency,
                fifo=config.type == "fifo",
                max_attempts=max(1, config.max_retries),
                backoff_ms=config.backoff_ms,
                timeout_s=config.timeout_ms / 1000,
            )
            if queue.shares.get(_CONFIGURED) != share:
                queue.offer(_CONFIGURED, share)
        for key, queue in self._queues.items():
            if key.kind is Kind.NAMED and key.name not in configs:
                queue.withdraw(_CONFIGURED)

    def appeared(self, target: Target) -> None:
        """A function has become callable: messages that were held for it go on."""
        for queue in self._queues.values():
            queue.appeared(target)

    def pause(self) -> None:
        """The engine drains: nothing is delivered any more."""
        for queue in self._queues.values():
            queue.pause()

    # -- messages in --------------------------------------------------------------------------------------------------

    def enqueue(self, name: str, target: Target, message: Message, receipt: str, on_done: OnDone[list[Job]]) -> None:
        """Store a message of a named queue, then call `on_done`. Raises `WireError` with the texts of §2.4."""
        config = self.settings.value.queue_configs.get(name)
        if config is None:
            raise WireError(f"Queue '{name}' not found", errors.ENQUEUE_ERROR)
        group = group_of(name, config, message.data)
        key = QueueKey(Kind.NAMED, name)
        job = self._new_job(key, target, message, config.max_retries, config.backoff_ms, group, receipt)
        self._append([job], on_done)

    def publish(self, topic: str, message: Message, on_done: OnDone[list[Job]]) -> None:
        """Store one copy for every destination of the topic, all of them or none, then call `on_done`.

        While the topic has no destination, one message is kept for its first subscriber.
        """
        jobs = []
        defaults = self.settings.value.adapter.config
        for target, queue in self._topics.get(topic, {}).items():
            if queue.remembered:
                policy = queue.machine.policy if queue.shares else defaults
                jobs.append(self._new_job(queue.key, target, message, policy.max_attempts, policy.backoff_ms))
        if jobs:
            self._append(jobs, on_done)
            return
        key, nobody = QueueKey(Kind.UNCLAIMED, topic), (DEFAULT_NAMESPACE, None)
        job = self._new_job(key, nobody, message, defaults.max_attempts, defaults.backoff_ms)

        def kept(result: Result[list[Job]]) -> None:
            if isinstance(result, Failed):
                self._claimed(topic, 1)
            on_done(result)

        self.log.append([job], kept)
        self._unclaimed[topic] += 1

    def _claimed(self, topic: str, count: int) -> None:
        self._unclaimed[topic] -= count
        if not self._unclaimed[topic]:
            del self._unclaimed[topic]

    def _new_job(
        self,
        key: QueueKey,
        target: tuple[str, str | None],
        message: Message,
        max_attempts: int,
        backoff_ms: int,
        group: str | None = None,
        receipt: str | None = None,
    ) -> NewJob:
        now_ms = self.core.clock.wall_ms()
        return NewJob(
            id=str(uuid.uuid4()),
            queue=key.text,
            namespace=target[0],
            function_id=target[1],
            payload=message.data.raw,
            max_attempts=max_attempts,
            backoff_ms=min(backoff_ms, BACKOFF_CEILING_MS),
            created_at_ms=now_ms,
            due_at_ms=now_ms,
            group_id=group,
            traceparent=message.traceparent,
            baggage=message.baggage,
            message_id=receipt,
        )

    def _append(self, jobs: list[NewJob], on_done: OnDone[list[Job]]) -> None:
        def stored(result: Result[list[Job]]) -> None:
            if isinstance(result, Done):
                for job in result.value:
                    self._queue(QueueKey.parse(job.queue)).take_in(job)
            on_done(result)

        self.log.append(jobs, stored)

    # -- subscribers --------------------------------------------------------------------------------------------------

    def subscribe(self, share_id: str, topic: str, target: Target, share: Share) -> None:
        """Serve a destination; what was published before anybody subscribed to its topic is handed to it.

        A share of that id elsewhere moves here. Raises `StoreError` when the log is closed; nothing is changed then.
        """
        queue = self._destination(topic, target)
        if not queue.remembered:
            self.log.remember(topic, *target, self._noted)
        if self._unclaimed[topic]:
            self.log.adopt(QueueKey(Kind.UNCLAIMED, topic).text, queue.key.text, *target, self._adopted)
        queue.remembered = True
        queue.offer(share_id, share)
        old = self._subscribed.get(share_id)
        self._subscribed[share_id] = queue
        if old is not None and old is not queue:
            self._leave(old, share_id, forget=True)

    def unsubscribe(self, share_id: str, *, forget: bool) -> None:
        """Stop serving by this share. With `forget`, and when it was the last one, the topic's copies stop too."""
        queue = self._subscribed.pop(share_id, None)
        if queue is not None:
            self._leave(queue, share_id, forget=forget)

    def _leave(self, queue: ActiveQueue, share_id: str, *, forget: bool) -> None:
        queue.withdraw(share_id)
        if not forget or queue.shares:
            return
        key = queue.key
        queue.remembered = False
        self.log.forget(key.name, key.namespace, key.function_id, self._noted)
        if queue.empty:
            target = (key.namespace, key.function_id)
            del self._queues[key], self._topics[key.name][target]
            if not self._topics[key.name]:
                del self._topics[key.name]

    def _noted(self, result: Result[bool]) -> None:
        if isinstance(result, Failed):
            log.error(
                "a topic's list of destinations could not be written, a restart will not know it: %s", result.error
            )

    def _adopted(self, result: Result[list[Job]]) -> None:
        if isinstance(result, Failed):
            log.error("messages from before the first subscription wait for the next one: %s", result.error)
            return
        for job in result.value:
            key = QueueKey.parse(job.queue)
            self._claimed(key.name, 1)
            self._queue(key).take_in(job)

    # -- dead letters -------------------------------------------------------------------------------------------------

    def redrive(self, name: str, on_done: OnDone[int]) -> None:
        """Return the dead letters that there are now to their queues; answers how many."""
        queues = list(self.resolve(name))
        total = 0

        def next_queue() -> None:
            if queues:
                self.log.dead_count(queues[-1].key.text, counted)
            else:
                on_done(Done(total))

        def counted(result: Result[int]) -> None:
            if isinstance(result, Failed):
                on_done(result)
            else:
                page(queues.pop(), result.value)

        def page(queue: ActiveQueue, left: int) -> None:
            def moved(result: Result[list[Job]]) -> None:
                nonlocal total
                if isinstance(result, Failed):
                    on_done(result)
                    return
                for job in result.value:
                    queue.revive(job)
                total += len(result.value)
                page(queue, left - len(result.value) if result.value else 0)

            if left:
                self.log.redrive(queue.key.text, min(left, PAGE), self.core.clock.wall_ms(), moved)
            else:
                next_queue()

        next_queue()

    def redrive_one(self, name: str, message_id: str, on_done: OnDone[int]) -> None:
        """Return the dead letter of that id to its queue; answers 1, or 0 when there is none."""

        def attempt(queue: ActiveQueue, found: Callable[[Result[bool]], None]) -> None:
            def moved(result: Result[Job | None]) -> None:
                if isinstance(result, Failed):
                    found(result)
                    return
                if result.value is not None:
                    queue.revive(result.value)
                found(Done(result.value is not None))

            self.log.redrive_one(queue.key.text, message_id, self.core.clock.wall_ms(), moved)

        self._until_found(name, attempt, on_done)

    def discard_one(self, name: str, message_id: str, on_done: OnDone[int]) -> None:
        """Drop the dead letter of that id; answers 1, or 0 when there is none."""

        def attempt(queue: ActiveQueue, found: Callable[[Result[bool]], None]) -> None:
            def dropped(result: Result[bool]) -> None:
                if isinstance(result, Done) and result.value:
                    queue.machine.exhumed(1)
                found(result)

            self.log.discard(queue.key.text, message_id, dropped)

        self._until_found(name, attempt, on_done)

    def _until_found(
        self,
        name: str,
        attempt: Callable[[ActiveQueue, Callable[[Result[bool]], None]], None],
        on_done: OnDone[int],
    ) -> None:
        queues = list(self.resolve(name))

        def found(result: Result[bool]) -> None:
            if isinstance(result, Failed):
                on_done(result)
            elif result.value:
                on_done(Done(1))
            else:
                go_on()

        def go_on() -> None:
            if queues:
                attempt(queues.pop(), found)
            else:
                on_done(Done(0))

        go_on()

    # -- queries ------------------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> tuple[ActiveQueue, ...]:
        """The queues a name means: the configured queue, else a topic's destinations, else a queue that once was."""
        named = self._queues.get(QueueKey(Kind.NAMED, name))
        if named is not None and (named.shares or name not in self._topics):
            return (named,)
        return tuple(self._topics.get(name, {}).values())

    def named(self) -> tuple[ActiveQueue, ...]:
        """Every named queue, those with messages that are not configured any more included."""
        return tuple(queue for queue in self._queues.values() if queue.key.kind is Kind.NAMED)

    def topics(self) -> dict[str, tuple[ActiveQueue, ...]]:
        """The destinations of every topic that has any."""
        return {topic: tuple(queues.values()) for topic, queues in self._topics.items()}

    def unclaimed(self, topic: str) -> int:
        """Messages that wait for the topic's first subscriber."""
        return self._unclaimed[topic]

    def statistics(self) -> QueuesStatistics:
        """A frozen picture of all queues."""
        queues = tuple(queue.statistics() for queue in self._queues.values())
        return QueuesStatistics(queues, self._unclaimed.total(), self.shelf.size)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _destination(self, topic: str, target: Target) -> ActiveQueue:
        namespace, function_id = target
        return self._queue(QueueKey(Kind.DESTINATION, topic, function_id, namespace))

    def _queue(self, key: QueueKey) -> ActiveQueue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = ActiveQueue(
                key=key, core=self.core, peer=self.peer, log=self.log, shelf=self.shelf, nursery=self.nursery
            )
            if key.kind is Kind.DESTINATION:
                self._topics.setdefault(key.name, {})[key.namespace, key.function_id] = queue
        return queue
