"""Every command that asks an engine, against one that runs in a thread of this process beside a worker."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from attrs import frozen
from click.testing import CliRunner, Result

from iii_trio import Client, InvocationError, Worker, open_client
from iii_trio.cli.ask import Call, Target, hear
from iii_trio.cli.main import cli
from iii_trio.config import parse_config
from iii_trio.host.compose import open_host
from iii_trio.host.plan import Overrides

CONFIG = """
data_dir: {data}
workers:
  - name: iii-worker-manager
    config: {{port: 0}}
  - name: iii-worker-manager
    config: {{port: 0, token: sesame}}
  - name: iii-worker-manager
    config: {{port: 0, tls: {{certificate: {data}/cert.pem, key: {data}/key.pem}}}}
  - name: iii-http
    config: {{port: 0, body_limit: 1000}}
  - name: queue
    config:
      adapter: {{name: in_memory}}
      queue_configs:
        default: {{max_retries: 1, backoff_ms: 0}}
        jobs: {{max_retries: 1, backoff_ms: 0}}
"""
SECONDS = 60.0
COMMAND = (sys.executable, "-m", "iii_trio")
WAITING = threading.Event()
"""Set once `greet::never` runs."""


@frozen
class Place:
    """Where the engine listens: for everybody, for those with the token `sesame`, and under TLS with `authority`."""

    url: str
    guarded: str
    encrypted: str
    authority: Path


def a_worker() -> Worker:
    worker = Worker("greeter")

    @worker.http("GET", "greet")
    @worker.on("no-such-type", {"a": 1})
    @worker.function("greet::hello", description="Greets\x1b[31m somebody.")
    async def hello(name: str = "you") -> str:
        return f"Hello, {name}!"

    @worker.function("greet::echo")
    async def echo(message: dict[str, Any]) -> dict[str, Any]:
        return message

    @worker.function("greet::fail")
    async def fail(message: dict[str, Any]) -> None:
        raise InvocationError("it broke\x1b[31m\nbadly", "BROKEN", "line 1\nline 2")

    @worker.function("greet::never")
    async def never() -> None:
        WAITING.set()
        await trio.sleep_forever()

    @worker.function("greet::hidden", metadata={"internal": True})
    async def hidden() -> None:
        """Not listed by default."""

    return worker


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One engine for all tests of this file, in a thread, because commands have loops of their own."""
    data = tmp_path_factory.mktemp("data")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(data / "authority.pem")
    certificate.cert_chain_pems[0].write_to_path(data / "cert.pem")
    certificate.private_key_pem.write_to_path(data / "key.pem")
    config = parse_config(CONFIG.format(data=data), "config.yaml", {})
    ready, places, over = threading.Event(), list[Place](), list[trio.CancelScope]()

    async def run() -> None:
        with trio.CancelScope() as scope:
            async with open_host(config, Overrides()) as running, trio.open_nursery() as nursery:
                await nursery.start(partial(a_worker().run, running.worker_url))
                ports = [listener.addresses[0][1] for listener in running.listeners]
                url, guarded, encrypted = (f"127.0.0.1:{port}" for port in ports)
                places.append(Place(f"ws://{url}", f"ws://{guarded}", f"wss://{encrypted}", data / "authority.pem"))
                over.append(scope)
                token.append(trio.lowlevel.current_trio_token())
                ready.set()
                await trio.sleep_forever()

    token: list[trio.lowlevel.TrioToken] = []
    thread = threading.Thread(target=trio.run, args=(run,), daemon=True)
    thread.start()
    assert ready.wait(SECONDS), "the engine has not started"
    yield places[0]
    token[0].run_sync_soon(over[0].cancel)
    thread.join(SECONDS)
    assert not thread.is_alive()


