"""Sessions with hooks against a small model: slow, denying, renaming and dying hooks, amid calls, crashes and reattaches.

The model is spec/protocol.md §14.6: registrations of a connection are applied one after the other, each once its hook
has answered; an object allows, with the names in it; an error, anything else, 5 s of silence and the hook's death deny.
A call waits for the newest registration of the id it calls, and for nothing else. Whatever happens in whatever order,
what is served is what was approved last, every call is answered once, and nothing is left.
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

from iii_trio.engine import ExposeFilter, Hooks, Pattern
from iii_trio.engine.access import Session
from iii_trio.protocol.limits import HOOK_S, NAMESPACE_GRACE_S

ON_FUNCTION, ON_TRIGGER = "h::function", "h::trigger"
IDS = ["a", "b"]
FUNCTIONS = [*IDS, "p::a", "r"]
DENIALS: list[dict[str, Any]] = [{"error": {"code": "no", "message": "no"}}, {"result": None}, {"result": [1]}, {}]
EVERYTHING = (ExposeFilter(pattern=Pattern.of("*")),)


@define(eq=False, repr=False)
class Item:
    """A registration that waits for its turn. `waits_for` is the id by which calls wait for it."""

    what: str
    id: str
    target: str = ""
    waits_for: str | None = None
    calls: "list[Job]" = field(factory=list)


@define(eq=False, repr=False)
class Ask:
    """A question to a hook. `wire` is known once it has arrived."""

    node: "Node"
    item: Item
    due: float
    order: int
    wire: str = ""


@define(eq=False, repr=False)
class Node:
    """A worker: under a session, or (`prefix` of None) a trusted one that serves the hooks and was `asked`."""

    worker: SyncWorker
    prefix: str | None
    grace: tuple[float, int] = (0.0, 0)
    open: bool = False
    queue: list[Item] = field(factory=list)
    asking: Ask | None = None
    functions: dict[str, str] = field(factory=dict)
    triggers: dict[str, str] = field(factory=dict)
    asked: list[Ask] = field(factory=list)
    owed: list[str] = field(factory=list)
    heard: list[str] = field(factory=list)

    def stored(self, name: str) -> str:
        """What an id becomes in the registry, hooks apart."""
        return f"{self.prefix}::{name}" if self.prefix else name


@define(eq=False, repr=False)
class Job:
    """A call; `wire` is known once it has arrived at its executor."""

    n: int
    id: str
    caller: Node
    function: str
    executor: Node | None = None
    wire: str = ""


class HooksMachine(RuleBasedStateMachine):
    """Rules are what peers do; `claims`, `binds` and `jobs` are what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.core = SyncCore(default_timeout_s=0)
        self.nodes: list[Node] = []
        self.claims: dict[str, list[tuple[Node, str]]] = {}
        self.binds: dict[str, tuple[Node, str, str]] = {}
        self.jobs: list[Job] = []
        self.n = 0

    # -- what peers do ------------------------------------------------------------------------------------------------

    @initialize()
    def town(self) -> None:
        self._serve_hooks()
        for prefix in ("", "", "", "p"):
            self._arrive(prefix, introduced=True)

    def _sessions(self) -> list[Node]:
        return [node for node in self.nodes if node.prefix is not None]

    def _hosts(self) -> list[Node]:
        return [node for node in self.nodes if node.prefix is None]

    @precondition(lambda self: len(self.nodes) < 6)
    @rule(kind=st.sampled_from([None, "", "", "p"]), introduced=st.booleans())
    def arrive(self, kind: str | None, introduced: bool) -> None:
        """A session's worker, or one for the hooks; the second of these stands by for the first."""
        if kind is not None:
            self._arrive(kind, introduced)
        elif len(self._hosts()) < 2:
            self._serve_hooks()

    def _serve_hooks(self) -> None:
        self.n += 1
        node = Node(self.core.connect(name=f"host {self.n}"), None, open=True)
        self.nodes.append(node)
        node.worker.register(ON_FUNCTION)
        node.worker.register(ON_TRIGGER)

    def _arrive(self, prefix: str, introduced: bool) -> Node:
        node = self._connect(prefix)
        self.nodes.append(node)
        if introduced:
            self._introduce(node)
        return node

    def _connect(self, prefix: str) -> Node:
        hooks = Hooks(function=ON_FUNCTION, trigger=ON_TRIGGER)
        self.n += 1
        worker = self.core.connect(session=Session(expose=EVERYTHING, hooks=hooks, prefix=prefix))
        return Node(worker, prefix, (self.core.clock.now() + NAMESPACE_GRACE_S, self.n))

    @precondition(lambda self: any(not node.open for node in self.nodes))
    @rule(data=st.data())
    def introduce(self, data: st.DataObject) -> None:
        self._introduce(one(data, [node for node in self.nodes if not node.open]))

    def _introduce(self, node: Node) -> None:
        node.worker.introduce()
        self._open(node)

    @precondition(lambda self: self._sessions())
    @rule(
        data=st.data(),
        what=st.sampled_from(["register", "register", "register", "unregister", "bind", "bind", "unbind"]),
        name=st.sampled_from(IDS),
        function=st.sampled_from(IDS),
        verdict=st.sampled_from([None, None, None, "", *IDS, "r"]),
    )
    def registration(self, data: st.DataObject, what: str, name: str, function: str, verdict: str | None) -> None:
        """It asks its hook, which may have nothing to think about and give its `verdict` at once."""
        node = one(data, self._sessions())
        if what in ("register", "unregister"):
            item = Item(what, name, waits_for=node.stored(name))
            frame = {"type": f"{what}function", "id": name}
        else:
            item = Item(what, name, function)
            frame = {"type": "registertrigger", "id": name, "trigger_type": "T", "function_id": function}
            frame = frame if what == "bind" else {"type": "unregistertrigger", "id": name}
        node.worker.send(frame)
        node.queue.append(item)
        self._proceed(node)
        ask = node.asking
        if verdict is not None and ask is not None and ask.item is item:
            self.what_is_told_is_what_is_owed()
            self._hosts()[0].worker.answer(ask.wire, result={"function_id": verdict or None, "trigger_id": verdict})
            self._approve(ask, verdict or None)

    @precondition(lambda self: any(host.asked for host in self._hosts()))
    @rule(data=st.data(), name=st.none() | st.sampled_from([*IDS, "r"]), again=st.booleans())
    def allow(self, data: st.DataObject, name: str | None, again: bool) -> None:
        """A hook allows, in any order, too late, or twice; `name` is what it makes of ids."""
        ask = self._answer_hook(data, {"result": {"function_id": name, "trigger_id": name}}, again)
        if ask is not None:
            self._approve(ask, name)

    @precondition(lambda self: any(host.asked for host in self._hosts()))
    @rule(data=st.data(), denial=st.sampled_from(DENIALS), again=st.booleans())
    def deny(self, data: st.DataObject, denial: dict[str, Any], again: bool) -> None:
        ask = self._answer_hook(data, denial, again)
        if ask is not None:
            self._deny(ask)

    def _answer_hook(self, data: st.DataObject, answer: dict[str, Any], again: bool) -> Ask | None:
        """A hook answers; the question, if anybody still waits for that."""
        host = one(data, [host for host in self._hosts() if host.asked])
        ask: Ask = one(data, host.asked)
        host.worker.answer(ask.wire, **answer)
        if not again:
            host.asked.remove(ask)
        return ask if ask.node.asking is ask else None

    @rule(data=st.data(), function=st.sampled_from(FUNCTIONS))
    def call(self, data: st.DataObject, function: str) -> None:
        node = one(data, self.nodes)
        items = ([] if node.asking is None else [node.asking.item]) + node.queue
        held = [item.waits_for for item in items if item.waits_for is not None]
        function = one(data, [function, *(held or self.claims)])
        self.n += 1
        job = Job(self.n, node.worker.call(function, {"n": self.n}), node, function)
        waits_for = [item for item in items if item.waits_for == function]
        if waits_for:
            waits_for[-1].calls.append(job)
        else:
            self._route(job)

    @precondition(lambda self: any(job.wire for job in self.jobs))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        job = one(data, [job for job in self.jobs if job.wire])
        assert job.executor is not None
        job.executor.worker.answer(job.wire, result=1)
        self._end(job)

    @precondition(lambda self: len(self.nodes) > 4)
    @rule(data=st.data(), returns=st.booleans(), introduced=st.booleans())
    def lose(self, data: st.DataObject, returns: bool, introduced: bool) -> None:
        """One is gone; or is back before its old connection has ended, in the midst of whatever was asked about that."""
        old = one(data, self.nodes)
        new = self._arrive(old.prefix, introduced=False) if returns and old.prefix is not None else None
        if new is None or not old.worker.peer.announced:
            old.worker.cut()
        else:
            token = old.worker.peer.reattach_token
            new.worker.send({"type": "reattach", "previous_worker_id": old.worker.id, "reattach_token": token})
        assert old.worker.gone
        self._lose(old)
        if new is not None and introduced:
            self._introduce(new)

    @precondition(lambda self: any(node.asking is not None or not node.open for node in self.nodes))
    @rule(steps=st.sampled_from([1, 1, 12, 24]))
    def wait(self, steps: int) -> None:
        """Everybody answers pings, and hooks may not answer at all."""
        for _ in range(steps):
            for node in self.nodes:
                node.worker.peer.on_heard()
            self.core.advance(0.25)
            now = self.core.clock.now()
            due: list[tuple[float, int, Node]] = [(*node.grace, node) for node in self.nodes if not node.open]
            due += [(node.asking.due, node.asking.order, node) for node in self.nodes if node.asking is not None]
            for when, order, node in sorted(due, key=lambda timer: timer[:2]):
                if when < now and not node.open:
                    self._open(node)
                elif when < now and node.asking is not None and node.asking.order == order:
                    self._deny(node.asking)

    # -- what must come of it -----------------------------------------------------------------------------------------

    def _open(self, node: Node) -> None:
        node.open = True
        self._proceed(node)

    def _proceed(self, node: Node) -> None:
        while node.open and node.asking is None and node.queue:
            item = node.queue.pop(0)
            hosts = self._hosts()
            if item.what in ("register", "bind") and hosts:
                self.n += 1
                ask = node.asking = Ask(node, item, self.core.clock.now() + HOOK_S, self.n)
                hosts[0].asked.append(ask)
                return
            if item.what == "unregister":
                self._unclaim(node, item.id, node.functions.pop(item.id, node.stored(item.id)))
            elif item.what == "unbind":
                self._unbind(node, item.id)
            elif item.what == "bind":
                node.owed.append(item.id)
            self._through(item)

    def _through(self, item: Item) -> None:
        for job in item.calls:
            self._route(job)

    def _deny(self, ask: Ask) -> None:
        if ask.item.what == "bind":
            ask.node.owed.append(ask.item.id)
        self._decided(ask)

    def _approve(self, ask: Ask, name: str | None) -> None:
        node, item = ask.node, ask.item
        if item.what == "register":
            stored = node.stored(name or item.id)
            if node.functions.get(item.id, stored) != stored:
                self._unclaim(node, item.id, node.functions[item.id])
            node.functions[item.id] = stored
            claims = self.claims.setdefault(stored, [])
            place = next((n for n, (other, _) in enumerate(claims) if other is node), len(claims))
            claims[place : place + 1] = [(node, item.id)]
        elif (name or item.id) in self.binds and self.binds[name or item.id][0] is not node:
            node.owed.append(item.id)
        else:
            target = node.functions.get(name or item.target, node.stored(name or item.target))
            if node.triggers.get(item.id) != (name or item.id):
                self._unbind(node, item.id)
            node.triggers[item.id] = name or item.id
            self.binds[name or item.id] = (node, item.id, target)
        self._decided(ask)

    def _decided(self, ask: Ask) -> None:
        ask.node.asking = None
        self._through(ask.item)
        self._proceed(ask.node)

    def _unclaim(self, node: Node, exposed: str, stored: str) -> None:
        if (node, exposed) in self.claims.get(stored, []):
            self.claims[stored].remove((node, exposed))
            if not self.claims[stored]:
                del self.claims[stored]

    def _unbind(self, node: Node, sent: str) -> None:
        stored = node.triggers.pop(sent, sent)
        if self.binds.get(stored, (None, "", ""))[:2] == (node, sent):
            del self.binds[stored]

    def _route(self, job: Job) -> None:
        if job.function in self.claims:
            job.executor = self.claims[job.function][0][0]
            self.jobs.append(job)
        else:
            job.caller.owed.append(job.id)

    def _end(self, job: Job) -> None:
        self.jobs.remove(job)
        job.caller.owed.append(job.id)

    def _lose(self, node: Node) -> None:
        was_serving = self._hosts()[:1] == [node]
        self.nodes.remove(node)
        node.asking = None
        for stored in list(self.claims):
            for claim in [claim for claim in self.claims[stored] if claim[0] is node]:
                self._unclaim(node, claim[1], stored)
        for job in [job for job in self.jobs if job.executor is node]:
            self._end(job)
        self.jobs = [job for job in self.jobs if job.caller is not node]
        for bind in [bind for bind, (owner, *_) in self.binds.items() if owner is node]:
            del self.binds[bind]
        for ask in node.asked if was_serving else []:
            if ask.node.asking is ask:
                self._deny(ask)

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def what_is_told_is_what_is_owed(self) -> None:
        for node in self.nodes:
            for frame in node.worker.take():
                if frame["type"] == "invocationresult":
                    node.heard.append(frame["invocation_id"])
                elif frame["type"] == "triggerregistrationresult":
                    node.heard.append(frame["id"])
                elif frame["type"] == "invokefunction" and node.prefix is None:
                    self._asked(node, frame)
                elif frame["type"] == "invokefunction":
                    [job] = [job for job in self.jobs if job.n == frame["data"]["n"]]
                    assert job.executor is node
                    assert not job.wire
                    job.wire = frame["invocation_id"]
            assert sorted(node.heard) == sorted(node.owed)
            assert all(ask.wire for ask in node.asked)
        assert all(job.wire for job in self.jobs if job.executor in self.nodes)

    def _asked(self, node: Node, frame: dict[str, Any]) -> None:
        ask = next(ask for ask in node.asked if not ask.wire)
        ask.wire = frame["invocation_id"]
        assert frame["function_id"] == (ON_TRIGGER if ask.item.what == "bind" else ON_FUNCTION)
        assert frame["data"]["trigger_id" if ask.item.what == "bind" else "function_id"] == ask.item.id

    @invariant()
    def what_is_served_is_what_was_approved(self) -> None:
        functions = self.core.engine.functions
        for function in FUNCTIONS:
            entry = functions.get("default", function)
            served = None if entry is None else (entry.owner, entry.exposed_id)
            claims = self.claims.get(function)
            assert served == (None if claims is None else (claims[0][0].worker.peer, claims[0][1]))
        hosts_in_line = 2 * max(0, len(self._hosts()) - 1)
        standing_by = sum(len(claims) - 1 for claims in self.claims.values())
        assert functions.statistics().standing_by == standing_by + hosts_in_line
        triggers = {binding.id: (binding.owner, binding.function_id) for binding in self.core.engine.triggers}
        assert triggers == {bind: (owner.worker.peer, target) for bind, (owner, _, target) in self.binds.items()}

    @invariant()
    def what_waits_is_what_must(self) -> None:
        for node in self.nodes:
            assert not node.worker.gone
            items = ([] if node.asking is None else [node.asking.item]) + node.queue
            assert node.worker.peer.intake.statistics().parked == sum(1 + len(item.calls) for item in items)
            assert (node.worker.peer.hook is None) == (node.asking is None)

    def teardown(self) -> None:
        """Everybody leaves; after the last grace nothing is left but the engine's own."""
        for node in list(self.nodes):
            node.worker.cut()
        self.core.advance(HOOK_S + 6, step=1)
        engine = self.core.engine
        statistics = engine.statistics()
        assert (statistics.running, statistics.waiting, statistics.deadlines.timers) == (0, 0, 0)
        assert (statistics.workers.connected, statistics.functions.standing_by, len(list(engine.triggers))) == (0, 0, 0)
        assert {entry.id for entry in engine.functions} == {"engine::workers::register"}


def test_registrations_under_hooks_equal_their_model(caplog: pytest.LogCaptureFixture) -> None:
    walk(HooksMachine, examples=50, steps=60, caplog=caplog)


@pytest.mark.long
def test_registrations_under_hooks_equal_their_model_for_long(caplog: pytest.LogCaptureFixture) -> None:
    walk(HooksMachine, examples=700, steps=80, caplog=caplog)
