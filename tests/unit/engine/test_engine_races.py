"""The race table of `cancel.v1`, row by row: frames in, frames out, with raw workers on both sides (design.md §6).

`CASES` says what each row means on the wire. That no row is missing here, that the real code took the very row that a
case is about, and that the table in the module's docstring is the table in force is tested as well.
"""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field, frozen
from engine_sync import SyncCore, SyncWorker
from trio.testing import MockClock

from iii_trio.engine import LATER, Call, Engine, LocalPeer, Outcome, invocations, open_local, races
from iii_trio.engine.races import RACES, Event, Row, State
from iii_trio.protocol import NULL, Json
from iii_trio.testing.raw import RawPort, RawWorker

CALL = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
DEADLINE_MS = 1_000
AFTER_THE_GRACE_S = 5.2


class Walked(dict[tuple[State, Event], Row]):
    """The table, and which of its rows have been looked up."""

    def __init__(self) -> None:
        super().__init__(RACES)
        self.rows: list[tuple[State, Event]] = []

    def __getitem__(self, key: tuple[State, Event]) -> Row:
        self.rows.append(key)
        return super().__getitem__(key)


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> Walked:
    table = Walked()
    monkeypatch.setattr(invocations, "RACES", table)
    return table


@frozen
class Case:
    """One row on the wire: what the caller hears and what the executor is told, at the event and after the grace.

    `how` picks between the ways in which an event may come. A caller hears a result, an error's code, or nothing. Where
    a call stands in no table of the sender any more, it is not `found` by the frame; see the rows of those who hold it.
    """

    state: State
    event: Event
    next: State
    hears: tuple[Any, ...] = ()
    told: tuple[str, ...] = ()
    later: tuple[Any, ...] = ()
    late: int = 0
    how: str = ""
    found: bool = True

    def __str__(self) -> str:
        return f"{self.state.value} {self.event.value} {self.how}".replace(" ", "-")


R, H, T, D = State.RUNNING, State.HELD, State.TOMBSTONE, State.DONE
STOPPED = "invocation_stopped"

CASES = [
    Case(R, Event.ANSWER, D, hears=(1,), how="result"),
    Case(R, Event.ANSWER, D, hears=("boom",), how="error"),
    Case(R, Event.EXECUTOR_LEFT, D, hears=(STOPPED,)),
    Case(R, Event.DEADLINE, T, hears=("TIMEOUT",), told=("deadline",)),
    Case(R, Event.DEADLINE_SETTLING, H, told=("deadline",), later=("TIMEOUT",)),
    Case(R, Event.CANCELLED, T, told=("caller_cancelled",)),
    Case(R, Event.CANCELLED, T, told=("caller_cancelled",), how="in words of its own"),
    Case(R, Event.CANCELLED, T, told=("caller_disconnected",), how="caller_disconnected"),
    Case(R, Event.CANCELLED, T, told=("deadline",), how="deadline"),
    Case(R, Event.CANCELLED, T, told=("shutdown",), how="shutdown"),
    Case(R, Event.CALLER_LEFT, T, told=("caller_disconnected",)),
    Case(R, Event.SHUTDOWN, H, told=("shutdown",), later=(STOPPED,)),
    Case(H, Event.ANSWER, D, hears=(1,), late=1, how="result"),
    Case(H, Event.ANSWER, D, hears=(STOPPED,), late=1, how="error"),
    Case(H, Event.EXECUTOR_LEFT, D, hears=(STOPPED,)),
    Case(H, Event.GRACE, D, hears=(STOPPED,)),
    Case(H, Event.CANCELLED, T),
    Case(H, Event.CALLER_LEFT, T),
    Case(H, Event.SHUTDOWN, H, later=(STOPPED,)),
    Case(T, Event.ANSWER, D, late=1, how="result"),
    Case(T, Event.ANSWER, D, late=1, how="error"),
    Case(T, Event.EXECUTOR_LEFT, D),
    Case(T, Event.GRACE, D),
    Case(T, Event.CANCELLED, T, found=False),
    Case(T, Event.CALLER_LEFT, T, found=False),
    Case(T, Event.SHUTDOWN, T),
]
OF_THE_ENDED = [key for key in RACES if key[0] is D]


