"""Keeping modules running: a module that fails at the start stops the engine, one that fails later is restarted.

This is one of the three places where any exception is caught: a bug in a module must not take down the others. It is
logged once, with an incident id that `engine::health::check` shows until the module runs again.
"""

import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Protocol

import trio
from attrs import define, field, frozen

from ..engine import Engine
from ..protocol.errors import IIIError
from .children import Backoff

log = logging.getLogger(__name__)


class Module(Protocol):
    """A built-in worker: registers what it serves, says `started()`, and runs until it is cancelled."""

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
        """Run. What is raised before `started()` stops the engine; what is raised later restarts the module."""

    def statistics(self) -> object:
        """A frozen picture of what the module does and holds."""


def leaves(error: Exception) -> Iterator[Exception]:
    """The exceptions inside a group, however deep; an exception that is no group is its own leaf."""
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


class StartError(IIIError):
    """A module could not start; `str()` names it and says why."""


@frozen
class SupervisedStatistics:
    """One module: its `state` as `engine::health::check` shows it, how often it was restarted, its own statistics."""

    name: str
    state: str
    restarts: int
    module: object


@define(eq=False)
class Supervised:
    """One module and its supervisor. `make` gives a fresh module for each start; `module` is the latest."""

    core: Engine
    name: str
    make: Callable[[], Module]
    _restarts: int = field(default=0, init=False)
    module: Module | None = field(default=None, init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    async def run(self, *, task_status: trio.TaskStatus["Supervised"] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the module until cancelled or stopped; it starts again after 0.5 s, then twice the wait before, up to 30 s.

        Raises `StartError` when the first start fails.
        """
        clock, modules = self.core.clock, self.core.modules
        backoff = Backoff()
        first = True
        try:
            with self._scope:
                while True:
                    began = clock.now()
                    state, failure = "restarting", None
                    try:
                        async with trio.open_nursery() as nursery:
                            self.module = self.make()
                            await nursery.start(self.module.run, self.core, name=f"{self.name} module")
                            modules[self.name] = "running"
                            if first:
                                first = False
                                task_status.started(self)
                    except Exception as error:
                        if first:
                            raise _start_error(self.name, error) from error
                        failure = error
                        state = f"restarting (incident {uuid.uuid4().hex[:12]})"
                    modules[self.name] = state
                    wait_s = backoff.after(clock.now() - began)
                    how = "ended by itself" if failure is None else "failed"
                    log.error("module %s %s; %s in %.1f s", self.name, how, state, wait_s, exc_info=failure)
                    self._restarts += 1
                    await trio.sleep(wait_s)
        finally:
            modules[self.name] = "stopped"

    def stop(self) -> None:
        """Begin to stop the module; `run` returns when it has ended."""
        self._scope.cancel()

    def statistics(self) -> SupervisedStatistics:
        """A frozen picture of the module; its own part is None before its first start."""
        return SupervisedStatistics(
            self.name,
            self.core.modules.get(self.name, "starting"),
            self._restarts,
            None if self.module is None else self.module.statistics(),
        )


def _start_error(name: str, error: Exception) -> StartError:
    """What to tell the user: what was raised on purpose, else where the log has the rest."""
    causes = list(leaves(error))
    if all(isinstance(cause, IIIError) for cause in causes):
        return StartError(f"failed to initialize worker '{name}': {'; '.join(map(str, causes))}")
    incident = uuid.uuid4().hex[:12]
    log.error("module %s could not start (incident %s)", name, incident, exc_info=error)
    shown = "; ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
    return StartError(f"failed to initialize worker '{name}': {shown} (incident {incident} in the log)")
