"""The desk of a store: takes operations in, bounds how many wait, and hands the results back on the Trio thread.

Theory of operation. `submit` counts an operation in and passes it to whoever carries it out: a thread (`forward`), or
the desk's own task (`carry_out`), which then needs no thread at all. The finished operation comes back through
`finish`, and `run` (the desk's one task, owned by the block that opened the store) counts it out and calls its
callback. What a thread has done comes back through `hand_back`, which calls back in that very step where it can: a turn
of the loop less between the disk and the answer. Callbacks never run inside `submit`, they may submit again, and an
exception in one of them leaves through the nursery of the store's owner.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

import trio
from attrs import define, field

from ..protocol import limits
from ..protocol.errors import StoreError
from ..protocol.limits import STORE_BYTES, STORE_OPS
from ..transport import one_batch
from .interfaces import StoreStatistics
from .results import Done, Failed, OnDone, Result, RowDamaged, StoreClosed, StoreFull, T

MAX_VALUE = limits.STORE_VALUE
"""Bytes of one value or payload; SQLite's own bound is near 1 GB, and one that hits it would fail its whole group."""

CALLBACKS_PER_TURN = limits.STORE_CALLBACKS
"""Callbacks run before other tasks get their turn."""

FLUSH_S = 30.0
"""Seconds that a closing store has to write down and answer what was submitted."""

OVERHEAD = 128
"""Bytes that a waiting operation takes beside its texts."""


@define(eq=False)
class Submission:
    """One operation on its way: `work` runs where the data is, `on_done` gets the result on the Trio thread.

    A write belongs to a `lane`; a read that names a lane must see the writes that wait in it, one that names None must
    see all.
    """

    work: Callable[[Any], Any]
    on_done: Callable[[Any], None]
    size: int
    lane: Hashable
    writes: bool
    result: Result[Any] | None = None
    forced: bool = True
    """A write that is answered when the disk has it; else, when the file has it (`JobLog.ack`)."""
    patient: bool = False
    """A write for whose answer nobody waits: it may stand a moment to share the transaction of another."""
    followers: list["Submission"] | None = None
    """Long reads that wait for this write."""
    settled: bool = False
    """A long read: the writes that it must see stand on disk."""


def carry_out(
    group: Iterable[Submission], tables: object, set_aside: Callable[[RowDamaged], bool] = lambda _: False
) -> None:
    """Do the work of each operation on `tables`; a `StoreError` fails that operation alone.

    `set_aside` gets every damaged row that is met, and says whether it is out of the way: what had not asked for that
    very row is done again without it.
    """
    for submission in group:
        while True:
            try:
                submission.result = Done(submission.work(tables))
            except RowDamaged as error:
                error = error.with_traceback(None)  # its frames hold what still reads the table
                if set_aside(error) and not error.named:
                    continue
                submission.result = Failed(error)
            except StoreError as error:
                submission.result = Failed(error)
            break


def unsuitable(texts: Iterable[str | None], blobs: Iterable[bytes | None], numbers: Iterable[int]) -> StoreError | None:
    """The error for what no store takes, which would otherwise fail a whole group; None if all of it can be stored."""
    for text in texts:
        if text is not None and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                return StoreError(f"{text!r} cannot be stored: it holds half of a surrogate pair, which is no text.")
    for blob in blobs:
        if blob is not None and len(blob) > MAX_VALUE:
            return too_large(len(blob))
    for number in numbers:
        if not -(2**63) <= number < 2**63:
            return StoreError(f"{number} cannot be stored: it needs more than 64 bits.")
    return None


def too_large(size: int) -> StoreError:
    """The error for a value beyond `MAX_VALUE`."""
    return StoreError(f"A value of {size} bytes cannot be stored: the limit is {MAX_VALUE} bytes.")


