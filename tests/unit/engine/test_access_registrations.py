"""What a session may register (spec/protocol.md §14.2-14.5, §20.20, §20.23, §20.24), seen by raw peers."""

from typing import Any

import pytest
import trio
from access_lab import AUTH, HOOKS, MIDDLEWARE, Lab, exposed, open_lab
from trio.testing import MockClock

from iii_trio.engine import Binding, Call, Outcome, Rules, open_local
from iii_trio.protocol import Json
from iii_trio.testing.raw import RawWorker

RULES = Rules(auth_function_id=AUTH, expose=exposed("public::*"))


def bind(worker: RawWorker, binding_id: str, trigger_type: str, function_id: str, **fields: Any) -> None:
    """Send a `registertrigger`."""
    frame = {"type": "registertrigger", "id": binding_id, "trigger_type": trigger_type, "function_id": function_id}
    worker.send({**frame, "config": {}, **fields})


def provide(worker: RawWorker, type_id: str, **fields: Any) -> None:
    """Send a `registertriggertype`."""
    worker.send({"type": "registertriggertype", "id": type_id, "description": "", **fields})


async def complaint(worker: RawWorker) -> str:
    """The text of the next `error` frame, which must be `FORBIDDEN`."""
    error = (await worker.next("error"))["error"]
    assert error["code"] == "FORBIDDEN"
    return str(error["message"])


async def refused_trigger(worker: RawWorker, binding_id: str) -> str:
    """The text with which a trigger was refused as `FORBIDDEN`."""
    frame = await worker.next("triggerregistrationresult", id=binding_id)
    assert frame["error"]["code"] == "FORBIDDEN"
    return str(frame["error"]["message"])


def ids(lab: Lab) -> set[str]:
    """The functions of workers."""
    return {entry.id for entry in lab.core.functions if not entry.builtin}


# -- flags ------------------------------------------------------------------------------------------------------------


