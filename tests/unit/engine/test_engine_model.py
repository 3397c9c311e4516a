"""The synchronous core against a small model: random workers, calls, claims, bindings, deadlines and losses.

The model knows who claims what, who waits for whom, and what was promised. After every step the engine's tables equal
it; every call is answered exactly once; and when everybody has left nothing remains.
"""

import uuid
from typing import Any

import pytest
from attrs import define, field
from engine_sync import VOID, SyncCore, SyncWorker
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from model_walks import one, walk

from iii_trio.engine import LATER, BindingState, Call, LocalPeer, Outcome
from iii_trio.engine.invocations import State

FUNCTIONS = ["a::f", "a::g", "m::now", "m::later"]
TYPES = ["T", "U"]
BINDINGS = ["one", "two", "three"]
GRACE = PROBE = TOMB = 5.0
DEFAULT = 60.0


@define(eq=False, repr=False)
class Job:
    """One call as the model sees it. `executor` of None: a built-in. `wire` is known once it has arrived."""

    n: int
    caller: "Node"
    call_id: str | None
    executor: "Node | None"
    deadline: float
    wire: str | None = None
    state: State = State.RUNNING
    tomb_until: float = 0.0


@define(eq=False, repr=False)
class Node:
    """One worker as the model sees it. `backlog` holds what it registers before it has said who it is."""

    worker: SyncWorker
    grace_until: float
    grace_order: int
    open: bool = False
    backlog: list[tuple[str, Any]] = field(factory=list)
    probe_until: float | None = None
    probe_order: int = 0
    claimed_by: "list[tuple[Node, str]]" = field(factory=list)
    answers: dict[str, int] = field(factory=dict)
    owed: dict[str, int] = field(factory=dict)
    bound: set[tuple[str, str]] = field(factory=set)


@define(eq=False, repr=False)
class Bind:
    """One binding as the model sees it."""

    id: str
    owner: Node
    type: str
    refused: bool = False


