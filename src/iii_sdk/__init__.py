"""Alias package of older documents: `from iii_sdk import III`."""

from iii_trio.sdk import (
    III,
    HttpRequest,
    HttpResponse,
    InitOptions,
    InvocationError,
    Logger,
    RegistrationRejected,
    TriggerAction,
    register_worker,
)

__all__ = [
    "III",
    "HttpRequest",
    "HttpResponse",
    "InitOptions",
    "InvocationError",
    "Logger",
    "RegistrationRejected",
    "TriggerAction",
    "register_worker",
]
