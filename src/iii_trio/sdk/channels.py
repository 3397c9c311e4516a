"""Channels of a worker: both ends as Trio streams, connected when they are first used (spec/sdk.md §9, §12.2).

    send, receive = await client.open_channel()
    await client.send("video::convert", {"source": receive.ref})
    async with send:
        await send.send_all(data)

A handler gets live ends by naming their types: a parameter, or a field of its payload's class, annotated with
`ChannelReceiver` or `ChannelSender`. They are closed when the handler returns, and aborted when it fails; what is to
outlive it, it hands on as `.ref`.

The end of the stream. Leaving an `async with` block, or `aclose`, says that everything was sent; it returns when the
engine has taken all of it. Leaving the block by an exception, a cancelled `aclose`, `abort`, a lost connection and the
end of the client are no such end: the receiver, having read what there is, gets `trio.BrokenResourceError`.

An end that is closed unused says so to the other side as well, with an empty stream, unless its `.ref` was looked at:
then somebody else may be using it.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, Literal

import trio
from attrs import define, field, frozen

from iii_trio.protocol.limits import CHANNEL_ITEMS, CHANNEL_KEEPALIVE_S, CHANNEL_OUTBOX, CHANNEL_STALL_S
from iii_trio.transport import CloseCode, Closed, Connection, Framing, Outbox
from iii_trio.transport.frames import Binary
from iii_trio.transport.keepalive import keep_alive
from iii_trio.transport.message_streams import Item, MessageReceiver, MessageSender

from .dial import DialError

CREATE: Final = "engine::channels::create"
_COMPLETE: Final = (CloseCode.NORMAL, CloseCode.NO_STATUS)

Direction = Literal["read", "write"]
DialEnd = Callable[["ChannelRef"], Awaitable[tuple[trio.abc.Stream, Framing, bytes]]]


class CutOff(trio.BrokenResourceError):
    """The other side of a channel has gone, or cannot be reached: no fault of who uses this one."""


@frozen
class ChannelRef:
    """What stands for an end of a channel in a payload. The key is a secret: it is the right to that end."""

    channel_id: str
    access_key: str = field(repr=False)
    direction: Direction

    @classmethod
    def of(cls, value: Any, direction: Direction) -> "ChannelRef":
        """The ref of that direction that `value` (decoded JSON) is. Raises `ValueError`."""
        keys = ("channel_id", "access_key", "direction")
        if not isinstance(value, Mapping) or not all(isinstance(value.get(key), str) for key in keys):
            raise ValueError("expected the ref of a channel: an object of channel_id, access_key and direction")
        if value["direction"] != direction:
            raise ValueError(f"expected the {direction} end of a channel, got its {value['direction']} end")
        return cls(value["channel_id"], value["access_key"], direction)

    def payload(self) -> dict[str, str]:
        """The ref as payloads carry it."""
        return {"channel_id": self.channel_id, "access_key": self.access_key, "direction": self.direction}


@define(eq=False)
class ChannelEnds:
    """Makes the ends of one client; their connections live in the client's nursery.

    `dial` makes an upgraded stream for a ref, or raises `DialError`. `closed` is set when the client is: no end connects
    any more.
    """

    nursery: trio.Nursery
    dial: DialEnd
    closed: bool = False

    def sender(self, ref: Any, *, optional: bool = False) -> "ChannelSender":
        """The writing end that a ref names; an `optional` one closed unused says nothing. Raises `ValueError`."""
        return ChannelSender(_Link(self, ChannelRef.of(ref, "write"), optional))

    def receiver(self, ref: Any, *, optional: bool = False) -> "ChannelReceiver":
        """The reading end that a ref names; an `optional` one closed unused says nothing. Raises `ValueError`."""
        return ChannelReceiver(_Link(self, ChannelRef.of(ref, "read"), optional))


@define(eq=False)
class _Link:
    """The connection of one end: made when it is first needed, in a task of the client's."""

    ends: ChannelEnds
    ref: ChannelRef
    optional: bool = False
    """Closed unused, it says nothing: the other side waits for something else as well."""
    shown: bool = False
    connection: Connection | None = field(init=False, default=None)
    over: str | None = field(init=False, default=None)
    """Why there is no connection any more; None while there is hope."""
    complete: bool = field(init=False, default=False)
    _started: bool = field(init=False, default=False)
    _opened: trio.Event = field(init=False, factory=trio.Event)
    _ended: trio.Event = field(init=False, factory=trio.Event)
    _scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _close_code: int | None = field(init=False, default=None)
    _make: Callable[[trio.abc.Stream, Framing], Connection] | None = field(init=False, default=None)
    _on_texts: Callable[[list[bytes]], None] | None = field(init=False, default=None)
    _on_end: Callable[[], object] | None = field(init=False, default=None)

    def begin(
        self,
        make: Callable[[trio.abc.Stream, Framing], Connection],
        on_texts: Callable[[list[bytes]], None],
        on_end: Callable[[], object],
    ) -> None:
        """Say how the connection is made, what is done with text messages, and who is told of the end."""
        self._make, self._on_texts, self._on_end = make, on_texts, on_end

    def start(self) -> None:
        """Begin to connect, if that has not been done."""
        if self.ends.closed:
            self._end("the client is closed")
        elif not self._started:
            self._started = True
            name = f"channel {self.ref.channel_id} {self.ref.direction} end"
            self.ends.nursery.start_soon(self._run, name=name)

    async def wait_opened(self) -> None:
        """Wait until there is a connection, or will be none."""
        await self._opened.wait()

    async def wait_ended(self) -> None:
        """Wait until the connection has ended."""
        await self._ended.wait()

    def close(self, code: int) -> None:
        """Let the connection end with that code, what is queued first; make one for it, if nobody else can have."""
        if self._close_code is not None:
            return
        self._close_code = code
        if self.connection is not None:
            self.connection.close(code)
        elif not self._started and (self.shown or self.optional):
            self._end("closed unused")
        else:
            self.start()

    @property
    def untouched(self) -> bool:
        """Whether nobody has used this end, and nobody else can."""
        return not (self._started or self.shown)

    def cut(self, code: int) -> None:
        """End at once, with a Close frame of that code if one fits in."""
        if self.connection is None and self._close_code is None:
            self.close(code)
            return
        self._close_code = code  # of a close, too, that is still on its way to a connection
        if self.connection is not None:
            self._scope.cancel()

    async def _run(self) -> None:
        assert self._make is not None, "an end begins before it starts"
        assert self._on_texts is not None
        try:
            with self._scope:
                stream, framing, rest = await self.ends.dial(self.ref)
                keep_alive(stream, CHANNEL_KEEPALIVE_S)
                self.connection = self._make(stream, framing)
                if self._close_code is not None:
                    self.connection.close(self._close_code)
                self._opened.set()
                self._conclude(await self.connection.run(self._on_texts, rest=rest))
        except DialError as error:
            self._end(str(error))
        finally:
            self._end("cut off")

    def _conclude(self, closed: Closed) -> None:
        self.complete = closed.code in _COMPLETE
        self._end(f"{closed.code} {closed.reason}".strip())

    def _end(self, why: str) -> None:
        if self.over is not None:
            return
        self.over = why
        self._opened.set()
        self._ended.set()
        if self._on_end is not None:
            self._on_end()


