"""P1: power loss, I/O errors at every call, and a full disk, through a layer between SQLite and the operating system."""

import _sqlite3
import ctypes
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import (
    Fsync,
    NewJob,
    WaitingJobLog,
    WaitingKeyValue,
    open_memory,
    open_sqlite,
    sqlite_file,
    sqlite_threads,
)

SQLITE_OK = 0
SQLITE_FULL = 13
SQLITE_IOERR_WRITE = 778
SQLITE_IOERR_FSYNC = 1034

_file_p = ctypes.c_void_p
_OPEN = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, _file_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)
)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, _file_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, _file_p, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, _file_p, ctypes.c_int)


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`; what is not replaced is copied as it stands."""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        ("xOpen", ctypes.c_void_p),
        ("rest", ctypes.c_void_p * 15),
    )


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`."""

    _fields_ = (
        ("iVersion", ctypes.c_int),
        ("xClose", ctypes.c_void_p),
        ("xRead", ctypes.c_void_p),
        ("xWrite", ctypes.c_void_p),
        ("xTruncate", ctypes.c_void_p),
        ("xSync", ctypes.c_void_p),
        ("rest", ctypes.c_void_p * 13),
    )


@define(eq=False)
class Image:
    """A file as it would be found after a power failure: what was synced, and what was written since."""

    synced: bytearray = field(factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(factory=list)

    def sync(self) -> None:
        for change in self.pending:
            apply(self.synced, change)
        self.pending.clear()

    def after_power_loss(self, survives: Callable[[], bool]) -> bytes:
        """The synced content, and of the later changes those that `survives` lets through."""
        content = bytearray(self.synced)
        for change in self.pending:
            if survives():
                apply(content, change)
        return bytes(content)


def apply(content: bytearray, change: tuple[int, bytes | None]) -> None:
    offset, data = change
    if data is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset + len(data) - len(content))))
    content[offset : offset + len(data)] = data


class Disk:
    """SQLite's default VFS with `xWrite`, `xTruncate` and `xSync` observed, and failing on demand."""

    def __init__(self) -> None:
        self.images: dict[str, Image] = {}
        self.log_syncs = 0
        self.calls = 0
        self.fail_at = 0
        self.fail_with = SQLITE_OK
        self.failed = ""
        self._library = ctypes.CDLL(_sqlite3.__file__)
        self._library.sqlite3_vfs_find.restype = ctypes.c_void_p
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []
        original = self._library.sqlite3_vfs_find(None)
        self._original = ctypes.c_void_p(original)
        default = _Vfs.from_address(original)
        self._open_original = _OPEN(default.xOpen)
        self._vfs = _Vfs.from_buffer_copy(default)
        self._vfs.pNext = None
        self._vfs.zName = b"observed"
        opened = _OPEN(self._open)
        self._kept.append(opened)
        self._vfs.xOpen = ctypes.cast(opened, ctypes.c_void_p).value

    def __enter__(self) -> "Disk":
        assert self._library.sqlite3_vfs_register(ctypes.byref(self._vfs), 1) == SQLITE_OK
        return self

    def __exit__(self, *_: object) -> None:
        self._library.sqlite3_vfs_unregister(ctypes.byref(self._vfs))
        self._library.sqlite3_vfs_register(self._original, 1)

    def _open(self, _: Any, name: Any, file: Any, flags: int, out: Any) -> int:
        code: int = self._open_original(self._original, name, file, flags, out)
        methods = ctypes.c_void_p.from_address(file)
        if code != SQLITE_OK or not methods.value or not name:
            return code
        path = ctypes.string_at(name).decode()
        self._names[file] = path
        self.images.setdefault(path, Image(bytearray(Path(path).read_bytes())))
        found = _Methods.from_address(methods.value)
        replaced = _Methods.from_buffer_copy(found)
        for attribute, kind, hook in (
            ("xWrite", _WRITE, self._write),
            ("xTruncate", _TRUNCATE, self._truncate),
            ("xSync", _SYNC, self._sync),
        ):
            original = kind(getattr(found, attribute))
            callback = kind(lambda *args, hook=hook, original=original: hook(original, *args))
            self._kept.append(callback)
            setattr(replaced, attribute, ctypes.cast(callback, ctypes.c_void_p).value)
        self._kept.append(replaced)
        methods.value = ctypes.addressof(replaced)
        return code

    def _due(self, what: str) -> bool:
        self.calls += 1
        if self.calls != self.fail_at:
            return False
        self.failed = what
        return True

    def _write(self, original: Any, file: int, data: int, size: int, offset: int) -> int:
        if self._due("write"):
            # A short write: half of it arrives.
            original(file, data, size // 2, offset)
            return self.fail_with
        code: int = original(file, data, size, offset)
        if code == SQLITE_OK:
            self.images[self._names[file]].pending.append((offset, ctypes.string_at(data, size)))
        return code

    def _truncate(self, original: Any, file: int, size: int) -> int:
        if self._due("truncate"):
            return self.fail_with
        self.images[self._names[file]].pending.append((size, None))
        return int(original(file, size))

    def _sync(self, original: Any, file: int, flags: int) -> int:
        if self._due("sync"):
            return SQLITE_IOERR_FSYNC
        name = self._names[file]
        self.images[name].sync()
        self.log_syncs += name.endswith("-wal")
        # The content counts as synced; the test need not wait for the real disk.
        return SQLITE_OK


@pytest.fixture
def disk() -> Iterator[Disk]:
    if not hasattr(ctypes.CDLL(_sqlite3.__file__), "sqlite3_vfs_find"):
        pytest.skip("this Python hides SQLite's C interface")
    with Disk() as observed:
        yield observed


def job(name: str) -> NewJob:
    return NewJob(name, "q", "default", "f", name.encode() * 500, 3, 1, 1, 1)


async def work(store: Any, number: int, expected: dict[str, bytes]) -> None:
    """One transaction; `expected` is what must be there once it is answered."""
    kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
    key = f"k{number % 11}"
    match number % 4:
        case 0 | 1:
            value = b"%d " % number * 700
            await kv.set("s", key, value)
            expected[key] = value
        case 2:
            [appended] = await log.append([job(f"j{number}")])
            expected[f"j{number}"] = appended.payload
        case _:
            if await kv.delete("s", key) is not None:
                del expected[key]


async def content(path: Path) -> dict[str, bytes]:
    async with open_sqlite(path, inline=True, fsync=Fsync.NEVER) as store:
        assert store.statistics().set_aside == 0
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        return dict(await kv.items("s")) | {found.id: found.payload for found in await log.load(0, 10_000)}


async def survivals(directory: Path, disk: Disk, fsync: Fsync) -> tuple[int, int]:
    """Lose the power again and again; returns how often everything answered was there, and how often not."""
    choose = random.Random(7)
    expected: dict[str, bytes] = {}
    kept = lost = 0
    async with open_sqlite(directory / "store.db", inline=True, fsync=fsync) as store:
        store._file._connection.execute("PRAGMA wal_autocheckpoint = 40").fetchall()
        for number in range(160):
            await work(store, number, expected)
            if number % 8:
                continue
            for chance in (0.0, 0.5, 1.0):
                after = lose_power(disk, directory, f"after-{number}-{chance}", partial(bernoulli, choose, chance))
                try:
                    found = await content(after / "store.db")
                except StoreError:
                    lost += 1
                else:
                    kept += found == expected
                    lost += found != expected
    return kept, lost


def bernoulli(choose: random.Random, chance: float) -> bool:
    return choose.random() < chance


def lose_power(disk: Disk, directory: Path, name: str, survives: Callable[[], bool]) -> Path:
    """A copy of the open store in `directory` as it would be found afterwards."""
    after = directory / name
    after.mkdir()
    for path, image in disk.images.items():
        if Path(path).parent == directory and Path(path).exists():
            (after / Path(path).name).write_bytes(image.after_power_loss(survives))
    return after


async def test_whatever_was_answered_survives_a_power_failure(tmp_path: Path, disk: Disk) -> None:
    assert await survivals(tmp_path / "always", disk, Fsync.ALWAYS) == (60, 0)
    # The check itself can tell: without the fsync, power failures do lose what was answered.
    _, lost = await survivals(tmp_path / "never", disk, Fsync.NEVER)
    assert lost > 10


async def syncs_per_group(path: Path, disk: Disk, fsync: Fsync, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the log was synced within each group, before it was handed back; the threads do the work."""
    commit = sqlite_file.SqliteFile.commit
    syncs: list[int] = []

    def counted(self: sqlite_file.SqliteFile, group: Any, *, forced: bool) -> None:
        before = disk.log_syncs
        commit(self, group, forced=forced)
        syncs.append(disk.log_syncs - before)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file.SqliteFile, "commit", counted)
        async with open_sqlite(path, fsync=fsync) as store:
            for number in range(30):
                await WaitingKeyValue(store.key_value("state")).set("s", str(number), b"x")
    return syncs


async def test_every_answered_group_was_synced_before(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    always = await syncs_per_group(tmp_path / "always.db", disk, Fsync.ALWAYS, monkeypatch)
    assert len(always) == 30
    assert all(count >= 1 for count in always)
    never = await syncs_per_group(tmp_path / "never.db", disk, Fsync.NEVER, monkeypatch)
    assert not any(never)


async def test_a_power_failure_can_bring_back_the_last_that_ended_and_takes_nothing(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a delivered job has ended is not forced by itself, but with the next job or dead letter it is."""
    monkeypatch.setattr(sqlite_threads, "UNFORCED_S", 3600.0)
    choose = random.Random(5)
    live: set[str] = set()
    dead: set[str] = set()
    came_back = 0
    async with open_sqlite(tmp_path / "store.db") as store:
        log = WaitingJobLog(store.job_log())
        for number in range(24):
            first, second, third = await log.append([job(f"{number}.{copy}") for copy in range(3)])
            live |= {first.id, second.id, third.id}
            await log.ack(first.seq)
            live.remove(first.id)
            unforced = {first.id}
            if number % 2:
                await log.dead_letter(second.seq, 3, "boom", 1)
                live.remove(second.id)
                dead.add(second.id)
                unforced.clear()
            chance = (0.0, 0.5, 1.0)[number % 3]
            after = lose_power(disk, tmp_path, f"after-{number}", partial(bernoulli, choose, chance))
            async with open_sqlite(after / "store.db", inline=True, fsync=Fsync.NEVER) as found:
                left = WaitingJobLog(found.job_log())
                there = {one.id for one in await left.load(0, 1_000)}
                assert {letter.job.id for letter in await left.dead_letters(["q"], 0, 1_000)} == dead
            assert live <= there <= live | unforced
            came_back += len(there - live)
    assert came_back >= 4  # otherwise nothing was tried


@pytest.mark.parametrize("code", [SQLITE_IOERR_WRITE, SQLITE_FULL])
async def test_an_error_at_any_call_fails_that_write_and_no_other(tmp_path: Path, disk: Disk, code: int) -> None:
    failures: list[str] = []
    refusals: list[str] = []
    nth = 0
    while True:
        nth += 1
        path = tmp_path / f"{nth}.db"
        disk.calls, disk.fail_at, disk.fail_with, disk.failed = 0, nth, code, ""
        expected: dict[str, bytes] = {}
        uncertain: list[dict[str, bytes]] = []
        try:
            async with open_sqlite(path, inline=True) as store:
                store._file._connection.execute("PRAGMA wal_autocheckpoint = 6").fetchall()
                for number in range(8):
                    attempt = dict(expected)
                    try:
                        await work(store, number, attempt)
                    except StoreError as error:
                        failures.append(str(error))
                        uncertain = [await intended(number, expected)]
                    else:
                        expected, uncertain = attempt, []
                    kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
                    found = dict(await kv.items("s")) | {one.id: one.payload for one in await log.load(0, 100)}
                    assert found == expected
        except StoreError as error:
            refusals.append(str(error))
        finally:
            disk.fail_at = 0
        assert await content(path) in (expected, *uncertain)
        if not disk.failed:
            break
    assert len(failures) > 10
    assert all("Nothing was written" in text for text in failures)
    assert len(refusals) > 5
    assert all("cannot be used as a store" in text for text in refusals)


async def intended(number: int, expected: dict[str, bytes]) -> dict[str, bytes]:
    """What the failed write meant to do: a crash right after a failed sync may still find it in the log."""
    async with open_memory() as store:
        kv = WaitingKeyValue(store.key_value("state"))
        for key, value in expected.items():
            if key.startswith("k"):
                await kv.set("s", key, value)
        after = dict(expected)
        await work(store, number, after)
        return after


FILLER = """
import resource, sys
from pathlib import Path
import trio
from iii_trio.protocol.errors import StoreError
from iii_trio.stores import WaitingKeyValue, open_sqlite

async def attempt(kv, key, value):
    try:
        await kv.set("s", key, value)
    except StoreError as error:
        assert "Nothing was written" in str(error) and "free space" in str(error), error
        return False
    return True

async def main(path, mode):
    async with open_sqlite(path, inline=mode == "inline") as store:
        kv = WaitingKeyValue(store.key_value("state"))
        expected = {}
        for number in range(50):
            expected[str(number)] = b"a" * 1000
            await kv.set("s", str(number), expected[str(number)])
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (Path(path + "-wal").stat().st_size + 9000, hard))
        # What needs no new room in the database itself goes on, however full the log has been.
        done = 0
        for number in range(200):
            value = b"b" * 1000 + str(number).encode()
            if await attempt(kv, str(number % 50), value):
                expected[str(number % 50)] = value
                done += 1
        assert 100 < done < 200, done
        failures, number = 0, 1000
        while failures < 5:
            number += 1
            if await attempt(kv, str(number), b"c" * 20000):
                expected[str(number)] = b"c" * 20000
            else:
                failures += 1
        assert dict(await kv.items("s")) == expected
        assert store.statistics().failed_groups == 200 - done + failures
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await kv.set("s", "afterwards", b"z")
        assert dict(await kv.items("s")) == expected | {"afterwards": b"z"}
        print(len(expected))

trio.run(main, *sys.argv[1:])
"""


@pytest.mark.parametrize("mode", ["threads", "inline"])
async def test_a_full_disk_fails_writes_and_keeps_what_is_there(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "store.db"
    command = [sys.executable, "-c", FILLER, str(path), mode]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    async with open_sqlite(path, inline=True) as store:
        items = await WaitingKeyValue(store.key_value("state")).items("s")
        assert len(items) == int(done.stdout) + 1
        assert items[-1] == ("afterwards", b"z")
