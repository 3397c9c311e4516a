"""Channels without I/O: a bounded queue between one writer and one reader, its ends' states, and the registry (§16).

    writer   free ─ attached ─ done: finished, or failed (lost, its channel given up)
    reader   free ─ attached ─ done: got everything, or left
    channel  removed when its reader is done, when it failed with no reader, when it expired

Each end attaches once, in any order, and proves its right with a key of its own: a reader's key does not write. The
writer is told to stop when the queue is full, by count or by bytes, and to go on when half of it is free. How the
writer ended follows the last item, so a reader tells truncated data from complete data.

Who owns a channel. It belongs to the worker that created it, until both ends are attached: from then on it is in the
hands of those two. When its owner goes, a channel that still waits for an end fails. One under way goes on, because
what streams between two others is not cut by the end of a third; an end that the dead worker held itself is lost with
its socket, and the other side learns of that (1011). The channels of a module fail with it in any case: its ends have
no sockets that could tell.
"""

import hmac
import logging
import secrets
import uuid
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from attrs import define, field, frozen

from ..protocol import NULL, Json
from ..protocol.errors import WireError, bad_input
from ..protocol.json import JsonError
from ..protocol.limits import (
    CHANNEL_BYTES,
    CHANNEL_BYTES_ALL,
    CHANNEL_ITEMS,
    CHANNEL_ITEMS_MOST,
    CHANNEL_UNATTACHED_S,
    CHANNELS_PER_PEER,
)
from ..transport.frames import Binary
from .deadlines import Deadlines, Timer
from .invocations import Call, Outcome

if TYPE_CHECKING:
    from .local import LocalPeer
    from .peer import Peer

log = logging.getLogger(__name__)

CREATE: Final = "engine::channels::create"
TOO_MANY_CHANNELS: Final = "too_many_channels"

Item = bytes | Binary
"""One message: `bytes` is text (UTF-8), `Binary` is what it says."""

Direction = Literal["read", "write"]


class EndState(Enum):
    """One end of a channel."""

    FREE = "free"
    ATTACHED = "attached"
    DONE = "done"


@frozen
class Ending:
    """How the writer's side ended: `complete`, or cut off with a reason that its reader is told."""

    complete: bool
    reason: str


class WriterEnd(Protocol):
    """Who holds the writing end. Both are called synchronously and must not raise."""

    def on_room(self) -> None:
        """It was told to stop, and may go on."""

    def on_over(self, reason: str) -> None:
        """Nobody takes what it writes any more."""


class ReaderEnd(Protocol):
    """Who holds the reading end. It is called synchronously and must not raise."""

    def on_items(self) -> None:
        """There is an item where there was none, or the end has come."""


@frozen
class ChannelStatistics:
    """One channel: its ends, what it holds now, and what went through so far."""

    writer: EndState
    reader: EndState
    items: int
    bytes: int
    peak_items: int
    items_passed: int
    bytes_passed: int
    stopped: bool


@frozen
class ChannelsStatistics:
    """All channels: `open` now, of which `waiting` for an end; `bytes` they hold; so far `created` and `expired`."""

    open: int
    waiting: int
    bytes: int
    created: int
    expired: int


