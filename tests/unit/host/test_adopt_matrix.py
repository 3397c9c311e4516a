"""Every setting of every worker: which source wins, and how a change of it is carried out, as its metadata declares."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from itertools import product
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import attrs
import pytest
import trio
from attrs import define, field

from iii_trio.config import (
    SETTINGS,
    ConfigError,
    ConfigurationSettings,
    Entry,
    Live,
    SettingInfo,
    read_settings,
    setting_fields,
    setting_info,
    structure,
)
from iii_trio.engine import Engine, LocalPeer, open_engine, open_local
from iii_trio.host.adopt import ADOPTED, Adopted, Adoption, Hands, layered
from iii_trio.host.plan import Block
from iii_trio.modules.configuration import ConfigurationModule, Registry
from iii_trio.protocol import Json
from iii_trio.protocol.errors import WireError

MANY = 3


def samples(hint: Any, info: SettingInfo) -> list[Any]:
    """Up to `MANY` different values of a type, as a file spells them; at least one."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (argument for argument in get_args(hint) if argument is not NoneType)
    if attrs.has(hint):
        return blocks_of(hint)
    if hint is bool:
        return [True, False]
    if hint is int:
        first = int(info.ge or 1) + 11
        return (
            [first, first + 1, first + 2]
            if info.le is None or info.le >= first + 2
            else [int(info.le), int(info.le) - 1]
        )
    if hint is str:
        return list(info.choices[:MANY]) or ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    origin, arguments = get_origin(hint), get_args(hint)
    unbounded = SettingInfo(doc="")
    if origin is tuple and arguments[0] is str:
        return [["https://a.example"], ["https://b.example", "null"], []]
    if origin is tuple:
        return [[value] for value in samples(arguments[0], unbounded)]
    assert origin is Mapping
    if arguments[1] is Any:
        return [{"team": value} for value in "abc"]
    return [{f"name{number}": value for value in samples(arguments[1], unbounded)[:1]} for number in range(MANY)]


def blocks_of(cls: type[Any]) -> list[Any]:
    """Blocks of a settings class that differ in one setting, with what is required."""
    fields = [attribute for attribute in setting_fields(cls) if not setting_info(attribute).no_op]
    needed = {
        attribute.name: samples(attribute.type, setting_info(attribute))[0]
        for attribute in fields
        if attribute.default is attrs.NOTHING
    }
    for attribute in reversed(fields):
        found = [{**needed, attribute.name: value} for value in samples(attribute.type, setting_info(attribute))]
        usable = [value for value in found if fits(cls, value)]
        if len(usable) > 1:
            return usable
    return [needed]


def fits(cls: type[Any], value: Mapping[str, Any]) -> bool:
    """Whether a block is accepted: some settings exclude each other."""
    try:
        structure(cls, value)
    except ConfigError:
        return False
    return True


def every_setting() -> Iterator[Any]:
    """Worker and setting, for every worker there is."""
    for worker, cls in SETTINGS.items():
        for attribute in setting_fields(cls):
            if not setting_info(attribute).no_op:
                yield pytest.param(worker, attribute.name, id=f"{worker}.{attribute.name}")


def values_of(worker: str, name: str) -> list[Any]:
    """Three values for a setting, different ones where the type has so many."""
    (attribute,) = (attribute for attribute in setting_fields(SETTINGS[worker]) if attribute.name == name)
    found = samples(attribute.type, setting_info(attribute))
    usable = [value for value in found if fits(SETTINGS[worker], {name: value})]
    return (usable * MANY)[:MANY]


def block(worker: str, given: Mapping[str, Any], flags: Mapping[str, Any] | None = None) -> Block:
    """What file and command line say."""
    entry = Entry(worker, worker, config=given)
    return Block(entry=entry, file=read_settings(SETTINGS[worker], entry), flags=flags or {})


@pytest.mark.parametrize(("worker", "name"), list(every_setting()))
def test_flag_before_entry_before_file_before_default(worker: str, name: str) -> None:
    cls = SETTINGS[worker]
    in_file, in_entry, on_line = values_of(worker, name)
    default = getattr(structure(cls, {}).settings, name)
    for file, entry, flag in product((False, True), repeat=3):
        flags = {name: getattr(structure(cls, {name: on_line}).settings, name)} if flag else {}
        stored = structure(cls, {name: in_entry} if entry else {})
        got = layered(block(worker, {name: in_file} if file else {}, flags), stored)
        expected = default
        for present, value in ((file, in_file), (entry, in_entry), (flag, on_line)):
            if present:
                expected = getattr(structure(cls, {name: value}).settings, name)
        assert getattr(got, name) == expected, (file, entry, flag)
        untouched = [other.name for other in setting_fields(cls) if other.name != name]
        assert all(getattr(got, other) == getattr(structure(cls, {}).settings, other) for other in untouched)


