"""The cancellation sweep of promise P8: a coroutine cancelled at every step of its run, and what must hold afterwards."""

import re
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import trio
from attrs import define, field
from trio.testing import MockClock

MOST_STEPS: Final = 3_000
UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@define(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope after the n-th step that any task of the run takes while it is armed."""

    at: int
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    steps: int = 0
    armed: bool = False

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        """Count, and cancel when it is time."""
        if self.armed:
            self.steps += 1
            if self.steps == self.at:
                self.scope.cancel()

    async def run(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Run `work` in the scope, armed; returns when it has ended, by itself or cancelled."""
        with self.scope:
            self.armed = True
            await work()
        self.armed = False


def task_tree() -> list[str]:
    """The names of all tasks of the run, each behind those of the tasks above it; one worker id is like another."""

    def paths(task: trio.lowlevel.Task, above: str) -> Iterator[str]:
        path = f"{above}/{UUID.sub('<id>', task.name)}"
        yield path
        for nursery in task.child_nurseries:
            for child in nursery.child_tasks:
                yield from paths(child, path)

    root = trio.lowlevel.current_root_task()
    assert root is not None
    return sorted(paths(root, ""))


def sweep(once: Callable[[CancelAtStep], Awaitable[None]], stride: int = 1) -> int:
    """Run `once` again and again, cancelled `stride` steps later each time, until it ends first; the number of runs.

    `once` arms what it is given around the coroutine under test, and checks what must hold afterwards. A failure says
    at which step the cancellation came.
    """
    for runs, at in enumerate(range(1, MOST_STEPS, stride), start=1):
        cancel = CancelAtStep(at)
        try:
            trio.run(once, cancel, clock=MockClock(autojump_threshold=0), instruments=[cancel])
        except BaseException as error:
            error.add_note(f"cancelled at step {at}")
            raise
        if cancel.steps < at:
            return runs
    raise AssertionError(f"it takes more than {MOST_STEPS} steps")
