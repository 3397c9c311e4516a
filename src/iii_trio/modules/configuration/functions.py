"""The module `configuration`: its functions and its trigger type over a registry (spec/pubsub-cron-config-cli.md §4).

Beyond the five functions of the reference there are `configuration::history` and `configuration::reset`, and `set` takes
`expected` (compare and set) and `merge`. Secrets are masked in everything that goes to a session under access control
without a grant of `configuration::secrets` (secrets.py, veil.py); trusted connections see all.
"""

import logging
import operator
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field, frozen

from ...config import ConfigurationSettings, Live
from ...config.watch import QUIET_S, watch_directory
from ...engine import DEFAULT_NAMESPACE, Binding, Call, Engine, Firing, LocalPeer, Outcome, Peer, Timer, open_local
from ...engine.firing import FiringStatistics
from ...protocol import ABSENT, Json
from ...protocol.errors import WireError
from ...protocol.limits import MAX_DEPTH
from ...protocol.scan import deeper_than
from ..inputs import Fields, call_fields, object_schema
from .entries import Changed, ConfigurationEntry, Registration, value_read
from .files import SUFFIX
from .registry import Registry, RegistryStatistics
from .secrets import RIGHT
from .veil import shown
from .watches import CONFIG_FORMAT, Watches

log = logging.getLogger(__name__)

TRIGGER_TYPE: Final = "configuration"
EXPIRED: Final = "expiry"
_DEEPEST: Final = MAX_DEPTH - 4
"""Levels of a value: on the wire it stands inside an entry, inside a result or event, inside a frame."""

_ID: Final = {"type": "string", "pattern": "^[a-z0-9_-]{1,64}$", "description": "The entry."}
_ABOUT: Final = {
    "id": _ID,
    "name": {"type": "string", "description": "What people call it."},
    "description": {"type": "string"},
    "schema": {"description": "JSON Schema that every value has to fit."},
    "metadata": {"description": "Anything the owner wants to be listed with it."},
}
_VALUE: Final = {"description": "Any JSON value; texts may hold ${NAME} and ${NAME:default}, expanded when it is read."}
_ONE: Final = object_schema("ConfigurationId", {"id": _ID}, ("id",))
_REGISTER: Final = object_schema(
    "ConfigurationRegisterInput",
    {**_ABOUT, "initial_value": {**_VALUE, "description": "Becomes the value. Leave it out to keep the one there is."}},
    ("id", "name", "description", "schema"),
)
_SET: Final = object_schema(
    "ConfigurationSetInput",
    {
        "id": _ID,
        "value": _VALUE,
        "expected": {"description": "Set only if the value is this one now; else the call fails with CONFLICT."},
        "merge": {"type": "boolean", "description": "The value is a merge patch (RFC 7396) to what was set before."},
    },
    ("id", "value"),
)
_GET: Final = object_schema(
    "ConfigurationGetInput",
    {"id": _ID, "raw": {"type": "boolean", "description": "Leave placeholders as they are written."}},
    ("id",),
)
_DESCRIBED: Final = object_schema("ConfigurationDescription", _ABOUT, ("id", "name", "description", "schema"))
_CHANGE: Final = object_schema(
    "ConfigurationSetResult", {"old_value": _VALUE, "new_value": _VALUE}, ("old_value", "new_value")
)
_EVENT: Final = object_schema(
    "ConfigurationEvent",
    {
        **_ABOUT,
        "type": {"const": "configuration"},
        "event_type": {"type": "string"},
        "old_value": {"description": "The value before, expanded; null if there was none."},
        "new_value": {"description": "The value now, expanded; null if there is none."},
    },
    ("type", "event_type", "id", "name", "description", "schema", "old_value", "new_value"),
)


@frozen
class ConfigurationStatistics:
    """What the module holds and has delivered; `firing` is None when it does not run."""

    registry: RegistryStatistics
    bindings: int
    firing: FiringStatistics | None


