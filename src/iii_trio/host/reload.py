"""Hot reload of the config file: all of it is read and checked before any of it counts (spec/pubsub-cron-config-cli.md §7.7).

A file that cannot be used changes nothing, and the log says why. Otherwise every worker whose block is as it was stays
untouched; the others are changed, started or ended one by one, and one that cannot be keeps what it had, without harm
to the rest. Connected workers notice a reload only when the worker port itself changes.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from ..config import (
    ConfigurationSettings,
    EngineConfig,
    Live,
    changed_settings,
    load_config,
    watch_directory,
)
from ..engine import Engine
from ..protocol.errors import IIIError
from .adopt import Adoption
from .checks import check_plan
from .crew import MAKERS, Crew
from .plan import Block, Overrides, Plan, make_plan
from .ports import Ports
from .supervise import leaves

log = logging.getLogger(__name__)

ENGINE_WIDE: Final = (
    "grace_ms",
    "shutdown_grace_ms",
    "default_invocation_timeout_ms",
    "slow_call_ms",
    "max_buffered_bytes",
    "data_dir",
)
"""What the engine reads once, at its start."""


@frozen
class ReloadStatistics:
    """How often a changed file was `taken` over, and how often `refused` as a whole."""

    taken: int
    refused: int


@define(eq=False)
class Reload:
    """Follows one config file. `config` and `plan` are what holds now."""

    config: EngineConfig
    overrides: Overrides
    plan: Plan
    crew: Crew
    ports: Ports
    adoption: Adoption
    configuration: Live[ConfigurationSettings]
    environ: Mapping[str, str] = field(factory=lambda: os.environ)
    _seen: bytes | None = field(default=None, init=False)
    _taken: int = field(default=0, init=False)
    _refused: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        assert self.config.source is not None
        self._seen = _content(self.config.source)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the file's directory until cancelled."""
        source = self.config.source
        assert source is not None
        task_status.started()
        await watch_directory(source.absolute().parent, lambda name: name == source.name, self.look)
        await trio.sleep_forever()  # it cannot be watched, and the log says so

    async def look(self) -> None:
        """Read the file if it is not what it was when it was last looked at."""
        source = self.config.source
        assert source is not None
        content = _content(source)
        if content == self._seen:
            return
        self._seen = content
        if content is not None and not content.strip():
            self._refused += 1
            log.error("%s is empty, everything runs on as it was; `workers: []` would end what runs", source)
            return
        try:
            config = await trio.to_thread.run_sync(load_config, source, self.environ)
            plan = make_plan(config, self.overrides)
            check_plan(plan, config.token)
        except IIIError as error:
            self._refused += 1
            log.error("the configuration is not taken over, everything runs on as it was: %s", error)
            return
        for note in plan.notes:
            if note not in self.plan.notes:
                log.warning("%s", note)
        await self._become(config, plan)

    async def _become(self, config: EngineConfig, plan: Plan) -> None:
        waiting = [name for name in ENGINE_WIDE if getattr(config, name) != getattr(self.config, name)]
        changes = changed_settings(self.plan.configuration, plan.configuration)
        waiting += [f"{name} of the configuration worker" for name, tier in changes.items() if tier != "live"]
        self.configuration.set(plan.configuration)
        if waiting:
            log.warning("%s: takes effect at the next start of the engine", ", ".join(waiting))
        failed = 0
        for name in MAKERS:
            old, new = self.plan.blocks.get(name), plan.blocks.get(name)
            failed += not await self._worker(name, old, new)
        try:
            await self.ports.become(plan.listeners)
        except (IIIError, ExceptionGroup) as error:
            failed += 1
            log.error("the worker port stays as it was: %s", _said(error))
        self._taken += 1
        self.config, self.plan = config, evolve(plan, data_dir=self.plan.data_dir)
        log.info("the configuration was read again from %s%s", config.source, f", {failed} problems" if failed else "")

    async def _worker(self, name: str, old: Block | None, new: Block | None) -> bool:
        """Change, start or end one worker; False if that failed and the log says why."""
        running = name in self.crew.modules
        try:
            if new is None:
                if running:
                    await self.crew.stop(name)
                    log.info("worker %s: not listed any more, ended", name)
            elif not running:
                await self.crew.start(new)
                started = self.adoption.get(name)
                if started is not None:
                    await self.adoption.introduce(started)
                log.info("worker %s: started, %s", new.entry.label, new.sources())
            elif (adopted := self.adoption.get(name)) is not None and (adopted.pending or _differ(old, new)):
                if not await self.adoption.refile(adopted, new):
                    return False
                self.adoption.log_sources([new])
        except (IIIError, ExceptionGroup) as error:
            log.error("worker %s stays as it was: %s", name, _said(error))
            return False
        return True

    def statistics(self) -> ReloadStatistics:
        """A frozen picture of what came of the file's changes."""
        return ReloadStatistics(self._taken, self._refused)


def _differ(old: Block | None, new: Block) -> bool:
    return old is None or (old.file.settings, old.file.given) != (new.file.settings, new.file.given)


def _content(source: Path) -> bytes | None:
    """What the file holds; None while it cannot be read."""
    try:
        return source.read_bytes()
    except OSError:
        return None


def _said(error: IIIError | ExceptionGroup[Exception]) -> str:
    """The text of errors raised on purpose; any other is raised again."""
    found = list(leaves(error))
    if not all(isinstance(cause, IIIError) for cause in found):
        raise error
    return "; ".join(map(str, found))
