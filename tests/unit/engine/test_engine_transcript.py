"""The minimal transcript of the protocol (spec/protocol.md §19), frame by frame."""

from trio.testing import MockClock

from iii_trio.testing.raw import RawPort


async def test_the_minimal_transcript(autojump_clock: MockClock, port: RawPort) -> None:
    worker = await port.connect()
    worker.introduce(name="host:1", version="0.25.0", isolation=None, namespace=None, telemetry={}, features=[])
    worker.register("a::echo", request_format={"type": "object"})
    call = worker.call("a::echo", {"m": 1})
    invocation = await worker.next("invokefunction")
    assert invocation == {
        "type": "invokefunction",
        "invocation_id": call,
        "function_id": "a::echo",
        "data": {"m": 1, "_caller_worker_id": worker.worker_id},
    }
    worker.answer(invocation, result={"m": 1})
    assert await worker.result(call) == {
        "type": "invocationresult",
        "invocation_id": call,
        "function_id": "a::echo",
        "result": {"m": 1},
    }


async def test_registrations_before_the_introduction_wait_for_the_namespace(
    autojump_clock: MockClock, port: RawPort
) -> None:
    worker = await port.connect()
    worker.register("a::echo")
    await worker.settled()
    assert port.core.functions.get("default", "a::echo") is None
    worker.introduce(namespace="orders")
    await worker.settled()
    assert port.core.functions.get("orders", "a::echo") is not None
    assert port.core.functions.get("default", "a::echo") is None


async def test_a_call_waits_for_the_registration_of_its_own_function(autojump_clock: MockClock, port: RawPort) -> None:
    worker = await port.connect()
    worker.register("a::echo")
    call = worker.call("a::echo")
    other = worker.call("a::other")
    assert (await worker.result(other))["error"]["code"] == "function_not_found"
    worker.introduce()
    invocation = await worker.next("invokefunction")
    worker.answer(invocation, result=1)
    assert (await worker.result(call))["result"] == 1


async def test_without_an_introduction_the_namespace_is_default_after_the_grace(
    autojump_clock: MockClock, port: RawPort
) -> None:
    worker = await port.connect()
    worker.register("a::echo")
    call = worker.call("a::echo")
    worker.answer(await worker.next("invokefunction"), result=1)
    assert (await worker.result(call))["result"] == 1
    assert port.core.functions.get("default", "a::echo") is not None
