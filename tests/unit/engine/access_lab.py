"""A trusted port and one under access control, and workers that answer what they are asked."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define

from iii_trio.engine import Clock, Engine, ExposeFilter, Hooks, Pattern, Rules, open_engine
from iii_trio.testing.raw import RawPort, RawWorker

AUTH = "acl::auth"
MIDDLEWARE = "acl::middleware"
HOOKS = Hooks(function="acl::on_function", trigger="acl::on_trigger", trigger_type="acl::on_type")

Answer = Callable[[Any], dict[str, Any]]


def exposed(*patterns: str) -> tuple[ExposeFilter, ...]:
    """Filters that expose the ids of these patterns in `default`."""
    return tuple(ExposeFilter(pattern=Pattern.of(pattern)) for pattern in patterns)


@define(eq=False)
class Lab:
    """One engine with two ports; `asked` has every input that `serve`d functions got, by function."""

    core: Engine
    nursery: trio.Nursery
    trusted: RawPort
    guarded: RawPort
    asked: dict[str, list[Any]]

    async def serve(self, **answers: Answer) -> RawWorker:
        """A trusted worker with functions `acl::<keyword>`, each answering `result=…` or `error=…`."""
        worker = await self.trusted.connect(name=" ".join(answers))
        for name, answer in answers.items():
            self.answer(worker, f"acl::{name}", answer)
            worker.register(f"acl::{name}")
        await worker.settled()
        return worker

    def answer(self, worker: RawWorker, function_id: str, answer: Answer) -> None:
        """Let `worker` answer the calls of one function from now on."""
        self.nursery.start_soon(self._answer, worker, function_id, answer)

    async def _answer(self, worker: RawWorker, function_id: str, answer: Answer) -> None:
        while True:
            with trio.CancelScope():
                call = await _when(worker, function_id)
                self.asked.setdefault(function_id, []).append(call["data"])
                worker.answer(call, **answer(call["data"]))

    async def authenticated(self, result: Any = None, **introduction: Any) -> RawWorker:
        """A worker on the guarded port, with the session that an auth function of this `result` gives it."""
        auth = await self.serve(auth=lambda _: {"result": result or {}})
        worker = await self.guarded.connect(**(introduction or {"name": "guest"}))
        auth.cut()
        await self.trusted.gone(auth)
        return worker


async def _when(worker: RawWorker, function_id: str) -> dict[str, Any]:
    while True:
        for frame in worker.frames:
            if frame["type"] == "invokefunction" and frame["function_id"] == function_id:
                worker.frames.remove(frame)
                return frame
        if worker.closed is not None:
            await trio.sleep_forever()
        await worker._news.wait()


@asynccontextmanager
async def open_lab(rules: Rules) -> AsyncIterator[Lab]:
    """An engine whose guarded port has these rules."""
    async with open_engine(clock=Clock(epoch=1_700_000_000)) as core, trio.open_nursery() as nursery:
        yield Lab(core, nursery, RawPort(core, nursery), RawPort(core, nursery, rules), {})
        nursery.cancel_scope.cancel()
