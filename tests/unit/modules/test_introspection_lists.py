"""`engine::*::list` and `engine::functions::info`: what is shown, in which shape, and to whom."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from module_harness import ask, bind, record, running

from iii_trio.__about__ import __version__
from iii_trio.config import Live, PubSubSettings
from iii_trio.engine import Binding, Engine, LocalPeer, Reason, TypeClaim
from iii_trio.engine.access import ExposeFilter, Pattern, Session
from iii_trio.modules.introspection import IntrospectionModule
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.protocol.errors import TriggerRejected, WireError
from iii_trio.testing.raw import RawPort, RawWorker, open_port


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[Engine, LocalPeer, RawPort]]:
    async with (
        running(IntrospectionModule(), PubSubModule(Live(PubSubSettings()))) as (core, user),
        open_port(core) as port,
    ):
        yield core, user, port


async def ready(worker: RawWorker) -> RawWorker:
    await worker.settled()
    return worker


def ids(rows: dict[str, Any], key: str = "functions", name: str = "function_id") -> list[str]:
    return [row[name] for row in rows[key]]


async def test_a_function_is_listed_once_with_its_owner_and_vanishes_with_it() -> None:
    async with engine() as (_, user, port):
        worker = await port.connect(name="shop", namespace="eu")
        for _time in range(2):
            worker.register("orders::add", description="Adds.", metadata={"tier": 1})
        await ready(worker)
        [row] = (await ask(user, "engine::functions::list", {"prefix": "orders"}))["functions"]
        assert row == {
            "function_id": "orders::add",
            "namespace": "eu",
            "worker_name": "shop",
            "description": "Adds.",
            "metadata": {"tier": 1},
        }
        worker.cut()
        await port.gone(worker)
        assert await ask(user, "engine::functions::list", {"prefix": "orders"}) == {"functions": []}


async def test_owners_have_names_whoever_they_are() -> None:
    async with engine() as (_, user, port):
        nameless = await port.connect(runtime="browser")
        nameless.register("tab::open")
        nameless.register("plain")
        await ready(nameless)
        listed = await ask(user, "engine::functions::list", {"include_internal": True})
        owners = {row["function_id"]: row["worker_name"] for row in listed["functions"]}
        assert owners["tab::open"] == "tab"
        assert owners["plain"] == "plain"
        assert owners["publish"] == "iii-pubsub"
        assert owners["engine::functions::list"] == owners["engine::workers::register"] == "iii-engine-functions"


async def test_internal_functions_are_listed_on_request_only() -> None:
    async with engine() as (_, user, port):
        worker = await port.connect(name="w")
        worker.register("hidden", metadata={"internal": True})
        worker.register("shown", metadata={"internal": "yes"})
        worker.register("engine::queue::enqueue")
        await ready(worker)
        assert ids(await ask(user, "engine::functions::list")) == ["engine::queue::enqueue", "publish", "shown"]
        everything = ids(await ask(user, "engine::functions::list", {"include_internal": True}))
        assert {"hidden", "engine::tree", "engine::functions::info"} < set(everything)
        assert everything == sorted(everything)


async def test_filters_combine_and_a_search_ranks() -> None:
    async with engine() as (_, user, port):
        one, two = await port.connect(name="one"), await port.connect(name="two")
        one.register("a::mail::b")
        one.register("mailer")
        one.register("voicemail")
        two.register("aaa", description="Sends MAIL.")
        await ready(one)
        await ready(two)

        async def listed(**filters: Any) -> list[str]:
            return ids(await ask(user, "engine::functions::list", filters))

        assert await listed(search="Mail") == ["a::mail::b", "mailer", "voicemail", "aaa"]
        assert await listed(prefix="a") == ["a::mail::b", "aaa"]
        assert await listed(worker="two") == ["aaa"]
        assert await listed(worker="two", workers=["one"], prefix="a") == ["a::mail::b", "aaa"]
        assert await listed(workers=[]) == []
        assert await listed(search="nothing like it") == []


async def test_info_of_one_function_has_schemas_and_its_live_triggers() -> None:
    async with engine() as (core, user, port):
        record(user, "heard")
        bind(core, user, "subscribe", "heard", {"topic": "t"}, id="live")
        bind(core, user, "nobody-has-it", "heard", {}, id="parked")
        bind(core, user, "subscribe", "heard", {"topic": "t"}, id="elsewhere", namespace="other")
        info = await ask(user, "engine::functions::info", {"function_id": "heard"})
        assert info["registered_triggers"] == [{"id": "live", "trigger_type": "subscribe", "config": {"topic": "t"}}]
        assert "request_schema" not in info
        publish = await ask(user, "engine::functions::info", {"function_id": "publish"})
        assert publish["request_schema"]["required"] == ["topic", "data"]
        worker = await port.connect(name="w")
        worker.register("typed", request_format={"type": "object"}, response_format={"type": "string"})
        await ready(worker)
        typed = await ask(user, "engine::functions::info", {"function_id": "typed"})
        assert (typed["request_schema"], typed["response_schema"]) == ({"type": "object"}, {"type": "string"})


async def test_every_built_in_function_has_a_request_schema() -> None:
    async with engine() as (core, user, _):
        mine = [entry.id for entry in core.functions if entry.builtin]
        for function_id in mine:
            if function_id.startswith("engine::") or function_id == "publish":
                info = await ask(user, "engine::functions::info", {"function_id": function_id})
                assert info["request_schema"]["type"] == "object", function_id


async def test_a_batch_keeps_the_order_and_marks_what_is_missing() -> None:
    async with engine() as (_, user, _port):
        record(user, "f")
        result = await ask(user, "engine::functions::info", {"function_ids": ["publish", "gone", "f", "publish"]})
        assert ids(result) == ["publish", "gone", "f"]
        assert result["functions"][1] == {"function_id": "gone", "error": "not_found"}


@pytest.mark.parametrize(
    ("payload", "code", "text"),
    [
        ({"function_id": "f", "function_ids": ["f"]}, "INVALID_ARGUMENTS", "pass either `function_id` or"),
        ({}, "INVALID_ARGUMENTS", "missing field `function_id` (or `function_ids` for a batch)"),
        (None, "INVALID_ARGUMENTS", "missing field `function_id`"),
        ({"function_ids": []}, "INVALID_ARGUMENTS", "`function_ids` must be a non-empty array of function ids"),
        ({"function_ids": [1]}, "INVALID_ARGUMENTS", "`function_ids` must be a non-empty array of function ids"),
        ({"function_ids": [str(n) for n in range(33)]}, "INVALID_ARGUMENTS", "too many function_ids (max 32)"),
        ({"function_id": "gone"}, "NOT_FOUND", "Function 'gone' is not registered."),
        ({"function_id": "f", "namespace": " "}, "INVALID_NAMESPACE", "`namespace` is empty"),
        ({"function_id": 3}, "deserialization_error", "expected a string"),
    ],
)
async def test_info_says_what_is_wrong(payload: Any, code: str, text: str) -> None:
    async with engine() as (_, user, _port):
        with pytest.raises(WireError) as caught:
            await ask(user, "engine::functions::info", payload)
        assert caught.value.code == code
        assert text in caught.value.message


async def test_a_bare_id_is_looked_for_in_default_and_then_where_it_is_alone() -> None:
    async with engine() as (_, user, port):
        a = await port.connect(name="a", namespace="a")
        b = await port.connect(name="b", namespace="b")
        a.register("alone")
        a.register("both")
        b.register("both")
        await ready(a)
        await ready(b)
        assert (await ask(user, "engine::functions::info", {"function_id": "alone"}))["namespace"] == "a"
        named = await ask(user, "engine::functions::info", {"function_id": "both", "namespace": "b"})
        assert named["worker_name"] == "b"
        for payload in ({"function_id": "both"}, {"function_id": "both", "namespace": "c"}):
            with pytest.raises(WireError, match=r"ambiguous: it is registered in namespace\(s\): a, b\."):
                await ask(user, "engine::functions::info", payload)
        record(user, "both")
        assert (await ask(user, "engine::functions::info", {"function_id": "both"}))["namespace"] == "default"


async def test_a_session_sees_what_it_may_call() -> None:
    async with engine() as (core, user, port):
        for name in ("public::a", "secret::b"):
            record(user, name)
            bind(core, user, "subscribe", name, {"topic": "t"})
        worker = await port.connect(name="w")
        await worker.settled()
        peer = core.workers.get(worker.worker_id)
        assert peer is not None
        rules = [Pattern.of("public::*"), Pattern.of("engine::*")]
        peer.session = Session(expose=tuple(ExposeFilter(pattern=rule) for rule in rules))
        listed = await worker.ask("engine::functions::list", {})
        assert ids(listed["result"]) == ["public::a"]
        batch = await worker.ask("engine::functions::info", {"function_ids": ["secret::b", "public::a"]})
        assert batch["result"]["functions"][0] == {"function_id": "secret::b", "error": "forbidden"}
        assert batch["result"]["functions"][1]["function_id"] == "public::a"
        single = await worker.ask("engine::functions::info", {"function_id": "secret::b"})
        assert single["error"]["code"] == "FORBIDDEN"
        triggers = await worker.ask("engine::registered-triggers::list", {})
        assert ids(triggers["result"], "registered_triggers") == ["public::a"]


async def test_trigger_types_and_the_older_list_with_schemas() -> None:
    async with engine() as (_, user, port):
        worker = await port.connect(name="provider")
        worker.send({"type": "registertriggertype", "id": "webhook", "description": "Calls from outside."})
        await ready(worker)
        rows = (await ask(user, "engine::triggers::list", {}))["triggers"]
        assert [row["id"] for row in rows] == ["subscribe", "webhook"]
        assert rows[1] == {
            "id": "webhook",
            "namespace": "default",
            "worker_name": "provider",
            "description": "Calls from outside.",
        }
        assert set(rows[0]) == set(rows[1])
        everything = await ask(user, "engine::triggers::list", {"include_internal": True})
        assert {"engine::functions-available", "engine::workers-available"} < set(ids(everything, "triggers", "id"))
        assert ids(await ask(user, "engine::triggers::list", {"worker": "iii-pubsub"}), "triggers", "id") == [
            "subscribe"
        ]
        assert ids(await ask(user, "engine::triggers::list", {"search": "OUTSIDE"}), "triggers", "id") == ["webhook"]
        older = (await ask(user, "engine::trigger-types::list", {"prefix": "sub"}))["trigger_types"]
        assert older[0]["trigger_request_format"]["required"] == ["topic"]


async def test_registered_triggers_are_the_live_ones_with_a_short_summary() -> None:
    async with engine() as (core, user, _):
        record(user, "f")
        config = {"topic": "t", "note": "x" * 100}
        bind(core, user, "subscribe", "f", config, id="one")
        bind(core, user, "subscribe", "f", {"topic": "t"}, id="two", namespace="eu")
        bind(core, user, "nobody-has-it", "f", {}, id="parked")
        rows = (await ask(user, "engine::registered-triggers::list", {"include_internal": False}))[
            "registered_triggers"
        ]
        assert rows[0] == {
            "id": "one",
            "trigger_type": "subscribe",
            "function_id": "f",
            "namespace": "default",
            "worker_name": "user",
            "config": config,
            "config_summary": '{"topic":"t","note":"' + "x" * 59 + "…",
            "state": "live",
        }
        assert [(row["id"], row["namespace"], row["config_summary"]) for row in rows[1:]] == [
            ("two", "eu", '{"topic":"t"}')
        ]
        core.triggers.unregister("one")
        assert ids(await ask(user, "engine::registered-triggers::list"), "registered_triggers", "id") == ["two"]


class Refusing:
    def bind(self, binding: Binding) -> None:
        raise TriggerRejected("the moon is in the wrong phase")

    def replace(self, old: Binding, new: Binding) -> None: ...

    def unbind(self, binding: Binding, reason: Reason) -> None: ...


async def test_what_does_not_fire_is_listed_with_the_reason() -> None:
    async with engine() as (core, user, _):
        bind(core, user, "subscribe", "f", {"topic": "t"}, id="live")
        bind(core, user, "queue", "f", {}, id="waits")
        bind(core, user, "moon", "f", {}, id="refused")
        core.triggers.provide(TypeClaim(id="moon", namespace="default", owner=user, provider=Refusing()))

        async def listed(**filters: Any) -> dict[str, Any]:
            rows = (await ask(user, "engine::registered-triggers::list", filters))["registered_triggers"]
            return {row["id"]: (row["state"], row.get("why")) for row in rows}

        parked = {
            "waits": (
                "parked",
                "nobody provides the trigger type 'queue'; add the built-in worker 'queue' to the configuration",
            )
        }
        refused = {"refused": ("refused", "the moon is in the wrong phase")}
        assert await listed() == {"live": ("live", None)}
        assert await listed(state="parked") == parked
        assert await listed(state="refused") == refused
        assert await listed(include_inactive=True) == {"live": ("live", None), **parked, **refused}
        assert await listed(state="all") == await listed(include_inactive=True)
        with pytest.raises(WireError, match="expected one of live, parked, refused, all"):
            await listed(state="asleep")


async def test_registered_triggers_can_be_filtered() -> None:
    async with engine() as (core, user, _):
        record(user, "shop::f")
        bind(core, user, "subscribe", "shop::f", {"topic": "t"}, id="one")
        bind(core, user, "subscribe", "missing::g", {"topic": "t"}, id="two")
        bind(core, user, "subscribe", "engine::log::info", {"topic": "t"}, id="three")
        bind(core, user, "queue", "shop::f", {"topic": "t"}, id="four")

        async def listed(**filters: Any) -> list[str]:
            return ids(await ask(user, "engine::registered-triggers::list", filters), "registered_triggers", "id")

        assert await listed() == ["one", "two"]
        assert await listed(include_internal=True) == ["one", "two", "three"]
        assert await listed(function_id="shop::f") == ["one"]
        assert await listed(worker="user") == ["one"]
        assert await listed(worker="missing") == ["two"]
        assert await listed(search="MISSING") == ["two"]
        assert await listed(trigger_type="http") == []
        # an alias and its canonical name find the same; the row shows the canonical one
        assert await listed(trigger_type="queue", include_inactive=True) == ["four"]
        assert await listed(trigger_type="durable:subscriber", include_inactive=True) == ["four"]


async def test_workers_are_listed_with_all_keys_those_without_a_pid_too() -> None:
    async with engine() as (core, user, port):
        worker = await port.connect(
            name="shop", runtime="go", version="0.23.0", os="linux", pid=77, description="Sells.", namespace="eu"
        )
        worker.register("orders::add")
        await ready(worker)
        quiet = await ready(await port.connect())
        rows = (await ask(user, "engine::workers::list"))["workers"]
        shop = next(row for row in rows if row["name"] == "shop")
        assert shop == {
            "name": "shop",
            "description": "Sells.",
            "version": "0.23.0",
            "id": worker.worker_id,
            "namespace": "eu",
            "runtime": "go",
            "os": "linux",
            "status": "connected",
            "function_count": 1,
            "connected_at_ms": shop["connected_at_ms"],
            "active_invocations": 0,
            "isolation": None,
            "ip_address": "memory",
            "functions": ["orders::add"],
            "pid": 77,
            "telemetry": None,
            "internal": False,
        }
        assert abs(shop["connected_at_ms"] - core.clock.wall_ms()) < 1000
        silent = next(row for row in rows if row["id"] == quiet.worker_id)
        assert (silent["name"], silent["runtime"], silent["status"]) == (None, None, "connected")
        assert set(silent) == set(shop)
        assert [row["name"] or row["id"] for row in rows] == sorted(row["name"] or row["id"] for row in rows)


async def test_built_in_workers_are_listed_by_their_established_names() -> None:
    async with engine() as (_, user, _port):
        rows = {row["name"]: row for row in (await ask(user, "engine::workers::list"))["workers"]}
        assert {"iii-pubsub", "iii-engine-functions"} <= set(rows)
        pubsub = rows["iii-pubsub"]
        assert (pubsub["id"], pubsub["runtime"], pubsub["status"]) == ("pubsub", "engine", "available")
        assert (pubsub["isolation"], pubsub["version"], pubsub["functions"]) == ("in-process", __version__, ["publish"])
        assert (pubsub["internal"], rows["iii-engine-functions"]["internal"]) == (False, True)
        assert "engine::workers::register" in rows["iii-engine-functions"]["functions"]


async def test_workers_can_be_filtered_and_show_what_they_do() -> None:
    async with engine() as (_, user, port):
        worker = await port.connect(name="Shop", runtime="go")
        worker.register("slow")
        await ready(worker)
        call = worker.call("slow")
        running_call = await worker.next("invokefunction")
        [row] = (await ask(user, "engine::workers::list", {"search": "shop", "runtime": "go", "status": "connected"}))[
            "workers"
        ]
        assert row["active_invocations"] == 2  # it waits for one and runs one
        worker.answer(running_call, result=1)
        await worker.result(call)
        for nothing in ({"search": "x"}, {"search": "shop", "runtime": "node"}, {"search": "shop", "status": "busy"}):
            assert await ask(user, "engine::workers::list", nothing) == {"workers": []}


async def test_what_one_worker_registers_cannot_spoil_the_list_for_others() -> None:
    async with engine() as (_, user, port):
        worker = await port.connect(name="odd")
        worker.send_text(b'{"type":"registerfunction","id":"odd::f","metadata":{"n":1e999}}')
        worker.send_text(
            b'{"type":"registertrigger","id":"o","trigger_type":"x","function_id":"odd::f","config":{"n":-1e999}}'
        )
        worker.register("odd::g", metadata={"n": 1})
        await ready(worker)
        for _ in range(2):
            assert (await worker.next("error"))["error"]["code"] == "invalid_message"
        [row] = (await ask(user, "engine::functions::list", {"prefix": "odd"}))["functions"]
        assert (row["function_id"], row["metadata"]) == ("odd::g", {"n": 1})
        assert (await ask(user, "engine::registered-triggers::list", {"state": "all"}))["registered_triggers"] == []


async def test_old_clients_find_the_keys_they_insist_on() -> None:
    async with engine() as (_, user, port):
        await ready(await port.connect(name="w", runtime="python"))
        needed = {"id", "status", "connected_at_ms", "function_count", "functions", "active_invocations"}
        for row in (await ask(user, "engine::workers::list", {}))["workers"]:
            assert needed <= set(row)
            assert row["status"] in {"connected", "available", "busy", "disconnected"}
        for row in (await ask(user, "engine::functions::list", {"include_internal": True}))["functions"]:
            assert "function_id" in row
            assert not {"request_format", "request_schema"} & set(row)
