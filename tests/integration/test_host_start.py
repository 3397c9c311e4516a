"""The host in this process, over real sockets and files: what it starts, in which order, and what is left when it cannot."""

import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from iii_trio import FunctionNotFound, Worker, open_client
from iii_trio.config import default_config, load_config
from iii_trio.engine import Engine, Listener
from iii_trio.engine.events import FunctionsChanged
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides, Plan, make_plan
from iii_trio.host.supervise import StartError, leaves
from iii_trio.modules.http import HttpModule
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.protocol import errors
from iii_trio.protocol.errors import IIIError, StoreError

WAIT_S = 60.0
ANYWHERE = {"port": 0, "http_port": 0, "stream_port": 0}


def has_ipv6() -> bool:
    """Whether this machine has the loopback address ::1."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@asynccontextmanager
async def host(directory: Path, text: str | None = None, **options: Any) -> AsyncIterator[Running]:
    """An engine on free ports that keeps its data in `directory`; `text` is its configuration file."""
    overrides = Overrides(data_dir=directory / "data", **{**ANYWHERE, **options})
    with trio.fail_after(WAIT_S):
        async with open_host(configuration(directory, text), overrides) as running:
            yield running


def configuration(directory: Path, text: str | None) -> Any:
    if text is None:
        return default_config({})
    path = directory / "config.yaml"
    path.write_text(text)
    return load_config(path, {})


async def status_of(port: int, path: str = "/") -> int:
    """The status of a GET over a connection of its own."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while data := await stream.receive_some():
            answer += bytes(data)
    return int(answer.split()[1])


async def failure(directory: Path, text: str | None = None, **options: Any) -> IIIError:
    """The one error with which the start fails."""
    try:
        async with host(directory, text, **options):
            pytest.fail("it started")
    except (IIIError, ExceptionGroup) as group:
        (error,) = leaves(group)
        assert isinstance(error, IIIError)
        return error


