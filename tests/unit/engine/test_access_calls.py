"""Calls of sessions (spec/protocol.md §14.3, §15): refusals, middleware, and payloads that claim to know the caller."""

import json
import uuid
from typing import Any

import pytest
import trio
import trio.testing
from access_lab import AUTH, MIDDLEWARE, Lab, exposed, open_lab
from trio.testing import MockClock

from iii_trio.engine import Call, ExposeFilter, Outcome, Rules, open_local
from iii_trio.engine.enqueues import ENQUEUE
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.codec import strip_caller
from iii_trio.testing.raw import RawWorker

TRACE = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "baggage": "k=v"}
GUARDED = Rules(expose=exposed("public::*"))
GUARDED_THROUGH = Rules(expose=exposed("public::*"), middleware_function_id=MIDDLEWARE)
THROUGH = Rules(auth_function_id=AUTH, expose=exposed("public::*"), middleware_function_id=MIDDLEWARE)


async def server(lab: Lab, *functions: str, **introduction: Any) -> RawWorker:
    """A trusted worker with these functions."""
    worker = await lab.trusted.connect(**(introduction or {"name": "server"}))
    for function in functions:
        worker.register(function)
    await worker.settled()
    return worker


# -- refusals ---------------------------------------------------------------------------------------------------------


async def test_a_forbidden_call_is_told_whether_or_not_the_function_exists(autojump_clock: MockClock) -> None:
    async with open_lab(GUARDED) as lab:
        served = await server(lab, "private::f", "public::f")
        guest = await lab.guarded.connect(name="guest")
        for function_id in ("private::f", "private::nowhere"):
            answer = await guest.ask(function_id, **TRACE)
            assert answer["error"] == {
                "code": "FORBIDDEN",
                "message": f"function '{function_id}' not allowed (add to rbac.expose_functions)",
            }
            assert {key: answer[key] for key in TRACE} == TRACE
        guest.call("public::f")
        assert (await served.next("invokefunction"))["function_id"] == "public::f"


async def test_a_forbidden_void_call_is_told_under_an_id_that_is_nobodys(autojump_clock: MockClock) -> None:
    async with open_lab(GUARDED) as lab:
        guest = await lab.guarded.connect(name="guest")
        own = guest.call("private::f", action={"type": "void"}, **TRACE)
        answer = await guest.next("invocationresult", function_id="private::f")
        assert answer["error"]["code"] == "FORBIDDEN"
        assert answer["invocation_id"] != own
        assert str(uuid.UUID(answer["invocation_id"])) == answer["invocation_id"]
        assert answer["traceparent"] == TRACE["traceparent"]
        await guest.settled()
        assert not guest.frames


async def test_an_enqueue_of_what_is_forbidden_never_reaches_the_queue(autojump_clock: MockClock) -> None:
    async with open_lab(GUARDED) as lab, open_local(lab.core, "queue") as queue:
        enqueued: list[Any] = []

        def enqueue(_call: Call, data: Json) -> Outcome:
            enqueued.append(data.decode())
            return Outcome(NULL)

        queue.register(ENQUEUE, enqueue)
        guest = await lab.guarded.connect(name="guest")
        answer = await guest.ask("private::f", action={"type": "enqueue", "queue": "default"})
        assert answer["error"]["code"] == "FORBIDDEN"
        assert not enqueued
        answer = await guest.ask("public::f", action={"type": "enqueue", "queue": "default"})
        assert answer["result"] == {"messageReceiptId": enqueued[0]["messageReceiptId"]}


async def test_metadata_of_a_later_registration_opens_and_closes_a_function(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(expose=(ExposeFilter(metadata={"public": True}),))) as lab:
        served = await server(lab, "a::f")
        guest = await lab.guarded.connect(name="guest")
        assert (await guest.ask("a::f"))["error"]["code"] == "FORBIDDEN"
        served.register("a::f", metadata={"public": True})
        await served.settled()
        call = guest.call("a::f")
        served.answer(await served.next("invokefunction"), result=1)
        assert (await guest.result(call))["result"] == 1
        served.register("a::f", metadata={"public": False})
        await served.settled()
        assert (await guest.ask("a::f"))["error"]["code"] == "FORBIDDEN"


