"""`configuration::*` over memory: shapes, error codes, templates, compare and set, history, secrets (spec §4)."""

from typing import Any

import pytest
import trio
from configuration_harness import PORT_SCHEMA, configuration, session
from module_harness import ask, bind, record

from iii_trio.config import ConfigurationSettings
from iii_trio.modules.configuration.registry import CONFIGURATION_ENTRIES
from iii_trio.protocol.errors import WireError

SECRET_SCHEMA = {
    "type": "object",
    "properties": {"key": {"type": "string", "writeOnly": True}, "host": {"type": "string"}},
}


async def test_register_answers_the_entry_and_keeps_the_value_unless_it_brings_one() -> None:
    async with configuration() as bench:
        first = await bench.register(initial_value={"port": 1}, metadata={"team": "a"})
        again = await bench.call(
            "register", id="x", name="Y", description="a y", schema=PORT_SCHEMA, initial_value=None
        )
        described = await bench.call("schema", id="x")
    assert first == {
        "id": "x",
        "name": "X",
        "description": "an x",
        "schema": PORT_SCHEMA,
        "metadata": {"team": "a"},
        "value": {"port": 1},
    }
    assert again == {"id": "x", "name": "Y", "description": "a y", "schema": PORT_SCHEMA, "value": {"port": 1}}
    assert described == {"id": "x", "name": "Y", "description": "a y", "schema": PORT_SCHEMA}


async def test_set_get_and_list_have_the_shapes_of_the_reference() -> None:
    async with configuration() as bench:
        await bench.register("b")
        await bench.register("a")
        assert await bench.call("get", id="b") == {"id": "b", "value": None}
        assert await bench.call("set", id="b", value={"port": 2}) == {"old_value": None, "new_value": {"port": 2}}
        assert await bench.call("set", id="b", value={"port": 3}) == {
            "old_value": {"port": 2},
            "new_value": {"port": 3},
        }
        assert await bench.call("get", id="b") == {"id": "b", "value": {"port": 3}}
        listed = (await ask(bench.user, "configuration::list"))["configurations"]
    assert [(row["id"], "value" in row) for row in listed] == [("a", False), ("b", False)]


@pytest.mark.parametrize(
    ("name", "payload", "code", "message"),
    [
        ("get", {"id": "no"}, "NOT_FOUND", "configuration 'no' not found"),
        ("schema", {"id": "no"}, "NOT_FOUND", "configuration 'no' not found"),
        (
            "set",
            {"id": "no", "value": 1},
            "NOT_REGISTERED",
            "configuration 'no' is not registered; call configuration::register first",
        ),
        ("set", {"id": "No!", "value": 1}, "INVALID_ID", "invalid configuration id 'No!': must match [a-z0-9_-]{1,64}"),
        (
            "register",
            {"id": "a::b", "name": "", "description": "", "schema": {}},
            "INVALID_ID",
            "invalid configuration id 'a::b': must match [a-z0-9_-]{1,64}",
        ),
        (
            "set",
            {"id": "x", "value": {"port": "no"}},
            "SCHEMA_INVALID",
            'schema validation failed: port: "no" is not of type "integer"',
        ),
        (
            "register",
            {"id": "y", "name": "", "description": "", "schema": {"type": "nonsense"}},
            "SCHEMA_INVALID",
            "schema validation failed: invalid JSON Schema: ",
        ),
        (
            "register",
            {"id": "y", "name": "", "description": "", "schema": {"$ref": "http://127.0.0.1:1/x"}},
            "SCHEMA_INVALID",
            "schema validation failed: invalid JSON Schema: ",
        ),
        (
            "set",
            {"id": "unowned", "value": 1},
            "SCHEMA_UNAVAILABLE",
            "configuration 'unowned' has no schema available yet; the owning worker must register before values can be set",
        ),
        (
            "set",
            {"value": 1},
            "deserialization_error",
            "Failed to deserialize input for configuration::set: missing field `id`",
        ),
        (
            "set",
            {"id": "x"},
            "deserialization_error",
            "Failed to deserialize input for configuration::set: missing field `value`",
        ),
        ("set", {"id": "x", "value": "x" * 2**20}, "VALUE_TOO_LARGE", "the value is 1048578 bytes"),
    ],
)
async def test_refusals(name: str, payload: dict[str, Any], code: str, message: str) -> None:
    async with configuration() as bench:
        await bench.register(initial_value={"port": 7})
        await bench.register("unowned", schema=None)
        error = await bench.refused(name, **payload)
        assert (error.code, error.message[: len(message)]) == (code, message)
        assert await bench.call("get", id="x") == {"id": "x", "value": {"port": 7}}


