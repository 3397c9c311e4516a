"""Settings of a running engine: stored entries, files edited by hand and a config file that changes, over real files and ports."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define

from iii_trio import Client, Worker, open_client
from iii_trio.cli.ports_file import PortsFile
from iii_trio.config import load_config
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides
from iii_trio.protocol.errors import WireError
from iii_trio.transport import HandshakeError, connect

WAIT_S = 30.0


class Heard(logging.Handler):
    """Wakes who waits whenever something is logged: every change of settings is."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.something = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.nudge()

    def nudge(self) -> None:
        """Something has happened."""
        if trio.lowlevel.in_trio_task():
            self.something.set()
            self.something = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds."""
        with trio.fail_after(15):
            while not condition():
                await self.something.wait()


@define
class Bench:
    """A running engine, a client of it, and its directory."""

    running: Running
    client: Client
    directory: Path
    heard: Heard

    async def call(self, function_id: str, **payload: Any) -> Any:
        return await self.client.call(function_id, payload)

    def http_port(self) -> int:
        return self.running.ports()["http"][1]

    def setting(self, worker: str, name: str) -> Any:
        adopted = self.running.adoption.get(worker)
        assert adopted is not None
        return getattr(adopted.live.value, name)

    def rewrite(self, text: str) -> None:
        (self.directory / "config.yaml").write_text(text)


@asynccontextmanager
async def engine(directory: Path, text: str, **options: Any) -> AsyncIterator[Bench]:
    """An engine on the config file `text`, on free ports, its data in `directory`/data."""
    path = directory / "config.yaml"
    path.write_text(text)
    overrides = Overrides(**{"port": 0, "data_dir": directory / "data", **options})
    heard, logger = Heard(), logging.getLogger("iii_trio")
    level = logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.DEBUG)
    try:
        with trio.fail_after(WAIT_S):
            async with (
                open_host(load_config(path, {}), overrides) as running,
                open_client(running.worker_url) as client,
            ):
                yield Bench(running, client, directory, heard)
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)


async def status_of(port: int) -> int:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b""
        while data := await stream.receive_some():
            answer += bytes(data)
    return int(answer.split()[1])


WORKERS = """
workers:
  - name: iii-http
    config: {{port: 0, default_timeout: {timeout}}}
  - name: iii-state
    config: {{max_value_bytes: {limit}}}
