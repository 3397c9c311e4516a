"""P1: a log cut off or altered anywhere gives back a prefix of what was written; turned bits are noticed, every one."""

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import Destination, Fsync, Job, NewJob, SqliteStore, WaitingJobLog, WaitingKeyValue, open_sqlite

State = tuple[Any, ...]

WRITES = 40


def job(name: str, size: int) -> NewJob:
    return NewJob(name, f"q{size % 3}", "default", None if size % 2 else "f", name.encode() * size, 3, 1, 1, 1)


async def state_of(path: Path) -> State:
    """Everything in the store, in an order that can be compared; `StoreError` if it is refused."""
    async with open_sqlite(path, inline=True, fsync=Fsync.NEVER) as store:
        return await read_all(store)


async def read_all(store: SqliteStore) -> State:
    """Everything in an open store."""
    kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
    values = {scope: tuple(await kv.items(scope)) for scope in await kv.scopes()}
    jobs = await log.load(0, 10_000)
    letters = await log.dead_letters(["q0", "q1", "q2"], 0, 10_000)
    return values, jobs, letters, await log.destinations(), store.statistics().set_aside


async def fill(path: Path, writes: int, history: list[State], copy_to: Path | None = None) -> None:
    """Write `writes` transactions, noting the state after each; copy the open file and its log at the end."""
    async with open_sqlite(path, inline=True, fsync=Fsync.NEVER) as store:
        kv, log = WaitingKeyValue(store.key_value("state")), WaitingJobLog(store.job_log())
        live: list[Job] = []

        async def note() -> None:
            values = {scope: tuple(await kv.items(scope)) for scope in await kv.scopes()}
            letters = await log.dead_letters(["q0", "q1", "q2"], 0, 10_000)
            history.append((values, await log.load(0, 10_000), letters, await log.destinations(), 0))

        await note()
        for number in range(writes):
            match number % 5:
                case 0:
                    await kv.set(f"s{number % 4}", f"k{number % 7}", f"value {number} ".encode() * (number * 9))
                case 1:
                    live += await log.append([job(f"{number}.{copy}", number + copy) for copy in range(3)])
                case 2:
                    await log.dead_letter(live.pop().seq, 3, "boom", number)
                case 3:
                    await log.ack(live.pop(0).seq)
                case _:
                    await log.remember(f"t{number}", "default", "f")
            await note()
        if copy_to is not None:
            for name in ("store.db", "store.db-wal"):
                (copy_to / name).write_bytes((path.parent / name).read_bytes())


def index_in(history: Sequence[State], state: State) -> int:
    """Which moment of the history this is; fails if it is none."""
    assert state in history
    return history.index(state)


async def test_a_log_cut_anywhere_gives_a_prefix_of_what_was_written(tmp_path: Path) -> None:
    history: list[State] = []
    kept, cut = tmp_path / "kept", tmp_path / "cut"
    kept.mkdir()
    cut.mkdir()
    await fill(tmp_path / "store.db", WRITES, history, copy_to=kept)
    log = (kept / "store.db-wal").read_bytes()
    choose = random.Random(3)
    offsets = sorted({0, 1, 31, 32, 33, len(log) - 1, len(log), *choose.choices(range(len(log)), k=30)})
    reached = []
    for offset in offsets:
        (cut / "store.db").write_bytes((kept / "store.db").read_bytes())
        (cut / "store.db-wal").write_bytes(log[:offset])
        try:
            reached.append(index_in(history, await state_of(cut / "store.db")))
        except StoreError:
            # Cut before the first transaction, the tables themselves: the file is empty, and says so or starts anew.
            reached.append(0)
    assert reached == sorted(reached)
    assert reached[-1] == WRITES
    assert len(set(reached)) > 10


async def test_a_log_altered_anywhere_gives_a_prefix_of_what_was_written(tmp_path: Path) -> None:
    history: list[State] = []
    kept, bad = tmp_path / "kept", tmp_path / "bad"
    kept.mkdir()
    bad.mkdir()
    await fill(tmp_path / "store.db", WRITES, history, copy_to=kept)
    log = (kept / "store.db-wal").read_bytes()
    choose = random.Random(4)
    shortened = 0
    for _ in range(30):
        altered = bytearray(log)
        altered[choose.randrange(len(log))] ^= 1 << choose.randrange(8)
        (bad / "store.db").write_bytes((kept / "store.db").read_bytes())
        (bad / "store.db-wal").write_bytes(altered)
        shortened += index_in(history, await state_of(bad / "store.db")) < WRITES
    assert shortened > 10