# -- middleware -------------------------------------------------------------------------------------------------------


async def test_a_call_goes_to_the_middleware_in_the_place_of_its_target(autojump_clock: MockClock) -> None:
    async with open_lab(THROUGH) as lab:
        middle = await server(lab, MIDDLEWARE)
        guest = await lab.authenticated({"context": {"user": 7}})
        call = guest.call("public::f", {"n": 1, "_caller_worker_id": "forged"}, metadata={"m": 1}, **TRACE)
        asked = await middle.next("invokefunction")
        assert asked["function_id"] == MIDDLEWARE
        assert asked["data"] == {
            "function_id": "public::f",
            "payload": {"n": 1},
            "action": None,
            "context": {"user": 7},
            "namespace": "default",
        }
        assert asked["metadata"] == {"m": 1}
        assert asked["traceparent"] == TRACE["traceparent"]
        assert asked["baggage"] == f"k=v,iii.function.id={MIDDLEWARE}"
        middle.answer(asked, result={"seen": True})
        answer = await guest.result(call)
        assert (answer["function_id"], answer["result"]) == ("public::f", {"seen": True})
        assert {key: answer[key] for key in TRACE} == TRACE
        call = guest.call("public::f")
        middle.answer(await middle.next("invokefunction"), error={"code": "no", "message": "way"})
        assert (await guest.result(call))["error"] == {"code": "no", "message": "way"}


@pytest.mark.parametrize("action", [{"type": "void"}, {"type": "enqueue", "queue": "q"}])
async def test_the_action_is_handed_on_and_not_applied(autojump_clock: MockClock, action: dict[str, str]) -> None:
    async with open_lab(THROUGH) as lab:
        middle = await server(lab, MIDDLEWARE)
        guest = await lab.authenticated()
        call = guest.call("public::f", [1], action=action)
        asked = await middle.next("invokefunction")
        assert (asked["data"]["action"], asked["data"]["payload"]) == (action, [1])
        middle.answer(asked, result="done")
        assert (await guest.result(call))["result"] == "done"
        guest.send({"type": "invokefunction", "function_id": "public::f", "data": None, "action": action})
        middle.answer(await middle.next("invokefunction"), result="unheard")
        await middle.settled()
        await guest.settled()
        assert not guest.frames


async def test_what_is_forbidden_never_reaches_the_middleware(autojump_clock: MockClock) -> None:
    async with open_lab(THROUGH) as lab:
        middle = await server(lab, MIDDLEWARE)
        guest = await lab.authenticated()
        assert (await guest.ask("private::f"))["error"]["code"] == "FORBIDDEN"
        assert (await guest.ask("public::f", namespace="tenant"))["error"]["code"] == "FORBIDDEN"
        await middle.settled()
        assert not middle.frames


async def test_the_engines_own_functions_are_called_directly(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(expose=exposed("*"), middleware_function_id=MIDDLEWARE)) as lab:
        middle = await server(lab, MIDDLEWARE, "engine::mine")
        guest = await lab.guarded.connect(name="guest")
        assert (await guest.ask("engine::workers::register", {}))["result"] == {"success": True}
        assert not middle.frames
        # a worker's function is no built-in, whatever it is called; nor is a built-in of another name
        for function_id in ("engine::mine", "engine::nowhere", "state::get"):
            guest.call(function_id)
            assert (await middle.next("invokefunction"))["data"]["function_id"] == function_id