@define(eq=False)
class Stage:
    """A caller, an executor, and one call between them."""

    core: Engine
    port: RawPort
    module: LocalPeer
    caller: RawWorker
    executor: RawWorker
    nursery: trio.Nursery
    invocation: dict[str, Any] = field(factory=dict)
    call: Call | None = None
    outcomes: list[Outcome] = field(factory=list)
    settles: bool = False

    async def begin(self, settle: bool) -> None:
        """Make the call; by a module where it is to settle, which no worker can ask for."""
        self.settles = settle
        if settle:
            self.module.call("x::f", NULL, self.outcomes.append, timeout_s=DEADLINE_MS / 1000, settle=True)
        else:
            self.caller.call("x::f", invocation_id=CALL, deadline_ms=DEADLINE_MS)
        self.invocation = await self.executor.next("invokefunction")
        assert self.invocation["deadline_ms"] == DEADLINE_MS
        peer = self.core.workers.get(self.executor.worker_id)
        assert peer is not None
        self.call = peer.running[self.invocation["invocation_id"]]

    async def bring_to(self, state: State) -> None:
        """Let happen what leads from RUNNING to a state, and hear what is said of that."""
        if state is H:
            await self.happens(Event.SHUTDOWN, "")
        elif state is T:
            await self.happens(Event.CANCELLED, "")
        assert self.call is not None
        assert self.call.state is state
        if state is not R:
            await self.executor.next("cancelinvocation")

    async def happens(self, event: Event, how: str) -> None:
        """One event, by frames, by time, or by what the host does."""
        if event is Event.ANSWER:
            outcome = {"error": {"code": "boom", "message": "b"}} if how == "error" else {"result": 1}
            self.executor.answer(self.invocation, **outcome)
            await self.executor.settled()
        elif event is Event.EXECUTOR_LEFT:
            self.executor.cut()
            await self.port.gone(self.executor)
        elif event in (Event.DEADLINE, Event.DEADLINE_SETTLING):
            await trio.sleep(DEADLINE_MS / 1000 + 0.1)
        elif event is Event.GRACE:
            await trio.sleep(AFTER_THE_GRACE_S)
        elif event is Event.CANCELLED:
            frame = {"type": "cancelinvocation", "invocation_id": CALL}
            self.caller.send({**frame, "reason": how} if how else frame)
            await self.caller.settled()
        elif event is Event.CALLER_LEFT:
            self.caller.cut()
            await self.port.gone(self.caller)
        elif event is Event.SHUTDOWN:
            self.nursery.start_soon(self.core.drain, 0, 60)
        await trio.testing.wait_all_tasks_blocked()

    def heard(self) -> tuple[Any, ...]:
        """What the caller has heard since it was asked last: results, and codes of errors."""
        if self.settles:
            outcomes = [outcome.exception().code for outcome in self.outcomes]
            self.outcomes.clear()
            return tuple(outcomes)
        frames = [frame for frame in self.caller.frames if frame["type"] == "invocationresult"]
        self.caller.frames.clear()
        assert {frame["invocation_id"] for frame in frames} <= {CALL}
        return tuple(frame["error"]["code"] if "error" in frame else frame["result"] for frame in frames)

    def told(self) -> tuple[str, ...]:
        """The reasons that the executor was told since it was asked last."""
        frames = [frame for frame in self.executor.frames if frame["type"] == "cancelinvocation"]
        self.executor.frames.clear()
        assert all(frame["invocation_id"] == self.invocation["invocation_id"] for frame in frames)
        return tuple(frame["reason"] for frame in frames)


