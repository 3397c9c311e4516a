"""What a response of an endpoint means for the call, row by row (spec/http.md §17)."""

import pytest

from iii_trio.modules.http_functions.messages import response_result
from iii_trio.modules.http_functions.transport import cause
from iii_trio.protocol import ABSENT, NULL, Json
from iii_trio.protocol.errors import WireError


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"", ABSENT),
        (204, b"", ABSENT),
        (200, b"null", NULL),
        (201, b'{"a": 1}', Json(b'{"a": 1}')),
        (200, b" [1,\n2] ", Json(b" [1,\n2] ")),
        (299, b'"text"', Json(b'"text"')),
        (302, b"", NULL),
        (302, b"<html>moved</html>", NULL),
        (307, b'{"moved":true}', Json(b'{"moved":true}')),
        (304, b"", NULL),
    ],
)
def test_successes(status: int, body: bytes, expected: Json) -> None:
    assert response_result(status, b"", body) == expected


@pytest.mark.parametrize(
    ("status", "reason", "body", "code", "message"),
    [
        (400, b"Bad Request", b"", "http_error", "HTTP 400 Bad Request"),
        (404, b"", b"nope", "http_error", "HTTP 404 Not Found"),
        (500, b"Whatever They Say", b"{}", "http_error", "HTTP 500 Internal Server Error"),
        (599, b"Odd", b"[1]", "http_error", "HTTP 599 Odd"),
        (599, b"", b"", "http_error", "HTTP 599"),
        (422, b"", b'{"error":{"code":"bad_card","message":"no money"}}', "bad_card", "no money"),
        (422, b"", b'{"error":{"code":7}}', "http_error", "HTTP request failed"),
        (422, b"", b'{"error":{"message":"no money"}}', "http_error", "no money"),
        (422, b"", b'{"error":"text"}', "http_error", "HTTP request failed"),
        (422, b"", b'{"error":null}', "http_error", "HTTP request failed"),
        (500, b"", b'{"error":{"code":"","message":""}}', "http_error", ""),
    ],
)
def test_failures_of_the_endpoint(status: int, reason: bytes, body: bytes, code: str, message: str) -> None:
    with pytest.raises(WireError) as caught:
        response_result(status, reason, body)
    assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>", "malformed"),
        (b"\n", "truncated"),
        (b'{"a":1} x', "trailing"),
        (b'{"a":NaN}', "malformed"),
        (b'"\xff"', "utf-8"),
        (b'["\\udc00 and more"]', "surrogate"),
        (b"[" * 200 + b"]" * 200, "nested"),
        (b"1" * 5000, "digits"),
    ],
)
def test_what_no_worker_could_read_is_no_result(body: bytes, text: str) -> None:
    with pytest.raises(WireError) as caught:
        response_result(200, b"OK", body)
    assert caught.value.code == "invalid_response"
    assert text in caught.value.message


def test_a_cause_is_told_whole_and_once() -> None:
    error = ConnectionError("cannot connect: refused at one")
    error.__cause__ = ExceptionGroup("several", [OSError("refused at one"), WireError("refused at another", "code")])
    assert cause(error) == "cannot connect: refused at one: refused at another"
    assert cause(TimeoutError()) == "TimeoutError"
