"""One attempt to deliver one message: condition, handler, verdict, and the verdict on disk before it counts.

Theory of operation. An `Attempt` is a chain of synchronous callbacks, so that no gap lies between a handler's answer and
the submission of its acknowledgement in which a cancellation could lose it:

    begin ─> condition (if any) ─> handler ─> machine.finished ─> log ─> machine.settled ─> over
                 │ false: succeeded              │ nothing to write ────────────────────────^
                 └ error: a failed attempt       └ the write failed: the queue has a consumer call `write_again`

No task stands behind it. When the module is cancelled, its peer gives the call up; the message stays in the log, to be
delivered again.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

from ...engine import Outcome, RemotePeer
from ...protocol import ABSENT, NULL, Json, codec, errors, limits
from ...protocol.errors import StoreError
from ...protocol.limits import CONDITION_S
from ...stores.interfaces import Job
from ...stores.results import Done
from ...stores.results import Failed as NotWritten
from .lanes import Item
from .messages import Terms
from .names import Kind
from .verdicts import (
    Acknowledge,
    Bury,
    Busy,
    Ending,
    Failed,
    Interrupted,
    Missing,
    Persist,
    Policy,
    Refused,
    Retry,
    Succeeded,
)

if TYPE_CHECKING:
    from .dispatch import ActiveQueue

log = logging.getLogger(__name__)

ERROR_CHARS: Final = limits.QUEUE_ERROR_CHARS
"""As much of a handler's error is kept with the message."""

MARKER: Final = "iii.queue"
_HIDDEN_TAGS: Final = frozenset({"iii.tag.kind", "iii.tag.display_name", "iii.tag.hidden"})
_REFUSALS: Final = frozenset(
    {errors.WORKER_OVERLOADED, errors.ENGINE_DRAINING, errors.TOO_MANY_CALLS, errors.INVOCATION_STOPPED}
)
_INTERRUPTIONS: Final = frozenset({errors.ENGINE_DRAINING, errors.INVOCATION_STOPPED, errors.INVOCATION_CANCELLED})


@define
class Share:
    """Slots of a queue and how they are used: a named queue has one share, a destination one for every live trigger.

    `policy` has the slots and how attempts are counted and spaced; `timeout_s` is the deadline of one delivery, and
    `delay_ms` what a new message waits before its first. `condition` and `metadata` are the trigger's.
    """

    policy: Policy
    timeout_s: float
    delay_ms: int = 0
    condition: str | None = None
    metadata: Json = ABSENT
    running: int = field(default=0, init=False, eq=False)


@frozen
class Marker:
    """What a handler is told from the second delivery of a message on (spec/queue.md §2.7)."""

    queue: str
    message_id: str
    attempt: int

    def merged(self, metadata: Json) -> Json:
        """The trigger's metadata with the marker in it; metadata that is no object stays as it is."""
        if self.attempt < 2:
            return metadata
        # its values go on as they are: one that nobody can decode (1e999) is a matter of the handler's
        fields = {} if metadata in (ABSENT, NULL) else codec.members(metadata.raw)
        if fields is None:
            return metadata
        marker = {"queue": self.queue, "message_id": self.message_id, "attempt": self.attempt}
        return Json(codec.encode_object({name: Json(raw) for name, raw in fields.items()} | {MARKER: marker}))


def without_tags(baggage: str | None) -> str | None:
    """Baggage without the entries that describe the enqueueing span; None when nothing is left (spec/queue.md §14)."""
    if not baggage or "iii.tag." not in baggage:
        return baggage
    parts = (part for part in baggage.split(",") if part.partition("=")[0].strip() not in _HIDDEN_TAGS)
    return ",".join(part for part in parts if part.strip()) or None


