"""The queue's functions on the wire for operators: redrive, discard, purge, pause, define, forget (spec/queue.md §6).

Those of the reference keep its shapes and codes. Ours beside them: `iii::queue::purge`, `purge_dlq`, `pause`, `resume`,
`forget_subscriber`, and `queue::undefine` as the way back from `queue::define`.
"""

from collections.abc import Callable
from typing import Any, Final

from attrs import define

from ...engine import DEFAULT_NAMESPACE, LATER, Call, Later, LocalPeer
from ...engine.local import InlineHandler, TaskHandler
from ...protocol import Json, errors
from ...protocol.errors import StoreError, WireError
from ...stores import OnDone
from .definitions import DEFINE_FAILED
from .functions import STRING, later, object_of
from .operations import Operations
from .requests import Request

REDRIVE: Final = "iii::queue::redrive"
REDRIVE_ONE: Final = "iii::queue::redrive_message"
DISCARD_ONE: Final = "iii::queue::discard_message"
PURGE: Final = "iii::queue::purge"
PURGE_DLQ: Final = "iii::queue::purge_dlq"
PAUSE: Final = "iii::queue::pause"
RESUME: Final = "iii::queue::resume"
FORGET: Final = "iii::queue::forget_subscriber"
DEFINE: Final = "queue::define"
UNDEFINE: Final = "queue::undefine"


def register(peer: LocalPeer, operations: Operations) -> None:
    """Serve every function by which queues are managed."""
    functions = ManagementFunctions(operations)
    queue = object_of(("queue",), queue=STRING)
    one = object_of(("queue", "message_id"), queue=STRING, message_id=STRING)
    whom = object_of(("topic", "function_id"), topic=STRING, function_id=STRING, namespace=STRING)

    def add(
        function_id: str, handler: InlineHandler | TaskHandler, description: str, request: Any, *, task: bool = False
    ) -> None:
        peer.register(function_id, handler, task=task, description=description, request_format=request)

    add(REDRIVE, functions.redrive, "Return all dead letters of a queue or topic to it", queue)
    add(REDRIVE_ONE, functions.redrive_one, "Return one dead letter to its queue", one)
    add(DISCARD_ONE, functions.discard_one, "Drop one dead letter", one)
    add(PURGE, functions.purge, "Drop all messages that wait in a queue or topic", queue)
    add(PURGE_DLQ, functions.purge_dlq, "Drop all dead letters of a queue or topic", queue)
    add(PAUSE, functions.pause(PAUSE, True), "Stop the deliveries of a queue or topic until it is resumed", queue)
    add(RESUME, functions.pause(RESUME, False), "Deliver the messages of a paused queue or topic again", queue)
    add(FORGET, functions.forget, "Forget a subscriber that will not come back, and its messages", whom)
    definition = object_of(("queue",), queue=STRING, config={"type": "object"})
    add(DEFINE, functions.define, "Define a named queue, or change it; it outlives a restart", definition, task=True)
    add(UNDEFINE, functions.undefine, "Take the definition of a queue back", queue, task=True)


