"""The queue of a real engine when the machine misbehaves: frozen for a while, its disk full, its file read-only."""

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from iii_trio import Client, InvocationError, Worker, open_client
from iii_trio.testing import EngineProcess, run_engine

QUEUES = """
workers:
  - name: iii-queue
    config:
      queue_configs:
        default: {max_retries: 5, backoff_ms: 5}
        hasty: {max_retries: 5, backoff_ms: 5, timeout_ms: 2000}
"""


@define
class Seen:
    """What a handler saw, by number of the message."""

    begun: list[int] = field(factory=list)
    slow: float = 0.0
    gate: trio.Event | None = None
    """Nothing is answered before it is open."""
    _news: trio.Event = field(factory=trio.Event)

    async def __call__(self, message: dict[str, Any]) -> None:
        self.begun.append(message["number"])
        self._news.set()
        self._news = trio.Event()
        await trio.sleep(self.slow)
        if self.gate is not None:
            await self.gate.wait()

    async def wait(self, count: int) -> None:
        while len(self.begun) < count:
            await self._news.wait()


READ_ONLY = """
import os
from iii_trio.cli.main import main
from iii_trio.stores.sqlite_file import SqliteFile

commit = SqliteFile.commit

def commit_unless_read_only(self, group, **how):
    self._connection.execute(f"PRAGMA query_only = {{int(os.path.exists({flag!r}))}}")
    commit(self, group, **how)

SqliteFile.commit = commit_unless_read_only
main()
"""
"""While there is a file `flag`, SQLite says of every write what it says of a file system that has become read-only."""

ENGINE = (sys.executable, "-m", "iii_trio")
ON_TMPFS = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=3m tmpfs "$0" && exec "$@"')


@asynccontextmanager
async def running(
    directory: Path, seen: Seen, command: Sequence[str] = ENGINE
) -> AsyncIterator[tuple[EngineProcess, Client]]:
    """An engine with a queue, a worker that serves `f`, and a client."""
    config = directory / "config.yaml"
    config.write_text(QUEUES)
    worker = Worker("worker")
    worker.function("f")(seen.__call__)
    with trio.fail_after(120):
        async with run_engine(directory, "-c", str(config), command=command) as engine, trio.open_nursery() as nursery:
            await nursery.start(worker.run, engine.url)
            async with open_client(engine.url, name="producer") as client:
                yield engine, client
            nursery.cancel_scope.cancel()


async def depth(client: Client, queue: str = "default") -> int:
    stats = await client.call("engine::queue::topic_stats", {"topic": queue})
    return int(stats["depth"] + stats["dlq_depth"])


async def test_a_frozen_engine_repeats_nothing_whose_answer_lay_in_the_socket(tmp_path: Path) -> None:
    """The deadlines of all deliveries pass while it is frozen; the answers, sent in time, count all the same."""
    seen = Seen(slow=0.3)
    async with running(tmp_path, seen) as (engine, client):
        for number in range(5):
            await client.enqueue("hasty", "f", {"number": number})
        await seen.wait(5)
        engine.process.send_signal(signal.SIGSTOP)
        await trio.sleep(2.5)  # longer than timeout_ms; the handlers answer into the socket meanwhile
        engine.process.send_signal(signal.SIGCONT)
        await client.enqueue("hasty", "f", {"number": 5})
        await seen.wait(6)
        while await depth(client, "hasty"):
            pass
        assert sorted(seen.begun) == [0, 1, 2, 3, 4, 5]


async def test_a_full_disk_refuses_clearly_and_everything_goes_on_when_there_is_space(tmp_path: Path) -> None:
    seen = Seen()
    async with running(tmp_path, seen) as (engine, client):
        pid = engine.process.pid
        receipted = 20
        for number in range(1, receipted + 1):
            await client.enqueue("default", "f", {"number": number, "pad": "x" * 1_000})
        await seen.wait(receipted)
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        largest = max(path.stat().st_size for path in (tmp_path / "data").rglob("*") if path.is_file())
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest + 20_000, before[1]))
        refusals: list[InvocationError] = []
        while len(refusals) < 3:
            receipted += 1
            try:
                await client.enqueue("default", "f", {"number": receipted, "pad": "x" * 10_000})
            except InvocationError as error:
                receipted -= 1
                refusals.append(error)
        for error in refusals:
            assert error.code == "enqueue_error"
            assert "enqueue to 'default' failed" in error.message
        assert await client.call("engine::queue::stats", {"queue": "default"})  # it still answers
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        with pytest.raises(InvocationError, match="not found"):
            await client.enqueue("nowhere", "f", {})
        await client.enqueue("default", "f", {"number": receipted + 1})
        while await depth(client) or receipted + 1 not in seen.begun:
            pass
        assert set(seen.begun) == set(range(1, receipted + 2))


