"""Official SDKs against the engine, as real processes: what they call, what they answer, and how their errors arrive."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compat_lab import CLIENTS, Frame, Lab, Peer, RunningEngine

WORKER = CLIENTS / "official_worker.py"
NODE_WORKER = CLIENTS / "official_worker.mjs"
LARGE = 1_500_000


async def provide_raw(peer: Peer) -> list[Frame]:
    """Functions of the test's own: one tells what was on the wire, one fails with an error of its own code."""
    seen: list[Frame] = []

    def keep(frame: Frame) -> Frame:
        seen.append(frame)
        return {"result": None}

    await peer.provide("raw::keep", keep)
    error = {"code": "card_declined", "message": "not enough money", "stacktrace": "till, line 1"}
    await peer.provide("raw::decline", lambda frame: {"error": error})
    await peer.has("raw::keep", "raw::decline")
    return seen


def own(value: dict[str, Any]) -> dict[str, Any]:
    """An object as its sender wrote it: the engine adds the caller's id."""
    return {key: item for key, item in value.items() if key != "_caller_worker_id"}


async def test_python_0_25_calls_and_is_called(lab: Lab, engine: RunningEngine, new_python: Path) -> None:
    for prefix in ("one", "two"):
        await lab.script(engine, new_python, WORKER, prefix)
    peer = await lab.peer(engine)
    await peer.has("one::page", "two::page")
    await peer.route("two")

    assert own(await peer.call("one::echo", {"text": "ä€🙂", "n": 1.5})) == {"text": "ä€🙂", "n": 1.5}
    assert await peer.call("one::echo", [1, None, {"deep": []}]) == [1, None, {"deep": []}]
    nothing = await peer.ask("one::nothing", {})
    assert nothing["result"] is None, "0.25 sends a null result, and it is passed on as it is"
    assert await engine.get("/two") == (200, b'{"prefix":"two"}')

    relayed = await peer.call("one::call", {"function_id": "two::echo", "payload": {"from": "one"}})
    assert own(relayed["result"]) == {"from": "one"}

    seen = await provide_raw(peer)
    assert await peer.call("one::call", {"function_id": "two::is_null"}) == {"result": True}
    assert await peer.call("one::call", {"function_id": "raw::keep"}) == {"result": None}
    assert seen[0]["data"] is None
    assert await peer.call("one::call", {"function_id": "state::get", "payload": {"scope": "s", "key": "k"}}) == {
        "result": None
    }

    listed = await peer.call("engine::workers::list", {})
    rows = {row["id"]: row for row in listed["workers"]}
    row = rows[await peer.call("one::identity")]
    assert (row["runtime"], row["version"], row["status"]) == ("python", "0.25.0", "connected")
    assert row["function_count"] == len(row["functions"]) == 10


async def test_errors_reach_python_0_25_as_they_were_raised(lab: Lab, engine: RunningEngine, new_python: Path) -> None:
    caller, victim = [await lab.script(engine, new_python, WORKER, prefix) for prefix in ("one", "two")]
    peer = await lab.peer(engine)
    await peer.has("one::page", "two::page")
    await provide_raw(peer)

    unknown = await peer.call("one::call", {"function_id": "nobody::has::this", "payload": {}})
    assert (unknown["raised"], unknown["code"]) == ("InvocationError", "function_not_found")
    assert "nobody::has::this" in unknown["message"]

    assert await peer.call("one::call", {"function_id": "raw::decline", "payload": {}}) == {
        "raised": "InvocationError",
        "text": "card_declined: not enough money",
        "code": "card_declined",
        "message": "not enough money",
        "stacktrace": "till, line 1",
    }

    crash = await peer.call("one::call", {"function_id": "two::crash", "payload": {}})
    assert (crash["code"], crash["message"]) == ("invocation_failed", "the handler has crashed")
    assert "ValueError: the handler has crashed" in crash["stacktrace"]
    assert await peer.call("two::echo", "still here") == "still here"

    gone = await peer.call("one::call", {"function_id": "two::leave", "payload": {}})
    assert (gone["raised"], gone["code"]) == ("InvocationError", "invocation_stopped")
    await peer.lacks("two::echo")
    assert victim.popen.returncode == 3 or await victim.popen.wait() == 3
    assert await peer.call("one::echo", "not harmed") == "not harmed"
    assert caller.popen.returncode is None


