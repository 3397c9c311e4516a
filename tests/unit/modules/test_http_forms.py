"""Form bodies: small ones are parsed, all of them are raw on the channel, and broken ones are refused."""

import base64

import pytest
import trio
from test_http_exchange import open_house
from trio.testing import MockClock

from iii_trio.modules.http import forms
from iii_trio.modules.http.messages import BadRequest, Request
from iii_trio.protocol import Json
from iii_trio.protocol.limits import HTTP_FORM

BOUNDARY = "multipart/form-data; boundary=XX"
PARTS = (
    b'--XX\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xc3\xa9\r\n'
    b'--XX\r\nContent-Disposition: form-data; name="f"; filename="x.bin"\r\nContent-Type: image/png\r\n\r\n'
    b"\x00\xff\r\n--X\r\n--XX--\r\n"
)


def request(content_type: str, body: bytes) -> Request:
    return Request("POST", "/", "", {"content-type": content_type, "content-length": str(len(body))})


def test_urlencoded_fields() -> None:
    body = b"a=1&b=%C3%A9+x&a=2&a=3&c=&d"
    form = forms.read_form(request("Application/X-WWW-Form-Urlencoded; charset=utf-8", body), body)
    assert Json(form).decode() == {"a": ["1", "2", "3"], "b": "é x", "c": "", "d": ""}


def test_multipart_parts() -> None:
    form = Json(forms.read_form(request(BOUNDARY, PARTS), PARTS)).decode()
    assert form["a"] == ["1", "é"]
    content = base64.b64decode(form["f"].pop("base64"))
    assert (content, form["f"]) == (
        b"\x00\xff\r\n--X",
        {"filename": "x.bin", "content_type": "image/png", "size": 7},
    )


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data", PARTS, "boundary"),
        (BOUNDARY, b"no parts at all", "not valid multipart"),
        (BOUNDARY, PARTS[:60], "last boundary is missing"),
        ("multipart/form-data; boundary=YY", PARTS, "not valid multipart"),
        ("multipart/form-data; boundary=€", PARTS, "not valid multipart"),
        ("multipart/form-data; boundary=XX; €=1", PARTS[:60], "last boundary is missing"),
        ("multipart/form-data; boundary=" + "X" * 5000, PARTS, "not valid multipart"),
    ],
)
def test_what_is_no_form(content_type: str, body: bytes, words: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadRequest, match=words):
        forms.read_form(request(content_type, body), body)
    assert not caplog.records, "its client is told, and nobody else"


def test_only_small_forms_of_a_known_length_are_parsed() -> None:
    assert forms.is_small_form(request(BOUNDARY, PARTS))
    assert not forms.is_small_form(request(BOUNDARY, b"x" * (HTTP_FORM + 1)))
    assert not forms.is_small_form(request(BOUNDARY, b""))
    assert not forms.is_small_form(request("text/plain", b"x"))
    assert not forms.is_small_form(Request("POST", "/", "", {"content-type": BOUNDARY, "transfer-encoding": "chunked"}))


async def test_a_handler_gets_the_form(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        inputs = house.function("f", {"body": 1})
        house.route("/x", method="POST")
        form = {"content-type": forms.URLENCODED}
        assert (await house.ask("/x", "POST", form, b"a=1&b=2")).status == 200
        assert inputs[0]["body"] == {"a": "1", "b": "2"}
        broken = await house.ask("/x", "POST", {"content-type": BOUNDARY}, b"nothing")
        assert (broken.status, broken.code, len(inputs)) == (400, "BAD_REQUEST", 1)
        assert trio.current_time() == 0
