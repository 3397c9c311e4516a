"""Keeping modules running: a module that fails at the start stops the engine, one that fails later is restarted.

This is one of the three places where any exception is caught: a bug in a module must not take down the others. It is
logged once, with an incident id that `engine::health::check` shows until the module runs again.
"""

import logging
import uuid
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import trio
from attrs import define, field, frozen

from ..engine import Engine, LocalPeer, calls_wait
from ..protocol.errors import IIIError
from .children import Backoff

log = logging.getLogger(__name__)

PATIENCE_S: Final = 2.0
"""How long a module that is replaced may take to answer what it is running."""


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
class _Replacement:
    """Somebody waits for a module to be replaced; `before` is what made it until now."""

    before: Callable[[], Module]
    settled: trio.Event = field(factory=trio.Event)
    failure: Exception | None = None
    back: trio.Event = field(factory=trio.Event)
    """After a failure: the one before runs again, or has failed as well."""


@define(eq=False)
class Supervised:
    """One module and its supervisor. `make` gives a fresh module for each start; `module` is the latest.

    `ended`: it runs no more and never again.
    """

    core: Engine
    name: str
    make: Callable[[], Module]
    _restarts: int = field(default=0, init=False)
    module: Module | None = field(default=None, init=False)
    ended: trio.Event = field(factory=trio.Event, init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _life: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _replacement: _Replacement | None = field(default=None, init=False)

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
                    self._life, awaited = trio.CancelScope(), self._replacement
                    try:
                        with self._life:
                            async with trio.open_nursery() as nursery:
                                self._nursery = nursery
                                self.module = self.make()
                                await nursery.start(self.module.run, self.core, name=f"{self.name} module")
                                modules[self.name] = "running"
                                self._settle(awaited)
                                if first:
                                    first = False
                                    task_status.started(self)
                    except Exception as error:
                        if first:
                            raise _start_error(self.name, error) from error
                        failure = error
                        state = f"restarting (incident {uuid.uuid4().hex[:12]})"
                    modules[self.name] = state
                    if self._settle(awaited, failure) or self._life.cancelled_caught:
                        continue
                    wait_s = backoff.after(clock.now() - began)
                    how = "ended by itself" if failure is None else "failed"
                    log.error("module %s %s; %s in %.1f s", self.name, how, state, wait_s, exc_info=failure)
                    self._restarts += 1
                    self._life = trio.CancelScope()
                    with self._life:
                        await trio.sleep(wait_s)
        finally:
            modules[self.name] = "stopped"
            self._settle(self._replacement)
            self.ended.set()

    async def replace(self, make: Callable[[], Module]) -> None:
        """End the module and start what `make` gives in its place; returns when that runs.

        Raises `StartError` if it cannot start: the one before is started again then. One replacement at a time.
        """
        async with calls_wait(self.core, self._peers(), PATIENCE_S):
            replacement = self._replacement = _Replacement(self.make)
            self.make = make
            self._life.cancel()
            try:
                await replacement.settled.wait()
                if replacement.failure is not None:
                    await replacement.back.wait()  # what waits is for the one before
            except BaseException:
                if self._replacement is replacement:  # it has not come to run, and nobody waits for it any more
                    self._replacement, self.make = None, replacement.before
                    self._life.cancel()
                raise
        if replacement.failure is not None:
            raise _start_error(self.name, replacement.failure) from replacement.failure

    def _peers(self) -> list[LocalPeer]:
        """What the module holds of the engine: the peers that were opened below its task."""
        return [peer for peer in self.core.locals() if self._is_above(peer.nursery.parent_task)]

    def _is_above(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task.parent_nursery is not None:
            if task.parent_nursery is self._nursery:
                return True
            task = task.parent_nursery.parent_task
        return False

    def _settle(self, replacement: _Replacement | None, failure: Exception | None = None) -> bool:
        """Tell who waits for a replacement how it went; True if the module before it is to be started now."""
        if replacement is None or replacement is not self._replacement:
            return False
        if failure is not None and not replacement.settled.is_set():
            self.make, replacement.failure = replacement.before, failure
            replacement.settled.set()
            return True
        self._replacement = None
        replacement.settled.set()
        replacement.back.set()
        return False

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