async def test_a_large_result_arrives_or_is_refused_to_a_client_it_would_break(
    lab: Lab, engine: RunningEngine, new_python: Path, old_python: Path
) -> None:
    await lab.script(engine, new_python, WORKER, "new")
    await lab.script(engine, new_python, WORKER, "other")
    await lab.script(engine, old_python, WORKER, "old")
    peer = await lab.peer(engine)
    await peer.has("new::page", "other::page", "old::page")

    assert len(await peer.call("new::large", {"bytes": LARGE})) == LARGE
    assert len(await peer.call("old::large", {"bytes": LARGE})) == LARGE
    ask = {"function_id": "other::large", "payload": {"bytes": LARGE}, "measure": True}
    assert await peer.call("new::call", ask) == {"length": LARGE}

    # 0.11.6 closes its connection over a message above 1 MiB: the engine keeps it away, and tells the caller.
    before = await peer.call("old::identity")
    refused = await peer.call("old::call", ask)
    assert (refused["raised"], refused["code"]) == ("IIIInvocationError", "payload_too_large")
    too_large = await peer.ask("old::echo", "x" * LARGE)
    assert too_large["error"]["code"] == "payload_too_large"
    assert await peer.call("old::identity") == before


async def test_python_0_11_calls_and_is_called(
    lab: Lab, engine: RunningEngine, new_python: Path, old_python: Path
) -> None:
    await lab.script(engine, old_python, WORKER, "old")
    await lab.script(engine, new_python, WORKER, "new")
    peer = await lab.peer(engine)
    await peer.has("old::page", "new::page")
    await peer.route("old")

    assert own(await peer.call("old::echo", {"text": "ä€🙂"})) == {"text": "ä€🙂"}
    nothing = await peer.ask("old::nothing", {})
    assert "result" not in nothing, "releases before 0.24 leave a null result out"
    assert "error" not in nothing
    assert await engine.get("/old") == (200, b'{"prefix":"old"}')
    assert await peer.call("old::call", {"function_id": "new::is_null"}) == {"result": True}
    assert await peer.call("new::call", {"function_id": "old::is_null"}) == {"result": True}
    unknown = await peer.call("old::call", {"function_id": "nobody::has::this", "payload": {}})
    assert (unknown["raised"], unknown["code"]) == ("IIIInvocationError", "function_not_found")
    crash = await peer.call("new::call", {"function_id": "old::crash", "payload": {}})
    assert (crash["code"], crash["message"]) == ("invocation_failed", "the handler has crashed")


async def test_node_calls_and_is_called(lab: Lab, engine: RunningEngine, link: Callable[[Path], Path]) -> None:
    await lab.script(engine, "node", link(NODE_WORKER), "node")
    peer = await lab.peer(engine)
    await peer.has("node::page")
    await peer.route("node")
    await provide_raw(peer)

    assert own(await peer.call("node::echo", {"text": "ä€🙂"})) == {"text": "ä€🙂"}
    assert "result" not in await peer.ask("node::nothing", {}), "undefined is no result"
    assert await engine.get("/node") == (200, b'{"prefix":"node"}')
    assert len(await peer.call("node::large", {"bytes": LARGE})) == LARGE
    ask = {"function_id": "node::large", "payload": {"bytes": LARGE}, "measure": True}
    assert await peer.call("node::call", ask) == {"length": LARGE}

    assert await peer.call("node::call", {"function_id": "node::is_null"}) == {"result": True}
    missing = {"function_id": "state::get", "payload": {"scope": "s", "key": "k"}}
    assert await peer.call("node::call", missing) == {"undefined": True}

    unknown = await peer.call("node::call", {"function_id": "nobody::has::this", "payload": {}})
    assert (unknown["raised"], unknown["code"]) == ("InvocationError", "function_not_found")
    crash = await peer.call("node::call", {"function_id": "node::crash", "payload": {}})
    assert crash["code"] == "invocation_failed"
    assert "the handler has crashed" in crash["text"]
    declined = await peer.call("node::call", {"function_id": "raw::decline", "payload": {}})
    assert (declined["code"], declined["stacktrace"]) == ("card_declined", "till, line 1")
