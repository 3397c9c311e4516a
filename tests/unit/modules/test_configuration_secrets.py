"""Which parts of a value are secret, and how the mask comes back."""

from typing import Any

import pytest

from iii_trio.modules.configuration.secrets import MASK, MaskedWhereNothingIs, masked, unmasked

MARK = {"writeOnly": True}


@pytest.mark.parametrize(
    ("schema", "value", "shown"),
    [
        (None, {"host": "h", "port": 1}, {"host": "h", "port": 1}),
        (None, {"password": "p", "apiKey": "k", "db_dsn": "d"}, dict.fromkeys(("password", "apiKey", "db_dsn"), MASK)),
        (
            None,
            {"access_token": "t", "max_tokens": 100, "token_ttl": "5m"},
            {"access_token": MASK, "max_tokens": 100, "token_ttl": "5m"},
        ),
        (None, {"credentials": ["a", {"x": "b"}]}, {"credentials": [MASK, {"x": "b"}]}),
        (None, {"password": None, "secret": True}, {"password": None, "secret": True}),
        (None, {"url": "redis://:pw@host:6379", "plain": "redis://host"}, {"url": MASK, "plain": "redis://host"}),
        ({"properties": {"a": MARK}}, {"a": {"deep": 1}, "b": 2}, {"a": MASK, "b": 2}),
        ({"properties": {"a": {"format": "password"}}}, {"a": 5}, {"a": MASK}),
        ({"additionalProperties": MARK}, {"any": 1}, {"any": MASK}),
        ({"patternProperties": {"^x": MARK}}, {"x1": 1}, {"x1": MASK}),
        ({"items": {"properties": {"k": MARK}}}, [{"k": 1, "l": 2}], [{"k": MASK, "l": 2}]),
        ({"prefixItems": [MARK]}, ["a"], [MASK]),
        ({"anyOf": [{"type": "null"}, {"properties": {"k": MARK}}]}, {"k": 1}, {"k": MASK}),
        (
            {"$ref": "#/$defs/s", "$defs": {"s": {"properties": {"k": {"$ref": "#/$defs/m"}}}, "m": MARK}},
            {"k": 1},
            {"k": MASK},
        ),
        ({"$ref": "#", "properties": {"k": MARK, "again": {"$ref": "#"}}}, {"again": {"k": 1}}, {"again": {"k": MASK}}),
        (MARK, 5, MASK),
        (True, {"a": 1}, {"a": 1}),
    ],
)
def test_what_is_masked(schema: Any, value: Any, shown: Any) -> None:
    assert masked(value, schema) == shown


def test_the_mask_goes_back_to_what_it_hid() -> None:
    current = {"key": "k", "list": [{"token": "t"}], "host": "h"}
    given = {"list": [{"token": MASK}, "new"], "key": MASK, "host": "other"}
    assert unmasked(given, current) == {"list": [{"token": "t"}, "new"], "key": "k", "host": "other"}


@pytest.mark.parametrize(("value", "place"), [({"a": {"b": MASK}}, "/a/b"), ([MASK], "/0"), (MASK, "/")])
def test_a_mask_where_nothing_is_hidden_is_refused(value: Any, place: str) -> None:
    with pytest.raises(MaskedWhereNothingIs, match=f"^{place}$"):
        unmasked(value, None)
