"""Which parts of a value are secret, and the mask that stands for them before eyes that may not see them.

A part is secret when the entry's schema says so (`writeOnly: true` or `format: password`), when it is a text or a number
(a password may be all digits) under a key that names a secret, or a text with an address and a password in it. The mask
also goes back in: a value that somebody read masked, changed elsewhere and writes again keeps the secrets it does not know.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ...config.environment import PLACEHOLDER

MASK: Final = "********"
RIGHT: Final = "configuration::secrets"
"""The grant that lets a session under access control see secrets: no function has this id, a grant may."""

_SECRET_KEY: Final = re.compile(
    r"passw(or)?d|passphrase|secret|credential|private_?key|api_?key|access_?key|(^|[_-])(token|pwd|dsn)$|authorization",
    re.IGNORECASE,
)
_WITH_PASSWORD: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)
_JOINED: Final = ("allOf", "anyOf", "oneOf")
_MAX_SCHEMAS: Final = 64


class MaskedWhereNothingIs(Exception):
    """The mask stands where there is no secret to keep; `str()` is the place."""


class PlaceholderFromOutside(Exception):
    """A placeholder stands where there was none, or another one; `str()` is the place."""


def masked(value: Any, schema: Any) -> Any:
    """A copy of `value` with `MASK` in the place of every secret."""
    return _walk(value, list(_and_parts([schema], schema)), schema, "")


def unmasked(value: Any, current: Any, place: str = "") -> Any:
    """A copy of `value` with what `current` has at the same place for every `MASK`.

    Raises `MaskedWhereNothingIs`, and `PlaceholderFromOutside` for a placeholder that `current` does not have at the same
    place: it would read a variable of the engine's environment to somebody who may not see it.
    """
    if value == MASK:
        if current is None:
            raise MaskedWhereNothingIs(place or "/")
        return current
    if isinstance(value, dict):
        inside = current if isinstance(current, dict) else {}
        return {key: unmasked(item, inside.get(key), f"{place}/{key}") for key, item in value.items()}
    if isinstance(value, list):
        items = current if isinstance(current, list) else []
        padded = [*items, *[None] * (len(value) - len(items))]
        return [unmasked(item, padded[index], f"{place}/{index}") for index, item in enumerate(value)]
    if isinstance(value, str) and value != current and PLACEHOLDER.search(value):
        raise PlaceholderFromOutside(place or "/")
    return value


def has_marks(schema: Any) -> bool:
    """Whether a schema says anywhere that something is secret."""
    if isinstance(schema, Mapping):
        return _marks(schema) or any(map(has_marks, schema.values()))
    return isinstance(schema, list) and any(map(has_marks, schema))


def _marks(schema: Mapping[str, Any]) -> bool:
    return schema.get("writeOnly") is True or schema.get("format") == "password"


def _walk(value: Any, schemas: list[Any], root: Any, key: str) -> Any:
    if value is None:
        return None
    if any(map(_marks, schemas)):
        return MASK
    if isinstance(value, dict):
        return {name: _walk(item, _under(schemas, name, root), root, name) for name, item in value.items()}
    if isinstance(value, list):
        inside = list(_and_parts([item for schema in schemas for item in _items(schema)], root))
        return [_walk(item, inside, root, key) for item in value]
    if isinstance(value, str | int | float) and not isinstance(value, bool) and _SECRET_KEY.search(key):
        return MASK
    if isinstance(value, str) and _WITH_PASSWORD.search(value):
        return MASK
    return value


def _under(schemas: list[Any], name: str, root: Any) -> list[Any]:
    found: list[Any] = []
    for schema in schemas:
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and name in properties:
            found.append(properties[name])
        else:
            patterns = schema.get("patternProperties")
            found += patterns.values() if isinstance(patterns, Mapping) else ()
            found.append(schema.get("additionalProperties"))
    return list(_and_parts(found, root))


def _items(schema: Mapping[str, Any]) -> Iterator[Any]:
    for keyword in ("items", "prefixItems"):
        inside = schema.get(keyword)
        yield from inside if isinstance(inside, list) else [inside]


def _and_parts(schemas: list[Any], root: Any) -> Iterator[Mapping[str, Any]]:
    """The schemas that are objects, with what they join and refer to within `root`; each once, and a bounded number."""
    waiting, seen = list(schemas), set[int]()
    while waiting and len(seen) < _MAX_SCHEMAS:
        schema = waiting.pop(0)
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        for keyword in _JOINED:
            parts = schema.get(keyword)
            waiting += parts if isinstance(parts, list) else []
        waiting += [schema.get("then"), schema.get("else")]
        if isinstance(target := schema.get("$ref"), str) and target.startswith("#"):
            waiting.append(_pointed(root, target[1:]))


def _pointed(root: Any, pointer: str) -> Any:
    found = root
    for step in filter(None, pointer.split("/")):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found
