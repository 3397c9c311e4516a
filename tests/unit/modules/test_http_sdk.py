"""Requests in handlers of our own SDK: everything a request has, and its two channels; in one process, without sockets."""

import hashlib
import runpy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import frozen
from test_http_exchange import JSON, House, open_house
from trio.testing import MockClock, wait_all_tasks_blocked

from iii_trio import ChannelSender, Client, HttpRequest, HttpResponse, RequestInfo, Worker
from iii_trio.config import MiddlewareSettings
from iii_trio.engine import Listener
from iii_trio.sdk import schema_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "http_streams.py"


@asynccontextmanager
async def serving(worker: Worker, **settings: Any) -> AsyncIterator[House]:
    """An engine with the HTTP module, and `worker` connected to it over streams in memory; nothing is left behind."""
    async with open_house(**settings) as house, trio.open_nursery() as nursery:
        listener = Listener(core=house.core)

        async def open_stream() -> trio.abc.Stream:
            ours, theirs = trio.testing.lockstep_stream_pair()
            nursery.start_soon(listener.handle, theirs)
            return ours

        async with worker.connect(open_stream=open_stream) as client:
            await client.wait_connected()
            yield house
            await wait_all_tasks_blocked()
            assert house.core.channels.statistics().open == 0
        nursery.cancel_scope.cancel()