@define(eq=False)
class ConfigurationModule:
    """The module. `registry` is loaded already, and lives longer than the module does.

    `quiet_s`: how long (s) the directory must be quiet until an edit by hand is read.
    """

    settings: Live[ConfigurationSettings]
    registry: Registry
    quiet_s: float = QUIET_S
    _watches: Watches = field(init=False)
    _firing: Firing | None = field(default=None, init=False)
    _expiring: dict[str, Timer] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._watches = Watches()

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is told once the functions and the trigger type are there."""
        async with open_local(core, "configuration") as peer, trio.open_nursery() as nursery:
            firing = self._firing = Firing(peer)
            untap = self.registry.tap(partial(self._fire, core, firing))
            self._watches.on_count = partial(self._counted, core, nursery)
            try:
                self._register(peer)
                peer.provide(
                    TRIGGER_TYPE,
                    self._watches,
                    description="Calls a function when a configuration entry is registered, updated or deleted.",
                    config_format=CONFIG_FORMAT,
                    call_format=_EVENT,
                )
                if self.registry.files is not None:
                    nursery.start_soon(self._watch_files, self.registry.files.directory, name="configuration files")
                task_status.started()
                await trio.sleep_forever()
            finally:
                untap()
                self._firing = None
                self._watches.on_count = lambda _id, _count: None
                for timer in self._expiring.values():
                    timer.cancel()
                self._expiring.clear()

    def _register(self, peer: LocalPeer) -> None:
        def serve(name: str, handler: Any, what: str, takes: Any, gives: Any = None, *, task: bool = False) -> None:
            peer.register(
                f"configuration::{name}",
                partial(handler, peer.core),
                task=task,
                description=what,
                request_format=takes,
                response_format=gives,
            )

        serve("register", self._do_register, "Say what an entry is, and which values it takes.", _REGISTER, task=True)
        serve("set", self._do_set, "Set the value of an entry.", _SET, _CHANGE, task=True)
        serve("get", self._do_get, "Read the value of an entry.", _GET)
        serve("list", self._do_list, "All entries, without their values.", object_schema("ConfigurationListInput", {}))
        serve("schema", self._do_schema, "Describe one entry, without its value.", _ONE, _DESCRIBED)
        serve("history", self._do_history, "The last values that were set, newest first.", _ONE, task=True)
        serve("reset", self._do_reset, "Take back what was set.", _ONE, _CHANGE, task=True)

    # -- the functions (§4.2) -----------------------------------------------------------------------------------------

    async def _do_register(self, core: Engine, call: Call, data: Json) -> Json:
        """`{"id", "name", "description", "schema", "initial_value"?, "metadata"?}` → the entry, value as written."""
        fields = call_fields(call, data)
        said = Registration(
            id=fields.text("id"),
            name=fields.text("name"),
            description=fields.text("description"),
            schema=Json.of(fields.json("schema")),
            initial=_optional(fields, "initial_value"),
            metadata=_optional(fields, "metadata"),
        )
        for part in (said.schema, said.initial, said.metadata):
            _check_depth(fields, part)
        hides = _hides(core, call)
        entry = await self.registry.register(said, _name(call), hides=hides)
        return Json.of({**entry.described(), "value": _shown(entry, entry.value.decode(), hides)})

    async def _do_set(self, core: Engine, call: Call, data: Json) -> Json:
        """`{"id", "value", "expected"?, "merge"?}` → `{"old_value", "new_value"}`, as written."""
        fields = call_fields(call, data)
        entry_id, value = fields.text("id"), Json.of(fields.json("value"))
        expected = Json.of(fields.values["expected"]) if "expected" in fields.values else ABSENT
        _check_depth(fields, value)
        hides = _hides(core, call)
        old, new = await self.registry.set(
            entry_id,
            value,
            _name(call),
            merge=fields.flag("merge"),
            expected=expected,
            hides=hides,
        )
        return _change(old, new, hides)

    def _do_get(self, core: Engine, call: Call, data: Json) -> Outcome:
        """`{"id", "raw"?}` → `{"id", "value"}`."""
        fields = call_fields(call, data)
        entry, hides = self.registry.find(fields.text("id")), _hides(core, call)
        raw = fields.flag("raw")
        value = entry.value.decode() if raw else value_read(entry, self.registry.environ, hidden=hides)
        return Outcome(Json.of({"id": entry.id, "value": _shown(entry, value, hides)}))

    def _do_list(self, core: Engine, call: Call, data: Json) -> Outcome:
        """`{}` → `{"configurations": [entry without value, …]}`, sorted by id."""
        call_fields(call, data, optional=True)
        return Outcome(Json.of({"configurations": [entry.described() for entry in self.registry.entries()]}))

    def _do_schema(self, core: Engine, call: Call, data: Json) -> Outcome:
        """`{"id"}` → the entry without its value."""
        return Outcome(Json.of(self.registry.find(call_fields(call, data).text("id")).described()))

    async def _do_history(self, core: Engine, call: Call, data: Json) -> Json:
        """`{"id"}` → `{"id", "values": [{"value", "at_ms", "by"}, …]}`, newest first; no value: it was taken back."""
        entry = self.registry.find(call_fields(call, data).text("id"))
        hides = _hides(core, call)
        values = []
        for past in await self.registry.history(entry.id):
            row: dict[str, Any] = {"at_ms": past.at_ms, "by": past.by}
            values.append(row if past.value.absent else {"value": _shown(entry, past.value.decode(), hides), **row})
        return Json.of({"id": entry.id, "values": values})

    async def _do_reset(self, core: Engine, call: Call, data: Json) -> Json:
        """`{"id"}` → `{"old_value", "new_value"}`: the entry is again what its owner or the config file says."""
        entry_id = call_fields(call, data).text("id")
        old, new = await self.registry.reset(entry_id, _name(call))
        return _change(old, new, _hides(core, call))

    # -- what happens by itself ---------------------------------------------------------------------------------------

    def _fire(self, core: Engine, firing: Firing, change: Changed) -> None:
        if not change.visible:
            return
        entry = change.entry
        values = [
            None if side is None else side.expanded(self.registry.environ).value for side in (change.old, change.new)
        ]

        def event(hides: bool) -> Json:
            old_value, new_value = (_shown(entry, value, hides) for value in values)
            about = {"type": "configuration", "event_type": change.event_type, **entry.described()}
            return Json.of({**about, "old_value": old_value, "new_value": new_value})

        made: dict[bool, Json] = {}
        for binding, watch in self._watches.wanting(entry.id, change.event_type):
            hides = _hidden_from(core, binding)
            if hides not in made:
                made[hides] = event(hides)
            firing.fire(binding, made[hides], condition=watch.condition, lane=entry.id)

    def _counted(self, core: Engine, nursery: trio.Nursery, entry_id: str, count: int) -> None:
        """An entry that nobody names any more goes after `ttl_seconds`, if that is not 0 (§4.5)."""
        timer = self._expiring.pop(entry_id, None)
        if timer is not None:
            timer.cancel()
        ttl_s = self.settings.value.ttl_seconds
        if not count and ttl_s:

            def expire() -> None:
                self._expiring.pop(entry_id, None)
                nursery.start_soon(self._expire, entry_id, name=f"expiry of configuration {entry_id}")

            self._expiring[entry_id] = core.deadlines.after(ttl_s, expire)

    async def _expire(self, entry_id: str) -> None:
        try:
            await self.registry.delete(entry_id, EXPIRED)
        except WireError as error:
            log.error("configuration '%s' has expired, but stays: %s", entry_id, error.message)

    async def _watch_files(self, directory: Path) -> None:
        """Watch the directory; while it is not there, the nearest one above it."""
        while (missing := _missing(directory)) is not None:
            with trio.CancelScope() as scope:

                async def appeared(missing: Path = missing, scope: trio.CancelScope = scope) -> None:
                    if _missing(directory) != missing:
                        scope.cancel()

                wanted = partial(operator.eq, missing.name)
                await watch_directory(missing.parent, wanted, appeared, quiet_s=self.quiet_s)
                return  # it cannot be watched
        await watch_directory(directory, _is_entry, self.registry.reconcile, quiet_s=self.quiet_s)

    def statistics(self) -> ConfigurationStatistics:
        """A frozen picture of entries, bindings and deliveries."""
        firing = None if self._firing is None else self._firing.statistics()
        return ConfigurationStatistics(self.registry.statistics(), len(self._watches), firing)


def sees_secrets(core: Engine, peer: Peer) -> bool:
    """Whether a peer may see secrets: it is trusted, or its session has the grant."""
    session = peer.session
    return session is None or core.access.check(session, DEFAULT_NAMESPACE, RIGHT, None) is None


def _hides(core: Engine, call: Call) -> bool:
    """Whether secrets are hidden from who makes a call. What a trigger, a queue or a route calls speaks for nobody in
    particular: whoever may publish, enqueue or send a request is behind it, so only a connection's own calls count.
    """
    return not (call.origin.injects and sees_secrets(core, call.origin))


def _hidden_from(core: Engine, binding: Binding) -> bool:
    """Whether events for a binding are masked; one that no connection owns may be anybody's."""
    return binding.owner is None or not sees_secrets(core, binding.owner)


def _missing(directory: Path) -> Path | None:
    """The uppermost directory of a path that is not there; None if all are."""
    return next((place for place in (*reversed(directory.parents), directory) if not place.is_dir()), None)


def _is_entry(name: str) -> bool:
    return name.endswith(SUFFIX)


def _shown(entry: ConfigurationEntry, value: Any, hides: bool) -> Any:
    return shown(entry, value) if hides else value


def _change(old: ConfigurationEntry, new: ConfigurationEntry | None, hides: bool) -> Json:
    before, after = (_shown(old, None if entry is None else entry.value.decode(), hides) for entry in (old, new))
    return Json.of({"old_value": before, "new_value": after})


def _optional(fields: Fields, name: str) -> Json:
    value = fields.values.get(name)
    return ABSENT if value is None else Json.of(value)


def _check_depth(fields: Fields, value: Json) -> None:
    if deeper_than(value.raw, _DEEPEST):
        raise fields.refuse(f"nested deeper than {_DEEPEST} levels")


def _name(call: Call) -> str:
    return call.origin.name or call.origin.id
