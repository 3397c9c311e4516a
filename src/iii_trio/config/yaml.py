"""YAML 1.2 with the core schema, read into immutable values that know the line and column of every key and value.

ruamel.yaml's pure parser supplies events (structure, quoting, positions). What a scalar *means* is decided here,
because the 1.2 core schema (spec/pubsub-cron-config-cli.md §7.1) is narrower than any loader's own: `on`, `off`, `yes`,
`no`, `007`, `1:30`, `1_000` and dates are text. Environment placeholders are put in while the values are built
(environment.py), so nothing a variable contains can change the structure, with one deliberate exception: a plain value
that is a lone placeholder is read again as a core scalar or as a flow list or mapping.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, overload

from attrs import define, field, frozen
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, NodeEvent, ScalarEvent, SequenceStartEvent
from ruamel.yaml.reader import ReaderError

from iii_trio.config.environment import Masked, mask
from iii_trio.config.problems import ConfigError, Position, Problem

Value: TypeAlias = "str | int | float | bool | YamlMapping | YamlSequence | None"

_MAX_DEPTH = 64
_MAX_NODES = 100_000  # counted with every alias written out, against the anchors that multiply

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")  # no leading zero: 007 is text
_OCTAL = re.compile(r"0o([0-7]+)")
_HEX = re.compile(r"0x([0-9a-fA-F]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})

_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS: Mapping[str, tuple[type, ...]] = {
    f"{_TAG}int": (int,),
    f"{_TAG}float": (float, int),
    f"{_TAG}bool": (bool,),
    f"{_TAG}null": (type(None),),
}


class YamlMapping(Mapping[str, Value]):
    """An immutable mapping in the user's order. Equal to any mapping with equal items; positions do not count."""

    __slots__ = ("_items", "_places", "position")

    def __init__(self, position: Position, items: Mapping[str, tuple[Value, Position, Position]]) -> None:
        """`items`: key → (value, position of the key, position of the value)."""
        self.position = position
        self._items = {key: value for key, (value, _, _) in items.items()}
        self._places = {key: (at_key, at_value) for key, (_, at_key, at_value) in items.items()}

    def __getitem__(self, key: str) -> Value:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"YamlMapping({self._items!r} at {self.position})"

    def key_position(self, key: str) -> Position:
        return self._places[key][0]

    def value_position(self, key: str) -> Position:
        return self._places[key][1]

    def with_item(self, key: str, value: Value, position: Position) -> YamlMapping:
        """A copy with one more item."""
        items = {name: (self._items[name], *self._places[name]) for name in self._items}
        return YamlMapping(self.position, {**items, key: (value, position, position)})


