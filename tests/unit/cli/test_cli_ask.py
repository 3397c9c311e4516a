"""The pure half of the asking commands: payload rules, addresses, the drawn tree, a dead letter as text."""

from typing import Any

import click
import pytest

from iii_trio.cli.ask import near, url_of
from iii_trio.cli.dlq import letter_text
from iii_trio.cli.tree import draw
from iii_trio.cli.trigger import payload_of


@pytest.mark.parametrize(
    ("pairs", "text", "payload"),
    [
        ((), None, {}),
        (("a=1",), None, {"a": 1}),
        (("a=true", "b=null"), None, {"a": True, "b": None}),
        (('c={"d":[1]}', "e=plain text", "f="), None, {"c": {"d": [1]}, "e": "plain text", "f": ""}),
        (("a=b=c",), None, {"a": "b=c"}),
        ((), "[1, 2]", [1, 2]),
        ((), "null", None),
        (("b=2",), '{"a":1,"b":1}', {"a": 1, "b": 2}),
    ],
)  # fmt: skip
def test_payload(pairs: tuple[str, ...], text: str | None, payload: Any) -> None:
    assert payload_of(pairs, text) == payload


@pytest.mark.parametrize(
    ("pairs", "text", "message"),
    [
        (("x",), None, "expected key=value, got `x`"),
        (("=v",), None, "payload key must not be empty (got `=v`)"),
        ((), "{", "--json: invalid JSON `{`"),
        (("a=1",), "[1]", "--json must be an object when combined with kv pairs"),
    ],
)
def test_bad_payload(pairs: tuple[str, ...], text: str | None, message: str) -> None:
    with pytest.raises(click.UsageError) as error:
        payload_of(pairs, text)
    assert error.value.message == message


@pytest.mark.parametrize(
    ("url", "address", "port", "environment", "expected"),
    [
        (None, None, None, None, "ws://localhost:49134"),
        (None, None, None, " ", "ws://localhost:49134"),
        (None, None, None, "ws://h:1", "ws://h:1"),
        ("ws://u:2", "a", 3, "ws://h:1", "ws://u:2"),
        (None, "10.0.0.1", None, "ws://h:1", "ws://10.0.0.1:49134"),
        (None, "::1", 5, None, "ws://[::1]:5"),
        (None, None, 5, "ws://h:1", "ws://localhost:5"),
    ],
)
def test_url(
    monkeypatch: pytest.MonkeyPatch,
    url: str | None,
    address: str | None,
    port: int | None,
    environment: str | None,
    expected: str,
) -> None:
    monkeypatch.delenv("III_URL", raising=False)
    if environment is not None:
        monkeypatch.setenv("III_URL", environment)
    assert url_of(url, address, port) == expected


def test_draw() -> None:
    tree = {"name": "a", "children": [{"name": "b", "children": [{"name": "c"}]}, {"name": "d"}]}
    assert draw(tree) == ["a", "├─ b", "│  └─ c", "└─ d"]


def test_near_names_are_the_nearest_first() -> None:
    assert near("orders::creat", ["orders::cancel", "users::create", "orders::create", "orders::create"])[0] == (
        "orders::create"
    )
    assert near("xyzzy", ["orders::create"]) == []


LETTER = {
    "id": "m1",
    "payload": {"n": [1, "ü"]},
    "error": "BROKEN: it\x1b[2J broke\nbadly",
    "failed_at": 1_700_000_000,
    "retries": 3,
    "size_bytes": 1234,
}


def test_a_dead_letter() -> None:
    assert letter_text(LETTER).splitlines() == [
        "id       m1",
        "failed   2023-11-14 22:13:20Z, after 3 attempts, 1,234 bytes",
        "error    BROKEN: it [2J broke",
        "         badly",
        'payload  {"n":[1,"ü"]}',
    ]


def test_a_dead_letter_of_an_engine_that_says_more_or_less() -> None:
    letter = {**LETTER, "error": None, "stacktrace": "line 1\n  line 2", "function_id": None, "attempted": [1, 2]}
    assert letter_text(letter).splitlines()[2:6] == [
        "error       (not known)",
        "stacktrace  line 1",
        "              line 2",
        "attempted   [1,2]",
    ]


def test_a_long_payload_is_cut() -> None:
    assert len(letter_text({**LETTER, "payload": "x" * 10_000})) < 2_000
