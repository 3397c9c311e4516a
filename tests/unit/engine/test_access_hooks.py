"""Hooks (spec/protocol.md §14.6): what they are asked, what they change, and that none of them can stop a connection."""

from typing import Any

import pytest
import trio
import trio.testing
from access_lab import AUTH, HOOKS, Lab, exposed, open_lab
from test_access_registrations import bind, complaint, ids, provide, refused_trigger
from trio.testing import MockClock

from iii_trio.engine import Hooks, Rules
from iii_trio.protocol.limits import PARKED_FRAMES
from iii_trio.testing.raw import RawWorker

FUNCTION = "acl::on_function"
RULES = Rules(auth_function_id=AUTH, expose=exposed("*"), hooks=HOOKS)
ON_FUNCTION = Rules(expose=exposed("*"), hooks=Hooks(function=FUNCTION))
ON_TRIGGER = Rules(auth_function_id=AUTH, expose=exposed("*"), hooks=Hooks(trigger="acl::on_trigger"))
ON_TYPE = Rules(auth_function_id=AUTH, expose=exposed("*"), hooks=Hooks(trigger_type="acl::on_type"))

ALLOW: dict[str, Any] = {"result": {}}


def entry_of(lab: Lab, function_id: str, namespace: str = "default") -> Any:
    """A function's entry."""
    return lab.core.functions.get(namespace, function_id)


async def registered(lab: Lab, worker: RawWorker, function_id: str) -> None:
    """Return when a function of `worker` has passed its hook."""
    while entry_of(lab, function_id) is None:
        await worker.settled()


async def silent(lab: Lab, function_id: str = FUNCTION) -> RawWorker:
    """A trusted worker whose function answers when the test says so."""
    worker = await lab.trusted.connect(name="hook")
    worker.register(function_id)
    await worker.settled()
    return worker


