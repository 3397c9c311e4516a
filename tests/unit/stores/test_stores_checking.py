"""Opening a file takes as long for many rows as for few: when every row is looked at, and what becomes of a damaged one."""

import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import (
    Fsync,
    Heading,
    NewJob,
    Once,
    RowDamaged,
    SqliteStore,
    Stretch,
    WaitingJobLog,
    WaitingKeyValue,
    open_sqlite,
    sqlite_check,
)

DAMAGE = "UPDATE kv SET value = x'00' WHERE key = 'key1'"


def job(name: str) -> NewJob:
    return NewJob(name, "q", "default", "f", b"payload of " + name.encode(), 3, 1000, 1, 1)


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def history(path: Path) -> tuple[int, bool, bool]:
    """When the file passed (Unix ms), whether it was closed in order, whether something was found."""
    with closing(sqlite3.connect(path)) as connection:
        found = sqlite_check.read_history(connection)
    return found.passed_at_ms, found.closed, found.damaged


async def fill(path: Path) -> None:
    """Some of everything, closed in order before anybody could look at it twice."""
    async with open_sqlite(path, check_first=True) as store:
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        for number in range(3):
            await kv.set("s", f"key{number}", b"%d" % number)
        jobs = await log.append([job(name) for name in ("one", "two", "three", "dead", "gone")])
        for one in jobs[3:]:
            await log.dead_letter(one.seq, 3, "boom", 5)
        await log.remember("t", "default", "f")
        await log.remember("t", "default", "g")


