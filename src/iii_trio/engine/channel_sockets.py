"""Channel ends behind sockets: the URL's decision before the upgrade, then one connection per end (spec/protocol.md §16).

Backpressure goes all the way: a full queue stops the reading of its writer's socket, a reader's full socket stops the
taking from the queue.

Half-open ends. No SDK has to answer pings here (some never read a writer's socket), so none are sent. Instead the
kernels talk: TCP keepalive ends a connection whose host has vanished within two minutes, and no program notices. A
reader whose host is there but which takes nothing for `CHANNEL_STALL_S` while data waits for it is closed with 1013.
Everything else a worker may take its time for; what it held ends with it.

What cannot be helped. A writer that is held back cannot be answered: its pings stand behind its data. The official
Python SDK gives such a connection up after 40 s, and its reader sees truncated data. The official Node SDK may drop its
own Close frame when it ends while it is held back: then all data is followed by 1011.

Close codes. To a reader: none at all (it sees 1005) after complete data, 1011 after truncated data. To a writer whose
reader or channel has gone: 1001. To a second attach: none. 1000 and no code from a writer mean that it has finished;
every other code, or no Close frame at all, that it was cut off.
"""

from typing import Final
from urllib.parse import unquote

import trio
from attrs import define, field, frozen

from ..protocol.limits import CHANNEL_CHUNK, CHANNEL_KEEPALIVE_S, CHANNEL_OUTBOX, CHANNEL_STALL_S, KIB
from ..transport import Budget, CloseCode, Connection, Framing, Outbox, Oversize, Refusal, Request
from ..transport.frames import Binary
from ..transport.keepalive import keep_alive
from .channels import Channel, Channels, Direction
from .sessions import query_params

PATH: Final = "/ws/channels/"
_DIRECTIONS: Final[dict[str, Direction]] = {"read": "read", "write": "write"}
_COMPLETE: Final = (CloseCode.NORMAL, CloseCode.NO_STATUS)


@frozen
class Attach:
    """What a channel's URL asks for."""

    channel_id: str
    key: str
    direction: Direction


def read_url(request: Request) -> Attach | Refusal | None:
    """What a request wants of a channel; a refusal when it does not say, None when it is about something else.

    SDKs before 0.24 put the path behind a query that the engine's URL has: `/?token=x/ws/channels/ID?key=…&dir=…`.
    """
    path, query = request.path, request.query
    if path in ("/", "") and (at := query.find(PATH)) >= 0:
        path, _, query = query[at:].partition("?")
    if not path.startswith(PATH):
        return None
    params = query_params(query)
    key, direction = params.get("key", [""])[-1], params.get("dir", [""])[-1]
    if not key:
        return Refusal(400, "The query needs `key`: the access key of the channel's ref.\n")
    if direction not in _DIRECTIONS:
        return Refusal(400, "The query needs `dir`: read or write.\n")
    return Attach(unquote(path.removeprefix(PATH)), key, _DIRECTIONS[direction])


def route(channels: Channels, request: Request) -> Refusal | None:
    """The decision before the upgrade; None lets it pass, also if it is about something else."""
    asked = read_url(request)
    if not isinstance(asked, Attach):
        return asked
    found = channels.find(asked.channel_id, asked.key, asked.direction)
    return Refusal(404, "Channel not found") if found is None else None


def make_end(
    channels: Channels, asked: Attach, stream: trio.abc.Stream, framing: Framing, budget: Budget
) -> "WriterSocket | ReaderSocket | Connection":
    """An end that has attached, or, when it could not, a connection that is closing already."""
    channel = channels.find(asked.channel_id, asked.key, asked.direction)
    end: WriterSocket | ReaderSocket
    if channel is not None:
        keep_alive(stream, CHANNEL_KEEPALIVE_S)
        if asked.direction == "write":
            end = WriterSocket(channel, stream, framing, budget)
            attached = channel.attach_writer(end)
        else:
            end = ReaderSocket(channel, stream, framing, budget)
            attached = channel.attach_reader(end)
        if attached:
            return end
    refused = Connection(stream, framing, name="refused channel end")
    refused.close(None)
    return refused


