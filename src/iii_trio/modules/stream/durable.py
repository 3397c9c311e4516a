"""Durable `stream` triggers: events that are recorded before their caller is answered, and go through the queue (§6.1).

What the engine stores itself is recorded in the transaction of the write. What it does not store (`stream::send`, data of
a provider) is recorded by itself, and then its caller hears of it. The timestamps of these events are taken from the same
sequence as those that subscribers see, when the write is submitted: within a group each is later than the one before.
"""

from collections.abc import Callable, Sequence
from functools import partial

from attrs import define, field

from ...engine import Binding, Call, Engine, LocalPeer
from ...protocol import Json
from ...protocol.errors import StoreError, TriggerRejected
from ...stores import Entry, Failed, KeyValue, Result, Store
from ..durable import DEFAULT_QUEUE, DurableIndex, Watch, Watches, durable_queue
from ..durable_functions import DurableFunctions
from ..inputs import config_fields
from ..outbox import FULL, Outbox, Row, row_of
from .events import Stamps, changed, event
from .triggers import REFUSED, UNTRACED, Place, places_of, read_stream_config
from .triggers import Watches as StreamWatches

OUTBOX_SPACE = "streams/outbox"
TRIGGERS_SPACE = "streams/triggers"
"""Beside the spaces of the streams, in the same file."""


def is_durable(binding: Binding) -> bool:
    """Whether a binding asks for delivery through the queue; raises `TriggerRejected` for a config that does not fit."""
    return durable_queue(config_fields(binding, REFUSED)) is not None


@define(eq=False)
class Recording:
    """The durable deliveries of one event: `beside` is called in the transaction of a write, `rows` is what it made."""

    watches: Sequence[Watch]
    group: tuple[str, str]
    item: str | None
    stamp: int
    number: int
    traceparent: str | None
    baggage: str | None
    rows: list[Row] = field(factory=list)

    def beside(self, old: bytes | None, new: bytes | None) -> Sequence[Entry]:
        """See `stores.Beside`. The removal of what was not there is no event."""
        data = old if new is None else new
        if data is None:
            return ()
        kind = b"delete" if new is None else b"create" if old is None else b"update"
        return self.entries(changed(kind, Json(data)))

    def entries(self, body: bytes) -> list[Entry]:
        """The event with this body for each watch, as it stands in the outbox."""
        text = event(self.group, self.item, self.stamp, body).message.raw
        place = (*self.group, "" if self.item is None else self.item)
        self.rows += [
            row_of(self.number + count, watch, place, text, self.traceparent, self.baggage)
            for count, watch in enumerate(self.watches)
        ]
        return [row.entry(OUTBOX_SPACE) for row in self.rows]


@define(eq=False)
class Durable:
    """The durable triggers of one life of the module; `make_durable` makes one."""

    provider: Watches[Place]
    outbox: Outbox
    stamps: Stamps

    def register(self, peer: LocalPeer) -> None:
        """Serve the functions for operators."""
        names = "stream_name", "group_id", "item_id"
        DurableFunctions("stream", names, self.provider.durable, self.outbox).register(peer.register)

    def recording(self, call: Call, group: tuple[str, str], item: str | None) -> Recording | None:
        """What records the deliveries of an event; None if nobody wants any. Raises `StoreError` when there is no room."""
        if not len(self.provider.durable):
            return None
        watches = self.provider.durable_at(places_of(group, item))
        if not watches:
            return None
        if self.outbox.full:
            raise StoreError(FULL)
        traced = not group[0].startswith(UNTRACED)
        return Recording(
            watches,
            group,
            item,
            self.stamps.next(group),
            self.outbox.numbers(len(watches)),
            call.traceparent if traced else None,
            call.baggage if traced else None,
        )

    def recorded(self, recording: Recording | None) -> None:
        """Its rows stand on disk."""
        if recording is not None:
            self.outbox.taken_in(recording.rows)

    def record(self, recording: Recording, body: bytes, then: Callable[[StoreError | None], None]) -> None:
        """Write the rows of an event that no store keeps; `then` is told when they stand on disk, or why they do not."""
        first, *others = recording.entries(body)

        def done(result: Result[bytes | None]) -> None:
            if isinstance(result, Failed):
                then(result.error)
            else:
                self.recorded(recording)
                then(None)

        try:
            self.outbox.store.set(first.scope, first.key, first.value, done, beside=lambda _old, _new: others)
        except StoreError as error:
            then(error)


def make_durable(
    core: Engine, peer: LocalPeer, store: Store, watches: StreamWatches, stamps: Stamps, *, remote: bool
) -> Durable:
    """The durable triggers over the store of the streams; with `remote` none are taken."""

    def check(queue: str) -> None:
        if remote:
            raise TriggerRejected("the streams are kept by another engine: bind a durable trigger there")
        outbox.check_provider()
        outbox.check_queue(queue)

    space: Callable[[str], KeyValue] = store.key_value
    outbox = Outbox(core, peer, space(OUTBOX_SPACE))
    index: DurableIndex[Place] = DurableIndex(space(TRIGGERS_SPACE), partial(_read, check))
    return Durable(Watches(watches.stream, index, is_durable), outbox, stamps)


def _read(check: Callable[[str], None], binding: Binding) -> tuple[Place, str | None, str]:
    place, condition = read_stream_config(binding)
    queue = durable_queue(config_fields(binding, REFUSED)) or DEFAULT_QUEUE
    check(queue)
    return place, condition, queue
