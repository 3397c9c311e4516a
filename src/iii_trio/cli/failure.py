"""How a command ends: the table of exit codes, and the one message on stderr of a command that fails."""

import sys
from typing import Final, NoReturn

import click

FAILED: Final = 1
INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    (0, "It worked."),
    (FAILED, "It failed; stderr says why, in a message that begins with `Error:`."),
    (2, "The command line was wrong; stderr says what."),
    (INTERRUPTED, "Interrupted by Ctrl-C."),
)
"""What a command's exit code means; `--help` prints it."""


def fail(message: str) -> NoReturn:
    """End with status 1 and a message on stderr."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(FAILED)
