"""Claims on function ids: who serves (namespace, id), and who stands by until the server leaves.

The oldest claim serves. A later claim by another peer stands by and is promoted, in the same synchronous step in which
the serving one is released, so that no reconnect in any order makes a function vanish. Where the serving claim shares
its function, all claims that share it serve together (replicas.py).
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from ..protocol import ABSENT, Json
from ..protocol.codec import encode_value
from .events import Events, FunctionsChanged
from .replicas import Replicas, asks_to_share

if TYPE_CHECKING:
    from .peer import Peer

Key = tuple[str, str]


@define(eq=False, repr=False, kw_only=True)
class FunctionEntry:
    """One claim on a function: what it is, who runs it, and plain counters.

    `wire` and `echo` are the constant middles of the frames that carry its id, made once. `executor` runs its calls: the
    owner itself, unless `invocation` says how a module does it (delegation.py). `handler` is set by modules only.
    `seconds` is the sum of run times. `shared` says that it serves beside others that say so; `replicas` are those and
    itself while it does, and only then calls are counted when they are `started`.
    """

    id: str
    namespace: str
    owner: "Peer"
    description: str | None = None
    metadata: Json = ABSENT
    request_format: Json = ABSENT
    response_format: Json = ABSENT
    builtin: bool = False
    invocation: Json = ABSENT
    handler: Any = None
    revision: int = 1
    taps: tuple[Callable[..., None], ...] = ()
    count: int = 0
    errors: int = 0
    seconds: float = 0.0
    started: int = 0
    exposed_id: str = ""
    executor: "Peer" = field(init=False)
    shared: bool = field(init=False)
    replicas: Replicas | None = field(default=None, init=False)
    wire: bytes = field(init=False)
    echo: bytes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.executor = self.owner
        self.exposed_id = self.exposed_id or self.id
        self.shared = asks_to_share(self.metadata)
        self.wire = b'","function_id":' + encode_value(self.exposed_id) + b',"data":'
        self.echo = b'","function_id":' + encode_value(self.id)

    @property
    def behind(self) -> bool:
        """Whether nobody who serves it reads as fast as is sent (`Peer.behind`)."""
        return self.owner.behind if self.replicas is None else not self.replicas.keeping_up()


@frozen
class FunctionStatistics:
    """`serving` functions can be called; `replicas` serve beside another one; `standing_by` wait for one to leave."""

    serving: int
    replicas: int
    standing_by: int


@define(eq=False, repr=False)
class Functions:
    """The registry. All changes are synchronous and validated by the caller before they are made."""

    events: Events
    revision: int = 0
    _serving: dict[Key, FunctionEntry] = field(factory=dict)
    _standby: dict[Key, list[FunctionEntry]] = field(factory=dict)
    _namespaces: dict[str, set[str]] = field(factory=dict)
    _of_engine: set[Key] = field(factory=set)

    def get(self, namespace: str, function_id: str) -> FunctionEntry | None:
        """The serving entry, or None; of several replicas one stands for all."""
        return self._serving.get((namespace, function_id))

    def namespaces_of(self, function_id: str) -> list[str]:
        """Every namespace in which the id is served, sorted: the hint of a not-found message."""
        return sorted(self._namespaces.get(function_id, ()))

    def belongs_to_engine(self, namespace: str, function_id: str) -> bool:
        """Whether a built-in serves the id, or did and may again: modules come back after a crash."""
        return (namespace, function_id) in self._of_engine

    def claim(self, entry: FunctionEntry) -> FunctionEntry:
        """Put a claim in; returns it if it serves from now on, else the one that does: yours stands by.

        The same peer claiming again replaces its own entry in place, counters kept, unless it begins or ceases to share.
        """
        key = (entry.namespace, entry.id)
        if entry.builtin:
            self._of_engine.add(key)
        own = entry.owner.functions.get(key)
        if own is not None:
            # calls that the old entry runs are counted there
            entry.started = entry.count = own.count
            entry.errors, entry.seconds = own.errors, own.seconds
            entry.revision = own.revision + 1
            if own.shared != entry.shared:
                self.release(entry.owner, *key)
                own = None
        serving = self._serving.get(key)
        entry.owner.functions[key] = entry
        if own is not None:
            self._replace(key, own, entry)
        elif serving is None:
            self._serve(key, entry)
        elif serving.builtin and not entry.builtin:
            # a worker shadows a built-in; the built-in stands by, last in line, and is back when no worker is left
            self._standby.setdefault(key, []).append(serving)
            self._serve(key, entry)
        elif serving.replicas is not None and entry.shared:
            serving.replicas.join(entry)
            self.revision += 1
        else:
            standby = self._standby.setdefault(key, [])
            standby.append(entry)
            standby.sort(key=lambda claim: claim.builtin)
        return entry if entry.replicas is not None else self._serving[key]

    def release(self, owner: "Peer", namespace: str, function_id: str) -> bool:
        """Take one peer's claim out; the next in line serves from now on. False when the peer holds none."""
        key = (namespace, function_id)
        entry = owner.functions.pop(key, None)
        if entry is None:
            return False
        standby, replicas = self._standby.get(key, []), entry.replicas
        if replicas is not None:
            replicas.leave(entry)
            self.revision += 1
        if self._serving.get(key) is not entry:
            if replicas is None:
                standby.remove(entry)
        elif replicas:
            self._announce(key, replicas.first)
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
        if not self._standby.get(key, True):
            del self._standby[key]
        return True

    def _replace(self, key: Key, own: FunctionEntry, entry: FunctionEntry) -> None:
        """A peer's claim in the place of its former one."""
        if own.replicas is not None:
            replicas = own.replicas
            replicas.leave(own)
            replicas.join(entry)
            self.revision += 1
        if self._serving.get(key) is own:
            self._announce(key, entry)
        elif own.replicas is None and entry.replicas is None:
            standby = self._standby[key]
            standby[standby.index(own)] = entry

    def _serve(self, key: Key, entry: FunctionEntry) -> None:
        """Nobody serves the key any more, or a built-in that has stepped back: `entry` does."""
        if entry.shared:
            replicas = Replicas()
            replicas.join(entry)
            standby = self._standby.get(key, [])
            for other in [claim for claim in standby if claim.shared]:
                standby.remove(other)
                replicas.join(other)
        self._announce(key, entry)

    def _announce(self, key: Key, entry: FunctionEntry) -> None:
        self._serving[key] = entry
        self._namespaces.setdefault(key[1], set()).add(key[0])
        self.revision += 1
        self.events.emit(FunctionsChanged(*key, available=True))

    def __iter__(self) -> Iterator[FunctionEntry]:
        """The serving entry of every function, in no particular order."""
        return iter(tuple(self._serving.values()))

    def statistics(self) -> FunctionStatistics:
        """A frozen picture of the registry."""
        return FunctionStatistics(
            serving=len(self._serving),
            replicas=sum(len(entry.replicas) - 1 for entry in self._serving.values() if entry.replicas is not None),
            standing_by=sum(map(len, self._standby.values())),
        )
