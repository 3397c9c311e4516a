"""HTTP requests to handler inputs, results to responses, and the CORS tables, as tables."""

from typing import Any

import pytest

from iii_trio.config import CorsSettings
from iii_trio.engine import Binding
from iii_trio.modules.http import cors
from iii_trio.modules.http.messages import (
    BadRequest,
    Response,
    check_json,
    envelope,
    from_result,
    handler_input,
    new_error_id,
    read_request,
    skipped,
    stream_headers,
)
from iii_trio.modules.http.routes import Match, Routes
from iii_trio.protocol import Json


def scope(method: str = "GET", target: bytes = b"/", headers: tuple[tuple[bytes, bytes], ...] = ()) -> dict[str, Any]:
    path, _, query = target.partition(b"?")
    return {"type": "http", "method": method, "raw_path": path, "path": "", "query_string": query, "headers": headers}


def match(api_path: str, path: str, method: str = "GET") -> Match:
    routes = Routes()
    config = Json.of({"api_path": api_path, "http_method": method})
    routes.bind(Binding(id="t", trigger_type="http", function_id="f", config=config))
    found = routes.find(method, path)
    assert isinstance(found, Match)
    return found


# -- requests ---------------------------------------------------------------------------------------------------------


def test_the_handler_gets_the_whole_request() -> None:
    headers = ((b"Host", b"x"), (b"content-type", b"application/json"), (b"x-a", b"1"), (b"X-A", b"2"))
    request = read_request(scope("POST", b"/users/42?q=1&q=2&a&b=%C3%A9+x&c=%ff", headers))
    text = handler_input(request, match("users/:id", "/users/42", "POST"), b'{"z":2, "a":[1]}')
    assert text.decode() == {
        "query_params": {"q": ["1", "2"], "a": "", "b": "é x", "c": "\ufffd"},
        "path_params": {"id": "42"},
        "headers": {"host": "x", "content-type": "application/json", "x-a": "1, 2"},
        "path": "users/:id",
        "method": "POST",
        "trigger": {"type": "http", "path": "users/:id", "method": "POST"},
        "request": {
            "path": "/users/42",
            "query": "q=1&q=2&a&b=%C3%A9+x&c=%ff",
            "scheme": "http",
            "client": "",
            "http_version": "1.1",
            "id": "",
        },
        "body": {"z": 2, "a": [1]},
    }
    assert b'"body":{"z":2, "a":[1]}' in text.raw


def test_headers_keep_everything() -> None:
    headers = (
        (b"x-name", "é".encode()),
        (b"x-old", b"\xe9"),
        (b"cookie", b"a=1"),
        (b"Cookie", b"b=2"),
        (b"x-ok", b"a\tb"),
    )
    request = read_request(scope(headers=headers))
    assert request.headers == {"x-name": "é", "x-old": "é", "cookie": "a=1; b=2", "x-ok": "a\tb"}


def test_a_query_key_has_all_its_values() -> None:
    assert read_request(scope(target=b"/?a=1&b=2&a=3&a=")).query_params == {"a": ["1", "3", ""], "b": "2"}


@pytest.mark.parametrize(
    ("given", "kept"), [(b"abc-1", True), (b"x" * 129, False), (b"a b", False), ("é".encode(), False), (b"", False)]
)
def test_a_request_has_the_clients_id_or_a_new_one(given: bytes, kept: bool) -> None:
    request = read_request(scope(headers=((b"x-call", given),)), "X-Call")
    assert (request.id == given.decode()) is kept
    assert request.headers["x-call"] == request.id
    assert 0 < len(request.id) <= 128
    assert read_request(scope(headers=((b"x-request-id", b"1"),))).id == ""


def test_only_a_trusted_proxy_says_where_a_request_comes_from() -> None:
    headers = ((b"x-forwarded-for", b"6.6.6.6, 10.0.0.7"), (b"x-forwarded-proto", b"https"))
    given = {**scope(headers=headers), "client": ("127.0.0.1", 5), "scheme": "http"}
    plain, trusting = read_request(given), read_request(given, trust_proxy=True)
    assert (plain.client, plain.scheme) == ("127.0.0.1", "http")
    assert (trusting.client, trusting.scheme) == ("10.0.0.7", "https")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a%20b/%2F", "/a%20b/%2F"),
        (b"//a", "//a"),
        (b"http://host:1/a/b", "/a/b"),
        (b"http://host", "/"),
        (b"*", "*"),
    ],
)
def test_the_path_is_raw(target: bytes, path: str) -> None:
    assert read_request(scope(target=target)).path == path


