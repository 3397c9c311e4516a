"""The formats that functions were registered with, made fit to stand in an OpenAPI 3.1 document. No I/O.

A format is whatever a worker has sent: JSON Schema of any draft, or nonsense. What stands in the document is JSON Schema
2020-12 that refers to nothing outside of it: keywords of older drafts are written the new way, definitions become
components, references that lead nowhere become "anything", and a format that is no schema at all is left out, with the
reason.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jsonschema_rs
from attrs import define, field, frozen

from ...protocol import Json, JsonError, codec

Schema = dict[str, Any]

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
PLACE: Final = "#/components/schemas/"
INLINE_BYTES: Final = 300
"""A schema up to this size stands where it is used; a longer one once, as a component."""
UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")
_HOPS: Final = 16

_ONE: Final = (
    *("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"),
    *("unevaluatedItems", "unevaluatedProperties"),
)
_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED: Final = ("dependentSchemas", "patternProperties", "properties")
_LEFT_OUT: Final = (
    *("$anchor", "$comment", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveAnchor", "$recursiveRef"),
    *("$schema", "$vocabulary", "definitions", "discriminator", "id", "xml"),
)
_DEFINITION: Final = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")


@frozen
class Format:
    """One format as it stands in the document; `problem` says why it does not."""

    schema: Schema
    problem: str | None = None


@define(eq=False)
class Schemas:
    """The document's components, as texts, which formats add to.

    Those of the function that is described now are at hand as values until `settle`: a value of a thousand functions is
    a million objects, and Python's collector would stop everybody to look at them.
    """

    components: dict[str, bytes] = field(factory=dict, init=False)
    _near: dict[str, Schema] = field(factory=dict, init=False)

    def settle(self) -> None:
        """The function is described."""
        self.components.update({name: codec.encode_value(schema) for name, schema in self._near.items()})
        self._near.clear()

    def read(self, text: Json | None, name: str) -> Format:
        """A format; `name` is what its components are called."""
        if text is None:
            return Format({})
        try:
            given = text.decode()
        except JsonError as error:
            return Format({}, str(error))
        if given is None or given is True:
            return Format({})
        if not isinstance(given, dict):
            return Format({}, "a JSON Schema is an object")
        try:
            reading = _Reading(given, UNSAFE.sub("_", name))
            schema = reading.schema(given)
            found = {reading.name_of(key): reading.schema(value) for key, value in reading.definitions.items()}
            if reading.refers_to_itself:
                found[reading.name] = schema
            for part in (schema, *found.values()):
                jsonschema_rs.meta.validate({**part, "$schema": DRAFT})
        except (ValueError, TypeError, RecursionError) as error:
            return Format({}, getattr(error, "message", None) or str(error) or "nested too deeply")
        self._near.update({key: _ended(key, found) for key in found})
        return Format(schema)

    def follow(self, schema: Schema) -> Schema:
        """What a schema that only refers to another one refers to."""
        for _ in range(_HOPS):
            ref = schema.get("$ref")
            if not isinstance(ref, str) or not ref.startswith(PLACE):
                return schema
            schema = self._near.get(ref.removeprefix(PLACE), {})
        return {}

    def place(self, schema: Schema, name: str) -> Schema:
        """What to write where a schema is used: itself if it is short, else a reference to it under `name`."""
        text = codec.encode_value(schema)
        if "$ref" in schema or len(text) <= INLINE_BYTES:
            return schema
        name = UNSAFE.sub("_", name)
        while name in self._near or self.components.setdefault(name, text) != text:
            name += "_"
        return {"$ref": PLACE + name}

    def properties(self, schema: Schema) -> tuple[dict[str, Schema], frozenset[str]]:
        """The properties that a schema knows of, and which of them are required; `allOf` counts, alternatives do not."""
        found: dict[str, Schema] = {}
        required: set[str] = set()
        untried, left = [schema], _HOPS
        while untried and left:
            part, left = without_null(self.follow(untried.pop())), left - 1
            if "$ref" in part:
                untried.append(part)
                continue
            untried.extend(part.get("allOf", ()))
            found.update(part.get("properties", {}))
            required.update(part.get("required", ()))
        return found, frozenset(required)

    def alternatives(self, schema: Schema) -> Iterator[Schema]:
        """The schemas of which one fits: those of `anyOf` or `oneOf`, else the schema itself."""
        schema = self.follow(schema)
        parts = schema.get("anyOf") or schema.get("oneOf")
        if parts and "properties" not in schema:
            yield from parts[:100]
        else:
            yield schema

    def values(self, schema: Schema) -> list[Any]:
        """The values that a schema names one by one; empty when it does not."""
        schema = self.follow(schema)
        if "const" in schema:
            return [schema["const"]]
        if "enum" in schema:
            return list(schema["enum"])
        parts = [self.values(part) for part in schema.get("anyOf") or schema.get("oneOf") or ()]
        return [value for part in parts for value in part] if all(parts) else []


def without_null(schema: Schema) -> Schema:
    """A schema without the alternative of being null, which a parameter cannot be."""
    if isinstance(schema.get("type"), list) and "null" in schema["type"]:
        others = [kind for kind in schema["type"] if kind != "null"]
        return {**schema, "type": others[0] if len(others) == 1 else others} if others else schema
    for key in ("anyOf", "oneOf"):
        if {"type": "null"} in schema.get(key, ()):
            others = [part for part in schema[key] if part != {"type": "null"}]
            rest = {name: value for name, value in schema.items() if name != key}
            if len(others) == 1 and rest.keys().isdisjoint(others[0]):
                return {**rest, **others[0]}
            return {**rest, key: others} if others else schema
    return schema


def _ended(name: str, found: Mapping[str, Schema]) -> Schema:
    """A component, or anything in the place of one that asks of a value to fit itself: no reader could follow that."""
    untried, seen = [found[name]], set[str]()
    while untried:
        schema = untried.pop()
        if (to := schema.get("$ref", "").removeprefix(PLACE)) == name:
            return {}
        if to not in seen:
            seen.add(to)
            untried.append(found.get(to, {}))
        untried.extend(part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, ()))
        untried.extend(schema[key] for key in ("not", "if", "then", "else") if key in schema)
    return found[name]


class _Reading:
    """One format on its way into the document."""

    def __init__(self, given: Schema, name: str) -> None:
        self.given = given
        self.name = name
        self.refers_to_itself = False
        self.definitions: dict[str, Any] = {}
        for key in ("definitions", "$defs"):
            if isinstance(given.get(key), dict):
                self.definitions.update(given[key])

    def name_of(self, definition: str) -> str:
        return UNSAFE.sub("_", f"{self.name}.{definition}")

    def schema(self, given: Any) -> Schema:
        """Raises `TypeError` for what is no schema."""
        if given is True:
            return {}
        if given is False:
            return {"not": {}}
        if not isinstance(given, dict):
            raise TypeError(f"{str(given)[:80]!r} stands where a JSON Schema should")
        made = {key: value for key, value in given.items() if key not in _LEFT_OUT}
        _modernize(made)
        if "pattern" in made and not _compiles(made["pattern"]):
            del made["pattern"]
        if isinstance(made.get("patternProperties"), dict):
            made["patternProperties"] = {key: part for key, part in made["patternProperties"].items() if _compiles(key)}
        for key in _ONE:
            if key in made:
                made[key] = self.schema(made[key])
        for key in _LISTS:
            if isinstance(made.get(key), list):
                made[key] = [self.schema(part) for part in made[key]]
        for key in _NAMED:
            if isinstance(made.get(key), dict):
                made[key] = {name: self.schema(part) for name, part in made[key].items()}
        if "$ref" in made:
            place = self._place(made.pop("$ref"))
            if place is not None:
                made["$ref"] = place
        properties = made.get("properties", {})
        if isinstance(made.get("required"), list) and "allOf" in made and isinstance(properties, dict):
            # some readers want to see all that is required there
            made["properties"] = properties | {name: {} for name in made["required"] if name not in properties}
        if "default" in made and not _fits(made):
            del made["default"]
        return made

    def _place(self, ref: Any) -> str | None:
        if ref == "#":
            self.refers_to_itself = True
            return PLACE + self.name
        found = _DEFINITION.fullmatch(ref) if isinstance(ref, str) else None
        if found is None:
            return None
        name = found[1].replace("~1", "/").replace("~0", "~")
        return PLACE + self.name_of(name) if name in self.definitions else None


def _modernize(schema: Schema) -> None:
    """Write what drafts 4 to 7 and OpenAPI 3.0 said differently as 2020-12 says it."""
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema.pop("additionalItems")
    schema.pop("additionalItems", None)
    dependencies = schema.pop("dependencies", None)
    if isinstance(dependencies, dict):
        for key, value in dependencies.items():
            kind = "dependentRequired" if isinstance(value, list) else "dependentSchemas"
            schema.setdefault(kind, {})[key] = value
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(exclusive), bool):
            if schema.pop(exclusive) and bound in schema:
                schema[exclusive] = schema.pop(bound)
    if schema.pop("nullable", None) is True and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
        if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
            schema["enum"] = [*schema["enum"], None]


def _compiles(pattern: Any) -> bool:
    """Whether a pattern can be read, not only by who wrote it."""
    try:
        re.compile(pattern)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return True


def _fits(schema: Schema) -> bool:
    """Whether a schema's default is one; not if nobody can say."""
    try:
        return jsonschema_rs.is_valid({**schema, "$schema": DRAFT}, schema["default"])
    except ValueError:
        return False
