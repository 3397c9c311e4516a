"""How a mapping becomes a settings object, or a list of problems that name file, line and key.

`structure()` walks class and mapping together, cattrs choosing by type what to do at each step. Instead of stopping at
the first mismatch it notes the problem with the position the walk has reached, and goes on with the next key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NoReturn, TypeVar, get_args, get_origin

import attrs
import cattrs
from attrs import NOTHING, define, field, frozen

from iii_trio.config.problems import ConfigError, Position, Problem, did_you_mean
from iii_trio.config.settings import SettingInfo, setting_fields, setting_info
from iii_trio.config.yaml import YamlMapping, YamlSequence

T = TypeVar("T")


@frozen
class Structured(Generic[T]):
    """A settings object and what was said while reading it."""

    settings: T
    notes: tuple[str, ...]
    """Old spellings and keys without effect, one sentence each, to be listed once at start."""
    given: frozenset[str]
    """Top-level settings that somebody set, by their canonical names; all others have their defaults."""


def structure(cls: type[T], value: Mapping[str, Any] | None, *, summary: str = "") -> Structured[T]:
    """Make an instance of the settings class `cls` of a mapping (None counts as empty).

    The mapping may come from `load_yaml` (problems then name file, line and column) or be any JSON object. Old and
    camelCase spellings are accepted, unknown keys refused. Raises `ConfigError(summary, problems)` with all problems. A
    class may have a method `refusals(owner) -> Iterable[(path of keys, message)]` for what its fields cannot say alone,
    a class method `from_text(text)`, raising `ValueError`, if a text may stand in the place of its block, and a class
    variable `ignores_unknown`, with which only unknown keys that look like a misspelled one are refused.
    """
    given = {} if value is None else value
    run = _Structuring(given.position if isinstance(given, YamlMapping | YamlSequence) else None)
    try:
        settings = run.converter.structure(given, cls)
    except _Refused:
        raise ConfigError(summary, run.problems) from None
    return Structured(settings, tuple(run.notes), frozenset(_spelling(cls, given).keys))


class _Refused(Exception):
    """Unwinds to the block that holds the refused value; the problem itself is already in the list."""


@define
class _Structuring:
    """One run of `structure()`: where it stands, and what it has to say."""

    root: Position | None
    problems: list[Problem] = field(factory=list)
    notes: list[str] = field(factory=list)
    trail: list[tuple[str, Position | None]] = field(factory=list)
    converter: cattrs.Converter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.converter = cattrs.Converter(detailed_validation=False)
        self.converter.register_structure_hook(str, self._text)
        self.converter.register_structure_hook(bool, self._bool)
        self.converter.register_structure_hook(int, self._int)
        self.converter.register_structure_hook(float, self._float)
        self.converter.register_structure_hook_func(attrs.has, self._block)
        self.converter.register_structure_hook_func(lambda hint: _origin(hint) is tuple, self._list)
        self.converter.register_structure_hook_func(lambda hint: _origin(hint) is Mapping, self._mapping)

    # Containers

    def _block(self, value: object, cls: type[Any]) -> Any:
        if isinstance(value, str) and hasattr(cls, "from_text"):
            try:
                return cls.from_text(value)
            except ValueError as error:
                self._refuse(str(error))
        if not isinstance(value, Mapping):
            self._refuse(f"expected a mapping of keys, but found {_describe(value)}")
        before = len(self.problems)
        spelling = _spelling(cls, value)
        self._report_spelling(cls, value, spelling)
        values: dict[str, Any] = {}
        for attribute in setting_fields(cls):
            info = setting_info(attribute)
            key = spelling.keys.get(attribute.name)
            if key is None:
                if attribute.default is NOTHING:
                    self._note_problem(f"the key '{attribute.name}' is required")
                continue
            with self._inside(key, value, key):
                try:
                    values[attribute.name] = self._setting(value[key], attribute, info)
                except _Refused:
                    if info.gate:
                        raise
        if len(self.problems) > before:
            raise _Refused
        settings = cls(**values)
        if hasattr(settings, "refusals"):
            self._cross_check(settings.refusals(self._owner(cls)), value)
        return settings

    def _setting(self, raw: object, attribute: attrs.Attribute[Any], info: SettingInfo) -> Any:
        if raw is None and info.filled:
            self._refuse("has no value; give it one or take the key out")
        if raw is None and attrs.has(attribute.type or object) and attribute.default is not NOTHING:
            return attribute.default  # a block written without content
        if info.translate is not None and isinstance(raw, str):
            raw = info.translate(raw)
        value = self.converter.structure(raw, attribute.type)  # type: ignore[arg-type]
        message = info.refuse(self.trail[-2][0] if len(self.trail) > 1 else "", value)
        if info.no_op:
            self.notes.append(f"{self._place()}has no effect, {info.no_op}")
            if message is not None and info.refusal is None:
                return attribute.default
        if message is not None:
            self._refuse(message)
        return value

    def _list(self, value: object, hint: Any) -> tuple[Any, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence):
            self._refuse(f"expected a list, but found {_describe(value)}")
        return tuple(self._each(((f"[{index}]", index, item) for index, item in enumerate(value)), value, hint))

    def _mapping(self, value: object, hint: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            self._refuse(f"expected a mapping of keys, but found {_describe(value)}")
        if get_args(hint)[1] is Any:
            return value
        items = self._each(((str(key), key, item) for key, item in value.items()), value, hint, 1)
        return dict(zip((str(key) for key in value), items, strict=True))

    def _each(self, items: Iterator[tuple[str, Any, Any]], holder: Any, hint: Any, argument: int = 0) -> list[Any]:
        before = len(self.problems)
        values = []
        for label, key, item in items:
            with self._inside(label, holder, key):
                try:
                    values.append(self.converter.structure(item, get_args(hint)[argument]))
                except _Refused:
                    continue
        if len(self.problems) > before:
            raise _Refused
        return values

    # Scalars: no coercion, except between the two ways JSON writes a whole number

    def _text(self, value: object, _: Any) -> str:
        if not isinstance(value, str):
            hint = "" if isinstance(value, Mapping | Sequence) or value is None else "; put it in quotes"
            self._refuse(f"expected text, but found {_describe(value)}{hint}")
        return value

    def _bool(self, value: object, _: Any) -> bool:
        if not isinstance(value, bool):
            self._refuse(f"expected true or false, but found {_describe(value)}")
        return value

    def _int(self, value: object, _: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            self._refuse(f"expected a whole number, but found {_describe(value)}{_unquote(value)}")
        return value

    def _float(self, value: object, _: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            self._refuse(f"expected a number, but found {_describe(value)}{_unquote(value)}")
        return float(value)

    def _report_spelling(self, cls: type[Any], value: Mapping[Any, Any], spelling: _Spelling) -> None:
        for key in spelling.unknown:
            with self._inside(str(key), value, key, at_key=True):
                known = [attribute.name for attribute in setting_fields(cls) if not setting_info(attribute).no_op]
                hint = did_you_mean(str(key), _names(cls))
                if getattr(cls, "ignores_unknown", False) and not hint:
                    self.notes.append(f"{self._place()}unknown key, ignored")
                    continue
                self._note_problem(f"unknown key{hint or '.'} Known keys: {', '.join(known) or 'none'}")
        for key, name in spelling.doubled.items():
            with self._inside(str(key), value, key, at_key=True):
                self._note_problem(f"the same setting is already given as '{spelling.keys[name]}'")
        for name, key in spelling.keys.items():
            if key != name and _names(cls).get(str(key)) is not None:
                with self._inside(str(key), value, key, at_key=True):
                    self.notes.append(f"{self._place()}'{key}' is the old spelling of '{name}'")

    # Where the walk stands

    @contextmanager
    def _inside(self, label: str, holder: Any, key: Any, at_key: bool = False) -> Iterator[None]:
        position: Position | None = None
        if isinstance(holder, YamlMapping):
            position = holder.key_position(key) if at_key else holder.value_position(key)
        elif isinstance(holder, YamlSequence):
            position = holder.item_position(key)
        self.trail.append((label, position))
        try:
            yield
        finally:
            self.trail.pop()

    def _path(self) -> str:
        return ".".join(label for label, _ in self.trail).replace(".[", "[")

    def _position(self) -> Position | None:
        return self.trail[-1][1] if self.trail else self.root

    def _place(self) -> str:
        return "".join(f"{part}: " for part in (self._position(), self._path()) if part)

    def _owner(self, cls: type[Any]) -> str:
        return self.trail[-1][0] if self.trail else cls.__name__

    def _note_problem(self, message: str) -> None:
        self.problems.append(Problem(message, self._path(), self._position()))

    def _refuse(self, message: str) -> NoReturn:
        self._note_problem(message)
        raise _Refused

    def _cross_check(self, refusals: Any, value: Mapping[Any, Any]) -> None:
        found = False
        for path, message in refusals:
            found = True
            position = self._position()
            holder: Any = value
            for key in path:
                if isinstance(holder, YamlMapping) and key in holder:
                    position = holder.key_position(key)
                    holder = holder[key]
            where = ".".join(part for part in (self._path(), *path) if part)
            self.problems.append(Problem(message, where, position))
        if found:
            raise _Refused


@frozen
class _Spelling:
    """How the keys of one mapping match the fields of a settings class."""

    keys: dict[str, Any] = field(factory=dict)
    """Canonical name → key as it stands in the mapping."""
    unknown: list[Any] = field(factory=list)
    doubled: dict[Any, str] = field(factory=dict)
    """Second key for a setting → its canonical name."""


def _spelling(cls: type[Any], value: Mapping[Any, Any]) -> _Spelling:
    names = _names(cls)
    spelling = _Spelling()
    for key in value:
        name = names.get(str(key)) or names.get(_snake(str(key)))
        if name is None:
            spelling.unknown.append(key)
        elif name in spelling.keys:
            spelling.doubled[key] = name
        else:
            spelling.keys[name] = key
    return spelling


def _names(cls: type[Any]) -> dict[str, str]:
    """Every spelling but camelCase → canonical name."""
    names: dict[str, str] = {}
    for attribute in setting_fields(cls):
        names |= dict.fromkeys((attribute.name, *setting_info(attribute).aliases), attribute.name)
    return names


def _origin(hint: Any) -> Any:
    return get_origin(hint)


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower()


def _describe(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _unquote(value: object) -> str:
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", value)
    return "; remove the quotes" if is_number else ""