@asynccontextmanager
async def staged(core: Engine, port: RawPort, **executor: Any) -> AsyncIterator[Stage]:
    async with open_local(core, "module") as module, trio.open_nursery() as nursery:
        features: dict[str, Any] = {"features": ["cancel.v1"]}
        runs = await port.connect(name="executor", **(executor or features))
        runs.register("x::f")
        await runs.settled()
        calls = await port.connect(name="caller", **features)
        await calls.settled()
        yield Stage(core, port, module, calls, runs, nursery)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_row(case: Case, core: Engine, port: RawPort, walked: Walked, autojump_clock: MockClock) -> None:
    async with staged(core, port) as stage:
        await stage.begin(settle=case.event is Event.DEADLINE_SETTLING)
        await stage.bring_to(case.state)
        late = core.statistics().invocations.late_results
        walked.rows.clear()

        await stage.happens(case.event, case.how)

        assert walked.rows == [(case.state, case.event)] * case.found
        assert stage.call is not None
        assert stage.call.state is case.next
        assert stage.heard() == case.hears
        assert stage.told() == case.told
        assert core.statistics().invocations.late_results == late + case.late
        # whatever it was, it is over after the grace, and nothing more is said than that
        await trio.sleep(AFTER_THE_GRACE_S)
        assert stage.call.state is D
        assert (stage.heard(), stage.told()) == (case.later, ())
        picture = core.statistics()
        assert (picture.running, picture.waiting) == (0, 0)


def test_every_row_has_a_case_and_no_pair_is_missing() -> None:
    assert {(case.state, case.event) for case in CASES} | set(OF_THE_ENDED) == set(RACES)
    assert {(case.state, case.event): case.next for case in CASES} == {
        key: row.next for key, row in RACES.items() if key[0] is not D
    }
    timers = {Event.DEADLINE, Event.DEADLINE_SETTLING, Event.GRACE}
    impossible = {(state, event) for state in State for event in Event} - set(RACES)
    assert impossible == {
        (R, Event.GRACE),  # a running call's timer is its deadline, any other's is its grace, and an ended one has none
        *((state, event) for state in (H, T) for event in timers - {Event.GRACE}),
        *((D, event) for event in timers),
    }


def rows_of_the_docstring() -> Iterator[tuple[tuple[State, Event], State, str, str]]:
    assert races.__doc__ is not None
    states = {state.value: state for state in State}
    events = {event.value: event for event in Event}
    columns = re.search(r"^    (-+) +(-+) +(-+) +(-+) +(-+)$", races.__doc__, re.MULTILINE)
    assert columns is not None
    starts = [columns.start(number) - columns.start() for number in range(1, 6)] + [200]
    lines = races.__doc__[columns.end() :].split("\n\n")[0].strip("\n").splitlines()
    rows: list[list[str]] = []
    for line in lines:
        cells = [line[begin:end].strip() for begin, end in pairwise(starts)]
        if cells[0]:
            rows.append(cells)
        else:  # a cell that goes on
            rows[-1] = [f"{cell} {more}".strip() for cell, more in zip(rows[-1], cells, strict=True)]
    for state, event, after, hears, executor in rows:
        yield (states[state], events[event]), states[after], hears, executor


def test_the_table_that_is_shown_is_the_table_in_force() -> None:
    shown = list(rows_of_the_docstring())
    assert {key for key, *_ in shown} == set(RACES)
    assert len(shown) == len(RACES)
    words = {
        races.Hears.NOTHING: "",
        races.Hears.NEVER: "hears nothing",
        races.Hears.HELD: "gets what was held back",
        races.Hears.BETTER: "gets it if it is a result, else what was held back",
    }
    for key, after, hears, executor in shown:
        row = RACES[key]
        assert after is row.next, key
        assert executor.startswith("is told: ") is row.told, key
        assert (executor == "came late") is row.late, key
        if row.hears is races.Hears.LATER:
            assert hears.endswith((", not yet", ", but not yet")), key
        elif row.hears is races.Hears.OUTCOME:
            assert hears.startswith("gets "), key
        else:
            assert hears == words[row.hears], key


# -- what comes to a call that has ended on one side or both, by way of those who still hold it -----------------------


def full_outbox(core: SyncCore, walked: Walked) -> tuple[SyncWorker, SyncWorker, list[Call]]:
    """A caller with two calls at an executor whose next frame ends its connection."""
    executor, caller = core.connect(features=["cancel.v1"]), core.connect(name="caller")
    executor.register("x::f")
    for _ in range(2):
        caller.call("x::f")
    calls = list(executor.peer.running.values())
    caller.take()
    executor.connection.full = True
    walked.rows.clear()
    return executor, caller, calls


