"""One queue against a plain model of it: enqueue, deliver, fail, crash, restart, redrive, purge, pause, reconfigure.

Hypothesis writes a history; it is played in virtual time on the real module over a store that keeps only what it has
answered when the engine crashes. What holds at every moment is checked where a handler begins, what holds at the end
when everything has been let run: each message that was promised has been handled, in order within its group, and more
than once only if the engine crashed while it was handled. What a queue keeps in memory is so little that most of it is
read from the log again and again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queue_harness import World, configured, open_world
from trio.testing import MockClock

from iii_trio.config import QueueSettings
from iii_trio.engine import Call, FunctionEntry, LocalPeer, open_local
from iii_trio.modules.queue import dispatch
from iii_trio.modules.queue.machine import QueueMachine
from iii_trio.protocol import Json
from iii_trio.protocol.errors import WireError
from iii_trio.stores import JobLog, MemoryStore, open_memory


@define(eq=False)
class Message:
    """What the model knows of a message: it fails so many times, then succeeds."""

    number: int
    group: str
    failures_left: int
    deliveries: int = 0
    failures: int = 0
    handled: int = 0
    crashed: int = 0
    gone: bool = False
    """Purged: it may still be handled, if its purge was not answered, and need not be."""
    died: bool = False
    """It has been a dead letter: its place in the order is lost."""


@define(eq=False)
class Model:
    """The books, and the checks at each delivery."""

    config: QueueSettings
    messages: dict[int, Message] = field(factory=dict)
    promised: set[int] = field(factory=set)
    running: set[int] = field(factory=set)
    order: list[int] = field(factory=list)
    violations: list[str] = field(factory=list)
    numbers: dict[int, int] = field(factory=dict)
    """Of the messages in the log: their numbers there, and here."""
    settled: bool = True
    """False while a change of the settings may leave more running than they allow."""

    def begin(self, number: int, attempt: Any) -> Message:
        message = self.messages[number]
        message.deliveries += 1
        self._expect(number not in self.running, f"{number} is delivered twice at a time")
        if message.deliveries > 1:
            self._expect(attempt is not None and attempt >= 2, f"a repetition of {number} is not marked")
        if self.config.type == "fifo":
            beside = [n for n in self.running if self.messages[n].group == message.group]
            self._expect(not beside, f"{number} and {beside} are of one group and run at once")
            for other in self.messages.values():
                older = other.number < number and other.group == message.group and other.number in self.promised
                over = other.handled or other.died or other.gone or message.died
                self._expect(not older or over, f"{number} has overtaken {other.number} of its group")
        self.running.add(number)
        if self.settled:
            self._expect(len(self.running) <= self.config.concurrency, "more run at once than may")
        return message

    def _expect(self, truth: object, text: str) -> None:
        """Noted and not raised: in a handler it would only be one more failure."""
        if not truth:
            self.violations.append(text)


@define(eq=False)
class Mortal:
    """A job log whose operations reach the store only while its engine lives, and are answered only then."""

    log: JobLog
    model: Model
    dead: bool = False

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.log, name)
        if name in ("statistics", "room", "listen"):
            return operation

        def guarded(*args: Any, **more: Any) -> None:
            *rest, on_done = args
            if self.dead:
                return
            if name == "dead_letter":
                self.model.messages[self.model.numbers[rest[0]]].died = True

            def answered(result: Any) -> None:
                if self.dead:
                    return
                if name in ("append", "redrive"):
                    self.model.numbers.update((job.seq, Json(job.payload).decode()["n"]) for job in result.value)
                on_done(result)

            operation(*rest, answered, **more)

        return guarded


@define(eq=False)
class History:
    """Plays a history on a world."""

    store: MemoryStore
    model: Model
    log: Mortal
    world: World

    async def handler(self, call: Call, data: Json) -> Json:
        number = data.decode()["n"]
        metadata = Json(call.metadata).decode() if call.metadata else {}
        message = self.model.begin(number, metadata.get("iii.queue", {}).get("attempt"))
        lived = False
        try:
            await trio.sleep(0.3)
            lived = True
        finally:
            self.model.running.discard(number)
            message.crashed += not lived
        if message.failures_left:
            message.failures_left -= 1
            message.failures += 1
            raise WireError("not yet", "not_yet")
        message.handled += 1
        if message.handled == 1 and not message.died:
            self.model.order.append(number)
        return Json.of(None)


def serve(history: History, peer: LocalPeer) -> None:
    entry = FunctionEntry(id="f", namespace="default", owner=peer, handler=(True, history.handler))
    history.world.core.functions.claim(entry)


actions = st.one_of(
    st.tuples(
        st.just("enqueue"), st.sampled_from("aab"), st.sampled_from([0, 0, 0, 1, 2, 9]), st.sampled_from([0, 700])
    ),
    st.tuples(st.just("enqueue"), st.sampled_from("aab"), st.sampled_from([0, 0, 0, 1, 2, 9]), st.just(0)),
    st.tuples(st.just("burst"), st.integers(2, 8), st.sampled_from([0, 0, 700])),
    st.tuples(st.just("sleep"), st.sampled_from([0.0, 0.1, 0.35, 2.0])),
    st.tuples(st.just("crash")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("redrive")),
    st.tuples(st.just("purge")),
    st.tuples(st.just("pause")),
    st.tuples(st.just("resume")),
    st.tuples(st.just("away")),
    st.tuples(st.just("back")),
    st.tuples(st.just("concurrency"), st.integers(1, 4)),
    st.tuples(st.just("attempts"), st.integers(1, 3)),
)


async def play(fifo: bool, script: Sequence[tuple[Any, ...]]) -> None:
    config = QueueSettings(
        type="fifo" if fifo else "standard", message_group_field="g", concurrency=2, max_retries=2, backoff_ms=200
    )
    model = Model(config)
    async with open_memory() as store:
        remaining = list(script)
        while remaining:
            await live(store, model, remaining, last=False)
        await live(store, model, [], last=True)
    check(model)


async def live(store: MemoryStore, model: Model, remaining: list[tuple[Any, ...]], *, last: bool) -> None:
    """One life of the engine: until it crashes, is restarted, or the script is at its end."""
    log = Mortal(store.job_log(), model)
    model.settled = True
    async with open_world(configured(q=model.config), log=log) as world:
        history = History(store, model, log, world)
        async with open_local(world.core, "worker") as peer:
            serve(history, peer)
            away = False
            while remaining:
                action, *args = remaining.pop(0)
                if action in ("crash", "restart"):
                    log.dead = action == "crash"
                    return
                if action in ("away", "back"):
                    if away != (action == "away"):
                        away = not away
                        if away:
                            world.core.functions.release(peer, "default", "f")
                        else:
                            serve(history, peer)
                else:
                    await act(history, action, args)
                await trio.testing.wait_all_tasks_blocked()
            if last:
                if away:
                    serve(history, peer)
                await finish(history)


async def act(history: History, action: str, args: Sequence[Any]) -> None:
    world, model = history.world, history.model
    if action == "enqueue":
        group, failures, delay_ms = args
        number = len(model.messages)
        model.messages[number] = Message(number, group, failures)
        await world.enqueue("q", "f", {"n": number, "g": group}, delay_ms=delay_ms)
        model.promised.add(number)
    elif action == "burst":
        count, delay_ms = args
        for index in range(count):
            await act(history, "enqueue", ("ab"[index % 3 == 0], 0, delay_ms))
    elif action == "sleep":
        await trio.sleep(args[0])
    elif action == "redrive":
        await world.ask("iii::queue::redrive", {"queue": "q"})
    elif action == "purge":
        dead = {letter["payload"]["n"] for letter in await world.dead("q", limit=1_000)}
        for message in model.messages.values():
            message.gone |= not message.handled and message.number not in model.running and message.number not in dead
        await world.ask("iii::queue::purge", {"queue": "q"})
    elif action in ("pause", "resume"):
        await world.ask(f"iii::queue::{action}", {"queue": "q"})
    else:
        change = {"concurrency": args[0]} if action == "concurrency" else {"max_retries": args[0]}
        model.config = evolve(model.config, **change)
        model.settled = len(model.running) <= model.config.concurrency
        world.settings.set(configured(q=model.config))


async def finish(history: History) -> None:
    """Let everything run: in the end nothing waits and nothing is dead."""
    world, model = history.world, history.model
    model.config = evolve(model.config, concurrency=3, max_retries=3)
    model.settled = False
    world.settings.set(configured(q=model.config))
    await world.ask("iii::queue::resume", {"queue": "q"})
    for _ in range(20):
        await trio.sleep(60)
        model.settled = True
        if not (await world.ask("iii::queue::redrive", {"queue": "q"}))["redriven"]:
            break
    (row,) = await world.ask("engine::queue::stats", {"queue": "q"})
    assert [row[name] for name in ("waiting", "held", "delayed", "in_flight", "dead")] == [0] * 5, "something is stuck"
    assert world.module.statistics().shelf_bytes == 0


def check(model: Model) -> None:
    assert not model.violations
    lost = [n for n in model.promised if not model.messages[n].handled and not model.messages[n].gone]
    assert not lost, f"promised and never handled: {lost}"
    for message in model.messages.values():
        assert message.handled <= 1 + message.crashed, "handled again without a crash in its way"
    if model.config.type == "fifo":
        for group in "ab":
            order = [n for n in model.order if model.messages[n].group == group]
            assert order == sorted(order), "a group was handled out of order"


@pytest.mark.parametrize("fifo", [False, True])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=st.lists(actions, max_size=30), run=st.sampled_from([2, 3, 256]), window=st.integers(0, 4))
async def test_whatever_happens_the_queue_keeps_its_promises(
    autojump_clock: MockClock, fifo: bool, script: list[tuple[Any, ...]], run: int, window: int
) -> None:
    small = partial(QueueMachine, run=run, window=window, lanes_read=1, promoted_at_once=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "QueueMachine", small)
        await play(fifo, script)