@pytest.fixture(autouse=True)
def asked(engine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the engine by III_URL, and no other variable of this machine counts."""
    for name in [name for name in os.environ if name.startswith(("III_", "_III_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("III_URL", engine.url)


def run(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="iii-trio", input=text)


def done(*arguments: str, text: str | None = None) -> str:
    """What a command that works prints; it says nothing else."""
    result = run(*arguments, text=text)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def refused(*arguments: str) -> str:
    """The one line of a command that ends with status 1 and prints nothing."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


def rows(text: str) -> list[list[str]]:
    """The words of each line of a table."""
    return [line.split() for line in text.splitlines()]


def dead_letters(engine: Place, queue: str, *payloads: object) -> list[str]:
    """Put messages into a queue whose function fails, and wait until they are dead; their ids, newest first."""

    async def bury() -> list[str]:
        with trio.fail_after(SECONDS):
            async with open_client(engine.url) as client:
                for payload in payloads:
                    await client.enqueue(queue, "greet::fail", payload)
                return await buried(client, queue, len(payloads))

    return trio.run(bury)


async def buried(client: Client, queue: str, count: int) -> list[str]:
    while True:
        letters = await client.call("engine::queue::dlq_messages", {"topic": queue})
        if len(letters) == count:
            return [letter["id"] for letter in letters]
        await trio.sleep(0.01)


# -- lists ------------------------------------------------------------------------------------------------------------


def test_functions() -> None:
    heading, *found = rows(done("functions"))
    assert heading == ["FUNCTION", "WORKER", "NAMESPACE", "REPLICAS", "DESCRIPTION"]
    ids = [row[0] for row in found]
    assert ids == sorted(ids)
    assert ["greet::hello", "greeter", "default", "1", "Greets", "[31m", "somebody."] in found
    assert "greet::hidden" not in ids
    assert "engine::tree" not in ids


def test_functions_found_by_words_worker_and_beginning() -> None:
    assert [row[0] for row in rows(done("functions", "SOMEBODY"))[1:]] == ["greet::hello"]
    assert {row[1] for row in rows(done("functions", "--worker", "iii-queue"))[1:]} == {"iii-queue"}
    assert [row[0] for row in rows(done("functions", "--prefix", "greet::", "--all"))[1:]] == [
        "greet::echo",
        "greet::fail",
        "greet::hello",
        "greet::hidden",
        "greet::never",
    ]
    assert done("functions", "no such thing") == "There are none.\n"


def test_lists_as_json_are_the_engine_s_answers() -> None:
    found = json.loads(done("functions", "--json", "--prefix", "greet::h"))["functions"]
    assert found == [
        {
            "function_id": "greet::hello",
            "namespace": "default",
            "worker_name": "greeter",
            "description": "Greets\x1b[31m somebody.",
        }
    ]
    assert "greeter" in {row["name"] for row in json.loads(done("workers", "--json"))["workers"]}


def test_workers() -> None:
    heading, *found = rows(done("workers"))
    assert heading[:6] == ["WORKER", "STATUS", "RUNTIME", "VERSION", "NAMESPACE", "FUNCTIONS"]
    by_name = {row[0]: row for row in found}
    assert by_name["greeter"][1:3] == ["connected", "python-trio"]
    assert by_name["greeter"][4:7] == ["default", "5", "0"]
    assert by_name["greeter"][-2:] == ["127.0.0.1", str(os.getpid())]
    assert by_name["iii-queue"][1:3] == ["available", "engine"]
    assert not [name for name in by_name if name.startswith("iii-cli")], "the command itself is no worker"
    assert [row[0] for row in rows(done("workers", "GREET"))[1:]] == ["greeter"]
    assert "greeter" not in done("workers", "--runtime", "engine")


def test_triggers_that_fire_and_why_the_others_do_not() -> None:
    result = run("triggers")
    [heading, row] = rows(result.stdout)
    assert heading == ["TYPE", "FUNCTION", "NAMESPACE", "WORKER", "STATE", "CONFIG", "ID"]
    assert row[:5] == ["http", "greet::hello", "default", "greeter", "live"]
    assert result.stderr == "Not shown, as they do not fire: 1 parked. --all says why.\n"
    assert "iii-http::on-config-change" in done("triggers", "--all"), "internal ones only then"
    everything = done("triggers", "--all", "greet")
    assert "WHY" in everything.splitlines()[0]
    assert "nobody provides the trigger type 'no-such-type'" in everything
    assert done("triggers", "--all", "--type", "no-such-type").count("\n") == 2
    assert done("triggers", "--function", "greet::echo") == "There are none.\n"


def test_triggers_as_json() -> None:
    result = run("triggers", "--json")
    assert result.exit_code == 0
    [row] = json.loads(result.stdout)["registered_triggers"]
    assert (row["trigger_type"], row["state"], row["config"]["api_path"]) == ("http", "live", "greet")
    found = json.loads(done("triggers", "--all", "--json", "no-such"))["registered_triggers"]
    assert [(row["state"], row["why"]) for row in found] == [
        ("parked", "nobody provides the trigger type 'no-such-type'")
    ]


def test_tree() -> None:
    assert [line.lstrip("│├└─ ") for line in done("tree").splitlines()].count("deadlines") == 1
    assert json.loads(done("tree", "--json"))["children"]


# -- calls ------------------------------------------------------------------------------------------------------------


def test_a_payload_from_stdin_and_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"a": [1, "\\u001b"]}')
    assert json.loads(done("t", "greet::echo", "--json", "-", text='{"b": null}')) == {"b": None}
    assert json.loads(done("t", "greet::echo", "c=x", "--json", f"@{tmp_path}/p.json")) == {"a": [1, "\x1b"], "c": "x"}


