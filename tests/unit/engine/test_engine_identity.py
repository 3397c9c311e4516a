"""Names, reattach and incumbents: who holds what when connections come before their predecessors have gone."""

from itertools import pairwise

import pytest
from engine_sync import SyncCore, SyncWorker

CONFLICT = "WORKER_NAMESPACE_CONFLICT"


def named(core: SyncCore, name: str = "shop", **more: str) -> SyncWorker:
    """A worker as it begins: its function comes before it says who it is."""
    worker = core.connect()
    worker.register("a::f")
    worker.introduce(name=name, **more)
    return worker


def holder(core: SyncCore, name: str = "shop", namespace: str = "default") -> str | None:
    peer = core.engine.workers._names.get((namespace, name))
    return None if peer is None else peer.id


def server(core: SyncCore, namespace: str = "default") -> str | None:
    entry = core.engine.functions.get(namespace, "a::f")
    return None if entry is None else entry.owner.id


def test_a_live_holder_keeps_its_name_and_the_newcomer_is_told_to_come_again() -> None:
    core = SyncCore()
    first = named(core)
    second = named(core)
    assert first.connection.pings == 1
    assert (second.take(), second.gone) == ([], False)
    first.send({"type": "ping"})
    assert second.take() == [
        {
            "type": "registrationrejected",
            "code": CONFLICT,
            "namespace": "default",
            "worker_name": "shop",
            "owner_worker_id": first.id,
        }
    ]
    assert second.connection.closed is not None
    assert second.connection.closed[0] == 1008, "with that code every SDK comes again"
    assert (second.gone, second.peer.functions) == (True, {})
    assert (holder(core), server(core)) == (first.id, first.id)
    first.cut()
    third = named(core)
    assert (holder(core), server(core)) == (third.id, third.id)


def test_a_silent_holder_loses_its_name_and_its_functions_to_the_newcomer() -> None:
    core = SyncCore()
    first = named(core)
    second = named(core)
    core.advance(4.75)
    assert (holder(core), server(core)) == (first.id, first.id)
    core.advance(0.75)
    assert (holder(core), server(core)) == (second.id, second.id)
    assert first.connection.closed is not None
    assert first.connection.closed[0] == 1012
    assert second.take() == []
    assert core.engine.statistics().workers.connected == 1


@pytest.mark.parametrize("claim", ["name", "function"])
def test_a_holder_that_ends_while_it_is_asked_makes_room_at_once(claim: str) -> None:
    core = SyncCore()
    first = named(core)
    second = named(core, "shop" if claim == "name" else "other")
    first.cut()
    assert server(core) == second.id
    assert second.take() == []
    assert not second.gone


def test_a_silent_server_of_a_function_is_replaced_without_a_word_to_the_newcomer() -> None:
    core = SyncCore()
    named(core, "one")
    second = named(core, "two")
    core.advance(5.5)
    assert server(core) == second.id
    assert second.take() == []


def test_who_stands_by_is_promoted_in_order_whatever_it_was_told() -> None:
    core = SyncCore()
    crew = [named(core, f"worker-{number}") for number in range(3)]
    crew[0].send({"type": "ping"})
    assert [len(worker.take("registrationrejected")) for worker in crew] == [0, 1, 1]
    for worker, successor in pairwise(crew):
        assert server(core) == worker.id
        worker.cut()
        assert server(core) == successor.id
    crew[-1].cut()
    assert server(core) is None


def test_two_newcomers_for_the_name_of_a_dead_one() -> None:
    core = SyncCore()
    named(core)
    second, third = named(core), named(core)
    core.advance(5.5)
    assert holder(core) == second.id
    second.send({"type": "ping"})
    assert [frame["code"] for frame in third.take()] == [CONFLICT]
    assert third.gone


def test_reattach_takes_everything_over_without_a_question() -> None:
    core = SyncCore()
    first = named(core)
    for _ in range(3):
        second = core.connect()
        reattach = {"type": "reattach", "previous_worker_id": first.id, "reattach_token": first.peer.reattach_token}
        second.send(reattach, {"type": "registerfunction", "id": "a::f"})
        assert first.gone
        assert first.connection.closed is not None
        assert first.connection.closed[0] == 1012
        assert first.connection.pings == 0
        second.introduce(name="shop")
        assert (holder(core), server(core)) == (second.id, second.id)
        assert second.take() == []
        first = second


@pytest.mark.parametrize("token", ["wrong", None])
def test_reattach_needs_the_token(token: str | None) -> None:
    core = SyncCore()
    first = named(core)
    second = core.connect()
    second.send({"type": "reattach", "previous_worker_id": first.id, "reattach_token": token})
    assert not first.gone
    assert holder(core) == first.id
    assert second.take() == []


def test_a_name_is_held_in_one_namespace() -> None:
    core = SyncCore()
    here, there = named(core), named(core, namespace="eu")
    assert (holder(core), holder(core, namespace="eu")) == (here.id, there.id)
    assert (server(core), server(core, "eu")) == (here.id, there.id)
    assert here.connection.pings == there.connection.pings == 0


def test_what_a_refused_worker_had_registered_is_never_applied() -> None:
    core = SyncCore()
    first = named(core)
    second = core.connect()
    second.register("b::only_here")
    second.send(
        {"type": "registertrigger", "id": "t", "trigger_type": "T", "function_id": "b::only_here", "config": None}
    )
    second.introduce(name="shop")
    first.send({"type": "ping"})
    core.advance(20)
    assert core.engine.functions.get("default", "b::only_here") is None
    assert core.engine.triggers.get("t") is None
