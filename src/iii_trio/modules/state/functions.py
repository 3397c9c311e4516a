"""The functions `state::*` over one space of a store (spec/state-stream.md §2, §4).

Every call is one operation of the store, handed over when the call comes in and answered from the store's callback, so
the order of submission is the order of everything: what a caller reads after its write, what is on disk, and the events
of one key. A write is on disk first, with the durable deliveries that it causes; then its caller hears of it, then its
event goes to the bindings that match. A refused or failed call changes nothing and fires nothing.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar

from attrs import define, field

from ...config import Live, StateSettings
from ...engine import LATER, Call, Engine, Later
from ...protocol import ABSENT, NULL, Json
from ...protocol.codec import encode_value
from ...protocol.errors import StoreError, WireError
from ...stores import Failed, KeyValue, MalformedOps, OnDone, Result, StoreClosed, Updated, parse_ops
from ..inputs import Fields, call_fields
from ..outbox import FULL
from ..updates import Decided, decide
from . import formats
from .expiry import Expiry
from .triggers import Recording, Telling

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

ENVELOPE: Final = 1_024
"""Bytes of a frame that an answer does not fill."""
MOST: Final = 2**53
"""A number above which JSON means different things to different peers."""

Serve = Callable[..., Any]
"""`LocalPeer.register`, or what stands in its place."""


@define(eq=False)
class StateFunctions:
    """The functions. `failed` counts what the store could not do, `too_large` what `max_value_bytes` refused."""

    settings: Live[StateSettings]
    store: KeyValue
    core: Engine
    telling: Telling
    expiry: Expiry
    failed: int = field(default=0, init=False)
    too_large: int = field(default=0, init=False)

    def register(self, serve: Serve) -> None:
        """Serve all of them."""
        serve(
            "state::set",
            self._set,
            description="Store a value under a key.",
            request_format=formats.SET_FORMAT,
            response_format=formats.SET_RESULT,
        )
        serve("state::get", self._get, description="Read the value of a key.", request_format=formats.ADDRESS_FORMAT)
        serve(
            "state::delete",
            self._delete,
            description="Remove a key; the result is the value it had.",
            request_format=formats.ADDRESS_FORMAT,
        )
        serve(
            "state::update",
            self._update,
            description="Change the value of a key in one atomic step.",
            request_format=formats.UPDATE_FORMAT,
            response_format=formats.UPDATE_RESULT,
        )
        serve("state::list", self._list, description="All values of a scope.", request_format=formats.LIST_FORMAT)
        serve(
            "state::list_groups",
            self._list_groups,
            description="All scopes that hold a key.",
            request_format=formats.LIST_GROUPS_FORMAT,
            response_format=formats.LIST_GROUPS_RESULT,
        )

    # -- the functions (§2) -------------------------------------------------------------------------------------------

    def _set(self, call: Call, data: Json) -> Later:
        """`{"scope", "key", "value", "ttl_ms"?}` → `{"old_value", "new_value"}`."""
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")
        value = Json.of(fields.json("value", "data"))
        expires_at_ms = self._expires_at(fields)
        limit = self.settings.value.max_value_bytes
        if limit is not None and len(value) > limit:
            raise self.refuse_size(len(value), limit)
        recording = self._begin_write(call, SET_ERROR, scope, key)

        def done(old: bytes | None) -> None:
            before = b"null" if old is None else old
            call.succeed(Json(b'{"old_value":%s,"new_value":%s}' % (before, value.raw)))
            self._written(call, recording, scope, key, old, value.raw)

        submit = partial(
            self.store.set,
            scope,
            key,
            value.raw,
            expires_at_ms=expires_at_ms,
            beside=None if recording is None else recording.beside,
        )
        return self._write(call, SET_ERROR, submit, done, expires_at_ms)

    def _get(self, call: Call, data: Json) -> Later:
        """`{"scope", "key"}` → the value; no result at all when the key is missing."""
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")

        def done(value: bytes | None) -> None:
            call.succeed(ABSENT if value is None else Json(value))

        return self._submit(call, GET_ERROR, partial(self.store.get, scope, key, now_ms=self._now_ms()), done)

    def _delete(self, call: Call, data: Json) -> Later:
        """`{"scope", "key"}` → the removed value; no result at all when there was none. Fires in either case."""
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")
        recording = self._begin_write(call, DELETE_ERROR, scope, key)

        def done(old: bytes | None) -> None:
            call.succeed(ABSENT if old is None else Json(old))
            self._written(call, recording, scope, key, old, None)

        submit = partial(self.store.delete, scope, key, beside=None if recording is None else recording.beside)
        return self._submit(call, DELETE_ERROR, submit, done)

    def _update(self, call: Call, data: Json) -> Later:
        """`{"scope", "key", "ops", "ttl_ms"?}` → `{"old_value", "new_value", "errors"?}` (§4)."""
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")
        try:
            ops = parse_ops(fields.json("ops"))
        except MalformedOps as error:
            raise fields.refuse(str(error)) from None
        expires_at_ms = self._expires_at(fields)
        limit = self.settings.value.max_value_bytes
        recording = self._begin_write(call, UPDATE_ERROR, scope, key)

        def done(updated: Updated[Decided]) -> None:
            old, decided = updated.old, updated.answer
            before, after = NULL if old is None else Json(old), decided.value
            if limit is not None and decided.too_large:
                call.fail(self.refuse_size(len(after), limit))
                return
            tail = b',"errors":%s' % encode_value(decided.errors) if decided.errors else b""
            call.succeed(Json(b'{"old_value":%s,"new_value":%s%s}' % (before.raw, after.raw, tail)))
            if decided.written:
                self._written(call, recording, scope, key, old, after.raw)

        submit = partial(
            self.store.update,
            scope,
            key,
            partial(decide, ops, limit),
            expires_at_ms=expires_at_ms,
            beside=None if recording is None else recording.beside,
        )
        return self._write(call, UPDATE_ERROR, submit, done, expires_at_ms)

    def _list(self, call: Call, data: Json) -> Later:
        """`{"scope"}` → the scope's values, in the order in which their keys were first set.

        With `prefix`, `after` or `limit` they come by key; with `keys` as `{"key", "value"}`.
        """
        fields = call_fields(call, data)
        scope, keys, limit = fields.text("scope"), fields.flag("keys"), fields.whole_or_none("limit", MOST)
        prefix, after = fields.text_or_none("prefix"), fields.text_or_none("after")
        look = partial(listed, keys, limit, call.origin.cap - ENVELOPE)

        def done(values: bytes) -> None:
            call.succeed(Json(values))

        submit = partial(
            self.store.scan,
            scope,
            look,
            by_key=(prefix, after, limit) != (None, None, None),
            prefix=prefix or "",
            after=after,
            now_ms=self._now_ms(),
        )
        return self._submit(call, LIST_ERROR, submit, done)

    def _list_groups(self, call: Call, data: Json) -> Later:
        """`{"prefix"?, "after"?, "limit"?}` → `{"groups": [scope, …]}`, sorted."""
        fields = call_fields(call, data, optional=True)
        limit, after = fields.whole_or_none("limit", MOST), fields.text_or_none("after")
        prefix, room = fields.text_or_none("prefix") or "", call.origin.cap - ENVELOPE

        def done(scopes: list[str]) -> None:
            groups = Json.of({"groups": scopes})
            if len(groups) > room:
                call.fail(self._failure(LIST_GROUPS_ERROR, too_many("groups", room)))
            else:
                call.succeed(groups)

        submit = partial(self.store.scopes, prefix=prefix, after=after, limit=limit, now_ms=self._now_ms())
        return self._submit(call, LIST_GROUPS_ERROR, submit, done)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return self.core.clock.wall_ms()

    def _expires_at(self, fields: Fields) -> int | None:
        ttl_ms = fields.whole_or_none("ttl_ms", formats.LONGEST_TTL_MS)
        return None if ttl_ms is None else self._now_ms() + ttl_ms

    def _begin_write(self, call: Call, failure: str, scope: str, key: str) -> Recording | None:
        """What records the durable deliveries of a write, None if nobody wants any; a key whose time is up goes first.

        First also in the order of events: their numbers are given in the order in which the store gets the operations.
        """
        try:
            self.expiry.ahead_of_write(scope, key)
        except StoreClosed as error:
            raise self._failure(failure, error) from None
        recording = self.telling.recording(call, scope, key)
        if recording is not None and self.telling.outbox.full:
            raise self._failure(failure, StoreError(FULL))
        return recording

    def _written(
        self, call: Call, recording: Recording | None, scope: str, key: str, old: bytes | None, new: bytes | None
    ) -> None:
        if recording is not None:
            self.telling.outbox.taken_in(recording.rows)
        self.telling.tell(call, scope, key, old, new)

    def _write(
        self,
        call: Call,
        failure: str,
        submit: Callable[[OnDone[T]], None],
        done: Callable[[T], None],
        expires_at_ms: int | None = None,
    ) -> Later:
        """`_submit` for what `_begin_write` has begun, and which may give its key a time."""
        later = self._submit(call, failure, submit, done)
        if expires_at_ms is not None:
            self.expiry.note(expires_at_ms)
        return later

    def _submit(
        self, call: Call, failure: str, submit: Callable[[OnDone[T]], None], done: Callable[[T], None]
    ) -> Later:
        """Hand one operation to the store; `done` gets what it answers, a failure goes to the caller as `failure`."""

        def settled(result: "Result[T]") -> None:  # quoted: it would be built anew for each call
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
        self.failed += 1
        return WireError(f"{FAILURES[code]}: {error}", code)

    def refuse_size(self, size: int, limit: int) -> WireError:
        """The error for a value that `max_value_bytes` does not allow."""
        self.too_large += 1
        text = f"value of {size} bytes exceeds the configured max_value_bytes limit of {limit}"
        return WireError(text, VALUE_TOO_LARGE)


def listed(keys: bool, limit: int | None, room: int, items: Iterable[tuple[str, bytes]]) -> bytes:
    """The answer of `state::list`, made where the data is. Raises `StoreError` if it takes more than `room` bytes."""
    parts: list[bytes] = []
    size = 2
    for key, value in items:
        if limit is not None and len(parts) >= limit:
            break
        part = b'{"key":%s,"value":%s}' % (encode_value(key), value) if keys else value
        size += len(part) + 1
        if size > room:
            raise too_many("values", room)
        parts.append(part)
    return b"[%s]" % b",".join(parts)


def too_many(what: str, room: int) -> StoreError:
    """The error for an answer that its caller could not take."""
    return StoreError(
        f"the answer would take more than {room} bytes, which is all that this caller takes. Ask for fewer {what} at a "
        "time: `limit` says how many, `after` where to go on."
    )