def test_a_driver_without_raw_path_gives_its_path() -> None:
    assert read_request({"method": "get", "path": "/a", "headers": []}).path == "/a"


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/json", True),
        (b"Application/JSON; charset=utf-8", True),
        (b"application/vnd.api+json", True),
        (b"application/problem+JSON;x=1", True),
        (b"application/jsonlines", False),
        (b"text/plain", False),
        (b"application/x-www-form-urlencoded", False),
        (b"", False),
        (None, False),
    ],
)
def test_json_bodies_are_recognised_in_any_case_and_as_a_suffix(content_type: bytes | None, expected: bool) -> None:
    headers = () if content_type is None else ((b"content-type", content_type),)
    assert read_request(scope(headers=headers)).has_json is expected


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ((), 0),
        (((b"content-length", b"12"),), 12),
        (((b"transfer-encoding", b"chunked"),), None),
        (((b"content-length", b"x"),), 0),
    ],
)
def test_the_length_of_the_body(headers: tuple[tuple[bytes, bytes], ...], length: int | None) -> None:
    assert read_request(scope(headers=headers)).length == length


@pytest.mark.parametrize(
    ("body", "accepted"),
    [
        (b'{"a":1}', True),
        (b" [1]\n", True),
        (b"null", True),
        (b"123456789012345678901234567890", True),
        (b"", False),
        (b"{", False),
        (b"{'a':1}", False),
        (b"NaN", False),
        (b"1e999", False),
        (b'"\xff"', False),
        (b'"\\ud800"', False),
        (b"\xef\xbb\xbf{}", False),
        (b"[" * 126 + b"]" * 126, True),
        (b"[" * 127 + b"]" * 127, False),
        (b"[" * 200_000, False),
        (b"1" * 4_299, True),
        (b"[" + b"1" * 5_000 + b"]", False),
    ],
)
def test_only_json_that_every_peer_can_take_is_passed_on(body: bytes, accepted: bool) -> None:
    if accepted:
        check_json(body)
        passed = handler_input(read_request(scope()), match("/", "/"), body).decode()["body"]
        assert passed == Json(body).decode()
    else:
        with pytest.raises(BadRequest):
            check_json(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{broken", "at byte 1 (line 1, column 2)"),
        (b'{"a":1,\n "b":}', "at byte 13 (line 2, column 6)"),
        (b'{"a":1', "at byte 6 (line 1, column 7)"),
        (b'["\xff"]', "it is not UTF-8 at byte 2 (line 1, column 3)"),
        (b"[" * 127 + b"]" * 127, "deeper than 126 levels"),
    ],
)
def test_what_is_wrong_with_json_is_said_with_its_position(body: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        check_json(body)
    assert words in str(caught.value)


def test_trace_context_is_passed_on_when_it_is_well_formed() -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    request = read_request(scope(headers=((b"traceparent", trace), (b"baggage", b"a=1"))))
    assert (request.traceparent, request.baggage) == (trace.decode(), "a=1")
    assert read_request(scope(headers=((b"traceparent", b"garbage"),))).traceparent is None
    assert read_request(scope()).traceparent is None


# -- responses --------------------------------------------------------------------------------------------------------

JSON = (b"content-type", b"application/json")


@pytest.mark.parametrize(
    ("result", "status", "body"),
    [
        ({"status_code": 201, "body": {"a": 1}}, 201, b'{"a":1}'),
        ({"statusCode": 201, "body": {"a": 1}}, 201, b'{"a":1}'),
        ({"status_code": 202, "statusCode": 201, "body": 1}, 202, b"1"),
        ({"status_code": None, "statusCode": 201, "body": 1}, 200, b"1"),
        ({"body": "text"}, 200, b'"text"'),
        ({"body": None}, 200, b"null"),
        ({"body": [1, "é", 2.5, True]}, 200, '[1,"é",2.5,true]'.encode()),
        ({"body": 2**80}, 200, b"1208925819614629174706176"),
        ({"status_code": 999, "body": 0}, 999, b"0"),
        ({"status_code": 1000, "body": 0}, 200, b"0"),
        ({"status_code": 99, "body": 0}, 200, b"0"),
        ({"status_code": 101, "body": 0}, 200, b"0"),
        ({"status_code": -1, "body": 0}, 200, b"0"),
        ({"status_code": "404", "body": 0}, 404, b"0"),
        ({"status_code": 404.0, "body": 0}, 404, b"0"),
        ({"status_code": 404.5, "body": 0}, 200, b"0"),
        ({"status_code": "٤٠٤", "body": 0}, 200, b"0"),
        ({"status_code": "", "body": 0}, 200, b"0"),
        ({"status_code": "4" * 5000, "body": 0}, 200, b"0"),
        ({"status_code": True, "body": 0}, 200, b"0"),
        ({"status_code": 201}, 201, b"{}"),
        ({"headers": None}, 200, b"{}"),
        ({"message": "no body"}, 200, b'{"message":"no body"}'),
        ({}, 200, b"{}"),
        ("text", 200, b'"text"'),
        (7, 200, b"7"),
        ([1, 2], 200, b"[1,2]"),
        (False, 200, b"false"),
    ],
)
def test_a_result_without_content_type_becomes_json(result: object, status: int, body: bytes) -> None:
    assert from_result(result) == Response(status, (JSON,), body)


@pytest.mark.parametrize(
    ("content_type", "body", "sent"),
    [
        ("text/xml", "<a/>", b"<a/>"),
        ("application/json", "raw", b"raw"),
        ("text/plain", "é", "é".encode()),
        ("text/plain", None, b""),
        ("application/json", None, b""),
        ("text/plain", {"a": [1]}, b'{"a":[1]}'),
        ("application/json; charset=utf-8", {"a": 1}, b'{"a":1}'),
        ("text/plain", 7, b"7"),
        ("application/octet-stream", {"type": "Buffer", "data": [1]}, b'{"type":"Buffer","data":[1]}'),
    ],
)
@pytest.mark.parametrize("as_list", [False, True])
def test_a_content_type_is_sent_as_given(content_type: str, body: object, sent: bytes, as_list: bool) -> None:
    headers = [f"Content-Type: {content_type}"] if as_list else {"Content-Type": content_type}
    expected = ((b"content-type", content_type.encode()),)
    assert from_result({"headers": headers, "body": body}) == Response(200, expected, sent)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"X-A": "1", "x-b": 2, "x-c": None, "x-d": {"e": 1}}, [(b"x-a", b"1")]),
        ({"Set-Cookie": ["a=1", 7, "b=2"]}, [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]),
        (["Set-Cookie: a=1", "set-cookie: b=2; Path=/", "no colon", 7], [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2; Path=/")]),
        (["X-Time: 10:30"], [(b"x-time", b"10:30")]),
        ({"x-pad": "  a  "}, [(b"x-pad", b"a")]),
        ({"bad name": "1", "x:y": "1", "": "1", "é": "1", "x-ok": "1"}, [(b"x-ok", b"1")]),
        ({"x-a": "a\r\nx-evil: 1", "x-b": "a\x00", "x-c": "é", "x-d": "\x7f", "x-ok": "a\tb"}, [(b"x-ok", b"a\tb")]),
        ({"Content-Length": "3", "Connection": "close", "Transfer-Encoding": "chunked", "Keep-Alive": "1"}, []),
        ({"Upgrade": "x", "TE": "x", "Trailer": "x", "Proxy-Authenticate": "x", "Date": "x"}, []),
        ("x-a: 1", []),
        (None, []),
        (7, []),
    ],
)  # fmt: skip
def test_headers_that_can_be_sent_are_sent(given: object, sent: list[tuple[bytes, bytes]]) -> None:
    assert from_result({"headers": given, "body": 1}).headers == (JSON, *sent)


