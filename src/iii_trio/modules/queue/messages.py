"""What somebody wants delivered, and what its payload says about its place in a named queue (spec/queue.md §2.4, §2.6)."""

import hashlib
from typing import Final

from attrs import frozen

from ...config import QueueSettings
from ...protocol import ABSENT, NULL, Json, codec, errors
from ...protocol.errors import ProtocolError, WireError
from .lanes import HIGHEST_PRIORITY

DEDUPLICATION_WINDOW_MS: Final = 300_000
"""How long a repetition is recognised where nothing else is said."""

LONGEST_DELAY_MS: Final = 366 * 86_400_000
LONGEST_KEY: Final = 1_024
"""Characters of a deduplication key."""


@frozen
class Message:
    """The payload, the trace context that goes with it, and what its sender says about its delivery.

    `delay_ms` of None is the queue's own delay. A message whose `repetition_key` was seen a short while ago is stored
    only once. `priority` is 0 to 255, the highest first. `terms` are what its handler gets and who is asked before.
    """

    data: Json
    traceparent: str | None = None
    baggage: str | None = None
    delay_ms: int | None = None
    priority: int | None = None
    repetition_key: str | None = None
    terms: "Terms | None" = None


@frozen
class Terms:
    """What a single message of a named queue says about its deliveries, where a trigger would say it of all.

    `metadata` goes to the handler; `condition` is a function in the namespace of the handler that may skip it.
    """

    metadata: Json = ABSENT
    condition: str | None = None

    def encoded(self) -> bytes:
        """As it is stored with the message."""
        return codec.encode_object({"metadata": self.metadata, "condition": self.condition})

    @classmethod
    def stored(cls, text: bytes | None) -> "Terms | None":
        """What `encoded` made, or None for nothing."""
        fields = None if text is None else codec.members(text)
        if fields is None:
            return None
        metadata, condition = Json(fields["metadata"]), Json(fields["condition"]).decode()
        return cls(ABSENT if metadata == NULL else metadata, condition)


@frozen
class Sorting:
    """Where a message belongs in its queue: `group` is None in a standard queue, `repetition_key` if it has none."""

    group: str | None
    priority: int
    repetition_key: str | None


def reading(queue: str, settings: QueueSettings, message: Message) -> Sorting:
    """Read what the settings look for in a payload; what the sender said himself wins. Raises `WireError`."""
    looked_for = settings.type == "fifo" or settings.priority_field or settings.deduplication_field
    fields = (codec.members(message.data.raw) or {}) if looked_for else {}
    highest = HIGHEST_PRIORITY if settings.max_priority is None else settings.max_priority
    priority = message.priority
    if priority is None and settings.priority_field is not None:
        priority = _priority(fields.get(settings.priority_field))
    key = message.repetition_key
    if key is None and settings.deduplication_field is not None:
        key = _text(fields.get(settings.deduplication_field))
    if key is not None and len(key) > LONGEST_KEY:
        text = f"the deduplication key has {len(key)} characters; {LONGEST_KEY} are the most"
        raise WireError(text, errors.ENQUEUE_ERROR)
    return Sorting(_group(queue, settings, fields), min(priority or 0, highest), key)


def _group(queue: str, settings: QueueSettings, fields: dict[str, bytes]) -> str | None:
    if settings.type != "fifo":
        return None
    name = settings.message_group_field
    if name is None:
        text = f"FIFO queue '{queue}' requires 'message_group_field' to be configured"
        raise WireError(text, errors.ENQUEUE_ERROR)
    raw = fields.get(name)
    if raw is None:
        text = f"FIFO queue '{queue}' requires field '{name}' in data, but it was not found"
        raise WireError(text, errors.ENQUEUE_ERROR)
    group = _text(raw)
    if group is None:
        raise WireError(f"FIFO queue '{queue}': field '{name}' must not be null", errors.ENQUEUE_ERROR)
    # every message in memory has its group's name: a value of any length is as good by its digest
    return group if len(group) <= LONGEST_KEY else hashlib.sha256(group.encode()).hexdigest()


def _text(raw: bytes | None) -> str | None:
    """A value as a name: equal values have equal names, whatever their spelling. None for null and for nothing."""
    if raw is None or raw == b"null":
        return None
    try:
        return codec.canonical_text(codec.decode_value(raw)).decode()
    except ProtocolError:
        return raw.decode(errors="replace")  # a number beyond all bounds: its text is as good a name


def _priority(raw: bytes | None) -> int | None:
    """A whole number from 0; anything else is no priority."""
    if raw is None or len(raw) > 20 or not raw.isdigit():
        return None
    return int(raw)
