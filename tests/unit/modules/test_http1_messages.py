"""HTTP/1.1 messages without I/O: the same bytes to our parser and to h11, which must never be the stricter one."""

from typing import Final

import h11
import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_trio.modules.http.http1_messages import RequestParser, ResponseFraming, refusal
from iii_trio.protocol.limits import HANDSHAKE_HEAD

Fields = tuple[tuple[bytes, bytes], ...]


@frozen
class Told:
    """One request as an application would get it; `whole`: its end has been seen."""

    method: str
    target: bytes
    version: str
    headers: Fields
    body: bytes
    whole: bool


@frozen
class Verdict:
    """What a parser makes of some bytes: the requests, and the status by which it refuses what follows them."""

    requests: tuple[Told, ...]
    refused: int | None = None


def ours(data: bytes, step: int = 64 * 1024) -> Verdict:
    parser = RequestParser()
    requests = []
    for start in range(0, len(data), step):
        parser.feed(data[start : start + step])
        requests += parser.arrived
        parser.arrived.clear()
    told = tuple(Told(r.method, r.target, r.version, tuple(r.headers), r.take(), r.complete) for r in requests)
    refused = parser.refused.status if parser.refused is not None else None
    parser.close()
    return Verdict(told, refused)


def theirs(data: bytes) -> Verdict:
    """The verdict of h11 at the bounds that it had, with an answer to each request.

    Empty lines before a request are taken out: RFC 9112 wants them passed over, as llhttp does and h11 does not.
    """
    requests: list[Told] = []
    while data := data.lstrip(b"\r\n"):
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HANDSHAKE_HEAD)
        connection.receive_data(data)
        head: h11.Request | None = None
        body = b""
        event: object = None
        refused = None
        while event not in (h11.NEED_DATA, h11.PAUSED) and not isinstance(event, h11.EndOfMessage):
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError as error:
                refused = error.error_status_hint
                break
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
        whole = isinstance(event, h11.EndOfMessage)
        if head is not None:
            method, version = head.method.decode(), head.http_version.decode()
            requests.append(Told(method, head.target, version, tuple(head.headers), body, whole))
        if not whole:
            return Verdict(tuple(requests), refused)
        connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        connection.send(h11.EndOfMessage())
        if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
            break
        data = connection.trailing_data[0]
    return Verdict(tuple(requests))


GET: Final = b"GET / HTTP/1.1\r\nhost: x\r\n"
POST: Final = b"POST /p?q=1 HTTP/1.1\r\nHost: x\r\n"
CHUNKED: Final = POST + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT: Final = b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n"

ALIKE: Final = {
    "nothing": b"\r\n",
    "half a head": GET,
    "no body": GET + b"\r\n",
    "target and query": b"GET /a%20b/c;d?e=f&g HTTP/1.1\r\nhost: x\r\n\r\n",
    "absolute target": b"GET http://x/y HTTP/1.1\r\nhost: x\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    "http/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "http/1.0 and more": b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" + NEXT,
    "http/1.0 and an offer": b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"
    + GET
    + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "a body": POST + b"content-length: 5\r\n\r\nhello",
    "a body and a request": POST + b"content-length: 5\r\n\r\nhello" + NEXT,
    "half a body": POST + b"content-length: 5\r\n\r\nhel",
    "length zero": POST + b"content-length: 0\r\n\r\n" + NEXT,
    "chunks": CHUNKED + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n" + NEXT,
    "half a chunk": CHUNKED + b"5\r\nab",
    "a chunk's extension": CHUNKED + b'3;a=b;c="d"\r\nabc\r\n0\r\n\r\n' + NEXT,
    "trailers": CHUNKED + b"3\r\nabc\r\n0\r\nhost: evil\r\nz:\r\n\r\n" + NEXT,
    "chunked in capitals": POST + b"TRANSFER-ENCODING: chunked\r\n\r\n0\r\n\r\n",
    "pipelined": NEXT * 5,
    "closing": GET + b"connection: close\r\n\r\n" + NEXT,
    "closing, with a body": POST + b"connection: close\r\ncontent-length: 2\r\n\r\nok" + NEXT,
    "an offer of websocket": GET + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\r\n",
    "fields": GET
    + b"Accept: a, b\r\nEmpty:\r\nspaced:  \t v w \t \r\nobs: \xe9\r\nx_y.z!: 1\r\ncookie: a\r\ncookie: b\r\n\r\n",
    "expecting": POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\nok",
    "a line break before": b"\r\n" + NEXT,
    "no http": b"\x00\xff\x16\x03\x01\r\n\r\n",
    "not even that": b"hello\r\n\r\n",
    "http/0.9": b"GET /\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"host: y\r\n\r\n",
    "a target with a space": b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target with a control character": b"GET /\x01 HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target that is no ascii": b"GET /\xc3\xa9 HTTP/1.1\r\nhost: x\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nhost: x\r\n\r\n",
    "a space before the colon": GET + b"a : b\r\n\r\n",
    "no colon": GET + b"bad header\r\n\r\n",
    "no name": GET + b": b\r\n\r\n",
    "a name with a bracket": GET + b"a(: b\r\n\r\n",
    "a name that is no ascii": GET + b"\xe9: b\r\n\r\n",
    "a null byte": GET + b"a: b\x00c\r\n\r\n",
    "a bare CR in a value": GET + b"a: b\rc: d\r\n\r\n",
    "a bare CR in a name": GET + b"a\r: b\r\n\r\n",
    "a folded first line": b"GET / HTTP/1.1\r\n host: x\r\n\r\n",
    "lengths that differ": POST + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "a list of lengths that differ": POST + b"content-length: 1, 2\r\n\r\nab",
    "a signed length": POST + b"content-length: +1\r\n\r\na",
    "a negative length": POST + b"content-length: -1\r\n\r\na",
    "a length with a space": POST + b"content-length: 1 1\r\n\r\na",
    "a length in hexadecimal": POST + b"content-length: 0x1\r\n\r\na",
    "no length": POST + b"content-length:\r\n\r\na",
    "a length beyond measure": POST + b"content-length: 99999999999999999999999\r\n\r\na",
    "another coding": POST + b"transfer-encoding: gzip\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked, and then another": POST + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, nearly": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, with a tab before": POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a bad chunk size": CHUNKED + b"zz\r\nab\r\n0\r\n\r\n",
    "a negative chunk size": CHUNKED + b"-1\r\nab\r\n0\r\n\r\n",
    "a prefixed chunk size": CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n",
    "a chunk size beyond measure": CHUNKED + b"f" * 30 + b"\r\nab\r\n0\r\n\r\n",
    "more than a chunk": CHUNKED + b"1\r\nab0\r\n\r\n",
    "a good request and a bad one": NEXT + b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    "an endless head": GET + b"x: " + b"x" * 200_000,
    "endless fields": GET + b"a: b\r\n" * 30_000,
    "an endless target": b"GET /" + b"x" * 200_000,
    "an endless extension of a chunk": CHUNKED + b"1;" + b"x" * 200_000,
    "an endless trailer": CHUNKED + b"0\r\nx: " + b"x" * 200_000,
}
"""Where both come to the same verdict."""

