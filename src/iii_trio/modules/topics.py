"""Topics and patterns of topics: who subscribes to what, found without looking at who subscribes to something else.

A pattern is a topic whose segments, parted by `.`, may be `*` for any one segment, or, the last one, `**` for one or more:
`orders.*` covers `orders.paid`, `orders.**` covers `orders.paid.eu` too. Patterns count only where a subscription asks
for them by `"match": "wildcard"`; everywhere else a topic is a plain text, whatever is in it. They stand in a tree of
segments, so that a look-up follows at most three branches a segment, and costs nothing where there is no pattern.
"""

from collections.abc import Iterator
from typing import Final

from attrs import define, field

from ..engine import Binding, Reason
from ..protocol.errors import TriggerRejected
from ..protocol.limits import PATTERN_SEGMENTS
from .bindings import BindingIndex
from .inputs import config_fields

ONE: Final = "*"
REST: Final = "**"
EXACT: Final = "exact"
WILDCARD: Final = "wildcard"

Pattern = tuple[str, ...]
"""Segments of a pattern."""


def read_config(binding: Binding) -> tuple[str | Pattern, str | None]:
    """Topic or pattern of a `subscribe` binding, and its condition; raises `TriggerRejected` for what cannot be either."""
    fields = config_fields(binding)
    topic = fields.text("topic")
    if not topic:
        raise fields.refuse("field `topic` is empty: name the topic to subscribe to")
    match = fields.text_or_none("match")
    if match not in (None, EXACT, WILDCARD):
        raise fields.refuse(f"field `match`: expected `{EXACT}` or `{WILDCARD}`, not `{match}`")
    condition = fields.function_id("condition_function_id")
    return (parse_pattern(topic) if match == WILDCARD else topic), condition


def parse_pattern(text: str) -> Pattern:
    """The segments of a pattern. Raises `TriggerRejected` for one that is none."""
    segments = tuple(text.split("."))
    if len(segments) > PATTERN_SEGMENTS:
        why = f"the pattern has {len(segments)} segments, and {PATTERN_SEGMENTS} are the most"
        raise TriggerRejected(f"Failed to parse trigger config: {why}")
    for place, segment in enumerate(segments):
        last = place == len(segments) - 1
        if "*" in segment and segment != ONE and not (segment == REST and last):
            raise TriggerRejected(
                f"Failed to parse trigger config: `{text}` is no pattern: `*` stands for one whole segment, and `**` "
                "for the rest at the end"
            )
    return segments


@define(eq=False)
class _Node:
    """One place in the tree: what follows by segment, and whether a pattern ends here."""

    next: dict[str, "_Node"] = field(factory=dict)
    ends: bool = False


@define(eq=False)
class Patterns:
    """A set of patterns."""

    _root: _Node = field(factory=_Node)
    _count: int = 0

    def add(self, pattern: Pattern) -> None:
        """Take a pattern in; again is as once."""
        node = self._root
        for segment in pattern:
            node = node.next.setdefault(segment, _Node())
        self._count += not node.ends
        node.ends = True

    def discard(self, pattern: Pattern) -> None:
        """Take a pattern out, if it is in."""
        path = [self._root]
        for segment in pattern:
            node = path[-1].next.get(segment)
            if node is None:
                return
            path.append(node)
        self._count -= path[-1].ends
        path[-1].ends = False
        for parent, segment, node in reversed(list(zip(path, pattern, path[1:], strict=False))):
            if node.next or node.ends:
                return
            del parent.next[segment]

    def covering(self, topic: str) -> Iterator[Pattern]:
        """Every pattern that covers a topic."""
        if not self._count:
            return
        segments = topic.split(".", PATTERN_SEGMENTS)  # no pattern tells apart what comes after
        branches: list[tuple[_Node, Pattern]] = [(self._root, ())]
        for segment in segments:
            following: list[tuple[_Node, Pattern]] = []
            for node, pattern in branches:
                if (rest := node.next.get(REST)) is not None and rest.ends:
                    yield (*pattern, REST)
                names = (ONE,) if segment in (ONE, REST) else (segment, ONE)
                following += [(node.next[name], (*pattern, name)) for name in names if name in node.next]
            if not following:
                return
            branches = following
        for node, pattern in branches:
            if node.ends:
                yield pattern

    def __len__(self) -> int:
        return self._count


@define(eq=False)
class Topics:
    """Who subscribes to which topic or pattern; the provider of the trigger type `subscribe`."""

    _index: BindingIndex[str | Pattern] = field(factory=lambda: BindingIndex(read_config), init=False)
    _patterns: Patterns = field(factory=Patterns, init=False)

    def at(self, topic: str) -> list[tuple[Binding, str | None]]:
        """Every subscription that a message to this topic goes to, each with its condition; the exact ones first."""
        found = [*self._index.at(topic)]
        if self._patterns:
            for pattern in self._patterns.covering(topic):
                found += self._index.at(pattern)
        return found

    def bind(self, binding: Binding) -> None:
        """See `Provider.bind`."""
        self._index.bind(binding)
        self._note(self._index.place_of(binding))

    def replace(self, old: Binding, new: Binding) -> None:
        """See `Provider.replace`."""
        before = self._index.place_of(old)
        self._index.replace(old, new)
        self._note(before)
        self._note(self._index.place_of(new))

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """See `Provider.unbind`."""
        before = self._index.place_of(binding)
        self._index.unbind(binding, reason)
        self._note(before)

    def _note(self, place: str | Pattern | None) -> None:
        """Keep the tree in step with who is at a place."""
        if isinstance(place, tuple):
            if self._index.at(place):
                self._patterns.add(place)
            else:
                self._patterns.discard(place)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def topics(self) -> int:
        """Topics with at least one subscription, without patterns."""
        return self._index.places - len(self._patterns)

    @property
    def patterns(self) -> int:
        """Patterns with at least one subscription."""
        return len(self._patterns)
