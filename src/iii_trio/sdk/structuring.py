"""JSON values to typed Python values and back, by annotations: one cattrs converter (spec/sdk.md §12.2).

JSON types are not coerced into one another: the text "5" is no int, 1 is no bool. An int is taken for a float, and a
float without a fraction for an int, because JSON does not tell them apart. Text stands for what JSON has no type for:
ISO 8601 for dates and times, base64 for bytes, the usual notation for UUID, Decimal and paths. The parameters of an
HTTP request are the exception: they are text, and `parameters` reads them.
"""

import base64
import binascii
import dataclasses
import datetime
import decimal
import enum
import operator
import pathlib
import types
import uuid
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

import attrs
import cattrs
from cattrs.cols import list_structure_factory
from cattrs.gen import make_dict_structure_fn
from cattrs.strategies import configure_union_passthrough

from iii_trio.protocol import codec
from iii_trio.protocol.json import Json

from . import channels, parameters
from .channels import ChannelReceiver, ChannelSender
from .models import HttpRequest, with_ends

RAW: Final = (Any, object, None)
"""Annotations that leave a payload as it was decoded."""


class Mismatch(ValueError):
    """A value does not fit its annotation, or is not JSON at all; `str()` says where and why."""


def _strict(cls: type[Any], accepts: type[Any]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, accepts):
            raise Mismatch(f"expected {_NAMES[cls]}, got {_json_name(value)}")
        return value

    return structure


