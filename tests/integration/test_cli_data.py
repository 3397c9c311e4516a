"""`backup`, `restore` and `export` as commands beside a real engine process."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from iii_trio import open_client
from iii_trio.cli.main import cli
from iii_trio.testing import run_engine

SECONDS = 60.0


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the engine's directory, and no variable of this machine counts."""
    for name in [name for name in os.environ if name.startswith("III_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


async def iii(*arguments: str) -> Result:
    """A command in a thread, for it has a loop of its own."""
    return await trio.to_thread.run_sync(partial(CliRunner().invoke, cli, list(arguments), prog_name="iii-trio"))


def rows(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines()]


async def test_a_backup_is_made_read_and_put_back(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS):
        async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
            await client.call("state::set", {"scope": "s", "key": "k", "value": {"n": 1}})
            await client.enqueue("default", "nobody::there", {"order": 7})
            await client.call(
                "configuration::register",
                {"id": "shop", "name": "Shop", "description": "", "schema": {"type": "object"}},
            )
            await client.call("configuration::set", {"id": "shop", "value": {"open": True}})
            made = await iii("backup", "nightly", "--url", engine.url)
            assert made.exit_code == 0, made.output
            assert made.output.startswith(f"{tmp_path}/data/backups/nightly: ")
            as_json = json.loads((await iii("backup", "--json", "--url", engine.url)).output)
            assert as_json["bytes"] > 0
            again = await iii("backup", "nightly", "--url", engine.url)
            assert (again.exit_code, "is there already" in again.output) == (1, True)
            await client.call("state::set", {"scope": "s", "key": "k", "value": "later"})
            await client.call("configuration::set", {"id": "shop", "value": {"open": False}})
            in_use = await iii("restore", "data/backups/nightly", "--data-dir", f"{tmp_path}/data")
            assert (in_use.exit_code, "in use by another engine" in in_use.output) == (1, True)
            assert rows(await iii("export", "state")) == [{"scope": "s", "key": "k", "value": "later"}]
            assert await engine.stop() == 0
        kept = rows(await iii("export", "state", "--backup", "data/backups/nightly"))
        assert kept == [{"scope": "s", "key": "k", "value": {"n": 1}}]
        (message,) = rows(await iii("export", "queues", "--backup", "data/backups/nightly"))
        assert (message["status"], message["function_id"], message["payload"]) == (
            "waiting",
            "nobody::there",
            {"order": 7},
        )
        restored = await iii("restore", "data/backups/nightly", "--data-dir", f"{tmp_path}/data")
        assert restored.exit_code == 0, restored.output
        assert f"state: {tmp_path}/data/state/store.sqlite3" in restored.output
        assert f"configuration: {tmp_path}/data/config" in restored.output
        assert "state, queue" in restored.output or "state" in restored.output
        assert "What was there before is in" in restored.output
        async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
            assert await client.call("state::get", {"scope": "s", "key": "k"}) == {"n": 1}
            assert (await client.call("configuration::get", {"id": "shop"}))["value"] == {"open": True}


async def test_stores_are_found_where_a_stored_setting_has_put_them(tmp_path: Path) -> None:
    adapter = {"name": "kv", "config": {"store_method": "file_based", "file_path": str(tmp_path / "elsewhere")}}
    with trio.fail_after(SECONDS):
        async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
            await client.call("configuration::set", {"id": "iii-state", "value": {"adapter": adapter}})
            await client.call("iii-state::on-config-change", {})
            await client.call("state::set", {"scope": "s", "key": "k", "value": 1})
            assert (await iii("backup", "b", "--url", engine.url)).exit_code == 0
            await client.call("state::set", {"scope": "s", "key": "k", "value": 2})
            await client.call("configuration::reset", {"id": "iii-state"})
            await client.call("iii-state::on-config-change", {})
            await client.call("state::set", {"scope": "s", "key": "k", "value": 3})
            assert rows(await iii("export", "state", "--data-dir", "data")) == [{"scope": "s", "key": "k", "value": 3}]
            await client.call("configuration::set", {"id": "iii-state", "value": {"adapter": adapter}})
            await client.call("iii-state::on-config-change", {})
            here = ("--data-dir", f"{tmp_path}/data")
            assert rows(await iii("export", "state", *here)) == [{"scope": "s", "key": "k", "value": 2}]
            await client.call("configuration::reset", {"id": "iii-state"})
            assert await engine.stop() == 0
        restored = await iii("restore", "data/backups/b", *here)
        assert restored.exit_code == 0, restored.output
        assert f"state: {tmp_path}/elsewhere" in restored.output
        async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
            assert await client.call("state::get", {"scope": "s", "key": "k"}) == 1


async def test_what_is_no_backup_or_not_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = await iii("restore", "empty")
    assert (nothing.exit_code, "is no backup" in nothing.output) == (1, True)
    no_store = await iii("export", "queues")
    assert (no_store.exit_code, "There is no store" in no_store.output) == (1, True)
    (tmp_path / "config.yaml").write_text("workers: [{name: state, config: {adapter: {name: in_memory}}}]")
    in_memory = await iii("export", "state")
    assert (in_memory.exit_code, "in memory" in in_memory.output) == (1, True)
    unreachable = await iii("backup", "--port", "1")
    assert (unreachable.exit_code, "No engine answers" in unreachable.output) == (1, True)
