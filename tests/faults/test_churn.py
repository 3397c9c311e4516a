"""Promises P4 and P5: whatever workers do to their connections, nothing of them is left when they have gone.

Ten workers register 100 functions each and bind triggers of every kind, call each other, enqueue, publish and write
state, while their connections end in every way there is: cut, reset, closed, taken over by a reattach, claimed by a
second connection of the same name, frozen, or lost in the middle of registering. Everything runs in this process, with
the modules and stores that `serve` runs, over real sockets.

A snapshot before must equal the one after. It holds the registries, every binding, the timers, the outboxes, the queues
of messages and of the stores, the task tree, and what nobody thought of: the size of each container that can be reached
from the engine, and the objects of the core that are still alive. The second half of the file takes one step of the
release out at a time and sees the snapshots differ.
"""

import difflib
import gc
import json
import logging
import random
import socket
import struct
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio
from attrs import define, field, frozen

from iii_trio.config import parse_config
from iii_trio.engine import admission, deadlines, engine, events, functions, invocations, remote, triggers, workers
from iii_trio.engine.deadlines import DeadlineStatistics
from iii_trio.engine.firing import FiringStatistics
from iii_trio.engine.functions import FunctionEntry, Functions
from iii_trio.engine.invocations import Call, Invocations, InvocationStatistics
from iii_trio.engine.listener import ListenerStatistics
from iii_trio.engine.remote import RemotePeer
from iii_trio.engine.triggers import Binding, Triggers
from iii_trio.engine.workers import Workers
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides
from iii_trio.modules.http.connections import ConnectionStatistics
from iii_trio.modules.http.exchange import ExchangeStatistics
from iii_trio.modules.introspection.tasks import task_tree
from iii_trio.modules.pubsub import PubSubStatistics
from iii_trio.modules.state import StateStatistics
from iii_trio.stores import KeyValueStatistics, StoreStatistics
from iii_trio.transport import Connection, connect

WORKERS: Final = 10
FUNCTIONS: Final = 100
SHARED: Final = 5
GENERATIONS: Final = 6
STEPS: Final = 60
GONE_S: Final = 1.0
"""P4: how long after the last connection's end the engine may take to be as before."""
DRAINED_S: Final = 30.0

CONFIG: Final = """
workers:
  - name: iii-worker-manager
    config: {port: 0}
  - name: iii-http
    config: {port: 0}
  - name: iii-state
  - name: iii-pubsub
  - name: iii-queue
    config:
      queue_configs:
        default: {max_retries: 1000000, backoff_ms: 0, concurrency: 10}
      adapter: {name: builtin, config: {max_attempts: 1000000, backoff_ms: 0}}
"""

# -- the snapshot -----------------------------------------------------------------------------------------------------

COUNTERS: Final[Mapping[type, frozenset[str]]] = {
    DeadlineStatistics: frozenset({"fired", "buckets"}),  # empty buckets wait for their time
    FiringStatistics: frozenset({"handled", "skipped", "failed", "dropped"}),
    InvocationStatistics: frozenset({"calls", "late_results", "timeouts", "cancelled"}),
    engine.EngineStatistics: frozenset({"bad_frames"}),
    ListenerStatistics: frozenset({"telemetry_frames"}),
    ConnectionStatistics: frozenset({"refused", "failed"}),
    ExchangeStatistics: frozenset({"requests", "unmatched", "refused", "answers"}),
    PubSubStatistics: frozenset({"published"}),
    StateStatistics: frozenset({"failed", "too_large"}),
    KeyValueStatistics: frozenset({"reads", "writes"}),
    StoreStatistics: frozenset({"peak_pending", "answered", "refused", "groups", "largest_group", "failed_groups"}),
}
"""Statistics that count since the start. All others say what is there now."""
LAZY: Final = frozenset({"Deadlines._buckets", "Deadlines._heap"})
ALIVE: Final = (RemotePeer, Call, Binding, FunctionEntry, Connection)


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


def take(running: Running, *, alive_before: Mapping[str, int]) -> Snapshot:
    """The snapshot of now. `alive_before`: objects of other tests, which are not this engine's."""
    gc.collect()
    core = running.core
    found = Counter(type(item).__name__ for item in gc.get_objects() if isinstance(item, ALIVE))
    return Snapshot(
        functions=frozenset((entry.namespace, entry.id, entry.owner.name) for entry in core.functions),
        bindings=frozenset((b.id, b.trigger_type, b.function_id, b.state.value) for b in core.triggers),
        workers=frozenset(peer.id for peer in core.workers),
        outboxes=tuple(sorted(peer.connection.pending_bytes for peer in core.workers)),
        statistics=tuple(_still(running.statistics())),
        sizes=dict(sizes_of(running)),
        alive={name: number - alive_before.get(name, 0) for name, number in found.items()},
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
        for index, item in enumerate(value):
            yield from _still(item, f"{path}[{index}]")
    else:
        yield f"{path} = {value}"


def sizes_of(root: object) -> Counter[str]:
    """The sizes of all containers in fields of this package's objects that can be reached from `root`, by field."""
    sizes: Counter[str] = Counter()
    seen: set[int] = set()
    todo: deque[tuple[str, object]] = deque([("", root)])
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
            todo += ((f"{kind}.{a.name}", getattr(item, a.name, None)) for a in attrs.fields(type(item)))
        elif isinstance(item, partial):
            todo += ((name, inner) for inner in item.args)
    return sizes


def _drawn(node: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    yield "  " * depth + str(node["name"])
    for child in node["children"]:
        yield from _drawn(child, depth + 1)
