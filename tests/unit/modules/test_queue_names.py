"""Names of queues in the log, and the reading of requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_trio.config import QueueSettings
from iii_trio.modules.queue.delivery import Marker, without_tags
from iii_trio.modules.queue.names import Kind, QueueKey
from iii_trio.modules.queue.queues import group_of
from iii_trio.modules.queue.requests import Request
from iii_trio.protocol import ABSENT, NULL, Json
from iii_trio.protocol.errors import InvalidInput

FIFO = QueueSettings(type="fifo", message_group_field="g")


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (b'{"g":"a"}', b'{ "x":1, "g" : "\\u0061" }', True),
        (b'{"g":{"a":1,"b":2}}', b'{"g":{"b":2,"a":1}}', True),
        (b'{"g":1}', b'{"g":"1"}', False),
        (b'{"g":1e999}', b'{"g":1e999}', True),
    ],
)
def test_equal_values_are_one_group(one: bytes, two: bytes, same: bool) -> None:
    assert (group_of("q", FIFO, Json(one)) == group_of("q", FIFO, Json(two))) is same
    assert group_of("q", QueueSettings(), Json(one)) is None


tricky = st.text(alphabet="a@\\:", max_size=6)
keys = st.one_of(
    st.builds(QueueKey, st.sampled_from([Kind.NAMED, Kind.UNCLAIMED]), tricky),
    st.builds(QueueKey, st.just(Kind.DESTINATION), tricky, tricky, tricky),
)


@given(keys)
def test_a_name_is_read_back(key: QueueKey) -> None:
    assert QueueKey.parse(key.text) == key


@given(keys, keys)
def test_no_two_queues_share_a_name(one: QueueKey, two: QueueKey) -> None:
    assert (one.text == two.text) is (one == two)


@pytest.mark.parametrize("text", ["", "queue", "queue@a@b", "topic@a", "other@a", "queue@\\x"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no|not a valid"):
        QueueKey.parse(text)


def test_a_request_keeps_payloads_as_they_were_sent() -> None:
    request = Request.read("f", Json(b'{"data" : { "n" :1e400,"n":2 }, "x": null}'))
    assert request.payload("data") == Json(b'{ "n" :1e400,"n":2 }')
    assert request.payload("x") == NULL
    assert request.optional_text("x") is None
    assert request.count("x", 7) == 7
    with pytest.raises(InvalidInput, match="missing field `y`"):
        request.payload("y")


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (ABSENT, {"iii.queue": {"queue": "q", "message_id": "m", "attempt": 2}}),
        (NULL, {"iii.queue": {"queue": "q", "message_id": "m", "attempt": 2}}),
        (Json.of({"a": 1}), {"a": 1, "iii.queue": {"queue": "q", "message_id": "m", "attempt": 2}}),
        (Json.of([1]), [1]),
        (Json.of("x"), "x"),
    ],
)
def test_the_marker_joins_objects_only(metadata: Json, expected: object) -> None:
    assert Marker("q", "m", 2).merged(metadata).decode() == expected
    assert Marker("q", "m", 1).merged(metadata) == metadata


@pytest.mark.parametrize(
    ("baggage", "expected"),
    [
        (None, None),
        ("a=b", "a=b"),
        ("iii.tag.kind=x", None),
        ("a=b, iii.tag.display_name=x ,iii.tag.hidden=1,c=iii.tag.kind", "a=b,c=iii.tag.kind"),
    ],
)
def test_span_tags_stay_behind(baggage: str | None, expected: str | None) -> None:
    assert without_tags(baggage) == expected
