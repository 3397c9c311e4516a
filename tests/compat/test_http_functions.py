"""HTTP-invoked functions registered by official SDKs: the engine calls their endpoint, never the worker."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from compat_lab import CLIENTS, Lab, RunningEngine

CONFIG = """
workers:
  - name: iii-http
  - name: iii-stream
  - name: iii-http-functions
    config:
      security:
        url_allowlist: [localhost, 127.0.0.1]
        block_private_ips: false
        require_https: false
"""
SECRET = b"a secret of the engine"


@define
class Webhook:
    """An endpoint that stops reading at the end of the head, as the webhook doubles of the official suites do.

    It answers without a length, and closes.
    """

    port: int = 0
    requests: list[tuple[str, dict[str, str], bytes]] = field(factory=list)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One request."""
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        pairs = [one.partition(": ") for one in lines]
        self.requests.append((line, {name.lower(): value for name, _, value in pairs}, body))
        await stream.send_all(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"delivered":true}')


@pytest.fixture
async def webhook(nursery: trio.Nursery) -> Webhook:
    """A running endpoint."""
    endpoint = Webhook()
    listeners = await nursery.start(partial(trio.serve_tcp, endpoint.serve, 0, host="127.0.0.1"))
    endpoint.port = listeners[0].socket.getsockname()[1]
    return endpoint


@pytest.fixture
async def engine(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> RunningEngine:
    """An engine whose configuration lists the worker for HTTP-invoked functions."""
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET.decode())
    (lab.directory / "config.yaml").write_text(CONFIG)
    return await lab.engine()


@pytest.fixture(params=["python", "node"])
def start(request: pytest.FixtureRequest, lab: Lab, engine: RunningEngine, webhook: Webhook) -> Callable[[], Any]:
    """Starts the worker of one SDK."""
    if request.param == "python":
        interpreter: Any = request.getfixturevalue("new_python")
        script = CLIENTS / "http_functions_worker.py"
    else:
        interpreter, script = "node", request.getfixturevalue("link")(CLIENTS / "http_functions_worker.mjs")
    return partial(lab.script, engine, interpreter, script, "ext", f"http://127.0.0.1:{webhook.port}/webhook?x=1")


async def test_an_official_sdk_registers_endpoints(
    lab: Lab, engine: RunningEngine, webhook: Webhook, start: Callable[[], Any]
) -> None:
    await start()
    peer = await lab.peer(engine)
    await peer.has("ext::signed", "ext::forget", "ext::call")

    assert await peer.call("ext::signed", {"n": 1, "text": "ä"}) == {"delivered": True}
    through = await peer.call("ext::call", {"function_id": "ext::signed", "payload": {"n": 2}})
    assert through == {"result": {"delivered": True}}
    (line, headers, body), (_, _, second) = webhook.requests
    assert line == "PUT /webhook?x=1 HTTP/1.1"
    payload = json.loads(body)
    assert (payload["n"], payload["text"], "_caller_worker_id" in payload) == (1, "ä", True)
    assert json.loads(second)["n"] == 2
    assert (headers["x-team"], headers["x-iii-function-path"]) == ("a", "ext::signed")
    signed = f"{headers['x-iii-timestamp']}:{base64.b64encode(body).decode()}".encode()
    assert headers["x-iii-signature"] == f"sha256={hmac.new(SECRET, signed, hashlib.sha256).hexdigest()}"

    refused = await peer.call("ext::call", {"function_id": "ext::refused", "payload": {}})
    assert refused["code"] == "function_not_found"
    assert "Token not found: NO_SUCH_TOKEN" in refused["message"], "the caller learns why"
    await engine.process.output(  # so does the log
        lambda lines: any("'ext::refused'" in line and "NO_SUCH_TOKEN" in line for line in lines)
    )
    assert not any(SECRET.decode() in line for line in engine.process.lines)
    listed = await peer.call("engine::functions::list", {"include_refused": True})
    assert [row["function_id"] for row in listed["refused"]] == ["ext::refused"]

    await peer.call("ext::forget")
    await peer.lacks("ext::signed")
    assert (await peer.ask("ext::signed", {}))["error"]["code"] == "function_not_found"
    assert len(webhook.requests) == 2
