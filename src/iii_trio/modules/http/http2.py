"""HTTP/2 on one connection: `h2` keeps the protocol's rules, this file moves bytes and runs one task per request.

Theory of operation. The connection's own task reads; one task writes, and nobody else does, so that a request which is
cancelled in the middle of sending tears no frame of its neighbours; each request is a task that runs the application.
What is to be sent stands in one outbox: requests wait while it is full or the client's window is shut, and so does the
reader, so that a client which makes us answer and does not read is not read either. A request's body is acknowledged
as the application takes it, which is all the back-pressure an upload needs. A request whose stream is reset, or whose
connection is gone, is told so by `http.disconnect` and ends by itself, as over HTTP/1.1.

    connection ─ reader ─ one task per request
               └ writer
"""

import logging
import math
import re
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from wsgiref.handlers import format_date_time

import trio
from attrs import define, field
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import InvalidBodyLengthError, ProtocolError, StreamClosedError
from h2.settings import SettingCodes, Settings
from hypercorn.protocol.events import Request
from hyperframe.frame import DataFrame, Frame, GoAwayFrame

from ...protocol.limits import HANDSHAKE_HEAD, HTTP2_OUTBOX, HTTP2_STREAMS, HTTP2_WINDOW, HTTP2_WINDOWS, STALL_S
from .front import Address, Fields, Front, as_state
from .http2_frames import RESET_COST, Frames, Refused

log = logging.getLogger(__name__)

App = Callable[[Mapping[str, Any], Any, Any], Awaitable[None]]

PROTOCOLS: Final = ["h2", "http/1.1"]
"""What a port under TLS offers by ALPN, best first."""
READ_BYTES: Final = 16 * 1024
WRITE_BYTES: Final = 64 * 1024
"""A write of this size must get through within `STALL_S`."""
LINGER_S: Final = 2.0
"""How long a client that was refused is read from, so that a reset does not overtake the reason."""
TABLE_BYTES: Final = 4096
"""How much of what was sent before we remember to send it shorter, whatever more the client would let us."""
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""What no value of a field may hold, nor a method or target; `h2` looks for some of it."""
_OF_THE_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)


class _WrongLength(Event):
    """A request's body is longer or shorter than its head has said; `counted` bytes of it came last."""

    def __init__(self, stream_id: int, counted: int) -> None:
        self.stream_id = stream_id
        self.counted = counted


class _H2(H2Connection):
    """`h2` with a shorter memory for streams that are over, and with patience for a body of another length than declared.

    That is an error of its stream (RFC 9113 §8.1.1); `h2` would end the connection, with all other requests on it.
    Clients send such bodies: curl gives its upload up when it hears of an error.
    """

    MAX_CLOSED_STREAMS = 4 * HTTP2_STREAMS

    def _receive_data_frame(self, frame: DataFrame) -> tuple[list[Frame], list[Event]]:
        try:
            return super()._receive_data_frame(frame)
        except InvalidBodyLengthError:
            return [], [_WrongLength(frame.stream_id, frame.flow_controlled_length)]


