"""The OpenAPI document of live routes: what it says, that validators take it, and how it is served."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from test_http_exchange import House, open_house
from trio.testing import MockClock

from iii_trio.engine import Binding, Call, FunctionEntry, Outcome
from iii_trio.modules.http import openapi
from iii_trio.modules.http.openapi import document
from iii_trio.modules.http.routes import Routes, read_route
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
        assert set(told["paths"]) == {"/", "/a/{x}/{x_}", "/files/{path}", "/orders/{id}"}
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
        assert put["responses"]["413"] == {"$ref": "#/components/responses/BodyTooLarge"}
        plain = told["paths"]["/orders/{id}"]["get"]
        assert plain["parameters"][0]["name"] == "id"
        assert plain["x-iii-response-format"] == "left out, it is no JSON Schema: a JSON Schema is an object"
        assert "content" not in plain["responses"]["default"]
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
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
        assert b"<orders>" not in page.body
        for elsewhere in (b"http://", b"https://", b"src=", b"innerHTML", b"eval("):
            assert elsewhere not in page.body
        assert (await house.ask("/docs")).json["openapi"] == "3.1.0"
        house.route("/docs", "f")
        assert (await house.ask("/docs")).json == 1


async def test_it_is_there_to_be_read_only_and_a_slash_before_its_path_may_be_missing(
    autojump_clock: MockClock,
) -> None:
    async with open_house(openapi_path="docs") as house:
        for method in ("POST", "DELETE"):
            refused = await house.ask("/docs", method)
            assert (refused.status, refused.code, refused.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "GET,HEAD")
        assert (await house.ask("/docs", "HEAD")).status == 200
        assert (await house.ask("/docs")).json["openapi"] == "3.1.0"
        function(house, "f")
        house.change(not_found_function="f")
        assert (await house.ask("/docs", "POST")).status == 405


async def operation(formats: dict[str, Any], path: str = "/x", method: str = "POST", **more: Any) -> tuple[Any, Any]:
    """What the document says of one route, and the whole document, which is valid."""
    async with open_house(openapi_path="/openapi.json") as house:
        function(house, "f", **formats)
        house.route(path, "f", method=method, **more)
        told = (await house.ask("/openapi.json")).json
        validate(told)
        (item,) = told["paths"].values()
        return item[method.lower()], told


async def test_one_of_several_responses_is_told_by_its_status(autojump_clock: MockClock) -> None:
    found = {"properties": {"status_code": {"const": 200}, "body": {"type": "integer"}}}
    missing = {"properties": {"status_code": {"enum": [404, 410]}, "body": {"type": "string"}}}
    failed = {"properties": {"status_code": {"const": 500}, "body": {"type": "null"}}}
    text = {"content-type": {"const": "text/csv"}}
    as_text = {
        "properties": {"status_code": {"const": 200}, "headers": {"properties": text}, "body": {"type": "string"}}
    }
    told, _ = await operation({"response_format": {"anyOf": [found, missing, failed, as_text]}}, method="GET")
    content = {status: response.get("content") for status, response in told["responses"].items()}
    assert content["200"] == {
        "application/json": {"schema": {"type": "integer"}},
        "text/csv": {"schema": {"type": "string"}},
    }
    assert content["404"] == content["410"] == {"application/json": {"schema": {"type": "string"}}}
    # the engine answers some statuses too
    error = {"$ref": "#/components/schemas/Error"}
    assert content["500"] == {"application/json": {"schema": {"anyOf": [{"type": "null"}, error]}}}
    assert told["responses"]["504"] == {"$ref": "#/components/responses/TimedOut"}
    assert "default" not in told["responses"]
    assert "requestBody" not in told


async def test_a_status_that_may_be_any_is_the_default(autojump_clock: MockClock) -> None:
    fields = {"status_code": {"type": "integer"}, "body": {"type": "boolean"}}
    told, _ = await operation({"response_format": {"properties": fields}})
    assert told["responses"]["default"]["content"] == {"application/json": {"schema": {"type": "boolean"}}}
    assert "200" not in told["responses"]


@pytest.mark.parametrize(
    ("given", "status", "content"),
    [
        ({"type": "array"}, "200", {"application/json": {"schema": {"type": "array"}}}),
        ({"properties": {"a": {}}}, "200", {"application/json": {"schema": {"properties": {"a": {}}}}}),
        ({"properties": {"status_code": {"const": 202}}}, "202", None),
        ({"type": "null"}, "204", None),
        ({"type": "object"}, "default", None),
        ({}, "default", None),
        (None, "default", None),
    ],
)
async def test_what_has_no_key_of_a_response_is_the_body(
    given: Any, status: str, content: Any, autojump_clock: MockClock
) -> None:
    told, _ = await operation({} if given is None else {"response_format": given})
    assert {"200", "202", "204", "default"} & told["responses"].keys() == {status}
    assert told["responses"][status].get("content") == content


async def test_a_condition_brings_its_response_along(autojump_clock: MockClock) -> None:
    assert "422" not in (await operation({}))[0]["responses"]
    assert "422" in (await operation({}, condition="c"))[0]["responses"]


async def test_headers_are_parameters_and_authorization_is_not(autojump_clock: MockClock) -> None:
    headers = {
        "x-tenant": {"type": "string"},
        "Authorization": {"type": "string"},
        "content-type": {"enum": ["application/json", "application/merge-patch+json"]},
    }
    wanted = {"properties": {"headers": {"properties": headers, "required": ["x-tenant", "Authorization"]}}}
    told, document = await operation({"request_format": wanted})
    assert told["parameters"] == [{"name": "x-tenant", "in": "header", "required": True, "schema": {"type": "string"}}]
    assert told["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert list(told["requestBody"]["content"]) == ["application/json", "application/merge-patch+json"]
    wanted["properties"]["headers"]["required"] = ["x-tenant"]
    assert (await operation({"request_format": wanted}))[0]["security"] == [{"bearer": []}, {}]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"type": ["string", "null"]}, {"type": "string"}),
        ({"type": ["string", "integer", "null"]}, {"type": ["string", "integer"]}),
        ({"anyOf": [{"enum": ["a"]}, {"type": "null"}], "title": "A"}, {"enum": ["a"], "title": "A"}),
        ({"oneOf": [{"minimum": 1}, {"type": "null"}, {"maximum": 0}]}, {"oneOf": [{"minimum": 1}, {"maximum": 0}]}),
        ({"type": "null"}, {"type": "null"}),
    ],
)
async def test_a_parameter_is_not_null(given: Any, shown: Any, autojump_clock: MockClock) -> None:
    query = {"anyOf": [{"$ref": "#/$defs/Query"}, {"type": "null"}]}
    wanted = {"$defs": {"Query": {"properties": {"a": given}}}, "properties": {"query_params": query}}
    told, _ = await operation({"request_format": wanted})
    assert told["parameters"] == [{"name": "a", "in": "query", "required": False, "schema": shown}]


async def test_a_wildcard_and_a_parameter_in_one_place_are_one_path(autojump_clock: MockClock) -> None:
    async with open_house(openapi_path="/openapi.json") as house:
        function(house, "one")
        function(house, "all")
        house.route("/files/*path", "all")
        house.route("/files/:name", "one")
        house.route("/files/*path", "all", method="DELETE")
        house.route("/a b/%2F{/:id".replace("{", "%7B"), "one")
        house.route("/x", "one", method="OPTIONS")
        told = (await house.ask("/openapi.json")).json
        validate(told)
        assert set(told["paths"]) == {"/files/{name}", "/a%20b/%2F%7B/{id}", "/x"}
        assert {key: value["tags"] for key, value in told["paths"]["/files/{name}"].items()}.keys() == {"get", "delete"}
        assert told["paths"]["/files/{name}"]["get"]["description"] == "Longer paths are answered by all."
        assert list(told["paths"]["/x"]) == ["options"]


FORMATS: dict[str, Any] = {
    "no schema": {"type": "strng"},
    "nonsense inside": {"properties": {"body": {"properties": {"a": 5}}}},
    "properties that are none": {"properties": [], "required": ["body"], "allOf": [{}]},
    "a list": [1, 2],
    "a wrong pattern": {"properties": {"body": {"type": "string", "pattern": "("}}},
    "a reference to nothing": {"properties": {"body": {"$ref": "#/$defs/missing"}}},
    "a reference elsewhere": {"properties": {"body": {"$ref": "https://example.com/x.json"}}},
    "a reference inside": {"properties": {"body": {"$ref": "#/properties/query_params"}}},
    "a circle": {
        "$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}},
        "properties": {"body": {"$ref": "#/$defs/A"}},
    },
    "itself": {"properties": {"body": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}},
    "nothing but itself": {"$ref": "#"},
    "itself and more": {"allOf": [{"$ref": "#"}, {"type": "object"}]},
    "what it is not": {"allOf": [{"not": {"$ref": "#"}}]},
    "itself among others": {
        "$defs": {
            "A": {"type": "object", "anyOf": [{"allOf": [{"$ref": "#/$defs/B"}]}, {}]},
            "B": {"$ref": "#/$defs/A"},
        },
        "properties": {"body": {"$ref": "#/$defs/A"}},
    },
    "a name of another": {
        "$id": "https://example.com/schema",
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"A/b ü": {"type": "integer"}},
        "properties": {"body": {"$ref": "#/definitions/A~1b ü"}},
    },
    "an old draft": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "properties": {
            "body": {
                "items": [{"type": "integer"}, True],
                "additionalItems": False,
                "dependencies": {"a": ["b"], "c": {"type": "object"}},
                "minimum": 1,
                "exclusiveMinimum": True,
                "type": "array",
                "nullable": True,
            }
        },
    },
    "a default that is none": {"properties": {"body": {"type": "integer", "default": "x"}}},
    "required and unknown": {"properties": {"body": {"allOf": [{"type": "object"}], "required": ["a"]}}},
    "yes and no": {"properties": {"body": {"properties": {"a": True, "b": False}}, "query_params": True}},
    "names that are none": {
        "properties": {"query_params": {"properties": {"": {}, "a b[]": {}, "é": {"type": "integer"}}}}
    },
}


@pytest.mark.parametrize("given", FORMATS.values(), ids=FORMATS)
async def test_no_format_breaks_the_document(given: Any, autojump_clock: MockClock) -> None:
    await operation({"request_format": given, "response_format": given})


async def test_an_old_draft_is_written_the_new_way(autojump_clock: MockClock) -> None:
    told, _ = await operation({"request_format": FORMATS["an old draft"]})
    assert told["requestBody"]["content"]["application/json"]["schema"] == {
        "prefixItems": [{"type": "integer"}, {}],
        "items": {"not": {}},
        "dependentRequired": {"a": ["b"]},
        "dependentSchemas": {"c": {"type": "object"}},
        "exclusiveMinimum": 1,
        "type": ["array", "null"],
    }


KEYWORDS = (
    *("$ref", "$defs", "a", "properties", "body", "items", "allOf", "anyOf", "type", "required", "default", "enum"),
    *("query_params", "path_params", "headers", "status_code", "const", "not", "additionalProperties", "pattern"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    given=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-3, 3)
        | st.sampled_from(["#", "#/$defs/a", "string", "object", "", "x"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(KEYWORDS),
                inner,
                max_size=4,
            )
        ),
        max_leaves=20,
    )
)
def test_whatever_a_worker_sends_the_document_is_valid(given: Any) -> None:
    binding = Binding(
        id="t", trigger_type="http", function_id="f", config=Json.of({"api_path": "/:id", "http_method": "PUT"})
    )
    entry = SimpleNamespace(request_format=Json.of(given), response_format=Json.of(given), description="x")
    validate(document([read_route(binding)], lambda namespace, function_id: entry))  # type: ignore[arg-type, return-value]


async def test_a_large_format_stands_in_the_document_once(autojump_clock: MockClock) -> None:
    async with open_house(openapi_path="/openapi.json") as house:
        body = {"type": "object", "properties": {f"key{number}": {"type": "string"} for number in range(200)}}
        function(house, "f", request_format={"properties": {"body": body}})
        for number in range(50):
            house.route(f"/x/{number}", "f", method="POST")
        reply = await house.ask("/openapi.json")
        validate(reply.json)
        assert reply.body.count(b"key199") == 1


async def test_it_is_made_once_until_something_changes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    original = openapi._pieces

    def counting(*given: Any) -> Any:
        nonlocal made
        made += 1
        return original(*given)

    monkeypatch.setattr(openapi, "_pieces", counting)
    async with open_house(openapi_path="/openapi.json") as house, trio.open_nursery() as nursery:
        function(house, "f")
        house.route("/x", "f")
        for _ in range(3):
            nursery.start_soon(house.ask, "/openapi.json")
        await house.ask("/openapi.json")
        assert made == 1
        house.route("/y", "f")
        assert len((await house.ask("/openapi.json")).json["paths"]) == 2
        function(house, "f", response_format={"properties": {"body": {"type": "integer"}}})
        told = (await house.ask("/openapi.json")).json
        assert made == 3
        assert "200" in told["paths"]["/x"]["get"]["responses"]
        nursery.cancel_scope.cancel()


async def test_ten_thousand_routes_are_made_in_small_steps(autojump_clock: MockClock) -> None:
    routes = Routes()
    for number in range(10_000):
        config = Json.of({"api_path": f"/r{number}/:id", "http_method": "POST"})
        routes.bind(Binding(id=str(number), trigger_type="http", function_id=f"f{number}", config=config))
    core = SimpleNamespace(revision=1, get=lambda namespace, function_id: None)
    making, turns = openapi.Document(routes, core), 0  # type: ignore[arg-type]
    made = trio.Event()

    async def neighbour() -> None:
        nonlocal turns
        while not made.is_set():
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(neighbour)
        text = await making.text()
        made.set()
    assert len(Json(text).decode()["paths"]) == 10_000
    assert turns >= 10_000 / openapi.STEP


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