@define(eq=False)
class Attempt:
    """See the module. Made for an item in flight; `begin` once."""

    queue: "ActiveQueue"
    item: Item
    job: Job
    share: Share
    unwritten: StoreError | None = field(default=None, init=False)
    _terms: Terms = field(init=False)
    _verdict: Persist | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._terms = Terms.stored(self.job.metadata) or Terms(self.share.metadata, self.share.condition)

    def begin(self) -> None:
        """Ask the condition, or else the handler; returns at once, the attempt may already be over."""
        self.share.running += 1
        if self._terms.condition is None:
            self._handle()
            return
        self._start(self._terms.condition, self._decided, timeout_s=CONDITION_S)

    def write_again(self) -> None:
        """The verdict did not reach the disk: once more."""
        self.unwritten = None
        self._write()

    # -- steps --------------------------------------------------------------------------------------------------------

    def _start(
        self, function_id: str, on_outcome: Callable[[Outcome], None], *, timeout_s: float, metadata: Json = ABSENT
    ) -> None:
        if self.queue.core.draining:
            self._ended(Refused())  # it was on its way to a consumer when root work stopped
            return
        job = self.job
        baggage = without_tags(job.baggage) if self.queue.key.kind is Kind.NAMED else job.baggage
        started = False

        def on_done(outcome: Outcome) -> None:
            # an error that comes back before the call has even begun is the engine's own: nothing was delivered
            if not started and not outcome.ok and outcome.exception().code in _REFUSALS:
                self._ended(Busy())
            else:
                on_outcome(outcome)

        self.queue.peer.call(
            function_id,
            Json(job.payload),
            on_done,
            namespace=self.item.target[0],
            timeout_s=timeout_s,
            metadata=metadata,
            traceparent=job.traceparent,
            baggage=baggage,
            settle=True,
        )
        started = True

    def _decided(self, outcome: Outcome) -> None:
        if not outcome.ok:
            self._failed(outcome, "Condition function error: ")
        elif outcome.result.is_false():
            self._ended(Succeeded())
        else:
            self._handle()

    def _handle(self) -> None:
        namespace, function_id = self.item.target
        entry = self.queue.core.functions.get(namespace, function_id)
        if entry is None:
            self._ended(Missing())
            return
        if entry.behind:
            if isinstance(entry.owner, RemotePeer):  # of several who serve it the first will do: each rest is short
                self.queue.wait_for_room(self.item.target, entry.owner.connection)
            self._ended(Busy())
            return
        marker = Marker(self.queue.key.name, self.job.message_id or self.job.id, self.item.deliveries)
        metadata = marker.merged(self._terms.metadata)
        self._start(function_id, self._handled, timeout_s=self.share.timeout_s, metadata=metadata)

    def _handled(self, outcome: Outcome) -> None:
        if outcome.ok:
            self._ended(Succeeded())
        else:
            self._failed(outcome, "")

    def _failed(self, outcome: Outcome, prefix: str) -> None:
        error = outcome.exception()
        if self.queue.core.draining and error.code in _INTERRUPTIONS:
            self._ended(Interrupted())
        else:
            trace = f"\n{error.stacktrace}" if error.stacktrace else ""
            text = f"{prefix}{error}{trace}"[:ERROR_CHARS]
            self._ended(Failed(text.encode(errors="replace").decode()))  # a store takes Unicode only

    def _ended(self, ending: Ending) -> None:
        self._verdict = self.queue.finished(self.item, ending)
        if self._verdict is None:
            self._release()
        else:
            self._write()

    def _write(self) -> None:
        verdict = self._verdict
        assert verdict is not None
        journal, seq = self.queue.log, self.item.seq
        now_ms = self.queue.core.clock.wall_ms()
        try:
            if isinstance(verdict, Acknowledge):
                # its slot and its lane are free when it is written: who waits for them is not kept waiting
                journal.ack(seq, self._written, patient=not self.queue.machine.unbegun)
            elif isinstance(verdict, Retry):
                due_ms = self.queue.time.to_ms(self.item.due)
                journal.retry(seq, verdict.attempts, self.item.deliveries, due_ms, verdict.error, self._written)
            else:
                journal.dead_letter(seq, verdict.attempts, verdict.error, now_ms, self._written)
        except StoreError as error:
            self._not_written(error)

    def _written(self, result: Done[bool] | NotWritten) -> None:
        if isinstance(result, NotWritten):
            self._not_written(result.error)
            return
        assert self._verdict is not None
        if isinstance(self._verdict, Bury) and not result.value:
            log.error("queue %s: message %d is not in the log any more", self.queue.key.name, self.item.seq)
            self._verdict = Acknowledge()
        if isinstance(self._verdict, Bury):
            log.warning(
                "queue %s: message %s for %s is a dead letter after %d failed attempts: %s",
                self.queue.key.name,
                self.job.message_id or self.job.id,
                self.item.target[1],
                self._verdict.attempts,
                self._verdict.error.partition("\n")[0],  # the stack stands with the dead letter
            )
        self.queue.settled(self.item, self._verdict)
        self._release()

    def _release(self) -> None:
        self.share.running -= 1

    def _not_written(self, error: StoreError) -> None:
        self.unwritten = error
        self.queue.put_off(self)