class YamlSequence(Sequence[Value]):
    """An immutable list. Equal to any list or tuple with equal items; positions do not count."""

    __slots__ = ("_items", "_places", "position")

    def __init__(self, position: Position, items: Sequence[tuple[Value, Position]]) -> None:
        """`items`: (value, its position) in order."""
        self.position = position
        self._items = tuple(value for value, _ in items)
        self._places = tuple(place for _, place in items)

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Value, ...]: ...
    def __getitem__(self, index: int | slice) -> Value | tuple[Value, ...]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, YamlSequence | list | tuple):
            return self._items == tuple(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # equal to lists, which have none either

    def __repr__(self) -> str:
        return f"YamlSequence({list(self._items)!r} at {self.position})"

    def item_position(self, index: int) -> Position:
        return self._places[index]


def load_yaml(text: str, *, source: str, environ: Mapping[str, str] | None = None) -> Value:
    """Read one YAML 1.2 core document.

    `source` is the name that positions and messages carry. With `environ`, `${NAME}` and `${NAME:DEFAULT}` are expanded
    (spec §7.3) in every key and scalar outside comments; without, they stay as written. An empty text is None. Raises
    `ConfigError` listing every unset variable, doubled key and foreign tag, or the first syntax error.
    """
    text = text.removeprefix("\ufeff")
    masked = Masked(text, ()) if environ is None else mask(text, source)
    builder = _Builder(source, masked, environ or {})
    value = builder.document(masked.text)
    if builder.problems:
        raise ConfigError("", builder.problems)
    return value


def core_scalar(text: str) -> str | int | float | bool | None:
    """What a plain (unquoted) scalar means in the YAML 1.2 core schema; anything unrecognised is text."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        # Text beyond any setting's range stays text: Python refuses to convert very long digit strings at all.
        return int(text) if len(text) <= 40 else text
    if octal := _OCTAL.fullmatch(text):
        return int(octal[1], 8)
    if hexadecimal := _HEX.fullmatch(text):
        return int(hexadecimal[1], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if infinite := _INF.fullmatch(text):
        return float(f"{infinite[1]}inf")
    return float("nan") if text in _NAN else text


def reread(text: str, position: Position) -> Value:
    """What stands for a lone plain placeholder: `text` as a core scalar, a quoted text, or a flow list or mapping.

    Text that only looks like a collection and does not parse stays text; everything inside a collection is positioned
    at `position`.
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        builder = _Builder(position.source, Masked(text, ()), {}, pinned=position)
        try:
            value = builder.document(text)
        except ConfigError:
            return text
        return text if builder.problems else value
    return core_scalar(text)


@frozen
class _Node:
    value: Value
    position: Position
    size: int


@define
class _Builder:
    """Turns one document's events into values, collecting what can be reported without giving up."""

    source: str
    masked: Masked
    environ: Mapping[str, str]
    pinned: Position | None = None
    problems: list[Problem] = field(factory=list)
    anchors: dict[str, _Node] = field(factory=dict)

    def document(self, text: str) -> Value:
        events = self._node_events(text)
        first = next(events, None)
        if first is None:
            return None
        node = self._node(first, events, 1)
        if (extra := next(events, None)) is not None:
            raise self._fatal("expected one document, but a second one starts here", self._at(extra.start_mark))
        return node.value

    def _node_events(self, text: str) -> Iterator[Any]:
        reached = self.pinned or Position(self.source, 1, 1)
        try:
            for event in YAML(typ="safe", pure=True).parse(io.StringIO(text)):
                reached = self._at(event.end_mark)
                if isinstance(event, NodeEvent | CollectionEndEvent):
                    yield event
        except MarkedYAMLError as error:
            message, mark = _explain(error)
            raise self._fatal(message, self._at(mark)) from error
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
            message = f"expected printable text, but found the control character U+{error.character:04X}"
            raise self._fatal(message, self.pinned or Position(self.source, line, column)) from error
        except (AssertionError, ValueError, OverflowError) as error:
            # The parser's own reaction to a %YAML version or a "\\U" escape that does not exist.
            raise self._fatal(f"expected YAML 1.2 after this place, but the parser says: {error}", reached) from error

    def _node(self, event: Any, events: Iterator[Any], depth: int) -> _Node:
        position = self._at(event.start_mark)
        if depth > _MAX_DEPTH:
            raise self._fatal(f"nested more than {_MAX_DEPTH} levels deep", position)
        if isinstance(event, AliasEvent):
            if event.anchor not in self.anchors:
                raise self._fatal(f"expected an anchor '&{event.anchor}' before its alias", position)
            target = self.anchors[event.anchor]
            return _Node(target.value, position, target.size)
        if isinstance(event, ScalarEvent):
            node = _Node(self._scalar(event, position), position, 1)
        elif isinstance(event, SequenceStartEvent):
            node = self._sequence(event, position, events, depth)
        else:
            node = self._mapping(event, position, events, depth)
        if node.size > _MAX_NODES:
            raise self._fatal(f"more than {_MAX_NODES} values once the aliases are written out", position)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _sequence(self, event: Any, position: Position, events: Iterator[Any], depth: int) -> _Node:
        self._check_collection_tag(event, position, "seq")
        items: list[_Node] = []
        for item in events:
            if isinstance(item, CollectionEndEvent):
                break
            items.append(self._node(item, events, depth + 1))
        value = YamlSequence(position, [(node.value, node.position) for node in items])
        return _Node(value, position, 1 + sum(node.size for node in items))

    def _mapping(self, event: Any, position: Position, events: Iterator[Any], depth: int) -> _Node:
        self._check_collection_tag(event, position, "map")
        items: dict[str, tuple[Value, Position, Position]] = {}
        size = 1
        for key_event in events:
            if isinstance(key_event, CollectionEndEvent):
                break
            at_key = self._at(key_event.start_mark)
            key = self._key(key_event, at_key)
            value_event = next(events)
            node = self._node(value_event, events, depth + 1)
            if key in items:
                earlier = items[key][1].line
                self._problem(f"expected each key once, but '{key}' already stands on line {earlier}", at_key)
            # The parser places a missing value after the line it is missing from; the key is where a reader looks.
            missing = isinstance(value_event, ScalarEvent) and value_event.style is None and not value_event.value
            items[key] = (node.value, at_key, at_key if missing else node.position)
            size += node.size + 1
        return _Node(YamlMapping(position, items), position, size)

    def _key(self, event: Any, position: Position) -> str:
        if isinstance(event, AliasEvent):
            target = self.anchors.get(event.anchor)
            if target is not None and isinstance(target.value, str):
                return target.value
        if not isinstance(event, ScalarEvent):
            raise self._fatal("expected a key of plain text, but found a list, a mapping or an alias", position)
        key = self._expand(str(event.value), position)
        if event.anchor is not None:
            self.anchors[event.anchor] = _Node(key, position, 1)
        return key

    def _scalar(self, event: Any, position: Position) -> Value:
        pieces = self.masked.split(event.value)
        plain = event.style is None
        if plain and event.tag is None and len(pieces) == 1 and not isinstance(pieces[0], str):
            return reread(self._expand(event.value, position), position)
        text = self._expand(event.value, position)
        if event.tag is None:
            return core_scalar(text) if plain else text
        if event.tag in ("!", f"{_TAG}str"):
            return text
        value = core_scalar(text)
        kinds = _SCALAR_TAGS.get(event.tag)
        if kinds is None:
            self._problem(f"expected a tag of the core schema, but found '{_short(event.tag)}'", position)
        elif type(value) not in kinds:
            self._problem(f"expected a value that fits '{_short(event.tag)}', but found '{text}'", position)
        elif float in kinds and isinstance(value, int):
            return float(value)
        return value

    def _expand(self, scalar: str, position: Position) -> str:
        parts: list[str] = []
        for piece in self.masked.split(scalar):
            if isinstance(piece, str):
                parts.append(piece)
                continue
            found = piece.resolve(self.environ)
            if found is None:
                self._problem(f"Environment variable '{piece.name}' not set and no default provided", position)
            parts.append(found or "")
        text = "".join(parts)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._problem("expected text that UTF-8 can hold, but found a lone surrogate", position)
        return text

    def _check_collection_tag(self, event: Any, position: Position, kind: str) -> None:
        if event.tag not in (None, "!", f"{_TAG}{kind}"):
            self._problem(f"expected a tag of the core schema, but found '{_short(event.tag)}'", position)

    def _at(self, mark: Any) -> Position:
        return self.pinned or Position(self.source, mark.line + 1, mark.column + 1)

    def _problem(self, message: str, position: Position) -> None:
        self.problems.append(Problem(message, position=position))

    def _fatal(self, message: str, position: Position) -> ConfigError:
        return ConfigError("", [*self.problems, Problem(message, position=position)])


def _short(tag: str) -> str:
    return f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) else tag


