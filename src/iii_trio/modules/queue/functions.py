"""The queue's functions on the wire for those who send and for those who look: enqueue, publish, lists (§2.5, §6).

Nothing is answered before the log has said that it stands on disk: whatever writes answers from the log's callback.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from attrs import define

from ...engine import DEFAULT_NAMESPACE, LATER, NOTHING, Call, Later, LocalPeer, Outcome
from ...engine.local import InlineHandler
from ...protocol import NULL, Json, codec, errors, limits
from ...protocol.errors import StoreError, WireError
from ...stores import DeadLetter, Failed, Job, OnDone, Result
from .dispatch import ActiveQueue, QueueStatistics
from .lanes import HIGHEST_PRIORITY
from .messages import LONGEST_DELAY_MS, Message, Terms
from .names import Kind
from .queues import Queues
from .requests import Request

T = TypeVar("T")

ENQUEUE: Final = "engine::queue::enqueue"
PUBLISH: Final = "iii::durable::publish"
LIST_TOPICS: Final = "engine::queue::list_topics"
TOPIC_STATS: Final = "engine::queue::topic_stats"
DLQ_TOPICS: Final = "engine::queue::dlq_topics"
DLQ_MESSAGES: Final = "engine::queue::dlq_messages"
STATS: Final = "engine::queue::stats"

DLQ_LIMIT: Final = 50
DLQ_LARGEST: Final = limits.QUEUE_DLQ_PAGE
"""Dead letters in one answer: unless the caller says otherwise, and whatever it says."""

DLQ_BYTES: Final = limits.MAX_MESSAGE - 1024 * 1024
"""The same in bytes, with room for what is around them."""

LARGEST_OFFSET: Final = 2**62
"""More than there can be; a store takes no number beyond 64 bits."""

NAMED_BROKER: Final = "function_queue"
TOPIC_BROKER: Final = "builtin"


def object_of(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


STRING: Final = {"type": "string"}
COUNT: Final = {"type": "integer", "minimum": 0}


def register(peer: LocalPeer, queues: Queues) -> None:
    """Serve every function of the queue, the aliases of earlier generations included."""
    functions = QueueFunctions(queues)
    topic = object_of(("topic",), topic=STRING)
    options = {"delay_ms": COUNT, "priority": COUNT, "deduplication_key": STRING}
    published = object_of(("topic", "data"), topic=STRING, data={}, **options)
    internal = {"internal": True}

    def add(
        function_id: str, handler: InlineHandler, description: str, request: Any = None, metadata: Any = None
    ) -> None:
        peer.register(function_id, handler, description=description, request_format=request, metadata=metadata)

    add(ENQUEUE, functions.enqueue, "Store a message of a named queue")
    add(PUBLISH, functions.publish(PUBLISH), "Publish a message to every subscriber of a topic, durably", published)
    add("enqueue", functions.publish("enqueue"), "Earlier name of iii::durable::publish", published, internal)
    add(
        "emit", functions.publish("emit", data_optional=True), "Earliest name of iii::durable::publish", topic, internal
    )
    add(LIST_TOPICS, functions.list_topics, "List named queues and topics that have subscribers")
    add(TOPIC_STATS, functions.topic_stats, "Depth, consumers and dead letters of a queue or topic", topic)
    add(DLQ_TOPICS, functions.dlq_topics, "Count the dead letters of every queue and topic")
    browse = object_of(("topic",), topic=STRING, offset=COUNT, limit=COUNT)
    add(
        STATS,
        functions.stats,
        "Numbers and settings of every queue and subscriber, or of one name",
        object_of((), queue=STRING),
    )
    add(DLQ_MESSAGES, functions.dlq_messages, "Browse the dead letters of a queue or topic, newest first", browse)


def later(call: Call, answer: Callable[[T], Json | None], refused: Callable[[StoreError], WireError]) -> OnDone[T]:
    """A callback for the log that answers `call`; an `answer` of None is an answer without a value."""

    def on_done(result: "Result[T]") -> None:  # quoted: it would be built anew for each call
        if isinstance(result, Failed):
            call.fail(refused(result.error))
            return
        value = answer(result.value)
        call.finish(NOTHING if value is None else Outcome(value))

    return on_done


@define(eq=False)
class QueueFunctions:
    """The handlers; each takes `(call, data)` and answers now or from a callback of the log."""

    queues: Queues

    # -- messages in --------------------------------------------------------------------------------------------------

    def enqueue(self, call: Call, data: Json) -> Later:
        """`engine::queue::enqueue`: §2.5 in, `{"messageReceiptId"}` out once the message is on disk.

        `delay_ms`, `priority` (0 to 255) and `deduplication_key` may come too; a repetition is answered with a receipt
        and `"deduplicated": true`, and not stored. `metadata` goes to the handler, and `condition_function_id` is asked
        before each attempt, as a trigger's would be.
        """
        request = Request.read(ENQUEUE, data)
        queue = request.text("queue")
        function_id = request.text("function_id")
        receipt = request.text("messageReceiptId")
        for name, value in (("function_id", function_id), ("messageReceiptId", receipt)):
            if not value:
                raise WireError(f"{name} is required", errors.ENQUEUE_ERROR)
        target = (request.optional_text("namespace") or DEFAULT_NAMESPACE, function_id)
        message = _message(
            request,
            request.payload("data"),
            request.optional_text("traceparent", None),
            request.optional_text("baggage", None),
            _terms(request),
        )

        def answer(stored: "list[Job]") -> Json:
            repetition = {} if stored else {"deduplicated": True}
            return Json.of({"messageReceiptId": receipt, **repetition})

        def refused(error: StoreError) -> WireError:
            return WireError(f"enqueue to '{queue}' failed: {error}", errors.ENQUEUE_ERROR)

        self.queues.enqueue(queue, target, message, receipt, later(call, answer, refused))
        return LATER

    def publish(self, function_id: str, *, data_optional: bool = False) -> InlineHandler:
        """The handler of `iii::durable::publish` under one of its names: no value out, once all copies are on disk."""

        def handler(call: Call, data: Json) -> Later:
            request = Request.read(function_id, data)
            topic = request.either_text("topic", "queue")
            payload = request.payload_or_null("data") if data_optional else request.payload("data")
            if not topic:
                raise WireError("Topic is not set", "topic_not_set")
            message = _message(request, payload, call.traceparent, call.baggage)

            def refused(error: StoreError) -> WireError:
                return WireError(f"Failed to publish to topic '{topic}': {error}", "publish_failed")

            self.queues.publish(topic, message, later(call, lambda _: None, refused))
            return LATER

        return handler

    # -- inspection ---------------------------------------------------------------------------------------------------

    def list_topics(self, _call: Call, _data: Json) -> Outcome:
        """`engine::queue::list_topics`: `[{"name","broker_type","subscriber_count"}]`, sorted by name."""
        rows = [
            (queue.key.name, NAMED_BROKER, queue.machine.policy.concurrency)
            for queue in self.queues.named()
            if queue.shares
        ]
        for topic, queues in self.queues.topics().items():
            triggers = sum(len(queue.shares) for queue in queues)
            if triggers:
                rows.append((topic, TOPIC_BROKER, triggers))
        return Outcome(Json.of([{"name": n, "broker_type": b, "subscriber_count": c} for n, b, c in sorted(rows)]))

    def topic_stats(self, _call: Call, data: Json) -> Outcome:
        """`engine::queue::topic_stats`: `{"topic"}` in, `{"depth","consumer_count","dlq_depth","config"}` out."""
        name = self._topic_name(Request.read(TOPIC_STATS, data))
        queues = self.queues.resolve(name)
        is_named = any(queue.key.kind is Kind.NAMED for queue in queues)
        depth = sum(queue.machine.waiting + queue.machine.in_flight for queue in queues)
        return Outcome(
            Json.of(
                {
                    "depth": depth if is_named else depth + self.queues.unclaimed(name),
                    "consumer_count": sum(
                        queue.machine.policy.concurrency if is_named else len(queue.shares) for queue in queues
                    ),
                    "dlq_depth": sum(queue.machine.dead for queue in queues),
                    "config": None,
                }
            )
        )

    def stats(self, _call: Call, data: Json) -> Outcome:
        """`engine::queue::stats`: one object for every named queue and every subscriber of a topic, sorted by name.

        With `{"queue"}` (or `{"topic"}`) those of that name only. Numbers count messages; `acknowledged` and `failures`
        since the engine started. A subscriber with `subscribers` 0 is away, and gets its copies if `remembered`.
        """
        request = Request.read(STATS, Json(b"{}") if data.or_null() == NULL else data)
        given = any(name in request.fields for name in ("queue", "topic"))
        name = request.either_text("queue", "topic") if given else None
        queues = self.queues.all() if name is None else self.queues.resolve(name)
        rows = sorted((queue.statistics() for queue in queues), key=lambda row: row.key.text)
        return Outcome(Json.of([_row(row) for row in rows]))

    def dlq_topics(self, _call: Call, _data: Json) -> Outcome:
        """`engine::queue::dlq_topics`: `[{"topic","broker_type","message_count"}]`, zeros included, sorted by name."""

        def dead(queues: tuple[ActiveQueue, ...]) -> int:
            return sum(queue.machine.dead for queue in queues)

        rows = [(queue.key.name, NAMED_BROKER, queue.machine.dead) for queue in self.queues.named()]
        rows += [(topic, TOPIC_BROKER, dead(queues)) for topic, queues in self.queues.topics().items()]
        return Outcome(Json.of([{"topic": n, "broker_type": b, "message_count": c} for n, b, c in sorted(rows)]))

    def dlq_messages(self, call: Call, data: Json) -> Later:
        """`engine::queue::dlq_messages`: `{"topic","offset":0,"limit":50}` in, an array out, newest first.

        `failed_at` is in seconds; `retries` are the attempts made; `size_bytes` is the payload's size. There are fewer
        than `limit`, at least one, when more would not fit into a message.
        """
        request = Request.read(DLQ_MESSAGES, data)
        offset, limit = request.count("offset", 0), request.count("limit", DLQ_LIMIT)
        queues = self.queues.resolve(self._topic_name(request))

        def answer(letters: list[DeadLetter]) -> Json:
            shown, size = list[bytes](), 0
            for text in map(_dead_letter, letters):
                size += len(text)
                if shown and size > DLQ_BYTES:
                    break
                shown.append(text)
            return Json(b"[" + b",".join(shown) + b"]")

        def refused(error: StoreError) -> WireError:
            return WireError(f"Failed to browse DLQ messages: {error}", "dlq_messages_failed")

        names = [queue.key.text for queue in queues]
        self.queues.log.dead_letters(
            names, min(offset, LARGEST_OFFSET), min(limit, DLQ_LARGEST), later(call, answer, refused)
        )
        return LATER

    def _topic_name(self, request: Request) -> str:
        topic = request.either_text("topic", "queue")
        if not topic:
            raise WireError("topic is required", "topic_required")
        return topic


def _terms(request: Request) -> Terms | None:
    metadata, condition = request.payload_or_null("metadata"), request.optional_text("condition_function_id") or None
    return None if condition is None and metadata == NULL else Terms(metadata, condition)


def _message(
    request: Request, payload: Json, traceparent: str | None, baggage: str | None, terms: Terms | None = None
) -> Message:
    return Message(
        payload,
        _context(traceparent),
        _context(baggage),
        request.optional_count("delay_ms", LONGEST_DELAY_MS),
        request.optional_count("priority", HIGHEST_PRIORITY),
        request.optional_text("deduplication_key") or None,
        terms,
    )


def _context(text: str | None) -> str | None:
    """A string of the trace context as it is kept: one that is too long is no reason to refuse the message."""
    return text if text and len(text) <= limits.QUEUE_BAGGAGE_CHARS else None


def _row(row: QueueStatistics) -> dict[str, Any]:
    named = row.key.kind is Kind.NAMED
    whose = {} if named else {"namespace": row.key.namespace, "function_id": row.key.function_id}
    counts, policy = row.counts, row.policy
    return {
        "kind": "queue" if named else "topic",
        "name": row.key.name,
        **whose,
        "type": "fifo" if policy.fifo else "standard",
        "concurrency": policy.concurrency,
        "paused": row.paused,
        "subscribers": row.shares,
        "remembered": named or row.remembered,
        "waiting": counts.waiting,
        "held": counts.held,
        "delayed": counts.delayed,
        "in_flight": counts.in_flight,
        "dead": counts.dead,
        "lanes": counts.lanes,
        "acknowledged": counts.acknowledged,
        "failures": counts.failures,
    }


def _dead_letter(letter: DeadLetter) -> bytes:
    job = letter.job
    head = codec.encode_value({"id": job.message_id or job.id})[:-1]
    tail = codec.encode_value(
        {
            "error": job.error,
            "failed_at": letter.failed_at_ms // 1000,
            "retries": job.attempts,
            "size_bytes": len(job.payload),
        }
    )
    return head + b',"payload":' + job.payload + b"," + tail[1:]
