"""State that another engine keeps: the same answers, triggers here, and what happens while the other engine is away."""

import random
from typing import Any

import pytest
import trio
import trio.testing
from bridge_harness import URL, Side, Wire, bridged, linked, side
from module_harness import ask, bind, record, running

from iii_trio.config import Live, StateSettings
from iii_trio.modules.bridge import Bridge
from iii_trio.modules.state import StateModule
from iii_trio.protocol import ABSENT, NULL, Json, cancellation
from iii_trio.protocol.errors import ConfigError, WireError
from iii_trio.stores import open_memory
from iii_trio.testing.raw import open_port

KEY = {"scope": "s", "key": "k"}
SCRIPT: list[tuple[str, Any]] = [
    ("state::get", KEY),
    ("state::delete", KEY),
    ("state::list", {"scope": "s"}),
    ("state::list_groups", {}),
    ("state::list_groups", None),
    ("state::set", {**KEY, "value": {"ü": [1, 2.5, None, 2**63], "b": "\u2028"}}),
    ("state::set", {**KEY, "data": None}),
    ("state::get", KEY),
    ("state::set", {"scope": "", "key": "", "value": False}),
    ("state::get", {"scope": "", "key": ""}),
    ("state::update", {**KEY, "ops": [{"type": "set", "path": "", "value": {"n": 1}}]}),
    ("state::update", {**KEY, "ops": [{"type": "increment", "path": "n", "by": 4}, {"type": "remove", "path": "x"}]}),
    (
        "state::update",
        {**KEY, "ops": [{"type": "increment", "path": "n", "by": 1}, {"type": "append", "path": "n", "value": 1}]},
    ),
    ("state::update", {"scope": "s", "key": "new", "ops": [{"type": "append", "path": ["__proto__"], "value": 1}]}),
    ("state::list", {"scope": "s"}),
    ("state::list_groups", {}),
    ("state::delete", KEY),
    ("state::list", {"scope": "s"}),
    ("state::set", {"scope": "s"}),
    ("state::set", {**KEY}),
    ("state::get", {"scope": 1, "key": "k"}),
    ("state::update", {**KEY, "ops": [{"type": "nonsense"}]}),
    ("state::list", None),
]


def calls(side: Side, at: str = "k") -> Any:
    recorder = record(side.user, f"on::{at}")
    bind(side.core, side.user, "state", f"on::{at}", {"scope": "s"})
    return recorder


async def test_every_answer_is_that_of_an_engine_that_keeps_its_state_itself() -> None:
    async with (
        bridged() as (near, _far, _wire),
        side() as alone,
        open_port(near.core) as there,
        open_port(alone.core) as here,
    ):
        through, direct = await there.connect(name="t"), await here.connect(name="d")
        for function_id, payload in SCRIPT:
            answers = [await worker.ask(function_id, payload) for worker in (through, direct)]
            for answer in answers:
                del answer["invocation_id"]
            assert answers[0] == answers[1], (function_id, payload)


async def test_nothing_and_null_come_through_as_different_answers() -> None:
    async with bridged() as (near, far, _wire):
        assert await near.user.invoke("state::get", Json.of(KEY)) == ABSENT
        await ask(far.user, "state::set", {**KEY, "value": None})
        assert await near.user.invoke("state::get", Json.of(KEY)) == NULL
        assert await near.user.invoke("state::delete", Json.of(KEY)) == NULL
        assert await near.user.invoke("state::delete", Json.of(KEY)) == ABSENT


async def test_triggers_fire_on_the_engine_that_was_asked_and_on_the_one_that_keeps_the_state() -> None:
    async with bridged() as (near, far, _wire):
        here, there = calls(near), calls(far)
        await ask(near.user, "state::set", {**KEY, "value": 1})
        await ask(near.user, "state::set", {**KEY, "value": 2})
        await ask(near.user, "state::update", {**KEY, "ops": [{"type": "increment", "path": "", "by": 5}]})
        await ask(near.user, "state::update", {"scope": "s", "key": "not", "ops": []})
        await ask(near.user, "state::delete", KEY)
        await ask(near.user, "state::delete", KEY)
        await ask(far.user, "state::set", {**KEY, "value": "from there"})
        kinds = [(event["event_type"], event["old_value"], event["new_value"]) for event in await here.wait(5)]
        assert kinds == [
            ("state:created", None, 1),
            ("state:updated", 1, 2),
            ("state:updated", 2, 7),
            ("state:deleted", 7, None),
            ("state:deleted", None, None),
        ]
        assert [event["event_type"] for event in await there.wait(6)] == [
            *(kind for kind, _, _ in kinds),
            "state:created",
        ]
        assert len(here.payloads) == 5


