"""The hello system in its four forms, each as real processes: a GET, a message in the queue, a greeting in the state."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compat_lab import EXAMPLES, Lab, Peer, RunningEngine

BODY = b'{"message":"Hello request received! Processing in background.","status":"processing","appName":"III App"}'


async def greet(lab: Lab, engine: RunningEngine, peer: Peer) -> None:
    """Ask for `/hello` as curl would; the greeting is in the state when this returns."""
    stored: list[dict[str, Any]] = []

    def changed(frame: dict[str, Any]) -> dict[str, Any]:
        stored.append(frame["data"])
        return {"result": None}

    await peer.provide("compat::stored", changed)
    await peer.bind("state", "compat::stored", {"scope": "greetings"})
    await peer.route("hello")
    assert await engine.get("/hello") == (200, BODY)
    await peer.until(lambda: bool(stored), "greeting in the state")
    (greeting,) = await lab.command(engine, "trigger", "state::list", "scope=greetings")
    assert greeting == stored[0]["new_value"]
    assert "Hello" in json.dumps(greeting)


async def test_with_the_official_python_sdk(lab: Lab, engine: RunningEngine, new_python: Path) -> None:
    worker = await lab.script(engine, new_python, EXAMPLES / "hello_official.py")
    peer = await lab.peer(engine)
    await peer.has("hello::api", "hello::process")
    await greet(lab, engine, peer)
    assert await worker.stop() == 0
    await peer.lacks("hello::api", "hello::process")


async def test_with_the_official_node_sdk(
    lab: Lab, engine: RunningEngine, node_modules: Path, link: Callable[[Path], Path]
) -> None:
    worker = await lab.script(engine, "node", link(EXAMPLES / "hello_node" / "hello.mjs"))
    peer = await lab.peer(engine)
    last: list[dict[str, Any]] = []

    def changed(frame: dict[str, Any]) -> dict[str, Any]:
        last.append(frame["data"])
        return {"result": None}

    await peer.provide("compat::last", changed)
    await peer.bind("state", "compat::last", {"scope": "last-greeting", "key": "hello"})
    await peer.has("hello::api", "greet::process")
    await greet(lab, engine, peer)
    listed = await peer.call("engine::registered-triggers::list", {"function_id": "greet::process"})
    assert listed["registered_triggers"] == [], "the message names its function; no trigger does"
    await peer.until(lambda: bool(last), "greeting that was sent as a void call")
    assert await worker.stop() == 0
    await peer.lacks("hello::api", "greet::process")


async def test_without_any_sdk(lab: Lab, engine: RunningEngine, new_python: Path) -> None:
    worker = await lab.script(engine, new_python, EXAMPLES / "hello_raw.py")
    peer = await lab.peer(engine)
    await peer.has("hello::api", "hello::process")
    await greet(lab, engine, peer)
    assert await worker.stop() == 0
    frames = [(line[:2], json.loads(line[3:])) for line in worker.lines]
    talk = [(way, frame["type"], frame.get("function_id", "")) for way, frame in frames]
    sent = [step for step in talk if step[0] == "->"]
    assert sent == [
        ("->", "invokefunction", "engine::workers::register"),
        ("->", "registerfunction", ""),
        ("->", "registerfunction", ""),
        ("->", "registertrigger", "hello::api"),
        ("->", "registertrigger", "hello::process"),
        ("->", "invokefunction", "enqueue"),
        ("->", "invocationresult", "hello::api"),
        ("->", "invokefunction", "state::set"),
        ("->", "invocationresult", "hello::process"),
    ]
    received = [step for step in talk if step[0] == "<-"]
    assert received == [
        ("<-", "workerregistered", ""),
        ("<-", "invokefunction", "hello::api"),
        ("<-", "invocationresult", "enqueue"),
        ("<-", "invokefunction", "hello::process"),
        ("<-", "invocationresult", "state::set"),
    ]


async def test_with_our_own_sdk_served_by_the_engine(lab: Lab) -> None:
    engine = await lab.engine(EXAMPLES / "hello_worker.py")
    peer = await lab.peer(engine)
    await greet(lab, engine, peer)
    assert await engine.process.stop() == 0
