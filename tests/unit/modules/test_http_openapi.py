"""The OpenAPI document of live routes: what it says, that validators take it, and how it is served."""

from typing import Any

import pytest
from openapi_spec_validator import validate
from test_http_exchange import House, open_house
from trio.testing import MockClock

from iii_trio.engine import Call, FunctionEntry, Outcome
from iii_trio.modules.http.openapi import document
from iii_trio.protocol import Json
from iii_trio.protocol.errors import TriggerRejected

ORDER = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {"Line": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Line"}}}},
    "properties": {
        "body": {"type": "array", "items": {"$ref": "#/$defs/Line"}},
        "query_params": {"type": "object", "properties": {"dry": {"type": "string"}}, "required": ["dry"]},
        "path_params": {"type": "object", "properties": {"id": {"type": "string", "maxLength": 5}}},
    },
}


def function(house: House, function_id: str, **formats: Any) -> None:
    def handler(call: Call, data: Json) -> Outcome:
        return Outcome(Json.of({"body": 1}))

    entry = FunctionEntry(
        id=function_id,
        namespace="default",
        owner=house.peer,
        builtin=True,
        handler=(False, handler),
        description="Takes <orders> & more",
        **{key: Json.of(value) for key, value in formats.items()},
    )
    house.core.functions.claim(entry)


async def test_what_functions_say_of_themselves_is_in_the_document(autojump_clock: MockClock) -> None:
    async with open_house(openapi_path="/openapi.json") as house:
        returned = {"type": "object", "properties": {"body": {"type": "integer"}}}
        function(house, "orders::put", request_format=ORDER, response_format=returned)
        function(house, "plain", request_format=True, response_format="nonsense")
        house.route("/orders/:id", "orders::put", method="PUT")
        house.route("/orders/:order", "plain")
        house.route("/files/*path", "plain")
        house.route("/a/:x/:x", "nobody", method="POST")
        house.route("/", "plain")
        told = (await house.ask("/openapi.json")).json
        validate(told)
        assert list(told["paths"]) == ["/", "/a/{x}/{x_}", "/files/{path*}", "/orders/{id}"]
        put = told["paths"]["/orders/{id}"]["put"]
        assert put["summary"] == "Takes <orders> & more"
        assert put["parameters"] == [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "maxLength": 5}},
            {"name": "dry", "in": "query", "required": True, "schema": {"type": "string"}},
        ]
        items = put["requestBody"]["content"]["application/json"]["schema"]["items"]
        line = "default.orders__put.request.Line"
        assert items == {"$ref": f"#/components/schemas/{line}"}
        assert told["components"]["schemas"][line]["properties"]["next"] == items
        assert put["responses"]["200"]["content"]["application/json"]["schema"] == {"type": "integer"}
        assert told["paths"]["/orders/{id}"]["get"]["parameters"][0]["name"] == "id"
        # it is live
        house.core.triggers.unregister("t1")
        assert list((await house.ask("/openapi.json")).json["paths"]["/orders/{order}"]) == ["get"]


async def test_it_is_served_where_the_settings_say_and_no_route_does(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        function(house, "f")
        house.route("/x", "f")
        assert (await house.ask("/openapi.json")).status == 404
        house.change(openapi_path="/docs")
        page = await house.ask("/docs", headers={"accept": "text/html,*/*"})
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert b"Takes &lt;orders&gt; &amp; more" in page.body
        assert b"http://" not in page.body.replace(b"http://json-schema.org", b"")
        assert b"src=" not in page.body
        assert (await house.ask("/docs")).json["openapi"] == "3.1.0"
        house.route("/docs", "f")
        assert (await house.ask("/docs")).json == 1


def test_no_routes_are_a_document_too() -> None:
    empty = document([], lambda namespace, function_id: None)
    validate(empty)
    assert empty["paths"] == {}


@pytest.mark.parametrize("text", ["/a{b", "/:", "?"])
async def test_refused_routes_are_not_in_it(text: str, autojump_clock: MockClock) -> None:
    async with open_house(openapi_path="/o") as house:
        with pytest.raises(TriggerRejected):
            house.route(text)
        assert (await house.ask("/o")).json["paths"] == {}