_PLAIN_WORDS = (
    ("'<stream end>'", "the end of the text"),
    ("'<document start>'", "the end of the text"),
    ("'<block mapping start>'", "a key"),
    ("'<block sequence start>'", "a list item"),
    ("'<block end>'", "a line indented less"),
    ("the node content", "a value"),
    ("but got", "but found"),
    ("found (", "found "),
    (",)", ""),
)


def _explain(error: MarkedYAMLError) -> tuple[str, Any]:
    """The parser's complaint in words that say what was expected, and the mark it belongs to."""
    problem = str(error.problem or error.context or error)
    context = str(error.context or "")
    mark = error.problem_mark or error.context_mark
    start = error.context_mark
    since = f" that starts on line {start.line + 1}, column {start.column + 1}" if start is not None else ""
    if "mapping values are not allowed" in problem:
        return (
            "expected the value to end here, but found ':'; put text that contains ': ' in quotes, "
            "and check the indentation"
        ), mark
    if "cannot start any token" in problem:
        if "'\\t'" in problem:
            return "expected spaces, but found a tab; YAML is indented with spaces only", mark
        character = problem.partition("'")[2].partition("'")[0]
        return f"expected a value, but found '{character}'; put text that starts with it in quotes", mark
    if "quoted scalar" in context and "unexpected end of stream" in problem:
        return f"expected the closing quote of the text{since}, but found the end of the text", mark
    if problem.startswith("expected <block end>"):
        return f"expected a key or an item indented like the others of the block{since}", mark
    for jargon, words in _PLAIN_WORDS:
        problem = problem.replace(jargon, words)
    if context and start is not None and start.index != mark.index:
        return f"{problem} ({context}{since})", mark
    return problem, mark
