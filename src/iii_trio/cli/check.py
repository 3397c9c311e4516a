"""`iii-trio check`: read a configuration file as `serve` would, and start nothing."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from ..config import SETTINGS, ConfigError, EngineConfig, Entry, Problem, load_config, read_settings
from ..host.checks import check_plan, remarks
from ..host.plan import NOT_HERE, Overrides, make_plan
from .failure import FAILED, fail
from .output import show, show_json, show_table

RUNS: Final = "runs"
LEFT_OUT: Final = "not part of this release"
AGAIN: Final = "listed before"


@frozen
class Listed:
    """A worker of the configuration: what it is called, where it stands, whether it runs, what is set for it."""

    name: str
    line: int | None
    status: str
    settings: tuple[str, ...]


@frozen
class Checked:
    """What a configuration says: its workers, and remarks on what has no effect or an old spelling."""

    workers: tuple[Listed, ...]
    notes: tuple[str, ...]


@click.command(short_help="Check a configuration file; start nothing.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("-c", "--config", "path", type=click.Path(path_type=Path), help="The same as FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for a file with mistakes too.")
def check(file: Path | None, path: Path | None, as_json: bool) -> None:
    """Check the configuration FILE (default: config.yaml) without starting anything.

    Says which workers would run and which keys have no effect. A mistake is named with file, line and key, and the
    exit code is 1. Placeholders such as ${NAME} are replaced from the present environment.
    """
    if file is not None and path is not None and file != path:
        raise click.UsageError("name the file once: as FILE or with --config")
    path = file or path or Path("config.yaml")
    try:
        checked = checked_file(path)
    except ConfigErrors as refused:
        if as_json:
            problems = [_row(problem) for error in refused.errors for problem in _problems(error)]
            show_json({"file": str(path), "ok": False, "problems": problems, "workers": [], "notes": []})
            click.get_current_context().exit(FAILED)
        fail("\n".join(str(error) for error in refused.errors))
    if as_json:
        workers = [
            {"name": w.name, "line": w.line, "runs": w.status == RUNS, "settings": list(w.settings)}
            for w in checked.workers
        ]
        show_json({"file": str(path), "ok": True, "problems": [], "workers": workers, "notes": list(checked.notes)})
        return
    show(f"{path} can be used.\n")
    rows = [(w.name, w.line, w.status, ", ".join(w.settings) or "defaults") for w in checked.workers]
    show_table(("WORKER", "LINE", "STATUS", "SET IN THE FILE"), rows, empty="")
    if checked.notes:
        show("\n".join(["", "Notes:", *(f"  {note}" for note in checked.notes)]))


class ConfigErrors(Exception):
    """Everything that is wrong with a configuration."""

    def __init__(self, errors: Iterable[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__(self.errors)


def checked_file(path: Path) -> Checked:
    """What the file at `path` says. Raises `ConfigErrors` with every mistake in it."""
    try:
        config = load_config(path, os.environ)
    except ConfigError as error:
        raise ConfigErrors([error]) from None
    errors: list[ConfigError] = []
    listed = []
    for entry in config.entries:
        if entry.name in NOT_HERE and entry.listed_as is None:
            continue
        try:
            listed.append(_listed(entry))
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise ConfigErrors(errors)
    return Checked(tuple(listed), _notes(config))


def _listed(entry: Entry) -> Listed:
    if entry.name in NOT_HERE:
        return Listed(entry.label, entry.line, LEFT_OUT, ())
    cls: type[Any] | None = SETTINGS.get(entry.name)
    given = frozenset() if cls is None else read_settings(cls, entry).given
    status = RUNS if entry.instance == entry.name or entry.name == "worker-manager" else AGAIN
    return Listed(entry.label, entry.line, status, tuple(sorted(given)))


def _notes(config: EngineConfig) -> tuple[str, ...]:
    """What `serve` would remark. Raises `ConfigErrors` for what it would refuse though every block can be read."""
    try:
        plan = make_plan(config, Overrides())
        check_plan(plan, config.token)
    except ConfigError as error:
        raise ConfigErrors([error]) from None
    return (*plan.notes, *remarks(plan))


def _problems(error: ConfigError) -> tuple[Problem, ...]:
    return error.problems or (Problem(str(error)),)


def _row(problem: Problem) -> dict[str, Any]:
    at = problem.position
    return {
        "message": problem.message,
        "key": problem.key or None,
        "file": at and at.source,
        "line": at and at.line,
        "column": at and at.column,
    }
