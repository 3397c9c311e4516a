"""Engines that bridge to one another over real sockets: configuration, changes while running, a crash, TLS on the port."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from iii_trio import InvocationError, open_client
from iii_trio.config import load_config
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides
from iii_trio.protocol.errors import ConfigError
from iii_trio.testing.process import run_engine
from iii_trio.transport import Connection, connect

WAIT_S = 60.0
KEY = {"scope": "s", "key": "k"}
BOTH = ("iii-state", "iii-stream")


def bridging(url: str, *names: str, token: str | None = None) -> list[dict[str, Any]]:
    config = {"bridge_url": url, **({} if token is None else {"token": token})}
    return [{"name": name, "config": {"adapter": {"name": "bridge", "config": config}}} for name in names]


def configured(directory: Path, *workers: dict[str, Any]) -> Path:
    """A config file with state, streams and pub/sub, and `workers` in their place or beside them."""
    directory.mkdir(exist_ok=True)
    listed = {name: {"name": name} for name in (*BOTH, "iii-pubsub")} | {worker["name"]: worker for worker in workers}
    path = directory / "config.yaml"
    path.write_text(json.dumps({"workers": list(listed.values())}))
    return path


@asynccontextmanager
async def host(directory: Path, *workers: dict[str, Any], port: int = 0) -> AsyncIterator[Running]:
    config = load_config(configured(directory, *workers), {})
    overrides = Overrides(data_dir=directory / "data", port=port, stream_port=0)
    with trio.fail_after(WAIT_S):
        async with open_host(config, overrides) as running:
            yield running


async def test_state_and_streams_share_a_link_which_ends_when_nobody_holds_it(tmp_path: Path) -> None:
    async with host(tmp_path / "far") as far, host(tmp_path / "near", *bridging(far.worker_url, *BOTH)) as near:
        link = f"bridge {far.worker_url.rstrip('/')}"
        assert [name for name in near.modules if name.startswith("bridge")] == [link]
        async with open_client(near.worker_url) as client, open_client(far.worker_url) as direct:
            await client.call("state::set", {**KEY, "value": 1})
            assert await direct.call("state::get", KEY) == 1
            # to a store of its own, first the one, then the other
            for name, left in (("iii-state", [link]), ("iii-stream", [])):
                await client.call("configuration::set", {"id": name, "value": {"adapter": {"name": "kv"}}})
                await client.call(f"{name}::on-config-change", {})
                assert [module for module in near.modules if module.startswith("bridge")] == left
            assert await client.call("state::get", KEY) is None
            # and back
            adapter = {"name": "bridge", "config": {"bridge_url": far.worker_url}}
            await client.call("configuration::set", {"id": "iii-state", "value": {"adapter": adapter}})
            await client.call("iii-state::on-config-change", {})
            assert await client.call("state::get", KEY) == 1
            with pytest.raises(InvocationError) as caught:
                await client.call("configuration::set", {"id": "iii-state", "value": {"adapter": {"name": "nats"}}})
            assert caught.value.code == "SCHEMA_INVALID"


async def test_the_own_port_is_refused_at_the_start(tmp_path: Path) -> None:
    for workers in (
        bridging("ws://localhost:49134", "iii-state"),
        [{"name": "iii-stream", "config": {"adapter": {"name": "bridge"}}}],
    ):
        with pytest.raises(ConfigError, match="ws://localhost:49134 is this engine's own worker port"):
            async with host(tmp_path / "near", *workers, port=49134):
                raise AssertionError


@pytest.mark.parametrize("url", ["ws://h:70000", "ws://[::1", "http://h:1", "h"])
async def test_a_url_that_is_none_is_refused_at_the_start(tmp_path: Path, url: str) -> None:
    with pytest.RaisesGroup(
        pytest.RaisesExc(ConfigError, match="bridge_url"), flatten_subgroups=True, allow_unwrapped=True
    ):
        async with host(tmp_path / "near", *bridging(url, "iii-state")):
            raise AssertionError


async def test_a_token_opens_the_other_engine(tmp_path: Path) -> None:
    guarded = {"name": "iii-worker-manager", "config": {"token": "open sesame"}}
    async with (
        host(tmp_path / "far", guarded) as far,
        host(tmp_path / "near", *bridging(far.worker_url, "iii-state", token="open sesame")) as near,
        open_client(near.worker_url) as client,
    ):
        await client.call("state::set", {**KEY, "value": 1})
        assert await client.call("state::list", {"scope": "s"}) == [1]


async def test_the_other_engine_is_killed_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    async with (
        run_engine(tmp_path / "far") as far,
        host(tmp_path / "near", *bridging(far.url, *BOTH)) as near,
        open_client(near.worker_url) as client,
    ):
        for number in range(20):
            await client.call("state::set", {**KEY, "value": number})
        await far.kill()
        async with run_engine(tmp_path / "far", port=far.port):
            while True:
                try:
                    assert await client.call("state::get", KEY) == 19
                    break
                except InvocationError as error:
                    assert error.code == "GET_ERROR"  # noqa: PT017 - the link is not back yet
                    await trio.sleep(0.1)
            await client.call("state::set", {**KEY, "value": "again"})
            assert await client.call("state::get", KEY) == "again"


async def test_the_stream_port_speaks_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    tls = {"certificate": str(certificate), "key": str(key)}
    context = ssl.create_default_context()
    authority.configure_trust(context)
    heard: list[Any] = []
    joined, told = trio.Event(), trio.Event()

    def on_batch(frames: list[bytes]) -> None:
        heard.extend(json.loads(frame)["event"] for frame in frames)
        (joined if len(heard) == 1 else told).set()

    async with host(tmp_path / "engine", {"name": "iii-stream", "config": {"tls": tls}}) as running:
        port = running.ports()["stream"][1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as plain:
            await plain.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            received = b""
            try:
                received = await plain.receive_some()
            except trio.BrokenResourceError:
                pass
            assert b"HTTP" not in received
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context, https_compatible=True)
        framing, rest = await connect(stream, "engine", "/stream/s/g")
        connection = Connection(stream, framing)
        async with trio.open_nursery() as nursery, open_client(running.worker_url) as client:
            nursery.start_soon(_run, connection, on_batch, rest)
            await joined.wait()
            await client.call("stream::set", {"stream_name": "s", "group_id": "g", "item_id": "i", "data": 1})
            await told.wait()
            nursery.cancel_scope.cancel()
    assert heard == [{"type": "sync", "data": []}, {"type": "create", "data": 1}]


async def _run(connection: Connection, on_batch: Any, rest: bytes) -> None:
    await connection.run(on_batch, rest=rest)
