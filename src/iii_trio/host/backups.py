"""The built-in worker behind `engine::backup`: copies of everything that is kept, made while the engine serves."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import trio
from attrs import define, field, frozen

from ..__about__ import __version__
from ..engine import Call, Engine, open_local
from ..modules.inputs import call_fields, object_schema
from ..protocol import Json
from ..protocol.errors import StoreError, WireError
from ..stores import Folder, Manifest, SqliteStore, write_backup

BACKUP: Final = "engine::backup"
FOLDER: Final = "backups"

INPUT_FORMAT: Final = object_schema(
    "BackupInput",
    {
        "name": {
            "type": ["string", "null"],
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
            "description": "What the backup's directory is called; the time in UTC if absent.",
        }
    },
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@frozen
class BackupStatistics:
    """Backups `made` and `failed` since the start; whether one is `running`."""

    made: int
    failed: int
    running: bool


@define(eq=False)
class BackupModule:
    """Serves `engine::backup`. `stores` by name; those in memory are not among them. the files of `folders` go along.

    Backups go to directories below `directory` and nowhere else, for whoever may call a function of this engine is not
    therefore to choose which files of its machine are written.
    """

    directory: Path
    stores: Mapping[str, SqliteStore]
    folders: Mapping[str, Folder]
    _made: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _running: bool = field(default=False, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; a backup that is being made then is given up, and nothing of it is left."""
        async with open_local(core, "backups") as peer:
            peer.register(
                BACKUP,
                partial(self._backup, core),
                task=True,
                description="Copy all stores, as of one moment, into a new directory on the engine's machine",
                request_format=INPUT_FORMAT,
            )
            task_status.started()
            await trio.sleep_forever()

    async def _backup(self, core: Engine, call: Call, data: Json) -> Json:
        """`{name?}` → `{directory, made_at, bytes, files: [{stores, file, bytes}]}`; errors `backup_failed`."""
        now = datetime.fromtimestamp(core.clock.wall(), UTC)
        name = call_fields(call, data, optional=True).text_or_none("name")
        if name is None:
            name = now.strftime("%Y-%m-%dT%H-%M-%SZ")
        elif not _NAME.fullmatch(name):
            text = f"{name!r} is no name for a backup: up to 100 letters, digits, dots, underscores and hyphens"
            raise WireError(text, "backup_failed")
        if self._running:
            raise WireError("A backup is being made already; try again when it is done", "backup_failed")
        self._running = True
        try:
            manifest = await self._write(self.directory / name, now)
        except StoreError as error:
            self._failed += 1
            raise WireError(str(error), "backup_failed") from error
        finally:
            self._running = False
        self._made += 1
        return Json.of(_described(self.directory / name, manifest))

    async def _write(self, directory: Path, now: datetime) -> Manifest:
        taken = []
        try:
            snapshots = {}
            by_store = {}
            for name, store in self.stores.items():  # no checkpoint in here: it is one moment
                if id(store) not in by_store:
                    by_store[id(store)] = store.snapshot()
                    taken.append(by_store[id(store)])
                snapshots[name] = by_store[id(store)]
            return await trio.to_thread.run_sync(
                partial(
                    write_backup,
                    directory,
                    snapshots,
                    folders=self.folders,
                    made_at=now.isoformat(timespec="seconds"),
                    release=__version__,
                    keep_on=trio.from_thread.check_cancelled,
                )
            )
        finally:
            for snapshot in taken:
                snapshot.close()

    def statistics(self) -> BackupStatistics:
        """A frozen picture."""
        return BackupStatistics(self._made, self._failed, self._running)


def _described(directory: Path, manifest: Manifest) -> dict[str, object]:
    files = [{"stores": list(file.names), "file": file.file, "bytes": file.bytes} for file in manifest.files]
    return {
        "directory": str(directory.absolute()),
        "made_at": manifest.made_at,
        "bytes": sum(file.bytes for file in manifest.files),
        "files": files,
    }