async def test_the_middleware_is_found_in_the_calls_namespace_then_in_default(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(middleware_function_id=MIDDLEWARE)) as lab:
        guest = await lab.guarded.connect(name="guest")
        answer = await guest.ask("a::f", namespace="tenant")
        assert answer["error"] == {
            "code": "function_not_found",
            "message": f"Function {MIDDLEWARE} not found in namespace default",
        }
        common = await server(lab, MIDDLEWARE)
        guest.call("a::f", namespace="tenant")
        assert (await common.next("invokefunction"))["data"]["namespace"] == "tenant"
        special = await server(lab, MIDDLEWARE, name="special", namespace="tenant")
        guest.call("a::f", namespace="tenant")
        asked = await special.next("invokefunction")
        assert (asked["data"]["namespace"], asked["data"]["context"]) == ("tenant", {})
        guest.call("a::f")
        assert (await common.next("invokefunction"))["data"]["namespace"] == "default"


async def test_a_middleware_on_the_port_it_serves_does_not_call_itself_for_ever(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(middleware_function_id=MIDDLEWARE)) as lab:
        middle = await lab.guarded.connect(name="middle")
        middle.register(MIDDLEWARE)
        middle.register("a::f")
        await middle.settled()
        guest = await lab.guarded.connect(name="guest")
        call = guest.call("a::f", 1)
        asked = await middle.next("invokefunction")
        nested = middle.call(asked["data"]["function_id"], asked["data"]["payload"])
        middle.answer(await middle.next("invokefunction", function_id="a::f"), result="through")
        middle.answer(asked, result=(await middle.result(nested))["result"])
        assert (await guest.result(call))["result"] == "through"


async def test_replicas_of_the_middleware_do_not_call_each_other_for_ever(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(middleware_function_id=MIDDLEWARE)) as lab:
        served = await server(lab, "a::f")
        replicas = [await lab.guarded.connect(name=f"middle {n}") for n in range(2)]
        for replica in replicas:
            replica.register(MIDDLEWARE, metadata={"iii.shared": True})
            await replica.settled()
        for replica in replicas:
            call = replica.call("a::f")
            served.answer(await served.next("invokefunction"), result="direct")
            assert (await replica.result(call))["result"] == "direct"


async def test_who_only_stands_by_for_the_middleware_goes_through_it(autojump_clock: MockClock) -> None:
    async with open_lab(GUARDED_THROUGH) as lab:
        middle = await server(lab, MIDDLEWARE)
        guest = await lab.guarded.connect(name="first")
        guest.register(MIDDLEWARE)
        await guest.next("registrationrejected")
        guest.call("public::f")
        assert (await middle.next("invokefunction"))["function_id"] == MIDDLEWARE


async def test_calls_through_the_middleware_are_cancelled_and_expire_like_others(autojump_clock: MockClock) -> None:
    async with open_lab(THROUGH) as lab:
        middle = await server(lab, MIDDLEWARE)
        middle.introduce(name="server", features=["cancel.v1"])
        guest = await lab.authenticated()
        call = guest.call("public::f", deadline_ms=2_000)
        assert (await middle.next("invokefunction"))["deadline_ms"] == 2_000
        assert (await guest.result(call))["error"]["code"] == "TIMEOUT"
        call = guest.call("public::f")
        asked = await middle.next("invokefunction")
        guest.send({"type": "cancelinvocation", "invocation_id": call})
        cancelled = await middle.next("cancelinvocation", invocation_id=asked["invocation_id"])
        assert cancelled["reason"] == "caller_cancelled"
        guest.call("public::f")
        asked = await middle.next("invokefunction")
        guest.cut()
        cancelled = await middle.next("cancelinvocation", invocation_id=asked["invocation_id"])
        assert cancelled["reason"] == "caller_disconnected"
        await trio.sleep(10)
        statistics = lab.core.statistics()
        assert (statistics.running, statistics.waiting) == (0, 0)


async def test_the_loss_of_the_middleware_ends_its_calls(autojump_clock: MockClock) -> None:
    async with open_lab(THROUGH) as lab:
        middle = await server(lab, MIDDLEWARE)
        guest = await lab.authenticated()
        call = guest.call("public::f")
        await middle.next("invokefunction")
        middle.cut()
        answer = await guest.result(call)
        assert (answer["function_id"], answer["error"]["code"]) == ("public::f", "invocation_stopped")


