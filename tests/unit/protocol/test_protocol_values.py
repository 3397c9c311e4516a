"""Payloads, trace strings, outcomes and the texts of errors."""

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protocol_text import QUICK, VALUES, texts

from iii_trio.protocol import ABSENT, EMPTY_OBJECT, NULL, Json, JsonError, errors, limits, trace
from iii_trio.protocol.errors import IIIError, InvalidInput, TriggerRejected, WireError
from iii_trio.protocol.outcome import NOTHING, Outcome


@QUICK
@given(VALUES)
def test_a_value_comes_back_fresh(value: Any) -> None:
    payload = Json.of(value)
    assert payload.decode() == value
    assert payload == Json(payload.raw)
    assert hash(payload) == hash(Json(payload.raw))
    if isinstance(value, (dict, list)) and value:
        assert payload.decode() is not payload.decode()


def test_nothing_and_null_differ() -> None:
    assert ABSENT != NULL
    assert (bool(ABSENT), ABSENT.absent, len(ABSENT), ABSENT.decode()) == (False, True, 0, None)
    assert (bool(NULL), NULL.absent, len(NULL), NULL.decode()) == (True, False, 4, None)
    assert ABSENT.or_null() is NULL
    assert EMPTY_OBJECT.or_null() is EMPTY_OBJECT
    with pytest.raises(AttributeError):
        NULL.raw = b"1"  # type: ignore[misc]


@pytest.mark.parametrize("raw", [b"{", b"NaN", b"1e999", b"[" * 100_000, b'"\xff"', b'"\\ud800"'])
def test_text_that_is_no_json(raw: bytes) -> None:
    with pytest.raises(JsonError):
        Json(raw).decode()


@QUICK
@given(texts())
def test_only_false_is_false(text: bytes) -> None:
    assert Json(text).is_false() == (Json(text).decode() is False)


def test_what_no_json_can_say() -> None:
    with pytest.raises(TypeError):
        Json.of(object())


# -- trace ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baggage", "expected"),
    [
        (None, "iii.function.id=a::f"),
        ("", "iii.function.id=a::f"),
        ("k=v", "k=v,iii.function.id=a::f"),
        ("iii.function.id=old", "iii.function.id=a::f"),
        ("k=v, iii.function.id =old;p=1 ,x=y;q", "k=v,x=y;q,iii.function.id=a::f"),
        (" , ,k=v", "k=v,iii.function.id=a::f"),
        ("iii.function.idx=1", "iii.function.idx=1,iii.function.id=a::f"),
    ],
)
def test_baggage_names_the_function(baggage: str | None, expected: str) -> None:
    assert trace.with_function(baggage, "a::f") == expected


@QUICK
@given(st.text())
def test_baggage_values_are_escaped_into_the_allowed_set(value: str) -> None:
    escaped = trace.escape(value)
    assert unquote(escaped) == value
    assert not set(escaped) & set(' ",;\\')
    assert escaped.isascii()


# -- outcomes ---------------------------------------------------------------------------------------------------------


def test_outcomes() -> None:
    assert NOTHING.ok
    assert NOTHING.result is ABSENT
    failed = Outcome.failed(WireError("text", "code", "trace"))
    assert not failed.ok
    error = failed.exception()
    assert (error.code, error.message, error.stacktrace, str(error)) == ("code", "text", "trace", "code: text")
    with pytest.raises(AttributeError):
        failed.error = b""  # type: ignore[misc]


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: errors.not_found_text("a::f", "default"), "Function a::f not found in namespace default."),
        (
            lambda: errors.not_found_text("a::f", "x", ["b", "a"]),
            "Function a::f not found in namespace x. It is registered in namespace(s): a, b.",
        ),
        (
            lambda: errors.not_found_text("a::f", "x", ["b"], internal=True),
            "Function a::f not found in namespace x",
        ),
        (
            errors.blank_namespace_text,
            "`namespace` is empty: it was named and left blank. Give it a name, or omit it to use `default`.",
        ),
        (
            lambda: errors.blank_namespace_text("trigger_namespace"),
            "`trigger_namespace` is empty: it was named and left blank. Give it a name, or omit it to use `default`.",
        ),
        (
            errors.no_queue_provider_text,
            (
                "No queue provider is installed. `TriggerAction::Enqueue` routes through the `engine::queue::enqueue` "
                "provider, which the standalone queue worker registers. Add it with `iii worker add queue`. "
                "(underlying: Function engine::queue::enqueue not found in namespace default)"
            ),
        ),
        (lambda: errors.bad_input("f", "x").message, "Failed to deserialize input for f: x"),
    ],
)
def test_texts_that_clients_match(make: Callable[[], str], text: str) -> None:
    assert make() == text


def test_one_hierarchy() -> None:
    assert InvalidInput("x").code == "deserialization_error"
    assert TriggerRejected("x").code == "trigger_registration_failed"
    assert WireError("x").code == "UNKNOWN"
    assert issubclass(TriggerRejected, WireError)
    assert issubclass(WireError, IIIError)
    assert "5 bytes" in errors.too_large_text(5, 4)
    assert "4 bytes" in errors.too_large_text(5, 4)


def test_what_a_peer_made_up_is_shown_in_part() -> None:
    assert errors.shorten("short") == "short"
    assert errors.shorten("x" * 5_000) == "x" * 1_000 + "… (5000 characters)"


def test_the_table_says_what_the_code_does() -> None:
    names = [limit.name for limit in limits.TABLE]
    assert len(set(names)) == len(names)
    for limit in limits.TABLE:
        assert getattr(limits, limit.name) == limit.value
        assert limit.when_full
        assert limit.reason