async def test_there_is_a_bound_on_entries() -> None:
    async with configuration() as bench:
        for number in range(CONFIGURATION_ENTRIES):
            await bench.register(f"e{number}", schema={})
        assert (await bench.refused("register", id="more", name="", description="", schema={})).code == "ADAPTER_ERROR"
        await bench.register("e0", schema={"type": "object"})


async def test_templates_are_kept_and_expanded_when_they_are_read() -> None:
    async with configuration({"PORT": "8080"}) as bench:
        await bench.register()
        written = {"port": "${PORT}", "name": "at ${HOST:somewhere}"}
        assert (await bench.call("set", id="x", value=written))["new_value"] == written
        assert (await bench.call("get", id="x"))["value"] == {"port": 8080, "name": "at somewhere"}
        assert (await bench.call("get", id="x", raw=True))["value"] == written
        bench.environ["PORT"] = "none"
        assert (await bench.refused("get", id="x")).code == "SCHEMA_INVALID"
        del bench.environ["PORT"]
        error = await bench.refused("get", id="x")
        assert (error.code, error.message) == (
            "EXPAND_FAILED",
            "configuration 'x' references unset environment variable(s) with no default: PORT",
        )


async def test_a_value_that_cannot_be_expanded_yet_is_taken_unchecked() -> None:
    async with configuration() as bench:
        await bench.register()
        await bench.call("set", id="x", value={"port": "${LATER}"})
        bench.environ["LATER"] = "5"
        assert (await bench.call("get", id="x"))["value"] == {"port": 5}


async def test_compare_and_set() -> None:
    async with configuration({"PORT": "5"}) as bench:
        await bench.register(initial_value={"port": "${PORT}", "name": "n"})
        error = await bench.refused("set", id="x", value={"port": 6}, expected={"port": 4})
        assert error.code == "CONFLICT"
        await bench.call("set", id="x", value={"port": 6}, expected={"name": "n", "port": 5})
        await bench.call("set", id="x", value={"port": 7}, expected={"port": 6})
        assert (await bench.refused("set", id="x", value={"port": 8}, expected=None)).code == "CONFLICT"
        assert (await bench.call("get", id="x"))["value"] == {"port": 7}
        await bench.register("fresh")
        await bench.call("set", id="fresh", value={"port": 1}, expected=None)


async def test_merge_changes_only_what_it_names() -> None:
    async with configuration() as bench:
        await bench.register(initial_value={"port": 5, "name": "n"})
        changed = await bench.call("set", id="x", value={"port": 6, "name": None}, merge=True)
        assert changed["new_value"] == {"port": 6}


async def test_history_has_the_last_values_and_who_set_them() -> None:
    async with configuration() as bench:
        await bench.register(initial_value={"port": 1})
        for port in range(2, 30):
            await bench.call("set", id="x", value={"port": port})
        await bench.call("set", id="x", value={"port": 29})
        await bench.call("reset", id="x")
        values = (await bench.call("history", id="x"))["values"]
    assert len(values) == 20
    assert "value" not in values[0]
    assert [row["value"] for row in values[1:3]] == [{"port": 29}, {"port": 28}]
    assert values[1]["by"] == "user"


async def test_reset_goes_back_to_nothing_or_takes_out_what_nobody_owns() -> None:
    async with configuration() as bench:
        await bench.register(initial_value={"port": 1})
        assert await bench.call("reset", id="x") == {"old_value": {"port": 1}, "new_value": None}
        assert (await bench.call("get", id="x"))["value"] is None
        await bench.register("unowned", schema=None, initial_value=1)
        await bench.call("reset", id="unowned")
        assert (await bench.refused("get", id="unowned")).code == "NOT_FOUND"


async def test_secrets_are_masked_for_sessions_without_the_grant() -> None:
    async with configuration() as bench, session(bench.core, "configuration::get", "configuration::set") as limited:
        await bench.register(schema=SECRET_SCHEMA, initial_value={"key": "k1", "host": "h", "password": "p"})
        shown = {"key": "********", "host": "h", "password": "********"}
        assert (await ask(limited, "configuration::get", {"id": "x"}))["value"] == shown
        async with session(bench.core, "configuration::*") as entitled:
            assert (await ask(entitled, "configuration::get", {"id": "x"}))["value"]["key"] == "k1"
        changed = await ask(limited, "configuration::set", {"id": "x", "value": {**shown, "host": "h2"}})
        assert changed == {"old_value": shown, "new_value": {**shown, "host": "h2"}}
        assert (await bench.call("get", id="x"))["value"] == {"key": "k1", "host": "h2", "password": "p"}
        with pytest.raises(WireError) as raised:
            await ask(limited, "configuration::set", {"id": "x", "value": {"nothing": "********"}})
        assert raised.value.code == "SECRET_MASKED"


