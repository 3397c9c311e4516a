"""TCP keepalive: the kernels find out that a host has vanished; no program has to answer for it."""

import socket
from typing import Final

import trio

QUESTIONS: Final = 3
"""Questions that go unanswered before a connection is given up."""


def keep_alive(stream: trio.abc.Stream, idle_s: float) -> None:
    """Ask after `idle_s` seconds of silence, and give the connection up after as many more without an answer.

    For TCP, below TLS too; other streams are left alone.
    """
    if isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if not isinstance(stream, trio.SocketStream) or stream.socket.family not in (socket.AF_INET, socket.AF_INET6):
        return
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    seconds = max(QUESTIONS, round(idle_s))
    options = (("TCP_KEEPIDLE", seconds), ("TCP_KEEPINTVL", seconds // QUESTIONS), ("TCP_KEEPCNT", QUESTIONS))
    for name, value in options:
        if hasattr(socket, name):  # some systems name them otherwise, and their defaults will do
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
