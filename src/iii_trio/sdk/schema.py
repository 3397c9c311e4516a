"""JSON Schema (draft 2020-12) of a handler's request and response, from its annotations (spec/sdk.md §3).

The schema describes what `structuring` reads and writes for the same annotation. Informational on the wire: the engine
never validates against it. An annotation that says nothing (`Any`, `object`, none) has no schema.
"""

import dataclasses
import datetime
import decimal
import enum
import pathlib
import types
import uuid
from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import attrs

from .channels import ChannelReceiver, ChannelSender

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

_REF_KEYS: Final = ("channel_id", "access_key", "direction")


def _ref(direction: str) -> Schema:
    """The schema of a channel's ref."""
    properties = {key: {"type": "string"} for key in _REF_KEYS} | {"direction": {"const": direction}}
    return {"type": "object", "properties": properties, "required": list(_REF_KEYS)}


_SCALARS: Final[dict[Any, Schema]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    set: {"type": "array", "uniqueItems": True},
    frozenset: {"type": "array", "uniqueItems": True},
    Sequence: {"type": "array"},
    dict: {"type": "object"},
    Mapping: {"type": "object"},
    bytes: {"type": "string", "contentEncoding": "base64"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    decimal.Decimal: {"type": "string"},
    pathlib.Path: {"type": "string"},
    ChannelSender: _ref("write"),
    ChannelReceiver: _ref("read"),
}


def schema_of(hint: Any) -> Schema | None:
    """The schema of an annotation, with `$schema`; None when the annotation says nothing."""
    writer = _Writer(root=hint)
    schema = writer.object_of(hint) if _is_object(hint) else writer.schema(hint)
    if not schema:
        return None
    if writer.definitions:
        schema["$defs"] = writer.definitions
    return {"$schema": DRAFT, **schema}


def _is_object(hint: Any) -> bool:
    cls = get_origin(hint) or hint
    return isinstance(cls, type) and (attrs.has(cls) or dataclasses.is_dataclass(cls) or is_typeddict(cls))


@attrs.define
class _Writer:
    """One schema in the making: classes below the root go to `definitions`, once each, so that they may recur."""

    root: Any
    definitions: dict[str, Schema] = attrs.Factory(dict)
    _names: dict[Any, str] = attrs.Factory(dict)

    def schema(self, hint: Any) -> Schema:
        """The schema of any annotation; empty (everything fits) for one that says nothing."""
        origin = get_origin(hint)
        if origin is Annotated:
            return self.schema(get_args(hint)[0])
        if isinstance(hint, NewType):
            return self.schema(hint.__supertype__)
        if hint in _SCALARS:
            return dict(_SCALARS[hint])
        if origin is Literal:
            return {"enum": list(get_args(hint))}
        if origin in (Union, types.UnionType):
            return self._union(get_args(hint))
        if _is_object(hint):
            return self._reference(hint)
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return {"enum": [member.value for member in hint]}
        return self._container(origin, get_args(hint))

    def _union(self, arguments: tuple[Any, ...]) -> Schema:
        parts = [self.schema(argument) for argument in arguments]
        if {} in parts:
            return {}
        others = [part for part in parts if part != {"type": "null"}]
        if len(others) == 1 and len(parts) == 2 and isinstance(others[0].get("type"), str):
            return {**others[0], "type": [others[0]["type"], "null"]}
        return {"anyOf": parts}

    def _container(self, origin: Any, arguments: tuple[Any, ...]) -> Schema:
        if origin not in _SCALARS:
            return {}
        schema = dict(_SCALARS[origin])
        if schema["type"] == "object":
            schema["additionalProperties"] = self.schema(arguments[1])
        elif origin is tuple and arguments[-1:] != (Ellipsis,):
            schema["prefixItems"] = [self.schema(argument) for argument in arguments]
            schema["minItems"] = schema["maxItems"] = len(arguments)
        else:
            schema["items"] = self.schema(arguments[0])
        return schema

    def _reference(self, hint: Any) -> Schema:
        if hint == self.root:
            return {"$ref": "#"}
        name = self._names.get(hint)
        if name is None:
            name = hint.__name__ if get_origin(hint) is None else str(hint)
            if name in self.definitions:  # another class of the same name
                name = f"{name}-{len(self.definitions)}"
            self._names[hint] = name
            self.definitions[name] = {}  # stands for itself while its own fields are written
            self.definitions[name].update(self.object_of(hint))
        return {"$ref": f"#/$defs/{name}"}

    def object_of(self, hint: Any) -> Schema:
        """The schema of an attrs class, dataclass or TypedDict, fields by name."""
        cls = get_origin(hint) or hint
        hints = get_type_hints(cls)
        bound = dict(zip(getattr(cls, "__parameters__", ()), get_args(hint), strict=False))
        required = _required(cls)
        schema: Schema = {"type": "object", "title": cls.__name__, "properties": {}}
        for name in _field_names(cls):
            field_hint = hints.get(name, Any)
            schema["properties"][name] = self.schema(
                bound.get(field_hint, Any) if isinstance(field_hint, TypeVar) else field_hint
            )
        if required:
            schema["required"] = required
        return schema


def _field_names(cls: Any) -> list[str]:
    if attrs.has(cls):
        return [a.name for a in attrs.fields(cls) if a.init]
    if dataclasses.is_dataclass(cls):
        return [f.name for f in dataclasses.fields(cls) if f.init]
    return list(get_type_hints(cls))


def _required(cls: Any) -> list[str]:
    if attrs.has(cls):
        return [a.name for a in attrs.fields(cls) if a.init and a.default is attrs.NOTHING]
    if dataclasses.is_dataclass(cls):
        missing = dataclasses.MISSING
        return [
            f.name for f in dataclasses.fields(cls) if f.init and f.default is missing and f.default_factory is missing
        ]
    return [name for name in get_type_hints(cls) if name in cls.__required_keys__]
