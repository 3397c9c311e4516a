"""Hypothesis strategies: JSON values, and every way to write one down."""

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["[", "]", "{", "}", '"', "\\", '\\"[', "_caller_worker_id", "\U0001f600"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)

SPACE = st.sampled_from(["", "", "", " ", "\n", "\t\r ", "   "])


@st.composite
def written_string(draw: st.DrawFn, value: str) -> str:
    """A string literal: each character as it is, or escaped."""
    out = []
    for char in value:
        plain = json.dumps(char, ensure_ascii=False)[1:-1]
        ascii_only = json.dumps(char, ensure_ascii=True)[1:-1]
        escaped = ascii_only if ord(char) > 0xFFFF else f"\\u{ord(char):04x}"
        out.append(draw(st.sampled_from([plain, plain, escaped])))
    return '"' + "".join(out) + '"'


@st.composite
def written(draw: st.DrawFn, value: Any) -> str:
    """JSON text of a value with arbitrary white space and escapes. A list of (key, value) tuples is an object."""
    if isinstance(value, str):
        return draw(written_string(value))
    if isinstance(value, dict):
        value = [("pair", *item) for item in value.items()] or [("object",)]
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        pairs = [
            draw(SPACE) + draw(written_string(key)) + draw(SPACE) + ":" + draw(SPACE) + draw(written(inner))
            for _, key, inner in (pair for pair in value if pair != ("object",))
        ]
        return "{" + (draw(SPACE) + ",").join(pairs) + draw(SPACE) + "}"
    if isinstance(value, list):
        return "[" + ",".join(draw(SPACE) + draw(written(inner)) + draw(SPACE) for inner in value) + "]"
    return json.dumps(value)


@st.composite
def texts(draw: st.DrawFn, values: st.SearchStrategy[Any] = VALUES) -> bytes:
    """JSON text of any value, with white space around it."""
    return (draw(SPACE) + draw(written(draw(values))) + draw(SPACE)).encode()


def depth(value: Any) -> int:
    """How many arrays and objects stand inside of each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)
