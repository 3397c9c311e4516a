"""Roads by which a session without the right might come to a secret of the configuration, all of them closed."""

import json
from pathlib import Path
from typing import Any

import pytest
from configuration_harness import Bench, configuration, session
from module_harness import ask, running

from iii_trio.config import ConfigurationSettings, Live
from iii_trio.engine import LocalPeer, open_local
from iii_trio.modules.configuration import ConfigurationModule, EntryFiles, Registry
from iii_trio.modules.configuration.secrets import MASK, masked
from iii_trio.protocol.errors import WireError

SECRET = "s3cr3t-value"
MARKED = {"type": "object", "properties": {"pin": {"writeOnly": True}, "note": {"type": "string"}}}


async def refused(peer: LocalPeer, verb: str, payload: dict[str, Any]) -> WireError:
    with pytest.raises(WireError) as raised:
        await ask(peer, f"configuration::{verb}", payload)
    return raised.value


def described(schema: Any = MARKED, **more: Any) -> dict[str, Any]:
    return {"id": "x", "name": "X", "description": "", "schema": schema, **more}


async def test_the_refusal_of_a_value_does_not_quote_what_the_mask_stands_for() -> None:
    schema = {**MARKED, "anyOf": [{"required": ["never"]}, {"properties": {"note": {"const": "fine"}}}]}
    grants = ("configuration::set", "configuration::register")
    async with configuration() as bench, session(bench.core, *grants) as limited:
        await bench.register(schema=schema)
        await bench.call("set", id="x", value={"pin": SECRET, "note": "fine"})
        other = {"pin": MASK, "note": "other"}
        for found in (
            await refused(limited, "set", {"id": "x", "value": other}),
            await refused(limited, "set", {"id": "x", "value": {"note": "other"}, "merge": True}),
            await refused(limited, "register", described(schema, initial_value=other)),
        ):
            assert found.code == "SCHEMA_INVALID"
            assert SECRET not in found.message


async def test_a_mask_in_an_initial_value_keeps_the_secret() -> None:
    async with configuration() as bench, session(bench.core, "configuration::register") as limited:
        await bench.register(schema=MARKED)
        await bench.call("set", id="x", value={"pin": SECRET})
        said = described(initial_value={"pin": MASK, "note": "n"})
        shown = await ask(limited, "configuration::register", said)
        assert shown["value"] == {"pin": MASK, "note": "n"}
        assert (await bench.call("get", id="x"))["value"] == {"pin": SECRET, "note": "n"}
        refusing = await refused(limited, "register", {**said, "initial_value": {"note": MASK, "other": MASK}})
        assert refusing.code == "SECRET_MASKED"


@pytest.mark.parametrize("schema", [{"type": "object"}, {**MARKED, "title": "the same marks"}])
async def test_marks_of_an_entry_that_is_empty_now_stay(schema: Any) -> None:
    async with configuration() as bench, session(bench.core, "configuration::register") as limited:
        await bench.register(schema=MARKED)
        assert (await refused(limited, "register", described(schema))).code == "FORBIDDEN"
        await bench.call("set", id="x", value={"pin": SECRET})
        await bench.call("reset", id="x")
        assert (await refused(limited, "register", described(schema))).code == "FORBIDDEN"


async def test_secrets_of_the_past_keep_the_schema_in_its_place() -> None:
    async with configuration() as bench, session(bench.core, "configuration::register") as limited:
        await bench.register(schema={"type": ["object", "null"]})
        await bench.call("set", id="x", value={"password": SECRET})
        await bench.call("set", id="x", value={})
        assert (await refused(limited, "register", described(True))).code == "FORBIDDEN"


async def test_a_guess_is_not_confirmed() -> None:
    async with configuration() as bench, session(bench.core, "configuration::set") as limited:
        await bench.register(schema=MARKED)
        await bench.call("set", id="x", value={"pin": SECRET, "note": "n"})
        for guess in (SECRET, "wrong"):
            question = {"id": "x", "value": {"pin": MASK, "note": "m"}, "expected": {"pin": guess, "note": "n"}}
            assert (await refused(limited, "set", question)).code == "CONFLICT"
        question = {"id": "x", "value": {"pin": MASK, "note": "m"}, "expected": {"pin": MASK, "note": "n"}}
        assert (await ask(limited, "configuration::set", question))["new_value"] == {"pin": MASK, "note": "m"}


