"""The two channels of a request: its raw body to the handler, and the handler's response to the client (§8, §12).

Theory of operation. The engine holds one end of each channel itself, by synchronous callbacks and without a task: the
request's own task feeds the body while it waits for an answer, and what arrives on the response channel is handed to
the `ResponseDecision` as it comes. Only a response that streams has a second task, which watches the client while the
first one sends. Channels live as long as their request: no timer watches them.
"""

from collections.abc import Mapping
from typing import Any, Final

import trio
from attrs import define, field

from ...engine.channels import Channel, Channels, EndState
from ...protocol import Json, JsonError
from ...protocol.limits import CHANNEL_CHUNK
from ...transport.frames import Binary
from .asgi import Incoming
from .decision import Event, ResponseDecision

BATCH_BYTES: Final = 256 * 1024
"""Bytes of a stream that leave in one write at most."""


@define(eq=False)
class RequestBody:
    """The raw body of a request: what arrives goes into the channel, byte by byte as it was, as fast as it is read."""

    channel: Channel
    incoming: Incoming
    _over: bool = field(default=False, init=False)
    _lot: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    def __attrs_post_init__(self) -> None:
        self.channel.attach_writer(self)

    def put(self, data: bytes) -> None:
        """Hand over some bytes, in messages that every reader takes. What is over the channel's bound is still taken."""
        if len(data) <= CHANNEL_CHUNK:
            if data:
                self.channel.put(Binary(data))
            return
        for start in range(0, len(data), CHANNEL_CHUNK):
            self.channel.put(Binary(data[start : start + CHANNEL_CHUNK]))

    def finish(self) -> None:
        """The whole body was handed over."""
        self.channel.finish()

    async def pump(self) -> None:
        """Hand over what still comes, waiting for the reader where it is slow; return when the client has left.

        A body that nobody wants any more is discarded, so that leaving is noticed. It may be cancelled at any point, and
        go on later, without losing a byte.
        """
        incoming = self.incoming
        while not incoming.gone:
            while self.channel.stopped and not self._over and not incoming.complete:
                await self._lot.park()
            was_complete = incoming.complete
            data = await incoming.next()
            if incoming.gone:
                self.channel.lost("the client has left")
            elif not was_complete:
                self.put(data)
                if incoming.complete:
                    self.finish()

    def release(self) -> None:
        """The request is over. A reader that is still there gets what came; nobody else will come for it."""
        if self.channel.reader is EndState.FREE or not self.incoming.complete:
            self.channel.fail("the request is over")

    def on_room(self) -> None:
        """See `WriterEnd.on_room`."""
        self._lot.unpark_all()

    def on_over(self, reason: str) -> None:
        """See `WriterEnd.on_over`."""
        self._over = True
        self._lot.unpark_all()


@define(eq=False)
class ResponseChannel:
    """What the handler writes: control messages for the head until the first bytes, then the body.

    `status` and `fields` are what control messages have set so far; `status` of None means that none did.
    """

    channel: Channel
    decision: ResponseDecision
    status: int | None = field(default=None, init=False)
    fields: dict[str, str] = field(factory=dict, init=False)
    _first: bytes | None = field(default=None, init=False)
    _lot: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    def __attrs_post_init__(self) -> None:
        self.channel.attach_reader(self)

    @property
    def expected(self) -> bool:
        """Whether somebody has come to write."""
        return self.channel.writer is not EndState.FREE

    def on_items(self) -> None:
        """See `ReaderEnd.on_items`. Before the first bytes, messages are read at once; after them they wait."""
        if self._first is not None:
            self._lot.unpark_all()
            return
        while (item := self.channel.take()) is not None:
            if isinstance(item, Binary):
                self._first = item.data
                self.decision.feed(Event.BYTES)
                return
            self._control(item)
        ending = self.channel.ending
        if ending is not None:
            self.decision.feed(Event.CLOSED if ending.complete else Event.LOST)

    def _control(self, text: bytes) -> None:
        try:
            message = Json(text).decode()
        except JsonError:
            return
        if not isinstance(message, Mapping):
            return
        value: Any
        if message.get("type") == "set_status":
            value = message.get("status_code")
            if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599:
                self.status = value
        elif message.get("type") == "set_headers":
            value = message.get("headers")
            if isinstance(value, dict):
                self.fields.update((name, text) for name, text in value.items() if isinstance(text, str))

    def available(self) -> bytes | None:
        """Bytes that have come and were not sent yet, several messages together; None when there are none now."""
        parts: list[bytes] = []
        size = 0
        if self._first:
            parts.append(self._first)
            self._first = b""
        while size < BATCH_BYTES and (item := self.channel.take()) is not None:
            if isinstance(item, Binary):  # texts after the first bytes mean nothing
                parts.append(item.data)
                size += len(item.data)
        return b"".join(parts) if parts else None

    @property
    def ended(self) -> bool | None:
        """None while more may come; then whether the writer has said that this was all."""
        return self.channel.ending.complete if self.channel.drained and self.channel.ending else None

    async def wait(self) -> None:
        """Wait until there are bytes, or the end has come, or the call has ended. It may wake without need."""
        await self._lot.park()

    def wake(self) -> None:
        """Something else has happened that the sender wants to look at."""
        self._lot.unpark_all()

    def release(self, reason: str) -> None:
        """The request is over: a writer that still writes is told so."""
        self.channel.leave(reason)


@define(eq=False)
class Channelled:
    """Both channels of one request."""

    body: RequestBody
    response: ResponseChannel

    @classmethod
    def open(cls, channels: Channels, incoming: Incoming, decision: ResponseDecision) -> "Channelled":
        """Make the channels; `refs` then stand for their far ends."""
        return cls(
            RequestBody(channels.create(None, expires=False), incoming),
            ResponseChannel(channels.create(None, expires=False), decision),
        )

    @property
    def refs(self) -> dict[str, dict[str, str]]:
        """What the handler's input says of them."""
        return {"request_body": self.body.channel.ref("read"), "response": self.response.channel.ref("write")}

    def release(self) -> None:
        """The request is over, for whatever reason."""
        self.body.release()
        self.response.release("the response is complete")