def test_what_two_sources_say_together_must_go_together() -> None:
    port = block("worker-manager", {"rbac": {"auth_function_id": "auth"}})
    with pytest.raises(ConfigError, match="a port has either that or a token"):
        layered(port, structure(SETTINGS["worker-manager"], {"token": "t"}))


@define(eq=False)
class Bench:
    """An engine with the configuration and one adopted worker; `calls` are the hands that were used."""

    core: Engine
    user: LocalPeer
    registry: Registry
    adoption: Adoption
    adopted: Adopted
    calls: list[str] = field(factory=list)

    async def call(self, function_id: str, **payload: Any) -> Any:
        return (await self.user.invoke(function_id, Json.of(payload))).decode()

    async def changed(self, name: str) -> Any:
        """Carry out what is stored now; returns the setting."""
        await self.call(f"{self.adopted.id}::on-config-change")
        return getattr(self.adopted.live.value, name)


@asynccontextmanager
async def adopted(said: Block, *, failing: type[Exception] | None = None) -> AsyncIterator[Bench]:
    registry = Registry(environ={}, wall_ms=lambda: 0)
    adoption = Adoption(registry)
    async with open_engine() as core, trio.open_nursery() as nursery, open_local(core, "user") as user:
        user.injects = True  # as a connection does
        worker = adoption.read(said)
        bench = Bench(core, user, registry, adoption, worker)

        def hand(name: str) -> Any:
            async def carry_out(settings: Any) -> Any:
                bench.calls.append(name)
                if failing is not None:
                    raise failing("not to be had")
                return settings

            return carry_out

        worker.hands = Hands(rebind=hand("rebind"), restart=hand("restart"))
        await nursery.start(ConfigurationModule(Live(ConfigurationSettings()), registry).run, core)
        await nursery.start(adoption.run, core)
        yield bench
        nursery.cancel_scope.cancel()


ADOPTED_SETTINGS = [param for param in every_setting() if param.values[0] in ADOPTED]


@pytest.mark.parametrize(("worker", "name"), ADOPTED_SETTINGS)
async def test_a_change_is_carried_out_as_the_setting_declares(worker: str, name: str) -> None:
    (attribute,) = (attribute for attribute in setting_fields(SETTINGS[worker]) if attribute.name == name)
    default = getattr(structure(SETTINGS[worker], {}).settings, name)
    for value in values_of(worker, name):
        wanted = getattr(structure(SETTINGS[worker], {name: value}).settings, name)
        if wanted == default:
            continue
        async with adopted(block(worker, {})) as bench:
            await bench.call("configuration::set", id=bench.adopted.id, value={name: value})
            assert await bench.changed(name) == wanted
            tier = setting_info(attribute).tier
            assert bench.calls == ([] if tier == "live" else [tier])
            await bench.call("configuration::reset", id=bench.adopted.id)
            assert await bench.changed(name) == default
        return
    assert worker == "pubsub", "only pub/sub has a setting with one value"


@pytest.mark.parametrize("worker", sorted(ADOPTED))
async def test_an_entry_shows_what_the_file_says_and_refuses_what_the_schema_does(worker: str) -> None:
    async with adopted(block(worker, {})) as bench:
        described = await bench.call("configuration::schema", id=bench.adopted.id)
        assert (described["name"], described["description"]) == ADOPTED[worker]
        shown = (await bench.call("configuration::get", id=bench.adopted.id))["value"]
        assert structure(SETTINGS[worker], shown).settings == bench.adopted.live.value
        with pytest.raises(WireError, match="SCHEMA_INVALID"):
            await bench.call("configuration::set", id=bench.adopted.id, value={"no_such_key": 1})
        assert (await bench.call("configuration::history", id=bench.adopted.id))["values"] == []


@pytest.mark.parametrize(
    ("worker", "value"),
    [
        ("state", {"adapter": {"name": "redis"}}),
        ("state", {"max_value_bytes": 0}),
        ("http", {"concurrency_request_limit": 0}),
        ("http", {"cors": {"allowed_origin": ["*"]}}),
        ("queue", {"queue_configs": {"a": {"concurrency": 0}}}),
        ("queue", {"adapter": {"name": "nonsense"}}),
        ("pubsub", {"adapter": {"name": "local", "config": {"redis_url": "x"}}}),
    ],
)
async def test_what_is_out_of_bounds_is_refused_when_it_is_set(worker: str, value: Any) -> None:
    async with adopted(block(worker, {})) as bench:
        before = bench.adopted.live.value
        with pytest.raises(WireError, match="SCHEMA_INVALID: schema validation failed"):
            await bench.call("configuration::set", id=bench.adopted.id, value=value)
        assert bench.adopted.live.value is before


