"""A page in headless Chromium that follows a stream: it renders what is there and what changes, through a restart."""

import importlib.util
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event
from urllib.parse import quote

import pytest
import trio
from attrs import define, field
from compat_lab import CLIENTS, DEADLINE_S, Lab, RunningEngine, need

PAGE = CLIENTS / "stream_page.html"
PLACE = {"stream_name": "s", "group_id": "g"}


@define(eq=False)
class Shown:
    """What the page has said: each rendering, and how its sockets ended."""

    lines: list[str] = field(factory=list)
    errors: list[str] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    def hear(self, line: str) -> None:
        self.lines.append(line)
        self._news.set()
        self._news = trio.Event()

    async def line(self, wanted: str) -> None:
        """Wait for a line; it and all before it are forgotten."""
        with trio.move_on_after(2 * DEADLINE_S):
            while wanted not in self.lines:
                await self._news.wait()
            del self.lines[: self.lines.index(wanted) + 1]
            return
        raise AssertionError(f"the page has not said {wanted!r} but {self.lines}")


def browse(chromium: str, address: str, stop: Event, shown: Shown) -> None:
    """Show the page until `stop`. Playwright is synchronous: this is for a thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("pageerror", lambda error: shown.errors.append(str(error)))
        page.on("console", lambda message: trio.from_thread.run_sync(shown.hear, message.text))
        page.goto(address)
        while not stop.is_set():
            page.wait_for_timeout(20)
        browser.close()


@pytest.fixture
async def page(engine: RunningEngine, nursery: trio.Nursery) -> AsyncIterator[Shown]:
    """The page, connected to the engine's stream port."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    need(chromium is not None, "Chromium", "run `python tests/prepare.py`, or install the package chromium")
    need(importlib.util.find_spec("playwright") is not None, "Playwright", "install the extra [test]")
    assert chromium is not None
    address = f"{Path(PAGE).as_uri()}?{quote(f'ws://127.0.0.1:{engine.stream_port}', safe='')}"
    stop, shown = Event(), Shown()
    async with trio.open_nursery() as showing:
        showing.start_soon(trio.to_thread.run_sync, browse, chromium, address, stop, shown)
        try:
            yield shown
        finally:
            stop.set()
    assert shown.errors == []


async def test_a_page_renders_live_updates_while_the_engine_restarts(
    lab: Lab, engine: RunningEngine, page: Shown
) -> None:
    peer = await lab.peer(engine)

    async def put(item: str, text: str) -> None:
        await peer.call("stream::set", {**PLACE, "item_id": item, "data": {"id": item, "text": text}})

    await page.line("sync: ")
    await put("1", "ä€🙂")
    await page.line("create: 1=ä€🙂")
    await put("2", "two")
    await put("1", "one")
    await page.line("update: 1=one 2=two")
    await peer.call("stream::delete", {**PLACE, "item_id": "2"})
    await page.line("delete: 1=one")
    await put("3", "three")
    await page.line("create: 1=one 3=three")

    assert await engine.process.stop() == 0
    await page.line("closed 1012")
    engine = await lab.engine(after=engine)
    await page.line("sync: 1=one 3=three")
    peer = await lab.peer(engine)
    await put("1", "again")
    await page.line("update: 1=again 3=three")
