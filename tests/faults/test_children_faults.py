"""What must never be left behind: children of a killed engine, of a killed guard, deaf ones, grandchildren, daemons."""

import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
import trio

from iii_trio.host import children
from iii_trio.host.children import Children, resolve_scripts

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open, which Linux has")

DEADLINE_S = 60
IDLE_S = 12

DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(f"pid {os.getpid()}")
time.sleep(300)
"""

# A script, a grandchild in its group, and a daemon that left the group; each says its pid, in one write.
FAMILY = """
import os, time
def say():
    os.write(1, f"pid {os.getpid()}\\n".encode())
def sleeper(new_session):
    if os.fork() == 0:
        if new_session:
            os.setsid()
            if os.fork():
                os._exit(0)
        say()
        time.sleep(300)
sleeper(False)
sleeper(True)
say()
END
"""

ENGINE = """
import sys, trio
from iii_trio.host.children import run_children
log = lambda name, line: print(line, flush=True)
trio.run(lambda: run_children(sys.argv[1:], env={}, log=log, stop_grace_s=0.5))
"""


class Pids:
    """Collects the pids that scripts print, and waits for the ends of those processes."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[int](100)
        self.held: dict[int, int] = {}

    def log(self, _name: str, line: str) -> None:
        word, _, number = line.partition(" ")
        if word == "pid":
            self._send.send_nowait(int(number))

    async def hold(self, count: int) -> list[int]:
        """The next pids printed. From here on they cannot be taken for other processes."""
        found: list[int] = []
        with trio.fail_after(DEADLINE_S):
            for _ in range(count):
                pid = await self._receive.receive()
                self.held[pid] = os.pidfd_open(pid)
                found.append(pid)
        return found

    def alive(self) -> set[int]:
        readable, _, _ = select.select(list(self.held.values()), [], [], 0)
        return {pid for pid, descriptor in self.held.items() if descriptor not in readable}

    async def gone(self, within_s: float = DEADLINE_S) -> None:
        """Wait until all of them have ended."""
        with trio.fail_after(within_s):
            for descriptor in self.held.values():
                await trio.lowlevel.wait_readable(descriptor)

    def close(self) -> None:
        for pid, descriptor in self.held.items():
            if pid in self.alive():
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        for descriptor in self.held.values():
            os.close(descriptor)


@pytest.fixture
def pids() -> Iterator[Pids]:
    collected = Pids()
    yield collected
    collected.close()


@asynccontextmanager
async def running(pids: Pids, script: Path, stop_grace_s: float = 0.5) -> AsyncIterator[Children]:
    async with trio.open_nursery() as nursery:
        service = Children(resolve_scripts([script]), {}, pids.log, stop_grace_s=stop_grace_s)
        await nursery.start(service.run)
        yield service
        nursery.cancel_scope.cancel()


def write(path: Path, source: str) -> Path:
    path.write_text(source)
    return path


@pytest.mark.parametrize("seconds", [IDLE_S, pytest.param(30, marks=pytest.mark.long)])
async def test_an_idle_child_lives_on(tmp_path: Path, pids: Pids, seconds: float) -> None:
    """Longer than the 10 s that the threads live which fork."""
    script = write(tmp_path / "idle.py", "import os, time\nprint(f'pid {os.getpid()}')\ntime.sleep(300)\n")
    async with running(pids, script) as service:
        await pids.hold(1)
        with trio.move_on_after(seconds):
            await pids.gone(within_s=seconds + 5)
            pytest.fail("the idle child ended by itself")
        (child,) = service.statistics().children
        assert (child.state, child.starts) == ("running", 1)
    assert not pids.alive()


