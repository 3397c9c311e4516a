"""Subscribers: joins, what is routed to whom, leaves, and the life of their sockets (spec/state-stream.md §7)."""

import json
from typing import Any

import pytest
import trio
import trio.testing
from module_harness import ask, bind, record
from stream_harness import Client, address, stream

from iii_trio.engine import Call, EngineState, LocalPeer
from iii_trio.protocol import Json
from iii_trio.protocol.limits import DEAD_AFTER_S, PING_AFTER_S, STREAM_MESSAGE, STREAM_SUBSCRIPTIONS
from iii_trio.transport import HandshakeError


async def put(user: LocalPeer, data: Any, item: str = "i", group: str = "g", name: str = "s") -> None:
    await ask(user, "stream::set", {**address(item, group, name), "data": data})


async def send(user: LocalPeer, kind: str, data: Any = None, **more: Any) -> None:
    await ask(user, "stream::send", {**address(None), "type": kind, "data": data, **more})


async def test_a_join_is_answered_with_what_is_there() -> None:
    async with stream() as (_, user, port):
        client = await port.connect()
        assert await client.join("1") == []
        assert await client.join("2", "i") is None
        for item in ("b", "a"):
            await put(user, {"id": item}, item)
        await client.events(2)
        assert await client.join("3") == [{"id": "b"}, {"id": "a"}]
        assert await client.join("4", "a") == {"id": "a"}


async def test_messages_have_exactly_the_keys_of_the_wrapper() -> None:
    async with stream() as (_, user, port):
        client = await port.connect()
        client.send("join", item="i")
        message = await client.next()
        assert list(message) == ["type", "timestamp", "streamName", "groupId", "id", "event"]
        assert (message["type"], message["streamName"], message["groupId"]) == ("stream", "s", "g")
        assert (message["id"], message["event"]) == ("i", {"type": "sync", "data": None})
        assert isinstance(message["timestamp"], int)
        await put(user, [1])
        assert (await client.next())["event"] == {"type": "create", "data": [1]}
        await send(user, "wave", {"x": 1}, id="i")
        assert (await client.next())["event"] == {"type": "event", "event": {"type": "wave", "data": {"x": 1}}}


async def test_groups_get_everything_and_items_their_own() -> None:
    async with stream() as (_, user, port):
        group, item, other = [await port.connect() for _ in range(3)]
        await group.join()
        await item.join(item="i")
        await other.join(groupId="other")
        await put(user, 1)
        await put(user, 2, "j")
        await put(user, 3, name="t")
        await send(user, "to all")
        await send(user, "to i", id="i")
        await ask(user, "stream::delete", address())
        await ask(user, "stream::delete", address("missing"))
        await put(user, 4, group="other")
        assert await group.events(5) == [
            ("i", "create", 1),
            ("j", "create", 2),
            (None, "event", {"type": "to all", "data": None}),
            ("i", "event", {"type": "to i", "data": None}),
            ("i", "delete", 1),
        ]
        assert await item.events(3) == [
            ("i", "create", 1),
            ("i", "event", {"type": "to i", "data": None}),
            ("i", "delete", 1),
        ]
        assert await other.events(1) == [("i", "create", 4)]
        await trio.testing.wait_all_tasks_blocked()
        assert not group.messages
        assert not item.messages
        assert not other.messages


async def test_a_connection_gets_one_copy_however_often_it_has_joined() -> None:
    async with stream() as (_, user, port):
        client = await port.connect()
        await client.join("1")
        await client.join("2")
        await client.join("3", "i")
        await put(user, 1)
        await put(user, 2)
        assert await client.events(2) == [("i", "create", 1), ("i", "update", 2)]
        await trio.testing.wait_all_tasks_blocked()
        assert not client.messages


