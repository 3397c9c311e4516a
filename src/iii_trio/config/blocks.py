"""The settings of each built-in worker, as its block in the config file or its configuration entry spells them.

Keys, defaults and bounds: spec/http.md §1.1, spec/queue.md §3 and §9.1, spec/protocol.md §14.1, spec/state-stream.md §8
and §11, spec/pubsub-cron-config-cli.md §1, §2.5 and §4. Listeners bind `localhost` by default, which stands for both
loopback addresses; the reference binds every interface.
"""

# ruff: noqa: RUF009  `setting()` is evaluated once on purpose: it makes a field

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from attrs import frozen

from iii_trio.config.file import Entry
from iii_trio.config.http_blocks import (
    HttpFunctionsSettings,
    HttpSettings,
)
from iii_trio.config.parts import (
    BRIDGE,
    IN_MEMORY,
    STORES,
    BridgedAdapter,
    BridgedSettings,
    adapter_setting,
    host_setting,
    origin_refusals,
    origins_setting,
    port_setting,
    save_interval_setting,
)
from iii_trio.config.queue_blocks import QueueModuleSettings
from iii_trio.config.rbac import RbacSettings, TlsSettings, function_id
from iii_trio.config.settings import setting
from iii_trio.config.structuring import Structured, structure

T = TypeVar("T")

# Worker port


@frozen(kw_only=True)
class WorkerManagerSettings:
    """The port that workers connect to."""

    port: int = port_setting(49134)
    host: str = host_setting()
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
    allowed_origins: tuple[str, ...] | None = origins_setting()
    middleware_function_id: str | None = function_id("Function that every invocation from a worker goes through.")
    rbac: RbacSettings | None = setting(
        None, tier="restart", filled=True, doc="Access control; without it every worker may do everything."
    )
    tls: TlsSettings | None = setting(
        None, tier="restart", filled=True, doc="Certificate and key; with them the port speaks TLS only."
    )

    def refusals(self, _: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """One thing says who gets in, and origins are spelled as browsers spell them."""
        if self.token is not None and self.rbac is not None and self.rbac.auth_function_id is not None:
            yield ("token",), "`rbac.auth_function_id` decides who may connect; a port has either that or a token"
        yield from origin_refusals(self.allowed_origins)


# State and stream


@frozen(kw_only=True)
class StateAdapter(BridgedAdapter):
    """What state is kept in."""

    name: str = adapter_setting("kv", more=("builtin", *STORES, BRIDGE))
    config: BridgedSettings = setting(BridgedSettings(), tier="restart", doc="Settings of the store.")


@frozen(kw_only=True)
class StateSettings:
    """Key-value state and its triggers."""

    adapter: StateAdapter = setting(StateAdapter(), tier="restart", doc="What state is kept in.")
    triggers_enabled: bool = setting(True, tier="live", doc="Whether changes fire triggers.")
    max_value_bytes: int | None = setting(None, tier="live", unit="bytes", ge=1, doc="Largest value that is stored.")
    save_interval_ms: int | None = save_interval_setting()


@frozen(kw_only=True)
class StreamStoreSettings(BridgedSettings):
    """Where streams keep their data, and how far a subscriber may fall behind."""

    channel_size: int = setting(256, tier="restart", ge=1, doc="Events buffered for one subscriber.")


@frozen(kw_only=True)
class StreamAdapter(BridgedAdapter):
    """What streams are kept in."""

    name: str = adapter_setting("kv", more=("builtin", *STORES, BRIDGE))
    config: StreamStoreSettings = setting(StreamStoreSettings(), tier="restart", doc="Settings of the store.")


@frozen(kw_only=True)
class StreamSettings:
    """Streams and the port their subscribers connect to."""

    port: int = port_setting(3112)
    host: str = host_setting()
    auth_function: str | None = setting(
        None, tier="live", nonempty=True, doc="Function that admits new subscriber connections."
    )
    allowed_origins: tuple[str, ...] | None = origins_setting()
    max_value_bytes: int | None = setting(None, tier="live", unit="bytes", ge=1, doc="Largest value that is stored.")
    adapter: StreamAdapter = setting(StreamAdapter(), tier="rebind", doc="What streams are kept in.")
    tls: TlsSettings | None = setting(
        None, tier="restart", filled=True, doc="Certificate and key; with them the port speaks TLS only."
    )

    def refusals(self, _: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """Origins are spelled as browsers spell them."""
        yield from origin_refusals(self.allowed_origins)


# Pub/sub and cron


@frozen(kw_only=True)
class NoSettings:
    """An adapter without settings."""


@frozen(kw_only=True)
class PubSubAdapter:
    """What carries published messages."""

    name: str = adapter_setting("local")
    config: NoSettings = setting(NoSettings(), tier="restart", doc="Nothing to set.")


@frozen(kw_only=True)
class PubSubSettings:
    """Publish and subscribe."""

    adapter: PubSubAdapter = setting(PubSubAdapter(), tier="restart", doc="What carries published messages.")


@frozen(kw_only=True)
class CronLockSettings:
    """Where cron keeps its locks; in memory unless the file says otherwise."""

    store_method: str = setting(IN_MEMORY, tier="restart", choices=STORES, doc="in_memory or file_based.")
    file_path: str | None = setting(None, tier="restart", nonempty=True, doc="Directory of the lock store.")
    save_interval_ms: int | None = save_interval_setting()
    lock_ttl_ms: int = setting(30_000, tier="restart", unit="ms", ge=1, doc="How long a lock outlives its holder.")
    lock_index: str = setting("cron_locks", tier="restart", nonempty=True, doc="Index the locks are kept under.")


@frozen(kw_only=True)
class CronAdapter:
    """What decides which engine runs a job."""

    name: str = adapter_setting("kv")
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

    port: int = port_setting(9464)
    host: str = host_setting()


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

    name: str = adapter_setting("fs", more=(IN_MEMORY,))
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
