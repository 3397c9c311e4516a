"""Deliveries of a module: lanes, bounds, conditions, metadata (spec/protocol.md §8, §9.9)."""

import logging
from typing import Any

import pytest
from attrs import define, field
from engine_sync import SyncCore, SyncWorker

from iii_trio.engine import Binding, Call, Delivered, Firing, LocalPeer, Outcome, Reason
from iii_trio.protocol import Json
from iii_trio.protocol.limits import CONDITION_S


@define(eq=False)
class Stage:
    """A module with deliveries, and a worker that serves `a::f` and `a::if` in namespace `orders`."""

    core: SyncCore = field(factory=SyncCore)
    module: LocalPeer = field(init=False)
    worker: SyncWorker = field(init=False)
    firing: Firing = field(init=False)
    ends: list[tuple[str, Delivered]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.module = self.core.local("module")
        self.worker = self.core.connect(namespace="orders")
        self.worker.register("a::f")
        self.worker.register("a::if")
        self.firing = Firing(self.module)

    def fire(self, what: str, binding_id: str = "one", **options: Any) -> None:
        binding = Binding(
            id=binding_id,
            trigger_type="T",
            function_id=options.pop("function_id", "a::f"),
            namespace="orders",
            metadata=options.pop("metadata", Json(b"")),
        )
        self.firing.fire(
            binding, Json.of(what), on_delivered=lambda how, _outcome: self.ends.append((what, how)), **options
        )

    def calls(self) -> list[dict[str, Any]]:
        return self.worker.take("invokefunction")

    def counts(self) -> tuple[int, int]:
        statistics = self.firing.statistics()
        return statistics.running, statistics.waiting


def names(calls: list[dict[str, Any]]) -> list[str]:
    return [call["data"] for call in calls]


def test_a_delivery_carries_metadata_and_trace_and_no_caller() -> None:
    stage = Stage()
    stage.fire("x", metadata=Json(b'{"m":1}'), traceparent="00-1-2-01", baggage="k=v")
    call = stage.calls()[0]
    assert call == {
        "type": "invokefunction",
        "invocation_id": call["invocation_id"],
        "function_id": "a::f",
        "data": "x",
        "traceparent": "00-1-2-01",
        "baggage": "k=v,iii.function.id=a::f",
        "metadata": {"m": 1},
    }
    stage.worker.answer(call["invocation_id"], result=1)
    assert stage.ends == [("x", Delivered.HANDLED)]


def test_a_lane_is_one_after_the_other_and_lanes_run_beside_each_other() -> None:
    stage = Stage()
    for what, lane in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("n1", None), ("a3", "a"), ("n2", None)):
        stage.fire(what, lane=lane)
    stage.fire("other binding", "two", lane="a")
    first = stage.calls()
    assert names(first) == ["a1", "b1", "n1", "n2", "other binding"]
    assert stage.counts() == (5, 2)
    stage.worker.answer(first[0]["invocation_id"], error={"code": "x", "message": "failed, and the lane goes on"})
    second = stage.calls()
    assert names(second) == ["a2"]
    stage.worker.answer(second[0]["invocation_id"])
    assert names(stage.calls()) == ["a3"]
    assert stage.ends == [("a1", Delivered.FAILED), ("a2", Delivered.HANDLED)]


def test_no_more_run_than_the_limit_and_no_more_wait_than_their_bound() -> None:
    stage = Stage()
    stage.firing.limit, stage.firing.max_waiting = 4, 6
    for number in range(14):
        stage.fire(str(number), ("even", "odd")[number % 2])
    assert names(running := stage.calls()) == ["0", "1", "2", "3"]  # noqa: RUF018
    assert stage.ends == [(str(number), Delivered.DROPPED) for number in range(10, 14)]
    assert stage.counts() == (4, 6)
    stage.worker.answer(running[1]["invocation_id"])
    assert names(stage.calls()) == ["5"]
    stage.fire("14", "odd")
    assert stage.counts() == (4, 6)
    statistics = stage.firing.statistics()
    assert (statistics.handled, statistics.dropped) == (1, 4)


