"""One hierarchy of errors and one catalogue of wire codes (spec/protocol.md §17).

`WireError` is what travels: code, message, optional stack trace. Whoever refuses something raises or passes one of its
subclasses; the texts that clients match on are made by the functions at the end and nowhere else.
"""

from collections.abc import Iterable
from typing import ClassVar

FUNCTION_NOT_FOUND = "function_not_found"
INVOCATION_STOPPED = "invocation_stopped"
INVOCATION_FAILED = "invocation_failed"
INVOCATION_CANCELLED = "invocation_cancelled"
INVALID_MESSAGE = "invalid_message"
INVALID_NAMESPACE = "INVALID_NAMESPACE"
FORBIDDEN = "FORBIDDEN"
AUTH_ERROR = "AUTH_ERROR"
TIMEOUT = "TIMEOUT"
PAYLOAD_TOO_LARGE = "payload_too_large"
WORKER_OVERLOADED = "worker_overloaded"
TOO_MANY_CALLS = "too_many_calls"
ENGINE_DRAINING = "engine_draining"
ENQUEUE_ERROR = "enqueue_error"
DESERIALIZATION_ERROR = "deserialization_error"
TRIGGER_REGISTRATION_FAILED = "trigger_registration_failed"
URL_VALIDATION_FAILED = "url_validation_failed"
SECRET_NOT_FOUND = "secret_not_found"
TOKEN_NOT_FOUND = "token_not_found"
API_KEY_NOT_FOUND = "api_key_not_found"
HTTP_ERROR = "http_error"
HTTP_REQUEST_FAILED = "http_request_failed"
HTTP_RESPONSE_FAILED = "http_response_failed"
INVALID_RESPONSE = "invalid_response"
HTTP_FUNCTIONS_UNAVAILABLE = "http_functions_unavailable"
WORKER_NAMESPACE_CONFLICT = "WORKER_NAMESPACE_CONFLICT"
FUNCTION_NAMESPACE_CONFLICT = "FUNCTION_NAMESPACE_CONFLICT"


class IIIError(Exception):
    """Root of every error this package raises on purpose."""


class ProtocolError(IIIError):
    """A peer sent something that is no message; `str()` says what was wrong with it."""


class ConfigError(IIIError):
    """A setting or file cannot be used; `str()` names file, line and key and says what to do."""


class StoreError(IIIError):
    """A store could not be opened, or a write did not reach the disk; nothing was changed by it."""


class WireError(IIIError):
    """An error with a wire code: what an `invocationresult` or a `triggerregistrationresult` carries.

    `code` and `message` are always set; `stacktrace` only where the far side gave one. `str()` is `code: message`.
    """

    default_code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, code: str | None = None, stacktrace: str | None = None) -> None:
        self.code = code or self.default_code
        self.message = message
        self.stacktrace = stacktrace
        super().__init__(f"{self.code}: {message}")


class InvalidInput(WireError):
    """A built-in function was called with a payload that does not fit (spec/protocol.md §7.4)."""

    default_code = DESERIALIZATION_ERROR


class TriggerRejected(WireError):
    """A provider refuses a binding (spec/protocol.md §9.3); nothing was bound."""

    default_code = TRIGGER_REGISTRATION_FAILED


def shorten(text: str, chars: int = 1_000) -> str:
    """`text` for a log line or an error message: what a peer made up, it also made the length of."""
    return text if len(text) <= chars else f"{text[:chars]}… ({len(text)} characters)"


def bad_input(function_id: str, detail: str) -> InvalidInput:
    """The error of a built-in whose input does not fit; `detail` says which key and why."""
    return InvalidInput(f"Failed to deserialize input for {function_id}: {detail}")


def not_found_text(
    function_id: str, namespace: str, elsewhere: Iterable[str] = (), why: str = "", internal: bool = False
) -> str:
    """Text of `function_not_found` (spec/protocol.md §7.1); engine-internal calls use the form without a period.

    `why` is a sentence without its period that says what became of it: that its registration was refused, for instance.
    """
    text = f"Function {function_id} not found in namespace {namespace}"
    if internal:
        return f"{text}. {why}" if why else text
    names = ", ".join(sorted(elsewhere))
    hint = f"It is registered in namespace(s): {names}" if names else ""
    return " ".join(f"{sentence}." for sentence in (text, hint, why) if sentence)


def blank_namespace_text(field: str = "namespace") -> str:
    """Text of `INVALID_NAMESPACE` for a field of a message (spec/protocol.md §7.1, §9.3)."""
    return f"`{field}` is empty: it was named and left blank. Give it a name, or omit it to use `default`."


def too_large_text(size: int, limit: int) -> str:
    """Text of `payload_too_large`: what the message measures and what its receiver takes (spec/sdk.md §7)."""
    return (
        f"The message is {size} bytes; its receiver takes {limit} bytes. "
        "Send less at once, or hand over large data through a channel."
    )


def no_queue_provider_text() -> str:
    """Text of `enqueue_error` when nothing provides `engine::queue::enqueue` (spec/protocol.md §7.2)."""
    underlying = not_found_text("engine::queue::enqueue", "default", internal=True)
    return (
        "No queue provider is installed. `TriggerAction::Enqueue` routes through the `engine::queue::enqueue` "
        "provider, which the standalone queue worker registers. Add it with `iii worker add queue`. "
        f"(underlying: {underlying})"
    )


def enqueue_error(error: WireError) -> WireError:
    """What the caller of an enqueue is told of the provider's error (spec/protocol.md §7.2)."""
    if error.code == FUNCTION_NOT_FOUND:
        return WireError(no_queue_provider_text(), ENQUEUE_ERROR)
    if error.code == ENQUEUE_ERROR:
        return error
    return WireError(f"{error.code}: {error.message}", ENQUEUE_ERROR)