async def test_what_hooks_are_asked(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        await lab.serve(on_function=lambda _: ALLOW, on_trigger=lambda _: ALLOW, on_type=lambda _: ALLOW)
        result = {
            "context": {"user": [1, None]},
            "function_registration_prefix": "t1",
            "allow_trigger_type_registration": True,
        }
        guest = await lab.authenticated(result, name="guest", namespace="orders")
        guest.register("f", description="d", metadata={"m": 1})
        guest.register("g")
        provide(guest, "tick", description="ticks")
        bind(guest, "b", "tick", "f", config={"every": 1}, metadata=[1], namespace="elsewhere")
        bind(guest, "c", "tick", "f")
        await guest.next("registertrigger", id="c")
    context = {"user": [1, None]}
    assert lab.asked["acl::on_function"] == [
        {"function_id": "f", "description": "d", "metadata": {"m": 1}, "namespace": "orders", "context": context},
        {"function_id": "g", "description": None, "metadata": None, "namespace": "orders", "context": context},
    ]
    assert lab.asked["acl::on_type"] == [{"trigger_type_id": "tick", "description": "ticks", "context": context}]
    head = {"trigger_type": "tick", "function_id": "f", "context": context}
    assert lab.asked["acl::on_trigger"] == [
        {**head, "trigger_id": "b", "config": {"every": 1}, "metadata": [1], "namespace": "elsewhere"},
        {**head, "trigger_id": "c", "config": {}, "metadata": None, "namespace": "default"},
    ]


async def test_trusted_workers_are_not_asked_about(autojump_clock: MockClock) -> None:
    async with open_lab(RULES) as lab:
        await lab.serve(on_function=lambda _: ALLOW)
        friend = await lab.trusted.connect(name="friend")
        friend.register("friend::f")
        await friend.settled()
        assert entry_of(lab, "friend::f") is not None
        assert not lab.asked


@pytest.mark.parametrize(
    "result", [{}, {"function_id": None, "description": None, "metadata": None}, {"unknown": 1, "namespace": "x"}]
)
async def test_what_a_hook_leaves_out_or_nulls_is_kept(autojump_clock: MockClock, result: dict[str, Any]) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        await lab.serve(on_function=lambda _: {"result": result})
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f", description="d", metadata={"m": 1}, request_format={"type": "object"})
        await registered(lab, guest, "guest::f")
        entry = entry_of(lab, "guest::f")
        assert (entry.description, entry.metadata.decode()) == ("d", {"m": 1})
        assert entry.request_format.decode() == {"type": "object"}


async def test_a_function_that_a_hook_renames_is_called_and_unregistered_by_its_own_name(
    autojump_clock: MockClock,
) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        changes = {"function_id": "tenant::f", "description": "", "metadata": {"tenant": 1}}
        await lab.serve(on_function=lambda _: {"result": changes})
        guest = await lab.guarded.connect(name="guest")
        guest.register("f", description="d")
        await registered(lab, guest, "tenant::f")
        entry = entry_of(lab, "tenant::f")
        assert (entry.description, entry.metadata.decode()) == ("", {"tenant": 1})
        assert ids(lab) == {"tenant::f", FUNCTION}

        friend = await lab.trusted.connect(name="friend")
        call = friend.call("tenant::f")
        invocation = await guest.next("invokefunction")
        assert invocation["function_id"] == "f"
        guest.answer(invocation, result=1)
        assert (await friend.result(call))["function_id"] == "tenant::f"

        # a trigger on it names it by the worker's id too
        bind(guest, "b", "cron", "f")
        await guest.settled()
        binding = lab.core.triggers.get("b")
        assert binding is not None
        assert binding.function_id == "tenant::f"

        guest.send({"type": "unregisterfunction", "id": "tenant::f"})
        await guest.settled()
        assert "tenant::f" in ids(lab)
        guest.send({"type": "unregisterfunction", "id": "f"})
        await guest.settled()
        assert ids(lab) == {FUNCTION}


async def test_a_hook_that_changes_its_mind_moves_the_function(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        names = iter(["one", "two", None])
        await lab.serve(on_function=lambda _: {"result": {"function_id": next(names)}})
        guest = await lab.guarded.connect(name="guest")
        for expected in ("one", "two", "f"):
            guest.register("f")
            guest.call(expected)  # waits for nothing, and must not be lost
            await registered(lab, guest, expected)
            assert ids(lab) == {expected, FUNCTION}
        guest.send({"type": "unregisterfunction", "id": "f"})
        await guest.settled()
        assert ids(lab) == {FUNCTION}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": {"code": "quota", "message": "ten are enough"}}, "ten are enough"),
        ({"result": None}, "its hook returned no object"),
        ({}, "its hook returned no object"),
        ({"result": True}, "its hook returned no object"),
        ({"result": []}, "its hook returned no object"),
        (
            {"result": {"function_id": 1}},
            "its hook returned what cannot be used: Expected `str | null`, got `int` - at `$.function_id`",
        ),
    ],
)
async def test_everything_else_denies_and_the_worker_hears_why(
    autojump_clock: MockClock, answer: dict[str, Any], why: str
) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        await lab.serve(on_function=lambda _: answer)
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f")
        assert await complaint(guest) == f"function 'guest::f' was not registered: {why}"
        assert ids(lab) == {FUNCTION}
        await guest.settled()


