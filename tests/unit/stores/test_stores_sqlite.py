"""What only the SQLite store has: file, lock, format, threads, quarantine."""

import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import (
    Change,
    Fsync,
    NewJob,
    Result,
    RowDamaged,
    StoreInUse,
    WaitingJobLog,
    WaitingKeyValue,
    open_sqlite,
    sqlite_file,
)


def job(name: str) -> NewJob:
    return NewJob(name, "q", "default", "f", b"payload of " + name.encode(), 3, 1000, 1, 1)


def store_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("store-")]


async def fill(path: Path) -> None:
    async with open_sqlite(path, inline=True, fsync=Fsync.NEVER) as store:
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        for number in range(5):
            await kv.set("s", f"key{number}", b"value%d" % number)
        jobs = await log.append([job("live"), job("dead"), job("other")])
        await log.dead_letter(jobs[1].seq, 3, "boom", 5)
        await log.remember("t", "default", "f")


def edit(path: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(statement, values)
    connection.close()


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "below" / "store.db"
    await fill(path)
    async with open_sqlite(path) as store:
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        assert await kv.items("s") == [(f"key{number}", b"value%d" % number) for number in range(5)]
        live = await log.load()
        assert [found.id for found in live] == ["live", "other"]
        [letter] = await log.dead_letters(["q"])
        assert (letter.job.id, letter.job.error, letter.failed_at_ms) == ("dead", "boom", 5)
        assert len(await log.destinations()) == 1
        [later] = await log.append([job("later")])
        assert later.seq > max(live[-1].seq, letter.job.seq)
        await kv.set("s", "key9", b"new")
        assert (await kv.items("s"))[-1][0] == "key9"
    assert sorted(name.name for name in path.parent.iterdir()) == ["store.db", "store.db.lock"]


@pytest.mark.parametrize("inline", [False, True])
async def test_a_second_opener_is_refused_with_file_and_process(tmp_path: Path, inline: bool) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite(path) as store:
        with pytest.raises(StoreInUse, match=rf"{path} is in use by another engine \(process {os.getpid()},"):
            async with open_sqlite(path, inline=inline):
                raise AssertionError
        await WaitingKeyValue(store.key_value("state")).set("s", "k", b"1")
    async with open_sqlite(path, inline=inline) as store:
        assert await WaitingKeyValue(store.key_value("state")).get("s", "k") == b"1"


async def test_a_stale_lock_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "store.db.lock").write_text("999999\n and more")
    async with open_sqlite(tmp_path / "store.db"):
        assert (tmp_path / "store.db.lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("inline", [False, True])
async def test_a_directory_that_cannot_be_made_refuses_the_start(tmp_path: Path, inline: bool) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        StoreError, match=f"data directory {tmp_path / 'file' / 'data'} cannot be made: Not a directory"
    ):
        async with open_sqlite(tmp_path / "file" / "data" / "store.db", inline=inline):
            raise AssertionError


async def test_a_directory_that_cannot_be_written_refuses_the_start() -> None:
    with pytest.raises(StoreError, match=r"cannot be written: .*Choose another"):
        async with open_sqlite("/proc/self/store.db", inline=True):
            raise AssertionError


async def test_a_directory_in_the_place_of_the_file_refuses_the_start(tmp_path: Path) -> None:
    (tmp_path / "store.db").mkdir()
    with pytest.raises(StoreError, match=r"store.db cannot be used as a store: unable to open"):
        async with open_sqlite(tmp_path / "store.db", inline=True):
            raise AssertionError


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"precious notes, certainly no database " * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a database"):
        async with open_sqlite(path):
            raise AssertionError
    assert path.read_bytes() == before


