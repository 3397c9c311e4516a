"""The store of entries on a real directory: what is written, what is read back, what an edit by hand does."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iii_trio.modules.configuration import Changed, ConfigurationEntry, EntryFiles, Registration, Registry
from iii_trio.modules.configuration.files import entry_text, read_entry
from iii_trio.protocol import ABSENT, Json
from iii_trio.protocol.errors import StoreError, WireError

SCHEMA = Json.of({"type": "object", "properties": {"port": {"type": "integer"}}})

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
ODD_TEXTS = ("on", "007", "0x1f", "0o7", "1e3", "~", "null", "", " a", "a: b", "#", "- x", "${X}", "\x85", "\x7f")
odd_texts = st.sampled_from(ODD_TEXTS)
values = st.recursive(
    scalars | odd_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | odd_texts, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=values, name=st.text() | odd_texts)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: Any, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    entry = ConfigurationEntry(id="a", name=name, description="", kept=Json.of(value), metadata=Json.of({"v": [value]}))
    path.write_text(entry_text(entry), newline="")
    back = read_entry(path)
    assert (back.name, back.kept.decode(), back.metadata.decode()) == (name, value, {"v": [value]})


def registry(directory: Path, **environ: str) -> Registry:
    return Registry(files=EntryFiles(directory), environ=environ, wall_ms=lambda: 1)


async def registered(directory: Path, **environ: str) -> tuple[Registry, list[Changed]]:
    """A registry with the entry `x`, and every change since."""
    found = registry(directory, **environ)
    await found.load()
    await found.register(Registration(id="x", name="X", description="", schema=SCHEMA), "owner")
    changes: list[Changed] = []
    found.tap(changes.append)
    return found, changes


def value_of(found: Registry, entry_id: str = "x") -> Any:
    return found.find(entry_id).value.decode()


async def test_only_what_was_set_makes_a_file_and_it_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "config"
    found, _ = await registered(directory)
    await found.register(
        Registration(id="seeded", name="", description="", schema=SCHEMA, seed=Json.of({"port": 1})), "engine"
    )
    assert not directory.exists()
    await found.set("x", Json.of({"port": "${P:2}"}), "me")
    assert [path.name for path in sorted(directory.iterdir())] == [".history", "x.yaml"]
    assert (directory / "x.yaml").read_text() == "id: x\nname: X\ndescription: ''\nvalue:\n  port: ${P:2}\n"
    assert (directory / "x.yaml").stat().st_mode & 0o777 == 0o600
    again = registry(directory)
    await again.load()
    assert (value_of(again), again.find("x").schema) == ({"port": "${P:2}"}, Json.of(None))
    assert [(past.value.decode(), past.by) for past in await again.history("x")] == [({"port": "${P:2}"}, "me")]


async def test_a_seed_is_the_value_until_one_is_set_and_again_after_a_reset(tmp_path: Path) -> None:
    found, changes = await registered(tmp_path)
    seeded = Registration(id="x", name="X", description="", schema=SCHEMA, seed=Json.of({"port": 1}))
    await found.register(seeded, "engine")
    assert value_of(found) == {"port": 1}
    await found.set("x", Json.of({"port": 2}), "me")
    await found.register(seeded, "engine")
    assert value_of(found) == {"port": 2}
    (tmp_path / "x.yaml").unlink()
    await found.reconcile()
    assert (value_of(found), [change.event_type for change in changes]) == ({"port": 1}, ["configuration:updated"] * 3)


async def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "config"
    found, changes = await registered(directory)
    await found.set("x", Json.of({"port": 1}), "me")
    (directory / "x.yaml.tmp").mkdir()
    with pytest.raises(WireError, match=r"ADAPTER_ERROR: cannot write .*x.yaml"):
        await found.set("x", Json.of({"port": 2}), "me")
    assert (value_of(found), len(changes), len(await found.history("x"))) == ({"port": 1}, 1, 1)
    (directory / "x.yaml.tmp").rmdir()
    await found.set("x", Json.of({"port": 2}), "me")
    assert read_entry(directory / "x.yaml").kept.decode() == {"port": 2}


async def test_a_cancelled_write_is_done_in_memory_too_or_not_at_all(tmp_path: Path) -> None:
    found, _ = await registered(tmp_path)
    for number in range(20):
        with trio.move_on_after(0 if number % 2 else 0.0005):
            await found.set("x", Json.of({"port": number}), "me")
        on_disk = read_entry(tmp_path / "x.yaml").kept.decode() if (tmp_path / "x.yaml").exists() else None
        assert value_of(found) == on_disk


async def test_own_writes_are_no_news(tmp_path: Path) -> None:
    found, changes = await registered(tmp_path)
    await found.set("x", Json.of({"port": 1}), "me")
    await found.reconcile()
    assert len(changes) == 1


async def test_broken_files_delete_nothing_and_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, changes = await registered(tmp_path)
    await found.set("x", Json.of({"port": 1}), "me")
    file = tmp_path / "x.yaml"
    for broken in ("value: [", "- a list", "id: 5\n", "id: 'No Id'\n", "id: x\nvalue: .inf\n", "\udcff"):
        file.write_bytes(broken.encode(errors="surrogateescape"))
        await found.reconcile()
        await found.reconcile()
        assert (value_of(found), len(changes)) == ({"port": 1}, 1)
    assert len(caplog.records) == 6
    await found.set("x", Json.of({"port": 2}), "me")
    assert read_entry(file).kept.decode() == {"port": 2}


async def test_an_edit_that_does_not_fit_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, changes = await registered(tmp_path)
    await found.set("x", Json.of({"port": 1}), "me")
    for bad in ("{port: secret-word}", "{port: '${UNSET}'}"):
        (tmp_path / "x.yaml").write_text(f"id: x\nvalue: {bad}\n")
        await found.reconcile()
        assert (value_of(found), len(changes)) == ({"port": 1}, 1)
    assert "the value before stays" in caplog.text
    assert "secret-word" not in caplog.text


async def test_what_an_edit_leaves_alone_stays_as_its_owner_said(tmp_path: Path) -> None:
    found, _ = await registered(tmp_path)
    await found.set("x", Json.of({"port": 1}), "me")
    await found.register(Registration(id="x", name="New", description="d", schema=SCHEMA), "owner")
    text = (tmp_path / "x.yaml").read_text()
    (tmp_path / "x.yaml").write_text("# mine\n" + text.replace("port: 1", "port: 2"))
    await found.reconcile()
    entry = found.find("x")
    assert (entry.name, entry.description, entry.value.decode()) == ("New", "d", {"port": 2})
    (tmp_path / "x.yaml").write_text("id: x\nname: Mine\nmetadata: {a: 1}\nvalue: {port: 2}\n")
    await found.reconcile()
    assert (found.find("x").name, found.find("x").metadata.decode()) == ("Mine", {"a": 1})


async def test_new_files_renamed_files_and_files_with_one_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, changes = await registered(tmp_path)
    (tmp_path / "any-name.yaml").write_text("id: by-hand\nvalue: 1\n")
    (tmp_path / "ignored.yml").write_text("id: ignored\nvalue: 1\n")
    await found.reconcile()
    assert [(change.event_type, change.entry.id) for change in changes] == [("configuration:registered", "by-hand")]
    (tmp_path / "any-name.yaml").rename(tmp_path / "other-name.yaml")
    (tmp_path / "second.yaml").write_text("id: by-hand\nvalue: 2\n")
    await found.reconcile()
    assert (len(changes), value_of(found, "by-hand")) == (1, 1)
    assert "stands in other-name.yaml already" in caplog.text
    (tmp_path / "second.yaml").unlink()
    (tmp_path / "other-name.yaml").unlink()
    await found.reconcile()
    assert (changes[-1].event_type, changes[-1].new) == ("configuration:deleted", None)


async def test_a_directory_that_cannot_be_listed_deletes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "config"
    found, changes = await registered(directory)
    await found.set("x", Json.of({"port": 1}), "me")
    directory.rename(tmp_path / "away")
    directory.write_text("no directory")
    await found.reconcile()
    assert (value_of(found), len(changes)) == ({"port": 1}, 1)
    assert "all entries stay as they are" in caplog.text
    with pytest.raises(StoreError, match="cannot read the directory"):
        await registry(directory).load()


async def test_a_reset_removes_the_file_and_a_failed_one_changes_nothing(tmp_path: Path) -> None:
    found, _ = await registered(tmp_path)
    await found.set("x", Json.of({"port": 1}), "me")
    await found.reset("x", "me")
    assert not (tmp_path / "x.yaml").exists()
    assert found.find("x").kept == ABSENT


async def test_writers_take_turns(tmp_path: Path) -> None:
    found, changes = await registered(tmp_path)
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(found.set, "x", Json.of({"port": number}), "me")
    assert len(changes) == 10
    assert all(before.new == after.old for before, after in itertools.pairwise(changes))
    assert read_entry(tmp_path / "x.yaml").kept == found.find("x").kept


@pytest.mark.parametrize("edit", ["id: x\nvalue: {port: many}\n", "id: x\nvalue: ["])
async def test_what_is_set_stands_on_the_disk_also_over_an_edit_that_was_refused(tmp_path: Path, edit: str) -> None:
    found, changes = await registered(tmp_path)
    await found.set("x", Json.of({"port": 1}), "me")
    (tmp_path / "x.yaml").write_text(edit)
    await found.reconcile()
    await found.register(Registration(id="x", name="Y", description="", schema=SCHEMA), "owner")
    assert (tmp_path / "x.yaml").read_text() == edit
    del changes[:]
    await found.set("x", Json.of({"port": 1}), "me")
    assert not changes
    assert read_entry(tmp_path / "x.yaml").kept.decode() == {"port": 1}
    (tmp_path / "x.yaml").write_text(edit)
    await found.reconcile()
    await found.set("x", Json.of({"port": 2}), "me")
    assert read_entry(tmp_path / "x.yaml").kept.decode() == {"port": 2}
    (tmp_path / "x.yaml").write_text(edit)
    await found.reconcile()
    await found.reset("x", "me")
    assert not (tmp_path / "x.yaml").exists()


def files_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if path.is_file()}


async def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    found, _ = await registered(tmp_path)
    await found.set("x", Json.of({"port": 1}), "me")
    before = files_below(tmp_path)
    with monkeypatch.context() as patching:
        patching.setattr("os.fsync", full)
        with pytest.raises(WireError, match="No space left"):
            await found.set("x", Json.of({"port": 2}), "me")
    assert files_below(tmp_path) == before
    assert read_entry(tmp_path / "x.yaml").kept.decode() == value_of(found) == {"port": 1}


def test_the_config_file_among_the_entries_is_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "config"
    directory.mkdir()
    (directory / "config.yaml").write_text("workers: []\n")
    (directory / "x.yaml").write_text("id: x\nvalue: 1\n")
    files = EntryFiles(directory, Path("config/config.yaml"))
    assert (set(files.load().entries), files.load().broken) == ({"x"}, {})
    assert set(EntryFiles(directory).load().broken) == {directory / "config.yaml"}
