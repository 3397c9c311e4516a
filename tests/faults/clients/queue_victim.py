"""A worker process of the queue's fault tests, to be killed or frozen: `python queue_victim.py URL NAME WORK_S`.

It serves `work::NAME` and says on stdout, a line each: `ready`, `B number attempt` when a delivery begins, `H number`
when its work is done.
"""

import os
import sys
from functools import partial
from typing import Any

import trio

from iii_trio import Reconnect, Worker, current_invocation


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def main(url: str, name: str, work_s: float) -> None:
    worker = Worker(f"worker-{name}")

    @worker.function(f"work::{name}")
    async def handle(message: dict[str, Any]) -> None:
        marker = (current_invocation().metadata or {}).get("iii.queue", {})
        say("B", message["number"], marker.get("attempt", 1))
        await trio.sleep(work_s)
        say("H", message["number"])

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(worker.run, url, reconnect=Reconnect(first_s=0.02, limit_s=0.1)))
        say("ready")


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], float(sys.argv[3]))
