"""The trigger type `durable:subscriber`: what its configuration says, and the bindings as shares of queues (§7)."""

from typing import Any, Final

from attrs import define

from ...config import QueueStoreSettings
from ...engine import Binding, Reason
from ...protocol.errors import StoreError, TriggerRejected
from ...protocol.json import ABSENT, JsonError
from ...protocol.limits import DELIVERY_S, QUEUE_NAME_CHARS
from .delivery import Share
from .queues import Queues
from .verdicts import BACKOFF_CEILING_MS, Policy

TRIGGER_TYPE: Final = "durable:subscriber"
DESCRIPTION: Final = "Calls the function for every message published to a topic, at least once, with retries"
CONFIG_FORMAT: Final = {
    "type": "object",
    "properties": {
        "topic": {"type": "string", "description": "The topic to subscribe to"},
        "condition_function_id": {
            "type": ["string", "null"],
            "description": "Function asked before each attempt; false skips the message",
        },
        "queue_config": {
            "description": "type (standard, fifo), maxRetries, concurrency, backoffDelayMs, backoffMaxMs, backoffType "
            "(exponential, fixed), delaySeconds, visibilityTimeout (s for one delivery); snake_case works too"
        },
    },
    "required": ["topic"],
}

_LARGEST: Final = 2**32 - 1
_LONGEST_DELAY_S: Final = 366 * 86_400


def topic_of(config: dict[str, Any]) -> str:
    """The topic; raises `TriggerRejected` when there is none, or when its name is too long."""
    for name in ("topic", "queue"):
        value = config.get(name)
        if isinstance(value, str) and value:
            if len(value) > QUEUE_NAME_CHARS:
                raise TriggerRejected(f"the topic has {len(value)} characters; {QUEUE_NAME_CHARS} are the most")
            return value
    raise TriggerRejected(f"topic is required for {TRIGGER_TYPE} triggers")


def share_of(config: dict[str, Any], defaults: QueueStoreSettings) -> Share:
    """What a trigger's configuration says about its deliveries, in the spellings of every generation.

    Values of a wrong type count as not given, as everywhere in `queue_config`.
    """
    infrastructure = _object(_object(config.get("metadata")).get("infrastructure"))
    tuning = _object(infrastructure.get("queue")) | _object(config.get("queue_config"))

    def number(*names: str) -> int | None:
        for source in (config, tuning):
            for name in names:
                value = source.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                    return min(value, _LARGEST)
        return None

    kind = tuning.get("type")
    fifo = kind == "fifo" if isinstance(kind, str) else defaults.mode == "fifo"
    retries = number("maxRetries", "max_retries")
    backoff = number("backoffDelayMs", "backoff_delay_ms", "backoffMs", "backoff_ms")
    backoff_max = number("backoffMaxMs", "backoff_max_ms")
    concurrency = number("concurrency")
    timeout_s, delay_s = number("visibilityTimeout", "visibility_timeout"), number("delaySeconds", "delay_seconds")
    growth = tuning.get("backoffType", tuning.get("backoff_type"))
    condition = config.get("condition_function_id") or config.get("_condition_path")
    return Share(
        Policy(
            concurrency=1 if fifo else defaults.concurrency if concurrency is None else concurrency,
            fifo=fifo,
            max_attempts=defaults.max_attempts if retries is None else retries + 1,
            backoff_ms=defaults.backoff_ms if backoff is None else backoff,
            backoff_max_ms=BACKOFF_CEILING_MS if backoff_max is None else backoff_max,
            backoff_fixed=growth == "fixed",
        ),
        timeout_s=float(timeout_s or DELIVERY_S),
        delay_ms=min(delay_s or 0, _LONGEST_DELAY_S) * 1000,
        condition=condition if isinstance(condition, str) else None,
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@define(eq=False)
class Subscriptions:
    """The provider: a derived index of bindings, kept in `queues`."""

    queues: Queues

    def bind(self, binding: Binding) -> None:
        """Subscribe. Raises `TriggerRejected` for a missing topic."""
        try:
            config = _object(binding.config.decode())
        except JsonError as error:
            raise TriggerRejected(f"invalid {TRIGGER_TYPE} config: {error}") from None
        topic = topic_of(config)
        share = share_of(config, self.queues.settings.value.adapter.config)
        share.metadata = binding.metadata or ABSENT
        try:
            self.queues.subscribe(binding.id, topic, (binding.namespace, binding.function_id), share)
        except StoreError as error:
            raise TriggerRejected(str(error)) from None

    def replace(self, old: Binding, new: Binding) -> None:
        """`new` takes over: the destination stays, unless the topic or the function is another one."""
        self.bind(new)

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """A worker that left comes back: its destination is remembered. One that unregistered does not want any more."""
        self.queues.unsubscribe(binding.id, forget=reason in (Reason.UNREGISTERED, Reason.REJECTED))