async def test_a_session_cannot_take_the_marks_off_an_entry() -> None:
    async with configuration() as bench, session(bench.core, "configuration::register") as limited:
        await bench.register(schema=SECRET_SCHEMA, initial_value={"key": "k1"})
        asked = {"id": "x", "name": "", "description": "", "schema": {}}
        with pytest.raises(WireError) as raised:
            await ask(limited, "configuration::register", asked)
        assert raised.value.code == "FORBIDDEN"
        same = await ask(limited, "configuration::register", {**asked, "schema": SECRET_SCHEMA})
        assert same["value"] == {"key": "********"}


async def test_history_and_errors_show_a_session_no_secret() -> None:
    async with configuration() as bench, session(bench.core, "configuration::get", "configuration::history") as limited:
        await bench.register(schema=SECRET_SCHEMA, initial_value={"key": "k1"})
        await bench.register(schema={"properties": {"key": {"type": "integer", "writeOnly": True}}})
        with pytest.raises(WireError) as raised:
            await ask(limited, "configuration::get", {"id": "x"})
        assert "k1" not in raised.value.message
        history = await ask(limited, "configuration::history", {"id": "x"})
        assert history["values"][0]["value"] == {"key": "********"}


async def test_events_tell_of_each_change_once_and_in_order() -> None:
    async with configuration({"P": "3"}) as bench:
        every, updates = record(bench.user, "on::any"), record(bench.user, "on::update")
        bind(bench.core, bench.user, "configuration", "on::any", {})
        wanted = {"configuration_id": "x", "event_types": ["configuration:updated", "configuration:nonsense"]}
        bind(bench.core, bench.user, "configuration", "on::update", wanted, metadata={"m": 1})
        await bench.register(initial_value={"port": "${P}"}, metadata={"team": 1})
        await bench.register(metadata={"team": 1})
        await bench.register("other")
        await bench.call("set", id="x", value={"port": 4})
        await bench.call("set", id="x", value={"port": 4})
        assert await updates.wait(1) == [
            {
                "type": "configuration",
                "event_type": "configuration:updated",
                "id": "x",
                "name": "X",
                "description": "an x",
                "schema": PORT_SCHEMA,
                "metadata": {"team": 1},
                "old_value": {"port": 3},
                "new_value": {"port": 4},
            }
        ]
        assert updates.metadata == [{"m": 1}]
        seen = [(event["id"], event["event_type"]) for event in await every.wait(3)]
        assert seen == [
            ("x", "configuration:registered"),
            ("other", "configuration:registered"),
            ("x", "configuration:updated"),
        ]


async def test_events_are_masked_for_bindings_of_limited_sessions() -> None:
    async with configuration() as bench, session(bench.core, "nothing") as limited:
        recorder = record(limited, "on::any")
        bind(bench.core, limited, "configuration", "on::any", None)
        await bench.register(schema=SECRET_SCHEMA, initial_value={"key": "k1"})
        [event] = await recorder.wait(1)
        assert event["new_value"] == {"key": "********"}


@pytest.mark.parametrize(
    "config", [[], {"event_types": "configuration:updated"}, {"configuration_id": 1}, {"condition_function_id": {}}]
)
async def test_a_trigger_config_of_wrong_types_is_refused(config: Any) -> None:
    async with configuration() as bench:
        with pytest.raises(WireError, match="Failed to parse configuration trigger config: "):
            bind(bench.core, bench.user, "configuration", "f", config)


async def test_an_entry_goes_when_its_last_trigger_has_been_gone_for_the_ttl(autojump_clock: Any) -> None:
    async with configuration(settings=ConfigurationSettings(ttl_seconds=60)) as bench:
        record(bench.user, "f")
        gone = record(bench.user, "gone")
        bind(bench.core, bench.user, "configuration", "gone", {"event_types": ["configuration:deleted"]})
        await bench.register()
        await bench.register("untouched")
        binding = bind(bench.core, bench.user, "configuration", "f", {"configuration_id": "x"})
        bench.core.triggers.unregister(binding.id)
        binding = bind(bench.core, bench.user, "configuration", "f", {"configuration_id": "x"})
        bench.core.triggers.unregister(binding.id)
        await trio.sleep(61)
        [event] = await gone.wait(1)
        assert (event["id"], event["new_value"]) == ("x", None)
        assert [entry.id for entry in bench.registry.entries()] == ["untouched"]
