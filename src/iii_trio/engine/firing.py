"""Delivering trigger events: condition, then handler, in order within a lane, bounded across lanes.

A module hands over (binding, payload, lane) and goes on; no task is made. Each lane runs one delivery at a time, in the
order in which it was given them; a delivery without a lane is its own. At most `limit` deliveries of a module run at
once; at most `waiting` wait, and what comes on top is dropped and counted. One binding has at most half of either, so
that one whose handler hangs holds up nobody else. A binding that is gone delivers nothing more: what waits for it ends
unsent, unless the same trigger was registered again under its id, which takes it over.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from ..protocol import ABSENT, NULL, Json
from ..protocol.limits import CONDITION_S, DELIVERY_S, FIRING_RUNNING, FIRING_WAITING
from .invocations import Outcome
from .triggers import Binding

if TYPE_CHECKING:
    from .local import LocalPeer

log = logging.getLogger(__name__)

DROPS_PER_LINE: Final = 1_000


class Delivered(Enum):
    """How a delivery ended."""

    HANDLED = "handled"
    SKIPPED = "skipped"
    FAILED = "failed"
    DROPPED = "dropped"
    UNBOUND = "unbound"


OnDelivered = Callable[[Delivered, Outcome | None], None]


@define(eq=False)
class Delivery:
    """One event on its way to one binding."""

    binding: Binding
    payload: Json
    condition: str | None
    lane: Hashable
    traceparent: str | None
    baggage: str | None
    on_delivered: OnDelivered | None


@define(eq=False)
class _Share:
    """What one binding has of the whole: deliveries `running` and `waiting`, and lanes `held` until one has ended."""

    running: int = 0
    waiting: int = 0
    held: deque[Hashable] = field(factory=deque)


@frozen
class FiringStatistics:
    """Deliveries now `running` and `waiting`; ended so far as `handled`, `skipped`, `failed`, `dropped`, `unbound`."""

    running: int
    waiting: int
    handled: int
    skipped: int
    failed: int
    dropped: int
    unbound: int


@define(eq=False)
class Firing:
    """One module's deliveries."""

    peer: "LocalPeer"
    limit: int = FIRING_RUNNING
    max_waiting: int = FIRING_WAITING
    condition_timeout_s: float = CONDITION_S
    handler_timeout_s: float = DELIVERY_S
    _lanes: dict[Hashable, deque[Delivery]] = field(factory=dict, init=False)
    _ready: deque[Hashable] = field(factory=deque, init=False)
    _shares: dict[str, _Share] = field(factory=dict, init=False)
    _running: int = field(default=0, init=False)
    _waiting: int = field(default=0, init=False)
    _counts: dict[Delivered, int] = field(factory=lambda: dict.fromkeys(Delivered, 0), init=False)
    _starting: bool = field(default=False, init=False)

    def fire(
        self,
        binding: Binding,
        payload: Json,
        *,
        condition: str | None = None,
        lane: Hashable | None = None,
        traceparent: str | None = None,
        baggage: str | None = None,
        on_delivered: OnDelivered | None = None,
    ) -> None:
        """Deliver `payload` to the binding's function in its namespace, with its metadata; returns at once.

        `condition` is a function in the same namespace: exactly `false` skips the handler, an error fails the delivery
        (spec/protocol.md §8). Events of one `lane` and binding are handled one after the other, in this order.
        """
        delivery = Delivery(
            binding,
            payload,
            condition,
            object() if lane is None else (binding.id, lane),
            traceparent,
            baggage,
            on_delivered,
        )
        share = self._shares.get(binding.id)
        if self._waiting >= self.max_waiting or (share is not None and share.waiting >= max(self.max_waiting // 2, 1)):
            self._end(delivery, Delivered.DROPPED, None)
            return
        if share is None:
            share = self._shares[binding.id] = _Share()
        share.waiting += 1
        queue = self._lanes.get(delivery.lane)
        if queue is None:
            self._lanes[delivery.lane] = deque((delivery,))
            self._ready.append(delivery.lane)
        else:
            queue.append(delivery)
        self._waiting += 1
        self._start_ready()

    def _start_ready(self) -> None:
        if self._starting:
            return  # a delivery that ends synchronously is picked up by the loop below
        self._starting = True
        try:
            while self._ready and self._running < self.limit:
                lane = self._ready.popleft()
                delivery = self._lanes[lane][0]
                share = self._shares[delivery.binding.id]
                if share.running >= max(self.limit // 2, 1):
                    share.held.append(lane)
                    continue
                share.waiting -= 1
                share.running += 1
                self._waiting -= 1
                self._running += 1
                self._start(delivery)
        finally:
            self._starting = False

    def _binds(self, delivery: Delivery) -> bool:
        """Whether its binding is still there, or has been registered again as it was; ends it otherwise."""
        gone = delivery.binding
        if not gone.is_gone():
            return True
        again = self.peer.core.triggers.get(gone.id)
        if again is not None and _same(again, gone):
            delivery.binding = again
            return True
        self._done(delivery, Delivered.UNBOUND, None)
        return False

    def _start(self, delivery: Delivery) -> None:
        if not self._binds(delivery):
            return
        if delivery.condition is None:
            self._handle(delivery)
            return

        def decided(outcome: Outcome) -> None:
            if not outcome.ok:
                self._done(delivery, Delivered.FAILED, outcome)
            elif outcome.result.is_false():
                self._done(delivery, Delivered.SKIPPED, outcome)
            else:
                if outcome.result.or_null() == NULL:
                    name, binding = delivery.condition, delivery.binding
                    log.warning("trigger %s: condition %s answered nothing, which counts as yes", binding.id, name)
                self._handle(delivery)

        self.peer.call(
            delivery.condition,
            delivery.payload,
            decided,
            namespace=delivery.binding.namespace,
            timeout_s=self.condition_timeout_s,
            traceparent=delivery.traceparent,
            baggage=delivery.baggage,
        )

    def _handle(self, delivery: Delivery) -> None:
        if not self._binds(delivery):
            return

        def handled(outcome: Outcome) -> None:
            self._done(delivery, Delivered.HANDLED if outcome.ok else Delivered.FAILED, outcome)

        self.peer.call(
            delivery.binding.function_id,
            delivery.payload,
            handled,
            namespace=delivery.binding.namespace,
            timeout_s=self.handler_timeout_s,
            metadata=delivery.binding.metadata or ABSENT,
            traceparent=delivery.traceparent,
            baggage=delivery.baggage,
        )

    def _done(self, delivery: Delivery, how: Delivered, outcome: Outcome | None) -> None:
        self._running -= 1
        share = self._shares[delivery.binding.id]
        share.running -= 1
        if share.held:
            self._ready.append(share.held.popleft())
        elif not share.running and not share.waiting:
            del self._shares[delivery.binding.id]
        queue = self._lanes[delivery.lane]
        queue.popleft()
        if queue:
            self._ready.append(delivery.lane)
        else:
            del self._lanes[delivery.lane]
        self._end(delivery, how, outcome)
        self._start_ready()

    def _end(self, delivery: Delivery, how: Delivered, outcome: Outcome | None) -> None:
        self._counts[how] += 1
        binding = delivery.binding
        if how is Delivered.FAILED and outcome is not None:
            log.warning("trigger %s: %s failed: %s", binding.id, binding.function_id, outcome.exception())
        elif how is Delivered.DROPPED and self._counts[how] % DROPS_PER_LINE == 1:
            text = "trigger %s: an event for %s was dropped, too many wait (%d so far; one line for %d of them)"
            log.warning(text, binding.id, binding.function_id, self._counts[how], DROPS_PER_LINE)
        if delivery.on_delivered is not None:
            delivery.on_delivered(how, outcome)

    def statistics(self) -> FiringStatistics:
        """A frozen picture of this module's deliveries."""
        counts = self._counts
        return FiringStatistics(
            running=self._running,
            waiting=self._waiting,
            handled=counts[Delivered.HANDLED],
            skipped=counts[Delivered.SKIPPED],
            failed=counts[Delivered.FAILED],
            dropped=counts[Delivered.DROPPED],
            unbound=counts[Delivered.UNBOUND],
        )


def _same(again: Binding, gone: Binding) -> bool:
    """Whether a binding is another one registered once more, by the same peer and to the same end."""
    return (again.owner, again.type_id, again.namespace, again.function_id, again.config) == (
        gone.owner,
        gone.type_id,
        gone.namespace,
        gone.function_id,
        gone.config,
    )