def test_an_unknown_function_is_answered_with_near_names() -> None:
    result = run("trigger", "greet::helo")
    assert (result.exit_code, result.stdout) == (1, "")
    body, _, hint = result.stderr.removeprefix("Error: ").rpartition("\nDid you mean ")
    assert json.loads(body)["code"] == "function_not_found"
    assert hint.startswith("greet::hello")


def test_an_error_of_a_function_cannot_steer_the_terminal() -> None:
    result = run("trigger", "greet::fail", "a=1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "\x1b" not in result.stderr
    body = json.loads(result.stderr.removeprefix("Error: "))
    assert body == {"code": "BROKEN", "message": "it broke\x1b[31m\nbadly", "stacktrace": "line 1\nline 2"}


def test_help_about_a_function_that_is_not_there_says_where_to_look() -> None:
    assert refused("trigger", "greet::helo", "--help") == (
        "Function 'greet::helo' is not registered. (`iii-trio functions` lists what there is.)"
    )


# -- dead letters -----------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_shown_returned_and_dropped(engine: Place) -> None:
    newest, middle, oldest = dead_letters(engine, "jobs", {"n": 1}, {"n": 2}, {"n": 3})
    assert ["jobs", "function_queue", "3"] in rows(done("dlq", "ls"))
    assert {"topic": "jobs", "broker_type": "function_queue", "message_count": 3} in json.loads(
        done("dlq", "ls", "--json")
    )
    shown = done("dlq", "show", "jobs", "--limit", "1")
    assert shown.splitlines()[0] == f"id       {newest}"
    assert "         badly\n" in shown
    assert "\x1b" not in shown
    assert [line for line in shown.splitlines() if line.startswith("error    BROKEN: it broke")]
    assert [line for line in shown.splitlines() if line.startswith("failed   ") and ", after 1 attempt, " in line]
    assert [letter["id"] for letter in json.loads(done("dlq", "show", "jobs", "--json", "--offset", "1"))] == [
        middle,
        oldest,
    ]
    assert done("dlq", "discard", "jobs", newest) == "1 message dropped from 'jobs'.\n"
    result = run("dlq", "redrive", "jobs", middle, newest)
    assert (result.exit_code, result.stdout) == (1, "1 message returned to 'jobs'.\n")
    assert result.stderr == f"Error: no dead letter of 'jobs': {newest}\n"

    async def again() -> list[str]:
        async with open_client(engine.url) as client:
            return await buried(client, "jobs", 2)

    assert set(trio.run(again)) == {middle, oldest}, "the one returned failed again"
    assert json.loads(done("dlq", "redrive", "jobs", "--json")) == {"queue": "jobs", "redriven": 2}
    trio.run(again)
    assert done("dlq", "discard", "jobs", "--all") == "2 messages dropped from 'jobs'.\n"
    assert json.loads(done("dlq", "discard", "jobs", "--all", "--json")) == {"queue": "jobs", "discarded": 0}
    assert done("dlq", "show", "jobs") == "No dead letters in 'jobs'.\n"
    assert done("dlq", "redrive", "jobs") == "0 messages returned to 'jobs'.\n"


@pytest.mark.parametrize(
    "words", [["show"], ["redrive"], ["redrive", "id"], ["discard", "id"], ["discard", "--all"]], ids=" ".join
)
def test_a_queue_that_is_not_there_is_named_with_the_one_that_was_meant(words: list[str]) -> None:
    command, *more = words
    result = run("dlq", command, "defalt", *more)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: there is no queue or topic 'defalt', did you mean 'default'? (`iii-trio dlq ls` lists them.)\n"
    )


