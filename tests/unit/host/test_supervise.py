"""Supervision of modules under virtual time: the first start is fatal, later failures are restarted with backoff."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from iii_trio.engine import Engine, Outcome, open_engine, open_local
from iii_trio.host.supervise import StartError, Supervised
from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.protocol import Json
from iii_trio.protocol.errors import ConfigError, WireError


@define(eq=False)
class Fragile:
    """A module that notes when it starts, and ends as it is told."""

    starts: list[float]
    ends: list["Fragile"]
    error: BaseException | None = None
    at_start: bool = False
    told: trio.Event = field(factory=trio.Event)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
        self.starts.append(trio.current_time())
        if self.at_start and self.error is not None:
            raise self.error
        try:
            async with open_local(core, "fragile") as peer:
                peer.register("fragile::here", lambda call, data: Outcome(Json(b"true")))
                task_status.started()
                await self.told.wait()
        finally:
            self.ends.append(self)
        if self.error is not None:
            raise self.error

    def statistics(self) -> object:
        return ("fragile", len(self.starts))


@define(eq=False)
class Bench:
    """A supervised module; `make` hands out what `plan` says, the last of it again and again."""

    core: Engine
    nursery: trio.Nursery
    starts: list[float] = field(factory=list)
    ends: list[Fragile] = field(factory=list)
    made: list[Fragile] = field(factory=list)
    error: Exception | None = None
    at_start: bool = False

    def make(self) -> Fragile:
        module = Fragile(self.starts, self.ends, self.error, self.at_start)
        self.made.append(module)
        return module

    async def start(self) -> Supervised:
        supervised = Supervised(self.core, "fragile", self.make)
        started: object = await self.nursery.start(supervised.run)
        assert started is supervised
        return supervised

    def fail(self, error: BaseException | None) -> None:
        self.made[-1].error = error
        self.made[-1].told.set()

    def here(self) -> bool:
        return self.core.functions.get("default", "fragile::here") is not None


@asynccontextmanager
async def open_bench() -> AsyncIterator[Bench]:
    async with open_engine() as core, trio.open_nursery() as nursery:
        yield Bench(core, nursery)
        nursery.cancel_scope.cancel()


async def health(core: Engine) -> Any:
    """What `engine::health::check` answers."""
    return (await core.local.invoke("engine::health::check")).decode()


async def test_a_module_runs_until_it_is_cancelled(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        supervised = await bench.start()
        assert bench.here()
        assert bench.core.modules == {"fragile": "running"}
        assert supervised.statistics().restarts == 0
        assert supervised.statistics().module == ("fragile", 1)
        await trio.sleep(3600)
        assert bench.starts == bench.starts[:1]
    assert bench.ends == bench.made
    assert supervised.statistics().state == "stopped"


async def test_one_module_can_be_stopped_alone(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        supervised = await bench.start()
        supervised.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert not bench.here()
        assert supervised.statistics().state == "stopped"
        await trio.sleep(3600)
        assert len(bench.starts) == 1


async def test_what_fails_at_the_first_start_is_not_tried_again(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        bench.error, bench.at_start = ConfigError("port 1 is taken; take another"), True
        with pytest.raises(StartError) as caught:
            await bench.start()
        await trio.sleep(3600)
    assert str(caught.value) == "failed to initialize worker 'fragile': port 1 is taken; take another"
    assert len(bench.starts) == 1


async def test_a_bug_at_the_first_start_is_told_with_an_incident(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench() as bench:
        bench.error, bench.at_start = KeyError("gone"), True
        with pytest.raises(StartError) as caught:
            await bench.start()
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info is not None
    incident = record.getMessage().partition("incident ")[2].rstrip(")")
    text = f"failed to initialize worker 'fragile': KeyError: 'gone' (incident {incident} in the log)"
    assert str(caught.value) == text


async def test_a_module_that_ends_before_it_has_started_is_a_failed_start(autojump_clock: MockClock) -> None:
    class Hasty:
        async def run(self, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
            await trio.lowlevel.checkpoint()

        def statistics(self) -> object:
            return None

    async with open_bench() as bench:
        with pytest.raises(StartError, match="failed to initialize worker 'hasty'"):
            await Supervised(bench.core, "hasty", Hasty).run()


async def test_a_constructor_that_fails_later_is_a_failure_like_any_other(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        supervised = await bench.start()
        bench.made[-1].told.set()
        supervised.make = partial(_raise, OSError("no more"))
        await trio.sleep(2)
        assert supervised.statistics().restarts == 3
        supervised.make = bench.make
        await trio.sleep(2)
        assert bench.here()


def _raise(error: Exception) -> Any:
    raise error


async def test_restarts_double_their_wait_up_to_30_s_and_begin_anew_after_a_good_minute(
    autojump_clock: MockClock,
) -> None:
    async with open_bench() as bench:
        await bench.start()
        bench.error, bench.at_start = RuntimeError("again"), True
        failed_at = trio.current_time()
        bench.fail(RuntimeError("first"))
        await trio.sleep(100)
        waits = [
            later - earlier for earlier, later in zip([failed_at, *bench.starts[1:]], bench.starts[1:], strict=False)
        ]
        assert waits == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30])
        bench.error, bench.at_start = None, False
        await trio.sleep(30)
        assert bench.here()
        await trio.sleep(60)
        failed_at, count = trio.current_time(), len(bench.starts)
        bench.fail(RuntimeError("after a good minute"))
        await trio.sleep(1)
        assert bench.starts[count] - failed_at == pytest.approx(0.5)


@pytest.mark.parametrize("error", [RuntimeError("broken"), None])
async def test_the_rest_serves_and_health_says_so_meanwhile(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    async with open_bench() as bench:
        introspection = Supervised(bench.core, "introspection", IntrospectionModule)
        await bench.nursery.start(introspection.run)
        supervised = await bench.start()
        assert (await health(bench.core))["status"] == "healthy"

        bench.fail(error)
        await trio.testing.wait_all_tasks_blocked()
        assert not bench.here()
        report = await health(bench.core)
        assert report["status"] == "degraded"
        modules = report["components"]["modules"]
        assert modules["status"] == "degraded"
        assert modules["details"]["introspection"] == "running"
        shown = modules["details"]["fragile"]
        assert shown.startswith("restarting")
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "in 0.5 s" in record.getMessage()
        assert shown in record.getMessage(), "the incident that health shows is the one in the log"
        assert (record.exc_info is not None) == (error is not None)

        await trio.sleep(0.6)
        assert bench.here()
        assert (await health(bench.core))["status"] == "healthy"
        assert supervised.statistics().restarts == 1
        assert introspection.statistics().restarts == 0


async def test_what_is_no_exception_of_a_module_is_not_swallowed(autojump_clock: MockClock) -> None:
    class Interrupted(BaseException):
        pass

    with pytest.RaisesGroup(Interrupted, flatten_subgroups=True):
        async with open_bench() as bench:
            await bench.start()
            bench.fail(Interrupted())
            await trio.sleep(1)


async def test_a_replaced_module_ends_before_the_new_one_starts(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        supervised = await bench.start()
        after = Fragile(bench.starts, bench.ends)
        await supervised.replace(lambda: after)
        assert (supervised.module, bench.ends) == (after, bench.made)
        assert (bench.core.modules, bench.here()) == ({"fragile": "running"}, True)
        assert supervised.statistics().restarts == 0


async def test_a_replacement_that_cannot_start_gives_way_to_the_one_before(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        supervised = await bench.start()
        bad = Fragile(bench.starts, bench.ends, ConfigError("not like that"), at_start=True)
        with pytest.raises(StartError, match="failed to initialize worker 'fragile': not like that"):
            await supervised.replace(lambda: bad)
        await trio.testing.wait_all_tasks_blocked()
        assert (len(bench.made), supervised.module) == (2, bench.made[-1])
        assert (bench.core.modules, bench.here()) == ({"fragile": "running"}, True)


async def test_a_module_that_waits_for_its_restart_is_replaced_at_once(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        supervised = await bench.start()
        bench.fail(ValueError("a bug"))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await supervised.replace(lambda: Fragile(bench.starts, bench.ends))
        assert (trio.current_time(), bench.core.modules) == (began, {"fragile": "running"})
        assert len(bench.made) == 1


async def test_a_replacement_that_takes_for_ever_is_given_up_by_patience_or_by_stopping(
    autojump_clock: MockClock,
) -> None:
    async with open_bench() as bench:
        supervised = await bench.start()

        class Slow(Fragile):
            async def run(self, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
                await trio.sleep_forever()

        with trio.move_on_after(10):
            await supervised.replace(lambda: Slow(bench.starts, bench.ends))
        await trio.testing.wait_all_tasks_blocked()
        assert (len(bench.made), bench.core.modules) == (2, {"fragile": "running"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervised.replace, lambda: Slow(bench.starts, bench.ends))
            await trio.testing.wait_all_tasks_blocked()
            supervised.stop()
        await supervised.ended.wait()


async def test_calls_wait_while_a_module_is_replaced(autojump_clock: MockClock) -> None:
    class Answering(Fragile):
        """It takes a second to start, and one to answer."""

        async def run(self, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
            number = len(self.starts)
            self.starts.append(trio.current_time())
            await trio.sleep(1)
            if self.error is not None:
                raise self.error
            async with open_local(core, "fragile") as peer:

                async def answer(_call: object, _data: Json) -> Json:
                    await trio.sleep(1)
                    return Json.of(number)

                peer.register("fragile::number", answer, task=True, description="which it is")
                task_status.started()
                await trio.sleep_forever()

    async with open_bench() as bench:
        supervised = Supervised(bench.core, "fragile", lambda: Answering(bench.starts, bench.ends))
        await bench.nursery.start(supervised.run)
        answers: list[object] = []

        async def ask() -> None:
            answers.append((await bench.core.local.invoke("fragile::number")).decode())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(supervised.replace, lambda: Answering(bench.starts, bench.ends))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)
            with pytest.raises(WireError, match="did not answer within 500 ms"):
                await bench.core.local.invoke("fragile::number", timeout_s=0.5)
        assert answers == [0, 1]

        bad = Answering(bench.starts, bench.ends, ConfigError("no"))
        async with trio.open_nursery() as nursery:

            async def later() -> None:
                await trio.sleep(0.5)
                await ask()

            nursery.start_soon(later)
            with pytest.raises(StartError):
                await supervised.replace(lambda: bad)
        assert answers == [0, 1, 3]
        entry = bench.core.functions.get("default", "fragile::number")
        assert entry is not None
        assert entry.description == "which it is"
        assert bench.core.statistics().running == 0
