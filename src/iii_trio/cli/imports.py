"""`iii-trio import`: state and streams from the files of the reference engine into the stores of this one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import trio

from ..host.adopt import take_stored
from ..protocol.errors import StoreError
from ..stores import Entry, Existing, Imported, import_values
from ..stores.reference_files import STREAM, SUFFIX, Index, Reading, ambiguous, read_directory, split_stream
from .data import SPACE, STREAM_SPACES, config_option, data_dir_option, planned
from .failure import fail
from .output import clean, plural, show, show_json

SHOWN: Final = 20
"""Malformed files that are named one by one."""


@click.command("import", short_help="Take over the state and streams of a reference engine.")
@click.argument("what", type=click.Choice(["state", "streams"]))
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--overwrite", "existing", flag_value="overwrite", help="Replace values that are here already.")
@click.option("--keep", "existing", flag_value="keep", help="Leave values that are here already as they are.")
@click.option("--skip-malformed", is_flag=True, help="Leave out files that cannot be read, and import the others.")
@click.option(
    "--stream", "streams", multiple=True, metavar="NAME", help="A stream of this name exists; for names with colons."
)
@click.option("--all-state", is_flag=True, help="With state: scopes called stream:… are state, too.")
@click.option("--dry-run", is_flag=True, help="Change nothing, say what would be imported.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON document.")
@config_option
@data_dir_option
def import_data(
    what: str,
    directory: Path,
    existing: str | None,
    skip_malformed: bool,
    streams: tuple[str, ...],
    all_state: bool,
    dry_run: bool,
    as_json: bool,
    path: Path | None,
    data_dir: Path | None,
) -> None:
    """Import the files of a reference engine's DIRECTORY (its `file_path`) into the stores that the configuration names.

    Neither engine may run. All of it is imported, or nothing: not if a file cannot be read, nor if a key is here already.
    Older reference engines keep state and streams in one directory; `import state` then takes both, and `import streams`
    the streams alone. The directory itself is left as it is.
    """
    try:
        reading = read_directory(directory)
        if reading.is_empty():
            fail(
                f"{directory} holds no file of a reference engine (NAME{SUFFIX}); give its `file_path`, which is a directory."
            )
        state, found = _parted(reading, what, all_state)
        malformed = [*reading.malformed, *ambiguous(found, streams)]
        if malformed and not skip_malformed:
            fail(
                f"Nothing was imported, for {plural(len(malformed), 'file')} cannot be taken over:\n{_named(malformed)}"
            )
        left_out = {file for file, _ in malformed}
        entries = {
            "state": [Entry(SPACE, index.name, key, value) for index in state for key, value in index.items],
            "stream": [entry for index in found if index.file not in left_out for entry in _items(index, streams)],
        }
        stores = _stores(path, data_dir, {name for name, some in entries.items() if some})
        wanted = {stores[name]: some for name, some in entries.items() if some}
        counts = import_values(wanted, Existing(existing or "refuse"), dry_run=dry_run)
    except StoreError as error:
        fail(str(error))
    nothing = Imported(0, 0)
    by_store = {name: counts[stores[name]] if some else nothing for name, some in entries.items()}
    if as_json:
        show_json(
            {
                "dry_run": dry_run,
                "state": _counted(by_store["state"], existing),
                "streams": _counted(by_store["stream"], existing),
                "malformed": [{"file": str(file), "problem": why} for file, why in malformed],
                "queue_files": reading.queue_files,
            }
        )
        return
    for name, said in (("state", "state value"), ("stream", "stream item")):
        show(_sentence(by_store[name], said, existing, dry_run))
    if malformed:
        show(f"Left out, for they cannot be taken over:\n{_named(malformed)}")
    if reading.queue_files:
        show(f"Left out: {plural(reading.queue_files, 'file')} of a queue.")


def _parted(reading: Reading, what: str, all_state: bool) -> tuple[list[Index], list[Index]]:
    """The indexes that are scopes, and those that are groups of streams."""
    if what == "state" and all_state:
        return list(reading.indexes), []
    streams = [index for index in reading.indexes if index.name.startswith(STREAM)]
    return [] if what == "streams" else [index for index in reading.indexes if index not in streams], streams


def _items(index: Index, streams: Sequence[str]) -> list[Entry]:
    ((stream, group),) = split_stream(index.name, streams)
    return [Entry(STREAM_SPACES + stream, group, key, value) for key, value in index.items]


def _stores(path: Path | None, data_dir: Path | None, names: set[str]) -> dict[str, Path]:
    """The files of the stores of these names, as an engine with these options opens them."""
    plan, entries = planned(path, data_dir)
    if entries is not None:
        trio.run(take_stored, plan, entries)
    files = plan.store_files()
    missing = sorted(names - files.keys())
    if missing:
        fail(f"The configuration keeps no {' and no '.join(missing)} in files of this engine; nothing was imported.")
    return files


def _counted(counts: Imported, existing: str | None) -> dict[str, int]:
    there = {"overwritten": 0, "kept": 0}
    there["kept" if existing == "keep" else "overwritten"] = counts.existing
    return {"new": counts.new, **there}


def _sentence(counts: Imported, said: str, existing: str | None, dry_run: bool) -> str:
    done = "would be imported" if dry_run else "imported"
    there = f", {counts.existing} {'kept' if existing == 'keep' else 'overwritten'}" if counts.existing else ""
    return f"{plural(counts.new, f'new {said}')} {done}{there}"


def _named(malformed: Sequence[tuple[Path, str]]) -> str:
    lines = [f"  {clean(file)}: {clean(why)}" for file, why in malformed[:SHOWN]]
    more = len(malformed) - SHOWN
    return "\n".join([*lines, *([f"  and {more} more"] if more > 0 else [])])
