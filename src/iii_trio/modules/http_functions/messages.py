"""The head of a request to an endpoint, and what a response means for the call (spec/http.md §17)."""

import json
import logging
import re
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from ...engine import Call
from ...protocol import ABSENT, NULL, Json, codec, errors, trace
from ...protocol.errors import ProtocolError, WireError
from ...protocol.limits import HTTP_METADATA, MIB
from .signing import signature
from .targets import Header, Target

log = logging.getLogger(__name__)

_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))
_VISIBLE: Final = re.compile(r"[\x20-\x7e]+")
_JSON_ERROR_CHARS: Final = 500


def request_body(call: Call, data: Json) -> bytes:
    """The payload of a call as it is sent, with the caller's id in it where workers get it too (spec/protocol.md §7.3)."""
    raw = data.or_null().raw
    return codec.splice_caller(raw, call.origin.caller_pair) if call.injects else codec.strip_caller(raw)


def request_headers(
    target: Target, call: Call, request_id: str, body: bytes, timestamp: str, metadata: bytes
) -> list[Header]:
    """The head of one attempt. A configured header takes the place of an equal one of ours, but for those it may not set.

    `request_id` is a fresh UUID, the same for all attempts of a call: the call's own id is its caller's choice, and an
    endpoint that knows repetitions by it must not take one call for another. `timestamp` is Unix seconds as text;
    `metadata` what `metadata_header` made of the call's.
    """
    headers: dict[bytes, Header] = {}

    def put(name: bytes, value: bytes) -> None:
        headers[name.lower()] = name, value

    put(b"Host", target.endpoint.authority.encode())
    put(b"Accept", b"*/*")
    put(b"Content-Type", b"application/json")
    put(b"Content-Length", str(len(body)).encode())
    put(b"x-iii-Function-Path", quote(call.function.exposed_id, safe=_PRINTABLE).strip().encode())
    put(b"x-iii-Invocation-ID", request_id.encode())
    put(b"x-iii-Timestamp", timestamp.encode())
    if metadata:
        put(b"x-iii-Metadata", metadata)
    if call.traceparent or call.baggage:
        baggage = trace.with_function(call.baggage, call.function.id)
        for name, value in ((b"traceparent", call.traceparent), (b"baggage", baggage)):
            # these are a caller's words: what no header can carry is left out
            if value and _VISIBLE.fullmatch(value):
                put(name, value.encode())
    for name, text in target.headers:
        put(name, text)
    if target.secret is not None:
        put(b"x-iii-Signature", signature(target.secret, timestamp, body).encode())
    return list(headers.values())


def metadata_header(call: Call) -> bytes:
    """The call's metadata as JSON in ASCII on one line; nothing if there is none, or more than a header should carry."""
    if not call.metadata:
        return b""
    try:
        text = json.dumps(codec.decode_value(call.metadata), separators=(",", ":")).encode()
    except ProtocolError:
        return b""
    if len(text) <= HTTP_METADATA:
        return text
    log.warning("metadata of a call of %s is left out: %d bytes as a header", call.function.id, len(text))
    return b""


def response_result(status: int, reason: bytes, body: bytes) -> Json:
    """What a whole response answers to the call. Raises `WireError`, with the endpoint's own code if it gave one."""
    if status >= 400:
        raise _failure(status, reason, body)
    if not 200 <= status < 300:
        try:
            return _json(body)
        except ProtocolError:
            return NULL
    if not body:
        return ABSENT
    try:
        return _json(body)
    except ProtocolError as error:
        raise WireError(errors.shorten(str(error), _JSON_ERROR_CHARS), errors.INVALID_RESPONSE) from None


def _json(body: bytes) -> Json:
    """A body as JSON that every worker can read. Raises `ProtocolError`."""
    codec.check_payload(body)
    return Json(body)


def _failure(status: int, reason: bytes, body: bytes) -> WireError:
    try:
        answer = codec.decode_value(body) if len(body) <= MIB else None
    except ProtocolError:
        answer = None
    if not isinstance(answer, dict) or "error" not in answer:
        return WireError(f"HTTP {status} {_reason(status, reason)}".rstrip(), errors.HTTP_ERROR)
    error = answer["error"]
    code, message = (error.get("code"), error.get("message")) if isinstance(error, dict) else (None, None)
    return WireError(
        message if isinstance(message, str) else "HTTP request failed",
        code if isinstance(code, str) and code else errors.HTTP_ERROR,
    )


def _reason(status: int, reason: bytes) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return errors.shorten(reason.decode("latin-1").strip(), 100)
