"""Calls at their edges: bounds, ids, sizes, deadlines, late and repeated answers, long chains (spec/protocol.md §7)."""

import json
import uuid
from typing import Any

import pytest
from engine_sync import VOID, SyncCore, SyncWorker

from iii_trio.engine import LATER, Call, LocalPeer, Outcome
from iii_trio.engine.invocations import MAX_NESTED
from iii_trio.protocol import ABSENT, NULL, Json, limits
from iii_trio.protocol.errors import WireError


def pair(**introduction: Any) -> tuple[SyncCore, SyncWorker, SyncWorker]:
    """An executor of `a::f`, and a caller."""
    core = SyncCore()
    executor, caller = core.connect(version="1"), core.connect(**{"version": "1", **introduction})
    executor.register("a::f")
    return core, executor, caller


def invoked(worker: SyncWorker) -> dict[str, Any]:
    frames = worker.take("invokefunction")
    assert len(frames) == 1, frames
    return frames[0]


def answered(worker: SyncWorker) -> dict[str, Any]:
    frames = worker.take("invocationresult")
    assert len(frames) == 1, frames
    return frames[0]


# -- answers ----------------------------------------------------------------------------------------------------------


def test_a_second_answer_and_one_of_nobodys_are_counted_and_dropped() -> None:
    core, executor, caller = pair()
    call = caller.call("a::f")
    for result in (1, 2):
        executor.answer(call, result=result)
    executor.answer(str(uuid.uuid4()), result=3)
    assert answered(caller)["result"] == 1
    assert core.engine.statistics().invocations.late_results == 2


@pytest.mark.parametrize("error", [b"1e999", b'{"message":1e999}', b'{"code":[1e999],"message":"m"}', b'"\\u0000"'])
def test_an_error_that_nobody_can_read_still_ends_the_call(error: bytes) -> None:
    _, executor, caller = pair()
    call = caller.call("a::f").encode()
    executor.send(b'{"type":"invocationresult","invocation_id":"%s","function_id":"f","error":%s}' % (call, error))
    assert answered(caller)["error"]["code"] in ("UNKNOWN", "invalid_message")
    assert not executor.gone


def test_an_id_is_an_id_however_it_is_written() -> None:
    _, executor, caller = pair()
    call = uuid.uuid4()
    caller.call("a::f", invocation_id=call.hex.upper())
    assert invoked(executor)["invocation_id"] == str(call)
    executor.answer(str(call).upper(), result=1)
    assert answered(caller)["invocation_id"] == str(call)


def test_a_frame_whose_id_is_none_is_answered_under_it() -> None:
    core, executor, caller = pair()
    caller.call("a::f", invocation_id="not-an-id")
    answer = answered(caller)
    assert (answer["invocation_id"], answer["error"]["code"]) == ("not-an-id", "invalid_message")
    assert executor.take() == []
    assert core.engine.statistics().bad_frames == 1