async def test_timestamps_of_a_group_strictly_increase(autojump_clock: trio.testing.MockClock) -> None:
    async with stream() as (_, user, port):
        client = await port.connect()
        stamps = []
        for number in range(5):
            client.send("join", str(number))
            stamps.append((await client.next())["timestamp"])
            await put(user, number)
            stamps.append((await client.next())["timestamp"])
        await trio.sleep(60)
        await put(user, "later")
        stamps.append((await client.next())["timestamp"])
        assert stamps == sorted(set(stamps))
        assert stamps[-1] - stamps[-2] >= 59_000


async def test_leaving_stops_the_events_and_others_go_on() -> None:
    async with stream() as (_, user, port):
        client, stays = await port.connect(), await port.connect()
        await client.join("1")
        await stays.join("1")
        client.send("leave", "unknown")
        client.send("leave", "1")
        await client.join("2", groupId="marker")
        await put(user, 1)
        assert await stays.events(1) == [("i", "create", 1)]
        assert not client.messages
        assert port.module.statistics().hub.subscriptions == 2  # type: ignore[union-attr]


async def test_the_same_id_again_replaces_the_subscription() -> None:
    async with stream() as (_, user, port):
        client = await port.connect()
        await client.join("1")
        await client.join("1", groupId="other")
        await put(user, 1)
        await put(user, 2, group="other")
        assert await client.events(1) == [("i", "create", 2)]


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "no JSON {",
        "[]",
        "null",
        '{"type":"join"}',
        '{"type":"join","data":{"subscriptionId":"1","streamName":"s"}}',
        '{"type":"join","data":{"subscriptionId":1,"streamName":"s","groupId":"g"}}',
        '{"type":"join","data":{"subscriptionId":"1","streamName":"s","groupId":"g","id":7}}',
        '{"type":"nonsense","data":{"subscriptionId":"1","streamName":"s","groupId":"g"}}',
    ],
)
async def test_what_means_nothing_is_passed_over(junk: str) -> None:
    async with stream() as (_, _user, port):
        client = await port.connect()
        client.connection.push(junk.encode())
        assert await client.join() == []
        assert not client.messages


async def test_binary_frames_and_null_ids_and_unknown_keys_will_do() -> None:
    async with stream() as (_, _user, port):
        client = await port.connect()
        data = {"subscriptionId": "1", "streamName": "s", "groupId": "g", "id": None, "more": 1}
        client.connection.push_binary(json.dumps({"type": "join", "data": data, "other": 2}).encode())
        assert await client.event() == (None, "sync", [])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/stream/s/g", ("s", "g", None, [1])),
        ("/stream/s/g/", ("s", "g", None, [1])),
        ("/stream/s/g/i?token=x", ("s", "g", "i", 1)),
        ("/stream/a%2Fb/%C3%BC", ("a/b", "ü", None, [])),
    ],
)
async def test_the_documented_url_joins_by_itself(target: str, expected: tuple[str, str, str | None, Any]) -> None:
    async with stream() as (_, user, port):
        await put(user, 1)
        client = await port.connect(target)
        message = await client.next()
        assert (message["streamName"], message["groupId"], message["id"]) == expected[:3]
        assert message["event"] == {"type": "sync", "data": expected[3]}
        await put(user, 2, "i", expected[1], expected[0])
        assert (await client.event())[2] == 2


@pytest.mark.parametrize(
    "target", ["/", "/?a=1", "/anything/else", "/stream/", "/stream/s", "/stream/s//", "/stream/a/b/c/d"]
)
async def test_every_other_path_is_a_plain_socket(target: str) -> None:
    async with stream() as (_, _user, port):
        client = await port.connect(target)
        assert await client.join() == []
        assert not client.messages


async def test_too_many_subscriptions_are_refused_and_said() -> None:
    async with stream() as (_, _user, port):
        client = await port.connect()
        for number in range(STREAM_SUBSCRIPTIONS):
            client.send("join", str(number), groupId="a")
        client.send("join", "one too many")
        client.send("join", "7", groupId="b")
        events = [await client.next() for _ in range(STREAM_SUBSCRIPTIONS + 2)]
        kinds = [message["event"]["type"] for message in events]
        assert kinds == ["sync"] * STREAM_SUBSCRIPTIONS + ["unauthorized", "sync"]
        assert events[-2]["event"] == {"type": "unauthorized"}