async def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    edit(path, "CREATE TABLE theirs (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="database of another program"):
        async with open_sqlite(path):
            raise AssertionError
    edit(path, "PRAGMA user_version = 1")
    with pytest.raises(StoreError, match="database of another program"):
        async with open_sqlite(path):
            raise AssertionError
    edit(path, "PRAGMA user_version = 0")
    assert len(path.read_bytes()) == len(before)


async def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 9))
    with pytest.raises(StoreError, match=r"SQLite 3\.37 or newer is needed"):
        async with open_sqlite(tmp_path / "store.db"):
            raise AssertionError
    assert os.listdir(tmp_path) == []


async def test_a_file_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    edit(path, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"written by a newer release \(format 99, this one knows 4\)"):
        async with open_sqlite(path):
            raise AssertionError
    edit(path, "PRAGMA user_version = 4")
    async with open_sqlite(path) as store:
        assert len(await WaitingKeyValue(store.key_value("state")).items("s")) == 5


async def test_an_older_file_is_migrated_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    added = "CREATE TABLE extra (x INTEGER NOT NULL) STRICT"
    broken = (*sqlite_file.MIGRATIONS, (added, "no statement"))
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "MIGRATIONS", broken)
        with pytest.raises(StoreError, match="syntax error"):
            async with open_sqlite(path):
                raise AssertionError
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, (added, "INSERT INTO extra VALUES (7)")))
    for _ in range(2):
        async with open_sqlite(path) as store:
            assert len(await WaitingKeyValue(store.key_value("state")).items("s")) == 5
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT x FROM extra").fetchall() == [(7,)]
    assert connection.execute("PRAGMA user_version").fetchone() == (5,)
    connection.close()


@pytest.mark.parametrize(("fsync", "level"), [(Fsync.ALWAYS, 2), (Fsync.INTERVAL, 1), (Fsync.NEVER, 0)])
async def test_fsync_sets_sqlites_level(tmp_path: Path, fsync: Fsync, level: int) -> None:
    async with open_sqlite(tmp_path / "store.db", fsync=fsync) as store:
        assert store._file._connection.execute("PRAGMA synchronous").fetchone() == (level,)
        assert store._file._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_inline_fsync_at_intervals_is_fsync_always(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "store.db", fsync=Fsync.INTERVAL, inline=True) as store:
        assert store._file._connection.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_fsync_at_intervals_forces_the_log_soon_after_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, forced = trio.lowlevel.current_trio_token(), trio.Event()
    force = sqlite_file.SqliteFile.force

    def count(self: sqlite_file.SqliteFile) -> None:
        force(self)
        token.run_sync_soon(forced.set)

    monkeypatch.setattr(sqlite_file.SqliteFile, "force", count)
    async with open_sqlite(tmp_path / "store.db", fsync=Fsync.INTERVAL, fsync_interval_s=0.01) as store:
        await WaitingKeyValue(store.key_value("state")).set("s", "k", b"1")
        with trio.fail_after(10):
            await forced.wait()


async def test_a_refused_fsync_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    token, forced, failures = trio.lowlevel.current_trio_token(), trio.Event(), [OSError(5, "Input/output error")]

    def force(_: sqlite_file.SqliteFile) -> None:
        if failures:
            raise failures.pop()
        token.run_sync_soon(forced.set)

    monkeypatch.setattr(sqlite_file.SqliteFile, "force", force)
    async with open_sqlite(tmp_path / "store.db", fsync=Fsync.INTERVAL, fsync_interval_s=0.01) as store:
        await WaitingKeyValue(store.key_value("state")).set("s", "k", b"1")
        with trio.fail_after(10):
            await forced.wait()
    assert "could not be forced to the disk: Input/output error" in caplog.text


async def test_the_threads_end_with_the_block(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "store.db") as store:
        await WaitingKeyValue(store.key_value("state")).set("s", "k", b"1")
        await store.checked()
        with trio.fail_after(5):
            while len(store_threads()) > 2:
                await trio.lowlevel.checkpoint()
        assert sorted(store_threads()) == ["store-reader store.db", "store-writer store.db"]
    with trio.fail_after(5):
        while store_threads():
            await trio.lowlevel.checkpoint()


