"""JSON Schemas of entries: checked when they come in, and applied to values (spec/pubsub-cron-config-cli.md §4.2).

Schemas come from workers, so nothing in them reaches out: references to other documents are refused instead of fetched,
and a pattern that would take for ever ends as a failure of its own.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import jsonschema_rs

from ...protocol import NULL, Json

MAX_ERRORS: Final = 10
_HIDDEN: Final = "the value"


class SchemaInvalid(Exception):
    """The schema itself is none; `str()` says why."""


def check_schema(schema: Json) -> None:
    """Raises `SchemaInvalid` for what is no JSON Schema. Null is no schema at all, and passes."""
    if schema.or_null() != NULL:
        _validator(schema.raw, False)


def violations(schema: Json, value: Any, *, hidden: bool = False) -> list[str]:
    """Why `value` does not fit `schema`, one sentence each with the place in the value, at most `MAX_ERRORS`.

    Empty for a value that fits, and for a schema of null. With `hidden` no part of the value is quoted. The dialect is
    `$schema`'s, else draft 2020-12. Raises `SchemaInvalid`.
    """
    if schema.or_null() == NULL:
        return []
    try:
        return list(islice(_sentences(_validator(schema.raw, hidden), value), MAX_ERRORS))
    except (ValueError, RecursionError) as error:
        return [str(error)]


def _sentences(validator: Any, value: Any) -> Iterator[str]:
    for error in validator.iter_errors(value):
        place = "/".join(map(str, error.instance_path))
        yield f"{place}: {error.message}" if place else error.message


@lru_cache(maxsize=256)
def _validator(schema: bytes, hidden: bool) -> Any:
    try:
        return jsonschema_rs.validator_for(
            Json(schema).decode(), retriever=_fetch_nothing, mask=_HIDDEN if hidden else None
        )
    except jsonschema_rs.ValidationError as error:
        raise SchemaInvalid(error.message) from None
    except (ValueError, jsonschema_rs.ReferencingError, RecursionError) as error:
        raise SchemaInvalid(str(error)) from None


def _fetch_nothing(uri: str) -> Any:
    raise ValueError(f"a schema stands alone here, and '{uri}' is outside it")
