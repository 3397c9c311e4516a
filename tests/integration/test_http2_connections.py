"""What clients of HTTP/2 do: ask at once, leave, read slowly, stop reading, attack. And how a server stops."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import trio
from h2.errors import ErrorCodes
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, WindowUpdated
from h2.settings import SettingCodes
from http2_lab import PATIENCE_S, Client, answer, client_tls, serving
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from trio.testing import wait_all_tasks_blocked

from iii_trio.modules.http import asgi, connections, http2
from iii_trio.modules.http.asgi import Incoming
from iii_trio.modules.http.messages import Response
from iii_trio.protocol.limits import HTTP2_OUTBOX, HTTP2_STREAMS, HTTP2_WINDOW, HTTP2_WINDOWS

BIG = 3_000_000


class Told:
    """An application that waits for its client to leave, and says so."""

    def __init__(self) -> None:
        self.waiting, self.heard = 0, 0
        self._news = trio.Event()

    async def app(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/ok":
            await answer(send)
            return
        self.waiting += 1
        self._ring()
        while (await receive())["type"] != "http.disconnect":
            pass
        self.heard += 1
        self._ring()

    def _ring(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, waiting: int, heard: int) -> None:
        with trio.fail_after(PATIENCE_S):
            while (self.waiting, self.heard) != (waiting, heard):
                await self._news.wait()


# -- requests and responses -------------------------------------------------------------------------------------------


async def test_requests_that_come_at_once_are_answered_each_as_soon_as_it_can() -> None:
    first_may_end = trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/first":
            await first_may_end.wait()
        await answer(send, scope["path"].encode() + b"?" + scope["query_string"])

    async with serving(app) as server, server.dial() as client:
        first = await client.ask("/first")
        second = await client.ask("/second?a=1")
        assert await client.reply(second) == ("200", b"/second?a=1")
        assert server.connections.statistics().idle == 0
        first_may_end.set()
        assert await client.reply(first) == ("200", b"/first?")


async def test_an_upload_arrives_whole_and_its_length_need_not_be_known() -> None:
    heads: list[dict[bytes, bytes]] = []

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        heads.append(dict(scope["headers"]))
        size = 0
        while True:
            message = await receive()
            size += len(message["body"])
            if not message["more_body"]:
                break
        await answer(send, b"%d" % size)

    async with serving(app) as server, server.dial() as client:
        upload = await client.ask(method="POST", end=False)
        left = BIG
        while left:
            room = min(client.h2.local_flow_control_window(upload), 16384, left + 1) - 1  # one for the padding's length
            if room > 0:
                left -= room
                client.h2.send_data(upload, bytes(room), end_stream=not left, pad_length=0)
                await client.flush()
            else:
                assert await client.hear()
        assert await client.reply(upload) == ("200", b"%d" % BIG)
        empty = await client.ask(method="POST")
        assert await client.reply(empty) == ("200", b"0")
    assert (heads[0][b"transfer-encoding"], heads[0][b"host"]) == (b"chunked", b"x")
    assert b"transfer-encoding" not in heads[1]


async def test_a_client_that_waits_to_be_told_is_told_when_its_body_is_wanted() -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        body = b"" if scope["path"] == "/refuse" else (await receive())["body"]
        await answer(send, body)

    async with serving(app) as server, server.dial() as client:
        expecting = {"expect": "100-continue", "content-length": "2"}
        stream_id = await client.ask("/", "POST", end=False, **expecting)
        with trio.fail_after(PATIENCE_S):
            while not any(type(event).__name__ == "InformationalResponseReceived" for event in client.events):
                assert await client.hear()
        client.h2.send_data(stream_id, b"hi", end_stream=True)
        await client.flush()
        assert await client.reply(stream_id) == ("200", b"hi")
        refused = await client.ask("/refuse", "POST", end=False, **expecting)
        assert await client.reply(refused) == ("200", b"")
        # what was not read is not asked for any more, and that is no error
        assert (await client.until(StreamReset, refused)).error_code == ErrorCodes.NO_ERROR


async def test_a_refusal_does_not_wait_for_the_body_of_a_client_that_waits_to_be_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        incoming = asgi.Incoming(receive, 2, asgi.connection_of(scope))
        await asgi.write(scope, send, incoming, Response(401, body=b"no"))

    monkeypatch.setattr(asgi, "DISCARD_S", math.inf)
    async with serving(app) as server, server.dial() as client:
        stream_id = await client.ask("/", "POST", end=False, **{"expect": "100-continue", "content-length": "2"})
        assert (await client.reply(stream_id))[0] == "401"
        assert (await client.until(StreamReset, stream_id)).error_code == ErrorCodes.NO_ERROR


async def test_fields_of_the_connection_stay_here_and_one_that_closes_says_goodbye() -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        headers = [(b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"x-mine", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"later"})

    async with serving(app) as server, server.dial() as client:
        stream_id = await client.ask()
        assert await client.reply(stream_id) == ("503", b"later")
        names = {name for name, _ in (await client.until(ResponseReceived)).headers}
        assert names == {b":status", b"x-mine", b"date"}
        assert await client.until_over() == [(stream_id, ErrorCodes.NO_ERROR)]


async def test_who_offers_nothing_else_speaks_http_1() -> None:
    async with serving() as server:
        for protocols in ((), ("http/1.1",)):
            stream = await trio.open_ssl_over_tcp_stream(
                "127.0.0.1", server.port, ssl_context=client_tls(*protocols), https_compatible=True
            )
            async with stream:
                await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


async def test_what_an_application_sends_leaves_at_once_both_ways_at_a_time() -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"].upper(), "more_body": more})

    async with serving(app) as server, server.dial() as client:
        stream_id = await client.ask(method="POST", end=False)
        heard = b""
        for piece in (b"one ", b"two ", b"three "):
            client.h2.send_data(stream_id, piece)
            await client.flush()
            heard += piece.upper()
            while client.body(stream_id) != heard:
                assert await client.hear()
        client.h2.end_stream(stream_id)
        await client.flush()
        assert await client.reply(stream_id) == ("200", b"ONE TWO THREE ")


# -- clients that leave -----------------------------------------------------------------------------------------------


async def test_a_request_that_is_reset_hears_of_it_and_its_neighbours_do_not() -> None:
    told = Told()
    async with serving(told.app) as server, server.dial() as client:
        one, other = await client.ask("/1"), await client.ask("/2", "POST", end=False)
        await told.until(2, 0)
        client.h2.reset_stream(one, ErrorCodes.CANCEL)
        await client.flush()
        await told.until(2, 1)
        client.h2.send_data(other, b"more")
        client.h2.reset_stream(other, ErrorCodes.CANCEL)
        await client.flush()
        await told.until(2, 2)
        assert await client.reply(await client.ask("/ok")) == ("200", b"ok")
        assert server.connections.statistics().failed == 0


async def test_a_client_that_leaves_leaves_no_request_behind() -> None:
    told = Told()
    async with serving(told.app) as server:
        async with server.dial() as client:
            for _ in range(5):
                await client.ask("/wait")
            await told.until(5, 0)
        await told.until(5, 5)
        await server.emptied()


async def test_a_client_that_says_it_will_ask_no_more_gets_the_rest() -> None:
    may_end = trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await may_end.wait()
        await answer(send, b"x" * 200_000)

    async with serving(app) as server, server.dial() as client:
        stream_id = await client.ask()
        await client.stream.send_all(bytes.fromhex("0000080700000000000000000000000000"))  # not by h2: it would end
        await wait_all_tasks_blocked(0.02)
        may_end.set()
        assert await client.reply(stream_id) == ("200", b"x" * 200_000)
        await client.until_over()


async def test_an_application_that_fails_costs_its_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    may_fail = trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/bug":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            await may_fail.wait()
            raise RuntimeError("on purpose")
        await answer(send)

    async with serving(app) as server, server.dial() as client:
        bug = await client.ask("/bug")
        await client.until(DataReceived, bug)
        may_fail.set()
        assert (await client.until(StreamReset, bug)).error_code == ErrorCodes.INTERNAL_ERROR
        assert await client.reply(await client.ask()) == ("200", b"ok")
        assert server.connections.statistics().failed == 1
    assert "on purpose" in caplog.text


# -- windows ----------------------------------------------------------------------------------------------------------


async def test_a_stream_waits_for_its_client_and_goes_on_with_it() -> None:
    sent = 0

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(10_000), "more_body": True})
            sent += 10_000
        await send({"type": "http.response.body", "body": b""})

    async with serving(app) as server, server.dial({SettingCodes.INITIAL_WINDOW_SIZE: 30_000}) as client:
        stream_id = await client.ask()
        while len(client.body(stream_id)) < 30_000:
            assert await client.hear()
        await wait_all_tasks_blocked(0.02)
        assert sent <= 30_000
        client.h2.increment_flow_control_window(2**20, stream_id)
        client.h2.increment_flow_control_window(2**20)
        await client.flush()
        assert len((await client.reply(stream_id))[1]) == 1_000_000


async def test_a_client_that_reads_no_bytes_at_all_stops_the_streams_and_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http2, "STALL_S", 0.3)
    sent = 0

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not scope["state"][connections.CONNECTION].broken:
            await send({"type": "http.response.body", "body": bytes(50_000), "more_body": True})
            sent += 50_000

    async with serving(app) as server, server.dial({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}) as client:
        client.h2.increment_flow_control_window(2**30)
        await client.ask()
        await server.emptied()
    # what the system's buffers on both sides take, and our own
    assert sent < 20_000_000 + HTTP2_OUTBOX


async def test_a_client_that_never_opens_its_window_has_its_request_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "STALL_S", 0.1)

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await answer(send, b"x" * BIG if scope["path"] == "/big" else b"ok")

    async with serving(app) as server, server.dial({SettingCodes.INITIAL_WINDOW_SIZE: 10}) as client:
        big = await client.ask("/big")
        assert (await client.until(StreamReset, big)).error_code == ErrorCodes.CANCEL
        assert client.body(big) == b"x" * 10
        assert await client.reply(await client.ask()) == ("200", b"ok")


async def test_an_upload_that_nobody_reads_waits_and_the_others_go_on() -> None:
    may_read = trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await may_read.wait()
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        await answer(send, b"%d" % size)

    async def fill(client: Client, stream_id: int) -> int:
        """Send as much as the server lets us."""
        filled = 0
        while room := min(client.h2.local_flow_control_window(stream_id), 16384):
            client.h2.send_data(stream_id, bytes(room))
            filled += room
        await client.flush()
        return filled

    async with serving(app) as server, server.dial() as client:
        await client.until(WindowUpdated)
        slow = [await client.ask("/slow", "POST", end=False) for _ in range(30)]
        filled = [await fill(client, stream_id) for stream_id in slow]
        assert all(HTTP2_WINDOW - 1 <= size <= HTTP2_WINDOW for size in filled)
        quick = await client.ask("/quick", "POST", end=False)
        client.h2.send_data(quick, bytes(10_000), end_stream=True)
        await client.flush()
        assert await client.reply(quick) == ("200", b"10000")
        assert [await fill(client, stream_id) for stream_id in slow] == [0] * 30
        may_read.set()
        for stream_id, size in zip(slow, filled, strict=True):
            client.h2.end_stream(stream_id)
            await client.flush()
            assert await client.reply(stream_id) == ("200", b"%d" % size)


async def test_answered_uploads_do_not_use_up_the_connection() -> None:
    async with serving() as server, server.dial() as client:
        await client.until(WindowUpdated)
        for _ in range(2 * HTTP2_STREAMS):
            stream_id = await client.ask("/", "POST", end=False)
            for _ in range(3):
                client.h2.send_data(stream_id, bytes(16_000))
            client.h2.reset_stream(stream_id, ErrorCodes.NO_ERROR)
            await client.flush()
            if stream_id % 20 == 1:
                stream_id = await client.ask("/")
                assert (await client.reply(stream_id))[0] == "200"
        assert client.h2.outbound_flow_control_window > HTTP2_WINDOWS // 4


async def test_a_body_of_another_length_than_declared_costs_its_request_alone() -> None:
    told = Told()
    async with serving(told.app) as server, server.dial() as client:
        other = await client.ask("/other")
        for sent in (b"abc", b"a longer body"):
            before = client.h2.outbound_flow_control_window
            wrong = await client.ask("/wrong", "POST", end=False, **{"content-length": "10"})
            client.h2.send_data(wrong, sent, end_stream=True)
            await client.flush()
            assert (await client.until(StreamReset, wrong)).error_code == ErrorCodes.PROTOCOL_ERROR
            assert client.h2.outbound_flow_control_window >= before - len(sent)
        await told.until(waiting=3, heard=2)
        assert await client.reply(await client.ask("/ok")) == ("200", b"ok")
        client.h2.reset_stream(other)
        await client.flush()
        await told.until(waiting=3, heard=3)
    assert client.goodbyes == []


async def test_a_body_that_ends_without_data_has_the_length_that_was_declared_all_the_same() -> None:
    told = Told()
    async with serving(told.app) as server, server.dial() as client:
        short = await client.ask("/wrong", "POST", end=False, **{"content-length": "10"})
        client.h2.send_data(short, b"abc")
        client.h2.send_headers(short, [("a", "trailer")], end_stream=True)
        await client.flush()
        assert (await client.until(StreamReset, short)).error_code == ErrorCodes.PROTOCOL_ERROR
        await told.until(waiting=1, heard=1)
        empty = await client.ask("/wrong", "POST", **{"content-length": "10"})
        assert (await client.until(StreamReset, empty)).error_code == ErrorCodes.PROTOCOL_ERROR
        whole = await client.ask("/ok", "POST", end=False, **{"content-length": "3"})
        client.h2.send_data(whole, b"abc")
        client.h2.send_headers(whole, [("a", "trailer")], end_stream=True)
        await client.flush()
        assert await client.reply(whole) == ("200", b"ok")
        assert await client.reply(await client.ask("/ok", "POST", **{"content-length": "0"})) == ("200", b"ok")
    assert (client.goodbyes, told.waiting) == ([], 1)


async def test_a_length_that_is_declared_twice_costs_its_request() -> None:
    async with serving() as server, server.dial() as client:
        fields = [(":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", "x")]
        stream_id = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream_id, [*fields, ("content-length", "2"), ("content-length", "2")])
        client.h2.send_data(stream_id, b"ok", end_stream=True)
        await client.flush()
        assert (await client.until(StreamReset, stream_id)).error_code == ErrorCodes.PROTOCOL_ERROR
        assert await client.reply(await client.ask()) == ("200", b"ok")


async def test_control_characters_cost_their_request_and_spaces_in_a_path_are_written_out() -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await answer(send, scope["raw_path"])

    async with serving(app) as server, server.dial() as client:
        client.h2.config.validate_outbound_headers = False
        for broken in ({"path": "/a\x1b[2J"}, {"method": "GE\x07T"}, {"x": "a\x7fb"}):
            asked = {name if name == "x" else f":{name}": value for name, value in broken.items()}
            stream_id = await client.ask(**{"path": "/", "method": "GET"} | asked)
            assert (await client.until(StreamReset, stream_id)).error_code == ErrorCodes.PROTOCOL_ERROR
        assert await client.reply(await client.ask("/a b/é")) == ("200", b"/a%20b/%C3%A9")


@pytest.mark.parametrize("length", [True, False], ids=["length", "no length"])
async def test_a_client_that_gives_its_upload_up_on_hearing_of_an_error_gets_all_of_it(length: bool) -> None:
    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await asgi.write(scope, send, Incoming(receive, 1_000_000), Response(404, body=b"not here"))

    async with serving(app) as server, server.dial() as client:
        declared = {"content-length": "1000000"} if length else {}
        upload = await client.ask("/", "POST", end=False, **declared)
        client.h2.send_data(upload, bytes(1000))
        await client.flush()
        await client.until(DataReceived, upload)
        client.h2.send_data(upload, b"", end_stream=True)
        await client.flush()
        assert await client.reply(upload) == ("404", b"not here")


@pytest.mark.parametrize(
    ("method", "status", "body"),
    [("POST", 200, b"early"), ("POST", 204, b""), ("PATCH", 200, None), ("HEAD", 200, b"")],
)
async def test_a_whole_response_ends_before_the_rest_of_an_upload_is_given_up(
    method: str, status: int, body: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "DISCARD_BYTES", 10_000)

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        incoming = Incoming(receive, None)
        if body is not None:
            await asgi.write(scope, send, incoming, Response(status, body=b"early"))
        else:
            await asgi.begin(send, status, [], b"a stream", more=True)
            await asgi.finish(send, incoming)

    async with serving(app) as server, server.dial() as client:
        upload = await client.ask("/", method, end=False)
        client.h2.send_data(upload, bytes(16_000))
        await client.flush()
        assert (await client.until(StreamReset, upload)).error_code == ErrorCodes.NO_ERROR
        kinds = [type(event) for event in client.events]
        assert kinds.index(StreamEnded) < kinds.index(StreamReset)
        assert client.body(upload) == (b"a stream" if body is None else body)


# -- attacks ----------------------------------------------------------------------------------------------------------


def fields(client: Client, **headers: str) -> bytes:
    given = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": "x"} | headers
    return client.h2.encoder.encode(list(given.items()))


def rapid_resets(client: Client) -> list[Frame]:
    frames: list[Frame] = []
    for stream_id in range(1, 4001, 2):
        frames.append(HeadersFrame(stream_id, fields(client), flags=["END_HEADERS", "END_STREAM"]))
        frames.append(RstStreamFrame(stream_id, error_code=8))
    return frames


def continuations(client: Client) -> list[Frame]:
    return [HeadersFrame(1, fields(client)), *(ContinuationFrame(1, b"") for _ in range(5000))]


def a_long_head(client: Client) -> list[Frame]:
    data = fields(client, **{f"x-{number}": "y" * 4000 for number in range(40)})
    parts = [data[start : start + 16_000] for start in range(0, len(data), 16_000)]
    return [HeadersFrame(1, parts[0]), *(ContinuationFrame(1, part) for part in parts[1:])]


def a_bomb(client: Client) -> list[Frame]:
    data = fields(client, bomb="y" * 4000) + b"\xbe" * 8000  # the same field again and again
    return [HeadersFrame(1, data, flags=["END_HEADERS", "END_STREAM"])]


ATTACKS = {
    "rapid resets": (rapid_resets, ErrorCodes.ENHANCE_YOUR_CALM),
    "pings": (lambda _: [PingFrame(0, b"12345678")] * 5000, ErrorCodes.ENHANCE_YOUR_CALM),
    "settings": (lambda _: [SettingsFrame(0, {4: 70_000 + n % 2}) for n in range(500)], ErrorCodes.ENHANCE_YOUR_CALM),
    "unknown settings": (
        lambda _: [SettingsFrame(0, {0x100 + n: 1 for n in range(1000)})],
        ErrorCodes.ENHANCE_YOUR_CALM,
    ),
    "priorities": (lambda _: [PriorityFrame(1, depends_on=3)] * 5000, ErrorCodes.ENHANCE_YOUR_CALM),
    "windows": (lambda _: [WindowUpdateFrame(0, window_increment=1)] * 5000, ErrorCodes.ENHANCE_YOUR_CALM),
    "empty data": (
        lambda client: [HeadersFrame(1, fields(client), flags=["END_HEADERS"]), *[DataFrame(1)] * 5000],
        ErrorCodes.ENHANCE_YOUR_CALM,
    ),
    "continuations": (continuations, None),
    "a long head": (a_long_head, None),
    "a bomb": (a_bomb, ErrorCodes.ENHANCE_YOUR_CALM),
    "a long frame": (lambda _: [DataFrame(1, bytes(17_000))], ErrorCodes.FRAME_SIZE_ERROR),
    "too many at once": (
        lambda client: [HeadersFrame(2 * n + 1, fields(client), flags=["END_HEADERS"]) for n in range(150)],
        None,
    ),
    "an odd stream": (lambda client: [HeadersFrame(2, fields(client), flags=["END_HEADERS"])], None),
    "an endless window": (
        lambda _: [WindowUpdateFrame(0, window_increment=2**31 - 1)] * 2,
        ErrorCodes.FLOW_CONTROL_ERROR,
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_ends_its_own_connection_and_no_other(attack: str) -> None:
    told = Told()
    make, code = ATTACKS[attack]
    async with serving(told.app) as server, server.dial() as neighbour:
        assert await neighbour.reply(await neighbour.ask("/ok")) == ("200", b"ok")
        async with server.dial() as client:
            try:
                await client.stream.send_all(b"".join(frame.serialize() for frame in make(client)))
            except trio.BrokenResourceError:
                pass  # refused before all of it was sent
            ((_, told_code),) = await client.until_over()
            assert told_code in ([code] if code is not None else list(ErrorCodes)[1:])
        await told.until(told.waiting, told.waiting)
        assert await neighbour.reply(await neighbour.ask("/ok")) == ("200", b"ok")
        assert told.waiting < 1500  # of 2,000, and some points come back while a slow machine works
        assert server.connections.statistics().failed == 0


async def test_a_preface_that_is_none_is_refused() -> None:
    async with serving() as server:
        tls = client_tls("h2")
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", server.port, ssl_context=tls, https_compatible=True)
        async with stream:
            await stream.send_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            received = b""
            while data := await stream.receive_some():
                received += data
            assert b"HTTP/1.1" not in received
        assert server.connections.statistics().failed == 0


async def test_requests_that_were_reset_count_until_they_have_ended() -> None:
    may_end = trio.Event()

    async def lingers(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        await may_end.wait()
        await answer(send)

    async with serving(lingers) as server, server.dial() as client:
        for _ in range(HTTP2_STREAMS):
            client.h2.reset_stream(await client.ask())
        await client.flush()
        one_more = await client.ask()
        assert (await client.until(StreamReset, one_more)).error_code == ErrorCodes.REFUSED_STREAM
        may_end.set()
        while True:  # it may be asked again
            again = await client.ask()
            while not any(getattr(event, "stream_id", None) == again for event in client.events):
                assert await client.hear()
            if not any(isinstance(event, StreamReset) and event.stream_id == again for event in client.events):
                break
        assert await client.reply(again) == ("200", b"ok")


# -- the end ----------------------------------------------------------------------------------------------------------


async def test_a_connection_without_requests_is_said_goodbye_to_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.02)
    async with serving(idle_s=0.7) as server, server.dial() as client:
        stream_id = await client.ask()
        assert await client.reply(stream_id) == ("200", b"ok")
        assert await client.until_over() == [(stream_id, ErrorCodes.NO_ERROR)]
        await server.emptied()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a hello"])
async def test_who_does_not_shake_hands_is_cut(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE_S", 0.1)
    async with serving() as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(sent)
        with trio.fail_after(PATIENCE_S):
            try:
                assert await stream.receive_some() == b""
            except trio.BrokenResourceError:
                pass  # what was sent had not been read
        await server.emptied()


async def test_a_stop_says_goodbye_and_lets_what_runs_end() -> None:
    may_end, running = trio.Event(), trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/idle":
            await answer(send)
            return
        running.set()
        await may_end.wait()
        await answer(send, b"x" * 300_000)

    async with serving(app, grace_s=PATIENCE_S) as server, server.dial() as client, server.dial() as idle:
        assert (await idle.reply(await idle.ask("/idle")))[0] == "200"
        stream_id = await client.ask()
        await running.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.stop)
            assert await idle.until_over() == [(1, ErrorCodes.NO_ERROR)]
            while not client.goodbyes:
                assert await client.hear()
            late = await client.ask("/late")
            assert (await client.until(StreamReset, late)).error_code == ErrorCodes.REFUSED_STREAM
            may_end.set()
            assert await client.reply(stream_id) == ("200", b"x" * 300_000)
            assert await client.until_over() == [(stream_id, ErrorCodes.NO_ERROR)]


async def test_a_request_that_comes_too_late_and_is_reset_at_once_harms_nobody() -> None:
    may_end, running = trio.Event(), trio.Event()

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        running.set()
        await may_end.wait()
        await answer(send)

    async with serving(app, grace_s=PATIENCE_S) as server, server.dial() as client:
        stream_id = await client.ask()
        await running.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.stop)
            while not client.goodbyes:
                assert await client.hear()
            for _ in range(3):
                late = client.h2.get_next_available_stream_id()
                given = {":method": "GET", ":path": "/", ":scheme": "https", ":authority": "x"}
                client.h2.send_headers(late, list(given.items()), end_stream=True)
                client.h2.reset_stream(late)
            await client.flush()
            await wait_all_tasks_blocked(0.02)
            may_end.set()
            assert await client.reply(stream_id) == ("200", b"ok")


async def test_a_stop_does_not_wait_longer_than_its_grace() -> None:
    told = Told()
    async with serving(told.app, grace_s=0.1) as server, server.dial() as client:
        await client.ask("/wait")
        await told.until(1, 0)
        assert await server.stop() < PATIENCE_S / 2
