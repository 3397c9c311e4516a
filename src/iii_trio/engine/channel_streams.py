"""Channel ends inside the engine: what a module writes to and reads from, as Trio streams and without a socket.

    channel = peer.open_channel()
    body = ChannelWriter(channel)                    # the module writes, …
    payload = {"request_body": channel.ref("read")}  # … a worker reads; or the other way round with ChannelReader

They behave as the SDK's ends do: bounded, in order, and truncated data raises `trio.BrokenResourceError`.
"""

import trio

from ..transport.message_streams import Item, MessageReceiver, MessageSender
from .channels import Channel


class ChannelWriter(MessageSender):
    """The writing end of a channel. Raises `trio.BusyResourceError` when somebody has that end already."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False
        self._over: str | None = None
        if not channel.attach_writer(self):
            raise trio.BusyResourceError("the channel has, or had, another writer")

    def on_room(self) -> None:
        """See `WriterEnd.on_room`."""
        self._lot.unpark_all()

    def on_over(self, reason: str) -> None:
        """See `WriterEnd.on_over`."""
        self._over = reason
        self._lot.unpark_all()

    async def _wait_room(self) -> None:
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this end of the channel is closed")
            if self._over is not None:
                raise trio.BrokenResourceError(self._over)
            if not self._channel.stopped:
                return
            await self._lot.park()

    def _put(self, item: Item) -> None:
        self._channel.put(item)

    def abort(self, reason: str = "aborted") -> None:
        """See `MessageSender.abort`."""
        if not self._closed:
            self._closed = True
            self._channel.lost(reason)
            self._lot.unpark_all()

    async def aclose(self) -> None:
        """End the stream. Cancelled, it is an abort."""
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.abort("its writer was cancelled")
            raise
        if not self._closed:
            self._closed = True
            self._channel.finish()
            self._lot.unpark_all()


class ChannelReader(MessageReceiver):
    """The reading end of a channel. Raises `trio.BusyResourceError` when somebody has that end already."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._lot = trio.lowlevel.ParkingLot()
        self._closed = False
        if not channel.attach_reader(self):
            raise trio.BusyResourceError("the channel has, or had, another reader")

    def on_items(self) -> None:
        """See `ReaderEnd.on_items`."""
        self._lot.unpark_all()

    async def _next(self) -> Item | None:
        channel = self._channel
        while True:
            if self._closed:
                raise trio.ClosedResourceError("this end of the channel is closed")
            item = channel.take()
            if item is not None:
                return item
            if channel.ending is not None:
                channel.leave("everything was read")
                if channel.ending.complete:
                    return None
                raise trio.BrokenResourceError(f"the channel was cut off: {channel.ending.reason}")
            await self._lot.park()

    async def aclose(self) -> None:
        """Stop reading; a writer that is still there is told."""
        self._closed = True
        self._rest = b""
        self._channel.leave("the reader has left")
        self._lot.unpark_all()
        await trio.lowlevel.checkpoint()