@pytest.mark.parametrize(
    ("given", "length"),
    [("3", 3), (" 3 ", 3), ("0", 0), ("-1", None), ("1,1", None), ("", None), ("٣", None), ("9" * 5000, None)],
)
def test_a_stream_declares_its_length_if_that_is_one(given: str, length: int | None) -> None:
    declared = () if length is None else ((b"content-length", b"%d" % length),)
    fields = {"X-A": "1", "Content-Length": given}
    assert stream_headers(fields) == (((b"x-a", b"1"), *declared), length)


def test_envelopes() -> None:
    assert envelope(404, "NOT_FOUND", "Not Found") == Response(
        404, (JSON,), b'{"error":{"code":"NOT_FOUND","message":"Not Found"}}'
    )
    failed = envelope(500, "c", "m", error_id="ab", headers=((b"allow", b"GET"),))
    assert failed.body == b'{"error":{"code":"c","message":"m","error_id":"ab"}}'
    assert failed.headers == (JSON, (b"allow", b"GET"))
    assert skipped().body == (
        b'{"error":{"code":"CONDITION_NOT_MET","message":"Request condition not met"},"skipped":true}'
    )
    assert skipped().status == 422


def test_error_ids_are_twelve_hexadecimal_digits_and_never_the_same() -> None:
    ids = {new_error_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(text) == 12 and int(text, 16) >= 0 for text in ids)


