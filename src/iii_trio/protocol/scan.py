"""What valid JSON text holds that would break somebody further on, found without building objects of it.

A payload travels as raw text, so nobody here decodes it; these questions are answered by searching. Whatever is in the
text, the time they take is in proportion to its length, and so is the memory: a few copies of it at most.
"""

import re
from itertools import accumulate
from typing import Final

from .limits import KIB

_MARKS: Final = bytes.maketrans(b"{}", b"[]")
_NOT_MARKS: Final = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS: Final = bytes.maketrans(b"[]", b"\x01\xff")
_PIECE: Final = 64 * KIB

_LONE_SURROGATE: Final = re.compile(
    rb"\\u[dD](?:[89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u[dD])[c-fC-F])", re.DOTALL
)

MAX_DIGITS: Final = 4_300
_DIGITS: Final = bytes(0x30 if byte in b"0123456789" else 0x2E for byte in range(256))
_STRIDE: Final = 256


def deeper_than(text: bytes, levels: int) -> bool:
    """Whether valid JSON text nests deeper than `levels`."""
    brackets = _brackets(text)
    peeled = 0
    while brackets and peeled < levels:
        # taking out what is empty lowers everything by one level; once that no longer halves the rest, count instead
        rest = brackets.replace(b"[]", b"")
        peeled += 1
        slow = len(rest) > len(brackets) // 2
        brackets = rest
        if slow:
            break
    if not brackets:
        return False
    steps = memoryview(brackets.translate(_STEPS)).cast("b")
    return peeled + max(accumulate(steps)) > levels


def _brackets(text: bytes) -> bytes:
    """The brackets outside of strings, as `[` and `]`."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = text.translate(_MARKS, _NOT_MARKS)
    # two quotes with nothing between them change nothing, whether they are one string or the ends of two
    marks = marks.replace(b'""', b"")
    if b'"' not in marks:
        return marks
    outside, inside = [], 0
    for start in range(0, len(marks), _PIECE):
        parts = marks[start : start + _PIECE].split(b'"')
        outside.append(b"".join(parts[inside::2]))
        inside ^= (len(parts) - 1) & 1
    return b"".join(outside)


def has_lone_surrogate(text: bytes) -> bool:
    """Whether a string of valid JSON text escapes half a surrogate pair: no UTF-8 text can say what it means."""
    if b"\\ud" not in text and b"\\uD" not in text:
        return False
    return _LONE_SURROGATE.search(text.replace(b"\\\\", b"//")) is not None


def has_endless_number(text: bytes) -> bool:
    """Whether valid JSON text holds a number of `MAX_DIGITS` digits in a row, which Python's json refuses to read."""
    if len(text) < MAX_DIGITS or b"0" * (MAX_DIGITS // _STRIDE - 1) not in text[::_STRIDE].translate(_DIGITS):
        return False
    run = b"0" * MAX_DIGITS
    digits = text.translate(_DIGITS)
    at, end, inside = digits.find(run), 0, 0
    while at >= 0:
        between = text[end:at].replace(b"\\\\", b"").replace(b'\\"', b"")
        inside ^= between.count(b'"') & 1
        if not inside:
            return True
        end = digits.find(b".", at)
        at = digits.find(run, end) if end >= 0 else -1
    return False
