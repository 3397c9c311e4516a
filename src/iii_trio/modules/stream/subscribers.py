"""Who gets which event: subscriptions, the bounded backlog of each subscriber, and snapshots that fit between events.

Theory of operation. Publishing is synchronous and never waits. An event goes once to every subscriber that has a live
subscription it matches: straight to its socket, or into its backlog while the socket takes no more. When the backlog is
full all of it is dropped, and the subscriptions it was meant for are *stale*. The subscriber's own pump waits until the
socket has room again and reads a fresh snapshot for each of them, one at a time; nobody else notices.

A subscription begins the same way: it is *reading* until its snapshot is there, then `sync` is sent and it is *live*, in
one synchronous step. The built-in store answers a snapshot in line with the writes, so what was announced before that step
is in the snapshot, and what is announced after it is not. A provider's answer may come at any time; there the `sync` is
stamped when it is asked, and what is announced until it has answered is held and sent behind the `sync`.

READING ─ snapshot ─► LIVE ─ its backlog was dropped ─► STALE ─ room again ─► READING          any ─ leave ─► GONE
"""

import logging
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import trio
from attrs import define, field, frozen

from ...protocol import NULL, Json
from ...protocol.codec import encode_value
from ...protocol.limits import STREAM_BACKLOG, STREAM_BACKLOG_BYTES
from .events import DROPPED, Event, Group, Stamps, changed, custom, event

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where a subscriber's messages go; a `Connection`."""

    @property
    def busy(self) -> bool:
        """Whether it should get no more for now."""

    @property
    def closing(self) -> bool:
        """Whether it takes nothing any more."""

    def push(self, message: bytes) -> bool:
        """Send a text message; False when it has ended."""

    async def wait_room(self) -> None:
        """Return when it is not busy, or has ended."""


OnSnapshot = Callable[[Json | None], None]


class Source(Protocol):
    """Where snapshots come from."""

    def in_line(self, stream: str, item: str | None) -> bool:
        """Whether the answer comes in line with the events, after those it shows and before all others."""

    def read(self, group: Group, item: str | None, on_done: OnSnapshot) -> None:
        """Answer the item's value, or all values of the group; None if they cannot be read, which has been logged.

        `on_done` may be called before this returns.
        """


class Phase(Enum):
    """Where a subscription stands."""

    READING = "reading"
    LIVE = "live"
    STALE = "stale"
    GONE = "gone"


@define(eq=False)
class Subscription:
    """One subscription of one subscriber: to an item, or with `item` of None to a whole group."""

    subscriber: "Subscriber"
    id: str
    group: Group
    item: str | None
    phase: Phase = Phase.READING
    lost: int = 0
    """Custom events dropped since the last snapshot."""
    held: list[Event] | None = None
    """What was announced while a provider reads, to be sent behind its answer."""
    held_bytes: int = 0
    missed: bool = False
    """Whether something that a provider's answer may lack could not be held."""

    def matches(self, item: str | None) -> bool:
        """Whether events of that item are meant for it (§7.6)."""
        return self.item is None or self.item == item

    def takes(self, told: Event) -> bool:
        """Whether an event that matches can be sent now: the snapshot being read makes up for all but custom events."""
        if self.phase is Phase.READING:
            return self.held is None and told.customs > 0
        return self.phase is Phase.LIVE

    def is_gone(self) -> bool:
        """Whether it has ended; may become so while somebody waits."""
        return self.phase is Phase.GONE


@frozen
class SubscriberStatistics:
    """`subscriptions`, of which `stale` wait for a snapshot; events in the `backlog` (`backlog_bytes`)."""

    subscriptions: int
    stale: int
    backlog: int
    backlog_bytes: int


