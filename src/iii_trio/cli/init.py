"""`iii-trio init`: the files of a new project, written offline (spec/pubsub-cron-config-cli.md §8.2, §8.4)."""

import uuid
from pathlib import Path
from typing import Final

import click

from .failure import fail
from .starter import HELLO, IGNORED, starter_config

MARK: Final = Path(".iii/project.ini")
"""What says that a directory is a project already."""


@click.command(short_help="Write a starter config.yaml and a hello worker.")
@click.argument("directory", default=".", type=click.Path(path_type=Path, file_okay=False))
@click.option("--allow-non-empty", is_flag=True, help="Also in a directory with other files in it.")
def init(directory: Path, allow_non_empty: bool) -> None:
    """Write config.yaml and a hello worker into DIRECTORY (default: this one).

    The directory is made if it is missing, and must be empty or a project already. No existing file is ever changed.

    \b
    Then:
      cd DIRECTORY
      iii-trio serve worker.py
      curl http://localhost:3111/hello
    """
    try:
        written = write_project(directory, allow_non_empty=allow_non_empty)
    except FileExistsError:
        fail(f"{directory} is not empty; name another directory, or give --allow-non-empty (no file is overwritten)")
    except OSError as error:
        fail(f"cannot write {error.filename or directory}: {error.strerror}")
    if not written:
        click.echo(f"{directory}: everything is there already", err=True)
        return
    for name in written:
        click.echo(f"wrote {directory / name}", err=True)
    steps = ["iii-trio serve worker.py", "curl http://localhost:3111/hello"]
    if directory.resolve() != Path.cwd():
        steps.insert(0, f"cd {directory}")
    click.echo("\n".join(["Next:", *(f"  {step}" for step in steps)]), err=True)


def write_project(directory: Path, *, allow_non_empty: bool = False) -> list[Path]:
    """Write what is missing of a project; the files written, in order.

    Raises `FileExistsError` for a directory with files in it, dotfiles aside, that is no project, and `OSError`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    others = [path for path in directory.iterdir() if not path.name.startswith(".")]
    if others and not allow_non_empty and not (directory / MARK).exists():
        raise FileExistsError
    project = f"[project]\nproject_id={uuid.uuid4()}\nproject_name={directory.resolve().name}\nsource=init\n"
    files = {
        Path("config.yaml"): starter_config(),
        Path("worker.py"): HELLO,
        Path(".gitignore"): IGNORED,
        MARK: project,
    }
    return [name for name, text in files.items() if _write_new(directory / name, text)]


def _write_new(path: Path, text: str) -> bool:
    """Write a file that is not there; whether it was written."""
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
