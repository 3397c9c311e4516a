"""What is found in JSON text without decoding it, against models that decode it."""

import json
import time
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from protocol_text import QUICK, depth, texts

from iii_trio.protocol import scan
from iii_trio.protocol.scan import MAX_DIGITS, deeper_than, has_endless_number, has_lone_surrogate

MIB = 1 << 20


@QUICK
@given(texts(), st.integers(0, 6))
@example(b'"\\"["', 0)
@example(b'["\\\\",[[]],"]"]', 2)
@example(b'{"[":{"]":"{"}}', 1)
def test_depth_is_that_of_the_decoded_value(text: bytes, levels: int) -> None:
    assert deeper_than(text, levels) == (depth(json.loads(text)) > levels)


@QUICK
@given(st.lists(st.sampled_from(["[]", '"["', "[[],[]]", '["]"]', '"\\\\"', '"\\"["', "[[[[1]]]]"]), max_size=30))
def test_depth_across_the_seams_of_its_pieces(parts: list[str]) -> None:
    text = f"[{','.join(parts)}]"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_PIECE", 3)
        for levels in range(6):
            assert deeper_than(text.encode(), levels) == (depth(json.loads(text)) > levels)


@pytest.mark.parametrize("height", [1, 2, 50, 127, 128, 129, 500])
def test_narrow_and_wide_texts_of_one_depth(height: int) -> None:
    narrow = b"[" * height + b"]" * height
    wide = b"[" + b",".join([b"[" * (height - 1) + b"]" * (height - 1)] * 50) + b"]" if height > 1 else b"[]"
    for text in (narrow, wide):
        assert deeper_than(text, 128) == (height > 128)
        assert deeper_than(text, height - 1)
        assert not deeper_than(text, height)


PIECES = st.sampled_from(
    [
        "\\ud83d",
        "\\ude00",
        "\\uD83D",
        "\\uDE00",
        "\\uDbFf",
        "\\udc00",
        "\\\\",
        "\\n",
        "\\u0041",
        '\\"',
        "ud800",
        "a",
        "\\/",
    ]
)


@QUICK
@given(st.lists(PIECES, max_size=8))
@example(["\\ud83d", "\\\\", "\\ude00"])
@example(["\\\\", "ud83d"])
def test_half_a_pair_is_what_no_utf8_text_can_say(pieces: list[str]) -> None:
    text = f'"{"".join(pieces)}"'
    try:
        json.loads(text).encode()
        lone = False
    except UnicodeEncodeError:
        lone = True
    assert has_lone_surrogate(text.encode()) == lone


@pytest.mark.parametrize("before", [0, 1, 100, 255, 256, 1000])
@pytest.mark.parametrize("digits", [100, MAX_DIGITS - 1, MAX_DIGITS, MAX_DIGITS + 300])
def test_endless_numbers_are_found_wherever_they_stand(before: int, digits: int) -> None:
    run, pad = b"7" * digits, b" " * before
    assert has_endless_number(pad + run) == (digits >= MAX_DIGITS)
    assert has_endless_number(pad + b'["' + run + b'",' + run + b"]") == (digits >= MAX_DIGITS)
    for quoted in (
        b'"' + run + b'"',
        b'"\\"' + run + b'\\\\"',
        b'"\\\\\\"' + run + b'"',
        b'["' + run + b'","' + run + b'"]',
    ):
        assert not has_endless_number(pad + quoted), quoted[:10]


@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"x" * (8 * MIB) + b'",' + b"[]," * 200 + b"1]",
        b'["' + b"\\n" * (2 * MIB) + b'",' + b"[]," * 200 + b"1]",
        b"[" + (b"[" * 127 + b"]" * 127 + b",") * 4_000 + b"1]",
        b"[" + b'"[",[],' * (MIB // 8) + b"1]",
        b'["' + b"\\ud83d\\ude00" * (MIB // 8) + b'"]',
        b"[" + (b'"' + b"7" * 4_301 + b'",') * 500 + b"1]",
    ],
    ids=["long string", "escapes", "chains", "quoted brackets", "surrogate pairs", "digits"],
)
def test_hostile_texts_cost_time_and_memory_in_proportion(text: bytes) -> None:
    tracemalloc.start()
    try:
        deeper_than(text, 128)
        has_lone_surrogate(text)
        has_endless_number(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(text) + 8 * MIB
    began = time.process_time()
    deeper_than(text, 128)
    has_lone_surrogate(text)
    has_endless_number(text)
    assert time.process_time() - began < 2  # it is a tenth of a second; what was quadratic took many
