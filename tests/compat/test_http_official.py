"""HTTP routes whose handlers are workers of the official SDKs: bodies both ways, streams, middleware, truncation."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import trio
from compat_lab import CLIENTS, DEADLINE_S, Lab, RunningEngine

WORKER = CLIENTS / "http_worker.py"
NODE_WORKER = CLIENTS / "http_worker.mjs"


@pytest.fixture
async def web(lab: Lab, engine: RunningEngine, new_python: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes of a Python worker."""
    await lab.script(engine, new_python, WORKER)
    peer = await lab.peer(engine)
    await peer.route("py/denied")
    base = f"http://127.0.0.1:{engine.http_port}"
    async with httpx.AsyncClient(base_url=base, timeout=DEADLINE_S, trust_env=False) as client:
        yield client


async def test_the_python_sdk_serves_every_kind_of_route(web: httpx.AsyncClient) -> None:
    raw = b'{"z":2, "a":[1]}'
    reply = await web.post("/py/echo", content=raw, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()) == (201, {"parsed": {"z": 2, "a": [1]}, "raw": raw.decode()})

    reply = await web.get("/py/inspect/a%20b?q=1&q=2", headers={"x-user": "ada", "content-type": "application/json"})
    seen = reply.json()
    assert (seen["path_params"], seen["query_params"], seen["body"]) == ({"id": "a b"}, {"q": ["1", "2"]}, None)
    assert (seen["context"], seen["request"]["path"]) == ({"user": "ada"}, "/py/inspect/a%20b")
    assert seen["request"]["id"] == reply.headers["x-request-id"]

    reply = await web.post("/py/xml")
    assert (reply.headers["content-type"], reply.content) == ("text/xml", b"<a/>")

    data = bytes(range(256)) * 10_000
    reply = await web.post("/py/upload", content=data, headers={"content-type": "application/octet-stream"})
    assert reply.json() == {"bytes": len(data), "sum": sum(data), "none": True}

    reply = await web.get("/py/download")
    assert (reply.status_code, reply.content) == (206, bytes(range(250)) * 8_000)
    assert (reply.headers["content-type"], reply.headers["x-kind"]) == ("application/pdf", "stream")

    reply = await web.get("/py/accepted")
    assert (reply.status_code, reply.headers["location"], reply.content) == (202, "/jobs/1", b"")

    assert (await web.get("/py/late")).content == b"late but whole"

    reply = await web.get("/py/denied")
    assert (reply.status_code, reply.json()) == (403, {"why": "no"})


async def test_events_arrive_one_by_one_while_the_request_is_still_sent(
    web: httpx.AsyncClient, engine: RunningEngine
) -> None:
    async with await trio.open_tcp_stream("127.0.0.1", engine.http_port) as stream:
        received = b""

        async def until(text: bytes) -> None:
            nonlocal received
            with trio.fail_after(DEADLINE_S):
                while text not in received:
                    data = await stream.receive_some()
                    assert data, received
                    received += data

        await stream.send_all(b"POST /py/events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(1, 5):
            await stream.send_all(b"1\r\n.\r\n")
            await until(b"data: %d\n\n\r\n" % number)
            assert b"data: %d" % (number + 1) not in received
        await stream.send_all(b"0\r\n\r\n")
        await until(b"\r\n0\r\n\r\n")
        assert b"\r\ncontent-type: text/event-stream\r\n" in received
        await stream.send_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
        await until(b"HTTP/1.1 404")


async def test_a_body_whose_worker_dies_does_not_look_whole(web: httpx.AsyncClient) -> None:
    got = b""

    async def read() -> None:
        nonlocal got
        async with web.stream("GET", "/py/dies") as reply:
            assert reply.status_code == 200
            async for chunk in reply.aiter_bytes():
                got += chunk

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert got == b"half"


async def test_the_node_sdk_streams_both_ways(
    lab: Lab, engine: RunningEngine, node_modules: Path, link: Callable[[Path], Path]
) -> None:
    await lab.script(engine, "node", link(NODE_WORKER))
    peer = await lab.peer(engine)
    await peer.route("node/download")
    base = f"http://127.0.0.1:{engine.http_port}"
    async with httpx.AsyncClient(base_url=base, timeout=DEADLINE_S, trust_env=False) as web:
        raw = b'{"z":2, "a":[1]}'
        reply = await web.post("/node/echo", content=raw, headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()) == (201, {"parsed": {"z": 2, "a": [1]}, "raw": raw.decode()})
        reply = await web.get("/node/download")
        assert (reply.status_code, reply.headers["content-type"]) == (206, "application/pdf")
        assert reply.content == b"".join(bytes([number]) * 100_000 for number in range(20))
