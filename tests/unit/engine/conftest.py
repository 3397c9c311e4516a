"""Fixtures of the core's tests: an engine and a port for raw workers; tests ask for `autojump_clock` themselves."""

from collections.abc import AsyncIterator

import pytest

from iii_trio.engine import Clock, Engine, open_engine
from iii_trio.testing.raw import RawPort, open_port


@pytest.fixture
async def core() -> AsyncIterator[Engine]:
    """An engine whose wall clock starts at 1,700,000,000."""
    async with open_engine(clock=Clock(epoch=1_700_000_000)) as engine:
        yield engine


@pytest.fixture
async def port(core: Engine) -> AsyncIterator[RawPort]:
    """Where raw workers connect."""
    async with open_port(core) as raw:
        yield raw