class ChannelSender(MessageSender):
    """The writing end of a channel: `send_all` for bytes, `send` for messages, `messages` for texts (see the base class)."""

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link
        self._closed = False
        link.begin(self._make, _ignore, _nothing)

    @property
    def ref(self) -> dict[str, str]:
        """What goes into a payload to hand this end to somebody; it must not be used here then."""
        self._link.shown = True
        return self._link.ref.payload()

    @property
    def untouched(self) -> bool:
        """Whether nothing was sent, and the end was handed to nobody."""
        return self._link.untouched

    def _make(self, stream: trio.abc.Stream, framing: Framing) -> Connection:
        return Connection(
            stream,
            framing,
            outbox=Outbox(masked=True, busy_mark=CHANNEL_OUTBOX),
            cancel_code=CloseCode.INTERNAL_ERROR,
            stall_s=CHANNEL_STALL_S,
            close_s=CHANNEL_STALL_S,  # the engine answers when the reader has made room for everything
            name=f"channel {self._link.ref.channel_id} write end",
        )

    async def _wait_room(self) -> None:
        link = self._link
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this end of the channel is closed")
            connection = link.connection
            if link.over is not None or (connection is not None and connection.closing):
                await link.wait_ended()
                raise CutOff(f"the channel takes nothing any more: {link.over}")
            if connection is None:
                link.start()
                await link.wait_opened()
            elif connection.busy:
                await connection.wait_room()
            else:
                return

    def _put(self, item: Item) -> None:
        connection = self._link.connection
        assert connection is not None
        if isinstance(item, Binary):
            connection.push_binary(item.data)
        else:
            connection.push(item)

    def abort(self, reason: str = "aborted") -> None:
        """See `MessageSender.abort`; the reason stays here."""
        if not self._closed:
            self._closed = True
            self._link.cut(CloseCode.INTERNAL_ERROR)

    async def aclose(self) -> None:
        """End the stream: everything was sent. Returns when the engine has taken it all, which may wait for the reader.

        Cancelled, it is an abort.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._link.close(CloseCode.NORMAL)
            await self._link.wait_ended()
        except trio.Cancelled:
            self._link.cut(CloseCode.INTERNAL_ERROR)
            raise


class ChannelReceiver(MessageReceiver):
    """The reading end of a channel: `receive_some` for bytes, `receive` for messages in order, `messages` for texts.

    It reads ahead by a little: 64 messages or 256 KiB, and what comes with them.
    """

    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link
        self._closed = False
        self._items: deque[Item] = deque()
        self._held = 0
        self._lot = trio.lowlevel.ParkingLot()
        link.begin(self._make, self._on_texts, self._lot.unpark_all)

    @property
    def ref(self) -> dict[str, str]:
        """What goes into a payload to hand this end to somebody; it must not be used here then."""
        self._link.shown = True
        return self._link.ref.payload()

    def _make(self, stream: trio.abc.Stream, framing: Framing) -> Connection:
        return Connection(
            stream,
            framing,
            on_binary=self._on_binary,
            cancel_code=CloseCode.GOING_AWAY,
            name=f"channel {self._link.ref.channel_id} read end",
        )

    def _on_texts(self, texts: list[bytes]) -> None:
        for text in texts:
            self._take_in(text, len(text))

    def _on_binary(self, data: bytes) -> None:
        self._take_in(Binary(data), len(data))

    def _take_in(self, item: Item, size: int) -> None:
        self._items.append(item)
        self._held += size
        if self._held > CHANNEL_OUTBOX or len(self._items) > CHANNEL_ITEMS:
            assert self._link.connection is not None
            self._link.connection.pause_reading()
        self._lot.unpark_all()

    async def _next(self) -> Item | None:
        link = self._link
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this end of the channel is closed")
            if self._items:
                item = self._items.popleft()
                self._held -= len(item.data) if isinstance(item, Binary) else len(item)
                if link.connection is not None and self._held <= CHANNEL_OUTBOX // 2:
                    if len(self._items) <= CHANNEL_ITEMS // 2:
                        link.connection.resume_reading()
                return item
            link.start()
            if link.over is None:
                await self._lot.park()
            elif link.complete:
                return None
            else:
                raise CutOff(f"the channel was cut off: {link.over}")

    async def aclose(self) -> None:
        """Stop receiving; a sender that is still there is told."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        self._rest = b""
        self._items.clear()
        self._lot.unpark_all()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._link.close(CloseCode.NORMAL)
            await self._link.wait_ended()
            await trio.lowlevel.cancel_shielded_checkpoint()
        except trio.Cancelled:
            self._link.cut(CloseCode.GOING_AWAY)
            raise

    def abort(self, reason: str = "aborted") -> None:
        """Stop receiving at once; the reason stays here."""
        if not self._closed:
            self._closed = True
            self._rest = b""
            self._items.clear()
            self._lot.unpark_all()
            self._link.cut(CloseCode.GOING_AWAY)


