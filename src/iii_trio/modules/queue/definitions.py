"""Named queues that are defined at runtime by `queue::define`, and outlive a restart (spec/queue.md §6).

They are kept in the queue's entry of the configuration, beside what else is set there, by compare and set: whoever
looks at the entry sees them, and whoever changes it may change or remove them. Where nobody keeps entries on disk they
are notes in the log instead, and stand before the settings until these change. Notes that are found when there is an
entry move into it.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import trio
from attrs import define, field, frozen

from ...config import ConfigError, Problem, QueueModuleSettings, QueueSettings, structure
from ...protocol import Json, JsonError, errors
from ...protocol.errors import StoreError, WireError
from ...stores import Done, JobLog, Note, OnDone, Result
from ...stores.waiting import settle

log = logging.getLogger(__name__)

KIND: Final = "queue"
"""The kind of note that holds a definition: `name` is the queue's, `value` the JSON text of its settings."""

DEFINE_FAILED: Final = "define_failed"
DEFINE_CONFLICT: Final = "define_conflict"
TRIES: Final = 5
"""How often an entry is read again that others change at the same time."""


@frozen
class Kept:
    """The named queues in the entry as they are written there, and those of the config file; `version` is which entry."""

    queues: Mapping[str, Any]
    filed: Mapping[str, Any]
    version: object


class Unchanged:
    """Type of `UNCHANGED`."""


UNCHANGED: Final = Unchanged()


class Keeper(Protocol):
    """The queue's entry of the configuration; the host gives it, where entries are kept on disk."""

    def read(self) -> Kept | None:
        """What the entry says now; None while there is none."""

    async def write(self, kept: Kept, queues: Mapping[str, Any] | None) -> bool:
        """Let the entry have these named queues, or none of its own (None), and carry that out.

        False, with nothing changed, if it is not what it was when `kept` was read. Raises `WireError` when it cannot be
        written, or is written and not in force yet.
        """

    async def ready(self) -> None:
        """Wait until there is an entry."""


def read_definition(name: str, config: Any) -> QueueSettings:
    """The settings of a queue from a JSON value, checked as in a config file. Raises `WireError`, code `enqueue_error`."""
    try:
        read = structure(QueueModuleSettings, {"queue_configs": {name: {} if config is None else config}})
    except ConfigError as error:
        raise WireError("; ".join(_text(problem) for problem in error.problems), errors.ENQUEUE_ERROR) from None
    return read.settings.queue_configs[name]


def _text(problem: Problem) -> str:
    """What is wrong, after the key it is about where the text does not name the queue itself."""
    key = problem.key.rpartition(".")[2]
    return problem.message if not key or "queue" in problem.message.lower() else f"{key}: {problem.message}"


