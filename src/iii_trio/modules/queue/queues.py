"""The table of all queues: named ones, the destinations of topics, and how messages get into them.

A message is stored first and taken in second: every method that makes or moves messages submits an operation to the
log, and the callback of that operation puts what now stands on disk into the queue it belongs to, whether anybody still
waits for it or not.
"""

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import trio
from attrs import define, field, frozen

from ...config import Live, QueueModuleSettings, QueueSettings
from ...engine import DEFAULT_NAMESPACE, Engine, LocalPeer, Timer
from ...protocol import errors
from ...protocol.errors import WireError
from ...protocol.limits import QUEUE_MESSAGES
from ...stores import Done, Failed, Job, JobLog, NewJob, Once, OnDone, Result, WaitingJobLog
from .definitions import Definitions, Keeper
from .delivery import Share
from .dispatch import ADOPTING, DRAINING, LOADING, PAUSED, WRITE_AGAIN_S, ActiveQueue, QueueStatistics
from .lanes import Target
from .messages import DEDUPLICATION_WINDOW_MS, Message, reading
from .names import Kind, QueueKey
from .reading import LogTime, Shelf
from .retention import Retention, Rule
from .verdicts import BACKOFF_CEILING_MS, Policy

log = logging.getLogger(__name__)

PAGE: Final = 256
"""Messages per operation on the log, when many of them are moved."""

PAUSED_NOTE: Final = "paused"
"""The kind of note that keeps a queue paused over restarts; its name is `pause_name`."""

QUEUE_FULL: Final = "queue_full"

DEAD_LETTERS: Final = "dead"
"""The part of the log that holds them (`JobLog.listen`)."""

_CONFIGURED: Final = "configuration"
"""The id of a named queue's share."""


@frozen
class QueuesStatistics:
    """All queues; `unclaimed` messages wait for their topic's first subscriber, `shelf_bytes` are held in memory."""

    queues: tuple[QueueStatistics, ...]
    unclaimed: int
    shelf_bytes: int


def _known(text: str) -> QueueKey | None:
    """The queue that a row of the log names; None, with a line in the log, if the name itself is damaged."""
    try:
        return QueueKey.parse(text)
    except ValueError as error:
        log.error("what belongs to a queue whose name is damaged stays where it lies: %s", error)
        return None


def share_of(config: QueueSettings) -> Share:
    """What the settings of a named queue mean."""
    return Share(
        Policy(
            concurrency=config.concurrency,
            fifo=config.type == "fifo",
            max_attempts=max(1, config.max_retries),
            backoff_ms=config.backoff_ms,
            backoff_max_ms=BACKOFF_CEILING_MS if config.backoff_max_ms is None else config.backoff_max_ms,
            backoff_fixed=config.backoff_type == "fixed",
            jitter=config.backoff_jitter or 0.0,
        ),
        timeout_s=config.timeout_ms / 1000,
        delay_ms=config.delay_ms or 0,
    )