@define(eq=False)
class Desk:
    """See the module. `forward` and `carry_out` exclude each other.

    `max_ops` and `max_bytes` bound what waits; the operation that passes a bound is still taken, the next is refused,
    so that one large operation always finds a place.
    """

    name: str
    forward: Callable[[Submission], None] | None = None
    carry_out: Callable[[list[Submission]], None] | None = None
    max_ops: int = STORE_OPS
    max_bytes: int = STORE_BYTES
    pending: int = field(default=0, init=False)
    pending_bytes: int = field(default=0, init=False)
    peak_pending: int = field(default=0, init=False)
    answered: int = field(default=0, init=False)
    refused: int = field(default=0, init=False)
    _writing: Counter[Hashable] = field(factory=Counter, init=False)
    _last: dict[Hashable, Submission] = field(factory=dict, init=False)
    _newest: Submission | None = field(default=None, init=False)
    _line: list[Submission] = field(factory=list, init=False)
    _finished: deque[Submission] = field(factory=deque, init=False)
    _wake: trio.Event = field(factory=trio.Event, init=False)
    _room: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)
    _empty: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot, init=False)
    _scope: trio.CancelScope = field(factory=lambda: trio.CancelScope(shield=True), init=False)
    _defect: BaseException | None = field(default=None, init=False)
    _listeners: list[Callable[[str, str], object]] = field(factory=list, init=False)
    _closed: bool = field(default=False, init=False)

    @property
    def full(self) -> bool:
        """True while operations are refused."""
        return self.pending >= self.max_ops or self.pending_bytes >= self.max_bytes

    def submit(
        self,
        work: Callable[[Any], T],
        on_done: OnDone[T],
        *,
        lane: Hashable,
        writes: bool,
        texts: Collection[str | None] = (),
        blobs: Collection[bytes | None] = (),
        numbers: Collection[int] = (),
        long: bool = False,
        forced: bool = True,
        patient: bool = False,
    ) -> None:
        """Take an operation in, or have it answered with why not. Raises `StoreClosed` on a closed store.

        `forced` and `patient`: see `Submission`.

        A `long` read that must see writes on their way waits until they stand on disk, so that it never holds up the
        writer; any other takes its place among them.
        """
        if self._closed:
            raise StoreClosed(f"The store {self.name} is closed.")
        error = unsuitable(texts, blobs, numbers)
        if error is None and self.full:
            self.refused += 1
            error = StoreFull(
                f"The store {self.name} is busy: {self.pending} operations ({self.pending_bytes} bytes) wait for it. "
                "Nothing was changed; try again in a moment."
            )
        size = OVERHEAD
        for part in (*texts, *blobs):
            if part:
                size += len(part)
        submission = Submission(work, on_done, size, lane, writes, forced=forced, patient=patient)
        self.pending += 1
        self.pending_bytes += size
        self.peak_pending = max(self.peak_pending, self.pending)
        if writes:
            self._writing[lane] += 1
        if error is not None:
            submission.result = Failed(error)
            self.finish([submission])
        elif self.forward is not None:
            if writes:
                self._last[lane] = self._newest = submission
            elif long and (before := self._newest if lane is None else self._last.get(lane)) is not None:
                submission.settled = True
                before.followers = [*(before.followers or ()), submission]
                return
            self.forward(submission)
        else:
            self._line.append(submission)
            self._wake.set()

    def overtakes(self, submission: Submission) -> bool:
        """True if a read carried out now could miss a write that was submitted before it."""
        if submission.settled:
            return False
        return bool(self._writing) if submission.lane is None else submission.lane in self._writing

    def finish(self, group: Iterable[Submission]) -> None:
        """Take finished operations back, in order; their callbacks run in the desk's task."""
        self._finished.extend(group)
        self._wake.set()

    def hand_back(self, group: Sequence[Submission]) -> None:
        """`finish` for those who come from outside all tasks (`run_sync_soon`): they need not wait for the desk's turn.

        Whatever a callback raises leaves through the desk's task all the same.
        """
        if self._finished or self._closed or len(group) > CALLBACKS_PER_TURN:
            self.finish(group)
            return
        self._finished.extend(group)
        try:
            self._call_some()
        except BaseException as defect:  # noqa: BLE001 (raised again, in the desk's task)
            self.fail(defect)

    def listen(self, listener: Callable[[str, str], object]) -> Callable[[], None]:
        """Call `listener` with table and queue of each job that is set aside, until what is returned is called."""
        self._listeners.append(listener)
        return partial(self._listeners.remove, listener)

    def tell(self, table: str, queue: str) -> None:
        """A damaged job was set aside. As with `hand_back`, what a listener raises leaves through the desk's task."""
        try:
            for listener in self._listeners:
                listener(table, queue)
        except BaseException as defect:  # noqa: BLE001 (raised again, in the desk's task)
            self.fail(defect)

    def fail(self, defect: BaseException) -> None:
        """A thread of the store ended by `defect`: raise it in the desk's task."""
        self._defect = defect
        self._wake.set()

    async def run(self) -> None:
        """Carry out (if nothing else does) and call back, until `close`. Ends by the exception of a failing callback.

        Shielded, because others still need answers while they are being cancelled: `close` ends it.
        """
        try:
            with self._scope:
                while True:
                    await self._wake.wait()
                    self._wake = trio.Event()
                    if self._defect is not None:
                        raise self._defect
                    if self.carry_out is not None and self._line:
                        group, self._line = self._line, []
                        self.carry_out(group)
                        self._finished.extend(group)
                    await self._call_back()
        finally:
            self._closed = True
            self._empty.unpark_all()
            self._room.unpark_all()

    async def _call_back(self) -> None:
        while self._finished:
            self._call_some()
            if self._finished:
                await trio.lowlevel.checkpoint()

    def _call_some(self) -> None:
        with one_batch():  # answers and events of one group leave together
            for _ in range(min(len(self._finished), CALLBACKS_PER_TURN)):
                submission = self._finished.popleft()
                self._count_out(submission)
                submission.on_done(submission.result)
        if not self.pending:
            self._empty.unpark_all()

    def _count_out(self, submission: Submission) -> None:
        self.answered += 1
        self.pending -= 1
        self.pending_bytes -= submission.size
        if submission.writes:
            self._writing[submission.lane] -= 1
            if not self._writing[submission.lane]:
                del self._writing[submission.lane]
            if self._last.get(submission.lane) is submission:
                del self._last[submission.lane]
            if self._newest is submission:
                self._newest = None
            if submission.followers is not None and self.forward is not None:
                for follower in submission.followers:
                    self.forward(follower)
        if self._room and not self.full:
            self._room.unpark_all()

    async def room(self) -> None:
        """Wait until an operation would be accepted; what is submitted before the next checkpoint will be."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.full and not self._closed:
            await self._room.park()

    def statistics(
        self,
        path: str | None = None,
        *,
        groups: int = 0,
        largest_group: int = 0,
        failed_groups: int = 0,
        set_aside: int = 0,
        checking: bool = False,
    ) -> StoreStatistics:
        """The desk's counters beside those of whoever carries out the operations."""
        return StoreStatistics(
            path=path,
            pending=self.pending,
            pending_bytes=self.pending_bytes,
            peak_pending=self.peak_pending,
            answered=self.answered,
            refused=self.refused,
            groups=groups,
            largest_group=largest_group,
            failed_groups=failed_groups,
            set_aside=set_aside,
            checking=checking,
        )

    async def close(self, timeout_s: float) -> None:
        """Answer everything that was submitted, also by callbacks meanwhile; then take no more and end `run`.

        Whoever calls it does so under a shield: it waits at most `timeout_s` and raises `StoreError` if that was not
        enough.
        """
        with trio.move_on_after(timeout_s, shield=True):
            while self.pending and not self._closed:
                await self._empty.park()
        late, crashed = self.pending, self._closed
        self._closed = True
        self._scope.cancel()
        if late and not crashed:
            raise StoreError(f"{late} operations of the store {self.name} were not answered within {timeout_s:g} s.")
