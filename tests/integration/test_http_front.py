"""hypercorn between application and connection: nothing is left of a request, and the same application runs under it alone."""

import gc
from collections.abc import Mapping
from functools import partial
from typing import Any

import httpx
import trio
from hypercorn.config import Config
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio import serve
from test_http_connections import OK, PATIENCE_S, REQUEST, read_until, serving

from iii_trio.config import HttpSettings, Live
from iii_trio.engine import Binding, Outcome, open_engine, open_local
from iii_trio.modules.http import HttpModule
from iii_trio.protocol import Json


def streams() -> int:
    """How many requests of hypercorn there are in memory."""
    return sum(isinstance(thing, HTTPStream) for thing in gc.get_objects())


async def test_a_request_leaves_no_garbage() -> None:
    async with serving() as server, server.dial() as stream:
        await stream.send_all(REQUEST)
        await read_until(stream, OK)
        gc.collect()
        gc.disable()
        try:
            before = streams()
            for _ in range(5):
                await stream.send_all(REQUEST)
                await read_until(stream, OK)
            assert streams() <= before
        finally:
            gc.enable()


async def test_what_may_not_follow_ends_the_connection_as_a_bug() -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"no head"})

    async with serving(app) as server, server.dial() as stream:
        await stream.send_all(REQUEST)
        answer = b""
        while chunk := await stream.receive_some():
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert server.connections.statistics().failed == 1


async def test_the_application_runs_under_stock_hypercorn_too() -> None:
    module = HttpModule(Live(HttpSettings()), listen=False)
    config = Config()
    config.bind = ["127.0.0.1:0"]
    with trio.fail_after(PATIENCE_S):
        async with open_engine() as core, trio.open_nursery() as nursery, open_local(core, "test") as peer:
            await nursery.start(module.run, core)
            peer.register("echo", lambda call, data: Outcome(Json.of({"body": data.decode()["body"]})))
            route = Json.of({"api_path": "/echo", "http_method": "POST"})
            core.triggers.register(Binding(id="t", trigger_type="http", function_id="echo", config=route))
            under_hypercorn = partial(serve, module.app, config, shutdown_trigger=trio.sleep_forever, mode="asgi")
            (url,) = await nursery.start(under_hypercorn)
            async with httpx.AsyncClient(base_url=url) as client:
                assert (await client.get("/nothing")).json()["error"]["code"] == "NOT_FOUND"
                assert (await client.post("/echo", json={"a": [1]})).json() == {"a": [1]}
            nursery.cancel_scope.cancel()
