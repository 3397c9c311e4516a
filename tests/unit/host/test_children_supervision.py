"""Supervised children, without processes: which scripts can run, lines, restart waits, what a changed file means."""

import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from iii_trio.host.children import (
    Backoff,
    Children,
    Lines,
    ScriptError,
    affected_scripts,
    resolve_scripts,
    run_children,
)


def ignore(_name: str, _line: str) -> None:
    """A log that keeps nothing."""


def make(directory: Path, *names: str) -> list[Path]:
    paths = [directory / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


class TestResolveScripts:
    def test_python_scripts_run_with_this_python_and_others_with_node(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "which", {"node": "/opt/node"}.get)
        paths = make(tmp_path, "greet.py", "count.mjs", "old.js")
        found = resolve_scripts(paths)
        assert [script.command for script in found] == [
            (sys.executable, str(paths[0])),
            ("/opt/node", str(paths[1])),
            ("/opt/node", str(paths[2])),
        ]
        assert [script.name for script in found] == ["greet", "count", "old"]

    def test_a_relative_path_is_made_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make(tmp_path, "greet.py")
        monkeypatch.chdir(tmp_path)
        assert resolve_scripts(["greet.py"])[0].path == tmp_path / "greet.py"

    def test_every_script_has_a_name_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make(tmp_path, "a/worker.py", "b/worker.py")
        monkeypatch.chdir(tmp_path)
        given = ["a/worker.py", "b/worker.py", "b/worker.py"]
        assert [script.name for script in resolve_scripts(given)] == ["a/worker.py", "b/worker.py", "b/worker.py#2"]

    def test_another_kind_of_file_is_refused_with_the_kinds_that_run(self, tmp_path: Path) -> None:
        (path,) = make(tmp_path, "run.sh")
        path.chmod(0o755)
        with pytest.raises(ScriptError, match=r"run\.sh: .*use \.py, \.mjs or \.js"):
            resolve_scripts([path])

    def test_all_problems_are_named_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "folder.py").mkdir()
        with pytest.raises(ScriptError) as caught:
            resolve_scripts([tmp_path / "missing.py", tmp_path / "folder.py", "tool"])
        text = str(caught.value)
        assert "missing.py: no such file" in text
        assert "folder.py: is not a file" in text
        assert "tool: not a kind" in text

    def test_a_missing_node_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ScriptError, match=r"count\.mjs: it needs Node\.js.*'node' on PATH"):
            resolve_scripts(make(tmp_path, "count.mjs"))

    async def test_nothing_starts_when_one_script_cannot_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Children, "run", None)  # to call it would raise a TypeError
        good = make(tmp_path, "greet.py")
        with pytest.raises(ScriptError, match="missing"):
            await run_children([*good, tmp_path / "missing.py"], env={}, log=ignore)


class TestLines:
    def test_lines_come_whole_whatever_the_chunks(self) -> None:
        data = "eins\nzwei\r\n\ndrei ✓\nvier".encode()
        for size in range(1, len(data) + 1):
            lines = Lines()
            got = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
            assert got == ["eins", "zwei", "", "drei ✓"]
            assert lines.finish() == ["vier"]

    def test_invalid_utf8_is_replaced(self) -> None:
        assert Lines().feed(b"a\xff\xc3(b\n") == ["a\ufffd\ufffd(b"]

    def test_a_character_cut_off_by_the_end_is_replaced(self) -> None:
        lines = Lines()
        assert lines.feed("x✓".encode()[:-1]) == []
        assert lines.finish() == ["x\ufffd"]
        assert lines.finish() == []

    def test_a_long_line_comes_in_pieces_and_nothing_is_kept_beyond_the_limit(self) -> None:
        lines = Lines(limit=10)
        assert lines.feed(b"x" * 25) == ["x" * 10, "x" * 10]
        assert lines.feed(b"y" * 5 + b"\nend\n") == ["x" * 5 + "y" * 5, "end"]
        assert lines.feed(b"0123456789abc\n") == ["0123456789", "abc"]
        assert lines.feed(b"0123456789") + lines.feed(b"\n") == ["0123456789"]


class TestBackoff:
    def test_the_wait_doubles_to_its_limit(self) -> None:
        backoff = Backoff()
        assert [backoff.after(1) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]

    def test_a_long_life_resets_it(self) -> None:
        backoff = Backoff()
        assert [backoff.after(life) for life in (0, 0, 59.9, 60, 0)] == [0.5, 1, 2, 0.5, 1]