"""


async def test_every_built_in_has_an_entry_that_shows_the_file_and_stores_nothing(tmp_path: Path) -> None:
    async with engine(
        tmp_path, WORKERS.format(timeout=1000, limit=10) + "  - name: queue\n  - name: pubsub\n"
    ) as bench:
        listed = (await bench.call("configuration::list"))["configurations"]
        assert [(row["id"], row["name"]) for row in listed] == [
            ("iii-http", "HTTP"),
            ("iii-pubsub", "PubSub"),
            ("iii-queue", "Queue"),
            ("iii-state", "State"),
        ]
        value = (await bench.call("configuration::get", id="iii-http"))["value"]
        assert (value["default_timeout"], value["concurrency_request_limit"]) == (1000, 1024)
        triggers = (await bench.call("engine::registered-triggers::list", include_internal=True))["registered_triggers"]
        watches = {row["id"]: row["function_id"] for row in triggers if row["trigger_type"] == "configuration"}
        assert watches["iii-http::config-watch"] == "iii-http::on-config-change"
        assert await bench.call("iii-state::on-config-change", anything=1) == {"ok": True}
    assert not (tmp_path / "data" / "config").exists()


async def test_what_is_set_takes_effect_survives_a_restart_and_goes_before_the_file(tmp_path: Path) -> None:
    text = WORKERS.format(timeout=1000, limit=10)
    async with engine(tmp_path, text) as bench:
        with pytest.raises(WireError, match="VALUE_TOO_LARGE"):
            await bench.call("state::set", scope="s", key="k", value="x" * 20)
        await bench.call("configuration::set", id="iii-state", value={"max_value_bytes": 100})
        await bench.heard.until(lambda: bench.setting("state", "max_value_bytes") == 100)
        await bench.call("state::set", scope="s", key="k", value="x" * 20)
        with pytest.raises(WireError, match="SCHEMA_INVALID"):
            await bench.call("configuration::set", id="iii-state", value={"max_value_bytes": 0})
        with pytest.raises(WireError, match="SCHEMA_INVALID"):
            await bench.call("configuration::set", id="iii-state", value={"max_value_byte": 5})
    assert "max_value_bytes: 100" in (tmp_path / "data" / "config" / "iii-state.yaml").read_text()
    assert (tmp_path / "config.yaml").read_text() == text
    async with engine(tmp_path, text) as bench:
        assert bench.setting("state", "max_value_bytes") == 100
        await bench.call("configuration::reset", id="iii-state")
        await bench.heard.until(lambda: bench.setting("state", "max_value_bytes") == 10)
    assert not (tmp_path / "data" / "config" / "iii-state.yaml").exists()


async def test_an_address_is_bound_before_the_old_one_is_released(tmp_path: Path) -> None:
    async with engine(tmp_path, WORKERS.format(timeout=1000, limit=10)) as bench:
        first = bench.http_port()
        taken = bench.running.ports()["worker"][1]
        await bench.call("configuration::set", id="iii-http", value={"port": taken})
        assert await bench.call("iii-http::on-config-change") == {"ok": True, "applied": False}
        assert (await status_of(first), bench.http_port()) == (404, first)
        with await _free_port() as sock:
            free = sock.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", first) as stream:
            await stream.send_all(b"GET /before HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b" 404 " in await stream.receive_some()
            await bench.call("configuration::set", id="iii-http", value={"port": free, "default_timeout": 5})
            await bench.heard.until(lambda: bench.http_port() == free)
            assert await stream.receive_some() == b"", "idle connections to the old port are closed"
        assert await status_of(free) == 404
        with pytest.raises(OSError, match="all attempts to connect"):
            await status_of(first)
        assert bench.setting("http", "default_timeout") == 5


async def _free_port() -> Any:
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.1", 0))
    return sock


async def test_a_stored_address_that_cannot_be_had_gives_way_to_the_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = tmp_path / "data" / "config"
    entries.mkdir(parents=True)
    with await _free_port() as sock:
        sock.listen()
        taken = sock.getsockname()[1]
        (entries / "iii-http.yaml").write_text(f"id: iii-http\nvalue: {{port: {taken}, default_timeout: 7}}\n")
        text = "workers:\n  - name: iii-http\n    config: {{port: 0, host: {host}}}\n"
        async with engine(tmp_path, text.format(host="127.0.0.1")) as bench:
            assert await status_of(bench.http_port()) == 404
            assert bench.http_port() != taken
            assert "the stored settings of iii-http are not used" in caplog.text
        (entries / "iii-http.yaml").write_text(f"id: iii-http\nvalue: {{port: {taken}, host: localhost}}\n")
        with pytest.raises(ExceptionGroup):
            async with engine(tmp_path, text.format(host="0.0.0.0")):
                pytest.fail("a port that was closed to others was opened")


async def test_another_host_on_the_same_port_and_back_when_it_cannot_be_had(tmp_path: Path) -> None:
    async with engine(tmp_path, WORKERS.format(timeout=1000, limit=10)) as bench:
        port = bench.http_port()
        await bench.call("configuration::set", id="iii-http", value={"port": port, "host": "192.0.2.1"})
        assert await bench.call("iii-http::on-config-change") == {"ok": True, "applied": False}
        assert await status_of(port) == 404
        await bench.call("configuration::set", id="iii-http", value={"port": port, "host": "127.0.0.1"})
        await bench.call("iii-http::on-config-change")
        assert bench.running.http is not None
        assert bench.running.http.addresses == (("127.0.0.1", port),)
        assert await status_of(port) == 404


async def test_another_store_starts_the_module_again(tmp_path: Path) -> None:
    async with engine(tmp_path, WORKERS.format(timeout=1000, limit=1000)) as bench:
        await bench.call("state::set", scope="s", key="k", value=1)
        elsewhere = {"adapter": {"name": "kv", "config": {"file_path": str(tmp_path / "other")}}}
        await bench.call("configuration::set", id="iii-state", value=elsewhere)
        assert await bench.call("iii-state::on-config-change") == {"ok": True}
        assert await bench.call("state::get", scope="s", key="k") is None
        await bench.call("state::set", scope="s", key="k", value=2)
        (tmp_path / "file").write_text("")
        broken = {"adapter": {"name": "kv", "config": {"file_path": str(tmp_path / "file")}}}
        await bench.call("configuration::set", id="iii-state", value=broken)
        assert await bench.call("iii-state::on-config-change") == {"ok": True, "applied": False}
        assert await bench.call("state::get", scope="s", key="k") == 2
        await bench.call("configuration::reset", id="iii-state")
        assert await bench.call("iii-state::on-config-change") == {"ok": True}
        assert await bench.call("state::get", scope="s", key="k") == 1


async def test_files_edited_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    entries = tmp_path / "data" / "config"
    async with engine(tmp_path, WORKERS.format(timeout=1000, limit=10)) as bench:
        await bench.call("configuration::set", id="iii-http", value={"default_timeout": 5})
        file = entries / "iii-http.yaml"
        await bench.heard.until(lambda: bench.setting("http", "default_timeout") == 5)
        file.write_text("# mine\nid: iii-http\nvalue:\n  default_timeout: 6\n")
        await bench.heard.until(lambda: bench.setting("http", "default_timeout") == 6)
        file.write_text("id: iii-http\nvalue: {default_timeout: no}\n")
        await bench.heard.until(lambda: "not taken over" in caplog.text)
        file.write_text("id: iii-http\nvalue: {default_timeout: [\n")
        await bench.heard.until(lambda: "skipped, what it held before stays" in caplog.text)
        assert (await bench.call("configuration::get", id="iii-http"))["value"] == {"default_timeout": 6}
        file.write_text("id: iii-http\nvalue: {default_timeout: 7}\n")
        await bench.heard.until(lambda: bench.setting("http", "default_timeout") == 7)
        file.unlink()
        await bench.heard.until(lambda: bench.setting("http", "default_timeout") == 1000)
        values = (await bench.call("configuration::history", id="iii-http"))["values"]
    by = [(row.get("value"), row["by"] == "file") for row in values]
    assert by == [
        (None, True),
        ({"default_timeout": 7}, True),
        ({"default_timeout": 6}, True),
        ({"default_timeout": 5}, False),
    ]


async def test_a_config_file_that_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with engine(tmp_path, WORKERS.format(timeout=1000, limit=10)) as bench:
        port, worker = bench.http_port(), bench.running.worker_url
        bench.rewrite(WORKERS.format(timeout=2000, limit=10))
        await bench.heard.until(lambda: bench.setting("http", "default_timeout") == 2000)
        assert (bench.http_port(), bench.running.worker_url) == (port, worker)
        bench.rewrite("workers: [")
        await bench.heard.until(lambda: "is not taken over, everything runs on" in caplog.text)
        bench.rewrite(WORKERS.format(timeout="nonsense", limit=20))
        await bench.heard.until(lambda: "expected a whole number, but found the text 'nonsense'" in caplog.text)
        bench.rewrite("workers: [{name: '${NOPE}'}]")
        await bench.heard.until(lambda: "Environment variable 'NOPE' not set" in caplog.text)
        (tmp_path / "config.yaml").unlink()
        await bench.heard.until(lambda: "Config file not found" in caplog.text)
        assert (bench.setting("http", "default_timeout"), bench.setting("state", "max_value_bytes")) == (2000, 10)
        bench.rewrite("workers:\n  - name: pubsub\n  - {name: iii-state, config: {max_value_bytes: 30}}\n")
        await bench.heard.until(lambda: "http" not in bench.running.modules and "pubsub" in bench.running.modules)
        await bench.call("publish", topic="t", data=1)
        with pytest.raises(OSError, match="all attempts to connect"):
            await status_of(port)
        assert bench.setting("state", "max_value_bytes") == 30
        await bench.heard.until(lambda: bench.running.adoption.registry.get("iii-http") is None)
        listed = (await bench.call("configuration::list"))["configurations"]
        assert [row["id"] for row in listed] == ["iii-pubsub", "iii-state"]
        bench.rewrite(WORKERS.format(timeout=3000, limit=10))
        await bench.heard.until(
            lambda: "http" in bench.running.ports() and bench.setting("http", "default_timeout") == 3000
        )
        assert await status_of(bench.http_port()) == 404


async def test_workers_without_an_entry_follow_the_file_alone(tmp_path: Path) -> None:
    text = "workers:\n  - {{name: admin, config: {{port: {port}}}}}\n  - {{name: configuration, config: {{ttl_seconds: {ttl}}}}}\n"
    with await _free_port() as sock:
        free = sock.getsockname()[1]
    async with engine(tmp_path, "workers: []\n") as bench:
        bench.rewrite(text.format(port=0, ttl=1))
        await bench.heard.until(lambda: bench.running.core.modules.get("admin") == "running")
        bench.rewrite(text.format(port=free, ttl=2))
        await bench.heard.until(lambda: bench.setting("admin", "port") == free)
        assert await status_of(free) == 404
        bench.rewrite("workers: []\n")
        await bench.heard.until(lambda: "admin" not in bench.running.modules)
        assert (await bench.call("configuration::list"))["configurations"] == []


async def test_flags_stay_above_file_and_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with engine(tmp_path, WORKERS.format(timeout=1, limit=10), http_port=0, host="127.0.0.1") as bench:
        port = bench.http_port()
        await bench.call("configuration::set", id="iii-http", value={"port": 1, "host": "::1", "default_timeout": 9})
        await bench.heard.until(lambda: bench.setting("http", "default_timeout") == 9)
        assert await status_of(port) == 404
        assert "host, port: the command line's value stays" in caplog.text


async def test_the_worker_port_moves_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "workers:\n  - name: iii-worker-manager\n    config: {{port: {port}{more}}}\n"
    with await _free_port() as sock:
        free = sock.getsockname()[1]
    async with engine(tmp_path, text.format(port=0, more=""), port=None) as bench:
        bench.rewrite(text.format(port=free, more=""))
        await bench.heard.until(lambda: bench.running.ports()["worker"][1] == free)
        async with open_client(bench.running.worker_url) as client:
            assert (await client.call("engine::health::check"))["status"] == "healthy"
        bench.rewrite(text.format(port=free, more=", token: sesame"))
        await bench.heard.until(lambda: bench.running.listeners[0].rules.token == "sesame")
        monkeypatch.setenv("III_TOKEN", "sesame")
        async with open_client(bench.running.worker_url) as client:
            assert (await client.call("engine::health::check"))["status"] == "healthy"


async def test_the_ports_file_follows_every_port_that_moves(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def text(worker: int, http: int | None, stream: int) -> str:
        listed = {"iii-worker-manager": worker, "iii-stream": stream, "iii-http": http}
        blocks = [f"{{name: {name}, config: {{port: {port}}}}}" for name, port in listed.items() if port is not None]
        return f"workers: [{', '.join(blocks)}]\n"

    sockets = [await _free_port() for _ in range(4)]
    worker, http, stream, other = (sock.getsockname()[1] for sock in sockets)
    for sock in sockets:
        sock.close()
    path = tmp_path / "there" / "ports.json"
    path.parent.mkdir()
    caplog.set_level(logging.INFO)

    def written() -> dict[str, int]:
        return {name: port for name, (_, port) in json.loads(path.read_text()).items()}

    async with engine(tmp_path, text(0, 0, 0), port=None) as bench:
        PortsFile(path).follow(bench.running)
        first = written()
        assert first == {name: port for name, (_, port) in bench.running.ports().items()}
        assert set(first) == {"worker", "http", "stream"}
        bench.rewrite(text(0, http, 0))
        await bench.heard.until(lambda: written() == {**first, "http": http})
        bench.rewrite(text(0, http, stream))
        await bench.heard.until(lambda: written() == {**first, "http": http, "stream": stream})
        bench.rewrite(text(worker, http, stream))
        await bench.heard.until(lambda: written() == {"worker": worker, "http": http, "stream": stream})
        bench.rewrite(text(worker, None, stream))
        await bench.heard.until(lambda: written() == {"worker": worker, "stream": stream})
        bench.rewrite(text(worker, other, stream))
        await bench.heard.until(lambda: written() == {"worker": worker, "http": other, "stream": stream})
        async with open_client(bench.running.worker_url) as client:
            await client.call("configuration::set", {"id": "iii-http", "value": {"port": http}})
            await bench.heard.until(lambda: written()["http"] == http)
            times = caplog.text.count("ports are written to")
            await client.call("configuration::set", {"id": "iii-http", "value": {"port": http, "default_timeout": 7}})
            await bench.heard.until(lambda: bench.setting("http", "default_timeout") == 7)
        assert caplog.text.count("ports are written to") == times, "nothing has moved"
        path.unlink()
        path.parent.rmdir()
        bench.rewrite(text(worker, http, other))
        await bench.heard.until(lambda: "cannot be written: No such file or directory" in caplog.text)
        await bench.heard.until(lambda: bench.running.ports()["stream"][1] == other)


async def test_allowed_origins_change_with_the_file_and_cut_nobody_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "workers:\n  - name: iii-worker-manager\n    config: {{port: 0{more}}}\n"
    text += "  - name: iii-stream\n    config: {{port: 0}}\n"

    async def status(bench: Bench, origin: str, port: str = "worker") -> int | None:
        stream = await trio.open_tcp_stream(*bench.running.ports()[port])
        try:
            async with stream:
                await connect(stream, "engine", "/", [("origin", origin)])
        except HandshakeError as error:
            return error.status
        return 101

    async with engine(tmp_path, text.format(more=""), port=None) as bench:
        listener = bench.running.listeners[0]
        assert await status(bench, "https://evil.example") == 101
        bench.rewrite(text.format(more=", allowed_origins: ['https://app.example']"))
        await bench.heard.until(lambda: listener.allowed_origins == ("https://app.example",))
        assert [await status(bench, f"https://{name}.example") for name in ("evil", "app")] == [403, 101]
        assert await status(bench, "https://evil.example", "stream") == 101
        await bench.call("configuration::set", id="iii-stream", value={"allowed_origins": ["https://app.example"]})
        await bench.heard.until(lambda: bench.setting("stream", "allowed_origins") == ("https://app.example",))
        assert [await status(bench, f"https://{name}.example", "stream") for name in ("evil", "app")] == [403, 101]
        assert (await bench.call("engine::health::check"))["status"] == "healthy"
        bench.rewrite(text.format(more=", allowed_origins: ['https://app.example/']"))
        await bench.heard.until(lambda: "write https://app.example" in caplog.text)
        assert listener.allowed_origins == ("https://app.example",)
        bench.rewrite(text.format(more=", allowed_origins: []"))
        await bench.heard.until(lambda: listener.allowed_origins == ())
        assert await status(bench, "https://app.example") == 403
        bench.rewrite(text.format(more=", allowed_origins: [], token: t"))
        await bench.heard.until(lambda: bench.running.listeners[0].rules.token == "t")
        assert bench.running.listeners[0].allowed_origins == ()


async def test_a_reload_under_load_drops_nothing(tmp_path: Path) -> None:
    text = WORKERS + "  - name: queue\n    config: {{queue_configs: {{default: {{concurrency: {n}}}}}}}\n"
    answered, enqueued, handled = 0, 0, set[int]()

    async with engine(tmp_path, text.format(timeout=9000, limit=1000, n=1)) as bench, trio.open_nursery() as nursery:
        stop = trio.Event()

        async def requests() -> None:
            nonlocal answered
            async with await trio.open_tcp_stream("127.0.0.1", bench.http_port()) as stream:
                while not stop.is_set():
                    await stream.send_all(b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n")
                    assert b" 404 " in await stream.receive_some()
                    answered += 1
                    bench.heard.nudge()

        async def enqueues() -> None:
            nonlocal enqueued
            while not stop.is_set():
                await bench.call("state::set", scope="s", key="k", value=enqueued)
                await bench.client.enqueue("default", "work", {"n": enqueued})
                enqueued += 1
                bench.heard.nudge()

        async def work(data: Any) -> None:
            handled.add(data["n"])
            bench.heard.nudge()

        worker = Worker("loaded")
        worker.function("work")(work)
        nursery.start_soon(worker.run, bench.running.worker_url)
        nursery.start_soon(requests)
        nursery.start_soon(enqueues)
        for step in range(1, 4):
            seen = answered, enqueued
            bench.rewrite(text.format(timeout=9000 + step, limit=1000 + step, n=1 + step))
            await bench.heard.until(lambda step=step: bench.setting("http", "default_timeout") == 9000 + step)  # type: ignore[misc]
            await bench.heard.until(lambda seen=seen: answered > seen[0] and enqueued > seen[1])  # type: ignore[misc]
        stop.set()
        await bench.heard.until(lambda: handled == set(range(enqueued)) and enqueued > 3)
        nursery.cancel_scope.cancel()


async def test_bad_json_in_the_log_is_no_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with engine(tmp_path, "workers: []\n") as bench:
        schema = {"type": "object", "properties": {"key": {"type": "integer", "writeOnly": True}}}
        await bench.call("configuration::register", id="mine", name="", description="", schema=schema)
        entries = tmp_path / "data" / "config"
        entries.mkdir(parents=True)
        (entries / "mine.yaml").write_text(json.dumps({"id": "mine", "value": {"key": "hush"}}))
        await bench.heard.until(lambda: "is not taken over" in caplog.text)
    assert "hush" not in caplog.text


async def test_a_guest_of_a_guarded_port_sees_no_secrets(tmp_path: Path) -> None:
    guarded = "{{port: 0, rbac: {{expose_functions: ['match(\"{grants}\")']}}}}"
    ports = "\n".join(
        f"  - name: iii-worker-manager\n    config: {guarded.format(grants=grants)}"
        for grants in ("configuration::get", "configuration::*")
    )
    text = f"workers:\n  - name: iii-worker-manager\n    config: {{port: 0}}\n{ports}\n"
    async with engine(tmp_path, text) as bench:
        about = {"id": "mine", "name": "", "description": "", "schema": {}}
        await bench.call("configuration::register", **about, initial_value={"api_key": "k", "host": "h"})
        seen = []
        for listener in bench.running.listeners:
            async with open_client(f"ws://127.0.0.1:{listener.addresses[0][1]}") as client:
                seen.append((await client.call("configuration::get", {"id": "mine"}))["value"]["api_key"])
        assert seen == ["k", "********", "k"]


async def test_workers_that_are_started_again_under_load_drop_no_call(tmp_path: Path) -> None:
    handled = set[int]()
    receipts: list[int] = []
    async with engine(tmp_path, "workers: [{name: state}, {name: queue}, {name: pubsub}]\n") as bench:
        stop = trio.Event()

        async def writes() -> None:
            while not stop.is_set():
                await bench.call("state::set", scope="s", key="k", value=1)

        async def enqueues() -> None:
            while not stop.is_set():
                number = len(receipts)
                receipts.append(number)
                await bench.client.enqueue("default", "work", {"n": number})

        async def work(data: Any) -> None:
            handled.add(data["n"])
            bench.heard.nudge()

        worker = Worker("loaded")
        worker.function("work")(work)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.run, bench.running.worker_url)
            for _ in range(8):
                nursery.start_soon(writes)
                nursery.start_soon(enqueues)
            for number in range(1, 4):
                directory = str(tmp_path / f"state{number}")
                for entry_id, value in (
                    ("iii-state", {"adapter": {"name": "kv", "config": {"file_path": directory}}}),
                    ("iii-queue", {"adapter": {"name": "builtin", "config": {"max_attempts": number + 3}}}),
                ):
                    seen = len(receipts)
                    await bench.call("configuration::set", id=entry_id, value=value)
                    assert await bench.call(f"{entry_id}::on-config-change") == {"ok": True}
                    await bench.heard.until(lambda seen=seen: len(receipts) > seen)  # type: ignore[misc]
            stop.set()
            await bench.heard.until(lambda: handled == set(receipts))
            nursery.cancel_scope.cancel()
        assert bench.setting("queue", "adapter").config.max_attempts == 6
        assert sum(module.restarts for module in bench.running.statistics().modules) == 0


async def test_a_certificate_that_is_not_there_refuses_the_file_as_a_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(tmp_path, "workers: [{name: http, config: {port: 0, body_limit: 1000}}]") as bench:
        tls = "{name: iii-worker-manager, config: {tls: {certificate: none.pem, key: none.pem}}}"
        bench.rewrite(f"workers: [{{name: http, config: {{port: 0, body_limit: 2000}}}}, {tls}]")
        await bench.heard.until(lambda: "cannot read 'none.pem'" in caplog.text)
        assert "everything runs on as it was" in caplog.text
        assert bench.setting("http", "body_limit") == 1000


async def test_a_file_that_is_empty_for_now_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with engine(tmp_path, "workers: [{name: http, config: {port: 0, body_limit: 1000}}]") as bench:
        bench.rewrite("\n")  # as `generate > config.yaml` does until it has something to write
        await bench.heard.until(lambda: "config.yaml is empty" in caplog.text)
        assert await status_of(bench.http_port()) == 404
        bench.rewrite("workers: [{name: http, config: {port: 0, body_limit: 2000}}]")
        await bench.heard.until(lambda: bench.setting("http", "body_limit") == 2000)
        bench.rewrite("workers: []")
        await bench.heard.until(lambda: "http" not in bench.running.modules)
