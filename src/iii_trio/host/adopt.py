"""The adopter: gives every built-in worker its settings, made of flags, stored entry, file and defaults, in this order.

A module holds a `Live[Settings]` and knows nothing else. For all of them alike the adopter keeps an entry of the
configuration (id, JSON Schema, what the file says as its value until somebody sets one), the function
`<id>::on-config-change` and the trigger `<id>::config-watch` by which changes arrive (spec/pubsub-cron-config-cli.md
§0.2), and carries a change out as the settings' tiers say: live settings by `Live.set`, the address of a listener by the
module's `rebind`, everything else by starting the module again. What cannot be carried out leaves everything as it was.

A stored value counts key by key: what it leaves out the file says, and what the file leaves out has its default.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import trio
from attrs import define, evolve, field, frozen

from ..config import (
    ConfigError,
    Live,
    Problem,
    Structured,
    as_value,
    changed_settings,
    schema_of,
    structure,
)
from ..config.names import WORKERS
from ..engine import Binding, Call, Engine, LocalPeer, open_local
from ..modules.configuration import EntryFiles, Registration, Registry, value_read
from ..protocol import Json
from ..protocol.errors import IIIError, WireError
from .plan import Block, Plan

log = logging.getLogger(__name__)

APPLY_S: Final = 10.0
RETRY_S: Final = 5.0
ADOPTED: Final[Mapping[str, tuple[str, str]]] = {
    "http": ("HTTP", "The HTTP port and what holds for every request."),
    "state": ("State", "Key-value state and its triggers."),
    "stream": ("Stream", "Streams and the port their subscribers connect to."),
    "queue": ("Queue", "Named queues and topics."),
    "pubsub": ("PubSub", "Publish and subscribe."),
    "cron": ("Cron", "Scheduled triggers."),
}
"""Workers with an entry of their own: how it is called, and what it says of itself. All others have the file alone."""

Apply = Callable[[Any], Awaitable[Any]]


@frozen(kw_only=True)
class Hands:
    """How changes of one worker's settings are carried out; each gets the new settings.

    `check` refuses, by `ConfigError`, what the settings class admits and this release cannot do. `rebind` makes the
    worker listen elsewhere, `restart` starts it again on the new settings. Both return what holds now, a port that the
    system chose for instance, and leave everything as it was when they raise an `IIIError`; where one is missing, such a
    change waits for the next start.
    """

    check: Callable[[Any], None] = lambda _: None
    rebind: Apply | None = None
    restart: Apply | None = None


def layered(block: Block, stored: Structured[Any] | None) -> Any:
    """The settings: flags over the stored entry over the file over the defaults. Raises `ConfigError`."""
    taken = {} if stored is None else {name: getattr(stored.settings, name) for name in stored.given}
    try:
        settings = evolve(block.file.settings, **{**taken, **block.flags})
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if hasattr(settings, "refusals"):
        problems = [Problem(text, ".".join(path)) for path, text in settings.refusals(block.entry.label)]
        if problems:
            raise ConfigError("", problems)
    return settings


async def take_stored(plan: Plan, files: EntryFiles) -> None:
    """Put what is stored into the plan's settings of the workers that have a store. Raises `StoreError`."""
    registry = Registry(files=files, wall_ms=lambda: 0)
    await registry.load()
    adoption = Adoption(registry)
    for name in ("state", "stream", "queue"):
        if (block := plan.blocks.get(name)) is not None:
            setattr(plan, name, adoption.read(block).declared)


@define(eq=False)
class Adopted:
    """One worker's settings. `live` is what its module holds; `declared` the same without what the system chose."""

    name: str
    block: Block
    declared: Any
    live: Live[Any]
    stored: frozenset[str] = frozenset()
    chosen: dict[str, Any] = field(factory=dict)
    hands: Hands = field(factory=Hands)
    watch: Binding | None = field(default=None, init=False)
    pending: bool = field(default=False, init=False)
    """The last change could not be carried out."""
    _busy: trio.Lock = field(factory=trio.Lock, init=False)

    @property
    def id(self) -> str:
        """The id of its entry: the worker's established name."""
        return next(worker.established for worker in WORKERS if worker.canonical == self.name)

    def note_chosen(self) -> None:
        """Keep in mind where `live` differs from `declared`: what the system chose, as a port in the place of port 0."""
        self.chosen = {key: getattr(self.live.value, key) for key in changed_settings(self.declared, self.live.value)}

    def without_stored(self) -> None:
        """What is stored cannot be used now: go by file and command line."""
        self.stored, self.declared = frozenset(), self.block.settings
        self.live.set(self.declared)

    def with_chosen(self, settings: Any) -> Any:
        """`settings`, with what the system chose where they ask for what they asked before."""
        kept = {
            key: value for key, value in self.chosen.items() if getattr(settings, key) == getattr(self.declared, key)
        }
        return evolve(settings, **kept)


