"""The model of test_engine_model.py, with names and shared functions: conflicts, probes, takeovers, and replicas.

Everything of that model happens here too: whatever order connections come and go in, a name has one holder, a refused
claimant leaves nothing, and a shared call goes to one of those who run the fewest.
"""

import json
import uuid
from typing import Any

import pytest
from engine_sync import VOID
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from model_walks import one, walk
from test_engine_model import DEFAULT, PROBE, CoreMachine, Job, Node

from iii_trio.engine.invocations import State

NAMES = ["n", "o"]
SHARED = "s::f"
NEVER = float("inf")


class NamesMachine(CoreMachine):
    """`names` has the holders, `waiting` who asked for a held name; `load` the calls that each sharer was given.

    Who waits for a name has a call that runs: its introduction, which ends with the question to the holder. `wants` is
    the name that each asked for last, and the only one it gets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, Node] = {}
        self.waiting: dict[str, list[Job]] = {}
        self.wants: dict[Node, str] = {}
        self.load: dict[Node, set[int]] = {}

    # -- names --------------------------------------------------------------------------------------------------------

    def _claimants(self) -> list[Node]:
        asked = [job.caller for jobs in self.waiting.values() for job in jobs]
        return [node for node in self.nodes if not node.open and node in asked]

    def _undecided(self) -> list[Node]:
        claimants = self._claimants()
        return [node for node in self.nodes if not node.open and node not in claimants]

    @rule(name=st.sampled_from(NAMES), shares=st.booleans())
    def arrive(self, name: str, shares: bool) -> None:
        """What most workers do: connect, register, and say who they are."""
        unread = any(node.worker.connection.full for node in self.nodes)
        if len(self.nodes) < 5 and not (unread and name in self.names):
            node = self._connect()
            self.nodes.append(node)
            if shares:
                self._share(node)
            self._introduce_as(node, name)

    @precondition(lambda self: self.names and not any(node.worker.connection.full for node in self.nodes))
    @rule(data=st.data(), right=st.booleans(), shares=st.booleans())
    def come_back(self, data: st.DataObject, right: bool, shares: bool) -> None:
        """A holder connects anew before its old connection has ended; with the wrong token it is anybody."""
        name = one(data, list(self.names))
        old, node = self.names[name].worker, self._connect()
        self.nodes.append(node)
        token = old.peer.reattach_token if right else "wrong"
        node.worker.send({"type": "reattach", "previous_worker_id": old.id, "reattach_token": token})
        if right:
            assert old.connection.closed is not None
            self._drop(self.names[name])
        if shares:
            self._share(node)
        self._introduce_as(node, name)

    @rule()
    def wait(self) -> None:
        """Longer than anybody is waited for."""
        self.advance(24)

    @precondition(lambda self: self._undecided())
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def introduce_as(self, data: st.DataObject, name: str) -> None:
        self._introduce_as(one(data, self._undecided()), name)

    @precondition(lambda self: self._claimants())
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def change_mind(self, data: st.DataObject, name: str) -> None:
        """Who waits for a name says again what it is called."""
        self._introduce_as(one(data, self._claimants()), name)

    def _introduce_as(self, node: Node, name: str) -> None:
        self._spoke(node)
        self.wants[node] = name
        node.worker.introduce(name=name)
        self.n += 1
        introduction = Job(self.n, node, None, None, self.core.clock.now() + DEFAULT)
        self.jobs.append(introduction)
        self._claim(introduction, name)
        self._settle()

    @precondition(lambda self: self._undecided())
    @rule(data=st.data())
    def introduce(self, data: st.DataObject) -> None:
        self._introduce(one(data, self._undecided()))
        self._settle()

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def speak(self, data: st.DataObject) -> None:
        """A holder shows that it is there."""
        node = one(data, list(self.names.values()))
        self._spoke(node)
        node.worker.send({"type": "pong"})
        self._settle()

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def stall(self, data: st.DataObject) -> None:
        super().stall(data)
        for holder in self.names.values():  # one that ends amid something else lets others in: beyond the model
            holder.worker.connection.full = False

    def _claim(self, introduction: Job, name: str) -> None:
        node, holder = introduction.caller, self.names.get(name)
        node.grace_until = NEVER
        if node not in self.nodes or self.wants[node] != name:
            self.jobs.remove(introduction)
        elif holder is None or holder is node:
            self.jobs.remove(introduction)
            self.names[name] = node
            if not node.open:
                self._open(node)
        else:
            self.waiting.setdefault(name, []).append(introduction)
            if holder.probe_until is None:
                holder.probe_until = self.core.clock.now() + PROBE
                self.n += 1
                holder.probe_order = self.n

    def _asking(self, holder: Node) -> list[tuple[Job, str]]:
        return [(job, name) for name in NAMES if self.names.get(name) is holder for job in self.waiting.get(name, [])]

    def _spoke(self, node: Node) -> None:
        asking = self._asking(node)
        super()._spoke(node)
        for introduction, name in asking:
            self._answered(introduction)
            if self.wants[introduction.caller] == name:
                self._drop(introduction.caller)

    def _answered(self, introduction: Job) -> None:
        self.jobs.remove(introduction)
        for jobs in self.waiting.values():
            if introduction in jobs:
                jobs.remove(introduction)

    def _silent(self, node: Node) -> None:
        asking = self._asking(node)
        if any(job.caller in self.nodes and self.wants[job.caller] == name for job, name in asking):
            node.probe_until = None
            node.claimed_by.clear()
            self._drop(node)
        else:
            for introduction, _ in asking:  # who asked has left or changed its mind, and the question has its end
                self._answered(introduction)
            super()._silent(node)

    def _drop(self, node: Node) -> None:
        if node not in self.nodes:
            return
        self.load.pop(node, None)
        super()._drop(node)
        for name in [name for name, holder in self.names.items() if holder is node]:
            del self.names[name]
            for introduction in self.waiting.pop(name, []):
                self._claim(introduction, name)

    @invariant()
    def names_have_one_holder(self) -> None:
        held = {key[1]: peer for key, peer in self.core.engine.workers._names.items()}
        assert held == {name: node.worker.peer for name, node in self.names.items()}

    # -- shared functions ---------------------------------------------------------------------------------------------

    def _apply(self, node: Node, what: str, argument: Any) -> None:
        if what == "share":
            self.load[node] = set()
        elif what == "unshare":
            self.load.pop(node, None)
        else:
            super()._apply(node, what, argument)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        self._share(self._pick(data))

    def _share(self, node: Node) -> None:
        frame = {"type": "registerfunction", "id": SHARED, "metadata": {"iii.shared": True}}
        self._do(node, frame, "share", None)

    @precondition(lambda self: self.load)
    @rule(data=st.data())
    def unshare(self, data: st.DataObject) -> None:
        self._do(one(data, list(self.load)), {"type": "unregisterfunction", "id": SHARED}, "unshare", None)

    @precondition(lambda self: self.load and not any(node.worker.connection.full for node in self.nodes))
    @rule(data=st.data(), void=st.booleans(), times=st.integers(1, 3))
    def call_shared(self, data: st.DataObject, void: bool, times: int) -> None:
        node = one(data, [node for node in self.nodes if node.open])
        for _ in range(times):
            self._call_shared(node, void)

    def _call_shared(self, node: Node, void: bool) -> None:
        self.n += 1
        call_id = None if void else str(uuid.uuid4())
        self._spoke(node)
        running = {job.n for job in self.jobs if job.state is State.RUNNING}
        load = {sharer: len(given & running) for sharer, given in self.load.items()}
        frame = {"type": "invokefunction", "function_id": SHARED, "data": {"n": self.n}}
        node.worker.send({**frame, **({"action": VOID} if void else {"invocation_id": call_id})})
        [chosen] = [sharer for sharer in load if any(self._is_it(sent) for sent in sharer.worker.connection.sent)]
        assert load[chosen] == min(load.values())
        self.load[chosen].add(self.n)
        self.jobs.append(Job(self.n, node, call_id, chosen, self.core.clock.now() + DEFAULT))
        self._settle()

    def _is_it(self, sent: bytes) -> bool:
        frame = json.loads(sent)
        return bool(frame["type"] == "invokefunction" and frame["data"]["n"] == self.n)

    @invariant()
    def all_who_share_serve(self) -> None:
        functions = self.core.engine.functions
        entry = functions.get("default", SHARED)
        assert (entry is None) == (not self.load)
        assert functions.statistics().replicas == max(0, len(self.load) - 1)


def test_names_and_replicas_equal_their_model(caplog: pytest.LogCaptureFixture) -> None:
    walk(NamesMachine, examples=35, steps=50, caplog=caplog)


@pytest.mark.long
def test_names_and_replicas_equal_their_model_for_long(caplog: pytest.LogCaptureFixture) -> None:
    walk(NamesMachine, examples=700, steps=80, caplog=caplog)
