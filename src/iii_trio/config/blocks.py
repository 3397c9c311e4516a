"""The settings of each built-in worker, as its block in the config file or its configuration entry spells them.

Keys, defaults and bounds: spec/http.md §1.1, spec/queue.md §3 and §9.1, spec/protocol.md §14.1, spec/state-stream.md §8
and §11, spec/pubsub-cron-config-cli.md §1, §2.5 and §4. Listeners bind `localhost` by default, which stands for both
loopback addresses; the reference binds every interface.
"""

# ruff: noqa: RUF009  `setting()` is evaluated once on purpose: it makes a field

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from attrs import frozen

from iii_trio.config.file import Entry
from iii_trio.config.names import adapter_name
from iii_trio.config.rbac import RbacSettings, TlsSettings, function_id
from iii_trio.config.settings import no_op, setting
from iii_trio.config.structuring import Structured, structure

T = TypeVar("T")

LOOPBACK: Final = "localhost"
"""The default host of every listener: 127.0.0.1 and ::1 together."""

_IN_MEMORY: Final = "in_memory"
_FILE_BASED: Final = "file_based"
_STORES: Final = (_IN_MEMORY, _FILE_BASED)
_BRIDGE: Final = "bridge"
_BRIDGE_URL: Final = "ws://localhost:49134"
_NOT_YET: Final = ("redis", "rabbitmq", _BRIDGE)
_DURABLE_AT_ONCE: Final = "every write is on disk before it is acknowledged"
_NO_POLLING: Final = "queues wake at once instead of polling"
_MAX_U32: Final = 2**32 - 1


def _port(default: int) -> Any:
    return setting(default, tier="rebind", ge=0, le=65535, doc="TCP port to listen on; 0 lets the system choose.")


def _host() -> Any:
    return setting(
        LOOPBACK, tier="rebind", nonempty=True, doc="Address to listen on; localhost means 127.0.0.1 and ::1."
    )


def _adapter(default: str, *, more: tuple[str, ...] = ()) -> Any:
    """The `name` of an adapter block: `default`, or a name in `more`; what other engines have is refused by name."""
    names = (default, *more)

    def refuse(_: str, value: str) -> str:
        if value in _NOT_YET:
            return f"the adapter '{value}' is not part of this release. Available: [{', '.join(names)}]"
        return f"Adapter factory '{value}' not found. Available: [{', '.join(names)}]"

    return setting(
        default,
        tier="restart",
        choices=names,
        aliases=("class",),
        translate=adapter_name,
        refusal=refuse,
        gate=True,
        doc="Which implementation.",
    )


def _save_interval() -> Any:
    return no_op(why=_DURABLE_AT_ONCE, unit="ms", ge=100, le=3_600_000, doc="Interval between saves.")


# Worker port and HTTP