# -- configuration ----------------------------------------------------------------------------------------------------


def test_entries_are_listed_and_described() -> None:
    found = {row[0]: row for row in rows(done("config", "list"))}
    assert found["ID"] == ["ID", "NAME", "DESCRIPTION"]
    assert {"iii-http", "iii-queue"} <= set(found)
    assert "iii-http" in {row["id"] for row in json.loads(done("config", "list", "--json"))["configurations"]}
    described = {row[0]: row for row in rows(done("config", "schema", "iii-http"))}
    assert described["default_timeout"][1] == "integer"
    assert json.loads(done("config", "schema", "iii-http", "--json"))["properties"]["port"]["maximum"] == 65535


def test_an_entry_is_set_key_by_key_or_as_a_whole_and_taken_back() -> None:
    before = json.loads(done("config", "get", "iii-http", "--json"))
    assert before["body_limit"] == 1000, "from the file"
    changed = json.loads(done("config", "set", "iii-http", "default_timeout=1234"))
    assert (changed["old_value"], changed["new_value"]["default_timeout"]) == (before, 1234)
    again = json.loads(done("config", "set", "iii-http", "body_limit=2000"))["new_value"]
    assert (again["default_timeout"], again["body_limit"]) == (1234, 2000), "the other keys stay"
    assert ["default_timeout", "1234"] in rows(done("config", "get", "iii-http"))
    whole = json.loads(done("config", "set", "iii-http", "body_limit=3000", "--json", '{"port": 0}'))["new_value"]
    assert (whole.get("default_timeout"), whole["body_limit"]) == (None, 3000), "what is not in the whole is gone"
    assert len(rows(done("config", "history", "iii-http"))) == 4
    assert len(json.loads(done("config", "history", "iii-http", "--json"))["values"]) == 3
    assert json.loads(done("config", "reset", "iii-http"))["new_value"] == before
    assert json.loads(done("config", "get", "iii-http", "--json")) == before


@pytest.mark.parametrize(
    "words", [["get"], ["set", "k=v"], ["schema"], ["reset"], ["history"]], ids=lambda words: words[0]
)
def test_an_entry_that_is_not_there(words: list[str]) -> None:
    told = refused("config", words[0], "no-such", *words[1:])
    assert told.startswith("configuration 'no-such' is not ") or told == "configuration 'no-such' not found (NOT_FOUND)"


def test_a_value_that_does_not_fit_is_refused() -> None:
    told = refused("config", "set", "iii-http", "default_timeout=never")
    assert "default_timeout" in told
    assert told.endswith("(SCHEMA_INVALID)")


def test_a_value_that_cannot_be_carried_out_is_said_to_be_stored_alone() -> None:
    result = run("config", "set", "iii-queue", 'queue_configs={"mail": {"type": "fifo"}}')
    assert result.exit_code == 1
    assert json.loads(result.stdout)["new_value"] == {"queue_configs": {"mail": {"type": "fifo"}}}
    assert result.stderr.startswith("Error: this is stored, but 'iii-queue' runs on as it was")
    done("config", "reset", "iii-queue")


def test_a_value_is_shown_with_its_placeholders() -> None:
    done("config", "set", "iii-http", "default_timeout=${NO_SUCH_VARIABLE:77}")
    assert ["default_timeout", "77"] in rows(done("config", "get", "iii-http"))
    assert (
        json.loads(done("config", "get", "iii-http", "--raw", "--json"))["default_timeout"] == "${NO_SUCH_VARIABLE:77}"
    )
    done("config", "reset", "iii-http")


# -- who is asked -----------------------------------------------------------------------------------------------------


