"""Where `queue::define` keeps what it defines: the queue's entry of the configuration (spec/queue.md §6)."""

from collections.abc import Mapping
from typing import Any, Final

import trio
from attrs import define, evolve

from ..config import ConfigError, structure
from ..modules.configuration import ConfigurationEntry, value_read
from ..modules.configuration.entries import CONFLICT
from ..modules.queue import Kept
from ..protocol import NULL, Json
from ..protocol.errors import WireError
from .adopt import Adopted, Adoption

WORKER: Final = "queue"
QUEUES: Final = "queue_configs"
STILL_APPLYING: Final = "define_pending"
_BY: Final = "queue::define"
"""Who changed the entry, as its history tells."""


@define(eq=False)
class QueueEntry:
    """The keeper of definitions (`modules.queue.Keeper`)."""

    adoption: Adoption

    def read(self) -> Kept | None:
        """See `Keeper.read`."""
        entry = self._entry()
        if entry is None:
            return None
        filed = _queues(_object(entry.seed)) or {}
        queues = _queues(_object(entry.kept))
        return Kept(filed if queues is None else queues, filed, entry.value)

    async def write(self, kept: Kept, queues: Mapping[str, Any] | None) -> bool:
        """See `Keeper.write`."""
        adopted, entry = self._adopted(), self._entry()
        if adopted is None or entry is None or entry.value != kept.version:
            return False
        value = {**_object(entry.kept), QUEUES: queues}
        if queues is None:
            del value[QUEUES]
        new = Json.of(value)
        self._check(adopted, entry, new)
        registry = self.adoption.registry
        try:
            if value:
                await registry.set(entry.id, new, _BY, expected=entry.value)
            else:
                await registry.reset(entry.id, _BY, expected=entry.value)
        except WireError as error:
            if error.code == CONFLICT:
                return False
            raise
        if not await self.adoption.settle(adopted):
            raise WireError("queue configuration is still being applied; retry queue::define", STILL_APPLYING)
        return True

    async def ready(self) -> None:
        """See `Keeper.ready`."""
        registered = trio.Event()
        end = self.adoption.registry.tap(lambda _: registered.set() if self._entry() is not None else None)
        try:
            if self._entry() is None:
                await registered.wait()
        finally:
            end()

    def _check(self, adopted: Adopted, entry: ConfigurationEntry, new: Json) -> None:
        """Raises `WireError` when the entry holds something else that keeps it from being carried out."""
        value = value_read(evolve(entry, kept=new), self.adoption.registry.environ)
        try:
            structure(type(adopted.declared), value, summary=f"entry '{entry.id}'")
        except ConfigError as error:
            text = f"the configuration '{entry.id}' cannot be used as it is; correct it by configuration::set: {error}"
            raise WireError(text, "define_failed") from None

    def _adopted(self) -> Adopted | None:
        return self.adoption.get(WORKER)

    def _entry(self) -> ConfigurationEntry | None:
        adopted = self._adopted()
        entry = None if adopted is None else self.adoption.registry.get(adopted.id)
        return None if entry is None or entry.schema == NULL else entry


def _object(text: Json) -> dict[str, Any]:
    value = None if text.absent else text.decode()
    return value if isinstance(value, dict) else {}


def _queues(value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The named queues of a value, without keys that say nothing; None if it says nothing of queues."""
    queues = value.get(QUEUES)
    if not isinstance(queues, dict):
        return None
    return {
        name: {key: item for key, item in config.items() if item is not None} if isinstance(config, dict) else config
        for name, config in queues.items()
    }
