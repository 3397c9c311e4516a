"""Promise P6 at the engine: a peer that is silent, stalled or mad costs itself, and its neighbours nothing."""

import json
import random
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
import trio
import trio.testing
from attrs import define, field

from iii_trio.engine import Clock, Engine, Listener, open_engine
from iii_trio.protocol.limits import DEAD_AFTER_S, OUTBOX_OVERLOADED
from iii_trio.testing import RawWorker, dial, open_proxy

P99_S: Final = 0.1
"""design.md §4: what neighbours may wait beside any traffic."""


@define(eq=False)
class Town:
    """An engine on a real port, and a pair of workers that mind their own business."""

    core: Engine
    listener: Listener
    nursery: trio.Nursery
    caller: RawWorker = field(init=False)
    waits: list[float] = field(factory=list)

    @property
    def port(self) -> int:
        return self.listener.addresses[0][1]

    async def join(self, port: int | None = None, **introduction: Any) -> RawWorker:
        worker = await dial(self.nursery, port or self.port)
        worker.introduce(**introduction)
        await worker.settled()
        return worker

    async def settle(self) -> None:
        executor = await self.join()
        executor.register("neighbour::echo")
        await executor.settled()
        self.nursery.start_soon(self._serve, executor)
        self.caller = await self.join()

    async def _serve(self, executor: RawWorker) -> None:
        while True:
            call = await executor.next("invokefunction")
            executor.answer(call, result=call["data"])

    async def call(self) -> None:
        """One call between the neighbours, timed by what this process, which has all of them, does meanwhile.

        (Other programs of the machine are no neighbours, and take as long as they like.)
        """
        began = time.process_time()
        answer = await self.caller.ask("neighbour::echo", {"n": len(self.waits)})
        assert answer["result"]["n"] == len(self.waits)
        self.waits.append(time.process_time() - began)

    async def live(self) -> None:
        """Call after call, until cancelled."""
        while True:
            await self.call()
            await trio.sleep(0.002)

    def p99(self) -> float:
        return statistics.quantiles(self.waits, n=100)[98]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what nobody tells of. Raises `trio.TooSlowError` after 20 s."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - see above
            await trio.sleep(0.01)


@asynccontextmanager
async def town() -> AsyncIterator[Town]:
    async with open_engine() as core, trio.open_nursery() as nursery:
        listener = Listener(core=core, host="127.0.0.1", port=0)
        await nursery.start(listener.run)
        settled = Town(core, listener, nursery)
        await settled.settle()
        yield settled
        nursery.cancel_scope.cancel()


async def test_a_half_open_connection_is_found_out_and_only_that_one(autojump_clock: trio.testing.MockClock) -> None:
    async with open_engine(clock=Clock(epoch=1_700_000_000)) as core, trio.open_nursery() as nursery:
        listener = Listener(core=core, host="127.0.0.1", port=0)
        await nursery.start(listener.run)
        async with open_proxy(listener.addresses[0][1]) as proxy:
            silent = await dial(nursery, proxy.port)
            silent.introduce(name="silent")
            silent.register("silent::f")
            await silent.settled()
            neighbour = await dial(nursery, listener.addresses[0][1])
            neighbour.introduce(name="neighbour")
            link = await proxy.up()
            link.freeze()
            call = neighbour.call("silent::f")
            await trio.sleep(DEAD_AFTER_S / 2)
            assert core.functions.get("default", "silent::f") is not None
            await trio.sleep(DEAD_AFTER_S / 2 + 2)
            assert (await neighbour.result(call))["error"]["code"] == "invocation_stopped"
            assert core.functions.get("default", "silent::f") is None
            assert [peer.name for peer in core.workers] == ["neighbour"]
            await trio.sleep(10 * DEAD_AFTER_S)
            await neighbour.settled()
        nursery.cancel_scope.cancel()


async def test_a_half_open_worker_comes_back_under_its_own_name_at_once() -> None:
    async with town() as here, open_proxy(here.port) as proxy:
        old = await here.join(proxy.port, name="shop")
        old.register("shop::f")
        await old.settled()
        (await proxy.up()).freeze()
        new = await dial(here.nursery, here.port)
        new.send({"type": "reattach", "previous_worker_id": old.worker_id, "reattach_token": old.reattach_token})
        new.register("shop::f")
        new.introduce(name="shop")
        await new.settled()
        serving = here.core.functions.get("default", "shop::f")
        assert serving is not None
        assert serving.owner.id == new.worker_id
        assert not new.frames


async def test_a_worker_that_stops_reading_is_refused_calls_and_nobody_waits() -> None:
    async with town() as here:
        stalled = await here.join()
        stalled.register("stalled::f")
        await stalled.settled()
        stalled.connection.pause_reading()
        flooder = await here.join()
        codes: set[str] = set()
        sent = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.live)
            while "worker_overloaded" not in codes and sent < 2 * OUTBOX_OVERLOADED:
                flooder.call("stalled::f", "x" * 1_000_000)
                sent += 1_000_000
                await flooder.settled()
                codes |= {frame["error"]["code"] for frame in flooder.frames if "error" in frame}
                flooder.frames.clear()
            assert codes == {"worker_overloaded"}
            before = len(here.waits)
            await until(lambda: len(here.waits) >= before + 100)
            nursery.cancel_scope.cancel()
        peer = here.core.workers.get(stalled.worker_id)
        assert peer is not None
        assert peer.connection.pending_bytes < OUTBOX_OVERLOADED + 2_000_000
        assert here.p99() < P99_S
        stalled.cut()


