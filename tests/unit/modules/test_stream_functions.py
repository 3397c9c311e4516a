"""`stream::*` on the built-in store: results, null and nothing, refusals, order of effects."""

from typing import Any

import pytest
from module_harness import ask, bind, record
from stream_harness import address, stream

from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import WireError
from iii_trio.stores import open_memory
from iii_trio.testing.raw import open_port


async def test_set_get_and_delete_answer_the_value_before() -> None:
    async with stream() as (_, user, _port):
        first = {"name": "ü", "list": [1, 2.5, None, {"deep": True}]}
        assert await ask(user, "stream::set", {**address(), "data": first}) == {"old_value": None, "new_value": first}
        assert await ask(user, "stream::set", {**address(), "data": 2}) == {"old_value": first, "new_value": 2}
        assert await ask(user, "stream::get", address()) == 2
        assert await ask(user, "stream::delete", address()) == {"old_value": 2}
        assert await ask(user, "stream::delete", address()) == {"old_value": None}
        assert (await user.invoke("stream::get", Json.of(address()))).absent


async def test_null_is_kept_and_is_not_nothing() -> None:
    async with stream() as (_, user, _port):
        await ask(user, "stream::set", {**address(), "data": None})
        assert await user.invoke("stream::get", Json.of(address())) == NULL
        assert await ask(user, "stream::list", address(None)) == [None]
        sent = {**address(None), "type": "t", "data": 1}
        assert await user.invoke("stream::send", Json.of(sent)) == NULL


async def test_a_worker_sees_nothing_and_null_as_different_frames() -> None:
    async with stream() as (core, _user, _port), open_port(core) as port:
        worker = await port.connect(name="w")
        assert "result" not in await worker.ask("stream::get", address())
        sent = await worker.ask("stream::send", {**address(None), "type": "t", "data": 1})
        assert sent["result"] is None


async def test_lists_keep_the_order_of_first_setting_whatever_the_names() -> None:
    async with stream() as (_, user, _port):
        assert await ask(user, "stream::list", address(None)) == []
        assert await ask(user, "stream::list_groups", {"stream_name": "s"}) == []
        assert await ask(user, "stream::list_all", None) == {"stream": [], "count": 0}
        for name, group, item in [
            ("a:b", "c", "2"),
            ("a", "b:c", "1"),
            ("a:b", "c", "1"),
            ("", "", ""),
            ("/", "x", "x"),
        ]:
            await ask(user, "stream::set", {**address(item, group, name), "data": f"{name}|{group}|{item}"})
        assert await ask(user, "stream::list", address(None, "c", "a:b")) == ["a:b|c|2", "a:b|c|1"]
        assert await ask(user, "stream::list", address(None, "b:c", "a")) == ["a|b:c|1"]
        assert await ask(user, "stream::list_groups", {"stream_name": "a"}) == ["b:c"]
        streams = [("", [""]), ("/", ["x"]), ("a", ["b:c"]), ("a:b", ["c"])]
        listed = [{"id": name, "groups": groups} for name, groups in streams]
        assert await ask(user, "stream::list_all") == {"stream": listed, "count": 4}
        await ask(user, "stream::delete", address("1", "b:c", "a"))
        assert await ask(user, "stream::list_groups", {"stream_name": "a"}) == []
        assert (await ask(user, "stream::list_all"))["count"] == 3


async def test_update_changes_what_is_there_and_reports_what_failed() -> None:
    async with stream() as (_, user, _port):
        await ask(user, "stream::set", {**address(), "data": {"name": "n"}})
        ops = [{"type": "set", "path": "count", "value": 5}, {"type": "increment", "path": "name", "by": 1}]
        result = await ask(user, "stream::update", {**address(), "ops": ops})
        [error] = result.pop("errors")
        assert result == {"old_value": {"name": "n"}, "new_value": {"name": "n", "count": 5}}
        assert (error["op_index"], error["code"]) == (1, "increment.not_number")
        ops = [{"type": "append", "value": "hello"}, {"type": "append", "value": " world"}]
        result = await ask(user, "stream::update", {**address("other"), "ops": ops})
        assert result == {"old_value": None, "new_value": "hello world"}


async def test_an_update_without_success_neither_stores_nor_tells() -> None:
    async with stream() as (core, user, _port):
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"})
        result = await ask(user, "stream::update", {**address(), "ops": []})
        assert result == {"old_value": None, "new_value": {}}
        assert await ask(user, "stream::list_all") == {"stream": [], "count": 0}
        await ask(user, "stream::set", {**address(), "data": 1})
        [message] = await events.wait(1)
        assert message["event"] == {"type": "create", "data": 1}


