"""Path and query parameters of a request, text on the wire, as a handler's annotations want them."""

import dataclasses
import enum
from typing import Annotated, Any, Literal, NewType, TypedDict

import pytest
from attrs import Factory, frozen

from iii_trio import HttpRequest
from iii_trio.sdk.structuring import Mismatch, structure

Page = NewType("Page", int)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class ById(TypedDict):
    id: int


@frozen
class Filter:
    limit: int = 10
    ratio: float | None = None
    deep: bool = False
    page: Page = Page(1)
    step: Annotated[int, "of the table"] = 1
    level: Level = Level.LOW
    kind: Literal[1, "two", True] = "two"
    either: int | bool = 0
    any: int | str = 0
    names: list[str] = Factory(list)
    numbers: list[int] = Factory(list)
    marks: set[float] = Factory(set)
    pair: tuple[bool, ...] = ()
    several: int | list[int] = 0
    most: Literal["all"] | int = 10


@dataclasses.dataclass(frozen=True)
class Asked:
    path_params: ById
    query_params: Filter = Filter()
    body: Any = None


def asked(query: dict[str, Any], **other: Any) -> Filter:
    found: Asked = structure({"path_params": {"id": "7"}, "query_params": query, **other}, Asked)
    assert found.path_params == {"id": 7}
    return found.query_params


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("limit", "5", 5),
        ("limit", "-5", -5),
        ("limit", "007", 7),
        ("limit", "5.0", 5),
        ("limit", 5, 5),
        ("ratio", "1.5", 1.5),
        ("ratio", "1e3", 1000.0),
        ("ratio", "2", 2.0),
        ("deep", "true", True),
        ("deep", "False", False),
        ("deep", "1", True),
        ("deep", True, True),
        ("page", "3", 3),
        ("step", "3", 3),
        ("level", "2", Level.HIGH),
        ("kind", "1", 1),
        ("kind", "two", "two"),
        ("either", "true", True),
        ("either", "12", 12),
        ("any", "12", "12"),
        ("names", "a", ["a"]),
        ("names", ["a", "b"], ["a", "b"]),
        ("numbers", "1", [1]),
        ("numbers", ["1", "2"], [1, 2]),
        ("marks", ["1", "1.0"], {1.0}),
        ("pair", ["true", "0"], (True, False)),
        ("several", "1", 1),
        ("several", ["1", "2"], [1, 2]),
        ("most", "all", "all"),
        ("most", "5", 5),
    ],
)
def test_a_parameter_becomes_what_its_annotation_asks_for(name: str, given: Any, meant: Any) -> None:
    value = getattr(asked({name: given}), name)
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("limit", "abc", "expected an integer, got 'abc' @ $.query_params.limit"),
        ("limit", "", "expected an integer, got '' @ $.query_params.limit"),
        ("limit", "5.5", "expected an integer, got '5.5' @ $.query_params.limit"),
        ("limit", " 5", "expected an integer, got ' 5' @ $.query_params.limit"),
        ("limit", "1_000", "expected an integer, got '1_000' @ $.query_params.limit"),
        ("limit", "٣", "expected an integer, got '٣' @ $.query_params.limit"),
        ("limit", "9" * 5000, f"expected an integer, got '{'9' * 100}'… @ $.query_params.limit"),
        ("limit", ["1", "2"], "expected an integer, got an array @ $.query_params.limit"),
        ("ratio", "nan", "expected a number, got 'nan' @ $.query_params.ratio"),
        ("ratio", "1e999", "expected a number, got '1e999' @ $.query_params.ratio"),
        ("deep", "maybe", "expected true or false, got 'maybe' @ $.query_params.deep"),
        ("level", "3", "expected one of 1, 2, got '3' @ $.query_params.level"),
        ("numbers", ["1", "x"], "expected an integer, got 'x' @ $.query_params.numbers"),
        ("several", "x", "expected an integer, got 'x' @ $.query_params.several"),
        ("several", ["1", "x"], "expected an integer, got 'x' @ $.query_params.several"),
        ("most", "x", "expected an integer, got 'x'; expected one of all, got 'x' @ $.query_params.most"),
    ],
)
def test_what_it_is_not_is_said_with_its_name(name: str, given: Any, said: str) -> None:
    with pytest.raises(Mismatch) as complaint:
        asked({name: given})
    assert str(complaint.value).startswith(said)


@pytest.mark.parametrize("hint", [Asked | None, Annotated[Asked, "by somebody"]])
def test_an_annotation_around_the_class_changes_nothing(hint: Any) -> None:
    assert structure({"path_params": {"id": "7"}, "query_params": {"limit": "5"}}, hint) == Asked({"id": 7}, Filter(5))
    if hint == Asked | None:
        assert structure(None, hint) is None


def test_nothing_else_is_read() -> None:
    @frozen
    class Body:
        count: int

    @frozen
    class WithBody:
        body: Body

    with pytest.raises(Mismatch):
        structure({"body": {"count": "5"}}, WithBody)
    assert structure({"path_params": {"id": "5"}, "query_params": {"n": "1"}}, HttpRequest).query_params == {"n": "1"}
    payload = {"path_params": {"id": "7"}, "query_params": {"limit": "5"}}
    structure(payload, Asked)
    assert payload == {"path_params": {"id": "7"}, "query_params": {"limit": "5"}}
    with pytest.raises(Mismatch, match="path_params"):
        structure({"path_params": "7"}, Asked)


def test_a_mapping_reads_all_of_its_parameters() -> None:
    @frozen
    class Counts:
        query_params: dict[str, int | None]

    assert structure({"query_params": {"a": "1", "b": "2"}}, Counts).query_params == {"a": 1, "b": 2}
    with pytest.raises(Mismatch, match=r"'x' @ \$\.query_params\.b"):
        structure({"query_params": {"a": "1", "b": "x"}}, Counts)
