"""The functions `stream::*` over the spaces of a store, a worker that keeps a stream's data, or another engine (§3, §4).

Every call is one operation, handed over when the call comes in and answered from a callback. A write is on disk first;
then its event goes to the triggers and the subscribers, and then its caller hears of it. The store calls back in the
order of the writes, so that is the order of the events and of their timestamps too. Each stream is a space of its own,
each group a scope in it: any text will do for their names.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final, TypeVar

from attrs import define, field

from ...config import Live, StreamSettings
from ...engine import LATER, Call, Firing, Later, LocalPeer, Outcome
from ...protocol import ABSENT, NULL, Json, JsonError
from ...protocol.codec import encode_value
from ...protocol.errors import StoreError, WireError
from ...protocol.limits import MAX_DEPTH
from ...stores import (
    Beside,
    Failed,
    KeyValue,
    MalformedOps,
    OnDone,
    Ops,
    Result,
    Store,
    StoreClosed,
    Updated,
    parse_ops,
)
from ..inputs import Fields, call_fields
from ..remote import Remote, failure
from ..updates import Decided, check_depth, decide
from . import formats
from .durable import Durable, Recording
from .events import Group, Stamps, changed, custom, event
from .providers import End, Providers, Turns
from .remote import RemoteStreams
from .subscribers import Hub
from .triggers import Watches

T = TypeVar("T")

SPACE: Final = "stream/"
"""A stream's data stands in the space of this and its name."""

EVENT_DEPTH: Final = MAX_DEPTH - 4
"""Levels of a value: what `stream::send` sends stands in an event, in a custom event, in a wrapper, in a frame."""

SET_ERROR: Final = "STREAM_SET_ERROR"
GET_ERROR: Final = "STREAM_GET_ERROR"
DELETE_ERROR: Final = "STREAM_DELETE_ERROR"
UPDATE_ERROR: Final = "STREAM_UPDATE_ERROR"
LIST_ERROR: Final = "STREAM_GET_GROUP_ERROR"
LIST_GROUPS_ERROR: Final = "STREAM_LIST_GROUPS_ERROR"
LIST_ALL_ERROR: Final = "STREAM_LIST_ALL_ERROR"
SEND_ERROR: Final = "STREAM_SEND_ERROR"
JSON_ERROR: Final = "JSON_ERROR"
VALUE_TOO_LARGE: Final = "VALUE_TOO_LARGE"

FAILURES: Final = {
    SET_ERROR: "Failed to set value",
    GET_ERROR: "Failed to get value",
    DELETE_ERROR: "Failed to delete value",
    UPDATE_ERROR: "Failed to update value",
    LIST_ERROR: "Failed to get group",
    LIST_GROUPS_ERROR: "Failed to list groups",
    LIST_ALL_ERROR: "Failed to list stream",
    SEND_ERROR: "Failed to send event",
}

FAILED_WRITES: Final = {"set": SET_ERROR, "update": UPDATE_ERROR, "delete": DELETE_ERROR}

Address = tuple[str, str, str]
"""Stream, group and item."""


