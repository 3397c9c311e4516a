"""`import` of a reference engine's state and streams: all or nothing, what is there already, names, and older directories."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

from iii_trio.cli.main import cli
from iii_trio.stores import WaitingKeyValue, open_sqlite
from iii_trio.stores.sqlite_file import locked

KEPT = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."


def put(directory: Path, index: str, items: dict[str, Any]) -> Path:
    """Write one index as spec/state-stream.md §8 describes it."""
    directory.mkdir(exist_ok=True)
    text = json.dumps(items).encode()
    if len(text) <= 8:
        content = text.ljust(8, b"\xff")
    else:
        padded = text + bytes(-len(text) % 4)
        content = padded + struct.pack("<Ii", (len(text) & 0x3F) | 0x80 | ((len(text) >> 6) << 8), -len(padded))
    name = "".join(chr(byte) if byte in KEPT else f"%{byte:02X}" for byte in index.encode())
    path = directory / f"{name}.bin"
    path.write_bytes(content)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("III_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def iii(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, list(arguments), prog_name="iii-trio")
    assert result.exit_code == status, result.output
    return result


def rows(what: str) -> list[Any]:
    return [list(json.loads(line).values()) for line in iii("export", what).output.splitlines()]


OLD = Path("old")


def test_state_comes_over_with_its_names_its_order_and_its_numbers() -> None:
    put(OLD, "", {"k": 2**64 - 1})
    put(OLD, "users/é:x", {"b": {"n": 1.5}, "a": None, "": [[]]})
    result = iii("import", "state", "old")
    assert result.output.splitlines() == ["4 new state values imported", "0 new stream items imported"]
    assert rows("state") == [
        ["", "k", 2**64 - 1],
        ["users/é:x", "b", {"n": 1.5}],
        ["users/é:x", "a", None],
        ["users/é:x", "", [[]]],
    ]
    assert sorted(path.name for path in OLD.iterdir()) == sorted([".bin", "users%2F%C3%A9%3Ax.bin"])


def test_a_directory_of_something_else_is_refused() -> None:
    OLD.mkdir()
    (OLD / "store.sqlite3").write_text("not ours to read")
    for what in ("state", "streams"):
        refused = iii("import", what, "old", status=1)
        assert "old holds no file of a reference engine (NAME.bin)" in refused.output


def test_what_is_here_already_stops_it_unless_said_otherwise() -> None:
    put(OLD, "s", {"a": 1, "b": 2})
    iii("import", "state", "old")
    put(OLD, "s", {"a": 10, "b": 20, "c": 30})
    put(OLD, "t", {"x": 1})
    refused = iii("import", "state", "old", status=1)
    assert "2 of the keys are there already, 'a' in 's' for one; nothing was imported" in refused.output
    assert rows("state") == [["s", "a", 1], ["s", "b", 2]]
    kept = iii("import", "state", "old", "--keep", "--json")
    assert json.loads(kept.output)["state"] == {"new": 2, "overwritten": 0, "kept": 2}
    assert rows("state") == [["s", "a", 1], ["s", "b", 2], ["s", "c", 30], ["t", "x", 1]]
    over = iii("import", "state", "old", "--overwrite")
    assert over.output.splitlines()[0] == "0 new state values imported, 4 overwritten"
    assert rows("state") == [["s", "a", 10], ["s", "b", 20], ["s", "c", 30], ["t", "x", 1]]


def test_a_key_whose_time_is_up_is_not_there_already() -> None:
    async def expire() -> None:
        async with open_sqlite(Path("data/state/store.sqlite3"), inline=True) as store:
            await WaitingKeyValue(store.key_value("state")).set("s", "a", b"0", expires_at_ms=1)

    put(OLD, "s", {"a": 1})
    iii("import", "state", "old")
    trio.run(expire)
    assert rows("state") == []
    iii("import", "state", "old")
    assert rows("state") == [["s", "a", 1]]


def test_one_malformed_file_stops_it_unless_it_may_be_left_out() -> None:
    put(OLD, "good", {"k": 1})
    bad = put(OLD, "bad", {"k": "x" * 100})
    bad.write_bytes(bad.read_bytes()[:-50])
    refused = iii("import", "state", "old", status=1)
    assert "Nothing was imported, for 1 file cannot be taken over" in refused.output
    assert "old/bad.bin: " in refused.output
    assert not Path("data").exists()
    left_out = iii("import", "state", "old", "--skip-malformed")
    assert "1 new state value" in left_out.output
    assert "Left out, for they cannot be taken over:\n  old/bad.bin: " in left_out.output
    assert rows("state") == [["good", "k", 1]]


def test_streams_come_over_group_by_group() -> None:
    put(OLD, "stream:chat:room 1", {"m1": {"id": "m1"}, "m2": {"id": "m2"}})
    put(OLD, "stream:chat:room 2", {"m3": 3})
    put(OLD, "stream:todo:", {"t": 1})
    result = iii("import", "streams", "old", "--json")
    assert json.loads(result.output)["streams"] == {"new": 4, "overwritten": 0, "kept": 0}
    assert rows("streams") == [
        ["chat", "room 1", "m1", {"id": "m1"}],
        ["chat", "room 1", "m2", {"id": "m2"}],
        ["chat", "room 2", "m3", 3],
        ["todo", "", "t", 1],
    ]
    iii("import", "streams", "old", status=1)


def test_a_name_that_parts_in_two_ways_wants_a_word() -> None:
    put(OLD, "stream:a:b:c", {"i": 1})
    refused = iii("import", "streams", "old", status=1)
    assert "group 'b:c' of stream 'a' or group 'c' of stream 'a:b'; say which streams there are" in refused.output
    iii("import", "streams", "old", "--stream", "a:b", "--stream", "a")
    assert rows("streams") == [["a:b", "c", "i", 1]]


def test_the_old_directory_that_holds_both_goes_where_it_belongs() -> None:
    put(OLD, "users", {"u": 1})
    put(OLD, "stream:chat:room", {"m": 2})
    put(OLD, "queue:__fn_queue::default:jobs:17", {"id": "17"})
    streams_alone = iii("import", "streams", "old", "--dry-run", "--json")
    counts = json.loads(streams_alone.output)
    assert (counts["state"]["new"], counts["streams"]["new"], counts["queue_files"]) == (0, 1, 1)
    result = iii("import", "state", "old")
    assert result.output.splitlines() == [
        "1 new state value imported",
        "1 new stream item imported",
        "Left out: 1 file of a queue.",
    ]
    assert (rows("state"), rows("streams")) == ([["users", "u", 1]], [["chat", "room", "m", 2]])


def test_a_scope_may_also_be_called_like_a_stream() -> None:
    put(OLD, "stream:chat:room", {"m": 2})
    iii("import", "state", "old", "--all-state")
    assert rows("state") == [["stream:chat:room", "m", 2]]


def test_a_dry_run_counts_and_changes_nothing() -> None:
    put(OLD, "s", {"a": 1})
    result = iii("import", "state", "old", "--dry-run")
    assert result.output.splitlines()[0] == "1 new state value would be imported"
    assert not Path("data").exists()
    iii("import", "state", "old")
    assert "are there already" in iii("import", "state", "old", "--dry-run", status=1).output
    put(OLD, "s", {"a": 2, "b": 3})
    counts = json.loads(iii("import", "state", "old", "--dry-run", "--overwrite", "--json").output)
    assert (counts["dry_run"], counts["state"]) == (True, {"new": 1, "overwritten": 1, "kept": 0})
    assert rows("state") == [["s", "a", 1]]


def test_an_engine_that_runs_keeps_its_store_to_itself() -> None:
    put(OLD, "s", {"a": 1})
    Path("data/state").mkdir(parents=True)
    with locked([Path("data/state/store.sqlite3").absolute()]):
        assert "in use by another engine" in iii("import", "state", "old", status=1).output


def test_there_must_be_a_store_to_put_it_in() -> None:
    put(OLD, "s", {"a": 1})
    Path("config.yaml").write_text("workers: [{name: state, config: {adapter: {name: in_memory}}}]")
    assert "keeps no state in files of this engine" in iii("import", "state", "old", status=1).output
    Path("config.yaml").write_text(
        "workers: [{name: state, config: {adapter: {name: bridge, config: {bridge_url: 'ws://h:1'}}}}]"
    )
    assert "keeps no state in files of this engine" in iii("import", "state", "old", status=1).output
    assert "in memory or at another engine" in iii("export", "state", status=1).output
