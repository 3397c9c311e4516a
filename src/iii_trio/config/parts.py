"""What several blocks of settings have in common: addresses, and adapters over a store (spec/state-stream.md §8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import frozen

from iii_trio.config.names import adapter_name
from iii_trio.config.settings import no_op, setting
from iii_trio.protocol.origins import canonical_origin

LOOPBACK: Final = "localhost"
"""The default host of every listener: 127.0.0.1 and ::1 together."""

IN_MEMORY: Final = "in_memory"
FILE_BASED: Final = "file_based"
STORES: Final = (IN_MEMORY, FILE_BASED)
BRIDGE: Final = "bridge"
BRIDGE_URL: Final = "ws://localhost:49134"
_NOT_YET: Final = ("redis", "rabbitmq", BRIDGE)
_DURABLE_AT_ONCE: Final = "every write is on disk before it is acknowledged"
NO_POLLING: Final = "queues wake at once instead of polling"
MAX_U32: Final = 2**32 - 1


def port_setting(default: int) -> Any:
    return setting(default, tier="rebind", ge=0, le=65535, doc="TCP port to listen on; 0 lets the system choose.")


def host_setting() -> Any:
    return setting(
        LOOPBACK, tier="rebind", nonempty=True, doc="Address to listen on; localhost means 127.0.0.1 and ::1."
    )


def origins_setting() -> Any:
    return setting(
        None,
        tier="live",
        filled=True,
        doc="Web origins whose pages may connect, '*' for all; absent means all, an empty list none.",
    )


def origin_refusals(origins: Sequence[str] | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """What in `allowed_origins` no browser would ever send."""
    for origin in origins or ():
        try:
            canonical_origin(origin)
        except ValueError as error:
            yield ("allowed_origins",), str(error)


def adapter_setting(default: str, *, more: tuple[str, ...] = ()) -> Any:
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


def save_interval_setting() -> Any:
    return no_op(why=_DURABLE_AT_ONCE, unit="ms", ge=100, le=3_600_000, doc="Interval between saves.")


@frozen(kw_only=True)
class StoreSettings:
    """Where an embedded store keeps its data."""

    store_method: str | None = setting(
        None, tier="restart", choices=STORES, doc="in_memory or file_based; absent means file_based."
    )
    file_path: str | None = setting(
        None, tier="restart", nonempty=True, doc="Directory of the store; absent means one under the data directory."
    )
    save_interval_ms: int | None = save_interval_setting()


class StoreAdapter:
    """What the adapters over an embedded store have in common."""

    __slots__ = ()
    name: str
    config: StoreSettings

    def directory(self, default: Path) -> Path | None:
        """Where the data lives: the directory in the settings, else `default`; None if not in files of this engine."""
        if self.name == BRIDGE or (self.config.store_method or self.name) == IN_MEMORY:
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


class BridgedAdapter(StoreAdapter):
    """What adapters over a store, here or at another engine, have in common."""

    __slots__ = ()
    config: BridgedSettings

    @property
    def bridge(self) -> tuple[str, str | None] | None:
        """URL and token of the engine that keeps the data; None if this one does."""
        return (self.config.bridge_url or BRIDGE_URL, self.config.token) if self.name == BRIDGE else None

    def refusals(self, _: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """What says where another engine is means nothing to a store of this one."""
        for key in ("bridge_url", "token"):
            if self.name != BRIDGE and getattr(self.config, key) is not None:
                yield ("config", key), f"the adapter '{self.name}' has no '{key}'; it belongs to the adapter 'bridge'"
        if self.bridge is not None and not _is_websocket_url(self.bridge[0]):
            yield ("config", "bridge_url"), f"'{self.bridge[0]}' is no WebSocket URL; give one like {BRIDGE_URL}"


def _is_websocket_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