def test_ids_that_the_engine_makes_cannot_be_taken_in_advance() -> None:
    """Whoever executes calls sees the engine's ids and can guess the next ones; using them first must hurt nobody."""
    core, executor, caller = pair()
    guesser = core.connect(version="1")
    caller.call("a::f", "void", action=VOID)
    seen = uuid.UUID(invoked(executor)["invocation_id"])
    guesses = [str(uuid.UUID(int=seen.int + number)) for number in range(1, 50)]
    for guess in guesses:
        guesser.call("a::f", "guessed", invocation_id=guess)
    executor.take()
    local = core.local("module")
    heard: list[Any] = []
    for number in range(10):
        local.call("a::f", Json.of(number), lambda outcome: heard.append(outcome.result.decode()))
    fresh = executor.take("invokefunction")
    assert not {frame["invocation_id"] for frame in fresh} & set(guesses)
    for frame in fresh:
        executor.answer(frame["invocation_id"], result=frame["data"])
    assert heard == list(range(10))
    for guess in guesses:
        executor.answer(guess, result="guessed")
    assert {frame["result"] for frame in guesser.take("invocationresult")} == {"guessed"}


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("void", [False, True])
def test_calls_of_one_connection_are_bounded_waited_for_or_not(void: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_trio.engine.invocations.CALLS_PER_PEER", 3)
    core, executor, caller = pair()
    action = {"action": VOID} if void else {}
    calls = [caller.call("a::f", number, **action) for number in range(5)]
    frames = executor.take("invokefunction")
    assert [frame["data"] for frame in frames] == [0, 1, 2]
    refused = caller.take()
    assert [frame["error"]["code"] for frame in refused] == ["too_many_calls"] * 2
    if not void:
        assert [frame["invocation_id"] for frame in refused] == calls[3:]
    neighbour = core.connect(version="1")
    neighbour.call("a::f", "neighbour")
    assert invoked(executor)["data"] == "neighbour"
    executor.answer(frames[0]["invocation_id"])
    caller.take()
    caller.call("a::f", "again", **action)
    assert invoked(executor)["data"] == "again"


def test_calls_that_are_given_up_count_until_their_executor_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_trio.engine.invocations.CALLS_PER_PEER", 2)
    core, _, caller = pair()
    for _ in range(2):
        caller.send({"type": "cancelinvocation", "invocation_id": caller.call("a::f")})
    caller.call("a::f")
    assert answered(caller)["error"]["code"] == "too_many_calls"
    core.advance(6)
    caller.call("a::f")
    assert caller.take() == []


def test_enqueues_of_one_connection_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_trio.engine.enqueues.ENQUEUES_PER_PEER", 2)
    core, provider, caller = pair()
    provider.register("engine::queue::enqueue")
    enqueue = {"type": "enqueue", "queue": "q"}
    calls = [caller.call("a::f", action=enqueue) for _ in range(3)]
    refused = answered(caller)
    assert (refused["invocation_id"], refused["error"]["code"]) == (calls[2], "too_many_calls")
    for frame in provider.take("invokefunction"):
        provider.answer(frame["invocation_id"])
    assert [set(frame["result"]) for frame in caller.take("invocationresult")] == [{"messageReceiptId"}] * 2
    caller.call("a::f", action=enqueue)
    assert len(provider.take("invokefunction")) == 1
    assert core.engine.local.live == 1


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["result", "error"])
def test_what_a_caller_cannot_take_becomes_an_error_whichever_part_it_is(part: str) -> None:
    _, executor, caller = pair(runtime="python", version="0.22.1")
    long = "x" * limits.PEER_MESSAGE_SMALL
    call = caller.call("a::f")
    executor.answer(call, **{part: long if part == "result" else {"code": "c", "message": long}})
    assert all(len(frame) <= limits.PEER_MESSAGE_SMALL for frame in caller.connection.sent)
    assert answered(caller)["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize("over", [-200, -1, 0, 1])
def test_no_frame_exceeds_what_its_receiver_takes(over: int) -> None:
    _, executor, caller = pair(runtime="python", version="0.22.1")
    call = caller.call("a::f", traceparent="t" * 50)
    frame = {"type": "invocationresult", "invocation_id": call, "function_id": "a::f", "result": ""}
    around = len(json.dumps({**frame, "traceparent": "t" * 50}, separators=(",", ":")))
    executor.answer(call, result="x" * (limits.PEER_MESSAGE_SMALL - around + over))
    sent = caller.connection.sent[-1]
    assert len(sent) <= limits.PEER_MESSAGE_SMALL
    assert (b"payload_too_large" in sent) == (over > 0)


def test_a_worker_that_does_not_keep_up_gets_no_new_calls() -> None:
    _, executor, caller = pair()
    executor.connection.overloaded = True
    caller.call("a::f")
    assert answered(caller)["error"]["code"] == "worker_overloaded"
    assert executor.peer.running == {}


def test_a_payload_that_its_wrapping_makes_too_deep_is_refused() -> None:
    core, provider, caller = pair()
    provider.register("engine::queue::enqueue")
    deepest = limits.MAX_DEPTH - 1
    frame = b'{"type":"invokefunction","invocation_id":"%s","function_id":"f","action":{"type":"enqueue"},"data":%s}'
    for depth, refused in ((deepest, True), (deepest - 1, False)):
        caller.send(frame % (str(uuid.uuid4()).encode(), b"[" * depth + b"]" * depth))
        if refused:
            assert answered(caller)["error"]["code"] == "invalid_message"
        else:
            assert len(provider.take("invokefunction")) == 1
    assert core.engine.local.live == 1


def test_a_binary_message_is_text_or_nothing() -> None:
    """What is spliced into another peer's text frame has to be UTF-8, or that peer's connection pays for it."""
    core, executor, caller = pair()
    call = str(uuid.uuid4())
    frame = b'{"type":"invokefunction","invocation_id":"%s","function_id":"a::f","data":"%s"}'
    caller.peer.on_binary(frame % (call.encode(), b"\xff"))
    answer = answered(caller)
    assert (answer["invocation_id"], answer["error"]["code"]) == (call, "invalid_message")
    assert executor.take() == []
    caller.peer.on_binary(frame % (call.encode(), "ä".encode()))
    assert invoked(executor)["data"] == "ä"
    for kind in (b"OTLP", b"MTRC", b"LOGS"):
        caller.peer.on_binary(kind + b"\xff")
    assert caller.peer.telemetry_frames == 3
    assert core.engine.statistics().bad_frames == 1


def test_what_a_peer_made_up_does_not_fill_answers_or_logs(caplog: pytest.LogCaptureFixture) -> None:
    _, _, caller = pair()
    caller.send(b'{"type":"%s"}' % (b"x" * 1_000_000))
    caller.call("f" * 1_000_000, action=VOID)
    assert all(len(frame) < 3_000 for frame in caller.connection.sent)
    assert len(caller.connection.sent) == 2
    assert all(len(record.getMessage()) < 3_000 for record in caplog.records)


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deadline_ms", [0, -5, -(10**400)])
def test_a_deadline_that_has_passed(deadline_ms: int) -> None:
    core, executor, caller = pair()
    caller.call("a::f", deadline_ms=deadline_ms)
    assert invoked(executor)["data"] is None
    core.advance(0.25)
    answer = answered(caller)
    assert answer["error"] == {"code": "TIMEOUT", "message": "a::f did not answer within 0 ms"}


@pytest.mark.parametrize("deadline_ms", [10**13, 10**400])
def test_a_deadline_beyond_all_measure_is_a_long_one(deadline_ms: int) -> None:
    core, executor, caller = pair()
    call = caller.call("a::f", deadline_ms=deadline_ms)
    core.advance(3_600, step=60)
    executor.answer(call, result=1)
    assert answered(caller)["result"] == 1
    assert core.engine.deadlines.statistics().timers == 0


def test_a_call_that_waited_for_its_registration_has_what_remains_of_its_time() -> None:
    """It is made by a timer, long after the batch in which it came."""
    core = SyncCore(default_timeout_s=7.0)
    worker = core.connect()
    worker.register("a::f")
    call = worker.call("a::f")
    core.advance(5.25)
    assert invoked(worker)["invocation_id"] == call
    core.advance(1.5)
    assert worker.take() == []
    core.advance(0.5)
    assert answered(worker)["error"]["code"] == "TIMEOUT"


def test_without_a_default_a_call_waits_as_long_as_it_takes() -> None:
    core = SyncCore(default_timeout_s=0)
    executor, caller = core.connect(version="1"), core.connect(version="1")
    executor.register("a::f")
    call = caller.call("a::f")
    core.advance(1_000_000, step=10_000)
    executor.answer(call, result=1)
    assert answered(caller)["result"] == 1


def test_an_executor_that_asked_for_it_is_told_the_budget_and_the_end() -> None:
    core = SyncCore()
    executor, caller = core.connect(features=["cancel.v1"]), core.connect(version="1")
    executor.register("a::f")
    caller.call("a::f", deadline_ms=2_500)
    invocation = invoked(executor)
    assert invocation["deadline_ms"] == 2_500
    core.advance(2.75)
    assert executor.take() == [
        {"type": "cancelinvocation", "invocation_id": invocation["invocation_id"], "reason": "deadline"}
    ]
    caller.call("a::f")
    second = invoked(executor)["invocation_id"]
    caller.cut()
    assert [frame["invocation_id"] for frame in executor.take("cancelinvocation")] == [second]


# -- settling ---------------------------------------------------------------------------------------------------------


def settle_pair() -> tuple[SyncCore, SyncWorker, LocalPeer, list[Outcome]]:
    core = SyncCore()
    executor = core.connect(version="1")
    executor.register("a::f")
    return core, executor, core.local("module"), []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [({"result": 1}, "1"), ({"error": {"code": "x", "message": "y"}}, "TIMEOUT"), (None, "TIMEOUT")],
)
def test_an_outcome_is_held_back_until_the_executor_has_ended(answer: dict[str, Any] | None, expected: str) -> None:
    core, executor, module, outcomes = settle_pair()
    module.call("a::f", NULL, outcomes.append, timeout_s=1, settle=True)
    call = invoked(executor)["invocation_id"]
    core.advance(2)
    assert outcomes == []
    if answer is None:
        core.advance(5)
    else:
        executor.answer(call, **answer)
    assert [o.result.raw.decode() if o.ok else o.exception().code for o in outcomes] == [expected]
    core.advance(10)
    assert len(outcomes) == 1


