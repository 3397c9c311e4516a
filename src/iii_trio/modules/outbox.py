"""The outbox of durable triggers: events that stand beside the data they tell of, on their way into the queue.

Theory of operation. An event is written in the transaction of its write, so that a write that was answered has its
deliveries recorded. From there it is enqueued under a key of its own, and when the queue has receipted it, it is taken
out. A crash between the two repeats the enqueue, and the queue recognises the key: each event gets in once (a restart
later than the queue's window of repetitions may let one in twice). Events of one lane (a function and what it watches)
are enqueued one after the other, in the order of the writes.

What cannot be enqueued waits on disk: until the queue is back, which is noticed at once, or for another try after a pause
that grows. It holds up its lane and no other. In memory lie only so many events of each queue; the rest is read back from
the store in its turn, when nothing in memory moves any more.

Lanes that are refused must not fill the memory. So before more is read past them each is *cut* to its first event, and its
further ones are passed over. Once that first one is in, reading goes back to it and comes by them again. Nothing is
enqueued twice by that: what the queue has is gone from the store, and what lies in memory belongs to lanes that are cut.
"""

import logging
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

from attrs import define, field, frozen

from ..engine import Engine, LocalPeer, Outcome
from ..engine.deadlines import Timer
from ..engine.enqueues import ENQUEUE
from ..engine.events import Event, FunctionsChanged
from ..engine.peer import DEFAULT_NAMESPACE
from ..protocol import Json, codec
from ..protocol.codec import encode_value
from ..protocol.errors import FUNCTION_NOT_FOUND, StoreError, TriggerRejected, WireError
from ..protocol.limits import OUTBOX_EVENTS, OUTBOX_PAGE, OUTBOX_PAGE_BYTES
from ..stores import Entry, Failed, KeyValue, Result, WaitingKeyValue
from .durable import Watch

log = logging.getLogger(__name__)

QUEUE_STATS: Final = "engine::queue::stats"
FULL: Final = "too many events of durable triggers wait for their queue. Look at the log for what holds it up."
"""Why a write is refused while the outbox is `full`."""
ENQUEUE_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0
LOOK_FURTHER_S: Final = 1.0
"""Pause between two pages that are read past lanes that are refused: where all are, this bounds what looking costs."""
_DIGITS: Final = 20


@frozen
class Row:
    """One event for one function: where it stands in the outbox, and the call that enqueues it."""

    queue: str
    key: str
    lane: str
    request: bytes

    def entry(self, space: str) -> Entry:
        """As it is written beside the data."""
        return Entry(space, self.queue, self.key, b'{"lane":%s,"request":%s}' % (encode_value(self.lane), self.request))


@frozen
class OutboxStatistics:
    """Events that are `recorded` and not in their queue yet, of which `held` lie in memory; `enqueued` so far.

    `refused`: tries that the queue did not take; `waiting`: lanes for which there is a pause now.
    """

    recorded: int
    held: int
    enqueued: int
    refused: int
    waiting: int


@define(eq=False)
class _Lane:
    """Events that are enqueued one after the other: the first is on its way, or waits for another try."""

    rows: deque[Row]
    pause_s: float = 0.0
    timer: Timer | None = None
    cut: bool = False
    """Only its first event is held; `more` says that others were passed over."""
    more: bool = False


@define(eq=False)
class _Line:
    """The events for one queue: lanes of those in memory, of which `paused` wait for another try.

    `behind` says that the store has more than these, read as far as `last`, or to be read again from there.
    """

    queue: str
    lanes: dict[str, _Lane] = field(factory=dict)
    paused: int = 0
    held: int = 0
    held_bytes: int = 0
    last: str = ""
    behind: bool = False
    reading: bool = False
    missed: bool = False
    outdated: bool = False
    """The page that is being read may show what has been enqueued meanwhile: it has to be read again."""
    refusal: str | None = None
    """The code with which the last try of any of them was refused; it has been said."""
    timer: Timer | None = None
    """It could not be read, or everything in memory is refused: another look."""

    @property
    def full(self) -> bool:
        return self.held >= OUTBOX_PAGE or self.held_bytes >= OUTBOX_PAGE_BYTES

    @property
    def moves(self) -> bool:
        return len(self.lanes) > self.paused

    def outdate(self) -> None:
        self.outdated = self.outdated or self.reading

    def let_go(self, row: Row) -> None:
        self.held -= 1
        self.held_bytes -= len(row.request)

    def cut(self) -> None:
        for lane in self.lanes.values():
            lane.cut = True
            while len(lane.rows) > 1:
                self.let_go(lane.rows.pop())
                lane.more = True