class CoreMachine(RuleBasedStateMachine):
    """Rules are what peers do; `_settle` is what the model makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.core = SyncCore(default_timeout_s=DEFAULT)
        self.nodes: list[Node] = []
        self.claims: dict[str, list[Node]] = {}
        self.types: dict[str, list[Node]] = {}
        self.binds: dict[str, Bind] = {}
        self.jobs: list[Job] = []
        self.later: list[tuple[Call, int]] = []
        self.n = 0

    @initialize()
    def modules(self) -> None:
        local: LocalPeer = self.core.local("m")
        local.register("m::now", lambda _call, data: Outcome(data))

        def later(call: Call, data: Any) -> Any:
            self.later.append((call, data.decode()["n"]))
            return LATER

        local.register("m::later", later)

    # -- what peers do ------------------------------------------------------------------------------------------------

    @rule(introduced=st.booleans())
    def connect(self, introduced: bool) -> None:
        introduced = introduced or any(node.worker.connection.full for node in self.nodes)
        if len(self.nodes) < 5:
            node = self._connect()
            self.nodes.append(node)
            if introduced:
                self._introduce(node)
            self._settle()

    def _connect(self) -> Node:
        self.n += 1
        return Node(self.core.connect(), self.core.clock.now() + GRACE, self.n)

    def _pick(self, data: st.DataObject) -> Node:
        return one(data, self.nodes)

    def _introduce(self, node: Node) -> None:
        self._spoke(node)
        node.worker.introduce()
        self._open(node)

    def _open(self, node: Node) -> None:
        node.open = True
        backlog, node.backlog = node.backlog, []
        for what, argument in backlog:
            self._apply(node, what, argument)

    def _spoke(self, node: Node) -> None:
        """It lives: who wants what it holds is told so, and ends if it does not read that."""
        claimed_by, node.claimed_by, node.probe_until = node.claimed_by, [], None
        for by, function in claimed_by:
            if by.worker.connection.full and by in self.claims.get(function, []):
                self._drop(by)

    def _silent(self, node: Node) -> None:
        """It has not answered: it ends if somebody still wants what it holds."""
        wanted = [(by, function) for by, function in node.claimed_by if by in self.claims.get(function, [])]
        node.claimed_by, node.probe_until = [], None
        if any(self.claims[function][0] is node for _, function in wanted):
            self._drop(node)

    def _do(self, node: Node, frame: dict[str, Any], what: str, argument: Any) -> None:
        """A registration: at once, or when the gate opens."""
        self._spoke(node)
        node.worker.send(frame)
        if node.open:
            self._apply(node, what, argument)
        else:
            node.backlog.append((what, argument))
        self._settle()

    def _apply(self, node: Node, what: str, argument: Any) -> None:
        if what == "register":
            claims = self.claims.setdefault(argument, [])
            if node not in claims:
                claims.append(node)
            holder = claims[0]
            if holder is not node:
                holder.claimed_by.append((node, argument))
            if holder is not node and holder.probe_until is None:
                holder.probe_until = self.core.clock.now() + PROBE
                self.n += 1
                holder.probe_order = self.n
        elif what == "unregister":
            self._remove(self.claims, argument, node)
        elif what == "provide":
            self._remove(self.types, argument, node)
            self.types.setdefault(argument, []).append(node)
            for bind in self.binds.values():
                bind.refused = bind.refused and (bind.type != argument or self._state(bind) is BindingState.REFUSED)
        elif what == "withdraw":
            self._remove(self.types, argument, node)
        elif what == "bind":
            if node.worker.gone:  # it ended when it was told of it; the one it wanted to replace may have stayed
                if self.core.engine.triggers.get(argument[0]) is None:
                    self.binds.pop(argument[0], None)
                return
            self.binds.pop(argument[0], None)
            self.binds[argument[0]] = Bind(argument[0], node, argument[1])
        elif what == "unbind":
            self.binds.pop(argument, None)
        elif what == "call":
            self._start(*argument)

    def _state(self, bind: Bind) -> BindingState | None:
        """What the engine says: for those whose next provider was lost before it was told of them."""
        binding = self.core.engine.triggers.get(bind.id)
        return None if binding is None else binding.state

    @staticmethod
    def _remove(table: dict[str, list[Node]], key: str, node: Node) -> None:
        if node in table.get(key, []):
            table[key].remove(node)
            if not table[key]:
                del table[key]

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def introduce(self, data: st.DataObject) -> None:
        node = self._pick(data)
        if not node.open:
            self._introduce(node)
            self._settle()

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), function=st.sampled_from(FUNCTIONS[:2]))
    def register(self, data: st.DataObject, function: str) -> None:
        self._do(self._pick(data), {"type": "registerfunction", "id": function}, "register", function)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), function=st.sampled_from(FUNCTIONS[:2]))
    def unregister(self, data: st.DataObject, function: str) -> None:
        self._do(self._pick(data), {"type": "unregisterfunction", "id": function}, "unregister", function)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), type_id=st.sampled_from(TYPES))
    def provide(self, data: st.DataObject, type_id: str) -> None:
        self._do(
            self._pick(data), {"type": "registertriggertype", "id": type_id, "description": ""}, "provide", type_id
        )

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), type_id=st.sampled_from(TYPES))
    def withdraw(self, data: st.DataObject, type_id: str) -> None:
        self._do(self._pick(data), {"type": "unregistertriggertype", "id": type_id}, "withdraw", type_id)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), binding=st.sampled_from(BINDINGS), type_id=st.sampled_from(TYPES))
    def bind(self, data: st.DataObject, binding: str, type_id: str) -> None:
        frame = {"type": "registertrigger", "id": binding, "trigger_type": type_id, "function_id": "f", "config": 1}
        self._do(self._pick(data), frame, "bind", (binding, type_id))

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), binding=st.sampled_from(BINDINGS))
    def unbind(self, data: st.DataObject, binding: str) -> None:
        self._do(self._pick(data), {"type": "unregistertrigger", "id": binding}, "unbind", binding)

    @precondition(lambda self: self.nodes and self.binds)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """Somebody refuses a binding; it counts only from the provider that serves it."""
        node, bind = self._pick(data), one(data, list(self.binds.values()))
        self._spoke(node)
        if bind.id in self.binds and not bind.refused and self.types.get(bind.type, [None])[-1] is node:
            bind.refused = True
        error = {"code": "no", "message": "no"}
        frame = {"type": "triggerregistrationresult", "id": bind.id, "trigger_type": bind.type, "function_id": "f"}
        node.worker.send({**frame, "error": error})
        self._settle()
        if bind.refused:
            node.bound.discard((bind.type, bind.id))

    @precondition(lambda self: self.nodes)
    @rule(
        data=st.data(),
        function=st.sampled_from([*FUNCTIONS, "a::missing"]),
        void=st.booleans(),
        seconds=st.none() | st.integers(0, 20),
    )
    def call(self, data: st.DataObject, function: str, void: bool, seconds: int | None) -> None:
        node = self._pick(data)
        self.n += 1
        call_id = None if void else str(uuid.uuid4())
        mine = [n for n, (what, of) in enumerate(node.backlog) if what in ("register", "unregister") and of == function]
        deadline = self.core.clock.now() + (DEFAULT if seconds is None else seconds)
        argument = (self.n, node, call_id, function, deadline)
        self._spoke(node)
        if mine:
            node.backlog.insert(mine[-1] + 1, ("call", argument))
        else:
            self._start(*argument)
        frame: dict[str, Any] = {"type": "invokefunction", "function_id": function, "data": {"n": self.n}}
        if call_id is not None:
            frame["invocation_id"] = call_id
        if void:
            frame["action"] = VOID
        if seconds is not None:
            frame["deadline_ms"] = seconds * 1000
        node.worker.send(frame)
        self._settle()

    def _start(self, n: int, node: Node, call_id: str | None, function: str, deadline: float) -> None:
        if function in self.claims or function == "m::later":
            executor = self.claims[function][0] if function in self.claims else None
            self.jobs.append(Job(n, node, call_id, executor, deadline))
        elif call_id is not None:
            self._owe(node, call_id)

    @precondition(lambda self: any(job.wire for job in self.jobs))
    @rule(data=st.data(), error=st.booleans(), thief=st.booleans())
    def answer(self, data: st.DataObject, error: bool, thief: bool) -> None:
        """The executor answers, or somebody else tries to."""
        job = one(data, [job for job in self.jobs if job.wire])
        assert job.executor is not None
        assert job.wire is not None
        node = one(data, self.nodes) if thief else job.executor
        self._spoke(node)
        if node is job.executor:
            self._end(job)
        fields = {"error": {"code": "x", "message": "y"}} if error else {"result": {"n": job.n}}
        node.worker.answer(job.wire, **fields)
        node.worker.answer(job.wire, **fields)  # the second one is late and counts for nothing
        self._settle()

    @precondition(lambda self: self.later)
    @rule(data=st.data())
    def answer_later(self, data: st.DataObject) -> None:
        call, n = self.later.pop(data.draw(st.integers(0, len(self.later) - 1)))
        for job in [job for job in self.jobs if job.n == n]:
            self._end(job)
        call.succeed()
        self._settle()

    def _waited_for(self) -> list[Job]:
        return [job for job in self.jobs if job.call_id and job.caller in self.nodes]

    @precondition(lambda self: self._waited_for())
    @rule(data=st.data(), thief=st.booleans())
    def cancel(self, data: st.DataObject, thief: bool) -> None:
        job = one(data, self._waited_for())
        node = one(data, self.nodes) if thief else job.caller
        self._spoke(node)
        if node is job.caller and job.state is State.RUNNING:
            self._bury(job)
        node.worker.send({"type": "cancelinvocation", "invocation_id": job.call_id})
        self._settle()

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        node = self._pick(data)
        node.worker.cut()
        self._drop(node)
        self._settle()

    @precondition(lambda self: self.nodes)
    @rule(data=st.data(), right=st.booleans())
    def reattach(self, data: st.DataObject, right: bool) -> None:
        old = self._pick(data)
        node = self._connect()
        announced = self.core.engine.workers.get(old.worker.id) is not None
        if any(other.worker.connection.full for other in self.nodes):
            self._introduce(node)
        token = old.worker.peer.reattach_token if right else "wrong"
        node.worker.send({"type": "reattach", "previous_worker_id": old.worker.id, "reattach_token": token})
        self.nodes.append(node)
        if right and announced:
            assert old.worker.connection.closed is not None
            assert old.worker.connection.closed[0] == 1012
            self._drop(old)
        self._settle()

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        """Its outbox is full from now on: the next frame for it ends it."""
        node = self._pick(data)
        # one that ends while a backlog is worked off is beyond the model
        node.worker.connection.full = all(other.open for other in self.nodes)

    @rule(steps=st.integers(1, 30))
    def advance(self, steps: int) -> None:
        for _ in range(steps):
            self.core.advance(0.25)
            now = self.core.clock.now()
            for job in list(self.jobs):
                if job.state is State.TOMBSTONE and job.tomb_until < now:
                    self.jobs.remove(job)
            self._expire(now)
            for node in self.nodes:
                self._expire_waiting(node, min(now, node.grace_until))
            timers = [(node.grace_order, node, self._open) for node in self.nodes if node.grace_until < now]
            timers += [(node.probe_order, node, self._silent) for node in self.nodes if node.probe_until is not None]
            for _, node, act in sorted(timers, key=lambda timer: timer[0]):
                if act == self._open and not node.open:
                    self._open(node)
                elif act == self._silent and node.probe_until is not None and node.probe_until < now:
                    self._silent(node)
            self._expire(now)  # what was made in this step with no time left
            self._settle()

    def _expire(self, now: float) -> None:
        for job in list(self.jobs):
            if job.state is State.RUNNING and job.deadline < now:
                self._bury(job)
                if job.call_id is not None:
                    self._owe(job.caller, job.call_id)

    def _expire_waiting(self, node: Node, now: float) -> None:
        """Calls that waited for a registration for as long as they may: they are never made."""
        for entry in [entry for entry in node.backlog if entry[0] == "call"]:
            _, _, call_id, _, deadline = entry[1]
            if deadline < now:
                node.backlog.remove(entry)
                if call_id is not None:
                    self._owe(node, call_id)

    # -- what the model makes of it -----------------------------------------------------------------------------------

    def _owe(self, node: Node, call_id: str) -> None:
        node.owed[call_id] = node.owed.get(call_id, 0) + 1

    def _end(self, job: Job) -> None:
        """Its executor has answered."""
        self.jobs.remove(job)
        if job.state is State.RUNNING and job.call_id is not None:
            self._owe(job.caller, job.call_id)

    def _bury(self, job: Job) -> None:
        job.state, job.tomb_until = State.TOMBSTONE, self.core.clock.now() + TOMB

    def _drop(self, node: Node) -> None:
        if node not in self.nodes:
            return
        self.nodes.remove(node)
        for table in (self.claims, self.types):
            for key in list(table):
                self._remove(table, key, node)
        for bind in [bind for bind in self.binds.values() if bind.owner is node]:
            del self.binds[bind.id]
        for job in list(self.jobs):
            if job.executor is node:
                self._end(job)
            elif job.caller is node and job.call_id is not None and job.state is State.RUNNING:
                self._bury(job)

    def _settle(self) -> None:
        """Whoever the engine has given up for not reading is gone; then look at what everybody was sent."""
        while full := [node for node in self.nodes if node.worker.gone and node.worker.connection.full]:
            self._drop(full[0])
        for node in self.nodes:
            assert not node.worker.gone, node.worker.connection.closed
            for frame in node.worker.take():
                if frame["type"] == "invokefunction":
                    job = next(job for job in self.jobs if job.n == frame["data"]["n"])
                    assert job.executor is node
                    assert job.wire is None
                    job.wire = frame["invocation_id"]
                elif frame["type"] == "invocationresult":
                    call_id = frame["invocation_id"]
                    node.answers[call_id] = node.answers.get(call_id, 0) + 1
                elif frame["type"] == "registertrigger":
                    node.bound.add((frame["trigger_type"], frame["id"]))
                elif frame["type"] == "unregistertrigger":
                    node.bound.remove((frame["trigger_type"], frame["id"]))

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def answers_are_those_owed(self) -> None:
        for node in self.nodes:
            if not node.worker.connection.full:
                assert node.answers == node.owed

    @invariant()
    def callable_functions_are_those_of_live_workers(self) -> None:
        for function in FUNCTIONS[:2]:
            entry = self.core.engine.functions.get("default", function)
            owner = None if entry is None else entry.owner
            assert owner is (self.claims[function][0].worker.peer if function in self.claims else None)
        standing_by = sum(len(claims) - 1 for claims in self.claims.values())
        assert self.core.engine.functions.statistics().standing_by == standing_by

    @invariant()
    def calls_are_those_of_the_model(self) -> None:
        engine = self.core.engine
        statistics = engine.statistics()
        assert statistics.running == len(self.jobs)
        assert statistics.waiting == sum(
            job.call_id is not None and job.state is State.RUNNING for job in self.jobs if job.caller in self.nodes
        )
        for node in self.nodes:
            assert len(node.worker.peer.running) == sum(job.executor is node for job in self.jobs)
            assert node.worker.peer.live == sum(job.caller is node for job in self.jobs)

    @invariant()
    def bindings_stand_where_they_belong(self) -> None:
        triggers = self.core.engine.triggers
        assert {binding.id for binding in triggers} == set(self.binds)
        for bind in self.binds.values():
            binding = triggers.get(bind.id)
            assert binding is not None
            assert binding.owner is bind.owner.worker.peer
            provider = self.types.get(bind.type, [None])[-1]
            if bind.refused:
                assert binding.state is BindingState.REFUSED
            elif provider is None:
                assert binding.state is BindingState.PARKED
            else:
                assert binding.state is BindingState.LIVE
                assert binding.claim is not None
                assert binding.claim.owner is provider.worker.peer
        for node in self.nodes:
            if not node.worker.connection.full:
                served = {
                    (bind.type, bind.id)
                    for bind in self.binds.values()
                    if not bind.refused and self.types.get(bind.type, [None])[-1] is node
                }
                assert node.bound == served

    def teardown(self) -> None:
        """Everybody leaves; after the last grace nothing is left but the engine's own."""
        for node in list(self.nodes):
            node.worker.cut()
        for call, _ in self.later:
            call.succeed()
        self.core.advance(DEFAULT + TOMB + 1, step=1)
        engine = self.core.engine
        statistics = engine.statistics()
        assert (statistics.running, statistics.waiting, statistics.deadlines.timers) == (0, 0, 0)
        assert statistics.workers.connected == 0
        assert statistics.functions.standing_by == 0
        assert {entry.id for entry in engine.functions} <= {"engine::workers::register", "m::now", "m::later"}
        assert (statistics.triggers.live, statistics.triggers.parked, statistics.triggers.refused) == (0, 0, 0)
        assert statistics.triggers.types == 0
        for table in (engine.triggers._by_type, engine.functions._standby, engine.workers._names):
            assert not table


def test_the_core_equals_its_model(caplog: pytest.LogCaptureFixture) -> None:
    walk(CoreMachine, examples=60, steps=60, caplog=caplog)


@pytest.mark.long
def test_the_core_equals_its_model_for_long(caplog: pytest.LogCaptureFixture) -> None:
    walk(CoreMachine, examples=250, steps=100, caplog=caplog)
