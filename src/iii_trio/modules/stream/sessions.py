"""One subscriber's socket from its upgrade to its end: joins and leaves, one after another (spec/state-stream.md §7)."""

import logging
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import trio
from attrs import define, field, frozen

from ...engine import Firing, LocalPeer
from ...protocol import ABSENT, NULL, Json, JsonError
from ...protocol.errors import WireError, shorten
from ...protocol.limits import HOOK_S, STREAM_FRAMES, STREAM_SUBSCRIPTIONS
from ...transport import Connection
from .events import UNAUTHORIZED, Group, event
from .subscribers import Hub, Subscriber, Subscription
from .triggers import Watches, subscription_event

log = logging.getLogger(__name__)

AUTO_JOIN: Final = "/stream/"


@frozen
class Join:
    """What a client asks to listen to; `item` of None is the whole group."""

    subscription_id: str
    group: Group
    item: str | None


@frozen
class Leave:
    """What a client does not want to listen to any more."""

    subscription_id: str


def read_frame(frame: bytes) -> Join | Leave | None:
    """The meaning of a client's frame (§7.3); None for one that has none, which is passed over."""
    try:
        message = Json(frame).decode()
    except JsonError:
        return None
    data = message.get("data") if isinstance(message, dict) else None
    if not isinstance(data, dict):
        return None
    subscription_id, stream, group = (data.get(name) for name in ("subscriptionId", "streamName", "groupId"))
    item = data.get("id")
    if not (isinstance(subscription_id, str) and isinstance(stream, str) and isinstance(group, str)):
        return None
    if item is not None and not isinstance(item, str):
        return None
    if message.get("type") == "join":
        return Join(subscription_id, (stream, group), item)
    return Leave(subscription_id) if message.get("type") == "leave" else None


def read_path(path: str) -> Join | None:
    """What a client joins by its URL, `/stream/STREAM/GROUP[/ITEM]` (§7.1); None for every other path."""
    if not path.startswith(AUTO_JOIN):
        return None
    parts = [unquote(part) for part in path.removeprefix(AUTO_JOIN).removesuffix("/").split("/")]
    if len(parts) not in (2, 3) or not all(parts):
        return None
    return Join(str(uuid.uuid4()), (parts[0], parts[1]), parts[2] if len(parts) == 3 else None)


@define(eq=False)
class Session:
    """A subscriber and the frames it has sent; `connection` calls `on_frames`, `serve` works them off."""

    connection: Connection
    subscriber: Subscriber
    hub: Hub
    watches: Watches
    peer: LocalPeer
    firing: Firing
    _frames: deque[bytes | Join] = field(factory=deque, init=False)
    _news: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    def on_frames(self, frames: list[bytes]) -> None:
        """Frames have come; with too many waiting the socket is not read any more."""
        self._frames.extend(frame for frame in frames if frame)
        if len(self._frames) >= STREAM_FRAMES:
            self.connection.pause_reading()
        self._news.unpark()

    def on_binary(self, frame: bytes) -> None:
        """As `on_frames`."""
        self.on_frames([frame])

    async def serve(self, first: Join | None) -> None:
        """Work off what the client sends, one frame after another, until cancelled. `first` comes before all frames."""
        if first is not None:
            await self._join(first)
        while True:
            while self._frames:
                await self.connection.wait_room()
                frame = self._frames.popleft()
                if len(self._frames) < STREAM_FRAMES // 2:
                    self.connection.resume_reading()
                message = read_frame(frame) if isinstance(frame, bytes) else frame
                if isinstance(message, Join):
                    await self._join(message)
                elif isinstance(message, Leave):
                    self._leave(message)
                else:
                    text = shorten(frame.decode(errors="replace"), 200) if isinstance(frame, bytes) else ""
                    log.info("a stream subscriber sent what is neither join nor leave: %s", text)
            await self._news.park()

    async def _join(self, join: Join) -> None:
        """§7.5: ask the join handlers, subscribe, send what is there."""
        subscriber = self.subscriber
        full = len(subscriber.subscriptions) >= STREAM_SUBSCRIPTIONS
        if full and join.subscription_id not in subscriber.subscriptions:
            log.warning("a stream subscriber has %d subscriptions; a further one was refused", STREAM_SUBSCRIPTIONS)
            self._refuse(join)
        elif not await self._admitted(join):
            self._refuse(join)
        else:
            subscription = Subscription(subscriber, join.subscription_id, join.group, join.item)
            subscriber.add(subscription)
            await self.hub.synchronise(subscription)

    async def _admitted(self, join: Join) -> bool:
        """Ask every join handler, one after another. A failure refuses; an answer refuses by `unauthorized: true`."""
        stream, _ = join.group
        matching = self.watches.of_subscription(self.watches.join, stream)
        if not matching:
            return True
        asked = subscription_event(join.subscription_id, join.group, join.item, self.subscriber.context)
        admitted = True
        for binding, condition in matching:
            try:
                if condition is not None:
                    answer = await self.peer.invoke(condition, asked, namespace=binding.namespace, timeout_s=HOOK_S)
                    if answer.is_false():
                        continue
                result = await self.peer.invoke(
                    binding.function_id,
                    asked,
                    namespace=binding.namespace,
                    timeout_s=HOOK_S,
                    metadata=binding.metadata or ABSENT,
                )
            except WireError as error:
                log.warning("trigger %s: a join of stream %s was refused: %s", binding.id, shorten(stream, 200), error)
                admitted = False
            else:
                admitted = admitted and not _refuses(result)
        return admitted

    def _refuse(self, join: Join) -> None:
        stamp = self.hub.stamps.next(join.group)
        self.connection.push(event(join.group, join.item, stamp, UNAUTHORIZED).message.raw)

    def _leave(self, leave: Leave) -> None:
        subscription = self.subscriber.take(leave.subscription_id)
        if subscription is not None:
            self.watches.fire_leave(self.firing, subscription)

    def end(self, *, told: bool) -> None:
        """The socket has ended, and with it every subscription it still had; leave handlers are `told`."""
        for subscription in self.hub.close(self.subscriber):
            if told:
                self.watches.fire_leave(self.firing, subscription)


def _refuses(result: Json) -> bool:
    """Whether a join handler's answer says no: an object with `unauthorized: true`."""
    try:
        value: Any = result.decode()
    except JsonError:
        return True
    return isinstance(value, dict) and value.get("unauthorized") is True


async def ask_auth(
    peer: LocalPeer, function_id: str, asked: Json, refused: Callable[[int, str], None], timeout_s: float = HOOK_S
) -> Json | None:
    """What the auth function says of a new connection: its context, null if it says none (§7.2).

    None if it does not admit it, and `refused` has been called with HTTP status and reason: 401 for an error of the
    function, `unauthorized: true` and what is no object, 503 if it is not there or takes longer than `timeout_s`.
    """
    try:
        result = await peer.invoke(function_id, asked, timeout_s=timeout_s)
        value = result.decode()
    except WireError as error:
        refused(503 if error.code in UNREACHABLE else 401, error.message)
        return None
    except JsonError as error:
        refused(401, str(error))
        return None
    if not isinstance(value, dict):
        refused(401, "the auth function answered no object")
        return None
    if value.get("unauthorized") is True:
        refused(401, "unauthorized")
        return None
    context = value.get("context")
    return NULL if context is None else Json.of(context)


UNREACHABLE: Final = frozenset({"function_not_found", "TIMEOUT", "invocation_stopped", "worker_overloaded"})
"""Codes of errors that say nothing about the client: it may try again."""
