"""What a module holds: tasks and inline handlers, `invoke`, and the end of it all."""

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from iii_trio.engine import LATER, Call, Engine, LocalPeer, Outcome, open_local
from iii_trio.protocol import EMPTY_OBJECT, NULL, Json
from iii_trio.protocol.errors import WireError
from iii_trio.testing.raw import RawPort


async def test_invoke_returns_the_result_or_raises_the_error(autojump_clock: MockClock, core: Engine) -> None:
    async with open_local(core, "module") as module:

        def handler(_call: Call, data: Json) -> Outcome:
            if data == NULL:
                raise WireError("no", "code", "trace")
            return Outcome(data)

        module.register("m::f", handler)
        assert await module.invoke("m::f", EMPTY_OBJECT) == EMPTY_OBJECT
        with pytest.raises(WireError) as caught:
            await module.invoke("m::f")
        assert (caught.value.code, caught.value.message, caught.value.stacktrace) == ("code", "no", "trace")
        with pytest.raises(WireError, match=r"Function m::g not found in namespace orders$"):
            await module.invoke("m::g", namespace="orders")


async def test_invoke_gives_up_after_its_time_and_cancels_what_it_called(
    autojump_clock: MockClock, core: Engine
) -> None:
    async with open_local(core, "module") as module:
        ends: list[str] = []

        async def handler(_call: Call, _data: Json) -> Json:
            try:
                await trio.sleep_forever()
            finally:
                ends.append("cancelled")
            return NULL  # pragma: no cover

        module.register("m::f", handler, task=True)
        with pytest.raises(WireError) as caught:
            await module.invoke("m::f", timeout_s=2)
        assert caught.value.code == "TIMEOUT"
        await trio.testing.wait_all_tasks_blocked()
        assert ends == ["cancelled"]
        assert (module.statistics().tasks, module.statistics().runs) == (0, 0)


async def test_what_was_answered_is_returned_even_under_a_cancelled_scope(
    autojump_clock: MockClock, core: Engine
) -> None:
    async with open_local(core, "module") as module:
        called: list[int] = []

        def handler(_call: Call, _data: Json) -> Outcome:
            called.append(1)
            scope.cancel()
            return Outcome(EMPTY_OBJECT)

        module.register("m::f", handler)
        with trio.CancelScope() as scope:
            assert await module.invoke("m::f") == EMPTY_OBJECT
        with trio.CancelScope() as scope:
            scope.cancel()
            await module.invoke("m::f")
        assert scope.cancelled_caught
        assert called == [1], "cancelled before, nothing is called"


async def test_a_call_that_is_cancelled_before_its_task_has_run_never_runs(
    autojump_clock: MockClock, core: Engine
) -> None:
    async with open_local(core, "module") as module:
        ran: list[str] = []

        async def handler(_call: Call, _data: Json) -> Json:
            ran.append("started")
            await trio.lowlevel.checkpoint()
            ran.append("went on")
            return NULL

        module.register("m::f", handler, task=True)
        call = module.call("m::f", NULL, lambda _outcome: ran.append("told"))
        assert call is not None
        module.cancel_call(call)
        await trio.testing.wait_all_tasks_blocked()
        assert "went on" not in ran
        assert "told" not in ran
        assert module.statistics().runs == 0


async def test_tasks_are_bounded(autojump_clock: MockClock, core: Engine) -> None:
    async with open_local(core, "module", task_limit=2) as module:
        gate = trio.Event()

        async def handler(_call: Call, data: Json) -> Json:
            await gate.wait()
            return data

        module.register("m::f", handler, task=True)
        outcomes: list[Outcome] = []
        for number in range(3):
            module.call("m::f", Json.of(number), outcomes.append)
        assert [outcome.exception().code for outcome in outcomes] == ["worker_overloaded"]
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [outcome.result.raw for outcome in outcomes[1:]] in ([b"0", b"1"], [b"1", b"0"])


async def test_a_task_that_crashes_is_one_failed_call(
    autojump_clock: MockClock, core: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_local(core, "module") as module:

        async def handler(_call: Call, _data: Json) -> Json:
            await trio.lowlevel.checkpoint()
            raise RuntimeError("a bug")

        module.register("m::f", handler, task=True)
        with pytest.raises(WireError, match="incident") as caught:
            await module.invoke("m::f")
        assert caught.value.code == "invocation_failed"
        assert "a bug" in caplog.text
        assert await _idle(module)


async def _idle(module: LocalPeer) -> bool:
    await trio.testing.wait_all_tasks_blocked()
    statistics = module.statistics()
    return (statistics.waits, statistics.runs, statistics.tasks) == (0, 0, 0)


async def test_the_end_of_a_module_ends_what_it_runs_and_what_it_waits_for(
    autojump_clock: MockClock, core: Engine, port: RawPort
) -> None:
    worker = await port.connect(features=["cancel.v1"])
    worker.register("a::f")
    await worker.settled()
    ended: list[str] = []
    async with open_local(core, "module") as module:

        async def handler(_call: Call, _data: Json) -> Json:
            try:
                return await module.invoke("a::f")
            finally:
                ended.append("handler")

        def later(_call: Call, _data: Json) -> Any:
            return LATER

        module.register("m::task", handler, task=True)
        module.register("m::later", later)
        calls = [worker.call("m::task"), worker.call("m::later")]
        await worker.next("invokefunction")
        module.call("a::f", NULL, lambda _outcome: ended.append("told"))
        await worker.next("invokefunction")
    for call in calls:
        assert (await worker.result(call))["error"]["code"] == "invocation_stopped"
    assert len([frame for frame in worker.frames if frame["type"] == "cancelinvocation"]) == 2
    assert ended == ["handler"]
    assert (await worker.ask("m::later"))["error"]["code"] == "function_not_found"
    outcomes: list[Outcome] = []
    assert module.call("a::f", NULL, outcomes.append) is None
    assert outcomes[0].exception().code == "invocation_stopped", "a module that has ended calls nobody"
    await trio.sleep(6)
    statistics = core.statistics()
    assert (statistics.running, statistics.waiting) == (0, 0)


async def test_an_error_in_a_module_still_gives_everything_back(autojump_clock: MockClock, core: Engine) -> None:
    with pytest.RaisesGroup(RuntimeError):
        async with open_local(core, "module") as module:
            module.register("m::f", lambda _call, data: Outcome(data))
            raise RuntimeError("start failed")
    assert core.functions.get("default", "m::f") is None
    assert [peer.name for peer in core.locals()] == ["engine"]


async def test_several_may_wait_for_the_engine_to_be_idle(autojump_clock: MockClock, core: Engine) -> None:
    async with open_local(core, "module") as module, trio.open_nursery() as nursery:
        kept: list[Call] = []

        def later(call: Call, _data: Json) -> Any:
            kept.append(call)
            return LATER

        module.register("m::later", later)
        module.call("m::later", NULL, lambda _outcome: None)
        for _ in range(3):
            nursery.start_soon(core.invocations.wait_idle)
        await trio.testing.wait_all_tasks_blocked()
        kept[0].succeed()
