"""HTTP requests to handler inputs, handler results to HTTP responses (spec/http.md §7, §8, §11, §13). No I/O."""

import logging
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import frozen

from ...protocol import Json, codec
from ...protocol.errors import ProtocolError
from ...protocol.limits import MAX_DEPTH
from ...protocol.scan import MAX_DIGITS, deeper_than, has_endless_number
from .routes import Match

log = logging.getLogger(__name__)

Headers = tuple[tuple[bytes, bytes], ...]
"""Header fields of a response in order, names in lower case."""

JSON_TYPE: Final = b"application/json"
MAX_BODY_DEPTH: Final = MAX_DEPTH - 2
"""Levels a JSON body may nest: a worker gets it inside the handler's input inside a frame."""
NOT_FORWARDED: Final = frozenset(
    {
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Header fields a handler does not decide: they belong to the connection, and the server writes length and date."""

_FIELDS: Final = frozenset({"status_code", "statusCode", "headers", "body"})
_ID: Final = re.compile(r"[!-~]{1,128}")
_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_ID_HEAD: Final = secrets.token_hex(8)
_SERIALS: Final = count(secrets.randbits(32))
"""Ids of requests are unique, in all logs that there are, and no secret."""
_BYTE: Final = re.compile(r"\s*\(byte (\d+)\)")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


# -- requests ---------------------------------------------------------------------------------------------------------


@frozen
class Request:
    """A request's head. `path` is raw, without the query.

    A header that came several times has its values joined as HTTP joins them. `scheme` and `client` (an address, or "")
    are those of the connection, or what a trusted proxy says of them. `id` names the request in logs, "" for none.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    scheme: str = "http"
    client: str = ""
    http_version: str = "1.1"
    id: str = ""

    @property
    def query_params(self) -> dict[str, str | list[str]]:
        """The decoded query; a key that came several times has the list of its values."""
        params: dict[str, str | list[str]] = {}
        if self.query:
            for name, value in parse_qsl(self.query, keep_blank_values=True):
                before = params.get(name)
                if before is None:
                    params[name] = value
                elif isinstance(before, list):
                    before.append(value)
                else:
                    params[name] = [before, value]
        return params

    @property
    def media_type(self) -> str:
        """The content type in lower case, without its parameters; "" for none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def origin(self) -> str | None:
        """The `Origin` header."""
        return self.headers.get("origin")

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks what it may send."""
        return "access-control-request-method" in self.headers and "origin" in self.headers

    @property
    def has_json(self) -> bool:
        """Whether the body is JSON by its content type: `application/json` or any `+json`, in any case (§8)."""
        media_type = self.media_type
        return media_type == "application/json" or media_type.endswith("+json")

    @property
    def length(self) -> int | None:
        """The declared length of the body in bytes; 0 when the head announces none, None when it comes in chunks."""
        if "transfer-encoding" in self.headers:
            return None
        declared = self.headers.get("content-length", "0")
        return int(declared) if declared.isdecimal() else 0

    @property
    def traceparent(self) -> str | None:
        """The trace context to pass on, if it is well-formed."""
        value = self.headers.get("traceparent")
        return value if value is not None and _TRACEPARENT.fullmatch(value) else None

    @property
    def baggage(self) -> str | None:
        """The `baggage` header, if it says anything."""
        return self.headers.get("baggage") or None


def read_request(scope: Mapping[str, Any], id_header: str = "", trust_proxy: bool = False) -> Request:
    """The head of an ASGI `http` scope.

    With an `id_header` the request has an id: the client's own where it is fit to be logged, else a new one, which then
    stands among the headers.
    """
    headers = _texts(scope["headers"])
    raw = scope.get("raw_path") or scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    if not path.startswith("/") and "://" in path:
        # the absolute form, as clients of a proxy send it
        path = "/" + path.partition("://")[2].partition("/")[2]
    client = scope.get("client")
    address = client[0] if client else ""
    scheme = scope.get("scheme", "http")
    if trust_proxy:
        # the last entry is the one that the proxy in front of us has written; those before it anybody can make up
        address = headers.get("x-forwarded-for", "").rpartition(",")[2].strip() or address
        scheme = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower() or scheme
    request_id = ""
    if id_header:
        id_header = id_header.lower()
        request_id = headers.get(id_header, "")
        if not _ID.fullmatch(request_id):
            request_id = headers[id_header] = f"{_ID_HEAD}{next(_SERIALS):016x}"
    return Request(
        scope["method"].upper(),
        path,
        scope.get("query_string", b"").decode("latin-1"),
        headers,
        scheme,
        address,
        scope.get("http_version", "1.1"),
        request_id,
    )


def _texts(fields: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Header fields as text: UTF-8 as today's clients send it, else Latin-1 as HTTP had it once.

    The values of a field that came several times are joined.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        try:
            name, value = raw_name.decode().lower(), raw_value.decode()
        except UnicodeDecodeError:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        if name in headers:
            value = headers[name] + ("; " if name == "cookie" else ", ") + value
        headers[name] = value
    return headers


class BadRequest(ValueError):
    """The request is not what it says it is; the text says where, and is for its client."""


def check_json(body: bytes) -> None:
    """Raises `BadRequest` unless `body` is one JSON value that every peer can take; the text names the position."""
    try:
        codec.decode_value(body)
    except ProtocolError as error:
        raise BadRequest(f"the body is not valid JSON: {_position(body, str(error))}") from None
    if body.count(b"[") + body.count(b"{") > MAX_BODY_DEPTH and deeper_than(body, MAX_BODY_DEPTH):
        raise BadRequest(f"the body nests deeper than {MAX_BODY_DEPTH} levels")
    if has_endless_number(body):
        raise BadRequest(f"the body holds a number of {MAX_DIGITS} digits or more")


def _position(body: bytes, text: str) -> str:
    """What the parser said, with line and column where it has named a byte, or where UTF-8 ends."""
    found = _BYTE.search(text)
    at = int(found[1]) if found else None
    try:
        body.decode()
    except UnicodeDecodeError as error:
        if at is None or error.start <= at:
            at, text = error.start, "it is not UTF-8"
    if at is None:
        if "truncated" not in text:
            return text or "nested too deeply"
        at = len(body)
    line = body.count(b"\n", 0, at) + 1
    column = at - body.rfind(b"\n", 0, at)
    return f"{_BYTE.sub('', text).strip()} at byte {at} (line {line}, column {column})"


def handler_input(request: Request, match: Match, body: bytes = b"", context: Mapping[str, Any] | None = None) -> Json:
    """What a condition is called with, and a handler too, which gets the refs of its channels besides (§7).

    `body` is JSON text, or nothing: null. `path` is the registered text; the request's own stands in `request`, with
    its query, scheme, client address, version and id. `context` is there if there was a middleware.
    """
    text = match.route.pattern.text
    fields = {
        "query_params": request.query_params,
        "path_params": match.params,
        "headers": request.headers,
        "path": text,
        "method": request.method,
        "trigger": {"type": "http", "path": text, "method": match.route.method},
        "request": {
            "path": request.path,
            "query": request.query,
            "scheme": request.scheme,
            "client": request.client,
            "http_version": request.http_version,
            "id": request.id,
        },
    }
    if context is not None:
        fields["context"] = context
    return Json(codec.encode_value(fields)[:-1] + b',"body":' + (body or b"null") + b"}")


# -- responses --------------------------------------------------------------------------------------------------------


@frozen
class Response:
    """What is sent. The length is added when it is written; a `close` response ends its connection."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    close: bool = False

    @property
    def has_body(self) -> bool:
        """False for the statuses that HTTP defines without content."""
        return self.status not in (204, 304)


def from_result(result: Any) -> Response:
    """The response a handler's result describes (§11): `{"status_code"?, "headers"?, "body"?}`, all optional.

    `statusCode` is taken for `status_code`; without a `body` it is `{}`. A result that has none of these keys is the
    body itself. A status that cannot be sent, one below 200 included, becomes 200; header fields that cannot be sent
    are left out.
    """
    fields = result if isinstance(result, dict) and not _FIELDS.isdisjoint(result) else {"body": result}
    headers = tuple(headers_of(fields.get("headers")))
    body = fields.get("body", {})
    given = any(name == b"content-type" for name, _ in headers)
    if not given:
        return Response(status_of(fields), ((b"content-type", JSON_TYPE), *headers), codec.encode_value(body))
    if isinstance(body, str):
        content = body.encode("utf-8", "replace")
    else:
        content = b"" if body is None else codec.encode_value(body)
    return Response(status_of(fields), headers, content)


def is_header_name(name: str) -> bool:
    """Whether HTTP allows a header of that name."""
    return _NAME.fullmatch(name) is not None


def status_of(fields: Mapping[str, Any]) -> int:
    status = fields.get("status_code", fields.get("statusCode"))
    if status is None:
        return 200
    number = int(status) if isinstance(status, float) and status.is_integer() else status
    if isinstance(number, str) and _DIGITS.fullmatch(number):
        number = int(number)
    if isinstance(number, int) and not isinstance(number, bool) and 200 <= number <= 999:
        return number
    log.warning("a handler returned the status %r, which cannot be sent: 200 is sent instead", status)
    return 200


def headers_of(given: Any) -> Iterator[tuple[bytes, bytes]]:
    for name, value in _pairs(given):
        lower = name.lower().encode("ascii", "replace")
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            log.warning("a handler returned the header %r, which cannot be sent: it is left out", name)
        elif lower not in NOT_FORWARDED:
            yield lower, value.strip().encode("ascii")


def stream_headers(given: Mapping[str, str]) -> tuple[Headers, int | None]:
    """The header fields that a response channel has set, and the length they declare for the body, if they do."""
    headers = tuple(headers_of(given))
    for name, value in given.items():
        if name.strip().lower() == "content-length" and _DIGITS.fullmatch(value.strip()):
            length = int(value)
            return (*headers, (b"content-length", b"%d" % length)), length
    return headers, None


def _pairs(given: Any) -> Iterator[tuple[str, str]]:
    if isinstance(given, dict):
        for name, value in given.items():
            for one in value if isinstance(value, list) else (value,):
                if isinstance(one, str):
                    yield name.strip(), one
    elif isinstance(given, list):
        for item in given:
            if isinstance(item, str) and ":" in item:
                name, _, value = item.partition(":")
                yield name.strip(), value


# -- errors of our own ------------------------------------------------------------------------------------------------


def new_error_id() -> str:
    """What ties an answer to a line of the log: 12 random hexadecimal digits."""
    return secrets.token_hex(6)


def envelope(
    status: int,
    code: str,
    message: str,
    *,
    error_id: str | None = None,
    headers: Headers = (),
    close: bool = False,
) -> Response:
    """The JSON error body of §13, `{"error": {"code", "message", "error_id"?}}`."""
    error = {"code": code, "message": message}
    if error_id is not None:
        error["error_id"] = error_id
    body = codec.encode_value({"error": error})
    return Response(status, ((b"content-type", JSON_TYPE), *headers), body, close)


def skipped() -> Response:
    """The answer to a request whose condition said no (§9)."""
    error = {"code": "CONDITION_NOT_MET", "message": "Request condition not met"}
    body = codec.encode_value({"error": error, "skipped": True})
    return Response(422, ((b"content-type", JSON_TYPE),), body)
