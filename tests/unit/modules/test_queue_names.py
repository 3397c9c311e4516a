"""Names of queues in the log, and the reading of requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_trio.config import QueueSettings
from iii_trio.modules.queue.delivery import Marker, without_tags
from iii_trio.modules.queue.messages import LONGEST_KEY, Message, Sorting, reading
from iii_trio.modules.queue.names import Kind, QueueKey
from iii_trio.modules.queue.requests import Request
from iii_trio.protocol import ABSENT, NULL, Json
from iii_trio.protocol.errors import InvalidInput, WireError

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
def test_equal_values_are_one_group_and_one_key(one: bytes, two: bytes, same: bool) -> None:
    first, second = (reading("q", FIFO, Message(Json(text))) for text in (one, two))
    assert (first.group == second.group) is same
    assert reading("q", QueueSettings(), Message(Json(one))) == Sorting(None, 0, None)
    by_field = QueueSettings(deduplication_field="g")
    first, second = (reading("q", by_field, Message(Json(text))) for text in (one, two))
    assert first.repetition_key is not None
    assert (first.repetition_key == second.repetition_key) is same


@pytest.mark.parametrize(
    ("payload", "highest", "expected"),
    [
        (b'{"p":7}', None, 7),
        (b'{"p":7}', 5, 5),
        (b'{"p":300}', None, 255),
        (b'{"p":18446744073709551616}', None, 255),
        (b'{"p":0}', None, 0),
        (b'{"p":-1}', None, 0),
        (b'{"p":1.5}', None, 0),
        (b'{"p":"9"}', None, 0),
        (b'{"p":null}', None, 0),
        (b'{"p":true}', None, 0),
        (b"{}", None, 0),
        (b"[7]", None, 0),
    ],
)
def test_a_priority_is_a_whole_number_up_to_the_highest(payload: bytes, highest: int | None, expected: int) -> None:
    settings = QueueSettings(priority_field="p", max_priority=highest)
    assert reading("q", settings, Message(Json(payload))).priority == expected
    assert reading("q", QueueSettings(), Message(Json(payload))).priority == 0


def test_what_the_sender_says_wins_over_the_payload() -> None:
    settings = QueueSettings(priority_field="p", deduplication_field="d", max_priority=9)
    message = Message(Json(b'{"p":1,"d":"payload"}'), priority=200, repetition_key="sender")
    assert reading("q", settings, message) == Sorting(None, 9, "sender")


def test_a_deduplication_key_has_a_length() -> None:
    with pytest.raises(WireError, match="1025 characters"):
        reading("q", QueueSettings(), Message(NULL, repetition_key="k" * (LONGEST_KEY + 1)))
    settings = QueueSettings(deduplication_field="d")
    for payload in (b'{"d":null}', b"{}", b"3"):
        assert reading("q", settings, Message(Json(payload))).repetition_key is None


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