def is_open(port: int) -> bool:
    """Whether somebody listens on the port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 on which something else listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def http_port_of(caplog: pytest.LogCaptureFixture) -> int:
    """The HTTP port, as the log tells it."""
    (line,) = [record.getMessage() for record in caplog.records if "http://127.0.0.1:" in record.getMessage()]
    return int(line.rpartition(":")[2])


# -- what runs --------------------------------------------------------------------------------------------------------


async def test_the_default_set_runs_and_ends(tmp_path: Path) -> None:
    async with host(tmp_path) as running:
        ports = {name: port for name, (_, port) in running.ports().items()}
        assert await status_of(ports["http"]) == 404
        async with open_client(running.worker_url) as client:
            assert await client.call("state::set", {"scope": "s", "key": "k", "value": 1}) == {
                "old_value": None,
                "new_value": 1,
            }
            health = await client.call("engine::health::check")
        assert health["status"] == "healthy"
        names = {"state", "stream", "queue", "pubsub", "introspection", "backups", "http", "configuration", "settings"}
        assert health["components"]["modules"]["details"] == dict.fromkeys(names, "running")
        picture = running.statistics()
        assert {module.name for module in picture.modules} == names
        assert {Path(store.path or "").parent.name for store in picture.stores} == {"state", "stream", "queue"}
        assert len(picture.listeners) == 1
    assert not any(map(is_open, ports.values()))
    async with host(tmp_path) as running, open_client(running.worker_url) as client:  # the stores were let go
        assert await client.state["s"].get("k") == 1


async def test_stores_in_memory_leave_no_files(tmp_path: Path) -> None:
    memory = "config: {adapter: {name: in_memory}}"
    text = f"workers: [{{name: state, {memory}}}, {{name: queue, {memory}}}]"
    async with host(tmp_path, text) as running:
        assert [store.path for store in running.statistics().stores] == [None, None]
        async with open_client(running.worker_url) as client:
            await client.state["s"].set("k", 1)
            assert await client.state["s"].get("k") == 1
    assert not (tmp_path / "data").exists()


async def test_modules_that_name_one_directory_share_its_store(tmp_path: Path) -> None:
    both = f"config: {{adapter: {{name: file_based, config: {{file_path: {tmp_path}/shared}}}}}}"
    text = f"workers: [{{name: state, {both}}}, {{name: queue, {both}}}]"
    async with host(tmp_path, text) as running:
        assert [store.path for store in running.statistics().stores] == [f"{tmp_path}/shared/store.sqlite3"]


async def test_the_worker_port_opens_when_http_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    statuses: list[int] = []
    original = Listener.run

    async def run(self: Listener, *, task_status: trio.TaskStatus[None]) -> None:
        assert not self.addresses
        statuses.append(await status_of(http_port_of(caplog)))
        await original(self, task_status=task_status)

    monkeypatch.setattr(Listener, "run", run)
    async with host(tmp_path):
        assert statuses == [404]


# -- what cannot start ------------------------------------------------------------------------------------------------


async def test_a_taken_worker_port_stops_the_start_and_nothing_is_left(
    tmp_path: Path, taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    error = await failure(tmp_path, port=taken)
    assert isinstance(error, errors.ConfigError)
    assert str(error).startswith(f"address 127.0.0.1:{taken} is already in use (the worker port)")
    assert not is_open(http_port_of(caplog))
    async with host(tmp_path) as running:  # the stores were let go, too
        assert running.core.modules["state"] == "running"


async def test_a_taken_http_port_stops_the_start(tmp_path: Path, taken: int) -> None:
    error = await failure(tmp_path, http_port=taken)
    assert isinstance(error, StartError)
    assert f"failed to initialize worker 'http': address 127.0.0.1:{taken} is already in use" in str(error)


async def test_an_address_that_is_not_ours_stops_the_start(tmp_path: Path) -> None:
    error = await failure(tmp_path, "workers: []", host="192.0.2.1")
    assert str(error).startswith("failed to bind to 192.0.2.1:0 (the worker port): ")


async def test_a_second_engine_on_the_same_data_is_refused(tmp_path: Path) -> None:
    async with host(tmp_path) as running:
        error = await failure(tmp_path)
        assert isinstance(error, StoreError)
        assert str(tmp_path / "data" / "state") in str(error)
        async with open_client(running.worker_url) as client:  # the first one did not notice
            await client.state["s"].set("k", 1)


async def test_a_data_directory_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    error = await failure(tmp_path)
    assert isinstance(error, StoreError)
    assert str(tmp_path / "data") in str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_data_directory_without_permission_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o500)
    error = await failure(tmp_path)
    assert isinstance(error, StoreError)
    assert str(tmp_path / "data") in str(error)


async def test_a_module_that_cannot_start_stops_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run(self: HttpModule, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(HttpModule, "run", run)
    error = await failure(tmp_path)
    assert isinstance(error, StartError)
    assert str(error).startswith("failed to initialize worker 'http': RuntimeError: a bug (incident ")
    monkeypatch.undo()
    async with host(tmp_path) as running:
        assert await status_of(running.ports()["http"][1]) == 404


# -- what fails later -------------------------------------------------------------------------------------------------


@define
class Breakable:
    """One kind of module, which fails when it is told to; the one that follows it lives."""

    broken: trio.Event = field(factory=trio.Event)
    back: trio.Event = field(factory=trio.Event)

    @classmethod
    def of(cls, monkeypatch: pytest.MonkeyPatch, module_class: Any) -> "Breakable":
        breakable, original = cls(), module_class.run

        async def run(module: Any, core: Engine, *, task_status: trio.TaskStatus[None]) -> None:
            async with trio.open_nursery() as nursery:
                await nursery.start(original, module, core)
                task_status.started()
                if breakable.broken.is_set():
                    breakable.back.set()
                else:
                    await breakable.broken.wait()
                    raise RuntimeError("broken on purpose")

        monkeypatch.setattr(module_class, "run", run)
        return breakable


async def test_a_module_that_fails_later_is_restarted_while_the_rest_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pubsub = Breakable.of(monkeypatch, PubSubModule)
    async with host(tmp_path) as running, open_client(running.worker_url) as client:
        gone = trio.Event()
        lost = FunctionsChanged("default", "publish", available=False)
        running.core.events.tap(lambda event: gone.set() if event == lost else None)
        pubsub.broken.set()
        await gone.wait()
        await trio.testing.wait_all_tasks_blocked()  # its supervisor has heard of it
        health = await client.call("engine::health::check")
        assert health["status"] == "degraded"
        assert health["components"]["modules"]["details"]["pubsub"].startswith("restarting (incident ")
        with pytest.raises(FunctionNotFound):
            await client.call("publish", {"topic": "t", "data": None})
        assert await status_of(running.ports()["http"][1]) == 404
        await client.state["s"].set("k", 1)

        await pubsub.back.wait()
        await client.call("publish", {"topic": "t", "data": None})
        health = await client.call("engine::health::check")
        assert health["status"] == "healthy"
        assert running.modules["pubsub"].statistics().restarts == 1


async def test_http_comes_back_on_the_port_that_the_system_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = Breakable.of(monkeypatch, HttpModule)
    async with host(tmp_path) as running:
        port = running.ports()["http"][1]
        assert await status_of(port) == 404
        http.broken.set()
        await http.back.wait()
        assert running.ports()["http"][1] == port
        assert await status_of(port) == 404


# -- what is asked for ------------------------------------------------------------------------------------------------


def planned(directory: Path, text: str, **options: Any) -> Plan:
    return make_plan(configuration(directory, text), Overrides(**options))


@pytest.mark.parametrize(
    ("http", "state", "queue", "pubsub", "manager"),
    [
        ("name: http", "name: state", "name: queue", "name: pubsub", "name: iii-worker-manager"),
        ("name: iii-http", "name: iii-state", "name: iii-queue", "name: iii-pubsub", "name: iii-worker-manager"),
        (
            "class: modules::api::RestApiModule",
            "class: modules::state::StateModule",
            "class: modules::queue::QueueModule",
            "class: modules::pubsub::PubSubModule",
            "class: modules::worker::WorkerModule",
        ),
    ],
)
@pytest.mark.parametrize("key", ["workers", "modules"])
def test_every_generation_of_names_asks_for_the_same(
    tmp_path: Path, key: str, http: str, state: str, queue: str, pubsub: str, manager: str
) -> None:
    text = f"""
{key}:
  - {http}
    config: {{port: 4111, default_timeout: 5000}}
  - {state}
    config: {{max_value_bytes: 10}}
  - {queue}
    config: {{queue_configs: {{jobs: {{concurrency: 3}}}}}}
  - {pubsub}
  - {manager}
    config: {{port: 4222}}