@frozen
class AdoptionStatistics:
    """Workers with an entry, changes `applied` and `refused` since the start."""

    workers: int
    applied: int
    refused: int


@define(eq=False)
class Adoption:
    """All adopted workers. Settings are read before anything starts; `run` is a module that then follows changes."""

    registry: Registry
    _adopted: dict[str, Adopted] = field(factory=dict, init=False)
    _peer: LocalPeer | None = field(default=None, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False)
    _applied: int = field(default=0, init=False)
    _refused: int = field(default=0, init=False)

    def read(self, block: Block, check: Callable[[Any], None] = lambda _: None) -> Adopted:
        """Adopt a worker that is about to start. A stored value that cannot be used is said in the log, and left alone."""
        adopted = Adopted(block.entry.name, block, block.settings, Live(block.settings))
        try:
            adopted.stored, adopted.declared = self._read(adopted, check)
        except IIIError as error:
            log.error("the stored settings of %s are not used: %s", block.entry.label, error)
        adopted.live.set(adopted.declared)
        self._adopted[adopted.name] = adopted
        return adopted

    def forget(self, adopted: Adopted) -> None:
        """The worker has not come to run."""
        self._adopted.pop(adopted.name, None)

    def get(self, name: str) -> Adopted | None:
        """The adopted worker of that canonical name, or None."""
        return self._adopted.get(name)

    def log_sources(self, blocks: Iterable[Block]) -> None:
        """Say in the log where each worker's settings come from."""
        for block in blocks:
            adopted = self._adopted.get(block.entry.name)
            stored = frozenset[str]() if adopted is None else adopted.stored
            place = "" if adopted is None else self.registry.place(adopted.id)
            log.info("worker %s: %s", block.entry.label, block.sources(stored, place))

    # -- following changes --------------------------------------------------------------------------------------------

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the entries and follow their changes until cancelled. The configuration module has to run already."""
        async with open_local(core, "settings") as peer, trio.open_nursery() as nursery:
            self._peer, self._nursery = peer, nursery
            try:
                for adopted in tuple(self._adopted.values()):
                    await self._introduce(peer, adopted)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._peer = self._nursery = None

    async def introduce(self, adopted: Adopted) -> None:
        """Publish the entry of a worker that came later and follow it; catches up with what changed meanwhile."""
        if self._peer is not None:
            await self._introduce(self._peer, adopted)

    async def _introduce(self, peer: LocalPeer, adopted: Adopted) -> None:
        if adopted.name not in ADOPTED:
            return
        await self._publish(adopted)
        entry_id = adopted.id
        peer.register(
            f"{entry_id}::on-config-change",
            partial(self._on_change, adopted),
            task=True,
            description=f"Take over what is stored for {entry_id}. The payload is ignored.",
            metadata={"internal": True},
        )
        adopted.watch = Binding(
            id=f"{entry_id}::config-watch",
            trigger_type="configuration",
            function_id=f"{entry_id}::on-config-change",
            config=Json.of({"configuration_id": entry_id, "event_types": ["configuration:updated"]}),
            owner=peer,
        )
        peer.core.triggers.register(adopted.watch)
        await self.apply(adopted)

    async def withdraw(self, adopted: Adopted) -> None:
        """A worker does not run any more: nothing is done for it; what somebody set for it is kept."""
        self._adopted.pop(adopted.name, None)
        if adopted.name not in ADOPTED:
            return
        if self._peer is not None:
            self._peer.unregister(f"{adopted.id}::on-config-change")
            if adopted.watch is not None:
                self._peer.core.triggers.unregister(adopted.watch.id)
        entry = self.registry.get(adopted.id)
        if entry is not None and entry.kept.absent:
            await self.registry.delete(adopted.id, "engine")

    async def refile(self, adopted: Adopted, block: Block) -> bool:
        """The file says something else now; False if that could not be carried out (the log says why)."""
        adopted.block = block
        if self._peer is not None and adopted.name in ADOPTED:
            await self._publish(adopted)
        return await self.apply(adopted)

    async def apply(self, adopted: Adopted) -> bool:
        """Read the settings again and carry out what has changed; False if that failed, and all is as before.

        It may take `APPLY_S` seconds; one that does not end in time is tried once more, `RETRY_S` seconds later.
        """
        async with adopted._busy:
            for last in (False, True):
                with trio.move_on_after(APPLY_S) as patience:
                    try:
                        stored, settings = self._read(adopted, adopted.hands.check)
                        await self._carry_out(adopted, settings)
                        overridden = sorted((stored - adopted.stored) & set(adopted.block.flags))
                        if overridden:
                            log.warning("%s: %s: the command line's value stays", adopted.id, ", ".join(overridden))
                        adopted.stored, adopted.pending = stored, False
                        return True
                    except IIIError as error:
                        log.error("%s keeps its settings: %s", adopted.id, error)
                        break
                if patience.cancelled_caught:
                    again = "giving up" if last else f"once more in {RETRY_S:.0f} s"
                    log.error("%s: its settings could not be changed in %.0f s; %s", adopted.id, APPLY_S, again)
                    if not last:
                        await trio.sleep(RETRY_S)
            self._refused += 1
            adopted.pending = True
            return False

    async def settle(self, adopted: Adopted) -> bool:
        """`apply`, which goes on to its end if this is cancelled: a caller that goes away leaves no worker half changed.

        False also while nothing is followed.
        """
        if self._nursery is None:
            return False
        ended, applied = trio.Event(), False

        async def apply() -> None:
            nonlocal applied
            applied = await self.apply(adopted)
            ended.set()

        self._nursery.start_soon(apply, name=f"settings of {adopted.id}")
        await ended.wait()
        return applied

    async def _on_change(self, adopted: Adopted, call: Call, data: Json) -> Json:
        applied = await self.settle(adopted)
        return Json.of({"ok": True} if applied else {"ok": True, "applied": False})

    async def _publish(self, adopted: Adopted) -> None:
        name, description = ADOPTED[adopted.name]
        said = Registration(
            id=adopted.id,
            name=name,
            description=description,
            schema=Json.of(schema_of(type(adopted.declared))),
            seed=Json.of(as_value(adopted.block.file.settings)),
        )
        try:
            await self.registry.register(said, "engine")
        except WireError as error:
            log.warning("%s has no entry in the configuration: %s", adopted.id, error.message)

    def _read(self, adopted: Adopted, check: Callable[[Any], None]) -> tuple[frozenset[str], Any]:
        """What is stored and what follows. Raises `ConfigError` or `WireError` for what cannot be used."""
        entry = self.registry.get(adopted.id) if adopted.name in ADOPTED else None
        stored: Structured[Any] | None = None
        if entry is not None and not entry.kept.absent:
            value = value_read(evolve(entry, seed=entry.kept), self.registry.environ)
            if value is not None:
                stored = structure(type(adopted.declared), value, summary=f"entry '{adopted.id}'")
        settings = layered(adopted.block, stored)
        check(settings)
        return frozenset() if stored is None else stored.given, settings

    async def _carry_out(self, adopted: Adopted, new: Any) -> None:
        changes = changed_settings(adopted.declared, new)
        if not changes:
            adopted.declared = new
            return
        tiers, value = set(changes.values()), adopted.with_chosen(new)
        hands, names = adopted.hands, ", ".join(changes)
        if "restart" in tiers and hands.restart is not None:
            value = await hands.restart(value)
            how = "it was started again"
        elif "rebind" in tiers and hands.rebind is not None:
            value = await hands.rebind(value)
            how = "it listens anew"
        else:
            how = "takes effect at the next start" if tiers - {"live"} else "in effect"
        adopted.live.set(value)
        adopted.declared = new
        adopted.note_chosen()
        self._applied += 1
        log.info("%s: %s changed, %s", adopted.id, names, how)

    def statistics(self) -> AdoptionStatistics:
        """A frozen picture of what was changed."""
        return AdoptionStatistics(len(self._adopted), self._applied, self._refused)
