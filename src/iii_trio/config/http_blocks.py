"""The settings of the `http` worker and of HTTP-invoked functions (spec/http.md §1.1, §17)."""

# ruff: noqa: RUF009  `setting()` is evaluated once on purpose: it makes a field

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from iii_trio.config.parts import (
    host_setting,
    port_setting,
)
from iii_trio.config.rbac import TlsSettings
from iii_trio.config.settings import setting


@frozen(kw_only=True)
class CorsSettings:
    """Which browser origins and methods the HTTP port admits."""

    allowed_origins: tuple[str, ...] = setting((), tier="live", doc="Admitted origins; empty or '*' means all.")
    allowed_methods: tuple[str, ...] = setting((), tier="live", doc="Admitted methods; empty means all.")


@frozen(kw_only=True)
class MiddlewareSettings:
    """One function that every HTTP request passes before its handler."""

    function_id: str = setting(tier="live", nonempty=True, doc="The function to call.")
    phase: str = setting("preHandler", tier="live", doc="When it runs; only preHandler exists.")
    priority: int = setting(0, tier="live", doc="Lower runs first.")
    timeout_ms: int | None = setting(
        None, tier="live", unit="ms", ge=1, doc="Time it may take; absent means `middleware_timeout`."
    )


def _by_priority(middleware: tuple[MiddlewareSettings, ...]) -> tuple[MiddlewareSettings, ...]:
    return tuple(sorted(middleware, key=lambda item: item.priority))


@frozen(kw_only=True)
class HttpSettings:
    """The HTTP port and what holds for every request."""

    port: int = port_setting(3111)
    host: str = host_setting()
    default_timeout: int = setting(
        30_000, tier="live", unit="ms", ge=1, doc="Time from a request's arrival to the head of its response."
    )
    concurrency_request_limit: int = setting(
        1024, tier="live", ge=1, doc="Requests handled at once; more than these wait."
    )
    cors: CorsSettings | None = setting(None, tier="live", doc="CORS rules; absent means every origin may ask.")
    middleware: tuple[MiddlewareSettings, ...] = setting(
        (), tier="live", converter=_by_priority, doc="Functions every request passes, in order of priority."
    )
    middleware_timeout: int | None = setting(
        None,
        tier="live",
        unit="ms",
        ge=1,
        doc="Time each middleware and each condition may take; absent means `default_timeout`.",
    )
    null_result_timeout: int = setting(
        5_000,
        tier="live",
        unit="ms",
        ge=0,
        doc="Time in which a handler that returned nothing must begin to write its response; then it is a 204.",
    )
    body_limit: int = setting(
        16 * 1024 * 1024, tier="live", unit="bytes", ge=1, doc="Largest request body; a larger one is answered 413."
    )
    concurrency_queue_limit: int = setting(
        1024, tier="live", ge=0, doc="Requests that wait for their turn; more than these are answered 503."
    )
    expose_errors: bool = setting(
        True, tier="live", doc="Tell clients what a failed function said; without, 500s carry an id of the log's only."
    )
    stream_idle_timeout: int = setting(
        3_600_000, tier="live", unit="ms", ge=1, doc="Longest silence in a response that streams; then it is cut off."
    )
    trust_proxy: bool = setting(
        False, tier="live", doc="Believe X-Forwarded-For and X-Forwarded-Proto; only behind a proxy that writes them."
    )
    request_id_header: str = setting(
        "x-request-id", tier="live", doc="Header that carries a request's id, in and out; empty for none."
    )
    ignore_trailing_slash: bool = setting(
        False, tier="live", doc="Let a path also match with a last slash more or less."
    )
    not_found_function: str | None = setting(
        None, tier="live", nonempty=True, doc="Function that answers the paths that no route knows."
    )
    openapi_path: str | None = setting(
        None,
        tier="live",
        nonempty=True,
        doc="Path of the OpenAPI document of all routes, '/openapi.json' for instance.",
    )
    access_log: bool = setting(False, tier="live", doc="Log a line for every request.")
    tls: TlsSettings | None = setting(
        None, tier="restart", filled=True, doc="Certificate and key; with them the port speaks TLS only."
    )
    http2: bool = setting(True, tier="restart", doc="Whether clients may speak HTTP/2, which they agree on under TLS.")


def _lower(patterns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(pattern.lower() for pattern in patterns) or ("*",)


def _unclosed(pattern: str) -> bool:
    """Whether a glob has a `[` that nothing closes; a whole IPv6 host in brackets is no glob and has none."""
    start = pattern.find("[")
    return start >= 0 and "]" not in pattern[start + 2 :]


@frozen(kw_only=True)
class HttpFunctionsSecurity:
    """Where HTTP-invoked functions may go, and what of the engine's environment they may use."""

    url_allowlist: tuple[str, ...] = setting(
        ("*",), tier="restart", converter=_lower, doc="Hosts that may be called, as globs; empty means all."
    )
    block_private_ips: bool = setting(
        True, tier="restart", doc="Refuse hosts with an address that is not on the public internet."
    )
    require_https: bool = setting(True, tier="restart", doc="Refuse URLs that are not https.")
    env_allowlist: tuple[str, ...] | None = setting(
        None,
        tier="restart",
        doc="Environment variables that `auth` may name, as globs; absent means all for trusted workers and none for "
        "sessions under access control.",
    )

    def refusals(self, _: str) -> Iterator[tuple[tuple[str, ...], str]]:
        for pattern in self.url_allowlist:
            if _unclosed(pattern):
                yield ("url_allowlist",), f"'{pattern}' is no glob: its '[' is never closed"


@frozen(kw_only=True)
class HttpFunctionsSettings:
    """Functions that workers register and the engine runs as HTTP requests."""

    security: HttpFunctionsSecurity = setting(
        HttpFunctionsSecurity(), tier="restart", doc="Where they may go, and with which secrets."
    )
    retries: int = setting(
        0,
        tier="restart",
        ge=0,
        le=10,
        doc="Further attempts of GET, PUT and DELETE after a failed connection or a status of 502, 503 or 504.",
    )
    response_limit: int = setting(
        16 * 1024 * 1024, tier="restart", unit="bytes", ge=1, doc="Largest response body; a larger one is an error."
    )
