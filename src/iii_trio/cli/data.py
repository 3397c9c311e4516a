"""`iii-trio backup`, `restore` and `export`: copies of what an engine keeps, put back, and read as JSON lines."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import trio

from ..config import ConfigError, default_config, load_config
from ..host.adopt import take_stored
from ..host.backups import BACKUP
from ..host.plan import Overrides, Plan, make_plan
from ..modules.configuration import EntryFiles
from ..protocol.errors import StoreError
from ..stores import Folder, export_jobs, export_streams, export_values, read_manifest, restore_backup
from .ask import Target, asks_engine, told_by
from .failure import fail
from .output import json_option, plural, show, show_json

DEFAULT_FILE: Final = Path("config.yaml")
SPACE: Final = "state"
STREAM_SPACES: Final = "stream/"

STORES: Final = {"state": "state", "streams": "stream", "queues": "queue"}
"""Under which name the store of each kind of data stands in configuration and backups."""
EXPORTS: Final[Mapping[str, Callable[[Path], Iterator[dict[str, Any]]]]] = {
    "state": partial(export_values, space=SPACE),
    "streams": partial(export_streams, prefix=STREAM_SPACES),
    "queues": export_jobs,
}

config_option: Final = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    help="The configuration file (default: config.yaml, if any).",
)
data_dir_option: Final = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Directory of the stores (default ./data)."
)


@click.command(short_help="Copy everything that is kept, while the engine runs.")
@click.argument("name", required=False)
@json_option
@asks_engine
def backup(name: str | None, as_json: bool, target: Target) -> None:
    """Have a running engine copy all its stores, as of one moment, into a new directory on its machine.

    The directory is called NAME, or after the time, and lies in `backups` below the data directory. The engine goes on
    serving meanwhile. `iii-trio restore` puts a backup back.
    """
    made = told_by(target, lambda call: call(BACKUP, {} if name is None else {"name": name}))
    if as_json:
        show_json(made)
    else:
        show(f"{made['directory']}: {plural(made['bytes'], 'byte')} in {plural(len(made['files']), 'file')}")


@click.command(short_help="Put a backup back; the engine must not run.")
@click.argument("directory", type=click.Path(path_type=Path))
@config_option
@data_dir_option
def restore(directory: Path, path: Path | None, data_dir: Path | None) -> None:
    """Put the backup in DIRECTORY in the place of the stores that the configuration names, and of its stored entries.

    Give it the options that the engine is started with. Every byte of the backup is checked first. What stood in its
    place is moved into a directory beside it, not deleted. Messages that were waiting when the backup was made are
    delivered again once the engine runs.
    """
    plan, entries = planned(path, data_dir)
    aside = datetime.now(UTC).strftime("replaced-%Y-%m-%dT%H-%M-%SZ")
    folders = {}
    try:
        if entries is not None:
            entries.load()
            folders["configuration"] = Folder(entries.directory, entries.files)
            if "configuration" in read_manifest(directory).folders:
                # the engine will run on the settings that come back
                trio.run(take_stored, plan, EntryFiles(directory / "configuration"))
            else:
                trio.run(take_stored, plan, entries)
        files = plan.store_files()
        manifest, moved = restore_backup(directory, files, folders=folders, aside=aside)
    except StoreError as error:
        fail(str(error))
    show(f"As of {manifest.made_at} stand:")
    for file in manifest.files:
        show(f"  {', '.join(file.names)}: {files[file.names[0]]}")
    for name in manifest.folders:
        place = folders[name].directory if name in folders else "left out, for the configuration keeps none"
        show(f"  {name}: {place}")
    for place in moved:
        show(f"What was there before is in {place}.")


@click.command(short_help="Print what is kept as JSON lines.")
@click.argument("what", type=click.Choice(["state", "streams", "queues"]))
@click.option(
    "--backup", "source", type=click.Path(path_type=Path), help="Read this backup, not the stores themselves."
)
@config_option
@data_dir_option
def export(what: str, source: Path | None, path: Path | None, data_dir: Path | None) -> None:
    """Print every state value, every item of a stream, or every waiting message and dead letter, one JSON object a line.

    Reads the files themselves, all of one moment, whether an engine runs or not.
    """
    try:
        file = _store_file(path, data_dir, STORES[what]) if source is None else _backup_file(source, STORES[what])
        if file is None:
            fail(f"The configuration keeps {what} in memory or at another engine, so there is no file to read.")
        for row in EXPORTS[what](file):
            click.echo(json.dumps(row, ensure_ascii=True, separators=(",", ":")))
    except StoreError as error:
        fail(str(error))


def _backup_file(directory: Path, store: str) -> Path:
    for file in read_manifest(directory).files:
        if store in file.names:
            return directory / file.file
    raise StoreError(f"The backup {directory} does not hold the store '{store}'.")


def _store_file(path: Path | None, data_dir: Path | None, store: str) -> Path | None:
    plan, entries = planned(path, data_dir)
    if entries is not None:
        trio.run(take_stored, plan, entries)
    return plan.store_files().get(store)


def planned(path: Path | None, data_dir: Path | None) -> tuple[Plan, EntryFiles | None]:
    """What an engine started with these options runs, and where it keeps its entries."""
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    try:
        config = default_config(os.environ) if path is None else load_config(path, os.environ)
        plan = make_plan(config, Overrides(data_dir=data_dir))
    except ConfigError as error:
        fail(str(error))
    directory = plan.entries_directory()
    return plan, None if directory is None else EntryFiles(directory.absolute(), path)
