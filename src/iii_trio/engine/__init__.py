"""The synchronous core: calls, claims, bindings, deliveries, and the connections that bring them."""

from .access import ExposeFilter, Hooks, Pattern, Session
from .channel_streams import ChannelReader, ChannelWriter
from .channels import Channel
from .deadlines import Clock, Deadlines, Timer
from .delegation import Delegate, Delegation, Refusal
from .engine import Engine, EngineState, EngineStatistics, open_engine
from .firing import Delivered, Firing
from .functions import FunctionEntry
from .handover import calls_wait
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
    "Channel",
    "ChannelReader",
    "ChannelWriter",
    "Clock",
    "Deadlines",
    "Delegate",
    "Delegation",
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
    "Refusal",
    "RemotePeer",
    "Rules",
    "Session",
    "Timer",
    "TypeClaim",
    "bind",
    "calls_wait",
    "open_engine",
    "open_local",
]
