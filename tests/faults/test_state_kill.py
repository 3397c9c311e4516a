"""P1 for `state::*`: what was answered survives kill -9, no update is torn, no durable trigger misses a write.

Writers set and update keys of their own over real sockets without pause; a worker is bound to all of it by a durable
trigger. The engine is killed at random moments and started again on its port. The writers note what was answered, the
worker what it was told. At the end the engine must hold what was answered or something newer, both halves of every update,
and the worker must have been told of every write that was answered, in the order of the writes to a key. One test takes
the outbox out of the engine's transaction and sees this very check fail.
"""

import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import trio
from attrs import define, field

from iii_trio import Client, InvocationError, Reconnect, Worker, open_client
from iii_trio.testing import run_engine

WRITERS = 4
LANES = 3
"""Calls at once of each writer; each has a key for sets and one for updates."""
ROUNDS_S = 400.0
SETTLE_S = 15.0
ENGINE = (sys.executable, "-m", "iii_trio")
SOON = Reconnect(first_s=0.02, limit_s=0.1)
CONFIG = """
workers:
  - name: iii-state
  - name: iii-queue
    config:
      queue_configs:
        events: {type: fifo, message_group_field: key, concurrency: 50, backoff_ms: 5, max_retries: 1000}
"""
TWICE = [{"type": "increment", "path": "n", "by": 1}, {"type": "increment", "path": "m", "by": 1}]

# The deliveries are handed over when the write is answered, and stand on disk a moment later: two steps, not one.
APART = """
    import time
    from iii_trio.cli.main import main
    from iii_trio.modules import outbox
    from iii_trio.modules.state import triggers

    made = triggers.Recording.beside

    def beside(self, old, new):
        made(self, old, new)
        return ()

    taken_in = outbox.Outbox.taken_in

    def later(self, rows):
        kept = tuple(rows)
        self.core.deadlines.after(0.3, lambda: taken_in(self, kept))

    triggers.Recording.beside = beside
    outbox.Outbox.taken_in = later
    main()
"""


@define
class Books:
    """What writers were answered and what the worker was told: numbers by key."""

    answered: dict[str, int] = field(factory=dict)
    """The last number of a key that was answered."""
    writes: set[tuple[str, int]] = field(factory=set)
    told: dict[str, list[int]] = field(factory=dict)
    kept: dict[str, Any] = field(factory=dict)
    """What the engine holds at the end."""
    waiting: int = 0
    _news: trio.Event = field(factory=trio.Event)

    def note(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def news(self) -> None:
        with trio.move_on_after(0.2):
            await self._news.wait()

    @property
    def missing(self) -> set[tuple[str, int]]:
        return self.writes - {(key, number) for key, numbers in self.told.items() for number in numbers}


async def write(client: Client, books: Books, key: str, enough: trio.Event) -> None:
    """Set and update two keys in turn; only what is answered counts."""
    scope, number = client.state["kill"], 0
    while not enough.is_set():
        number += 1
        try:
            await scope.set(f"set-{key}", number)
        except InvocationError:
            continue
        books.answered[f"set-{key}"] = number
        books.writes.add((f"set-{key}", number))
        try:
            change = await scope.update(f"update-{key}", *TWICE)
        except InvocationError:
            continue
        count = change.new_value["n"]
        assert change.new_value["m"] == count
        books.answered[f"update-{key}"] = count
        books.writes.add((f"update-{key}", count))
        books.note()


def a_worker(books: Books) -> Worker:
    worker = Worker("watcher")

    @worker.state(scope="kill", durable=True, queue="events")
    @worker.function("kill::told")
    async def told(event: dict[str, Any]) -> None:
        value = event["new_value"]
        books.told.setdefault(event["key"], []).append(value["n"] if isinstance(value, dict) else value)
        books.note()

    return worker


async def run_rounds(directory: Path, kills: int, seed: int, *, command: Sequence[str] = ENGINE) -> Books:
    """Kill the engine `kills` times while it is written to; returns the books afterwards."""
    config = directory / "config.yaml"
    config.write_text(CONFIG)
    books, dice, enough, ended = Books(), random.Random(seed), trio.Event(), trio.Event()

    async def writers(url: str) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(WRITERS):
                nursery.start_soon(writer, url, number)
        ended.set()

    async def writer(url: str, number: int) -> None:
        async with open_client(url, name=f"writer-{number}", reconnect=SOON) as client, trio.open_nursery() as lanes:
            for lane in range(LANES):
                lanes.start_soon(write, client, books, f"{number}-{lane}", enough)

    port = 0
    with trio.fail_after(ROUNDS_S):
        async with trio.open_nursery() as nursery:
            for kill in range(kills + 1):
                async with run_engine(directory, "-c", str(config), port=port, command=command) as engine:
                    if not port:
                        port = engine.port
                        await nursery.start(partial(a_worker(books).run, engine.url, reconnect=SOON))
                        nursery.start_soon(writers, engine.url)
                    before = len(books.writes)
                    while len(books.writes) < before + WRITERS * LANES:
                        await books.news()
                    if kill < kills:
                        await trio.sleep(dice.uniform(0.0, 0.2))
                        await engine.kill()
                        continue
                    enough.set()
                    await ended.wait()
                    async with open_client(engine.url, name="auditor") as auditor:
                        with trio.move_on_after(SETTLE_S) as patience:
                            while books.missing or books.waiting:
                                told = sum(map(len, books.told.values()))
                                await books.news()
                                if told < sum(map(len, books.told.values())):
                                    patience.deadline = trio.current_time() + SETTLE_S
                                books.waiting = (await auditor.call("state::list_triggers", {}))["waiting"]
                        found = await auditor.call("state::list", {"scope": "kill", "keys": True})
                        books.kept = {one["key"]: one["value"] for one in found}
                    nursery.cancel_scope.cancel()
    return books


def check(books: Books) -> None:
    """What was answered is there, whole; and the worker knows of all of it."""
    for key, number in books.answered.items():
        kept = books.kept[key]
        if key.startswith("update-"):
            assert kept["n"] == kept["m"], f"half an update of {key}"
            kept = kept["n"]
        assert kept >= number, f"{key} was answered {number} and holds {kept}"
    assert not books.missing, f"{len(books.missing)} answered writes were told to nobody"
    for key, numbers in books.told.items():
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts), f"{key} was told out of order"


async def test_no_answered_write_is_lost_or_untold_over_10_kills(tmp_path: Path) -> None:
    books = await run_rounds(tmp_path, 10, seed=1)
    check(books)
    assert (len(books.answered), books.waiting) == (2 * WRITERS * LANES, 0)


async def test_the_check_fails_when_deliveries_are_recorded_after_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.SETTLE_S", 2.0)
    script = tmp_path / "apart.py"
    script.write_text(dedent(APART))
    books = await run_rounds(tmp_path, 1, seed=2, command=(sys.executable, str(script)))
    with pytest.raises(AssertionError, match="answered writes were told to nobody"):
        check(books)


@pytest.mark.long
async def test_50_kills(tmp_path: Path) -> None:
    """25 of each of two engines at a time."""

    async def one(seed: int) -> None:
        directory = tmp_path / str(seed)
        directory.mkdir()
        check(await run_rounds(directory, 25, seed=seed))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 3)
        nursery.start_soon(one, 4)
