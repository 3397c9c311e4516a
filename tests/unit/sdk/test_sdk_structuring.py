"""JSON to typed values and back, and the schema that describes both."""

import contextlib
import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import uuid
from typing import Annotated, Any, Generic, Literal, NewType, NotRequired, TypedDict, TypeVar

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_trio import make_converter
from iii_trio.protocol.json import Json
from iii_trio.sdk.schema import schema_of
from iii_trio.sdk.structuring import Mismatch, encode, structure

T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(TypedDict):
    street: str
    floor: NotRequired[int]


@attrs.frozen
class Item:
    sku: str
    count: int = attrs.field(default=1, validator=attrs.validators.gt(0))


@dataclasses.dataclass(frozen=True)
class Place:
    name: str
    at: datetime.datetime


@attrs.frozen
class Order:
    id: UserId
    items: list[Item]
    color: Color
    kind: Literal["new", "old"]
    address: Address
    place: Place | None = None
    total: decimal.Decimal | None = None
    parts: dict[str, float] = attrs.Factory(dict)
    slots: dict[int, bool] = attrs.Factory(dict)
    tags: frozenset[str] = frozenset()
    pair: tuple[int, str] = (0, "")
    row: tuple[int, ...] = ()
    key: bytes = b""
    ref: uuid.UUID | None = None
    either: int | str | Item | None = None


@attrs.frozen
class Tree:
    value: int
    children: list["Tree"] = attrs.Factory(list)


@attrs.frozen
class Box(Generic[T]):
    content: T


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
items = st.builds(Item, texts, st.integers(1, 9))
orders = st.builds(
    Order,
    id=st.integers(0, 2**53),
    items=st.lists(items, max_size=3),
    color=st.sampled_from(Color),
    kind=st.sampled_from(["new", "old"]),
    address=st.fixed_dictionaries({"street": texts}, optional={"floor": st.integers(-3, 99)}),
    place=st.none() | st.builds(Place, texts, st.datetimes(timezones=st.none() | st.just(datetime.UTC))),
    total=st.none() | st.decimals(allow_nan=False, allow_infinity=False, places=2),
    parts=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    slots=st.dictionaries(st.integers(-9, 9), st.booleans(), max_size=3),
    tags=st.frozensets(texts, max_size=3),
    pair=st.tuples(st.integers(-9, 9), texts),
    row=st.lists(st.integers(-9, 9), max_size=3).map(tuple),
    key=st.binary(max_size=8),
    ref=st.none() | st.uuids(),
    either=st.none() | st.integers(-9, 9) | texts | items,
)


@given(orders)
def test_what_is_encoded_is_structured_back(order: Order) -> None:
    assert structure(encode(order).decode(), Order) == order


@given(st.recursive(st.integers(-9, 9).map(Tree), lambda kids: st.builds(Tree, st.just(1), st.lists(kids, max_size=3))))
def test_recursive_classes(tree: Tree) -> None:
    assert structure(encode(tree).decode(), Tree) == tree


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
HINTS: list[Any] = [
    Order,
    Item,
    Tree,
    Place,
    Address,
    Color,
    UserId,
    int,
    float,
    str,
    bool,
    list[Item],
    dict[str, int],
    dict[int, str],
    set[int],
    tuple[int, ...],
    tuple[int, str],
    int | None,
    Item | None,
    int | str,
    Literal["a"],
    list,
    dict,
    datetime.date,
    datetime.time,
    uuid.UUID,
    decimal.Decimal,
    bytes,
    Box[int],
    Annotated[int, "unit"],
    type(None),
]


@given(json_values, st.sampled_from(HINTS))
def test_whatever_comes_fits_or_is_a_mismatch(value: Any, hint: Any) -> None:
    with contextlib.suppress(Mismatch):
        structured = structure(value, hint)
        assert structure(encode(structured).decode(), hint) == structured


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("5", int, "expected an integer, got text"),
        (True, int, "expected an integer, got a boolean"),
        (1, bool, "expected a boolean, got an integer"),
        (1.5, int, "expected an integer, got a number"),
        (1, str, "expected text, got an integer"),
        (None, Item, "expected an object, got null"),
        ({"count": 1}, Item, "required field is missing @ $.sku"),
        ({"sku": "a", "count": 0}, Item, "'count' must be > 0"),
        ([{"sku": "a"}, 5], list[Item], "expected an object @ $[1]"),
        ("abc", list[str], "expected an array, got text"),
        ({"a": 1}, set[str], "expected an array, got an object"),
        ({"a": "b"}, dict[str, int], "expected an integer, got text @ $['a']"),
        ({"x": True}, dict[int, bool], "expected integers as keys"),
        ("yesterday", datetime.date, "expected an ISO 8601 date, got 'yesterday'"),
        ("%%%", bytes, "expected base64"),
        ("green", Color, "'green' is not a valid Color"),
        ([], dict, "expected an object, got an array"),
        ({}, list, "expected an array, got an object"),
    ],
)
def test_mismatches_say_what_and_where(value: Any, hint: Any, words: str) -> None:
    with pytest.raises(Mismatch) as caught:
        structure(value, hint)
    assert words in str(caught.value)