@define(eq=False)
class Stream:
    """One request and its response: the ASGI callables, and what an application may want of the socket below it.

    `gone`: the client has reset the stream or left, or nothing gets through to it.
    """

    connection: "Http2"
    id: int
    complete: bool
    """Whether the whole body of the request has arrived."""
    _expects: bool
    """Whether the client waits to be told to send its body."""
    missing: int | None
    """How much of the body has not come yet, where its head says how long it is."""
    gone: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)
    """Whether the whole response is on its way."""
    _body: list[bytes] = field(factory=list, init=False)
    _unread: int = field(default=0, init=False)
    """Bytes of the body that the client may not send again yet, padding included."""
    _told: bool = field(default=False, init=False)
    """Whether the application knows that the body is complete."""
    _head: list[tuple[bytes, bytes]] | None = field(default=None, init=False)
    _answered: bool = field(default=False, init=False)
    _left: int | None = field(default=None, init=False)
    """How much of the response is still to be sent, where its head says how long it is."""
    _held: bytes = field(default=b"", init=False)
    """The last byte of a response, while the client still sends."""
    _news: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)

    # -- what the connection says -------------------------------------------------------------------------------------

    def got(self, data: bytes, counted: int) -> None:
        """A piece of the body has come; `counted` are the bytes that it has taken of the windows."""
        self._body.append(data)
        self._unread += counted
        if self.missing is not None:
            self.missing -= len(data)
        self._news.unpark_all()

    def leave(self) -> None:
        """The client is gone; what it has sent is of no use any more."""
        self.gone = True
        self._body.clear()
        self.wake()

    def wake(self) -> None:
        """Let `news` return."""
        self._news.unpark_all()

    # -- what the application calls -----------------------------------------------------------------------------------

    async def receive(self) -> Mapping[str, Any]:
        """The next piece of the body, an empty one for no body; then `http.disconnect` once there is nobody or no need."""
        await trio.lowlevel.checkpoint()
        if self._expects and not self.gone:
            if self._answered and not self._body and not self.complete:
                return {"type": "http.disconnect"}  # told neither to send its body nor to keep it
            self._expects = False
            if not self._answered:
                self.connection.inform(self.id)
        while not (self.gone or self._body or (self.complete and (self.ended or not self._told))):
            await self._news.park()
        if self.gone or (self.complete and self.ended):
            return {"type": "http.disconnect"}
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._told = self.complete
        self._read_off()
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    def _read_off(self) -> None:
        unread, self._unread = self._unread, 0
        if unread:
            self.connection.acknowledge(self.id, unread)

    async def part(self, data: bytes, more: bool) -> None:
        """A piece of the body; it waits for the client's window. For a client that is gone it does nothing."""
        await trio.lowlevel.checkpoint_if_cancelled()
        body = data
        if self.gone or self.ended:
            await trio.lowlevel.checkpoint()
            return
        if self._head is not None:
            head, self._head = self._head, None
            self._answered = True
            self.connection.begin(self.id, head, end=not body and not more)
            self.ended = not body and not more
        if self._left is not None:
            self._left -= len(body)
        if self._left == 0 and more and body and not self.complete:
            # some clients hear nothing more, our window included, once they have all of a response: curl did until 8
            self._held, body = body[-1:], body[:-1]
        elif self._held:
            self._held, body = b"", self._held + body
        at = 0
        while at < len(body) and not self.gone:
            room = self.connection.room(self.id)
            if room <= 0:
                await self._wait_for_room()
                continue
            part = body if len(body) <= room else memoryview(body)[at : at + room]
            at += len(part)
            # a length that is reached says the same as the end
            last = at == len(body) and (not more or (self._left == 0 and not self._held))
            self.connection.put(self.id, part, end=last)
            self.ended = last
        if not body and not more and not self.ended and not self.gone:
            self.connection.put(self.id, b"", end=True)
            self.ended = True
        if self.ended:
            self.wake()
        else:
            await trio.lowlevel.checkpoint()  # sending itself is none while there is room

    async def _wait_for_room(self) -> None:
        """Wait until the client takes something. One that takes nothing for `STALL_S` has its request reset."""
        with trio.move_on_after(STALL_S) as patience:
            while not self.gone and self.connection.room(self.id) <= 0:
                await self._news.park()
        if patience.cancelled_caught and not self.gone:
            log.info("an HTTP/2 client took nothing for %.0f s: its request is reset", STALL_S)
            self._reset(ErrorCodes.CANCEL)

    async def head(self, status: int, headers: Fields) -> None:
        """The head of the response, which leaves with the first piece of its body."""
        named = {name for name, _ in headers}
        self._head = [(b":status", b"%d" % status)]
        self._head += [(name, value) for name, value in headers if name not in _OF_THE_CONNECTION]
        if b"date" not in named:
            self._head.append((b"date", format_date_time(time.time()).encode("ascii")))
        for name, value in headers:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"connection" and value == b"close":
                self.connection.say_goodbye()

    # -- in the place of an HTTP/1.1 connection -----------------------------------------------------------------------

    @property
    def broken(self) -> bool:
        """Whether nothing gets through to the client any more."""
        return self.gone

    async def news(self) -> None:
        """Return when something has happened: bytes have come, the client has left, somebody calls `wake`."""
        await self._news.park()

    def abort(self, *, reset: bool = False) -> None:
        """End this request alone. A response that is there in full ends in order, any other is seen to break off."""
        self._end_if_whole()
        self.close()

    def give_up(self) -> None:
        """The request is none, as its body shows; a response that is there in full is sent all the same."""
        if not self.gone:
            self._end_if_whole()
            self._reset(ErrorCodes.NO_ERROR if self.ended else ErrorCodes.PROTOCOL_ERROR)

    def _end_if_whole(self) -> None:
        if not self.gone and not self.ended and self._answered and self._left == 0:
            if self.connection.room(self.id) > 0:
                self.connection.put(self.id, self._held, end=True)
                self.ended = True

    def close(self) -> None:
        """The application is done with the request: a response that is not complete is broken off."""
        if not self.gone:
            if not self.ended:
                self._reset(ErrorCodes.INTERNAL_ERROR)
            elif not self.complete:
                self._reset(ErrorCodes.NO_ERROR)
        self._read_off()
        self.leave()

    def _reset(self, code: ErrorCodes) -> None:
        self.connection.reset(self.id, code)
        self.leave()


