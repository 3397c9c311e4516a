"""Form bodies as JSON: urlencoded fields and multipart parts, for forms small enough to travel with the call (§8).

Larger ones, and those whose length nobody has declared, are left to the handler, which reads them from the
`request_body` channel; the raw bytes are there in any case.
"""

import base64
import logging
from typing import Any, Final
from urllib.parse import parse_qsl

from attrs import define, field
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ...protocol import codec
from ...protocol.limits import HTTP_FORM
from .messages import BadRequest, Request

URLENCODED: Final = "application/x-www-form-urlencoded"
MULTIPART: Final = "multipart/form-data"

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what is wrong with a form, its client is told


def is_small_form(request: Request) -> bool:
    """Whether the body is a form that `read_form` is meant for."""
    if request.media_type not in (URLENCODED, MULTIPART):
        return False
    return request.length is not None and 0 < request.length <= HTTP_FORM


def read_form(request: Request, body: bytes) -> bytes:
    """The form as a JSON object: a field that came several times has the list of its values.

    A part with a file name is `{"filename", "content_type", "size", "base64"}`, every other field its text. Raises
    `BadRequest` for what is no such form.
    """
    if request.media_type == URLENCODED:
        pairs: list[tuple[str, Any]] = list(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    else:
        pairs = _parts(request, body)
    form: dict[str, Any] = {}
    repeated: set[str] = set()
    for name, value in pairs:
        if name not in form:
            form[name] = value
        elif name in repeated:
            form[name].append(value)
        else:
            repeated.add(name)
            form[name] = [form[name], value]
    return codec.encode_value(form)


@define(eq=False)
class _Part:
    """One part as it is parsed."""

    headers: dict[str, bytes] = field(factory=dict)
    name: bytes = b""
    value: bytes = b""
    data: bytearray = field(factory=bytearray)


def _parts(request: Request, body: bytes) -> list[tuple[str, Any]]:
    # as bytes, for a text must be Latin-1 there
    boundary = parse_options_header(request.headers.get("content-type", "").encode())[1].get(b"boundary")
    if not boundary:
        raise BadRequest("the body is multipart, but the content type names no boundary")
    parts: list[_Part] = []
    ended: list[bool] = []

    def header_name(data: bytes, start: int, end: int) -> None:
        parts[-1].name += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        parts[-1].value += data[start:end]

    def header_end() -> None:
        part = parts[-1]
        part.headers[part.name.decode("latin-1").lower()] = part.value
        part.name = part.value = b""

    def part_data(data: bytes, start: int, end: int) -> None:
        parts[-1].data += data[start:end]

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": lambda: parts.append(_Part()),
                "on_header_field": header_name,
                "on_header_value": header_value,
                "on_header_end": header_end,
                "on_part_data": part_data,
                "on_end": lambda: ended.append(True),
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"the body is not valid multipart: {error}") from None
    if not ended:
        raise BadRequest("the body is not valid multipart: its last boundary is missing")
    return [_pair(part) for part in parts]


def _pair(part: _Part) -> tuple[str, Any]:
    options = parse_options_header(part.headers.get("content-disposition", b""))[1]
    name = options.get(b"name", b"").decode("utf-8", "replace")
    if b"filename" not in options:
        return name, part.data.decode("utf-8", "replace")
    return name, {
        "filename": options[b"filename"].decode("utf-8", "replace"),
        "content_type": part.headers.get("content-type", b"application/octet-stream").decode("latin-1"),
        "size": len(part.data),
        "base64": base64.b64encode(part.data).decode("ascii"),
    }
