"""Promises P4 and P5: whatever workers do to their connections, nothing of them is left when they have gone.

Ten workers register 100 functions each and bind triggers of every kind, call each other, enqueue, publish and write
state, while their connections end in every way there is: cut, reset, closed, taken over by a reattach, claimed by a
second connection of the same name, frozen, or lost in the middle of registering. Everything runs in this process, with
the modules and stores that `serve` runs, over real sockets.

The snapshot before must equal the one after. The second half of the file takes one step of the release out at a time
and sees the snapshots differ.
"""

import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from attrs import define, field
from churn_snapshot import Snapshot, alive, take
from churn_worker import FUNCTIONS, WORKERS, Churner, Sight, function_ids, join, triggers

from iii_trio.config import parse_config
from iii_trio.engine import Listener, RemotePeer
from iii_trio.engine.functions import Functions
from iii_trio.engine.invocations import Invocations
from iii_trio.engine.triggers import Triggers
from iii_trio.engine.workers import Workers
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides
from iii_trio.modules.bindings import BindingIndex
from iii_trio.modules.http.routes import Routes
from iii_trio.modules.queue import QueuesStatistics
from iii_trio.modules.queue.subscriptions import Subscriptions

GENERATIONS: Final = 4
STEPS: Final = 50
GONE_S: Final = 4.0
"""How long after the last connection's end the engine may take to be as before: P4 says one second, a machine with other
work takes longer; less than the 5 s of the engine's own that would mean that it waits for something."""
DRAINED_S: Final = 30.0

CONFIG: Final = """
workers:
  - name: iii-worker-manager
    config: {port: 0}
  - name: iii-http
    config: {port: 0}
  - name: iii-state
  - name: iii-pubsub
  - name: iii-queue
    config:
      queue_configs:
        default: {max_retries: 1000000, backoff_ms: 0, concurrency: 10}
      adapter: {name: builtin, config: {max_attempts: 1000000, backoff_ms: 0}}
"""


