"""Triggers whose events go through the queue: which function wants which, kept beside the data so that no write is missed.

A durable trigger is remembered on disk. A worker that goes comes back: what is written meanwhile is delivered to it, also
after a restart of the engine. One that unregisters its trigger does not want any more. What counts is the function and
the place it watches: two workers that bind the same function to the same place get each event once between them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

from attrs import define, field, frozen

from ..engine import Binding, Reason
from ..protocol import ABSENT, NULL, Json
from ..protocol.codec import encode_value
from ..protocol.errors import StoreError, TriggerRejected
from ..protocol.limits import DURABLE_TRIGGERS
from ..stores import Failed, KeyValue, Result, WaitingKeyValue
from .bindings import BindingIndex
from .inputs import Fields

log = logging.getLogger(__name__)

P = TypeVar("P", bound=tuple[str | None, ...])

DEFAULT_QUEUE: Final = "default"

Identity: TypeAlias = tuple[str, str, tuple[str | None, ...]]
"""Namespace, function and place: what tells durable triggers apart."""

DURABLE_FIELDS: Final = {
    "durable": {
        "type": ["boolean", "null"],
        "description": "Deliver at least once through the queue; what is written while the worker is away waits.",
    },
    "queue": {
        "type": ["string", "null"],
        "description": "The named queue of a durable trigger; absent means `default`.",
    },
}
"""The options in the schema of a trigger's config."""


@frozen
class Watch:
    """A function that is to be told of every change at a place, through the queue named `queue`."""

    namespace: str
    function_id: str
    place: tuple[str | None, ...]
    queue: str
    condition: str | None
    metadata: Json

    @property
    def identity(self) -> Identity:
        """What it is known by."""
        return self.namespace, self.function_id, self.place

    @property
    def name(self) -> str:
        """Its identity as text: the key it is kept under."""
        return encode_value([self.namespace, self.function_id, *self.place]).decode()

    def encoded(self) -> bytes:
        """The rest of it as text."""
        head = encode_value({"queue": self.queue, "condition": self.condition})
        return b'%s,"metadata":%s}' % (head[:-1], self.metadata.or_null().raw)

    @classmethod
    def stored(cls, name: str, text: bytes) -> "Watch":
        """What was kept."""
        namespace, function_id, *place = Json(name.encode()).decode()
        rest: dict[str, Any] = Json(text).decode()
        metadata = rest["metadata"]
        return cls(
            namespace,
            function_id,
            tuple(place),
            rest["queue"],
            rest["condition"],
            ABSENT if metadata is None else Json.of(metadata),
        )


def durable_queue(fields: Fields) -> str | None:
    """The queue that a binding's config names; None if it does not ask for durable delivery."""
    if not fields.flag("durable"):
        return None
    queue = fields.text_or_none("queue")
    if queue == "":
        raise fields.refuse("field `queue` is empty: name a queue, or leave it out for `default`")
    return queue or DEFAULT_QUEUE


