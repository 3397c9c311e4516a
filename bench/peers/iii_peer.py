"""A no-op job in our own SDK, for bench/queue_peers.py: a worker that serves it, and producers as tasks of one client."""

import os
import time
from typing import Any

import trio

from iii_trio import Client, Worker, open_client

URL = os.environ["PEER_ENGINE"]
handled = os.open(os.environ["PEER_HANDLED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
worker = Worker("iii_peer")


@worker.function("handle")
async def handle(message: dict[str, Any]) -> None:
    """Note how long the message took."""
    os.write(handled, (time.perf_counter_ns() - message["sent"]).to_bytes(8, "little"))


def produce(producers: int, until: float) -> None:
    """Enqueue from that many tasks, each waiting for its receipt, until `perf_counter` says so."""

    async def one(client: Client) -> None:
        while time.perf_counter() < until:
            await client.enqueue("bench", "handle", {"sent": time.perf_counter_ns(), "pad": "x" * 120})

    async def everything() -> None:
        async with open_client(URL, name="producers") as client, trio.open_nursery() as nursery:
            for _ in range(producers):
                nursery.start_soon(one, client)

    trio.run(everything)


COMMAND = ["-c", "import iii_peer; iii_peer.worker.serve(iii_peer.URL)"]
