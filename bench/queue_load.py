"""Queue load: P enqueues in flight on one socket, one worker on another, raw frames, no SDK in the way.

usage: queue_load.py PORT P SECONDS [QUEUE]        prints one JSON line: {"producers","per_s","p50_us","p99_us","errors"}
`per_s` counts handled messages; the latencies are from the moment an enqueue is sent to the moment its message arrives
at the worker, the receipt lies between them. Against any engine that speaks the worker protocol on ws://127.0.0.1:PORT/.
"""

import json
import os
import re
import select
import socket
import sys
import time
import uuid

PORT, PRODUCERS, SECONDS = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
QUEUE = sys.argv[4] if len(sys.argv) > 4 else "bench"
PAD = "x" * 120
ID = re.compile(rb'"invocation_id":"([0-9a-f-]{36})"')
SENT = re.compile(rb'"sent":([0-9]+)')


def frame(payload: bytes) -> bytes:
    size = len(payload)
    head = bytes([0x81, 0x80 | size]) if size < 126 else bytes([0x81, 0xFE]) + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


class Peer:
    """One socket with its unread bytes."""

    def __init__(self, name: str) -> None:
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
            "data": {"runtime": "python", "version": "0", "name": f"{name}:{os.getpid()}", "pid": os.getpid()},
            "action": {"type": "void"},
        }
        self.socket.sendall(frame(json.dumps(greeting).encode()))

    def frames(self) -> list[bytes]:
        """What has arrived."""
        chunk = self.socket.recv(262144)
        if not chunk:
            raise SystemExit("the engine closed a connection")
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


def enqueue() -> bytes:
    return frame(
        b'{"type":"invokefunction","invocation_id":"%s","function_id":"bench::handle","data":{"sent":%d,"group":%d,'
        b'"pad":"%s"},"action":{"type":"enqueue","queue":"%s"}}'
        % (str(uuid.uuid4()).encode(), time.perf_counter_ns(), os.getpid(), PAD.encode(), QUEUE.encode())
    )


worker, producer = Peer("bench-worker"), Peer("bench-producer")
worker.socket.sendall(frame(b'{"type":"registerfunction","id":"bench::handle"}'))
time.sleep(0.5)
latencies: list[float] = []
errors = receipts = 0
start = time.perf_counter()
producer.socket.sendall(b"".join(enqueue() for _ in range(PRODUCERS)))
sockets = {producer.socket: producer, worker.socket: worker}
while time.perf_counter() - start < SECONDS:
    for ready in select.select(list(sockets), [], [], 1)[0]:
        peer = sockets[ready]
        out = bytearray()
        for text in peer.frames():
            found = ID.search(text)
            if found is None:
                continue
            if peer is producer:
                errors += b'"error":{' in text
                receipts += 1
                out += enqueue()
                continue
            sent = SENT.search(text)
            if b'"bench::handle"' not in text or sent is None:
                continue
            latencies.append(time.perf_counter_ns() - int(sent[1]))
            result = b'{"type":"invocationresult","invocation_id":"%s","function_id":"bench::handle","result":null}'
            out += frame(result % found[1])
        if out:
            peer.socket.sendall(out)
elapsed = time.perf_counter() - start
latencies.sort()
handled = len(latencies)
print(
    json.dumps(
        {
            "producers": PRODUCERS,
            "per_s": round(handled / elapsed),
            "receipts_per_s": round(receipts / elapsed),
            "p50_us": round(latencies[handled // 2] / 1e3),
            "p99_us": round(latencies[int(handled * 0.99)] / 1e3),
            "errors": errors,
        }
    )
)
