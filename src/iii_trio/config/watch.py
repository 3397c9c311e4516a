"""Hearing of changes in one directory: what the config file and the store of configuration entries are watched with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio
import watchfiles

log = logging.getLogger(__name__)

QUIET_S: Final = 0.25
"""How long nothing may change until a change counts as complete: an editor replaces a file in several steps."""


async def watch_directory(
    directory: Path,
    wanted: Callable[[str], bool],
    on_change: Callable[[], Awaitable[None]],
    *,
    quiet_s: float = QUIET_S,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Await `on_change()` after every burst of changes to files of `directory` whose names are `wanted`, until cancelled.

    Names that begin with two dots count always: they are the links by which mounted directories are replaced as a
    whole. A burst ends when nothing has changed for `quiet_s` seconds. A directory that cannot be watched is said once
    in the log, and this returns.
    """
    ended = threading.Event()
    token = trio.lowlevel.current_trio_token()
    changed = trio.Event()

    def hear() -> None:
        changed.set()

    def filtered(_: watchfiles.Change, path: str) -> bool:
        name = Path(path).name
        return name.startswith("..") or wanted(name)

    def watch() -> None:
        for _ in watchfiles.watch(
            directory,
            watch_filter=filtered,
            step=50,
            debounce=200,
            rust_timeout=500,
            yield_on_timeout=True,
            stop_event=ended,
            raise_interrupt=False,
            recursive=False,
        ):
            if _:
                token.run_sync_soon(hear)
            elif not started.is_set():
                started.set()

    started = threading.Event()

    async def in_thread() -> None:
        try:
            await trio.to_thread.run_sync(watch, limiter=trio.CapacityLimiter(1))
        except (OSError, RuntimeError) as error:
            log.warning("cannot watch %s, so changes in it are noticed at the next start only: %s", directory, error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, name=f"watch {directory}")
        task_status.started()
        try:
            while True:
                await changed.wait()
                while changed.is_set():
                    changed = trio.Event()
                    with trio.move_on_after(quiet_s):
                        await changed.wait()
                await on_change()
        finally:
            ended.set()
