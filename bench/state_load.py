"""State load: N calls in flight on one socket, raw frames, no SDK in the way.

usage: state_load.py PORT OPERATION N SECONDS [ENGINE_PID]
prints one JSON line: {"operation","in_flight","per_s","p50_us","p99_us","errors","engine_cpu_us"}
OPERATION is set, update (an increment) or get, over 1,000 keys of one scope. With ENGINE_PID `engine_cpu_us` is the
processor time of that process for one call. Against any engine that speaks the worker protocol on ws://127.0.0.1:PORT/.
"""

import json
import os
import re
import socket
import sys
import time
from pathlib import Path

PORT, OPERATION, IN_FLIGHT, SECONDS = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
ENGINE = int(sys.argv[5]) if len(sys.argv) > 5 else None
KEYS = 1_000
PAD = "x" * 120
ID = re.compile(rb'"invocation_id":"00000000-0000-4000-8000-([0-9a-f]{12})"')


def frame(payload: bytes) -> bytes:
    """One masked text frame."""
    size = len(payload)
    head = bytes([0x81, 0x80 | size]) if size < 126 else bytes([0x81, 0xFE]) + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


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


class Peer:
    """One socket with its unread bytes."""

    def __init__(self) -> None:
        self.socket = socket.create_connection(("127.0.0.1", PORT))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.rest = b""
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.socket.recv(4096)
        self.rest = self.rest.split(b"\r\n\r\n", 1)[1]
        greeting = {
            "type": "invokefunction",
            "function_id": "engine::workers::register",
            "data": {"runtime": "python", "version": "0", "name": f"bench:{os.getpid()}", "pid": os.getpid()},
            "action": {"type": "void"},
        }
        self.socket.sendall(frame(json.dumps(greeting).encode()))

    def frames(self) -> list[bytes]:
        """What has arrived."""
        chunk = self.socket.recv(262144)
        if not chunk:
            raise SystemExit("the engine closed the connection")
        buffer, found, at = self.rest + chunk, [], 0
        while len(buffer) - at >= 2:
            size, body = buffer[at + 1] & 127, at + 2
            if size == 126:
                size, body = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, body = int.from_bytes(buffer[at + 2 : at + 10], "big"), at + 10
            if len(buffer) - body < size:
                break
            if buffer[at] & 15 == 1:
                found.append(buffer[body : body + size])
            at = body + size
        self.rest = buffer[at:]
        return found

    def answers(self) -> list[tuple[int, bytes]]:
        """Numbers of the calls that were answered, with the answers."""
        return [(int(found[1], 16), text) for text in self.frames() if (found := ID.search(text)) is not None]


def cpu_s() -> float:
    """Processor time of the engine so far."""
    if ENGINE is None:
        return 0.0
    fields = Path(f"/proc/{ENGINE}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


peer = Peer()
waiting = set(range(KEYS))
peer.socket.sendall(b"".join(call(number, "set") for number in waiting))
while waiting:
    waiting -= {number for number, _ in peer.answers()}
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
    for answered, text in peer.answers():
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