STRICTER: Final = {
    "length and chunked": POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
    "chunked and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + NEXT,
    "chunked in http/1.0": b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "the same length twice": POST + b"content-length: 1\r\ncontent-length: 1\r\n\r\na",
    "a list of the same length": POST + b"content-length: 1, 1\r\n\r\na",
    "a folded line": GET + b"a: b\r\n c\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\nhost: x\n\n",
    "bare LF between fields": b"GET / HTTP/1.1\r\nhost: x\na: b\r\n\r\n",
    "a delete": GET + b"a: b\x7fc\r\n\r\n",
    "a length among the trailers": CHUNKED + b"0\r\ncontent-length: 9\r\n\r\n",
    "a control character": GET + b"a: b\x01c\r\n\r\n",
    "a method unknown to HTTP": b"FROB / HTTP/1.1\r\nhost: x\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nhost: x\r\n\r\n",
    "another version": b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
    "the preface of http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a space behind a chunk size": CHUNKED + b"1 \r\na\r\n0\r\n\r\n",
    "a target that is none": b"GET foo HTTP/1.1\r\nhost: x\r\n\r\n",
}
"""What h11 lets in and we refuse."""


@pytest.mark.parametrize("data", ALIKE.values(), ids=ALIKE)
def test_both_come_to_the_same_verdict(data: bytes) -> None:
    verdict, reference = ours(data), theirs(data)
    assert verdict.requests == reference.requests
    assert (verdict.refused is None) == (reference.refused is None)
    assert (verdict.refused == 431) == (reference.refused == 431)


@pytest.mark.parametrize("data", STRICTER.values(), ids=STRICTER)
def test_what_only_we_refuse(data: bytes) -> None:
    verdict, reference = ours(data), theirs(data)
    assert verdict.refused is not None
    assert reference.refused is None or len(verdict.requests) < len(reference.requests)


@pytest.mark.parametrize("data", [*ALIKE.values(), *STRICTER.values()], ids=[*ALIKE, *STRICTER])
def test_it_does_not_matter_in_which_pieces_bytes_come(data: bytes) -> None:
    if len(data) < 1000:
        assert {step: ours(data, step) for step in (1, 2, 3, 7, 50)} == dict.fromkeys((1, 2, 3, 7, 50), ours(data))
    else:
        assert (ours(data, 997).refused, ours(data).refused) == (431, 431)