def test_a_second_answer_is_late(walked: Walked) -> None:
    core = SyncCore()
    kept: list[Call] = []

    def later(call: Call, _data: Json) -> Any:
        kept.append(call)
        return LATER

    module, heard = core.local("module"), list[Outcome]()
    module.register("m::f", later)
    call = core.local("caller").call("m::f", NULL, heard.append)
    assert kept == [call]
    kept[0].succeed(Json(b"1"))
    kept[0].succeed(Json(b"2"))
    assert walked.rows == [(R, Event.ANSWER), (D, Event.ANSWER)]
    assert [outcome.result for outcome in heard] == [Json(b"1")]
    assert core.engine.statistics().invocations.late_results == 1


@pytest.mark.parametrize("twice", [True, False])
def test_cancelling_what_has_ended_is_nothing(twice: bool, walked: Walked) -> None:
    core = SyncCore()
    executor, module, heard = core.connect(features=["cancel.v1"]), core.local("module"), list[Outcome]()
    executor.register("x::f")
    walked.rows.clear()
    call = module.call("x::f", NULL, heard.append)
    assert call is not None
    if twice:
        module.cancel_call(call, "deadline")
    else:
        executor.answer(executor.take("invokefunction")[0]["invocation_id"], result=1)
    module.cancel_call(call, "shutdown")
    ended = [(R, Event.CANCELLED), (T, Event.CANCELLED)] if twice else [(R, Event.ANSWER), (D, Event.CANCELLED)]
    assert walked.rows == ended
    assert [frame["reason"] for frame in executor.take("cancelinvocation")] == ["deadline"] * twice
    assert (len(heard), core.engine.statistics().invocations.cancelled) == (1 - twice, twice)


def test_the_caller_of_what_was_cancelled_meanwhile_leaves(walked: Walked) -> None:
    """It leaves, which ends an executor; hearing of that, it cancels another of its calls."""
    core = SyncCore()
    full, healthy = core.connect(features=["cancel.v1"]), core.connect(features=["cancel.v1"])
    full.register("x::f")
    healthy.register("x::g")
    module, heard = core.local("module"), list[Outcome]()

    def second(outcome: Outcome) -> None:
        heard.append(outcome)
        assert other is not None
        module.cancel_call(other)

    module.call("x::f", NULL, heard.append)
    module.call("x::f", NULL, second)
    other = module.call("x::g", NULL, heard.append)
    full.connection.full = True
    walked.rows.clear()
    core.engine.release(module)
    assert walked.rows == [
        (R, Event.CALLER_LEFT),
        (T, Event.EXECUTOR_LEFT),
        (R, Event.EXECUTOR_LEFT),
        (R, Event.CANCELLED),
        (D, Event.CALLER_LEFT),
        (T, Event.CALLER_LEFT),
    ]
    assert [outcome.exception().code for outcome in heard] == [STOPPED]
    assert [frame["reason"] for frame in healthy.take("cancelinvocation")] == ["caller_cancelled"]


def test_the_executor_of_what_has_ended_leaves(walked: Walked) -> None:
    """The news that one call was stopped lets another one of the same executor be answered."""
    core = SyncCore()
    module, caller = core.local("module"), core.local("caller")
    kept: list[Call] = []
    heard: list[str] = []

    def later(call: Call, _data: Json) -> Any:
        kept.append(call)
        return LATER

    def first(outcome: Outcome) -> None:
        heard.append(outcome.exception().code)
        kept[1].succeed()

    module.register("m::f", later)
    caller.call("m::f", NULL, first)
    caller.call("m::f", NULL, lambda outcome: heard.append("answered" if outcome.ok else "failed"))
    core.engine.release(module)
    assert walked.rows == [(R, Event.EXECUTOR_LEFT), (R, Event.ANSWER), (D, Event.EXECUTOR_LEFT)]
    assert heard == [STOPPED, "answered"]


