"""Channels between official SDKs of several releases and ours: bytes in order, texts, both directions, lost writers."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from compat_lab import CLIENTS, Lab, Peer, RunningEngine

from iii_trio import Client, open_client

WORKER = CLIENTS / "channel_worker.py"
NODE_WORKER = CLIENTS / "channel_worker.mjs"
SIZE = 5_000_003
DATA = (bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]
ALL = {"bytes": SIZE, "sha256": hashlib.sha256(DATA).hexdigest(), "texts": ["begin ä€🙂", "end"]}
FUNCTIONS = ("produce", "consume", "give", "fetch", "leave")


@pytest.fixture
async def workers(
    lab: Lab,
    engine: RunningEngine,
    new_python: Path,
    old_python: Path,
    node_modules: Path,
    link: Callable[[Path], Path],
) -> Peer:
    """Three workers: `new` (Python 0.25.0), `old` (Python 0.11.6), `node`."""
    await lab.script(engine, new_python, WORKER, "new")
    await lab.script(engine, old_python, WORKER, "old")
    await lab.script(engine, "node", link(NODE_WORKER), "node")
    peer = await lab.peer(engine)
    await peer.has(*(f"{prefix}::{name}" for prefix in ("new", "old", "node") for name in FUNCTIONS))
    return peer


async def exchange(client: Client, prefix: str) -> None:
    """Our SDK writes to a worker, then reads from it."""
    send, receive = await client.open_channel(buffer=8)
    results: list[Any] = []

    async def call(function_id: str, payload: dict[str, Any]) -> None:
        results.append(await client.call(function_id, payload))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, f"{prefix}::consume", {"source": receive.ref})
        async with send:
            await send.send("begin ä€🙂")
            await send.send_all(DATA)
            await send.send("end")
    assert results == [ALL]

    send, receive = await client.open_channel(buffer=8)
    got: list[str | bytes] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, f"{prefix}::produce", {"target": send.ref, "bytes": SIZE})
        try:
            while True:
                got.append(await receive.receive())
        except trio.EndOfChannel:
            pass
    assert got[0] == "begin ä€🙂"
    assert got[-1] == "end"
    assert b"".join(part for part in got[1:-1] if isinstance(part, bytes)) == DATA
    await receive.aclose()


async def test_every_sdk_streams_to_every_other_and_a_dead_writer_is_no_end(
    workers: Peer, engine: RunningEngine
) -> None:
    async with open_client(engine.url) as client:
        for prefix in ("new", "old", "node"):
            await exchange(client, prefix)
        for one, other in (("new", "old"), ("old", "node"), ("node", "new")):
            assert await workers.call(f"{one}::give", {"to": f"{other}::consume", "bytes": SIZE}) == ALL
            assert await workers.call(f"{one}::fetch", {"from": f"{other}::produce", "bytes": SIZE}) == ALL

        for prefix in ("new", "old", "node"):
            send, receive = await client.open_channel()
            await client.send(f"{prefix}::leave", {"target": send.ref})
            assert await receive.receive_some() == b"half"
            with pytest.raises(trio.BrokenResourceError, match="its writer was lost"):
                await receive.receive_some()
            await receive.aclose()
