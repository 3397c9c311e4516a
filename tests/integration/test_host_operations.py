"""What whoever operates an engine uses: backups made under load, the admin port."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from iii_trio import InvocationError, open_client
from iii_trio.config import load_config
from iii_trio.engine.engine import EngineState
from iii_trio.host.admin import AdminModule, numbers
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides, make_plan
from iii_trio.stores import check_backup, export_jobs, export_values, restore_backup

CONFIG = """
workers:
  - name: state
  - name: queue
  - name: admin
    config: {port: 0}
"""


@asynccontextmanager
async def host(directory: Path, text: str = CONFIG) -> AsyncIterator[Running]:
    path = directory / "config.yaml"
    path.write_text(text)
    with trio.fail_after(30):
        async with open_host(load_config(path, {}), Overrides(port=0, data_dir=directory / "data")) as running:
            yield running


async def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while data := await stream.receive_some():
            answer += bytes(data)
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


def admin_port(running: Running) -> int:
    module = running.modules["admin"].module
    assert isinstance(module, AdminModule)
    return module.addresses[0][1]


async def test_a_backup_made_under_load_restores_to_a_consistent_system(tmp_path: Path) -> None:
    """Each message is enqueued once its state is acknowledged: no backup may have the message without the state."""
    async with host(tmp_path) as running, open_client(running.worker_url) as client:

        async def write(name: str) -> None:
            number = 0
            while True:
                key = f"{name}{number}"
                await client.call("state::set", {"scope": "orders", "key": key, "value": number})
                await client.enqueue("default", "orders::nobody", {"key": key})
                number += 1
                if number == 10:
                    under_way.set()

        under_way = trio.Event()
        async with trio.open_nursery() as nursery:
            for name in "abcd":
                nursery.start_soon(write, name)
            await client.call("state::set", {"scope": "before", "key": "k", "value": 1})
            await under_way.wait()
            made = await client.call("engine::backup", {"name": "nightly"})
            await client.call("state::set", {"scope": "after", "key": "k", "value": 1})
            nursery.cancel_scope.cancel()
    backup = tmp_path / "data" / "backups" / "nightly"
    assert made["directory"] == str(backup)
    assert made["bytes"] == sum(file.bytes for file in check_backup(backup).files)

    files = make_plan(load_config(tmp_path / "config.yaml", {}), Overrides(data_dir=tmp_path / "data")).store_files()
    restore_backup(backup, files, folders={}, aside="replaced")
    states = {(row["scope"], row["key"]) for row in export_values(files["state"], "state")}
    jobs = {row["payload"]["key"] for row in export_jobs(files["queue"])}
    assert ("before", "k") in states
    assert ("after", "k") not in states
    assert jobs
    assert {("orders", key) for key in jobs} <= states
    async with host(tmp_path) as running, open_client(running.worker_url) as client:
        assert await client.call("state::get", {"scope": "before", "key": "k"}) == 1
        assert await client.call("state::get", {"scope": "after", "key": "k"}) is None


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp/x", ".hidden", "", "a/b", "x" * 101])
async def test_a_backup_goes_nowhere_but_below_its_directory(tmp_path: Path, name: str) -> None:
    async with host(tmp_path) as running, open_client(running.worker_url) as client:
        with pytest.raises(InvocationError, match="no name for a backup") as refused:
            await client.call("engine::backup", {"name": name})
        assert refused.value.code == "backup_failed"
        assert not await trio.Path(tmp_path / "data" / "backups").exists()


async def test_a_backup_is_named_after_the_time_and_a_name_is_used_once(tmp_path: Path) -> None:
    async with host(tmp_path) as running, open_client(running.worker_url) as client:
        made = await client.call("engine::backup")
        assert Path(made["directory"]).name.endswith("Z")
        assert [file["stores"] for file in made["files"]] == [["state"], ["queue"]]
        await client.call("engine::backup", {"name": "once"})
        with pytest.raises(InvocationError, match="is there already"):
            await client.call("engine::backup", {"name": "once"})


async def test_two_workers_that_share_a_file_share_the_copy(tmp_path: Path) -> None:
    shared = f"{{adapter: {{config: {{file_path: {tmp_path / 'shared'}}}}}}}"
    text = f"workers: [{{name: state, config: {shared}}}, {{name: queue, config: {shared}}}]"
    async with host(tmp_path, text) as running, open_client(running.worker_url) as client:
        made = await client.call("engine::backup", {"name": "b"})
    assert [file["stores"] for file in made["files"]] == [["state", "queue"]]


async def test_the_admin_port_tells_how_it_is(tmp_path: Path) -> None:
    async with host(tmp_path) as running:
        port = admin_port(running)
        assert await get(port, "/live") == (200, '{"status": "alive"}\n')
        status, body = await get(port, "/ready")
        assert (status, json.loads(body)) == (200, {"ready": True, "engine": "serving", "not_running": {}})
        running.core.modules["queue"] = "restarting (incident 1)"
        status, body = await get(port, "/ready")
        assert (status, json.loads(body)["not_running"]) == (503, {"queue": "restarting (incident 1)"})
        running.core.modules["queue"] = "running"
        running.core.state = EngineState.DRAINING
        assert (await get(port, "/ready"))[0] == 503
        assert (await get(port, "/live"))[0] == 200
        running.core.state = EngineState.SERVING
        assert (await get(port, "/health"))[0] == 404
        assert (await get(port, "/live", "POST"))[0] == 405


async def test_counters_count(tmp_path: Path) -> None:
    async with host(tmp_path) as running, open_client(running.worker_url) as client:

        async def counter(name: str) -> float:
            status, body = await get(admin_port(running), "/counters")
            assert status == 200
            return float(dict(line.split(" ") for line in body.splitlines())[name])

        before = await counter("iii_engine_invocations_calls")
        for _ in range(3):
            await client.call("state::list", {"scope": "x"})
        assert await counter("iii_engine_invocations_calls") == before + 3
        assert await counter("iii_engine_workers_connected") == 1


async def test_without_being_asked_for_there_is_no_admin_port(tmp_path: Path) -> None:
    async with host(tmp_path, "workers: [{name: state}]") as running:
        assert "admin" not in running.modules


def test_numbers_are_named_by_the_way_to_them() -> None:
    picture = {"a b": [1, {"x": 2.5}], "on": True, "text": "no", "none": None}
    assert list(numbers(picture, "s")) == [("s_a_b_0", 1), ("s_a_b_1_x", 2.5), ("s_on", 1)]
