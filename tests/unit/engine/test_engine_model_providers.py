"""Slow providers against a small model: bindings and durable triggers while types come, go, and are taken over.

A provider accepts late, refuses late, answers what it was not asked, or leaves before it has answered. The model is
spec/protocol.md §9 in a few lines: the nearest namespace that has the type serves, the newest claim in it; what is
refused waits for the next registration of its type. After every step each binding stands where its providers put it,
each provider knows exactly the bindings it serves, and each call of `engine::register_trigger` is answered once.
"""

from typing import Any

import pytest
from attrs import define, field
from engine_sync import SyncCore, SyncWorker
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from model_walks import one, walk

from iii_trio.engine import BindingState
from iii_trio.engine.durable import REGISTER, UNREGISTER, Durable
from iii_trio.engine.invocations import CANCEL_GRACE_S
from iii_trio.protocol.limits import PROVIDER_ACK_S

SPACES = ["default", "shop"]
NAMED = [None, None, *SPACES]
TYPES = ["T", "T", "api"]
IDS = ["one", "two"]
NEVER = float("inf")
Key = tuple[str, str]


@define(eq=False, repr=False)
class Node:
    """A worker. `told` has what it provides bindings for, as it was told; `owed` and `heard` count frames about an id."""

    worker: SyncWorker
    space: str
    told: dict[Key, Any] = field(factory=dict)
    owed: dict[str, list[Any]] = field(factory=dict)
    heard: dict[str, list[Any]] = field(factory=dict)


@define(eq=False, repr=False)
class Bind:
    """A binding. While the answer to its maker is up to its provider, `maker` has the call and `until` its end.

    `forgotten` is when the engine forgets a call whose maker has left.
    """

    id: str
    type: str
    space: str | None
    home: str
    owner: Node | None
    config: int
    on: "Claim | None" = None
    refused: bool = False
    maker: "tuple[Node, str] | None" = None
    until: float = 0.0
    forgotten: float = NEVER


@define(eq=False, repr=False)
class Claim:
    """A type that a worker provides in a namespace."""

    node: Node
    space: str
    type: str


