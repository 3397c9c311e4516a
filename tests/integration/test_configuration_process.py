"""The engine as a container runs it, nothing writable but its data directory; the configuration used by an official SDK."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from iii_trio import open_client
from iii_trio.testing.process import COMMAND, EngineProcess, run_engine, start_engine

USER = Path(__file__).parent / "clients" / "configuration_user.py"
SETPRIV = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
CONFIG = """
workers:
  - name: iii-http
    config: {default_timeout: ${TIMEOUT:5000}}
  - name: iii-state
  - name: iii-queue
  - name: iii-pubsub
"""


@pytest.fixture
def container(tmp_path: Path) -> Any:
    """A directory that cannot be written to, but for `data` in it; root gives up the right to write everywhere."""
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere here, and there is no setpriv")
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    (root / "home").mkdir()
    (root / "config.yaml").write_text(CONFIG)
    for directory in (root / "home", root):
        directory.chmod(0o555)
    yield root
    root.chmod(0o755)


@asynccontextmanager
async def contained(root: Path) -> AsyncIterator[EngineProcess]:
    """An engine in there, with the environment that a bare container has."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(root / "home"), "TMPDIR": str(root / "home")}
    command = (*SETPRIV, *COMMAND) if os.geteuid() == 0 else COMMAND
    ports = root / "data" / "ports.json"
    with trio.fail_after(60):
        async with start_engine(root, "--ports-file", str(ports), command=command, environ=environ) as engine:
            await engine.line("ports are written to")
            bound = json.loads(ports.read_text())
            engine.port, engine.http_port = bound["worker"][1], bound["http"][1]
            yield engine


async def test_a_container_with_one_data_directory(container: Path) -> None:
    async with contained(container) as engine:
        done = await trio.run_process(
            [sys.executable, str(USER)], env={**os.environ, "III_URL": engine.url}, capture_stdout=True
        )
        said = json.loads(done.stdout)
        await engine.line("iii-http: default_timeout changed, in effect")
        assert await engine.stop() == 0, "\n".join(engine.output)
        assert "worker iii-http: default_timeout from config.yaml; port from the command line" in "\n".join(
            engine.output
        )
    assert said["before"] == {"code": "NOT_FOUND"}
    assert said["registered"]["value"] == {"port": 1}
    written = {"port": 2, "greeting": "hello ${WHO:world}"}
    assert said["set"] == {"old_value": {"port": 1}, "new_value": written}
    assert said["invalid"] == {"code": "SCHEMA_INVALID"}
    assert said["get"] == {"id": "mine", "value": {"port": 2, "greeting": "hello world"}}
    assert said["raw"] == {"id": "mine", "value": written}
    assert set(said["schema"]) == {"id", "name", "description", "schema"}
    assert said["listed"] == ["iii-http", "iii-pubsub", "iii-queue", "iii-state", "mine"]
    assert (said["http"]["old_value"]["default_timeout"], said["http"]["new_value"]) == (
        5000,
        {"default_timeout": 1234},
    )
    assert [(event["event_type"], event["new_value"]) for event in said["events"]] == [
        ("configuration:registered", {"port": 1}),
        ("configuration:updated", {"port": 2, "greeting": "hello world"}),
    ]

    async with contained(container) as engine, open_client(engine.url) as client:
        assert (await client.call("configuration::get", {"id": "mine"}))["value"]["port"] == 2
        assert await engine.stop() == 0, "\n".join(engine.output)
        stored = container / "data" / "config" / "iii-http.yaml"
        expected = f"worker iii-http: default_timeout from {stored}; port from the command line; the rest defaults"
        assert expected in "\n".join(engine.output)
    assert (container / "config.yaml").read_text() == CONFIG
    assert sorted(os.listdir(container)) == ["config.yaml", "data", "home"]


async def test_an_engine_that_cannot_keep_entries_serves_and_says_so(container: Path) -> None:
    (container / "data" / "config").mkdir()
    (container / "data" / "config").chmod(0o555)
    async with contained(container) as engine, open_client(engine.url) as client:
        with pytest.raises(Exception, match="ADAPTER_ERROR: cannot write"):
            await client.call("configuration::set", {"id": "iii-state", "value": {"max_value_bytes": 5}})
        value = (await client.call("configuration::get", {"id": "iii-state"}))["value"]
        assert "max_value_bytes" not in value
        assert await engine.stop() == 0, "\n".join(engine.output)
    (container / "data" / "config").chmod(0o755)


async def test_a_backup_holds_the_entries_and_gives_them_back(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
        await client.call("configuration::set", {"id": "iii-state", "value": {"max_value_bytes": 5}})
        made = await client.call("engine::backup", {"name": "b"})
        await client.call("configuration::set", {"id": "iii-state", "value": {"max_value_bytes": 6}})
        await engine.stop()
    data = str(tmp_path / "data")
    arguments = ["restore", made["directory"], "-c", str(tmp_path / "config.yaml"), "--data-dir", data]
    done = await trio.run_process([*COMMAND, *arguments], capture_stdout=True)
    assert b"As of " in done.stdout
    async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
        assert (await client.call("configuration::get", {"id": "iii-state"}))["value"] == {"max_value_bytes": 5}


def test_check_reads_the_same_file(container: Path) -> None:
    done = subprocess.run([*COMMAND, "check", "-c", str(container / "config.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_scripts_follow_the_worker_port(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("workers: [{name: iii-worker-manager, config: {token: one}}]")
    script = tmp_path / "script.py"
    script.write_text("import os, time\nprint(os.environ['III_URL'], os.environ['III_TOKEN'])\ntime.sleep(600)\n")
    with trio.fail_after(60):
        async with run_engine(tmp_path, "-c", "config.yaml", str(script)) as engine:
            await engine.line(f"ws://127.0.0.1:{engine.port} one")
            (tmp_path / "config.yaml").write_text("workers: [{name: iii-worker-manager, config: {token: two}}]")
            await engine.line(f"ws://127.0.0.1:{engine.port} two")
            assert await engine.stop() == 0