async def test_a_killed_engine_leaves_no_orphan(tmp_path: Path, pids: Pids, nursery: trio.Nursery) -> None:
    deaf = write(tmp_path / "deaf.py", DEAF)
    family = write(tmp_path / "family.py", FAMILY.replace("END", "time.sleep(300)"))
    engine = await trio.lowlevel.open_process([sys.executable, "-c", ENGINE, str(deaf), str(family)], stdout=PIPE)
    assert engine.stdout is not None
    async with engine.stdout:
        nursery.start_soon(read_lines, engine.stdout, pids)
        try:
            await pids.hold(4)
            assert len(pids.alive()) == 4
        finally:
            engine.kill()
        await engine.wait()
        await pids.gone()
        nursery.cancel_scope.cancel()


async def read_lines(stream: trio.abc.ReceiveStream, pids: Pids) -> None:
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            pids.log("engine", line.decode())


async def test_a_killed_guard_leaves_no_orphan_and_the_script_runs_again(tmp_path: Path, pids: Pids) -> None:
    script = write(tmp_path / "deaf.py", DEAF)
    async with running(pids, script) as service:
        await pids.hold(1)
        (child,) = service.statistics().children
        assert child.guard_pid is not None
        os.kill(child.guard_pid, signal.SIGKILL)
        await pids.gone()
        await pids.hold(1)
        (child,) = service.statistics().children
        assert (child.starts, child.failures, child.last_status) == (2, 1, -signal.SIGKILL)


async def test_a_guard_that_hangs_does_not_hold_up_the_stop(
    tmp_path: Path, pids: Pids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "STOP_MARGIN_S", 0.2)
    script = write(tmp_path / "deaf.py", DEAF)
    before = children_of_this_process()
    async with running(pids, script, stop_grace_s=0.1) as service:
        await pids.hold(1)
        guard_pid = service.statistics().children[0].guard_pid
        assert guard_pid is not None
        os.kill(guard_pid, signal.SIGSTOP)
    await pids.gone()
    assert children_of_this_process() == before


async def test_a_guard_that_is_told_to_end_ends_its_child(tmp_path: Path, pids: Pids) -> None:
    script = write(tmp_path / "deaf.py", DEAF)
    async with running(pids, script) as service:
        await pids.hold(1)
        guard_pid = service.statistics().children[0].guard_pid
        assert guard_pid is not None
        os.kill(guard_pid, signal.SIGTERM)
        await pids.gone()


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path, pids: Pids) -> None:
    script = write(tmp_path / "deaf.py", DEAF)
    async with running(pids, script, stop_grace_s=1.0):
        await pids.hold(1)
        stopped_at = trio.current_time()
    took_s = trio.current_time() - stopped_at
    assert not pids.alive()
    assert 1.0 <= took_s < DEADLINE_S


async def test_a_stop_ends_grandchildren_and_daemons(tmp_path: Path, pids: Pids) -> None:
    script = write(tmp_path / "family.py", FAMILY.replace("END", "time.sleep(300)"))
    async with running(pids, script, stop_grace_s=DEADLINE_S):
        await pids.hold(3)
        stopped_at = trio.current_time()
    assert not pids.alive()
    assert trio.current_time() - stopped_at < DEADLINE_S  # SIGTERM was enough


async def test_what_a_script_leaves_behind_ends_with_it(tmp_path: Path, pids: Pids) -> None:
    script = write(tmp_path / "family.py", FAMILY.replace("END", "time.sleep(0.5)"))
    async with running(pids, script) as service:
        await pids.hold(3)
        await pids.gone()
    assert service.statistics().children[0].last_status == 0


async def test_stopping_at_any_moment_of_the_start_leaves_nothing(tmp_path: Path, pids: Pids) -> None:
    script = write(tmp_path / "deaf.py", DEAF)
    before = children_of_this_process()
    for delay_s in (0.0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1):
        with trio.move_on_after(delay_s):
            await Children(resolve_scripts([script]), {}, pids.log, stop_grace_s=0.1).run()
        assert children_of_this_process() == before


def children_of_this_process() -> set[int]:
    """Direct children, zombies too: a stop reaps its guards."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path("/proc", name, "stat").read_text()
            except OSError:
                continue
            if stat.rpartition(")")[2].split()[1] == str(os.getpid()):
                found.add(int(name))
    return found
