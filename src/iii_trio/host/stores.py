"""The stores of this process: each file opened once, whenever somebody needs it, and closed after everybody has ended."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

from ..stores import SqliteStore, Store, open_memory, open_sqlite


@define(eq=False)
class Stores:
    """Made by `open_stores`. `opened`: every store there is; `kept`: those on disk, by the name they serve now."""

    nursery: trio.Nursery
    opened: dict[Path | str, Store] = field(factory=dict)
    kept: dict[str, SqliteStore] = field(factory=dict)
    _closing: trio.Event = field(factory=trio.Event)

    async def open(self, name: str, file: Path | None) -> Store:
        """The store in a file, or one in memory for `name` alone. Raises `StoreError`."""
        key = name if file is None else file
        if key not in self.opened:
            self.opened[key] = await self.nursery.start(self._hold, key, name=f"store {key}")
        store = self.opened[key]
        if isinstance(store, SqliteStore):
            self.kept[name] = store
        else:
            self.kept.pop(name, None)
        return store

    async def _hold(self, key: Path | str, *, task_status: trio.TaskStatus[Store]) -> None:
        async with open_sqlite(key) if isinstance(key, Path) else open_memory() as store:
            task_status.started(store)
            await self._closing.wait()

    def close(self) -> None:
        """Begin to close all of them; what was submitted is still written."""
        self._closing.set()


@asynccontextmanager
async def open_stores() -> AsyncIterator[Stores]:
    """Stores for the length of the block, none of them opened yet."""
    async with trio.open_nursery() as nursery:
        stores = Stores(nursery)
        try:
            yield stores
        finally:
            stores.close()
