"""The state client's options as they stand on the wire, and the options of a durable state trigger."""

from typing import Any

import trio
from sdk_fake_engine import fake_engine
from trio.testing import MockClock

from iii_trio import Increment, Worker, open_client


async def test_times_pages_and_keys(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        scope = client.state["s"]

        async def answer(result: Any) -> None:
            call = await peer.receive("invokefunction")
            while "invocation_id" not in call:
                call = await peer.receive("invokefunction")
            peer.answer(call, result)

        changed = {"old_value": None, "new_value": 1}
        nursery.start_soon(answer, changed)
        await scope.set("k", 1, ttl=1.5)
        nursery.start_soon(answer, changed)
        await scope.update("k", Increment(path="n"), ttl=0.0001)
        nursery.start_soon(answer, [{"key": "a", "value": 1}])
        assert await scope.items(prefix="a", after="", limit=10) == [("a", 1)]
        nursery.start_soon(answer, [1])
        assert await scope.list(limit=1) == [1]
        nursery.start_soon(answer, {"groups": ["s"]})
        assert await client.state.scopes(prefix="s") == ["s"]
        asked = [(frame["function_id"], frame["data"]) for frame in peer.frames if "invocation_id" in frame]
        ops = [{"type": "increment", "path": "n", "by": 1}]
        assert asked == [
            ("state::set", {"scope": "s", "key": "k", "value": 1, "ttl_ms": 1500}),
            ("state::update", {"scope": "s", "key": "k", "ops": ops, "ttl_ms": 1}),
            ("state::list", {"scope": "s", "prefix": "a", "after": "", "limit": 10, "keys": True}),
            ("state::list", {"scope": "s", "limit": 1}),
            ("state::list_groups", {"prefix": "s"}),
        ]


async def test_a_durable_trigger_says_so(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    worker = Worker("w")

    @worker.state(scope="s", durable=True, queue="orders")
    @worker.state(key="k")
    @worker.stream("chat", durable=True)
    @worker.function("on::change")
    async def changed(event: dict[str, Any]) -> None:
        del event

    async with fake_engine() as engine:
        async with worker.connect(open_stream=engine.open_stream):
            peer = await engine.peer()
            configs = [(await peer.receive("registertrigger"))["config"] for _ in range(3)]
        chat = {"stream_name": "chat", "durable": True}
        assert sorted(configs, key=len) == [{"key": "k"}, chat, {"scope": "s", "durable": True, "queue": "orders"}]
