"""Watching a directory: bursts are one change, mounted directories are replaced as a whole, and what cannot be watched is said."""

import logging
import os
from pathlib import Path

import pytest
import trio

from iii_trio.config import watch_directory


async def test_bursts_links_and_names(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for number, name in enumerate(("one", "two")):
        (tmp_path / name / "config.yaml").write_text(str(number))
    (tmp_path / "..data").symlink_to("one")
    (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
    seen: list[str] = []
    heard = trio.Event()

    async def on_change() -> None:
        nonlocal heard
        seen.append((tmp_path / "config.yaml").read_text())
        heard.set()
        heard = trio.Event()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_directory, tmp_path, lambda name: name == "config.yaml", on_change)
            await heard.wait()
            for number in range(20):
                (tmp_path / "noise").write_text(str(number))
            os.symlink("two", tmp_path / "..new")
            os.replace(tmp_path / "..new", tmp_path / "..data")
            await heard.wait()
            assert seen == ["0", "1"]
            (tmp_path / "config.yaml").unlink()
            for number in range(20):
                (tmp_path / "config.yaml").write_text(f"plain {number}")
            await heard.wait()
            assert seen == ["0", "1", "plain 19"]
            nursery.cancel_scope.cancel()


async def test_what_cannot_be_watched_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def never() -> None:
        pytest.fail("nothing has changed")

    with trio.fail_after(20):
        await watch_directory(tmp_path / "nowhere", lambda name: True, never)
    assert "changes in it are noticed at the next start only" in caplog.text
