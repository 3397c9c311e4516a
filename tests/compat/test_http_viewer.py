"""The page of the HTTP routes in headless Chromium: what it shows, what it sends and where, and what it never runs."""

import importlib.util
import shutil
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from compat_lab import need

from iii_trio.config import HttpSettings, Live
from iii_trio.engine import Binding, Call, FunctionEntry, Outcome, open_engine, open_local
from iii_trio.modules.http import HttpModule
from iii_trio.protocol import Json

PATIENCE_S = 60
HOSTILE = '<script>window.hit = 1</script><img src=x onerror="window.hit = 1">\'"><svg onload=window.hit=1>'
ORDER = {
    "type": "object",
    "$defs": {"Line": {"type": "object", "properties": {"sku": {"type": "string"}, "next": {"$ref": "#/$defs/Line"}}}},
    "properties": {
        "path_params": {"type": "object", "properties": {"id": {"type": "integer"}}},
        "query_params": {"type": "object", "properties": {"dry": {"type": "boolean"}}},
        "headers": {"type": "object", "properties": {"authorization": {"type": "string"}}},
        "body": {"type": "object", "properties": {"lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}}}},
    },
}


@define(eq=False)
class Site:
    """The page's address, and what its functions were called with."""

    url: str
    calls: list[Any] = field(factory=list)

    async def show(self, look: Callable[[Any], None], **how: Any) -> list[str]:
        """Open the page and let `look` use it, in a thread; the addresses of all requests that it has made."""
        with trio.fail_after(PATIENCE_S):
            return await trio.to_thread.run_sync(partial(browse, self.url, look, **how))


def browse(url: str, look: Callable[[Any], None], **how: Any) -> list[str]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    requested: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(**how)
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(url)
        page.wait_for_selector("details")
        look(page)
        browser.close()
    # a status that is asked for on purpose is an error to the console
    assert [text for text in complaints if "the server responded with a status" not in text] == []
    return requested


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """An engine whose page shows an order's route and hostile ones."""
    need(
        bool(shutil.which("chromium") or shutil.which("chromium-browser")), "Chromium", "run `python tests/prepare.py`"
    )
    need(importlib.util.find_spec("playwright") is not None, "Playwright", "install the extra [test]")
    settings = Live(HttpSettings(host="127.0.0.1", port=0, openapi_path="/docs"))
    module, site = HttpModule(settings), Site("")

    def handler(call: Call, data: Json) -> Outcome:
        request = data.decode()
        site.calls.append(request)
        told = {"took": request["body"], "id": request["path_params"].get("id"), "text": HOSTILE}
        return Outcome(Json.of({"status_code": 201, "body": told, "headers": {"x-mine": "<b>1</b>"}}))

    async with open_engine() as core, open_local(core, "workers") as peer, trio.open_nursery() as nursery:

        def route(function_id: str, path: str, method: str, description: str, request: Any) -> None:
            entry = FunctionEntry(
                id=function_id,
                namespace="default",
                owner=peer,
                builtin=True,
                handler=(False, handler),
                description=description,
                request_format=Json.of(request),
            )
            core.functions.claim(entry)
            config = Json.of({"api_path": path, "http_method": method})
            core.triggers.register(
                Binding(id=path + method, trigger_type="http", function_id=function_id, config=config)
            )

        route("orders::put", "/orders/:id", "PUT", "Takes an order\nand more words", ORDER)
        bad = {
            "properties": {
                "body": {"properties": {HOSTILE: {"title": HOSTILE}}},
                "query_params": {"properties": {HOSTILE: {}}},
            }
        }
        route(f"f{HOSTILE}", f"/{HOSTILE.replace('?', '')}/__proto__", "POST", HOSTILE, bad)
        route("away", "//evil.example/x", "GET", "a path that looks like a host", {"type": HOSTILE})
        await nursery.start(module.run, core)
        site.url = f"http://127.0.0.1:{module.addresses[0][1]}/docs"
        yield site
        nursery.cancel_scope.cancel()


async def test_the_page_lists_routes_shows_schemas_and_sends_a_request(site: Site) -> None:
    seen: dict[str, Any] = {}

    def look(page: Any) -> None:
        page.fill("#filter", "put order")
        assert page.inner_text("#state") == "1 routes"
        box = page.locator("details")
        assert "/orders/{id}" in box.inner_text()
        box.locator("summary").click()
        box.locator("pre.schema").nth(1).wait_for()  # a box is filled when it has opened
        seen["schemas"] = box.locator("pre.schema").all_inner_texts()
        box.locator("input").nth(0).fill("a/7 ?")
        box.locator("input").nth(1).fill("true")
        box.locator("input").nth(2).fill("secret")
        seen["sample"] = box.locator("textarea").input_value()
        box.locator("textarea").fill('{"lines": [{"sku": "ä"}]}')
        box.locator("button").click()
        box.locator(".response .body").wait_for()
        seen["response"] = box.locator(".response").inner_text()

    requested = await site.show(look)
    host = site.url.removesuffix("docs")
    assert all(address.startswith(host) for address in requested)
    (call,) = site.calls
    assert (call["method"], call["path_params"], call["query_params"]) == ("PUT", {"id": "a/7 ?"}, {"dry": "true"})
    assert (call["body"], call["headers"]["authorization"]) == ({"lines": [{"sku": "ä"}]}, "Bearer secret")
    assert '"sku"' in seen["schemas"][0]
    assert '"TimedOut"' not in seen["schemas"][1]
    assert '"error_id"' in seen["schemas"][1]
    assert seen["sample"] == '{\n  "lines": []\n}'
    assert seen["response"].startswith("201 Created in ")
    assert "x-mine: <b>1</b>" in seen["response"]


async def test_what_workers_say_is_text_and_no_request_leaves_for_another_host(site: Site) -> None:
    def look(page: Any) -> None:
        for box in page.locator("details").all():
            box.locator("summary").click()
            box.locator("button").click()
            box.locator(".response .status").wait_for()
        assert page.evaluate("window.hit") is None
        assert page.locator("#routes img, #routes svg, #routes script").count() == 0
        assert HOSTILE in page.inner_text("#routes")

    requested = await site.show(look)
    assert len(requested) >= 5
    assert all(address.startswith(site.url.removesuffix("docs")) for address in requested), requested


async def test_the_policy_runs_nothing_that_found_its_way_in(site: Site) -> None:
    def look(page: Any) -> None:
        page.evaluate(
            "() => { const made = document.createElement('script'); made.textContent = 'window.hit = 1';"
            " document.body.append(made); document.body.insertAdjacentHTML('beforeend', '<b id=b onclick=\"hit=1\">b</b>');"
            " document.getElementById('b').click() }"
        )
        assert page.evaluate("window.hit") is None
        assert page.evaluate("fetch('http://127.0.0.2:9/').then(() => 'sent', () => 'refused')") == "refused"

    with pytest.raises(AssertionError, match="Content Security Policy"):
        await site.show(look)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_is_readable_by_day_and_by_night(site: Site, scheme: str) -> None:
    def contrast(page: Any, selector: str) -> float:
        def luminance(color: str) -> float:
            parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
            red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue

        text = page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).color")
        ground = page.evaluate(
            f"(e => {{ while (e && getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;"
            f" return getComputedStyle(e).backgroundColor }})(document.querySelector('{selector}'))"
        )
        dark, bright = sorted((luminance(text), luminance(ground)))
        return (bright + 0.05) / (dark + 0.05)

    def look(page: Any) -> None:
        page.locator("details").first.locator("summary").click()
        for selector in ("h1", "#state", "summary b", "summary .soft", "details pre", "input", "button", "#filter"):
            assert contrast(page, selector) >= 4.5, selector
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")

    await site.show(look, color_scheme=scheme)
