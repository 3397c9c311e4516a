"""`engine::…::info` of types, bindings and workers: shapes, namespaces, errors (spec/observability-introspection.md §14)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from module_harness import ask, bind, record, running

from iii_trio.__about__ import __version__
from iii_trio.config import HttpSettings, Live, PubSubSettings
from iii_trio.engine import Engine, LocalPeer
from iii_trio.modules.http import HttpModule
from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.protocol.errors import WireError
from iii_trio.testing.raw import RawPort, open_port


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[Engine, LocalPeer, RawPort]]:
    modules = (
        IntrospectionModule(),
        PubSubModule(Live(PubSubSettings())),
        HttpModule(Live(HttpSettings()), listen=False),
    )
    async with running(*modules) as (core, user), open_port(core) as port:
        yield core, user, port


async def refused(user: LocalPeer, function_id: str, payload: Any) -> tuple[str, str]:
    with pytest.raises(WireError) as caught:
        await ask(user, function_id, payload)
    return caught.value.code, caught.value.message


# -- trigger types ----------------------------------------------------------------------------------------------------


async def test_the_http_type_shows_all_its_contracts() -> None:
    async with engine() as (core, user, _):
        record(user, "f")
        for path in ("a", "b"):
            bind(core, user, "http", "f", {"api_path": path, "http_method": "GET"}, id=path)
        info = await ask(user, "engine::triggers::info", {"id": "http"})
        schemas = ("configuration_schema", "request_schema", "response_schema")
        assert {key: value for key, value in info.items() if key not in schemas} == {
            "id": "http",
            "namespace": "default",
            "worker_name": "iii-http",
            "description": "HTTP API trigger",
            "instance_count": 2,
        }
        assert info["configuration_schema"]["required"] == ["api_path"]
        assert info["request_schema"]["required"] == ["query_params", "path_params", "headers", "path", "method"]
        assert set(info["response_schema"]["properties"]) == {"status_code", "headers", "body"}
        for name in schemas:
            assert info[name]["$schema"] == "http://json-schema.org/draft-07/schema#"
        # an alias finds the type that it stands for, and a list row has no schema at all
        assert await ask(user, "engine::triggers::info", {"id": "api"}) == info
        rows = (await ask(user, "engine::triggers::list"))["triggers"]
        assert [set(row) for row in rows] == [{"id", "namespace", "worker_name", "description"}] * len(rows)


async def test_a_workers_type_is_found_in_its_namespace_and_counts_its_own_bindings() -> None:
    async with engine() as (core, user, port):
        for namespace in ("eu", "us"):
            worker = await port.connect(name=f"provider-{namespace}", namespace=namespace)
            worker.send({"type": "registertriggertype", "id": "hook", "description": "Calls."})
            await worker.settled()
            bind(core, user, "hook", "f", {}, id=namespace, trigger_namespace=namespace)
        bind(core, user, "hook", "f", {}, id="second", trigger_namespace="us")
        info = await ask(user, "engine::triggers::info", {"id": "hook", "namespace": "us"})
        assert info == {
            "id": "hook",
            "namespace": "us",
            "worker_name": "provider-us",
            "description": "Calls.",
            "instance_count": 2,
        }
        assert await refused(user, "engine::triggers::info", {"id": "hook"}) == (
            "NOT_FOUND",
            "Trigger type 'hook' is not registered in namespace 'default'.",
        )
        assert (await refused(user, "engine::triggers::info", {"id": "hook", "namespace": " "}))[0] == (
            "INVALID_NAMESPACE"
        )
        assert (await refused(user, "engine::triggers::info", {}))[0] == "deserialization_error"


# -- registered triggers ----------------------------------------------------------------------------------------------


async def test_a_binding_is_shown_with_its_type_and_its_function() -> None:
    async with engine() as (core, user, _):
        record(user, "f")
        bind(core, user, "subscribe", "f", {"topic": "t"}, id="b", metadata={"m": 1})
        info = await ask(user, "engine::registered-triggers::info", {"id": "b"})
        assert info == {
            "id": "b",
            "trigger_type": "subscribe",
            "function_id": "f",
            "namespace": "default",
            "worker_name": "user",
            "config": {"topic": "t"},
            "state": "live",
            "metadata": {"m": 1},
            "trigger": await ask(user, "engine::triggers::info", {"id": "subscribe"}),
            "function": await ask(user, "engine::functions::info", {"function_id": "f"}),
        }
        assert "config_summary" not in info


async def test_what_is_missing_behind_a_binding_is_null() -> None:
    async with engine() as (core, user, _):
        bind(core, user, "moon", "gone::f", {"phase": 1}, id="b")
        info = await ask(user, "engine::registered-triggers::info", {"id": "b"})
        assert info["state"] == "parked"
        assert "nobody provides the trigger type 'moon'" in info["why"]
        assert (info["trigger"], info["function"], info["worker_name"]) == (None, None, "gone")
        assert "metadata" not in info
        assert await refused(user, "engine::registered-triggers::info", {"id": "x"}) == (
            "NOT_FOUND",
            "Registered trigger 'x' was not found.",
        )


# -- baggage ----------------------------------------------------------------------------------------------------------


async def test_the_baggage_of_a_call_can_be_looked_at() -> None:
    async with engine() as (_, user, _port):
        brought = "tenant=a%20b;secret, empty=,=nameless,alone,iii.function.id=f"
        everything = await ask(user, "engine::baggage::get_all", {}, baggage=brought)
        assert everything == {"baggage": {"tenant": "a b", "empty": "", "iii.function.id": "f"}}
        assert await ask(user, "engine::baggage::get", {"key": "tenant"}, baggage=brought) == {"value": "a b"}
        assert await ask(user, "engine::baggage::get", {"key": "other"}, baggage=brought) == {"value": None}
        assert await ask(user, "engine::baggage::get_all") == {"baggage": {}}
        assert await ask(user, "engine::baggage::set", {"key": "k", "value": "v"}) == {
            "success": True,
            "note": "Baggage set in new context. For propagation, use SDK-level baggage headers.",
        }
        for name, payload in (("get", {}), ("set", {"key": "k"}), ("set", {"key": "k", "value": 1})):
            assert (await refused(user, f"engine::baggage::{name}", payload))[0] == "deserialization_error"


# -- workers ----------------------------------------------------------------------------------------------------------


async def test_a_worker_is_shown_with_all_that_it_registered() -> None:
    async with engine() as (core, user, port):
        worker = await port.connect(
            name="shop", runtime="go", os="linux", pid=7, telemetry={"language": "go", "amplitude_api_key": "k"}
        )
        worker.register("shop::sell", description="Sells.")
        worker.send({"type": "registertriggertype", "id": "till", "description": "Rings."})
        await worker.settled()
        bind(core, user, "till", "shop::sell", {"n": 1}, id="rings")
        bind(core, user, "subscribe", "other::f", {"topic": "t"}, id="of somebody else")
        info = await ask(user, "engine::workers::info", {"name": "shop"})
        [listed] = (await ask(user, "engine::workers::list", {"search": "shop"}))["workers"]
        assert info["worker"] == listed
        summary = {
            *("name", "description", "version", "id", "namespace", "runtime", "os", "status", "function_count"),
            *("connected_at_ms", "active_invocations", "isolation", "ip_address"),
        }
        ours = {"functions", "telemetry"}
        assert set(info["worker"]) == summary | ours | {"internal", "pid"}
        assert (info["worker"]["internal"], info["worker"]["pid"]) == (False, 7)
        assert info["worker"]["telemetry"] == {"language": "go", "project_name": None, "framework": None}
        assert info["functions"] == [
            {"function_id": "shop::sell", "namespace": "default", "worker_name": "shop", "description": "Sells."}
        ]
        assert info["trigger_types"] == [
            {"id": "till", "namespace": "default", "worker_name": "shop", "description": "Rings."}
        ]
        assert info["registered_triggers"] == [
            {
                "id": "rings",
                "trigger_type": "till",
                "function_id": "shop::sell",
                "namespace": "default",
                "worker_name": "shop",
                "config": {"n": 1},
                "config_summary": '{"n":1}',
                "state": "live",
            }
        ]


async def test_a_module_is_shown_under_either_of_its_names() -> None:
    async with engine() as (core, user, _):
        record(user, "f")
        bind(core, user, "http", "f", {"api_path": "x"}, id="route")
        info = await ask(user, "engine::workers::info", {"name": "iii-http"})
        assert info["worker"] == {
            "name": "iii-http",
            "description": "Serves functions over HTTP.",
            "version": __version__,
            "id": "http",
            "namespace": "default",
            "runtime": "engine",
            "os": None,
            "status": "available",
            "function_count": 0,
            "connected_at_ms": info["worker"]["connected_at_ms"],
            "active_invocations": 0,
            "isolation": "in-process",
            "ip_address": None,
            "functions": [],
            "telemetry": None,
            "internal": False,
        }
        assert [row["id"] for row in info["trigger_types"]] == ["http"]
        assert info["trigger_types"][0]["worker_name"] == "iii-http"
        assert info["registered_triggers"] == [], "the route's target is another worker's"
        assert await ask(user, "engine::workers::info", {"name": "http"}) == info
        mine = await ask(user, "engine::workers::info", {"name": "iii-engine-functions"})
        assert mine["worker"]["internal"] is True


async def test_a_worker_without_a_name_is_found_by_its_id() -> None:
    async with engine() as (_, user, port):
        worker = await port.connect(runtime="browser", pid=None)
        worker.register("tab::open")
        await worker.settled()
        info = await ask(user, "engine::workers::info", {"id": worker.worker_id})
        assert (info["worker"]["name"], info["worker"]["runtime"]) == (None, "browser")
        assert "pid" not in info["worker"]
        assert [row["function_id"] for row in info["functions"]] == ["tab::open"]
        assert await refused(user, "engine::workers::info", {"id": "nobody"}) == (
            "NOT_FOUND",
            "Worker 'nobody' is not connected.",
        )


async def test_names_are_looked_up_by_the_rule_of_namespaces() -> None:
    async with engine() as (_, user, port):
        workers = {}
        for name, namespace in (("alone", "eu"), ("both", "eu"), ("both", "us")):
            worker = workers[name, namespace] = await port.connect(name=name, namespace=namespace)
            await worker.settled()

        async def found(**payload: Any) -> str:
            return str((await ask(user, "engine::workers::info", payload))["worker"]["id"])

        assert await found(name="alone") == workers["alone", "eu"].worker_id
        assert await found(name="both", namespace="us") == workers["both", "us"].worker_id
        assert await refused(user, "engine::workers::info", {"name": "both"}) == (
            "NOT_FOUND",
            "Worker 'both' is ambiguous: it is connected in namespace(s): eu, us. Pass `namespace` to disambiguate.",
        )
        assert await refused(user, "engine::workers::info", {"name": "alone", "namespace": "us"}) == (
            "NOT_FOUND",
            "Worker 'alone' is not connected in the requested namespace; it is connected in namespace(s): eu.",
        )
        assert await refused(user, "engine::workers::info", {"name": "x"}) == (
            "NOT_FOUND",
            "Worker 'x' is not connected.",
        )
        assert (await refused(user, "engine::workers::info", {"name": "x", "namespace": ""}))[0] == "INVALID_NAMESPACE"
        assert (await refused(user, "engine::workers::info", {}))[0] == "deserialization_error"
        default = await port.connect(name="both")
        await default.settled()
        assert await found(name="both") == default.worker_id
