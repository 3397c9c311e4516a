"""A damaged row of the log holds up no queue: it is never delivered, nothing is tried for ever, and the counts are right."""

import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from queue_harness import World, configured, failing, open_world, stats
from trio.testing import MockClock, wait_all_tasks_blocked

from iii_trio.config import QueueSettings
from iii_trio.modules.queue import dispatch
from iii_trio.stores import SqliteStore, open_sqlite, sqlite_check

SETTINGS = configured(
    one=QueueSettings(concurrency=2, max_retries=1, backoff_ms=1000),
    fifo=QueueSettings(type="fifo", message_group_field="g", concurrency=2, max_retries=2, backoff_ms=1000),
)


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


@asynccontextmanager
async def opened(path: Path, check: bool = False) -> AsyncIterator[tuple[World, SqliteStore]]:
    """A queue on a file, inline, without a look at every row."""
    async with open_sqlite(path, inline=True, check=check) as store, open_world(SETTINGS, log=store.job_log()) as world:
        yield world, store


def payload(function_id: str) -> str:
    return f"UPDATE jobs SET payload = x'7b7d' WHERE function_id = '{function_id}'"


@pytest.mark.parametrize("queue", ["one", "fifo"])
async def test_damaged_messages_are_given_up_once_and_the_others_are_delivered(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, queue: str
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as (world, _):
        for n in range(6):
            await world.enqueue(queue, "f", {"n": n, "g": n % 2})
    edit(path, "UPDATE jobs SET payload = x'7b7d' WHERE seq IN (1, 4)")
    async with opened(path) as (world, store):
        handler = world.serve("f")
        assert {one["n"] for one in await handler.wait_finished(4)} == {1, 2, 4, 5}
        await wait_all_tasks_blocked()
        row = await stats(world, queue)
        assert (row["waiting"], row["delayed"], row["in_flight"]) == (0, 0, 0)
        assert store.statistics().set_aside == 2
        await world.enqueue(queue, "f", {"n": 6, "g": 0})
        await handler.wait_finished(5)
    assert caplog.text.count("was set aside in quarantine") == 2
    assert caplog.text.count("is not in the log any more") == 2
    assert "job " in caplog.text


async def test_a_message_whose_row_cannot_be_set_aside_is_not_tried_for_ever(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as (world, _):
        await world.enqueue("one", "f", {"n": 0})
        await world.enqueue("one", "f", {"n": 1})
    edit(path, "UPDATE jobs SET payload = x'7b7d' WHERE seq = 1")

    def malformed(*_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(sqlite_check, "_move", malformed)
    async with opened(path) as (world, _):
        handler = world.serve("f")
        assert await handler.wait_finished(1) == [{"n": 1}]
        await wait_all_tasks_blocked()
        row = await stats(world, "one")
        assert (row["waiting"], row["delayed"], row["in_flight"]) == (0, 0, 0)
    assert caplog.text.count("message 1 is given up") == 1
    assert "stays where it lies: database disk image is malformed" in caplog.text
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT seq FROM jobs").fetchall() == [(1,)]


async def test_a_message_that_fails_for_the_last_time_and_is_damaged_by_then_is_no_dead_letter(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"

    async def damage(number: int, data: Any) -> None:
        edit(path, payload("f"))
        await failing()(number, data)

    async with opened(path) as (world, store):
        handler = world.serve("f", damage)
        await world.enqueue("one", "f", {"n": 0})
        await handler.wait(1)
        world.serve("g", failing())
        await world.enqueue("one", "g", {"n": 1})
        assert [letter["payload"] for letter in await world.wait_dead("one", 1)] == [{"n": 1}]
        await wait_all_tasks_blocked()
        row = await stats(world, "one")
        assert (row["waiting"], row["delayed"], row["in_flight"]) == (0, 0, 0)
        assert (await world.stats("one"))["dlq_depth"] == 1
        assert store.statistics().set_aside == 1
    assert caplog.text.count("is not in the log any more") == 1


async def test_the_depth_of_the_dead_letters_goes_without_those_set_aside(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as (world, _):
        world.serve("f", failing())
        for n in range(3):
            await world.enqueue("one", "f", {"n": n})
        await world.wait_dead("one", 3)
    edit(path, "UPDATE dead SET error = 'other' WHERE seq = (SELECT min(seq) FROM dead)")
    async with opened(path) as (world, _):
        assert (await world.stats("one"))["dlq_depth"] == 3
        assert len(await world.dead("one")) == 2
        assert (await world.stats("one"))["dlq_depth"] == 2


async def test_what_waits_for_a_first_subscriber_is_counted_without_those_set_aside(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as (world, _):
        for n in range(3):
            await world.publish("t", {"n": n})
    edit(path, "UPDATE jobs SET payload = x'7b7d' WHERE seq = 2")
    async with opened(path) as (world, _):
        assert world.module.statistics().unclaimed == 3
        handler = world.serve("f")
        world.bind("f", {"topic": "t"})
        assert sorted(one["n"] for one in await handler.wait_finished(2)) == [0, 2]
        assert world.module.statistics().unclaimed == 0


async def test_a_queue_whose_name_is_damaged_does_not_stop_the_start(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as (world, _):
        world.serve("bad", failing())
        await world.enqueue("one", "bad", {})
        await world.wait_dead("one", 1)
        await world.enqueue("one", "f", {"n": 0})
        await world.enqueue("one", "f", {"n": 1})
    edit(
        path,
        "UPDATE jobs SET queue = 'qveue@one' WHERE seq = (SELECT min(seq) FROM jobs)",
        "UPDATE dead SET queue = 'x'",
    )
    with caplog.at_level(logging.ERROR, logger=dispatch.__name__):
        async with opened(path) as (world, _):
            handler = world.serve("f")
            assert await handler.wait_finished(1) == [{"n": 1}]
    assert caplog.text.count("whose name is damaged stays where it lies") == 2
