"""The command `iii-trio`, also `python -m iii_trio`: finds the subcommand."""

import sys
from typing import Any

import click

from ..__about__ import __version__
from .ask import tree, trigger
from .serve import serve


class Commands(click.Group):
    """The group; options of `serve` given without a command mean `serve`, as start scripts of the reference write it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `serve` in front of options that belong to it."""
        own = {"--help", "-h", "--version", "-v"}
        if args[:1] == ["--no-update-check"]:
            args = args[1:]  # there is nothing that checks, whatever the command
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """`t` is short for `trigger`."""
        return super().get_command(ctx, {"t": "trigger"}.get(name, name))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-v", "--version", message="%(version)s")
def cli() -> None:
    """A structured-concurrency engine for iii workers.

    Without a command, `serve` runs.
    """


for command in (serve, trigger, tree):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. Exits 0, or 1 after a run-time error, or 2 after a usage error."""
    return cli.main(arguments, prog_name="iii-trio" if sys.argv[0].endswith("iii-trio") else "python -m iii_trio")
