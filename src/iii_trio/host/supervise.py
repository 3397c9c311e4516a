"""Keeping modules running: a module that fails at the start stops the engine, one that fails later is restarted.

This is one of the three places where any exception is caught: a bug in a module must not take down the others. It is
logged once, with an incident id that `engine::health::check` shows until the module runs again.
"""

import logging
import uuid
from collections.abc import Callable
from typing import Final, Protocol

import trio

from ..engine import Engine

log = logging.getLogger(__name__)

FIRST_DELAY_S: Final = 0.5
MOST_DELAY_S: Final = 30.0
RESET_AFTER_S: Final = 60.0


class Module(Protocol):
    """A built-in worker: registers what it serves, says `started()`, and runs until it is cancelled."""

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
        """Run. What is raised before `started()` stops the engine; what is raised later restarts the module."""


async def supervise(
    core: Engine,
    name: str,
    make: Callable[[], Module],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a module until cancelled; each restart gets a fresh one from `make`, after 0.5 s doubling to 30 s."""
    first_start = True
    delay = FIRST_DELAY_S
    while True:
        began = core.clock.now()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(make().run, core, name=f"{name} module")
                core.modules[name] = "running"
                if first_start:
                    first_start = False
                    task_status.started()
        except Exception as error:
            if first_start:
                raise
            incident = uuid.uuid4().hex[:12]
            log.error("module %s failed (incident %s); restarting in %.1f s", name, incident, delay, exc_info=error)
            core.modules[name] = f"restarting (incident {incident})"
        else:
            log.error("module %s ended by itself; restarting in %.1f s", name, delay)
            core.modules[name] = "restarting"
        if core.clock.now() - began >= RESET_AFTER_S:
            delay = FIRST_DELAY_S
        await trio.sleep(delay)
        delay = min(delay * 2, MOST_DELAY_S)
