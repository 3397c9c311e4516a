"""The worker SDK: declare functions, connect to an engine, call and be called (spec/sdk.md §12)."""

from .builtins import Append, Change, Decrement, Group, Increment, Merge, Operation, Remove, Scope, Set, State, Stream
from .channels import ChannelReceiver, ChannelSender
from .client import Client, FromThread
from .compat import III, InitOptions, TriggerAction, register_worker
from .connect import open_client
from .dial import DEFAULT_URL
from .errors import (
    Forbidden,
    FunctionNotFound,
    InvalidPayload,
    InvalidResult,
    InvocationCancelled,
    InvocationError,
    InvocationStopped,
    InvocationTimeout,
    NotConnected,
    PayloadTooLarge,
    RegistrationRejected,
)
from .functions import Function
from .invocation import Invocation, current_invocation
from .models import HttpRequest, HttpResponse, RequestInfo
from .providers import Binding, TriggerProvider, TriggerType
from .registry import Trigger
from .schema import schema_of
from .structuring import make_converter
from .supervisor import ConnectionState, Reconnect
from .telemetry import Logger
from .worker import Worker

__all__ = [
    "DEFAULT_URL",
    "III",
    "Append",
    "Binding",
    "Change",
    "ChannelReceiver",
    "ChannelSender",
    "Client",
    "ConnectionState",
    "Decrement",
    "Forbidden",
    "FromThread",
    "Function",
    "FunctionNotFound",
    "Group",
    "HttpRequest",
    "HttpResponse",
    "Increment",
    "InitOptions",
    "InvalidPayload",
    "InvalidResult",
    "Invocation",
    "InvocationCancelled",
    "InvocationError",
    "InvocationStopped",
    "InvocationTimeout",
    "Logger",
    "Merge",
    "NotConnected",
    "Operation",
    "PayloadTooLarge",
    "Reconnect",
    "RegistrationRejected",
    "Remove",
    "RequestInfo",
    "Scope",
    "Set",
    "State",
    "Stream",
    "Trigger",
    "TriggerAction",
    "TriggerProvider",
    "TriggerType",
    "Worker",
    "current_invocation",
    "make_converter",
    "open_client",
    "register_worker",
    "schema_of",
]
