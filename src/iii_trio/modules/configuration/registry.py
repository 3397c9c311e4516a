"""The registry of entries: one writer at a time, on disk first, then in memory, then told (spec/pubsub-cron-config-cli.md §4).

It outlives the module that serves it: the host reads from it what modules run on before anything else is started, and a
configuration module that is started again finds everything as it was.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import trio
from attrs import define, evolve, field, frozen

from ...config.templates import expand
from ...protocol import ABSENT, NULL, Json
from ...protocol.errors import StoreError, WireError, shorten
from ...protocol.limits import CONFIGURATION_ENTRIES, CONFIGURATION_HISTORY, CONFIGURATION_VALUE
from .entries import (
    ADAPTER_ERROR,
    CONFLICT,
    NOT_FOUND,
    TOO_LARGE,
    Changed,
    ConfigurationEntry,
    Registration,
    merged,
    registered,
    same_value,
    value_reset,
    value_set,
)
from .files import EntryFiles, Loaded, Past
from .schemas import SchemaInvalid, violations
from .veil import check_schema_change, meant, shown

log = logging.getLogger(__name__)

OnChange = Callable[[Changed], None]
FROM_FILE: Final = "file"


@frozen
class RegistryStatistics:
    """Entries held, those of them whose value somebody `set`, and what could not be read: `broken` files."""

    entries: int
    set: int
    broken: int


@define(eq=False, kw_only=True)
class Registry:
    """All entries. `files` of None keeps them in memory only; `wall_ms` is the clock of the history."""

    files: EntryFiles | None = None
    environ: Mapping[str, str] = field(factory=lambda: os.environ)
    wall_ms: Callable[[], int]
    _entries: dict[str, ConfigurationEntry] = field(factory=dict, init=False)
    _on_disk: dict[str, ConfigurationEntry] = field(factory=dict, init=False)
    _broken: dict[str, str] = field(factory=dict, init=False)
    _astray: set[str] = field(factory=set, init=False)
    """Entries whose file was edited into something that is not taken over."""
    _history: dict[str, deque[Past]] = field(factory=dict, init=False)
    _writing: trio.Lock = field(factory=trio.Lock, init=False)
    _on_change: dict[object, OnChange] = field(factory=dict, init=False)

    # -- queries ------------------------------------------------------------------------------------------------------

    def get(self, entry_id: str) -> ConfigurationEntry | None:
        """The entry, or None."""
        return self._entries.get(entry_id)

    def find(self, entry_id: str) -> ConfigurationEntry:
        """The entry. Raises `WireError`."""
        entry = self._entries.get(entry_id)
        if entry is None:
            raise WireError(f"configuration '{shorten(entry_id, 80)}' not found", NOT_FOUND)
        return entry

    def entries(self) -> list[ConfigurationEntry]:
        """Every entry, sorted by id."""
        return [self._entries[entry_id] for entry_id in sorted(self._entries)]

    def place(self, entry_id: str) -> str:
        """Where the value of an entry is kept, for a message."""
        path = None if self.files is None else self.files.paths.get(entry_id)
        return "memory" if path is None else str(path)

    def tap(self, callback: OnChange) -> Callable[[], None]:
        """Be told of every change, in order, inside the change; the callback must not raise. Returns what ends it."""
        token = object()
        self._on_change[token] = callback

        def end() -> None:
            self._on_change.pop(token, None)

        return end

    # -- changes ------------------------------------------------------------------------------------------------------

    async def register(self, said: Registration, by: str, *, hides: bool = False) -> ConfigurationEntry:
        """`configuration::register`; `hides`: by somebody who may see no secrets. Raises `WireError`, with nothing changed."""
        async with self._writing:
            old = self._entries.get(said.id)
            if old is None and len(self._entries) >= CONFIGURATION_ENTRIES:
                raise WireError(f"there are {CONFIGURATION_ENTRIES} configuration entries already", ADAPTER_ERROR)
            for part in (said.schema, said.initial, said.metadata):
                _check_size(part)
            if hides:
                if old is not None:
                    check_schema_change(old, said.schema, [past.value for past in await self._past(said.id)])
                if not said.initial.absent:
                    said = evolve(said, initial=Json.of(meant(old, said.initial.decode())))
            new = registered(old, said, self.environ, hidden=hides)
            await self._change(old, new, by, given=not said.initial.absent)
            return new

    async def set(
        self,
        entry_id: str,
        value: Json,
        by: str,
        *,
        merge: bool = False,
        expected: Json = ABSENT,
        hides: bool = False,
    ) -> tuple[ConfigurationEntry, ConfigurationEntry]:
        """`configuration::set`; returns the entry before and after. Raises `WireError`, with nothing changed.

        `merge`: `value` is a merge patch to what was set before. With `expected` nothing is changed unless the entry's
        value, as written or expanded, is that one. `hides`: by somebody who may see no secrets, and has the mask in
        their places in both.
        """
        async with self._writing:
            old = self._entries.get(entry_id)
            if old is not None and not expected.absent:
                self._compare(old, expected.decode(), hides)
            given = value.decode()
            if hides:
                given = meant(old, given)
            if merge and old is not None:
                given = merged(old.kept.decode(), given)
            new = value_set(old, entry_id, _check_size(Json.of(given)), self.environ, hidden=hides)
            assert old is not None
            await self._change(old, new, by, given=True)
            return old, new

    async def reset(
        self, entry_id: str, by: str, *, expected: Json = ABSENT
    ) -> tuple[ConfigurationEntry, ConfigurationEntry | None]:
        """Take back what was set; an entry of which nothing else is known goes. Returns it before and after.

        `expected` as for `set`. Raises `WireError`, with nothing changed.
        """
        async with self._writing:
            old = self.find(entry_id)
            if not expected.absent:
                self._compare(old, expected.decode(), hides=False)
            new = value_reset(old)
            await self._change(old, new, by)
            return old, new

    async def delete(self, entry_id: str, by: str) -> None:
        """Take an entry out altogether; none is fine. Raises `WireError` when its file cannot be removed."""
        async with self._writing:
            old = self._entries.get(entry_id)
            if old is not None:
                await self._change(old, None, by)

    async def history(self, entry_id: str) -> list[Past]:
        """The values that were set, newest first. Raises `WireError`."""
        self.find(entry_id)
        async with self._writing:
            return list(await self._past(entry_id))

    # -- the directory ------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take in what the directory holds, telling nobody. Raises `StoreError`."""
        if self.files is None:
            return
        loaded = await trio.to_thread.run_sync(self.files.load)
        self._report(loaded, "skipped")
        for entry in loaded.entries.values():
            self._on_disk[entry.id] = entry
            remembered = await trio.to_thread.run_sync(self.files.read_schema, entry.id)
            self._entries[entry.id] = evolve(entry, remembered=remembered)

    async def reconcile(self) -> None:
        """Take in what was edited by hand: own writes are no news, and what cannot be read or does not fit changes nothing."""
        if self.files is None:
            return
        async with self._writing:
            owners = {str(path): entry_id for entry_id, path in self.files.paths.items()}
            try:
                loaded = await trio.to_thread.run_sync(self.files.load)
            except StoreError as error:
                log.warning("%s; all entries stay as they are", error)
                return
            self._report(loaded, "skipped, what it held before stays")
            for entry in loaded.entries.values():
                before = self._on_disk.get(entry.id)
                if before != entry:
                    self._note_astray(entry.id, not await self._edited(before, entry))
                    self._on_disk[entry.id] = entry
            unreadable = {owners[path] for path in map(str, loaded.broken) if path in owners}
            self._astray |= unreadable
            for entry_id in self._on_disk.keys() - loaded.entries.keys() - unreadable:
                log.info("configuration '%s': its file is gone", entry_id)
                old = self._entries.get(entry_id)
                if old is not None:
                    await self._take_over(Changed(old, evolve(old, kept=ABSENT) if old.seed else None))
                del self._on_disk[entry_id]
                self._note_astray(entry_id, False)

    def _note_astray(self, entry_id: str, is_so: bool) -> None:
        (self._astray.add if is_so else self._astray.discard)(entry_id)

    async def _take_over(self, change: Changed) -> None:
        if change:
            self._apply(change, await self._with(change, FROM_FILE), FROM_FILE)

    async def _edited(self, before: ConfigurationEntry | None, found: ConfigurationEntry) -> bool:
        """Take over what was edited; False if that cannot be."""
        old, new = self._entries.get(found.id), evolve(found, remembered=NULL)
        if old is not None:
            # what the edit left alone is as its owner said last
            parts = ("name", "description", "metadata", "kept")
            edited = {
                key: getattr(found, key)
                for key in parts
                if before is None or getattr(found, key) != getattr(before, key)
            }
            new = evolve(old, **edited)
        expanded = expand(new.kept.decode(), self.environ)
        try:
            problems = violations(new.schema, expanded.value, hidden=True)
        except SchemaInvalid as error:
            problems = [str(error)]
        if expanded.missing:
            problems = [f"unset environment variable(s) with no default: {', '.join(expanded.missing)}"]
        if problems and old is not None:
            place = self.place(found.id)
            log.warning("%s is not taken over, the value before stays: %s", place, "; ".join(problems))
            return False
        await self._take_over(Changed(old, new))
        return True

    def _report(self, loaded: Loaded, what: str) -> None:
        broken = {str(path): text for path, text in loaded.broken.items()}
        for path, text in broken.items():
            if self._broken.get(path) != text:
                log.warning("%s: %s", what, text)
        self._broken = broken

    # -- steps --------------------------------------------------------------------------------------------------------

    def _compare(self, entry: ConfigurationEntry, expected: Any, hides: bool) -> None:
        for value in (entry.value.decode(), entry.expanded(self.environ).value):
            if same_value(shown(entry, value) if hides else value, expected):
                return
        text = f"configuration '{entry.id}' has another value than expected; read it again, and decide anew"
        raise WireError(text, CONFLICT)

    async def _change(
        self, old: ConfigurationEntry | None, new: ConfigurationEntry | None, by: str, *, given: bool = False
    ) -> None:
        """Carry out one change: disk, then memory, then everybody who wants to know. Raises `WireError`.

        `given`: somebody gave the value, which then stands on the disk afterwards, also if it is no other than before.
        Cancelled, it has done all of that or nothing: everything on the disk is one step, which is not interrupted.
        """
        change = Changed(old, new)
        rewrite = given and change.entry.id in self._astray
        if not change and not rewrite:
            return
        past = await self._with(change, by)
        if self.files is not None:
            step = partial(_store, self.files, change, self._on_disk.get(change.entry.id), past, rewrite)
            try:
                on_disk = await trio.to_thread.run_sync(step)
            except StoreError as error:
                raise WireError(str(error), ADAPTER_ERROR) from None
            if on_disk is None or rewrite:
                self._astray.discard(change.entry.id)
            self._note_disk(change.entry.id, on_disk)
        if not change:
            return
        self._apply(change, past, by)

    def _note_disk(self, entry_id: str, on_disk: ConfigurationEntry | None) -> None:
        if on_disk is None:
            self._on_disk.pop(entry_id, None)
        else:
            self._on_disk[entry_id] = on_disk

    def _apply(self, change: Changed, past: deque[Past] | None, by: str) -> None:
        entry = change.entry
        if change.new is None:
            del self._entries[entry.id]
        else:
            self._entries[entry.id] = entry
        if past is not None:
            self._history[entry.id] = past
        log.debug("%s '%s' by %s", change.event_type, entry.id, by)
        for callback in tuple(self._on_change.values()):
            callback(change)

    async def _with(self, change: Changed, by: str) -> deque[Past] | None:
        """The history as it is after a change; None for one that leaves alone what was set."""
        before, after = (ABSENT if entry is None else entry.kept for entry in (change.old, change.new))
        if before == after:
            return None
        past = deque(await self._past(change.entry.id), CONFIGURATION_HISTORY)
        past.appendleft(Past(after, self.wall_ms(), by))
        return past

    async def _past(self, entry_id: str) -> deque[Past]:
        past = self._history.get(entry_id)
        if past is None:
            read = [] if self.files is None else await trio.to_thread.run_sync(self.files.read_history, entry_id)
            past = self._history[entry_id] = deque(read, CONFIGURATION_HISTORY)
        return past

    def statistics(self) -> RegistryStatistics:
        """A frozen picture of the registry."""
        kept = sum(not entry.kept.absent for entry in self._entries.values())
        return RegistryStatistics(len(self._entries), kept, len(self._broken))


