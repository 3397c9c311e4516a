"""From an empty directory to a project that answers: `init`, `serve`, `worker add` while it runs, as processes."""

import json
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path

import pytest
import trio

from iii_trio.testing import run_engine

COMMAND = (sys.executable, "-m", "iii_trio")
SECONDS = 30.0


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of this machine counts."""
    for name in ("III_URL", "III_TOKEN", "III_PORT"):
        monkeypatch.delenv(name, raising=False)


async def iii(directory: Path, *arguments: str) -> str:
    """What a command prints that works."""
    command = [*COMMAND, *arguments]
    result = await trio.run_process(command, capture_stdout=True, stderr=None, cwd=directory)
    return result.stdout.decode()


def fetch(url: str) -> object:
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        return json.load(response)


async def test_an_empty_directory_becomes_a_project_that_answers(tmp_path: Path) -> None:
    project = tmp_path / "shop"
    with trio.fail_after(2 * SECONDS):
        await iii(tmp_path, "init", "shop")
        async with run_engine(project, "worker.py") as engine:
            await engine.line("worker hello: connected")
            found = await iii(project, "functions", "--worker", "hello", "--url", engine.url)
            assert [line.split()[0] for line in found.splitlines()[1:]] == ["hello::api", "hello::remember"]
            fetched = await trio.to_thread.run_sync(partial(fetch, f"{engine.http}/hello?name=Ada"))
            assert fetched == {"message": "Hello, Ada!"}
            await iii(project, "worker", "add", "iii-http-functions")
            await engine.line("worker iii-http-functions: started")
            assert "can be used" in await iii(project, "check")
            assert await engine.stop() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_said_in_a_line() -> None:
    with open("/dev/full", "wb") as full:
        run = subprocess.run([*COMMAND, "--version"], check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (1, "Error: the output cannot be written: No space left on device\n")


def test_a_directory_that_is_gone_is_said_in_a_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    program = Path(sys.executable).with_name("iii-trio")  # `python -m` itself needs a directory
    here = f"cd '{gone}' && rmdir '{gone}' && exec '{program}' serve"
    run = subprocess.run(["/bin/sh", "-c", here], check=False, capture_output=True, text=True, timeout=SECONDS)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "Error: the directory that this shell is in does not exist any more; change into another one\n"
