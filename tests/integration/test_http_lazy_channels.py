"""The two channels of a request are made when somebody comes for one, and promised until then."""

import trio
from test_http_server import PATIENCE_S, answers, open_house

from iii_trio.engine import Call
from iii_trio.engine.channel_streams import ChannelReader
from iii_trio.protocol import Json


async def test_channels_that_nobody_uses_are_never_made() -> None:
    async with open_house() as house, house.wire() as wire:
        house.route("/x", answers({"body": 1}), method="POST")
        hanging = house.hanging("/hangs")
        for _ in range(3):
            assert (await wire.ask("POST", "/x", b"[1]")).status == 200
        assert house.core.channels.statistics().open == 0
        async with house.wire() as other:
            await other.stream.send_all(b"GET /hangs HTTP/1.1\r\nhost: x\r\n\r\n")
            await hanging.started.wait()
            statistics = house.core.channels.statistics()
            assert (statistics.open, statistics.waiting, statistics.created) == (2, 2, 0)
        await hanging.cancelled.wait()
        with trio.fail_after(PATIENCE_S):
            while house.core.channels.statistics().open:
                await trio.lowlevel.checkpoint()
        assert house.core.channels.statistics().created == 0


async def test_a_reader_that_comes_gets_the_raw_body_although_it_was_parsed() -> None:
    raws: list[bytes] = []

    async def handler(call: Call, data: Json) -> Json:
        value = data.decode()
        ref = value["request_body"]
        assert house.core.channels.find(ref["channel_id"], "wrong", "read") is None
        channel = house.core.channels.find(ref["channel_id"], ref["access_key"], "read")
        assert channel is not None
        async with ChannelReader(channel) as reader:
            while chunk := await reader.receive_some():
                raws.append(chunk)
        return Json.of({"body": value["body"]})

    async with open_house() as house, house.wire() as wire:
        house.route("/x", handler, task=True, method="POST")
        assert (await wire.ask("POST", "/x", b'{"z":2, "a":1}')).body == b'{"z":2,"a":1}'
        assert raws == [b'{"z":2, "a":1}']
        with trio.fail_after(PATIENCE_S):
            while house.core.channels.statistics().open:
                await trio.lowlevel.checkpoint()
