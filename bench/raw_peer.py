"""A worker of the load programs: one blocking socket, raw frames, no SDK in the way."""

import json
import os
import socket


def frame(payload: bytes) -> bytes:
    """One masked text frame."""
    size = len(payload)
    head = bytes([0x81, 0x80 | size]) if size < 126 else bytes([0x81, 0xFE]) + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


class Peer:
    """One socket with its unread bytes."""

    def __init__(self, port: int, name: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
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
