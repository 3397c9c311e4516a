"""Path and query parameters, which are text whatever they mean: made into what a handler's annotations ask for.

A payload of the `http` trigger has them in `path_params` and `query_params` (spec/http.md §7). In these two members, and
nowhere else, a text becomes the number or truth value that its annotation names, and a key that came once the list of
one. What is no text is left alone: whoever calls the function directly sends JSON types. So is a parameter whose
annotation takes text.
"""

import enum
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NewType, Union, get_args, get_origin, get_type_hints

MEMBERS: Final = ("path_params", "query_params")

Reading = Callable[[Any], Any]
"""A parameter as it came to what its annotation asks for. Raises `BadParameter`."""

_WHOLE: Final = re.compile(r"-?[0-9]{1,4000}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?")
_TRUTHS: Final = {"true": True, "1": True, "false": False, "0": False}
_LISTS: Final = (list, set, frozenset, tuple, Sequence)


class BadParameter(ValueError):
    """A parameter is not what its annotation asks for; `str()` names it."""


def readings_of(hints: Mapping[str, Any], is_object: Callable[[Any], bool]) -> dict[str, dict[str | None, Reading]]:
    """What there is to read in a payload whose members have these `hints`: by member, then by parameter.

    None stands for every parameter, of a member annotated as a mapping. `is_object` tells classes with fields.
    """
    found: dict[str, dict[str | None, Reading]] = {}
    for member in MEMBERS:
        hint = bare(hints.get(member))
        cls = get_origin(hint) or hint
        each: dict[str | None, Any] = {}
        if is_object(hint):
            each.update(get_type_hints(cls))
        elif isinstance(cls, type) and issubclass(cls, Mapping) and len(get_args(hint)) == 2:
            each = {None: get_args(hint)[1]}
        readings = {name: reading for name, of in each.items() if (reading := _reading(of)) is not None}
        if readings:
            found[member] = readings
    return found


def read(payload: Mapping[str, Any], readings: Mapping[str, Mapping[str | None, Reading]]) -> dict[str, Any]:
    """The payload with its parameters read; the given one is not changed. Raises `BadParameter`."""
    made = dict(payload)
    for member, of_member in readings.items():
        given = made.get(member)
        if not isinstance(given, dict):
            continue
        values = made[member] = dict(given)
        for name, value in given.items():
            reading = of_member.get(name) or of_member.get(None)
            if reading is not None:
                try:
                    values[name] = reading(value)
                except BadParameter as error:
                    raise BadParameter(f"{error} @ $.{member}.{name}") from None
    return made


def bare(hint: Any) -> Any:
    """An annotation without what says nothing of its values: `Annotated`, `NewType`, the alternative of None."""
    while True:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        elif isinstance(hint, NewType):
            hint = hint.__supertype__
        elif get_origin(hint) in (Union, types.UnionType):
            others = [part for part in get_args(hint) if part is not type(None)]
            if len(others) != 1:
                return hint
            hint = others[0]
        else:
            return hint


def _reading(hint: Any) -> Reading | None:
    """How a parameter of this annotation is read; None where it is taken as it came."""
    hint = bare(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _LISTS or origin in _LISTS:
        item = _reading(arguments[0]) if arguments and (origin is not tuple or arguments[1:] == (...,)) else None
        return lambda value: _each(value, item)
    if origin in (Union, types.UnionType):
        return _first([part for part in arguments if part is not type(None)])
    if hint is bool:
        return _of_text(lambda text: _TRUTHS.get(text.lower()), "true or false")
    if hint is int:
        return _of_text(_int, "an integer")
    if hint is float:
        return _of_text(_float, "a number")
    choices = _choices(hint)
    return None if all(isinstance(choice, str) for choice in choices) else _among(choices)


def _choices(hint: Any) -> Sequence[Any]:
    """What a `Literal` or an enum allows; nothing for any other annotation."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    return get_args(hint) if get_origin(hint) is Literal else ()


def _among(choices: Sequence[Any]) -> Reading:
    written = {str(choice).lower() if isinstance(choice, bool) else str(choice): choice for choice in choices}
    return _of_text(written.get, "one of " + ", ".join(written))


def _of_text(parse: Callable[[str], Any], what: str) -> Reading:
    def reading(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parsed = parse(value)
        if parsed is None:
            shown = repr(value) if len(value) <= 100 else f"{value[:100]!r}…"
            raise BadParameter(f"expected {what}, got {shown}")
        return parsed

    return reading


def _each(value: Any, item: Reading | None) -> Any:
    values = [value] if isinstance(value, str) else value
    return [item(one) for one in values] if item is not None and isinstance(values, list) else values


def _first(hints: Sequence[Any]) -> Reading | None:
    """Of several annotations the first that a text fits, the narrow ones first; none where text fits anyway.

    Several texts are for those that are lists.
    """
    order = {bool: 0, int: 1, float: 2}
    readings: list[Reading] = []
    of_lists: list[Reading] = []
    for hint in sorted(map(bare, hints), key=lambda hint: order.get(hint, 3)):
        one = _reading(hint) or (_among(choices) if (choices := _choices(hint)) else None)
        if one is None:
            return None
        readings.append(one)
        if (get_origin(hint) or hint) in _LISTS:
            of_lists.append(one)

    def reading(value: Any) -> Any:
        complaints: list[str] = []
        for one in of_lists or readings if isinstance(value, list) else readings:
            try:
                return one(value)
            except BadParameter as error:
                complaints.append(str(error))
        raise BadParameter("; ".join(dict.fromkeys(complaints)))

    return reading


def _int(text: str) -> int | None:
    if _WHOLE.fullmatch(text):
        return int(text)
    number = _float(text)
    return int(number) if number is not None and number.is_integer() else None


def _float(text: str) -> float | None:
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None