async def test_a_handler_sees_the_whole_request(autojump_clock: MockClock) -> None:
    worker, seen = Worker("w"), list[HttpRequest]()

    @worker.function("guard")
    async def guard(_: Any) -> dict[str, Any]:
        return {"action": "continue", "context": {"user": "ada"}}

    @worker.http("POST", "x/:id")
    @worker.function("f")
    async def f(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(201)

    async with serving(worker, middleware=(MiddlewareSettings(function_id="guard"),)) as house:
        reply = await house.ask("/x/a%20b?q=1&q=2", "POST", JSON | {"x-request-id": "r1"}, b"[1]")
    assert reply.status == 201
    (request,) = seen
    assert (request.method, request.path, request.path_params) == ("POST", "x/:id", {"id": "a b"})
    assert (request.query_params, request.body, request.context) == ({"q": ["1", "2"]}, [1], {"user": "ada"})
    assert request.request == RequestInfo(path="/x/a%20b", query="q=1&q=2", id="r1")


async def test_bodies_both_ways_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.http("POST", "x")
    @worker.function("f")
    async def f(request: HttpRequest) -> None:
        async with await request.respond(202, {"content-type": "text/plain"}) as response:
            async for chunk in request.request_body:
                await response.send_all(chunk.upper())

    async with serving(worker) as house:
        client = house.client("POST", "/x", {"transfer-encoding": "chunked"})
        nursery.start_soon(client.run)
        got = b""
        for part in (b"one ", b"two ", b"three"):
            client.sends(part)
            got += part.upper()
            while client.reply is None or client.reply.body != got:  # noqa: ASYNC110
                await trio.sleep(1)
        client.sends(b"", more=False)
        await client.ended.wait()
        assert client.reply is not None
        assert (client.reply.status, client.reply.headers["content-type"]) == (202, "text/plain")


@pytest.mark.parametrize("looks", [True, False])
async def test_a_handler_that_leaves_the_channels_alone_costs_no_connection_and_nothing_is_waited_for(
    looks: bool, autojump_clock: MockClock
) -> None:
    worker = Worker("w")

    @worker.http("GET", "none")
    @worker.function("none")
    async def none(request: HttpRequest) -> None:
        if looks:
            assert request.response is request.response
            assert request.request_body is request.request_body

    @worker.http("GET", "value")
    @worker.function("value")
    async def value(request: HttpRequest) -> HttpResponse:
        await none(request)
        return HttpResponse(body="value")

    async with serving(worker) as house:
        assert ((await house.ask("/none")).status, (await house.ask("/value")).json) == (204, "value")
        assert trio.current_time() == 0


async def test_the_response_may_be_handed_to_another_function(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.function("writes", on_disconnect="finish")
    async def writes(response: ChannelSender) -> None:
        await trio.sleep(4)
        await response.send_all(b"by another")

    @worker.http("GET", "x")
    @worker.function("f")
    async def f(request: HttpRequest, *, client: Client) -> None:
        await client.send("writes", request.response.ref)

    async with serving(worker) as house:
        reply = await house.ask("/x")
        assert (reply.status, reply.body) == (200, b"by another")


async def test_a_handler_that_fails_after_its_first_bytes_is_cut_off(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.http("GET", "x")
    @worker.function("f")
    async def f(request: HttpRequest) -> None:
        response = await request.respond()
        await response.send_all(b"half")
        await trio.sleep(1)  # what has not left yet is dropped, and the answer would be a 500
        raise ValueError("on purpose")

    async with serving(worker) as house:
        client = house.client("GET", "/x")
        with pytest.raises(trio.BrokenResourceError, match="cut off"):
            await client.run()
        assert client.reply is not None
        assert client.reply.body == b"half"


@pytest.mark.parametrize("what", ["the response", "the body"])
async def test_a_handler_that_hears_of_its_clients_leaving_by_a_channel_has_no_bug(
    what: str, nursery: trio.Nursery, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    worker, begun, heard = Worker("w"), trio.Event(), trio.Event()

    @worker.http("POST", "x")
    @worker.function("f")
    async def f(request: HttpRequest) -> None:
        assert await request.request_body.receive_some() == b"first"
        begun.set()
        try:
            with trio.CancelScope(shield=True):  # else that the call is cancelled is mostly heard of first
                while True:
                    if what == "the response":
                        await request.response.send_all(b"more")
                        await trio.sleep(1)
                    else:
                        await request.request_body.receive_some()
        finally:
            heard.set()

    async with serving(worker) as house:
        client = house.client("POST", "/x", {"transfer-encoding": "chunked"})
        client.sends(b"first")
        nursery.start_soon(client.run)
        await begun.wait()
        client.leaves()
        await heard.wait()
        await wait_all_tasks_blocked()
    told = [record for record in caplog.records if "f: the channel " in record.getMessage()]
    assert [record.levelname for record in told] == ["INFO"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_route_may_be_given_more_time(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @worker.http("GET", "x", timeout_ms=5000)
    @worker.function("f")
    async def f(request: HttpRequest) -> HttpResponse:
        await trio.sleep(4)
        return HttpResponse(body="late")

    async with serving(worker, default_timeout=1000) as house:
        assert (await house.ask("/x")).json == "late"


async def test_channels_end_with_their_handler_and_are_those_of_an_engine(autojump_clock: MockClock) -> None:
    worker, kept = Worker("w"), list[HttpRequest]()

    @worker.http("GET", "x")
    @worker.function("f")
    async def f(request: HttpRequest) -> None:
        kept.append(request)

    async with serving(worker) as house:
        assert (await house.ask("/x")).status == 204
    with pytest.raises(RuntimeError, match="has returned"):
        _ = kept[0].response
    with pytest.raises(RuntimeError, match="an engine has sent"):
        _ = HttpRequest(method="GET").request_body
    assert not HttpRequest().responding


def test_the_channels_are_no_part_of_the_schema() -> None:
    schema = schema_of(HttpRequest)
    assert schema is not None
    assert {"request", "context", "body"} <= schema["properties"].keys()
    assert not [name for name in schema["properties"] if "ends" in name or "response" in name]


async def test_the_example_streams_up_and_down(autojump_clock: MockClock) -> None:
    worker: Worker = runpy.run_path(str(EXAMPLE))["worker"]
    data = bytes(range(256)) * 2_000
    async with serving(worker) as house:
        reply = await house.ask("/uploads/mine", "PUT", {}, data)
        assert (reply.status, reply.json) == (
            201,
            {"name": "mine", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        )
        reply = await house.ask("/squares?up_to=2500")
        assert (reply.status, reply.headers["content-type"]) == (200, "text/csv")
        assert reply.body.splitlines()[-1] == b"2499,6245001"
        assert (await house.ask("/squares?up_to=many")).status == 400
        began = trio.current_time()
        reply = await house.ask("/ticks")
        assert reply.body.count(b"data: ") == 10
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)


async def test_a_handler_that_was_never_given_the_response_need_not_be_waited_for(autojump_clock: MockClock) -> None:
    worker = Worker("w")

    @frozen
    class Fields:
        method: str

    @frozen
    class WithResponse:
        response: dict[str, str]

    @worker.http("GET", "fields")
    @worker.function("fields")
    async def fields(request: Fields) -> None:
        assert request.method == "GET"

    @worker.http("GET", "nothing")
    @worker.function("nothing")
    async def nothing() -> None: ...

    @worker.http("GET", "raw")
    @worker.function("raw")
    async def raw(request: dict[str, Any]) -> None: ...

    @worker.http("GET", "ref")
    @worker.function("ref")
    async def ref(request: WithResponse) -> None: ...

    async with serving(worker) as house:
        for path, waits in (("/fields", False), ("/nothing", False), ("/raw", True), ("/ref", True)):
            began = trio.current_time()
            assert (await house.ask(path)).status == 204
            assert (trio.current_time() - began >= 5) is waits, path
