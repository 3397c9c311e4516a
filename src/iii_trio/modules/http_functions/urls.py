"""Where a request may go: the rules for URLs, and the addresses that a host has right now (spec/http.md §18).

What is checked is what is connected to: `UrlRules.look_up` resolves a host once, and whoever sends a request connects
to what it returned and to nothing else, so that a name cannot point elsewhere by the time of the connection.
"""

import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from fnmatch import translate
from typing import Final

import httpx
import trio
from attrs import define, field, frozen

from ...config import HttpFunctionsSecurity
from ...protocol import errors
from ...protocol.errors import WireError
from ...protocol.limits import HTTP_LOOKUPS
from . import addresses

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From a host's name and a port to its IP addresses; raises `OSError` when there are none or nobody can tell."""

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_NAME: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")
TEMPORARY: Final = frozenset({socket.EAI_AGAIN, socket.EAI_SYSTEM, socket.EAI_MEMORY})


class UrlRefused(WireError):
    """A URL breaks a rule, or its host has no address."""

    default_code = errors.URL_VALIDATION_FAILED


class LookupFailed(UrlRefused):
    """Nobody could tell the addresses of a host. `temporary`: asked again, somebody may."""

    def __init__(self, temporary: bool) -> None:
        super().__init__("DNS lookup failed")
        self.temporary = temporary


@frozen
class Endpoint:
    """A URL taken apart: what is connected to, and what is asked for there.

    `host` has no brackets; `authority` is the value of the Host header, `target` path and query as they are sent,
    `credentials` what stood before an `@`.
    """

    scheme: str
    host: str
    port: int
    authority: str
    target: bytes
    credentials: tuple[str, str] | None = field(default=None, repr=False)


def parse_url(text: str, *, require_https: bool = False) -> Endpoint:
    """A URL as an endpoint. Raises `UrlRefused`."""
    try:
        url = httpx.URL(text)
        port = url.port
    except (httpx.InvalidURL, TypeError, ValueError):
        raise UrlRefused("Invalid URL") from None
    if not url.scheme:
        raise UrlRefused("Invalid URL")
    if require_https and url.scheme != "https":
        raise UrlRefused("HTTPS is required")
    host = url.raw_host.decode("ascii").lower()
    named = _NAME.fullmatch(host) is not None or addresses.parse(host) is not None
    if url.scheme not in DEFAULT_PORTS or not named or port == 0 or (port or 1) > 65535:
        raise UrlRefused("Invalid URL")
    shown = f"[{host}]" if ":" in host else host
    return Endpoint(
        scheme=url.scheme,
        host=host,
        port=port or DEFAULT_PORTS[url.scheme],
        authority=shown if port is None else f"{shown}:{port}",
        target=url.raw_path,
        credentials=(url.username, url.password) if url.userinfo else None,
    )


@define(eq=False)
class UrlRules:
    """The rules of the module's settings; `resolve` tells the addresses of a host."""

    security: HttpFunctionsSecurity
    resolve: Resolve
    _allowed: tuple[re.Pattern[str], ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._allowed = tuple(re.compile(translate(pattern)) for pattern in self.security.url_allowlist)

    def check(self, url: str) -> Endpoint:
        """What can be said without a lookup. Raises `UrlRefused` with one of the texts of the spec."""
        endpoint = parse_url(url, require_https=self.security.require_https)
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        if host not in self.security.url_allowlist and not any(glob.match(host) for glob in self._allowed):
            raise UrlRefused("URL not in allowlist")
        literal = addresses.parse(endpoint.host)
        if literal is not None:
            self._check_address(literal)
        return endpoint

    async def look_up(self, endpoint: Endpoint) -> tuple[str, ...]:
        """The IP addresses of an endpoint's host as they are now, in the order to try them, each of them checked.

        Raises `UrlRefused`: one bad address is enough. No lookup is made for a host that is an address.
        """
        literal = addresses.parse(endpoint.host)
        if literal is not None:
            await trio.lowlevel.checkpoint()
            self._check_address(literal)
            return (str(literal),)
        try:
            found = tuple(dict.fromkeys(await self.resolve(endpoint.host, endpoint.port)))
        except OSError as error:
            raise LookupFailed(isinstance(error, socket.gaierror) and error.errno in TEMPORARY) from error
        parsed = [addresses.parse(one) for one in found]
        if not parsed:
            raise LookupFailed(temporary=False)
        for address in parsed:
            if address is None:
                raise LookupFailed(temporary=False)
            self._check_address(address)
        return found

    def _check_address(self, address: addresses.IPAddress) -> None:
        if self.security.block_private_ips and not addresses.is_public(address):
            raise UrlRefused("Private IP blocked")


@define(eq=False)
class Lookup:
    """One question to the resolver, under way. Who comes while it is shares the answer, if there is one in the end."""

    done: trio.Event = field(factory=trio.Event)
    found: list[str] | None = None
    error: OSError | None = None


@define(eq=False)
class SystemResolver:
    """The resolver of the operating system, in threads of its own.

    One that hangs takes no thread from anybody else, and one host that cannot be looked up takes one thread at a time.
    """

    _threads: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(HTTP_LOOKUPS), init=False)
    _lookups: dict[tuple[str, int], Lookup] = field(factory=dict, init=False)

    async def __call__(self, host: str, port: int) -> list[str]:
        """See `Resolve`. Cancelled, it leaves its thread to finish alone."""
        key = host, port
        while True:
            lookup = self._lookups.get(key)
            if lookup is None:
                lookup = self._lookups[key] = Lookup()
                try:
                    lookup.found = await trio.to_thread.run_sync(
                        look_up, host, port, abandon_on_cancel=True, limiter=self._threads
                    )
                except OSError as error:
                    lookup.error = error
                finally:
                    del self._lookups[key]
                    lookup.done.set()
            else:
                await lookup.done.wait()
            if lookup.error is not None:
                raise type(lookup.error)(*lookup.error.args) from None
            if lookup.found is not None:
                return lookup.found


def look_up(host: str, port: int) -> list[str]:
    """The IP addresses of a host, by the operating system. Blocks; raises `OSError`."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(f"{host!r} is no host name: {error}") from None
    return [str(address[0]) for *_, address in found]
