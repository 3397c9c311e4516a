"""Load for `stream_bench.py`: subscribers of one group and a writer in one process; prints one JSON line.

Subscribers are plain sockets that count messages without decoding them: the less the reader does, the more of what is
measured is the engine's. Every event carries the time at which it was sent; of each chunk of bytes the last event's age is
a sample. At most `--window` events are under way, so that the engine is never behind by more than those.
"""

import argparse
import json
import os
import re
import selectors
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import trio

from iii_trio import open_client
from iii_trio.transport import Outbox, connect

SENT = re.compile(rb'"at":(\d+)')
MESSAGE = b'"type":"stream"'


async def subscribe(port: int) -> socket.socket:
    """A socket that has joined the group and read its `sync`; not blocking."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await connect(stream, "engine", "/")
    join = {"type": "join", "data": {"subscriptionId": "1", "streamName": "bench", "groupId": "g"}}
    outbox = Outbox(masked=True)
    outbox.put(json.dumps(join).encode())
    await stream.send_all(outbox.take())
    data = b""
    while b'"sync"' not in data:
        data += bytes(await stream.receive_some())
    sock = socket.socket(fileno=socket.dup(stream.socket.fileno()))
    sock.setblocking(False)
    return sock


def percentile(samples: list[float], share: float) -> float:
    """A percentile in milliseconds."""
    return round(sorted(samples)[min(len(samples) - 1, int(len(samples) * share))] * 1000, 3) if samples else 0.0


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has had (Linux); unlike a rate it hardly depends on what else the machine does."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Write for `--seconds`, reading all the while."""
    socks = [await subscribe(args.stream_port) for _ in range(args.subscribers)]
    selector = selectors.EpollSelector()
    for sock in socks:
        selector.register(sock, selectors.EVENT_READ)
    received = sent = acknowledged = 0
    ages: list[float] = []
    place = {"stream_name": "bench", "group_id": "g"}
    async with open_client(f"ws://127.0.0.1:{args.port}") as client, trio.open_nursery() as nursery:

        async def write() -> None:
            nonlocal acknowledged
            data = {"id": "i", "at": time.perf_counter_ns(), "text": "x" * args.bytes}
            if args.operation == "set":
                await client.call("stream::set", {**place, "item_id": "i", "data": data})
            else:
                await client.call("stream::send", {**place, "type": "t", "data": data})
            acknowledged += 1

        began, cpu_before = time.perf_counter(), cpu_seconds(args.engine_pid)
        end = began + args.seconds
        while time.perf_counter() < end or received < sent * args.subscribers:
            while time.perf_counter() < end and sent - received // args.subscribers < args.window:
                sent += 1
                nursery.start_soon(write)
            await trio.lowlevel.checkpoint()
            for key, _ in selector.select(0):
                chunk = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                received += chunk.count(MESSAGE)
                found = SENT.findall(chunk)
                if found:
                    ages.append((time.perf_counter_ns() - int(found[-1])) / 1e9)
            if time.perf_counter() > end + 20:
                raise RuntimeError(f"{received} of {sent * args.subscribers} deliveries came")
        seconds, cpu = time.perf_counter() - began, cpu_seconds(args.engine_pid) - cpu_before
    return {
        "subscribers": args.subscribers,
        "operation": args.operation,
        "events_per_s": round(sent / seconds),
        "deliveries_per_s": round(received / seconds),
        "engine_us_per_delivery": round(cpu / received * 1e6, 2),
        "p50_ms": round(statistics.median(ages) * 1000, 3),
        "p99_ms": percentile(ages, 0.99),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stream-port", type=int, required=True)
    parser.add_argument("--engine-pid", type=int, required=True)
    parser.add_argument("--subscribers", type=int, default=100)
    parser.add_argument("--operation", choices=["send", "set"], default="send")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--bytes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4.0)
    print(json.dumps(trio.run(measure, parser.parse_args())))
