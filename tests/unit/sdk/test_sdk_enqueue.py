"""What `Client.enqueue` may say about its message."""

import trio
from sdk_fake_engine import fake_engine
from test_sdk_calls import answer_next
from trio.testing import MockClock

from iii_trio import open_client


async def test_delay_priority_and_key_go_with_the_action(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    async with fake_engine() as engine, open_client(open_stream=engine.open_stream) as client:
        peer = await engine.peer()
        nursery.start_soon(answer_next, peer, {"messageReceiptId": "r"})
        assert await client.enqueue("q", "f", 1, delay=1.5, priority=9, deduplication_key="k") == "r"
        assert peer.frames[-1]["action"] == {
            "type": "enqueue",
            "queue": "q",
            "delay_ms": 1500,
            "priority": 9,
            "deduplication_key": "k",
        }
