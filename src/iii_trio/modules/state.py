"""Key-value state and its triggers: the `state::*` functions over one space of a store (spec/state-stream.md §2, §4, §5).

Every call is one operation of the store, handed over when the call comes in and answered from the store's callback, so
the order of submission is the order of everything: what a caller reads after its write, what is on disk, and the events
of one key. A write is on disk first, then its caller hears of it, then its event goes to the bindings that match. A
refused or failed call changes nothing and fires nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio
from attrs import define, field, frozen

from ..config import Live, StateSettings
from ..engine import LATER, Binding, Call, Engine, Firing, Later, open_local
from ..engine.firing import FiringStatistics
from ..protocol import ABSENT, NULL, Json
from ..protocol.codec import encode_value
from ..protocol.errors import StoreError, WireError
from ..stores import (
    Failed,
    KeyValue,
    KeyValueStatistics,
    MalformedOps,
    OnDone,
    Result,
    StoreClosed,
    Updated,
    parse_ops,
)
from .bindings import BindingIndex
from .inputs import call_fields, config_fields, object_schema
from .updates import ERRORS_SCHEMA, OPS_SCHEMA, Decided, decide

T = TypeVar("T")

SET_ERROR: Final = "SET_ERROR"
GET_ERROR: Final = "GET_ERROR"
DELETE_ERROR: Final = "DELETE_ERROR"
UPDATE_ERROR: Final = "UPDATE_ERROR"
LIST_ERROR: Final = "LIST_ERROR"
LIST_GROUPS_ERROR: Final = "LIST_GROUPS_ERROR"
VALUE_TOO_LARGE: Final = "VALUE_TOO_LARGE"

FAILURES: Final = {
    SET_ERROR: "Failed to set value",
    GET_ERROR: "Failed to get value",
    DELETE_ERROR: "Failed to delete value",
    UPDATE_ERROR: "Failed to update value",
    LIST_ERROR: "Failed to list values",
    LIST_GROUPS_ERROR: "Failed to list groups",
}

CREATED: Final = b"state:created"
UPDATED: Final = b"state:updated"
DELETED: Final = b"state:deleted"

DESCRIPTION: Final = "Calls a function when a value of the state is created, updated or deleted."


_SCOPE: Final = {"type": "string", "description": "The group the key belongs to."}
_KEY: Final = {"type": "string", "description": "The key within its scope."}
_OLD: Final = {"description": "The value before; null if there was none."}
_NEW: Final = {"description": "The value after."}
_ADDRESS: Final = {"scope": _SCOPE, "key": _KEY}
_CHANGE: Final = {"old_value": _OLD, "new_value": _NEW}
_ONE_OR_ANY: Final = {"type": ["string", "null"]}

SET_FORMAT: Final = object_schema(
    "StateSetInput",
    {**_ADDRESS, "value": {"description": "Any JSON value; null is stored too. `data` is another name for it."}},
    ("scope", "key", "value"),
)
ADDRESS_FORMAT: Final = object_schema("StateAddress", _ADDRESS, tuple(_ADDRESS))
UPDATE_FORMAT: Final = object_schema("StateUpdateInput", {**_ADDRESS, "ops": OPS_SCHEMA}, ("scope", "key", "ops"))
LIST_FORMAT: Final = object_schema("StateListInput", {"scope": _SCOPE}, ("scope",))
LIST_GROUPS_FORMAT: Final = object_schema("StateListGroupsInput", {})
SET_RESULT: Final = object_schema("StateSetResult", _CHANGE, tuple(_CHANGE))
UPDATE_RESULT: Final = object_schema("StateUpdateResult", {**_CHANGE, "errors": ERRORS_SCHEMA}, tuple(_CHANGE))
LIST_GROUPS_RESULT: Final = object_schema(
    "StateListGroupsResult", {"groups": {"type": "array", "items": {"type": "string"}}}, ("groups",)
)
CONFIG_FORMAT: Final = object_schema(
    "StateTriggerConfig",
    {
        "scope": {**_ONE_OR_ANY, "description": "Only this scope; absent means every scope."},
        "key": {**_ONE_OR_ANY, "description": "Only this key; absent means every key."},
        "condition_function_id": {
            **_ONE_OR_ANY,
            "description": "Called with the event first; if it answers false, the handler is not called.",
        },
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


Place = tuple[str | None, str | None]
"""Scope and key that a binding waits for; None is any."""


def read_config(binding: Binding) -> tuple[Place, str | None]:
    """Place and condition of a `state` binding (§5); raises `TriggerRejected` for a config that does not fit."""
    fields = config_fields(binding)
    place = fields.text_or_none("scope"), fields.text_or_none("key")
    return place, fields.function_id("condition_function_id")


@frozen
class StateStatistics:
    """What the state module has done and holds."""

    store: KeyValueStatistics
    """Operations handed to the store."""
    failed: int
    """Operations that the store could not do."""
    too_large: int
    """Values refused by `max_value_bytes`."""
    bindings: int
    """Bindings that wait for changes."""
    firing: FiringStatistics | None
    """Deliveries since the module was started last; None when it does not run."""


@define(eq=False)
class StateModule:
    """The module. `store` is the space that holds the state; the caller keeps it open for longer than `run`."""

    settings: Live[StateSettings]
    store: KeyValue
    _watches: BindingIndex[Place] = field(factory=lambda: BindingIndex(read_config), init=False)
    _firing: Firing | None = field(default=None, init=False)
    _failed: int = field(default=0, init=False)
    _too_large: int = field(default=0, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is told once the functions and the trigger type are there."""
        async with open_local(core, "state") as peer:
            self._firing = Firing(peer)
            peer.register(
                "state::set",
                self._set,
                description="Store a value under a key.",
                request_format=SET_FORMAT,
                response_format=SET_RESULT,
            )
            peer.register(
                "state::get", self._get, description="Read the value of a key.", request_format=ADDRESS_FORMAT
            )
            peer.register(
                "state::delete",
                self._delete,
                description="Remove a key; the result is the value it had.",
                request_format=ADDRESS_FORMAT,
            )
            peer.register(
                "state::update",
                self._update,
                description="Change the value of a key in one atomic step.",
                request_format=UPDATE_FORMAT,
                response_format=UPDATE_RESULT,
            )
            peer.register("state::list", self._list, description="All values of a scope.", request_format=LIST_FORMAT)
            peer.register(
                "state::list_groups",
                self._list_groups,
                description="All scopes that hold a key.",
                request_format=LIST_GROUPS_FORMAT,
                response_format=LIST_GROUPS_RESULT,
            )
            peer.provide(
                "state",
                self._watches,
                description=DESCRIPTION,
                config_format=CONFIG_FORMAT,
                call_format=EVENT_FORMAT,
            )
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._firing = None

    # -- the functions (§2) -------------------------------------------------------------------------------------------

    def _set(self, call: Call, data: Json) -> Later:
        """`{"scope", "key", "value"}` → `{"old_value", "new_value"}`."""
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")
        value = Json.of(fields.json("value", "data"))
        limit = self.settings.value.max_value_bytes
        if limit is not None and len(value) > limit:
            raise self._refuse_size(len(value), limit)

        def done(old: bytes | None) -> None:
            before = NULL if old is None else Json(old)
            call.succeed(Json(b'{"old_value":%s,"new_value":%s}' % (before.raw, value.raw)))
            self._fire(call, CREATED if old is None else UPDATED, scope, key, before, value)

        return self._submit(call, SET_ERROR, partial(self.store.set, scope, key, value.raw), done)

    def _get(self, call: Call, data: Json) -> Later:
        """`{"scope", "key"}` → the value; no result at all when the key is missing."""
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")

        def done(value: bytes | None) -> None:
            call.succeed(ABSENT if value is None else Json(value))

        return self._submit(call, GET_ERROR, partial(self.store.get, scope, key), done)

    def _delete(self, call: Call, data: Json) -> Later:
        """`{"scope", "key"}` → the removed value; no result at all when there was none. Fires in either case."""
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")

        def done(old: bytes | None) -> None:
            removed = ABSENT if old is None else Json(old)
            call.succeed(removed)
            self._fire(call, DELETED, scope, key, removed.or_null(), NULL)

        return self._submit(call, DELETE_ERROR, partial(self.store.delete, scope, key), done)

    def _update(self, call: Call, data: Json) -> Later:
        """`{"scope", "key", "ops"}` → `{"old_value", "new_value", "errors"?}` (§4)."""
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")
        try:
            ops = parse_ops(fields.json("ops"))
        except MalformedOps as error:
            raise fields.refuse(str(error)) from None
        limit = self.settings.value.max_value_bytes

        def done(updated: Updated[Decided]) -> None:
            old, decided = updated.old, updated.answer
            before, after = NULL if old is None else Json(old), decided.value
            if limit is not None and decided.too_large:
                call.fail(self._refuse_size(len(after), limit))
                return
            tail = b',"errors":%s' % encode_value(decided.errors) if decided.errors else b""
            call.succeed(Json(b'{"old_value":%s,"new_value":%s%s}' % (before.raw, after.raw, tail)))
            if decided.written:
                self._fire(call, CREATED if old is None else UPDATED, scope, key, before, after)

        return self._submit(
            call, UPDATE_ERROR, partial(self.store.update, scope, key, partial(decide, ops, limit)), done
        )

    def _list(self, call: Call, data: Json) -> Later:
        """`{"scope"}` → the scope's values, in the order in which their keys were first set."""
        scope = call_fields(call, data).text("scope")

        def done(values: list[bytes]) -> None:
            call.succeed(Json(b"[%s]" % b",".join(values)))

        return self._submit(call, LIST_ERROR, partial(self.store.values, scope), done)

    def _list_groups(self, call: Call, data: Json) -> Later:
        """`{}` → `{"groups": [scope, …]}`, sorted."""
        call_fields(call, data, optional=True)

        def done(scopes: list[str]) -> None:
            call.succeed(Json.of({"groups": scopes}))

        return self._submit(call, LIST_GROUPS_ERROR, self.store.scopes, done)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _submit(
        self, call: Call, failure: str, submit: Callable[[OnDone[T]], None], done: Callable[[T], None]
    ) -> Later:
        """Hand one operation to the store; `done` gets what it answers, a failure goes to the caller as `failure`."""

        def settled(result: Result[T]) -> None:
            if isinstance(result, Failed):
                call.fail(self._failure(failure, result.error))
            else:
                done(result.value)

        try:
            submit(settled)
        except StoreClosed as error:
            raise self._failure(failure, error) from None
        return LATER

    def _failure(self, code: str, error: StoreError) -> WireError:
        self._failed += 1
        return WireError(f"{FAILURES[code]}: {error}", code)

    def _refuse_size(self, size: int, limit: int) -> WireError:
        self._too_large += 1
        text = f"value of {size} bytes exceeds the configured max_value_bytes limit of {limit}"
        return WireError(text, VALUE_TOO_LARGE)

    def _fire(self, call: Call, kind: bytes, scope: str, key: str, old: Json, new: Json) -> None:
        """Tell the bindings that match, each in the order of the writes to this key (§5)."""
        if self._firing is None or not self.settings.value.triggers_enabled:
            return
        places: tuple[Place, ...] = ((scope, key), (scope, None), (None, key), (None, None))
        matching = [found for place in places for found in self._watches.at(place)]
        if not matching:
            return
        event = Json(
            b'{"type":"state","event_type":"%s","scope":%s,"key":%s,"old_value":%s,"new_value":%s}'
            % (kind, encode_value(scope), encode_value(key), old.raw, new.raw)
        )
        for binding, condition in matching:
            self._firing.fire(
                binding,
                event,
                condition=condition,
                lane=(scope, key),
                traceparent=call.traceparent,
                baggage=call.baggage,
            )

    def statistics(self) -> StateStatistics:
        """A frozen picture of operations, bindings and deliveries."""
        return StateStatistics(
            store=self.store.statistics(),
            failed=self._failed,
            too_large=self._too_large,
            bindings=len(self._watches),
            firing=None if self._firing is None else self._firing.statistics(),
        )
