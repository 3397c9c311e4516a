"""The signature by which an endpoint knows that a request comes from this engine (spec/http.md §19)."""

import base64
import hashlib
import hmac


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """The value of `x-iii-Signature`: `sha256=` and the hexadecimal HMAC-SHA256 of `<timestamp>:<base64 of the body>`.

    `timestamp` is the text of `x-iii-Timestamp`, `body` exactly what is sent.
    """
    signed = timestamp.encode() + b":" + base64.b64encode(body)
    return "sha256=" + hmac.new(secret, signed, hashlib.sha256).hexdigest()