async def test_a_session_reads_no_variable_of_the_engine() -> None:
    environ = {"III_TOKEN": SECRET, "PLACE": "here"}
    grants = ("configuration::register", "configuration::set", "configuration::get")
    async with configuration(environ) as bench, session(bench.core, *grants) as limited:
        for placeholder in ("${III_TOKEN}", "a ${III_TOKEN:x} b"):
            said = described({}, initial_value={"deep": [placeholder]})
            assert (await refused(limited, "register", said)).code == "FORBIDDEN"
        await bench.register(schema={})
        await bench.call("set", id="x", value={"at": "${PLACE}", "password": "${III_TOKEN}"})
        for value in ({"at": "${III_TOKEN}"}, {"note": "${PLACE}"}):
            assert (await refused(limited, "set", {"id": "x", "value": value})).code == "FORBIDDEN"
        kept = {"at": "${PLACE}", "password": MASK, "note": "n"}
        await ask(limited, "configuration::set", {"id": "x", "value": kept})
        assert (await bench.call("get", id="x"))["value"] == {"at": "here", "password": SECRET, "note": "n"}


@pytest.mark.parametrize(
    "value",
    [
        {"url": "jdbc:postgresql://user:pw@host/db"},
        {"url": "${URL:redis://:pw@host}"},
        {"urls": "http://a, http://user:pw@b"},
        {"password": 12345678},
        {"api_key": 1.5},
    ],
)
def test_more_that_is_masked(value: Any) -> None:
    assert masked(value, None) == dict.fromkeys(value, MASK)


async def restarted(bench_files: Path) -> tuple[Registry, ConfigurationModule]:
    registry = Registry(files=EntryFiles(bench_files), environ={}, wall_ms=lambda: 0)
    await registry.load()
    return registry, ConfigurationModule(Live(ConfigurationSettings()), registry)


async def test_secrets_stay_secret_until_their_owner_is_back(tmp_path: Path) -> None:
    registry, module = await restarted(tmp_path)
    async with running(module) as (core, user):
        user.injects = True
        await Bench(core, user, registry, module, {}).register(schema=MARKED)
        await ask(user, "configuration::set", {"id": "x", "value": {"pin": SECRET, "note": "n"}})
    (tmp_path / "hand.yaml").write_text(f"id: hand\nvalue: {{pin: {SECRET}}}\n")
    registry, module = await restarted(tmp_path)
    grants = ("configuration::register", "configuration::get", "configuration::history")
    async with running(module) as (core, user), session(core, *grants) as limited:
        user.injects = True
        for raw in (True, False):
            assert SECRET not in json.dumps(await ask(limited, "configuration::get", {"id": "x", "raw": raw}))
            assert SECRET not in json.dumps(await ask(limited, "configuration::get", {"id": "hand", "raw": raw}))
        assert SECRET not in json.dumps(await ask(limited, "configuration::history", {"id": "x"}))
        assert (await refused(limited, "register", described({}))).code == "FORBIDDEN"
        assert (await refused(limited, "register", described({}, id="hand"))).code == "FORBIDDEN"
        assert (await ask(limited, "configuration::register", described()))["value"] == {"pin": MASK, "note": "n"}
        assert (await ask(user, "configuration::get", {"id": "x"}))["value"] == {"pin": SECRET, "note": "n"}


async def test_what_comes_by_a_trigger_or_a_queue_speaks_for_nobody() -> None:
    async with configuration({"III_TOKEN": SECRET}) as bench, open_local(bench.core, "pubsub") as module:
        await bench.register(schema=MARKED)
        await bench.call("set", id="x", value={"pin": SECRET})
        assert (await ask(module, "configuration::get", {"id": "x"}))["value"] == {"pin": MASK}
        assert (await refused(module, "register", described({}))).code == "FORBIDDEN"
        placing = {"id": "x", "value": {"note": "${III_TOKEN}"}}
        assert (await refused(module, "set", placing)).code == "FORBIDDEN"
