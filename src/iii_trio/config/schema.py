"""JSON Schema and plain JSON value of a settings class: what `configuration::register` publishes for a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import attrs

from iii_trio.config.settings import SettingInfo, setting_fields, setting_info

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TAKES_EFFECT = {
    "live": "Takes effect at once.",
    "rebind": "Rebinds the listener.",
    "restart": "The worker is started again.",
}
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema_of(cls: type[Any]) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a settings class: objects closed where unknown keys are refused.

    A fresh, JSON-encodable dict each time. Only canonical key names appear.
    """
    return {"$schema": DIALECT, **_object(cls)}


def as_value(settings: Any) -> Any:
    """A settings object as a plain JSON value, without no-ops and without what is None (spec §2.6: absent, not null).

    `structure(cls, as_value(x)).settings == x` for every `x` that sets no no-op.
    """
    if attrs.has(type(settings)):
        return {
            attribute.name: as_value(value)
            for attribute in setting_fields(type(settings))
            if (value := getattr(settings, attribute.name)) is not None and not setting_info(attribute).no_op
        }
    if isinstance(settings, Mapping):
        return {key: as_value(value) for key, value in settings.items()}
    if isinstance(settings, Sequence) and not isinstance(settings, str):
        return [as_value(value) for value in settings]
    return settings


def _object(cls: type[Any]) -> dict[str, Any]:
    fields = setting_fields(cls)
    schema: dict[str, Any] = {
        "title": cls.__name__,
        "description": (cls.__doc__ or "").strip().split("\n")[0],
        "type": ["object", "string"] if hasattr(cls, "from_text") else "object",
        "properties": {attribute.name: _property(attribute) for attribute in fields},
        "additionalProperties": {} if getattr(cls, "ignores_unknown", False) else False,
    }
    if required := [attribute.name for attribute in fields if attribute.default is attrs.NOTHING]:
        schema["required"] = required
    return schema


def _property(attribute: attrs.Attribute[Any]) -> dict[str, Any]:
    info = setting_info(attribute)
    schema = _typed(attribute.type, info)
    unit = f" In {info.unit}." if info.unit else ""
    effect = f"Accepted without effect: {info.no_op}." if info.tier is None else _TAKES_EFFECT[info.tier]
    schema["description"] = f"{info.doc}{unit} {effect}"
    if attribute.default is not attrs.NOTHING and attribute.default is not None:
        schema["default"] = as_value(attribute.default)
    return schema


def _typed(hint: Any, info: SettingInfo) -> dict[str, Any]:
    if attrs.has(hint):
        return _object(hint)
    if hint in _TYPES:
        return {"type": _TYPES[hint], **_bounds(hint, info)}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _optional([argument for argument in arguments if argument is not NoneType], info)
    unbounded = SettingInfo(doc="")
    if origin is tuple:
        return {"type": "array", "items": _typed(arguments[0], unbounded)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _typed(arguments[1], unbounded)}
    return {}


def _optional(alternatives: list[Any], info: SettingInfo) -> dict[str, Any]:
    [hint] = alternatives
    schema = _typed(hint, info)
    if info.filled:
        return schema
    schema["type"] = [schema["type"], "null"]
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


def _bounds(hint: Any, info: SettingInfo) -> dict[str, Any]:
    if hint is str:
        bounds: dict[str, Any] = {"enum": list(info.choices)} if info.choices else {}
        return {**bounds, "minLength": 1} if info.nonempty else bounds
    if hint is bool:
        return {}
    limits = {"minimum": info.ge, "maximum": info.le}
    return {keyword: limit for keyword, limit in limits.items() if limit is not None}
