"""TLS on the HTTP port: requests and streams through it, handshakes that fail, and the configured engine."""

import json
import ssl
from pathlib import Path

import pytest
import trio
import trustme

from iii_trio.config import HttpSettings, Live, TlsSettings
from iii_trio.engine import Binding, Call, Outcome, open_engine, open_local
from iii_trio.host.access import server_context
from iii_trio.modules.http import HttpModule
from iii_trio.protocol import Json
from iii_trio.testing.process import run_engine

CA = trustme.CA()
PATIENCE_S = 20


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
