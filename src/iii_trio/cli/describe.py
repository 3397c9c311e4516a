"""A function's description for people: what it does and what it takes (spec/pubsub-cron-config-cli.md §8.1)."""

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

HEADINGS: Final = ("NAME", "TYPE", "REQUIRED", "DESCRIPTION")
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp"})
"""Control and format characters, among them those that change the direction of text, and line separators."""


def describe(detail: Mapping[str, Any]) -> str:
    """The text for a FunctionDetail of `engine::functions::info`.

    Names, types and descriptions come from workers, so nothing in them may steer a terminal.
    """
    lines = [_clean(detail.get("function_id"))]
    if detail.get("description"):
        lines += ["", _clean(detail["description"])]
    schema = detail.get("request_schema")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(properties, Mapping) or not properties:
        return "\n".join([*lines, "", "It does not say what it takes."])
    required = schema.get("required")
    needed = required if isinstance(required, list) else []
    rows = [HEADINGS]
    for name, about in properties.items():
        told = about if isinstance(about, Mapping) else {}
        rows.append(
            (_clean(name), _type(told), "yes" if name in needed else "no", _clean(told.get("description") or ""))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", *table])


def _type(schema: Mapping[str, Any]) -> str:
    """The type in a word or two: `string`, `string | null`, the name of a definition."""
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(_clean(item) for item in kind)
    if kind is not None:
        return _clean(kind)
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list):
            return " | ".join(_type(option) for option in options if isinstance(option, Mapping)) or "any"
    reference = schema.get("$ref")
    return _clean(reference).rpartition("/")[2] if isinstance(reference, str) else "any"


def _clean(value: object) -> str:
    return "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in str(value))
