"""A no-op job in Taskiq over Redis streams, for bench/queue_peers.py: the broker, the job, and producers as tasks."""

import asyncio
import os
import time

from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(os.environ["PEER_REDIS"])
handled = os.open(os.environ["PEER_HANDLED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@broker.task
async def handle(sent: int, pad: str) -> None:
    """Note how long the message took."""
    os.write(handled, (time.perf_counter_ns() - sent).to_bytes(8, "little"))


def produce(producers: int, until: float) -> None:
    """Send from that many tasks, each waiting for its broker, until `perf_counter` says so."""

    async def one() -> None:
        while time.perf_counter() < until:
            await handle.kiq(time.perf_counter_ns(), "x" * 120)

    async def everything() -> None:
        await broker.startup()
        await asyncio.gather(*(one() for _ in range(producers)))
        await broker.shutdown()

    asyncio.run(everything())


COMMAND = ["-m", "taskiq", "worker", "taskiq_peer:broker", "--workers", "1", "--max-async-tasks", "100"]
