"""Streams that another engine keeps: its functions in the place of the store's, and its events for our subscribers (§10).

A write is made over there; then the triggers of this engine fire, and then its caller hears of it. What subscribers of
this engine see comes back from the other one, in one order for all engines that bridge to it:

- one of our kind announces every event of its streams to us, whoever wrote, and takes `stream::send` like a write;
- any other is told of our events on its topic `stream.events`, and tells every engine that bridges to it, us included.

What arrives is stamped anew, for the clocks of two engines differ and clients drop what seems older. After the link was
away, whatever subscribers may have missed is made good by a fresh `sync`.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from attrs import define, field

from ...engine import LATER, Call, Later, Outcome
from ...protocol import NULL, Json, JsonError
from ...protocol.codec import encode_value
from ...protocol.errors import WireError
from ..remote import Remote
from ..remote_state import failed_ops
from .events import Event, Stamps, event
from .subscribers import Hub

log = logging.getLogger(__name__)

TOPIC: Final = "stream.events"
KINDS: Final = frozenset({"create", "update", "delete", "event"})

Address = tuple[str, str, str]


@define(eq=False)
class RemoteStreams:
    """See the module. `failed(code, outcome)` makes the error of a request that failed.

    `announce` tells our triggers of a write that was made over there: address, kind of event, data.
    """

    remote: Remote
    hub: Hub
    stamps: Stamps
    failed: Callable[[str, Outcome], WireError]
    announce: Callable[[Call, Address, bytes, Json], None]
    unread: int = field(default=0, init=False)
    """Events that arrived and were none."""

    # -- the functions ------------------------------------------------------------------------------------------------

    def read(self, call: Call, data: Json, code: str) -> Later:
        """Whatever the other engine answers."""

        def done(outcome: Outcome) -> None:
            if outcome.ok:
                call.finish(outcome)
            else:
                call.fail(self.failed(code, outcome))

        self.remote.request(call.function.id, data.or_null(), done, call)
        return LATER

    def write(self, call: Call, data: Json, code: str, address: Address, ops: int | None = None) -> Later:
        """A set, a delete or, with as many `ops`, an update."""
        done = partial(self._written, call, code, address, ops)
        self.remote.request(call.function.id, data, done, call, lasting=True)
        return LATER

    def _written(self, call: Call, code: str, address: Address, ops: int | None, outcome: Outcome) -> None:
        if not outcome.ok:
            call.fail(self.failed(code, outcome))
            return
        answer = _object(outcome.result)
        old, new = answer.get("old_value"), answer.get("new_value")
        if call.function.id == "stream::delete":
            if old is not None:
                self.announce(call, address, b"delete", Json.of(old))
        elif "new_value" in answer and (old is not None or ops is None or failed_ops(outcome.result) < ops):
            self.announce(call, address, b"create" if old is None else b"update", Json.of(new))
        call.finish(outcome)

    # -- events -------------------------------------------------------------------------------------------------------

    def spread(self, told: Event, *, kept_here: bool, on_done: Callable[[Outcome], None] | None = None) -> None:
        """An event of this engine, to all who follow. `kept_here`: the other engine has no part in it.

        `on_done` hears how that went.
        """
        if self.remote.announces:
            if kept_here:
                self.hub.publish(told)
            if on_done is not None:
                on_done(Outcome(NULL))
            return

        def done(outcome: Outcome) -> None:
            if not outcome.ok:
                log.warning("an event of stream %s stays on this engine: %s", told.group[0], outcome.exception())
                self.hub.publish(told)
            if on_done is not None:
                on_done(outcome)

        payload = Json(b'{"topic":%s,"data":%s}' % (encode_value(TOPIC), told.message.raw))
        self.remote.request("publish", payload, done)

    def heard(self, wrapper: Json) -> None:
        """See `Follower.heard`."""
        fields = _object(wrapper)
        stream, group, item = fields.get("streamName"), fields.get("groupId"), fields.get("id")
        body = _fields(fields.get("event"))
        sound = body.get("type") in KINDS and (item is None or isinstance(item, str))
        if not sound or not isinstance(stream, str) or not isinstance(group, str):
            self.unread += 1
            return
        place = (stream, group)
        if self.hub.hears(place):
            customs = int(body["type"] == "event")
            self.hub.publish(event(place, item, self.stamps.next(place), Json.of(body).raw, customs=customs))

    def back(self) -> None:
        """See `Follower.back`."""
        self.hub.refresh()


def _object(value: Json) -> dict[str, Any]:
    try:
        return _fields(value.decode())
    except JsonError:
        return {}


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
