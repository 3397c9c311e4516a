"""Access control as configured, over real sockets and TLS, with official SDKs on both sides (spec/protocol.md §14.7)."""

import json
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from iii_trio import NotConnected, Reconnect, open_client
from iii_trio.config import parse_config
from iii_trio.engine.events import Event
from iii_trio.host.compose import Running, open_host

CLIENTS = Path(__file__).parent / "clients"
GUARDED = """
workers:
  - name: iii-worker-manager
    config: {port: 0, host: 127.0.0.1}
  - name: iii-worker-manager
    config:
      port: 0
      host: 127.0.0.1
      middleware_function_id: acl::middleware
      tls: {certificate: CERTIFICATE, key: KEY}
      rbac:
        auth_function_id: acl::auth
        expose_functions:
          - match("public::*")
        on_function_registration_function_id: acl::on_function
        on_trigger_registration_function_id: acl::on_trigger
        on_trigger_type_registration_function_id: acl::on_type
"""


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `ca.pem`, and certificate and key of 127.0.0.1."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(directory / "server.key")
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(directory / "server.pem", append=index > 0)
    return directory


@asynccontextmanager
async def host(text: str, environ: dict[str, str] | None = None) -> AsyncIterator[Running]:
    """An engine of this configuration in this process."""
    with trio.fail_after(60):
        async with open_host(parse_config(text, "c.yaml", environ or {})) as running:
            yield running


def url(running: Running, index: int, scheme: str = "ws") -> str:
    """The URL of one of the worker ports."""
    return f"{scheme}://127.0.0.1:{running.listeners[index].addresses[0][1]}"


async def until(running: Running, condition: Callable[[], bool]) -> None:
    """Return when the condition holds, looked at whenever something happens in the core."""
    news = trio.Event()

    def tap(_event: Event) -> None:
        news.set()

    remove = running.core.events.tap(tap)
    try:
        while not condition():
            await news.wait()
            news = trio.Event()
    finally:
        remove()


class Refusals(logging.Handler):
    """Notices when a port turns somebody away."""

    def __init__(self) -> None:
        super().__init__()
        self.first = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        if "was refused" in record.msg:
            self.first.set()


def environment(**more: str) -> dict[str, str]:
    """The environment of a client: none of this machine's own settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("III_", "OTEL_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


@asynccontextmanager
async def keeper(running: Running, tmp_path: Path) -> AsyncIterator[None]:
    """The trusted side, from the moment at which everything of it is registered until the end of the block."""
    process = await trio.lowlevel.open_process(
        [sys.executable, str(CLIENTS / "access_keeper.py")],
        env=environment(III_URL=url(running, 0), OTEL_ENABLED="false", HOME=str(tmp_path)),
    )
    try:
        await until(running, lambda: running.core.functions.get("default", "acl::middleware") is not None)
        yield
    finally:
        process.kill()
        with trio.move_on_after(10, shield=True):
            await process.wait()


async def guest(running: Running, ca: Path, token: str, tmp_path: Path, **more: str) -> Any:
    """What a guest says; None when it was given up."""
    script = str(CLIENTS / "access_guest.py")
    more = {"III_URL": url(running, 1, "wss"), "SSL_CERT_FILE": str(ca / "ca.pem"), "HOME": str(tmp_path), **more}
    done = await trio.run_process(
        [sys.executable, script, token], env=environment(**more), capture_stdout=True, stderr=subprocess.DEVNULL
    )
    return json.loads(done.stdout.decode().splitlines()[-1])


async def test_official_sdks_over_tls_with_everything_configured(ca: Path, tmp_path: Path) -> None:
    text = GUARDED.replace("CERTIFICATE", str(ca / "server.pem")).replace("KEY", str(ca / "server.key"))
    async with host(text) as running, keeper(running, tmp_path):
        said = await guest(running, ca, "guest-token", tmp_path, OTEL_ENABLED="false")
        asked = said.pop("asked")["answer"]
        assert said == {
            "echo": {"through": "ada", "answer": {"n": 1}},
            "large": said["large"],
            "private": {"code": "FORBIDDEN"},
            "secret": {"code": "FORBIDDEN"},
            "own": {"through": "ada", "answer": {"own": {"n": 2}}},
            "bound": ["t1::own"],
        }
        assert said["large"] > 3_000_000
        assert len(asked["auth"]) == 1
        assert asked["auth"][0]["headers"]["x-test-token"] == "guest-token"
        assert asked["auth"][0]["ip_address"] == "127.0.0.1"
        assert [row["function_id"] for row in asked["function"]] == ["own", "denied"]
        assert [row["function_id"] for row in asked["trigger"]] == ["own"]
        assert asked["trigger"][0]["context"] == {"user": "ada"}
        assert [row["trigger_type_id"] for row in asked["type"]] == ["tick"]
        assert "acl::middleware" not in {row["function_id"] for row in asked["middleware"]}
        # the guest is gone, and with it everything it brought
        await until(running, lambda: len(running.core.workers) == 1)
        functions = {entry.id for entry in running.core.functions if not entry.builtin}
        assert not any(function_id.startswith("t1::") for function_id in functions)


async def test_a_guest_that_comes_before_the_keeper_is_let_in_when_it_is_there(ca: Path, tmp_path: Path) -> None:
    text = GUARDED.replace("CERTIFICATE", str(ca / "server.pem")).replace("KEY", str(ca / "server.key"))
    refusals = Refusals()
    listener_log = logging.getLogger("iii_trio.engine.listener")
    listener_log.addHandler(refusals)
    said: list[Any] = []
    try:
        async with host(text) as running, trio.open_nursery() as nursery:
            here = trio.Event()

            async def come() -> None:
                said.append(await guest(running, ca, "guest-token", tmp_path, OTEL_ENABLED="false"))
                here.set()

            nursery.start_soon(come)
            await refusals.first.wait()
            assert running.listeners[1].statistics().refused > 0
            async with keeper(running, tmp_path):
                await here.wait()
    finally:
        listener_log.removeHandler(refusals)
    assert said[0]["echo"] == {"through": "ada", "answer": {"n": 1}}


async def test_telemetry_sockets_are_asked_about_too(ca: Path, tmp_path: Path) -> None:
    text = GUARDED.replace("CERTIFICATE", str(ca / "server.pem")).replace("KEY", str(ca / "server.key"))
    async with host(text) as running, keeper(running, tmp_path):
        said = await guest(running, ca, "guest-token", tmp_path)
        assert len(said["asked"]["answer"]["auth"]) == 2
        assert running.listeners[1].statistics().telemetry_frames > 0


TOKEN = """
workers:
  - name: iii-worker-manager
    config: {port: 0, host: 127.0.0.1, token: "${SECRET}"}
