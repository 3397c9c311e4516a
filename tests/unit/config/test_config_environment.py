"""`${NAME}` and `${NAME:DEFAULT}`: what is put in, what it may become, and that nothing else moves."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_trio.config import ConfigError, load_yaml

ENVIRON = {
    "PORT": "8080",
    "WORD": "hello",
    "EMPTY": "",
    "LIST": "[1, two]",
    "MAP": "{a: {b: 1}}",
    "HASH": "secret #1",
    "COLON": "key: value",
    "DASH": "- item",
    "LINES": "x\ny: 2\n",
    "BROKEN": "[1, 2",
    "STAR": "*alias",
    "AT": "@home",
    "QUOTED": '"8080"',
    "OCTAL": "007",
    "PADDED": "  12 ",
    "NESTED": "${WORD}",
    "PRIVATE": "[\U00100000]",
}


def load(text: str) -> Any:
    return load_yaml(text, source="config.yaml", environ=ENVIRON)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # a lone plain placeholder is read again as a core scalar, or a flow collection
        ("${PORT}", 8080),
        ("${HTTP_PORT:3111}", 3111),
        ("${X:3.5}", 3.5),
        ("${X:true}", True),
        ("${X:~}", None),
        ("${X:on}", "on"),
        ("${OCTAL}", "007"),
        ("${PADDED}", 12),
        ("${QUOTED}", "8080"),
        ("${X:[1,2]}", [1, 2]),
        ("${LIST}", [1, "two"]),
        ("${MAP}", {"a": {"b": 1}}),
        # a variable that is set but empty wins over the default, and an empty plain value is null
        ("${EMPTY:full}", None),
        ("${X:}", None),
        # the default may contain colons, hashes and blanks
        ("${URL:redis://localhost:6379}", "redis://localhost:6379"),
        ("${X:-y}", "-y"),
        ("${X:a # b}", "a # b"),
        ("${X: spaced }", "spaced"),
        # a value cannot become structure, a comment, or an alias
        ("${HASH}", "secret #1"),
        ("${COLON}", "key: value"),
        ("${DASH}", "- item"),
        ("${LINES}", "x\ny: 2"),
        ("${BROKEN}", "[1, 2"),
        ("${STAR}", "*alias"),
        ("${AT}", "@home"),
        ("${NESTED}", "${WORD}"),
        ("${PRIVATE}", ["\U00100000"]),
        # mixed text: one scalar, however it came together
        ("redis://${HOST:localhost}:${PORT}/0", "redis://localhost:8080/0"),
        ("1${PORT}", 18080),
        ("${X:1}${X:2}", 12),
        ("a ${COLON} b", "a key: value b"),
        ("${WORD} # comment ${MISSING}", "hello"),
        # quotes make text
        ('"${PORT}"', "8080"),
        ("'${PORT}'", "8080"),
        ('"a ${HASH} \\n"', "a secret #1 \n"),
        ("'${EMPTY}'", ""),
        ("|-\n  # ${WORD}\n  b ${PORT}", "# hello\nb 8080"),
        ("!!str ${PORT}", "8080"),
        # not interpreted
        ("$PORT", "$PORT"),
        ("'${'", "${"),
        ("'${}'", "${}"),
        ("'${:x}'", "${:x}"),
        ("'a } ${WORD'", "a } ${WORD"),
        ("'$${WORD}'", "$hello"),
    ],
)
def test_expansion(text: str, value: object) -> None:
    document = load(f"before: 1\nkey: {text}\nafter: 2\n")
    assert document == {"before": 1, "key": value, "after": 2}
    assert type(document["key"]) is type(value) or not isinstance(value, int | float | str)


def test_inside_flow_collections_and_keys() -> None:
    assert load("{port: ${PORT}, list: [${X:1}, ${LIST}], ${WORD}: ${X:a, b}}") == {
        "port": 8080,
        "list": [1, [1, "two"]],
        "hello": "a, b",
    }


def test_comments_are_left_alone() -> None:
    assert load("# ${MISSING}\na: 1 # ${MISSING:\n# ${ \nb: 2 # }\n") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: ${MISSING}", "1:4"),
        ("\n\nlist:\n  - ${X:1}\n  - a ${MISSING} b", "5:5"),
        ("a: {b: ${X:1}, c: '${MISSING}'}", "1:19"),
        ("${MISSING}: 1", "1:1"),
        ("a: |\n  text ${MISSING}", "1:4"),
    ],
)
def test_an_unset_variable_is_named_with_its_place(text: str, place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    message = "Environment variable 'MISSING' not set and no default provided"
    assert str(caught.value) == f"config.yaml:{place}: {message}"


def test_columns_behind_a_placeholder_are_the_users() -> None:
    text = "a: {x: ${A_LONG_NAME:1}, y: 2, y: 3}\n"
    with pytest.raises(ConfigError) as caught:
        load(text)
    [problem] = caught.value.problems
    assert problem.position is not None
    assert problem.position.column == text.index("y: 3") + 1


def test_values_of_an_expanded_collection_stand_at_the_placeholder() -> None:
    document = load("x: ${MAP}")
    assert str(document["x"]["a"].key_position("b")) == "config.yaml:1:4"


def test_without_an_environment_text_stays_as_written() -> None:
    assert load_yaml("a: ${PORT}-\U00100000", source="x") == {"a": "${PORT}-\U00100000"}


def test_a_variable_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected text that UTF-8 can hold"):
        load_yaml("a: ${RAW}", source="config.yaml", environ={"RAW": "caf\udce9"})


def test_placeholders_are_bounded() -> None:
    with pytest.raises(ConfigError, match=r"^config\.yaml:2:1: more than 65533 placeholders$"):
        load("a: " + "${X}" * 65533 + "\n${X}")


def test_characters_the_masks_need_are_refused_by_place() -> None:
    with pytest.raises(ConfigError, match=r"^config\.yaml:2:4: the character U\+100000 is reserved$"):
        load("a: ${X:1}\nb: \U00100000")


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40))
def test_no_value_changes_the_structure_around_it(value: str) -> None:
    text = "a: ${V}\nb: {c: '${V}', d: [${V}, 1]}\ne: x ${V} y\nf: 1 # ${V}\n"
    document = load_yaml(text, source="x", environ={"V": value})
    assert document["b"]["c"] == value  # type: ignore[index,call-overload]
    assert document["b"]["d"][1] == 1  # type: ignore[index,call-overload]
    assert document["e"] == f"x {value} y"  # type: ignore[index,call-overload]
    assert document["f"] == 1  # type: ignore[index,call-overload]
