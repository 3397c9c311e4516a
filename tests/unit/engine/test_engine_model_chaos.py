"""Everything at once, without a model: whatever peers do in whatever order, the engine's tables agree with each other.

Trusted workers and sessions with hooks; names, functions, types, bindings and durable triggers that clash; answers that
come late, twice, or not at all; workers that stop reading, vanish, and come back before they have gone. The other
machines say what must come of each step. This one mixes all of it, and says what may never be seen after any step: a
thing that belongs to somebody who has left, a binding that stands elsewhere than its type does, a call that is answered
twice, or not in its time. When everybody has left nothing remains.
"""

import math
import uuid
from typing import Any

import pytest
from attrs import define, field
from engine_sync import VOID, SyncCore, SyncWorker
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_walks import one, walk

from iii_trio.engine import BindingState, ExposeFilter, Hooks, Pattern
from iii_trio.engine.access import Session
from iii_trio.engine.durable import REGISTER, UNREGISTER, Durable
from iii_trio.engine.registrations import WorkerProvider
from iii_trio.protocol.limits import HOOK_S

HOOKS = Hooks(function="h::any", trigger="h::any", trigger_type="h::any")
FUNCTIONS, TYPES, BINDINGS, NAMES = ["a", "a", "h::any"], ["T", "T", "T", "U"], ["one", "two"], ["n", "o"]
SPACES = [None, None, None, "default", "shop"]
EVERYTHING = (ExposeFilter(pattern=Pattern.of("*")),)
ACTS = ["register", "share", "unregister", "provide", "provide", "withdraw", "bind", "bind", "unbind"]
ACTS += ["durable", "durable", "undo", "call", "call", "void", "introduce"]
DEADLINE, LATE = 20.0, 0.5


@define(eq=False, repr=False)
class Node:
    """A worker. `todo` are frames that it may answer, `told` the bindings it was given, `due` when its calls must end."""

    worker: SyncWorker
    todo: list[dict[str, Any]] = field(factory=list)
    told: dict[tuple[str, str], Any] = field(factory=dict)
    due: dict[str, float] = field(factory=dict)

    @property
    def reads(self) -> bool:
        """Whether it still is, and sees what it is sent."""
        return not self.worker.gone and not self.worker.connection.full


