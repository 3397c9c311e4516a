"""One gigabyte through a channel, with small calls beside it: MB/s, and what the calls notice.

usage: python bench/channels.py [--megabytes 1000] [--repetitions 3]

An engine on one core; on the other a writer, a reader and a caller, each a process of its own with our SDK over real
sockets. The streaming processes run at low priority: what the caller notices is then the engine's doing, and not that
three processes share a core. The caller makes one small call at a time, 1 ms apart, to a worker in its own process.
Each repetition measures the calls alone, the stream alone, and both at once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import trio
from harness import emit, free_port, pinned, python, server

from iii_trio import Worker, open_client

HERE = Path(__file__).parent
CHUNK = 1_000_000
QUIET_S = 3.0


async def read(url: str) -> None:
    """Make a channel, print its writer's ref, and read it to the end."""
    async with open_client(url) as client:
        send, receive = await client.open_channel()
        print(json.dumps(send.ref), flush=True)
        size = len(await receive.receive_some())
        began = time.perf_counter()
        while data := await receive.receive_some():
            size += len(data)
        seconds = time.perf_counter() - began
        print(json.dumps({"bytes": size, "seconds": seconds, "mb_per_s": round(size / seconds / 1e6, 1)}), flush=True)


async def write(url: str, ref: str, megabytes: int) -> None:
    """Write that much to the end that the ref names."""
    data = os.urandom(CHUNK)
    async with open_client(url) as client, client.channels.sender(json.loads(ref)) as send:
        for _ in range(megabytes):
            await send.send_all(data)


async def calls(url: str) -> None:
    """Make small calls until standard input ends; print how long they took (ms)."""
    worker = Worker("echo")

    @worker.function("bench::echo")
    async def echo(payload: Any) -> Any:
        return payload

    took: list[float] = []
    async with worker.connect(url), open_client(url) as client, trio.open_nursery() as nursery:

        async def stop() -> None:
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()

        nursery.start_soon(stop)
        await client.call("bench::echo", {"n": 0})
        while True:
            began = time.perf_counter()
            await client.call("bench::echo", {"n": 1})
            took.append((time.perf_counter() - began) * 1000)
            await trio.sleep(0.001)
    took.sort()
    shown = {f"p{share}": round(took[len(took) * share // 100], 2) for share in (50, 99)}
    print(json.dumps({"calls": len(took), **shown, "max": round(took[-1], 2)}), flush=True)


def start(role: str, url: str, *words: str, nice: int = 0) -> subprocess.Popen[str]:
    """A process in one of the roles above."""
    command = pinned(1, [python(), __file__, "--role", role, url, *words])
    return subprocess.Popen(
        ["nice", "-n", str(nice), *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    """End its standard input and read its last line."""
    output, _ = process.communicate(timeout=600)
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def stream(url: str, megabytes: int) -> dict[str, Any]:
    """One transfer."""
    reader = start("read", url, nice=19)
    assert reader.stdout is not None
    writer = start("write", url, reader.stdout.readline().strip(), str(megabytes), nice=19)
    measured = result(reader)
    writer.wait(60)
    assert measured["bytes"] == megabytes * CHUNK, measured
    return measured


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--role", choices=["read", "write", "calls"], help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "read":
        trio.run(read, options.words[0])
    elif options.role == "write":
        trio.run(write, options.words[0], options.words[1], int(options.words[2]))
    elif options.role == "calls":
        trio.run(calls, options.words[0])
    else:
        measure(options.megabytes, options.repetitions)


def measure(megabytes: int, repetitions: int) -> None:
    """All repetitions against one engine, and the medians."""
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    alone: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    streams: list[dict[str, Any]] = []
    crowded: list[dict[str, Any]] = []
    with server([python(), str(HERE / "engine_only.py"), str(port)], port) as engine:
        for repetition in range(repetitions):
            caller = start("calls", url)
            time.sleep(QUIET_S)
            alone.append(result(caller))
            streams.append(stream(url, megabytes))
            caller = start("calls", url)
            time.sleep(1)
            crowded.append(stream(url, megabytes))
            beside.append(result(caller))
            for subject, samples in (("calls", alone), ("stream", streams), ("calls+", beside), ("stream+", crowded)):
                emit(subject=subject, repetition=repetition, **samples[-1])
        rss_kib = int(Path(f"/proc/{engine.pid}/status").read_text().split("VmHWM:")[1].split()[0])
    emit(
        verdict="medians",
        mb_per_s_alone=statistics.median(one["mb_per_s"] for one in streams),
        mb_per_s_beside_calls=statistics.median(one["mb_per_s"] for one in crowded),
        call_ms_alone={key: statistics.median(one[key] for one in alone) for key in ("p50", "p99", "max")},
        call_ms_beside_stream={key: statistics.median(one[key] for one in beside) for key in ("p50", "p99", "max")},
        engine_peak_rss_mib=rss_kib // 1024,
    )


if __name__ == "__main__":
    main()
