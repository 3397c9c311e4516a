"""Large responses that their clients have not taken yet: what all of them together may hold in memory.

A response that was returned whole is held until its client has taken it, and a client has `STALL_S` before it is cut
off for taking nothing. Thousands that ask for much and read nothing would fill the memory before that. Above the bound
the response that has waited longest is broken off, until the others fit.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field

from ...protocol.limits import HTTP_UNSENT_ALL
from .asgi import Below

log = logging.getLogger(__name__)


@define(eq=False)
class Unsent:
    """`bytes` of responses that are being written now; `broken_off` for want of room so far."""

    bytes: int = field(default=0, init=False)
    broken_off: int = field(default=0, init=False)
    _waiting: dict[object, tuple[int, Below]] = field(factory=dict, init=False)

    @contextmanager
    def holding(self, size: int, below: Below) -> Iterator[None]:
        """Write a body of `size` bytes inside the block, which is cancelled when it is broken off."""
        key = object()
        self._waiting[key] = size, below
        self.bytes += size
        while self.bytes > HTTP_UNSENT_ALL and len(self._waiting) > 1:
            self._break_off(next(iter(self._waiting)))
        try:
            yield
        finally:
            self._forget(key)

    def _break_off(self, key: object) -> None:
        size, below = self._waiting[key]
        self._forget(key)
        self.broken_off += 1
        log.warning("a response of %d bytes is broken off: too much waits for clients that do not read", size)
        below.abort()

    def _forget(self, key: object) -> None:
        size, _ = self._waiting.pop(key, (0, None))
        self.bytes -= size
