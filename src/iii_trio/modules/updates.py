"""Update operations as built-ins carry them out: one pure function for the store's transaction (spec/state-stream.md §4)."""

from typing import Any, Final

from attrs import frozen

from ..protocol import Json, JsonError
from ..protocol.errors import StoreError
from ..protocol.limits import MAX_DEPTH
from ..protocol.scan import deeper_than
from ..stores import MISSING, Change, Ops

OPS_SCHEMA: Final = {
    "type": "array",
    "description": "Applied in order, as one step; one that fails is skipped and reported.",
    "items": {
        "type": "object",
        "properties": {
            "type": {"type": "string", "enum": ["set", "merge", "increment", "decrement", "append", "remove"]},
            "path": {
                "description": 'A first-level key, or for merge and append an array of nested keys; "" is the root.'
            },
            "value": {},
            "by": {"type": "number"},
        },
        "required": ["type"],
    },
}
ERRORS_SCHEMA: Final = {
    "type": "array",
    "description": "One entry for each op that failed; left out when none did.",
    "items": {
        "type": "object",
        "properties": {
            "op_index": {"type": "integer"},
            "code": {"type": "string"},
            "message": {"type": "string"},
        },
        "required": ["op_index", "code", "message"],
    },
}

MAX_VALUE_DEPTH: Final = MAX_DEPTH - 2
"""Levels of a value: on the wire it stands inside a result or event, inside a frame. Only updates can nest deeper."""


@frozen
class Decided:
    """What an update makes of a value: the new one, what went wrong, and whether it was stored."""

    value: Json
    errors: list[dict[str, Any]]
    written: bool
    too_large: bool = False


def decide(ops: Ops, limit: int | None, current: bytes | None, depth: int = MAX_VALUE_DEPTH) -> Change[Decided]:
    """Carry out the operations of one update: a pure function, run inside the store's transaction.

    A missing key none of whose operations succeeded stays missing (§4.6). `limit` is the largest value in bytes: one
    above it may shrink, but not grow. Raises `StoreError` for a value that no peer could decode any more.
    """
    try:
        applied = ops.apply(MISSING if current is None else Json(current).decode())
    except JsonError as error:
        raise StoreError(f"the stored value is not JSON: {error}") from None
    new = Json.of(applied.new_value)
    check_depth(new, depth)
    if limit is not None and len(new) > max(limit, 0 if current is None else len(current)):
        return Change(None, Decided(new, applied.errors, written=False, too_large=True))
    written = current is not None or applied.changed_any
    return Change(new.raw if written else None, Decided(new, applied.errors, written))


def check_depth(value: Json, depth: int) -> None:
    """Raises `StoreError` for a value that nests deeper than `depth` levels."""
    if value.raw.count(b"[") + value.raw.count(b"{") > depth and deeper_than(value.raw, depth):
        raise StoreError(f"the value would be nested deeper than {depth} levels")
