"""Handlers of the official SDKs that return nothing: whoever writes later is heard, whoever never does gets a 204."""

from collections.abc import Callable
from pathlib import Path

import httpx
import trio
from compat_lab import CLIENTS, DEADLINE_S, Lab, RunningEngine


async def test_what_a_handler_that_returns_nothing_means(
    lab: Lab, engine: RunningEngine, new_python: Path, node_modules: Path, link: Callable[[Path], Path]
) -> None:
    await lab.script(engine, new_python, CLIENTS / "http_null_worker.py")
    await lab.script(engine, "node", link(CLIENTS / "http_null_worker.mjs"))
    peer = await lab.peer(engine)
    await peer.route("py/head")
    await peer.route("node/slow")
    await peer.call("configuration::set", {"id": "iii-http", "value": {"null_result_timeout": 3_000}})
    replies: dict[str, tuple[int, bytes]] = {}
    base = f"http://127.0.0.1:{engine.http_port}"
    async with httpx.AsyncClient(base_url=base, timeout=DEADLINE_S, trust_env=False) as web:

        async def ask(path: str) -> None:
            reply = await web.get(path)
            replies[path] = (reply.status_code, reply.content)

        async with trio.open_nursery() as nursery:
            for path in ("/py/none", "/py/slow", "/py/head", "/node/none", "/node/slow"):
                nursery.start_soon(ask, path)
    assert replies == {
        "/py/none": (204, b""),
        "/py/slow": (200, b"late but whole"),
        "/py/head": (203, b"much later"),
        "/node/none": (204, b""),
        "/node/slow": (200, b"late but whole"),
    }
