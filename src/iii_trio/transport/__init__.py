"""Message connections over any Trio stream: upgrade, frames, bounded outbox, an end with a code.

Engine and SDK alike use `accept` or `connect` and then a `Connection`; nothing above this room sees a frame.
"""

from iii_trio.transport.budget import Budget, BudgetStatistics
from iii_trio.transport.connection import Closed, Connection, ConnectionStatistics, after_batch, one_batch
from iii_trio.transport.frames import CloseCode, Framing, Oversize
from iii_trio.transport.handshake import HandshakeError, Refusal, Request, accept, connect
from iii_trio.transport.origins import OriginGate
from iii_trio.transport.outbox import Outbox, OutboxStatistics
from iii_trio.transport.waiting_room import WaitingRoom

__all__ = [
    "Budget",
    "BudgetStatistics",
    "CloseCode",
    "Closed",
    "Connection",
    "ConnectionStatistics",
    "Framing",
    "HandshakeError",
    "OriginGate",
    "Outbox",
    "OutboxStatistics",
    "Oversize",
    "Refusal",
    "Request",
    "WaitingRoom",
    "accept",
    "after_batch",
    "connect",
    "one_batch",
]
