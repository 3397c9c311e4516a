"""HTTP/1.1 on one connection: requests one after the other, each handed to the ASGI application.

hypercorn's `HTTPStream` stands between the application and this file (see `front`), its `H11Protocol` does not: that one
costs twice as much as all the rest of a request, for its parser is Python, every request is a task with a channel of its
own, and a response leaves in three pieces. Here two tasks serve a connection for
as long as it lasts. One reads and parses; it reads on while a request is answered, so that the client's leaving is
noticed, and pauses while what has come is not taken. The other one runs the application. Whatever happens wakes one
parking lot: nothing is passed from task to task but the request itself.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, field
from hypercorn.protocol.events import Request

from .front import Address, Fields, Front, as_state
from .http1_messages import CONTINUE, Arriving, RequestParser, ResponseFraming

if TYPE_CHECKING:
    from .connections import Connection

App = Callable[[Mapping[str, Any], Any, Any], Awaitable[None]]

HELD_BYTES: Final = 64 * 1024
"""How much of a body may wait for the application before no more is read."""
STEP_BYTES: Final = 8 * 1024
"""How much is parsed at once: a request that waits takes ten times the memory of its smallest head."""
COALESCED: Final = 64 * 1024
"""Largest part of a body, in bytes, that leaves in one write with the head."""


@define(eq=False)
class RoundTrip:
    """One request and its response: the ASGI callables, and what an application may want of the socket below it.

    `begun`: the head of the response has been sent; `ended`: all of it has.
    """

    conversation: "Conversation"
    arriving: Arriving
    begun: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    _told: bool = field(default=False, init=False)
    _framing: ResponseFraming | None = field(default=None, init=False)
    _head: bytes = field(default=b"", init=False)

    async def receive(self) -> Mapping[str, Any]:
        """The next piece of the body, an empty one for no body; then `http.disconnect` once there is nobody or no need."""
        arriving = self.arriving
        while True:
            if self.ended:
                return {"type": "http.disconnect"}
            if arriving.held or (arriving.complete and not self._told):
                body, self._told = arriving.take(), arriving.complete
                self.conversation.make_room()
                return {"type": "http.request", "body": body, "more_body": not arriving.complete}
            if self.gone:
                return {"type": "http.disconnect"}
            if arriving.expects and not arriving.complete:
                if self.begun:  # told neither to send its body nor to keep it, a client does as it likes
                    return {"type": "http.disconnect"}
                arriving.expects = False
                await self.conversation.connection.send(CONTINUE)
                continue
            await self.conversation.news.park()

    async def head(self, status: int, headers: Fields) -> None:
        """The head of the response; it leaves with the first piece of the body. Raises `ValueError` for a broken one."""
        arriving, conversation = self.arriving, self.conversation
        last = not arriving.keep_alive or conversation.stopping.is_set() or (arriving.expects and not arriving.complete)
        self._framing = ResponseFraming(arriving.method, arriving.version, last)
        self._head = self._framing.head(status, headers)

    async def part(self, data: bytes, more: bool) -> None:
        """A piece of the body. To a client that is gone nothing is sent, and nothing raised.

        Raises `ValueError` for a body that is longer or shorter than its declared length.
        """
        assert self._framing is not None
        connection = self.conversation.connection
        framed = self._framing.part(data)
        if not more:
            framed += self._framing.end()
        if not self.begun:
            self.begun = True
            if len(data) <= COALESCED:
                framed = self._head + framed
            else:
                await connection.send(self._head)
        if framed:
            await connection.send(framed)
        if more:
            await trio.lowlevel.checkpoint()  # sending itself is none where the socket takes everything at once
        else:
            self.ended = True
            self.wake()

    @property
    def last(self) -> bool:
        """Whether the connection ends after this response."""
        return self._framing is None or self._framing.last or not self.arriving.complete

    # -- the socket below ---------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether the whole body of the request has come."""
        return self.arriving.complete

    @property
    def gone(self) -> bool:
        """Whether the client has left, or has sent what is no request."""
        return self.conversation.gone or (self.conversation.parser.refused is not None and not self.arriving.complete)

    @property
    def broken(self) -> bool:
        """Whether nothing gets through to the client any more."""
        return self.conversation.connection.broken

    async def news(self) -> None:
        """Return when something has happened: bytes have come, the client has left, somebody calls `wake`."""
        await self.conversation.news.park()

    def wake(self) -> None:
        """Let `news` return."""
        self.conversation.news.unpark_all()

    def abort(self, *, reset: bool = False) -> None:
        """End the connection now, with whatever still runs for it; see `Connection.abort`."""
        self.conversation.connection.abort(reset=reset)