def test_one_binding_that_hangs_holds_up_nobody_else() -> None:
    stage = Stage()
    stage.firing.limit, stage.firing.max_waiting = 4, 6
    for number in range(8):
        stage.fire(f"hangs {number}", "hangs", lane=number if number % 2 else None)
    assert names(hanging := stage.calls()) == ["hangs 0", "hangs 1"]  # noqa: RUF018
    assert stage.counts() == (2, 3)
    assert stage.ends == [(f"hangs {number}", Delivered.DROPPED) for number in (5, 6, 7)]
    for number in range(3):
        stage.fire(f"other {number}", "other", lane="a")
        (call,) = stage.calls()
        assert call["data"] == f"other {number}"
        stage.worker.answer(call["invocation_id"])
    for call in hanging:
        stage.worker.answer(call["invocation_id"])
    assert names(last := stage.calls()) == ["hangs 2", "hangs 3"]  # noqa: RUF018
    for call in last:
        stage.worker.answer(call["invocation_id"])
    (call,) = stage.calls()
    stage.worker.answer(call["invocation_id"])
    assert stage.counts() == (0, 0)
    assert stage.firing.statistics().handled == 8


def test_dropping_says_so_once_in_a_thousand(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.firing.limit, stage.firing.max_waiting = 0, 0
    for _ in range(2_500):
        stage.fire("x")
    assert stage.firing.statistics().dropped == 2_500
    assert len([record for record in caplog.records if "dropped" in record.message]) == 3


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        ({"result": False}, Delivered.SKIPPED),
        ({"result": True}, None),
        ({"result": 0}, None),
        ({"result": ""}, None),
        ({"result": None}, None),
        ({}, None),
        ({"result": "false"}, None),
        ({"error": {"code": "x", "message": "y"}}, Delivered.FAILED),
    ],
)
def test_conditions(answer: dict[str, Any], end: Delivered | None, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.fire("x", condition="a::if", metadata=Json(b"1"))
    asked = stage.calls()
    assert [(call["function_id"], call["data"]) for call in asked] == [("a::if", "x")]
    assert "metadata" not in asked[0]
    stage.worker.answer(asked[0]["invocation_id"], **answer)
    handled = stage.calls()
    if end is None:
        assert [call["function_id"] for call in handled] == ["a::f"]
        assert stage.counts() == (1, 0)
    else:
        assert handled == []
        assert stage.ends == [("x", end)]
        assert stage.counts() == (0, 0)
    nothing = answer.get("result") is None and "error" not in answer
    assert any("answered nothing" in record.message for record in caplog.records) == nothing


def test_a_condition_that_does_not_answer_fails_its_delivery() -> None:
    stage = Stage()
    stage.fire("x", condition="a::if", lane="a")
    stage.fire("y", lane="a")
    stage.core.advance(CONDITION_S + 1, step=1)
    assert stage.ends == [("x", Delivered.FAILED)]
    assert [call["data"] for call in stage.calls() if call["function_id"] == "a::f"] == ["y"]


def test_a_condition_or_function_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.fire("x", condition="a::nope")
    stage.fire("y", function_id="a::nope")
    assert stage.ends == [("x", Delivered.FAILED), ("y", Delivered.FAILED)]
    assert "Function a::nope not found in namespace orders" in caplog.text
    assert stage.counts() == (0, 0)


def test_a_long_lane_of_functions_that_answer_at_once_needs_no_deep_stack() -> None:
    stage = Stage()
    handled: list[str] = []

    def inline(_call: Call, data: Json) -> Outcome:
        handled.append(data.decode())
        return Outcome()

    stage.module.register("m::f", inline)
    stage.firing.limit = 0
    binding = Binding(id="one", trigger_type="T", function_id="m::f")
    for number in range(4_999):
        stage.firing.fire(binding, Json.of(str(number)), lane="a")
    stage.firing.limit = 1
    stage.firing.fire(binding, Json.of("last"), lane="b")
    assert len(handled) == 5_000
    assert [name for name in handled if name != "last"] == [str(number) for number in range(4_999)]


def test_what_fires_again_when_it_is_delivered_keeps_its_place() -> None:
    stage = Stage()
    told: list[str] = []

    def inline(_call: Call, data: Json) -> Outcome:
        told.append(data.decode())
        return Outcome()

    stage.module.register("m::f", inline)
    binding = Binding(id="one", trigger_type="T", function_id="m::f")

    def again(how: Delivered, _outcome: Outcome | None) -> None:
        assert how is Delivered.HANDLED
        if len(told) < 3_000:
            stage.firing.fire(binding, Json.of(f"more {len(told)}"), on_delivered=again)

    stage.firing.fire(binding, Json.of("first"), on_delivered=again)
    assert len(told) == 3_000
    assert told[:3] == ["first", "more 1", "more 2"]


def test_a_module_that_ends_amid_its_deliveries_leaves_no_call(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    with caplog.at_level(logging.CRITICAL):
        stage.fire("x", lane="a")
        stage.fire("y", lane="a")
        stage.core.engine.release(stage.module)
        assert stage.ends == [], "nobody is told any more"
        stage.fire("late", lane="b")
        assert stage.ends == [("late", Delivered.FAILED)]
    assert stage.module.calls == {}
    stage.core.advance(6)
    assert stage.core.engine.statistics().running == 0
    assert names(stage.calls()) == ["x"]


# -- bindings that are gone -------------------------------------------------------------------------------------------


class Taking:
    """A provider that takes everything."""

    def bind(self, _binding: Binding) -> None: ...

    def replace(self, _old: Binding, _new: Binding) -> None: ...

    def unbind(self, _binding: Binding, _reason: Reason) -> None: ...


@define(eq=False)
class Bound(Stage):
    """Deliveries of a binding that stands in the table."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.module.provide("T", Taking())
        self.bind()

    def bind(self, function_id: str = "a::f", config: int = 1, metadata: str = "first") -> None:
        """Put the binding `b` into the table, or a new one into its place."""
        frame = {"id": "b", "trigger_type": "T", "function_id": function_id, "config": config}
        self.worker.send({"type": "registertrigger", **frame, "metadata": metadata, "namespace": "orders"})
        binding = self.core.engine.triggers.get("b")
        assert binding is not None
        self.binding = binding

    binding: Binding = field(init=False)

    def event(self, what: str, **options: Any) -> None:
        self.firing.fire(
            self.binding,
            Json.of(what),
            lane="lane",
            on_delivered=lambda how, _outcome: self.ends.append((what, how)),
            **options,
        )


@pytest.mark.parametrize("how", ["unregistered", "other function", "other config"])
def test_what_waits_for_a_binding_that_is_gone_is_not_delivered(how: str) -> None:
    stage = Bound()
    for what in ("sent", "waits", "waits, too"):
        stage.event(what)
    sent = stage.calls()
    if how == "unregistered":
        stage.worker.send({"type": "unregistertrigger", "id": "b", "trigger_type": "T"})
    elif how == "other function":
        stage.bind("a::if")
    else:
        stage.bind(config=2)
    assert names(sent) == ["sent"]
    stage.worker.answer(sent[0]["invocation_id"], result=1)
    assert stage.calls() == []
    assert stage.ends == [("sent", Delivered.HANDLED), ("waits", Delivered.UNBOUND), ("waits, too", Delivered.UNBOUND)]
    statistics = stage.firing.statistics()
    assert (statistics.unbound, statistics.running, statistics.waiting) == (2, 0, 0)


def test_a_binding_that_goes_while_its_condition_is_asked_delivers_nothing() -> None:
    stage = Bound()
    stage.event("x", condition="a::if")
    asked = stage.calls()
    stage.worker.send({"type": "unregistertrigger", "id": "b", "trigger_type": "T"})
    stage.worker.answer(asked[0]["invocation_id"], result=True)
    assert stage.calls() == []
    assert stage.ends == [("x", Delivered.UNBOUND)]


def test_a_trigger_that_is_registered_again_takes_over_what_waits() -> None:
    stage = Bound()
    stage.event("sent")
    stage.event("waits")
    stage.bind(metadata="second")
    stage.worker.answer(stage.calls()[0]["invocation_id"], result=1)
    [call] = stage.calls()
    assert (call["data"], call["metadata"]) == ("waits", "second")
    stage.worker.answer(call["invocation_id"], result=1)
    assert stage.ends == [("sent", Delivered.HANDLED), ("waits", Delivered.HANDLED)]


def test_a_thousand_that_wait_for_nobody_end_in_one_step() -> None:
    stage = Bound()
    for number in range(2_000):
        stage.event(str(number))
    stage.worker.send({"type": "unregistertrigger", "id": "b", "trigger_type": "T"})
    stage.worker.answer(stage.calls()[0]["invocation_id"], result=1)
    assert len(stage.ends) == 2_000
    assert stage.firing.statistics().waiting == 0