async def test_a_size_limit_of_either_engine_is_the_usual_error() -> None:
    async with trio.open_nursery() as nursery, side(max_value_bytes=20) as far:
        wire = Wire(nursery, far.core)
        async with side(Bridge(URL, open_stream=wire.open_stream), max_value_bytes=10) as near:
            for size in (10, 20):
                with pytest.raises(WireError) as caught:
                    await ask(near.user, "state::set", {**KEY, "value": "x" * size})
                assert caught.value.code == "VALUE_TOO_LARGE"
                assert "limit of 10" in caught.value.message
            with pytest.raises(WireError) as caught:
                await ask(near.user, "state::update", {**KEY, "ops": [{"type": "set", "path": "", "value": "x" * 30}]})
            assert caught.value.code == "VALUE_TOO_LARGE"
            assert "limit of 20" in caught.value.message
        nursery.cancel_scope.cancel()


async def test_a_storm_of_writes_keeps_every_one_in_its_order() -> None:
    async with bridged() as (near, far, _wire):
        events = calls(near)
        async with open_port(near.core) as port:
            worker = await port.connect(name="w")
            ids = [worker.call("state::set", {**KEY, "value": number}) for number in range(1500)]
            ids += [worker.call("state::update", {**KEY, "ops": [{"type": "increment", "path": "", "by": 1}]})] * 1
            for invocation_id in ids:
                assert "error" not in await worker.result(invocation_id)
        values = [event["new_value"] for event in await events.wait(1501)]
        assert values == [*range(1500), 1500]
        assert await ask(far.user, "state::get", KEY) == 1500


# -- away -----------------------------------------------------------------------------------------------------------------


async def test_a_short_absence_is_waited_for_and_a_long_one_fails_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bridged() as (near, far, wire):
        wire.up = False
        wire.cut()
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        with pytest.raises(WireError) as caught:
            await ask(near.user, "state::set", {**KEY, "value": 1})
        assert caught.value.code == "SET_ERROR"
        assert caught.value.message.startswith(f"Failed to set value via bridge: {URL} is not connected")
        assert 4.5 < trio.current_time() - began < 6
        began = trio.current_time()
        codes = []
        for function_id, payload in [
            ("state::get", KEY),
            ("state::delete", KEY),
            ("state::update", {**KEY, "ops": []}),
            ("state::list", {"scope": "s"}),
            ("state::list_groups", {}),
        ]:
            with pytest.raises(WireError) as caught:
                await ask(near.user, function_id, payload)
            codes.append(caught.value.code)
        assert codes == ["GET_ERROR", "DELETE_ERROR", "UPDATE_ERROR", "LIST_ERROR", "LIST_GROUPS_ERROR"]
        assert trio.current_time() == began
        wire.up = True
        await linked(near)
        await ask(near.user, "state::set", {**KEY, "value": 2})
        assert await ask(far.user, "state::get", KEY) == 2


async def test_what_waits_is_sent_in_order_once_the_link_is_back(autojump_clock: trio.testing.MockClock) -> None:
    async with bridged() as (near, far, wire):
        events = calls(far)
        wire.cut()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(ask, near.user, "state::set", {**KEY, "value": number})
                await trio.testing.wait_all_tasks_blocked()
        assert [event["new_value"] for event in await events.wait(20)] == list(range(20))


async def test_what_waits_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    async with bridged() as (near, _far, wire):
        wire.up = False
        wire.cut()
        await trio.testing.wait_all_tasks_blocked()
        async with open_port(near.core) as port:
            worker = await port.connect(name="w")
            ids = [worker.call("state::set", {**KEY, "value": number}) for number in range(1100)]
            answers = [await worker.result(invocation_id) for invocation_id in ids]
        overloaded = [answer for answer in answers if "requests wait" in answer["error"]["message"]]
        assert len(overloaded) == 100
        assert near.bridge is not None
        picture = near.bridge.statistics()
        assert (picture.running, picture.waiting, picture.failed) == (0, 0, 1100)


