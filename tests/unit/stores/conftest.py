"""Fixtures of the store tests: every kind of store, opened fresh."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from iii_trio.stores import Fsync, Store, WaitingJobLog, WaitingKeyValue, open_memory, open_sqlite

Opener = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture(params=["memory", "sqlite", "sqlite-inline"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """What opens a store of each kind; all must behave alike. Takes the bounds as keywords."""
    if request.param == "memory":
        return open_memory
    return partial(open_sqlite, tmp_path / "store.db", inline=request.param == "sqlite-inline", fsync=Fsync.NEVER)


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[Store]:
    """One store of each kind."""
    async with opener() as opened:
        yield opened


@pytest.fixture
def kv(store: Store) -> WaitingKeyValue:
    """A key-value handle for tasks."""
    return WaitingKeyValue(store.key_value("state"))


@pytest.fixture
def log(store: Store) -> WaitingJobLog:
    """A job-log handle for tasks."""
    return WaitingJobLog(store.job_log())
