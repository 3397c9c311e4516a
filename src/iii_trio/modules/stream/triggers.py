"""The trigger types `stream`, `stream:join` and `stream:leave`: which binding waits for what (spec/state-stream.md §6)."""

from typing import Final

from attrs import define, field

from ...engine import Binding, Call, Firing
from ...protocol import Json
from ...protocol.codec import encode_value
from ..bindings import BindingIndex
from ..inputs import config_fields
from .events import Event
from .subscribers import Subscription

REFUSED: Final = "Failed to deserialize stream trigger"
INTERNAL: Final = ("iii:", "iii.")
"""Streams of the engine's own: bindings for every stream do not see them."""
UNTRACED: Final = "iii:devtools:"
"""Streams that carry traces: what they cause must not make new ones (§5.8)."""

Place = tuple[str | None, str | None, str | None]
"""Stream, group and item that a `stream` binding waits for; None is any."""


def read_stream_config(binding: Binding) -> tuple[Place, str | None]:
    """Place and condition of a `stream` binding (§6.1); raises `TriggerRejected` for a config that does not fit."""
    fields = config_fields(binding, REFUSED)
    place = (
        fields.text_or_none("stream_name"),
        fields.text_or_none("group_id") or None,
        fields.text_or_none("item_id") or None,
    )
    return place, fields.function_id("condition_function_id")


def read_subscription_config(binding: Binding) -> tuple[str | None, str | None]:
    """Stream and condition of a `stream:join` or `stream:leave` binding (§6.2); null is a config without either."""
    if binding.config.or_null().raw.strip() == b"null":
        return None, None
    fields = config_fields(binding, REFUSED)
    return fields.text_or_none("stream_name") or None, fields.function_id("condition_function_id")


def places_of(group: tuple[str, str], item: str | None) -> list[Place]:
    """Where bindings for an event may stand."""
    stream, group_id = group
    streams = (stream,) if stream.startswith(INTERNAL) else (stream, None)
    items = (None,) if item is None else (item, None)
    return [(name, one, other) for name in streams for one in (group_id, None) for other in items]


@define(eq=False)
class Watches:
    """Everything bound to the three types."""

    stream: BindingIndex[Place] = field(factory=lambda: BindingIndex(read_stream_config))
    join: BindingIndex[str | None] = field(factory=lambda: BindingIndex(read_subscription_config))
    leave: BindingIndex[str | None] = field(factory=lambda: BindingIndex(read_subscription_config))

    def of_event(self, group: tuple[str, str], item: str | None) -> list[tuple[Binding, str | None]]:
        """The `stream` bindings for an event, each with its condition."""
        if not len(self.stream):
            return []
        return [found for place in places_of(group, item) for found in self.stream.at(place)]

    def of_subscription(self, index: BindingIndex[str | None], stream: str) -> list[tuple[Binding, str | None]]:
        """The `stream:join` or `stream:leave` bindings for a stream, each with its condition."""
        return [*index.at(stream), *index.at(None)]

    def fire(self, firing: Firing, told: Event, matching: list[tuple[Binding, str | None]], call: Call) -> None:
        """Tell the bindings, each in the order of the events of one item."""
        traced = not told.group[0].startswith(UNTRACED)
        for binding, condition in matching:
            firing.fire(
                binding,
                told.message,
                condition=condition,
                lane=(told.group, told.item),
                traceparent=call.traceparent if traced else None,
                baggage=call.baggage if traced else None,
            )

    def fire_leave(self, firing: Firing, subscription: Subscription) -> None:
        """Tell who wants to know that a subscription has ended."""
        matching = self.of_subscription(self.leave, subscription.group[0])
        if not matching:
            return
        subscriber = subscription.subscriber
        told = subscription_event(subscription.id, subscription.group, subscription.item, subscriber.context)
        for binding, condition in matching:
            firing.fire(binding, told, condition=condition, lane=(subscriber, subscription.id))

    def __len__(self) -> int:
        return len(self.stream) + len(self.join) + len(self.leave)


def subscription_event(subscription_id: str, group: tuple[str, str], item: str | None, context: Json) -> Json:
    """What join and leave handlers are called with (§6.2)."""
    return Json(
        b'{"subscription_id":%s,"stream_name":%s,"group_id":%s,"id":%s,"context":%s}'
        % (*(encode_value(text) for text in (subscription_id, *group, item)), context.raw)
    )
