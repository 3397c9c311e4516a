"""`iii-trio serve`: run the engine, and worker scripts beside it."""

import gc
import logging
import os
from functools import partial
from pathlib import Path
from typing import NoReturn

import click
import trio

from ..__about__ import __version__
from ..config import default_config, load_config
from ..host.children import ScriptError
from ..host.compose import serve as run
from ..host.logs import LogLevelError, parse_levels, start_logging
from ..host.plan import Overrides
from ..host.signals import StopSignals
from ..host.supervise import leaves
from ..protocol.errors import IIIError
from .failure import fail
from .ports_file import PortsFile
from .starter import starter_config

log = logging.getLogger(__name__)

DEFAULT_FILE = Path("config.yaml")
EXPECTED = (IIIError, ScriptError)
"""What is raised on purpose, with a text for the user."""


def fail_with(error: Exception) -> NoReturn:
    """`fail` with the text of an expected error, or of all those in a group; anything else is raised again."""
    found = list(leaves(error))
    if not all(isinstance(cause, EXPECTED) for cause in found):
        raise error
    fail("; ".join(dict.fromkeys(str(cause) for cause in found)))


def create_config(path: Path) -> None:
    """Write the starter configuration file, unless there is a file. Ends the command if that fails."""
    try:
        with path.open("x") as file:
            file.write(starter_config())
    except FileExistsError:
        return
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
    click.echo(f"wrote {path}", err=True)


def check_level(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Refuse a level that is not understood as the usage error it is."""
    try:
        parse_levels(value)
    except LogLevelError as error:
        raise click.BadParameter(str(error)) from None
    return value


@click.command(short_help="Run the engine, and worker scripts beside it.")
@click.argument("scripts", nargs=-1)
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="The configuration file.")
@click.option("--create", is_flag=True, help="Write a starter configuration file first if there is none.")
@click.option("--defaults", "--use-default-config", is_flag=True, help="Run the default set; read no file.")
@click.option("--host", help="Listen on this address instead of the loopback addresses.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port for workers.")
@click.option("--http-port", type=click.IntRange(0, 65535), help="Port for HTTP.")
@click.option("--stream-port", type=click.IntRange(0, 65535), help="Port for subscribers of streams.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory of the stores (default ./data).")
@click.option("--reload", is_flag=True, help="Run a script again when its source changes.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    callback=check_level,
    help="A level, or filters such as iii_trio.engine=debug,info.",
)
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Lines for people, or one JSON object a line.",
)
@click.option(
    "--ports-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Write the bound ports there as JSON once all listen, and when one moves: {"worker": [host, port], "http": …}.',
)
@click.option("--no-update-check", is_flag=True, hidden=True)
def serve(
    scripts: tuple[str, ...],
    path: Path | None,
    create: bool,
    defaults: bool,
    host: str | None,
    port: int | None,
    http_port: int | None,
    stream_port: int | None,
    data_dir: Path | None,
    reload: bool,
    log_level: str,
    log_format: str,
    ports_file: Path | None,
    no_update_check: bool,
) -> None:
    """Run the engine, and SCRIPTS (.py, .mjs, .js) as supervised workers beside it.

    Without -c, config.yaml in this directory is read if there is one; otherwise the default set of built-in workers
    runs: HTTP on port 3111, streams on port 3112, state, queue and pub/sub, kept under ./data. SIGTERM and Ctrl-C let
    running calls end; a second one ends it at once.

    \b
    Examples:
      iii-trio serve worker.py --reload
      iii-trio serve -c config.yaml --log-level debug
    """
    try:
        Path.cwd()
    except FileNotFoundError:
        fail("the directory that this shell is in does not exist any more; change into another one")
    if defaults and path is not None:
        raise click.UsageError("--defaults and --config exclude each other")
    if defaults and create:
        raise click.UsageError("--defaults and --create exclude each other")
    if create:
        path = path or DEFAULT_FILE
        create_config(path)
    if path is None and not defaults and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    overrides = Overrides(host=host, port=port, http_port=http_port, stream_port=stream_port, data_dir=data_dir)
    try:
        # outermost, so that a second signal also ends a process that cannot get rid of its output
        with StopSignals() as stop, start_logging("json" if log_format == "json" else "text", log_level):
            log.info("iii-trio %s, configuration: %s", __version__, path or "the default set, no file")
            config = default_config(os.environ) if path is None else load_config(path, os.environ)
            file = None if ports_file is None else PortsFile(ports_file)
            if file is not None:
                file.forget()
            on_ready = (lambda _: None) if file is None else file.follow
            # every call makes a few objects that reference counting frees: with Python's thresholds the collector walks
            # all waiting messages again and again for nothing (measured: a third of the queue's throughput)
            gc.set_threshold(50_000, 20, 50)
            trio.run(partial(run, config, overrides, stop=stop, scripts=scripts, reload=reload, on_ready=on_ready))
            # nothing that is left needs freeing: the interpreter's last collections would walk all of it, which on a busy
            # machine keeps who waits for the end of the process waiting for a second or two
            gc.freeze()
    except (*EXPECTED, ExceptionGroup) as error:
        fail_with(error)
