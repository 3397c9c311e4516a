"""How a command fails: one message on stderr, exit status 1, no traceback."""

import sys
from typing import NoReturn

import click

from ..host.children import ScriptError
from ..host.supervise import leaves
from ..protocol.errors import IIIError

EXPECTED = (IIIError, ScriptError)
"""What is raised on purpose, with a text for the user."""


def fail(message: str) -> NoReturn:
    """End with status 1 and a message on stderr."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(1)


def fail_with(error: Exception) -> NoReturn:
    """`fail` with the text of an expected error, or of all those in a group; anything else is raised again."""
    found = list(leaves(error))
    if not all(isinstance(cause, EXPECTED) for cause in found):
        raise error
    fail("; ".join(dict.fromkeys(str(cause) for cause in found)))