@define(eq=False)
class Arena:
    """An engine in this process, and what workers do to it."""

    running: Running
    nursery: trio.Nursery
    workers: int
    alive_before: Mapping[str, int]
    dice: random.Random = field(factory=lambda: random.Random(1))
    sight: Sight = field(factory=Sight)
    endings: list[str] = field(factory=list)

    @property
    def port(self) -> int:
        return self.running.ports()["worker"][1]

    async def join(self, number: int, *, good: bool = False) -> Churner:
        return await join(self.nursery, self.port, number, random.Random(self.dice.random()), self.sight, good=good)

    # -- good workers

    async def good_generation(self) -> list[Churner]:
        """All workers, everything registered, everything answered; what waited for them is handled when this returns."""
        crew = [await self.join(number, good=True) for number in range(self.workers)]
        for churner in crew:
            churner.register()
        for churner in crew:
            await churner.settled()
        self.check_registries()
        await self.all_consumers(crew)
        with trio.move_on_after(DRAINED_S):
            while not self.quiet():  # noqa: ASYNC110 (no event tells that nothing is left to do)
                await trio.sleep(0.01)
            return crew
        raise AssertionError(f"after {DRAINED_S} s there is still work: {self.running.statistics()}")

    def check_registries(self) -> None:
        """P4: what can be called and what is bound is what live workers hold."""
        core = self.running.core
        callable_now = {entry.id for entry in core.functions if isinstance(entry.owner, RemotePeer)}
        assert callable_now == {one for number in range(self.workers) for one in function_ids(number)}
        bound = {one.id: one.state.value for one in core.triggers if isinstance(one.owner, RemotePeer)}
        assert bound == {one["id"]: "live" for number in range(self.workers) for one in triggers(number)}
        assert {peer.name for peer in core.workers} == {f"churn-{number}" for number in range(self.workers)}

    async def all_consumers(self, crew: list[Churner]) -> None:
        """Keep ten deliveries waiting at once: the queue starts consumers by need and keeps them."""
        first = crew[0]
        first.holding = True
        for _ in range(10):
            crew[-1].call("w0::f1", None, action={"type": "enqueue", "queue": "default"})
        await self.sight.until(lambda: len(first.held) >= 10, "ten deliveries at once")
        first.let_go()

    def quiet(self) -> bool:
        """Whether no call runs, nothing waits for delivery, and every write has been answered."""
        picture = self.running.statistics()
        queues = next(module.module for module in picture.modules if module.name == "queue")
        assert isinstance(queues, QueuesStatistics)
        counts = [queue.counts for queue in queues.queues]
        waiting = sum(each.waiting + each.delayed + each.in_flight for each in counts) + queues.unclaimed
        pending = sum(store.pending for store in picture.stores)
        return not (picture.engine.running or picture.engine.waiting or waiting or pending)

    async def leave(self, crew: list[Churner]) -> None:
        """Everybody goes, in different ways."""
        for churner in crew:
            self.dice.choice([churner.cut, churner.reset, churner.close])()
        for churner in crew:
            await churner.gone()

    # -- the others

    async def life(self, number: int, generations: int, steps: int) -> None:
        """One worker: connections one after the other, and sometimes two at once."""
        churner = await self.join(number)
        for generation in range(generations):
            frozen = number == 3 and generation == 1
            churner.register() if frozen or self.dice.random() < 0.8 else self.register_half(churner)
            for _ in range(steps):
                if churner.closed is not None:
                    break
                churner.step()
                await trio.sleep(self.dice.random() * 0.004)
            churner = await self.succeed(churner, "frozen" if frozen else self.dice.choice(ENDINGS))
        churner.cut()
        await churner.gone()

    def register_half(self, churner: Churner) -> None:
        for frame in churner.registrations()[: FUNCTIONS // 2]:
            churner.send(frame)

    async def succeed(self, old: Churner, ending: str) -> Churner:
        """The connection ends in that way; the next one of the same worker."""
        if ending == "same name" and not old.introduced:
            ending = "close"  # there is no name yet to be claimed
        self.endings.append(ending)
        if ending in ("cut", "reset", "close"):
            getattr(old, ending)()
            if self.dice.random() < 0.5:
                await old.gone()
            return await self.join(old.number)
        if ending == "frozen":
            old.freeze()
            new = await self.join(old.number)
            new.introduce()  # the engine finds out that nobody is there, and gives it the name
            await self.sight.until(lambda: not self.holds(old) or new.closed is not None, "end of a frozen connection")
            assert new.closed is None
            old.cut()
            return new
        new = await self.join(old.number)
        if ending == "reattach":
            new.send({"type": "reattach", "previous_worker_id": old.worker_id, "reattach_token": old.token})
            await old.gone()
            return new
        assert ending == "same name"
        new.introduce()
        await self.sight.until(lambda: new.closed is not None or old.closed is not None, "refusal of a second holder")
        new.cut()
        return old if old.closed is None else await self.join(old.number)

    def holds(self, churner: Churner) -> bool:
        return self.running.core.workers.get(churner.worker_id) is not None

    async def request(self, requests: random.Random) -> None:
        """One HTTP request on a socket of its own; some clients do not wait for the answer."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.running.ports()["http"][1])
        async with stream:
            number, index = requests.randrange(self.workers), requests.randrange(4)
            path = requests.choice([f"/w{number}/r{index}", f"/shared/x/r{index}", "/nowhere"])
            method = "POST" if index % 2 and path.startswith("/w") else "GET"
            head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            await stream.send_all(head.encode())
            with trio.move_on_after(requests.choice([0, 0.005, 1])):
                while await stream.receive_some():
                    pass

    async def browse(self) -> None:
        requests = random.Random(7)
        while True:
            await self.request(requests)
            await trio.sleep(0.01)

    async def churn(self, generations: int, steps: int) -> None:
        """All workers at once, until each has had its connections."""
        async with trio.open_nursery() as browsing:
            for _ in range(3):
                browsing.start_soon(self.browse, name="browser")
            async with trio.open_nursery() as lives:
                for number in range(self.workers):
                    lives.start_soon(self.life, number, generations, steps, name=f"life of worker {number}")
            browsing.cancel_scope.cancel()

    # -- the judgement

    async def take(self) -> Snapshot:
        return await take(self.running, self.alive_before)

    async def before(self) -> Snapshot:
        """The snapshot to compare with, when nothing is under way."""
        with trio.fail_after(GONE_S):
            while self.running.core.statistics().deadlines.timers:  # noqa: ASYNC110 (no event tells)
                await trio.sleep(0.01)
        return await self.take()

    async def settle_to(self, before: Snapshot, within_s: float = GONE_S) -> Snapshot:
        """The first snapshot that equals `before`; the one that does not, when the time that P4 allows is over."""
        deadline = trio.current_time() + within_s
        while True:
            late = trio.current_time() > deadline
            after = await self.take()
            if after == before or late:
                return after


ENDINGS: Final = ("cut", "reset", "close", "reattach", "same name")


@asynccontextmanager
async def arena(directory: Path, workers: int = WORKERS) -> AsyncIterator[Arena]:
    """An engine for the length of the block."""
    alive_before = alive()
    config = parse_config(CONFIG, "churn.yaml", {})
    async with open_host(config, Overrides(data_dir=directory)) as running, trio.open_nursery() as nursery:
        fought_over = Arena(running, nursery, workers, alive_before)
        running.core.events.tap(lambda _event: fought_over.sight.tell())
        yield fought_over
        nursery.cancel_scope.cancel()


async def judge(directory: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "iii_trio")
    caplog.set_level(logging.CRITICAL, "iii_trio.modules.http")  # a line for each handler that fails
    async with arena(directory) as churned:
        churned.dice.seed(seed)
        # what is durable stays on purpose: destinations of topics, so they are there before, too
        await churned.leave(await churned.good_generation())
        before = await churned.before()
        assert not before.workers
        assert all(binding.endswith("::config-watch") for binding, *_ in before.bindings)  # the engine's own

        await churned.churn(GENERATIONS, STEPS)
        await churned.leave(await churned.good_generation())
        after = await churned.settle_to(before)
        assert after == before, before.difference(after)

        # it was worth it
        assert set(churned.endings) == {*ENDINGS, "frozen"}
        assert churned.running.core.statistics().invocations.calls > 2_000
        assert churned.sight.answers > 500
        assert churned.sight.served > 500
        assert {1000, 1006, 1008, 1012} <= set(churned.sight.closes)
    incidents = [record.getMessage() for record in caplog.records if "incident" in record.getMessage()]
    assert not incidents


async def test_nothing_is_left_of_workers_that_churned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await judge(tmp_path, 1, caplog)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 8))
async def test_nothing_is_left_whatever_the_dice_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    await judge(tmp_path, seed, caplog)


# -- the judge, judged ------------------------------------------------------------------------------------------------

kept: list[Any] = []


def keep(peer: Any, *_: Any) -> None:
    """What a forgotten reference does."""
    kept.append(peer)


def spawn(*_: Any) -> None:
    """What a forgotten task does."""
    trio.lowlevel.spawn_system_task(trio.sleep_forever, name="forgotten")


def after_the_original(cls: type, method: str, also: Callable[..., None]) -> Callable[..., Any]:
    original = getattr(cls, method)

    def both(self: Any, *args: Any) -> Any:
        also(self, *args)
        return original(self, *args)

    return both


def nothing(*_: Any, **__: Any) -> None:
    """In the place of a step of the release."""


LEAKS: Final[dict[str, tuple[type, str, Callable[..., Any], str]]] = {
    "functions": (Functions, "release", nothing, "functions: ('default', 'w0::f1'"),
    "calls": (Invocations, "release", nothing, "sizes: Invocations._active"),
    "bindings": (Triggers, "release", nothing, "bindings: ("),
    "workers": (Workers, "release", nothing, "workers: "),
    "timers": (RemotePeer, "released", nothing, "statistics: .engine.deadlines.timers"),
    "routes": (Routes, "unbind", nothing, "statistics: .modules[http].module.routes.serving"),
    "subscriptions": (BindingIndex, "unbind", nothing, "statistics: .modules[pubsub].module.subscriptions"),
    "shares of queues": (Subscriptions, "unbind", nothing, ".shares = "),
    "connections": (Listener, "_forget", nothing, "statistics: .listeners[].connections"),
    "tasks": (Workers, "release", after_the_original(Workers, "release", spawn), "forgotten"),
    "references": (RemotePeer, "released", after_the_original(RemotePeer, "released", keep), "alive: RemotePeer"),
    "private tables": (Triggers, "_take_out", nothing, "sizes: Triggers._by_type"),
}


async def visit(arena: Arena) -> None:
    """Two workers who leave calls behind, and one that has not yet said who it is."""
    first, second, unknown = [await arena.join(number, good=True) for number in (0, 1, 2)]
    first.register()
    second.register()
    unknown.send({"type": "registerfunction", "id": "unknown"})
    await first.settled()
    first.holding = True
    second.call("w0::f1")
    await arena.sight.until(lambda: bool(first.held), "call that stays unanswered")
    for churner in (unknown, second, first):
        await churner.settled()
        churner.cut()
        await churner.gone()


@pytest.mark.parametrize("leak", [None, *LEAKS])
async def test_the_snapshot_shows_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, leak: str | None
) -> None:
    async with arena(tmp_path, workers=2) as visited:
        await visited.leave(await visited.good_generation())
        before = await visited.before()
        with monkeypatch.context() as patched:
            if leak is not None:
                cls, method, replacement, _ = LEAKS[leak]
                patched.setattr(cls, method, replacement)
            await visit(visited)
            after = await visited.settle_to(before, GONE_S if leak is None else 0.3)
        difference = before.difference(after)
        if leak is None:
            assert after == before, difference
        else:
            *_, shown = LEAKS[leak]
            assert shown in difference
        kept.clear()
