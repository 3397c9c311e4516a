"""What commands print, and how: tables, JSON, times, and text that must not steer a terminal."""

import io
import json

import pytest

from iii_trio.cli.output import (
    ago,
    aligned,
    clean,
    compact,
    json_text,
    moment,
    plural,
    shortened,
    show,
    show_table,
)


class Ascii(io.TextIOWrapper):
    """A standard output that has nothing but ASCII."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", write_through=True)

    @property
    def written(self) -> str:
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain ü", "plain ü"),
        ("a\x1b[31mb\nc\r\td", "a [31mb c  d"),
        ("\u202eright to left\u2069", " right to left "),
        ("\x9b2J\x7f", " 2J "),
        (7, "7"),
        (None, "None"),
    ],
)
def test_nothing_in_a_text_steers_the_terminal(value: object, text: str) -> None:
    assert clean(value) == text


def test_json_says_the_same_with_everything_that_steers_escaped() -> None:
    value = {"a": "\x1b[2J \x9b2J \u202e \u2028 ü 👩\u200d🚀"}
    text = json_text(value)
    assert json.loads(text) == value
    assert "ü 👩\u200d🚀" in text, "what is writing stays readable"
    assert not set("\x1b\x9b\u202e\u2028") & set(text)


def test_json_is_escaped_for_an_output_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Ascii())
    assert json_text(["ü"]) == '[\n  "\\u00fc"\n]'


def test_text_is_escaped_for_an_output_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Ascii()
    monkeypatch.setattr("sys.stdout", output)
    show("├─ ü")
    assert output.written == "\\u251c\\u2500 \\xfc\n"


def test_columns_are_aligned_and_lines_end_with_text() -> None:
    assert aligned(("A", "LONG"), [("1", "x"), ("222", "")]) == ["A    LONG", "1    x", "222"]


def test_a_table_without_a_terminal_is_plain_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("A", "B"), [("x" * 200, None)], empty="none", styles={"x": "red"}, spare=("B",))
    assert capsys.readouterr().out.splitlines() == [f"{'A':<200}  B", "x" * 200]


def test_a_table_without_rows_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("A",), [], empty="There are none.")
    assert capsys.readouterr().out == "There are none.\n"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0s"),
        (-5_000, "0s"),
        (59_999, "59s"),
        (60_000, "1m 0s"),
        (3_725_000, "1h 2m"),
        (86_400_000, "1d 0h"),
        (9 * 86_400_000 + 1_000, "9d 0h"),
    ],
)
def test_ago(ms: int, text: str) -> None:
    assert ago(1_000_000_000, 1_000_000_000 + ms) == text


def test_small_words() -> None:
    assert (plural(1, "message"), plural(0, "message"), plural(1200, "byte")) == (
        "1 message",
        "0 messages",
        "1,200 bytes",
    )
    assert (shortened("12345", 5), shortened("123456", 5)) == ("12345", "1234…")
    assert compact({"a": [1, "ü"]}) == '{"a":[1,"ü"]}'
    assert moment(1_700_000_000.9) == "2023-11-14 22:13:20Z"