class ProvidersMachine(RuleBasedStateMachine):
    """Rules are what peers do; `binds` and `types` are what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.core = SyncCore(default_timeout_s=0)
        Durable(self.core.engine).register(self.core.engine.local)
        self.nodes: list[Node] = []
        self.types: dict[Key, list[Claim]] = {}
        self.binds: dict[str, Bind] = {}
        self.n = 0

    # -- what peers do ------------------------------------------------------------------------------------------------

    @initialize()
    def town(self) -> None:
        for space in (*SPACES, "default"):
            self.connect(space)
        for space in SPACES:
            self._provide(self.nodes[0], "T", space)

    @precondition(lambda self: len(self.nodes) < 5)
    @rule(space=st.sampled_from(SPACES))
    def connect(self, space: str) -> None:
        self.nodes.append(Node(self.core.connect(namespace=space), space))

    def _pick(self, data: st.DataObject) -> Node:
        node: Node = one(data, self.nodes)
        return node

    @rule(data=st.data(), type_id=st.sampled_from(TYPES), space=st.sampled_from(NAMED))
    def provide(self, data: st.DataObject, type_id: str, space: str | None) -> None:
        """A new provider, or one that says it again."""
        self._provide(self._pick(data), type_id, space)

    def _provide(self, node: Node, type_id: str, space: str | None) -> None:
        frame = {"type": "registertriggertype", "id": type_id, "description": ""}
        node.worker.send({**frame, **({} if space is None else {"namespace": space})})
        claim = Claim(node, space or node.space, type_id)
        claims = self.types.setdefault((claim.space, type_id), [])
        claims[:] = [other for other in claims if other.node is not node]
        claims.append(claim)
        self._place(lambda bind: bind.type == type_id and self._resolve(bind) is claim)

    @precondition(lambda self: self.types)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        claims = [claim for claims in self.types.values() for claim in claims]
        claim = one(data, claims)
        frame = {"type": "unregistertriggertype", "id": claim.type, "namespace": claim.space}
        claim.node.worker.send(frame)
        self._withdraw(claim)

    @rule(
        data=st.data(),
        type_id=st.sampled_from(TYPES),
        space=st.sampled_from(NAMED),
        own=st.booleans(),
    )
    def bind(self, data: st.DataObject, type_id: str, space: str | None, own: bool) -> None:
        """A trigger, perhaps in the place of somebody else's, or of a durable one."""
        node, known = self._pick(data), [*IDS, *(IDS if own else self.binds)]
        bind_id = one(data, known)
        self.n += 1
        frame = {"type": "registertrigger", "id": bind_id, "trigger_type": type_id, "function_id": "f"}
        node.worker.send({**frame, "config": self.n, **({} if space is None else {"trigger_namespace": space})})
        self._put(Bind(bind_id, type_id, space, node.space, node, self.n))

    @rule(data=st.data(), type_id=st.sampled_from(TYPES), space=st.sampled_from(NAMED))
    def make_durable(self, data: st.DataObject, type_id: str, space: str | None) -> None:
        node = self._pick(data)
        self.n += 1
        before = {binding.id for binding in self.core.engine.triggers}
        call_id = node.worker.call(
            REGISTER, {"trigger_type": type_id, "function_id": "f", "config": self.n, "trigger_namespace": space}
        )
        [bind_id] = {binding.id for binding in self.core.engine.triggers} - before
        until = self.core.clock.now() + PROVIDER_ACK_S
        self._put(Bind(bind_id, type_id, space, "default", None, self.n, maker=(node, call_id), until=until))

    @rule(data=st.data(), call=st.booleans())
    def unbind(self, data: st.DataObject, call: bool) -> None:
        """Anybody may, by a frame or by a call."""
        node, known = self._pick(data), [*IDS, *self.binds]
        bind_id = one(data, known)
        known_before = bind_id in self.binds
        if call:
            call_id = node.worker.call(UNREGISTER, {"id": bind_id})
            node.owed.setdefault(call_id, []).append({"removed": known_before})
        else:
            node.worker.send({"type": "unregistertrigger", "id": bind_id})
        if known_before:
            self._take_out(self.binds[bind_id])

    @precondition(lambda self: self.binds)
    @rule(data=st.data(), refuses=st.booleans(), asked=st.booleans())
    def answer(self, data: st.DataObject, refuses: bool, asked: bool) -> None:
        """A provider accepts or refuses, now or long after, once or again; or somebody who was never asked does."""
        waited_for = [bind for bind in self.binds.values() if bind.maker is not None]
        known = waited_for or list(self.binds.values())
        bind = one(data, known)
        node = bind.on.node if asked and bind.on is not None else self._pick(data)
        error = {"error": {"code": "no", "message": "never"}} if refuses else {}
        frame = {"type": "triggerregistrationresult", "id": bind.id, "trigger_type": bind.type, "function_id": "f"}
        node.worker.send({**frame, **error})
        if bind.on is None or bind.on.node is not node:
            return
        if not refuses:
            self._accept(bind)
            return
        del node.told[bind.type, bind.id]
        bind.on, bind.refused = None, True
        if bind.owner is not None:
            bind.owner.owed.setdefault(bind.id, []).append("no")
        if bind.maker is not None:
            maker, call_id = bind.maker
            maker.owed.setdefault(call_id, []).append("trigger_registration_failed")
            bind.maker = None
            del self.binds[bind.id]

    @precondition(lambda self: len(self.nodes) > 3)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        self._lose(self._pick(data))

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        """The same worker on a new connection before its old one has ended; its types first, as every SDK does."""
        old = self._pick(data)
        new = Node(self.core.connect(namespace=old.space), old.space)
        self.nodes.append(new)
        for claim in [claim for claims in self.types.values() for claim in claims if claim.node is old]:
            self._provide(new, claim.type, claim.space)
        token = old.worker.peer.reattach_token
        new.worker.send({"type": "reattach", "previous_worker_id": old.worker.id, "reattach_token": token})
        assert old.worker.gone
        self._lose(old)

    @rule(seconds=st.sampled_from([1, 4, 12]))
    def wait(self, seconds: int) -> None:
        self.core.advance(seconds)
        for bind in self.binds.values():
            if bind.maker is not None and bind.until < self.core.clock.now():
                self._accept(bind)  # silence is consent

    # -- what must come of it -----------------------------------------------------------------------------------------

    def _resolve(self, bind: Bind) -> Claim | None:
        for space in (bind.home, "default") if bind.space is None else (bind.space,):
            if self.types.get((space, bind.type)):
                return self.types[space, bind.type][-1]
        return None

    def _put(self, bind: Bind) -> None:
        old = self.binds.get(bind.id)
        if old is not None:
            self._take_out(old)
        self.binds[bind.id] = bind
        self._settle(bind)

    def _place(self, moves: Any) -> None:
        for bind in list(self.binds.values()):
            if moves(bind):
                self._settle(bind)

    def _settle(self, bind: Bind) -> None:
        """To its provider, or into the waiting room."""
        before, bind.on, bind.refused = bind.on, self._resolve(bind), False
        if bind.maker is not None and (bind.on is None or (before is not None and before.node is not bind.on.node)):
            self._accept(bind)

    def _accept(self, bind: Bind) -> None:
        if bind.maker is not None:
            maker, call_id = bind.maker
            maker.owed.setdefault(call_id, []).append({"id": bind.id})
            bind.maker = None

    def _take_out(self, bind: Bind) -> None:
        del self.binds[bind.id]
        self._accept(bind)

    def _withdraw(self, claim: Claim) -> None:
        key = (claim.space, claim.type)
        self.types[key].remove(claim)
        if not self.types[key]:
            del self.types[key]
        self._place(lambda bind: bind.on is claim)

    def _lose(self, node: Node) -> None:
        node.worker.cut()
        self.nodes.remove(node)
        for bind in list(self.binds.values()):
            if bind.maker is not None and bind.maker[0] is node:
                bind.forgotten = self.core.clock.now() + CANCEL_GRACE_S
            if bind.owner is node:
                self._take_out(bind)
        for claim in [claim for claims in self.types.values() for claim in claims if claim.node is node]:
            self._withdraw(claim)

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def bindings_stand_where_their_providers_put_them(self) -> None:
        triggers = self.core.engine.triggers
        assert {binding.id for binding in triggers} == set(self.binds)
        assert triggers.durable == sum(bind.owner is None for bind in self.binds.values())
        for bind in self.binds.values():
            binding = triggers.get(bind.id)
            assert binding is not None
            assert binding.owner is (None if bind.owner is None else bind.owner.worker.peer)
            assert binding.config.decode() == bind.config
            if bind.on is not None:
                assert (binding.state, binding.why) == (BindingState.LIVE, "")
                assert binding.claim is not None
                assert (binding.claim.owner, binding.claim.namespace) == (bind.on.node.worker.peer, bind.on.space)
            else:
                assert binding.state is (BindingState.REFUSED if bind.refused else BindingState.PARKED)
                assert binding.why
                assert binding.claim is None

    @invariant()
    def providers_know_what_they_serve_and_everybody_hears_once_what_is_owed(self) -> None:
        for node in self.nodes:
            for frame in node.worker.take():
                if frame["type"] == "registertrigger":
                    node.told[frame["trigger_type"], frame["id"]] = frame["config"]
                elif frame["type"] == "unregistertrigger":
                    del node.told[frame["trigger_type"], frame["id"]]
                elif frame["type"] == "triggerregistrationresult":
                    node.heard.setdefault(frame["id"], []).append(frame["error"]["code"])
                elif frame["type"] == "invocationresult":
                    answer = frame["error"]["code"] if "error" in frame else frame["result"]
                    node.heard.setdefault(frame["invocation_id"], []).append(answer)
                else:
                    raise AssertionError(frame)
            served = [bind for bind in self.binds.values() if bind.on is not None and bind.on.node is node]
            assert node.told == {(bind.type, bind.id): bind.config for bind in served}
            assert node.heard == node.owed
        pending = [bind for bind in self.binds.values() if bind.maker is not None]
        running = [bind for bind in pending if bind.forgotten >= self.core.clock.now()]
        tombstones = [bind for bind in running if bind.forgotten != NEVER]
        statistics = self.core.engine.statistics()
        assert statistics.running == len(running)
        assert statistics.deadlines.timers == len(pending) + len(tombstones)

    def teardown(self) -> None:
        """Everybody leaves, and durable triggers are all that is left."""
        for node in list(self.nodes):
            self._lose(node)
        self.core.advance(PROVIDER_ACK_S + 6, step=1)
        engine = self.core.engine
        statistics = engine.statistics()
        assert (statistics.running, statistics.waiting, statistics.deadlines.timers) == (0, 0, 0)
        assert (statistics.triggers.types, statistics.workers.connected) == (0, 0)
        assert {binding.id for binding in engine.triggers} == set(self.binds)
        for binding in engine.triggers:
            assert binding.owner is None
            engine.triggers.unregister(binding.id)
        assert not engine.triggers._by_type
        assert not engine.triggers._types
        assert engine.triggers.durable == 0


def test_bindings_equal_their_model(caplog: pytest.LogCaptureFixture) -> None:
    walk(ProvidersMachine, examples=60, steps=50, caplog=caplog)


@pytest.mark.long
def test_bindings_equal_their_model_for_long(caplog: pytest.LogCaptureFixture) -> None:
    walk(ProvidersMachine, examples=700, steps=80, caplog=caplog)
