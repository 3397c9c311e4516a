"""Request bodies and responses through channels, in an engine without sockets and under a virtual clock."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from test_http_exchange import JSON, Client, House, open_house
from trio.testing import MockClock, wait_all_tasks_blocked

from iii_trio.engine import Call, FunctionEntry
from iii_trio.engine.channel_streams import ChannelReader, ChannelWriter
from iii_trio.modules.http.decision import Answer
from iii_trio.protocol import NULL, Json
from iii_trio.protocol.errors import WireError

Handler = Callable[[ChannelReader, ChannelWriter], Awaitable[Json]]


def streams(house: House, handler: Handler) -> None:
    """Route POST and GET `/x` to a handler with both ends of its channels, as a worker has them."""

    async def run(call: Call, data: Json) -> Json:
        value = data.decode()
        ends = []
        for key, direction in (("request_body", "read"), ("response", "write")):
            ref = value[key]
            assert ref["direction"] == direction
            channel = house.core.channels.find(ref["channel_id"], ref["access_key"], direction)
            assert channel is not None
            ends.append(channel)
        async with ChannelReader(ends[0]) as reader:
            return await handler(reader, ChannelWriter(ends[1]))

    # not a built-in: those are not expected to write
    house.core.functions.claim(FunctionEntry(id="f", namespace="default", owner=house.peer, handler=(True, run)))
    for method in ("GET", "POST", "HEAD"):
        house.route("/x", method=method)


def control(writer: ChannelWriter, **message: Any) -> Awaitable[None]:
    return writer.send(Json.of(message).raw.decode())


async def test_a_body_is_read_and_answered_byte_by_byte(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await control(response, type="set_status", status_code=201)
        await control(
            response, type="set_headers", headers={"Content-Type": "text/event-stream", "X-A": "1", "bad\n": ""}
        )
        async with response:
            while data := await body.receive_some():
                await response.send_all(data.upper())
        return NULL

    async with open_house() as house:
        streams(house, handler)
        client = house.client("POST", "/x", {"transfer-encoding": "chunked"})
        nursery.start_soon(client.run)
        for number, part in enumerate((b"one ", b"two ", b"three")):
            client.sends(part)
            await wait_all_tasks_blocked()
            assert client.reply is not None
            assert client.reply.body == b"ONE TWO THREE"[: (4, 8, 13)[number]]
        client.sends(b"", more=False)
        await client.ended.wait()
        assert client.reply is not None
        assert (client.reply.status, client.reply.headers["content-type"]) == (201, "text/event-stream")
        assert client.reply.headers["x-a"] == "1"
        assert "content-length" not in client.reply.headers
        assert client.reply.headers["access-control-allow-origin"] == "*"
        assert (house.answers(Answer.STREAM), trio.current_time()) == (1, 0)
        assert house.core.channels.statistics().open == 0


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 1_000_000])
async def test_raw_json_is_identical_and_every_message_is_small(size: int, autojump_clock: MockClock) -> None:
    raw = b'{ "a" : "' + b"x" * size + b'" }'
    messages: list[str | bytes] = []

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        try:
            while True:
                messages.append(await body.receive())
        except trio.EndOfChannel:
            return Json.of({"body": "done"})

    async with open_house() as house:
        streams(house, handler)
        assert (await house.ask("/x", "POST", JSON, raw)).json == "done"
        assert b"".join(part for part in messages if isinstance(part, bytes)) == raw
        assert max(map(len, messages)) <= 65_536


async def test_an_empty_body_is_an_empty_channel(autojump_clock: MockClock) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        return Json.of({"body": len(await body.receive_all(10))})

    async with open_house() as house:
        streams(house, handler)
        assert (await house.ask("/x")).json == 0
        assert (await house.ask("/x", headers=JSON)).json == 0


async def test_a_slow_reader_slows_its_client_down(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    go = trio.Event()

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await go.wait()
        return Json.of({"body": len(await body.receive_all(10_000_000))})

    async with open_house() as house:
        streams(house, handler)
        client = house.client("POST", "/x", {"transfer-encoding": "chunked"})
        for _ in range(300):
            client.sends(b"x" * 1000)
        nursery.start_soon(client.run)
        await wait_all_tasks_blocked()
        assert client.unread == 300 - 64
        go.set()
        client.sends(b"", more=False)
        await client.ended.wait()
        assert client.reply is not None
        assert client.reply.json == 300_000


async def test_what_a_handler_wrote_counts_and_what_it_returns_then_does_not(autojump_clock: MockClock) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await response.send_all(b"bytes")
        await response.aclose()
        return Json.of({"status_code": 500, "body": "value"})

    async with open_house() as house:
        streams(house, handler)
        reply = await house.ask("/x")
        assert (reply.status, reply.body) == (200, b"bytes")


async def test_control_messages_without_bytes(autojump_clock: MockClock) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        for text in (
            "",
            "[]",
            '{"type":"set_status","status_code":99}',
            '{"type":"set_status","status_code":"7"}',
            "{",
        ):
            await response.send(text)
        await control(response, type="set_status", status_code=202)
        await control(response, type="set_headers", headers={"location": "/jobs/1", "x": 1})
        await response.aclose()
        return NULL

    async with open_house() as house:
        streams(house, handler)
        reply = await house.ask("/x")
        assert (reply.status, reply.body, reply.headers["location"]) == (202, b"", "/jobs/1")
        assert "content-type" not in reply.headers


async def test_a_writer_may_come_after_its_handler_has_returned_and_nobody_is_waited_for_long(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        refs: list[dict[str, str]] = []

        async def run(call: Call, data: Json) -> Json:
            refs.append(data.decode()["response"])
            return NULL

        house.core.functions.claim(FunctionEntry(id="f", namespace="default", owner=house.peer, handler=(True, run)))
        house.route("/x")
        reply = await house.ask("/x")
        assert (reply.status, trio.current_time()) == (204, 5)
        client = house.client("GET", "/x")
        nursery.start_soon(client.run)
        await trio.sleep(4.9)
        channel = house.core.channels.find(refs[1]["channel_id"], refs[1]["access_key"], "write")
        assert channel is not None
        writer = ChannelWriter(channel)
        await trio.sleep(5)
        await writer.send_all(b"late")
        await writer.aclose()
        await client.ended.wait()
        assert client.reply is not None
        assert (client.reply.status, client.reply.body) == (200, b"late")
        assert house.core.channels.find(refs[0]["channel_id"], refs[0]["access_key"], "write") is None
        began = trio.current_time()
        for patience_ms, deadline_ms, expected_s in ((0, 30_000, 0), (700, 30_000, 0.7), (30_000, 2_000, 2)):
            house.change(null_result_timeout=patience_ms, default_timeout=deadline_ms)
            reply = await house.ask("/x")
            assert (reply.status, trio.current_time() - began) == (204, pytest.approx(expected_s))
            began = trio.current_time()


async def test_a_head_that_a_result_overrules_is_told_of(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await control(response, type="set_status", status_code=202)
        return Json.of({"body": "value"})

    async with open_house() as house:
        streams(house, handler)
        assert (await house.ask("/x")).status == 200
        assert "they are dropped" in caplog.text


async def test_a_silent_writer_is_504_at_the_deadline(autojump_clock: MockClock) -> None:
    story: list[str] = []

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await control(response, type="set_status", status_code=202)
        try:
            await trio.sleep_forever()
        finally:
            story.append("cancelled")
        raise AssertionError

    async with open_house(default_timeout=3000) as house:
        streams(house, handler)
        assert (await house.ask("/x")).status == 504
        await wait_all_tasks_blocked()
        assert (trio.current_time(), story) == (3, ["cancelled"])
        assert house.core.channels.statistics().open == 0


async def test_a_stream_may_take_longer_than_the_deadline(autojump_clock: MockClock) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        async with response:
            for number in range(5):
                await response.send_all(b"%d" % number)
                await trio.sleep(1000)
        return NULL

    async with open_house(default_timeout=1000, stream_idle_timeout=1_500_000) as house:
        streams(house, handler)
        assert (await house.ask("/x")).body == b"01234"
        assert trio.current_time() == pytest.approx(5000)


async def test_head_gets_the_head_of_a_stream(autojump_clock: MockClock) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await control(response, type="set_headers", headers={"content-length": "5"})
        async with response:
            await response.send_all(b"12345")
        return NULL

    async with open_house() as house:
        streams(house, handler)
        reply = await house.ask("/x", "HEAD")
        assert (reply.status, reply.headers["content-length"]) == (200, "5")


# -- streams that are cut off -----------------------------------------------------------------------------------------


async def cut(house: House, method: str = "GET") -> Client:
    """A request whose response is expected to break off."""
    client = house.client(method, "/x")
    with pytest.raises(trio.BrokenResourceError, match="cut off"):
        await client.run()
    statistics = house.module.statistics().exchange
    assert statistics is not None
    assert (statistics.truncated, statistics.streaming) == (1, 0)
    return client


@pytest.mark.parametrize("fails", [True, False])
async def test_a_lost_writer_is_the_end_only_if_the_handler_succeeds(fails: bool, autojump_clock: MockClock) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await response.send_all(b"half")
        response.abort()
        await trio.sleep(1)
        if fails:
            raise WireError("disk full", "no_space")
        return NULL

    async with open_house() as house:
        streams(house, handler)
        if fails:
            client = await cut(house)
            assert client.reply is not None
            assert client.reply.body == b"half"
        else:
            assert (await house.ask("/x")).body == b"half"
        assert trio.current_time() == pytest.approx(1)


@pytest.mark.parametrize("closes", [True, False])
async def test_a_handler_that_fails_has_five_seconds_to_end_its_stream(closes: bool, autojump_clock: MockClock) -> None:
    async with open_house() as house:
        writers: list[ChannelWriter] = []

        async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
            writers.append(response)
            await response.send_all(b"half")
            await trio.sleep(1)
            raise WireError("no", "broken")

        async def closer() -> None:
            await trio.sleep(3)
            await writers[0].aclose()

        streams(house, handler)
        async with trio.open_nursery() as nursery:
            if closes:
                nursery.start_soon(closer)
                assert (await house.ask("/x")).body == b"half"
                assert trio.current_time() == 3
            else:
                await cut(house)
                assert trio.current_time() == 6


async def test_a_silent_stream_is_cut_off_and_its_handler_cancelled(autojump_clock: MockClock) -> None:
    ended: list[float] = []

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await response.send_all(b"x")
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())
        raise AssertionError

    async with open_house(stream_idle_timeout=60_000) as house:
        streams(house, handler)
        await cut(house)
        await wait_all_tasks_blocked()
        assert ended == [60]


@pytest.mark.parametrize("body", [b"123", b"123456"])
async def test_a_declared_length_is_kept(body: bytes, autojump_clock: MockClock) -> None:
    async def handler(reader: ChannelReader, response: ChannelWriter) -> Json:
        await control(response, type="set_headers", headers={"Content-Length": "5"})
        await response.send_all(b"1")
        await trio.sleep(1)
        await response.send_all(body[1:])
        await response.aclose()
        return NULL

    async with open_house() as house:
        streams(house, handler)
        client = await cut(house)
        assert client.reply is not None
        assert len(client.reply.body) < 5
        await wait_all_tasks_blocked()


async def test_a_client_that_leaves_a_stream_cancels_its_handler_and_frees_the_channels(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    reasons: list[str | None] = []

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await response.send_all(b"x")
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            reasons.append(cancelled.reason)
            raise
        raise AssertionError

    async with open_house() as house:
        streams(house, handler)
        client = house.client("GET", "/x")
        nursery.start_soon(client.run)
        await wait_all_tasks_blocked()
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert (statistics.streaming, statistics.running) == (1, 0)
        client.leaves()
        await client.ended.wait()
        await wait_all_tasks_blocked()
        assert reasons == ["caller_disconnected"]
        assert house.core.channels.statistics().open == 0


async def test_a_handler_may_go_on_for_a_while_after_its_response(autojump_clock: MockClock) -> None:
    story: list[str] = []

    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        await response.send_all(b"all")
        await response.aclose()
        try:
            await trio.sleep(20)
            story.append("cleaned up")
            await trio.sleep_forever()
        finally:
            story.append(f"ended at {trio.current_time():.0f}")
        raise AssertionError

    async with open_house(default_timeout=30_000) as house:
        streams(house, handler)
        assert (await house.ask("/x")).body == b"all"
        assert trio.current_time() == 0
        await trio.sleep(40)
        assert story == ["cleaned up", "ended at 30"]


@pytest.mark.parametrize("checkpoints", range(40))
async def test_no_moment_of_cancellation_leaves_a_call_a_channel_or_a_slot(
    checkpoints: int, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async def handler(body: ChannelReader, response: ChannelWriter) -> Json:
        async with response:
            while data := await body.receive_some():
                await response.send_all(data)
        return NULL

    async with open_house() as house:
        streams(house, handler)
        client, scope = house.client("POST", "/x", {"transfer-encoding": "chunked"}), trio.CancelScope()

        async def run() -> None:
            with scope:
                await client.run()

        for part in (b"a", b"b", b"c"):
            client.sends(part)
        client.sends(b"", more=False)
        nursery.start_soon(run)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        scope.cancel()
        await wait_all_tasks_blocked()
        statistics = house.module.statistics().exchange
        assert statistics is not None
        assert (statistics.running, statistics.streaming) == (0, 0)
        assert house.core.channels.statistics().open == 0
        assert (house.core.statistics().running, trio.current_time()) == (0, 0)
