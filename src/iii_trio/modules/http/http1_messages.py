"""HTTP/1.1 on the wire, without I/O: requests as they arrive, and how a response is put down (RFC 9112).

Requests are parsed by llhttp, the parser of Node.js, through httptools. It is strict by itself: one length or chunked
coding but not both, no folded lines, no bare CR or LF, no space before a colon, no control characters. What it leaves
open is judged here: versions, the one `host`, and every transfer coding but chunked. It sets no bounds, so a head, a
trailer or a chunk's extension that goes on for longer than `HANDSHAKE_HEAD` is refused here as well.
"""

import time
from collections import deque
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from attrs import define, field
from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from ...protocol.limits import HANDSHAKE_HEAD

Fields = list[tuple[bytes, bytes]]
"""Header fields in order, names in lower case."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"host", b"expect"})
_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode("ascii") for s in HTTPStatus}


class Refused(Exception):
    """The client has sent what is no request; `status` is the answer, after which its connection ends."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# -- requests ---------------------------------------------------------------------------------------------------------


@define(eq=False)
class Arriving:
    """One request: its head, and as much of its body as has come and was not taken yet.

    `length` is the declared length of the body, None when it comes in chunks. `expects`: the client waits for
    `CONTINUE` before it sends the body. `keep_alive`: it may send another request on the connection.
    """

    method: str
    target: bytes
    version: str
    headers: Fields
    length: int | None
    expects: bool
    keep_alive: bool
    complete: bool = field(default=False, init=False)
    held: int = field(default=0, init=False)
    _chunks: list[bytes] = field(factory=list, init=False)

    def add(self, data: bytes) -> None:
        """Some more of the body has come."""
        self._chunks.append(data)
        self.held += len(data)

    def take(self) -> bytes:
        """What has come of the body, once."""
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.held = 0
        return data


@define(eq=False)
class RequestParser:
    """The requests of one connection: bytes are fed, and requests come to stand in `arrived` once their heads are here.

    `refused` is set, for good, where a client does not speak HTTP; what came before it counts. What follows a request
    that is the connection's last one is ignored.
    """

    arrived: deque[Arriving] = field(factory=deque, init=False)
    refused: Refused | None = field(default=None, init=False)
    _llhttp: HttpRequestParser = field(init=False)
    _target: bytes = field(default=b"", init=False)
    _headers: Fields = field(factory=list, init=False)
    _current: Arriving | None = field(default=None, init=False)
    _offered: bool = field(default=False, init=False)
    _over: bool = field(default=False, init=False)
    _moved: bool = field(default=False, init=False)
    _standing: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._llhttp = HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        """Take in what has come."""
        self._moved = False
        try:
            while data and not (self.refused or self._over):
                try:
                    self._llhttp.feed_data(data)
                except HttpParserUpgrade as offer:
                    data = data[offer.args[0] :]
                    self._decline()
                else:
                    break
        except HttpParserCallbackError as error:
            if not isinstance(error.__context__, Refused):
                raise
            self.refused = error.__context__
        except HttpParserError as error:
            if not self._over:
                status = 501 if isinstance(error, HttpParserInvalidMethodError) else 400
                self.refused = Refused(status, str(error))
        self._standing = 0 if self._moved else self._standing + len(data)
        if self._standing > HANDSHAKE_HEAD and self.refused is None:
            self.refused = Refused(431, f"the head is longer than {HANDSHAKE_HEAD} bytes")

    def close(self) -> None:
        """Nothing will be fed any more: let go of the parser, which refers to this object."""
        del self._llhttp

    def _decline(self) -> None:
        """Ignore an offer to switch protocols.

        llhttp takes what follows one for another protocol: a new parser, which learns of the request's body from a head
        of our own, goes on after it.
        """
        if self._current is None:
            return  # behind the last request, which HTTP/1.0 may have asked us to keep the connection for
        length = self._current.length
        framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
        self._offered = False
        self._llhttp = HttpRequestParser(self)
        self._llhttp.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n")

    # called by llhttp; while there is a current request, header fields are its trailers, or those of `_decline`

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field, or one of the trailers, which are dropped."""
        if self._current is None:
            self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is here. Raises `Refused`."""
        target, self._target = self._target, b""
        if self._current is not None or self._over:
            return
        headers, self._headers = self._headers, []
        self._moved = True
        version = self._llhttp.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Refused(505, f"HTTP/{version} is not spoken here")
        hosts, length, expects = 0, 0, False
        chunked = False
        for name, value in headers:
            if name not in _FRAMING:
                continue
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked" or chunked or version == "1.0":
                    raise Refused(501, "no transfer coding is understood but one `chunked`, of HTTP/1.1")
                chunked = True
            else:
                expects = value.lower() == b"100-continue" and version == "1.1"
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Refused(400, "a request has one `host`")
        self._current = Arriving(
            method=self._llhttp.get_method().decode("ascii"),
            target=target,
            version=version,
            headers=headers,
            length=None if chunked else length,
            expects=expects,
            keep_alive=version == "1.1" and self._llhttp.should_keep_alive(),
        )
        self._offered = self._llhttp.should_upgrade()
        self.arrived.append(self._current)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._moved = True
        if self._current is not None:
            self._current.add(data)

    def on_message_complete(self) -> None:
        """The request is here as a whole."""
        if self._current is None or self._offered:
            return
        self._moved = True
        self._current.complete = True
        self._over = not self._current.keep_alive
        self._current = None