async def test_a_session_that_may_register_nothing_is_told_each_time(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        guest = await lab.authenticated({"allow_function_registration": False, "allowed_trigger_types": []})
        guest.register("guest::f")
        assert (
            await complaint(guest) == "function 'guest::f' was not registered: this session may not register functions"
        )
        bind(guest, "b", "cron", "public::f")
        assert await refused_trigger(guest, "b") == "Trigger type 'cron' is not allowed for this session."
        provide(guest, "mine")
        text = "trigger type 'mine' was not registered: this session may not register trigger types"
        assert await complaint(guest) == text
        assert not ids(lab)
        assert not list(lab.core.triggers)


async def test_registering_grants_nothing(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        guest = await lab.authenticated()
        guest.register("guest::f")
        await guest.settled()
        assert (await guest.ask("guest::f"))["error"]["code"] == "FORBIDDEN"
        bind(guest, "b", "cron", "guest::f")
        assert await refused_trigger(guest, "b") == "function 'guest::f' not allowed in namespace 'default'"
        bind(guest, "c", "cron", "public::f")
        await guest.settled()
        binding = lab.core.triggers.get("c")
        assert binding is not None
        assert binding.owner is not None


async def test_a_port_without_auth_function_lets_register_types_and_functions(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(expose=())) as lab:
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f")
        provide(guest, "mine")
        await guest.settled()
        assert ids(lab) == {"guest::f"}
        assert lab.core.triggers.provider("default", "mine") is not None


# -- namespaces -------------------------------------------------------------------------------------------------------

SCOPED = {"namespaces": {"orders": ["*"], "billing": []}}


@pytest.mark.parametrize("declared", [None, "default", "other"])
async def test_a_refused_namespace_stays_refused_after_the_grace(
    autojump_clock: MockClock, declared: str | None
) -> None:
    async with open_lab(RULES) as lab:
        guest = await lab.authenticated(SCOPED, name="guest", namespace=declared)
        guest.register("guest::f")
        bind(guest, "b", "cron", "guest::f", namespace="orders")
        text = f"namespace '{declared or 'default'}' not allowed for this session (permitted: billing, orders)"
        assert await complaint(guest) == text
        await trio.sleep(60)
        await guest.settled()
        assert not ids(lab)
        assert not list(lab.core.triggers)
        # what it may use, it may still name
        guest.introduce(name="guest", namespace="orders")
        await guest.settled()
        assert [(entry.namespace, entry.id) for entry in lab.core.functions if not entry.builtin] == [
            ("orders", "guest::f")
        ]
        assert lab.core.triggers.get("b") is not None


async def test_a_refused_namespace_is_answered_where_an_answer_is_awaited(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        guest = await lab.authenticated(SCOPED, name="guest", namespace="other")
        answer = await guest.ask("engine::workers::register", {"name": "guest", "namespace": "another"})
        assert answer["error"]["code"] == "FORBIDDEN"
        answer = await guest.ask("engine::workers::register", {"name": "guest", "namespace": "billing"})
        assert answer["result"] == {"success": True}
        # the namespace is settled: naming none again is no other one, naming another one is refused
        assert (await guest.ask("engine::workers::register", {"name": "guest"}))["result"] == {"success": True}
        answer = await guest.ask("engine::workers::register", {"name": "guest", "namespace": "default"})
        assert answer["error"]["code"] == "FORBIDDEN"
        guest.register("guest::f")
        await guest.settled()
        assert lab.core.functions.get("billing", "guest::f") is not None


async def test_a_scoped_session_that_names_no_namespace_is_not_drained_into_default(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        await lab.serve(auth=lambda _: {"result": SCOPED})
        guest = await lab.guarded.connect()
        guest.register("guest::f")
        call = guest.call("guest::f", namespace="orders")
        assert "permitted: billing, orders" in await complaint(guest)
        # calls of what will not be registered do not wait for it
        assert (await guest.result(call))["error"]["code"] == "function_not_found"
        assert lab.core.functions.get("default", "guest::f") is None
        assert lab.core.functions.get("orders", "guest::f") is None


async def test_default_among_the_permitted_is_the_namespace_of_who_names_none(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        await lab.serve(auth=lambda _: {"result": {"namespaces": {"default": [], "orders": []}}})
        guest = await lab.guarded.connect()
        guest.register("guest::f")
        await trio.sleep(6)
        assert lab.core.functions.get("default", "guest::f") is not None


# -- prefix -----------------------------------------------------------------------------------------------------------


async def test_a_prefix_stands_before_everything_the_session_registers(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        result = {"function_registration_prefix": "t1", "allowed_functions": ["t1::f", "f"]}
        guest = await lab.authenticated(result)
        friend = await lab.trusted.connect(name="friend")
        guest.register("f", description="what it does")
        await guest.settled()
        assert ids(lab) == {"t1::f"}

        # calls come to it by the id that it knows, answers go back by the id that was called
        call = friend.call("t1::f", {"n": 1})
        invocation = await guest.next("invokefunction")
        assert invocation["function_id"] == "f"
        guest.answer(invocation, result=2)
        answer = await friend.result(call)
        assert (answer["function_id"], answer["result"]) == ("t1::f", 2)

        # its own calls are not prefixed
        assert (await guest.ask("f"))["error"]["code"] == "function_not_found"
        call = guest.call("t1::f")
        guest.answer(await guest.next("invokefunction"), result=3)
        assert (await guest.result(call))["result"] == 3

        # trigger targets are
        provider = await lab.trusted.connect(name="provider")
        provide(provider, "tick")
        await provider.settled()
        bind(guest, "b", "tick", "f")
        assert (await provider.next("registertrigger"))["function_id"] == "t1::f"
        provider.send(
            {
                "type": "triggerregistrationresult",
                "id": "b",
                "trigger_type": "tick",
                "function_id": "t1::f",
                "error": {"code": "x", "message": "y"},
            }
        )
        assert (await guest.next("triggerregistrationresult"))["function_id"] == "f"

        guest.send({"type": "unregisterfunction", "id": "t1::f"})
        await guest.settled()
        assert ids(lab) == {"t1::f"}
        guest.send({"type": "unregisterfunction", "id": "f"})
        await guest.settled()
        assert not ids(lab)


async def test_two_tenants_with_prefixes_do_not_meet(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        guests = [await lab.authenticated({"function_registration_prefix": name}, name=name) for name in ("one", "two")]
        for guest in guests:
            guest.register("f")
            await guest.settled()
            assert not guest.frames
        assert ids(lab) == {"one::f", "two::f"}


async def test_a_call_of_its_own_function_waits_for_the_registration_under_the_prefix(
    autojump_clock: MockClock,
) -> None:
    async with open_lab(RULES) as lab:
        await lab.serve(
            auth=lambda _: {"result": {"function_registration_prefix": "t1", "allowed_functions": ["t1::f"]}}
        )
        guest = await lab.guarded.connect()
        guest.register("f")
        call = guest.call("t1::f")
        guest.introduce(name="guest")
        guest.answer(await guest.next("invokefunction"), result="found")
        assert (await guest.result(call))["result"] == "found"


# -- whose ids they are -----------------------------------------------------------------------------------------------


def _nothing(_call: Call, _data: Json) -> Outcome:
    return Outcome()


@pytest.mark.parametrize(
    "function_id", ["engine::queue::enqueue", "engine::anything", "state::get", AUTH, HOOKS.function]
)
async def test_what_is_the_engines_own_is_no_sessions(autojump_clock: MockClock, function_id: str) -> None:
    async with open_lab(Rules(auth_function_id=AUTH, expose=(), hooks=HOOKS)) as lab:
        async with open_local(lab.core, "state") as module:
            module.register("state::get", _nothing)
        # the module is being restarted just now: its functions are not there, and still its own
        await lab.serve(on_function=lambda _: {"result": {}})
        guest = await lab.authenticated()
        guest.register(function_id)
        rejection = await guest.next("registrationrejected")
        assert (rejection["function_id"], rejection["owner_worker_id"]) == (function_id, "")
        entry = lab.core.functions.get("default", function_id)
        assert entry is None or entry.owner.session is None


async def test_the_middleware_is_no_sessions_in_any_namespace(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(auth_function_id=AUTH, expose=(), middleware_function_id=MIDDLEWARE)) as lab:
        guest = await lab.authenticated({}, name="guest", namespace="tenant")
        guest.register(MIDDLEWARE)
        await guest.next("registrationrejected", function_id=MIDDLEWARE)
        friend = await lab.trusted.connect(name="friend", namespace="tenant")
        friend.register(MIDDLEWARE)
        await friend.settled()
        assert lab.core.functions.get("tenant", MIDDLEWARE) is not None


async def test_a_session_does_not_even_stand_by_for_a_trusted_workers_function(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        friend = await lab.trusted.connect(name="friend")
        friend.register("billing::charge")
        await friend.settled()
        guest = await lab.authenticated()
        guest.register("billing::charge")
        rejection = await guest.next("registrationrejected")
        assert rejection["owner_worker_id"] == friend.worker_id
        friend.cut()
        await lab.trusted.gone(friend)
        assert not ids(lab)


async def test_a_session_stands_by_for_its_own_earlier_connection(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        old = await lab.authenticated({}, name="guest 1")
        old.register("guest::f")
        await old.settled()
        new = await lab.authenticated({}, name="guest 2")
        new.register("guest::f")
        old.cut()
        await lab.guarded.gone(old)
        await new.settled()
        entry = lab.core.functions.get("default", "guest::f")
        assert entry is not None
        assert entry.owner.id == new.worker_id


async def test_triggers_of_others_are_out_of_reach(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        friend = await lab.trusted.connect(name="friend")
        bind(friend, "theirs", "cron", "public::f")
        await friend.settled()
        guest = await lab.authenticated()
        guest.send({"type": "unregistertrigger", "id": "theirs"})
        bind(guest, "theirs", "cron", "public::g")
        assert await refused_trigger(guest, "theirs") == "trigger 'theirs' belongs to somebody else"
        bind(guest, "mine", "cron", "public::g")
        await guest.settled()
        assert [binding.function_id for binding in lab.core.triggers] == ["public::f", "public::g"]
        guest.send({"type": "unregistertrigger", "id": "mine"})
        await guest.settled()
        assert [binding.id for binding in lab.core.triggers] == ["theirs"]


# -- trigger types ----------------------------------------------------------------------------------------------------

MAY_PROVIDE = {"allow_trigger_type_registration": True}


@pytest.mark.parametrize("type_id", ["http", "api", "durable:subscriber", "configuration", "engine::workers-available"])
async def test_the_engines_types_in_default_are_no_sessions(autojump_clock: MockClock, type_id: str) -> None:
    async with open_lab(RULES) as lab:
        friend = await lab.trusted.connect(name="friend")
        bind(friend, "b", type_id, "public::f")
        await friend.settled()
        guest = await lab.authenticated(MAY_PROVIDE)
        provide(guest, type_id)
        text = f"trigger type '{type_id}' was not registered: '{type_id}' in namespace 'default' is the engine's own"
        assert await complaint(guest) == text
        await guest.settled()
        assert not guest.frames


async def test_a_types_namespace_is_the_sessions_own_or_one_that_it_may_use(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        guest = await lab.authenticated({**SCOPED, **MAY_PROVIDE}, name="guest", namespace="orders")
        provide(guest, "mine", namespace="default")
        assert "namespace 'default' is not this session's" in await complaint(guest)
        provide(guest, "mine", namespace="billing")
        provide(guest, "http")
        await guest.settled()
        assert not guest.frames
        assert lab.core.triggers.provider("billing", "mine") is not None
        assert lab.core.triggers.provider("orders", "http") is not None
        provide(guest, "mine", namespace=" ")
        assert (await guest.next("error"))["error"]["code"] == "INVALID_NAMESPACE"


async def test_a_type_that_somebody_provides_is_not_taken_over(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        friend = await lab.trusted.connect(name="friend")
        provide(friend, "tick")
        await friend.settled()
        guest = await lab.authenticated(MAY_PROVIDE)
        provide(guest, "tick")
        assert "another worker provides 'tick' in namespace 'default'" in await complaint(guest)
        provider = lab.core.triggers.provider("default", "tick")
        assert provider is not None
        assert provider.owner.id == friend.worker_id


async def test_a_type_whose_provider_is_silent_is_free_after_the_probe(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        old = await lab.authenticated(MAY_PROVIDE, name="guest 1")
        provide(old, "tick")
        await old.settled()
        old.connection.pause_reading()
        new = await lab.authenticated(MAY_PROVIDE, name="guest 2")
        bind(new, "b", "tick", "public::f")
        provide(new, "tick")
        assert (await new.next("registertrigger"))["id"] == "b"
        provider = lab.core.triggers.provider("default", "tick")
        assert provider is not None
        assert provider.owner.id == new.worker_id


async def test_a_provider_registers_again_and_withdraws(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        guest = await lab.authenticated(MAY_PROVIDE)
        provide(guest, "tick")
        provide(guest, "tick", description="again")
        await guest.settled()
        provider = lab.core.triggers.provider("default", "tick")
        assert provider is not None
        assert provider.description == "again"
        guest.send({"type": "unregistertriggertype", "id": "tick"})
        await guest.settled()
        assert lab.core.triggers.provider("default", "tick") is None


async def test_the_end_of_a_session_leaves_nothing(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        before = lab.core.statistics()
        guest = await lab.authenticated(
            {**MAY_PROVIDE, "function_registration_prefix": "t1", "allowed_functions": ["t1::f"]}
        )
        guest.register("f")
        bind(guest, "b", "tick", "f")
        provide(guest, "tick")
        await guest.next("registertrigger")
        bindings: list[Binding] = list(lab.core.triggers)
        assert len(bindings) == 1
        guest.cut()
        await lab.guarded.gone(guest)
        after = lab.core.statistics()
        assert (after.functions, after.triggers, after.workers) == (before.functions, before.triggers, before.workers)
