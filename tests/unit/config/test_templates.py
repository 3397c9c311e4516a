"""Placeholders inside JSON values: what they become when the value is read (spec/pubsub-cron-config-cli.md §4.3)."""

from typing import Any

import pytest

from iii_trio import __version__
from iii_trio.config import Expanded, expand

ENVIRON = {
    "PORT": "8080",
    "RATIO": "3.5",
    "YES": "true",
    "WORD": "on",
    "OLD": "007",
    "LIST": "[1, two, 3.0]",
    "MAP": "{a: 1, b: [~, x]}",
    "NULL": "null",
    "EMPTY": "",
    "QUOTED": "'8080'",
    "BROKEN": "[1, 2",
    "INFINITE": ".inf",
    "NESTED": "${PORT}",
    "LINES": "a: 1\nb: 2",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${PORT}", 8080),
        (" ${PORT} ", 8080),
        ("${RATIO}", 3.5),
        ("${YES}", True),
        ("${WORD}", "on"),
        ("${OLD}", "007"),
        ("${LIST}", [1, "two", 3.0]),
        ("${MAP}", {"a": 1, "b": [None, "x"]}),
        ("${NULL}", None),
        ("${EMPTY}", ""),
        ("${QUOTED}", "8080"),
        ("${BROKEN}", "[1, 2"),
        ("${INFINITE}", ".inf"),
        ("${NESTED}", "${PORT}"),
        ("${LINES}", "a: 1\nb: 2"),
        ("${UNSET:5}", 5),
        ("${UNSET:}", ""),
        ("${UNSET:a:b}", "a:b"),
        ("${UNSET:-y}", "-y"),
        ("${PORT}${PORT}", "80808080"),
        ("at ${PORT}", "at 8080"),
        ("${EMPTY:x}", ""),
        ("$PORT ${ $", "$PORT ${ $"),
        ("${X:__III_ENGINE_VERSION__}", __version__),
    ],
)
def test_texts(text: str, expected: Any) -> None:
    assert expand(text, ENVIRON) == Expanded(expected)
    assert type(expand(text, ENVIRON).value) is type(expected)


def test_leaves_at_every_depth_but_no_keys() -> None:
    value = {"${PORT}": ["${PORT}", {"a": "${YES}"}], "n": 1, "z": None}
    assert expand(value, ENVIRON) == Expanded({"${PORT}": [8080, {"a": True}], "n": 1, "z": None})
    assert value["n"] == 1


def test_what_is_unset_stays_and_is_named_once() -> None:
    value = {"a": "${B}", "b": "x ${A} ${B} ${PORT}", "c": "${UNSET:1}"}
    assert expand(value, ENVIRON) == Expanded({"a": "${B}", "b": "x ${A} ${B} 8080", "c": 1}, ("A", "B"))
