"""The queue of a real engine when the machine misbehaves: frozen for a while, its disk full, its file read-only."""

import resource
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from iii_trio import Client, InvocationError, Worker, open_client
from iii_trio.testing import EngineProcess, run_engine

QUEUES = """
workers:
  - name: iii-queue
    config:
      queue_configs:
        default: {max_retries: 5, backoff_ms: 5, timeout_ms: 1000}
"""


@define
class Seen:
    """What a handler saw, by number of the message."""

    begun: list[int] = field(factory=list)
    slow: float = 0.0
    _news: trio.Event = field(factory=trio.Event)

    async def __call__(self, message: dict[str, Any]) -> None:
        self.begun.append(message["number"])
        self._news.set()
        self._news = trio.Event()
        await trio.sleep(self.slow)

    async def wait(self, count: int) -> None:
        while len(self.begun) < count:
            await self._news.wait()


@asynccontextmanager
async def running(directory: Path, seen: Seen) -> AsyncIterator[tuple[EngineProcess, Client]]:
    """An engine with a queue, a worker that serves `f`, and a client."""
    config = directory / "config.yaml"
    config.write_text(QUEUES)
    worker = Worker("worker")
    worker.function("f")(seen.__call__)
    with trio.fail_after(30):
        async with run_engine(directory, "-c", str(config)) as engine, trio.open_nursery() as nursery:
            await nursery.start(worker.run, engine.url)
            async with open_client(engine.url, name="producer") as client:
                yield engine, client
            nursery.cancel_scope.cancel()


async def depth(client: Client) -> int:
    stats = await client.call("engine::queue::topic_stats", {"topic": "default"})
    return int(stats["depth"] + stats["dlq_depth"])


async def test_a_frozen_engine_repeats_nothing_whose_answer_lay_in_the_socket(tmp_path: Path) -> None:
    """The deadlines of all deliveries pass while it is frozen; the answers, sent in time, count all the same."""
    seen = Seen(slow=0.3)
    async with running(tmp_path, seen) as (engine, client):
        for number in range(5):
            await client.enqueue("default", "f", {"number": number})
        await seen.wait(5)
        engine.process.send_signal(signal.SIGSTOP)
        await trio.sleep(2.5)  # longer than timeout_ms; the handlers answer into the socket meanwhile
        engine.process.send_signal(signal.SIGCONT)
        await client.enqueue("default", "f", {"number": 5})
        await seen.wait(6)
        while await depth(client):
            pass
        assert sorted(seen.begun) == [0, 1, 2, 3, 4, 5]


async def test_a_full_disk_refuses_clearly_and_everything_goes_on_when_there_is_space(tmp_path: Path) -> None:
    seen = Seen()
    async with running(tmp_path, seen) as (engine, client):
        pid = engine.process.pid
        receipted = 20
        for number in range(1, receipted + 1):
            await client.enqueue("default", "f", {"number": number, "pad": "x" * 1_000})
        await seen.wait(receipted)
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        largest = max(path.stat().st_size for path in (tmp_path / "data").rglob("*") if path.is_file())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest + 20_000, before[1]))
        refusals: list[InvocationError] = []
        while len(refusals) < 3:
            receipted += 1
            try:
                await client.enqueue("default", "f", {"number": receipted, "pad": "x" * 10_000})
            except InvocationError as error:
                receipted -= 1
                refusals.append(error)
        for error in refusals:
            assert error.code == "enqueue_error"
            assert "enqueue to 'default' failed" in error.message
        assert await client.call("engine::queue::stats", {"queue": "default"})  # it still answers
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        with pytest.raises(InvocationError, match="not found"):
            await client.enqueue("nowhere", "f", {})
        await client.enqueue("default", "f", {"number": receipted + 1})
        while await depth(client) or receipted + 1 not in seen.begun:
            pass
        assert set(seen.begun) == set(range(1, receipted + 2))