async def test_a_hook_that_is_not_there_denies(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f")
        text = "function 'guest::f' was not registered: Function acl::on_function not found in namespace default"
        assert await complaint(guest) == text
        await lab.serve(on_function=lambda _: ALLOW)
        guest.register("guest::f")
        await registered(lab, guest, "guest::f")


async def test_a_hook_that_never_answers_denies_after_five_seconds(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        hook = await silent(lab)
        guest = await lab.guarded.connect(name="guest")
        started = trio.current_time()
        guest.register("guest::f")
        guest.register("guest::g")
        for name in "fg":
            assert "acl::on_function did not answer within 5000 ms" in await complaint(guest), name
        assert 10 <= trio.current_time() - started < 11
        for _ in range(2):  # too late
            hook.answer(await hook.next("invokefunction"), result={})
        await hook.settled()
        assert ids(lab) == {FUNCTION}
        assert lab.core.statistics().running == 0


async def test_what_waits_for_a_hook_and_what_does_not(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        hook = await silent(lab)
        friend = await lab.trusted.connect(name="friend")
        friend.register("friend::f")
        await friend.settled()
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f")
        bind(guest, "b", "cron", "friend::f")
        own = guest.call("guest::f")
        other = guest.call("friend::f")
        asked = await hook.next("invokefunction")
        # pings, calls of others and results pass; the registration behind it, and the call of its id, do not
        await guest.settled()
        friend.answer(await friend.next("invokefunction"), result="there")
        assert (await guest.result(other))["result"] == "there"
        assert not list(lab.core.triggers)
        assert not any(frame.get("invocation_id") == own for frame in guest.frames)
        assert lab.core.statistics().running == 1
        hook.answer(asked, result={})
        guest.answer(await guest.next("invokefunction"), result="own")
        assert (await guest.result(own))["result"] == "own"
        assert [binding.id for binding in lab.core.triggers] == ["b"]


async def test_a_call_that_waits_for_a_hook_can_be_cancelled(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        hook = await silent(lab)
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f")
        call = guest.call("guest::f")
        guest.send({"type": "cancelinvocation", "invocation_id": call})
        await guest.settled()
        hook.answer(await hook.next("invokefunction"), result={})
        await hook.settled()
        await guest.settled()
        assert entry_of(lab, "guest::f") is not None
        assert not guest.frames


async def test_order_is_kept_behind_a_hook(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        hook = await silent(lab)
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f")
        guest.send({"type": "unregisterfunction", "id": "guest::f"})
        guest.register("guest::g")
        for _ in range(2):
            hook.answer(await hook.next("invokefunction"), result={})
            await hook.settled()
        assert ids(lab) == {"guest::g", FUNCTION}


async def test_a_hook_may_call_the_worker_whose_registration_it_decides_on(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TRIGGER) as lab:
        hook = await silent(lab, "acl::on_trigger")
        await lab.serve(auth=lambda _: ALLOW)
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f")
        await guest.settled()
        bind(guest, "b", "cron", "guest::f")
        asked = await hook.next("invokefunction")
        nested = hook.call("guest::f")
        guest.answer(await guest.next("invokefunction"), result="yes")
        assert (await hook.result(nested))["result"] == "yes"
        hook.answer(asked, result={})
        await hook.settled()
        assert [binding.id for binding in lab.core.triggers] == ["b"]


async def test_a_hook_may_be_served_by_the_connection_that_waits_for_it(autojump_clock: MockClock) -> None:
    async with open_lab(Rules(expose=exposed("*"), hooks=Hooks(trigger="own::hook"))) as lab:
        guest = await lab.guarded.connect(name="guest")
        guest.register("own::hook")
        bind(guest, "b", "cron", "guest::f")
        asked = await guest.next("invokefunction")
        assert asked["data"]["trigger_id"] == "b"
        guest.answer(asked, result={})
        await guest.settled()
        assert [binding.id for binding in lab.core.triggers] == ["b"]
        # and when it does not answer, it waits for itself alone, and not for ever
        bind(guest, "c", "cron", "guest::f")
        await guest.next("invokefunction")
        friend = await lab.trusted.connect(name="friend")
        friend.register("friend::f")
        await friend.settled()
        call = guest.call("friend::f")
        friend.answer(await friend.next("invokefunction"), result=1)
        assert (await guest.result(call))["result"] == 1
        assert await refused_trigger(guest, "c") == (
            "trigger 'c' was not registered: own::hook did not answer within 5000 ms"
        )


async def test_the_end_of_a_connection_takes_its_hook_call_along(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        hook = await silent(lab)
        hook.introduce(name="hook", features=["cancel.v1"])
        await hook.settled()
        guest = await lab.guarded.connect(name="guest")
        guest.register("guest::f")
        guest.register("guest::g")
        asked = await hook.next("invokefunction")
        guest.cut()
        await lab.guarded.gone(guest)
        cancelled = await hook.next("cancelinvocation")
        assert (cancelled["invocation_id"], cancelled["reason"]) == (asked["invocation_id"], "caller_disconnected")
        hook.answer(asked, result={})
        await hook.settled()
        assert ids(lab) == {FUNCTION}
        assert not any(frame["type"] == "invokefunction" for frame in hook.frames)
        statistics = lab.core.statistics()
        assert (statistics.running, statistics.waiting) == (0, 0)


async def test_the_loss_of_the_hooks_worker_denies_at_once(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        hook = await silent(lab)
        guest = await lab.guarded.connect(name="guest")
        started = trio.current_time()
        guest.register("guest::f")
        await hook.next("invokefunction")
        hook.cut()
        assert await complaint(guest) == "function 'guest::f' was not registered: Invocation stopped"
        assert trio.current_time() == started


async def test_behind_a_slow_hook_a_flood_of_registrations_is_not_read(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        hook = await silent(lab)
        guest = await lab.guarded.connect(name="guest")
        await guest.settled()
        for n in range(3 * PARKED_FRAMES):
            guest.register(f"guest::{n}")
        asked = await hook.next("invokefunction")
        await trio.testing.wait_all_tasks_blocked()
        peer = lab.core.workers.get(guest.worker_id)
        assert peer is not None
        assert peer.connection.statistics().reading_paused
        assert peer.intake.statistics().parked < 2 * PARKED_FRAMES
        hook.answer(asked, result={})
        for _ in range(3 * PARKED_FRAMES - 1):
            hook.answer(await hook.next("invokefunction"), result={})
        while len(ids(lab)) < 3 * PARKED_FRAMES + 1:
            await hook.settled()


async def test_metadata_too_deep_for_the_hooks_input_is_refused(autojump_clock: MockClock) -> None:
    async with open_lab(ON_FUNCTION) as lab:
        await lab.serve(on_function=lambda _: ALLOW)
        guest = await lab.guarded.connect(name="guest")

        def nested(levels: int) -> bytes:
            return b'{"type":"registerfunction","id":"deep","metadata":' + b"[" * levels + b"]" * levels + b"}"

        guest.send_text(nested(127))
        assert await complaint(guest) == "function 'deep' was not registered: it nests deeper than 126 levels"
        guest.send_text(nested(126))
        await registered(lab, guest, "deep")


# -- triggers and types -----------------------------------------------------------------------------------------------


async def test_a_trigger_hook_may_change_everything(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TRIGGER) as lab:
        changes = {"trigger_id": "B", "trigger_type": "tock", "function_id": "g", "config": {"every": 2}}
        await lab.serve(on_trigger=lambda _: {"result": changes})
        provider = await lab.trusted.connect(name="provider")
        provide(provider, "tock")
        await provider.settled()
        guest = await lab.authenticated({"function_registration_prefix": "t1"})
        bind(guest, "b", "tick", "f", config={"every": 1}, metadata={"m": 1})
        frame = await provider.next("registertrigger")
        assert (frame["id"], frame["trigger_type"], frame["function_id"]) == ("B", "tock", "t1::g")
        assert (frame["config"], frame["metadata"]) == ({"every": 2}, {"m": 1})
        # what its owner hears and says of it is in the owner's words
        keys = {"id": "B", "trigger_type": "tock", "function_id": "t1::g"}
        provider.send({"type": "triggerregistrationresult", **keys, "error": {"code": "x", "message": "no"}})
        told = await guest.next("triggerregistrationresult")
        assert (told["id"], told["trigger_type"], told["function_id"]) == ("b", "tick", "f")
        guest.send({"type": "unregistertrigger", "id": "b"})
        await guest.settled()
        assert not list(lab.core.triggers)


async def test_a_null_config_from_a_hook_keeps_the_workers(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TRIGGER) as lab:
        keep = {"trigger_id": None, "trigger_type": None, "function_id": None, "config": None}
        await lab.serve(on_trigger=lambda _: {"result": keep})
        guest = await lab.authenticated()
        bind(guest, "b", "cron", "f", config={"expression": "* * * * * *"})
        while not list(lab.core.triggers):
            await guest.settled()
        binding = lab.core.triggers.get("b")
        assert binding is not None
        assert binding.config.decode() == {"expression": "* * * * * *"}


async def test_a_type_that_a_hook_made_of_it_must_be_allowed_too(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TRIGGER) as lab:
        await lab.serve(on_trigger=lambda data: {"result": {"trigger_type": data["config"]["becomes"]}})
        guest = await lab.authenticated({"allowed_trigger_types": ["cron", "http"]})
        bind(guest, "a", "cron", "f", config={"becomes": "state"})
        assert await refused_trigger(guest, "a") == "Trigger type 'state' is not allowed for this session."
        bind(guest, "b", "cron", "f", config={"becomes": "http"})
        while not list(lab.core.triggers):
            await guest.settled()
        bind(guest, "c", "state", "f", config={"becomes": "http"})
        assert await refused_trigger(guest, "c") == "Trigger type 'state' is not allowed for this session."
        assert len(lab.asked["acl::on_trigger"]) == 2
        assert [binding.type_id for binding in lab.core.triggers] == ["http"]


async def test_a_denied_trigger_is_told_as_a_trigger(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TRIGGER) as lab:
        await lab.serve(on_trigger=lambda _: {"error": {"code": "x", "message": "not at night"}})
        guest = await lab.authenticated()
        bind(guest, "b", "cron", "f")
        assert await refused_trigger(guest, "b") == "trigger 'b' was not registered: not at night"
        bind(guest, "c", "cron", "f", namespace=" ")
        frame = await guest.next("triggerregistrationresult", id="c")
        assert frame["error"]["code"] == "INVALID_NAMESPACE"
        assert len(lab.asked["acl::on_trigger"]) == 1


async def test_a_hook_cannot_hand_a_session_somebody_elses_trigger(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TRIGGER) as lab:
        await lab.serve(on_trigger=lambda _: {"result": {"trigger_id": "theirs"}})
        friend = await lab.trusted.connect(name="friend")
        bind(friend, "theirs", "cron", "friend::f")
        await friend.settled()
        guest = await lab.authenticated()
        bind(guest, "b", "cron", "f")
        assert await refused_trigger(guest, "b") == "trigger 'theirs' belongs to somebody else"
        guest.send({"type": "unregistertrigger", "id": "b"})
        await guest.settled()
        assert [binding.function_id for binding in lab.core.triggers] == ["friend::f"]


async def test_a_trigger_that_moves_to_another_id_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TRIGGER) as lab:
        names = iter(["one", "two", None])
        await lab.serve(on_trigger=lambda _: {"result": {"trigger_id": next(names)}})
        guest = await lab.authenticated()
        for expected in ("one", "two", "b"):
            bind(guest, "b", "cron", "f")
            while lab.core.triggers.get(expected) is None:
                await guest.settled()
            assert [binding.id for binding in lab.core.triggers] == [expected]


async def test_a_type_that_a_hook_renames_is_provided_under_its_own_name(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TYPE) as lab:
        await lab.serve(on_type=lambda _: {"result": {"trigger_type_id": "tenant-tick", "description": "theirs"}})
        guest = await lab.authenticated({"allow_trigger_type_registration": True})
        provide(guest, "tick", description="mine")
        friend = await lab.trusted.connect(name="friend")
        bind(friend, "b", "tenant-tick", "friend::f")
        frame = await guest.next("registertrigger")
        assert (frame["id"], frame["trigger_type"]) == ("b", "tick")
        provider = lab.core.triggers.provider("default", "tenant-tick")
        assert provider is not None
        assert provider.description == "theirs"
        friend.send({"type": "unregistertrigger", "id": "b"})
        assert (await guest.next("unregistertrigger"))["trigger_type"] == "tick"
        guest.send({"type": "unregistertriggertype", "id": "tick"})
        await guest.settled()
        assert lab.core.triggers.provider("default", "tenant-tick") is None


async def test_a_type_hook_cannot_hand_out_the_engines_types(autojump_clock: MockClock) -> None:
    async with open_lab(ON_TYPE) as lab:
        await lab.serve(on_type=lambda _: {"result": {"trigger_type_id": "http"}})
        guest = await lab.authenticated({"allow_trigger_type_registration": True})
        provide(guest, "tick")
        assert "is the engine's own" in await complaint(guest)
