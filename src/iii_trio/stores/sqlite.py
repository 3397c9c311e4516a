"""The durable store: key-value and job log in one SQLite file, group commit, fsync before every answer.

Two threads do the work. The writer takes everything that has been submitted since its last commit, carries it out in
one transaction, commits (one fsync for all) and hands the group back to the store's task, which calls back in order.
The reader answers reads beside it; a read that could miss a write still on its way goes through the writer instead, in
its place in the order. With `inline=True` there is no thread at all: the store's task does the same work itself, which
blocks the loop for a commit, and is what a virtual clock needs.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from attrs import define

from ..protocol.limits import STORE_BYTES, STORE_OPS
from .backup import Snapshot, take_snapshot
from .desk import FLUSH_S, Desk
from .handles import JobLogHandle, KeyValueHandle
from .interfaces import Fsync, StoreStatistics
from .results import OnDone
from .sqlite_file import SqliteFile, open_file
from .sqlite_threads import Threads

FSYNC_INTERVAL_S = 5.0
"""How often `Fsync.INTERVAL` forces what was written."""


@define(eq=False)
class SqliteStore:
    """`Store` in a file; `open_sqlite` makes one."""

    _file: SqliteFile
    _desk: Desk
    _checked: trio.Event

    def key_value(self, space: str) -> KeyValueHandle:
        """See `Store.key_value`."""
        return KeyValueHandle(space, self._desk)

    def job_log(self) -> JobLogHandle:
        """See `Store.job_log`."""
        return JobLogHandle(self._desk)

    def directory(self, prefix: str, on_done: OnDone[list[tuple[str, str]]]) -> None:
        """See `Store.directory`."""
        self._desk.submit(
            lambda tables: tables.values.directory(prefix), on_done, lane=None, writes=False, texts=(prefix,)
        )

    async def room(self) -> None:
        """See `Store.room`."""
        await self._desk.room()

    async def checked(self) -> None:
        """Wait until the look at every row that goes on beside the work has ended; at once if none was due."""
        await self._checked.wait()

    def snapshot(self) -> Snapshot:
        """The store as it stands now, with everything that has been answered; its holder closes it.

        It takes well under a millisecond and does not wait. Raises `StoreError`.
        """
        return take_snapshot(self._file)

    def statistics(self) -> StoreStatistics:
        """See `Store.statistics`."""
        return self._desk.statistics(
            str(self._file.path),
            groups=self._file.groups,
            largest_group=self._file.largest_group,
            failed_groups=self._file.failed_groups,
            set_aside=self._file.set_aside,
            checking=not self._checked.is_set(),
        )


@asynccontextmanager
async def open_sqlite(
    path: str | os.PathLike[str],
    *,
    fsync: Fsync = Fsync.ALWAYS,
    fsync_interval_s: float = FSYNC_INTERVAL_S,
    inline: bool = False,
    check: bool = True,
    check_first: bool = False,
    max_ops: int = STORE_OPS,
    max_bytes: int = STORE_BYTES,
    close_timeout_s: float = FLUSH_S,
) -> AsyncIterator[SqliteStore]:
    """The store in the file `path` (made with its directories if missing) for the length of the block.

    `fsync` and `fsync_interval_s`: see `Fsync`; inline, `INTERVAL` forces every commit.

    `check`: look at every row (5 s of CPU per million values, 10 s per million jobs) when that is due: after an end
    without `close`, and when the last look was more than a week ago. It goes on beside the work, and opening does not wait
    for it; but for a file in which damage was found before, it comes first. `check_first`, and inline: always, and first.
    With and without it, no read answers a damaged row (`sqlite_check.py`).

    `max_ops` and `max_bytes` bound what waits. At the end
    everything submitted is written and answered within `close_timeout_s`, or `StoreError` is raised. Raises
    `StoreInUse` if another engine has the file and `StoreError` if it cannot be used. As with every nursery, exceptions
    leave the block in a group.
    """
    if inline and fsync is Fsync.INTERVAL:
        fsync = Fsync.ALWAYS
    opening = partial(open_file, path, fsync, check=check, first=inline or check_first)
    file = opening() if inline else await trio.to_thread.run_sync(opening)
    desk = Desk(str(file.path), max_ops=max_ops, max_bytes=max_bytes)
    threads: Threads | None = None
    checked = trio.Event()
    if inline:
        desk.carry_out = file.commit
        file.on_set_aside = desk.tell
        checked.set()
    else:
        threads = Threads(file, desk, fsync_interval_s, trio.lowlevel.current_trio_token())
        desk.forward = threads.put
        checked = threads.checked
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.run, name=f"store {file.path}")
            try:
                yield SqliteStore(file, desk, checked)
            finally:
                await desk.close(close_timeout_s)
    finally:
        if threads is None:
            file.close()
        else:
            await threads.stop(close_timeout_s)
