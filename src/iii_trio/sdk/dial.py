"""From a URL to an upgraded WebSocket: address, headers, TCP, TLS, handshake (spec/sdk.md §1)."""

import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Final
from urllib.parse import quote, urlsplit

import trio
from attrs import evolve, frozen

from iii_trio.protocol.errors import IIIError
from iii_trio.protocol.limits import HANDSHAKE_S
from iii_trio.transport import Framing, HandshakeError, connect

DEFAULT_URL: Final = "ws://127.0.0.1:49134"

OpenStream = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens the byte stream to the engine; given instead of TCP in tests and for tunnels."""


class DialError(IIIError):
    """No connection came about; `str()` names the address and what went wrong."""


@frozen
class Address:
    """Where an engine listens: `target` is the path with its query, as the handshake sends it."""

    url: str
    secure: bool
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, url: str | None = None) -> "Address":
        """The address of a `ws://` or `wss://` URL; None means `III_URL`, else `DEFAULT_URL`. Raises `ValueError`."""
        text = (url or os.environ.get("III_URL") or "").strip() or DEFAULT_URL
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{text!r} is no URL: {error}") from None
        if parts.scheme not in ("ws", "wss") or not parts.hostname:
            raise ValueError(f"{text!r} is no WebSocket URL; give one like {DEFAULT_URL}")
        secure = parts.scheme == "wss"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(text, secure, parts.hostname, port or (443 if secure else 80), target)

    def of_channel(self, channel_id: str, access_key: str, direction: str) -> "Address":
        """The address of one end of a channel of this engine; the URL's own query stays, in front."""
        path, _, query = self.target.partition("?")
        own = f"key={quote(access_key, safe='')}&dir={direction}"
        target = f"{path.rstrip('/')}/ws/channels/{quote(channel_id, safe='')}?{query}{'&' if query else ''}{own}"
        return evolve(self, target=target)

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def handshake_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """`headers`, and `Authorization: Bearer` from `III_TOKEN` unless they have an Authorization of their own."""
    token = os.environ.get("III_TOKEN", "").strip()
    pairs = list(headers.items())
    if token and not any(name.lower() == "authorization" for name in headers):
        pairs.append(("Authorization", f"Bearer {token}"))
    return pairs


async def dial(
    address: Address,
    headers: Mapping[str, str],
    open_stream: OpenStream | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> tuple[trio.abc.Stream, Framing, bytes]:
    """Connect and upgrade within `HANDSHAKE_S` seconds: what a `Connection` needs. Raises `DialError`."""
    try:
        with trio.fail_after(HANDSHAKE_S):
            stream = await (open_stream() if open_stream is not None else _open(address, ssl_context))
            framing, rest = await connect(stream, address.host_header, address.target, handshake_headers(headers))
    except trio.TooSlowError:
        raise DialError(f"{address.url} did not answer within {HANDSHAKE_S:g} s") from None
    except (OSError, trio.BrokenResourceError, HandshakeError) as error:
        raise DialError(f"cannot connect to {address.url}: {_why(error)}") from error
    return stream, framing, rest


def _why(error: BaseException) -> str:
    """The innermost cause: what TLS objected to, what the first address tried answered."""
    while (cause := error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__) is not None:
        error = cause
    return str(error) or type(error).__name__


async def _open(address: Address, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    stream = await trio.open_tcp_stream(address.host, address.port)
    if not address.secure:
        return stream
    context = ssl_context or ssl.create_default_context()
    secured = trio.SSLStream(stream, context, server_hostname=address.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return secured
