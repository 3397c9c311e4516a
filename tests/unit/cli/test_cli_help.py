"""The command as a stranger meets it: help of every command, wrong words, completion, no engine there."""

import os
import socket
import subprocess
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner, Result

from iii_trio import __version__
from iii_trio.cli.failure import EXIT_CODES
from iii_trio.cli.main import COMMANDS, SECTIONS, cli

NOWHERE = ["--url", "ws://127.0.0.1:1", "--timeout-ms", "5000"]


def every_command(command: click.Command = cli, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and subcommand."""
    yield words
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                yield from every_command(below, (*words, name))


ALL = list(every_command())
ASKING = [
    ["trigger", "f"],
    ["functions"],
    ["workers"],
    ["triggers"],
    ["tree"],
    ["backup"],
    ["dlq", "ls"],
    ["dlq", "show", "q"],
    ["dlq", "redrive", "q"],
    ["dlq", "redrive", "q", "id"],
    ["dlq", "discard", "q", "id"],
    ["dlq", "discard", "q", "--all"],
    ["config", "list"],
    ["config", "get", "id"],
    ["config", "set", "id", "k=v"],
    ["config", "reset", "id"],
    ["config", "history", "id"],
    ["config", "schema", "id"],
]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of this machine counts."""
    for name in [name for name in os.environ if name.startswith(("III_", "_III_"))]:
        monkeypatch.delenv(name)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="iii-trio")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(words: tuple[str, ...], option: str) -> None:
    result = run(*words, option)
    assert (result.exit_code, result.stderr) == (0, "")
    usage, _, about, *_ = result.stdout.splitlines()
    assert usage.startswith(f"Usage: {' '.join(['iii-trio', *words])}")
    assert about.startswith("  ")
    assert len(about.split()) > 2
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_and_every_command_has_a_word_of_help(words: tuple[str, ...]) -> None:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    bare = [p.opts for p in command.params if isinstance(p, click.Option) and not (p.help or p.hidden)]
    assert not bare
    if words:
        short = command.get_short_help_str(62)
        assert short
        assert not short.endswith("..."), short


def test_help_shows_every_command_once_with_exit_codes_and_variables() -> None:
    lines = run("--help").stdout.splitlines()
    for name in COMMANDS:
        assert len([line for line in lines if line.startswith(f"  {name} ")]) == 1, name
    for heading in (*SECTIONS, "Environment", "Exit codes"):
        assert f"{heading}:" in lines
    for code, _ in EXIT_CODES:
        assert [line for line in lines if line.startswith(f"  {code} ")]
    assert [line for line in lines if line.startswith("  III_TOKEN ")]


def test_help_is_also_a_command() -> None:
    assert run("help").stdout == run("--help").stdout
    assert run("help", "dlq", "show").stdout == run("dlq", "show", "--help").stdout
    assert run("help", "nothing").exit_code == 2


def test_version() -> None:
    assert run("--version").stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fnctions"], "No such command 'fnctions', did you mean 'functions'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
        (["dlq", "lst"], "No such command 'lst'."),
        (["dlq", "show"], "Missing argument 'QUEUE'."),
        (["dlq", "show", "q", "--limit", "0"], "Invalid value for '--limit'"),
        (["dlq", "discard", "q"], "name the IDs of the messages to drop, or give --all, and not both"),
        (["dlq", "discard", "q", "id", "--all"], "name the IDs of the messages to drop, or give --all, and not both"),
        (["config", "set", "id"], "nothing to set: give KEY=VALUE, or --json with the whole value"),
        (["config", "set", "id", "word"], "expected key=value, got `word`"),
        (["config", "get"], "Missing argument 'ID'."),
        (["worker", "add"], "Missing argument 'NAME'."),
        (["worker", "remove", "http"], "No such command 'remove'"),
        (["completion", "powershell"], "Invalid value for '{bash|zsh|fish}'"),
        (["functions", "--nothing"], "No such option"),
        (["tree", "--port", "0"], "Invalid value for '--port'"),
        (["trigger"], "iii trigger: missing FUNCTION_PATH."),
        (["trigger", "--function-id", "f"], "No such option"),
        (["trigger", "f", "--payload", "{}"], "No such option"),
        (["trigger", "f", "--json", "@no/such.json"], "--json: cannot read no/such.json: No such file or directory"),
        (["init", "a", "b"], "Got unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("words", ASKING, ids=" ".join)
def test_without_an_engine_every_command_says_where_it_looked_and_what_to_do(words: list[str]) -> None:
    result = run(*words, *NOWHERE)
    assert (result.exit_code, result.stdout) == (1, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: No engine answers at ws://127.0.0.1:1: cannot connect to ws://127.0.0.1:1: ")
    assert "`python -m iii_trio serve` starts one" in line
    assert "--url or III_URL" in line


def test_something_that_says_nothing_is_named_with_the_time_it_had() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"ws://127.0.0.1:{mute.getsockname()[1]}"
        result = run("functions", "--url", url, "--timeout-ms", "100")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: The engine at {url} has not answered within 0.1 s; --timeout-ms waits longer.\n"


def test_json_from_stdin_must_be_json() -> None:
    result = CliRunner().invoke(cli, ["trigger", "f", "--json", "-"], input="{")
    assert result.exit_code == 2
    assert "--json: invalid JSON on stdin" in result.stderr


# -- completion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script_of_a_shell(shell: str) -> None:
    result = run("completion", shell)
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_III_TRIO_COMPLETE={shell}_complete" in result.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=result.stdout, text=True, check=True)


def completed(*words: str, environ: dict[str, str] | None = None) -> list[str]:
    """What a shell is told for the last of these words."""
    asked = {"_III_TRIO_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(
        cli, [], prog_name="iii-trio", complete_var="_III_TRIO_COMPLETE", env={**asked, **(environ or {})}
    )
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return [line.partition(",")[2] for line in result.stdout.splitlines() if line]


def test_words_are_completed_without_an_engine() -> None:
    nobody = {"III_URL": "ws://127.0.0.1:1"}
    assert completed("iii-trio", "") == list(COMMANDS)
    assert completed("iii-trio", "wor") == ["worker", "workers"]
    assert completed("iii-trio", "dlq", "re") == ["redrive"]
    assert completed("iii-trio", "worker", "add", "qu") == ["queue"]
    assert "--ports-file" in completed("iii-trio", "--config", "c.yaml", "--po")
    assert completed("iii-trio", "trigger", "state::", environ=nobody) == []
    assert completed("iii-trio", "dlq", "show", "", environ=nobody) == []
    assert completed("iii-trio", "config", "get", "", environ=nobody) == []
