"""Queue load: P enqueues in flight on one socket, one worker on another, raw frames, no SDK in the way.

usage: queue_load.py PORT P SECONDS [QUEUE]        prints one JSON line: {"producers","per_s","receipts_per_s","p50_us","p99_us"}
`per_s` counts handled messages; the latencies are from the moment an enqueue is sent to the moment its message arrives
at the worker, the receipt lies between them. Against any engine that speaks the worker protocol on ws://127.0.0.1:PORT/.
"""

import json
import os
import re
import select
import sys
import time
import uuid

from raw_peer import Peer, frame

PORT, PRODUCERS, SECONDS = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
QUEUE = sys.argv[4] if len(sys.argv) > 4 else "bench"
PAD = "x" * 120
ID = re.compile(rb'"invocation_id":"([0-9a-f-]{36})"')
SENT = re.compile(rb'"sent":([0-9]+)')


def enqueue() -> bytes:
    return frame(
        b'{"type":"invokefunction","invocation_id":"%s","function_id":"bench::handle","data":{"sent":%d,"group":%d,'
        b'"pad":"%s"},"action":{"type":"enqueue","queue":"%s"}}'
        % (str(uuid.uuid4()).encode(), time.perf_counter_ns(), os.getpid(), PAD.encode(), QUEUE.encode())
    )


worker, producer = Peer(PORT, "bench-worker"), Peer(PORT, "bench-producer")
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
if errors:
    sys.exit(f"{errors} of {receipts} enqueues were refused: these are not the figures of a queue that works")
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
        }
    )
)