@define(eq=False)
class Conversation:
    """All requests of one connection. The scope of each has its `RoundTrip` under `name` in `state`.

    `gone`: the client has left. `stopping`: the connection ends with the response that is under way. What has happened
    wakes all that wait in `news`.
    """

    connection: "Connection"
    stopping: trio.Event
    _app: App
    _name: str
    _secure: bool
    _client: Address
    _server: Address
    parser: RequestParser = field(factory=RequestParser, init=False)
    gone: bool = field(default=False, init=False)
    news: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)
    _paused: trio.CancelScope | None = field(default=None, init=False)
    _now: RoundTrip | None = field(default=None, init=False)
    _ended: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Serve the client until either side closes; returns when its last request has ended."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer_all, name="requests of a connection")
                await self._read()
                self.gone = True
                self.news.unpark_all()
        finally:
            self.parser.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        connection, parser = self.connection, self.parser
        while data := await connection.receive():
            if self._ended:
                continue  # what comes after our last response means nothing
            for start in range(0, len(data), STEP_BYTES):
                parser.feed(data[start : start + STEP_BYTES])
                self.news.unpark_all()
                while self._full():
                    if await self._hung_up_before_room():
                        return

    async def _hung_up_before_room(self) -> bool:
        """Whether the client hangs up before something is taken: that must not wait behind what it has sent."""
        with trio.CancelScope() as self._paused:
            await self.connection.hangup.wait()
            return True
        return False

    def _full(self) -> bool:
        """Whether what has come should be taken before more is read: a second request, or much of a body."""
        if self._ended:
            return False
        arrived, now = self.parser.arrived, self._now
        if now is None:
            return len(arrived) > 1 or (len(arrived) == 1 and arrived[0].held >= HELD_BYTES)
        return bool(arrived) or now.arriving.held >= HELD_BYTES

    def make_room(self) -> None:
        """Something was taken."""
        if self._paused is not None:
            self._paused.cancel()

    # -- answering ----------------------------------------------------------------------------------------------------

    async def _answer_all(self) -> None:
        connection = self.connection
        while (arriving := await self._next()) is not None:
            self._now = trip = RoundTrip(self, arriving)
            self.make_room()
            connection.idle, connection.cut_at = False, math.inf
            state = as_state({self._name: trip})
            request = Request(1, arriving.headers, arriving.version, arriving.method, arriving.target, state)
            front = await Front.of(request, trip, secure=self._secure, client=self._client, server=self._server)
            try:
                await self._app(front.scope, trip.receive, front.send)
            finally:
                front.close()
                connection.unanswered = not trip.begun
            self._now = None
            if trip.last or not trip.ended or self.stopping.is_set():
                await self._say_last(trip)
                break
            connection.rest()
            self.make_room()
        else:
            await self._say_last(None)
        self._ended = True
        self.make_room()
        connection.close()

    async def _next(self) -> Arriving | None:
        """The next request; None when there will be none."""
        arrived = self.parser.arrived
        if arrived:
            await trio.lowlevel.checkpoint()  # a client that sends a thousand at once is not alone
        while not arrived:
            if self.gone or self.parser.refused is not None:
                return None
            await self.news.park()
        return arrived.popleft()

    async def _say_last(self, trip: RoundTrip | None) -> None:
        """What is to be said after the last request, which is None where something else came in its place."""
        refused = self.parser.refused
        if trip is not None and trip.begun:
            if not trip.ended:
                self.connection.abort(reset=trip.arriving.version == "1.0")
        elif not self.gone and (trip is not None or refused is not None):
            await (self.connection.apologize() if refused is None else self.connection.decline(refused))
