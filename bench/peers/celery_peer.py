"""A no-op job in Celery over Redis, for bench/queue_peers.py: the app, the job, and producers as threads."""

import os
import threading
import time

from celery import Celery

app = Celery("celery_peer", broker=os.environ["PEER_REDIS"])
app.conf.update(task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=64)
handled = os.open(os.environ["PEER_HANDLED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


@app.task
def handle(sent: int, pad: str) -> None:
    """Note how long the message took."""
    os.write(handled, (time.perf_counter_ns() - sent).to_bytes(8, "little"))


def produce(producers: int, until: float) -> None:
    """Send from that many threads, each waiting for its broker, until `perf_counter` says so."""

    def one() -> None:
        while time.perf_counter() < until:
            handle.delay(time.perf_counter_ns(), "x" * 120)

    threads = [threading.Thread(target=one) for _ in range(producers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


COMMAND = ["-m", "celery", "-A", "celery_peer", "worker", "--pool", "threads", "--concurrency", "8", "-l", "error"]
