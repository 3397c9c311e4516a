"""The page that shows the OpenAPI document: self-contained, and allowed to talk to its own host alone."""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Final

from attrs import frozen

_PARTS: Final = re.compile(rb"<(style|script)>(.*?)</\1>", re.DOTALL)


@frozen
class Viewer:
    """The page, and the headers it is sent with."""

    content: bytes
    headers: tuple[tuple[bytes, bytes], ...]


@cache
def viewer() -> Viewer:
    """The page. Its policy names the one style and the one script by their hashes: nothing that finds its way in runs."""
    content = files(__package__).joinpath("viewer.html").read_bytes()
    allowed = {name: b64encode(sha256(part).digest()) for name, part in _PARTS.findall(content)}
    policy = (
        b"default-src 'none'; style-src 'sha256-%b'; script-src 'sha256-%b'; connect-src 'self'; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'"
    ) % (allowed[b"style"], allowed[b"script"])
    headers = (
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    )
    return Viewer(content, headers)
