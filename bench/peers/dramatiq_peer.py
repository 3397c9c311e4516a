"""A no-op job in Dramatiq over Redis, for bench/queue_peers.py: the broker, the job, and producers as threads."""

import os
import threading
import time

import dramatiq
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["PEER_REDIS"]))
handled = os.open(os.environ["PEER_HANDLED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@dramatiq.actor(max_retries=3)
def handle(sent: int, pad: str) -> None:
    """Note how long the message took."""
    os.write(handled, (time.perf_counter_ns() - sent).to_bytes(8, "little"))


def produce(producers: int, until: float) -> None:
    """Send from that many threads, each waiting for its broker, until `perf_counter` says so."""

    def one() -> None:
        while time.perf_counter() < until:
            handle.send(time.perf_counter_ns(), "x" * 120)

    threads = [threading.Thread(target=one) for _ in range(producers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


COMMAND = ["-m", "dramatiq", "dramatiq_peer", "--processes", "1", "--threads", "8"]
