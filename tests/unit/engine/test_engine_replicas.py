"""Shared functions: who serves, who gets the next call, and what a worker that leaves takes with it."""

from typing import Any

import pytest
from engine_sync import SyncCore, SyncWorker
from hypothesis import given
from hypothesis import strategies as st

from iii_trio.engine import FunctionEntry
from iii_trio.engine.functions import FunctionStatistics
from iii_trio.engine.replicas import Replicas

SHARED = {"iii.shared": True}


def share(worker: SyncWorker, metadata: Any = SHARED, function_id: str = "a::f") -> SyncWorker:
    worker.send({"type": "registerfunction", "id": function_id, "metadata": metadata})
    return worker


def workers(core: SyncCore, count: int) -> list[SyncWorker]:
    return [share(core.connect(version="1")) for _ in range(count)]


def invoked(worker: SyncWorker) -> list[str]:
    return [frame["invocation_id"] for frame in worker.take("invokefunction")]


def entry(core: SyncCore) -> FunctionEntry:
    found = core.engine.functions.get("default", "a::f")
    assert found is not None
    return found


def test_all_who_share_serve_and_nobody_is_refused() -> None:
    core = SyncCore()
    crew = workers(core, 3)
    caller = core.connect()
    assert all(worker.take() == [] for worker in crew)
    assert core.engine.functions.statistics() == FunctionStatistics(serving=2, replicas=2, standing_by=0)
    for _ in range(2):  # calls one after the other go round
        for worker in crew:
            call = caller.call("a::f")
            [wire] = invoked(worker)
            worker.answer(wire, result=1)
            assert [frame["invocation_id"] for frame in caller.take()] == [call]


def test_a_call_goes_to_who_runs_the_fewest() -> None:
    core = SyncCore()
    busy, idle = workers(core, 2)
    caller = core.connect()
    for _ in range(6):
        caller.call("a::f")
    held = {worker.id: invoked(worker) for worker in (busy, idle)}
    assert [len(ids) for ids in held.values()] == [3, 3]
    for wire in held[idle.id]:
        idle.answer(wire, result=None)
    for _ in range(3):
        caller.call("a::f")
    assert (invoked(busy), len(invoked(idle))) == ([], 3), "who works is left alone until the other has as much"
    caller.call("a::f")
    caller.call("a::f")
    assert [len(invoked(worker)) for worker in (busy, idle)] == [1, 1]


def test_a_worker_that_does_not_read_gets_no_call_while_another_does() -> None:
    core = SyncCore()
    stalled, reader, other = workers(core, 3)
    caller = core.connect()
    stalled.connection.busy = True
    for _ in range(6):
        caller.call("a::f")
    assert [len(invoked(worker)) for worker in (stalled, reader, other)] == [0, 3, 3]
    reader.connection.busy = other.connection.busy = True
    caller.call("a::f")
    assert len(invoked(stalled)) == 1, "none of them reads: who runs the fewest"
    stalled.connection.busy = False
    caller.call("a::f")
    assert len(invoked(stalled)) == 1


def test_one_that_leaves_takes_its_own_calls_and_no_other() -> None:
    core = SyncCore()
    first, second = workers(core, 2)
    caller = core.connect()
    lost, kept = caller.call("a::f"), caller.call("a::f")
    invoked(second)
    revision = core.engine.functions.revision
    first.cut()  # the one that stood for both
    assert core.engine.functions.revision > revision
    [stopped] = caller.take()
    assert (stopped["invocation_id"], stopped["error"]["code"]) == (lost, "invocation_stopped")
    second.answer(kept, result=1)
    assert caller.take()[0]["result"] == 1
    caller.call("a::f")
    assert len(invoked(second)) == 1
    third = share(core.connect(version="1"))
    caller.call("a::f")
    assert len(invoked(third)) == 1
    for worker in (second, third):
        worker.cut()
    assert core.engine.functions.get("default", "a::f") is None


@pytest.mark.parametrize("metadata", [None, {"iii.shared": 1}, {"iii.shared": "true"}, ["iii.shared"], {"x": SHARED}])
def test_only_true_shares(metadata: Any) -> None:
    core = SyncCore()
    [first] = workers(core, 1)
    other = share(core.connect(version="1"), metadata)
    core.engine.probe(first.peer, lambda _alive: None)
    first.send({"type": "ping"})
    [rejected] = other.take()
    assert (rejected["type"], rejected["owner_worker_id"]) == ("registrationrejected", first.id)
    assert core.engine.functions.statistics() == FunctionStatistics(serving=2, replicas=0, standing_by=1)


def test_who_does_not_share_stands_by_and_those_who_do_are_promoted_together() -> None:
    core = SyncCore()
    alone = share(core.connect(version="1"), None)
    crew = workers(core, 2)
    last = share(core.connect(version="1"), None)
    caller = core.connect()
    assert core.engine.functions.statistics().standing_by == 3
    alone.cut()
    assert core.engine.functions.statistics() == FunctionStatistics(serving=2, replicas=1, standing_by=1)
    for _ in range(2):
        caller.call("a::f")
    assert [len(invoked(worker)) for worker in crew] == [1, 1]
    [rejected] = last.take("registrationrejected")
    assert rejected["owner_worker_id"] == crew[0].id
    assert [worker.take("registrationrejected") for worker in crew] == [[], []]
    for worker in crew:
        worker.cut()
    caller.call("a::f")
    assert len(invoked(last)) == 1
    assert entry(core).replicas is None


def test_a_worker_may_change_its_mind() -> None:
    core = SyncCore()
    first, second = workers(core, 2)
    caller = core.connect()
    for _ in range(2):
        caller.call("a::f")
    share(first)  # the same again, while it runs a call
    assert entry(core).started == entry(core).count == 0
    share(first, None)
    assert entry(core).owner is second.peer
    assert core.engine.functions.statistics() == FunctionStatistics(serving=2, replicas=0, standing_by=1)
    share(first)
    assert core.engine.functions.statistics() == FunctionStatistics(serving=2, replicas=1, standing_by=0)
    second.send({"type": "unregisterfunction", "id": "a::f"})
    assert entry(core).owner is first.peer
    share(first, None)
    assert entry(core).replicas is None
    assert entry(core).owner is first.peer


@given(st.lists(st.tuples(st.sampled_from(["join", "leave", "call", "end"]), st.integers(0, 7))))
def test_the_choice_is_always_one_of_the_least_loaded(steps: list[tuple[str, int]]) -> None:
    core = SyncCore()
    owner = core.local("m")
    replicas = Replicas()
    running: dict[FunctionEntry, int] = {}
    for what, number in steps:
        if what == "join":
            one = FunctionEntry(id="f", namespace="default", owner=owner)
            replicas.join(one)
            running[one] = 0
        elif running and what == "leave":
            one = list(running)[number % len(running)]
            replicas.leave(one)
            del running[one]
        elif running and what == "call":
            one = replicas.choose()
            assert running[one] == min(running.values())
            running[one] += 1
        elif what == "end":
            for one in [one for one, count in running.items() if count][:1]:
                running[one] -= 1
                one.count += 1
        assert len(replicas) == len(running)