def test_numbers_without_a_fraction_are_integers_and_integers_are_numbers() -> None:
    assert structure(2.0, int) == 2
    assert isinstance(structure(2, float), float)


def test_raw_payloads_are_left_alone_and_typed_ones_lose_the_engines_key() -> None:
    value = {"_caller_worker_id": "w", "a": 1}
    for hint in (Any, object, dict):
        assert structure(value, hint) is value
    assert structure(value, dict[str, int]) == {"a": 1}


def test_what_is_no_json_is_a_mismatch() -> None:
    with pytest.raises(Mismatch, match="object"):
        encode({"a": object()})
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Mismatch):
        encode(deep)
    assert encode(Json(b'"as it is"')).raw == b'"as it is"'


def test_a_converter_with_hooks_of_ones_own() -> None:
    converter = make_converter()
    converter.register_structure_hook(pathlib.PurePosixPath, lambda value, _: pathlib.PurePosixPath("/root") / value)
    assert structure("x", pathlib.PurePosixPath, converter) == pathlib.PurePosixPath("/root/x")
    assert encode(pathlib.PurePosixPath("/a"), converter).raw == b'"/a"'


def test_schemas() -> None:
    schema = schema_of(Order)
    assert schema is not None
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["id", "items", "color", "kind", "address"]
    properties = schema["properties"]
    assert properties["id"] == {"type": "integer"}
    assert properties["items"] == {"type": "array", "items": {"$ref": "#/$defs/Item"}}
    assert properties["color"] == {"enum": ["red", "blue"]}
    assert properties["kind"] == {"enum": ["new", "old"]}
    assert properties["total"] == {"type": ["string", "null"]}
    assert properties["place"] == {"anyOf": [{"$ref": "#/$defs/Place"}, {"type": "null"}]}
    assert properties["parts"] == {"type": "object", "additionalProperties": {"type": "number"}}
    assert properties["pair"]["prefixItems"] == [{"type": "integer"}, {"type": "string"}]
    assert properties["row"] == {"type": "array", "items": {"type": "integer"}}
    assert schema["$defs"]["Address"]["required"] == ["street"]
    assert schema["$defs"]["Place"]["properties"]["at"] == {"type": "string", "format": "date-time"}
    assert json.loads(json.dumps(schema)) == schema
    tree = schema_of(Tree)
    assert tree is not None
    assert tree["properties"]["children"]["items"] == {"$ref": "#"}
    nested = schema_of(dict[str, Tree])
    assert nested is not None
    assert nested["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}
    assert schema_of(Box[int])["properties"] == {"content": {"type": "integer"}}  # type: ignore[index]


@pytest.mark.parametrize("hint", [Any, object, TypeVar("X"), complex])
def test_what_says_nothing_has_no_schema(hint: Any) -> None:
    assert schema_of(hint) is None


def test_two_classes_of_one_name_are_kept_apart() -> None:
    def other() -> type:
        @attrs.frozen
        class Item:
            weight: float

        return Item

    schema = schema_of(tuple[Item, other()])  # type: ignore[misc]
    assert schema is not None
    assert len(schema["$defs"]) == 2
    assert len({part["$ref"] for part in schema["prefixItems"]}) == 2


def test_an_enum_of_numbers_or_texts_is_an_enum() -> None:
    class Level(enum.IntEnum):
        LOW = 1

    class Name(enum.StrEnum):
        ANN = "ann"

    assert structure([1], list[Level]) == [Level.LOW]
    assert type(structure(1, Level)) is Level
    assert type(structure("ann", Name)) is Name
    with pytest.raises(Mismatch):
        structure("bob", Name)
    with pytest.raises(Mismatch):
        structure(2, Level)


@pytest.mark.parametrize("hint", [dict[str, object], dict[str, object | None], dict[str, object | int]])
def test_object_in_an_annotation_means_anything(hint: Any) -> None:
    payload = {"a": [1, {"b": None}], "c": "text", "d": 1.5, "e": None}
    assert structure(payload, hint) == payload
    assert structure([payload, 1], list[object]) == [payload, 1]
    with pytest.raises(Mismatch):
        structure([payload], hint)