@define(eq=False)
class Outbox:
    """See the module. `store` is the space of the outbox, in the file of the data. Made for one life of a module."""

    core: Engine
    peer: LocalPeer
    store: KeyValue
    _lines: dict[str, _Line] = field(factory=dict, init=False)
    _number: int = field(default=0, init=False)
    _recorded: int = field(default=0, init=False)
    _enqueued: int = field(default=0, init=False)
    _refused: int = field(default=0, init=False)
    _left: dict[tuple[str, str], None] = field(factory=dict, init=False)
    """Queue and key of events that are in their queue, and that the store has not let go of."""
    _left_timer: Timer | None = field(default=None, init=False)
    _untap: Callable[[], None] | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take in what an earlier life has left. Raises `StoreError`."""
        store = WaitingKeyValue(self.store)
        for queue in await store.scopes():  # waits for every write on its way, so that none is missed below
            count, last = await store.scan(queue, _count_and_last)
            self._recorded += count
            self._number = max(self._number, int(last or "0"))
            self._line(queue).behind = True
        self._untap = self.core.events.tap(self._on_event)
        for line in self._lines.values():
            self._read(line)

    def close(self) -> None:
        """Stop; what is left stays in the store."""
        self._closed = True
        if self._untap is not None:
            self._untap()
            self._untap = None
        for line in self._lines.values():
            for timer in (line.timer, *(lane.timer for lane in line.lanes.values())):
                if timer is not None:
                    timer.cancel()
        if self._left_timer is not None:
            self._left_timer.cancel()

    def check_provider(self) -> None:
        """Raises `TriggerRejected` if nobody can take durable deliveries, and nobody is about to."""
        known = self.core.functions.get(DEFAULT_NAMESPACE, ENQUEUE) is not None or "queue" in self.core.modules
        if not known:
            text = "a durable trigger needs the queue: add the built-in worker 'queue' to the configuration"
            raise TriggerRejected(f"{text}, or leave `durable` out")

    def check_queue(self, queue: str) -> None:
        """Raises `TriggerRejected` if the queue is there and does not know that name."""
        answers: list[Outcome] = []
        self.peer.call(QUEUE_STATS, Json.of({"queue": queue}), answers.append, timeout_s=ENQUEUE_S)
        if answers and answers[0].ok and answers[0].result.decode() == []:
            text = f"there is no queue '{queue}': configure it under `queue_configs`, or define it, before this trigger"
            raise TriggerRejected(text)

    # -- recording ----------------------------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether so many events wait for their queue that no more are recorded."""
        return self._recorded + len(self._left) >= OUTBOX_EVENTS

    def numbers(self, count: int) -> int:
        """The first of `count` places in the order of events."""
        first = self._number + 1
        self._number += count
        return first

    def taken_in(self, rows: Iterable[Row]) -> None:
        """These stand on disk, in the order of their keys."""
        for row in rows:
            self._recorded += 1
            if self._closed:
                continue
            line = self._line(row.queue)
            if line.behind or line.full:
                line.behind = line.missed = True
            else:
                self._put(line, row)

    # -- on the way ---------------------------------------------------------------------------------------------------

    def _line(self, queue: str) -> _Line:
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = _Line(queue)
        return line

    def _put(self, line: _Line, row: Row) -> None:
        line.last = row.key
        if (row.queue, row.key) in self._left:
            return
        lane = line.lanes.get(row.lane)
        if lane is not None and lane.cut:
            lane.more = True
            return
        line.held += 1
        line.held_bytes += len(row.request)
        if lane is not None:
            lane.rows.append(row)
            return
        line.lanes[row.lane] = _Lane(deque((row,)))
        self._call(line, line.lanes[row.lane])

    def _call(self, line: _Line, lane: _Lane) -> None:
        row = lane.rows[0]

        def done(outcome: Outcome) -> None:
            if outcome.ok:
                self._enqueued += 1
                lane.pause_s, line.refusal = 0.0, None
                self._recorded -= 1
                self._take_out(row.queue, row.key)
                self._next(line, lane)
            else:
                self._refused += 1
                self._pause(line, lane, outcome.exception())

        self.peer.call(ENQUEUE, Json(row.request), done, timeout_s=ENQUEUE_S)

    def _next(self, line: _Line, lane: _Lane) -> None:
        row = lane.rows.popleft()
        line.let_go(row)
        if lane.rows:
            self._call(line, lane)
            return
        del line.lanes[row.lane]
        if lane.cut:
            line.outdate()
        if lane.more:
            line.behind, line.last = True, min(line.last, row.key)
        self._read_on(line)

    def _take_out(self, queue: str, key: str) -> None:
        """The queue has it. After a crash the next life enqueues it again, and the queue recognises it, for a while."""

        def gone(result: Result[bytes | None]) -> None:
            if isinstance(result, Failed):
                self._left[queue, key] = None
                self._take_out_later(result.error)

        try:
            self.store.delete(queue, key, gone)
        except StoreError as error:
            gone(Failed(error))

    def _take_out_later(self, error: StoreError) -> None:
        if self._left_timer is None and not self._closed:
            log.warning("events stay in the outbox though their queue has them, taking them out again: %s", error)
            self._left_timer = self.core.deadlines.after(LONGEST_PAUSE_S, self._take_out_again)

    def _take_out_again(self) -> None:
        self._left_timer = None
        for queue, key in tuple(islice(self._left, OUTBOX_PAGE)):
            del self._left[queue, key]
            self._line(queue).outdate()
            self._take_out(queue, key)
        if self._left and self._left_timer is None:
            self._left_timer = self.core.deadlines.after(FIRST_PAUSE_S, self._take_out_again)

    # -- pauses -------------------------------------------------------------------------------------------------------

    def _pause(self, line: _Line, lane: _Lane, why: WireError) -> None:
        if self._closed:
            return
        if line.refusal != why.code:
            line.refusal = why.code
            starting = why.code == FUNCTION_NOT_FOUND and "queue" in self.core.modules
            level = logging.INFO if starting else logging.WARNING
            log.log(level, "events for queue %s wait in the outbox and are tried again: %s", line.queue, str(why))
        lane.pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * lane.pause_s))
        lane.timer = self.core.deadlines.after(lane.pause_s, lambda: self._resume(line, lane))
        line.paused += 1
        self._read_on(line)

    def _resume(self, line: _Line, lane: _Lane) -> None:
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
            line.paused -= 1
            self._call(line, lane)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, FunctionsChanged) and event.function_id == ENQUEUE and event.available:
            for line in self._lines.values():
                for lane in tuple(line.lanes.values()):
                    self._resume(line, lane)

    # -- reading back -------------------------------------------------------------------------------------------------

    def _read_on(self, line: _Line) -> None:
        """Have more read, if there is more, once nothing in memory moves."""
        if not line.behind or line.moves or line.reading or self._closed:
            return
        if not line.lanes:
            self._read(line)
        elif line.timer is None and line.refusal != FUNCTION_NOT_FOUND:  # without a queue every lane is refused
            line.timer = self.core.deadlines.after(LOOK_FURTHER_S, lambda: self._look_further(line))

    def _look_further(self, line: _Line) -> None:
        line.timer = None
        if not line.moves:
            line.cut()
            if not line.full:
                self._read(line)

    def _read(self, line: _Line) -> None:
        """Read the next page; every lane in memory is cut."""
        if line.reading or self._closed:
            return
        if line.timer is not None:
            line.timer.cancel()
        line.reading, line.missed, line.outdated, line.timer = True, False, False, None
        most, most_bytes = OUTBOX_PAGE - line.held, OUTBOX_PAGE_BYTES - line.held_bytes

        def look(items: Iterable[tuple[str, bytes]]) -> tuple[list[Row], bool]:
            rows: list[Row] = []
            size = 0
            for key, text in items:
                if len(rows) >= most or size >= most_bytes:
                    return rows, True
                fields = codec.members(text) or {}
                rows.append(Row(line.queue, key, Json(fields["lane"]).decode(), fields["request"]))
                size += len(text)
            return rows, False

        try:
            self.store.scan(
                line.queue, look, lambda result: self._have_read(line, result), by_key=True, after=line.last
            )
        except StoreError as error:
            self._have_read(line, Failed(error))

    def _have_read(self, line: _Line, result: Result[tuple[list[Row], bool]]) -> None:
        if self._closed:
            return
        if isinstance(result, Failed):
            line.reading = False
            log.error("events for queue %s could not be read back, trying again: %s", line.queue, result.error)
            line.timer = self.core.deadlines.after(LONGEST_PAUSE_S, lambda: self._read(line))
            return
        rows, more = result.value
        for row in rows:
            if line.outdated:
                break
            self._put(line, row)
        line.reading = False
        line.behind = more or line.missed or line.outdated
        self._read_on(line)

    def statistics(self) -> OutboxStatistics:
        """A frozen picture of the outbox."""
        lines = self._lines.values()
        return OutboxStatistics(
            recorded=self._recorded,
            held=sum(line.held for line in lines),
            enqueued=self._enqueued,
            refused=self._refused,
            waiting=sum(line.paused for line in lines),
        )


def row_of(
    number: int, watch: Watch, place: tuple[str, ...], event: bytes, traceparent: str | None, baggage: str | None
) -> Row:
    """The event of a change at `place` for one watch; `number` is its place in the order. A pure function."""
    identity = str(uuid.uuid4())
    request = {
        "queue": watch.queue,
        "function_id": watch.function_id,
        "namespace": watch.namespace,
        "messageReceiptId": identity,
        "deduplication_key": identity,
        "traceparent": traceparent,
        "baggage": baggage,
        "condition_function_id": watch.condition,
    }
    head, metadata = encode_value(request)[:-1], watch.metadata.or_null().raw
    lane = encode_value([watch.namespace, watch.function_id, *place]).decode()
    return Row(watch.queue, f"{number:0{_DIGITS}}", lane, b'%s,"metadata":%s,"data":%s}' % (head, metadata, event))


def _count_and_last(items: Iterable[tuple[str, bytes]]) -> tuple[int, str]:
    count, last = 0, ""
    for key, _ in items:
        count += 1
        last = max(last, key)
    return count, last
