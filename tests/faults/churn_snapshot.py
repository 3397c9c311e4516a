"""A snapshot of everything an engine holds: what the churn test compares.

It sees the registries, every binding, the timers, the outboxes, the queues of messages and of the stores, and the task
tree. And what nobody thought of: the size of each container that can be reached from the engine, field by field, and
how many objects of the core are alive.
"""

import difflib
import gc
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

import attrs
from attrs import frozen

from iii_trio.engine import Binding, Call, EngineStatistics, FunctionEntry, RemotePeer
from iii_trio.engine.channels import ChannelsStatistics
from iii_trio.engine.deadlines import DeadlineStatistics
from iii_trio.engine.firing import FiringStatistics
from iii_trio.engine.invocations import InvocationStatistics
from iii_trio.engine.listener import ListenerStatistics
from iii_trio.host.compose import Running
from iii_trio.modules.http.connections import ConnectionStatistics
from iii_trio.modules.http.exchange import ExchangeStatistics
from iii_trio.modules.introspection import TelemetryStatistics
from iii_trio.modules.introspection.tasks import task_tree
from iii_trio.modules.outbox import OutboxStatistics
from iii_trio.modules.pubsub import PubSubStatistics
from iii_trio.modules.queue import QueueCounts
from iii_trio.modules.state import StateStatistics
from iii_trio.stores import KeyValueStatistics, StoreStatistics, WaitingKeyValue
from iii_trio.transport import Connection

COUNTERS: Final[Mapping[type, frozenset[str]]] = {
    DeadlineStatistics: frozenset({"fired", "buckets"}),  # empty buckets wait for their time
    FiringStatistics: frozenset({"handled", "skipped", "failed", "dropped", "unbound"}),
    InvocationStatistics: frozenset({"calls", "late_results", "timeouts", "cancelled"}),
    EngineStatistics: frozenset({"bad_frames"}),
    ChannelsStatistics: frozenset({"created", "expired"}),
    ListenerStatistics: frozenset({"telemetry_frames"}),
    ConnectionStatistics: frozenset({"refused", "failed"}),
    ExchangeStatistics: frozenset({"requests", "unmatched", "refused", "answers"}),
    PubSubStatistics: frozenset({"published", "unheard"}),
    TelemetryStatistics: frozenset({"traces", "metrics", "logs", "others", "unread"}),
    QueueCounts: frozenset({"acknowledged", "failures"}),
    StateStatistics: frozenset({"failed", "too_large", "expired"}),
    OutboxStatistics: frozenset({"enqueued", "refused"}),
    KeyValueStatistics: frozenset({"reads", "writes"}),
    StoreStatistics: frozenset(
        {"peak_pending", "answered", "refused", "groups", "largest_group", "failed_groups", "checking"}
    ),
}
"""Statistics that count since the start, or say how far a store's look over its rows is. All others say what is there now."""
PRESENT: Final = frozenset(
    {"_active", "live", "tasks", "running", "_running", "_waiting", "enqueues", "_handshakes", "_nested", "_writing"}
)
"""Fields with a number of things that are there now."""
LAZY: Final = frozenset({"Deadlines._buckets", "Deadlines._heap"})
ALIVE: Final = (RemotePeer, Call, Binding, FunctionEntry, Connection)

SWEPT: Final = Counter(RemotePeer=1, Connection=1)
"""The last ones that the sweeper has looked at stay in its loop variables: one of each may always be there."""


@frozen
class Snapshot:
    """What the engine holds; two are equal when nothing of what came in between is left."""

    functions: frozenset[tuple[str, str, str | None]]
    bindings: frozenset[tuple[str, str, str, str]]
    workers: frozenset[str]
    outboxes: tuple[int, ...]
    statistics: tuple[str, ...]
    sizes: Mapping[str, int]
    alive: Mapping[str, int]
    tasks: tuple[str, ...]

    def difference(self, other: "Snapshot") -> str:
        """Line by line, for the message of a failed test."""
        return "\n".join(difflib.unified_diff(self._lines(), other._lines(), "before", "after", lineterm="", n=0))

    def _lines(self) -> list[str]:
        lines: list[str] = []
        for name, value in attrs.asdict(self, recurse=False).items():
            items = sorted(f"{k}: {v}" for k, v in value.items()) if isinstance(value, Mapping) else map(str, value)
            lines += [f"{name}: {item}" for item in (items if isinstance(value, tuple) else sorted(items))]
        return lines


def alive() -> Counter[str]:
    """How many objects of the core there are in this process, by class."""
    gc.collect()
    return Counter(type(item).__name__ for item in gc.get_objects() if isinstance(item, ALIVE))


async def take(running: Running, alive_before: Mapping[str, int]) -> Snapshot:
    """The snapshot of now. `alive_before`: objects of other tests, which are not this engine's."""
    core = running.core
    for store in running.stores:  # its threads hold on to the last thing they did
        values = WaitingKeyValue(store.key_value("snapshot"))
        await values.set("one", "key", b"1")
        await values.get("one", "key")
    return Snapshot(
        functions=frozenset((entry.namespace, entry.id, entry.owner.name) for entry in core.functions),
        bindings=frozenset((b.id, b.trigger_type, b.function_id, b.state.value) for b in core.triggers),
        workers=frozenset(peer.id for peer in core.workers),
        outboxes=tuple(sorted(peer.connection.pending_bytes for peer in core.workers)),
        statistics=tuple(_still(running.statistics())),
        sizes=dict(sizes_of(running)),
        alive=dict((alive() - Counter(alive_before)) | SWEPT),
        tasks=tuple(_drawn(task_tree())),
    )


def _still(value: Any, path: str = "") -> Iterator[str]:
    """Every statistic that is no counter, as one line each."""
    if attrs.has(type(value)):
        left_out = COUNTERS.get(type(value), frozenset())
        for attribute in attrs.fields(type(value)):
            if attribute.name not in left_out:
                yield from _still(getattr(value, attribute.name), f"{path}.{attribute.name}")
    elif isinstance(value, tuple):
        for item in sorted(value, key=str):  # the order of queues is that in which they were made
            yield from _still(item, f"{path}[{getattr(item, 'key', getattr(item, 'name', ''))}]")
    else:
        yield f"{path} = {value}"


def sizes_of(root: object) -> Counter[str]:
    """The sizes of all containers in fields of this package's objects that can be reached from `root`, by field.

    And the numbers in fields that count what is there.
    """
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    todo: deque[tuple[str, Any]] = deque([("", root)])
    while todo:
        name, item = todo.popleft()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict | list | set | frozenset | deque | tuple):
            if name not in LAZY:
                sizes[name] += len(item)
            todo += ((f"{name}[]", inner) for inner in item)
            if isinstance(item, dict):
                todo += ((f"{name}{{}}", inner) for inner in item.values())
        elif attrs.has(type(item)) and type(item).__module__.startswith("iii_trio"):
            kind = type(item).__name__
            sizes[kind] += 1
            for attribute in attrs.fields(type(item)):
                value = getattr(item, attribute.name, None)
                todo.append((f"{kind}.{attribute.name}", value))
                if attribute.name in PRESENT and isinstance(value, int):
                    sizes[f"{kind}.{attribute.name}"] += value
        elif isinstance(item, partial):
            todo += ((name, inner) for inner in item.args)
    return sizes


def _drawn(node: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    yield "  " * depth + str(node["name"])
    for child in node["children"]:
        yield from _drawn(child, depth + 1)
