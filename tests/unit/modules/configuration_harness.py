"""What the tests of the configuration module share: an engine with the module over memory, and callers with and without rights."""

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import define
from module_harness import ask, running

from iii_trio.config import ConfigurationSettings, Live
from iii_trio.engine import Engine, ExposeFilter, LocalPeer, Pattern, Session, open_local
from iii_trio.modules.configuration import ConfigurationModule, Registry
from iii_trio.protocol.errors import WireError

PORT_SCHEMA = {
    "type": "object",
    "properties": {"port": {"type": "integer", "minimum": 1}, "name": {"type": "string"}},
    "additionalProperties": False,
}


@define
class Bench:
    """An engine with the module, and somebody trusted who asks."""

    core: Engine
    user: LocalPeer
    registry: Registry
    module: ConfigurationModule
    environ: dict[str, str]

    async def call(self, verb: str, /, **payload: Any) -> Any:
        return await ask(self.user, f"configuration::{verb}", payload)

    async def refused(self, verb: str, /, **payload: Any) -> WireError:
        with pytest.raises(WireError) as raised:
            await self.call(verb, **payload)
        return raised.value

    async def register(self, entry_id: str = "x", schema: Any = PORT_SCHEMA, **more: Any) -> Any:
        return await self.call("register", id=entry_id, name="X", description="an x", schema=schema, **more)


@asynccontextmanager
async def configuration(
    environ: Mapping[str, str] | None = None, settings: ConfigurationSettings | None = None
) -> AsyncIterator[Bench]:
    """The module over an empty registry in memory."""
    variables = dict(environ or {})
    ticks = iter(range(1_000_000))
    registry = Registry(environ=variables, wall_ms=lambda: next(ticks))
    module = ConfigurationModule(Live(settings or ConfigurationSettings()), registry)
    async with running(module) as (core, user):
        user.injects = True  # as a connection does
        yield Bench(core, user, registry, module, variables)


@asynccontextmanager
async def session(core: Engine, *grants: str) -> AsyncIterator[LocalPeer]:
    """A peer under access control that may call what `grants` say."""
    async with open_local(core, f"session-{uuid.uuid4().hex[:6]}") as peer:
        peer.injects = True
        peer.session = Session(expose=tuple(ExposeFilter(pattern=Pattern.of(grant)) for grant in grants))
        yield peer