async def test_a_message_above_the_limit_ends_its_sender_alone() -> None:
    async with stream() as (_, _user, port):
        client, other = await port.connect(), await port.connect()
        client.connection.push(b'"' + b"x" * STREAM_MESSAGE + b'"')
        assert (await client.end()).code == 1009
        assert await other.join() == []


async def test_the_end_of_a_socket_leaves_nothing_behind() -> None:
    async with stream() as (_, user, port):
        clients = [await port.connect() for _ in range(3)]
        for client in clients:
            await client.join("1")
            await client.join("2", "i")
        await clients[0].close()
        clients[1].connection.abort()
        await clients[1].end()
        await trio.testing.wait_all_tasks_blocked()
        picture = port.module.statistics()
        assert picture.hub is not None
        assert picture.sockets is not None
        assert (picture.hub.subscribers, picture.hub.subscriptions, picture.sockets.open) == (1, 2, 1)
        await clients[2].close()
        await trio.testing.wait_all_tasks_blocked()
        assert port.module.statistics().hub.groups == 0  # type: ignore[union-attr]
        await put(user, 1)


async def test_silent_subscribers_are_asked_and_dead_ones_are_ended(autojump_clock: trio.testing.MockClock) -> None:
    async with stream() as (_, user, port):
        alive, dead = await port.connect(), await port.connect()
        await alive.join()
        await dead.join()
        dead.connection.pause_reading()
        await trio.sleep(PING_AFTER_S + 2)
        assert alive.connection.statistics().bytes_in > 0
        await trio.sleep(DEAD_AFTER_S + 2)
        assert alive.closed is None
        assert port.module.statistics().sockets.open == 1  # type: ignore[union-attr]
        await put(user, 1)
        assert await alive.event() == ("i", "create", 1)


async def test_an_engine_that_stops_sends_its_subscribers_away_with_a_code_to_come_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    clients: list[Client] = []
    async with trio.open_nursery() as nursery:
        async with stream() as (core, _user, port):
            port.nursery = nursery
            client = await port.connect()
            clients.append(client)
            await client.join()
            core.state = EngineState.DRAINING
            with pytest.raises(HandshakeError) as refused:
                await port.connect()
            assert refused.value.status == 503
            core.state = EngineState.SERVING
        assert (await client.end()).code == 1012


async def test_what_is_no_upgrade_is_told_so() -> None:
    async with stream() as (_, _user, port):
        here, there = trio.testing.memory_stream_pair()
        port.nursery.start_soon(port.module.handle, there)
        await here.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = bytes(await here.receive_some())
        assert answer.startswith(b"HTTP/1.1 426 ")


async def test_a_socket_that_breaks_at_any_moment_of_a_join_leaves_nothing() -> None:
    async with stream() as (core, user, port):

        async def joined(call: Call, data: Json) -> Json:
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            return Json.of({})

        user.register("joined", joined, task=True)
        bind(core, user, "stream:join", "joined", {})
        left = record(user, "left")
        bind(core, user, "stream:leave", "left", {})
        for tick in range(40):
            client = await port.connect()
            client.send("join", str(tick))
            for _ in range(tick):
                await trio.lowlevel.checkpoint()
            client.connection.abort()
            await client.end()
            await trio.testing.wait_all_tasks_blocked()
            picture = port.module.statistics()
            assert picture.hub is not None
            assert picture.sockets is not None
            assert (picture.hub.subscribers, picture.hub.groups, picture.sockets.open) == (0, 0, 0)
            assert picture.sockets.handshakes == 0
            assert not user.running
        told = [one["subscription_id"] for one in left.payloads]
        assert 0 < len(told) < 40, "some ended before they had joined, some after"
        assert len(told) == len(set(told))
