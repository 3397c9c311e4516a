"""The two channels of a request: its raw body to the handler, and the handler's response to the client (§8, §12).

Theory of operation. The engine holds one end of each channel itself, by synchronous callbacks and without a task: the
request's own task feeds the body while it waits for an answer, and what arrives on the response channel is handed to
the `ResponseDecision` as it comes. Only a response that streams has a second task, which watches the client while the
first one sends. Channels live as long as their request: no timer watches them.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ...engine.channels import Channel, EndState
from ...engine.engine import Engine
from ...engine.invocations import Outcome
from ...protocol import Json, JsonError
from ...protocol.limits import CHANNEL_CHUNK, HTTP_PATIENCE_S
from ...transport.frames import Binary
from .asgi import Incoming, Scope, Send, begin, connection_of
from .decision import Event, ResponseDecision
from .messages import Headers

BATCH_BYTES: Final = 256 * 1024
"""A stream's messages leave in one write up to this size."""
GONE: Final = "the client has left"
REFS: Final = (
    ',"request_body":{"channel_id":"%s","access_key":"%s","direction":"read"},'
    '"response":{"channel_id":"%s","access_key":"%s","direction":"write"}}'
)


@frozen
class Head:
    """How a streamed response begins; `length` is what the handler has declared for its body."""

    status: int
    headers: Headers
    length: int | None


@define(eq=False)
class RequestBody:
    """The raw body of a request: what arrives goes into the channel, byte by byte as it was, as fast as it is read."""

    channel: Channel
    incoming: Incoming
    _over: bool = field(default=False, init=False)
    _held_back: trio.CancelScope | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.channel.attach_writer(self)

    def begin(self) -> None:
        """Hand over what has come so far, for a body that nobody has read before."""
        self.put(self.incoming.take_early())
        if self.incoming.complete:
            self.finish()

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
        while True:
            while self.channel.stopped and not (self._over or incoming.complete or incoming.gone):
                with trio.CancelScope() as self._held_back:
                    await incoming.left()
            was_complete = incoming.complete
            data = b"" if incoming.gone else await incoming.next()
            if incoming.gone:
                self.channel.lost("the client has left")
                return
            if not was_complete:
                self.put(data)
                if incoming.complete:
                    self.finish()

    def release(self) -> None:
        """The request is over. A reader that is still there gets what came; nobody else will come for it."""
        if self.channel.reader is EndState.FREE or not self.incoming.complete:
            self.channel.fail("the request is over")

    def on_room(self) -> None:
        """See `WriterEnd.on_room`."""
        if self._held_back is not None:
            self._held_back.cancel()

    def on_over(self, reason: str) -> None:
        """See `WriterEnd.on_over`."""
        self._over = True
        self.on_room()


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
    def described(self) -> bool:
        """Whether control messages have set anything."""
        return self.status is not None or bool(self.fields)

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


async def relay(
    scope: Scope,
    send: Send,
    response: ResponseChannel,
    head: Head,
    outcome: Callable[[], Outcome | None],
    idle_s: float,
) -> str | None:
    """Send what comes through the channel, at once and as fast as the client takes it; why it is cut off, or None.

    `outcome` is the call's, None while it runs; whoever knows of it calls `response.wake`. A stream whose writer was
    lost is complete if the handler succeeds. One whose handler has failed is complete if it is closed soon after.
    """
    sent = 0
    first = response.available() or b""
    if head.length is not None and len(first) > head.length:
        first = first[: head.length]
        sent = head.length + 1
    await begin(send, head.status, list(head.headers), first, more=True)
    sent = sent or len(first)
    connection = connection_of(scope)
    until = trio.current_time() + idle_s
    patience: float | None = None
    while True:
        if head.length is not None and sent > head.length:
            return f"the handler has written more than the {head.length} bytes that it declared"
        if connection is not None and connection.broken:
            return GONE
        data = response.available()
        if data is not None:
            sent += len(data)
            if head.length is None or sent <= head.length:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            until = trio.current_time() + idle_s
            continue
        ended, result = response.ended, outcome()
        if ended is False and result is not None and result.ok:
            ended = True
        if ended:
            if head.length is not None and sent < head.length:
                return f"the handler has written {sent} of the {head.length} bytes that it declared"
            return None
        if ended is False and result is not None:
            return f"its writer was lost and the handler failed: {result.exception()}"
        if patience is None and (ended is False or (result is not None and not result.ok)):
            patience = trio.current_time() + HTTP_PATIENCE_S
        limit = until if patience is None else min(until, patience)
        with trio.CancelScope(deadline=limit) as waiting:
            await response.wait()
        if waiting.cancelled_caught:
            if patience is None or until <= patience:
                return f"nothing was written for {idle_s:g} s"
            if result is not None:
                return f"the handler failed: {result.exception()}"
            return "its writer was lost, and the handler did not end"


@define(eq=False)
class Channelled:
    """Both channels of one request. A handler is told of them, but they are made only when somebody comes for one.

    Where the body is still to come they are made at once, for the body goes into its channel.
    """

    _core: Engine
    _incoming: Incoming
    _decision: ResponseDecision
    _raw: bytes
    _body_id: str
    _response_id: str
    _keys: str
    _made: tuple[RequestBody, ResponseChannel] | None = field(default=None, init=False)

    @classmethod
    def open(cls, core: Engine, incoming: Incoming, decision: ResponseDecision, raw: bytes) -> "Channelled":
        """The channels of a request of whose body `raw` has been read; `input` tells a handler of their far ends."""
        new_id, channels = core.invocations.new_id, core.channels
        both = cls(core, incoming, decision, raw, new_id(), new_id(), secrets.token_hex(48))
        channels.promise(both._body_id, both._make)
        channels.promise(both._response_id, both._make)
        if not incoming.complete:
            both._make()
        return both

    def _make(self) -> None:
        channels, keys = self._core.channels, self._keys
        channels.withdraw(self._body_id)
        channels.withdraw(self._response_id)
        body = RequestBody(channels.create_half(self._body_id, keys[:48]), self._incoming)
        self._made = body, ResponseChannel(channels.create_half(self._response_id, keys[48:]), self._decision)
        body.put(self._raw)
        body.begin()

    def _both(self) -> tuple[RequestBody, ResponseChannel]:
        if self._made is None:
            self._make()
        assert self._made is not None
        return self._made

    @property
    def body(self) -> RequestBody:
        """The request's body on its way to the handler."""
        return self._both()[0]

    @property
    def response(self) -> ResponseChannel:
        """What the handler writes."""
        return self._both()[1]

    @property
    def expected(self) -> bool:
        """Whether somebody has come to write."""
        return self._made is not None and self._made[1].expected

    @property
    def described(self) -> bool:
        """Whether somebody has written what sets a status or headers."""
        return self._made is not None and self._made[1].described

    def input(self, data: Json) -> Json:
        """The handler's input with the refs of the channels' far ends, as text: ids and keys hold nothing to escape."""
        refs = REFS % (self._body_id, self._keys[:48], self._response_id, self._keys[48:])
        return Json(data.raw[:-1] + refs.encode("ascii"))

    def wake(self) -> None:
        """Something has happened that whoever streams wants to look at."""
        if self._made is not None:
            self._made[1].wake()

    def release(self) -> None:
        """The request is over, for whatever reason."""
        if self._made is None:
            self._core.channels.withdraw(self._body_id)
            self._core.channels.withdraw(self._response_id)
            return
        body, response = self._made
        body.release()
        response.release("the response is complete")