PIECES: Final = [
    b"GET ", b"POST ", b"HEAD ", b"/", b"/a?b", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"host: x\r\n", b"Host:y\r\n",
    b"content-length: 3\r\n", b"Content-Length: 0\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n",
    b"connection: keep-alive\r\n", b"connection: upgrade\r\nupgrade: x\r\n", b"\r\n", b"\n", b"\r", b"\t", b":",
    b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\nt: u\r\n\r\n", b"x: \x01\r\n", b"x: \xff\r\n", b" folded\r\n", b";e=1",
    GET, CHUNKED, NEXT, POST + b"content-length: 3\r\n\r\nabc",
]  # fmt: skip
"""Bytes of which requests and near-requests are made."""


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12), step=st.integers(1, 40))
def test_h11_is_never_the_stricter_one(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    verdict, reference = ours(data), theirs(data)
    assert ours(data, step) == verdict
    if verdict.refused is None:
        assert reference == verdict
    whole = tuple(request for request in verdict.requests if request.whole)
    assert whole == tuple(request for request in reference.requests if request.whole)[: len(whole)]


# -- offers to switch protocols ---------------------------------------------------------------------------------------

OFFER: Final = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"


@pytest.mark.parametrize("step", [1, 5, 64, 1000])
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"", b""),
        (b"content-length: 5\r\n", b"GET /"),
        (b"transfer-encoding: chunked\r\n", b"5\r\nGET /\r\n0\r\nt: u\r\n\r\n"),
    ],
    ids=["no body", "length", "chunks"],
)
def test_an_offer_to_switch_is_passed_over_and_hides_no_request_in_a_body(
    framing: bytes, body: bytes, step: int
) -> None:
    data = (POST + OFFER + framing + b"\r\n" + body) * 2 + NEXT
    verdict = ours(data, step)
    assert verdict == theirs(data)
    assert [request.body for request in verdict.requests] == [b"GET /" if body else b""] * 2 + [b""]


def test_connect_is_a_request_like_all_others() -> None:
    verdict = ours(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n" + NEXT)
    assert [(request.method, request.target) for request in verdict.requests] == [
        ("CONNECT", b"x:1"),
        ("GET", b"/next"),
    ]


def test_chunked_may_be_written_in_capitals() -> None:
    assert ours(POST + b"transfer-encoding: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\n").requests[0].body == b"a"


# -- responses --------------------------------------------------------------------------------------------------------


def response(
    method: str, version: str, status: int, headers: list[tuple[bytes, bytes]], *parts: bytes, last: bool = False
) -> tuple[bytes, bool]:
    framing = ResponseFraming(method, version, last)
    data = framing.head(status, headers) + b"".join(framing.part(part) for part in parts) + framing.end()
    return data, framing.last


def read(method: str, data: bytes) -> tuple[int, dict[bytes, bytes], bytes, bool]:
    """What an h11 client makes of a response: status, header fields, body, and whether the connection may be used on."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    if event is h11.NEED_DATA:
        client.receive_data(b"")
        event = client.next_event()
    assert isinstance(event, h11.EndOfMessage)
    return head.status_code, dict(head.headers), body, client.their_state is h11.DONE


LENGTH: Final = (b"content-length", b"6")


@pytest.mark.parametrize(
    ("method", "version", "status", "headers", "body", "reused"),
    [
        ("GET", "1.1", 200, [LENGTH], b"abcdef", True),
        ("GET", "1.1", 200, [], b"abcdef", True),
        ("GET", "1.0", 200, [], b"abcdef", False),
        ("GET", "1.1", 200, [LENGTH, (b"connection", b"close")], b"abcdef", False),
        ("HEAD", "1.1", 200, [LENGTH], b"", True),
        ("HEAD", "1.1", 200, [], b"", True),
        ("GET", "1.1", 204, [LENGTH], b"", True),
        ("GET", "1.1", 304, [LENGTH], b"", True),
        ("GET", "1.1", 799, [LENGTH], b"abcdef", True),
    ],
)
def test_responses_are_read_as_they_were_meant(
    method: str, version: str, status: int, headers: list[tuple[bytes, bytes]], body: bytes, reused: bool
) -> None:
    parts = (b"abc", b"", b"def")
    data, last = response(method, version, status, headers, *parts, last=version == "1.0")
    got = read(method, data)
    assert (got[0], got[2], got[3]) == (status, body, reused)
    assert last is not reused
    assert got[1][b"date"].endswith(b" GMT")
    assert (b"content-length" in got[1]) == (bool(headers) and status != 204)
    assert (b"transfer-encoding" in got[1]) == (not headers and version == "1.1")


def test_a_refusal_ends_the_connection() -> None:
    status, headers, body, reused = read("GET", refusal(431, [(b"a", b"b")], b"why"))
    assert (status, headers[b"a"], body, reused) == (431, b"b", b"why", False)


@pytest.mark.parametrize(("name", "value"), [(b"a", b"b\r\nc: d"), (b"a", b"b\nc"), (b"a", b"b\rc"), (b"a\r\nb", b"c")])
def test_a_header_field_cannot_split_a_response(name: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="line break"):
        ResponseFraming("GET", "1.1", last=False).head(200, [(name, value)])


@pytest.mark.parametrize("parts", [(b"abcdefg",), (b"abcdef", b"g"), (b"abcde",), ()])
def test_a_body_has_the_length_that_was_declared(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match="than its content-length"):
        response("GET", "1.1", 200, [LENGTH], *parts)