async def test_an_engine_that_does_not_answer_is_given_its_time_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with bridged() as (near, _far, wire):
        wire.freeze()
        began = trio.current_time()
        with pytest.raises(WireError) as caught:
            await ask(near.user, "state::set", {**KEY, "value": 1})
        assert (caught.value.code, "did not answer within 30 s" in caught.value.message) == ("SET_ERROR", True)
        assert 30 <= trio.current_time() - began < 31
        began = trio.current_time()
        with pytest.raises(WireError) as caught:
            await ask(near.user, "state::get", KEY, timeout_s=2)
        assert caught.value.code in ("TIMEOUT", "GET_ERROR")
        assert trio.current_time() - began < 3


async def test_what_was_under_way_when_the_link_broke_fails_and_is_not_sent_twice() -> None:
    async with trio.open_nursery() as nursery, running() as (core, user):
        asked = record(user, "state::increment")
        started = trio.Event()

        async def slow(_call: Any, _data: Json) -> Json:
            asked.payloads.append("set")
            started.set()
            await trio.sleep_forever()
            raise AssertionError

        user.register("state::set", slow, task=True)
        wire = Wire(nursery, core)
        async with side(Bridge(URL, open_stream=wire.open_stream)) as near:
            await linked(near)
            async with trio.open_nursery() as caller:
                caller.start_soon(_fails, near, "the connection to the engine was lost")
                await started.wait()
                wire.cut()
            await linked(near)
            assert asked.payloads == ["set"]
        nursery.cancel_scope.cancel()


async def _fails(near: Side, why: str) -> None:
    with pytest.raises(WireError, match=why) as caught:
        await ask(near.user, "state::set", {**KEY, "value": 1})
    assert caught.value.code == "SET_ERROR"


# -- what goes along --------------------------------------------------------------------------------------------------------


async def test_trace_deadline_and_cancellation_go_along_and_a_write_is_left_to_end() -> None:
    seen: list[tuple[str | None, Any, float]] = []
    ended: list[str | None] = []
    asked, go_on = trio.Event(), trio.Event()

    async def get(call: Any, _data: Json) -> Json:
        seen.append((call.traceparent, Json(call.metadata).decode(), call.deadline))
        asked.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            ended.append(cancellation.reason_of(cancelled))
            raise
        raise AssertionError

    async def write(call: Any, _data: Json) -> Json:
        asked.set()
        await go_on.wait()
        return Json.of({"old_value": None, "new_value": 1})

    async with trio.open_nursery() as nursery, running() as (core, user):
        user.register("state::get", get, task=True)
        user.register("state::set", write, task=True)
        wire = Wire(nursery, core)
        async with side(Bridge(URL, open_stream=wire.open_stream)) as near:
            await linked(near)
            trace = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as caller:
                    caller.start_soon(_get, near, trace)
                    await asked.wait()
                    scope.cancel(reason="caller_disconnected")
            await trio.testing.wait_all_tasks_blocked()
            ((traceparent, metadata, deadline),) = seen
            assert (traceparent, metadata) == (trace, {"iii.bridge": [near.core.id]})
            assert 0 < deadline - core.clock.now() <= 30
            assert ended == ["caller_disconnected"]

            asked = trio.Event()
            events = calls(near)
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as caller:
                    caller.start_soon(ask, near.user, "state::set", {**KEY, "value": 1})
                    await asked.wait()
                    scope.cancel()
            go_on.set()
            (event,) = await events.wait(1)
            assert event["event_type"] == "state:created"
        nursery.cancel_scope.cancel()


async def _get(near: Side, trace: str) -> None:
    await near.user.invoke("state::get", Json.of(KEY), traceparent=trace)


# -- circles ----------------------------------------------------------------------------------------------------------------


async def test_engines_that_bridge_in_a_circle_say_so() -> None:
    async with trio.open_nursery() as nursery:
        to_one, to_two = Wire(nursery), Wire(nursery)
        async with (
            side(Bridge(URL, open_stream=to_two.open_stream)) as one,
            side(Bridge(URL, open_stream=to_one.open_stream)) as two,
        ):
            to_one.core, to_two.core = one.core, two.core
            await linked(one)
            await linked(two)
            with pytest.raises(WireError, match="bridge to each other in a circle"):
                await ask(one.user, "state::set", {**KEY, "value": 1})
            with pytest.raises(WireError, match="in a circle"):
                await ask(two.user, "stream::list_groups", {"stream_name": "s"})
        nursery.cancel_scope.cancel()


