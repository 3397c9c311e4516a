"""`serve` before there is an event loop: what cannot be run ends in one line on stderr, with the right status."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from iii_trio import __version__
from iii_trio.cli import serve as command
from iii_trio.cli.main import cli


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of this machine counts, and no variable."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("III_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def quiet_loggers() -> Iterator[None]:
    """What a command sets on loggers, it takes back."""
    yield
    assert logging.getLogger("iii_trio").level == logging.NOTSET


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def refused(*arguments: str) -> str:
    """The one line of a command that ends with status 1."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0].removeprefix("Error: ")


def misused(*arguments: str) -> str:
    """The message of a usage error."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "workers:\n  - name: iii-http\n    config:\n      port: many\n",
            (
                "failed to create worker 'iii-http': config.yaml:4:13: port: "
                "expected a whole number, but found the text 'many'"
            ),
        ),
        (
            "workers:\n  - name: iii-http\n    config:\n      prot: 1\n",
            "failed to create worker 'iii-http': config.yaml:4:7: prot: unknown key, did you mean 'port'? Known keys: ",
        ),
        (
            "wokers: []\n",
            "Failed to parse config file 'config.yaml': config.yaml:1:1: wokers: unknown key, did you mean",
        ),
        ("workers:\n  - name: nobody\n", "Failed to parse config file 'config.yaml': config.yaml:2:11: unknown worker"),
        ("workers: [\n", "Failed to parse config file 'config.yaml': config.yaml:2:1: "),
        (
            "data_dir: ${NOWHERE_TO_BE_FOUND}\n",
            (
                "Failed to parse config file 'config.yaml': config.yaml:1:11: "
                "Environment variable 'NOWHERE_TO_BE_FOUND' not set and no default provided"
            ),
        ),
        (
            "workers:\n  - name: iii-http\n    config: {middleware: [{}]}\n",
            "failed to create worker 'iii-http': config.yaml:3:27: middleware[0]: the key 'function_id' is required",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [["serve", "-c", "config.yaml"], ["--config", "config.yaml"], ["serve"], []])
def test_a_mistake_in_the_file_is_one_line_that_names_file_line_and_key(
    text: str, message: str, arguments: list[str]
) -> None:
    Path("config.yaml").write_text(text)
    assert refused(*arguments).startswith(message)


def test_a_file_that_is_not_there() -> None:
    assert refused("-c", "missing.yaml").startswith("Config file not found: 'missing.yaml'.")


def test_several_mistakes_are_told_at_once() -> None:
    Path("config.yaml").write_text("workers:\n  - name: iii-http\n    config: {port: x, host: 7}\n")
    result = run("serve")
    assert result.exit_code == 1
    first, *others = result.stderr.splitlines()
    assert first == "Error: failed to create worker 'iii-http':"
    assert [line.split(": ")[:2] for line in others] == [
        ["  config.yaml:3:20", "port"],
        ["  config.yaml:3:29", "host"],
    ]


def test_scripts_are_checked_before_anything_starts() -> None:
    assert refused("serve", "worker.rb", "gone.py") == (
        "cannot run worker.rb: not a kind of worker script that can be run here; use .py, .mjs or .js; "
        "gone.py: no such file"
    )
    assert not Path("data").exists()


def test_a_taken_port_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        message = refused("serve", "--http-port", "0", "--stream-port", "0", "--port", port)
        assert message.startswith(f"address 127.0.0.1:{port} is already in use (the worker port)")
        message = refused("serve", "--port", "0", "--stream-port", "0", "--http-port", port)
        assert message.startswith(
            f"failed to initialize worker 'http': address 127.0.0.1:{port} is already in use (`port` of the http worker)"
        )


def test_a_data_directory_that_cannot_be_used_is_one_line() -> None:
    Path("data").write_text("a file")
    assert str(Path("data").absolute()) in refused("serve", "--port", "0", "--http-port", "0", "--stream-port", "0")


def test_a_ports_file_that_cannot_be_written_is_one_line() -> None:
    """It is found out before anything starts, where that can be, and undone otherwise."""
    Path("file").write_text("")
    message = "the ports file file/ports.json cannot be written: Not a directory"
    assert (
        refused("serve", "--port", "0", "--http-port", "0", "--stream-port", "0", "--ports-file", "file/ports.json")
        == message
    )
    message = "the ports file no/where.json cannot be written: No such file or directory"
    assert (
        refused("serve", "--port", "0", "--http-port", "0", "--stream-port", "0", "--ports-file", "no/where.json")
        == message
    )


def test_an_old_ports_file_does_not_outlive_a_failed_start() -> None:
    Path("ports.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(
            "serve",
            "--http-port",
            "0",
            "--stream-port",
            "0",
            "--port",
            str(taken.getsockname()[1]),
            "--ports-file",
            "ports.json",
        )
    assert not Path("ports.json").exists()


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise ExceptionGroup("", [KeyError("a bug")])

    monkeypatch.setattr(command, "run", broken)
    result = run("serve")
    assert result.exit_code == 1
    assert isinstance(result.exception, ExceptionGroup)
    assert not result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--log-level", "loud"], "log level 'loud' is not understood: use one of trace, debug, info"),
        (["serve", "--log-format", "xml"], "'xml' is not one of 'text', 'json'"),
        (["serve", "--port", "70000"], "70000 is not in the range 0<=x<=65535"),
        (["serve", "--defaults", "-c", "config.yaml"], "--defaults and --config exclude each other"),
        (["serve", "--nonsense"], "No such option '--nonsense'"),
        (["--nonsense"], "No such option '--nonsense'"),
        (["sreve"], "No such command 'sreve'"),
        (["trigger"], "iii trigger: missing FUNCTION_PATH. Try: `iii trigger <fn-path> [args]`"),
        (["trigger", "f", "--payload", "{}"], "No such option '--payload'"),
        (["trigger", "f", "--function-id", "f"], "No such option '--function-id'"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    assert message in misused(*arguments)


@pytest.mark.parametrize("option", ["-v", "--version"])
def test_the_version_is_all_that_is_printed(option: str) -> None:
    result = run(option)
    assert (result.exit_code, result.output) == (0, f"{__version__}\n")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["serve", "--help"], ["trigger", "-h"], ["t", "--help"], ["tree", "--help"]]
)
def test_help(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


@pytest.mark.parametrize(
    ("arguments", "served"),
    [
        ([], []),
        (["--config", "x"], ["--config", "x"]),
        (["-c", "x", "--port", "1"], ["-c", "x", "--port", "1"]),
        (["--no-update-check"], []),
        (["--no-update-check", "-c", "x"], ["-c", "x"]),
        (["--use-default-config"], ["--use-default-config"]),
        (["--defaults", "a.py", "b.mjs"], ["--defaults", "a.py", "b.mjs"]),
    ],
)
def test_options_alone_mean_serve(monkeypatch: pytest.MonkeyPatch, arguments: list[str], served: list[str]) -> None:
    given: list[dict[str, Any]] = []
    for words in (arguments, ["serve", *served]):
        monkeypatch.setattr(command.serve, "callback", lambda **options: given.append(options))
        assert run(*words).exit_code == 0
    assert given[0] == given[1]
