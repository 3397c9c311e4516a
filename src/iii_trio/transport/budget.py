"""What all connections of an engine may buffer together, and who suffers when it is too much: who holds the most.

A connection's own bounds (limits.py) keep one peer in check; many peers that stall at once, each within its bounds,
would still fill the memory. So outboxes and reassembly draw on one budget. Nothing is counted per message: a buffer
asks when it grows past what it was given, in whole chunks, and gives back when it has shrunk by two, so that a
connection whose peer keeps up never comes here at all.

When the budget is used up, the connection that holds the most is ended with 1013, as one that does not read its socket
is: its queue is dropped, and what it held counts as free at once. All others go on as if nothing had been. What buffers
a chunk or less is neither counted nor ended.
"""

import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Final

from attrs import define, field, frozen

from iii_trio.protocol.limits import BUFFERED_ALL, KIB

log = logging.getLogger(__name__)

CHUNK: Final = 64 * KIB
"""The grain of the accounts, in bytes, and what each buffer has for itself."""

REASON: Final = "the engine buffers too much, most of it for this connection"


def in_chunks(size: int) -> int:
    """What is counted for a buffer of `size` bytes."""
    return 0 if size <= CHUNK else -(-size // CHUNK) * CHUNK


@frozen
class BudgetStatistics:
    """The `limit` and the bytes `held` of it by so many `holders`; `ended` are the connections it has cost so far."""

    limit: int
    held: int
    holders: int
    ended: int


@define(eq=False)
class Budget:
    """`limit`: the bytes that all accounts may hold together. It may be set at any time and binds what grows then."""

    limit: int = BUFFERED_ALL
    _held: int = field(default=0, init=False)
    _holders: dict["Account", None] = field(factory=dict, init=False)
    _ended: int = field(default=0, init=False)

    def open(self, name: str, give_up: Callable[[str], None]) -> "Account":
        """An account for one connection; `name` is what the log calls it.

        `give_up(reason)` must end the connection without waiting and without touching any other.
        """
        return Account(self, name, give_up)

    def _change(self, account: "Account", size: int) -> None:
        self._held += size
        account.held += size
        if account.held:
            self._holders[account] = None
        else:
            self._holders.pop(account, None)

    def _make_room(self, asking: "Account", size: int) -> None:
        """End the one that holds the most, or would."""
        largest = max(self._holders, key=attrgetter("held"), default=asking)
        if largest.held <= asking.held + size:
            largest = asking
        self._ended += 1
        log.warning(
            "connections buffer more than the %d bytes of `max_buffered_bytes`: %s, which has most of it (%d), is ended",
            self.limit,
            largest.name,
            largest.held + (size if largest is asking else 0),
        )
        largest.fail()

    def statistics(self) -> BudgetStatistics:
        """A frozen picture of the budget."""
        return BudgetStatistics(self.limit, self._held, len(self._holders), self._ended)


@define(eq=False)
class Account:
    """What one connection holds of a budget, in bytes: `assembling` for messages that are still coming, the rest unsent.

    Made by `Budget.open`.
    """

    budget: Budget
    name: str
    _give_up: Callable[[str], None] | None
    held: int = field(default=0, init=False)
    assembling: int = field(default=0, init=False)

    def grow(self, size: int) -> bool:
        """Hold `size` bytes more. False if this connection has been ended, for this or before."""
        while self._give_up is not None and self.budget._held + size > self.budget.limit:
            self.budget._make_room(self, size)
        if self._give_up is None:
            return False
        self.budget._change(self, size)
        return True

    def shrink(self, size: int) -> None:
        """Give `size` bytes back, which it holds."""
        if self._give_up is not None:
            self.budget._change(self, -size)

    def assemble(self, size: int) -> None:
        """So many bytes have come of messages that are not complete; the connection may be ended for it."""
        wanted = in_chunks(size)
        if wanted < self.assembling:
            self.shrink(self.assembling - wanted)
        elif wanted > self.assembling and not self.grow(wanted - self.assembling):
            return
        self.assembling = wanted

    def close(self) -> None:
        """Give everything back; nothing is counted here any more."""
        self._give_up = None
        self.budget._change(self, -self.held)

    def fail(self) -> None:
        """Close, and end the connection."""
        give_up = self._give_up
        self.close()
        if give_up is not None:
            give_up(REASON)
