"""Queues with the official SDKs: Enqueue (standard and fifo) and Void, topics tuned in both spellings, dead letters, redrive.

Python 0.25, Python 0.11 and Node at the same time on one engine; each goes through all of it as caller and as handler.
"""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio
from compat_lab import CLIENTS, Lab, Peer, RunningEngine

PYTHON = CLIENTS / "queue_worker.py"
NODE = CLIENTS / "queue_worker.mjs"


async def use(peer: Peer, prefix: str) -> None:
    """Everything through the SDK of one worker."""

    async def call(function_id: str, payload: Any = None, **action: Any) -> Any:
        answer = await peer.call(f"{prefix}::call", {"function_id": function_id, "payload": payload, **action})
        assert "raised" not in answer, answer
        return answer["result"]

    async def error(function_id: str, payload: Any = None, **action: Any) -> str:
        answer = await peer.call(f"{prefix}::call", {"function_id": function_id, "payload": payload, **action})
        return str(answer["raised"])

    async def seen(name: str, count: int) -> Any:
        return await peer.call(f"{prefix}::seen", {"name": name, "count": count})

    async def dead(name: str, count: int) -> Any:
        with trio.fail_after(10):
            while len(letters := await call("engine::queue::dlq_messages", {"topic": name})) < count:
                pass
        return letters

    work, orders = f"{prefix}::work", f"{prefix}-orders"
    # a standard queue
    payload = {"n": 1, "deep": [{"er": [None, 1.5, "ä€𝄞"]}]}
    receipt = await call(work, payload, queue="default")
    assert receipt == {"messageReceiptId": str(uuid.UUID(receipt["messageReceiptId"], version=4))}
    assert await seen("work", 1) == [payload]
    # a fifo queue, defined through the SDK
    settings = {"type": "fifo", "message_group_field": "id", "max_retries": 2, "backoff_ms": 10}
    assert await call("queue::define", {"queue": orders, "config": settings}) == {"queue": orders, "changed": True}
    assert await call("queue::define", {"queue": orders, "config": settings}) == {"queue": orders, "changed": False}
    for n in range(3):
        await call(work, {"id": "a", "n": n, "fail": int(n == 0)}, queue=orders)
    numbers = [data["n"] for data in (await seen("work", 5))[1:]]
    assert numbers == [0, 0, 1, 2]
    # refusals
    assert "not found" in await error(work, {}, queue="nowhere")
    assert "'id'" in await error(work, {"n": 1}, queue=orders)
    assert "null" in await error(work, {"id": None}, queue=orders)
    assert "topic_not_set" in await error("iii::durable::publish", {"topic": "", "data": 1})
    # fire and forget
    assert await call(work, {"void": True}, void=True) is None
    assert (await seen("work", 6))[-1]["void"] is True
    # topics: one retry in either spelling
    for name in ("camel", "snake"):
        topic = f"{prefix}-{name}"
        assert await call("iii::durable::publish", {"topic": topic, "data": {"fail": 1}}) is None
        assert await seen(name, 2) == [{"fail": 1}] * 2
        await call("iii::durable::publish", {"topic": topic, "data": {"fail": 9}})
        (letter,) = await dead(topic, 1)
        assert (letter["payload"], letter["retries"]) == ({"fail": 9}, 2)
        assert len(await seen(name, 4)) == 4
        assert await call("iii::queue::discard_message", {"topic": topic, "message_id": letter["id"]}) == {
            "queue": topic,
            "message_id": letter["id"],
            "redriven": 1,
        }
    # dead letters of a named queue come back
    receipts = [(await call(work, {"id": n, "fail": 2}, queue=orders))["messageReceiptId"] for n in range(2)]
    letters = await dead(orders, 2)
    assert {letter["id"] for letter in letters} == set(receipts)
    assert all("as often as wanted" in letter["error"] for letter in letters)
    stats = await call("engine::queue::topic_stats", {"topic": orders})
    assert (stats["depth"], stats["dlq_depth"], stats["consumer_count"]) == (0, 2, 10)
    assert {"topic": orders, "broker_type": "function_queue", "message_count": 2} in await call(
        "engine::queue::dlq_topics"
    )
    listed = {row["name"]: row["subscriber_count"] for row in await call("engine::queue::list_topics")}
    assert (listed[orders], listed[f"{prefix}-camel"], listed[f"{prefix}-snake"]) == (10, 1, 1)
    one = {"queue": orders, "message_id": receipts[0]}
    assert await call("iii::queue::redrive_message", one) == {**one, "redriven": 1}
    assert await call("iii::queue::redrive", {"queue": orders}) == {"queue": orders, "redriven": 1}
    # six so far, then two of two attempts each, then each once more
    last = (await seen("work", 12))[-2:]
    assert sorted(data["id"] for data in last) == [0, 1]


async def test_queues_through_official_sdks(
    lab: Lab, engine: RunningEngine, new_python: Path, old_python: Path, link: Callable[[Path], Path]
) -> None:
    await lab.script(engine, new_python, PYTHON, "new")
    await lab.script(engine, old_python, PYTHON, "old")
    await lab.script(engine, "node", link(NODE), "js")
    peer = await lab.peer(engine)
    prefixes = ("new", "old", "js")
    await peer.has(*(f"{prefix}::{name}" for prefix in prefixes for name in ("ready", "camel", "snake")))
    for prefix in prefixes:
        await peer.call(f"{prefix}::call", {"function_id": "engine::queue::list_topics", "payload": None})
    async with trio.open_nursery() as nursery:
        for prefix in prefixes:
            nursery.start_soon(use, peer, prefix)
