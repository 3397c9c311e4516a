"""What a registration's `invocation` says: the request to make, its headers, and its secrets (spec/http.md §17)."""

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Final

from attrs import field, frozen

from ...protocol import ABSENT, Json, codec, errors
from ...protocol.errors import ProtocolError, WireError
from ...protocol.limits import DEADLINE_S, HTTP_CALL_S
from .urls import Endpoint

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
IDEMPOTENT: Final = frozenset({"GET", "PUT", "DELETE"})
OURS: Final = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-iii-function-path",
        "x-iii-invocation-id",
        "x-iii-metadata",
        "x-iii-signature",
        "x-iii-timestamp",
    }
)
"""Headers that a registration may not set: they frame the message, name the host, or are the engine's word."""

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")

Header = tuple[bytes, bytes]


@frozen(kw_only=True)
class Invocation:
    """`registerfunction.invocation` as it is on the wire."""

    url: str
    method: str = "POST"
    timeout_ms: int | None = None
    headers: dict[str, str] = field(factory=dict)
    auth: Json = ABSENT


@frozen(kw_only=True)
class Auth:
    """`invocation.auth` as it is on the wire; the keys name environment variables of the engine."""

    type: str
    secret_key: str | None = None
    token_key: str | None = None
    value_key: str | None = None
    header: str | None = None


read_invocation: Final[Callable[[bytes], Invocation]] = codec.reader(Invocation)
read_auth: Final[Callable[[bytes], Auth]] = codec.reader(Auth)


@frozen(kw_only=True)
class Target:
    """A request to make for every call of one function. Its `headers` and `secret` are never shown.

    `timeout_s` holds for everything from the lookup of the host to the end of the response. With a `secret` requests are
    signed.
    """

    url: str = field(repr=False)
    endpoint: Endpoint
    method: str
    timeout_s: float
    headers: tuple[Header, ...] = field(repr=False)
    secret: bytes | None = field(default=None, repr=False)

    @property
    def idempotent(self) -> bool:
        """Whether the request may be repeated without being asked for twice."""
        return self.method in IDEMPOTENT


def make_target(raw: Json, check: Callable[[str], Endpoint], variable: Callable[[str], str | None]) -> Target:
    """The target of a registration's `invocation`.

    `check` takes a URL apart or refuses it; `variable` gives the value of an environment variable, None if there is none.
    Raises `WireError` saying what is wrong: `invalid_message` for the shape, `url_validation_failed`,
    `secret_not_found`, `token_not_found` or `api_key_not_found`.
    """
    try:
        invocation = read_invocation(raw.raw)
        auth = read_auth(invocation.auth.raw) if invocation.auth else None
    except ProtocolError as error:
        raise _malformed(str(error)) from None
    if invocation.method not in METHODS:
        raise _malformed(f"method {errors.shorten(invocation.method, 40)!r} is none of {', '.join(METHODS)}")
    if invocation.timeout_ms is not None and invocation.timeout_ms < 1:
        raise _malformed("timeout_ms must be at least 1")
    headers = {name.lower(): _header(name, value) for name, value in invocation.headers.items()}
    endpoint = check(invocation.url)
    secret = None
    if endpoint.credentials is not None:
        headers.setdefault("authorization", _header("Authorization", _basic(*endpoint.credentials)))
    if auth is not None:
        secret = _authenticate(auth, headers, variable)
    timeout_ms = invocation.timeout_ms
    return Target(
        url=invocation.url,
        endpoint=endpoint,
        method=invocation.method,
        timeout_s=HTTP_CALL_S if timeout_ms is None else min(timeout_ms, DEADLINE_S * 1000) / 1000,
        headers=tuple(headers.values()),
        secret=secret,
    )


def _authenticate(auth: Auth, headers: dict[str, Header], variable: Callable[[str], str | None]) -> bytes | None:
    """Put a header of `auth` into `headers`, or return the key to sign with."""

    def value(key: str, name: str | None, what: str, code: str) -> str:
        if not name:
            raise _malformed(f"auth of type {auth.type} needs {key}, the name of an environment variable of the engine")
        found = variable(name)
        if not found:
            raise WireError(f"{what} not found: {errors.shorten(name, 200)}", code)
        return found

    if auth.type == "hmac":
        return _bytes(value("secret_key", auth.secret_key, "Secret", errors.SECRET_NOT_FOUND))
    if auth.type == "bearer":
        token = value("token_key", auth.token_key, "Token", errors.TOKEN_NOT_FOUND)
        headers["authorization"] = _header("Authorization", f"Bearer {token}", secret=True)
        return None
    if auth.type == "api_key":
        if not auth.header:
            raise _malformed("auth of type api_key needs header, the name of the header to send the key in")
        key = value("value_key", auth.value_key, "API key", errors.API_KEY_NOT_FOUND)
        headers[auth.header.lower()] = _header(auth.header, key, secret=True)
        return None
    raise _malformed(f"auth of type {errors.shorten(auth.type, 40)!r}; there are hmac, bearer and api_key")


def _header(name: str, value: str, *, secret: bool = False) -> Header:
    if _TOKEN.fullmatch(name) is None:
        raise _malformed(f"{errors.shorten(name, 100)!r} is no name of a header")
    if name.lower() in OURS:
        raise _malformed(f"the header {name} is set by the engine and cannot be configured")
    text = value.strip()
    if _VALUE.fullmatch(text) is None:
        what = "the environment variable for the header" if secret else "the value of the header"
        raise _malformed(f"{what} {name} has characters that a header cannot carry")
    return name.encode(), _bytes(text)


def _bytes(text: str) -> bytes:
    """A text of the wire or of the environment, whose bytes need not be UTF-8, as the bytes it stands for."""
    return text.encode(errors="surrogateescape")


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def _malformed(detail: str) -> WireError:
    return WireError(f"invocation: {detail}", errors.INVALID_MESSAGE)