@define(eq=False)
class Subscriber:
    """One socket. `context` is what the auth function said of it; at most `most_events` wait for it."""

    hub: "Hub"
    sink: Sink
    context: Json = NULL
    most_events: int = STREAM_BACKLOG
    most_bytes: int = STREAM_BACKLOG_BYTES
    subscriptions: dict[str, Subscription] = field(factory=dict, init=False)
    _groups: dict[Group, list[Subscription]] = field(factory=dict, init=False)
    _backlog: deque[Event] = field(factory=deque, init=False)
    _backlog_bytes: int = field(default=0, init=False)
    _stale: dict[Subscription, None] = field(factory=dict, init=False)
    _behind: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    def add(self, subscription: Subscription) -> None:
        """Take a subscription in, in the place of one with its id."""
        self.take(subscription.id)
        self.subscriptions[subscription.id] = subscription
        self._groups.setdefault(subscription.group, []).append(subscription)
        self.hub.route(self, subscription.group)

    def take(self, subscription_id: str) -> Subscription | None:
        """End a subscription and return it; None if there is none of that id."""
        subscription = self.subscriptions.pop(subscription_id, None)
        if subscription is None:
            return None
        held, subscription.held = subscription.held or (), None
        subscription.phase = Phase.GONE
        self._stale.pop(subscription, None)
        here = self._groups[subscription.group]
        here.remove(subscription)
        if here:
            for told in held:
                self.tell(told)
        else:
            del self._groups[subscription.group]
            self.hub.unroute(self, subscription.group)
        return subscription

    def tell(self, told: Event) -> None:
        """Something happened in a group this subscriber listens to."""
        matching = [one for one in self._groups[told.group] if one.matches(told.item)]
        for one in matching:
            if one.held is not None:
                # others at this socket wait too: a client that has seen this would take the `sync` for outdated
                self._hold(one, one.held, told)
                return
        if any(one.takes(told) for one in matching):
            self.send(told)
            return
        for one in matching:
            if one.phase is Phase.STALE:
                one.lost += told.customs
                self.hub.dropped += 1

    def _hold(self, subscription: Subscription, held: list[Event], told: Event) -> None:
        held.append(told)
        subscription.held_bytes += told.size
        if len(held) > self.most_events or subscription.held_bytes > self.most_bytes:
            subscription.held, subscription.held_bytes = [], 0
            self._drop(held)

    def send(self, told: Event) -> None:
        """Pass an event on, or keep it until the socket takes it; with too many kept, drop all of them."""
        if not self._backlog and not self.sink.busy:
            self.hub.delivered += self.sink.push(told.message.raw)
            return
        self._backlog.append(told)
        self._backlog_bytes += told.size
        if len(self._backlog) > self.most_events or (self._backlog_bytes > self.most_bytes and len(self._backlog) > 1):
            dropped = list(self._backlog)
            self._backlog.clear()
            self._backlog_bytes = 0
            self._drop(dropped)
        self._behind.unpark()

    def _drop(self, dropped: list[Event]) -> None:
        """Give events up: whoever they were meant for needs a snapshot now."""
        self.hub.dropped += len(dropped)
        for told in dropped:
            for one in self._groups.get(told.group, ()):
                if one.matches(told.item):
                    one.lost += told.customs
                    if one.phase is Phase.LIVE:
                        self.expire(one)
                    elif one.held is not None:
                        one.missed = True

    def expire(self, subscription: Subscription) -> None:
        """A live subscription has missed something: it gets a snapshot once there is room."""
        subscription.phase = Phase.STALE
        self._stale[subscription] = None
        self._behind.unpark()

    async def pump(self) -> None:
        """Bring a subscriber that fell behind up to date, as fast as its socket takes it.

        Runs until cancelled, or until the socket takes nothing any more.
        """
        while True:
            while self._backlog or self._stale:
                await self.sink.wait_room()
                if self.sink.closing:
                    return
                while self._backlog and not self.sink.busy:
                    told = self._backlog.popleft()
                    self._backlog_bytes -= told.size
                    self.hub.delivered += self.sink.push(told.message.raw)
                if self._stale and not self._backlog:
                    subscription = next(iter(self._stale))
                    del self._stale[subscription]
                    self.hub.resyncs += 1
                    await self.hub.synchronise(subscription)
            await self._behind.park()

    def statistics(self) -> SubscriberStatistics:
        """A frozen picture of this subscriber."""
        return SubscriberStatistics(len(self.subscriptions), len(self._stale), len(self._backlog), self._backlog_bytes)


@frozen
class HubStatistics:
    """Who listens and what was sent.

    `subscribers` in all, with `subscriptions` to `groups`; events `delivered` to sockets so far, those `dropped` for
    subscribers that read too slowly, and the `resyncs` by which they got up to date again.
    """

    subscribers: int
    subscriptions: int
    groups: int
    delivered: int
    dropped: int
    resyncs: int


