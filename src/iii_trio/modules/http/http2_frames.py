"""What a client's HTTP/2 frames may cost, looked at before they are parsed. No I/O.

Why this stands in front of `h2`. That library keeps the protocol's rules; what it leaves open is what a hostile client
does within them. It takes in a whole frame before it finds it too long; it counts no frames that make work and carry
nothing (resets, pings, settings, priorities, empty data); every setting of an unknown kind takes memory; and after a
client's GOAWAY it lets no response through that is still under way. So frames are followed here, by their heads alone:
too long ones are refused when they begin, the others are paid for, and a GOAWAY is noted and goes no further.
"""

from collections.abc import Iterator
from typing import Final

from attrs import define, field
from h2.errors import ErrorCodes

from ...protocol.limits import HANDSHAKE_HEAD, HTTP2_FRAME, HTTP2_NUISANCE, HTTP2_SETTINGS

PREFACE: Final = 24
HEAD: Final = 9
STEP_FRAMES: Final = 64
"""Frames that are handed on at once; other tasks run between."""
REFILL: Final = 100.0
"""What comes back of `HTTP2_NUISANCE` in a second."""
SETTINGS_BYTES: Final = 32 * 6

_DATA, _HEADERS, _SETTINGS, _GOAWAY, _CONTINUATION = 0, 1, 4, 7, 9
_END: Final = 0x1
"""END_STREAM of a DATA frame."""
_SETTINGS_COST: Final = 10
_EARNED: Final = 2
RESET_COST: Final = 3
"""For a request that was under way, more than it has earned: who only asks and resets runs out. Others are noise."""


class Refused(Exception):
    """The client does what nobody has to put up with; the connection ends with `code`."""

    def __init__(self, code: ErrorCodes, text: str) -> None:
        super().__init__(text)
        self.code = code


@define(eq=False)
class Frames:
    """Follows the frames of one client. `goaway`: it has said that it will ask for nothing more.

    `now` is the Trio time at which the client may begin to spend.
    """

    _now: float
    goaway: bool = field(default=False, init=False)
    _left: int = field(default=PREFACE, init=False)
    _dropping: bool = field(default=False, init=False)
    _head: bytes = field(default=b"", init=False)
    _block: int = field(default=0, init=False)
    _settings: int = field(default=0, init=False)
    _purse: float = field(default=HTTP2_NUISANCE, init=False)

    def earn(self) -> None:
        """A frame of data has gone to the client, who may answer it with updates of its windows."""
        self._purse = min(HTTP2_NUISANCE, self._purse + _EARNED)

    def spend(self, points: int) -> None:
        """Raises `Refused` when the client has spent more than it had."""
        self._purse -= points
        if self._purse < 0:
            raise Refused(ErrorCodes.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def follow(self, data: bytes, now: float) -> Iterator[bytes]:
        """The bytes to parse, in steps of a bounded number of frames. Raises `Refused`; what came before it counts."""
        self._purse = min(HTTP2_NUISANCE, self._purse + (now - self._now) * REFILL)
        self._now = now
        at, frames = 0, 0
        step: list[bytes] = []
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                if not self._dropping:
                    step.append(part)
                continue
            part = data[at : at + HEAD - len(self._head)]
            at += len(part)
            self._head += part
            if len(self._head) < HEAD:
                break
            head, self._head = self._head, b""
            try:
                self._begin(head)
            except Refused:
                if step:
                    yield b"".join(step)
                raise
            if not self._dropping:
                step.append(head)
            frames += 1
            if frames == STEP_FRAMES:
                yield b"".join(step)
                step, frames = [], 0
        if step:
            yield b"".join(step)

    def _begin(self, head: bytes) -> None:
        length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        self._left = length
        self._dropping = kind == _GOAWAY
        if length > HTTP2_FRAME:
            raise Refused(ErrorCodes.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
        if kind in (_HEADERS, _CONTINUATION):
            self._block = length if kind == _HEADERS else self._block + length
            if self._block > HANDSHAKE_HEAD:
                raise Refused(ErrorCodes.ENHANCE_YOUR_CALM, f"the head of a request is {self._block} bytes long")
            self._purse = min(HTTP2_NUISANCE, self._purse + _EARNED)
        elif kind == _DATA:
            if length == 0 and not flags & _END:
                self.spend(1)
        elif kind == _GOAWAY:
            self.goaway = True
        else:
            self.spend(_SETTINGS_COST if kind == _SETTINGS else 1)
            if kind == _SETTINGS:
                self._settings += 1
                if self._settings > HTTP2_SETTINGS or length > SETTINGS_BYTES:
                    raise Refused(ErrorCodes.ENHANCE_YOUR_CALM, "too many settings")