@define(eq=False, repr=False)
class WriterSocket:
    """The socket of a writer: what comes goes into the queue."""

    _channel: Channel
    _stream: trio.abc.Stream
    _framing: Framing
    _budget: Budget
    connection: Connection = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.connection = Connection(
            self._stream,
            self._framing,
            on_binary=self._on_binary,
            budget=self._budget,
            name=f"channel {self._channel.id} write end",
        )

    def on_room(self) -> None:
        """See `WriterEnd.on_room`."""
        self.connection.resume_reading()

    def on_over(self, reason: str) -> None:
        """See `WriterEnd.on_over`."""
        self.connection.close(CloseCode.GOING_AWAY, reason)

    def _on_batch(self, texts: list[bytes]) -> None:
        for text in texts:
            self._channel.put(text)
        self._pause()

    def _on_binary(self, data: bytes) -> None:
        self._channel.put(Binary(data))
        self._pause()

    def _pause(self) -> None:
        if self._channel.stopped:
            self.connection.pause_reading()

    async def run(self, rest: bytes) -> None:
        """Serve the socket to its end; the channel knows then how that was."""
        try:
            closed = await self.connection.run(self._on_batch, rest=rest)
            if closed.code in _COMPLETE:
                self._channel.finish()
            else:
                self._channel.lost(f"its writer was lost ({closed.code} {closed.reason})")
        finally:
            self._channel.lost("its writer was cut off")


@define(eq=False, repr=False)
class ReaderSocket:
    """The socket of a reader: what the queue has goes out, as much of it as the reader takes."""

    _channel: Channel
    _stream: trio.abc.Stream
    _framing: Framing
    _budget: Budget
    connection: Connection = field(init=False)
    _lot: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    def __attrs_post_init__(self) -> None:
        self._framing.max_message = KIB  # nothing it says means anything
        self.connection = Connection(
            self._stream,
            self._framing,
            outbox=Outbox(busy_mark=CHANNEL_OUTBOX),
            on_oversize=_ignore,
            budget=self._budget,
            name=f"channel {self._channel.id} read end",
            stall_s=CHANNEL_STALL_S,
            close_s=CHANNEL_STALL_S,  # a slow reader may still have much before it when the Close frame is queued
        )

    def on_items(self) -> None:
        """See `ReaderEnd.on_items`."""
        self._lot.unpark_all()

    async def run(self, rest: bytes) -> None:
        """Serve the socket to its end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._feed, name=f"channel {self._channel.id} feed")
                await self.connection.run(_drop, rest=rest)
                nursery.cancel_scope.cancel()
        finally:
            self._channel.leave("the reader has left")

    async def _feed(self) -> None:
        """Move items from the queue to the socket, at the socket's pace; then close it, saying how it ended."""
        channel, connection = self._channel, self.connection
        while not connection.closing:
            item = channel.take()
            if item is None:
                if channel.ending is not None:
                    break
                await self._lot.park()
            elif isinstance(item, Binary):
                await self._send_binary(item.data)
            else:
                connection.push(item)
                await connection.wait_room()
        ending = channel.ending
        if ending is not None:
            if ending.complete:
                connection.close(None)
            else:
                connection.close(CloseCode.INTERNAL_ERROR, ending.reason)

    async def _send_binary(self, data: bytes) -> None:
        if len(data) <= CHANNEL_CHUNK:
            self.connection.push_binary(data)
            return await self.connection.wait_room()
        view = memoryview(data)
        for start in range(0, len(data), CHANNEL_CHUNK):
            self.connection.push_binary(bytes(view[start : start + CHANNEL_CHUNK]))
            await self.connection.wait_room()
        return None


def _drop(_texts: list[bytes]) -> None:
    """A reader has nothing to say."""


def _ignore(_report: Oversize) -> None:
    """Nor at length."""
