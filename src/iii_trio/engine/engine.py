"""The engine: every part of the core in one object, the one way in and the one way out.

The core is synchronous; `open_engine` adds its single task, the deadlines. Modules, listeners and stores are put
around it by whoever composes the process, each in a nursery of its own (design.md §3).
"""

import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from typing import Final

import trio
from attrs import define, field, frozen

from ..protocol.limits import INVOCATION_S, NAMESPACE_GRACE_S
from ..transport import Budget, BudgetStatistics
from .access import Access
from .channels import Channels, ChannelsStatistics
from .deadlines import Clock, Deadlines, DeadlineStatistics
from .delegation import Delegation, DelegationStatistics
from .durable import Durable
from .events import Counters, Events, WorkerConnected, WorkerDisconnected
from .functions import Functions, FunctionStatistics
from .invocations import Invocations, InvocationStatistics
from .local import LocalPeer, open_local
from .peer import Peer
from .remote import CANCEL_FEATURE, RemotePeer
from .triggers import Triggers, TriggerStatistics
from .workers import REGISTER_FORMAT, REGISTER_WORKER, REGISTERED_FORMAT, Workers, WorkerStatistics

log = logging.getLogger(__name__)

FEATURES: Final = (CANCEL_FEATURE,)


class EngineState(Enum):
    """The life of an engine, shown by `engine::health::check`."""

    READY = "ready"
    SERVING = "serving"
    DRAINING = "draining"
    STOPPED = "stopped"


@frozen
class EngineStatistics:
    """A picture of everything the core holds. Two pictures are equal when nothing has leaked in between.

    `running` and `waiting` are calls in all peers; `bad_frames` counts since the start.
    """

    state: EngineState
    functions: FunctionStatistics
    delegation: DelegationStatistics
    triggers: TriggerStatistics
    channels: ChannelsStatistics
    workers: WorkerStatistics
    deadlines: DeadlineStatistics
    invocations: InvocationStatistics
    budget: BudgetStatistics
    running: int
    waiting: int
    bad_frames: int