def test_a_port_that_asks_for_a_token(engine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("", "wrong"):
        monkeypatch.setenv("III_TOKEN", token)
        told = refused("functions", "--url", engine.guarded)
        assert told.startswith(f"The engine at {engine.guarded} does not let this command in: AUTH_ERROR: ")
        assert "III_TOKEN" in told
    monkeypatch.setenv("III_TOKEN", "sesame")
    assert "greet::hello" in done("functions", "--url", engine.guarded)


def test_a_port_under_tls(engine: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert "certificate verify failed" in refused("functions", "--url", engine.encrypted)
    monkeypatch.setenv("SSL_CERT_FILE", str(engine.authority))
    assert "greet::hello" in done("functions", "--url", engine.encrypted)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dlq", "ls"], "has no queue worker: nothing there answers 'engine::queue::dlq_topics'. `iii-trio worker add"),
        (["dlq", "redrive", "q"], "has no queue worker: nothing there answers 'iii::queue::redrive'. `iii-trio worker"),
    ],
)
def test_an_engine_without_the_worker_that_would_answer(words: list[str], told: str) -> None:
    async def ask() -> Result:
        config = parse_config("workers: [{name: iii-worker-manager, config: {port: 0}}]", "config.yaml", {})
        async with open_host(config, Overrides()) as running:
            command = partial(run, *words, "--url", running.worker_url)
            return await trio.to_thread.run_sync(command)

    result = trio.run(ask)
    assert (result.exit_code, result.stdout) == (1, "")
    assert told in result.stderr


def test_names_that_the_engine_knows_are_completed() -> None:
    def completed(*words: str) -> list[str]:
        line = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        asked = {"_III_TRIO_COMPLETE": "bash_complete", **line}
        result = CliRunner().invoke(cli, [], prog_name="iii-trio", complete_var="_III_TRIO_COMPLETE", env=asked)
        return [line.partition(",")[2] for line in result.stdout.splitlines()]

    assert completed("iii-trio", "trigger", "greet::he") == ["greet::hello"]
    assert completed("iii-trio", "dlq", "show", "jo") == ["jobs"]


# -- as a process -----------------------------------------------------------------------------------------------------


def on_terminal(columns: int, *arguments: str, **environ: str) -> str:
    """What a command prints on a terminal of this width."""
    here, there = pty.openpty()
    with closing(os.fdopen(here, "rb", buffering=0)) as reader:
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        variables = {**os.environ, "TERM": "xterm-256color", **environ}
        for name in ("COLUMNS", *(() if "NO_COLOR" in environ else ("NO_COLOR",))):
            variables.pop(name, None)
        with subprocess.Popen([*COMMAND, *arguments], stdout=there, stderr=there, env=variables):
            os.close(there)
            text = b""
            while chunk := _read(reader):
                text += chunk
    return text.decode()


def _read(reader: object) -> bytes:
    try:
        return reader.read(65536)  # type: ignore[attr-defined, no-any-return]
    except OSError:  # how Linux says that nobody writes any more
        return b""


def test_a_terminal_gets_a_table_that_fits_with_colours() -> None:
    wide = on_terminal(300, "triggers", "--all", "greet")
    assert "\x1b[32mlive" in wide
    assert "\x1b[33mparked" in wide
    assert "NAMESPACE" in wide
    narrow = on_terminal(80, "triggers", "--all", "greet", NO_COLOR="1")
    assert "\x1b" not in narrow
    assert "NAMESPACE" not in narrow, "it does without what matters least"
    assert "WHY" in narrow
    assert max(map(len, narrow.splitlines())) <= 80


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tmp_path: Path) -> None:
    """`| head -1`, with a reader that is surely gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(tmp_path / "stderr", "w+") as stderr:
        status = subprocess.run([*COMMAND, "functions"], stdout=writer, stderr=stderr, check=False).returncode
        stderr.seek(0)
        assert (status, stderr.read()) == (1, "")
    os.close(writer)


def test_a_reader_of_ascii_gets_json_all_the_same() -> None:
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [*COMMAND, "trigger", "greet::echo", "name=ü"]
    assert (
        subprocess.run(command, capture_output=True, env=environ, check=True).stdout == b'{\n  "name": "\\u00fc"\n}\n'
    )


def test_ctrl_c_ends_a_command_without_a_word() -> None:
    WAITING.clear()
    command = [*COMMAND, "trigger", "greet::never"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert WAITING.wait(SECONDS)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS) == (b"", b"")
        assert process.returncode == 130


def test_ctrl_c_never_hits_between_two_checkpoints(engine: Place) -> None:
    steps: list[str] = []

    async def talk(call: Call) -> None:
        signal.raise_signal(signal.SIGINT)
        steps.append("went on")
        await call("greet::never")
        steps.append("answered")

    with pytest.raises(KeyboardInterrupt):
        hear(Target(engine.url, SECONDS), talk)
    assert steps == ["went on"]
