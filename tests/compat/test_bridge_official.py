"""Two engines, one that keeps state and streams and one that bridges to it, with official SDKs on the one that bridges."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compat_lab import CLIENTS, Lab, Peer, RunningEngine
from test_stream_official import NODE, PYTHON, READER, told, use, use_own


async def bridging(lab: Lab, keeper: RunningEngine) -> RunningEngine:
    """An engine whose state and streams another one keeps."""
    adapter = {"name": "bridge", "config": {"bridge_url": keeper.url}}
    workers = [{"name": name, "config": {"adapter": adapter}} for name in ("iii-state", "iii-stream")]
    config, ports_file = lab.directory / "bridge.yaml", lab.directory / "bridge-ports.json"
    config.write_text(json.dumps({"workers": [{"name": "iii-http"}, {"name": "iii-pubsub"}, *workers]}))
    process = await lab.start(
        "engine that bridges",
        *(sys.executable, "-m", "iii_trio", "serve", "-c", config, "--data-dir", lab.directory / "bridge"),
        *("--port", "0", "--http-port", "0", "--stream-port", "0", "--ports-file", ports_file),
    )
    await process.output(lambda lines: any("ports are written to" in line for line in lines))
    ports = json.loads(ports_file.read_text())
    return RunningEngine(process, *(ports[name][1] for name in ("worker", "http", "stream")))


async def use_state(peer: Peer, prefix: str, missing: dict[str, Any]) -> None:
    """Every function of the state through one SDK, with the shapes that its suite asserts."""

    async def call(operation: str, **payload: Any) -> Any:
        return await peer.call(f"{prefix}::call", {"function_id": f"state::{operation}", "payload": payload})

    at = {"scope": f"{prefix}-scope", "key": "1"}
    first, second = {"id": "1", "n": 1}, {"id": "1", "deep": {"er": [None]}}
    assert await call("get", **at) == missing
    assert "result" in await call("delete", **at) or missing == {"undefined": True}
    assert await call("set", **at, value=first) == {"result": {"old_value": None, "new_value": first}}
    assert await call("set", **at, value=second) == {"result": {"old_value": first, "new_value": second}}
    assert await call("get", **at) == {"result": second}
    ops = [{"type": "set", "path": "count", "value": 5}]
    third = {**second, "count": 5}
    assert await call("update", **at, ops=ops) == {"result": {"old_value": second, "new_value": third}}
    for number in ("2", "3"):
        await call("set", **{**at, "key": number}, value={"id": number})
    assert await call("list", scope=at["scope"]) == {"result": [third, {"id": "2"}, {"id": "3"}]}
    assert at["scope"] in (await call("list_groups"))["result"]["groups"]
    assert await call("delete", **at) == {"result": third}
    assert await call("get", **at) == missing
    assert len((await call("list", scope=at["scope"]))["result"]) == 2


async def test_python_on_the_engine_that_bridges(lab: Lab, engine: RunningEngine, new_python: Path) -> None:
    near = await bridging(lab, engine)
    await lab.script(near, new_python, PYTHON, "py")
    peer = await lab.peer(near)
    await peer.has("py::call", "py::seen", "stream::get(py-own)")
    await use_state(peer, "py", {"result": None})
    await use(peer, "py", {"result": None})
    await use_own(peer, "py", {"result": None})


async def test_node_on_the_engine_that_bridges_and_its_readers_hear_of_both_engines(
    lab: Lab, engine: RunningEngine, link: Callable[[Path], Path]
) -> None:
    near = await bridging(lab, engine)
    place = link(NODE)
    (place.parent / READER.name).write_bytes((CLIENTS / READER.name).read_bytes())
    await lab.script(near, "node", place, "js")
    peer, keeper = await lab.peer(near), await lab.peer(engine)
    await peer.has("js::call", "js::seen", "stream::get(js-own)")
    await use_state(peer, "js", {"undefined": True})
    await use(peer, "js", {"undefined": True})
    await use_own(peer, "js", {"undefined": True})

    group = {"stream_name": "s", "group_id": "g"}
    await keeper.call("stream::set", {**group, "item_id": "old", "data": {"id": "old"}})
    url = f"ws://127.0.0.1:{near.stream_port}"
    reader = await lab.script(near, "node", place.parent / READER.name, url, "s", "g")
    await reader.output(lambda lines: any(line.startswith("told ") for line in lines))
    await peer.call("stream::set", {**group, "item_id": "new", "data": {"id": "new"}})
    await reader.output(lambda lines: any('"create"' in line for line in lines))
    await keeper.call("stream::delete", {**group, "item_id": "old"})
    await reader.output(lambda lines: any('"delete"' in line for line in lines))
    await peer.call("stream::send", {**group, "type": "bye", "data": None})
    await reader.output(lambda lines: "closed 1000" in lines)
    assert [(one["id"], one["event"]["type"]) for one in told(reader)] == [
        (None, "sync"),
        ("new", "create"),
        ("old", "delete"),
        (None, "event"),
    ]