@define(eq=False)
class DurableIndex(Generic[P]):
    """Every durable trigger of one trigger type, whether or not somebody holds it now.

    `store` is where they are kept. `read` turns a binding into (place, condition or None, queue).
    """

    store: KeyValue
    read: Callable[[Binding], tuple[P, str | None, str]]
    _watches: dict[Identity, Watch] = field(factory=dict, init=False)
    _holders: dict[Identity, set[Binding]] = field(factory=dict, init=False)
    _held: dict[Binding, P] = field(factory=dict, init=False)
    # made anew for each change: the store's thread looks at the one it was given
    _places: Mapping[tuple[str | None, ...], tuple[Watch, ...]] = field(factory=dict, init=False)

    async def load(self) -> None:
        """Take in what was kept. Raises `StoreError`."""
        kept = await WaitingKeyValue(self.store).items("")
        watches = [Watch.stored(name, text) for name, text in kept]
        self._watches = {watch.identity: watch for watch in watches} | self._watches
        places: dict[tuple[str | None, ...], list[Watch]] = {}
        for watch in self._watches.values():
            places.setdefault(watch.place, []).append(watch)
        self._places = {place: tuple(here) for place, here in places.items()}

    @property
    def places(self) -> Mapping[tuple[str | None, ...], tuple[Watch, ...]]:
        """Every place that is watched, with its watches; it never changes, a later one replaces it."""
        return self._places

    def list(self) -> list[tuple[Watch, bool]]:
        """Every watch, and whether a worker holds it now, sorted."""
        found = sorted(self._watches.values(), key=lambda watch: watch.name)
        return [(watch, bool(self._holders.get(watch.identity))) for watch in found]

    def bind(self, binding: Binding) -> None:
        """See `Provider.bind`."""
        place, condition, queue = self.read(binding)
        watch = Watch(
            binding.namespace,
            binding.function_id,
            place,
            queue,
            condition,
            ABSENT if binding.metadata == NULL else binding.metadata,
        )
        identity = watch.identity
        if identity not in self._watches and len(self._watches) >= DURABLE_TRIGGERS:
            text = f"{DURABLE_TRIGGERS} durable triggers are kept already; unregister or forget some"
            raise TriggerRejected(text)
        before = self._watches.get(identity)
        if before != watch:
            try:
                self.store.set("", watch.name, watch.encoded(), self._noted)
            except StoreError as error:
                raise TriggerRejected(str(error)) from None
            self._watches[identity] = watch
            self._place(place, before, watch)
        self._holders.setdefault(identity, set()).add(binding)
        self._held[binding] = place

    def replace(self, old: Binding, new: Binding) -> None:
        """See `Provider.replace`: what the old one watched is watched no more, unless it is the same."""
        self.bind(new)
        self.unbind(old, Reason.UNREGISTERED)

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """See `Provider.unbind`. A worker that left comes back; one that unregistered does not want any more."""
        place = self._held.pop(binding, None)
        if place is None:
            return
        identity = binding.namespace, binding.function_id, place
        holders = self._holders[identity]
        holders.discard(binding)
        if holders:
            return
        del self._holders[identity]
        if reason in (Reason.UNREGISTERED, Reason.REJECTED):
            self._forget(identity)

    def supersede(self, namespace: str, function_id: str, place: P) -> None:
        """The function is told of this place in another way from now on, unless a worker still holds it durably."""
        identity = namespace, function_id, place
        if identity in self._watches and not self._holders.get(identity):
            self._forget(identity)

    def forget(self, namespace: str, function_id: str) -> int:
        """Let a function that nobody binds now be told no more; answers how many of its places are given up."""
        gone = [
            identity
            for identity in self._watches
            if identity[:2] == (namespace, function_id) and not self._holders.get(identity)
        ]
        for identity in gone:
            self._forget(identity)
        return len(gone)

    def place_of(self, binding: Binding) -> P | None:
        """The place of a binding that is held; None if it is not here."""
        return self._held.get(binding)

    def __contains__(self, binding: Binding) -> bool:
        return binding in self._held

    def __len__(self) -> int:
        return len(self._watches)

    def _forget(self, identity: Identity) -> None:
        watch = self._watches.pop(identity)
        self._place(watch.place, watch, None)
        try:
            self.store.delete("", watch.name, self._noted)
        except StoreError as error:
            self._noted(Failed(error))

    def _place(self, place: tuple[str | None, ...], old: Watch | None, new: Watch | None) -> None:
        """One watch for another, at the one place that changes."""
        here = self._places.get(place, ())
        if old is not None:
            here = tuple(watch for watch in here if watch is not old)
        if new is not None:
            here = (*here, new)
        places = dict(self._places)
        if here:
            places[place] = here
        else:
            places.pop(place, None)
        self._places = places

    def _noted(self, result: Result[Any]) -> None:
        if isinstance(result, Failed):
            log.error("a change of the durable triggers could not be kept, a restart will not know: %s", result.error)


@define(eq=False)
class Watches(Generic[P]):
    """The provider of a trigger type with both kinds of bindings: those told at once, and the durable ones."""

    plain: BindingIndex[P]
    durable: DurableIndex[P]
    is_durable: Callable[[Binding], bool]

    def bind(self, binding: Binding) -> None:
        """See `Provider.bind`."""
        if self.is_durable(binding):
            self.durable.bind(binding)
        else:
            self.plain.bind(binding)
            self._supersede(binding)

    def replace(self, old: Binding, new: Binding) -> None:
        """See `Provider.replace`; the kind may be another one."""
        if self.is_durable(new):
            if old in self.durable:
                self.durable.replace(old, new)
            else:
                self.durable.bind(new)
                self.plain.unbind(old, Reason.UNREGISTERED)
        elif old in self.durable:
            self.plain.bind(new)
            self.durable.unbind(old, Reason.UNREGISTERED)
            self._supersede(new)
        else:
            self.plain.replace(old, new)
            self._supersede(new)

    def unbind(self, binding: Binding, reason: Reason) -> None:
        """See `Provider.unbind`."""
        self.plain.unbind(binding, reason)
        place = self.durable.place_of(binding)
        self.durable.unbind(binding, reason)
        if place is not None:  # another worker may have come without `durable` already
            for other, _ in self.plain.at(place):
                if other.owner is not binding.owner and other.function_id == binding.function_id:
                    self._supersede(other)

    def _supersede(self, binding: Binding) -> None:
        """A worker that comes back and asks for no durable delivery any more gets each event once, not twice."""
        place = self.plain.place_of(binding)
        if place is not None:
            self.durable.supersede(binding.namespace, binding.function_id, place)

    def durable_at(self, places: Sequence[P]) -> list[Watch]:
        """The durable triggers of an event that happens at all of these places."""
        kept = self.durable.places
        return [watch for place in places for watch in kept.get(place, ())] if kept else []

    def __len__(self) -> int:
        return len(self.plain) + len(self.durable)
