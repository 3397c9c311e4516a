"""YAML 1.2 core: what scalars mean, where keys stand, what broken text is told."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_trio.config import ConfigError, Problem, YamlMapping, YamlSequence, core_scalar, load_yaml


def load(text: str, environ: dict[str, str] | None = None) -> Any:
    return load_yaml(text, source="config.yaml", environ=environ)


def refusal(text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, environ)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("007", "007"),
        ("-007", "-007"),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("2026-01-01", "2026-01-01"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("1_000", "1_000"),
        ("0b101", "0b101"),
        ("=", "="),
        ("<<", "<<"),
        ("tRue", "tRue"),
        ("nUll", "nUll"),
        ("1e", "1e"),
        (".", "."),
        ("0x", "0x"),
        ("0o8", "0o8"),
        ("9" * 5000, "9" * 5000),
        ("0", 0),
        ("-0", 0),
        ("+12", 12),
        ("3111", 3111),
        ("0o17", 15),
        ("0xFf", 255),
        ("3.5", 3.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("-1.5E-2", -0.015),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("TRUE", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("NULL", None),
        ("", None),
        ("redis://h:1/0", "redis://h:1/0"),
    ],
)
def test_core_scalars(text: str, value: object) -> None:
    for found in (core_scalar(text), load(f"key: {text}\n")["key"], load(f"[{text}, 1]")[0] if text else None):
        assert found == value
        assert type(found) is type(value)


def test_not_a_number() -> None:
    assert math.isnan(load("x: .nan")["x"])


@pytest.mark.parametrize("text", ["'8080'", '"8080"', "!!str 8080", "! 8080", "|-\n  8080", ">-\n  8080"])
def test_quoted_block_and_tagged_scalars_are_text(text: str) -> None:
    assert load(f"port: {text}\n") == {"port": "8080"}


def test_core_tags() -> None:
    document = load("a: !!float 1\nb: !!int 0x10\nc: !!null ''\nd: !!bool true\ne: !!seq []\nf: !!map {}\n")
    assert document == {"a": 1.0, "b": 16, "c": None, "d": True, "e": [], "f": {}}
    assert type(document["a"]) is float


def test_positions_of_keys_values_and_items() -> None:
    document = load("\ufeff# note\nworkers:\n  - name: iii-http\n    config: {port: 3111, host:}\n  - two\n")
    entry = document["workers"][0]
    assert str(document.key_position("workers")) == "config.yaml:2:1"
    assert str(document["workers"].item_position(0)) == "config.yaml:3:5"
    assert str(document["workers"].item_position(1)) == "config.yaml:5:5"
    assert str(entry.value_position("name")) == "config.yaml:3:11"
    assert str(entry["config"].position) == "config.yaml:4:13"
    assert str(entry["config"].key_position("port")) == "config.yaml:4:14"
    assert str(entry["config"].value_position("port")) == "config.yaml:4:20"


def test_a_missing_value_stands_at_its_key() -> None:
    assert str(load("a: 1\nb:\n\n\nc: 2\n").value_position("b")) == "config.yaml:2:1"


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~"])
def test_an_empty_text_is_none(text: str) -> None:
    assert load(text) is None


def test_values_are_equal_by_content_and_immutable() -> None:
    one, other = load("a: [1, {b: 2}]"), load("# moved\n\na:\n  - 1\n  - b: 2\n")
    assert one == other == {"a": [1, {"b": 2}]}
    assert one != load("a: [1, {b: 3}]")
    assert isinstance(one, YamlMapping)
    assert isinstance(one["a"], YamlSequence)
    assert one["a"][0:1] == (1,)
    assert "1" in repr(one)
    assert not hasattr(one, "__setitem__")
    assert not hasattr(one["a"], "append")


def test_aliases_repeat_a_value() -> None:
    document = load("base: &b {x: 1}\nlist: [*b, *b]\n&k name: 1\nkey: *k\nx: {*k : 3}\n")
    assert document["list"] == [{"x": 1}, {"x": 1}]
    assert (document["key"], document["x"]) == ("name", {"name": 3})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: b: c", "config.yaml:1:5: expected the value to end here, but found ':'"),
        ("a:\n\tb: 1", "config.yaml:2:1: expected spaces, but found a tab"),
        ("a: @x", "config.yaml:1:4: expected a value, but found '@'; put text that starts with it in quotes"),
        ("a: [1,", "config.yaml:1:7: expected a value, but found the end of the text"),
        ("a: {b: 1", "config.yaml:1:9: expected ',' or '}', but found the end of the text"),
        ("a: 'x", "config.yaml:1:6: expected the closing quote of the text that starts on line 1, column 4"),
        ("a:\n  - b\n c: 1", "config.yaml:3:2: expected a key or an item indented like the others of the block"),
        ("{a: 1}}", "config.yaml:1:7: expected the end of the text, but found '}'"),
        ("a: 1\n---\nb: 2", "config.yaml:3:1: expected one document, but a second one starts here"),
        ("x:\n  a: 1\n  b: 2\n  a: 3", "config.yaml:4:3: expected each key once, but 'a' already stands on line 2"),
        ("a: *x", "config.yaml:1:4: expected an anchor '&x' before its alias"),
        ("a: &x [*x]", "config.yaml:1:8: expected an anchor '&x' before its alias"),
        ("*x : 1", "config.yaml:1:1: expected a key of plain text"),
        ("? [a]\n: b", "config.yaml:1:3: expected a key of plain text, but found a list"),
        ("a: !env X", "config.yaml:1:4: expected a tag of the core schema, but found '!env'"),
        ("a: !!timestamp 2026-01-01", "config.yaml:1:4: expected a tag of the core schema, but found '!!timestamp'"),
        ("a: !!set {x}", "config.yaml:1:4: expected a tag of the core schema, but found '!!set'"),
        ("a: !!int x", "config.yaml:1:4: expected a value that fits '!!int', but found 'x'"),
        ("a: 1\nb: \x07", "config.yaml:2:4: expected printable text, but found the control character U+0007"),
        ('a: 1\nb: "\\UFFFFFFFF"', "config.yaml:2:2: expected YAML 1.2 after this place"),
        ("%YAML 1.9\n---\na: 1", "config.yaml:1:1: expected YAML 1.2 after this place"),
        ('a: "\\uD800"', "config.yaml:1:4: expected text that UTF-8 can hold, but found a lone surrogate"),
        ('a: "\\d"', "config.yaml:1:6: found unknown escape character 'd'"),
        ("[" * 70 + "]" * 70, "config.yaml:1:65: nested more than 64 levels deep"),
    ],
)
def test_broken_text_says_where_and_what_was_expected(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_aliases_cannot_multiply_without_bound() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 7)
    )
    assert "more than 100000 values once the aliases are written out" in refusal(bomb)


def test_independent_problems_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        load("a: ${ONE}\nb: ${TWO}\na: !x 1\n", {})
    assert [problem.position.line for problem in caught.value.problems if problem.position] == [1, 2, 3, 3]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30))
def test_any_text_is_read_or_refused_with_a_position(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        load(text)
    except ConfigError as error:
        problems = error.problems
    assert all(problem.position is not None for problem in problems)