"""
    plan = planned(tmp_path, text)
    assert plan.http is not None
    assert (plan.http.port, plan.http.default_timeout) == (4111, 5000)
    assert plan.state is not None
    assert plan.state.max_value_bytes == 10
    assert plan.queue is not None
    assert plan.queue.queue_configs["jobs"].concurrency == 3
    assert plan.pubsub is not None
    assert [listener.port for listener in plan.listeners] == [4222]


def test_only_what_is_listed_runs_and_the_worker_port_in_any_case(tmp_path: Path) -> None:
    plan = planned(tmp_path, "workers: []")
    assert (plan.http, plan.state, plan.queue, plan.pubsub) == (None, None, None, None)
    assert [(listener.host, listener.port) for listener in plan.listeners] == [("localhost", 49134)]


def test_the_command_line_counts_for_the_first_worker_port(tmp_path: Path) -> None:
    text = """
workers:
  - name: iii-worker-manager
    config: {port: 1}
  - name: iii-worker-manager
    config: {port: 2, host: 127.0.0.1}
  - name: http
    config: {port: 3}
"""
    plan = planned(tmp_path, text, host="::1", port=0, http_port=0)
    assert [(listener.host, listener.port) for listener in plan.listeners] == [("::1", 0), ("127.0.0.1", 2)]
    assert plan.http is not None
    assert (plan.http.host, plan.http.port) == ("::1", 0)


def test_where_settings_come_from_is_told(tmp_path: Path) -> None:
    text = """
workers:
  - name: iii-http
    config: {port: 3, host: "::1", defaultTimeout: 7}
  - name: state
"""
    blocks = planned(tmp_path, text, http_port=0).blocks
    sources = f"default_timeout, host from {tmp_path}/config.yaml; port from the command line; the rest defaults"
    assert blocks["http"].sources() == sources
    stored = blocks["http"].sources(("host", "cors", "port"), "iii-http.yaml")
    here = f"default_timeout from {tmp_path}/config.yaml; cors, host from iii-http.yaml; port from the command line"
    assert stored == f"{here}; the rest defaults"
    assert {blocks[name].sources() for name in ("state", "worker-manager", "configuration")} == {"defaults"}


def test_what_is_not_part_of_this_release_is_named(tmp_path: Path) -> None:
    notes = planned(tmp_path, "workers:\n  - name: state\n  - name: iii-cron\n  - name: iii-exec\n").notes
    where = f"{tmp_path}/config.yaml"
    assert f"{where}:3: 'iii-cron' is not part of this release and does not run" in notes
    assert f"{where}:4: 'iii-exec' is not part of this release and does not run" in notes
    assert not [note for note in notes if "telemetry" in note], "nobody asked for it"


async def test_middleware_of_the_configuration_file_guards_every_route(tmp_path: Path) -> None:
    worker = Worker("guarded")

    @worker.function("guard")
    async def guard(asked: dict[str, Any]) -> Any:
        return {"action": "respond", "response": {"status_code": 401 if asked["phase"] == "preHandler" else 500}}

    @worker.http("GET", "inside")
    @worker.function("inside")
    async def inside(_: Any) -> str:
        return "seen by nobody"

    text = "workers:\n  - name: iii-http\n    config:\n      middleware: [{function_id: guard}]\n"
    async with host(tmp_path, text) as running, worker.connect(running.worker_url) as client:
        await client.wait_registered()
        assert running.http is not None
        port = running.http.addresses[0][1]
        assert await status_of(port, "/inside") == 401


@pytest.mark.parametrize(
    ("address", "warns"),
    [
        ("0.0.0.0", True),
        ("127.0.0.1", False),
        pytest.param("::", True, marks=needs_ipv6),
        pytest.param("::1", False, marks=needs_ipv6),
    ],
)
async def test_a_port_that_is_open_to_the_network_is_told_of_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, address: str, warns: bool
) -> None:
    async with host(tmp_path, "workers: [{name: http}]", host=address) as running:
        worker, http = (port for _, port in running.ports().values())
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert any(f":{worker} IS OPEN TO THE NETWORK, WITHOUT ACCESS CONTROL" in line for line in told) == warns
        assert any(f":{http} is reachable from other machines" in line for line in told) == warns
        async with open_client(running.worker_url) as client:  # workers of this machine reach it all the same
            assert await client.call("engine::health::check")
