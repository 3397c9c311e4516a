"""The trigger type `configuration`: which bindings hear of which change (spec/pubsub-cron-config-cli.md §4.4, §4.5)."""

from collections.abc import Callable, Iterator
from typing import Final

from attrs import define, field, frozen

from ...engine import Binding, Reason
from ...protocol import JsonError
from ...protocol.errors import TriggerRejected
from .entries import EVENT_TYPES

CONFIG_FORMAT: Final = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "ConfigurationTriggerConfig",
    "type": "object",
    "properties": {
        "configuration_id": {
            "type": ["string", "null"],
            "description": "Only this entry; absent means every entry.",
        },
        "event_types": {
            "type": ["array", "null"],
            "items": {"type": "string"},
            "description": f"Only these of {', '.join(EVENT_TYPES)}; absent means all.",
        },
        "condition_function_id": {
            "type": ["string", "null"],
            "description": "Called with the event first; if it answers false, the handler is not called.",
        },
    },
}


@frozen
class Watch:
    """What a binding waits for. `entry_id` of None is every entry, `event_types` of None every event."""

    entry_id: str | None
    event_types: frozenset[str] | None
    condition: str | None

    def wants(self, entry_id: str, event_type: str) -> bool:
        """Whether it waits for this."""
        return self.entry_id in (None, entry_id) and (self.event_types is None or event_type in self.event_types)


def read_watch(binding: Binding) -> Watch:
    """The config of a `configuration` binding; raises `TriggerRejected` for one that does not fit."""
    try:
        config = binding.config.decode()
    except JsonError as error:
        raise _refuse(str(error)) from None
    if config is None:
        config = {}
    if not isinstance(config, dict):
        raise _refuse("expected an object")
    types = config.get("event_types")
    if types is not None and not (isinstance(types, list) and all(isinstance(item, str) for item in types)):
        raise _refuse("`event_types` must be an array of strings")
    return Watch(
        _text(config, "configuration_id"),
        None if types is None else frozenset(types),
        _text(config, "condition_function_id"),
    )


def _text(config: dict[str, object], key: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise _refuse(f"`{key}` must be a string")
    if value == "":
        raise _refuse(f"`{key}` is empty: name one, or leave it out")
    return value


def _refuse(detail: str) -> TriggerRejected:
    return TriggerRejected(f"Failed to parse configuration trigger config: {detail}")


@define(eq=False)
class Watches:
    """The provider. `on_count(entry_id, count)` is told how many bindings name an entry, whenever that changes."""

    on_count: Callable[[str, int], None] = lambda _id, _count: None
    _watches: dict[Binding, Watch] = field(factory=dict, init=False)
    _named: dict[str, int] = field(factory=dict, init=False)

    def bind(self, binding: Binding) -> None:
        """See `Provider.bind`."""
        self._put(binding, read_watch(binding))

    def replace(self, old: Binding, new: Binding) -> None:
        """See `Provider.replace`."""
        watch = read_watch(new)
        self._put(new, watch)
        self._take(old)

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """See `Provider.unbind`."""
        self._take(binding)

    def wanting(self, entry_id: str, event_type: str) -> Iterator[tuple[Binding, Watch]]:
        """Every binding that waits for this event of this entry, oldest first."""
        for binding, watch in tuple(self._watches.items()):
            if watch.wants(entry_id, event_type):
                yield binding, watch

    def __len__(self) -> int:
        return len(self._watches)

    def _put(self, binding: Binding, watch: Watch) -> None:
        self._watches[binding] = watch
        if watch.entry_id is not None:
            self._count(watch.entry_id, 1)

    def _take(self, binding: Binding) -> None:
        watch = self._watches.pop(binding, None)
        if watch is not None and watch.entry_id is not None:
            self._count(watch.entry_id, -1)

    def _count(self, entry_id: str, change: int) -> None:
        count = self._named.get(entry_id, 0) + change
        if count:
            self._named[entry_id] = count
        else:
            self._named.pop(entry_id, None)
        self.on_count(entry_id, count)
