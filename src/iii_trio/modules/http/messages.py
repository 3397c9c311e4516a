"""HTTP requests to handler inputs, handler results to HTTP responses (spec/http.md §7, §8, §11, §13). No I/O."""

import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import frozen

from ...protocol import Json, codec
from ...protocol.errors import ProtocolError
from ...protocol.limits import MAX_DEPTH
from ...protocol.scan import deeper_than, has_endless_number
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

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


# -- requests ---------------------------------------------------------------------------------------------------------


@frozen
class Request:
    """A request's head. `path` is raw, without the query; of a repeated header `headers` has the last value."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def origin(self) -> str | None:
        """The `Origin` header."""
        return self.headers.get("origin")

    @property
    def has_json(self) -> bool:
        """Whether the body is JSON by its content type: `application/json` or any `+json`, in any case (§8)."""
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
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


def read_request(scope: Mapping[str, Any]) -> Request:
    """The head of an ASGI `http` scope. A header value outside visible ASCII becomes empty (§7)."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        try:
            headers[name.decode("ascii").lower()] = value.decode("ascii")
        except UnicodeDecodeError:
            headers[name.decode("latin-1").lower()] = ""
    raw = scope.get("raw_path") or scope["path"].encode()
    path = raw.decode("latin-1").partition("?")[0]
    if not path.startswith("/") and "://" in path:
        # the absolute form, as clients of a proxy send it
        path = "/" + path.partition("://")[2].partition("/")[2]
    return Request(scope["method"].upper(), path, scope.get("query_string", b"").decode("latin-1"), headers)


def read_json(body: bytes) -> bytes | None:
    """`body` if it is one JSON value that every peer can take, else None (see `protocol.scan`)."""
    try:
        codec.decode_value(body)
    except ProtocolError:
        return None
    if deeper_than(body, MAX_BODY_DEPTH) or has_endless_number(body):
        return None
    return body


def handler_input(request: Request, match: Match, body: bytes) -> Json:
    """What condition and handler are called with (§7); a body that is not JSON, or none, is null.

    `path` is the registered text. Repeated query keys and headers give their last value: clients expect strings.
    """
    route = match.route
    head = codec.encode_value(
        {
            "query_params": dict(parse_qsl(request.query, keep_blank_values=True)),
            "path_params": match.params,
            "headers": request.headers,
            "path": route.pattern.text,
            "method": request.method,
            "trigger": {"type": "http", "path": route.pattern.text, "method": route.method},
        }
    )
    parsed = read_json(body) if body else None
    return Json(head[:-1] + b',"body":' + (parsed or b"null") + b"}")


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

    `statusCode` is taken for `status_code`. A result that is no object, or has no `body`, gives the body `{}`. A status
    that cannot be sent, one below 200 included, becomes 200; header fields that cannot be sent are left out.
    """
    fields = result if isinstance(result, dict) else {}
    headers = tuple(_headers(fields.get("headers")))
    body = fields.get("body", {})
    given = any(name == b"content-type" for name, _ in headers)
    if not given:
        return Response(_status(fields), ((b"content-type", JSON_TYPE), *headers), codec.encode_value(body))
    if isinstance(body, str):
        content = body.encode("utf-8", "replace")
    else:
        content = b"" if body is None else codec.encode_value(body)
    return Response(_status(fields), headers, content)


def _status(fields: Mapping[str, Any]) -> int:
    status = fields.get("status_code", fields.get("statusCode"))
    if status is None:
        return 200
    if isinstance(status, int) and not isinstance(status, bool) and 200 <= status <= 999:
        return status
    log.warning("a handler returned the status %r, which cannot be sent: 200 is sent instead", status)
    return 200


def _headers(given: Any) -> Iterator[tuple[bytes, bytes]]:
    for name, value in _pairs(given):
        lower = name.lower().encode("ascii", "replace")
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            log.warning("a handler returned the header %r, which cannot be sent: it is left out", name)
        elif lower not in NOT_FORWARDED:
            yield lower, value.strip().encode("ascii")


def _pairs(given: Any) -> Iterator[tuple[str, str]]:
    if isinstance(given, dict):
        for name, value in given.items():
            if isinstance(value, str):
                yield name.strip(), value
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