@define(eq=False)
class Http2:
    """One client's connection, over TLS that has shaken hands on `h2`.

    `idle` says that no request is under way; `cut_at` is the Trio time at which the sweeper ends the connection. The
    scope of each request has its `Stream` under `name` in `state`. `incident` counts a bug and names it.
    """

    _stream: "trio.SSLStream[trio.SocketStream]"
    _app: App
    _name: str
    _idle_s: float
    _incident: Callable[[], str]
    idle: bool = field(default=True, init=False)
    cut_at: float = field(init=False)
    _h2: H2Connection = field(init=False)
    _frames: Frames = field(init=False)
    _streams: dict[int, Stream] = field(factory=dict, init=False)
    _out: bytearray = field(factory=bytearray, init=False)
    _writing: bool = field(default=False, init=False)
    _to_write: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)
    _drained: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)
    _leaving: bool = field(default=False, init=False)
    """Whether a GOAWAY went out or came in: what is under way ends, and nothing new begins."""
    _over: bool = field(default=False, init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _addresses: tuple[Address, Address] = field(default=(None, None), init=False)

    def __attrs_post_init__(self) -> None:
        now = trio.current_time()
        self.cut_at = now + self._idle_s
        self._frames = Frames(now)
        self._h2 = _H2(H2Configuration(client_side=False, header_encoding=None))
        bounds = {
            SettingCodes.MAX_CONCURRENT_STREAMS: HTTP2_STREAMS,
            SettingCodes.INITIAL_WINDOW_SIZE: HTTP2_WINDOW,
            SettingCodes.MAX_HEADER_LIST_SIZE: HANDSHAKE_HEAD,
        }
        self._h2.local_settings = Settings(client=False, initial_values=bounds)

    @property
    def socket(self) -> trio.socket.SocketType:
        """What is below, under TLS."""
        return self._stream.transport_stream.socket

    @property
    def quiet(self) -> bool:
        """Whether nothing is under way, the bytes of the last response included."""
        return self.idle and not self._out and not self._writing

    async def run(self) -> None:
        """Serve the client until either side is done; returns when its last request has ended."""
        try:
            client, server = self.socket.getpeername(), self.socket.getsockname()
        except OSError:
            return  # gone before it was accepted
        self._addresses = client[:2], server[:2]
        with self._scope:
            async with trio.open_nursery() as outer:
                outer.start_soon(self._write, name="HTTP/2 writer")
                self._h2.initiate_connection()
                # much wider than a stream's: a slow upload does not stop the others
                self._h2.increment_flow_control_window(HTTP2_WINDOWS - self._h2.inbound_flow_control_window)
                self._emit()
                async with trio.open_nursery() as requests:
                    try:
                        await self._read(requests)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        pass
                    self._end_soon()
                outer.cancel_scope.cancel()

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, requests: trio.Nursery) -> None:
        while data := await self._stream.receive_some(READ_BYTES):
            if self._over:
                continue  # a client that was refused goes on sending: what it says is not of interest
            try:
                for number, step in enumerate(self._frames.follow(bytes(data), trio.current_time())):
                    if number:  # receiving was a checkpoint itself
                        await trio.lowlevel.checkpoint()
                    self._take(self._h2.receive_data(step), requests)
                    self._emit()
                    while len(self._out) >= HTTP2_OUTBOX and not self._over:
                        await self._drained.park()
            except (ProtocolError, Refused) as error:
                log.info("an HTTP/2 client is refused: %s", error)
                if isinstance(error, Refused):
                    self._h2.close_connection(error.code)
                self._emit()
                self._end_soon()
            if self._frames.goaway:
                self._leaving = True
                self._end_if_idle()

    def _take(self, events: list[Event], requests: trio.Nursery) -> None:
        opened = False
        for event in events:
            if isinstance(event, RequestReceived):
                self._open(event, requests)
            elif isinstance(event, DataReceived):
                stream = self._streams.get(event.stream_id)
                if stream is not None and not stream.gone:
                    stream.got(event.data, event.flow_controlled_length)
                else:
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, _WrongLength):
                self._h2.acknowledge_received_data(event.counted, event.stream_id)
                if (stream := self._streams.get(event.stream_id)) is not None:
                    stream.give_up()
                    self._frames.spend(RESET_COST)
                else:
                    self.reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            elif isinstance(event, StreamEnded):
                stream = self._streams.get(event.stream_id)
                if stream is not None and stream.missing and not stream.gone:  # by trailers: `h2` counts no more then
                    stream.give_up()
                    self._frames.spend(RESET_COST)
                elif stream is not None:
                    stream.complete = True
                    stream.wake()
            elif isinstance(event, StreamReset):
                if (stream := self._streams.get(event.stream_id)) is not None:
                    stream.leave()
                    self._frames.spend(RESET_COST)
            elif isinstance(event, WindowUpdated):
                if event.stream_id == 0:
                    opened = True
                elif (stream := self._streams.get(event.stream_id)) is not None:
                    stream.wake()
            elif isinstance(event, RemoteSettingsChanged):
                if self._h2.encoder.header_table_size > TABLE_BYTES:
                    self._h2.encoder.header_table_size = TABLE_BYTES
                opened = True
        if opened:
            self._wake_all()

    def _open(self, event: RequestReceived, requests: trio.Nursery) -> None:
        if self._leaving or len(self._streams) >= HTTP2_STREAMS:
            # also when those that were reset have not ended yet: asking and resetting makes no more work than asking
            self.reset(event.stream_id, ErrorCodes.REFUSED_STREAM)
            return
        if _CONTROLS.search(b"".join(bytes(value) for _, value in event.headers)):
            self.reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        complete = event.stream_ended is not None
        pseudo: dict[bytes, bytes] = {}
        headers: list[tuple[bytes, bytes]] = []
        for name, value in event.headers:
            if name[:1] == b":":
                pseudo[bytes(name)] = bytes(value)
            else:
                headers.append((bytes(name), bytes(value)))
        names = {name for name, _ in headers}
        lengths = [int(value) for name, value in headers if name == b"content-length"]
        if len(lengths) > 1 or (complete and any(lengths)):
            self.reset(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            return
        if b":authority" in pseudo and b"host" not in names:
            headers.insert(0, (b"host", pseudo[b":authority"]))
        if not complete and not lengths:
            headers.append((b"transfer-encoding", b"chunked"))  # as a gateway would say it
        expects = any(name == b"expect" and value.lower() == b"100-continue" for name, value in headers)
        stream = Stream(self, event.stream_id, complete, expects and not complete, lengths[0] if lengths else None)
        method, target = pseudo[b":method"].decode("latin-1"), _ascii(pseudo.get(b":path", b""))
        request = Request(stream.id, headers, "2", method, target, as_state({self._name: stream}))
        self._streams[stream.id] = stream
        self.idle, self.cut_at = False, math.inf
        requests.start_soon(self._serve, stream, request, name=f"HTTP/2 request {stream.id}")

    async def _serve(self, stream: Stream, request: Request) -> None:
        client, server = self._addresses
        try:
            front = await Front.of(request, stream, secure=True, client=client, server=server)
            try:
                await self._app(front.scope, stream.receive, front.send)
            finally:
                front.close()
        except Exception as error:
            # a bug that one request meets must not end the others of its connection, which may be another person's
            log.error("an HTTP/2 request failed (incident %s)", self._incident(), exc_info=error)
        finally:
            stream.close()
            del self._streams[stream.id]
            if not self._streams:
                self.idle = True
                self.cut_at = trio.current_time() + (LINGER_S if self._over else self._idle_s)
                self._end_if_idle()

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        while True:
            while not self._out:
                if self._over:
                    self._shut()
                elif self._leaving and not self._streams:
                    self.abort()
                await self._to_write.park()
            data, self._out = bytes(self._out), bytearray()
            self._writing = True
            try:
                for start in range(0, len(data), WRITE_BYTES):
                    with trio.move_on_after(STALL_S) as patience:
                        await self._stream.send_all(memoryview(data)[start : start + WRITE_BYTES])
                    if patience.cancelled_caught:
                        log.info("an HTTP/2 client took nothing for %.0f s: its connection is cut", STALL_S)
                        self._break()
                        return
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._break()
                return
            finally:
                self._writing = False
            self._wake_all()

    def _emit(self) -> None:
        """Let the writer send what `h2` has to say."""
        if not self._over:
            self._out += self._h2.data_to_send()
            self._to_write.unpark_all()

    def _wake_all(self) -> None:
        self._drained.unpark_all()
        for stream in tuple(self._streams.values()):
            stream.wake()

    # -- what streams ask for; only while their client has not left them ----------------------------------------------

    def room(self, stream_id: int) -> int:
        """How many bytes of a response may leave now, 0 or less for none."""
        if len(self._out) >= HTTP2_OUTBOX:
            return 0
        return min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size, WRITE_BYTES)

    def inform(self, stream_id: int) -> None:
        """Tell the client to go on sending."""
        self._h2.send_headers(stream_id, [(b":status", b"100")])
        self._emit()

    def begin(self, stream_id: int, head: list[tuple[bytes, bytes]], *, end: bool) -> None:
        """Send the head of a response."""
        self._h2.send_headers(stream_id, head, end_stream=end)
        self._emit()

    def put(self, stream_id: int, data: bytes | memoryview, *, end: bool) -> None:
        """Send a piece of a response, no more than there is room for."""
        self._h2.send_data(stream_id, bytes(data), end_stream=end)
        self._frames.earn()
        self._emit()

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let the client send that much more."""
        if not self._over:
            self._h2.acknowledge_received_data(size, stream_id)
            self._emit()

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """End a stream before its time."""
        try:
            self._h2.reset_stream(stream_id, code)
        except StreamClosedError:
            return  # the client was faster, with a frame that came together with the one we look at
        self._emit()

    # -- the end ------------------------------------------------------------------------------------------------------

    def say_goodbye(self) -> None:
        """Take no new requests: those which the client sends from now on it may ask elsewhere. The others are served."""
        if self._leaving or self._over:
            return
        self._leaving = True
        # not by `h2`, which would let no response through any more
        last = GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id, error_code=ErrorCodes.NO_ERROR)
        self._out += self._h2.data_to_send() + last.serialize()
        self._to_write.unpark_all()

    def retire(self) -> None:
        """End the connection, which is quiet, in order: the client hears of it, and is not waited for."""
        if self._leaving or self._over:
            self.abort()
        else:
            self.say_goodbye()

    def abort(self) -> None:
        """End the connection now, with whatever still runs for it; its client sees it break off."""
        self.socket.close()
        self._scope.cancel()

    def _end_if_idle(self) -> None:
        if self._leaving and not self._streams:
            self._to_write.unpark_all()

    def _end_soon(self) -> None:
        """Nothing is said to the client any more but what stands in the outbox; its requests hear of it."""
        if self._over:
            return
        self._over = True
        for stream in tuple(self._streams.values()):
            stream.leave()
        self.idle = True
        self.cut_at = trio.current_time() + LINGER_S
        self._drained.unpark_all()
        self._to_write.unpark_all()

    def _break(self) -> None:
        """Nothing gets through any more: reading hears of it."""
        self._out.clear()
        self.socket.close()
        self._end_soon()

    def _shut(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.socket.close()


def _ascii(target: bytes) -> bytes:
    """A target with what no target may hold written as percent signs and digits, as clients should have."""
    if target.isascii() and b" " not in target:
        return target
    return b"".join(b"%c" % byte if 32 < byte < 128 else b"%%%02X" % byte for byte in target)
