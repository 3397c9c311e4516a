"""The trigger type `state`: what its config says, what its events look like, whom they go to (spec/state-stream.md §5).

Bindings are told at once and in order, from memory. Durable ones get their events through the queue: these are recorded
in the transaction of the write, and go into the queue from the outbox.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from attrs import define, field

from ...config import Live, StateSettings
from ...engine import Binding, Call, Firing
from ...protocol import Json
from ...protocol.codec import encode_value
from ...stores import Entry
from ..durable import DEFAULT_QUEUE, Watch, Watches, durable_queue
from ..inputs import config_fields
from ..outbox import Outbox, Row, row_of
from .formats import CREATED, DELETED, UPDATED

Place: TypeAlias = tuple[str | None, str | None]
"""Scope and key that a binding waits for; None is any."""

NULL_TEXT = b"null"


def read_config(binding: Binding) -> tuple[Place, str | None]:
    """Place and condition of a `state` binding (§5); raises `TriggerRejected` for a config that does not fit."""
    fields = config_fields(binding)
    place = fields.text_or_none("scope"), fields.text_or_none("key")
    return place, fields.function_id("condition_function_id")


def is_durable(binding: Binding) -> bool:
    """Whether a binding asks for delivery through the queue; raises `TriggerRejected` for a config that does not fit."""
    return durable_queue(config_fields(binding)) is not None


def read_durable_config(check: Callable[[str], None], binding: Binding) -> tuple[Place, str | None, str]:
    """As `read_config`, with the queue, which `check` may refuse."""
    place, condition = read_config(binding)
    queue = durable_queue(config_fields(binding)) or DEFAULT_QUEUE
    check(queue)
    return place, condition, queue


def places_of(scope: str, key: str) -> tuple[Place, ...]:
    """Where bindings for a change of this key may stand."""
    return (scope, key), (scope, None), (None, key), (None, None)


def kind_of(old: bytes | None, new: bytes | None) -> bytes:
    """What a change is called."""
    return DELETED if new is None else CREATED if old is None else UPDATED


def event_text(scope: str, key: str, old: bytes | None, new: bytes | None) -> bytes:
    """The event of a change (§5), always with these six keys; None stands for no value."""
    return b'{"type":"state","event_type":"%s","scope":%s,"key":%s,"old_value":%s,"new_value":%s}' % (
        kind_of(old, new),
        encode_value(scope),
        encode_value(key),
        NULL_TEXT if old is None else old,
        NULL_TEXT if new is None else new,
    )


@define(eq=False)
class Recording:
    """The durable deliveries of one write: `beside` is called in its transaction, `rows` is what it made."""

    watches: Sequence[Watch]
    scope: str
    key: str
    number: int
    traceparent: str | None
    baggage: str | None
    space: str
    rows: list[Row] = field(factory=list)

    def beside(self, old: bytes | None, new: bytes | None) -> Sequence[Entry]:
        """See `stores.Beside`."""
        event = event_text(self.scope, self.key, old, new)
        self.rows += [
            row_of(self.number + count, watch, (self.scope, self.key), event, self.traceparent, self.baggage)
            for count, watch in enumerate(self.watches)
        ]
        return [row.entry(self.space) for row in self.rows]


@define(eq=False)
class Expirations:
    """As `Recording`, of keys whose time is up, which are not known before."""

    places: Callable[[str, str], Sequence[Watch]]
    number: int
    space: str
    rows: list[Row] = field(factory=list)

    def beside(self, scope: str, key: str, value: bytes) -> Sequence[Entry]:
        """See `KeyValue.expire`."""
        event = event_text(scope, key, value, None)
        made = [
            row_of(self.number + len(self.rows) + count, watch, (scope, key), event, None, None)
            for count, watch in enumerate(self.places(scope, key))
        ]
        self.rows += made
        return [row.entry(self.space) for row in made]


@define(eq=False)
class Telling:
    """Tells of changes, for one life of the module. Nobody hears of anything while `triggers_enabled` is off."""

    settings: Live[StateSettings]
    watches: Watches[Place]
    firing: Firing
    outbox: Outbox

    def recording(self, call: Call, scope: str, key: str) -> Recording | None:
        """What records the durable deliveries of a write; None if nobody wants any."""
        if not len(self.watches.durable) or not self.settings.value.triggers_enabled:
            return None
        watches = self.watches.durable_at(places_of(scope, key))
        if not watches:
            return None
        number, space = self.outbox.numbers(len(watches)), self.outbox.store.statistics().space
        return Recording(watches, scope, key, number, call.traceparent, call.baggage, space)

    def expirations(self, limit: int) -> Expirations | None:
        """What records the durable deliveries of up to `limit` keys that expire; None if nobody wants any."""
        kept = self.watches.durable.places
        if not kept or not self.settings.value.triggers_enabled:
            return None
        space = self.outbox.store.statistics().space

        def watching(scope: str, key: str) -> Sequence[Watch]:
            return [watch for place in places_of(scope, key) for watch in kept.get(place, ())]

        return Expirations(watching, self.outbox.numbers(limit * len(self.watches.durable)), space)

    def tell(self, call: Call | None, scope: str, key: str, old: bytes | None, new: bytes | None) -> None:
        """Fire the bindings that match, each in the order of the writes to this key (§5). None stands for no value."""
        if not len(self.watches.plain) or not self.settings.value.triggers_enabled:
            return
        matching = [found for place in places_of(scope, key) for found in self.watches.plain.at(place)]
        if not matching:
            return
        event = Json(event_text(scope, key, old, new))
        for binding, condition in matching:
            self.firing.fire(
                binding,
                event,
                condition=condition,
                lane=(scope, key),
                traceparent=None if call is None else call.traceparent,
                baggage=None if call is None else call.baggage,
            )
