"""Worker scripts as real processes: output, environment, exit, reload and an orderly stop."""

import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from iii_trio.host.children import Children, resolve_scripts, run_children

DEADLINE_S = 50


class Output:
    """The lines that children print, to be waited for."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self._changed = trio.Event()

    def log(self, name: str, line: str) -> None:
        self.lines.append((name, line))
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, text: str, times: int = 1) -> None:
        with trio.fail_after(DEADLINE_S):
            while [line for _, line in self.lines].count(text) < times:
                await self._changed.wait()


@asynccontextmanager
async def running(
    output: Output, *scripts: Path, reload: bool = False, stop_grace_s: float = 5.0
) -> AsyncIterator[Children]:
    """Children for the time of a block."""
    async with trio.open_nursery() as nursery:
        service = Children(resolve_scripts(scripts), {"III_URL": "ws://127.0.0.1:1"}, output.log, reload, stop_grace_s)
        await nursery.start(service.run)
        yield service
        nursery.cancel_scope.cancel()


def write(path: Path, source: str) -> Path:
    path.write_text(source)
    return path


async def test_output_comes_by_line_with_the_name_and_the_environment_is_set(tmp_path: Path) -> None:
    script = write(
        tmp_path / "greet.py",
        "import os, sys, json\n"
        "print(json.dumps([os.environ['III_URL'], os.environ['PYTHONUNBUFFERED'], sys.stdin.read(), os.getcwd()]))\n"
        "sys.stderr.write('an error\\n')\n"
        "sys.stdout.buffer.write(b'\\xff' + b'x' * 20000 + b'\\nlast words')\n",
    )
    output = Output()
    with trio.fail_after(DEADLINE_S):
        await run_children([script], env={"III_URL": "ws://127.0.0.1:1"}, log=output.log)
    assert {name for name, _ in output.lines} == {"greet"}
    first, second, *long, last = [line for _, line in output.lines]
    assert json.loads(first) == ["ws://127.0.0.1:1", "1", "", os.getcwd()]
    assert second == "an error"
    assert [len(line) for line in long] == [16384, 20001 - 16384]
    assert long[0].startswith("\ufffdx")
    assert last == "last words"


async def test_node_scripts_run(tmp_path: Path) -> None:
    if shutil.which("node") is None:
        assert not os.environ.get("CI"), "node must be installed in CI"
        pytest.skip("node is not installed")
    output = Output()
    scripts = [write(tmp_path / "count.mjs", "console.log(process.env.III_URL, 6 * 7)\n")]
    with trio.fail_after(DEADLINE_S):
        await run_children(scripts, env={"III_URL": "ws://127.0.0.1:1"}, log=output.log)
    assert output.lines == [("count", "ws://127.0.0.1:1 42")]


async def test_how_scripts_end_is_known_and_one_does_not_disturb_another(tmp_path: Path) -> None:
    fine = write(tmp_path / "fine.py", "pass")
    steady = write(tmp_path / "steady.py", "import time\nprint('steady')\ntime.sleep(60)")
    exits = write(tmp_path / "exits.py", "import sys\nprint('exits')\nsys.exit(7)")
    killed = write(tmp_path / "killed.py", "import os\nprint('killed')\nos.kill(os.getpid(), 9)")
    output = Output()
    async with running(output, fine, steady, exits, killed) as service:
        for name in ("exits", "killed"):
            await output.until(name, times=2)
        await output.until("steady")
        by_name = {child.name: child for child in service.statistics().children}
    assert (by_name["fine"].state, by_name["fine"].last_status) == ("finished", 0)
    assert (by_name["steady"].state, by_name["steady"].starts) == ("running", 1)
    assert by_name["exits"].last_status == 7
    assert by_name["killed"].last_status == -signal.SIGKILL
    assert min(by_name["exits"].failures, by_name["killed"].failures) >= 1
    assert {child.state for child in service.statistics().children} == {"finished", "stopped"}


async def test_a_stop_asks_first_and_the_last_output_still_comes(tmp_path: Path) -> None:
    script = write(
        tmp_path / "polite.py",
        "import signal, sys, time\n"
        "def bye(*_):\n"
        "    print('x' * 300_000)\n"  # more than a pipe holds: it must be read during the stop
        "    print('bye')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, bye)\n"
        "print('ready')\n"
        "time.sleep(60)\n",
    )
    output = Output()
    began = trio.current_time()
    async with running(output, script) as service:
        await output.until("ready")
        (child,) = service.statistics().children
        assert child.state == "running"
        assert child.pid is not None
        assert os.getpgid(child.pid) == child.pid != os.getpgrp()
        assert child.guard_pid is not None
        assert os.getpgid(child.guard_pid) != os.getpgrp()
    assert output.lines[-1] == ("polite", "bye")
    assert sum(len(line) for _, line in output.lines if line.startswith("x")) == 300_000
    assert trio.current_time() - began < DEADLINE_S
    (child,) = service.statistics().children
    assert (child.state, child.pid, child.last_status) == ("stopped", None, None)


async def test_a_changed_script_runs_again_and_its_neighbour_does_not(tmp_path: Path) -> None:
    source = "import signal, time\nprint('version {}')\ntime.sleep(60)\n"
    script = write(tmp_path / "edited.py", source.format(1))
    neighbour = write(tmp_path / "neighbour.py", "import time\nprint('neighbour')\ntime.sleep(60)\n")
    output = Output()
    async with running(output, script, neighbour, reload=True) as service:
        await output.until("version 1")
        await output.until("neighbour")
        await edit_until(output, script, source.format(2), "version 2")
        edited, other = service.statistics().children
        assert edited.reloads >= 1
        assert edited.failures == 0
        assert (other.starts, other.reloads) == (1, 0)


async def test_a_finished_script_runs_again_when_a_module_beside_it_changes(tmp_path: Path) -> None:
    module = write(tmp_path / "part.py", "TEXT = 'first'\n")
    script = write(
        tmp_path / "finished.py", "import sys\nsys.dont_write_bytecode = True\nimport part\nprint(part.TEXT)\n"
    )
    output = Output()
    async with running(output, script, reload=True) as service:
        await output.until("first")
        await edit_until(output, module, "TEXT = 'second time'\n", "second time")
        assert service.statistics().children[0].last_status == 0


async def edit_until(output: Output, path: Path, source: str, printed: str) -> None:
    """Replace a file, as editors do, until the change is noticed: when watching begins is not known here."""
    with trio.fail_after(DEADLINE_S):
        while (path.stem, printed) not in output.lines and printed not in [line for _, line in output.lines]:
            write(path.with_suffix(".new"), source).rename(path)
            with trio.move_on_after(1):
                await output.until(printed)
