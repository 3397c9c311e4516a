"""What `import` has taken over, served by an engine."""

import json
import os
import struct
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from iii_trio import open_client
from iii_trio.cli.main import cli
from iii_trio.testing import run_engine


def put(directory: Path, name: str, items: dict[str, object]) -> None:
    """Write one index, its name encoded, as spec/state-stream.md §8 describes it."""
    directory.mkdir(exist_ok=True)
    text = json.dumps(items).encode()
    padded = text + bytes(-len(text) % 4)
    trailer = struct.pack("<Ii", (len(text) & 0x3F) | 0x80 | ((len(text) >> 6) << 8), -len(padded))
    (directory / f"{name}.bin").write_bytes(padded + trailer)


async def test_an_engine_serves_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("III_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "old", "users", {"ada": {"age": 36}, "bob": None})
    put(tmp_path / "old", "stream%3Achat%3Aroom%201", {"m1": {"id": "m1"}})
    command = partial(CliRunner().invoke, cli, ["import", "state", "old"], prog_name="iii-trio")
    imported = await trio.to_thread.run_sync(command)
    assert imported.exit_code == 0, imported.output
    with trio.fail_after(60):
        async with run_engine(tmp_path) as engine, open_client(engine.url) as client:
            in_use = await trio.to_thread.run_sync(command)
            assert (in_use.exit_code, "in use by another engine" in in_use.output) == (1, True)
            assert await client.call("state::list", {"scope": "users"}) == [{"age": 36}, None]
            ops = [{"type": "increment", "path": "age", "by": 1}]
            await client.call("state::update", {"scope": "users", "key": "ada", "ops": ops})
            assert await client.call("state::get", {"scope": "users", "key": "ada"}) == {"age": 37}
            assert await client.call("stream::list_all", {}) == {
                "stream": [{"id": "chat", "groups": ["room 1"]}],
                "count": 1,
            }
            assert await client.call("stream::list", {"stream_name": "chat", "group_id": "room 1"}) == [{"id": "m1"}]
