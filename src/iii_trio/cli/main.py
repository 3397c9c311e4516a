"""The command `iii-trio`, also `python -m iii_trio`: finds the subcommand, and loads only that one."""

import errno
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import click

from ..__about__ import __version__
from ..config.problems import did_you_mean
from . import COMPLETE_VARIABLE, PROGRAM
from .failure import EXIT_CODES, INTERRUPTED, fail

SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "Run an engine": {
        "serve": "serve:serve",
        "init": "init:init",
        "check": "check:check",
        "worker": "worker:worker",
    },
    "Ask a running engine": {
        "trigger": "trigger:trigger",
        "functions": "lists:functions",
        "workers": "lists:workers",
        "triggers": "lists:triggers",
        "tree": "tree:tree",
        "dlq": "dlq:dlq",
        "config": "configuration:config",
    },
    "Keep what an engine holds": {
        "backup": "data:backup",
        "restore": "data:restore",
        "export": "data:export",
        "import": "imports:import_data",
    },
    "The command itself": {
        "completion": "complete:completion",
        "help": "main:show_help",
    },
}
"""Every command, in the order of `--help`: where it is defined."""

COMMANDS: Final = {name: place for section in SECTIONS.values() for name, place in section.items()}
ALIASES: Final = {"t": "trigger"}

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})
"""What writing the output fails with where it goes to a file on a disk that is full, or broken."""

ENVIRONMENT: Final = (
    ("III_URL", "The engine that is asked, where neither --url nor --address or --port is given."),
    ("III_TOKEN", "The token that it asks for."),
    ("SSL_CERT_FILE", "The certificates that a wss:// engine is checked with, instead of the system's."),
    ("NO_COLOR", "No colours."),
)


class Commands(click.Group):
    """The group; options of `serve` given without a command mean `serve`, as start scripts of the reference write it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `serve` in front of options that belong to it."""
        own = {"--help", "-h", "--version", "-v"}
        if args[:1] == ["--no-update-check"]:
            args = args[1:]  # there is nothing that checks, whatever the command
        completing = ctx.resilient_parsing and not args
        if not completing and (not args or (args[0].startswith("-") and args[0] not in own)):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of `--help`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """`t` is short for `trigger`."""
        place = COMMANDS.get(ALIASES.get(name, name))
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(import_module(f".{module}", __package__), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse a name that is none with the one that was meant."""
        if args[0] not in COMMANDS and args[0] not in ALIASES:
            hint = did_you_mean(args[0], COMMANDS) or "."
            raise click.UsageError(f"No such command '{args[0]}'{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by what they are for."""
        width = formatter.width - max(map(len, COMMANDS)) - 6
        for title, section in SECTIONS.items():
            with formatter.section(title):
                rows = [(name, self._about(ctx, name, width)) for name in section]
                formatter.write_dl(rows)

    def _about(self, ctx: click.Context, name: str, width: int) -> str:
        command = self.get_command(ctx, name)
        return "" if command is None else command.get_short_help_str(width)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What holds for all commands."""
        with formatter.section("Environment"):
            formatter.write_dl(list(ENVIRONMENT))
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C ends it without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-v", "--version", message="%(version)s")
def cli() -> None:
    """A structured-concurrency engine for iii workers.

    Without a command, `serve` runs. `iii-trio COMMAND --help` says more about each.
    """


@click.command("help", add_help_option=True)
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def show_help(context: click.Context, words: tuple[str, ...]) -> None:
    """Show this help, or that of a COMMAND."""
    cli.main([*words, "--help"], prog_name=context.find_root().info_name, standalone_mode=True)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. Exits with one of `EXIT_CODES`."""
    name = PROGRAM if sys.argv[0].endswith(PROGRAM) else "python -m iii_trio"
    try:
        return cli.main(arguments, prog_name=name, complete_var=COMPLETE_VARIABLE)
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        sys.stdout = None  # what it still holds cannot be written at the end either
        fail(f"the output cannot be written: {error.strerror}")