def test_the_caller_of_what_has_ended_leaves(walked: Walked) -> None:
    """Telling the executor of one cancelled call ends its connection, and with it the other call."""
    core = SyncCore()
    executor, caller, calls = full_outbox(core, walked)
    caller.cut()
    assert walked.rows == [
        (R, Event.CALLER_LEFT),
        (T, Event.EXECUTOR_LEFT),
        (R, Event.EXECUTOR_LEFT),
        (D, Event.CALLER_LEFT),
    ]
    assert executor.gone
    assert [call.state for call in calls] == [D, D]


async def test_a_shutdown_finds_a_call_ended(walked: Walked) -> None:
    core = SyncCore()
    executor, caller, calls = full_outbox(core, walked)
    await core.engine.invocations.stop([executor.peer], 1)
    assert walked.rows == [(R, Event.SHUTDOWN), (H, Event.EXECUTOR_LEFT), (R, Event.EXECUTOR_LEFT), (D, Event.SHUTDOWN)]
    assert [frame["error"]["code"] for frame in caller.take("invocationresult")] == [STOPPED, STOPPED]
    assert [call.state for call in calls] == [D, D]


# -- what the table leaves open ---------------------------------------------------------------------------------------


async def test_only_the_callers_connection_cancels_and_only_the_executors_answers(
    core: Engine, port: RawPort, autojump_clock: MockClock
) -> None:
    async with staged(core, port) as stage:
        await stage.begin(settle=False)
        stranger = await port.connect(name="stranger", features=["cancel.v1"])
        for guess in (CALL, stage.invocation["invocation_id"], "nobody-knows", "00000000-0000-4000-8000-000000000000"):
            stranger.send({"type": "cancelinvocation", "invocation_id": guess, "reason": "caller_cancelled"})
            stranger.answer({"invocation_id": guess, "function_id": "x::f"}, result="forged")
        # not even the executor may cancel what it runs
        stage.executor.send({"type": "cancelinvocation", "invocation_id": CALL})
        await stranger.settled()
        await stage.executor.settled()
        assert (stage.heard(), stage.told()) == ((), ())
        assert not stranger.frames
        await stage.happens(Event.ANSWER, "result")
        assert stage.heard() == (1,)


async def test_an_executor_that_does_not_know_cancel_v1_is_told_nothing(
    core: Engine, port: RawPort, autojump_clock: MockClock
) -> None:
    async with staged(core, port, version="0.22.1", runtime="python") as stage:
        stage.caller.call("x::f", invocation_id=CALL, deadline_ms=DEADLINE_MS)
        stage.invocation = await stage.executor.next("invokefunction")
        assert "deadline_ms" not in stage.invocation
        await stage.happens(Event.CANCELLED, "")
        await trio.sleep(1)
        stage.executor.answer(stage.invocation, result="it never knew")
        await stage.executor.settled()
        assert (stage.heard(), stage.told()) == ((), ())
        assert core.statistics().invocations.late_results == 1
        # and it is called as before
        again = stage.caller.call("x::f")
        stage.executor.answer(await stage.executor.next("invokefunction", invocation_id=again), result=2)
        assert (await stage.caller.result(again))["result"] == 2


async def test_an_id_is_not_used_again_while_its_tombstone_stands(
    core: Engine, port: RawPort, autojump_clock: MockClock
) -> None:
    async with staged(core, port) as stage:
        await stage.begin(settle=False)
        await stage.bring_to(T)
        stage.caller.call("x::f", invocation_id=CALL)
        second = await stage.executor.next("invokefunction")
        assert second["invocation_id"] != stage.invocation["invocation_id"]
        stage.executor.answer(stage.invocation, result="late")
        stage.executor.answer(second, result="in time")
        assert (await stage.caller.result(CALL))["result"] == "in time"


async def test_a_cancelled_call_that_has_not_begun_never_does(
    core: Engine, port: RawPort, autojump_clock: MockClock
) -> None:
    """A call waits behind the registration of what it calls, which waits for the connection's namespace."""
    worker = await port.connect()
    worker.register("own::f")
    given_up, wanted = worker.call("own::f"), worker.call("own::f")
    worker.send({"type": "cancelinvocation", "invocation_id": given_up})
    worker.introduce(name="late")
    first = await worker.next("invokefunction")
    assert first["invocation_id"] == wanted
    await worker.settled()
    assert not [frame for frame in worker.frames if frame["type"] == "invokefunction"]


