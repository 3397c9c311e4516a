"""What a worker's calls can raise: one class per wire code that callers treat differently (spec/sdk.md §6, §12.2).

Every class is a `WireError`, so a handler that lets one pass hands its code on to its own caller unchanged.
"""

from typing import ClassVar

import trio

from iii_trio.protocol import errors as wire
from iii_trio.protocol.errors import WireError
from iii_trio.protocol.messages import ErrorBody
from iii_trio.protocol.messages import RegistrationRejected as RejectedFrame

INVALID_INPUT = "INVALID_INPUT"
INVALID_RESULT = "INVALID_RESULT"
SERIALIZATION_ERROR = "serialization_error"
NOT_CONNECTED = "NOT_CONNECTED"
TRIGGER_TYPE_NOT_FOUND = "trigger_type_not_found"


class InvocationError(WireError):
    """A call ended in an error.

    `code` and `message` are what the executor, the engine or this SDK said; `stacktrace` is the executor's, where it
    sent one. `function_id` and `invocation_id` name the call; both are None on errors a handler raises itself.
    A handler raises `InvocationError(message, code)` to answer with a code of its own.
    """

    def __init__(
        self,
        message: str,
        code: str | None = None,
        stacktrace: str | None = None,
        *,
        function_id: str | None = None,
        invocation_id: str | None = None,
    ) -> None:
        self.function_id = function_id
        self.invocation_id = invocation_id
        super().__init__(message, code, stacktrace)


class FunctionNotFound(InvocationError):
    """No worker provides the function in the namespace that was asked."""

    default_code: ClassVar[str] = wire.FUNCTION_NOT_FOUND


class Forbidden(InvocationError):
    """The access rules of this connection do not include the function."""

    default_code: ClassVar[str] = wire.FORBIDDEN


class InvocationTimeout(InvocationError, trio.TooSlowError):
    """The call's time was over before an answer came; whether the function ran to its end is not known."""

    default_code: ClassVar[str] = wire.TIMEOUT


class InvocationStopped(InvocationError):
    """The executor's connection, or ours, was lost while the call ran; whether it had an effect is not known."""

    default_code: ClassVar[str] = wire.INVOCATION_STOPPED


class InvocationCancelled(InvocationError):
    """The executor's handler was cancelled, by its worker's shutdown for example, and says so."""

    default_code: ClassVar[str] = wire.INVOCATION_CANCELLED


class PayloadTooLarge(InvocationError):
    """Payload or result is larger than its receiver takes; nothing was sent, or nothing came back."""

    default_code: ClassVar[str] = wire.PAYLOAD_TOO_LARGE


class InvalidPayload(InvocationError):
    """The payload does not fit the handler's annotations; the handler did not run."""

    default_code: ClassVar[str] = INVALID_INPUT


class InvalidResult(InvocationError):
    """The call succeeded, but its result does not fit the type given as `into`."""

    default_code: ClassVar[str] = INVALID_RESULT


class NotConnected(InvocationError):
    """There is no connection to the engine, and there will be none: closed, or retries are exhausted."""

    default_code: ClassVar[str] = NOT_CONNECTED


class RegistrationRejected(WireError):
    """The engine refuses this worker for good: another live worker holds its name (spec/protocol.md §3.3).

    Not an `InvocationError`: it ends the connection's block, never a single call. `worker_name`, `namespace` and
    `owner_worker_id` say who holds what.
    """

    default_code: ClassVar[str] = wire.WORKER_NAMESPACE_CONFLICT

    def __init__(
        self,
        message: str,
        code: str | None = None,
        *,
        namespace: str = "default",
        owner_worker_id: str = "",
        worker_name: str | None = None,
    ) -> None:
        self.namespace = namespace
        self.owner_worker_id = owner_worker_id
        self.worker_name = worker_name
        super().__init__(message, code)


_BY_CODE: dict[str, type[InvocationError]] = {
    cls.default_code: cls
    for cls in (
        FunctionNotFound,
        Forbidden,
        InvocationTimeout,
        InvocationStopped,
        InvocationCancelled,
        PayloadTooLarge,
        InvalidPayload,
        NotConnected,
    )
}


def invocation_error(body: ErrorBody, function_id: str, invocation_id: str) -> InvocationError:
    """The exception for an error that came back over the wire: the class of its code, else `InvocationError`."""
    cls = _BY_CODE.get(body.code, InvocationError)
    return cls(body.message, body.code, body.stacktrace, function_id=function_id, invocation_id=invocation_id)


def registration_rejected(frame: RejectedFrame) -> RegistrationRejected:
    """The exception for a fatal `registrationrejected`."""
    if frame.code == wire.WORKER_NAMESPACE_CONFLICT:
        text = (
            f"worker name '{frame.worker_name}' in namespace '{frame.namespace}' is held by the live worker "
            f"{frame.owner_worker_id}. Stop that worker, or give this one another name (III_WORKER_NAME)."
        )
    else:
        text = f"the engine refused this worker in namespace '{frame.namespace}' with {frame.code}"
    return RegistrationRejected(
        text,
        frame.code,
        namespace=frame.namespace,
        owner_worker_id=frame.owner_worker_id,
        worker_name=frame.worker_name,
    )