@frozen(kw_only=True)
class WorkerManagerSettings:
    """The port that workers connect to."""

    port: int = _port(49134)
    host: str = _host()
    handshake_timeout_ms: int = setting(
        10_000, tier="live", unit="ms", ge=1, doc="How long a new connection may take to finish its handshake."
    )
    token: str | None = setting(
        None,
        tier="restart",
        nonempty=True,
        filled=True,
        doc="Secret that every connection has to bring, as `Authorization: Bearer` or `?token=`.",
    )
    middleware_function_id: str | None = function_id("Function that every invocation from a worker goes through.")
    rbac: RbacSettings | None = setting(
        None, tier="restart", filled=True, doc="Access control; without it every worker may do everything."
    )
    tls: TlsSettings | None = setting(
        None, tier="restart", filled=True, doc="Certificate and key; with them the port speaks TLS only."
    )

    def refusals(self, _: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """One thing says who gets in."""
        if self.token is not None and self.rbac is not None and self.rbac.auth_function_id is not None:
            yield ("token",), "`rbac.auth_function_id` decides who may connect; a port has either that or a token"


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

    port: int = _port(3111)
    host: str = _host()
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


# State and stream


@frozen(kw_only=True)
class StoreSettings:
    """Where an embedded store keeps its data."""

    store_method: str | None = setting(
        None, tier="restart", choices=_STORES, doc="in_memory or file_based; absent means file_based."
    )
    file_path: str | None = setting(
        None, tier="restart", nonempty=True, doc="Directory of the store; absent means one under the data directory."
    )
    save_interval_ms: int | None = _save_interval()


class _StoreAdapter:
    """What the adapters over an embedded store have in common."""

    __slots__ = ()
    name: str
    config: StoreSettings

    def directory(self, default: Path) -> Path | None:
        """Where the data lives: the directory in the settings, else `default`; None if not in files of this engine."""
        if self.name == _BRIDGE or (self.config.store_method or self.name) == _IN_MEMORY:
            return None
        return default if self.config.file_path is None else Path(self.config.file_path)


@frozen(kw_only=True)
class BridgedSettings(StoreSettings):
    """Where a store is, this engine's own or another engine's."""

    bridge_url: str | None = setting(
        None,
        tier="restart",
        nonempty=True,
        doc="Worker port of the engine that keeps the data, for `bridge`; absent means ws://localhost:49134.",
    )
    token: str | None = setting(
        None,
        tier="restart",
        nonempty=True,
        filled=True,
        doc="Secret that that engine wants, for `bridge`.",
    )


class _BridgedAdapter(_StoreAdapter):
    """What adapters over a store, here or at another engine, have in common."""

    __slots__ = ()
    config: BridgedSettings

    @property
    def bridge(self) -> tuple[str, str | None] | None:
        """URL and token of the engine that keeps the data; None if this one does."""
        return (self.config.bridge_url or _BRIDGE_URL, self.config.token) if self.name == _BRIDGE else None

    def refusals(self, _: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """What says where another engine is means nothing to a store of this one."""
        for key in ("bridge_url", "token"):
            if self.name != _BRIDGE and getattr(self.config, key) is not None:
                yield ("config", key), f"the adapter '{self.name}' has no '{key}'; it belongs to the adapter 'bridge'"
        if self.bridge is not None and not _is_websocket_url(self.bridge[0]):
            yield ("config", "bridge_url"), f"'{self.bridge[0]}' is no WebSocket URL; give one like {_BRIDGE_URL}"


def _is_websocket_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


@frozen(kw_only=True)
class StateAdapter(_BridgedAdapter):
    """What state is kept in."""

    name: str = _adapter("kv", more=("builtin", *_STORES, _BRIDGE))
    config: BridgedSettings = setting(BridgedSettings(), tier="restart", doc="Settings of the store.")


@frozen(kw_only=True)
class StateSettings:
    """Key-value state and its triggers."""

    adapter: StateAdapter = setting(StateAdapter(), tier="restart", doc="What state is kept in.")
    triggers_enabled: bool = setting(True, tier="live", doc="Whether changes fire triggers.")
    max_value_bytes: int | None = setting(None, tier="live", unit="bytes", ge=1, doc="Largest value that is stored.")
    save_interval_ms: int | None = _save_interval()


@frozen(kw_only=True)
class StreamStoreSettings(BridgedSettings):
    """Where streams keep their data, and how far a subscriber may fall behind."""

    channel_size: int = setting(256, tier="restart", ge=1, doc="Events buffered for one subscriber.")


@frozen(kw_only=True)
class StreamAdapter(_BridgedAdapter):
    """What streams are kept in."""

    name: str = _adapter("kv", more=("builtin", *_STORES, _BRIDGE))
    config: StreamStoreSettings = setting(StreamStoreSettings(), tier="restart", doc="Settings of the store.")


@frozen(kw_only=True)
class StreamSettings:
    """Streams and the port their subscribers connect to."""

    port: int = _port(3112)
    host: str = _host()
    auth_function: str | None = setting(
        None, tier="live", nonempty=True, doc="Function that admits new subscriber connections."
    )
    allowed_origins: tuple[str, ...] = setting(
        (), tier="live", doc="Web origins whose pages may connect; empty or '*' means all."
    )
    max_value_bytes: int | None = setting(None, tier="live", unit="bytes", ge=1, doc="Largest value that is stored.")
    adapter: StreamAdapter = setting(StreamAdapter(), tier="rebind", doc="What streams are kept in.")
    tls: TlsSettings | None = setting(
        None, tier="restart", filled=True, doc="Certificate and key; with them the port speaks TLS only."
    )


# Queue


_DAY_MS: Final = 86_400_000
_YEAR_MS: Final = 366 * _DAY_MS


def _in_queue(rule: str) -> Callable[[str, Any], str]:
    return lambda queue, value: rule.format(queue=queue, value=value)


def _dead_letter_max_age() -> Any:
    return setting(
        None, tier="live", unit="ms", ge=1, doc="How long a dead letter is kept; absent means until it is dropped."
    )


def _dead_letter_max_count() -> Any:
    return setting(None, tier="live", ge=1, doc="Dead letters kept, the newest; absent means all.")


@frozen(kw_only=True)
class QueueSettings:
    """One named queue."""

    type: str = setting(
        "standard",
        tier="live",
        choices=("standard", "fifo"),
        refusal=_in_queue("Queue '{queue}' has invalid type '{value}'. Must be 'standard' or 'fifo'"),
        doc="standard, or fifo for order within a message group.",
    )
    max_retries: int = setting(3, tier="live", ge=0, le=_MAX_U32, doc="Deliveries before a message is a dead letter.")
    concurrency: int = setting(
        10,
        tier="live",
        ge=1,
        le=_MAX_U32,
        refusal=_in_queue("Queue '{queue}' has 'concurrency' {value}; it must be at least 1"),
        doc="Messages handled at once.",
    )
    message_group_field: str | None = setting(
        None,
        tier="live",
        nonempty=True,
        refusal=_in_queue("Queue '{queue}' has an empty 'message_group_field'"),
        doc="Field of the payload that names its group; a fifo queue must have it.",
    )
    backoff_ms: int = setting(
        1000, tier="live", unit="ms", ge=0, doc="Delay before the second delivery; doubles with each failure."
    )
    backoff_max_ms: int | None = setting(
        None, tier="live", unit="ms", ge=0, le=_DAY_MS, doc="The longest such delay; absent means a day."
    )
    backoff_type: str | None = setting(
        None, tier="live", choices=("exponential", "fixed"), doc="fixed keeps the delay the same; absent: exponential."
    )
    backoff_jitter: float | None = setting(
        None, tier="live", ge=0, le=1, doc="How much of a delay may be cut off by chance: 0.2 is up to a fifth."
    )
    timeout_ms: int = setting(
        1_800_000,
        tier="live",
        unit="ms",
        ge=1,
        refusal=_in_queue("Queue '{queue}' has 'timeout_ms' {value}; it must be at least 1"),
        doc="How long one delivery may take before it counts as failed.",
    )
    delay_ms: int | None = setting(
        None, tier="live", unit="ms", ge=0, le=_YEAR_MS, doc="How long a message waits before its first delivery."
    )
    max_length: int | None = setting(
        None, tier="live", ge=1, doc="Messages that may wait or be handled; one more is refused."
    )
    max_priority: int | None = setting(
        None,
        tier="live",
        ge=1,
        le=255,
        refusal=_in_queue("Queue '{queue}' has 'max_priority' {value}; it must be between 1 and 255"),
        doc="Highest message priority; a higher one counts as this. Absent means 255.",
    )
    priority_field: str | None = setting(
        None, tier="live", nonempty=True, doc="Field of the payload that holds its priority, a whole number from 0."
    )
    deduplication_field: str | None = setting(
        None, tier="live", nonempty=True, doc="Field of the payload by which a message is known to be a repetition."
    )
    deduplication_window_ms: int | None = setting(
        None, tier="live", unit="ms", ge=1, le=_YEAR_MS, doc="How long a repetition is recognised; absent: 5 minutes."
    )
    dead_letter_max_age_ms: int | None = _dead_letter_max_age()
    dead_letter_max_count: int | None = _dead_letter_max_count()
    poll_interval_ms: int | None = no_op(why=_NO_POLLING, unit="ms", ge=1, doc="Interval between looks at the store.")
    redeliver_on_engine_restart: bool | None = no_op(
        why="an interrupted delivery is always repeated", doc="Repeat deliveries that a restart interrupted."
    )

    def refusals(self, queue: str) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.type == "fifo" and self.message_group_field is None:
            yield ("type",), f"Queue '{queue}' is of type 'fifo' but 'message_group_field' is not set"


@frozen(kw_only=True)
class QueueStoreSettings(StoreSettings):
    """Where the queue keeps its messages, and what holds for topic subscribers that say nothing else."""

    max_attempts: int = setting(3, tier="restart", ge=1, le=_MAX_U32, doc="Deliveries of a topic message.")
    backoff_ms: int = setting(1000, tier="restart", unit="ms", ge=0, doc="Delay before a topic message's second one.")
    concurrency: int = setting(10, tier="restart", ge=1, le=_MAX_U32, doc="Topic messages handled at once.")
    mode: str = setting(
        "concurrent", tier="restart", choices=("concurrent", "fifo"), doc="concurrent, or fifo for one at a time."
    )
    dead_letter_max_age_ms: int | None = _dead_letter_max_age()
    dead_letter_max_count: int | None = _dead_letter_max_count()
    poll_interval_ms: int | None = no_op(why=_NO_POLLING, unit="ms", ge=1, doc="Interval between looks at the store.")


@frozen(kw_only=True)
class QueueAdapter(_StoreAdapter):
    """What messages are kept in."""

    name: str = _adapter("builtin", more=("kv", *_STORES))
    config: QueueStoreSettings = setting(QueueStoreSettings(), tier="restart", doc="Settings of the store.")


def _with_default(queues: Mapping[str, QueueSettings]) -> Mapping[str, QueueSettings]:
    return MappingProxyType(dict(queues) if "default" in queues else {"default": QueueSettings(), **queues})


@frozen(kw_only=True)
class QueueModuleSettings:
    """Named queues and topics. The queue `default` is always there."""

    queue_configs: Mapping[str, QueueSettings] = setting(
        MappingProxyType({}), tier="live", converter=_with_default, doc="The named queues."
    )
    adapter: QueueAdapter = setting(QueueAdapter(), tier="restart", doc="What messages are kept in.")

    def refusals(self, _: str) -> Iterator[tuple[tuple[str, ...], str]]:
        for name in self.queue_configs:
            if not name.strip():
                yield ("queue_configs", name), "queue name is required"
            elif name != name.strip():
                yield ("queue_configs", name), "queue name must not have leading or trailing whitespace"


# Pub/sub and cron


@frozen(kw_only=True)
class NoSettings:
    """An adapter without settings."""


@frozen(kw_only=True)
class PubSubAdapter:
    """What carries published messages."""

    name: str = _adapter("local")
    config: NoSettings = setting(NoSettings(), tier="restart", doc="Nothing to set.")


@frozen(kw_only=True)
class PubSubSettings:
    """Publish and subscribe."""

    adapter: PubSubAdapter = setting(PubSubAdapter(), tier="restart", doc="What carries published messages.")


@frozen(kw_only=True)
class CronLockSettings:
    """Where cron keeps its locks; in memory unless the file says otherwise."""

    store_method: str = setting(_IN_MEMORY, tier="restart", choices=_STORES, doc="in_memory or file_based.")
    file_path: str | None = setting(None, tier="restart", nonempty=True, doc="Directory of the lock store.")
    save_interval_ms: int | None = _save_interval()
    lock_ttl_ms: int = setting(30_000, tier="restart", unit="ms", ge=1, doc="How long a lock outlives its holder.")
    lock_index: str = setting("cron_locks", tier="restart", nonempty=True, doc="Index the locks are kept under.")


@frozen(kw_only=True)
class CronAdapter:
    """What decides which engine runs a job."""

    name: str = _adapter("kv")
    config: CronLockSettings = setting(CronLockSettings(), tier="restart", doc="Settings of the locks.")


@frozen(kw_only=True)
class CronSettings:
    """Scheduled triggers."""

    adapter: CronAdapter = setting(CronAdapter(), tier="restart", doc="What decides which engine runs a job.")
    weekday_numbering: str = setting(
        "quartz",
        tier="restart",
        choices=("quartz", "posix"),
        doc="quartz counts Sunday as 1, posix counts Sunday as 0 or 7.",
    )


@frozen(kw_only=True)
class AdminSettings:
    """The port for whoever operates the engine: liveness, readiness, counters."""

    port: int = _port(9464)
    host: str = _host()


# HTTP-invoked functions


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


# Configuration


@frozen(kw_only=True)
class EntryFilesSettings:
    """Where the values that somebody set are kept."""

    directory: str | None = setting(
        None,
        tier="restart",
        nonempty=True,
        doc="Directory of the entries; absent means ./config, or config in the data directory where one is named.",
    )


@frozen(kw_only=True)
class ConfigurationAdapter:
    """What entries are kept in."""

    name: str = _adapter("fs", more=(_IN_MEMORY,))
    config: EntryFilesSettings = setting(EntryFilesSettings(), tier="restart", doc="Settings of the store.")


@frozen(kw_only=True)
class ConfigurationSettings:
    """The entries by which the engine and its workers are configured while they run."""

    adapter: ConfigurationAdapter = setting(ConfigurationAdapter(), tier="restart", doc="What entries are kept in.")
    ttl_seconds: int = setting(
        0, tier="live", unit="s", ge=0, doc="How long an entry outlives the last trigger on it; 0 means for ever."
    )


SETTINGS: Final[Mapping[str, type[Any]]] = MappingProxyType(
    {
        "worker-manager": WorkerManagerSettings,
        "configuration": ConfigurationSettings,
        "http": HttpSettings,
        "state": StateSettings,
        "stream": StreamSettings,
        "queue": QueueModuleSettings,
        "pubsub": PubSubSettings,
        "cron": CronSettings,
        "http-functions": HttpFunctionsSettings,
        "admin": AdminSettings,
    }
)
"""Canonical worker name → its settings class."""


def read_settings(cls: type[T], entry: Entry) -> Structured[T]:
    """The block of `entry` as an instance of `cls`.

    Raises `ConfigError`, which begins `failed to create worker '<name as listed>'` and has every problem of the block.
    """
    return structure(cls, entry.config, summary=f"failed to create worker '{entry.label}'")