def test_the_loss_of_the_executor_ends_the_waiting() -> None:
    core, executor, module, outcomes = settle_pair()
    module.call("a::f", NULL, outcomes.append, timeout_s=1, settle=True)
    core.advance(2)
    executor.cut()
    assert [outcome.exception().code for outcome in outcomes] == ["TIMEOUT"]
    assert module.calls == {}


def test_what_is_cancelled_while_it_is_held_back_is_never_told() -> None:
    core, executor, module, outcomes = settle_pair()
    call = module.call("a::f", NULL, outcomes.append, timeout_s=1, settle=True)
    core.advance(2)
    assert call is not None
    module.cancel_call(call)
    executor.answer(invoked(executor)["invocation_id"], result=1)
    core.advance(10)
    assert (outcomes, module.calls, module.live) == ([], {}, 0)


# -- long chains ------------------------------------------------------------------------------------------------------


def inline(core: SyncCore) -> LocalPeer:
    module = core.local("module")
    module.register("m::now", lambda _call, data: Outcome(data))
    return module


@pytest.mark.parametrize("function_id", ["m::now", "m::missing", "a::full"])
def test_ten_thousand_calls_that_each_start_the_next_need_no_deep_stack(function_id: str) -> None:
    core = SyncCore()
    module = inline(core)
    worker = core.connect(version="1")
    worker.register("a::full")
    worker.connection.overloaded = True
    outcomes: list[bool] = []

    def next_one(outcome: Outcome) -> None:
        outcomes.append(outcome.ok)
        if len(outcomes) < 10_000:
            module.call(function_id, Json.of(len(outcomes)), next_one)

    module.call(function_id, Json.of(0), next_one)
    assert outcomes == [function_id == "m::now"] * 10_000
    assert (module.live, module.calls) == (0, {})


