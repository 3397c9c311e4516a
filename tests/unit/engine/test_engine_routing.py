"""Routing and answers (spec/protocol.md §7), seen by raw peers on both sides."""

import uuid
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from iii_trio.engine import open_local
from iii_trio.protocol import Json
from iii_trio.testing.raw import RawPort, RawWorker


async def pair(port: RawPort, *functions: str) -> tuple[RawWorker, RawWorker]:
    """An executor with these functions, and a caller."""
    executor = await port.connect(name="executor")
    for function in functions:
        executor.register(function)
    await executor.settled()
    caller = await port.connect(name="caller")
    return executor, caller


async def test_unknown_function_is_answered_with_a_hint(autojump_clock: MockClock, port: RawPort) -> None:
    executor = await port.connect(namespace="orders")
    executor.register("a::f")
    await executor.settled()
    caller = await port.connect()
    answer = await caller.ask("a::f")
    assert answer["error"] == {
        "code": "function_not_found",
        "message": "Function a::f not found in namespace default. It is registered in namespace(s): orders.",
    }
    answer = await caller.ask("a::g")
    assert answer["error"]["message"] == "Function a::g not found in namespace default."


async def test_blank_namespace_is_refused(autojump_clock: MockClock, port: RawPort) -> None:
    caller = await port.connect()
    answer = await caller.ask("a::f", namespace="  ")
    assert answer["error"]["code"] == "INVALID_NAMESPACE"
    assert answer["error"]["message"].startswith("`namespace` is empty")


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        ({}, {}),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
        ({"_caller_worker_id": "forged"}, {}),
        ([1, 2], [1, 2]),
        ("text", "text"),
        (None, None),
    ],
)
async def test_the_caller_id_goes_into_objects_only(
    autojump_clock: MockClock, port: RawPort, sent: Any, got: Any
) -> None:
    executor, caller = await pair(port, "a::f")
    caller.call("a::f", sent)
    data = (await executor.next("invokefunction"))["data"]
    assert data == ({**got, "_caller_worker_id": caller.worker_id} if isinstance(got, dict) else got)


async def test_a_missing_data_key_is_null(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    caller.send({"type": "invokefunction", "invocation_id": str(uuid.uuid4()), "function_id": "a::f"})
    assert (await executor.next("invokefunction"))["data"] is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"result": None}, {"result": None}),
        ({}, {}),
        ({"result": [1]}, {"result": [1]}),
        ({"result": 1, "error": None}, {"result": 1}),
        (
            {"error": {"code": "x", "message": "y", "stacktrace": "z"}},
            {"error": {"code": "x", "message": "y", "stacktrace": "z"}},
        ),
        ({"error": {"message": "no code"}}, {"error": {"code": "UNKNOWN", "message": "no code"}}),
        ({"error": "boom"}, {"error": {"code": "UNKNOWN", "message": "boom"}}),
        ({"result": 1, "error": {"code": "x", "message": "wins"}}, {"error": {"code": "x", "message": "wins"}}),
    ],
)
async def test_answers_pass_as_they_were_sent(
    autojump_clock: MockClock, port: RawPort, answer: dict[str, Any], expected: dict[str, Any]
) -> None:
    executor, caller = await pair(port, "a::f")
    call = caller.call("a::f")
    executor.answer(await executor.next("invokefunction"), **answer)
    got = await caller.result(call)
    assert {k: v for k, v in got.items() if k not in ("type", "invocation_id", "function_id")} == expected


