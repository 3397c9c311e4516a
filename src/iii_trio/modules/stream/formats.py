"""The JSON Schemas that the stream functions and trigger types publish (spec/state-stream.md §1.1, §3, §6)."""

from typing import Final

from ..durable import DURABLE_FIELDS
from ..inputs import object_schema
from ..updates import ERRORS_SCHEMA, OPS_SCHEMA

_STREAM: Final = {"type": "string", "description": "The stream."}
_GROUP: Final = {"type": "string", "description": "The group within the stream."}
_ITEM: Final = {"type": "string", "description": "The item within the group."}
_OLD: Final = {"description": "The value before; null if there was none."}
_NEW: Final = {"description": "The value after."}
_IN_GROUP: Final = {"stream_name": _STREAM, "group_id": _GROUP}
_ADDRESS: Final = {**_IN_GROUP, "item_id": _ITEM}
_CHANGE: Final = {"old_value": _OLD, "new_value": _NEW}
_NAMES: Final = {"type": "array", "items": {"type": "string"}}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_CONDITION: Final = {
    **_TEXT_OR_NULL,
    "description": "Called with the event first; if it answers false, the handler is not called.",
}

SET_FORMAT: Final = object_schema(
    "StreamSetInput",
    {**_ADDRESS, "data": {"description": "Any JSON value; null is stored too."}},
    (*_ADDRESS, "data"),
)
ADDRESS_FORMAT: Final = object_schema("StreamAddress", _ADDRESS, tuple(_ADDRESS))
UPDATE_FORMAT: Final = object_schema("StreamUpdateInput", {**_ADDRESS, "ops": OPS_SCHEMA}, (*_ADDRESS, "ops"))
LIST_FORMAT: Final = object_schema("StreamListInput", _IN_GROUP, tuple(_IN_GROUP))
LIST_GROUPS_FORMAT: Final = object_schema("StreamListGroupsInput", {"stream_name": _STREAM}, ("stream_name",))
LIST_ALL_FORMAT: Final = object_schema("StreamListAllInput", {})
SEND_FORMAT: Final = object_schema(
    "StreamSendInput",
    {
        **_IN_GROUP,
        "id": {**_TEXT_OR_NULL, "description": "The item it is about; null or absent for the whole group."},
        "type": {"type": "string", "description": "What kind of event it is; the sender's own word."},
        "data": {"description": "Any JSON value."},
    },
    (*_IN_GROUP, "type", "data"),
)
SET_RESULT: Final = object_schema("StreamSetResult", _CHANGE, tuple(_CHANGE))
UPDATE_RESULT: Final = object_schema("StreamUpdateResult", {**_CHANGE, "errors": ERRORS_SCHEMA}, tuple(_CHANGE))
DELETE_RESULT: Final = object_schema("StreamDeleteResult", {"old_value": _OLD}, ("old_value",))
LIST_ALL_RESULT: Final = object_schema(
    "StreamListAllResult",
    {
        "stream": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"id": {"type": "string"}, "groups": _NAMES},
                "required": ["id", "groups"],
            },
        },
        "count": {"type": "integer"},
    },
    ("stream", "count"),
)

STREAM_CONFIG: Final = object_schema(
    "StreamTriggerConfig",
    {
        "stream_name": {**_TEXT_OR_NULL, "description": "Only this stream; absent means every stream."},
        "group_id": {**_TEXT_OR_NULL, "description": "Only this group; absent or empty means every group."},
        "item_id": {**_TEXT_OR_NULL, "description": "Only this item; absent or empty means every item."},
        "condition_function_id": _CONDITION,
        **DURABLE_FIELDS,
    },
)
STREAM_EVENT: Final = object_schema(
    "StreamEvent",
    {
        "type": {"const": "stream"},
        "timestamp": {"type": "integer", "description": "Unix ms, strictly increasing within a group."},
        "streamName": _STREAM,
        "groupId": _GROUP,
        "id": {**_TEXT_OR_NULL, "description": "The item; null if the event belongs to none."},
        "event": {
            "type": "object",
            "properties": {
                "type": {"type": "string", "enum": ["create", "update", "delete", "event"]},
                "data": {"description": "The value after; for delete the one before. Not there for event."},
                "event": {"description": "For event alone: what was sent, as {type, data}."},
            },
            "required": ["type"],
        },
    },
    ("type", "timestamp", "streamName", "groupId", "id", "event"),
)
SUBSCRIPTION_CONFIG: Final = object_schema(
    "StreamSubscriptionTriggerConfig",
    {
        "stream_name": {**_TEXT_OR_NULL, "description": "Only this stream; absent means every stream."},
        "condition_function_id": _CONDITION,
    },
)
_SUBSCRIPTION: Final = {
    "subscription_id": {"type": "string", "description": "The subscriber's own id for it."},
    "stream_name": _STREAM,
    "group_id": _GROUP,
    "id": {**_TEXT_OR_NULL, "description": "The item; null for the whole group."},
    "context": {"description": "What the auth function said of the subscriber, or null."},
}
SUBSCRIPTION_EVENT: Final = object_schema("StreamSubscription", _SUBSCRIPTION, tuple(_SUBSCRIPTION))
JOIN_RESULT: Final = object_schema(
    "StreamJoinResult",
    {"unauthorized": {"type": "boolean", "description": "True refuses the subscription; any other answer lets it in."}},
)
