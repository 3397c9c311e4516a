"""The access decision (spec/protocol.md §14.3): patterns, filters, grants, and the cache of verdicts."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_trio.engine import ExposeFilter, FunctionEntry, Pattern, Session
from iii_trio.engine.access import INFRASTRUCTURE, Access, grant
from iii_trio.engine.events import Events
from iii_trio.engine.functions import Functions
from iii_trio.engine.peer import Peer
from iii_trio.protocol import Json


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        ("a::b", "a::b", True),
        ("a::b", "a::bc", False),
        ("a::*", "a::", True),
        ("a::*", "a::b\nc", True),
        ("a::*", "xa::b", False),
        ("*", "", True),
        ("*::b", "a::b", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a-b-c", True),
        ("a*b*c", "a-c-b", False),
        ("ab*bc", "abc", False),
        ("a.c", "abc", False),
        ("a?", "ab", False),
        ("**a**", "bab", True),
    ],
)
def test_a_pattern_is_anchored_and_only_stars_are_special(pattern: str, text: str, fits: bool) -> None:
    assert Pattern.of(pattern).matches(text) is fits


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_patterns_agree_with_regular_expressions(pattern: str, text: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert Pattern.of(pattern).matches(text) is (re.fullmatch(expression, text, re.DOTALL) is not None)


def test_many_stars_take_no_time() -> None:
    assert not Pattern.of("*a" * 50 + "b").matches("a" * 100_000)


@pytest.mark.parametrize("text", ["orders::*", 'match("orders::*")', "match('orders::*')"])
def test_a_grant_is_an_id_a_wildcard_or_either_inside_match(text: str) -> None:
    assert grant(text).matches("orders::add")
    assert not grant(text).matches("billing::add")


class Registry:
    """A function registry with one peer."""

    def __init__(self) -> None:
        self.functions = Functions(Events())
        self.access = Access(self.functions)
        self.peer = Peer(id="w", cap=1)

    def add(self, function_id: str, namespace: str = "default", metadata: Any = None) -> None:
        text = Json(b"") if metadata is None else Json.of(metadata)
        self.functions.claim(FunctionEntry(id=function_id, namespace=namespace, owner=self.peer, metadata=text))

    def allows(self, session: Session, function_id: str, namespace: str = "default") -> bool:
        entry = self.functions.get(namespace, function_id)
        return self.access.check(session, namespace, function_id, entry) is None


EXPOSE = (
    ExposeFilter(pattern=Pattern.of("public::*")),
    ExposeFilter(pattern=Pattern.of("t::*"), namespace="tenant"),
    ExposeFilter(metadata={"public": True, "team": 'match("a*")'}),
)


@pytest.mark.parametrize(
    ("session", "function_id", "namespace", "allowed"),
    [
        ({}, "public::f", "default", True),
        ({}, "public::f", "tenant", False),
        ({}, "t::f", "tenant", True),
        ({}, "t::f", "default", False),
        ({}, "private::f", "default", False),
        ({"forbidden": frozenset({"public::f"})}, "public::f", "default", False),
        ({"allowed": frozenset({"private::f"})}, "private::f", "default", True),
        ({"allowed": frozenset({"private::f"})}, "private::f", "tenant", False),
        ({"allowed": frozenset({"private::*"})}, "private::f", "default", False),
        ({"namespaces": {"tenant": (grant("a::*"),)}}, "a::f", "tenant", True),
        ({"namespaces": {"tenant": (grant("a::*"),)}}, "a::f", "default", False),
        ({"namespaces": {"tenant": (grant("a::*"),)}, "forbidden": frozenset({"a::f"})}, "a::f", "tenant", False),
        ({"forbidden": frozenset({"engine::channels::create"})}, "engine::channels::create", "default", False),
        ({"expose": None}, "private::f", "default", True),
        ({"expose": None, "forbidden": frozenset({"private::f"})}, "private::f", "default", False),
    ],
)
def test_decisions(session: dict[str, Any], function_id: str, namespace: str, allowed: bool) -> None:
    assert Registry().allows(Session(**{"expose": EXPOSE, **session}), function_id, namespace) is allowed


def test_infrastructure_is_open_to_every_session_in_every_namespace() -> None:
    assert {"engine::workers::register", "engine::channels::create", "engine::log::info"} <= INFRASTRUCTURE
    for function_id in INFRASTRUCTURE:
        assert Registry().allows(Session(expose=()), function_id, "tenant")
    assert not Registry().allows(Session(expose=()), "engine::functions::list")


@pytest.mark.parametrize(
    ("metadata", "allowed"),
    [
        ({"public": True, "team": "alpha"}, True),
        ({"public": True, "team": "alpha", "more": 1}, True),
        ({"public": True}, False),
        ({"public": 1, "team": "alpha"}, False),
        ({"public": "true", "team": "alpha"}, False),
        ({"public": True, "team": "beta"}, False),
        ({"public": True, "team": ["alpha"]}, False),
        (None, False),
        ([], False),
    ],
)
def test_metadata_filters(metadata: Any, allowed: bool) -> None:
    registry = Registry()
    registry.add("any::f", metadata=metadata)
    assert registry.allows(Session(expose=EXPOSE), "any::f") is allowed


@pytest.mark.parametrize(
    ("wanted", "has", "equal"),
    [
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, True),
        ({"a": [1]}, {"a": [1.0]}, False),
        ({"a": [1]}, {"a": [True]}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([1, 2], [1], False),
        (None, None, True),
        (0, False, False),
    ],
)
def test_metadata_compares_as_json(wanted: Any, has: Any, equal: bool) -> None:
    registry = Registry()
    registry.add("any::f", metadata={"key": has})
    session = Session(expose=(ExposeFilter(metadata={"key": wanted}),))
    assert registry.allows(session, "any::f") is equal


def test_verdicts_are_cached_until_the_registry_changes() -> None:
    registry = Registry()
    session = Session(expose=EXPOSE)
    registry.add("any::f")
    assert not registry.allows(session, "any::f")
    assert session.verdicts == {("default", "any::f"): False}
    registry.add("any::f", metadata={"public": True, "team": "a"})
    assert registry.allows(session, "any::f")
    registry.functions.release(registry.peer, "default", "any::f")
    assert not registry.allows(session, "any::f")
    assert not registry.allows(session, "any::g")
    assert len(session.verdicts) == 2


def test_a_session_that_asks_for_ever_new_ids_does_not_fill_memory() -> None:
    registry, session = Registry(), Session(expose=EXPOSE)
    for n in range(10_050):
        registry.allows(session, f"any::{n}")
    assert len(session.verdicts) <= 10_000


def test_refusals_name_the_function_and_the_setting() -> None:
    registry = Registry()
    session = Session(expose=EXPOSE, forbidden=frozenset({"a::f"}))

    def message(function_id: str) -> str:
        error = registry.access.check(session, "default", function_id, None)
        assert error is not None
        assert error.code == "FORBIDDEN"
        return error.message

    assert message("a::g") == "function 'a::g' not allowed (add to rbac.expose_functions)"
    assert message("a::f") == "function 'a::f' not allowed (remove from rbac.forbidden_functions)"


@pytest.mark.parametrize(
    ("allowed", "trigger_type", "fits"),
    [
        (None, "anything", True),
        (frozenset[str](), "http", False),
        (frozenset({"http"}), "http", True),
        (frozenset({"http"}), "cron", False),
        (frozenset({"http"}), "api", True),
        (frozenset({"durable:subscriber"}), "queue", True),
        (frozenset({"queue"}), "durable:subscriber", False),
    ],
)
def test_trigger_types(allowed: frozenset[str] | None, trigger_type: str, fits: bool) -> None:
    error = Session(trigger_types=allowed).check_type(trigger_type)
    assert (error is None) is fits
    if error is not None:
        assert error.message == f"Trigger type '{trigger_type}' is not allowed for this session."
