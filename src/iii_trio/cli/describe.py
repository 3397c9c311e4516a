"""A function's description for people: what it does and what it takes (spec/pubsub-cron-config-cli.md §8.1)."""

from collections.abc import Mapping
from typing import Any, Final

from .output import aligned, clean

HEADINGS: Final = ("NAME", "TYPE", "REQUIRED", "DESCRIPTION")


def describe(detail: Mapping[str, Any]) -> str:
    """The text for a FunctionDetail of `engine::functions::info`.

    Names, types and descriptions come from workers, so nothing in them may steer a terminal.
    """
    lines = [clean(detail.get("function_id"))]
    if detail.get("description"):
        lines += ["", clean(detail["description"])]
    rows = properties(detail.get("request_schema"))
    if not rows:
        return "\n".join([*lines, "", "It does not say what it takes."])
    return "\n".join([*lines, "", *aligned(HEADINGS, rows)])


def properties(schema: object) -> list[tuple[str, str, str, str]]:
    """The properties of a JSON Schema as rows for `HEADINGS`; none for a schema that has none."""
    listed = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(listed, Mapping):
        return []
    required = schema.get("required")
    needed = required if isinstance(required, list) else []
    rows = []
    for name, about in listed.items():
        told = about if isinstance(about, Mapping) else {}
        description = clean(told.get("description") or "")
        rows.append((clean(name), _type(told), "yes" if name in needed else "no", description))
    return rows


def _type(schema: Mapping[str, Any]) -> str:
    """The type in a word or two: `string`, `string | null`, the name of a definition."""
    kind = schema.get("type")
    if isinstance(kind, list):
        return " | ".join(clean(item) for item in kind)
    if kind is not None:
        return clean(kind)
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list):
            return " | ".join(_type(option) for option in options if isinstance(option, Mapping)) or "any"
    reference = schema.get("$ref")
    return clean(reference).rpartition("/")[2] if isinstance(reference, str) else "any"