async def test_a_cancel_crosses_the_answer(core: Engine, port: RawPort, autojump_clock: MockClock) -> None:
    async with staged(core, port) as stage:
        await stage.begin(settle=False)
        stage.executor.answer(stage.invocation, result=1)
        stage.caller.send({"type": "cancelinvocation", "invocation_id": CALL})
        await stage.executor.settled()
        await stage.caller.settled()
        # whichever the engine reads first: one answer at most, and nothing is left of the call
        assert stage.heard() in ((1,), ())
        await trio.sleep(AFTER_THE_GRACE_S)
        assert core.statistics().running == core.statistics().waiting == 0


async def test_a_deadline_travels_and_shrinks(core: Engine, port: RawPort, autojump_clock: MockClock) -> None:
    """caller → middle → executor: the middle one passes on what remains, and the engine enforces both."""
    async with staged(core, port) as stage:
        stage.executor.register("x::middle")
        await stage.executor.settled()
        outer = stage.caller.call("x::middle", deadline_ms=2_000)
        middle = await stage.executor.next("invokefunction")
        assert middle["deadline_ms"] == 2_000
        await trio.sleep(0.5)
        inner = stage.executor.call("x::f", deadline_ms=middle["deadline_ms"] - 500)
        assert (await stage.executor.next("invokefunction"))["deadline_ms"] == 1_500
        assert (await stage.caller.result(outer))["error"]["code"] == "TIMEOUT"
        assert (await stage.executor.result(inner))["error"]["code"] == "TIMEOUT"
        reasons = [await stage.executor.next("cancelinvocation") for _ in range(2)]
        assert {frame["reason"] for frame in reasons} == {"deadline"}


@pytest.mark.parametrize("answers", [True, False])
async def test_what_a_drain_cannot_wait_for_is_cancelled_and_may_still_answer(
    answers: bool, core: Engine, port: RawPort, autojump_clock: MockClock
) -> None:
    async with staged(core, port) as stage:
        call = stage.caller.call("x::f", deadline_ms=60_000)
        invocation = await stage.executor.next("invokefunction")
        done: list[bool] = []

        async def drain() -> None:
            done.append(await core.drain(2, unwind_s=1))

        began = trio.current_time()
        stage.nursery.start_soon(drain)
        told = await stage.executor.next("cancelinvocation")
        assert told["reason"] == "shutdown"
        assert trio.current_time() - began == pytest.approx(2, abs=0.1)
        if answers:
            stage.executor.answer(invocation, result="just in time")
        answer = await stage.caller.result(call)
        await trio.testing.wait_all_tasks_blocked()
        assert done == [False]
        if answers:
            assert answer["result"] == "just in time"
            assert trio.current_time() - began == pytest.approx(2, abs=0.1)
        else:
            assert answer["error"] == {
                "code": "invocation_stopped",
                "message": "Invocation stopped: the engine is stopping",
            }
            assert trio.current_time() - began == pytest.approx(3, abs=0.1)
        assert core.statistics().running == core.statistics().waiting == 0


async def test_a_modules_task_passes_the_reason_on(core: Engine, port: RawPort, autojump_clock: MockClock) -> None:
    """Two tasks of modules lie between the caller and the executor."""
    async with staged(core, port) as stage, open_local(core, "relay") as relay:

        async def handler(_call: Call, data: Json) -> Json:
            return await relay.invoke("x::f", data)

        relay.register("m::relay", handler, task=True)
        call = stage.caller.call("m::relay")
        await stage.executor.next("invokefunction")
        stage.caller.send({"type": "cancelinvocation", "invocation_id": call, "reason": "caller_disconnected"})
        assert (await stage.executor.next("cancelinvocation"))["reason"] == "caller_disconnected"
        with trio.move_on_after(1):
            await relay.invoke("x::f")
        assert (await stage.executor.next("cancelinvocation"))["reason"] == "deadline"
