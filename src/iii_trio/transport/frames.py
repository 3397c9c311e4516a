"""WebSocket frames without I/O: bytes in, whole messages out; payloads and control messages in, bytes out.

How it works. wsproto judges every frame that is out of the ordinary: fragments, control frames, long frames, every
error. What is ordinary, a whole unfragmented text or binary frame of at most `INCREMENTAL_FRAME` bytes between two
messages, never reaches it: such a frame does not change the state of the protocol, so it is cut out of the buffer
and unmasked here, some ten times as fast. A frame whose text is not UTF-8 is handed to wsproto after all, which names
the error.

Work is bounded on both axes. `next_batch` looks at a bounded number of frames and says in `more` whether others are
waiting; a long frame goes to wsproto piece by piece, as its bytes arrive, so that its last piece costs no more than
any other. A message above `max_message` is skipped: its head is kept for `Oversize`, the rest is dropped on arrival.
"""

import io
import os
from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Final

from attrs import define, field, frozen
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.events import Pong as PongEvent
from wsproto.frame_protocol import CloseReason

from iii_trio.protocol.limits import FRAMES_PER_WAKEUP, INCREMENTAL_FRAME, MAX_MESSAGE, OVERSIZE_HEAD

TEXT: Final = 0x1
BINARY: Final = 0x2
CONTINUATION: Final = 0x0
FINAL: Final = 0x80

_WHOLE_TEXT: Final = FINAL | TEXT
_WHOLE_BINARY: Final = FINAL | BINARY
_MASKED: Final = 0x80
_CONTROL: Final = 0x8
_ZERO_KEY: Final = b"\0\0\0\0"
# A frame with the wrong mask bit is an error whatever its length: wsproto gets all that follows until it says so.
_ENDLESS: Final = 1 << 63

_XOR: Final = tuple(bytes(byte ^ key for byte in range(256)) for key in range(256))
# Up to here one XOR of two long integers is fastest, above it four strided translations are (2 µs at 1 KiB).
_SHORT_WORDS: Final = 256
_REPEAT: Final = tuple(int.from_bytes(b"\1\0\0\0" * words, "little") for words in range(_SHORT_WORDS + 1))

_HEAD_16: Final = Struct(">BBH").pack
_HEAD_64: Final = Struct(">BBQ").pack
_TEXT_HEADS: Final = tuple(bytes((_WHOLE_TEXT, size)) for size in range(126))


class CloseCode(IntEnum):
    """The close codes this house uses (RFC 6455 §7.4.1); spec/sdk.md §7 says which of them lets an SDK reconnect."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_TEXT = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTART = 1012
    TRY_AGAIN_LATER = 1013


@frozen
class Binary:
    """A whole binary message, received or to be sent."""

    data: bytes


@frozen
class Pong:
    """The peer's answer to a ping, with the payload of that ping."""

    payload: bytes


@frozen
class Oversize:
    """A message above the limit; it is being skipped.

    `head` holds its first bytes (at most `OVERSIZE_HEAD`). `size` is the number of payload bytes its frames have
    declared so far: the whole size of an unfragmented message, a lower bound for a fragmented one.
    """

    head: bytes
    size: int


@frozen
class Ended:
    """The end of the inbound frames: the peer's Close if `by_peer`, else a violation that asks for a Close with `code`."""

    code: int
    reason: str
    by_peer: bool


Event = Binary | Pong | Oversize


def apply_mask(key: bytes, data: bytes | memoryview) -> bytes:
    """XOR `data` with the 4-byte `key`, repeated; masks and unmasks alike."""
    size = len(data)
    words = (size + 3) >> 2
    if words <= _SHORT_WORDS:
        mask = int.from_bytes(key, "little") * _REPEAT[words]
        return (int.from_bytes(data, "little") ^ mask).to_bytes(words << 2, "little")[:size]
    masked = bytearray(data)
    for offset, byte in enumerate(key):
        masked[offset::4] = masked[offset::4].translate(_XOR[byte])
    return bytes(masked)


def encode_head(first: int, size: int, key: bytes = b"") -> bytes:
    """The header of a data frame: first byte (`FINAL` and opcode), payload size in bytes, masking key of a client."""
    masked = _MASKED if key else 0
    if size < 126:
        return bytes((first, masked | size)) + key
    if size < 65536:
        return _HEAD_16(first, masked | 126, size) + key
    return _HEAD_64(first, masked | 127, size) + key


