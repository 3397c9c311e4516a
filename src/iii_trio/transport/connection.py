"""One message connection over any Trio stream: batches in, synchronous push out, and an end with a code.

One task reads the stream (the one that called `run`) and one writes it. Everybody else only queues, so no cancelled
or impatient sender can leave half a frame behind, and neither direction ever waits for the other: two peers that both
send before they read do not block each other.

How writes happen. A queued message wakes the writer, which runs after the tasks that are runnable now: everything
pushed until then leaves in one write. Pushes made while a batch is being dispatched go one step further. They mark
their connection, and when the batch is through, each marked connection whose writer is idle is written to at once,
with one non-blocking system call and no task switch. An idle writer stands at a frame boundary and nobody else
writes, so the two ways cannot mix; what the kernel does not take is left to the writer.

Plain sockets are read without a detour too: wait until readable, then one system call, where `receive_some` first
tries in vain and after a success yields once more. Best of four runs of a bare router on a shared two-core machine,
without and with both: 231 to 117 µs of CPU per call and a round trip of 295 to 180 µs with one call in flight, 11.8 to
10.1 µs of CPU with 64. Every other stream is used through `send_all` and `receive_some` alone.

How it ends. The first cause decides the code. After `close`, and after a callback failed (1011), queued messages go
out and then the Close frame, and nothing but the peer's Close is heard any more. The peer's own Close, a violation and
an overflow drop the queue, and the Close frame goes out at the next frame boundary. All of it has `close_s`; then the
stream is closed regardless.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio
from attrs import define, field, frozen

from iii_trio.protocol.limits import CLOSE_S, DEAD_AFTER_S, PING_AFTER_S, STALL_S
from iii_trio.transport.budget import Account, Budget
from iii_trio.transport.frames import Binary, CloseCode, Framing, Oversize
from iii_trio.transport.outbox import Outbox, OutboxStatistics

RECEIVE_BYTES: Final = 64 * 1024
"""Most bytes read at a time: bounds the work of one wake-up together with `FRAMES_PER_WAKEUP`."""

FAREWELL_S: Final = 0.5
"""How long a cancelled connection may take to send its Close and shut its stream."""

_NEVER_SENT: Final = frozenset((1004, 1005, 1006, 1015))


@frozen
class Closed:
    """How a connection ended.

    `code` and `reason` are those of the first cause: the Close frame of whichever side began, else 1002 or 1007 for a
    violation by the peer, 1006 for a connection lost, aborted or silent for too long, 1013 for a peer that stopped
    reading. `clean` means that a Close frame went both ways.
    """

    code: int
    reason: str
    clean: bool


@frozen
class ConnectionStatistics:
    """What went through a connection and what it holds."""

    texts_in: int
    """Text messages received, those dropped after `close` not counted."""
    binaries_in: int
    """Binary messages received."""
    oversize_in: int
    """Messages skipped because they were above the limit."""
    bytes_in: int
    """Bytes read from the stream, headers included."""
    pings_sent: int
    """Pings sent by `ping` and `check_liveness`."""
    assembling_bytes: int
    """Bytes held for messages that are not complete yet."""
    last_heard: float
    """Trio's clock when the last bytes came."""
    reading_paused: bool
    """Whether `pause_reading` is in force."""
    closing: bool
    """Whether the connection takes no more messages."""
    outbox: OutboxStatistics
    """The outgoing side."""


@define(eq=False)
class _Turn:
    """The dispatch under way in one Trio run, what is to follow it, and the connections it has pushed to."""

    active: bool = False
    following: deque[Callable[[], None]] = field(factory=deque)
    pushed_to: "list[Connection]" = field(factory=list)

    def follow(self) -> None:
        """Do what was put off to the end of the batch; what the batch itself has pushed is written before."""
        while self.following:
            self.write()
            for _ in range(len(self.following)):
                self.following.popleft()()  # one at a time: should one fail, the others are still to come

    def write(self) -> None:
        """Write to each connection that was pushed to."""
        pushed_to, self.pushed_to = self.pushed_to, []
        for connection in pushed_to:
            connection._write_now()


_turn: Final = trio.lowlevel.RunVar[_Turn]("iii_trio.transport.turn")


