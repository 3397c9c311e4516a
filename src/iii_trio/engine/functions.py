"""Claims on function ids: who serves (namespace, id), and who stands by until the server leaves.

The oldest claim serves. A later claim by another peer stands by and is promoted, in the same synchronous step in which
the serving one is released, so that no reconnect in any order makes a function vanish.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from ..protocol import ABSENT, Json
from ..protocol.codec import encode_value
from .events import Events, FunctionsChanged

if TYPE_CHECKING:
    from .peer import Peer

Key = tuple[str, str]


@define(eq=False, repr=False, kw_only=True)
class FunctionEntry:
    """One claim on a function: what it is, who runs it, and plain counters.

    `wire` and `echo` are the constant middles of the frames that carry its id, made once. `handler` is set by built-in
    modules only. `seconds` is the sum of run times.
    """

    id: str
    namespace: str
    owner: "Peer"
    description: str | None = None
    metadata: Json = ABSENT
    request_format: Json = ABSENT
    response_format: Json = ABSENT
    builtin: bool = False
    handler: Any = None
    revision: int = 1
    taps: tuple[Callable[..., None], ...] = ()
    count: int = 0
    errors: int = 0
    seconds: float = 0.0
    exposed_id: str = ""
    wire: bytes = field(init=False)
    echo: bytes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.exposed_id = self.exposed_id or self.id
        self.wire = b'","function_id":' + encode_value(self.exposed_id) + b',"data":'
        self.echo = b'","function_id":' + encode_value(self.id)


@frozen
class FunctionStatistics:
    """`serving` entries answer calls; `standing_by` wait for one of them to leave."""

    serving: int
    standing_by: int


@define(eq=False, repr=False)
class Functions:
    """The registry. All changes are synchronous and validated by the caller before they are made."""

    events: Events
    revision: int = 0
    _serving: dict[Key, FunctionEntry] = field(factory=dict)
    _standby: dict[Key, list[FunctionEntry]] = field(factory=dict)
    _namespaces: dict[str, set[str]] = field(factory=dict)

    def get(self, namespace: str, function_id: str) -> FunctionEntry | None:
        """The serving entry, or None."""
        return self._serving.get((namespace, function_id))

    def namespaces_of(self, function_id: str) -> list[str]:
        """Every namespace in which the id is served, sorted: the hint of a not-found message."""
        return sorted(self._namespaces.get(function_id, ()))

    def claim(self, entry: FunctionEntry) -> FunctionEntry:
        """Put a claim in; returns the entry that serves the key afterwards (another peer's: yours stands by).

        The same peer claiming again replaces its own entry in place, counters kept.
        """
        key = (entry.namespace, entry.id)
        serving = self._serving.get(key)
        own = entry.owner.functions.get(key)
        if own is not None:
            entry.count, entry.errors, entry.seconds = own.count, own.errors, own.seconds
            entry.revision = own.revision + 1
            entry.owner.functions[key] = entry
            if own is serving:
                self._serve(key, entry)
            else:
                standby = self._standby[key]
                standby[standby.index(own)] = entry
        elif serving is None:
            entry.owner.functions[key] = entry
            self._serve(key, entry)
        elif serving.builtin and not entry.builtin:
            # a worker shadows a built-in; the built-in stands by, last in line, and is back when no worker is left
            entry.owner.functions[key] = entry
            self._standby.setdefault(key, []).append(serving)
            self._serve(key, entry)
        else:
            entry.owner.functions[key] = entry
            standby = self._standby.setdefault(key, [])
            standby.append(entry)
            standby.sort(key=lambda claim: claim.builtin)
        return self._serving[key]

    def release(self, owner: "Peer", namespace: str, function_id: str) -> bool:
        """Take one peer's claim out; the next in line serves from now on. False when the peer holds none."""
        key = (namespace, function_id)
        entry = owner.functions.pop(key, None)
        if entry is None:
            return False
        standby = self._standby.get(key, [])
        if self._serving.get(key) is not entry:
            standby.remove(entry)
        elif standby:
            self._serve(key, standby.pop(0))
        else:
            del self._serving[key]
            names = self._namespaces[function_id]
            names.discard(namespace)
            if not names:
                del self._namespaces[function_id]
            self.revision += 1
            self.events.emit(FunctionsChanged(namespace, function_id, available=False))
        if not standby:
            self._standby.pop(key, None)
        return True

    def _serve(self, key: Key, entry: FunctionEntry) -> None:
        self._serving[key] = entry
        self._namespaces.setdefault(key[1], set()).add(key[0])
        self.revision += 1
        self.events.emit(FunctionsChanged(*key, available=True))

    def __iter__(self) -> Iterator[FunctionEntry]:
        """Every serving entry, in no particular order."""
        return iter(tuple(self._serving.values()))

    def statistics(self) -> FunctionStatistics:
        """A frozen picture of the registry."""
        return FunctionStatistics(serving=len(self._serving), standing_by=sum(map(len, self._standby.values())))
