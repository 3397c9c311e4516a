"""The functions `state::*` where another engine keeps the state (spec/state-stream.md §10).

What is read comes through as it is, nothing and null as different answers. A write is made over there, then its caller
hears of it, then the bindings of this engine that match: the other engine fires its own for the same write, and knows
nothing of those here. Of an older value that was null the other side does not say whether it was there.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from attrs import define

from ..engine import LATER, Call, Later, LocalPeer, Outcome
from ..engine.local import InlineHandler
from ..protocol import NULL, Json, JsonError
from ..stores import MalformedOps, parse_ops
from .inputs import call_fields
from .remote import Remote, failure

NO_FIELDS: Final = frozenset({"state::list_groups"})


@define(eq=False)
class RemoteState:
    """See the module. `summaries` has the error's code and first words for each function. `check_size` raises `WireError`.

    `fire_*` tell the bindings of this engine: scope, key, the value before, and the one after; only if it `listens` is
    an answer looked into for them.
    """

    remote: Remote
    summaries: Mapping[str, tuple[str, str]]
    check_size: Callable[[int], None]
    fire_set: Callable[[Call, str, str, Json, Json], None]
    fire_deleted: Callable[[Call, str, str, Json], None]
    listens: Callable[[], bool]

    def register(self, peer: LocalPeer, function_id: str, _own: InlineHandler, **said: Any) -> None:
        """Serve one of the functions, in the place of the one over a store of this engine."""
        handlers = {"state::set": self._set, "state::delete": self._delete, "state::update": self._update}
        peer.register(function_id, handlers.get(function_id, self._read), **said)

    def _read(self, call: Call, data: Json) -> Later:
        """Whatever the other engine answers."""
        call_fields(call, data, optional=call.function.id in NO_FIELDS)
        self._request(call, data, call.succeed, lasting=False)
        return LATER

    def _set(self, call: Call, data: Json) -> Later:
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")
        value = Json.of(fields.json("value", "data"))
        self.check_size(len(value))
        sent = {name: given for name, given in fields.values.items() if name not in ("value", "data")}

        def done(result: Json) -> None:
            call.succeed(result)
            if self.listens():
                old, new = _change(result)
                self.fire_set(call, scope, key, old, value if new is None else new)

        payload = Json(b'%s,"value":%s}' % (Json.of(sent).raw[:-1], value.raw))
        self._request(call, payload, done, lasting=True)
        return LATER

    def _delete(self, call: Call, data: Json) -> Later:
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")

        def done(removed: Json) -> None:
            call.succeed(removed)
            self.fire_deleted(call, scope, key, removed.or_null())

        self._request(call, data, done, lasting=True)
        return LATER

    def _update(self, call: Call, data: Json) -> Later:
        fields = call_fields(call, data)
        scope, key = fields.text("scope"), fields.text("key")
        try:
            parse_ops(fields.json("ops"))
        except MalformedOps as error:
            raise fields.refuse(str(error)) from None
        count = len(fields.array("ops"))

        def done(result: Json) -> None:
            call.succeed(result)
            old, new = _change(result) if self.listens() else (NULL, None)
            if new is not None and (old != NULL or failed_ops(result) < count):
                self.fire_set(call, scope, key, old, new)

        self._request(call, data, done, lasting=True)
        return LATER

    def _request(self, call: Call, data: Json, done: Callable[[Json], None], *, lasting: bool) -> None:
        answered = partial(self._answered, call, done)
        self.remote.request(call.function.id, data.or_null(), answered, call, lasting=lasting)

    def _answered(self, call: Call, done: Callable[[Json], None], outcome: Outcome) -> None:
        if outcome.ok:
            done(outcome.result)
        else:
            call.fail(failure(outcome, *self.summaries[call.function.id]))


def _change(result: Json) -> tuple[Json, Json | None]:
    """Old and new value of a write's answer; no new one if the answer has none."""
    answer = _object(result)
    return Json.of(answer.get("old_value")), Json.of(answer["new_value"]) if "new_value" in answer else None


def failed_ops(result: Json) -> int:
    """How many operations of an update were skipped, by its answer."""
    found = _object(result).get("errors")
    return len(found) if isinstance(found, list) else 0


def _object(result: Json) -> dict[str, Any]:
    try:
        answer = result.decode()
    except JsonError:
        return {}
    return answer if isinstance(answer, dict) else {}
