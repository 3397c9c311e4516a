"""Web origins as browsers name them in the `Origin` header: read into one spelling, so that equal ones compare equal."""

import re
from typing import Final

ANY: Final = "*"
"""Stands for every origin in a list of those that may connect."""

OPAQUE: Final = "null"
"""What browsers send for pages that have no origin of their own: sandboxed frames, some local files."""

_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._~-]+)(?::([0-9]{1,5}))?(.*)", re.DOTALL)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_FILE: Final = "file://"


def canonical_origin(text: str) -> str:
    """`scheme://host[:port]` in lower case and without the scheme's default port; `*`, `null` and `file://` stay.

    Raises `ValueError`, saying how to write it, for any other text, one with a path or a wildcard in it for example.
    """
    lowered = text.strip().lower()
    if lowered in (ANY, OPAQUE, _FILE):
        return lowered
    found = _ORIGIN.fullmatch(lowered)
    if found is not None:
        scheme, host, port, rest = found.groups()
        origin = f"{scheme}://{host}" if port in (None, _DEFAULT_PORTS.get(scheme)) else f"{scheme}://{host}:{port}"
        if not rest:
            return origin
        if rest[0] in "/?#":
            raise ValueError(f"'{text}' is no web origin, which ends with the host or the port; write {origin}")
    raise ValueError(
        f"'{text}' is no web origin; write it as browsers send it, like https://app.example or http://localhost:3000, "
        "or '*' for every origin"
    )
