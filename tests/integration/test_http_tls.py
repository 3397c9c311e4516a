"""TLS on the HTTP port: both versions of HTTP through it, handshakes that fail, and the configured engine."""

import json
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import define
from http2_lab import CA, PATIENCE_S, dial

from iii_trio.config import HttpSettings, Live, TlsSettings
from iii_trio.engine import Binding, Call, Engine, LocalPeer, Outcome, open_engine, open_local
from iii_trio.host.access import server_context
from iii_trio.modules.http import HttpModule
from iii_trio.protocol import Json
from iii_trio.testing.process import run_engine


@pytest.fixture
def files(tmp_path: Path) -> TlsSettings:
    """Certificate and key of 127.0.0.1."""
    issued = CA.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return TlsSettings(certificate=str(certificate), key=str(key))


async def ask(port: int, request: bytes) -> bytes:
    """One request over a connection of its own; everything that comes."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context, https_compatible=True)
    received = b""
    async with stream:
        await stream.send_all(request)
        while data := await stream.receive_some():
            received += data
    return received


async def test_requests_go_through_tls_and_garbage_costs_only_its_sender(files: TlsSettings) -> None:
    schemes: list[str] = []

    def handler(call: Call, data: Json) -> Outcome:
        schemes.append(data.decode()["request"]["scheme"])
        return Outcome(Json.of({"body": "x" * 1_000_000}))

    module = HttpModule(Live(HttpSettings(host="127.0.0.1", port=0)), tls=server_context(files))
    with trio.fail_after(PATIENCE_S):
        async with open_engine() as core, open_local(core, "workers") as peer, trio.open_nursery() as nursery:
            peer.register("f", handler)
            core.triggers.register(
                Binding(id="t", trigger_type="http", function_id="f", config=Json.of({"api_path": "x"}))
            )
            await nursery.start(module.run, core)
            port = module.addresses[0][1]
            async with await trio.open_tcp_stream("127.0.0.1", port) as plain:
                await plain.send_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
                try:
                    received = await plain.receive_some()
                except trio.BrokenResourceError:
                    received = b""
                assert b"HTTP" not in received
            reply = await ask(port, b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert reply.startswith(b"HTTP/1.1 200")
            assert reply.count(b"x" * 1_000_000) == 1
            assert schemes == ["https"]
            statistics = module.statistics().connections
            assert statistics is not None
            assert statistics.failed == 0
            nursery.cancel_scope.cancel()


async def test_an_engine_serves_https_by_its_configuration(files: TlsSettings, tmp_path: Path) -> None:
    tls = json.dumps({"certificate": files.certificate, "key": files.key})
    config = tmp_path / "config.yaml"
    config.write_text(f"workers:\n  - name: http\n    config: {{port: 0, tls: {tls}}}\n")
    with trio.fail_after(PATIENCE_S):
        async with run_engine(tmp_path, "--config", str(config)) as engine:
            assert "https://127.0.0.1" in await engine.line("HTTP is served on")
            request = b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            assert (await ask(engine.http_port, request)).startswith(b"HTTP/1.1 404")
            async with dial(engine.http_port) as client:
                assert (await client.reply(await client.ask()))[0] == "404"


# -- HTTP/2 -----------------------------------------------------------------------------------------------------------


@define
class House:
    """An engine with the module under TLS, and a peer that plays all workers."""

    core: Engine
    peer: LocalPeer
    module: HttpModule

    @property
    def port(self) -> int:
        return self.module.addresses[0][1]

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def route(self, path: str, handler: Any, method: str = "GET", *, task: bool = False) -> None:
        self.peer.register(path, handler, task=task)
        config = Json.of({"api_path": path, "http_method": method})
        self.core.triggers.register(Binding(id=path, trigger_type="http", function_id=path, config=config))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        context = ssl.create_default_context()
        CA.configure_trust(context)
        async with httpx.AsyncClient(http2=True, verify=context, base_url=self.url, timeout=PATIENCE_S) as client:
            yield client


@asynccontextmanager
async def open_house(files: TlsSettings, **settings: Any) -> AsyncIterator[House]:
    module = HttpModule(Live(HttpSettings(host="127.0.0.1", port=0, **settings)), tls=server_context(files))
    with trio.fail_after(3 * PATIENCE_S):
        async with open_engine() as core, open_local(core, "workers") as peer, trio.open_nursery() as nursery:
            await nursery.start(module.run, core)
            yield House(core, peer, module)
            nursery.cancel_scope.cancel()


def echo(call: Call, data: Json) -> Outcome:
    request = data.decode()
    told = {key: request[key] for key in ("body", "query_params", "path_params", "method")}
    return Outcome(Json.of({"body": told | {"version": request["request"]["http_version"]}}))


async def test_http_2_says_what_http_1_says(files: TlsSettings) -> None:
    async with open_house(files, body_limit=1_000_000) as house:
        house.route("/echo/:id", echo, "POST")
        async with house.client() as client:
            reply = await client.post("/echo/7?a=1&a=2", json={"x": 1}, headers={"x-request-id": "mine"})
            assert reply.http_version == "HTTP/2"
            told = {"body": {"x": 1}, "query_params": {"a": ["1", "2"]}, "path_params": {"id": "7"}, "method": "POST"}
            assert reply.json() == told | {"version": "2"}
            assert reply.headers["x-request-id"] == "mine"
            assert reply.headers["access-control-allow-origin"] == "*"
            assert "date" in reply.headers
            assert (await client.get("/nowhere")).json()["error"]["code"] == "NOT_FOUND"
            refused = await client.get("/echo/7")
            assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
            large = await client.post(
                "/echo/7", content=b"{" + b" " * 3_000_000, headers={"content-type": "application/json"}
            )
            assert large.json()["error"]["code"] == "PAYLOAD_TOO_LARGE"
            assert (await client.post("/echo/7", json=None)).status_code == 200


async def test_http_2_can_be_turned_off(files: TlsSettings) -> None:
    async with open_house(files, http2=False) as house:
        house.route("/echo/:id", echo)
        async with house.client() as client:
            reply = await client.get("/echo/7")
            assert (reply.http_version, reply.json()["version"]) == ("HTTP/1.1", "1.1")


@pytest.mark.parametrize("leaving", ["the stream is reset", "the connection ends"])
async def test_a_client_that_leaves_cancels_its_call_and_nothing_is_left(files: TlsSettings, leaving: str) -> None:
    started, story, ended = trio.Event(), [], trio.Event()

    async def slow(call: Call, data: Json) -> Json:
        started.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            story.append(str(cancelled))
            raise
        finally:
            ended.set()

    async with open_house(files) as house:
        house.route("/slow", slow, task=True)
        house.route("/quick", echo)
        async with dial(house.port) as client:
            stream_id = await client.ask("/slow")
            await started.wait()
            if leaving == "the stream is reset":
                client.h2.reset_stream(stream_id)
                await client.flush()
                await ended.wait()
                assert (await client.reply(await client.ask("/quick")))[0] == "200"
        await ended.wait()
        assert ["caller_disconnected" in text for text in story] == [True]
        async with house.client() as client:
            assert (await client.get("/quick")).status_code == 200
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert statistics.running == 0
        assert house.peer.tasks == 0


async def test_curl_speaks_http_2_with_the_port(files: TlsSettings, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    version = b"" if curl is None else (await trio.run_process([curl, "--version"], capture_stdout=True)).stdout
    if curl is None or b"HTTP2" not in version:
        pytest.skip("needs curl with HTTP/2")
    CA.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "upload").write_bytes(b"x" * 3_000_000)
    sizes: list[int] = []

    def takes(call: Call, data: Json) -> Outcome:
        sizes.append(int(data.decode()["headers"]["content-length"]))
        return Outcome(Json.of({"body": "y" * 3_000_000}))

    async with open_house(files) as house:
        house.route("/up", takes, "POST")
        form = ["-H", "content-type: text/plain", "--data-binary", f"@{tmp_path / 'upload'}"]
        asked = [curl, "-sS", "--http2", "--cacert", str(tmp_path / "ca.pem"), "--max-time", "15", *form]
        told = "%{http_version} %{http_code} %{size_download}"
        run = await trio.run_process([*asked, "-o", "/dev/null", "-w", told, house.url + "/up"], capture_stdout=True)
        assert run.stdout == b"2 200 3000002"
    assert sizes == [3_000_000]