def _store(
    files: EntryFiles, change: Changed, on_disk: ConfigurationEntry | None, past: deque[Past] | None, rewrite: bool
) -> ConfigurationEntry | None:
    """Put a change on the disk, in a thread; returns what stands there now. Raises `StoreError` with nothing changed."""
    new = change.new
    if new is not None and not new.kept.absent:
        stored = on_disk
        # what else the owner says is no reason to touch a user's file
        if on_disk is None or rewrite or change.old is None or change.old.kept != new.kept:
            stored = evolve(new, schema=NULL, seed=ABSENT, remembered=ABSENT)
            files.write(stored)
    else:
        stored = None
        if on_disk is not None:
            files.remove(change.entry.id)
    try:
        if past is not None:
            files.write_history(change.entry.id, list(past))
        if new is not None and not new.kept.absent and _schema_is_news(change.old, new):
            files.write_schema(new.id, new.schema)
    except StoreError as error:
        log.warning("the history of '%s' is not kept: %s", change.entry.id, error)
    return stored


def _schema_is_news(old: ConfigurationEntry | None, new: ConfigurationEntry) -> bool:
    if old is None or old.kept.absent:
        return new.schema != NULL
    return new.schema not in (old.schema, old.remembered, NULL)


def _check_size(value: Json) -> Json:
    if len(value) > CONFIGURATION_VALUE:
        text = f"the value is {len(value)} bytes; configuration takes {CONFIGURATION_VALUE} bytes"
        raise WireError(text, TOO_LARGE)
    return value
