"""`examples/cancel_tree.py` as real processes: a client that hangs up ends the work of all that worked for it."""

import json
from pathlib import Path

import trio
from compat_lab import EXAMPLES, Lab, Process, RunningEngine

ENDED = ["front: has cleaned up", "leaf: is done for middle", "middle: has its answer"]


def said(process: Process, *wanted: str) -> list[str]:
    """Those of the wanted lines that were printed, in the order in which they were: all processes share one pipe."""
    return [line for line in process.lines if line in wanted]


async def test_a_client_that_hangs_up_unwinds_the_tree_from_the_root(
    lab: Lab, engine: RunningEngine, new_python: Path
) -> None:
    peer = await lab.peer(engine)
    # buffered, so that a line leaves in one piece: unbuffered, those of several processes run into each other
    script = str(EXAMPLES / "cancel_tree.py")
    tree = await lab.start("cancel_tree.py", str(new_python), script, III_URL=engine.url, PYTHONUNBUFFERED="")
    await peer.has("front::tree", "branch::work", "leaf::work", "middle::work")
    await peer.route("tree")

    async with await trio.open_tcp_stream("127.0.0.1", engine.http_port) as curl:
        await curl.send_all(b"GET /tree?seconds=5 HTTP/1.1\r\nhost: localhost\r\n\r\n")
        begun = {"leaf: works for branch", "leaf: works for middle", "middle: asks leaf::work for front"}
        await tree.output(lambda lines: begun <= set(lines))
    unwound = {
        "front: gives up branch::work: caller_disconnected",
        "branch: gives up leaf::work: caller_disconnected",
        "leaf: stops working for branch: caller_disconnected",
    }
    await tree.output(lambda lines: {*unwound, *ENDED} <= set(lines))
    assert len(said(tree, *unwound)) == 3, "each gives up once"
    # the official worker was in nobody's way: its part went on, and its answer came late
    middle = ["front: gives up middle::work: caller_disconnected", "leaf: is done for middle", "middle: has its answer"]
    assert said(tree, *middle) == middle
    assert not [line for line in tree.lines if line.startswith("leaf: stops working for middle")]

    # nothing is left of it, and the same tree serves the next one
    status, body = await engine.get("/tree?seconds=0")
    assert (status, set(json.loads(body))) == (200, {"branch::work", "middle::work"})
    health = await peer.call("engine::health::check", {})
    assert health["components"]["engine"]["details"]["running_calls"] == 1  # this one
    assert await tree.stop() == 0
    await peer.lacks("front::tree", "branch::work", "leaf::work", "middle::work")