def _int(value: Any, _: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Mismatch(f"expected an integer, got {_json_name(value)}")
    return value


def _float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Mismatch(f"expected a number, got {_json_name(value)}")
    return float(value)


def _or_enum(structure: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A hook for a scalar, which comes by for enums of that scalar too, as they are its subclasses."""

    def structure_either(value: Any, hint: Any) -> Any:
        made = structure(value, hint)
        return hint(made) if isinstance(hint, type) and issubclass(hint, enum.Enum) else made

    return structure_either


def _text(parse: Callable[[str], Any], what: str) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, str):
            raise Mismatch(f"expected {what} as text, got {_json_name(value)}")
        try:
            return parse(value)
        except (ValueError, ArithmeticError, binascii.Error):
            raise Mismatch(f"expected {what}, got {value!r}") from None

    return structure


_NAMES: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "text",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def _json_name(value: Any) -> str:
    return _NAMES.get(type(value), type(value).__name__)


def _is_anything(hint: Any) -> bool:
    """`object`, alone or in a union."""
    return hint is object or (get_origin(hint) in (Union, types.UnionType) and object in get_args(hint))


def _is_int_keyed(hint: Any) -> bool:
    arguments = get_args(hint)
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2 and arguments[0] is int


def _int_keyed_hook(converter: cattrs.Converter, hint: Any) -> Callable[[Any, Any], Any]:
    value_type = get_args(hint)[1]

    def structure(value: Any, _: Any) -> dict[int, Any]:
        if not isinstance(value, dict):
            raise Mismatch(f"expected an object, got {_json_name(value)}")
        try:
            return {int(k): converter.structure(v, value_type) for k, v in value.items()}
        except ValueError as error:
            raise Mismatch(f"expected integers as keys: {error}") from error

    return structure


def _is_array_type(hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        return len(arguments) == 2 and arguments[1] is Ellipsis
    return origin in (list, set, frozenset, Sequence) and len(arguments) == 1


def _array_hook(converter: cattrs.Converter, hint: Any) -> Callable[[Any, Any], Any]:
    origin = get_origin(hint)
    list_hint: Any = types.GenericAlias(list, get_args(hint)[:1])
    as_list = list_structure_factory(list_hint, converter)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, list):  # text and objects can be iterated, too, but are no arrays
            raise Mismatch(f"expected an array, got {_json_name(value)}")
        items = as_list(value, list_hint)
        return items if origin in (list, Sequence) else origin(items)

    return structure


def _is_request(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, HttpRequest)


def _request_hook(converter: cattrs.Converter, hint: Any) -> Callable[[Any, Any], Any]:
    fields = make_dict_structure_fn(hint, converter)
    return lambda value, _: with_ends(fields(value, hint), channels.arrivals_now(), value)


def _end(make: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A structure hook for an end of a channel, whose complaints are shown as they are."""

    def structure(value: Any, hint: Any) -> Any:
        try:
            return make(value, hint)
        except ValueError as error:
            raise Mismatch(str(error)) from None

    return structure


def make_converter() -> cattrs.Converter:
    """A converter with the rules above; `Worker(converter=…)` takes one that has further hooks."""
    converter = cattrs.Converter()
    converter.register_structure_hook(str, _or_enum(_strict(str, str)))
    converter.register_structure_hook(bool, _strict(bool, bool))
    converter.register_structure_hook(int, _or_enum(_int))
    converter.register_structure_hook(float, _or_enum(_float))
    for plain in (list, dict):  # as functions: by class they would take in TypedDicts and other subclasses
        converter.register_structure_hook_func(partial(operator.is_, plain), _strict(plain, plain))
    converter.register_structure_hook_func(_is_anything, lambda value, _: value)
    for cls, parse, what in _TEXT_FORMS:
        converter.register_structure_hook(cls, _text(parse, what))
    for cls, write in _TEXT_WRITERS:
        converter.register_unstructure_hook(cls, write)

    converter.register_structure_hook(ChannelSender, _end(channels.structure_sender))
    converter.register_structure_hook(ChannelReceiver, _end(channels.structure_receiver))
    for end in (ChannelSender, ChannelReceiver):
        converter.register_unstructure_hook(end, channels.unstructure)

    converter.register_structure_hook_factory(_is_request, partial(_request_hook, converter))
    converter.register_structure_hook_factory(_is_int_keyed, partial(_int_keyed_hook, converter))
    converter.register_structure_hook_factory(_is_array_type, partial(_array_hook, converter))
    configure_union_passthrough(str | int | float | bool | None, converter)
    return converter


_TEXT_FORMS: Final[tuple[tuple[type[Any], Callable[[str], Any], str], ...]] = (
    (datetime.datetime, datetime.datetime.fromisoformat, "an ISO 8601 date and time"),
    (datetime.date, datetime.date.fromisoformat, "an ISO 8601 date"),
    (datetime.time, datetime.time.fromisoformat, "an ISO 8601 time"),
    (uuid.UUID, uuid.UUID, "a UUID"),
    (decimal.Decimal, decimal.Decimal, "a decimal number"),
    (bytes, lambda text: base64.b64decode(text, validate=True), "base64"),
    (pathlib.Path, pathlib.Path, "a path"),
)

_TEXT_WRITERS: Final[tuple[tuple[type[Any], Callable[[Any], str]], ...]] = (
    (datetime.datetime, datetime.datetime.isoformat),
    (datetime.date, datetime.date.isoformat),
    (datetime.time, datetime.time.isoformat),
    (uuid.UUID, str),
    (decimal.Decimal, str),
    (bytes, lambda value: base64.b64encode(value).decode()),
    (pathlib.PurePath, str),
)

CONVERTER: Final = make_converter()


def structure(value: Any, hint: Any, converter: cattrs.Converter = CONVERTER) -> Any:
    """`value` (decoded JSON) as `hint` says. Raises `Mismatch` naming every place that does not fit."""
    if hint in RAW:
        return value
    if isinstance(value, dict) and hint is not dict and "_caller_worker_id" in value:
        # the engine's own addition to object payloads (spec/protocol.md §7.3): `Invocation` has it
        value = {k: v for k, v in value.items() if k != "_caller_worker_id"}
    if _is_object_type(hint) and not isinstance(value, dict):
        raise Mismatch(f"expected an object, got {_json_name(value)}")
    if hint not in _prepared:
        prepare(hint)
    try:
        if (readings := _parameters.get(hint)) is not None and isinstance(value, dict):
            value = parameters.read(value, readings)
        return converter.structure(value, hint)
    except parameters.BadParameter as error:
        raise Mismatch(str(error)) from None
    except Mismatch:
        raise
    except cattrs.BaseValidationError as error:
        raise Mismatch("; ".join(cattrs.transform_error(error, format_exception=_describe))) from error
    except (cattrs.errors.CattrsError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise Mismatch(f"expected {_hint_name(hint)}, got {_json_name(value)} ({error})") from error


_prepared: Final[set[Any]] = set()
_parameters: Final[dict[Any, dict[str, dict[str | None, parameters.Reading]]]] = {}
"""Of the prepared hints those with parameters of a request that are no text."""


def prepare(hint: Any) -> None:
    """Resolve the names in the attrs classes a hint reaches: cattrs does not look into `list["Tree"]` itself.

    Raises `NameError` for one that cannot be found.
    """
    if isinstance(hint, str | TypeVar) or hint in _prepared:
        return
    _prepared.add(hint)
    for part in get_args(hint):
        if isinstance(part, Hashable):
            prepare(part)
    cls = get_origin(hint) or hint
    if not _is_object_type(cls):
        if readings := _parameters.get(parameters.bare(hint)):
            _parameters[hint] = readings
        return
    if attrs.has(cls):
        attrs.resolve_types(cls, include_extras=True)
    hints = get_type_hints(cls)
    for field_hint in hints.values():
        prepare(field_hint)
    if readings := parameters.readings_of(hints, _is_object_type):
        _parameters[hint] = readings


def _is_object_type(hint: Any) -> bool:
    cls = get_origin(hint) or hint
    return isinstance(cls, type) and (attrs.has(cls) or dataclasses.is_dataclass(cls) or is_typeddict(cls))


def _describe(error: BaseException, hint: Any) -> str:
    if isinstance(error, KeyError):
        return "required field is missing"
    if isinstance(error, Mismatch) or hint is None:
        return str(error)
    if isinstance(error, TypeError | AttributeError):  # cattrs looked into something that is no object or array
        return "expected an object" if _is_object_type(hint) else f"expected {_hint_name(hint)}"
    return str(error) or f"expected {_hint_name(hint)}"


def _hint_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_hint_name(part) for part in get_args(hint))
    if hint in _NAMES:
        return _NAMES[hint]
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def encode(value: Any, converter: cattrs.Converter = CONVERTER) -> Json:
    """`value` (JSON types, attrs, dataclasses, enums, dates …) as JSON text. Raises `Mismatch` for anything else."""
    if isinstance(value, Json):
        return value
    try:
        return Json(codec.encode_value(converter.unstructure(value)))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Mismatch(str(error) or "nested too deeply") from error