async def test_inline_there_is_no_thread_and_a_virtual_clock_works(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(threading.Thread, "start", forbidden)
    async with open_sqlite(tmp_path / "store.db", inline=True) as store:
        kv = WaitingKeyValue(store.key_value("state"))
        with trio.fail_after(0.001):
            for number in range(20):
                await kv.set("s", str(number), b"1")
                assert len(await kv.values("s")) == number + 1
        await trio.sleep(3600)
        assert await kv.get("s", "3") == b"1"


async def test_operations_submitted_together_share_one_transaction(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "store.db") as store:
        kv = WaitingKeyValue(store.key_value("state"))
        started, go = threading.Event(), threading.Event()

        def hold(_: bytes | None) -> Change[None]:
            started.set()
            go.wait(10)
            return Change(None, None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kv.update, "s", "hold", hold)
            await trio.to_thread.run_sync(started.wait, 10)
            for number in range(100):
                nursery.start_soon(kv.set, f"s{number}", "k", b"1")
            await trio.testing.wait_all_tasks_blocked()
            go.set()
        statistics = store.statistics()
        assert (statistics.groups, statistics.largest_group) == (2, 100)
        assert (statistics.path, statistics.failed_groups) == (str(tmp_path / "store.db"), 0)


async def test_reads_do_not_wait_for_a_write_elsewhere(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "store.db") as store:
        kv = WaitingKeyValue(store.key_value("state"))
        await kv.set("quiet", "k", b"1")
        started, go = threading.Event(), threading.Event()

        def hold(_: bytes | None) -> Change[None]:
            started.set()
            go.wait(10)
            return Change(b"2", None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kv.update, "busy", "k", hold)
            await trio.to_thread.run_sync(started.wait, 10)
            with trio.fail_after(5):
                assert await kv.get("quiet", "k") == b"1"
                assert await kv.values("quiet") == [b"1"]
            go.set()
        assert await kv.get("busy", "k") == b"2"


@pytest.mark.parametrize("inline", [False, True])
async def test_an_error_of_sqlite_fails_the_group_and_changes_nothing(tmp_path: Path, inline: bool) -> None:
    async with open_sqlite(tmp_path / "store.db", inline=inline) as store:
        kv, answers = store.key_value("state"), []
        await WaitingKeyValue(kv).set("s", "k", b"before")

        def full(_: bytes | None) -> Change[None]:
            raise sqlite3.OperationalError("database or disk is full")

        def on_done(result: Result[Any]) -> None:
            answers.append(str(getattr(result, "error", "done")))

        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 10
            kv.update("s", "k", full, on_done)
            with pytest.raises(
                StoreError, match=r"Nothing was written to .*: database or disk is full\. Check the disk"
            ):
                await WaitingKeyValue(kv).update("s", "k", full)
        assert all("Nothing was written" in answer for answer in answers)
        assert await WaitingKeyValue(kv).get("s", "k") == b"before"
        assert await WaitingKeyValue(kv).set("s", "k", b"after") == b"before"
        assert store.statistics().failed_groups >= 1


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE kv SET value = x'00' WHERE key = 'key1'", "kv"),
        ("UPDATE kv SET key = 'kez1' WHERE key = 'key1'", "kv"),
        ("UPDATE kv SET pos = 77 WHERE key = 'key1'", "kv"),
        ("UPDATE jobs SET payload = x'00' WHERE id = 'live'", "jobs"),
        ("UPDATE jobs SET due_at_ms = 2 WHERE id = 'live'", "jobs"),
        ("UPDATE jobs SET attempts = 1 WHERE id = 'live'", "jobs"),
        ("UPDATE dead SET error = 'bang'", "dead"),
        ("UPDATE dead SET failed_at_ms = 6", "dead"),
        ("UPDATE destinations SET function_id = 'g'", "destinations"),
        ("UPDATE kv SET key = CAST(x'ff80' AS TEXT) WHERE key = 'key1'", "kv"),
    ],
)
async def test_a_damaged_row_is_set_aside_loudly_and_the_others_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, statement: str, table: str
) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    edit(path, statement)
    with caplog.at_level(logging.ERROR):
        async with open_sqlite(path, check_first=True) as store:
            assert store.statistics().set_aside == 1
            kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
            keys = [key for key, _ in await kv.items("s")]
            assert keys == [f"key{number}" for number in range(5) if table != "kv" or number != 1]
            assert [found.id for found in await log.load()] == (["other"] if table == "jobs" else ["live", "other"])
            assert len(await log.dead_letters(["q"])) == (table != "dead")
            assert len(await log.destinations()) == (table != "destinations")
            assert await kv.set("s", "key1", b"again") == (None if table == "kv" else b"value1")
    assert f"of table {table} in {path} was set aside in quarantine" in caplog.text
    async with open_sqlite(path) as store:
        assert store.statistics().set_aside == 1
    connection = sqlite3.connect(path)
    [(source, content)] = connection.execute("SELECT source, content FROM quarantine").fetchall()
    connection.close()
    assert source == table
    assert content.startswith("{")