@define(eq=False)
class ManagementFunctions:
    """The handlers; each takes `(call, data)`, and but for those of definitions answers from a callback of the log."""

    operations: Operations

    # -- dead letters -------------------------------------------------------------------------------------------------

    def redrive(self, call: Call, data: Json) -> Later:
        """`iii::queue::redrive`: `{"queue"}` in, `{"queue","redriven"}` out."""
        queue = _queue_name(Request.read(REDRIVE, data))

        def answer(count: int) -> Json:
            return Json.of({"queue": queue, "redriven": count})

        def refused(error: StoreError) -> WireError:
            return WireError(f"Failed to redrive DLQ for queue '{queue}': {error}", "redrive_failed")

        self.operations.redrive(queue, later(call, answer, refused))
        return LATER

    def redrive_one(self, call: Call, data: Json) -> Later:
        """`iii::queue::redrive_message`: `{"queue","message_id"}` in, the same and `redriven` (1 or 0) out."""

        def refused(queue: str, message_id: str, error: StoreError) -> WireError:
            text = f"Failed to redrive DLQ message '{message_id}' for queue '{queue}': {error}"
            return WireError(text, "redrive_message_failed")

        return self._one(call, Request.read(REDRIVE_ONE, data), self.operations.redrive_one, refused)

    def discard_one(self, call: Call, data: Json) -> Later:
        """`iii::queue::discard_message`: as `redrive_message`; 1 means discarded."""

        def refused(_queue: str, _message_id: str, error: StoreError) -> WireError:
            return WireError(f"Failed to discard DLQ message: {error}", "discard_message_failed")

        return self._one(call, Request.read(DISCARD_ONE, data), self.operations.discard_one, refused)

    def _one(
        self,
        call: Call,
        request: Request,
        operation: Callable[[str, str, OnDone[int]], None],
        refused: Callable[[str, str, StoreError], WireError],
    ) -> Later:
        message_id = request.text("message_id")
        queue = _queue_name(request)
        if not message_id:
            raise WireError("Message ID is required", "message_id_not_set")

        def answer(count: int) -> Json:
            return Json.of({"queue": queue, "message_id": message_id, "redriven": count})

        operation(queue, message_id, later(call, answer, lambda error: refused(queue, message_id, error)))
        return LATER

    def purge_dlq(self, call: Call, data: Json) -> Later:
        """`iii::queue::purge_dlq`: `{"queue"}` in, `{"queue","discarded"}` out."""
        queue = _queue_name(Request.read(PURGE_DLQ, data))

        def answer(count: int) -> Json:
            return Json.of({"queue": queue, "discarded": count})

        self.operations.purge_dead(queue, later(call, answer, _failed(f"purge the DLQ of '{queue}'", "purge_failed")))
        return LATER

    # -- live messages ------------------------------------------------------------------------------------------------

    def purge(self, call: Call, data: Json) -> Later:
        """`iii::queue::purge`: `{"queue"}` in, `{"queue","purged"}` out. What is being handled goes on.

        Messages that come while it works may be dropped too.
        """
        queue = _queue_name(Request.read(PURGE, data))

        def answer(count: int) -> Json:
            return Json.of({"queue": queue, "purged": count})

        self.operations.purge(queue, later(call, answer, _failed(f"purge '{queue}'", "purge_failed")))
        return LATER

    def pause(self, function_id: str, paused: bool) -> InlineHandler:
        """The handler of `iii::queue::pause` or `resume`: `{"queue"}` in, `{"queue","paused","changed"}` out."""

        def handler(call: Call, data: Json) -> Later:
            queue = _queue_name(Request.read(function_id, data))

            def answer(changed: bool) -> Json:
                return Json.of({"queue": queue, "paused": paused, "changed": changed})

            verb = "pause" if paused else "resume"
            on_done = later(call, answer, _failed(f"{verb} '{queue}'", f"{verb}_failed"))
            self.operations.pause(queue, paused, on_done)
            return LATER

        return handler

    def forget(self, call: Call, data: Json) -> Later:
        """`iii::queue::forget_subscriber`: `{"topic","function_id","namespace"?}` in, the same and `purged` out."""
        request = Request.read(FORGET, data)
        topic, function_id = _queue_name(request), request.text("function_id")
        namespace = request.optional_text("namespace") or DEFAULT_NAMESPACE

        def answer(count: int) -> Json:
            return Json.of({"topic": topic, "namespace": namespace, "function_id": function_id, "purged": count})

        on_done = later(call, answer, _failed(f"forget '{function_id}' of topic '{topic}'", "forget_failed"))
        self.operations.forget(topic, (namespace, function_id), on_done)
        return LATER

    # -- definitions --------------------------------------------------------------------------------------------------

    async def define(self, _call: Call, data: Json) -> Json:
        """`queue::define`: `{"queue","config"}` in, `{"queue","changed"}` out; the queue works when it is answered."""
        request = Request.read(DEFINE, data)
        queue = _defined_name(request)
        try:
            changed = await self.operations.queues.definitions.define(queue, request.value("config"))
        except StoreError as error:
            raise _failed(f"define '{queue}'", DEFINE_FAILED)(error) from None
        return Json.of({"queue": queue, "changed": changed})

    async def undefine(self, _call: Call, data: Json) -> Json:
        """`queue::undefine`: `{"queue"}` in, `{"queue","changed"}` out; messages of the queue stay stored."""
        queue = _defined_name(Request.read(UNDEFINE, data))
        try:
            changed = await self.operations.queues.definitions.undefine(queue)
        except StoreError as error:
            raise _failed(f"undefine '{queue}'", DEFINE_FAILED)(error) from None
        return Json.of({"queue": queue, "changed": changed})


def _queue_name(request: Request) -> str:
    queue = request.either_text("queue", "topic")
    if not queue:
        raise WireError("Queue name is required", "queue_not_set")
    return queue


def _defined_name(request: Request) -> str:
    queue = request.text("queue")
    if not queue.strip():
        raise WireError("queue name is required", errors.ENQUEUE_ERROR)
    return queue


def _failed(what: str, code: str) -> Callable[[StoreError], WireError]:
    return lambda error: WireError(f"Failed to {what}: {error}", code)
