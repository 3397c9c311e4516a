"""The module `state`: functions, trigger type, times and durable deliveries, put together."""

from functools import partial
from typing import Final

import trio
from attrs import define, field, frozen

from ...config import Live, StateSettings
from ...engine import Call, Engine, Firing, LocalPeer, open_local
from ...engine.firing import FiringStatistics
from ...protocol import NULL, Json
from ...protocol.errors import TriggerRejected
from ...stores import KeyValue, KeyValueStatistics
from ..bindings import BindingIndex
from ..durable import DurableIndex, Watches
from ..durable_functions import DurableFunctions
from ..outbox import Outbox, OutboxStatistics
from ..remote import Remote
from ..remote_state import RemoteState
from .expiry import Expiry
from .formats import CONFIG_FORMAT, EVENT_FORMAT
from .functions import (
    DELETE_ERROR,
    FAILURES,
    GET_ERROR,
    LIST_ERROR,
    LIST_GROUPS_ERROR,
    SET_ERROR,
    UPDATE_ERROR,
    StateFunctions,
)
from .triggers import Place, Telling, is_durable, read_config, read_durable_config

DESCRIPTION: Final = "Calls a function when a value of the state is created, updated or deleted."

OUTBOX_SPACE: Final = "state/outbox"
TRIGGERS_SPACE: Final = "state/triggers"
"""Beside the space of the data, in the same file."""

REMOTE_CODES: Final = {
    "state::set": SET_ERROR,
    "state::get": GET_ERROR,
    "state::delete": DELETE_ERROR,
    "state::update": UPDATE_ERROR,
    "state::list": LIST_ERROR,
    "state::list_groups": LIST_GROUPS_ERROR,
}
"""What each function answers with when another engine could not do it."""


@frozen
class StateStatistics:
    """What the state module has done and holds; parts are None while it does not run."""

    store: KeyValueStatistics
    """Operations handed to the store."""
    failed: int
    """Operations that the store could not do."""
    too_large: int
    """Values refused by `max_value_bytes`."""
    expired: int
    """Keys removed because their time was up."""
    bindings: int
    """Bindings that wait for changes, durable triggers whose worker is away included."""
    firing: FiringStatistics | None
    """Deliveries since the module was started last."""
    outbox: OutboxStatistics | None
    """Events of durable triggers on their way into the queue."""


@define(eq=False)
class _Life:
    """What there is while the module runs."""

    functions: StateFunctions
    telling: Telling
    expiry: Expiry
    outbox: Outbox


@define(eq=False)
class StateModule:
    """The module. `store` is the space that holds the state; the caller keeps it open for longer than `run`.

    With a `remote` that engine keeps the state, and `store` is not used.
    """

    settings: Live[StateSettings]
    store: KeyValue
    remote: Remote | None = None
    _life: _Life | None = field(default=None, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is told once the functions and the trigger type are there.

        Raises `StoreError` when the store cannot be read.
        """
        async with open_local(core, "state") as peer:
            outbox = Outbox(core, peer, self.store.sibling(OUTBOX_SPACE))
            durable = DurableIndex(
                self.store.sibling(TRIGGERS_SPACE), partial(read_durable_config, partial(self._check, outbox))
            )
            watches: Watches[Place] = Watches(BindingIndex(read_config), durable, is_durable)
            telling = Telling(self.settings, watches, Firing(peer), outbox)
            expiry = Expiry(core, self.store, telling)
            functions = StateFunctions(self.settings, self.store, core, telling, expiry)
            self._life = _Life(functions, telling, expiry, outbox)
            try:
                if self.remote is None:
                    await durable.load()
                    await outbox.open()
                    await expiry.open()
                self._serve(peer, functions, telling)
                peer.provide(
                    "state",
                    watches,
                    description=DESCRIPTION,
                    config_format=CONFIG_FORMAT,
                    call_format=EVENT_FORMAT,
                )
                task_status.started()
                await trio.sleep_forever()
            finally:
                outbox.close()
                expiry.close()
                self._life = None

    def _serve(self, peer: LocalPeer, functions: StateFunctions, telling: Telling) -> None:
        if self.remote is None:
            functions.register(peer.register)
            DurableFunctions("state", ("scope", "key"), telling.watches.durable, telling.outbox).register(peer.register)
        else:
            functions.register(partial(self._remote(self.remote, functions, telling).register, peer))

    def _check(self, outbox: Outbox, queue: str) -> None:
        """Whether durable deliveries through that queue can be promised. Raises `TriggerRejected`."""
        if self.remote is not None:
            raise TriggerRejected("the state is kept by another engine: bind a durable trigger there")
        outbox.check_provider()
        outbox.check_queue(queue)

    def _remote(self, remote: Remote, functions: StateFunctions, telling: Telling) -> RemoteState:
        """The functions over another engine; its writes fire our bindings as those to a store do."""

        def check_size(size: int) -> None:
            limit = self.settings.value.max_value_bytes
            if limit is not None and size > limit:
                raise functions.refuse_size(size, limit)

        def fire_set(call: Call, scope: str, key: str, old: Json, new: Json) -> None:
            telling.tell(call, scope, key, None if old == NULL else old.raw, new.raw)

        def fire_deleted(call: Call, scope: str, key: str, old: Json) -> None:
            telling.tell(call, scope, key, old.raw, None)

        summaries = {function_id: (code, FAILURES[code]) for function_id, code in REMOTE_CODES.items()}
        return RemoteState(
            remote, summaries, check_size, fire_set, fire_deleted, listens=lambda: bool(len(telling.watches))
        )

    def statistics(self) -> StateStatistics:
        """A frozen picture of operations, bindings and deliveries."""
        life = self._life
        return StateStatistics(
            store=self.store.statistics(),
            failed=0 if life is None else life.functions.failed,
            too_large=0 if life is None else life.functions.too_large,
            expired=0 if life is None else life.expiry.expired,
            bindings=0 if life is None else len(life.telling.watches),
            firing=None if life is None else life.telling.firing.statistics(),
            outbox=None if life is None else life.outbox.statistics(),
        )