def test_a_call_that_is_put_off_can_still_be_cancelled() -> None:
    core = SyncCore()
    module = inline(core)
    heard: list[int] = []

    def nest(outcome: Outcome) -> None:
        depth = outcome.result.decode()
        if depth < 100:
            module.call("m::now", Json.of(depth + 1), nest)
            call = module.call("m::now", Json.of(-1), lambda _: heard.append(depth))
            assert call is not None
            module.cancel_call(call)

    module.call("m::now", Json.of(0), nest)
    put_off = [depth for depth in range(100) if depth % MAX_NESTED == MAX_NESTED - 1]
    assert sorted([*heard, *put_off]) == list(range(100)), "what was given up before its turn is not told"


def test_many_full_outboxes_that_answer_each_other_end_one_after_the_other() -> None:
    """Giving back one peer's footprint answers its callers, which may be full as well, and so on round the table."""
    core = SyncCore()
    workers = [core.connect(version="1") for _ in range(500)]
    for number, worker in enumerate(workers):
        worker.register(f"f{number}")
    for number, worker in enumerate(workers):
        worker.call(f"f{(number + 1) % len(workers)}")
    for worker in workers:
        worker.connection.full = True
    core.local("module").call("f0", NULL, lambda _outcome: None)
    assert all(worker.gone for worker in workers)
    core.advance(6)
    assert core.engine.statistics().running == 0