async def test_a_payload_too_deep_for_the_middlewares_input_costs_its_sender_alone(autojump_clock: MockClock) -> None:
    async with open_lab(THROUGH) as lab:
        middle = await server(lab, MIDDLEWARE)
        guest = await lab.authenticated()

        def call(levels: int) -> str:
            call_id = str(uuid.uuid4())
            head = f'{{"type":"invokefunction","invocation_id":"{call_id}","function_id":"public::f","data":'
            guest.send_text(head.encode() + b"[" * levels + b"]" * levels + b"}")
            return call_id

        answer = await guest.result(call(127))
        assert answer["error"]["code"] == "invalid_message"
        assert "nests deeper than 126 levels" in answer["error"]["message"]
        call(126)
        assert (await middle.next("invokefunction"))["function_id"] == MIDDLEWARE


# -- who calls --------------------------------------------------------------------------------------------------------

ESCAPED = '"\\u005fcaller_worker\\u005Fid"'


@pytest.mark.parametrize(
    ("data", "left"),
    [
        ('{"_caller_worker_id":"forged"}', "{}"),
        ('{"a":1,"_caller_worker_id":{"b":2},"c":3}', '{"a":1,"c":3}'),
        (f' {{ {ESCAPED} : 1, "a": "\\u00e9" }}', '{"a":"\\u00e9"}'),
        (f'{{"_caller_worker_id":1,{ESCAPED}:2}}', "{}"),
        ('{"a":{"_caller_worker_id":1}}', '{"a":{"_caller_worker_id":1}}'),
        ('{"a":"_caller_worker_id"}', '{"a":"_caller_worker_id"}'),
        ('["_caller_worker_id"]', '["_caller_worker_id"]'),
        ('"_caller_worker_id"', '"_caller_worker_id"'),
        ('{"a":"\\u005f"}', '{"a":"\\u005f"}'),
        ("null", "null"),
        ("", ""),
    ],
)
def test_a_claim_to_know_the_caller_is_taken_out(data: str, left: str) -> None:
    assert strip_caller(data.encode()) == left.encode()


@pytest.mark.parametrize("key", ['"_caller_worker_id"', ESCAPED])
async def test_the_engine_names_the_caller_whatever_the_payload_says(autojump_clock: MockClock, key: str) -> None:
    async with open_lab(GUARDED) as lab:
        served = await server(lab, "public::f")
        guest = await lab.guarded.connect(name="guest")
        head = '{"type":"invokefunction","function_id":"public::f","action":{"type":"void"},"data":'
        guest.send_text(f'{head}{{{key}:"forged","a":1}}}}'.encode())
        assert (await served.next("invokefunction"))["data"] == {"_caller_worker_id": guest.worker_id, "a": 1}


@pytest.mark.parametrize("key", ["_caller_worker_id", "\\u005fcaller_worker_id"])
async def test_what_a_module_delivers_names_no_caller(autojump_clock: MockClock, key: str) -> None:
    """A queue, a topic or a trigger hands on what some peer wrote: nobody's word for who that was."""
    async with open_lab(GUARDED) as lab, open_local(lab.core, "queue") as queue:
        served = await server(lab, "public::f")
        queue.call("public::f", Json(f'{{"{key}":"forged","a":1}}'.encode()), lambda _: None)
        assert (await served.next("invokefunction"))["data"] == {"a": 1}


async def test_hooks_and_the_auth_function_are_told_of_no_caller(autojump_clock: MockClock) -> None:
    async with open_lab(THROUGH) as lab:
        await lab.serve(auth=lambda _: {"result": {}})
        await lab.guarded.greeted(await lab.guarded.open("/", "_caller_worker_id=forged"))
        assert set(lab.asked[AUTH][0]) == {"headers", "query_params", "ip_address"}
        assert json.dumps(lab.asked[AUTH]).count("_caller_worker_id") == 1
