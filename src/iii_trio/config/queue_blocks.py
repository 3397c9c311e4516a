"""The settings of the `queue` worker (spec/queue.md §3 and §9.1)."""

# ruff: noqa: RUF009  `setting()` is evaluated once on purpose: it makes a field

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from attrs import frozen

from iii_trio.config.parts import (
    MAX_U32,
    NO_POLLING,
    STORES,
    StoreAdapter,
    StoreSettings,
    adapter_setting,
)
from iii_trio.config.settings import no_op, setting

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
    max_retries: int = setting(3, tier="live", ge=0, le=MAX_U32, doc="Deliveries before a message is a dead letter.")
    concurrency: int = setting(
        10,
        tier="live",
        ge=1,
        le=MAX_U32,
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
    poll_interval_ms: int | None = no_op(why=NO_POLLING, unit="ms", ge=1, doc="Interval between looks at the store.")
    redeliver_on_engine_restart: bool | None = no_op(
        why="an interrupted delivery is always repeated", doc="Repeat deliveries that a restart interrupted."
    )

    def refusals(self, queue: str) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.type == "fifo" and self.message_group_field is None:
            yield ("type",), f"Queue '{queue}' is of type 'fifo' but 'message_group_field' is not set"


@frozen(kw_only=True)
class QueueStoreSettings(StoreSettings):
    """Where the queue keeps its messages, and what holds for topic subscribers that say nothing else."""

    max_attempts: int = setting(3, tier="restart", ge=1, le=MAX_U32, doc="Deliveries of a topic message.")
    backoff_ms: int = setting(1000, tier="restart", unit="ms", ge=0, doc="Delay before a topic message's second one.")
    concurrency: int = setting(10, tier="restart", ge=1, le=MAX_U32, doc="Topic messages handled at once.")
    mode: str = setting(
        "concurrent", tier="restart", choices=("concurrent", "fifo"), doc="concurrent, or fifo for one at a time."
    )
    dead_letter_max_age_ms: int | None = _dead_letter_max_age()
    dead_letter_max_count: int | None = _dead_letter_max_count()
    poll_interval_ms: int | None = no_op(why=NO_POLLING, unit="ms", ge=1, doc="Interval between looks at the store.")


@frozen(kw_only=True)
class QueueAdapter(StoreAdapter):
    """What messages are kept in."""

    name: str = adapter_setting("builtin", more=("kv", *STORES))
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
