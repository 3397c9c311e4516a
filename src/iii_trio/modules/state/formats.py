"""What the state functions take and answer and what their events look like, as JSON Schemas (spec/state-stream.md §2, §5)."""

from typing import Final

from ..durable import DURABLE_FIELDS
from ..inputs import object_schema
from ..updates import ERRORS_SCHEMA, OPS_SCHEMA

CREATED: Final = b"state:created"
UPDATED: Final = b"state:updated"
DELETED: Final = b"state:deleted"

LONGEST_TTL_MS: Final = 100 * 366 * 86_400_000

_SCOPE: Final = {"type": "string", "description": "The group the key belongs to."}
_KEY: Final = {"type": "string", "description": "The key within its scope."}
_OLD: Final = {"description": "The value before; null if there was none."}
_NEW: Final = {"description": "The value after."}
_ADDRESS: Final = {"scope": _SCOPE, "key": _KEY}
_CHANGE: Final = {"old_value": _OLD, "new_value": _NEW}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_NUMBER_OR_NULL: Final = {"type": ["integer", "null"], "minimum": 1}

_TTL: Final = {
    **_NUMBER_OR_NULL,
    "maximum": LONGEST_TTL_MS,
    "description": "Remove the key so many milliseconds from now. Setting it without removes any earlier time; an update "
    "without keeps it.",
}
_PAGE: Final = {
    "prefix": {**_TEXT_OR_NULL, "description": "Only names that begin with this."},
    "after": {**_TEXT_OR_NULL, "description": "Only names greater than this: the last one of the page before."},
    "limit": {**_NUMBER_OR_NULL, "description": "At most so many. Fewer mean that this was the last page."},
}

SET_FORMAT: Final = object_schema(
    "StateSetInput",
    {
        **_ADDRESS,
        "value": {"description": "Any JSON value; null is stored too. `data` is another name for it."},
        "ttl_ms": _TTL,
    },
    ("scope", "key", "value"),
)
ADDRESS_FORMAT: Final = object_schema("StateAddress", _ADDRESS, tuple(_ADDRESS))
UPDATE_FORMAT: Final = object_schema(
    "StateUpdateInput", {**_ADDRESS, "ops": OPS_SCHEMA, "ttl_ms": _TTL}, ("scope", "key", "ops")
)
LIST_FORMAT: Final = object_schema(
    "StateListInput",
    {
        "scope": _SCOPE,
        **_PAGE,
        "keys": {
            "type": ["boolean", "null"],
            "description": "Answer objects with `key` and `value` in the place of bare values.",
        },
    },
    ("scope",),
)
LIST_GROUPS_FORMAT: Final = object_schema("StateListGroupsInput", _PAGE)
SET_RESULT: Final = object_schema("StateSetResult", _CHANGE, tuple(_CHANGE))
UPDATE_RESULT: Final = object_schema("StateUpdateResult", {**_CHANGE, "errors": ERRORS_SCHEMA}, tuple(_CHANGE))
LIST_GROUPS_RESULT: Final = object_schema(
    "StateListGroupsResult", {"groups": {"type": "array", "items": {"type": "string"}}}, ("groups",)
)
CONFIG_FORMAT: Final = object_schema(
    "StateTriggerConfig",
    {
        "scope": {**_TEXT_OR_NULL, "description": "Only this scope; absent means every scope."},
        "key": {**_TEXT_OR_NULL, "description": "Only this key; absent means every key."},
        "condition_function_id": {
            **_TEXT_OR_NULL,
            "description": "Called with the event first; if it answers false, the handler is not called.",
        },
        **DURABLE_FIELDS,
    },
)
_EVENT: Final = {
    "type": {"const": "state"},
    "event_type": {"type": "string", "enum": [kind.decode() for kind in (CREATED, UPDATED, DELETED)]},
    **_ADDRESS,
    "old_value": _OLD,
    "new_value": {"description": "The value after; null if it was deleted."},
}
EVENT_FORMAT: Final = object_schema("StateEvent", _EVENT, tuple(_EVENT))
