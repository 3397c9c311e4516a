"""When what was answered is on the disk: at once, but for the end of a delivered job, which shares a later commit."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from iii_trio.stores import Done, Fsync, Job, NewJob, Result, SqliteStore, WaitingJobLog, open_sqlite, sqlite_threads
from iii_trio.stores.desk import Submission
from iii_trio.stores.sqlite_file import SqliteFile, open_file

FULL, NORMAL, OFF = 2, 1, 0


def job(name: str) -> NewJob:
    return NewJob(name, "q", "default", "f", b"payload", 3, 1000, 1, 1)


def level(file: SqliteFile) -> int:
    """What SQLite does at a commit: 2 forces its log."""
    return int(file._connection.execute("PRAGMA synchronous").fetchone()[0])


def carry_out(file: SqliteFile, work: Callable[[Any], Any], *, forced: bool) -> Any:
    submission = Submission(work, lambda _: None, 0, None, writes=True)
    file.commit([submission], forced=forced)
    assert submission.result is not None
    return submission.result.unwrap()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SqliteFile]:
    opened = open_file(tmp_path / "store.db", Fsync.ALWAYS, check=False)
    yield opened
    opened.close()


def test_a_forced_commit_covers_the_unforced_ones_before_it(file: SqliteFile) -> None:
    one, two = carry_out(file, lambda tables: tables.jobs.append([job("one"), job("two")]), forced=True)
    assert (level(file), file.unforced) == (FULL, False)
    assert carry_out(file, lambda tables: tables.jobs.ack(one.seq), forced=False)
    assert (level(file), file.unforced) == (NORMAL, True)
    assert carry_out(file, lambda tables: tables.jobs.ack(two.seq), forced=False)
    assert (level(file), file.unforced) == (NORMAL, True)
    carry_out(file, lambda tables: tables.jobs.append([job("three")]), forced=True)
    assert (level(file), file.unforced) == (FULL, False)


def test_a_commit_that_changes_nothing_covers_nothing(file: SqliteFile) -> None:
    """SQLite writes no log for it, and so forces none."""
    [one] = carry_out(file, lambda tables: tables.jobs.append([job("one")]), forced=True)
    carry_out(file, lambda tables: tables.jobs.ack(one.seq), forced=False)
    assert not carry_out(file, lambda tables: tables.jobs.ack(one.seq), forced=True)
    assert file.unforced
    file.force()
    assert not file.unforced


@pytest.mark.parametrize(("fsync", "expected"), [(Fsync.INTERVAL, NORMAL), (Fsync.NEVER, OFF)])
def test_where_nothing_is_forced_at_once_the_level_never_changes(tmp_path: Path, fsync: Fsync, expected: int) -> None:
    opened = open_file(tmp_path / "store.db", fsync, check=False)
    for forced in (True, False, True):
        carry_out(opened, lambda tables: tables.jobs.append([job("one")]), forced=forced)
        assert level(opened) == expected
        assert opened.unforced is (fsync is Fsync.INTERVAL)
    opened.close()


@define(eq=False)
class Forced:
    """How often the log was forced by itself, and the event of the next time."""

    token: trio.lowlevel.TrioToken = field(factory=trio.lowlevel.current_trio_token)
    count: int = 0
    news: trio.Event = field(factory=trio.Event)

    def tell(self) -> None:
        self.count += 1
        self.news.set()
        self.news = trio.Event()

    async def wait(self, count: int) -> None:
        with trio.fail_after(10):
            while self.count < count:
                await self.news.wait()


@pytest.fixture
async def forced(monkeypatch: pytest.MonkeyPatch) -> Forced:
    watch, real = Forced(), SqliteFile.force

    def force(file: SqliteFile) -> None:
        real(file)
        watch.token.run_sync_soon(watch.tell)

    monkeypatch.setattr(SqliteFile, "force", force)
    return watch


async def test_an_ending_is_forced_within_a_moment(
    tmp_path: Path, forced: Forced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_threads, "UNFORCED_S", 0.02)
    async with open_sqlite(tmp_path / "store.db") as store:
        log = WaitingJobLog(store.job_log())
        one, two = await log.append([job("one"), job("two")])
        assert forced.count == 0
        await log.ack(one.seq)
        await forced.wait(1)
        await log.ack(two.seq)
        await forced.wait(2)


async def test_a_steady_stream_of_endings_is_forced_too(
    tmp_path: Path, forced: Forced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is forced although the writer never finds its line empty for that long."""
    monkeypatch.setattr(sqlite_threads, "UNFORCED_S", 0.0)
    async with open_sqlite(tmp_path / "store.db") as store:
        log = WaitingJobLog(store.job_log())
        jobs = await log.append([job(str(number)) for number in range(20)])
        for one in jobs:
            await log.ack(one.seq)
        await forced.wait(9)  # each commit either opens the time, which is none, or ends it


def ending(store: SqliteStore, one: Job, answers: list[Result[bool]], *, patient: bool) -> None:
    store.job_log().ack(one.seq, answers.append, patient=patient)


async def test_patient_endings_share_the_transaction_of_the_next_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_threads, "PATIENCE_S", 60.0)
    async with open_sqlite(tmp_path / "store.db") as store:
        log = WaitingJobLog(store.job_log())
        jobs = await log.append([job(str(number)) for number in range(4)])
        answers: list[Result[bool]] = []
        for one in jobs[:3]:
            ending(store, one, answers, patient=True)
        before = store.statistics().groups
        with trio.fail_after(10):
            await log.append([job("next")])
        assert store.statistics().groups == before + 1
        assert answers == [Done(True)] * 3
        with trio.fail_after(10):
            assert await log.ack(jobs[3].seq)  # nobody waits for another


async def test_patience_has_an_end(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "store.db") as store:
        [one] = await WaitingJobLog(store.job_log()).append([job("one")])
        answered = trio.Event()
        store.job_log().ack(one.seq, lambda _: answered.set(), patient=True)
        with trio.fail_after(10):
            await answered.wait()


async def test_closing_does_not_wait_for_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_threads, "PATIENCE_S", 0.1)
    answers: list[Result[bool]] = []
    async with open_sqlite(tmp_path / "store.db") as store:
        [one] = await WaitingJobLog(store.job_log()).append([job("one")])
        ending(store, one, answers, patient=True)
    assert answers == [Done(True)]
    async with open_sqlite(tmp_path / "store.db") as store:
        assert await WaitingJobLog(store.job_log()).load() == []
