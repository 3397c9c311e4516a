"""Files of earlier releases get the order of their jobs, and what is damaged in them stays damaged."""

import sqlite3
from pathlib import Path

import pytest

from iii_trio.stores import NewJob, WaitingJobLog, open_sqlite, sqlite_file, sqlite_jobs
from iii_trio.stores.checksums import checksum

COLUMNS = (
    *("id", "queue", "namespace", "function_id", "payload", "max_attempts", "backoff_ms", "created_at_ms", "due_at_ms"),
    *("group_id", "traceparent", "baggage", "message_id", "metadata", "priority", "seq", "attempts", "error"),
)


def old_row(seq: int, due_at_ms: int = 10, attempts: int = 0) -> tuple[object, ...]:
    """A job as it stood in a file of format 2, with its checksum."""
    short = (str(seq), "q", "default", "f", 3, 1000, 10, due_at_ms, "g", None, None, None, 0, seq, attempts, None, None)
    named = dict(zip([name for name in COLUMNS if name not in ("payload", "metadata")], short[:-1], strict=True))
    named |= {"payload": b"[1]", "metadata": None}
    return (*(named[name] for name in COLUMNS), checksum(short, b"[1]", None))


def make_old(path: Path) -> None:
    """A file of format 2: a job that is due, one that is delayed, one that has failed, and one that is damaged."""
    connection = sqlite3.connect(path, isolation_level=None)
    for migration in sqlite_file.MIGRATIONS[: sqlite_file.MIGRATIONS.index(sqlite_jobs.ORDER)]:
        for statement in migration:
            connection.execute(statement)
    insert = f"INSERT INTO jobs ({', '.join(COLUMNS)}, checksum) VALUES ({', '.join('?' * (len(COLUMNS) + 1))})"
    connection.executemany(insert, [old_row(1), old_row(2, due_at_ms=99), old_row(3, attempts=2)])
    *damaged, _ = old_row(4, due_at_ms=99)
    connection.execute(insert, (*damaged, 7))
    version = sqlite_file.MIGRATIONS.index(sqlite_jobs.ORDER)
    connection.execute(f"PRAGMA application_id = {sqlite_file.APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


async def test_an_older_file_keeps_its_jobs_and_what_they_wait_for(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    make_old(path)
    for _ in range(2):
        async with open_sqlite(path) as store:
            log = WaitingJobLog(store.job_log())
            assert [(job.seq, job.delayed) for job in await log.load()] == [(1, False), (2, True), (3, True)]
            assert store.statistics().set_aside == 1
            (queue,) = (await log.census()).queues
            assert (queue.live, queue.delayed, queue.next_due_ms) == (3, 2, 10)
    async with open_sqlite(path) as store:
        log = WaitingJobLog(store.job_log())
        assert [job.seq for job in (await log.promote("q", 99)).jobs] == [3, 2]
        assert [lane.waiting for lane in await log.lanes("q", True)] == [3]


async def test_a_turned_bit_of_a_jobs_state_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite(path) as store:
        await WaitingJobLog(store.job_log()).append(
            [NewJob(str(n), "q", "default", "f", b"1", 3, 1, 0, 0) for n in range(3)]
        )
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("UPDATE jobs SET delayed = 1 WHERE seq = 1")
    connection.execute("UPDATE jobs SET deliveries = 1 WHERE seq = 2")
    connection.close()
    async with open_sqlite(path, check_first=True) as store:
        assert store.statistics().set_aside == 2
        assert [job.seq for job in await WaitingJobLog(store.job_log()).load()] == [3]


@pytest.mark.parametrize("by_group", [True, False])
async def test_every_question_about_the_order_is_answered_by_an_index(tmp_path: Path, by_group: bool) -> None:
    async with open_sqlite(tmp_path / "store.db", inline=True) as store:
        connection = store._file._connection
        asked: list[str] = []
        connection.set_trace_callback(asked.append)
        log = WaitingJobLog(store.job_log())
        await log.append([NewJob(str(n), "q", "default", "f", b"1", 3, 1, 0, n % 2) for n in range(3)])
        await log.lanes("q", by_group)
        await log.lanes("q", by_group, ("default", "e"))
        await log.pages("q", [sqlite_jobs.Stretch(("default", "f"), by_group, 256, 0, 2)], 9)
        await log.promote("q", 9)
        await log.clear("q", 9, [1])
        connection.set_trace_callback(None)
        for statement in asked:
            if statement.startswith("SELECT"):
                plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
                assert not [step for step in plan if step.startswith("SCAN jobs")], (statement, plan)
                assert not [step for step in plan if "TEMP B-TREE" in step and "lane" not in statement], (
                    statement,
                    plan,
                )
