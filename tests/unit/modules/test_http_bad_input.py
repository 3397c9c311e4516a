"""Requests that are not what a function takes: the client's fault, unless the function has passed the fault on."""

import logging

import pytest
from test_http_exchange import House, open_house
from trio.testing import MockClock

from iii_trio.engine import Call, FunctionEntry, Outcome
from iii_trio.protocol import Json
from iii_trio.protocol.errors import WireError, bad_input


def failing(house: House, error: WireError) -> None:
    def handler(call: Call, data: Json) -> Outcome:
        raise error

    entry = FunctionEntry(id="a::f", namespace="default", owner=house.peer, builtin=True, handler=(False, handler))
    house.core.functions.claim(entry)
    house.route("/x", "a::f")


@pytest.mark.parametrize(
    "error",
    [WireError("payload of a::f: body.cents: expected an integer", "INVALID_INPUT"), bad_input("a::f", "no key")],
)
async def test_what_a_function_does_not_take_is_the_clients_fault(
    error: WireError, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_house() as house:
        failing(house, error)
        reply = await house.ask("/x")
        assert (reply.status, reply.code) == (400, "BAD_REQUEST")
        assert reply.json["error"]["message"] == error.message
        house.change(expose_errors=False)
        hidden = await house.ask("/x")
        assert (hidden.status, hidden.json["error"]["message"]) == (400, "The request is not what the function takes")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "error",
    [
        WireError("payload of b::g: expected an integer", "INVALID_INPUT"),
        bad_input("b::a::f", "no key"),
        WireError("payload of a::f: that is no code", "mine"),
    ],
)
async def test_what_it_has_called_itself_with_the_wrong_input_is_not(
    error: WireError, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        failing(house, error)
        reply = await house.ask("/x")
        assert (reply.status, reply.code) == (500, error.code)


@pytest.mark.parametrize("media_type", ["application/json", "application/x-www-form-urlencoded"])
async def test_a_compressed_body_that_would_be_parsed_is_refused_by_that_name(
    media_type: str, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        inputs = house.function("f", {"body": 1})
        house.route("/x", method="POST")
        headers = {"content-type": media_type, "content-length": "2"}
        reply = await house.ask("/x", "POST", headers | {"content-encoding": "GZIP"}, b"[]")
        assert (reply.status, reply.code) == (400, "BAD_REQUEST")
        assert "compressed (gzip)" in reply.json["error"]["message"]
        assert (await house.ask("/x", "POST", headers | {"content-encoding": "identity"}, b"[]")).status == 200
        raw = {"content-type": "text/plain", "content-encoding": "gzip"}
        assert (await house.ask("/x", "POST", raw, b"zz")).status == 200
        assert len(inputs) == 2