"""


@pytest.mark.parametrize("where", ["file", "environment"])
async def test_a_token_from_file_or_environment(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("III_TOKEN", raising=False)
    if where == "file":
        text, environ = TOKEN, {"SECRET": "sesame"}
    else:
        text, environ = TOKEN.replace(', token: "${SECRET}"', ""), {"III_TOKEN": "sesame"}
    async with host(text, environ) as running:
        expected = {"III_URL": url(running, 0), "III_TOKEN": "sesame", "III_LOG_LEVELS": "1"}
        assert running.child_environment() == expected
        with pytest.raises(NotConnected):
            async with open_client(url(running, 0), reconnect=Reconnect(max_retries=0)):
                pytest.fail("came in without a token")
        async with open_client(url(running, 0) + "/?token=sesame") as client:
            assert (await client.call("engine::health::check"))["status"] == "healthy"
        monkeypatch.setenv("III_TOKEN", "sesame")
        async with open_client(url(running, 0)) as client:
            assert (await client.call("engine::health::check"))["status"] == "healthy"


async def test_official_sdks_take_the_token_from_the_environment(tmp_path: Path) -> None:
    program = """
from iii import register_worker
iii = register_worker()
print(iii.trigger({"function_id": "engine::health::check", "payload": {}, "timeout_ms": 10000})["status"])
iii.shutdown()
"""
    async with host(TOKEN, {"SECRET": "sesame"}) as running:
        env = environment(**running.child_environment(), HOME=str(tmp_path))
        done = await trio.run_process([sys.executable, "-c", program], env=env, capture_stdout=True)
    assert done.stdout == b"healthy\n"


@pytest.mark.parametrize(
    ("more", "loud"),
    [("", True), (", middleware_function_id: a::b", True), (", token: t", False), (", rbac: {}", False)],
)
async def test_a_port_on_the_network_without_access_control_is_loud(
    more: str, loud: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with host(TOKEN.replace(', token: "${SECRET}"', more).replace("127.0.0.1", "0.0.0.0")):
        assert ("WITHOUT ACCESS CONTROL" in caplog.text) is loud


async def test_our_own_client_over_tls(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("III_TOKEN", raising=False)
    text = f"""
workers:
  - name: iii-worker-manager
    config: {{port: 0, tls: {{certificate: {ca / "server.pem"}, key: {ca / "server.key"}}}}}
"""
    async with host(text) as running:
        assert running.worker_url.startswith("wss://")
        secure = url(running, 0, "wss")
        context = ssl.create_default_context(cafile=ca / "ca.pem")
        async with open_client(secure, ssl_context=context) as client:
            assert (await client.call("engine::health::check"))["status"] == "healthy"
        with pytest.raises(NotConnected, match="certificate verify failed"):
            async with open_client(secure, reconnect=Reconnect(max_retries=0)):
                pytest.fail("trusted a stranger's certificate")
        with pytest.raises(NotConnected):
            async with open_client(url(running, 0), reconnect=Reconnect(max_retries=0)):
                pytest.fail("spoke to a TLS port in the clear")
        assert running.listeners[0].statistics().handshakes == 0