async def refused(client: Client, number: int, pad: str = "") -> InvocationError:
    """The error of an enqueue that must fail."""
    with pytest.raises(InvocationError) as caught:
        await client.enqueue("default", "f", {"number": number, "pad": pad})
    return caught.value


def fill(path: Path) -> None:
    """Write a file until the file system is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4_096):
            pass


def check_file(path: Path) -> None:
    """SQLite finds nothing wrong with a store that was closed."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)
    connection.close()


async def test_a_store_that_becomes_read_only_refuses_by_name_and_serves_again_without_a_restart(
    tmp_path: Path,
) -> None:
    gate = trio.Event()
    seen, flag, script = Seen(gate=gate), tmp_path / "read-only", tmp_path / "engine.py"
    script.write_text(READ_ONLY.format(flag=str(flag)))
    path = tmp_path / "data" / "queue" / "store.sqlite3"
    async with running(tmp_path, seen, (sys.executable, str(script))) as (engine, client):
        for number in range(5):
            await client.enqueue("default", "f", {"number": number})
        await seen.wait(5)
        flag.write_text("")
        error = await refused(client, 99)
        assert error.code == "enqueue_error"
        assert error.message.startswith("enqueue to 'default' failed")
        assert str(path) in error.message
        assert "attempt to write a readonly database" in error.message
        for function_id, payload, code in (
            ("iii::durable::publish", {"topic": "t", "data": 1}, "publish_failed"),
            ("iii::queue::pause", {"queue": "default"}, "pause_failed"),
        ):
            with pytest.raises(InvocationError, match="readonly database") as caught:
                await client.call(function_id, payload)
            assert caught.value.code == code
            assert str(path) in caught.value.message
        # the endings of what was being handled cannot be written: the messages are kept, and so are their slots
        gate.set()
        await trio.sleep(0.5)
        assert (await client.call("engine::queue::stats", {"queue": "default"}))[0]["in_flight"] == 5
        flag.unlink()
        await client.enqueue("default", "f", {"number": 5})
        await seen.wait(6)
        while await depth(client):
            pass
        assert sorted(seen.begun) == [0, 1, 2, 3, 4, 5]
        assert await engine.stop() == 0
    check_file(path)


async def test_a_full_file_system_refuses_by_name_and_serves_again_when_there_is_space(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "queue"
    directory.mkdir(parents=True)
    command = (*ON_TMPFS, str(directory))
    tried = await trio.run_process([*command, "true"], check=False, capture_stderr=True)
    if os.geteuid() != 0 or tried.returncode != 0:
        pytest.skip("needs the right to mount a file system")
    seen, pad = Seen(), "x" * 1_000
    async with running(tmp_path, seen, (*command, *ENGINE)) as (engine, client):
        inside = Path(f"/proc/{engine.process.pid}/root{directory}")
        for number in range(10):
            await client.enqueue("default", "f", {"number": number, "pad": pad})
        await seen.wait(10)
        fill(inside / "filler")
        receipted = 10
        for _ in range(200):  # the log of the store may have some room of its own left
            try:
                await client.enqueue("default", "f", {"number": receipted, "pad": pad * 10})
                receipted += 1
            except InvocationError as failure:
                error = failure
                break
        assert error.code == "enqueue_error"
        assert str(directory / "store.sqlite3") in error.message
        assert "disk is full" in error.message
        (inside / "filler").unlink()
        for number in range(receipted, receipted + 20):
            await client.enqueue("default", "f", {"number": number, "pad": pad})
        await seen.wait(receipted + 20)
        while await depth(client):
            pass
        assert sorted(set(seen.begun)) == list(range(receipted + 20))
        assert len(seen.begun) == receipted + 20
        copy = tmp_path / "copy.sqlite3"
        for end in ("", "-wal"):
            shutil.copy(f"{inside}/store.sqlite3{end}", f"{copy}{end}")
    check_file(copy)