async def test_what_cannot_be_carried_out_changes_nothing() -> None:
    async with adopted(block("http", {"port": 5}), failing=ConfigError) as bench:
        await bench.call("configuration::set", id="iii-http", value={"port": 6, "default_timeout": 7})
        before = bench.adopted.live.value
        assert await bench.call("iii-http::on-config-change") == {"ok": True, "applied": False}
        assert bench.adopted.live.value is before
        assert bench.adoption.statistics().refused >= 1


async def test_what_the_schema_admits_and_the_settings_do_not_changes_nothing() -> None:
    async with adopted(block("queue", {})) as bench:
        await bench.call("configuration::set", id="iii-queue", value={"queue_configs": {"a": {"type": "fifo"}}})
        assert list(await bench.changed("queue_configs")) == ["default"]


async def test_a_value_that_is_stored_already_counts_from_the_start_unless_it_is_bad() -> None:
    for value, expected in (
        ({"max_value_bytes": 5}, 5),
        ({"max_value_bytes": "${UNSET}"}, 9),
        ({"nonsense": 1}, 9),
        (None, 9),
    ):
        registry = Registry(environ={}, wall_ms=lambda: 0)
        async with open_engine() as core, trio.open_nursery() as nursery, open_local(core, "user") as user:
            user.injects = True  # as a connection does
            await nursery.start(ConfigurationModule(Live(ConfigurationSettings()), registry).run, core)
            said = {"id": "iii-state", "name": "", "description": "", "schema": {}, "initial_value": value}
            await user.invoke("configuration::register", Json.of(said))
            assert (
                Adoption(registry).read(block("state", {"max_value_bytes": 9})).live.value.max_value_bytes == expected
            )
            nursery.cancel_scope.cancel()


async def test_a_port_that_the_system_chose_stays_as_long_as_none_is_asked_for() -> None:
    async with adopted(block("http", {"port": 0})) as bench:
        bench.adopted.live.set(attrs.evolve(bench.adopted.live.value, port=4711))
        bench.adopted.note_chosen()
        await bench.call("configuration::set", id="iii-http", value={"default_timeout": 7})
        assert (await bench.changed("port"), bench.calls) == (4711, [])
        await bench.call("configuration::set", id="iii-http", value={"port": 4712})
        assert (await bench.changed("port"), bench.calls) == (4712, ["rebind"])


async def test_the_command_line_stays_above_what_is_set() -> None:
    async with adopted(block("http", {}, {"port": 1})) as bench:
        await bench.call("configuration::set", id="iii-http", value={"port": 2, "default_timeout": 7})
        assert (await bench.changed("port"), bench.adopted.live.value.default_timeout) == (1, 7)
        assert bench.calls == []


async def test_a_change_that_hangs_is_tried_twice_and_then_given_up(autojump_clock: Any) -> None:
    async with adopted(block("http", {})) as bench:

        async def hang(settings: Any) -> Any:
            bench.calls.append("rebind")
            await trio.sleep_forever()

        bench.adopted.hands = Hands(rebind=hang)
        await bench.call("configuration::set", id="iii-http", value={"port": 6})
        began = trio.current_time()
        assert await bench.changed("port") == 3111
        assert trio.current_time() - began >= 25
        assert bench.calls[:2] == ["rebind", "rebind"]


async def test_calling_the_handler_with_anything_tells_it_nothing() -> None:
    async with adopted(block("state", {})) as bench:
        event = {"new_value": {"max_value_bytes": 1}, "id": "iii-http"}
        assert await bench.call("iii-state::on-config-change", **event) == {"ok": True}
        assert bench.adopted.live.value.max_value_bytes is None
        entry = bench.core.functions.get("default", "iii-state::on-config-change")
        assert entry is not None
        assert entry.metadata.decode() == {"internal": True}


async def test_a_withdrawn_worker_leaves_nothing_but_what_was_set() -> None:
    for kept in (False, True):
        async with adopted(block("state", {})) as bench:
            if kept:
                await bench.call("configuration::set", id="iii-state", value={"max_value_bytes": 5})
            await bench.adoption.withdraw(bench.adopted)
            assert bench.core.functions.get("default", "iii-state::on-config-change") is None
            assert bench.core.triggers.get("iii-state::config-watch") is None
            assert (bench.registry.get("iii-state") is not None) == kept
