"""What subscribers and `stream` triggers are told: the wrapper around every event, and its timestamps (§6.3, §7.8)."""

from collections.abc import Callable
from typing import Final

from attrs import define, field, frozen

from ...protocol import Json
from ...protocol.codec import encode_value

MAX_REMEMBERED: Final = 10_000
"""Groups whose last timestamp is kept for its own sake; beyond that, those in the past are let go."""

DROPPED: Final = "iii:dropped"
"""Type of the custom event that tells a subscriber how many custom events it missed: `{"events": n}`."""

UNAUTHORIZED: Final = b'{"type":"unauthorized"}'

Group = tuple[str, str]
"""Stream name and group id."""


@frozen(eq=False)
class Event:
    """One event on its way. `item` is None where it belongs to no item; `message` is the whole wrapper.

    `customs`: how many custom events are lost with it, for no snapshot makes up for those. 0 for what is in the store.
    """

    group: Group
    item: str | None
    message: Json
    customs: int = 0

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return len(self.message)


def event(group: Group, item: str | None, stamp: int, body: bytes, *, customs: int = 0) -> Event:
    """Wrap the JSON text `body` of an event, stamped with `stamp` (Unix ms)."""
    stream, group_id = group
    text = b'{"type":"stream","timestamp":%d,"streamName":%s,"groupId":%s,"id":%s,"event":%s}' % (
        stamp,
        encode_value(stream),
        encode_value(group_id),
        encode_value(item),
        body,
    )
    return Event(group, item, Json(text), customs)


def changed(kind: bytes, data: Json) -> bytes:
    """The body of a `sync`, `create`, `update` or `delete`."""
    return b'{"type":"%s","data":%s}' % (kind, data.raw)


def custom(kind: str, data: Json) -> bytes:
    """The body of what `stream::send` sends."""
    return b'{"type":"event","event":{"type":%s,"data":%s}}' % (encode_value(kind), data.raw)


@define(eq=False)
class Stamps:
    """Timestamps in Unix ms, strictly increasing within each group: clients drop what is not newer (§7.8).

    More than 1,000 events a second in one group run ahead of the clock by a millisecond each.
    """

    _wall_ms: Callable[[], int]
    _last: dict[Group, int] = field(factory=dict, init=False)
    _floor: int = field(default=0, init=False)
    """No group that is not in `_last` has had a later timestamp than this."""
    _tidy_at: int = field(default=MAX_REMEMBERED, init=False)

    def next(self, group: Group) -> int:
        """A timestamp later than all before it in this group, and not before now."""
        now = self._wall_ms()
        stamp = max(now, self._last.get(group, self._floor) + 1)
        self._last[group] = stamp
        if len(self._last) > self._tidy_at:
            self._tidy(now)
        return stamp

    def _tidy(self, now: int) -> None:
        """Let go of groups that need no memory: their last timestamp is in the past."""
        past = [group for group, stamp in self._last.items() if stamp < now]
        for group in past:
            self._floor = max(self._floor, self._last.pop(group))
        self._tidy_at = max(MAX_REMEMBERED, 2 * len(self._last))

    def __len__(self) -> int:
        return len(self._last)
