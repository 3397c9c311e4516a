"""The name under which a queue's messages stand in the log: one text per named queue, destination, or unclaimed topic.

Every operand is escaped (`\\` as `\\\\`, `@` as `\\@`) and the parts are joined by bare `@`, so that no two queues share
a name, whatever characters users choose. spec/queue.md §7.2 joins topic and function by `::`, which both may contain.
"""

import re
from enum import Enum
from typing import Final

from attrs import field, frozen


class Kind(Enum):
    """What a queue is; the value is the first part of its name."""

    NAMED = "queue"
    """A named queue: every message carries its own target."""
    DESTINATION = "topic"
    """The copies of what is published to a topic for one function."""
    UNCLAIMED = "unclaimed"
    """What was published to a topic before anybody subscribed to it."""

    __hash__ = object.__hash__  # Enum's own is written in Python, and every look-up of a queue needs it


_PARTS: Final = re.compile(r"@((?:[^@\\]|\\.)*)", re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


@frozen
class QueueKey:
    """Which queue: `name` is the queue's or topic's, the others are a destination's function."""

    kind: Kind
    name: str
    function_id: str = ""
    namespace: str = ""
    text: str = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        parts = [self.name]
        if self.kind is Kind.DESTINATION:
            parts += [self.function_id, self.namespace]
        escaped = (part.replace("\\", "\\\\").replace("@", "\\@") for part in parts)
        object.__setattr__(self, "text", "@".join((self.kind.value, *escaped)))

    @classmethod
    def parse(cls, text: str) -> "QueueKey":
        """The key whose `text` this is; raises `ValueError` for a text that no key has."""
        kind = Kind(text.partition("@")[0])
        parts = [_ESCAPED.sub(r"\1", part) for part in _PARTS.findall(text)]
        key = cls(kind, *parts) if len(parts) == (3 if kind is Kind.DESTINATION else 1) else None
        if key is None or key.text != text:
            raise ValueError(f"{text!r} is no name of a queue")
        return key
