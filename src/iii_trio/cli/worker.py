"""`iii-trio worker add`: list a built-in worker in the configuration file."""

import os
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from ..config import ConfigError, WorkerName, parse_config
from ..config.names import BY_SPELLING, EXTERNAL, WORKERS
from ..config.problems import did_you_mean
from ..host.plan import NOT_HERE
from .edit import NotEditable, add_entry
from .failure import fail
from .starter import short_name, starter_config

WHEN: Final = "An engine that runs on this file starts it now; others do at their next start."


def _names(_context: click.Context, _parameter: click.Parameter, beginning: str) -> list[CompletionItem]:
    names = [short_name(worker) for worker in WORKERS if worker.canonical not in NOT_HERE]
    return [CompletionItem(name) for name in names if name.startswith(beginning)]


@click.group(short_help="Add built-in workers to the configuration file.")
def worker() -> None:
    """Built-in workers in the configuration file."""


@worker.command()
@click.argument("name", shell_complete=_names)
@click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("config.yaml"),
    show_default=True,
    help="The configuration file.",
)
def add(name: str, path: Path) -> None:
    """Add the built-in worker NAME to the configuration file.

    Nothing else in the file changes. Without a file, one with the default set of workers is written first, since that
    is what runs without a file. A worker that is listed already stays as it is.
    """
    wanted = _worker(name)
    if name == wanted.legacy_class:
        name = short_name(wanted)
    existed = path.exists()
    try:
        text = path.read_bytes().decode() if existed else starter_config()
        config = parse_config(text, str(path), os.environ)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {path}: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8'}")
    except ConfigError as error:
        fail(str(error))
    listed = next((entry for entry in config.find(wanted.canonical) if entry.listed_as is not None), None)
    if listed is not None and existed:
        click.echo(f"{path}:{listed.line}: '{listed.listed_as}' is listed already")
        return
    try:
        new = text if listed is not None else add_entry(text, str(path), wanted, name)
        _replace(path, new)
    except NotEditable as error:
        fail(f"{path} cannot be edited: {error}. Add `- name: {name}` under `workers:` yourself.")
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
    line = next(e.line for e in parse_config(new, str(path), os.environ).find(wanted.canonical) if e.listed_as)
    made = "" if existed else ", in a new file with the default set"
    click.echo(f"{path}:{line}: '{name}' added{made}. {WHEN}")


def _worker(name: str) -> WorkerName:
    """The built-in worker of this name; ends the command if there is none that can run."""
    found = BY_SPELLING.get(name)
    if found is None and name in EXTERNAL:
        fail(f"'{name}' is an external program; this engine does not run it")
    if found is None:
        names = ", ".join(short_name(worker) for worker in WORKERS if worker.canonical not in NOT_HERE)
        hint = did_you_mean(name, BY_SPELLING) or "."
        fail(
            f"'{name}' is not a built-in worker{hint} Installing others is not supported: workers of your own connect "
            f"by themselves. Built in are: {names}"
        )
    if found.canonical in NOT_HERE:
        fail(f"'{name}' is not part of this release")
    return found


def _replace(path: Path, text: str) -> None:
    """Write a file in one step, keeping its permissions; a link stays a link."""
    real = path.resolve()
    temporary = real.with_name(real.name + ".new")
    with temporary.open("wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    if real.exists():
        temporary.chmod(real.stat().st_mode)
    temporary.replace(real)
