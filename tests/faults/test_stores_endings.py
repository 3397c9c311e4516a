"""P2: a job whose end was answered does not come back after kill -9, although such ends are not forced to the disk."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iii_trio.stores import Fsync, WaitingJobLog, open_sqlite

JOBS = 1_000

WRITER = """
import os, sys
import trio
from iii_trio.stores import NewJob, WaitingJobLog, open_sqlite

async def main(path, first, count):
    async with open_sqlite(path) as store:
        log = WaitingJobLog(store.job_log())
        jobs = await log.append([NewJob(str(first + n), "q", "default", "f", b"{}", 3, 1, 1, 1) for n in range(count)])
        os.write(1, b"ready\\n")
        for job in jobs:
            await log.ack(job.seq)  # alone in its transaction
            os.write(1, f"{job.id}\\n".encode())
        await trio.sleep_forever()

trio.run(main, sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


def ended_before_kill(path: Path, first: int, life_s: float) -> list[int]:
    """Run the writer, kill it `life_s` after its first line; the jobs of which it had heard that they have ended."""
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(JOBS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        # Nothing to wait for: the moment of the kill is meant to be any.
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(life_s)
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read()
    complete, _, _ = said.rpartition(b"\n")
    return [int(line) for line in complete.split()]


async def check(path: Path, seed: int, rounds: int) -> int:
    """Kill and compare for `rounds` rounds on one file; returns how many ends were honoured."""
    choose = random.Random(seed)
    ended: set[int] = set()
    for round_ in range(rounds):
        first = round_ * JOBS
        heard = ended_before_kill(path, first, choose.uniform(0.005, 0.1))
        ended.update(heard)
        async with open_sqlite(path, fsync=Fsync.NEVER, inline=True) as store:
            log = WaitingJobLog(store.job_log())
            live = {int(job.id) for job in await log.load(0, rounds * JOBS)}
        assert not ended & live
        begun = {first + len(heard)}  # one at a time, and the last may have been written and not heard of
        assert live >= set(range(first, first + JOBS)) - ended - begun
    return len(ended)


async def test_what_has_ended_stays_so_after_kill_9(tmp_path: Path) -> None:
    assert await check(tmp_path / "store.db", seed=1, rounds=3) > 0


@pytest.mark.long
async def test_what_has_ended_stays_so_after_kill_9_fifty_times(tmp_path: Path) -> None:
    for seed in range(5):
        assert await check(tmp_path / f"{seed}.db", seed, rounds=10) > 0
