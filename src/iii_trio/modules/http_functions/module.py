"""The module: registrations with an `invocation` come to it for as long as it runs (spec/protocol.md §6)."""

import logging
import os
import ssl
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

from ...config import HttpFunctionsSettings, Live
from ...engine import Engine, open_local
from ...protocol.limits import HTTP_CALLS, HTTP_LOOKUPS
from .runner import Runner, RunnerStatistics
from .transport import Destinations
from .urls import Resolve, SystemResolver, UrlRules

log = logging.getLogger(__name__)

NAME: Final = "http-functions"


@define(eq=False)
class HttpFunctionsModule:
    """The module. `resolve`, `tls` and `variable` stand for the system's resolver, its certificates and its environment."""

    settings: Live[HttpFunctionsSettings]
    resolve: Resolve = field(factory=SystemResolver)
    tls: ssl.SSLContext = field(factory=ssl.create_default_context)
    variable: Callable[[str], str | None] = os.environ.get
    _runner: Runner | None = field(default=None, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is told once registrations are taken."""
        settings = self.settings.value
        for pattern in settings.security.url_allowlist:
            if "/" in pattern:
                log.warning("url_allowlist: %r matches nothing, for hosts are compared and not URLs", pattern)
        async with trio.open_nursery() as closing:
            destinations = Destinations(core.deadlines, self.tls, closing)
            try:
                async with open_local(core, NAME, HTTP_CALLS) as peer:
                    rules = UrlRules(settings.security, self.resolve)
                    runner = self._runner = Runner(settings, core, peer, rules, destinations, self.variable)
                    core.delegation.open(runner)
                    try:
                        async with trio.open_nursery() as checking:
                            for _ in range(HTTP_LOOKUPS):
                                checking.start_soon(runner.check, name="check of registered URLs")
                            task_status.started()
                    finally:
                        core.delegation.close()
            finally:
                await destinations.aclose()

    def statistics(self) -> RunnerStatistics:
        """A frozen picture of registrations, calls and connections."""
        return RunnerStatistics() if self._runner is None else self._runner.statistics()
