"""Backups: of one moment, whole or not at all, put back with nothing deleted; and exports."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
import trio

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import (
    Folder,
    Fsync,
    NewJob,
    SqliteStore,
    StoreInUse,
    WaitingJobLog,
    WaitingKeyValue,
    check_backup,
    export_jobs,
    export_values,
    open_sqlite,
    read_manifest,
    restore_backup,
    write_backup,
)

MADE = {"made_at": "2026-01-01T00:00:00Z", "release": "1.2.3"}


def job(name: str) -> NewJob:
    return NewJob(name, "q", "default", "f", json.dumps({"name": name}).encode(), 3, 1000, 1, 1)


async def fill(store: SqliteStore, *names: str) -> None:
    kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
    for name in names:
        await kv.set("s", name, json.dumps(name).encode())
    await log.append([job(name) for name in names])


async def content(path: Path) -> tuple[list[str], list[str]]:
    async with open_sqlite(path) as store:
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        return [key for key, _ in await kv.items("s")], [found.id for found in await log.load()]


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("inline", [True, False])
async def test_a_snapshot_is_the_moment_it_was_taken(tmp_path: Path, inline: bool) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite(path, inline=inline, fsync=Fsync.NEVER) as store:
        await fill(store, "before")
        snapshot = store.snapshot()
        await fill(store, "after")
        manifest = write_backup(tmp_path / "b", {"state": snapshot, "queue": snapshot}, folders={}, **MADE)
        snapshot.close()
    assert [file.names for file in manifest.files] == [("state", "queue")]
    assert check_backup(tmp_path / "b") == read_manifest(tmp_path / "b") == manifest
    assert await content(path) == (["before", "after"], ["before", "after"])
    restore_backup(tmp_path / "b", {"state": path, "queue": path}, folders={}, aside="replaced")
    assert await content(path) == (["before"], ["before"])
    assert await content(tmp_path / "replaced" / "store.db") == (["before", "after"], ["before", "after"])


async def test_several_files_are_of_one_moment_under_load(tmp_path: Path) -> None:
    """A row in the second file is written only after its cause in the first one has been answered."""
    first_path, second_path = tmp_path / "first.db", tmp_path / "second.db"
    async with open_sqlite(first_path) as first, open_sqlite(second_path) as second, trio.open_nursery() as nursery:
        causes, effects = WaitingKeyValue(first.key_value("state")), WaitingKeyValue(second.key_value("state"))

        async def write(name: str) -> None:
            number = 0
            while True:
                await causes.set("s", f"{name}{number}", b"1")
                await effects.set("s", f"{name}{number}", b"1")
                number += 1

        for name in "abcdefgh":
            nursery.start_soon(write, name)
        for number in range(8):
            while not await effects.items("s"):
                pass
            snapshots = {"first": first.snapshot(), "second": second.snapshot()}
            directory = tmp_path / f"backup{number}"
            await trio.to_thread.run_sync(lambda d=directory, s=snapshots: write_backup(d, s, folders={}, **MADE))
            for snapshot in snapshots.values():
                snapshot.close()
            found = {row["key"] for row in export_values(directory / "first.sqlite3", "state")}
            assert {row["key"] for row in export_values(directory / "second.sqlite3", "state")} <= found
        nursery.cancel_scope.cancel()


async def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "store.db", inline=True) as store:
        await fill(store, "a")
        snapshot = store.snapshot()

        def stop() -> None:
            raise InterruptedError(4, "stopped")

        with pytest.raises(StoreError, match="No backup was made"):
            write_backup(tmp_path / "b", {"state": snapshot}, folders={}, keep_on=stop, **MADE)
        assert files(tmp_path) <= {"store.db", "store.db.lock", "store.db-wal", "store.db-shm"}
        write_backup(tmp_path / "b", {"state": snapshot}, folders={}, **MADE)
        with pytest.raises(StoreError, match="is there already"):
            write_backup(tmp_path / "b", {"state": snapshot}, folders={}, **MADE)
        snapshot.close()


def folder(directory: Path, *names: str) -> Folder:
    return Folder(directory, lambda: [directory / name for name in names])


def texts(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    """A directory that the engine shares with somebody else."""
    directory = tmp_path / "entries"
    (directory / ".history").mkdir(parents=True)
    (directory / "mail.yaml").write_text("a: 1\n")
    (directory / ".history" / "mail.json").write_text("[]")
    (directory / "theirs.yaml").write_text("t: 1\n")
    return directory


async def test_files_of_folders_go_along_and_come_back(tmp_path: Path, entries: Path) -> None:
    ours = folder(entries, "mail.yaml", ".history/mail.json", "gone.yaml")
    write_backup(tmp_path / "b", {}, folders={"configuration": ours, "absent": folder(tmp_path / "none")}, **MADE)
    assert not (tmp_path / "b" / "configuration" / "theirs.yaml").exists()
    (entries / "mail.yaml").write_text("a: 2\n")
    (entries / "new.yaml").write_text("b: 1\n")
    (entries / "theirs.yaml").write_text("t: 2\n")
    _, moved = restore_backup(
        tmp_path / "b", {}, folders={"configuration": folder(entries, "new.yaml")}, aside="replaced"
    )
    assert moved == [entries / "replaced"]
    assert texts(entries / "replaced") == {"mail.yaml": "a: 2\n", "new.yaml": "b: 1\n", ".history/mail.json": "[]"}
    left = {name: text for name, text in texts(entries).items() if not name.startswith("replaced")}
    assert left == {"mail.yaml": "a: 1\n", ".history/mail.json": "[]", "theirs.yaml": "t: 2\n"}


async def test_a_folder_that_is_not_there_comes_back(tmp_path: Path, entries: Path) -> None:
    write_backup(tmp_path / "b", {}, folders={"configuration": folder(entries, "mail.yaml")}, **MADE)
    deep = tmp_path / "not" / "there"
    restore_backup(tmp_path / "b", {}, folders={"configuration": folder(deep)}, aside="replaced")
    assert texts(deep) == {"mail.yaml": "a: 1\n"}


@pytest.mark.parametrize("damage", ["change", "remove"])
async def test_every_byte_of_a_folder_is_checked_before_anything_changes(
    tmp_path: Path, entries: Path, damage: str
) -> None:
    async with open_sqlite(tmp_path / "store.db", inline=True) as store:
        snapshot = store.snapshot()
        folders = {"configuration": folder(entries, "mail.yaml")}
        write_backup(tmp_path / "b", {"state": snapshot}, folders=folders, **MADE)
        snapshot.close()
    copy = tmp_path / "b" / "configuration" / "mail.yaml"
    copy.unlink() if damage == "remove" else copy.write_text("a: 9\n")
    target = tmp_path / "target.db"
    with pytest.raises(StoreError, match="Use another backup"):
        restore_backup(tmp_path / "b", {"state": target}, folders=folders, aside="replaced")
    assert not target.exists()
    assert (entries / "mail.yaml").read_text() == "a: 1\n"


async def test_a_backup_reaches_no_file_outside(tmp_path: Path, entries: Path) -> None:
    write_backup(tmp_path / "b", {}, folders={"configuration": folder(entries, "mail.yaml")}, **MADE)
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("configuration/mail.yaml", "configuration/../../outside"))
    (tmp_path / "outside").write_text("a: 1\n")
    with pytest.raises(StoreError, match="damaged"):
        restore_backup(tmp_path / "b", {}, folders={"configuration": folder(entries)}, aside="replaced")


async def test_two_restores_at_once_keep_what_both_replaced(tmp_path: Path) -> None:
    backup, path = await backed_up(tmp_path), tmp_path / "store.db"
    async with open_sqlite(path, inline=True) as store:
        await fill(store, "later")
    for number in range(2):
        _, moved = restore_backup(backup, {"state": path}, folders={}, aside="replaced")
        assert moved == [tmp_path / ("replaced" if number == 0 else "replaced-2")]
    assert (await content(tmp_path / "replaced" / "store.db"))[0] == ["a", "later"]


async def test_a_backup_is_not_taken_for_the_beginnings_of_another(tmp_path: Path) -> None:
    write_backup(tmp_path / "b.partial", {}, folders={}, **MADE)
    write_backup(tmp_path / "b", {}, folders={}, **MADE)
    assert check_backup(tmp_path / "b.partial") == check_backup(tmp_path / "b")


async def backed_up(tmp_path: Path) -> Path:
    async with open_sqlite(tmp_path / "store.db", inline=True) as store:
        await fill(store, "a")
        snapshot = store.snapshot()
        write_backup(tmp_path / "b", {"state": snapshot}, folders={}, **MADE)
        snapshot.close()
    return tmp_path / "b"


async def test_a_backup_that_has_changed_is_not_restored(tmp_path: Path) -> None:
    backup, target = await backed_up(tmp_path), tmp_path / "target.db"
    file = backup / "state.sqlite3"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="has changed since the backup was made"):
        restore_backup(backup, {"state": target}, folders={}, aside="x")
    file.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        restore_backup(backup, {"state": target}, folders={}, aside="x")
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "damaged"), ("[]", "damaged"), ('{"format": 99, "release": "9"}', "newer release"), (None, "is no backup")],
)
async def test_what_is_no_backup_is_named_as_such(tmp_path: Path, text: str | None, message: str) -> None:
    backup = await backed_up(tmp_path)
    (backup / "manifest.json").unlink()
    if text is not None:
        (backup / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        restore_backup(backup, {"state": tmp_path / "target.db"}, folders={}, aside="x")


async def test_a_running_engine_is_not_restored_under(tmp_path: Path) -> None:
    backup = await backed_up(tmp_path)
    path = tmp_path / "store.db"
    async with open_sqlite(path, inline=True) as store:
        with pytest.raises(StoreInUse, match="in use by another engine"):
            restore_backup(backup, {"state": path}, folders={}, aside="x")
        await fill(store, "b")
    assert (await content(path))[0] == ["a", "b"]


async def test_a_store_that_the_configuration_does_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds the stores state"):
        restore_backup(await backed_up(tmp_path), {"queue": tmp_path / "q.db"}, folders={}, aside="x")


async def test_export_reads_a_file_in_use(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite(path) as store:
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        await kv.set("s", "k", b'{"a": 1}')
        await kv.set("s", "bytes", b"\xff")
        await WaitingKeyValue(store.key_value("other")).set("s", "k", b"1")
        jobs = await log.append([job("live"), job("dead")])
        await log.dead_letter(jobs[1].seq, 3, '{"message": "boom"}', 5)
        assert list(export_values(path, "state")) == [
            {"scope": "s", "key": "k", "value": {"a": 1}},
            {"scope": "s", "key": "bytes", "value": {"hex": "ff"}},
        ]
        waiting, dead = export_jobs(path)
        assert (waiting["status"], waiting["id"], waiting["payload"]) == ("waiting", "live", {"name": "live"})
        assert "error" not in waiting
        assert (dead["status"], dead["id"], dead["error"], dead["failed_at_ms"]) == (
            "dead",
            "dead",
            {"message": "boom"},
            5,
        )


async def test_export_tells_when_a_key_goes_and_leaves_out_what_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    later_ms = time.time_ns() // 1_000_000 + 3_600_000
    async with open_sqlite(path) as store:
        kv = WaitingKeyValue(store.key_value("state"))
        await kv.set("s", "gone", b"1", expires_at_ms=1)
        await kv.set("s", "stays", b"2")
        await kv.set("s", "goes", b"3", expires_at_ms=later_ms)
    assert list(export_values(path, "state")) == [
        {"scope": "s", "key": "stays", "value": 2},
        {"scope": "s", "key": "goes", "value": 3, "expires_at_ms": later_ms},
    ]
    with closing(sqlite3.connect(path)) as connection:  # as a file of an older release is
        connection.execute("DROP INDEX kv_expiry")
        connection.execute("ALTER TABLE kv DROP COLUMN expires_at_ms")
    assert [row["key"] for row in export_values(path, "state")] == ["gone", "stays", "goes"]


async def test_a_restored_key_keeps_its_time(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite(path, inline=True) as store:
        await WaitingKeyValue(store.key_value("state")).set("s", "k", b"1", expires_at_ms=4_000_000_000_000)
        snapshot = store.snapshot()
        write_backup(tmp_path / "b", {"state": snapshot}, folders={}, **MADE)
        snapshot.close()
    restore_backup(tmp_path / "b", {"state": path}, folders={}, aside="x")
    async with open_sqlite(path, inline=True) as store:
        assert await WaitingKeyValue(store.key_value("state")).next_expiry() == 4_000_000_000_000


def test_export_of_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There is no store"):
        list(export_values(tmp_path / "none.db", "state"))
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE kv (a)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        list(export_jobs(foreign))
    (tmp_path / "text.db").write_text("no database at all, but long enough to be taken for one " * 20)
    with pytest.raises(StoreError, match="could not be read"):
        list(export_jobs(tmp_path / "text.db"))
