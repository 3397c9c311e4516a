"""`iii-trio serve`: run the engine, and worker scripts beside it."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import click
import trio

from ..config import default_config, load_config
from ..host.children import ScriptError
from ..host.compose import Overrides, Running
from ..host.compose import serve as run
from ..host.logs import start_logging
from ..protocol.errors import ConfigError, StoreError

log = logging.getLogger(__name__)

DEFAULT_FILE = Path("config.yaml")


def fail(message: str) -> NoReturn:
    """End with status 1 and a message on stderr."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(1)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions inside a group, however deep."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def write_ports(path: Path, running: Running) -> None:
    """Write the file in one step: whoever sees it sees all of it."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(running.ports()) + "\n")
    temporary.replace(path)
    log.info("ports are written to %s", path)


@click.command()
@click.argument("scripts", nargs=-1)
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="The configuration file.")
@click.option("--defaults", "--use-default-config", is_flag=True, help="Run the default set; read no file.")
@click.option("--host", help="Listen on this address instead of the loopback addresses.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port for workers.")
@click.option("--http-port", type=click.IntRange(0, 65535), help="Port for HTTP.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Directory of the stores (default ./data).")
@click.option("--reload", is_flag=True, help="Run a script again when its source changes.")
@click.option(
    "--log-level", default="info", show_default=True, help="A level, or filters such as iii_trio.engine=debug."
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--ports-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Write the bound ports there as JSON once all listen: {"worker": [host, port], "http": [host, port]}.',
)
@click.option("--no-update-check", is_flag=True, hidden=True)
def serve(
    scripts: tuple[str, ...],
    path: Path | None,
    defaults: bool,
    host: str | None,
    port: int | None,
    http_port: int | None,
    data_dir: Path | None,
    reload: bool,
    log_level: str,
    log_format: str,
    ports_file: Path | None,
    no_update_check: bool,
) -> None:
    """Run the engine, and SCRIPTS (.py, .mjs, .js) as supervised workers beside it.

    Without -c, config.yaml in this directory is read if there is one; otherwise the default set of built-in workers
    runs: HTTP on port 3111, state, queue and pub/sub, kept under ./data.
    """
    if defaults and path is not None:
        raise click.UsageError("--defaults and --config exclude each other")
    if path is None and not defaults and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    try:
        with start_logging("json" if log_format == "json" else "text", log_level):
            config = default_config(os.environ) if path is None else load_config(path, os.environ)
            log.info("configuration: %s", path or "the default set, no file")
            overrides = Overrides(host=host, port=port, http_port=http_port, data_dir=data_dir)

            async def main() -> None:
                async with trio.open_nursery() as nursery:
                    running = await nursery.start(
                        partial(run, config, overrides, scripts=scripts, reload=reload), name="serve"
                    )
                    if ports_file is not None:
                        write_ports(ports_file, running)

            trio.run(main)
    except* (ConfigError, StoreError, ScriptError, ValueError) as group:
        unexpected = [e for e in leaves(group) if not isinstance(e, (ConfigError, StoreError, ScriptError))]
        if unexpected:
            raise
        fail("; ".join(dict.fromkeys(str(error) for error in leaves(group))))
