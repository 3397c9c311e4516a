"""Calls that wait behind hooks: their deadlines run from the moment they came in, not from the one they are made."""

from typing import Any

import pytest
from engine_sync import VOID, SyncCore, SyncWorker

from iii_trio.engine import ExposeFilter, Hooks, Pattern
from iii_trio.engine.access import Session
from iii_trio.protocol.limits import HOOK_S

EVERYTHING = (ExposeFilter(pattern=Pattern.of("*")),)


def town(registrations: int, *, default_timeout_s: float = 60.0) -> tuple[SyncCore, SyncWorker, SyncWorker]:
    """An engine, a worker whose hook answers when the test says so, and a guest that waits for it with `f`."""
    core = SyncCore(default_timeout_s=default_timeout_s)
    hooks = core.connect(name="hooks")
    hooks.register("hook")
    session = Session(expose=EVERYTHING, hooks=Hooks(function="hook"))
    guest = core.connect(session=session, name="guest", features=["cancel.v1"])
    for _ in range(registrations):
        guest.register("f")
    guest.take()
    return core, hooks, guest


def codes(worker: SyncWorker) -> list[tuple[str, str]]:
    """The answers that a worker got since: the call, and how it failed."""
    return [(frame["invocation_id"], frame["error"]["code"]) for frame in worker.take("invocationresult")]


def ends(core: SyncCore, worker: SyncWorker) -> None:
    """Nothing waits for `worker` once it has left."""
    worker.cut()
    core.advance(HOOK_S + 6, step=1)
    assert core.engine.statistics().deadlines.timers == 0


def test_its_deadline_ends_a_call_that_waits() -> None:
    core, hooks, guest = town(registrations=3)
    call = guest.call("f", deadline_ms=3_000)
    core.advance(2.75)
    assert codes(guest) == []
    core.advance(0.5)
    assert codes(guest) == [(call, "TIMEOUT")]
    statistics = core.engine.statistics().invocations
    assert statistics.timeouts == 1
    core.advance(4 * HOOK_S)
    assert codes(guest) == []
    assert guest.peer.intake.statistics().parked == 0
    ends(core, guest)
    ends(core, hooks)


def test_the_default_deadline_ends_a_call_that_waits_for_many_hooks() -> None:
    core, _, guest = town(registrations=4, default_timeout_s=12)
    call = guest.call("f")
    core.advance(12.5)
    assert codes(guest) == [(call, "TIMEOUT")]
    ends(core, guest)


def test_without_a_deadline_it_waits_as_long_as_it_must() -> None:
    core, _, guest = town(registrations=4, default_timeout_s=0)
    call = guest.call("f")
    core.advance(4 * HOOK_S - 1)
    assert codes(guest) == []
    core.advance(2)
    assert codes(guest) == [(call, "function_not_found")]
    ends(core, guest)


def test_a_call_that_is_made_at_last_has_what_remains() -> None:
    core, hooks, guest = town(registrations=1)
    call = guest.call("f", deadline_ms=3_000)
    core.advance(2)
    hooks.answer(hooks.take("invokefunction")[0]["invocation_id"], result={})
    [made] = guest.take("invokefunction")
    assert made["deadline_ms"] == 1_000
    core.advance(0.75)
    assert codes(guest) == []
    core.advance(0.5)
    assert codes(guest) == [(call, "TIMEOUT")]
    ends(core, guest)


@pytest.mark.parametrize("ending", ["cancel", "answer", "leave"])
def test_what_waits_no_more_does_not_expire(ending: str) -> None:
    core, hooks, guest = town(registrations=1)
    call = guest.call("f", deadline_ms=3_000)
    if ending == "cancel":
        guest.send({"type": "cancelinvocation", "invocation_id": call})
    elif ending == "leave":
        guest.cut()
    else:
        hooks.answer(hooks.take("invokefunction")[0]["invocation_id"], error={"code": "no", "message": "no"})
        assert codes(guest) == [(call, "function_not_found")]
    core.advance(4)
    assert codes(guest) == []
    assert core.engine.statistics().invocations.timeouts == 0
    ends(core, guest)


@pytest.mark.parametrize("action", [VOID, {"type": "enqueue", "queue": "q"}])
def test_what_waits_too_long_without_an_answer_is_complained_of(action: dict[str, Any]) -> None:
    core, _, guest = town(registrations=2)
    frame = {"type": "invokefunction", "function_id": "f", "data": 1, "action": action, "deadline_ms": 1_000}
    guest.send(frame)
    core.advance(1.25)
    [error] = guest.take("error")
    assert error["error"]["code"] == "TIMEOUT"
    assert "f" in error["error"]["message"]
    core.advance(3 * HOOK_S)
    assert codes(guest) == []
    ends(core, guest)


def test_one_id_twice_is_answered_twice() -> None:
    core, _, guest = town(registrations=1)
    call = guest.call("f", deadline_ms=1_000)
    guest.call("f", deadline_ms=2_000, invocation_id=call)
    core.advance(1.25)
    assert codes(guest) == [(call, "TIMEOUT")]
    core.advance(1)
    assert codes(guest) == [(call, "TIMEOUT")]
    ends(core, guest)


def test_the_name_of_a_worker_that_is_just_leaving_is_free() -> None:
    core, hooks, guest = town(registrations=0)
    guest.register("engine::workers::register")
    call = guest.call("engine::workers::register", {"runtime": "test", "name": "hooks"})
    assert guest.peer.intake.statistics().parked == 2
    hooks.cut()  # its hook denies, whereupon the call is made, in the midst of the end of who has the name
    [answer] = guest.take("invocationresult")
    assert (answer["invocation_id"], answer["result"]) == (call, {"success": True})
    assert guest.peer.lease == ("default", "hooks")
    assert core.engine.statistics().workers.named == 1
    ends(core, guest)
    assert core.engine.statistics().workers.named == 0