# -- accounts ---------------------------------------------------------------------------------------------------------


def test_every_call_counts_once_whatever_becomes_of_it() -> None:
    core, executor, caller = pair()
    entry = core.engine.functions.get("default", "a::f")
    assert entry is not None
    before = core.engine.statistics().invocations.calls
    ok, failed, cancelled = caller.call("a::f"), caller.call("a::f"), caller.call("a::f")
    late = caller.call("a::f", deadline_ms=1_000)
    core.clock.time += 0.5
    executor.answer(ok, result=1)
    executor.answer(failed, error={"code": "x", "message": "y"})
    for _ in range(2):
        caller.send({"type": "cancelinvocation", "invocation_id": cancelled})
    core.advance(1)
    for call in (cancelled, late):
        executor.answer(call, error={"code": "x", "message": "y"})
    assert (entry.count, entry.errors) == (4, 2)
    assert entry.seconds == pytest.approx(0.5 * 3 + 1.25, abs=0.3)
    invocations = core.engine.statistics().invocations
    assert (invocations.calls - before, invocations.cancelled, invocations.timeouts) == (4, 1, 1)
    assert invocations.late_results == 2


def test_a_built_in_that_answers_later_is_timed_to_its_answer() -> None:
    core = SyncCore()
    kept: list[Call] = []

    def later(call: Call, _data: Json) -> Any:
        kept.append(call)
        return LATER

    entry = core.local("module").register("m::later", later)
    caller = core.connect(version="1")
    caller.call("m::later")
    core.clock.time += 3
    kept[0].succeed(ABSENT)
    assert "result" not in answered(caller)
    assert entry.seconds == 3


def test_a_built_in_refuses_and_crashes_for_one_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    core = SyncCore()

    def handler(_call: Call, data: Json) -> Outcome:
        if data.decode() == "refuse":
            raise WireError("no", "code")
        raise RuntimeError("a bug")

    core.local("module").register("m::f", handler)
    caller = core.connect(version="1")
    caller.call("m::f", "refuse")
    assert answered(caller)["error"] == {"code": "code", "message": "no"}
    caller.call("m::f", "crash")
    error = answered(caller)["error"]
    assert error["code"] == "invocation_failed"
    incident = error["message"].partition("incident ")[2].rstrip(")")
    assert incident in caplog.text
    assert "a bug" not in error["message"]


def test_calls_that_take_long_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    core, executor, caller = pair()
    core.engine.invocations.slow_s = 2.0
    for seconds, error in ((1.9, None), (2.0, None), (3.0, {"code": "x", "message": "y"})):
        call = caller.call("a::f")
        core.advance(seconds, step=seconds)
        executor.answer(call, **({"result": 1} if error is None else {"error": error}))
    slow = [record.getMessage() for record in caplog.records if "slow call" in record.getMessage()]
    assert ["a::f in namespace default ended after 2.000 s" in slow[0], "failed after 3.000 s" in slow[1]] == [True] * 2
    assert len(slow) == 2