class TestAffectedScripts:
    def test_a_script_means_itself_and_a_module_every_script_beside_it(self, tmp_path: Path) -> None:
        paths = make(tmp_path, "a.py", "b.py", "lib/c.py", "lib/shared.py", "near.py", "data.txt")
        a, b, c = resolve_scripts(paths[:3])
        names: dict[str, set[Any]] = {
            "a.py": {a},
            "lib/c.py": {c},
            "near.py": {a, b},
            "lib/shared.py": {a, b, c},
            "data.txt": set(),
        }
        for name, expected in names.items():
            assert affected_scripts((a, b, c), [str(tmp_path / name)]) == expected, name

    def test_languages_are_apart(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", {"node": "/opt/node"}.get)
        make(tmp_path, "a.py", "b.mjs", "x.cjs", "y.py")
        a, b = resolve_scripts([tmp_path / "a.py", tmp_path / "b.mjs"])
        assert affected_scripts((a, b), [str(tmp_path / "x.cjs")]) == {b}
        assert affected_scripts((a, b), [str(tmp_path / "y.py")]) == {a}

    def test_a_directory_of_a_similar_name_is_another(self, tmp_path: Path) -> None:
        make(tmp_path, "app/a.py", "app2/x.py")
        (a,) = resolve_scripts([tmp_path / "app/a.py"])
        assert affected_scripts((a,), [str(tmp_path / "app2/x.py")]) == set()


class TestSupervision:
    """The restarts themselves, in virtual time: a life is a coroutine here instead of a process."""

    @pytest.fixture
    def lives(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
        """Give a script's lives as (seconds, status) pairs; returns the list that gets the times of their starts."""

        def give(*lives: tuple[float, int]) -> list[float]:
            left, starts = iter(lives), list[float]()

            async def live(_self: Children, _child: object) -> int:
                starts.append(trio.current_time())
                seconds, status = next(left, (float("inf"), 0))
                await trio.sleep(seconds)
                return status

            monkeypatch.setattr(Children, "_live", live)
            return starts

        return give

    async def test_a_crash_loop_slows_down(
        self, lives: Callable[..., list[float]], autojump_clock: MockClock, tmp_path: Path
    ) -> None:
        starts = lives(*[(0, 1)] * 9)
        service = Children(resolve_scripts(make(tmp_path, "a.py")), {}, ignore)
        began = trio.current_time()
        with trio.move_on_after(1000):
            await service.run()
        gaps = [late - early for early, late in pairwise(starts)]
        assert starts[0] == began
        assert gaps == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30, 30])
        (child,) = service.statistics().children
        assert (child.state, child.starts, child.failures, child.last_status) == ("stopped", 10, 9, 1)

    async def test_a_minute_of_life_makes_the_next_restart_quick(
        self, lives: Callable[..., list[float]], autojump_clock: MockClock, tmp_path: Path
    ) -> None:
        starts = lives((0, 1), (0, 1), (61, -11), (0, 1))
        service = Children(resolve_scripts(make(tmp_path, "a.py")), {}, ignore)
        with trio.move_on_after(1000):
            await service.run()
        gaps = [late - early for early, late in pairwise(starts)]
        assert gaps == pytest.approx([0.5, 1, 61.5, 1])

    async def test_a_change_of_the_source_ends_the_wait(
        self, lives: Callable[..., list[float]], autojump_clock: MockClock, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        starts = lives((0, 1), (0, 1), (0, 1), (0, 1))
        paths = make(tmp_path, "a.py", "other.mjs")
        service = Children(resolve_scripts(paths[:1]), {}, ignore)
        nursery.start_soon(service.run)
        await trio.sleep(1.7)  # restarted after 0.5 s and 1 s, now waiting for 2 s
        service._sources_changed([str(paths[1])])
        await trio.sleep(0.1)
        service._sources_changed([str(paths[0])])
        await trio.sleep(1)
        assert [at - starts[0] for at in starts] == pytest.approx([0, 0.5, 1.5, 1.8, 2.3])
        assert service.statistics().children[0].reloads == 1
        nursery.cancel_scope.cancel()

    async def test_a_script_that_exits_with_0_has_finished(
        self, lives: Callable[..., list[float]], autojump_clock: MockClock, tmp_path: Path
    ) -> None:
        starts = lives((3, 0))
        service = Children(resolve_scripts(make(tmp_path, "a.py")), {}, ignore)
        with trio.fail_after(1000):
            await service.run()
        assert len(starts) == 1
        (child,) = service.statistics().children
        assert (child.state, child.failures, child.last_status) == ("finished", 0, 0)
