"""P1: what a SQLite store has answered survives kill -9 at any instant, and a publish stands whole or not at all."""

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iii_trio.stores import Fsync, WaitingJobLog, WaitingKeyValue, open_sqlite

WRITER = """
import os, sys
import trio
from iii_trio.stores import NewJob, WaitingJobLog, WaitingKeyValue, open_sqlite

def receipt(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def count(kv, name, first):
    number = first
    while True:
        number += 1
        await kv.set("counters", name, str(number).encode() * 20)
        receipt("set", name, number)

async def publish(log, name):
    number = 0
    while True:
        number += 1
        group = f"{name}.{number}"
        jobs = [NewJob(f"{group}/{copy}", f"q{copy}", "default", "f", group.encode() * 9, 3, 1, 1, 1) for copy in range(3)]
        jobs = await log.append(jobs)
        receipt("append", group)
        if number % 2:
            await log.ack(jobs[0].seq)
            receipt("ack", jobs[0].id)
            await log.dead_letter(jobs[1].seq, 3, "boom", 1)
            receipt("dead", jobs[1].id)

async def main(path, round, first):
    async with open_sqlite(path) as store:
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        async with trio.open_nursery() as nursery:
            for name in range(8):
                nursery.start_soon(count, kv, str(name), first)
                nursery.start_soon(publish, log, f"{round}-{name}")
            receipt("ready")

trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


def receipts_of_a_killed_writer(path: Path, round_: int, first: int, life_s: float) -> Iterator[list[str]]:
    """Run the writer, kill it `life_s` after its first receipt, and yield what it said had been done."""
    command = [sys.executable, "-c", WRITER, str(path), str(round_), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        # Nothing to wait for: the moment of the kill is meant to be any.
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(life_s)
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read()
    complete, _, _ = said.rpartition(b"\n")
    yield from (line.split() for line in complete.decode().splitlines())


async def check(path: Path, seed: int, rounds: int) -> int:
    """Kill and compare for `rounds` rounds on one file; returns the number of receipts that were honoured."""
    choose = random.Random(seed)
    counters: dict[str, int] = {}
    groups: set[str] = set()
    acked: set[str] = set()
    dead: set[str] = set()
    honoured = 0
    for round_ in range(rounds):
        first = max(counters.values(), default=0)
        unheard = dict.fromkeys(counters, first + 1)
        for kind, *words in receipts_of_a_killed_writer(path, round_, first, choose.uniform(0.01, 0.3)):
            honoured += 1
            match kind:
                case "set":
                    counters[words[0]] = int(words[1])
                    unheard[words[0]] = int(words[1]) + 1
                case "append":
                    groups.add(words[0])
                case "ack":
                    acked.add(words[0])
                case _:
                    dead.add(words[0])
        async with open_sqlite(path, fsync=Fsync.NEVER, inline=True) as store:
            kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
            stored = dict(await kv.items("counters"))
            for name, number in counters.items():
                assert stored[name] in (str(number).encode() * 20, str(unheard[name]).encode() * 20)
            counters = {name: int(value[: len(value) // 20]) for name, value in stored.items()}
            live: dict[str, bytes] = {}
            after = 0
            while page := await log.load(after, 1000):
                live |= {job.id: job.payload for job in page}
                after = page[-1].seq
            letters = await log.dead_letters(["q1"], 0, 1_000_000)
            buried = {letter.job.id for letter in letters}
            present = live.keys() | buried
            for group in groups:
                assert f"{group}/2" in live
                assert f"{group}/1" in present
                assert f"{group}/0" in live or int(group.rpartition(".")[2]) % 2
            assert not acked & live.keys()
            assert dead <= buried
            assert not buried & live.keys()
            for name, payload in live.items():
                group = name.partition("/")[0]
                assert payload == group.encode() * 9
                assert {f"{group}/1", f"{group}/2"} <= present
    return honoured


async def test_whatever_was_answered_survives_kill_9(tmp_path: Path) -> None:
    assert await check(tmp_path / "store.db", seed=1, rounds=4) > 0


@pytest.mark.long
async def test_whatever_was_answered_survives_kill_9_fifty_times(tmp_path: Path) -> None:
    honoured = 0
    for seed in range(5):
        honoured += await check(tmp_path / f"{seed}.db", seed, rounds=10)
    assert honoured > 500