@pytest.mark.parametrize("inline", [False, True])
async def test_damage_while_in_use_is_told_and_never_handed_out(
    tmp_path: Path, inline: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    async with open_sqlite(path, inline=inline) as store:
        edit(path, "UPDATE kv SET value = x'00' WHERE key = 'key1'")
        edit(path, "UPDATE jobs SET payload = x'00' WHERE id = 'live'")
        edit(path, "UPDATE dead SET error = 'bang'")
        edit(path, "UPDATE destinations SET function_id = 'g'")
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        with pytest.raises(RowDamaged, match=r"value of key 'key1' in scope 's' does not match its checksum"):
            await kv.get("s", "key1")
        assert await kv.get("s", "key1") is None
        assert [found.id for found in await log.load()] == ["other"]
        assert await log.dead_letters(["q"]) == []
        assert await log.destinations() == []
        assert store.statistics().set_aside == 4
        assert await kv.get("s", "key2") == b"value2"
        assert await log.ack(3)
    said = [record.message for record in caplog.records if "set aside in quarantine" in record.message]
    assert len(said) == 4
    assert "job 'live' of queue 'q'" in said[1]
    async with open_sqlite(path, check=False) as store:
        assert store.statistics().set_aside == 4


async def test_the_look_at_every_row_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    await fill(path)
    edit(path, "UPDATE kv SET value = x'00' WHERE key = 'key1'")
    async with open_sqlite(path, check=False) as store:
        assert not store.statistics().checking
        assert store.statistics().set_aside == 0
        with pytest.raises(RowDamaged):
            await WaitingKeyValue(store.key_value("state")).get("s", "key1")


async def test_a_defect_in_the_reader_leaves_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: Any) -> None:
        raise ZeroDivisionError("a defect")

    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, match="a defect")):
        async with open_sqlite(tmp_path / "store.db") as store:
            kv = WaitingKeyValue(store.key_value("state"))
            await kv.set("s", "k", b"1")
            monkeypatch.setattr("iii_trio.stores.sqlite_kv.SqliteKeyValueTable.get", defect)
            await kv.get("s", "k")
    with trio.fail_after(5):
        while store_threads():
            await trio.lowlevel.checkpoint()


async def test_a_disk_that_hangs_does_not_hold_the_end_for_ever(tmp_path: Path) -> None:
    go = threading.Event()

    def hang(_: bytes | None) -> Change[None]:
        go.wait(10)
        return Change(b"1", None)

    with pytest.RaisesGroup(pytest.RaisesExc(StoreError, match="not answered within")):
        try:
            async with open_sqlite(tmp_path / "store.db", close_timeout_s=0.05) as store:
                store.key_value("state").update("s", "k", hang, lambda _: None)
        finally:
            go.set()
