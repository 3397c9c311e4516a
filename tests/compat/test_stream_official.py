"""Streams with the official SDKs: as writers, as keepers of a stream's data, as triggered handlers, and as readers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compat_lab import CLIENTS, Lab, Peer, Process, RunningEngine

PYTHON = CLIENTS / "stream_worker.py"
NODE = CLIENTS / "stream_worker.mjs"
READER = CLIENTS / "stream_reader.mjs"


def told(process: Process) -> list[Any]:
    """What a reader has printed of its messages."""
    return [json.loads(line.removeprefix("told ")) for line in process.lines if line.startswith("told ")]


def of_item(item: str, kind: str, data: Any) -> dict[str, Any]:
    return {"id": item, "event": {"type": kind, "data": data}}


async def use(peer: Peer, prefix: str, missing: dict[str, Any]) -> None:
    """Every function of a stream through one SDK, with the shapes that its suite asserts."""

    async def call(operation: str, **payload: Any) -> Any:
        function = {"function_id": f"stream::{operation}", "payload": payload}
        return await peer.call(f"{prefix}::call", function)

    place: dict[str, Any] = {"stream_name": prefix, "group_id": "g"}
    item = {**place, "item_id": "1"}
    first, second = {"id": "1", "name": "n"}, {"id": "1", "name": "m", "deep": {"er": [None]}}
    assert await call("get", **item) == missing
    assert await call("delete", **item) == {"result": {"old_value": None}}
    assert await call("set", **item, data=first) == {"result": {"old_value": None, "new_value": first}}
    assert await call("set", **item, data=second) == {"result": {"old_value": first, "new_value": second}}
    assert await call("get", **item) == {"result": second}
    ops = [{"type": "set", "path": "count", "value": 5}]
    third = {**second, "count": 5}
    assert await call("update", **item, ops=ops) == {"result": {"old_value": second, "new_value": third}}
    assert await call("list", **place) == {"result": [third]}
    assert await call("list_groups", stream_name=prefix) == {"result": ["g"]}
    everything = (await call("list_all"))["result"]
    assert {"id": prefix, "groups": ["g"]} in everything["stream"]
    assert everything["count"] == len(everything["stream"])
    assert (await call("send", **place, type="wave", data={"hello": 1})) == {"result": None}
    assert await call("delete", **item) == {"result": {"old_value": third}}
    assert await call("get", **item) == missing

    seen = await peer.call(f"{prefix}::seen", {"count": 5})
    kinds = [(event["event"]["type"], event["id"]) for event in seen]
    assert kinds == [("create", "1"), ("update", "1"), ("update", "1"), ("event", None), ("delete", "1")]
    assert seen[0].keys() == {"type", "timestamp", "streamName", "groupId", "id", "event"}
    assert (seen[1]["streamName"], seen[1]["groupId"], seen[1]["event"]["data"]) == (prefix, "g", second)
    assert seen[3]["event"] == {"type": "event", "event": {"type": "wave", "data": {"hello": 1}}}
    stamps = [event["timestamp"] for event in seen]
    assert stamps == sorted(set(stamps))


async def use_own(peer: Peer, prefix: str, missing: dict[str, Any]) -> None:
    """A stream that the worker keeps: each operation reaches it, also the one that its SDK does not know."""

    async def call(operation: str, **payload: Any) -> Any:
        return await peer.call(f"{prefix}::call", {"function_id": f"stream::{operation}", "payload": payload})

    place: dict[str, Any] = {"stream_name": f"{prefix}-own", "group_id": "g"}
    item = {**place, "item_id": "1"}
    kept = {"n": 1, "own": True}
    assert await call("get", **item) == missing
    assert await call("set", **item, data={"n": 1}) == {"result": {"old_value": None, "new_value": kept}}
    assert await call("get", **item) == {"result": kept}
    ops = [{"type": "increment", "path": "n", "by": 2}]
    more = {"n": 3, "own": True}
    assert await call("update", **item, ops=ops) == {"result": {"old_value": kept, "new_value": more}}
    assert await call("list", **place) == {"result": [more]}
    assert await call("list_groups", stream_name=f"{prefix}-own") == {"result": ["g"]}
    assert await call("delete", **item) == {"result": {"old_value": more}}
    assert await call("get", **item) == missing


async def test_python_writes_keeps_and_is_triggered(lab: Lab, engine: RunningEngine, new_python: Path) -> None:
    await lab.script(engine, new_python, PYTHON, "py")
    peer = await lab.peer(engine)
    await peer.has("py::call", "py::seen", "stream::get(py-own)")
    await use(peer, "py", {"result": None})
    await use_own(peer, "py", {"result": None})


async def test_node_writes_keeps_and_reads_like_a_browser(
    lab: Lab, engine: RunningEngine, link: Callable[[Path], Path]
) -> None:
    await lab.script(engine, "node", link(NODE), "js")
    peer = await lab.peer(engine)
    await peer.has("js::call", "js::seen", "stream::get(js-own)")
    await use(peer, "js", {"undefined": True})
    await use_own(peer, "js", {"undefined": True})


async def test_a_reader_gets_sync_and_events_and_may_leave(
    lab: Lab, engine: RunningEngine, link: Callable[[Path], Path]
) -> None:
    peer = await lab.peer(engine)
    place = {"stream_name": "s", "group_id": "g"}
    await peer.call("stream::set", {**place, "item_id": "old", "data": {"id": "old"}})
    url = f"ws://127.0.0.1:{engine.stream_port}"
    reader = await lab.script(engine, "node", link(READER), url, "s", "g")
    await reader.output(lambda lines: any(line.startswith("told ") for line in lines))
    assert reader.lines[0] == "protocol Authorization"
    await peer.call("stream::set", {**place, "item_id": "new", "data": {"id": "new"}})
    await peer.call("stream::delete", {**place, "item_id": "old"})
    await peer.call("stream::send", {**place, "type": "bye", "data": None})
    await reader.output(lambda lines: "closed 1000" in lines)
    assert told(reader) == [
        {"id": None, "event": {"type": "sync", "data": [{"id": "old"}]}},
        of_item("new", "create", {"id": "new"}),
        of_item("old", "delete", {"id": "old"}),
        {"id": None, "event": {"type": "event", "event": {"type": "bye", "data": None}}},
    ]