def _current_turn() -> _Turn:
    try:
        return _turn.get()
    except LookupError:
        turn = _Turn()
        _turn.set(turn)
        return turn


def after_batch(step: Callable[[], None]) -> bool:
    """Have `step` called when everything in the batch under way has been dispatched and its answers are written.

    What the step pushes leaves in one more write. It is called, too, when the batch fails; it must not wait, and may put
    off a further step. False, and nothing is called, when no batch is under way.
    """
    turn = _current_turn()
    if turn.active:
        turn.following.append(step)
    return turn.active


@contextmanager
def one_batch() -> Iterator[None]:
    """What is pushed inside the block, to any connections, leaves as if one batch of frames had caused it.

    Idle plain sockets are written to when the block ends, each once and without a task switch. The block must not wait;
    inside another one, or while frames are dispatched, it changes nothing.
    """
    turn = _current_turn()
    if turn.active:
        yield
        return
    turn.active = True
    try:
        try:
            yield
        finally:
            turn.follow()
    finally:
        turn.active = False
        turn.write()


@define(eq=False, repr=False)
class Connection:
    """One upgraded WebSocket; it owns `stream` and closes it.

    `framing` comes from the handshake. `outbox` may be given to set other marks; its `masked` must be
    `framing.client`. The callbacks are synchronous: `on_binary(data)`, `on_oversize(report)` (without it a message
    above the limit closes with 1009) and `on_pong(payload)`. They and the batches of `run` come in the order of arrival.
    `cancel_code` is the Close code tried when `run` is cancelled; with 1012 every SDK reconnects (spec/sdk.md §7).
    `stall_s` is how long (s) the peer may take nothing of what is sent, `close_s` how long an end that has begun may
    take. `name` names the writer's task. What it buffers counts in `budget`, which is its own unless one is given.
    """

    _stream: trio.abc.Stream
    _framing: Framing
    _outbox: Outbox = field(kw_only=True)
    _on_binary: Callable[[bytes], None] | None = field(default=None, kw_only=True)
    _on_oversize: Callable[[Oversize], None] | None = field(default=None, kw_only=True)
    _on_pong: Callable[[bytes], None] | None = field(default=None, kw_only=True)
    _cancel_code: int = field(default=CloseCode.RESTART, kw_only=True)
    _stall_s: float = field(default=STALL_S, kw_only=True)
    _close_s: float = field(default=CLOSE_S, kw_only=True)
    _budget: Budget = field(factory=Budget, kw_only=True)
    name: str = field(default="connection", kw_only=True)

    last_heard: float = field(init=False, default=0.0)
    """Trio's clock when the last bytes came from the peer; before any came, when `run` began."""

    _account: Account = field(init=False)
    _scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _socket: trio.socket.SocketType | None = field(init=False, default=None)
    _turn: _Turn | None = field(init=False, default=None)
    # The writer, parked with nothing to write and not yet woken or marked.
    _writer: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _writer_idle: bool = field(init=False, default=False)
    _reader: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _paused: bool = field(init=False, default=False)
    # What comes in is no longer dispatched.
    _deaf: bool = field(init=False, default=False)
    # The first cause of the end, and whether a Close frame that says so is still to be queued.
    _end: tuple[int, str] | None = field(init=False, default=None)
    _close_due: bool = field(init=False, default=False)
    _close_queued: bool = field(init=False, default=False)
    _close_sent: bool = field(init=False, default=False)
    _close_received: bool = field(init=False, default=False)
    _lost: bool = field(init=False, default=False)
    _failure: Exception | None = field(init=False, default=None)
    _last_ping: float = field(init=False, default=0.0)
    _texts_in: int = field(init=False, default=0)
    _binaries_in: int = field(init=False, default=0)
    _oversize_in: int = field(init=False, default=0)
    _bytes_in: int = field(init=False, default=0)
    _pings_sent: int = field(init=False, default=0)

    @_outbox.default
    def _default_outbox(self) -> Outbox:
        return Outbox(self._framing.client)

    def __attrs_post_init__(self) -> None:
        self._account = self._budget.open(self.name, self._give_up)
        self._outbox.draw_on(self._account)
        if isinstance(self._stream, trio.SocketStream) and sys.platform != "win32":
            self._socket = self._stream.socket

    # -- outgoing, synchronous

    def push(self, message: bytes) -> bool:
        """Queue one text message (UTF-8). False, and nothing queued, when the connection is ending.

        A message that would exceed the outbox's hard limit ends the connection with 1013.
        """
        if not self._outbox.put(message):
            return self._refuse()
        if self._writer_idle:
            self._wake_writer()
        return True

    def push_now(self, message: bytes) -> bool:
        """As `push`, for whoever knows that nothing will follow: an idle plain socket is written to at once."""
        with one_batch():
            return self.push(message)

    def push_binary(self, data: bytes) -> bool:
        """Queue one binary message; otherwise as `push`."""
        if not self._outbox.put(Binary(data)):
            return self._refuse()
        self._wake_writer()
        return True

    def ping(self) -> bytes:
        """Queue a ping ahead of all messages; return its payload, which `on_pong` will get. Nothing waits for it."""
        payload = os.urandom(4)
        if not self._outbox.closed:
            self._outbox.put_control(self._framing.ping(payload))
            self._pings_sent += 1
            self._wake_writer()
        return payload

    def close(self, code: int | None, reason: str = "") -> None:
        """Begin to end: no message is taken in or dispatched any more, those queued go out, then a Close frame.

        A `code` of None sends an empty one, which peers see as 1005. `run` returns when the peer has answered, at the
        latest after `close_s`. Later calls change nothing.
        Raises ValueError for a `code` that no Close frame may carry (RFC 6455 §7.4).
        """
        if code is None:
            code, reason = CloseCode.NO_STATUS, ""
        elif not 1000 <= code <= 4999 or code in _NEVER_SENT:
            raise ValueError(f"close code {code} cannot be sent; use 1000-1003, 1007-1014 or 3000-4999")
        if self._end is None:
            self._begin_end(code, reason, drop_queue=False)

    def abort(self, reason: str = "aborted") -> None:
        """End at once, without a Close frame (1006)."""
        self._cut(CloseCode.ABNORMAL, reason)

    @property
    def closing(self) -> bool:
        """Whether the connection takes no more messages."""
        return self._outbox.closed

    @property
    def busy(self) -> bool:
        """Whether tasks should wait in `wait_room` before they push more."""
        return self._outbox.busy

    @property
    def overloaded(self) -> bool:
        """Whether this peer should get no new work."""
        return self._outbox.overloaded

    @property
    def pending_bytes(self) -> int:
        """Bytes accepted and not yet handed to the stream."""
        return self._outbox.pending_bytes

    async def wait_room(self) -> None:
        """Wait until the outbox is not `busy` or the connection is ending; cancelling it changes nothing."""
        await self._outbox.wait_room()

    # -- incoming, synchronous

    @property
    def message_limit(self) -> int:
        """Largest message accepted, in bytes; may be set at any time and holds for the frames that follow."""
        return self._framing.max_message

    @message_limit.setter
    def message_limit(self, limit: int) -> None:
        self._framing.max_message = limit

    def pause_reading(self) -> None:
        """Dispatch nothing and stop reading the stream, until `resume_reading`.

        At most one chunk of `RECEIVE_BYTES` is read in addition, if the reader was waiting for it. A batch that is
        being dispatched is not cut short. While paused, pings go unanswered and the peer does not count as silent.
        """
        self._paused = True

    def resume_reading(self) -> None:
        """Read on, with what was held first."""
        if self._paused:
            self._paused = False
            self.last_heard = trio.current_time()
            self._reader.unpark()

    def check_liveness(self, now: float, ping_after: float = PING_AFTER_S, dead_after: float = DEAD_AFTER_S) -> None:
        """Ping a peer that is silent for `ping_after` seconds, abort one that is for `dead_after`.

        `now` is Trio's clock. A sweeper calls this for all its connections every second or so.
        """
        if self._turn is None or self._outbox.closed or self._paused:
            return
        silent_s = now - self.last_heard
        if silent_s >= dead_after:
            self.abort(f"the peer was silent for {silent_s:.0f} s")
        elif min(silent_s, now - self._last_ping) >= ping_after:
            self._last_ping = now
            self.ping()

    def statistics(self) -> ConnectionStatistics:
        """A snapshot of the connection."""
        return ConnectionStatistics(
            texts_in=self._texts_in,
            binaries_in=self._binaries_in,
            oversize_in=self._oversize_in,
            bytes_in=self._bytes_in,
            pings_sent=self._pings_sent,
            assembling_bytes=self._framing.assembling_bytes,
            last_heard=self.last_heard,
            reading_paused=self._paused,
            closing=self._outbox.closed,
            outbox=self._outbox.statistics(),
        )

    # -- the life of the connection

    async def run(self, on_batch: Callable[[list[bytes]], None], *, rest: bytes = b"") -> Closed:
        """Read, dispatch and write until the connection has ended; the stream is closed in any case.

        `on_batch` is called with the text messages of one wake-up, at most `FRAMES_PER_WAKEUP`, and must not block.
        `rest` are bytes that came with the handshake. Errors of the stream are an end like another, never raised.

        An `Exception` of a callback closes with 1011 and is raised when that is done. Cancelled, the connection
        tries for `FAREWELL_S` to send a Close with `cancel_code`.
        """
        if self._turn is not None:
            raise RuntimeError("a Connection runs once; make a new one for a new stream")
        self._turn = _current_turn()
        self.last_heard = trio.current_time()
        ended = False
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, name=f"{self.name} writer")
                    await self._read(on_batch, rest)
            ended = True
        finally:
            self._outbox.close()
            if not ended:
                with trio.move_on_after(FAREWELL_S, shield=True):
                    await self._bid_farewell()
            with trio.move_on_after(FAREWELL_S, shield=True):
                await trio.aclose_forcefully(self._stream)
            self._outbox.clear()
            self._account.close()
        if self._failure is not None:
            raise self._failure
        code, reason = self._end_or_lost()
        return Closed(int(code), reason, clean=self._close_sent and self._close_received)

    async def _read(self, on_batch: Callable[[list[bytes]], None], rest: bytes) -> None:
        framing = self._framing
        chunk: bytes | bytearray = rest
        while framing.ended is None:
            if self._paused:
                await self._pass_gate()
            if chunk:
                self.last_heard = trio.current_time()
                self._bytes_in += len(chunk)
                framing.receive(chunk)
                chunk = b""
            elif framing.more:
                await trio.lowlevel.checkpoint()
            else:
                chunk = await self._receive()
                if not chunk:
                    return self._cut(CloseCode.ABNORMAL, "the peer hung up without a Close frame")
                continue
            self._dispatch(on_batch)
        self._close_received = framing.ended.by_peer
        if self._close_queued:
            return None
        self._begin_end(framing.ended.code, framing.ended.reason, drop_queue=True)
        if not framing.ended.by_peer and isinstance(self._stream, trio.abc.HalfCloseableStream):
            # Closing a socket with unread bytes in it resets the connection, and the reset would overtake our Close.
            while await self._receive():
                pass
        return None

    async def _pass_gate(self) -> None:
        while self._paused and not self._deaf:
            await self._reader.park()

    async def _receive(self) -> bytes | bytearray:
        """The next bytes; none at the end of the stream, whatever ended it."""
        socket = self._socket
        try:
            if socket is None:
                return await self._stream.receive_some(RECEIVE_BYTES)
            while True:
                await trio.lowlevel.wait_readable(socket)
                try:
                    return os.read(socket.fileno(), RECEIVE_BYTES)
                except BlockingIOError:
                    continue
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def _dispatch(self, on_batch: Callable[[list[bytes]], None]) -> None:
        """Hand on the next batch, then write to whom it was answered or forwarded."""
        framing, turn = self._framing, self._turn
        assert turn is not None, "only run() dispatches"
        texts = framing.next_batch()
        if not texts or self._account.assembling:
            self._account.assemble(framing.assembling_bytes)
        if framing.replies:
            for reply in framing.replies:
                self._outbox.put_control(reply)
            framing.replies.clear()
            self._wake_writer()
        if self._deaf:
            framing.events.clear()
            return
        turn.active = True
        try:
            try:
                if texts:
                    self._texts_in += len(texts)
                    on_batch(texts)
                if framing.events:
                    self._deliver_events()
            finally:
                turn.follow()
        except Exception as error:  # noqa: BLE001  one peer's frames must not end the others; `run` raises it later
            self._failure = error
            self._begin_end(CloseCode.INTERNAL_ERROR, "internal error", drop_queue=False)
            # Bounded by the deadline just set: a cancellation must not replace the failure.
            self._scope.shield = True
        finally:
            turn.active = False
            turn.write()

    def _deliver_events(self) -> None:
        events, self._framing.events = self._framing.events, []
        for event in events:
            if self._deaf:
                return
            if isinstance(event, Binary):
                self._binaries_in += 1
                if self._on_binary is not None:
                    self._on_binary(event.data)
            elif isinstance(event, Oversize):
                self._oversize_in += 1
                if self._on_oversize is not None:
                    self._on_oversize(event)
                else:
                    self.close(CloseCode.TOO_BIG, f"messages above {self.message_limit} bytes are not accepted")
            elif self._on_pong is not None:
                self._on_pong(event.payload)

    def _wake_writer(self) -> None:
        if not self._writer_idle:
            return
        self._writer_idle = False
        if self._turn is not None and self._turn.active and self._socket is not None:
            self._turn.pushed_to.append(self)
        else:
            self._writer.unpark()

    def _write_now(self) -> None:
        """Write what the kernel takes without waiting; the writer gets the rest and all that needs more than a write."""
        assert self._socket is not None, "only plain sockets are marked"
        outbox = self._outbox
        if data := outbox.take():
            try:
                outbox.sent(os.write(self._socket.fileno(), data))
            except OSError:
                # Full, or broken: then the writer meets the same error and ends the connection.
                pass
        if outbox.idle and not outbox.closed:
            self._writer_idle = True
        else:
            self._writer.unpark()

    async def _write(self) -> None:
        outbox, send_all = self._outbox, self._stream.send_all
        try:
            while True:
                if data := outbox.take():
                    with trio.move_on_after(self._stall_s) as patience:
                        await send_all(data)
                    if patience.cancelled_caught:
                        return self._cut(CloseCode.TRY_AGAIN_LATER, f"the peer took nothing for {self._stall_s:.0f} s")
                    outbox.sent(len(data))
                elif self._close_due:
                    self._close_due, self._close_queued = False, True
                    outbox.put_control(self._framing.close(*self._end_or_lost()))
                elif self._close_queued:
                    self._close_sent = True
                    return await self._shut_down_sending()
                else:
                    self._writer_idle = True
                    await self._writer.park()
                    self._writer_idle = False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The peer may have said something before it went: the reader goes on to the end of that.
            self._lost = True
            outbox.close()
            outbox.clear()
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._close_s)

    async def _shut_down_sending(self) -> None:
        violation = self._framing.ended is not None and not self._framing.ended.by_peer
        if violation and isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    # -- how it ends

    def _refuse(self) -> bool:
        if not self._outbox.closed:
            self._begin_end(CloseCode.TRY_AGAIN_LATER, "too much is waiting to be sent", drop_queue=True)
        return False

    def _begin_end(self, code: int, reason: str, *, drop_queue: bool) -> None:
        """Take and dispatch no more; say so to the peer after what is queued, or instead of it."""
        if self._end is None:
            self._end = code, reason
        self._deaf = True
        self._outbox.close()
        if drop_queue:
            self._outbox.clear()
        self._close_due = not self._close_queued
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._close_s)
        self._wake_writer()
        self._reader.unpark_all()

    def _cut(self, code: int, reason: str) -> None:
        """End now."""
        if self._end is None:
            self._end = code, reason
        self._deaf = True
        self._outbox.close()
        self._scope.cancel()

    def _give_up(self, reason: str) -> None:
        """Hold next to nothing from now on, and end; a frame that is half sent is not waited for."""
        self.message_limit = 0
        self._framing.skip_message()
        if self._outbox.at_boundary:
            self._begin_end(CloseCode.TRY_AGAIN_LATER, reason, drop_queue=True)
        else:
            self._cut(CloseCode.TRY_AGAIN_LATER, reason)

    def _end_or_lost(self) -> tuple[int, str]:
        return self._end or (CloseCode.ABNORMAL, "the connection was lost")

    async def _bid_farewell(self) -> None:
        """Try to tell the peer that we were cancelled, if no frame is half sent."""
        if self._lost or self._close_queued or not self._outbox.at_boundary:
            return
        code, reason = self._end or (self._cancel_code, "")
        try:
            await self._stream.send_all(self._framing.close(code, reason))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
