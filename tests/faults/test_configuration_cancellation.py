"""Promise P8 in the configuration: cancelled at any step, disk and memory agree, nobody waits for ever, modules run."""

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define

from iii_trio.config import Entry, HttpSettings, read_settings
from iii_trio.engine import Engine, open_engine, open_local
from iii_trio.host.adopt import Adoption, Hands
from iii_trio.host.plan import Block
from iii_trio.host.supervise import Supervised
from iii_trio.modules.configuration import EntryFiles, Registration, Registry
from iii_trio.modules.configuration.files import read_entry
from iii_trio.protocol import Json
from iii_trio.testing import CancelAtStep, sweep

ABOUT = Registration(id="x", name="X", description="", schema=Json.of({"type": "object"}))


async def register(registry: Registry) -> None:
    await registry.register(ABOUT, "me")
    await registry.register(
        Registration(id="x", name="Y", description="", schema=ABOUT.schema, initial=Json.of({})), "me"
    )


async def change(registry: Registry) -> None:
    await registry.set("x", Json.of({"n": 2}), "me")
    await registry.set("x", Json.of({"n": 3}), "me", merge=True, expected=Json.of({"n": 2}))


async def take_back(registry: Registry) -> None:
    await registry.history("x")
    await registry.reset("x", "me")


async def by_hand(registry: Registry) -> None:
    assert registry.files is not None
    (registry.files.directory / "x.yaml").write_text("id: x\nname: X\nvalue: {n: 5}\n")
    (registry.files.directory / "y.yaml").write_text("id: y\nvalue: {n: 6}\n")
    await registry.reconcile()


@pytest.mark.parametrize("work", [register, change, take_back, by_hand])
def test_disk_and_memory_agree(work: Callable[[Registry], Awaitable[None]], tmp_path: Path) -> None:
    numbers = itertools.count()

    async def once(cancel: CancelAtStep) -> None:
        directory = tmp_path / str(next(numbers))
        registry = Registry(files=EntryFiles(directory), environ={}, wall_ms=lambda: 0)
        await registry.register(ABOUT, "me")
        await registry.set("x", Json.of({"n": 1}), "me")
        await cancel.run(lambda: work(registry))
        if work is by_hand:
            await registry.reconcile()
            assert registry.find("y").kept.decode() == {"n": 6}
        for entry in registry.entries():
            file = directory / f"{entry.id}.yaml"
            assert (read_entry(file).kept if file.exists() else Json(b"")) == entry.kept
        past = await registry.history("x")
        assert past[0].value == registry.find("x").kept
        await registry.set("x", Json.of({"n": 9}), "me")
        assert read_entry(directory / "x.yaml").kept.decode() == {"n": 9}

    assert sweep(once) > 1


@define(eq=False)
class Module:
    """A module that takes a moment to start and one to end."""

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
        async with open_local(core, "slow") as peer:
            await trio.sleep(0.1)
            peer.register("slow::here", lambda call, data: pytest.fail("nobody calls it"))
            task_status.started()
            await trio.sleep_forever()

    def statistics(self) -> object:
        return None


def test_a_module_runs_whenever_its_replacement_is_given_up() -> None:
    async def once(cancel: CancelAtStep) -> None:
        async with open_engine() as core, trio.open_nursery() as nursery:
            supervised = Supervised(core, "slow", Module)
            await nursery.start(supervised.run)
            await cancel.run(lambda: supervised.replace(Module))
            await trio.sleep(5)
            assert core.modules == {"slow": "running"}
            assert core.functions.get("default", "slow::here") is not None
            await supervised.replace(Module)
            nursery.cancel_scope.cancel()

    assert sweep(once) > 5


def test_settings_are_old_or_new_and_can_be_changed_again() -> None:
    async def once(cancel: CancelAtStep) -> None:
        registry = Registry(environ={}, wall_ms=lambda: 0)
        adoption = Adoption(registry)
        entry = Entry("http", "http")
        adopted = adoption.read(Block(entry=entry, file=read_settings(HttpSettings, entry)))
        bound = [adopted.live.value.port]

        async def rebind(settings: Any) -> Any:
            await trio.sleep(0.1)
            bound.append(settings.port)
            return settings

        adopted.hands = Hands(rebind=rebind)
        block = Block(entry=entry, file=read_settings(HttpSettings, Entry("http", "http", config={"port": 5})))
        await cancel.run(lambda: adoption.refile(adopted, block))
        assert adopted.live.value == adopted.declared
        assert adopted.live.value.port == bound[-1]
        assert await adoption.refile(adopted, block)
        assert adopted.live.value.port == 5

    assert sweep(once) > 2