async def test_trace_context_and_metadata_travel(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    call = caller.call(
        "a::f", 1, traceparent="00-1-2-01", baggage="k=v,iii.function.id=old", metadata={"m": [1]}, action=None
    )
    got = await executor.next("invokefunction")
    assert got["traceparent"] == "00-1-2-01"
    assert got["baggage"] == "k=v,iii.function.id=a::f"
    assert got["metadata"] == {"m": [1]}
    assert "action" not in got
    assert "namespace" not in got
    executor.answer(got, result=1, traceparent="executor's own")
    answer = await caller.result(call)
    assert (answer["traceparent"], answer["baggage"]) == ("00-1-2-01", "k=v,iii.function.id=old")


async def test_void_calls_run_and_are_never_answered(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    void = caller.call("a::f", 1, action={"type": "void"})
    executor.answer(await executor.next("invokefunction"), result=1)
    await executor.settled()
    await caller.settled()
    assert not [frame for frame in caller.frames if frame.get("invocation_id") == void]
    assert port.core.statistics().running == 0


async def test_a_void_call_outlives_its_caller(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    caller.call("a::f", 1, action={"type": "void"})
    got = await executor.next("invokefunction")
    caller.cut()
    await port.gone(caller)
    assert port.core.statistics().running == 1
    executor.answer(got, result=1)
    await executor.settled()
    assert port.core.statistics().running == 0


async def test_a_void_call_of_a_missing_function_tells_its_sender_alone(
    autojump_clock: MockClock, port: RawPort
) -> None:
    caller = await port.connect()
    caller.call("a::nope", action={"type": "void"})
    assert (await caller.next("error"))["error"]["code"] == "function_not_found"


async def test_executor_lost(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    call = caller.call("a::f")
    await executor.next("invokefunction")
    executor.cut()
    assert (await caller.result(call))["error"] == {"code": "invocation_stopped", "message": "Invocation stopped"}
    assert (await caller.ask("a::f"))["error"]["code"] == "function_not_found"


async def test_caller_lost_leaves_a_tombstone_that_ends(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    caller.call("a::f")
    got = await executor.next("invokefunction")
    caller.cut()
    await port.gone(caller)
    assert port.core.statistics().waiting == 0
    executor.answer(got, result=1)
    await executor.settled()
    statistics = port.core.statistics()
    assert (statistics.running, statistics.invocations.late_results) == (0, 1)


async def test_a_call_without_an_answer_times_out_in_the_engine(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    began = trio.current_time()
    answer = await caller.ask("a::f", deadline_ms=2_000)
    assert answer["error"] == {"code": "TIMEOUT", "message": "a::f did not answer within 2000 ms"}
    assert 2.0 <= trio.current_time() - began < 2.1
    late = await executor.next("invokefunction")
    executor.answer(late, result="late")
    await executor.settled()
    await caller.settled()
    assert port.core.statistics().invocations.late_results == 1
    assert not caller.frames


async def test_the_default_deadline(autojump_clock: MockClock, port: RawPort) -> None:
    _executor, caller = await pair(port, "a::f")
    call = caller.call("a::f")
    began = trio.current_time()
    await caller.settled()
    with trio.fail_after(4000):
        while True:
            try:
                answer = await caller.result(call)
            except AssertionError:
                continue
            break
    assert answer["error"]["code"] == "TIMEOUT"
    assert 3600 <= trio.current_time() - began < 3602


async def test_a_repeated_id_gets_both_answers(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    call = caller.call("a::f", 1)
    caller.call("a::f", 2, invocation_id=call)
    first, second = await executor.next("invokefunction"), await executor.next("invokefunction")
    assert first["invocation_id"] != second["invocation_id"]
    executor.answer(second, result="second")
    executor.answer(first, result="first")
    assert {(await caller.result(call))["result"] for _ in range(2)} == {"first", "second"}


async def test_two_callers_may_choose_one_id(autojump_clock: MockClock, port: RawPort) -> None:
    executor, one = await pair(port, "a::f")
    two = await port.connect()
    call = one.call("a::f", "one")
    await one.settled()
    two.call("a::f", "two", invocation_id=call)
    for _ in range(2):
        got = await executor.next("invokefunction")
        executor.answer(got, result=got["data"])
    assert (await one.result(call))["result"] == "one"
    assert (await two.result(call))["result"] == "two"


async def test_only_the_executor_can_answer(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    thief = await port.connect()
    call = caller.call("a::f")
    got = await executor.next("invokefunction")
    thief.answer(got, result="stolen")
    await thief.settled()
    executor.answer(got, result="real")
    assert (await caller.result(call))["result"] == "real"


async def test_bad_frames_are_answered_where_they_name_a_call(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    broken = str(uuid.uuid4())
    caller.send_text(b'{"type":"invokefunction","invocation_id":"%s","function_id":7}' % broken.encode())
    assert (await caller.result(broken))["error"]["code"] == "invalid_message"
    call = caller.call("a::f")
    got = await executor.next("invokefunction")
    executor.send_text(b'{"type":"invocationresult","invocation_id":"%s","result":NaN}' % got["invocation_id"].encode())
    assert (await caller.result(call))["error"]["code"] == "invalid_message"
    for text in (b"garbage", b'{"type":"nonsense"}', b'{"type":"registerfunction"}', b"[]"):
        caller.send_text(text)
        assert (await caller.next("error"))["error"]["code"] == "invalid_message"
    caller.send_text(b"  ")
    await caller.settled()
    assert port.core.statistics().bad_frames == 6
    assert (await caller.ask("a::g"))["error"]["code"] == "function_not_found"


async def test_a_bad_cancel_does_not_answer_the_call_that_it_names(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    call = caller.call("a::f")
    got = await executor.next("invokefunction")
    cancel = b'{"type":"cancelinvocation","invocation_id":"%s","reason":5}'
    caller.send_text(cancel % call.encode())
    assert (await caller.next("error"))["error"]["code"] == "invalid_message"
    executor.send_text(cancel % got["invocation_id"].encode())
    assert (await executor.next("error"))["error"]["code"] == "invalid_message"
    executor.answer(got, result="the one answer")
    assert (await caller.next("invocationresult"))["result"] == "the one answer"


@pytest.mark.parametrize("data", ["[" * 200 + "]" * 200, '"\\ud800"'])
async def test_what_would_break_the_next_peer_is_refused_here(
    autojump_clock: MockClock, port: RawPort, data: str
) -> None:
    executor, caller = await pair(port, "a::f")
    broken = str(uuid.uuid4())
    caller.send_text(
        b'{"type":"invokefunction","invocation_id":"%s","function_id":"a::f","data":%s}'
        % (broken.encode(), data.encode())
    )
    answer = await caller.result(broken)
    assert (answer["error"]["code"], answer["function_id"]) == ("invalid_message", "a::f")
    await executor.settled()
    assert not executor.frames


async def test_what_a_small_peer_cannot_take_goes_back_to_the_caller(autojump_clock: MockClock, port: RawPort) -> None:
    executor = await port.connect(runtime="python", version="0.11.6")
    executor.register("a::f")
    await executor.settled()
    caller = await port.connect(runtime="python", version="0.22.1")
    answer = await caller.ask("a::f", "x" * 1_100_000)
    assert answer["error"]["code"] == "payload_too_large"
    call = caller.call("a::f")
    executor.answer(await executor.next("invokefunction"), result="x" * 1_100_000)
    assert (await caller.result(call))["error"]["code"] == "payload_too_large"
    assert executor.closed is None
    assert caller.closed is None


async def test_a_70_mib_message_is_answered_and_costs_its_sender_nothing_else(
    autojump_clock: MockClock, port: RawPort
) -> None:
    executor, caller = await pair(port, "a::f")
    broken = str(uuid.uuid4())
    head = b'{"type":"invokefunction","invocation_id":"%s","function_id":"a::f","data":"' % broken.encode()
    caller.send_text(head + b"x" * (70 << 20) + b'"}')
    answer = await caller.result(broken)
    assert answer["error"]["code"] == "payload_too_large"
    assert "limit" in answer["error"]["message"] or "takes" in answer["error"]["message"]
    call = caller.call("a::f")
    executor.answer(await executor.next("invokefunction"), result=1)
    assert (await caller.result(call))["result"] == 1


async def test_a_huge_message_without_a_name_ends_with_1009(autojump_clock: MockClock, port: RawPort) -> None:
    caller = await port.connect()
    caller.send_text(b'{"data":"' + b"x" * (65 << 20) + b'"}')
    assert (await caller.wait_closed()).code == 1009


async def test_cancel_goes_through_to_an_executor_that_knows_it(autojump_clock: MockClock, port: RawPort) -> None:
    executor = await port.connect(features=["cancel.v1"])
    executor.register("a::f")
    await executor.settled()
    caller = await port.connect()
    call = caller.call("a::f", deadline_ms=60_000)
    got = await executor.next("invokefunction")
    assert got["deadline_ms"] == 60_000
    caller.send({"type": "cancelinvocation", "invocation_id": call})
    cancel = await executor.next("cancelinvocation")
    assert cancel == {
        "type": "cancelinvocation",
        "invocation_id": got["invocation_id"],
        "reason": "caller_cancelled",
    }
    executor.answer(got, error={"code": "invocation_cancelled", "message": "cancelled"})
    await executor.settled()
    await caller.settled()
    assert not caller.frames
    assert port.core.statistics().running == 0


async def test_the_enqueue_action_without_a_provider(autojump_clock: MockClock, port: RawPort) -> None:
    caller = await port.connect()
    answer = await caller.ask("a::f", {"x": 1}, action={"type": "enqueue", "queue": "q"})
    assert answer["function_id"] == "a::f"
    assert answer["error"]["code"] == "enqueue_error"
    assert "engine::queue::enqueue" in answer["error"]["message"]
    assert "iii worker add queue" in answer["error"]["message"]


async def test_the_enqueue_action_with_a_provider(autojump_clock: MockClock, port: RawPort) -> None:
    provider, caller = await pair(port, "engine::queue::enqueue")
    call = caller.call(
        "a::f", {"x": 1}, action={"type": "enqueue", "queue": "q"}, traceparent="t", baggage="k=v", namespace="ns"
    )
    request = await provider.next("invokefunction")
    got = request["data"]
    receipt = got.pop("messageReceiptId")
    assert got == {
        "queue": "q",
        "function_id": "a::f",
        "data": {"x": 1},
        "traceparent": "t",
        "baggage": "k=v,iii.function.id=a::f",
        "namespace": "ns",
    }
    provider.answer(request, result={"ignored": True})
    assert (await caller.result(call))["result"] == {"messageReceiptId": receipt}


async def test_unknown_actions_are_refused(autojump_clock: MockClock, port: RawPort) -> None:
    caller = await port.connect()
    answer = await caller.ask("a::f", action={"type": "later"})
    assert answer["error"]["code"] == "invalid_message"
    assert "void and enqueue" in answer["error"]["message"]


async def test_a_module_is_a_peer_like_any_other(autojump_clock: MockClock, port: RawPort) -> None:
    executor, caller = await pair(port, "a::f")
    async with open_local(port.core, "module") as module:

        async def relay(_call: object, data: Json) -> Json:
            return await module.invoke("a::f", data)

        module.register("m::relay", relay, task=True)
        call = caller.call("m::relay", {"x": 1})
        got = await executor.next("invokefunction")
        assert got["data"] == {"x": 1}  # what a module sends carries no caller id
        executor.answer(got, result={"y": 2})
        assert (await caller.result(call))["result"] == {"y": 2}
        # a caller that leaves cancels the module's task, and that cancels the nested call
        caller.call("m::relay")
        await executor.next("invokefunction")
        assert len(module.running) == 1
        caller.cut()
        await port.gone(caller)
        await trio.testing.wait_all_tasks_blocked()
        assert module.statistics().tasks == 0


async def test_workers_may_not_take_the_engines_own_ids(autojump_clock: MockClock, port: RawPort) -> None:
    worker = await port.connect()
    worker.register("engine::workers::register")
    rejected = await worker.next("registrationrejected")
    assert rejected == {
        "type": "registrationrejected",
        "code": "FUNCTION_NAMESPACE_CONFLICT",
        "namespace": "default",
        "function_id": "engine::workers::register",
        "owner_worker_id": "",
    }
    assert (await worker.ask("engine::workers::register", {"name": "again"}))["result"] == {"success": True}
