"""The bounded queue of what one connection still has to send.

Messages wait whole and unframed; `take` turns as many of them into bytes as one write should carry. Control frames
overtake messages at every frame boundary, and a message above `FRAGMENT` leaves as fragments, so there is a boundary
at least once per `FRAGMENT` bytes. Nothing here reads a clock or touches a stream.

Three marks, in bytes. Above *busy*, tasks wait in `wait_room`. Above *overloaded*, the engine gives this peer no new
work. *hard* is never exceeded: `put` refuses, and the connection ends. Below that an outbox may draw on the budget of
all connections (budget.py): `put` compares with one ceiling, and only at that ceiling does it ask for more.
"""

import os
from collections import deque
from typing import Final

import trio
from attrs import define, field, frozen

from iii_trio.protocol.limits import FRAGMENT, FRAMES_PER_WAKEUP, OUTBOX_BUSY, OUTBOX_HARD, OUTBOX_OVERLOADED
from iii_trio.transport.budget import CHUNK, Account, in_chunks
from iii_trio.transport.frames import BINARY, CONTINUATION, FINAL, TEXT, Binary, apply_mask, encode_head, encode_whole

WRITE_SLICE: Final = 64 * 1024
"""About how many bytes one write carries: progress is seen at this grain, and it is one good system call."""

MESSAGE_OVERHEAD: Final = 64
"""Bytes counted per message on top of its payload (object, queue slot, header), so that tiny ones are bounded too."""

CONTROL_FRAMES: Final = FRAMES_PER_WAKEUP
"""Control frames kept for a peer that does not read. The oldest goes first: RFC 6455 §5.5.3 lets a pong for the latest
ping stand for all before it."""


@frozen
class OutboxStatistics:
    """What an outbox holds and what went through it."""

    pending_messages: int
    """Messages queued whole; the one being written does not count."""
    pending_bytes: int
    """Bytes accepted and not yet handed to the stream, with `MESSAGE_OVERHEAD` per message."""
    peak_bytes: int
    """The highest `pending_bytes` seen by a write."""
    messages_sent: int
    """Messages that left the queue for the stream."""
    bytes_sent: int
    """Bytes the stream took, headers and control frames included."""
    refused: int
    """Messages refused at the hard limit."""
    control_dropped: int
    """Control frames dropped because `CONTROL_FRAMES` were waiting."""
    tasks_waiting: int
    """Tasks in `wait_room`."""