@pytest.mark.parametrize(
    ("function_id", "payload", "detail"),
    [
        ("stream::set", address(), "missing field `data`"),
        ("stream::set", {**address(1), "data": 1}, "field `item_id`: invalid type: integer `1`, expected a string"),  # type: ignore[arg-type]
        ("stream::get", address(None), "missing field `item_id`"),
        ("stream::delete", None, "invalid type: null, expected an object"),
        ("stream::list", {"stream_name": "s"}, "missing field `group_id`"),
        ("stream::list_groups", {}, "missing field `stream_name`"),
        ("stream::update", {**address(), "ops": [{"type": "no"}]}, ""),
        ("stream::send", {**address(None), "data": 1}, "missing field `type`"),
        ("stream::send", {**address(None), "type": "t"}, "missing field `data`"),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(function_id: str, payload: Any, detail: str) -> None:
    async with stream() as (_, user, _port):
        with pytest.raises(WireError) as refused:
            await ask(user, function_id, payload)
        assert refused.value.code == "deserialization_error"
        assert refused.value.message.startswith(f"Failed to deserialize input for {function_id}: {detail}")


async def test_a_value_that_would_nest_too_deep_on_the_wire_is_refused() -> None:
    async with stream() as (_, user, _port):
        deep: Any = 1
        for _ in range(125):
            deep = [deep]
        for function_id, payload, code in [
            ("stream::set", {**address(), "data": deep}, "STREAM_SET_ERROR"),
            ("stream::send", {**address(None), "type": "t", "data": deep}, "STREAM_SEND_ERROR"),
            (
                "stream::update",
                {**address(), "ops": [{"type": "set", "path": "", "value": deep}]},
                "STREAM_UPDATE_ERROR",
            ),
        ]:
            with pytest.raises(WireError, match="nested deeper than 124 levels") as refused:
                await ask(user, function_id, payload)
            assert refused.value.code == code
        assert await ask(user, "stream::list_all") == {"stream": [], "count": 0}


async def test_values_above_the_configured_size_are_refused_on_every_way_in() -> None:
    async with stream(max_value_bytes=10) as (core, user, _port):
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"})
        await ask(user, "stream::set", {**address(), "data": "x" * 8})
        append = [{"type": "append", "value": "y"}]
        for function_id, payload in [
            ("stream::set", {**address("j"), "data": "x" * 9}),
            ("stream::update", {**address(), "ops": append}),
        ]:
            with pytest.raises(WireError, match="value of 11 bytes exceeds the configured max_value_bytes limit of 10"):
                await ask(user, function_id, payload)
        assert await ask(user, "stream::list", address(None)) == ["x" * 8]
        await ask(user, "stream::send", {**address(None), "type": "end", "data": None})
        assert [one["event"]["type"] for one in await events.wait(2)] == ["create", "event"]


async def test_a_failing_store_is_an_error_of_the_caller_and_no_event() -> None:
    async with open_memory() as full, stream(full) as (core, user, port):
        full._desk.max_ops = 0  # what the module reads at its start it has read
        events = record(user, "events")
        bind(core, user, "stream", "events", {"stream_name": "s"})
        client = await port.connect()
        client.send("join")
        for operation, payload, code in [
            ("set", {**address(), "data": 1}, "STREAM_SET_ERROR"),
            ("get", address(), "STREAM_GET_ERROR"),
            ("delete", address(), "STREAM_DELETE_ERROR"),
            ("update", {**address(), "ops": []}, "STREAM_UPDATE_ERROR"),
            ("list", address(None), "STREAM_GET_GROUP_ERROR"),
            ("list_groups", address(None), "STREAM_LIST_GROUPS_ERROR"),
            ("list_all", None, "STREAM_LIST_ALL_ERROR"),
        ]:
            with pytest.raises(WireError, match=r"Failed to .*Nothing was changed") as refused:
                await ask(user, f"stream::{operation}", payload)
            assert refused.value.code == code
        await ask(user, "stream::send", {**address(None), "type": "t", "data": 1})
        assert [one["event"]["type"] for one in await events.wait(1)] == ["event"]
        assert await client.event() == (None, "event", {"type": "t", "data": 1})
        assert port.module.statistics().failed == 7