def rows_of(state: State) -> dict[Any, Any]:
    """Every row by what names it, without the places that a restart may give anew."""
    values, jobs, letters, destinations, _ = state
    rows: dict[Any, Any] = {(scope, key): value for scope, items in values.items() for key, value in items}
    rows |= {("job", one.id): one for one in jobs}
    rows |= {("dead", letter.job.id): (evolve(letter.job, seq=0), letter.failed_at_ms) for letter in letters}
    return rows | dict.fromkeys(destinations, Destination)


async def count_outcomes(tmp_path: Path, seed: int, flips: int) -> dict[str, int]:
    """Turn one bit of the file, open it, and see that nothing wrong comes out and nothing goes missing in silence."""
    history: list[State] = []
    await fill(tmp_path / "store.db", WRITES, history)
    whole = (tmp_path / "store.db").read_bytes()
    expected = rows_of(history[-1])
    choose = random.Random(seed)
    outcomes = {"unharmed": 0, "set aside": 0, "refused": 0}
    bad = tmp_path / "bad.db"
    for _ in range(flips):
        altered = bytearray(whole)
        # Every third where SQLite keeps its own books: the head of a page.
        place = choose.randrange(len(whole)) if choose.random() < 0.7 else choose.randrange(0, len(whole), 4096)
        altered[min(place + choose.randrange(16), len(whole) - 1)] ^= 1 << choose.randrange(8)
        bad.write_bytes(altered)
        try:
            state = await state_of(bad)
        except StoreError as error:
            outcomes["refused"] += str(bad) in str(error)
            continue
        found, set_aside = rows_of(state), state[-1]
        assert found.items() <= expected.items()
        assert len(found) + set_aside == len(expected)
        outcomes["set aside" if set_aside else "unharmed"] += 1
    assert sum(outcomes.values()) == flips
    return outcomes


async def test_every_turned_bit_is_harmless_set_aside_or_refused(tmp_path: Path) -> None:
    outcomes = await count_outcomes(tmp_path, seed=5, flips=130)
    assert outcomes["set aside"] > 10
    assert outcomes["refused"] > 5


@pytest.mark.long
async def test_a_thousand_turned_bits_are_harmless_set_aside_or_refused(tmp_path: Path) -> None:
    outcomes = await count_outcomes(tmp_path, seed=6, flips=1000)
    assert min(outcomes.values()) > 25


async def test_a_bit_turned_in_a_file_that_is_not_looked_over_first_gives_no_wrong_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is damaged is handed to nobody from the first moment, and told at the latest when all was looked over."""
    history: list[State] = []
    await fill(tmp_path / "store.db", WRITES, history)
    whole = (tmp_path / "store.db").read_bytes()
    expected = rows_of(history[-1])
    choose = random.Random(7)
    told = missing = 0
    for number in range(100):
        bad = tmp_path / f"bad{number}.db"
        altered = bytearray(whole)
        altered[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        bad.write_bytes(altered)
        found: dict[Any, Any] = {}
        with contextlib.suppress(StoreError):
            async with open_sqlite(bad, fsync=Fsync.NEVER) as store:
                with contextlib.suppress(StoreError):
                    found = rows_of(await read_all(store))
                assert found.items() <= expected.items()
                await store.checked()
                if len(found) < len(expected):
                    missing += 1
                    assert store.statistics().set_aside or str(bad) in caplog.text
        told += str(bad) in caplog.text
    assert missing > 5
    assert told >= missing


async def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    await fill(tmp_path / "store.db", WRITES, [])
    whole = (tmp_path / "store.db").read_bytes()
    for size in (1, 100, 511, 512, 4095, 4096, len(whole) // 2, len(whole) - 4096):
        (tmp_path / "cut.db").write_bytes(whole[:size])
        with pytest.raises(StoreError, match=r"cut\.db"):
            await state_of(tmp_path / "cut.db")
        assert (tmp_path / "cut.db").read_bytes() == whole[:size]