class ChaosMachine(RuleBasedStateMachine):
    """Rules are what peers do."""

    def __init__(self) -> None:
        super().__init__()
        self.core = SyncCore(default_timeout_s=DEADLINE)
        Durable(self.core.engine).register(self.core.engine.local)
        self.nodes: list[Node] = []
        self.n = 0

    @initialize()
    def town(self) -> None:
        for name, prefix in (("hooks", None), ("n", None), ("", None), ("", ""), ("", "p")):
            self._connect(prefix).worker.introduce(name=name)
        self.nodes[0].worker.register("h::any")
        for node, space in zip(self.nodes[1:], ("default", "shop"), strict=False):
            frame = {"type": "registertriggertype", "id": "T", "description": "", "namespace": space}
            node.worker.send(frame)

    def _connect(self, prefix: str | None) -> Node:
        session = None if prefix is None else Session(expose=EVERYTHING, hooks=HOOKS, prefix=prefix)
        self.nodes.append(Node(self.core.connect(session=session)))
        return self.nodes[-1]

    @precondition(lambda self: len(self.nodes) < 7)
    @rule(
        data=st.data(),
        prefix=st.sampled_from([None, None, "", "p"]),
        name=st.sampled_from([None, "", "", *NAMES]),
        back=st.booleans(),
    )
    def connect(self, data: st.DataObject, prefix: str | None, name: str | None, back: bool) -> None:
        """A newcomer, or one that was here a moment ago and, to the engine, still is."""
        old = one(data, self.nodes).worker if back and len(self.nodes) > 3 else None
        worker = self._connect(prefix).worker
        if old is not None:
            token = old.peer.reattach_token
            worker.send({"type": "reattach", "previous_worker_id": old.id, "reattach_token": token})
        if name is not None:
            worker.introduce(name=name, namespace=one(data, SPACES))

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), whats=st.lists(st.sampled_from(ACTS), min_size=1, max_size=8))
    def act(self, data: st.DataObject, whats: list[str]) -> None:
        node = one(data, self.nodes)
        for what in whats:
            if not node.worker.gone:
                self._act(data, node, what)

    def _act(self, data: st.DataObject, node: Node, what: str) -> None:
        self.n += 1
        function, type_id, binding = one(data, FUNCTIONS), one(data, TYPES), one(data, BINDINGS)
        space = one(data, SPACES)
        named = {} if space is None else {"namespace": space}
        if what == "introduce":
            node.worker.introduce(name=one(data, ["", *NAMES]))
        elif what in ("register", "share"):
            metadata = {"metadata": {"iii.shared": True}} if what == "share" else {}
            node.worker.send({"type": "registerfunction", "id": function, **metadata})
        elif what == "unregister":
            node.worker.send({"type": "unregisterfunction", "id": function})
        elif what == "provide":
            node.worker.send({"type": "registertriggertype", "id": type_id, "description": "", **named})
        elif what == "withdraw":
            node.worker.send({"type": "unregistertriggertype", "id": type_id, **named})
        elif what == "bind":
            frame = {"type": "registertrigger", "id": binding, "trigger_type": type_id, "function_id": function}
            node.worker.send({**frame, "config": self.n, "trigger_namespace": space})
        elif what == "unbind":
            node.worker.send({"type": "unregistertrigger", "id": binding})
        elif what == "durable":
            self._call(node, REGISTER, {"trigger_type": type_id, "function_id": function, "trigger_namespace": space})
        elif what == "undo":
            self._call(node, UNREGISTER, {"id": one(data, [*BINDINGS, *(b.id for b in self.core.engine.triggers)])})
        elif what == "call":
            self._call(node, function, self.n, deadline_s=DEADLINE if space is None else 3.0)
        else:
            node.worker.call(function, self.n, action=VOID)

    def _call(self, node: Node, function: str, data: Any, deadline_s: float = DEADLINE) -> None:
        call_id = str(uuid.uuid4())
        node.due[call_id] = self.core.clock.now() + deadline_s
        fields = {} if deadline_s == DEADLINE else {"deadline_ms": round(deadline_s * 1000)}
        node.worker.call(function, data, invocation_id=call_id, **fields)

    @precondition(lambda self: any(node.todo for node in self.nodes))
    @rule(data=st.data(), well=st.booleans(), name=st.sampled_from([None, None, "a", "T", "one"]), again=st.booleans())
    def answer(self, data: st.DataObject, well: bool, name: str | None, again: bool) -> None:
        """What was asked is answered, well or not; for a hook it is what it makes of ids."""
        for node in [node for node in self.nodes if node.todo]:
            frame = one(data, node.todo)
            if not again:
                node.todo.remove(frame)
            self._answer(node, frame, well, name)
            self._read()

    def _answer(self, node: Node, frame: dict[str, Any], well: bool, name: str | None) -> None:
        error = {} if well else {"error": {"code": "no", "message": "no"}}
        if frame["type"] == "invokefunction":
            ids = ("function_id", "trigger_id", "trigger_type", "trigger_type_id")
            node.worker.answer(frame["invocation_id"], **(error or {"result": dict.fromkeys(ids, name)}))
            return
        keys = {key: frame[key] for key in ("id", "trigger_type", "function_id")}
        node.worker.send({"type": "triggerregistrationresult", **keys, **error})
        self._read()  # a sign of life may have ended the binding's owner: that crosses the refusal
        if not well:
            node.told = {key: config for key, config in node.told.items() if key[1] != frame["id"]}

    @precondition(lambda self: any(node.due for node in self.nodes))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """What is cancelled is not answered, unless the sign of life that comes with the frame ends it first."""
        node = one(data, [node for node in self.nodes if node.due])
        call_id = one(data, list(node.due))
        node.worker.peer.on_heard()
        self._read()
        if node.due.pop(call_id, None) is not None and not node.worker.gone:
            node.worker.send({"type": "cancelinvocation", "invocation_id": call_id})

    @precondition(lambda self: len(self.nodes) > 5)
    @rule(data=st.data(), how=st.sampled_from(["cut", "stall", "stall"]))
    def lose(self, data: st.DataObject, how: str) -> None:
        """Its socket ends; or it reads no more, which ends it with the next frame that it is sent."""
        node = one(data, self.nodes)
        if how == "cut":
            node.worker.cut()
        node.worker.connection.full = True

    @rule(seconds=st.sampled_from([1, 1, 6, 24]), spoken=st.booleans())
    def wait(self, seconds: int, spoken: bool) -> None:
        for node in self.nodes if spoken else []:
            node.worker.peer.on_heard()
        for _ in range(seconds):
            self.core.advance(1)
            self.every_call_ends_in_time()

    def _live(self, seconds: float) -> None:
        """Time passes, and everybody who is there answers pings."""
        for _ in range(math.ceil(seconds / 4)):
            for node in self.nodes:
                node.worker.peer.on_heard()
            self.core.advance(4, step=0.5)
        self._read()

    # -- what is never seen -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        self.nodes = [node for node in self.nodes if not node.worker.gone]
        for node in self.nodes:
            for frame in node.worker.take():
                key = (frame.get("trigger_type"), frame.get("id"))
                if frame["type"] == "invokefunction":
                    node.todo.append(frame)
                elif frame["type"] == "registertrigger":
                    node.todo.append(frame)
                    node.told[key] = frame["config"]
                elif frame["type"] == "unregistertrigger":
                    assert key in node.told, "what was never bound, or has been unbound"
                    del node.told[key]
                elif frame["type"] == "invocationresult":
                    assert frame["invocation_id"] in node.due, "answered twice, or though it was cancelled"
                    del node.due[frame["invocation_id"]]

    @invariant()
    def every_call_ends_in_time(self) -> None:
        self._read()
        for node in self.nodes:
            assert not node.reads or all(due + LATE > self.core.clock.now() for due in node.due.values())

    @invariant()
    def nothing_belongs_to_the_dead(self) -> None:
        self._read()
        engine = self.core.engine
        for entry in engine.functions:
            assert not entry.owner.leaving
            assert entry.owner.functions[entry.namespace, entry.id] is entry
        for claims in engine.functions._standby.values():
            for entry in claims:
                assert not entry.owner.leaving
                assert entry.owner.functions[entry.namespace, entry.id] is entry
        for peer in engine.workers:
            assert not peer.leaving
            assert peer.lease is None or engine.workers._names[peer.lease] is peer
            for key, entry in peer.functions.items():
                serving = engine.functions.get(*key)
                in_line = engine.functions._standby.get(key, [])
                assert serving is entry or entry in in_line or (serving is not None and serving.shared and entry.shared)
            for call in [*peer.running.values(), *peer.calls.values()]:
                assert call.state.value != "done"
                assert not call.executor.leaving
        for key, peer in engine.workers._names.items():
            assert peer.lease == key
            assert not peer.leaving

    @invariant()
    def bindings_stand_where_their_types_do(self) -> None:
        self._read()
        triggers = self.core.engine.triggers
        for claim in triggers.types():
            assert not claim.owner.leaving
            assert claim in claim.owner.types
        served: dict[Any, dict[tuple[str, str], Any]] = {node.worker.peer: {} for node in self.nodes}
        for binding in triggers:
            if binding.owner is not None:
                assert not binding.owner.leaving
                assert binding.owner.bindings[binding.id] is binding
            place = triggers.resolve(binding)
            if binding.state is BindingState.LIVE:
                assert binding.claim is place
                assert place is not None
                assert isinstance(place.provider, WorkerProvider)
                served[place.owner][place.provider.type_id, binding.id] = binding.config.decode()
            else:
                assert binding.claim is None
                assert binding.why
                assert binding.state is BindingState.REFUSED or place is None
        for node in self.nodes:
            assert set(node.worker.peer.bindings) == {b.id for b in triggers if b.owner is node.worker.peer}
            if node.reads:
                assert node.told == served[node.worker.peer]

    def teardown(self) -> None:
        """Time passes, and every call has been answered; everybody leaves, and only durable triggers are left."""
        for node in self.nodes:
            node.worker.introduce()
        self._live(DEADLINE + 1)
        assert not any(node.due for node in self.nodes if node.reads)
        self._live(HOOK_S * (1 + max((node.worker.peer.intake.statistics().parked for node in self.nodes), default=0)))
        for node in self.nodes:
            assert node.worker.peer.hook is None
            assert node.worker.peer.intake.statistics().parked == 0
            node.worker.cut()
        self.core.advance(DEADLINE + 6, step=1)
        engine = self.core.engine
        statistics = engine.statistics()
        assert (statistics.running, statistics.waiting, statistics.deadlines.timers) == (0, 0, 0)
        assert (statistics.workers.connected, statistics.workers.named, statistics.functions.standing_by) == (0, 0, 0)
        assert {entry.id for entry in engine.functions} == {"engine::workers::register", REGISTER, UNREGISTER}
        assert all(binding.owner is None for binding in engine.triggers)
        assert len(list(engine.triggers)) == engine.triggers.durable
        for binding in engine.triggers:
            engine.triggers.unregister(binding.id)
        assert not engine.triggers._by_type
        assert not engine.triggers._types


def test_nothing_is_stranded_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    walk(ChaosMachine, examples=25, steps=40, caplog=caplog)


@pytest.mark.long
def test_nothing_is_stranded_whatever_happens_for_long(caplog: pytest.LogCaptureFixture) -> None:
    walk(ChaosMachine, examples=350, steps=80, caplog=caplog)
