"""The names of built-in workers and adapters through the generations, each resolved to one canonical name.

spec/pubsub-cron-config-cli.md §7.2 is the source of both tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen


@frozen
class WorkerName:
    """One built-in worker and every spelling a config file may use for it."""

    canonical: str
    """What the house calls it."""
    established: str
    """The name of 0.11 – 0.23; also the id of its configuration entry."""
    legacy_class: str | None = None
    """What ≤ 0.10 files say under `class:`."""
    always_on: bool = False
    default_set: bool = True

    @property
    def spellings(self) -> tuple[str, ...]:
        """Oldest first."""
        older = (self.legacy_class,) if self.legacy_class else ()
        newer = (self.canonical,) if self.canonical != self.established else ()
        return (*older, self.established, *newer)


WORKERS: Final[tuple[WorkerName, ...]] = (
    WorkerName("worker-manager", "iii-worker-manager", "modules::worker::WorkerModule", always_on=True),
    WorkerName("engine-functions", "iii-engine-functions", always_on=True),
    WorkerName("configuration", "configuration", always_on=True),
    WorkerName("observability", "iii-observability", "modules::observability::OtelModule", always_on=True),
    WorkerName("telemetry", "iii-telemetry", always_on=True),
    WorkerName("http", "iii-http", "modules::api::RestApiModule"),
    WorkerName("state", "iii-state", "modules::state::StateModule"),
    WorkerName("stream", "iii-stream", "modules::stream::StreamModule"),
    WorkerName("queue", "iii-queue", "modules::queue::QueueModule"),
    WorkerName("pubsub", "iii-pubsub", "modules::pubsub::PubSubModule"),
    WorkerName("cron", "iii-cron", "modules::cron::CronModule"),
    WorkerName(
        "http-functions",
        "iii-http-functions",
        "modules::http_functions::HttpFunctionsModule",
        default_set=False,
    ),
    WorkerName("admin", "admin", default_set=False),
    WorkerName("exec", "iii-exec", "modules::shell::ExecModule", default_set=False),
    WorkerName("bridge", "iii-bridge", "modules::bridge_client::BridgeClientModule", default_set=False),
)

EXTERNAL: Final = frozenset({"iii-sandbox", "iii-worker-ops"})
"""Separate programs the reference starts beside itself; listed here, they are skipped with a note."""

BY_SPELLING: Final[Mapping[str, WorkerName]] = {spelling: worker for worker in WORKERS for spelling in worker.spellings}

_ADAPTER_CLASSES: Final[Mapping[str, str]] = {
    "KvStore": "kv",
    "KvCronAdapter": "kv",
    "RedisAdapter": "redis",
    "RedisCronAdapter": "redis",
    "Bridge": "bridge",
    "LocalAdapter": "local",
    "BuiltinQueueAdapter": "builtin",
    "RabbitMQAdapter": "rabbitmq",
}


def adapter_name(spelled: str) -> str:
    """The adapter a ≤ 0.10 class path stands for (`modules::state::adapters::KvStore` → `kv`); others pass unchanged."""
    path, separator, last = spelled.rpartition("::")
    return _ADAPTER_CLASSES.get(last, spelled) if separator and path else spelled