@define(eq=False)
class StreamFunctions:
    """The eight functions. `failed` counts what the store, a provider or another engine could not do.

    With a `remote` that engine keeps what no provider keeps, and `store` is not used; `far` is how.
    """

    settings: Live[StreamSettings]
    store: Store
    providers: Providers
    watches: Watches
    stamps: Stamps
    hub: Hub
    firing: Firing
    durable: Durable
    remote: Remote | None = None
    far: RemoteStreams | None = field(default=None, init=False)
    failed: int = field(default=0, init=False)
    writes: int = field(default=0, init=False)
    sends: int = field(default=0, init=False)
    _turns: Turns = field(factory=Turns, init=False)

    def __attrs_post_init__(self) -> None:
        if self.remote is not None:
            announce = partial(self._announce, kept_here=False)
            self.far = RemoteStreams(self.remote, self.hub, self.stamps, self._not_done, announce)

    def register(self, peer: LocalPeer) -> None:
        """Serve all of them."""
        peer.register(
            "stream::set",
            self._set,
            description="Store an item of a group.",
            request_format=formats.SET_FORMAT,
            response_format=formats.SET_RESULT,
        )
        peer.register(
            "stream::get", self._get, description="Read an item of a group.", request_format=formats.ADDRESS_FORMAT
        )
        peer.register(
            "stream::delete",
            self._delete,
            description="Remove an item of a group.",
            request_format=formats.ADDRESS_FORMAT,
            response_format=formats.DELETE_RESULT,
        )
        peer.register(
            "stream::update",
            self._update,
            description="Change an item in one atomic step.",
            request_format=formats.UPDATE_FORMAT,
            response_format=formats.UPDATE_RESULT,
        )
        peer.register(
            "stream::list", self._list, description="All items of a group.", request_format=formats.LIST_FORMAT
        )
        peer.register(
            "stream::list_groups",
            self._list_groups,
            description="All groups of a stream that hold an item.",
            request_format=formats.LIST_GROUPS_FORMAT,
        )
        peer.register(
            "stream::list_all",
            self._list_all,
            description="All streams that hold an item, with their groups.",
            request_format=formats.LIST_ALL_FORMAT,
            response_format=formats.LIST_ALL_RESULT,
        )
        peer.register(
            "stream::send",
            self._send,
            description="Send an event to those who listen to a group; nothing is stored.",
            request_format=formats.SEND_FORMAT,
        )

    @contextmanager
    def following(self) -> Iterator[None]:
        """Hear the events of the engine that keeps the streams, if another one does, for the length of the block."""
        with ExitStack() as stack:
            if self.far is not None:
                stack.callback(self.far.remote.follow(self.far))
            yield

    # -- the functions ------------------------------------------------------------------------------------------------

    def _set(self, call: Call, data: Json) -> Later:
        """`{"stream_name", "group_id", "item_id", "data"}` → `{"old_value", "new_value"}`."""
        fields = call_fields(call, data)
        stream, group, item = address = _address(fields)
        value = Json.of(fields.json("data"))
        if self.providers.has("set", stream):
            return self._write_through("set", SET_ERROR, call, data, address)
        self._check(SET_ERROR, value)
        limit = self.settings.value.max_value_bytes
        if limit is not None and len(value) > limit:
            raise self._too_large(len(value), limit)
        if self.far is not None:
            return self.far.write(call, data, SET_ERROR, address)
        recording = self._recording(call, SET_ERROR, (stream, group), item)

        def done(old: bytes | None) -> None:
            before = NULL if old is None else Json(old)
            self.durable.recorded(recording)
            self._announce(call, address, b"create" if old is None else b"update", value)
            call.succeed(Json(b'{"old_value":%s,"new_value":%s}' % (before.raw, value.raw)))

        submit = partial(self._values(stream).set, group, item, value.raw, beside=_beside(recording))
        return self._submit(call, SET_ERROR, submit, done)

    def _get(self, call: Call, data: Json) -> Later:
        """`{"stream_name", "group_id", "item_id"}` → the item; no result at all when it is missing."""
        stream, group, item = _address(call_fields(call, data))
        if self.providers.has("get", stream):
            return self._read_through("get", call, data, stream)
        if self.far is not None:
            return self.far.read(call, data, GET_ERROR)

        def done(value: bytes | None) -> None:
            call.succeed(ABSENT if value is None else Json(value))

        return self._submit(call, GET_ERROR, partial(self._values(stream).get, group, item), done)

    def _delete(self, call: Call, data: Json) -> Later:
        """`{"stream_name", "group_id", "item_id"}` → `{"old_value"}`; a missing item causes no event."""
        stream, group, item = address = _address(call_fields(call, data))
        if self.providers.has("delete", stream):
            return self._write_through("delete", DELETE_ERROR, call, data, address)
        if self.far is not None:
            return self.far.write(call, data, DELETE_ERROR, address)
        recording = self._recording(call, DELETE_ERROR, (stream, group), item)

        def done(old: bytes | None) -> None:
            before = NULL if old is None else Json(old)
            self.durable.recorded(recording)
            if old is not None:
                self._announce(call, address, b"delete", before)
            call.succeed(Json(b'{"old_value":%s}' % before.raw))

        submit = partial(self._values(stream).delete, group, item, beside=_beside(recording))
        return self._submit(call, DELETE_ERROR, submit, done)

    def _update(self, call: Call, data: Json) -> Later:
        """The address and `ops` → `{"old_value", "new_value", "errors"?}` (§4)."""
        fields = call_fields(call, data)
        stream, group, item = address = _address(fields)
        try:
            ops = parse_ops(fields.json("ops"))
        except MalformedOps as error:
            raise fields.refuse(str(error)) from None
        if self.providers.has("update", stream):
            return self._write_through("update", UPDATE_ERROR, call, data, address)
        if self.providers.has("get", stream) and self.providers.has("set", stream):
            return self._update_through(call, address, ops)
        if self.far is not None:
            return self.far.write(call, data, UPDATE_ERROR, address, len(fields.array("ops")))

        limit = self.settings.value.max_value_bytes
        recording = self._recording(call, UPDATE_ERROR, (stream, group), item)

        def done(updated: Updated[Decided]) -> None:
            if limit is not None and updated.answer.too_large:
                call.fail(self._too_large(len(updated.answer.value), limit))
            else:
                self.durable.recorded(recording)
                self._updated(call, address, updated.old, updated.answer)

        change = partial(decide, ops, limit, depth=EVENT_DEPTH)
        submit = partial(self._values(stream).update, group, item, change, beside=_beside(recording))
        return self._submit(call, UPDATE_ERROR, submit, done)

    def _list(self, call: Call, data: Json) -> Later:
        """`{"stream_name", "group_id"}` → the group's items, in the order in which they were first set."""
        fields = call_fields(call, data)
        stream, group = fields.text("stream_name"), fields.text("group_id")
        if self.providers.has("list", stream):
            return self._read_through("list", call, data, stream)
        if self.far is not None:
            return self.far.read(call, data, LIST_ERROR)

        def done(values: list[bytes]) -> None:
            call.succeed(array(values))

        return self._submit(call, LIST_ERROR, partial(self._values(stream).values, group), done)

    def _list_groups(self, call: Call, data: Json) -> Later:
        """`{"stream_name"}` → `[group id, …]`, sorted."""
        stream = call_fields(call, data).text("stream_name")
        if self.providers.has("list_groups", stream):
            return self._read_through("list_groups", call, data, stream)
        if self.far is not None:
            return self.far.read(call, data, LIST_GROUPS_ERROR)

        def done(groups: list[str]) -> None:
            call.succeed(Json.of(groups))

        return self._submit(call, LIST_GROUPS_ERROR, self._values(stream).scopes, done)

    def _list_all(self, call: Call, data: Json) -> Later:
        """`{}` → `{"stream": [{"id", "groups"}, …], "count"}`, sorted; streams that workers keep are not in it."""
        call_fields(call, data, optional=True)
        if self.far is not None:
            return self.far.read(call, data, LIST_ALL_ERROR)

        def done(found: list[tuple[str, str]]) -> None:
            streams: dict[str, list[str]] = {}
            for space, group in found:
                streams.setdefault(space.removeprefix(SPACE), []).append(group)
            listed = [{"id": stream, "groups": groups} for stream, groups in streams.items()]
            call.succeed(Json.of({"stream": listed, "count": len(listed)}))

        return self._submit(call, LIST_ALL_ERROR, partial(self.store.directory, SPACE), done)

    def _send(self, call: Call, data: Json) -> Outcome | Later:
        """`{"stream_name", "group_id", "id"?, "type", "data"}` → null; the event goes to whoever listens now."""
        fields = call_fields(call, data)
        group = fields.text("stream_name"), fields.text("group_id")
        item, kind = fields.text_or_none("id"), fields.text("type")
        value = Json.of(fields.json("data"))
        self._check(SEND_ERROR, value)
        self.sends += 1
        if self.far is None:
            body = custom(kind, value)
            recording = self._recording(call, SEND_ERROR, group, item)
            if recording is None:
                self._tell(call, group, item, body, customs=1)
                return Outcome(NULL)

            def recorded(error: StoreError | None) -> None:
                if error is not None:
                    call.fail(self._failure(SEND_ERROR, str(error)))
                    return
                self._tell(call, group, item, body, customs=1)
                call.succeed(NULL)

            self.durable.record(recording, body, recorded)
            return LATER

        def sent(outcome: Outcome) -> None:
            if outcome.ok:
                call.succeed(NULL)
            else:
                call.fail(self._not_done(SEND_ERROR, outcome))

        told = event(group, item, self.stamps.next(group), custom(kind, value), customs=1)
        self.watches.fire(self.firing, told, self.watches.of_event(group, item), call)
        if self.far.remote.announces:
            self.far.remote.request("stream::send", data, sent, call, lasting=True)
        else:
            self.far.spread(told, kept_here=False, on_done=sent)
        return LATER

    # -- the store ----------------------------------------------------------------------------------------------------

    def _values(self, stream: str) -> KeyValue:
        return self.store.key_value(SPACE + stream)

    def _submit(
        self, call: Call, failure: str, submit: Callable[[OnDone[T]], None], done: Callable[[T], None]
    ) -> Later:
        """Hand one operation to the store; `done` gets what it answers, a failure goes to the caller as `failure`."""

        def settled(result: Result[T]) -> None:
            if isinstance(result, Failed):
                call.fail(self._failure(failure, str(result.error)))
            else:
                done(result.value)

        try:
            submit(settled)
        except StoreClosed as error:
            raise self._failure(failure, str(error)) from None
        return LATER

    def _failure(self, code: str, why: str) -> WireError:
        self.failed += 1
        return WireError(f"{FAILURES[code]}: {why}", code)

    def _not_done(self, code: str, outcome: Outcome) -> WireError:
        """The error for what another engine could not do."""
        self.failed += 1
        return failure(outcome, code, FAILURES[code])

    def _too_large(self, size: int, limit: int) -> WireError:
        self.failed += 1
        text = f"value of {size} bytes exceeds the configured max_value_bytes limit of {limit}"
        return WireError(text, VALUE_TOO_LARGE)

    def _check(self, failure: str, value: Json) -> None:
        try:
            check_depth(value, EVENT_DEPTH)
        except StoreError as error:
            raise self._failure(failure, str(error)) from None

    # -- a provider's data (§3.1) -------------------------------------------------------------------------------------

    def _read_through(self, operation: str, call: Call, data: Json, stream: str) -> Later:
        """What a provider answers to a read goes to the caller as it is, an error too."""
        self.providers.call(operation, stream, data, call.finish, call)
        return LATER

    def _write_through(self, operation: str, failure: str, call: Call, data: Json, address: Address) -> Later:
        """Let the provider write; the event is made of what it answers."""

        def step(end: End) -> None:
            def done(outcome: Outcome) -> None:
                try:
                    self._written(operation, call, address, self._answer(failure, outcome))
                except WireError as error:
                    call.fail(error)
                end()

            self.providers.call(operation, address[0], data, done, call, lasting=True)

        self._turns.take(address, step, exclusive=False)
        return LATER

    def _answer(self, failure: str, outcome: Outcome) -> dict[str, Any]:
        """What a provider answered to a write, as an object; empty for nothing. Raises `WireError`."""
        if not outcome.ok:
            error = outcome.exception()
            raise self._failure(failure, f"Failed to invoke function: {error.code}: {error.message}")
        if outcome.result.or_null() == NULL:
            if failure == DELETE_ERROR:
                return {}  # old Python SDKs answer a delete with nothing
            raise self._failure(failure, "Function returned no result")
        try:
            answer = outcome.result.decode()
        except JsonError as error:
            raise self._misfit(str(error)) from None
        if not isinstance(answer, dict):
            raise self._misfit("expected an object")
        if failure != DELETE_ERROR and "new_value" not in answer:
            raise self._misfit("missing field `new_value`")
        return answer

    def _misfit(self, detail: str) -> WireError:
        self.failed += 1
        return WireError(f"Failed to convert result to value: {detail}", JSON_ERROR)

    def _written(self, operation: str, call: Call, address: Address, answer: dict[str, Any]) -> None:
        old = answer.get("old_value")
        before = Json.of(old)
        if operation == "delete":
            kind, data, result = b"delete", before, Json(b'{"old_value":%s}' % before.raw)
        else:
            data = Json.of(answer["new_value"])
            kind = b"create" if old is None else b"update"
            result = _change(before, data, answer.get("errors") if operation == "update" else None)
        if operation == "delete" and old is None:
            call.succeed(result)
            return
        failure, group = FAILED_WRITES[operation], address[:2]
        self._check(failure, data)
        self._announce(call, address, kind, data)
        recording = None if self.far is not None else self._recording(call, failure, group, address[2])
        if recording is None:
            call.succeed(result)
            return

        def recorded(error: StoreError | None) -> None:
            if error is None:
                call.succeed(result)
            else:
                call.fail(self._failure(failure, f"it was done, and durable triggers do not hear of it: {error}"))

        self.durable.record(recording, changed(kind, data), recorded)

    def _update_through(self, call: Call, address: Address, ops: Ops) -> Later:
        """An update for a provider that has none: its get, the operations, its set, and no other write in between."""
        stream, group, item = address
        place = {"stream_name": stream, "group_id": group, "item_id": item}

        def step(end: End) -> None:
            def fail(error: WireError) -> None:
                call.fail(error)
                end()

            def read(outcome: Outcome) -> None:
                if not outcome.ok:
                    error = outcome.exception()
                    fail(self._failure(UPDATE_ERROR, f"Failed to invoke function: {error.code}: {error.message}"))
                    return
                current = outcome.result.or_null()
                try:
                    decided = decide(ops, None, None if current == NULL else current.raw, EVENT_DEPTH).answer
                except StoreError as error:
                    fail(self._failure(UPDATE_ERROR, str(error)))
                    return
                if not decided.written:
                    call.succeed(_change(NULL, decided.value, decided.errors))
                    end()
                    return
                payload = Json(b'%s,"data":%s}' % (encode_value(place)[:-1], decided.value.raw))
                self.providers.call("set", stream, payload, partial(written, decided), call, lasting=True)

            def written(decided: Decided, outcome: Outcome) -> None:
                try:
                    answer = self._answer(UPDATE_ERROR, outcome)
                    self._written("update", call, address, {**answer, "errors": decided.errors})
                except WireError as error:
                    call.fail(error)
                end()

            self.providers.call("get", stream, Json.of(place), read, call)  # given up, it fails, and the turn ends

        self._turns.take(address, step, exclusive=True)
        return LATER

    # -- events -------------------------------------------------------------------------------------------------------

    def _recording(self, call: Call, failure: str, group: Group, item: str | None) -> Recording | None:
        try:
            return self.durable.recording(call, group, item)
        except StoreError as error:
            raise self._failure(failure, str(error)) from None

    def _updated(self, call: Call, address: Address, old: bytes | None, decided: Decided) -> None:
        before = NULL if old is None else Json(old)
        if decided.written:
            self._announce(call, address, b"create" if old is None else b"update", decided.value)
        call.succeed(_change(before, decided.value, decided.errors))

    def _announce(self, call: Call, address: Address, kind: bytes, data: Json, *, kept_here: bool = True) -> None:
        self.writes += 1
        stream, group, item = address
        self._tell(call, (stream, group), item, changed(kind, data), kept_here=kept_here)

    def _tell(
        self, call: Call, group: Group, item: str | None, body: bytes, *, customs: int = 0, kept_here: bool = True
    ) -> None:
        """Triggers first, then subscribers (§3); nothing is made of an event that nobody waits for.

        `kept_here`: no other engine has a part in it.
        """
        matching = self.watches.of_event(group, item)
        if self.far is None and not matching and not self.hub.hears(group):
            return
        told = event(group, item, self.stamps.next(group), body, customs=customs)
        self.watches.fire(self.firing, told, matching, call)
        if self.far is None:
            self.hub.publish(told)
        else:
            self.far.spread(told, kept_here=kept_here)


def _beside(recording: Recording | None) -> Beside | None:
    return None if recording is None else recording.beside


def _address(fields: Fields) -> Address:
    return fields.text("stream_name"), fields.text("group_id"), fields.text("item_id")


def array(values: list[bytes]) -> Json:
    """JSON texts as one array."""
    return Json(b"[%s]" % b",".join(values))


def _change(before: Json, after: Json, errors: list[dict[str, Any]] | None) -> Json:
    tail = b',"errors":%s' % encode_value(errors) if errors else b""
    return Json(b'{"old_value":%s,"new_value":%s%s}' % (before.raw, after.raw, tail))