@define(eq=False, kw_only=True)
class Queues:
    """See the module. Made by the queue module, which owns `nursery`; call `load` before anything else."""

    core: Engine
    peer: LocalPeer
    log: JobLog
    settings: Live[QueueModuleSettings]
    nursery: trio.Nursery
    keeper: Keeper | None = None
    shelf: Shelf = field(factory=Shelf)
    closed: bool = field(default=False, init=False)
    definitions: Definitions = field(init=False)
    retention: Retention = field(init=False)
    _queues: dict[QueueKey, ActiveQueue] = field(factory=dict, init=False)
    _named: dict[str, ActiveQueue] = field(factory=dict, init=False)
    _topics: dict[str, dict[Target, ActiveQueue]] = field(factory=dict, init=False)
    _served: dict[Target, dict[ActiveQueue, None]] = field(factory=dict, init=False)  # destinations by function
    _subscribed: dict[str, ActiveQueue] = field(factory=dict, init=False)
    _unclaimed: Counter[str] = field(factory=Counter, init=False)
    _adopting: set[str] = field(factory=set, init=False)
    _adopt_again: set[str] = field(factory=set, init=False)  # published since, for who subscribed since
    _refused: set[Timer] = field(factory=set, init=False)  # by which what the log has refused is tried again
    _paused: set[str] = field(factory=set, init=False)
    _unlisten: Callable[[], None] = field(default=lambda: None, init=False)  # to what the log sets aside
    _loading: bool = field(default=True, init=False)
    _time: LogTime = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.definitions = Definitions(self.log, self.apply, self.config, self.keeper)
        self.retention = Retention(self.core, self.log, self._retained, self.tidy)
        self._time = LogTime(self.core.clock)

    # -- start and change ---------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Learn what the log holds: how many messages, not which; each queue asks for its own when it needs them."""
        journal = WaitingJobLog(self.log)
        self._unlisten = self.log.listen(self._set_aside)
        census = await journal.census()
        self._time = LogTime(self.core.clock, census.newest_seq, census.delayed_since_ms)
        for note in await journal.notes():
            if note.kind == PAUSED_NOTE:
                self._paused.add(note.name)
            else:
                self.definitions.recall(note)
        for known in await journal.destinations():
            self._destination(known.topic, (known.namespace, known.function_id)).remembered = True
        for text, count in (await journal.dead_counts()).items():
            if (dead := _known(text)) is not None:
                self._queue(dead).machine.buried(count)
        self.apply()
        for counted in census.queues:
            key = _known(counted.queue)
            if key is None:
                continue
            if key.kind is Kind.UNCLAIMED:
                self._claimed(key.name, -counted.live)
            else:
                self._queue(key).restore(counted)
        self._loading = False
        for queue in self._queues.values():
            queue.release(LOADING)

    @property
    def configs(self) -> Mapping[str, QueueSettings]:
        """The named queues: what the settings say, and what was defined since."""
        return {**self.settings.value.queue_configs, **self.definitions.queues}

    def config(self, name: str) -> QueueSettings | None:
        """The settings of one named queue; None if it is not configured."""
        return self.definitions.queues.get(name) or self.settings.value.queue_configs.get(name)

    def changed(self, old: QueueModuleSettings, new: QueueModuleSettings) -> None:
        """The settings were changed: of what was defined before, they win where they say something else now."""
        for name in list(self.definitions.queues):
            if new.queue_configs.get(name) != old.queue_configs.get(name):
                self.definitions.drop(name, self._noted)
        self.apply()

    def apply(self) -> None:
        """Let the named queues be what is configured now; those that are not any more stop, and keep their messages."""
        if self.closed:
            return
        configs = self.configs
        for name, config in configs.items():
            queue = self._queue(QueueKey(Kind.NAMED, name))
            share = share_of(config)
            if queue.shares.get(_CONFIGURED) != share:
                queue.offer(_CONFIGURED, share)
        for key, queue in self._queues.items():
            if key.kind is Kind.NAMED and key.name not in configs:
                queue.withdraw(_CONFIGURED)
            self.retention.look(queue, fresh=True)

    def appeared(self, target: Target) -> None:
        """A function has become callable: messages that were held for it go on."""
        for queue in (*self._named.values(), *self._served.get(target, ())):
            queue.appeared(target)

    def drain(self) -> None:
        """The engine drains: nothing is delivered any more."""
        for queue in self._queues.values():
            queue.hold(DRAINING)

    def pause(self, names: set[str]) -> None:
        """Let exactly these be paused; see `pause_name`."""
        self._paused = names
        for queue in self._queues.values():
            if self.pause_name(queue.key) in names:
                queue.hold(PAUSED)
            else:
                queue.release(PAUSED)

    @property
    def paused(self) -> frozenset[str]:
        """What is paused; see `pause_name`."""
        return frozenset(self._paused)

    @staticmethod
    def pause_name(key: QueueKey) -> str:
        """A named queue is paused by itself, a topic with all its destinations, those to come included."""
        return key.text if key.kind is Kind.NAMED else QueueKey(Kind.UNCLAIMED, key.name).text

    def close(self) -> None:
        """Take back what is set in motion for later; what the log answers from now on begins nothing any more."""
        self.retention.close()
        self._unlisten()
        self.closed = True
        for queue in self._queues.values():
            queue.closed = True
        for timer in self._refused:
            timer.cancel()

    # -- messages in --------------------------------------------------------------------------------------------------

    def enqueue(self, name: str, target: Target, message: Message, receipt: str, on_done: OnDone[list[Job]]) -> None:
        """Store a message of a named queue, then call `on_done`. Raises `WireError` with the texts of §2.4.

        The answer is [] when it is a repetition of one that was stored before.
        """
        config = self.config(name)
        if config is None:
            raise WireError(f"Queue '{name}' not found", errors.ENQUEUE_ERROR)
        queue = self._named.get(name) or self._queue(QueueKey(Kind.NAMED, name))
        key, sorting = queue.key, reading(name, config, message)
        if config.max_length is not None and queue.length >= config.max_length:
            text = (
                f"Queue '{name}' is full: max_length is {config.max_length}; try again when messages have been handled"
            )
            raise WireError(text, errors.ENQUEUE_ERROR)
        self._check_room(1)
        job = self._new_job(
            key,
            target,
            message,
            (config.max_retries, config.backoff_ms),
            delay_ms=config.delay_ms,
            group=sorting.group,
            priority=sorting.priority,
            receipt=receipt,
        )
        window_ms = config.deduplication_window_ms or DEDUPLICATION_WINDOW_MS
        self._append([job], [key], self._once(key, sorting.repetition_key, window_ms), on_done)

    def publish(self, topic: str, message: Message, on_done: OnDone[list[Job]]) -> None:
        """Store one copy for every destination of the topic, all of them or none, then call `on_done`.

        While the topic has no destination, one message is kept for its first subscriber. The answer is [] when the
        message is a repetition. Raises `WireError` when there is no room.
        """
        jobs, keys = [], []
        defaults = self.settings.value.adapter.config
        for target, queue in self._topics.get(topic, {}).items():
            if queue.remembered:
                policy = queue.machine.policy if queue.shares else defaults
                delay_ms = max((share.delay_ms for share in queue.shares.values()), default=0)
                attempts = (policy.max_attempts, policy.backoff_ms)
                jobs.append(self._new_job(queue.key, target, message, attempts, delay_ms=delay_ms))
                keys.append(queue.key)
        unclaimed = QueueKey(Kind.UNCLAIMED, topic)
        if not jobs:
            attempts = (defaults.max_attempts, defaults.backoff_ms)
            jobs.append(self._new_job(unclaimed, (DEFAULT_NAMESPACE, None), message, attempts))
            keys.append(unclaimed)
        self._check_room(len(jobs))
        self._append(jobs, keys, self._once(unclaimed, message.repetition_key, DEDUPLICATION_WINDOW_MS), on_done)

    def _check_room(self, count: int) -> None:
        if self.shelf.messages + count > QUEUE_MESSAGES:
            text = f"{QUEUE_MESSAGES} messages wait in the queues of this engine, which is all it takes"
            raise WireError(text, QUEUE_FULL)

    def _claimed(self, topic: str, count: int) -> None:
        self.shelf.messages -= count
        self._unclaimed[topic] -= count
        if not self._unclaimed[topic]:
            del self._unclaimed[topic]

    def _once(self, key: QueueKey, repetition_key: str | None, window_ms: int) -> Once | None:
        if repetition_key is None:
            return None
        now_ms = self.core.clock.wall_ms()
        return Once(key.text, repetition_key, now_ms, now_ms + window_ms)

    def _new_job(
        self,
        key: QueueKey,
        target: tuple[str, str | None],
        message: Message,
        attempts: tuple[int, int],
        *,
        delay_ms: int | None = None,
        group: str | None = None,
        priority: int | None = None,
        receipt: str | None = None,
    ) -> NewJob:
        """`attempts`: how many, and the base delay (ms) between them. What the message says of itself wins."""
        now_ms = self._time.now_ms()
        max_attempts, backoff_ms = attempts
        wait_ms = delay_ms if message.delay_ms is None else message.delay_ms
        return NewJob(
            id=receipt or str(uuid.uuid4()),
            queue=key.text,
            namespace=target[0],
            function_id=target[1],
            payload=message.data.raw,
            max_attempts=max_attempts,
            backoff_ms=min(backoff_ms, BACKOFF_CEILING_MS),
            created_at_ms=now_ms,
            due_at_ms=now_ms + (wait_ms or 0),
            group_id=group,
            traceparent=message.traceparent,
            baggage=message.baggage,
            message_id=receipt,
            metadata=None if message.terms is None else message.terms.encoded(),
            priority=(message.priority or 0) if priority is None else priority,
        )

    def _append(self, jobs: list[NewJob], keys: list[QueueKey], once: Once | None, on_done: OnDone[list[Job]]) -> None:
        """Store `jobs`, which are for the queues `keys` in turn, and take them in when they stand in the log."""

        def stored(result: "Result[list[Job]]") -> None:  # quoted: it would be built anew for each message
            self._arriving(keys, -1)
            if isinstance(result, Done):
                for job, key in zip(result.value, keys, strict=False):  # no jobs at all, if it was a repetition
                    if job.function_id is None:
                        self._claimed(key.name, -1)
                    else:
                        self._queue(key).take_in(job)
            on_done(result)

        if once is None:
            self.log.append(jobs, stored)
        else:
            self.log.append_once(jobs, once, stored)
        self._arriving(keys, 1)

    def _arriving(self, keys: list[QueueKey], change: int) -> None:
        for key in keys:
            if key.kind is not Kind.UNCLAIMED:
                self._queue(key).arriving += change
            else:
                self._claimed(key.name, -change)

    # -- subscribers --------------------------------------------------------------------------------------------------

    def subscribe(self, share_id: str, topic: str, target: Target, share: Share) -> None:
        """Serve a destination; what was published before anybody subscribed to its topic is handed to it.

        A share of that id elsewhere moves here. Raises `StoreError` when the log is closed; nothing is changed then.
        """
        queue = self._destination(topic, target)
        if not queue.remembered:
            self.log.remember(topic, *target, partial(self._destination_noted, queue.key))
        if self._unclaimed[topic] and topic in self._adopting:
            self._adopt_again.add(topic)
        elif self._unclaimed[topic]:
            self._adopting.add(topic)
            self._adopt(queue)
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
        if forget and not queue.shares:
            self.forget(queue, partial(self._destination_noted, queue.key))

    def forget(self, queue: ActiveQueue, on_done: OnDone[bool]) -> None:
        """Let a destination get no copies any more; what it holds stays, and if that is nothing, so does it not."""
        key = queue.key
        self.log.forget(key.name, key.namespace, key.function_id, on_done)
        queue.remembered = False
        self.tidy(queue)

    def remember_again(self, queue: ActiveQueue) -> None:
        """The log has refused to forget a destination: it is there as before."""
        key = queue.key
        self._destination(key.name, (key.namespace, key.function_id)).remembered = True

    def tidy(self, queue: ActiveQueue) -> None:
        """Drop a destination that is wanted by nobody and holds nothing; called when it may have come to that."""
        key = queue.key
        if key.kind is not Kind.DESTINATION or queue.remembered or queue.shares or not queue.empty:
            return
        if self._queues.get(key) is queue:
            target = (key.namespace, key.function_id)
            del self._queues[key], self._topics[key.name][target], self._served[target][queue]
            if not self._topics[key.name]:
                del self._topics[key.name]
            if not self._served[target]:
                del self._served[target]

    def _noted(self, result: Result[bool]) -> None:
        if isinstance(result, Failed):
            log.error("what became of a queue could not be written down, a restart will not know: %s", result.error)

    def _destination_noted(self, key: QueueKey, result: Result[bool]) -> None:
        """What was not written down is tried again: a restart must know who gets copies."""
        if isinstance(result, Failed):
            log.error("the subscriber %s could not be written down, trying again: %s", key.text, result.error)
            self._soon(partial(self._note_destination, key))

    def _note_destination(self, key: QueueKey) -> None:
        queue = self._queues.get(key)
        note = self.log.remember if queue is not None and queue.remembered else self.log.forget
        note(key.name, key.namespace, key.function_id or "", partial(self._destination_noted, key))

    def _soon(self, step: Callable[[], None]) -> None:
        """Do after a moment what the log has refused, unless the module has ended."""

        def again() -> None:
            self._refused.discard(timer)
            step()

        if not self.closed:
            timer = self.core.deadlines.after(WRITE_AGAIN_S, again)
            self._refused.add(timer)

    def _adopt(self, queue: ActiveQueue) -> None:
        """Hand what was published before anybody subscribed to `queue`, which begins nothing younger meanwhile."""
        key = queue.key
        queue.hold(ADOPTING)
        source = QueueKey(Kind.UNCLAIMED, key.name).text
        self.log.adopt(source, key.text, key.namespace, key.function_id, PAGE, partial(self._adopted, key))

    def _adopted(self, key: QueueKey, result: Result[list[Job]]) -> None:
        if self.closed:
            return
        queue = self._queue(key)
        if isinstance(result, Done):
            for job in result.value:
                queue.take_in(job)
            if result.value:
                self._claimed(key.name, len(result.value))
            if result.value or key.name in self._adopt_again:
                self._adopt_again.discard(key.name)
                heir = queue if queue.remembered else self._heir(key.name)
                if heir is not queue:
                    queue.release(ADOPTING)
                    self.tidy(queue)
                if heir is not None:
                    self._adopt(heir)
                    return
        else:
            log.error("messages from before the first subscription are handed over later: %s", result.error)
            self._soon(partial(self._adopt_what_is_left, key.name))
        self._adopting.discard(key.name)
        self._adopt_again.discard(key.name)
        queue.release(ADOPTING)
        self.tidy(queue)

    def _adopt_what_is_left(self, topic: str) -> None:
        heir = self._heir(topic)
        if heir is not None and self._unclaimed[topic] and topic not in self._adopting:
            self._adopting.add(topic)
            self._adopt(heir)

    def _heir(self, topic: str) -> ActiveQueue | None:
        """A destination of a topic whose first one went while it was given what had been published before."""
        return next((queue for queue in self._topics.get(topic, {}).values() if queue.remembered), None)

    # -- damage -------------------------------------------------------------------------------------------------------

    def _set_aside(self, table: str, text: str) -> None:
        """The log has set a damaged row aside. (That a live message is gone is seen by its queue, when it asks for it.)"""
        key = _known(text)
        if key is None:
            return
        if table == DEAD_LETTERS:
            queue = self._queues.get(key)
            if queue is not None and queue.machine.dead:
                queue.machine.exhumed(1)
        elif key.kind is Kind.UNCLAIMED and self._unclaimed[key.name]:
            self._claimed(key.name, 1)

    # -- dead letters -------------------------------------------------------------------------------------------------

    def _buried(self, queue: ActiveQueue) -> None:
        self.retention.look(queue)

    def _retained(self, key: QueueKey) -> Rule:
        """How long dead letters of a queue are kept."""
        config = self.config(key.name) if key.kind is Kind.NAMED else self.settings.value.adapter.config
        if config is None:
            return Rule()
        return Rule(config.dead_letter_max_count, config.dead_letter_max_age_ms)

    # -- queries ------------------------------------------------------------------------------------------------------

    def resolve(self, name: str) -> tuple[ActiveQueue, ...]:
        """The queues a name means: the configured queue, else a topic's destinations, else a queue that once was."""
        named = self._named.get(name)
        if named is not None and (named.shares or name not in self._topics):
            return (named,)
        return tuple(self._topics.get(name, {}).values())

    def destination(self, topic: str, target: Target) -> ActiveQueue | None:
        """The copies of a topic for one function, or None."""
        return self._topics.get(topic, {}).get(target)

    def known(self, name: str) -> bool:
        """Whether there is or was a queue or topic of that name."""
        return bool(self.resolve(name)) or bool(self._unclaimed[name])

    def dropped_unclaimed(self, topic: str, count: int) -> None:
        """So many messages that waited for the topic's first subscriber were removed from the log."""
        self._claimed(topic, count)

    def all(self) -> tuple[ActiveQueue, ...]:
        """Every named queue and every destination."""
        return tuple(self._queues.values())

    def named(self) -> tuple[ActiveQueue, ...]:
        """Every named queue, those with messages that are not configured any more included."""
        return tuple(self._named.values())

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
                key=key,
                core=self.core,
                peer=self.peer,
                log=self.log,
                shelf=self.shelf,
                time=self._time,
                nursery=self.nursery,
                on_buried=self._buried,
                on_left=self.tidy,
            )
            if self.pause_name(key) in self._paused:
                queue.hold(PAUSED)
            if self._loading:
                queue.hold(LOADING)
            if key.kind is Kind.DESTINATION:
                self._topics.setdefault(key.name, {})[key.namespace, key.function_id] = queue
                self._served.setdefault((key.namespace, key.function_id), {})[queue] = None
            elif key.kind is Kind.NAMED:
                self._named[key.name] = queue
        return queue