@define(eq=False, repr=False)
class Outbox:
    """What one connection has to send. `masked` is the client's side; the marks are bytes.

    The writer calls `take`, writes what it got, and reports with `sent` how much of it the stream accepted.
    """

    masked: bool = False
    busy_mark: int = field(default=OUTBOX_BUSY, kw_only=True)
    overloaded_mark: int = field(default=OUTBOX_OVERLOADED, kw_only=True)
    hard_limit: int = field(default=OUTBOX_HARD, kw_only=True)
    pending_bytes: int = field(init=False, default=0)
    closed: bool = field(init=False, default=False)

    # What `pending_bytes` may be without asking, what the account holds for it, and below what it gives some back.
    _ceiling: int = field(init=False)
    _account: Account | None = field(init=False, default=None)
    _drawn: int = field(init=False, default=0)
    _floor: int = field(init=False, default=0)
    _queue: deque[bytes | Binary] = field(init=False, factory=deque)
    _control: deque[bytes] = field(init=False, factory=deque)
    # What take() gave out and the stream has not accepted, and the part of pending_bytes it stands for.
    _given: bytes | memoryview = field(init=False, default=b"")
    _given_cost: int = field(init=False, default=0)
    # What remains of the frame on the wire, and of the message whose fragment that frame is.
    _frame: memoryview | None = field(init=False, default=None)
    _message: memoryview | None = field(init=False, default=None)
    _opcode: int = field(init=False, default=TEXT)
    _room: trio.lowlevel.ParkingLot = field(init=False, factory=trio.lowlevel.ParkingLot)
    _peak_bytes: int = field(init=False, default=0)
    _messages_sent: int = field(init=False, default=0)
    _bytes_sent: int = field(init=False, default=0)
    _refused: int = field(init=False, default=0)
    _control_dropped: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self._ceiling = self.hard_limit

    @property
    def busy(self) -> bool:
        """Whether tasks should wait before they put more."""
        return self.pending_bytes > self.busy_mark

    @property
    def overloaded(self) -> bool:
        """Whether this peer should be given new work at all."""
        return self.pending_bytes > self.overloaded_mark

    @property
    def idle(self) -> bool:
        """Whether there is nothing to write."""
        return not (self._queue or self._given or self._control or self._frame or self._message)

    @property
    def at_boundary(self) -> bool:
        """Whether every frame begun has been handed over whole, so that another one may follow."""
        return not self._given and self._frame is None

    def put(self, message: bytes | Binary) -> bool:
        """Queue one whole message (`bytes` is UTF-8 text). False, and nothing queued, at the hard limit."""
        size = len(message.data) if isinstance(message, Binary) else len(message)
        pending = self.pending_bytes + size + MESSAGE_OVERHEAD
        if (pending > self._ceiling or self.closed) and not self._stretch(pending):
            self._refused += 1
            return False
        self._queue.append(message)
        self.pending_bytes = pending
        return True

    def draw_on(self, account: Account) -> None:
        """Hold nothing above `CHUNK` that is not in this account; for an outbox that is empty."""
        self._account = account
        self._draw(0)

    def _stretch(self, pending: int) -> bool:
        """Whether there may be `pending` bytes."""
        if self.closed or pending > self.hard_limit or self._account is None:
            return False
        drawn = in_chunks(pending)
        if not self._account.grow(drawn - self._drawn):
            return False
        self._draw(drawn)
        return True

    def _draw(self, drawn: int) -> None:
        self._drawn = drawn
        self._ceiling = min(max(drawn, CHUNK), self.hard_limit)
        self._floor = max(drawn - 2 * CHUNK, CHUNK // 2) if drawn else 0

    def _give_back(self) -> None:
        """Hold no more than is needed."""
        assert self._account is not None, "only what was drawn has a floor"
        drawn = in_chunks(self.pending_bytes)
        self._account.shrink(self._drawn - drawn)
        self._draw(drawn)

    def put_control(self, frame: bytes) -> None:
        """Queue one framed ping, pong or Close ahead of all messages."""
        if len(self._control) >= CONTROL_FRAMES:
            self._control.popleft()
            self._control_dropped += 1
        self._control.append(frame)

    def take(self) -> bytes | memoryview:
        """The bytes to write next, about `WRITE_SLICE` of them; empty when there are none.

        What an earlier call gave out and `sent` has not confirmed comes again.
        """
        if self._given:
            return self._given
        if self.pending_bytes > self._peak_bytes:
            self._peak_bytes = self.pending_bytes
        if self._frame is not None:
            self._given, self._frame = self._cut(self._frame, WRITE_SLICE)
            self._given_cost = len(self._given)
            return self._given
        parts: list[bytes | memoryview] = [*self._control]
        self._control.clear()
        cost = 0
        queue, masked = self._queue, self.masked
        while self._message is None and queue and cost < WRITE_SLICE:
            message = queue.popleft()
            opcode, data = (BINARY, message.data) if isinstance(message, Binary) else (TEXT, message)
            size = len(data)
            cost += MESSAGE_OVERHEAD
            if size > WRITE_SLICE:
                self._message, self._opcode = memoryview(data), opcode
                break
            encode_whole(FINAL | opcode, data, parts, masked=masked)
            cost += size
            self._messages_sent += 1
        if self._message is not None and cost < WRITE_SLICE:
            cost += self._begin_frame(self._message, parts)
        self._given, self._given_cost = b"".join(parts), cost
        return self._given

    def _begin_frame(self, message: memoryview, parts: list[bytes | memoryview]) -> int:
        """Append the next fragment's header and first bytes to `parts`; return how many payload bytes those are."""
        payload, rest = self._cut(message, FRAGMENT)
        key = os.urandom(4) if self.masked else b""
        parts.append(encode_head(self._opcode if rest else FINAL | self._opcode, len(payload), key))
        if key:
            payload = memoryview(apply_mask(key, payload))
        self._message, self._opcode = rest, CONTINUATION
        if rest is None:
            self._messages_sent += 1
        start, self._frame = self._cut(payload, WRITE_SLICE)
        parts.append(start)
        return len(start)

    @staticmethod
    def _cut(data: memoryview, size: int) -> tuple[memoryview, memoryview | None]:
        return data[:size], data[size:] if len(data) > size else None

    def sent(self, size: int) -> None:
        """The stream accepted the first `size` bytes of what `take` gave last."""
        self._bytes_sent += size
        if size < len(self._given):
            self._given = memoryview(self._given)[size:]
            return
        self.pending_bytes -= self._given_cost
        self._given, self._given_cost = b"", 0
        if self.pending_bytes < self._floor:
            self._give_back()
        if self._room and not self.busy:
            self._room.unpark_all()

    def close(self) -> None:
        """Refuse all further messages and let waiting tasks go; what is queued stays."""
        self.closed = True
        self._room.unpark_all()

    def clear(self) -> None:
        """Drop what is queued. A frame that has been begun stays: half of it would garble all that follows."""
        self._queue.clear()
        self._control.clear()
        self._message = None
        self.pending_bytes = self._given_cost + (len(self._frame) if self._frame else 0)
        if self._drawn:
            self._give_back()
        if not self.busy:
            self._room.unpark_all()

    async def wait_room(self) -> None:
        """Wait until the outbox is not busy, or closed. Cancelled or not, it takes and changes nothing."""
        if self.closed or not self.busy:
            await trio.lowlevel.checkpoint()
        while not self.closed and self.busy:
            await self._room.park()

    def statistics(self) -> OutboxStatistics:
        """A snapshot of the outbox."""
        return OutboxStatistics(
            pending_messages=len(self._queue),
            pending_bytes=self.pending_bytes,
            peak_bytes=max(self._peak_bytes, self.pending_bytes),
            messages_sent=self._messages_sent,
            bytes_sent=self._bytes_sent,
            refused=self._refused,
            control_dropped=self._control_dropped,
            tasks_waiting=len(self._room),
        )
