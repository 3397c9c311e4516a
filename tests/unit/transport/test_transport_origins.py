"""Web origins: their one spelling, who may connect, and what log and refused pages are told."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_trio.protocol.limits import ORIGINS_NAMED
from iii_trio.protocol.origins import canonical_origin
from iii_trio.transport import OriginGate, Request


def request(*origins: str) -> Request:
    return Request("GET", "/", "", [("host", "127.0.0.1:49134"), *(("origin", origin) for origin in origins)])


def gate() -> OriginGate:
    return OriginGate("the worker port 1", "iii-worker-manager")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("https://app.example", "https://app.example"),
        ("HTTPS://App.Example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("NULL", "null"),
        ("file://", "file://"),
        (" * ", "*"),
    ],
)
def test_an_origin_has_one_spelling(text: str, canonical: str) -> None:
    assert canonical_origin(text) == canonical
    assert canonical_origin(canonical) == canonical


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("http://localhost:3000/", "write http://localhost:3000$"),
        ("https://App.example/path?x", "write https://app.example$"),
        ("localhost:3000", "like https://app.example"),
        ("https://*.example", "like https://app.example"),
        ("https://app*", "like https://app.example"),
        ("https://user@app.example", "like https://app.example"),
        ("https://app.example:port", "like https://app.example"),
        ("https://bücher.example", "like https://app.example"),
        ("https://", "like https://app.example"),
        ("", "like https://app.example"),
    ],
)
def test_what_no_browser_sends_is_no_origin(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        canonical_origin(text)


@pytest.mark.parametrize(
    ("allowed", "origins", "admitted"),
    [
        (None, ["https://evil.example"], True),
        ((), [], True),
        ((), ["https://app.example"], False),
        (("*",), ["null"], True),
        (("https://app.example",), [], True),
        (("https://app.example",), ["https://app.example"], True),
        (("https://APP.example:443",), ["https://app.example"], True),
        (("https://app.example",), ["http://app.example"], False),
        (("https://app.example",), ["https://app.example:8443"], False),
        (("https://app.example",), ["https://app.example.evil"], False),
        (("https://app.example",), ["https://evil.example/https://app.example"], False),
        (("https://app.example",), ["*"], False),
        (("https://app.example",), [""], False),
        (("https://app.example",), ["null"], False),
        (("null",), ["null"], True),
        (("https://app.example",), ["https://app.example", "https://evil.example"], False),
        (("no origin at all",), ["https://app.example"], False),
    ],
)
def test_pages_connect_if_every_origin_they_name_is_allowed(
    allowed: tuple[str, ...] | None, origins: list[str], admitted: bool
) -> None:
    refusal = gate().refuse(request(*origins), allowed)
    assert (refusal is None) is admitted
    assert refusal is None or refusal.status == 403


@given(st.text(st.characters(max_codepoint=255)))
def test_no_header_breaks_the_gate(text: str) -> None:
    refusal = gate().refuse(request(text), ("https://app.example",))
    assert refusal is None or refusal.body.isprintable() or refusal.body.endswith("\n")


def test_page_and_log_are_told_what_to_change(caplog: pytest.LogCaptureFixture) -> None:
    refusal = gate().refuse(request("https://evil.example"), ("https://app.example",))
    assert refusal is not None
    assert refusal.body == (
        "Web pages of the origin 'https://evil.example' may not connect to the worker port 1; "
        "to admit them, add it to `allowed_origins` of iii-worker-manager in the engine's configuration.\n"
    )
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "the worker port 1 refused a web page of the origin 'https://evil.example'; to admit it, add the origin to "
        "`allowed_origins` of iii-worker-manager (said once per origin)"
    )


def test_a_refused_origin_is_shown_cut_and_without_control_characters() -> None:
    refusal = gate().refuse(request("https://\x9b31m" + "x" * 10_000), ())
    assert refusal is not None
    assert "\\x9b" in refusal.body
    assert len(refusal.body) < 500


def test_the_log_names_each_origin_once_and_no_more_than_so_many(caplog: pytest.LogCaptureFixture) -> None:
    one = gate()
    for number in [*range(ORIGINS_NAMED * 2), *range(ORIGINS_NAMED)]:
        assert one.refuse(request(f"https://{number}.example"), ()) is not None
    assert len(caplog.records) == ORIGINS_NAMED
    assert "no more origins are named" not in caplog.records[-2].getMessage()
    assert "no more origins are named" in caplog.records[-1].getMessage()