# -- CORS -------------------------------------------------------------------------------------------------------------

VARY = "origin, access-control-request-method, access-control-request-headers"
LISTED = CorsSettings(allowed_origins=("https://a", "https://b", "https://é"), allowed_methods=("GET", "POST"))
OPEN = CorsSettings()
MIXED = CorsSettings(allowed_origins=("https://a", "*"))


def shown(response: Response) -> dict[str, str]:
    assert len({name for name, _ in response.headers}) == len(response.headers)
    return {name.decode().removeprefix("access-control-"): value.decode() for name, value in response.headers}


@pytest.mark.parametrize(
    ("rules", "origin", "headers"),
    [
        (None, None, {"allow-origin": "*", "expose-headers": "*"}),
        (None, "https://a", {"allow-origin": "*", "expose-headers": "*"}),
        (OPEN, "https://a", {"allow-origin": "*"}),
        (MIXED, "https://c", {"allow-origin": "*"}),
        (LISTED, "https://b", {"allow-origin": "https://b"}),
        (LISTED, "https://é", {"allow-origin": "https://é"}),
        (LISTED, "https://c", {}),
        (LISTED, "https://A", {}),
        (LISTED, None, {}),
    ],
)
def test_cors_headers_of_a_response(rules: CorsSettings | None, origin: str | None, headers: dict[str, str]) -> None:
    assert shown(cors.decorate(Response(200), rules, origin)) == headers | {"vary": VARY}


@pytest.mark.parametrize(
    ("rules", "origin", "headers"),
    [
        (None, None, {"allow-origin": "*", "allow-methods": "*"}),
        (OPEN, "https://a", {"allow-origin": "*", "allow-methods": "*"}),
        (LISTED, "https://a", {"allow-origin": "https://a", "allow-methods": "GET,POST"}),
        (LISTED, "https://c", {"allow-methods": "GET,POST"}),
    ],
)
def test_cors_preflight(rules: CorsSettings | None, origin: str | None, headers: dict[str, str]) -> None:
    response = cors.preflight(rules, origin)
    assert (response.status, response.body) == (200, b"")
    assert shown(response) == headers | {"allow-headers": "*", "vary": VARY}


def test_cors_replaces_a_handlers_headers_and_extends_its_vary() -> None:
    theirs = Response(200, ((b"access-control-allow-origin", b"mine"), (b"vary", b"accept"), (b"x", b"y")), b"b")
    assert shown(cors.decorate(theirs, None, None)) == {
        "x": "y",
        "allow-origin": "*",
        "expose-headers": "*",
        "vary": f"accept, {VARY}",
    }
    assert shown(cors.decorate(theirs, LISTED, "https://c")) == {"x": "y", "vary": f"accept, {VARY}"}
