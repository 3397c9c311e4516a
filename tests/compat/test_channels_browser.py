"""A page in headless Chromium as a worker: it connects, registers, is called, calls, and uses both ends of channels."""

import importlib.util
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import quote

import pytest
import trio
from compat_lab import CLIENTS, DEADLINE_S, Lab, Peer, RunningEngine, need

from iii_trio import ChannelReceiver, Worker, open_client

PAGE = CLIENTS / "browser_worker.html"
SIZE = 5_000_003
DATA = (bytes(range(251)) * (SIZE // 251 + 1))[:SIZE]
FUNCTIONS = ("upper", "call", "produce", "consume", "give", "leave")


def browse(chromium: str, address: str, stop: Event, complaints: list[str]) -> None:
    """Show the page until `stop`; what it throws goes to `complaints`. Playwright is synchronous: this is for a thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        while not stop.is_set():
            page.wait_for_timeout(20)  # in which the page lives, and Playwright passes on what it throws
        browser.close()


@pytest.fixture
async def page(lab: Lab, engine: RunningEngine, nursery: trio.Nursery) -> AsyncIterator[Peer]:
    """A peer that sees the page's functions."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    need(chromium is not None, "Chromium", "run `python tests/prepare.py`, or install the package chromium")
    need(importlib.util.find_spec("playwright") is not None, "Playwright", "install the extra [test]")
    assert chromium is not None
    address = f"{Path(PAGE).as_uri()}?{quote(engine.url, safe='')}"
    stop, complaints = Event(), []
    async with trio.open_nursery() as showing:
        showing.start_soon(trio.to_thread.run_sync, browse, chromium, address, stop, complaints)
        try:
            with trio.fail_after(2 * DEADLINE_S):
                peer = await lab.peer(engine)
                await peer.has(*(f"page::{name}" for name in FUNCTIONS))
                yield peer
        finally:
            stop.set()
    assert complaints == []


async def test_a_page_is_a_worker_like_any_other(page: Peer, engine: RunningEngine) -> None:
    def own(value: dict[str, Any]) -> dict[str, Any]:
        return {key: item for key, item in value.items() if key != "_caller_worker_id"}

    rows = (await page.call("engine::workers::list", {}))["workers"]
    (row,) = [row for row in rows if row["runtime"] == "browser"]
    assert row["name"].startswith("browser:")
    assert set(row["functions"]) == {f"page::{name}" for name in FUNCTIONS}
    assert own(await page.call("page::upper", {"text": "ä€🙂 text"})) == {"text": "Ä€🙂 TEXT"}
    unknown = await page.call("page::call", {"function_id": "nobody::is::this", "payload": {}})
    assert unknown["error"]["code"] == "function_not_found"

    worker = Worker("reader")

    @worker.function("ours::count")
    async def count(source: dict[str, Any], *, client: Any) -> int:
        receive: ChannelReceiver = client.channels.receiver(source["source"])
        async with receive:
            return len(await receive.receive_all(2 * SIZE))

    async with worker.connect(engine.url), open_client(engine.url) as client:
        assert await page.call("page::give", {"to": "ours::count", "bytes": SIZE}) == SIZE
        assert await page.call("page::give", {"to": "page::consume", "bytes": 200_000}) == {
            "bytes": 200_000,
            "right": True,
            "texts": ["begin ä€🙂", "end"],
            "code": 1005,
        }

        send, receive = await client.open_channel(buffer=8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "page::produce", {"target": send.ref, "bytes": SIZE})
            assert await receive.receive() == "begin ä€🙂"
            assert await receive.receive_all(SIZE) == DATA
        await receive.aclose()

        for complete in (True, False):
            send, receive = await client.open_channel(buffer=8)
            results: list[Any] = []

            async def consume(ref: dict[str, str], results: list[Any] = results) -> None:
                results.append(await client.call("page::consume", {"source": ref}))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(consume, receive.ref)
                await send.send_all(DATA)
                await send.send("end")
                if complete:
                    await send.aclose()
                else:
                    send.abort()
            if complete:
                assert results == [{"bytes": SIZE, "right": True, "texts": ["end"], "code": 1005}]
            else:
                assert (results[0]["right"], results[0]["code"]) == (True, 1011)

        send, receive = await client.open_channel()
        await client.send("page::leave", {"target": send.ref})
        assert await receive.receive() == "begin ä€🙂"
        assert await receive.receive() == bytes(range(4))
        with pytest.raises(trio.BrokenResourceError, match="its writer was lost"):
            await receive.receive()
        await page.lacks("page::upper")