async def test_an_engine_that_meets_itself_says_so() -> None:
    async with trio.open_nursery() as nursery:
        wire = Wire(nursery)
        async with side(Bridge(URL, open_stream=wire.open_stream)) as near:
            wire.core = near.core
            await linked(near)
            with pytest.raises(WireError, match="leads back to this engine; name another engine's worker port"):
                await ask(near.user, "state::get", KEY)
        nursery.cancel_scope.cancel()


async def test_several_engines_bridge_to_one_under_names_of_their_own() -> None:
    async with trio.open_nursery() as nursery, side() as far:
        wire = Wire(nursery, far.core)
        async with (
            side(Bridge(URL, open_stream=wire.open_stream)) as one,
            side(Bridge(URL, open_stream=wire.open_stream)) as two,
        ):
            await linked(one)
            await linked(two)
            await ask(one.user, "state::set", {**KEY, "value": 1})
            assert await ask(two.user, "state::get", KEY) == 1
            names = {worker.name for worker in far.core.workers}
            assert names == {f"iii-bridge-{one.core.id}", f"iii-bridge-{two.core.id}"}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("url", ["http://localhost:1", "ws://", "nonsense", "ws://h:70000"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="bridge_url"):
        Bridge(url)


async def test_a_bridge_that_does_not_run_fails_at_once() -> None:
    async with open_memory() as store:
        module = StateModule(Live(StateSettings()), store.key_value("state"), Bridge(URL))
        async with running(module) as (_, user):
            with pytest.raises(WireError, match="via bridge: the bridge is not running"):
                await ask(user, "state::get", KEY)


@pytest.mark.parametrize("seed", range(4))
async def test_every_call_ends_and_no_acknowledged_write_is_lost_whatever_happens_to_the_link(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    dice = random.Random(seed)
    acknowledged = unknown = 0

    async def add(near: Side) -> None:
        nonlocal acknowledged, unknown
        await trio.sleep(dice.uniform(0, 60))
        timeout_s = dice.choice([0.05, 1.0, 10.0, 100.0])
        try:
            ops = [{"type": "increment", "path": "", "by": 1}]
            await ask(near.user, "state::update", {**KEY, "ops": ops}, timeout_s=timeout_s)
            acknowledged += 1
        except WireError as error:
            assert error.code in ("UPDATE_ERROR", "TIMEOUT")  # noqa: PT017 - both ways of ending are fine
            unknown += 1

    async def harm(wire: Wire) -> None:
        while True:
            await trio.sleep(dice.uniform(0.1, 8))
            match dice.choice(["cut", "freeze", "down"]):
                case "cut":
                    wire.cut()
                case "freeze":
                    wire.freeze()
                    await trio.sleep(dice.uniform(0.1, 40))
                    wire.thaw()
                case "down":
                    wire.up = False
                    wire.cut()
                    await trio.sleep(dice.uniform(0.1, 12))
                    wire.up = True

    async with bridged() as (near, far, wire):
        await ask(far.user, "state::set", {**KEY, "value": 0})
        before = near.core.statistics()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harm, wire)
            async with trio.open_nursery() as callers:
                for _ in range(150):
                    callers.start_soon(add, near)
            nursery.cancel_scope.cancel()
        wire.up = True
        wire.thaw()
        await trio.sleep(120)
        await linked(near)
        stored = await ask(near.user, "state::get", KEY)
        assert acknowledged <= stored <= acknowledged + unknown
        assert acknowledged > 0
        assert near.bridge is not None
        picture = near.bridge.statistics()
        assert (picture.running, picture.waiting) == (0, 0)
        after = near.core.statistics()
        assert (after.running, after.waiting, after.functions) == (before.running, before.waiting, before.functions)
        names = [worker.name for worker in far.core.workers]
        assert names == [f"iii-bridge-{near.core.id}"]


async def test_a_secret_in_the_url_stays_out_of_errors(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        wire = Wire(nursery)
        async with side(Bridge("ws://me:pw@host:1/path?token=secret", open_stream=wire.open_stream)) as near:
            with pytest.raises(WireError) as caught:
                await ask(near.user, "state::get", KEY)
            assert "via bridge: ws://host:1/path is not connected" in caught.value.message
        nursery.cancel_scope.cancel()