def _ignore(_texts: list[bytes]) -> None:
    """The engine has nothing to say to a writer."""


def _nothing() -> None:
    """A sender asks for the end when it sends."""


# -- ends in payloads -------------------------------------------------------------------------------------------------


@define(eq=False)
class Arrivals:
    """The ends made of refs in one payload. As a context it is the time in which they are used: see the module."""

    ends: ChannelEnds | None
    made: list[ChannelSender | ChannelReceiver] = field(factory=list)
    _over: bool = field(default=False, init=False)

    def sender(self, ref: Any) -> ChannelSender:
        """A writing end that need not be used. Raises `ValueError` for no ref, `RuntimeError` when the time is over."""
        end = self._open().sender(ref, optional=True)
        self.made.append(end)
        return end

    def receiver(self, ref: Any) -> ChannelReceiver:
        """A reading end that need not be used. Raises like `sender`."""
        end = self._open().receiver(ref, optional=True)
        self.made.append(end)
        return end

    def _open(self) -> ChannelEnds:
        if self._over or self.ends is None:
            raise RuntimeError("the handler has returned: hand on the `.ref` of what is to outlive it")
        return self.ends

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        try:
            if exc_type is None:
                for end in self.made:
                    await end.aclose()
        finally:
            self.abort()  # a cancelled close leaves some open

    def abort(self) -> None:
        """Abort every end that is not closed."""
        for end in self.made:
            end.abort()


_ARRIVALS: ContextVar[Arrivals | None] = ContextVar("iii_trio_channel_arrivals", default=None)


@contextmanager
def arriving(ends: ChannelEnds | None) -> Iterator[Arrivals]:
    """Make live ends of the refs in what is structured inside the block; if that fails, whom they would serve is told."""
    arrivals = Arrivals(ends)
    token = _ARRIVALS.set(arrivals)
    try:
        yield arrivals
    except BaseException:
        arrivals.abort()
        raise
    finally:
        _ARRIVALS.reset(token)


def structure_sender(value: Any, _: Any) -> ChannelSender:
    """The structure hook of `ChannelSender`. Raises `ValueError`."""
    arrivals, ends = _present()
    end = ends.sender(value)
    arrivals.made.append(end)
    return end


def structure_receiver(value: Any, _: Any) -> ChannelReceiver:
    """The structure hook of `ChannelReceiver`. Raises `ValueError`."""
    arrivals, ends = _present()
    end = ends.receiver(value)
    arrivals.made.append(end)
    return end


def arrivals_now() -> Arrivals | None:
    """Of the payload that is being structured; None where it is nobody's."""
    return _ARRIVALS.get()


def _present() -> tuple[Arrivals, ChannelEnds]:
    arrivals = _ARRIVALS.get()
    if arrivals is None or arrivals.ends is None:
        raise ValueError("an end of a channel can only come with a payload or result of a connected client")
    return arrivals, arrivals.ends


def unstructure(end: ChannelSender | ChannelReceiver) -> dict[str, str]:
    """The unstructure hook of both: an end in a payload is its ref."""
    return end.ref
