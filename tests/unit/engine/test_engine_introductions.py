"""`engine::workers::register` (spec/protocol.md §4.1, §4.2): names, namespaces and metadata, one step at a time."""

from typing import Any

import pytest
from engine_sync import SyncCore, SyncWorker

from iii_trio.engine.workers import clean_name, message_cap
from iii_trio.protocol import EMPTY_OBJECT
from iii_trio.protocol.limits import PEER_MESSAGE_DEFAULT, PEER_MESSAGE_LARGE, PEER_MESSAGE_SMALL
from iii_trio.protocol.messages import RegisterWorker

REGISTER = "engine::workers::register"


def ask(worker: SyncWorker, data: Any) -> dict[str, Any]:
    """Introduce a worker and wait for the answer."""
    call = worker.call(REGISTER, data)
    return next(frame for frame in worker.take("invocationresult") if frame["invocation_id"] == call)


def functions(core: SyncCore, namespace: str) -> list[str]:
    return sorted(entry.id for entry in core.engine.functions if entry.namespace == namespace and not entry.builtin)


def test_a_blank_namespace_is_refused_and_nothing_is_stored() -> None:
    core = SyncCore()
    worker = core.connect()
    worker.register("a::f")
    for name, shown in (("shop", "shop"), (None, "<unnamed>")):
        answer = ask(worker, {"name": name, "namespace": " "})
        assert answer["error"] == {
            "code": "INVALID_NAMESPACE",
            "message": f"namespace is empty: worker '{shown}' declared \" \". "
            "Give it a name, or omit the field to register in 'default'.",
        }
    assert (worker.peer.info, worker.peer.lease, functions(core, "default")) == (None, None, [])
    core.advance(6)
    assert functions(core, "default") == ["a::f"], "the grace goes on"


@pytest.mark.parametrize("data", [None, [], "text", {"pid": "x"}, {"features": "x"}])
def test_input_that_does_not_fit_is_answered(data: Any) -> None:
    answer = ask(SyncCore().connect(), data)
    assert answer["error"]["code"] == "deserialization_error"
    assert answer["error"]["message"].startswith(f"Failed to deserialize input for {REGISTER}: ")


def test_a_module_cannot_introduce_itself() -> None:
    core = SyncCore()
    codes: list[str] = []
    module = core.local("module")
    module.call(REGISTER, EMPTY_OBJECT, lambda outcome: codes.append(outcome.exception().code))
    assert codes == ["FORBIDDEN"]


def test_a_late_namespace_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    core = SyncCore()
    worker = core.connect()
    worker.register("a::f")
    core.advance(6)
    assert "named no namespace in time" in caplog.text
    assert ask(worker, {"name": "shop", "namespace": "orders"})["result"] == {"success": True}
    assert "declared namespace 'orders' too late" in caplog.text
    worker.register("a::g")
    assert functions(core, "default") == ["a::f", "a::g"]
    assert worker.peer.lease == ("default", "shop")


def test_saying_less_the_next_time_forgets_nothing(caplog: pytest.LogCaptureFixture) -> None:
    core = SyncCore()
    worker = core.connect()
    ask(
        worker,
        {
            "runtime": "python",
            "version": "0.25.0",
            "name": "shop",
            "description": "sells",
            "os": "linux",
            "pid": 7,
            "namespace": "orders",
            "telemetry": {"language": "python"},
            "features": ["cancel.v1"],
        },
    )
    assert ask(worker, {"runtime": "node", "version": "1"})["result"] == {"success": True}
    info = worker.peer.info
    assert info is not None
    assert (info.name, info.description, info.os, info.pid, info.namespace) == ("shop", "sells", "linux", 7, "orders")
    assert (info.runtime, info.version, info.telemetry) == ("node", "1", None), "these are always overwritten"
    assert worker.peer.features == {"cancel.v1"}
    assert (worker.peer.name, worker.peer.lease) == ("shop", ("orders", "shop"))
    assert "too late" not in caplog.text, "it has declared nothing else"


def test_a_worker_that_takes_another_name_gives_the_first_back() -> None:
    core = SyncCore()
    worker, other = core.connect(name="old"), core.connect(version="1")
    ask(worker, {"name": "new"})
    assert ask(other, {"name": "old"})["result"] == {"success": True}
    worker.cut()
    other.cut()
    assert core.engine.workers.statistics().named == 0


def test_the_grace_does_not_decide_on_a_name_that_is_being_asked_for() -> None:
    """Whoever has said its namespace is not drained into `default` because the holder of its name is slow to answer."""
    core = SyncCore()
    holder = core.connect(name="shop", namespace="orders")
    newcomer = core.connect()
    newcomer.register("a::f")
    core.advance(3)
    newcomer.introduce(name="shop", namespace="orders")
    core.advance(3)
    assert functions(core, "default") == []
    core.advance(3)
    assert holder.gone
    assert (functions(core, "orders"), functions(core, "default")) == (["a::f"], [])


def test_a_claim_that_outlives_its_claimant_leaves_no_call() -> None:
    core = SyncCore()
    core.connect(name="shop")
    newcomer = core.connect()
    newcomer.introduce(name="shop")
    newcomer.cut()
    core.advance(6)
    assert core.engine.statistics().running == 0


def test_registrations_before_the_introduction_are_applied_in_order() -> None:
    core = SyncCore()
    worker = core.connect()
    worker.register("a::f")
    worker.send({"type": "unregisterfunction", "id": "a::f"})
    worker.register("a::g")
    worker.send({"type": "registerservice", "id": "service"})
    assert worker.peer.statistics().parked == 4
    worker.introduce(namespace="orders")
    assert functions(core, "orders") == ["a::g"]
    assert worker.peer.statistics().parked == 0


def test_a_flood_of_registrations_without_a_namespace_is_not_read() -> None:
    core = SyncCore()
    worker = core.connect()
    for number in range(1_000):
        assert not worker.connection.paused
        worker.register(f"f{number}")
    assert worker.connection.paused
    core.advance(5.25)
    assert not worker.connection.paused
    assert len(functions(core, "default")) == 1_000


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (None, None),
        ("", None),
        ("  shop ", "shop"),
        ("a\u202eb\u2066c\u2028d\x00e\x7ff", "abcdef"),
        ("x" * 300, "x" * 280),
        ("\n\t ", None),
        ("gro\u00df \U0001f600", "gro\u00df \U0001f600"),
    ],
)
def test_names_are_cleaned(said: str | None, kept: str | None) -> None:
    assert clean_name(said) == kept


@pytest.mark.parametrize(
    ("said", "cap"),
    [
        ({}, PEER_MESSAGE_DEFAULT),
        ({"runtime": "node", "version": "0.23.0"}, PEER_MESSAGE_DEFAULT),
        ({"runtime": "python", "version": "0.23.0"}, PEER_MESSAGE_SMALL),
        ({"runtime": "python", "version": "0.24.0"}, PEER_MESSAGE_LARGE),
        ({"runtime": "python", "version": "1.0"}, PEER_MESSAGE_LARGE),
        ({"runtime": "python", "version": "0.9"}, PEER_MESSAGE_SMALL),
        ({"runtime": "python"}, PEER_MESSAGE_DEFAULT),
        ({"runtime": "python", "version": "dev"}, PEER_MESSAGE_DEFAULT),
        ({"runtime": "rust", "features": ("large-messages.v1",)}, PEER_MESSAGE_LARGE),
    ],
)
def test_what_a_worker_takes_follows_from_what_it_says(said: dict[str, Any], cap: int) -> None:
    assert message_cap(RegisterWorker(**said)) == cap
