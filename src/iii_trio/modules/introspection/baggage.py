"""`engine::baggage::get`, `get_all` and `set`: the baggage that a call brought, for diagnosis (§10, §17)."""

from typing import Final
from urllib.parse import unquote

from ...engine import Call, Engine
from ..inputs import Fields
from .rows import Row

NOTE: Final = "Baggage set in new context. For propagation, use SDK-level baggage headers."


def entries(baggage: str | None) -> dict[str, str]:
    """The entries of a W3C `baggage` string, values decoded, properties left out; what is no entry is passed over."""
    found: dict[str, str] = {}
    for member in (baggage or "").split(","):
        key, equals, value = member.partition(";")[0].partition("=")
        if equals and key.strip():
            found[key.strip()] = unquote(value.strip())
    return found


def get(_core: Engine, call: Call, fields: Fields) -> Row:
    """`{"value"}` of `key`, null where the call brought none."""
    return {"value": entries(call.baggage).get(fields.text("key"))}


def get_all(_core: Engine, call: Call, _fields: Fields) -> Row:
    """Every entry that the call brought."""
    return {"baggage": entries(call.baggage)}


def put(_core: Engine, _call: Call, fields: Fields) -> Row:
    """`engine::baggage::set`: checks its input and changes nothing, for a call has its baggage from who makes it."""
    fields.text("key")
    fields.text("value")
    return {"success": True, "note": NOTE}