# -- responses --------------------------------------------------------------------------------------------------------


@define(eq=False)
class ResponseFraming:
    """How one response is put on the wire. `last` says that its connection ends after it.

    It goes by the length that its header fields declare, else in chunks, else (HTTP/1.0) up to the end of the
    connection. A body that HTTP does not allow is left out: the answer to HEAD, 204 and 304.
    """

    _method: str
    _version: str
    last: bool
    _silent: bool = field(default=False, init=False)
    _chunked: bool = field(default=False, init=False)
    _left: int | None = field(default=None, init=False)

    def head(self, status: int, headers: Fields) -> bytes:
        """The status line and all header fields. Raises `ValueError` for a field that holds a line break."""
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        bodiless = status in (204, 304)
        length: int | None = None
        for name, value in headers:
            if name == b"content-length":
                if status == 204:
                    continue
                length = int(value)
            elif name == b"connection":
                self.last = self.last or b"close" in value.lower()
                continue
            elif name == b"transfer-encoding":
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if length is None and not bodiless:
            self._chunked = self._version == "1.1"
            self.last = self.last or not self._chunked
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        self._silent = bodiless or self._method == "HEAD"
        self._left = length
        lines.append(_date(int(time.time())))
        lines.append(b"connection: close\r\n\r\n" if self.last else b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) + self.last or head.count(b"\r") != len(lines) + self.last:
            raise ValueError("a header field of a response holds a line break")
        return head

    def part(self, data: bytes) -> bytes:
        """Some of the body. Raises `ValueError` for more than was declared."""
        if self._silent or not data:
            return b""
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise ValueError("the body of a response is longer than its content-length")
        return data

    def end(self) -> bytes:
        """What follows the body. Raises `ValueError` for less than was declared."""
        if self._silent:
            return b""
        if self._left:
            raise ValueError("the body of a response is shorter than its content-length")
        return b"0\r\n\r\n" if self._chunked else b""


def refusal(status: int, headers: Fields, body: bytes) -> bytes:
    """A response after which the connection ends."""
    framing = ResponseFraming("GET", "1.1", last=True)
    return framing.head(status, [*headers, (b"content-length", b"%d" % len(body))]) + framing.part(body)


@lru_cache(maxsize=2)
def _date(second: int) -> bytes:
    return b"date: %b\r\n" % formatdate(second, usegmt=True).encode("ascii")