KINDS: Final[tuple[dict[str, Any], ...]] = (
    {"type": "registerfunction", "id": "mad::f", "metadata": {"iii.shared": True}, "request_format": {"a": [1, 2]}},
    {"type": "unregisterfunction", "id": "mad::f"},
    {"type": "registertriggertype", "id": "mad", "description": "d"},
    {"type": "unregistertriggertype", "id": "mad"},
    {"type": "registertrigger", "id": "mad-1", "trigger_type": "mad", "function_id": "mad::f", "config": {"x": None}},
    {"type": "unregistertrigger", "id": "mad-1", "trigger_type": "mad"},
    {"type": "triggerregistrationresult", "id": "mad-1", "trigger_type": "mad", "function_id": "mad::f"},
    {"type": "registerservice", "id": "mad"},
    {"type": "invokefunction", "function_id": "mad::f", "data": {"deep": [[[{}]]]}, "action": {"type": "void"}},
    {"type": "invokefunction", "function_id": "neighbour::echo", "data": {"n": 1}, "metadata": {}, "baggage": "a=b"},
    {"type": "invokefunction", "function_id": "engine::workers::register", "data": {"name": "mad", "namespace": "m"}},
    {"type": "invokefunction", "function_id": "engine::register_trigger", "data": {"trigger_type": "mad"}},
    {"type": "invokefunction", "function_id": "mad::f", "data": 1, "action": {"type": "enqueue", "queue": "q"}},
    {"type": "invocationresult", "function_id": "mad::f", "result": {"x": "ä€🙂"}, "error": None},
    {"type": "cancelinvocation", "reason": "caller_cancelled"},
    {"type": "reattach", "reattach_token": "00000000-0000-0000-0000-000000000000"},
    {"type": "ping"},
)


def mutated(dice: random.Random) -> bytes:
    """A frame of the protocol with something wrong with it."""
    frame = dict(dice.choice(KINDS))
    if frame["type"] in ("invokefunction", "invocationresult", "cancelinvocation"):
        frame["invocation_id"] = str(uuid.UUID(int=dice.getrandbits(128)))
    if frame["type"] == "reattach":
        frame["previous_worker_id"] = str(uuid.UUID(int=dice.getrandbits(128)))
    if dice.random() < 0.4:
        key = dice.choice(list(frame))
        frame[key] = dice.choice([None, [], {}, "", " ", -1, 1e308, 2**63, True, "\x00", "x" * 5_000, {"a": {"b": []}}])
    text = json.dumps(frame, ensure_ascii=dice.random() < 0.5).encode()
    for _ in range(dice.choice([0, 0, 1, 1, 2, 5])):
        place = dice.randrange(len(text) + 1)
        what = dice.randrange(5)
        if what == 0:
            text = text[:place] + bytes([dice.randrange(256)]) + text[place + 1 :]
        elif what == 1:
            text = text[:place]
        elif what == 2:
            text = (
                text[:place]
                + dice.choice([b'"', b"{", b"}", b"[" * 200, b"\\ud800", b"NaN", b",", b"\xff"])
                + text[place:]
            )
        elif what == 3:
            other = json.dumps(dice.choice(KINDS)).encode()
            text = text[:place] + other[dice.randrange(len(other)) :]
        else:
            text += text[place:]
    if dice.random() < 0.99:  # text that is no UTF-8 ends the connection, and what was sent behind it is not looked at
        text = text.decode(errors="replace").encode()
    return text or b"{"


async def mutate(frames: int) -> None:
    dice = random.Random(frames)
    async with town() as here:
        for _ in range(300):
            await here.call()
        alone, here.waits = here.waits, []
        before = here.core.statistics()
        sent = connections = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.live)
            while sent < frames:
                mad = await dial(nursery, here.port)
                connections += 1
                while sent < frames and mad.closed is None and dice.random() < 0.9:
                    for _ in range(dice.randrange(1, 20)):
                        text = mutated(dice)
                        if mad.closed is None and mad.connection.push(text):
                            sent += 1
                    mad.frames.clear()
                    await trio.lowlevel.checkpoint()
                with suppress(AssertionError):  # ended by the engine
                    await mad.settled()
                mad.cut()
            await until(lambda: len(here.waits) >= 300)
            nursery.cancel_scope.cancel()
        await until(lambda: len(here.core.workers) == 2 and not here.core.statistics().running)
        after = here.core.statistics()
        assert after.bad_frames - before.bad_frames > frames // 5
        assert (after.functions, after.workers) == (before.functions, before.workers)
        durable = here.core.triggers.durable
        assert (after.triggers.live, after.triggers.parked + after.triggers.refused) == (0, durable)
        assert after.triggers.types == 0
        assert here.p99() < P99_S, (statistics.quantiles(alone, n=100)[98], here.p99())
        assert connections > 1


async def test_mutated_frames_cost_only_their_sender(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")
    await mutate(1_000)
    assert not caplog.records


@pytest.mark.long
async def test_ten_thousand_mutated_frames_cost_only_their_sender(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")
    await mutate(10_000)
    assert not caplog.records
