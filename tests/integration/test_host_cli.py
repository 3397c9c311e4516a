"""`trigger` and `tree` against a running engine, and what `serve` prints (spec/pubsub-cron-config-cli.md §8.1)."""

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import frozen
from click.testing import CliRunner, Result

from iii_trio import InvocationError, Worker
from iii_trio.cli.ask import ask
from iii_trio.cli.describe import describe
from iii_trio.cli.main import cli
from iii_trio.config import parse_config
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides
from iii_trio.testing import run_engine

CONFIG = """
workers:
  - name: iii-worker-manager
    config: {port: 0}
  - {name: state, config: {adapter: {name: in_memory}}}
"""
SECONDS = 60.0


@frozen
class Greeting:
    """What `greet::hello` takes."""

    name: str
    times: int = 1


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of this machine counts."""
    for name in [name for name in os.environ if name.startswith("III_")]:
        monkeypatch.delenv(name)


@asynccontextmanager
async def engine() -> AsyncIterator[Running]:
    """An engine in this process, with a worker."""
    worker = Worker("greeter")

    @worker.function("greet::hello", description="Greets\x1b[31m somebody.")
    async def hello(greeting: Greeting) -> str:
        return f"Hello, {greeting.name}!" * greeting.times

    @worker.function("greet::refuse")
    async def refuse() -> None:
        raise InvocationError("not you", "FORBIDDEN_NAME", "line 1")

    @worker.function("greet::never")
    async def never() -> None:
        await trio.sleep_forever()

    @worker.function("greet::nothing")
    async def nothing() -> None:
        """Has no result."""

    config = parse_config(CONFIG, "config.yaml", {})
    with trio.fail_after(SECONDS):
        async with open_host(config, Overrides()) as running, trio.open_nursery() as nursery:
            await nursery.start(partial(worker.run, running.worker_url))
            yield running
            nursery.cancel_scope.cancel()


async def cli_of(running: Running, *words: str) -> Result:
    """A command against the engine; it runs in a thread, with a loop of its own."""
    port = str(running.ports()["worker"][1])
    return await trio.to_thread.run_sync(partial(CliRunner().invoke, cli, [*words, "--port", port]))


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["greet::hello", "name=Ada"], '"Hello, Ada!"\n'),
        (["greet::hello", "--json", '{"name": "x", "times": 2}', "name=Ada"], '"Hello, Ada!Hello, Ada!"\n'),
        (["greet::nothing"], ""),
        (["state::get", "scope=s", "key=none"], ""),
        (["state::set", "scope=s", "key=k", "value={\"a\":[1,2.5,null,\"ü\"]}"], None),
        (["state::set", "scope=s", "key=k", "value=NaN"], '{\n  "old_value": null,\n  "new_value": "NaN"\n}\n'),
        (["-n", "default", "greet::hello", "name=Ada"], '"Hello, Ada!"\n'),
    ],
)  # fmt: skip
async def test_a_result_is_printed_as_json(words: list[str], output: str | None) -> None:
    async with engine() as running:
        result = await cli_of(running, "trigger", *words)
        assert (result.exit_code, result.stderr) == (0, "")
        if output is not None:
            assert result.stdout == output
        else:
            assert json.loads(result.stdout)["new_value"] == {"a": [1, 2.5, None, "ü"]}
            assert '\n    "a": [\n' in result.stdout, "two spaces a level"


async def test_t_is_short_for_trigger() -> None:
    async with engine() as running:
        assert (await cli_of(running, "t", "greet::hello", "name=Ada")).stdout == '"Hello, Ada!"\n'


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (["greet::refuse"], {"code": "FORBIDDEN_NAME", "message": "not you", "stacktrace": "line 1"}),
        (
            ["no::such"],
            {
                "code": "function_not_found",
                "message": "Function no::such not found in namespace default.",
                "stacktrace": None,
            },
        ),
        (
            ["greet::hello", "-n", "elsewhere"],
            {
                "code": "function_not_found",
                "message": (
                    "Function greet::hello not found in namespace elsewhere. It is registered in namespace(s): default."
                ),
                "stacktrace": None,
            },
        ),
    ],
)
async def test_an_error_of_the_function_goes_to_stderr(words: list[str], body: dict[str, str | None]) -> None:
    async with engine() as running:
        result = await cli_of(running, "trigger", *words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"Error: {json.dumps(body, indent=2)}\n"


async def test_no_answer_in_time() -> None:
    async with engine() as running:
        result = await cli_of(running, "trigger", "greet::never", "--timeout-ms", "200")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: Timed out waiting for the engine (no response within the timeout). "
        "Is the engine running at the given address and port?\n"
    )


@pytest.mark.parametrize("command", [["trigger", "f"], ["tree"]])
def test_an_engine_that_is_not_there_is_reported_at_once(command: list[str]) -> None:
    port = free_port()
    result = CliRunner().invoke(cli, [*command, "--address", "127.0.0.1", "--port", str(port)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: No engine answers at ws://127.0.0.1:{port}: cannot connect")
    assert result.stderr.count("\n") == 1


def test_something_else_on_the_port_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setenv("III_URL", f"ws://127.0.0.1:{mute.getsockname()[1]}")
        result = CliRunner().invoke(cli, ["trigger", "f", "--timeout-ms", "100"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Timed out waiting for the engine" in result.stderr


@pytest.mark.parametrize("url", ["http://localhost:1", "localhost", "ws://:x"])
def test_an_address_that_is_none_is_reported(url: str) -> None:
    result = CliRunner().invoke(cli, ["trigger", "f", "--url", url])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: '{url}' is no ")


async def test_parallel_runs_do_not_refuse_each_other() -> None:
    answers: list[object] = []
    async with engine() as running, trio.open_nursery() as nursery:

        async def one() -> None:
            answers.append(await ask(running.worker_url, "greet::hello", {"name": "Ada"}, SECONDS, None))

        for _ in range(5):
            nursery.start_soon(one)
    assert answers == ["Hello, Ada!"] * 5


# -- help about a function --------------------------------------------------------------------------------------------


async def test_help_about_a_function_shows_what_it_takes() -> None:
    async with engine() as running:
        result = await cli_of(running, "trigger", "greet::hello", "--help")
        assert result.exit_code == 0
        name, gap, about, _, heading, *rows = result.stdout.splitlines()
        assert (name, gap, about) == ("greet::hello", "", "Greets [31m somebody.")
        assert heading.split() == ["NAME", "TYPE", "REQUIRED", "DESCRIPTION"]
        assert [row.split() for row in rows] == [["name", "string", "yes"], ["times", "integer", "no"]]


async def test_help_about_a_function_that_is_not_there() -> None:
    async with engine() as running:
        result = await cli_of(running, "trigger", "no::such", "-h")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Function 'no::such' is not registered." in result.stderr


def test_help_without_an_engine_is_that_of_the_command() -> None:
    result = CliRunner().invoke(cli, ["trigger", "f", "--help", "--address", "127.0.0.1", "--port", str(free_port())])
    assert result.exit_code == 0
    assert result.stderr.startswith("Warning: No engine answers at ")
    assert result.stdout.startswith("Usage: ")


def test_a_description_cannot_steer_the_terminal() -> None:
    schema = {
        "properties": {
            "a\u202eb": {"type": ["string", "null"], "description": "x\x1b]0;y\x07\nz"},
            "c": {"anyOf": [{"type": "integer"}, {"$ref": "#/definitions/Other"}]},
            "d": True,
        },
        "required": ["c"],
    }
    assert describe({"function_id": "f", "request_schema": schema}).splitlines() == [
        "f",
        "",
        "NAME  TYPE             REQUIRED  DESCRIPTION",
        "a b   string | null    no        x ]0;y  z",
        "c     integer | Other  yes",
        "d     any              no",
    ]


@pytest.mark.parametrize("schema", [None, {}, [], "x", {"properties": {}}, {"properties": []}])
def test_a_function_that_does_not_say_what_it_takes(schema: object) -> None:
    assert describe({"function_id": "f", "request_schema": schema}) == "f\n\nIt does not say what it takes."


# -- tree -------------------------------------------------------------------------------------------------------------


async def test_tree_shows_every_task_by_name() -> None:
    async with engine() as running:
        drawn = await cli_of(running, "tree")
        asked = await cli_of(running, "tree", "--json")
    assert (drawn.exit_code, asked.exit_code) == (0, 0)
    lines = [line.lstrip("│├└─ ") for line in drawn.stdout.splitlines()]
    for name in ("deadlines", "supervisor of state", "state module", "worker port", "sweeper"):
        assert lines.count(name) == 1, drawn.stdout
    node = json.loads(asked.stdout)
    assert node["name"] == lines[0]
    assert node["children"]


# -- what serve prints ------------------------------------------------------------------------------------------------

CHATTY = """
import sys
print("no JSON {")
print("to stderr", file=sys.stderr)
sys.stdout.buffer.write(b"\\xff\\n")
"""


async def test_json_logs_are_json_lines_and_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "chatty.py"
    script.write_text(CHATTY)
    async with run_engine(tmp_path, str(script), "--log-format", "json") as process:
        await process.line("chatty has finished")
        assert await process.stop() == 0
    records = [json.loads(line) for line in process.output]
    said = {record["message"] for record in records if record["source"] == "chatty"}
    assert said == {"no JSON {", "to stderr", "\N{REPLACEMENT CHARACTER}"}
    assert {record["level"] for record in records} == {"info"}
    started = [record["message"] for record in records if record["source"].startswith("iii_trio")]
    assert started[0].startswith("iii-trio ")
    assert [message for message in started if message.startswith("worker ")] == [
        "worker iii-worker-manager: port from the command line; the rest defaults",
        "worker configuration: defaults",
        "worker iii-http: port from the command line; the rest defaults",
        "worker iii-state: defaults",
        "worker iii-stream: port from the command line; the rest defaults",
        "worker iii-queue: defaults",
        "worker iii-pubsub: defaults",
    ]
    assert started[-2:] == ["SIGTERM: stopping, within 5.0 s", "stopped"]