@define(eq=False)
class Definitions:
    """The definitions that stand in the log are `queues`; `on_change` is called when these have changed, on disk too.

    `current` tells the settings that are in force for a name.
    """

    _log: JobLog
    _on_change: Callable[[], None]
    _current: Callable[[str], QueueSettings | None]
    _keeper: Keeper | None = None
    queues: dict[str, QueueSettings] = field(factory=dict, init=False)
    _written: dict[str, Any] = field(factory=dict, init=False)
    """The same, as they were written."""
    _busy: trio.Lock = field(factory=trio.Lock, init=False)

    # -- what others ask for ------------------------------------------------------------------------------------------

    async def define(self, name: str, config: Any) -> bool:
        """Define a queue or change it; False if it is like that already. It is on disk and in force on return.

        Raises `WireError` with the texts of §3 for settings that do not do, with those of §6 when others change the
        entry at the same time, and `StoreError`.
        """
        settings = read_definition(name, config)
        given = _given(config)
        if _has_placeholder(given):
            text = f"queue '{name}': settings of queue::define are values; ${{…}} is read in the configuration only"
            raise WireError(text, errors.ENQUEUE_ERROR)
        async with self._busy:
            if self._current(name) == settings:
                return False
            if self._keeper is None or self._keeper.read() is None:
                await self._note(name, given, settings)
                return True
            await self._keep(self._keeper, name, partial(_with, name, given), "defining", "define")
            if name in self._written:
                await self._forget(name)
            if self._current(name) != settings:
                raise _changed(name, "defining", "define")
            return True

    async def undefine(self, name: str) -> bool:
        """Take a definition back; False if there was none. What the config file says holds again.

        Raises as `define` does.
        """
        async with self._busy:
            noted = await self._forget(name)
            if self._keeper is None or self._keeper.read() is None:
                return noted
            return await self._keep(self._keeper, name, partial(_without, name), "undefining", "undefine") or noted

    # -- the log ------------------------------------------------------------------------------------------------------

    def recall(self, note: Note) -> None:
        """A note that stood in the log at the start; one that is no definition this release understands stays there."""
        if note.kind != KIND:
            return
        try:
            config = Json(note.value).decode()
            self.queues[note.name] = read_definition(note.name, config)
            self._written[note.name] = _given(config)
        except (WireError, JsonError) as error:
            log.error("the queue '%s' was defined in a way that this release does not take: %s", note.name, error)

    def drop(self, name: str, on_done: OnDone[bool]) -> None:
        """Take a note out of the log; answers whether there was one."""

        def written(result: Result[bool]) -> None:
            if isinstance(result, Done):
                self.queues.pop(name, None)
                self._written.pop(name, None)
                self._on_change()
            on_done(result)

        self._log.note(KIND, name, None, written)

    async def move(self) -> None:
        """Once there is an entry, move the definitions of the log into it; what cannot be moved stays in force."""
        keeper = self._keeper
        if keeper is None or not self._written:
            return
        await keeper.ready()
        async with self._busy:
            for name, config in list(self._written.items()):
                if _has_placeholder(config):
                    continue
                try:
                    await self._keep(keeper, name, partial(_with, name, config), "moving", "define")
                    await self._forget(name)
                except (WireError, StoreError) as error:
                    log.warning("the definition of queue '%s' stays in the queue's store: %s", name, error)

    async def _note(self, name: str, given: Mapping[str, Any], settings: QueueSettings) -> None:
        def submit(on_done: OnDone[bool]) -> None:
            def written(result: Result[bool]) -> None:
                if isinstance(result, Done):
                    self.queues[name] = settings
                    self._written[name] = given
                    self._on_change()
                on_done(result)

            self._log.note(KIND, name, Json.of(given).raw, written)

        await settle(submit)

    async def _forget(self, name: str) -> bool:
        return await settle(lambda done: self.drop(name, done))

    # -- the entry ----------------------------------------------------------------------------------------------------

    async def _keep(
        self,
        keeper: Keeper,
        name: str,
        change: Callable[[Kept], Mapping[str, Any] | Unchanged | None],
        doing: str,
        function: str,
    ) -> bool:
        """Change the queues of the entry, once more when others changed something else in it meanwhile.

        False if `change` leaves them as they are. Raises `WireError` when it is this queue that others change.
        """
        before: Any = None
        for number in range(TRIES):
            kept = keeper.read()
            if kept is None:
                break
            now = kept.queues.get(name)
            if number and now != before:
                break
            before, queues = now, change(kept)
            if isinstance(queues, Unchanged):
                return False
            if await keeper.write(kept, queues):
                return True
        raise _changed(name, doing, function)


def _with(name: str, config: Any, kept: Kept) -> Mapping[str, Any]:
    """The queues of an entry, one of them like that; written also if they are, for it may not be in force."""
    return {**kept.queues, name: config}


def _without(name: str, kept: Kept) -> Mapping[str, Any] | Unchanged | None:
    """The queues of an entry, one of them as the config file has it; None when all of them are."""
    queues = {other: config for other, config in kept.queues.items() if other != name}
    if name in kept.filed:
        queues[name] = kept.filed[name]
    if queues == kept.queues:
        return UNCHANGED
    return None if queues == kept.filed else queues


def _given(config: Any) -> dict[str, Any]:
    """The settings that somebody gave; null is the same as nothing."""
    return {key: value for key, value in (config or {}).items() if value is not None}


def _has_placeholder(given: Mapping[str, Any]) -> bool:
    return any(isinstance(value, str) and "${" in value for value in given.values())


def _changed(name: str, doing: str, function: str) -> WireError:
    return WireError(f"queue configuration changed while {doing} '{name}'; retry queue::{function}", DEFINE_CONFLICT)
