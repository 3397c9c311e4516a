"""State load: N calls in flight on one socket, raw frames, no SDK in the way.

usage: state_load.py PORT OPERATION N SECONDS [ENGINE_PID]
prints one JSON line: {"operation","in_flight","per_s","p50_us","p99_us","errors","engine_cpu_us"}
OPERATION is set, update (an increment) or get, over 1,000 keys of one scope. With ENGINE_PID `engine_cpu_us` is the
processor time of that process for one call. Against any engine that speaks the worker protocol on ws://127.0.0.1:PORT/.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

from raw_peer import Peer, frame

PORT, OPERATION, IN_FLIGHT, SECONDS = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
ENGINE = int(sys.argv[5]) if len(sys.argv) > 5 else None
KEYS = 1_000
PAD = "x" * 120
ID = re.compile(rb'"invocation_id":"00000000-0000-4000-8000-([0-9a-f]{12})"')


def call(number: int, operation: str) -> bytes:
    """One call; its number stands in its id."""
    details = {
        "set": b',"value":{"n":%d,"pad":"%s"}' % (number, PAD.encode()),
        "update": b',"ops":[{"type":"increment","path":"n","by":1}]',
        "get": b"",
    }
    return frame(
        b'{"type":"invokefunction","invocation_id":"00000000-0000-4000-8000-%012x","function_id":"state::%s",'
        b'"data":{"scope":"bench","key":"key-%d"%s}}' % (number, operation.encode(), number % KEYS, details[operation])
    )


def answers(peer: Peer) -> list[tuple[int, bytes]]:
    """Numbers of the calls that were answered, with the answers."""
    return [(int(found[1], 16), text) for text in peer.frames() if (found := ID.search(text)) is not None]


def cpu_s() -> float:
    """Processor time of the engine so far."""
    if ENGINE is None:
        return 0.0
    fields = Path(f"/proc/{ENGINE}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


peer = Peer(PORT, "bench")
waiting = set(range(KEYS))
peer.socket.sendall(b"".join(call(number, "set") for number in waiting))
while waiting:
    waiting -= {number for number, _ in answers(peer)}
number, sent, latencies, errors = KEYS, {}, [], 0
start, before = time.perf_counter(), cpu_s()
out = bytearray()
for _ in range(IN_FLIGHT):
    number += 1
    sent[number] = time.perf_counter_ns()
    out += call(number, OPERATION)
peer.socket.sendall(out)
while time.perf_counter() - start < SECONDS:
    out = bytearray()
    for answered, text in answers(peer):
        latencies.append(time.perf_counter_ns() - sent.pop(answered))
        errors += b'"error":{' in text
        number += 1
        sent[number] = time.perf_counter_ns()
        out += call(number, OPERATION)
    if out:
        peer.socket.sendall(out)
elapsed, spent = time.perf_counter() - start, cpu_s() - before
latencies.sort()
count = len(latencies)
print(
    json.dumps(
        {
            "operation": OPERATION,
            "in_flight": IN_FLIGHT,
            "per_s": round(count / elapsed),
            "p50_us": round(latencies[count // 2] / 1e3),
            "p99_us": round(latencies[int(count * 0.99)] / 1e3),
            "errors": errors,
            "engine_cpu_us": round(spent / count * 1e6),
        }
    )
)
