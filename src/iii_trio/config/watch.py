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
LONGEST_BURST_S: Final = 5.0
"""Changes that never cease are looked at this often nevertheless."""
_CATCH_UP_MS: Final = 1_000


async def watch_directory(
    directory: Path,
    wanted: Callable[[str], bool],
    on_change: Callable[[], Awaitable[None]],
    *,
    quiet_s: float = QUIET_S,
) -> None:
    """Await `on_change()` after every burst of changes to files of `directory` whose names are `wanted`, until cancelled.

    Names that begin with two dots count always: they are the links by which mounted directories are replaced as a
    whole. A burst ends when nothing has changed for `quiet_s` seconds. `on_change` is also awaited once soon after the
    start, for what changed before the watch stood. A directory that cannot be watched is said once in the log, and this
    returns.
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
        standing = False
        for changes in watchfiles.watch(
            directory,
            watch_filter=filtered,
            debounce=200,
            stop_event=ended,
            rust_timeout=_CATCH_UP_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
        ):
            if changes or not standing:
                standing = True
                token.run_sync_soon(hear)

    async def in_thread() -> None:
        try:
            await trio.to_thread.run_sync(watch, limiter=trio.CapacityLimiter(1))
        except (OSError, RuntimeError) as error:  # gone, not readable, or too many watches for the system's limits
            log.warning("cannot watch %s, so changes in it are noticed at the next start only: %s", directory, error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, name=f"watch {directory}")
        try:
            while True:
                await changed.wait()
                with trio.move_on_after(LONGEST_BURST_S):
                    while changed.is_set():
                        changed = trio.Event()
                        with trio.move_on_after(quiet_s):
                            await changed.wait()
                await on_change()
        finally:
            ended.set()