async def test_a_file_that_passed_and_was_closed_in_order_is_not_looked_over_again(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    passed_at_ms, closed, damaged = history(path)
    assert (closed, damaged) == (True, False)
    assert time.time() * 1000 - passed_at_ms < 60_000
    edit(path, DAMAGE)
    for _ in range(2):
        async with open_sqlite(path) as store:
            assert not store.statistics().checking
            await store.checked()
            assert history(path) == (passed_at_ms, False, False)  # so says a file whose engine is killed now
        assert history(path) == (passed_at_ms, True, False)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE checks SET closed = 0",
        f"UPDATE checks SET passed_at_ms = passed_at_ms - {sqlite_check.GOOD_FOR_MS}",
        "UPDATE checks SET passed_at_ms = passed_at_ms + 3600000",
        "DELETE FROM checks",
    ],
)
async def test_a_file_that_is_due_is_looked_over_beside_the_work(
    tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    edit(path, change)
    with caplog.at_level(logging.DEBUG, logger=sqlite_check.__name__):
        async with open_sqlite(path) as store:
            assert store.statistics().checking
            await WaitingKeyValue(store.key_value("state")).set("s", "new", b"1")
            await store.checked()
            assert not store.statistics().checking
    assert "were looked at beside the work, and are sound" in caplog.text
    passed_at_ms, closed, damaged = history(path)
    assert (closed, damaged) == (True, False)
    assert 0 <= time.time() * 1000 - passed_at_ms < 60_000


async def test_what_is_never_forced_is_always_due(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    for _ in range(2):
        async with open_sqlite(path, fsync=Fsync.NEVER) as store:
            await store.checked()
        assert history(path)[1:] == (False, False)


async def test_a_look_that_is_broken_off_is_due_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    edit(path, "UPDATE checks SET closed = 0, passed_at_ms = 7")
    monkeypatch.setattr(sqlite_check, "STEP_ROWS", 1)
    monkeypatch.setattr(sqlite_check, "PAUSE", 1e9)
    with trio.fail_after(20):
        async with open_sqlite(path) as store:
            await WaitingKeyValue(store.key_value("state")).set("s", "new", b"1")
            assert store.statistics().checking
    assert history(path) == (7, False, False)


async def test_damage_found_beside_the_work_is_told_and_set_aside_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    edit(path, DAMAGE, "UPDATE jobs SET payload = x'00' WHERE id = 'two'", "UPDATE checks SET closed = 0")
    monkeypatch.setattr(sqlite_check, "STEP_ROWS", 2)
    async with open_sqlite(path) as store:
        await store.checked()
        assert store.statistics().set_aside == 0
    assert f"row 2 of table kv in {path} is damaged" in caplog.text
    assert f"row 2 of table jobs in {path} is damaged" in caplog.text
    assert history(path)[2]
    async with open_sqlite(path) as store:
        assert not store.statistics().checking
        assert store.statistics().set_aside == 2
        assert await WaitingKeyValue(store.key_value("state")).get("s", "key1") is None
    assert history(path)[1:] == (True, False)


async def test_a_file_damaged_beyond_rows_is_told_and_refused_by_the_next_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    # an index from which an entry is missing: what it should find would be missing in silence
    sql = "UPDATE sqlite_master SET sql = 'CREATE INDEX dead_id ON dead(id){}' WHERE name = 'dead_id'"
    partial = ("PRAGMA writable_schema = ON", sql.format(" WHERE seq > 6"), "PRAGMA writable_schema = RESET")
    whole = ("PRAGMA writable_schema = ON", sql.format(""), "PRAGMA writable_schema = RESET")
    edit(path, *partial, "REINDEX dead_id", *whole, "UPDATE checks SET closed = 0")
    async with open_sqlite(path) as store:
        await store.checked()
    assert f"{path} is damaged" in caplog.text
    with pytest.raises(StoreError, match=r"is damaged: .*Restore a backup"):
        async with open_sqlite(path):
            raise AssertionError


Work = Callable[[WaitingJobLog], Awaitable[Any]]


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    ("statement", "work", "answer"),
    [
        ("UPDATE jobs SET payload = x'00' WHERE id = 'two'", lambda log: log.load(), ["one", "three"]),
        ("UPDATE jobs SET payload = x'00' WHERE id = 'two'", lambda log: log.find([1, 2, 3]), ["one", "three"]),
        ("UPDATE jobs SET payload = x'00' WHERE seq < 3", lambda log: log.find([1, 2, 3]), ["three"]),
        ("UPDATE jobs SET attempts = 2 WHERE id = 'two'", lambda log: log.retry(2, 1, 1, 1, "e"), False),
        ("UPDATE jobs SET attempts = 2 WHERE id = 'two'", lambda log: log.dead_letter(2, 1, "e", 1), False),
        ("UPDATE dead SET error = 'bang' WHERE id = 'dead'", lambda log: log.redrive("q", 10, 1), ["gone"]),
        ("UPDATE dead SET error = 'bang' WHERE id = 'dead'", lambda log: log.redrive_one("q", "dead", 1), None),
        ("UPDATE notes SET value = x'00' WHERE name = 'a'", lambda log: log.notes(), ["b"]),
        ("UPDATE taken_keys SET until_ms = 99", lambda log: log.append_once([job("x")], Once("q", "k", 5, 6)), ["x"]),
    ],
)
async def test_whoever_meets_a_damaged_row_goes_on_without_it(
    tmp_path: Path, statement: str, work: Work, answer: object, inline: bool
) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    async with open_sqlite(path, inline=inline) as store:
        log = WaitingJobLog(store.job_log())
        await log.note("k", "a", b"1")
        await log.note("k", "b", b"2")
        await log.append_once([], Once("q", "k", 1, 50))
        edit(path, statement)
        found = await work(log)
        assert ([getattr(one, "id", None) or one.name for one in found] if isinstance(found, list) else found) == answer
        set_aside = store.statistics().set_aside
        assert set_aside == (2 if "seq < 3" in statement else 1)
        await work(log)
        assert store.statistics().set_aside == set_aside
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM quarantine").fetchone() == (set_aside,)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("inline", [False, True])
async def test_a_page_has_only_the_heading_of_a_damaged_job_and_its_queue_does_not_find_it(
    tmp_path: Path, inline: bool
) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    async with open_sqlite(path, inline=inline) as store:
        log = WaitingJobLog(store.job_log())
        edit(path, "UPDATE jobs SET payload = x'00' WHERE id = 'two'")
        [page] = await log.pages("q", [Stretch(("default", "f"), False, 255, 0, 10)], 10_000)
        assert [type(one) is Heading for one in page] == [False, True, False]
        assert await log.find([2]) == []
        [page] = await log.pages("q", [Stretch(("default", "f"), False, 255, 0, 10)], 10_000)
        assert [one.seq for one in page] == [1, 3]


@pytest.mark.parametrize("inline", [False, True])
async def test_who_asks_for_a_damaged_value_is_told_once(tmp_path: Path, inline: bool) -> None:
    path = tmp_path / "store.db"
    await fill(path)

    async def each(store: SqliteStore, ask: Callable[[WaitingKeyValue], Awaitable[Any]], then: object) -> None:
        kv = WaitingKeyValue(store.key_value("state"))
        await kv.set("s", "key1", b"1")
        edit(path, DAMAGE)
        with pytest.raises(RowDamaged, match="value of key 'key1' in scope 's' does not match its checksum"):
            await ask(kv)
        assert await ask(kv) == then

    async with open_sqlite(path, inline=inline) as store:
        await each(store, lambda kv: kv.get("s", "key1"), None)
        await each(store, lambda kv: kv.set("s", "key1", b"2"), None)
        await each(store, lambda kv: kv.delete("s", "key1"), None)
        await WaitingKeyValue(store.key_value("state")).set("s", "key1", b"1")
        edit(path, DAMAGE)
        items = await WaitingKeyValue(store.key_value("state")).items("s")
        assert items == [("key0", b"0"), ("key2", b"2")]
        assert store.statistics().set_aside == 4


async def test_a_row_that_cannot_be_set_aside_now_is_not_handed_out_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    await fill(path)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with open_sqlite(path) as store:
        log = WaitingJobLog(store.job_log())
        edit(path, "UPDATE jobs SET payload = x'00' WHERE id = 'two'")
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_check, "_move", full)
            with pytest.raises(RowDamaged):
                await log.load()
        assert store.statistics().set_aside == 0
        assert [one.id for one in await log.load()] == ["one", "three"]
        assert store.statistics().set_aside == 1
    assert caplog.text.count("was set aside in quarantine") == 1


