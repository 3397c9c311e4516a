"""Wildcard subscriptions: which topics a pattern covers, and that nobody pays for patterns elsewhere."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from module_harness import ask, bind, record, running

from iii_trio.config import Live, PubSubSettings
from iii_trio.modules.pubsub import PubSubModule
from iii_trio.modules.topics import ONE, REST, Patterns, parse_pattern
from iii_trio.protocol.errors import TriggerRejected

SEGMENT = st.sampled_from(["a", "b", "", "x", "*", "**"])
TOPIC = st.lists(SEGMENT, min_size=1, max_size=4).map(".".join)
PATTERN = st.tuples(
    st.lists(st.sampled_from(["a", "b", "", "*"]), max_size=3), st.sampled_from(["a", "b", "", "*", "**"])
).map(lambda parts: (*parts[0], parts[1]))


def covers(pattern: tuple[str, ...], topic: str) -> bool:
    """What a pattern covers, said plainly."""
    segments = topic.split(".")
    fixed = pattern[:-1] if pattern[-1] == REST else pattern
    if pattern[-1] == REST:
        if len(segments) < len(pattern):
            return False
    elif len(segments) != len(pattern):
        return False
    return all(one in (ONE, segment) for one, segment in zip(fixed, segments, strict=False))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), PATTERN), max_size=20), st.lists(TOPIC, max_size=5))
def test_the_tree_finds_what_a_scan_would_find(steps: list[tuple[bool, tuple[str, ...]]], topics: list[str]) -> None:
    patterns, model = Patterns(), set[tuple[str, ...]]()
    for adds, pattern in steps:
        (patterns.add if adds else patterns.discard)(pattern)
        (model.add if adds else model.discard)(pattern)
        assert len(patterns) == len(model)
    for topic in topics:
        found = list(patterns.covering(topic))
        assert len(found) == len(set(found))
        assert set(found) == {pattern for pattern in model if covers(pattern, topic)}
    for pattern in model:
        patterns.discard(pattern)
    assert not patterns._root.next


@pytest.mark.parametrize("text", ["a*", "*a.b", "**.a", "a.**.b", "a.***", "a.b**"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(TriggerRejected, match="is no pattern"):
        parse_pattern(text)


def test_a_pattern_has_no_more_segments_than_a_tree_may_be_deep() -> None:
    longest = parse_pattern(".".join(["*"] * 64))
    with pytest.raises(TriggerRejected, match="65 segments, and 64 are the most"):
        parse_pattern(".".join(["*"] * 65))
    rest = parse_pattern(".".join(["*"] * 63 + ["**"]))
    patterns = Patterns()
    patterns.add(longest)
    patterns.add(rest)
    for segments, found in ((63, []), (64, [rest, longest]), (65, [rest]), (100_000, [rest])):
        assert list(patterns.covering(".".join(["a"] * segments))) == found


async def test_patterns_are_asked_for_and_a_topic_with_a_star_is_a_topic() -> None:
    module = PubSubModule(Live(PubSubSettings()))
    async with running(module) as (core, user):
        wanted: dict[str, dict[str, Any]] = {
            "one": {"topic": "orders.*", "match": "wildcard"},
            "rest": {"topic": "orders.**", "match": "wildcard"},
            "plain": {"topic": "orders.*"},
            "exact": {"topic": "orders.paid", "match": "exact"},
            "everything": {"topic": "**", "match": "wildcard", "condition_function_id": None},
        }
        heard = {}
        for name, config in wanted.items():
            heard[name] = record(user, name)
            bind(core, user, "subscribe", name, config, metadata={"from": name})
        for topic in ("orders.paid", "orders", "orders.paid.eu", "orders.*", "other"):
            await ask(user, "publish", {"topic": topic, "data": topic})
        assert {name: recorder.payloads for name, recorder in heard.items()} == {
            "one": ["orders.paid", "orders.*"],
            "rest": ["orders.paid", "orders.paid.eu", "orders.*"],
            "plain": ["orders.*"],
            "exact": ["orders.paid"],
            "everything": ["orders.paid", "orders", "orders.paid.eu", "orders.*", "other"],
        }
        assert heard["one"].metadata == [{"from": "one"}] * 2
        picture = module.statistics()
        assert (picture.topics, picture.patterns, picture.subscriptions, picture.unheard) == (2, 3, 5, 0)


async def test_a_pattern_moves_goes_and_leaves_others_at_its_place() -> None:
    module = PubSubModule(Live(PubSubSettings()))
    async with running(module) as (core, user):
        one, two = record(user, "one"), record(user, "two")
        bind(core, user, "subscribe", "one", {"topic": "a.*", "match": "wildcard"})
        bind(core, user, "subscribe", "two", {"topic": "a.*", "match": "wildcard"})
        bind(core, user, "subscribe", "one", {"topic": "b.*", "match": "wildcard"})
        for topic in ("a.1", "b.1"):
            await ask(user, "publish", {"topic": topic, "data": topic})
        assert (one.payloads, two.payloads) == (["b.1"], ["a.1"])
        with pytest.raises(TriggerRejected, match="expected `exact` or `wildcard`, not `regex`"):
            bind(core, user, "subscribe", "one", {"topic": "c", "match": "regex"})
        core.triggers.unregister("two")
        core.triggers.unregister("one")
        await ask(user, "publish", {"topic": "a.1", "data": 1})
        picture = module.statistics()
        assert (picture.patterns, picture.subscriptions, picture.unheard) == (0, 0, 1)


async def test_many_topics_each_reach_their_own_subscriber_alone() -> None:
    module = PubSubModule(Live(PubSubSettings()))
    async with running(module) as (core, user):
        heard = record(user, "heard")
        for number in range(10_000):
            bind(core, user, "subscribe", "heard", {"topic": f"t.{number}"}, id=f"s{number}", metadata=number)
        for number in (0, 5_000, 9_999):
            await ask(user, "publish", {"topic": f"t.{number}", "data": number})
        assert heard.payloads == heard.metadata == [0, 5_000, 9_999]
        for number in range(10_000):
            core.triggers.unregister(f"s{number}")
        picture = module.statistics()
        assert (picture.topics, picture.subscriptions) == (0, 0)
