"""Streams of messages as Trio streams: bytes for who wants bytes, and every message in order for who wants messages.

What the ends of a channel have in common, in the engine and in the SDK: argument checks, one task at a time, views,
and the rule that leaving an `async with` block by an exception is an abort and no end. Subclasses say how one item is
put and how the next one comes.

The views. `send_all` and `receive_some` carry bytes and know no boundaries. `send` and `receive` carry whole messages,
`str` for text and `bytes` for binary, in order. `messages` is a channel of the text messages alone. Whoever receives
only one kind passes over the other.
"""

import operator
from abc import abstractmethod
from types import TracebackType
from typing import Final

import trio
from attrs import define

from iii_trio.protocol.limits import CHANNEL_CHUNK, MAX_MESSAGE
from iii_trio.transport.frames import Binary

Item = bytes | Binary
"""One message: `bytes` is text (UTF-8), `Binary` is what it says."""


@define(eq=False)
class _OneTask:
    """Lets one task at a time through: two that send or receive at once would get each other's halves."""

    what: str
    busy: bool = False

    def __enter__(self) -> None:
        if self.busy:
            raise trio.BusyResourceError(f"another task is already {self.what} this channel end")
        self.busy = True

    def __exit__(self, *_: object) -> None:
        self.busy = False


class MessageSender(trio.abc.SendStream):
    """The sending side. Sending waits while there is no room.

    Every method raises `trio.ClosedResourceError` when this end is closed, `trio.BrokenResourceError` when nobody takes
    what it sends any more, and `trio.BusyResourceError` when another task is sending.
    """

    def __init__(self) -> None:
        self._sending = _OneTask("sending on")

    @abstractmethod
    async def _wait_room(self) -> None:
        """Return when an item may be put; raise if this end is closed or broken. It need not be a checkpoint."""

    @abstractmethod
    def _put(self, item: Item) -> None:
        """Put one item, right after `_wait_room` has returned."""

    @abstractmethod
    def abort(self, reason: str = "aborted") -> None:
        """Close at once; the receiver is told that what it got is not everything. After `aclose` it does nothing."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes. Cancelled, a part of them may have been sent."""
        with self._sending:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._wait_room()
            view = memoryview(data)
            for start in range(0, len(view), CHANNEL_CHUNK):
                if start:
                    await self._wait_room()
                self._put(Binary(bytes(view[start : start + CHANNEL_CHUNK])))
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def send(self, message: str | bytes) -> None:
        """Send one message: text, or binary, of which more than 64 KiB arrives in pieces. Cancelled, text was not sent.

        Text is not cut: above 64 MiB it raises `ValueError`. (Readers of the official Python SDK take 1 MiB.)
        """
        item: Item
        if isinstance(message, str):
            item = text = message.encode()
            if len(text) > MAX_MESSAGE:
                raise ValueError(f"a text of {len(text)} bytes; {MAX_MESSAGE} is the most, bytes have no such limit")
        elif len(message) > CHANNEL_CHUNK:
            return await self.send_all(message)
        else:
            item = Binary(bytes(message))
        with self._sending:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._wait_room()
            self._put(item)
            await trio.lowlevel.cancel_shielded_checkpoint()
        return None

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        with self._sending:
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._wait_room()
            await trio.lowlevel.cancel_shielded_checkpoint()

    @property
    def messages(self) -> "TextSender":
        """The same end as a channel of text messages."""
        return TextSender(self)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.abort(f"its sender failed: {exc_type.__name__}")
        await self.aclose()


class MessageReceiver(trio.abc.ReceiveStream):
    """The receiving side.

    Every method raises `trio.ClosedResourceError` when this end is closed, `trio.BusyResourceError` when another task is
    receiving, and `trio.BrokenResourceError` after the last message when the stream was cut off: what came before is
    not everything.
    """

    def __init__(self) -> None:
        self._receiving = _OneTask("receiving from")
        self._rest = b""

    @abstractmethod
    async def _next(self) -> Item | None:
        """The next item, None at the end; raises as the class says. What it has taken it returns without a checkpoint."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, at most `max_bytes`; none at the end. Text messages before them are passed over."""
        if max_bytes is not None:
            max_bytes = operator.index(max_bytes)
            if max_bytes < 1:
                raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            await trio.lowlevel.checkpoint_if_cancelled()
            while not self._rest:
                item = await self._next()
                if item is None:
                    break
                if isinstance(item, Binary):
                    self._rest = item.data
            await trio.lowlevel.cancel_shielded_checkpoint()
            data, self._rest = self._rest[:max_bytes], b"" if max_bytes is None else self._rest[max_bytes:]
            return data

    async def receive(self) -> str | bytes:
        """The next message in order: text or binary. Raises `trio.EndOfChannel` at the end."""
        with self._receiving:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._rest:
                item: Item | None = Binary(self._rest)
                self._rest = b""
            else:
                item = await self._next()
            await trio.lowlevel.cancel_shielded_checkpoint()
            if item is None:
                raise trio.EndOfChannel
            return item.data if isinstance(item, Binary) else item.decode()

    async def receive_all(self, limit: int) -> bytes:
        """All bytes to the end. Raises `ValueError` when there are more than `limit`, and leaves the rest unread."""
        parts: list[bytes] = []
        size = 0
        while data := await self.receive_some():
            size += len(data)
            if size > limit:
                raise ValueError(f"the channel carries more than {limit} bytes")
            parts.append(data)
        return b"".join(parts)

    @property
    def messages(self) -> "TextReceiver":
        """The same end as a channel of text messages; binary ones are passed over."""
        return TextReceiver(self)


class TextSender(trio.abc.SendChannel[str]):
    """A sending end as a channel of text messages; closing it closes the end."""

    def __init__(self, end: MessageSender) -> None:
        self._end: Final = end

    async def send(self, value: str) -> None:
        """See `MessageSender.send`."""
        await self._end.send(value)

    async def aclose(self) -> None:
        """See the end's own."""
        await self._end.aclose()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end.__aexit__(exc_type, exc_value, traceback)


class TextReceiver(trio.abc.ReceiveChannel[str]):
    """A receiving end as a channel of text messages; closing it closes the end."""

    def __init__(self, end: MessageReceiver) -> None:
        self._end: Final = end

    async def receive(self) -> str:
        """The next text message. Raises `trio.EndOfChannel` at the end."""
        while True:
            message = await self._end.receive()
            if isinstance(message, str):
                return message

    async def aclose(self) -> None:
        """See the end's own."""
        await self._end.aclose()