@define(eq=False, repr=False, kw_only=True)
class Channel:
    """One channel; made by `Channels.create`. `capacity` is in items; `owner` of None means that it is the engine's.

    The ends are used through `channel_sockets` and `channel_streams`, which alone call the transitions.
    """

    id: str = field(factory=lambda: str(uuid.uuid4()))
    write_key: str = field(factory=lambda: secrets.token_hex(24))
    read_key: str = field(factory=lambda: secrets.token_hex(24))
    capacity: int
    owner: "Peer | None"
    registry: "Channels"
    writer: EndState = field(default=EndState.FREE, init=False)
    reader: EndState = field(default=EndState.FREE, init=False)
    ending: Ending | None = field(default=None, init=False)
    held_bytes: int = field(default=0, init=False)
    expiry: Timer | None = field(default=None, init=False)
    _items: deque[Item] = field(factory=deque, init=False)
    _writing: WriterEnd | None = field(default=None, init=False)
    _reading: ReaderEnd | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)
    _peak_items: int = field(default=0, init=False)
    _items_passed: int = field(default=0, init=False)
    _bytes_passed: int = field(default=0, init=False)

    def ref(self, direction: Direction) -> dict[str, str]:
        """What stands for an end in a payload; SDKs make a live reader or writer of it (spec/sdk.md §9)."""
        key = self.write_key if direction == "write" else self.read_key
        return {"channel_id": self.id, "access_key": key, "direction": direction}

    @property
    def paired(self) -> bool:
        """Whether no end is free any more."""
        return EndState.FREE not in (self.writer, self.reader)

    # -- the writer's side

    def attach_writer(self, end: WriterEnd) -> bool:
        """Take the writing end; False when somebody has it, or had it."""
        if self.writer is not EndState.FREE:
            return False
        self.writer, self._writing = EndState.ATTACHED, end
        self._stop_expiry_if_paired()
        return True

    def put(self, item: Item) -> bool:
        """Add an item; False when nobody would take it. A writer that is `stopped` afterwards should wait for `on_room`.

        What comes all the same is still taken: a socket's chunk holds as many messages as it holds.
        """
        if self.writer is not EndState.ATTACHED:
            return False
        size = _size(item)
        self._items.append(item)
        self._hold(size)
        self._items_passed += 1
        self._bytes_passed += size
        self._peak_items = max(self._peak_items, len(self._items))
        self._stopped = self._stopped or self._full()
        if self._reading is not None and len(self._items) == 1:
            self._reading.on_items()
        return True

    @property
    def stopped(self) -> bool:
        """Whether the writer should wait until it is called by `on_room`."""
        return self._stopped

    def finish(self) -> None:
        """The writer has said all it had to say, and has gone."""
        self._writing = None
        self._end(Ending(True, ""))

    def lost(self, reason: str) -> None:
        """The writer has gone before its time: the reader is told so after the last item."""
        self._writing = None
        self._end(Ending(False, reason))

    def fail(self, reason: str) -> None:
        """The channel is given up: its owner has gone, or it expired. The writer is told, and the reader after the last item.

        What nobody has come to read is dropped, complete or not.
        """
        self._end(Ending(False, reason))
        self._release_writer(reason)
        if self.reader is EndState.FREE:
            self._remove()

    def _end(self, ending: Ending) -> None:
        if self.ending is not None:
            return
        self.ending = ending
        self.writer = EndState.DONE
        self._stop_expiry_if_paired()
        if self._reading is not None:
            self._reading.on_items()
        elif not ending.complete:
            self._remove()

    # -- the reader's side

    def attach_reader(self, end: ReaderEnd) -> bool:
        """Take the reading end; False when somebody has it, or had it. `take` may already have something."""
        if self.reader is not EndState.FREE:
            return False
        self.reader, self._reading = EndState.ATTACHED, end
        self._stop_expiry_if_paired()
        return True

    def take(self) -> Item | None:
        """The next item; None when there is none at the moment, or ever again if `drained`."""
        if not self._items:
            return None
        item = self._items.popleft()
        self._hold(-_size(item))
        if self._stopped and not self._over_half():
            self._stopped = False
            if self._writing is not None:
                self._writing.on_room()
        return item

    @property
    def drained(self) -> bool:
        """Whether every item was taken and no more will come; `ending` tells how it ended."""
        return self.ending is not None and not self._items

    def leave(self, reason: str) -> None:
        """The reader is done: it has got everything, or has gone before. A writer that is still there is told."""
        if self.reader is EndState.DONE:
            return
        self.reader, self._reading = EndState.DONE, None
        if self.ending is None:
            self.ending = Ending(False, reason)
            self.writer = EndState.DONE
        self._release_writer(reason)
        self._remove()

    # -- both

    def _stop_expiry_if_paired(self) -> None:
        if self.expiry is not None and self.paired:
            self.expiry.cancel()
            self.expiry = None

    def _release_writer(self, reason: str) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.on_over(reason)

    def _remove(self) -> None:
        self.writer = self.reader = EndState.DONE
        self._hold(-self.held_bytes)
        self._items.clear()
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None
        self.registry.forget(self)

    def _hold(self, size: int) -> None:
        self.held_bytes += size
        self.registry.held_bytes += size

    def _full(self) -> bool:
        return (
            len(self._items) >= self.capacity
            or self.held_bytes >= CHANNEL_BYTES
            or self.registry.held_bytes >= CHANNEL_BYTES_ALL
        )

    def _over_half(self) -> bool:
        """Whether a stopped writer should stay so. An empty queue never is: each channel gets on, if only by one item."""
        if not self._items:
            return False
        return (
            len(self._items) > self.capacity // 2
            or self.held_bytes > CHANNEL_BYTES // 2
            or self.registry.held_bytes >= CHANNEL_BYTES_ALL
        )

    def statistics(self) -> ChannelStatistics:
        """A frozen picture of this channel."""
        return ChannelStatistics(
            writer=self.writer,
            reader=self.reader,
            items=len(self._items),
            bytes=self.held_bytes,
            peak_items=self._peak_items,
            items_passed=self._items_passed,
            bytes_passed=self._bytes_passed,
            stopped=self._stopped,
        )


def _size(item: Item) -> int:
    return len(item.data) if isinstance(item, Binary) else len(item)


