"""What somebody without the right to see secrets is shown of an entry, and may make of it (secrets.py has the mechanics).

Until an entry's owner has registered, its schema of before decides what is secret; where that is not known, all of it is.
"""

from collections.abc import Iterable
from typing import Any

from ...protocol import NULL, Json
from ...protocol.errors import FORBIDDEN, WireError
from .entries import MASKED, ConfigurationEntry
from .secrets import RIGHT, MaskedWhereNothingIs, PlaceholderFromOutside, has_marks, masked, unmasked


def shown(entry: ConfigurationEntry, value: Any) -> Any:
    """A value of the entry, as it was written or expanded, with the mask in the place of its secrets."""
    if entry.schema == NULL and not entry.remembered.absent:
        return masked(value, {"writeOnly": True} if entry.remembered == NULL else entry.remembered.decode())
    return masked(value, entry.schema.decode())


def meant(entry: ConfigurationEntry | None, value: Any) -> Any:
    """The value that is meant by one with masks in it. Raises `WireError`."""
    try:
        return unmasked(value, None if entry is None else entry.value.decode())
    except MaskedWhereNothingIs as place:
        text = f"there is no secret behind the mask at {place}; give a value, or leave it out"
        raise WireError(text, MASKED) from None
    except PlaceholderFromOutside as place:
        text = f"the placeholder at {place} would read the engine's environment, which needs the grant {RIGHT}"
        raise WireError(text, FORBIDDEN) from None


def check_schema_change(entry: ConfigurationEntry, schema: Json, past: Iterable[Json]) -> None:
    """Raises `WireError` if another schema could uncover secrets: those there are, were (`past` values) or may come."""
    now = entry.schema if entry.schema != NULL or entry.remembered.absent else entry.remembered
    if schema == now:
        return
    values = [value.decode() for value in (entry.value, *past) if not value.absent]
    if has_marks(now.decode()) or any(shown(entry, value) != value for value in values):
        text = f"configuration '{entry.id}' holds secrets; another schema for it needs the grant {RIGHT}"
        raise WireError(text, FORBIDDEN)
