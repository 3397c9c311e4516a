"""The synchronous core: calls, claims, bindings, deliveries, and the connections that bring them."""

from .access import ExposeFilter, Hooks, Pattern, Session
from .deadlines import Clock, Deadlines, Timer
from .engine import Engine, EngineState, EngineStatistics, open_engine
from .firing import Delivered, Firing
from .functions import FunctionEntry
from .invocations import NOTHING, Call, Outcome
from .listener import Listener, bind
from .local import LATER, Later, LocalPeer, open_local
from .peer import DEFAULT_NAMESPACE, Peer
from .remote import RemotePeer
from .sessions import EVERYBODY, Rules
from .triggers import Binding, BindingState, Provider, Reason, TypeClaim

__all__ = [
    "DEFAULT_NAMESPACE",
    "EVERYBODY",
    "LATER",
    "NOTHING",
    "Binding",
    "BindingState",
    "Call",
    "Clock",
    "Deadlines",
    "Delivered",
    "Engine",
    "EngineState",
    "EngineStatistics",
    "ExposeFilter",
    "Firing",
    "FunctionEntry",
    "Hooks",
    "Later",
    "Listener",
    "LocalPeer",
    "Outcome",
    "Pattern",
    "Peer",
    "Provider",
    "Reason",
    "RemotePeer",
    "Rules",
    "Session",
    "Timer",
    "TypeClaim",
    "bind",
    "open_engine",
    "open_local",
]