@define(eq=False, repr=False)
class Channels:
    """Every channel of the engine. `held_bytes` is what they hold together."""

    deadlines: Deadlines
    held_bytes: int = field(default=0, init=False)
    _channels: dict[str, Channel] = field(factory=dict, init=False)
    _promised: dict[str, Callable[[], None]] = field(factory=dict, init=False)
    _created: int = field(default=0, init=False)
    _expired: int = field(default=0, init=False)

    def create(self, owner: "Peer | None", buffer_size: int | None = None) -> Channel:
        """A channel for `buffer_size` items, 64 when None, brought into 1…1024. It expires if an end stays free.

        Raises `WireError` with code `too_many_channels` when its owner has as many as one may have.
        """
        if owner is not None and len(owner.channels) >= CHANNELS_PER_PEER:
            text = f"{CHANNELS_PER_PEER} channels of this connection are open; let some end first"
            raise WireError(text, TOO_MANY_CHANNELS)
        wanted = CHANNEL_ITEMS if buffer_size is None else buffer_size
        channel = Channel(capacity=max(1, min(wanted, CHANNEL_ITEMS_MOST)), owner=owner, registry=self)
        self._channels[channel.id] = channel
        if owner is not None:
            owner.channels[channel.id] = channel
        channel.expiry = self.deadlines.after(CHANNEL_UNATTACHED_S, lambda: self._expire(channel))
        self._created += 1
        return channel

    def create_half(self, channel_id: str, key: str) -> Channel:
        """A channel of which the engine holds one end itself; `key` (a secret) opens the other one, `channel_id` is fresh.

        Nobody owns it and it never expires: whoever made it lets it fail, or leaves it, when its time is over.
        """
        channel = Channel(id=channel_id, write_key=key, read_key=key, capacity=CHANNEL_ITEMS, owner=None, registry=self)
        self._channels[channel_id] = channel
        self._created += 1
        return channel

    def promise(self, channel_id: str, make: Callable[[], None]) -> None:
        """Call `make` when somebody comes for a channel of that id, to create it then: most of these nobody uses.

        The promise holds until `withdraw`, which `make` calls before it creates the channel.
        """
        self._promised[channel_id] = make

    def withdraw(self, channel_id: str) -> None:
        """A promise holds no more."""
        del self._promised[channel_id]

    def find(self, channel_id: str, key: str, direction: Direction) -> Channel | None:
        """The channel of that id, if `key` gives the right to that end of it."""
        make = self._promised.get(channel_id)
        if make is not None:
            make()
        channel = self._channels.get(channel_id)
        if channel is None:
            return None
        wanted = channel.write_key if direction == "write" else channel.read_key
        return channel if hmac.compare_digest(key.encode(errors="replace"), wanted.encode()) else None

    def release(self, owner: "Peer", *, paired: bool) -> None:
        """An owner has gone (spec/protocol.md §13.5): its channels fail, those under way only if `paired` says so."""
        for channel in tuple(owner.channels.values()):
            if paired or not channel.paired:
                channel.fail("the worker that created the channel has gone")
            channel.owner = None
        owner.channels.clear()

    def _expire(self, channel: Channel) -> None:
        channel.expiry = None
        self._expired += 1
        missing = "writer" if channel.writer is EndState.FREE else "reader"
        owner = "the engine" if channel.owner is None else channel.owner.name or channel.owner.id
        log.warning("channel %s of %s expired: no %s ever came", channel.id, owner, missing)
        channel.fail(f"the channel expired: nobody attached its other end within {CHANNEL_UNATTACHED_S:.0f} s")

    def forget(self, channel: Channel) -> None:
        """It is over; called by the channel only."""
        self._channels.pop(channel.id, None)
        if channel.owner is not None:
            channel.owner.channels.pop(channel.id, None)

    def statistics(self) -> ChannelsStatistics:
        """A frozen picture of all channels."""
        channels = self._channels.values()
        return ChannelsStatistics(
            open=len(channels) + len(self._promised),
            waiting=sum(not channel.paired for channel in channels) + len(self._promised),
            bytes=self.held_bytes,
            created=self._created,
            expired=self._expired,
        )

    # -- engine::channels::create -------------------------------------------------------------------------------------

    def register(self, peer: "LocalPeer") -> None:
        """Serve `engine::channels::create` through `peer`."""
        ref: dict[str, Any] = {
            "type": "object",
            "properties": {
                "channel_id": {"type": "string"},
                "access_key": {"type": "string"},
                "direction": {"type": "string", "enum": ["read", "write"]},
            },
            "required": ["channel_id", "access_key", "direction"],
        }
        peer.register(
            CREATE,
            self._create,
            description="Create a channel: a stream of messages from one worker to another",
            request_format={
                "title": "CreateChannelInput",
                "type": "object",
                "properties": {"buffer_size": {"type": ["integer", "null"]}},
            },
            response_format={
                "title": "CreateChannelResult",
                "type": "object",
                "properties": {"writer": ref, "reader": ref},
                "required": ["writer", "reader"],
            },
        )

    def _create(self, call: Call, data: Json) -> Outcome:
        """`engine::channels::create` (spec/protocol.md §10.3). Result: `{"writer": ref, "reader": ref}`.

        The refs have the shape of old, each with a key that opens its own end only.
        """
        channel = self.create(call.origin, _buffer_size(data))
        return Outcome(Json.of({"writer": channel.ref("write"), "reader": channel.ref("read")}))


def _buffer_size(data: Json) -> int | None:
    """`buffer_size` of the payload, which may be left out as a whole."""
    if data.absent or data == NULL:
        return None
    try:
        value = data.decode()
    except JsonError as error:
        raise bad_input(CREATE, str(error)) from None
    size = value.get("buffer_size") if isinstance(value, dict) else value
    if not isinstance(value, dict) or isinstance(size, bool) or not isinstance(size, int | None):
        raise bad_input(CREATE, 'expected `{"buffer_size": integer or null}`')
    return size