def encode_whole(first: int, payload: bytes, parts: list[bytes | memoryview], *, masked: bool) -> None:
    """Append one whole data frame to `parts`; a client's is `masked` with a fresh unpredictable key."""
    if masked:
        key = os.urandom(4)
        parts.append(encode_head(first, len(payload), key))
        parts.append(apply_mask(key, payload))
        return
    size = len(payload)
    parts.append(_TEXT_HEADS[size] if first == _WHOLE_TEXT and size < 126 else encode_head(first, size))
    parts.append(payload)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@define(eq=False, repr=False)
class Framing:
    """The frames of one connection after its upgrade, from either side.

    `client` says which side this is; a client masks what it sends and a server insists on it. `max_message` (bytes)
    may be changed at any time and holds for the frames that follow.

    Use: `receive` the bytes that came, then call `next_batch` until `more` is false. After each call take what stands
    in `events` and `replies` and clear them, and look at `ended`.
    """

    client: bool = False
    max_message: int = field(default=MAX_MESSAGE, kw_only=True)
    events: list[Event] = field(init=False, factory=list)
    """What came after the messages of the last batch, in order: binary messages, pongs, oversize reports."""
    replies: list[bytes] = field(init=False, factory=list)
    """Framed pongs the peer is owed."""
    more: bool = field(init=False, default=False)
    """Whether `next_batch` stopped before the end of the bytes received."""
    ended: Ended | None = field(init=False, default=None)
    """Set when no frame will follow; then all further bytes are ignored."""

    _protocol: Protocol = field(init=False)
    _data: bytes = field(init=False, default=b"")
    _position: int = field(init=False, default=0)
    # An ordinary frame of which only a part has come, and its full size.
    _partial: bytearray | None = field(init=False, default=None)
    _partial_size: int = field(init=False, default=0)
    # How many of the coming bytes belong to a frame that wsproto has begun to read.
    _strict_left: int = field(init=False, default=0)
    # The message under way, if it is fragmented or long.
    _message: io.BytesIO | None = field(init=False, default=None)
    _declared: int = field(init=False, default=0)
    _skipping: bool = field(init=False, default=False)
    _reported: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._protocol = Protocol(ConnectionType.CLIENT if self.client else ConnectionType.SERVER)

    @property
    def assembling_bytes(self) -> int:
        """Bytes held for messages and frames that are not complete yet."""
        held = len(self._data) - self._position
        if self._partial is not None:
            held += len(self._partial)
        if self._message is not None:
            held += self._message.tell()
        return held

    def receive(self, data: bytes | bytearray) -> None:
        """Take in bytes from the peer."""
        if self.ended is not None:
            return
        data = bytes(data)
        if self._partial is not None:
            self._partial += data
            if len(self._partial) < self._partial_size:
                return
            data, self._partial = bytes(self._partial), None
        elif self._position < len(self._data):
            data = self._data[self._position :] + data
        self._data, self._position = data, 0

    def next_batch(self, limit: int = FRAMES_PER_WAKEUP) -> list[bytes]:
        """The next whole text messages, UTF-8 checked, from at most `limit` frames.

        The order of arrival is kept: a batch ends where a text frame follows something that went to `events`.
        """
        texts: list[bytes] = []
        self.more = False
        data, position = self._data, self._position
        if self._strict_left and data:
            position = self._to_protocol(data, position, position + self._strict_left, texts)
        if position < len(data) and self.ended is None:
            position = self._parse(data, position, limit, texts)
        if position >= len(data) or self.ended is not None:
            data, position = b"", 0
        self._data, self._position = data, position
        return texts

    def _parse(self, data: bytes, position: int, limit: int, texts: list[bytes]) -> int:
        """Take up to `limit` frames from `position` on; return where the first untouched byte is."""
        size, events, append = len(data), self.events, texts.append
        key_size, mask_bit = (0, 0) if self.client else (4, _MASKED)
        for _ in range(limit):
            if size - position < 2:
                return position
            first = data[position]
            if events and first & 0xF in (TEXT, CONTINUATION):
                break
            # With the mask bit this side expects, what remains of the second byte is at most 127.
            length = data[position + 1] ^ mask_bit
            start = position + 2 + key_size
            least = 0
            if length > 125:
                if length > 127:
                    return self._to_protocol(data, position, _ENDLESS, texts)
                extended, least = (2, 126) if length == 126 else (8, 65536)
                if size - position < 2 + extended:
                    return position
                length = int.from_bytes(data[position + 2 : position + 2 + extended], "big")
                start += extended
            end = start + length
            ordinary = (
                first in (_WHOLE_TEXT, _WHOLE_BINARY)
                and self._message is None
                and least <= length <= INCREMENTAL_FRAME
                and length <= self.max_message
            )
            if not ordinary:
                if not first & _CONTROL:
                    self._declare(length)
                position = self._to_protocol(data, position, end, texts)
                if self._strict_left or self.ended is not None:
                    return position
                continue
            if end > size:
                self._partial, self._partial_size = bytearray(data[position:]), end - position
                return size
            payload = data[start:end]
            if key_size and (key := data[start - 4 : start]) != _ZERO_KEY:
                payload = apply_mask(key, payload)
            if first == _WHOLE_BINARY:
                events.append(Binary(payload))
            elif payload.isascii() or _is_utf8(payload):
                append(payload)
            else:
                return self._to_protocol(data, position, end, texts)
            position = end
        self.more = position < size
        return position

    def _declare(self, length: int) -> None:
        """Count a data frame into the message under way; above the limit keep only the head of that message."""
        self._declared += length
        if self._message is None:
            self._message = io.BytesIO()
        if self._declared > self.max_message:
            self.skip_message()

    def skip_message(self) -> None:
        """Keep only the head of the message under way, if there is one; it ends in an oversize report."""
        if self._message is None or self._skipping:
            return
        self._skipping = True
        head = self._message.getvalue()[:OVERSIZE_HEAD]
        self._message = io.BytesIO()
        self._message.write(head)

    def _to_protocol(self, data: bytes, position: int, end: int, texts: list[bytes]) -> int:
        """Give wsproto what has come of the frame that stretches to `end`; return where its bytes end in `data`."""
        reached = min(end, len(data))
        self._strict_left = end - reached
        self._protocol.receive_data(data[position:reached])
        for event in self._protocol.events():
            if isinstance(event, TextMessage):
                self._extend(event.data.encode(), event.message_finished, texts.append)
            elif isinstance(event, BytesMessage):
                self._extend(bytes(event.data), event.message_finished, self._append_binary)
            elif isinstance(event, Ping):
                if self._protocol.state is ConnectionState.OPEN:
                    self.replies.append(bytes(self._protocol.send(event.response())))
            elif isinstance(event, PongEvent):
                self.events.append(Pong(bytes(event.payload)))
            elif isinstance(event, CloseConnection):
                by_peer = self._protocol.state in (ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED)
                reason = event.reason or ""
                if not by_peer and event.code == CloseCode.INVALID_TEXT:
                    # wsproto's wording depends on how the bytes were cut into chunks.
                    reason = "text that is not UTF-8"
                self.ended = Ended(int(event.code), reason, by_peer)
                self._message, self._strict_left = None, 0
                break
        return reached

    def _append_binary(self, data: bytes) -> None:
        self.events.append(Binary(data))

    def _extend(self, data: bytes, finished: bool, deliver: Callable[[bytes], None]) -> None:
        """Add a piece to the message under way, and deliver the message with its last piece."""
        message = self._message
        assert message is not None, "wsproto reports data only inside a frame that was declared"
        if self._skipping:
            message.write(data[: OVERSIZE_HEAD - message.tell()])
            if not self._reported and (finished or message.tell() == OVERSIZE_HEAD):
                self._reported = True
                self.events.append(Oversize(message.getvalue(), self._declared))
        else:
            message.write(data)
        if finished:
            self._message = None
            self._declared = 0
            if not self._skipping:
                # getvalue() hands out the buffer itself: no copy, however long the message was.
                deliver(message.getvalue())
            self._skipping = self._reported = False

    def ping(self, payload: bytes) -> bytes:
        """A framed ping with `payload` (at most 125 bytes)."""
        return bytes(self._protocol.send(Ping(payload)))

    def close(self, code: int, reason: str = "") -> bytes:
        """A framed Close, ours or the answer to the peer's; empty if one was sent before.

        `NO_STATUS` makes a Close without a code; `reason` is cut to the 123 bytes that fit.
        """
        if self._protocol.state not in (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING):
            return b""
        if code == CloseCode.NO_STATUS:
            return bytes(self._protocol.send(CloseConnection(CloseReason.NO_STATUS_RCVD)))
        return bytes(self._protocol.send(CloseConnection(code, reason)))