@define(eq=False)
class Hub:
    """All subscribers. `stamps` are those of the events; snapshots come from `source`."""

    stamps: Stamps
    source: Source
    delivered: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)
    resyncs: int = field(default=0, init=False)
    _subscribers: dict[Subscriber, None] = field(factory=dict, init=False)
    _routes: dict[Group, dict[Subscriber, None]] = field(factory=dict, init=False)

    def open(self, sink: Sink, context: Json = NULL, most_events: int = STREAM_BACKLOG) -> Subscriber:
        """A new subscriber without subscriptions; it ends by `close`."""
        subscriber = Subscriber(self, sink, context, most_events)
        self._subscribers[subscriber] = None
        return subscriber

    def close(self, subscriber: Subscriber) -> list[Subscription]:
        """End a subscriber; returns the subscriptions it still had."""
        self._subscribers.pop(subscriber, None)
        ended = list(subscriber.subscriptions.values())
        for subscription in ended:
            subscriber.take(subscription.id)
        return ended

    def route(self, subscriber: Subscriber, group: Group) -> None:
        """`subscriber` listens to a group."""
        self._routes.setdefault(group, {})[subscriber] = None

    def unroute(self, subscriber: Subscriber, group: Group) -> None:
        """`subscriber` does not listen to a group any more."""
        here = self._routes[group]
        del here[subscriber]
        if not here:
            del self._routes[group]

    def hears(self, group: Group) -> bool:
        """Whether anybody listens to a group."""
        return group in self._routes

    def publish(self, told: Event) -> None:
        """Tell everybody who listens, each in the order of these calls."""
        for subscriber in self._routes.get(told.group, ()):
            subscriber.tell(told)

    def refresh(self) -> None:
        """Everybody may have missed something: each live subscription gets a fresh snapshot."""
        for subscriber in self._subscribers:
            for subscription in subscriber.subscriptions.values():
                if subscription.phase is Phase.LIVE:
                    subscriber.expire(subscription)
                elif subscription.held is not None:
                    subscription.missed = True

    async def synchronise(self, subscription: Subscription) -> None:
        """Read a snapshot and send it as `sync`; what changes meanwhile follows behind it.

        If it cannot be read no `sync` is sent, and the subscription is live all the same (§7.5). Cancelled, the
        subscription stays as it is; whoever cancels ends the subscriber.
        """
        ended = trio.Event()
        subscription.phase = Phase.READING
        stream, _ = group = subscription.group
        stamp: int | None = None
        if not self.source.in_line(stream, subscription.item):
            stamp = self.stamps.next(group)
            subscription.held, subscription.held_bytes = [], 0

        def read(value: Json | None) -> None:
            if not subscription.is_gone():
                self._begin(subscription, stamp, value)
            ended.set()

        self.source.read(group, subscription.item, read)
        await ended.wait()

    def _begin(self, subscription: Subscription, stamp: int | None, value: Json | None) -> None:
        """The snapshot is there: from here on the subscription is live."""
        subscriber, group = subscription.subscriber, subscription.group
        held, lost, missed = subscription.held or (), subscription.lost, subscription.missed
        subscription.phase, subscription.held, subscription.lost, subscription.missed = Phase.LIVE, None, 0, False
        if value is not None:
            stamp = self.stamps.next(group) if stamp is None else stamp
            subscriber.send(event(group, subscription.item, stamp, changed(b"sync", value)))
        for told in held:
            subscriber.tell(told)
        if lost:
            body = custom(DROPPED, Json(b'{"events":%s}' % encode_value(lost)))
            subscriber.send(event(group, subscription.item, self.stamps.next(group), body, customs=lost))
        if missed and subscription.phase is Phase.LIVE:
            subscriber.expire(subscription)

    def statistics(self) -> HubStatistics:
        """A frozen picture of everybody."""
        return HubStatistics(
            subscribers=len(self._subscribers),
            subscriptions=sum(len(one.subscriptions) for one in self._subscribers),
            groups=len(self._routes),
            delivered=self.delivered,
            dropped=self.dropped,
            resyncs=self.resyncs,
        )