async def test_those_who_listen_hear_of_each_job_that_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    heard: list[tuple[str, str]] = []
    async with open_sqlite(path) as store:
        handle = store.job_log()
        unlisten = handle.listen(lambda table, queue: heard.append((table, queue)))
        log = WaitingJobLog(handle)
        edit(
            path, "UPDATE jobs SET payload = x'00' WHERE id = 'two'", "UPDATE dead SET error = 'bang' WHERE id = 'dead'"
        )
        await log.load()
        assert heard == [("jobs", "q")]
        assert history(path)[1:] == (False, True)  # so says a file whose engine is killed now
        await log.dead_letters(["q"])
        assert heard == [("jobs", "q"), ("dead", "q")]
        edit(path, "UPDATE destinations SET function_id = 'h' WHERE function_id = 'g'")
        assert [one.function_id for one in await log.destinations()] == ["f"]
        assert len(heard) == 2
        unlisten()
        edit(path, "UPDATE jobs SET payload = x'00' WHERE id = 'one'")
        await log.load()
        assert len(heard) == 2


async def test_a_defect_of_who_listens_leaves_the_block(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await fill(path)

    def defect(*_: str) -> None:
        raise ZeroDivisionError("a defect")

    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, match="a defect")):
        async with open_sqlite(path) as store:
            handle = store.job_log()
            handle.listen(defect)
            edit(path, "UPDATE jobs SET payload = x'00' WHERE id = 'two'")
            await WaitingJobLog(handle).load()
            await trio.sleep_forever()


async def test_the_look_at_sqlites_own_books_can_be_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    monkeypatch.setattr(sqlite_check, "PROGRESS_OPS", 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert sqlite_check.look_over(connection, str(path), lambda _: False) is True
        assert sqlite_check.look_over(connection, str(path), lambda seconds: seconds == 0.0) is None