@define(eq=False, repr=False, kw_only=True)
class Engine:
    """The core. Make it with `open_engine`.

    `grace_s`: how long a connection may take to name its namespace; `default_timeout_s`: deadline of calls that bring
    none (0 = none); `budget`: what all connections may buffer together. `modules` tells, for each built-in worker by
    name, whether it runs or is being restarted.
    """

    clock: Clock = field(factory=Clock)
    grace_s: float = NAMESPACE_GRACE_S
    default_timeout_s: float = INVOCATION_S
    id: str = field(factory=lambda: str(uuid.uuid4()))
    budget: Budget = field(factory=Budget)
    state: EngineState = EngineState.READY
    modules: dict[str, str] = field(factory=dict)
    events: Events = field(factory=Events, init=False)
    counters: Counters = field(factory=Counters, init=False)
    triggers: Triggers = field(factory=Triggers, init=False)
    deadlines: Deadlines = field(init=False)
    channels: Channels = field(init=False)
    functions: Functions = field(init=False)
    delegation: Delegation = field(init=False)
    access: Access = field(init=False)
    invocations: Invocations = field(init=False)
    workers: Workers = field(init=False)
    local: LocalPeer = field(init=False)
    _locals: dict[str, LocalPeer] = field(factory=dict, init=False)
    _on_drain: list[Callable[[], None]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self.deadlines = Deadlines(self.clock)
        self.channels = Channels(self.deadlines)
        self.functions = Functions(self.events)
        self.delegation = Delegation(self)
        self.access = Access(self.functions)
        self.invocations = Invocations(
            self.functions, self.deadlines, self.counters, self.access, self.default_timeout_s
        )
        self.invocations.why_missing = self.delegation.why_missing
        self.workers = Workers(self)

    # -- peers --------------------------------------------------------------------------------------------------------

    def attach_local(self, peer: LocalPeer) -> None:
        """A module has opened its peer; called by `open_local`."""
        self._locals[peer.id] = peer

    def locals(self) -> tuple[LocalPeer, ...]:
        """Every open module peer."""
        return tuple(self._locals.values())

    def attach(self, peer: RemotePeer) -> None:
        """A worker connection is accepted: greet it. It is announced with its first text frame."""
        peer.begin(self.grace_s, FEATURES)

    def announce(self, peer: RemotePeer) -> None:
        """A connection has spoken; from now on it is a worker that others see."""
        peer.announced = True
        self.workers.add(peer)
        self.events.emit(WorkerConnected(peer.id))

    def release(self, peer: Peer) -> None:
        """The one exit: give back everything a peer has, in the order of spec/protocol.md §13, once."""
        if peer.leaving:
            return
        peer.leaving = True
        for namespace, function_id in list(peer.functions):
            self.functions.release(peer, namespace, function_id)
        self.delegation.release(peer)
        self.invocations.release(peer)
        self.triggers.release(peer)
        self.channels.release(peer, paired=isinstance(peer, LocalPeer))
        if isinstance(peer, RemotePeer):
            self.workers.release(peer)
            peer.released()
            if peer.announced:
                self.events.emit(WorkerDisconnected(peer.id))
        else:
            self._locals.pop(peer.id, None)

    def retire(self, peer: Peer, code: int, reason: str) -> None:
        """End a worker's connection with a close code; module peers are ended by their modules only."""
        if isinstance(peer, RemotePeer):
            peer.retire(code, reason)

    def probe(self, peer: Peer, answered: Callable[[bool], None]) -> None:
        """Ask a peer whether it is there; a module always is."""
        if isinstance(peer, RemotePeer):
            peer.probe(answered)
        else:
            answered(True)

    # -- states -------------------------------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """True once root work has to stop: no new HTTP requests, no queue deliveries, no cron ticks."""
        return self.state in (EngineState.DRAINING, EngineState.STOPPED)

    def on_drain(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Be called when draining begins; returns the function that takes the callback out."""
        self._on_drain.append(callback)
        return lambda: self._on_drain.remove(callback)

    def serving(self) -> None:
        """Everything listens."""
        self.state = EngineState.SERVING
        log.info("engine %s is serving", self.id)

    async def drain(self, grace_s: float, unwind_s: float = 0.0) -> bool:
        """Stop root work and let running calls end, for at most `grace_s` seconds; True when none is left.

        What runs then is cancelled with reason `shutdown` and has `unwind_s` seconds to clean up and answer. Every call
        has ended when this returns: with its answer, or with `invocation_stopped`.
        """
        self.state = EngineState.DRAINING
        for callback in tuple(self._on_drain):
            callback()
        with trio.move_on_after(grace_s):
            await self.invocations.wait_idle()
            return True
        await self.invocations.stop((*self.workers, *self._locals.values()), unwind_s)
        return False

    def statistics(self) -> EngineStatistics:
        """A frozen picture of the core."""
        peers: list[Peer] = [*self.workers, *self._locals.values()]
        return EngineStatistics(
            state=self.state,
            functions=self.functions.statistics(),
            delegation=self.delegation.statistics(),
            triggers=self.triggers.statistics(),
            channels=self.channels.statistics(),
            workers=self.workers.statistics(),
            deadlines=self.deadlines.statistics(),
            invocations=self.invocations.statistics(),
            budget=self.budget.statistics(),
            running=sum(len(peer.running) for peer in peers),
            waiting=sum(len(peer.calls) for peer in peers),
            bad_frames=self.counters.bad_frames,
        )


@asynccontextmanager
async def open_engine(
    *,
    clock: Clock | None = None,
    grace_s: float = NAMESPACE_GRACE_S,
    default_timeout_s: float = INVOCATION_S,
) -> AsyncIterator[Engine]:
    """An engine for the length of the block: its timers run, its own functions are registered, nothing listens yet."""
    core = Engine(clock=clock or Clock(), grace_s=grace_s, default_timeout_s=default_timeout_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.deadlines.run, name="deadlines")
        async with open_local(core, "engine") as peer:
            core.local = peer
            peer.register(
                REGISTER_WORKER,
                core.workers.register,
                description="Say who a worker is",
                request_format=REGISTER_FORMAT,
                response_format=REGISTERED_FORMAT,
            )
            Durable(core).register(peer)
            core.channels.register(peer)
            try:
                yield core
            finally:
                core.state = EngineState.STOPPED
        nursery.cancel_scope.cancel()
