"""Every message of the wire protocol as a frozen attrs class without behaviour (spec/protocol.md §3, design.md §6).

Field names are the wire's; a field of None, or a `Json` that is `ABSENT`, is left out when the message is written, and
absent and null mean the same when it is read. The two hot frames have a second, flat form in `codec.Envelope`; the
classes here are what tests, the SDK and everything that is not hot work with.
"""

from typing import Any, ClassVar

from attrs import field, frozen

from .json import ABSENT, NULL, Json


@frozen(kw_only=True)
class ErrorBody:
    """`error` of a result or refusal: `code` and `message` always, `stacktrace` only from a handler."""

    code: str
    message: str
    stacktrace: str | None = None


@frozen(kw_only=True)
class Action:
    """`action` of an invocation: type `void`, or `enqueue` with a queue name; any other type is an error.

    An enqueue may say more about its message (ours): `delay_ms`, `priority` (0 to 255) and `deduplication_key`.
    """

    type: str
    queue: str | None = None
    delay_ms: int | None = None
    priority: int | None = None
    deduplication_key: str | None = None


@frozen(kw_only=True)
class Message:
    """Base of all messages; `TYPE` is the wire's `type`."""

    TYPE: ClassVar[str] = ""


# -- worker to engine -------------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class RegisterFunction(Message):
    """Claim a function id; formats and metadata are informational, never validated."""

    TYPE: ClassVar[str] = "registerfunction"
    id: str
    description: str | None = None
    request_format: Json = ABSENT
    response_format: Json = ABSENT
    metadata: Json = ABSENT
    invocation: Json = ABSENT


@frozen(kw_only=True)
class UnregisterFunction(Message):
    """Give a function id back."""

    TYPE: ClassVar[str] = "unregisterfunction"
    id: str


@frozen(kw_only=True)
class RegisterTriggerType(Message):
    """Become the provider of a trigger type; `namespace` defaults to the connection's."""

    TYPE: ClassVar[str] = "registertriggertype"
    id: str
    description: str = ""
    trigger_request_format: Json = ABSENT
    call_request_format: Json = ABSENT
    namespace: str | None = None


@frozen(kw_only=True)
class UnregisterTriggerType(Message):
    """Stop providing a trigger type; its bindings are parked or move to another provider."""

    TYPE: ClassVar[str] = "unregistertriggertype"
    id: str
    namespace: str | None = None


@frozen(kw_only=True)
class RegisterTrigger(Message):
    """Bind a function to a trigger; also what a worker provider receives, then always with `config`."""

    TYPE: ClassVar[str] = "registertrigger"
    id: str
    trigger_type: str
    function_id: str
    config: Json = NULL
    metadata: Json = ABSENT
    namespace: str | None = None
    trigger_namespace: str | None = None


@frozen(kw_only=True)
class UnregisterTrigger(Message):
    """Drop a binding by id. To providers ours adds `function_id`, `config` and `metadata`."""

    TYPE: ClassVar[str] = "unregistertrigger"
    id: str
    trigger_type: str | None = None
    function_id: str | None = None
    config: Json = ABSENT
    metadata: Json = ABSENT


@frozen(kw_only=True)
class TriggerRegistrationResult(Message):
    """A provider's answer to a binding; the engine forwards only failures to the binding's owner."""

    TYPE: ClassVar[str] = "triggerregistrationresult"
    id: str
    trigger_type: str
    function_id: str
    error: ErrorBody | None = None


@frozen(kw_only=True)
class RegisterService(Message):
    """Accepted from old SDKs; nothing in the public API reads it."""

    TYPE: ClassVar[str] = "registerservice"
    id: str
    name: str | None = None
    description: str | None = None
    parent_service_id: str | None = None


@frozen(kw_only=True)
class InvokeFunction(Message):
    """A call. Without `invocation_id` nobody waits for an answer; `deadline_ms` is what remains at the receiver."""

    TYPE: ClassVar[str] = "invokefunction"
    invocation_id: str | None = None
    function_id: str
    data: Json = NULL
    traceparent: str | None = None
    baggage: str | None = None
    action: Action | None = None
    metadata: Json = ABSENT
    namespace: str | None = None
    deadline_ms: int | None = None


@frozen(kw_only=True)
class InvocationResult(Message):
    """An answer: `error` wins over `result`; `result` of `ABSENT` and of null are different answers."""

    TYPE: ClassVar[str] = "invocationresult"
    invocation_id: str
    function_id: str
    result: Json = ABSENT
    error: ErrorBody | None = None
    traceparent: str | None = None
    baggage: str | None = None


@frozen(kw_only=True)
class CancelInvocation(Message):
    """Caller to engine to executor, where both declared `cancel.v1` (design.md §6)."""

    TYPE: ClassVar[str] = "cancelinvocation"
    invocation_id: str
    reason: str | None = None


@frozen(kw_only=True)
class Reattach(Message):
    """First frame of a reconnect: the connection of `previous_worker_id` is retired if the token is its own."""

    TYPE: ClassVar[str] = "reattach"
    previous_worker_id: str
    reattach_token: str | None = None


@frozen(kw_only=True)
class Ping(Message):
    """Application-level ping; answered with `pong`."""

    TYPE: ClassVar[str] = "ping"


@frozen(kw_only=True)
class Pong(Message):
    """Answer to `ping`."""

    TYPE: ClassVar[str] = "pong"


# -- engine to worker only --------------------------------------------------------------------------------------------


@frozen(kw_only=True)
class WorkerRegistered(Message):
    """Always the engine's first frame; `features` lists what this engine understands beyond the base protocol."""

    TYPE: ClassVar[str] = "workerregistered"
    worker_id: str
    reattach_token: str | None = None
    features: tuple[str, ...] | None = None


@frozen(kw_only=True)
class RegistrationRejected(Message):
    """A name or function claim that lost; fatal for SDKs unless it is about a function (spec/protocol.md §3.3)."""

    TYPE: ClassVar[str] = "registrationrejected"
    code: str
    namespace: str
    owner_worker_id: str
    worker_name: str | None = None
    function_id: str | None = None


@frozen(kw_only=True)
class Error(Message):
    """Only ever an authentication failure, right before the close."""

    TYPE: ClassVar[str] = "error"
    error: ErrorBody


@frozen(kw_only=True)
class RegisterWorker:
    """`data` of `engine::workers::register`: what a worker says of itself (spec/protocol.md §4.1)."""

    runtime: str = "unknown"
    version: str | None = None
    name: str | None = None
    description: str | None = None
    os: str | None = None
    pid: int | None = None
    isolation: str | None = None
    namespace: str | None = None
    telemetry: dict[str, Any] | None = None
    features: tuple[str, ...] = field(default=())


ALL: tuple[type[Message], ...] = (
    RegisterFunction,
    UnregisterFunction,
    RegisterTriggerType,
    UnregisterTriggerType,
    RegisterTrigger,
    UnregisterTrigger,
    TriggerRegistrationResult,
    RegisterService,
    InvokeFunction,
    InvocationResult,
    CancelInvocation,
    Reattach,
    Ping,
    Pong,
    WorkerRegistered,
    RegistrationRejected,
    Error,
)
