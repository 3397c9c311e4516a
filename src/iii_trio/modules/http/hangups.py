"""Clients that hang up while nobody reads what they sent (spec/http.md §15).

A client's leaving is read from its socket like everything else, and so it waits behind what is not read: a body that is
held back because its handler does not read on, or the next requests of a client that sends them in a row. Linux tells
of it all the same: an epoll of its own, which asks for nothing but the end of the other side, becomes readable when
that has come, whatever lies unread before it. Elsewhere, and where the client's own system still holds a part of what
it sent because it finds no room here, the news comes when that is read.
"""

import select
import sys
from contextlib import suppress

import trio
from attrs import define, field


@define(eq=False)
class Hangup:
    """The end of one socket's other side. It holds a file descriptor from the first `wait` until `close`."""

    _socket: trio.socket.SocketType
    _poll: "select.epoll | None" = field(default=None, init=False)

    async def wait(self) -> None:
        """Return when the other side has closed its end, be it half of it, or reset the connection; or at `close`."""
        if sys.platform != "linux":
            await trio.sleep_forever()
        if self._poll is None:
            if self._socket.fileno() < 0:
                return
            self._poll = select.epoll()
            self._poll.register(self._socket.fileno(), select.EPOLLRDHUP)
        with suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(self._poll.fileno())

    def close(self) -> None:
        """Give the file descriptor back; the socket is closed."""
        if self._poll is not None:
            trio.lowlevel.notify_closing(self._poll.fileno())
            self._poll.close()
            self._poll = None
