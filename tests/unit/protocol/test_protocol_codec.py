"""Frames to messages and back; what is lenient, what is strict (spec/protocol.md §3)."""

import json
import uuid
from typing import Any, get_type_hints

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from protocol_text import QUICK, VALUES, texts, written

from iii_trio.protocol import ABSENT, Json, codec, messages
from iii_trio.protocol.errors import ProtocolError, WireError
from iii_trio.protocol.limits import MAX_DEPTH
from iii_trio.protocol.messages import Action, ErrorBody, Message

PAIR = b'{"_caller_worker_id":"W"'
FIXED: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=10),
    str | None: st.none() | st.text(max_size=10),
    int | None: st.none() | st.integers(0, 2**53),
    tuple[str, ...] | None: st.none() | st.lists(st.text(max_size=5), max_size=3).map(tuple),
    Action | None: st.none() | st.builds(Action, type=st.text(max_size=5), queue=st.none() | st.text(max_size=5)),
}
BODIES = st.builds(ErrorBody, code=st.text(), message=st.text(), stacktrace=st.none() | st.text())
FIXED[ErrorBody], FIXED[ErrorBody | None] = BODIES, st.none() | BODIES


def strategy(cls: type[Message]) -> st.SearchStrategy[Message]:
    """Any message of a class. An optional JSON field is absent or has a value other than null, which means the same."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    hints = get_type_hints(cls)
    for field in attrs.fields(cls):
        if hints[field.name] is not Json:
            fields[field.name] = FIXED[hints[field.name]]
        elif field.name == "result":
            fields[field.name] = st.just(ABSENT) | VALUES.map(Json.of)
        elif field.name in ("config", "data") and field.default is not ABSENT:
            fields[field.name] = VALUES.map(Json.of)
        else:
            fields[field.name] = st.just(ABSENT) | VALUES.filter(lambda value: value is not None).map(Json.of)
    return st.builds(cls, **fields)


@pytest.mark.parametrize("cls", messages.ALL, ids=lambda cls: cls.TYPE)
def test_every_message_comes_back_as_it_was_written(cls: type[Message]) -> None:
    @QUICK
    @given(strategy(cls))
    def check(message: Message) -> None:
        frame = codec.encode_message(message)
        assert json.loads(frame)["type"] == cls.TYPE
        assert codec.decode_message(frame) == message
        assert codec.open_envelope(frame).type == cls.TYPE

    check()


@QUICK
@given(texts())
def test_payloads_pass_as_text(text: bytes) -> None:
    frame = b'{"type":"invokefunction","function_id":"f","data":%s,"metadata":%s}' % (text, text)
    envelope = codec.open_envelope(frame)
    assert bytes(envelope.data) == text.strip()
    assert bytes(envelope.metadata) == text.strip()


def test_absent_and_null_mean_the_same_but_for_results() -> None:
    read = codec.decode_message
    assert read(b'{"type":"invokefunction","function_id":"f"}').data == Json(b"null")  # type: ignore[attr-defined]
    assert read(b'{"type":"registertriggertype","id":"t","description":null}').description == ""  # type: ignore[attr-defined]
    trigger = b'{"type":"registertrigger","id":"i","trigger_type":"t","function_id":"f","metadata":null%s}'
    for config in (b"", b',"config":null'):
        message = read(trigger % config)
        assert (message.config.raw, message.metadata) == (b"null", ABSENT)  # type: ignore[attr-defined]
    result = b'{"type":"invocationresult","invocation_id":"i","function_id":"f"%s}'
    assert read(result % b"").result == ABSENT  # type: ignore[attr-defined]
    assert read(result % b',"result":null').result == Json(b"null")  # type: ignore[attr-defined]
    assert read(result % b',"error":null').error is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"{}",
        b'{"type":7}',
        b'{"type":"ping"} x',
        b'{"type":"invokefunction","invocation_id":7}',
        b'{"type":"x","data":NaN}',
        b'{"type":"x","data":Infinity}',
        b'{"type":"x","data":"\\ud800"}',
        b'{"type":"x","data":"\\q"}',
        b'{"type":"x","data":"\x01"}',
        b'{"type":"x","data":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b'{"type":"x","data":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"type":"x","data":' + b"7" * 5_000 + b"}",
    ],
    ids=range(16),
)
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        codec.open_envelope(frame)
    assert str(caught.value)


def test_the_deepest_frame_that_passes() -> None:
    inner = MAX_DEPTH - 1
    codec.open_envelope(b'{"type":"x","data":' + b"[" * inner + b"]" * inner + b"}")
    codec.open_envelope(b'{"type":"x","data":"' + b"[{" * 1_000 + b'"}')


def test_kept_json_can_be_read_later() -> None:
    """`1e999` is JSON to some and not to others: a binding that holds it would fail whoever looks at it."""
    frame = b'{"type":"registertrigger","id":"i","trigger_type":"t","function_id":"f","config":{"n":1e999}}'
    with pytest.raises(ProtocolError, match="out of range"):
        codec.decode_message(frame)


def test_unknown_types_and_missing_fields_are_named() -> None:
    with pytest.raises(ProtocolError, match="unknown message type 'nonsense'"):
        codec.decode_message(b'{"type":"nonsense"}')
    with pytest.raises(ProtocolError, match="id"):
        codec.decode_message(b'{"type":"registerfunction"}')
    assert codec.is_known("ping")
    assert not codec.is_known("nonsense")


FRAME = (
    b'{"type":"invokefunction","invocation_id":"6f1c1e0e-8a3e-4a55-9a53-1d4c0f2f9a10","function_id":"a::f",'
    b'"data":{"a":[1,2.5e3,true,null,"\\u00e4\\n\\ud83d\\ude00"]},"action":{"type":"void"},"deadline_ms":5}'
)


@QUICK
@given(
    st.lists(st.tuples(st.integers(0, len(FRAME) - 1), st.sampled_from(b'{}[]",:\\udeD019.-+e tn\x00\xff')), max_size=4)
)
def test_a_mutated_frame_is_refused_or_harmless_to_the_next_reader(edits: list[tuple[int, int]]) -> None:
    frame = bytearray(FRAME)
    for position, byte in edits:
        frame[position] = byte
    try:
        frame.decode()  # the transport's part: text is UTF-8
        envelope = codec.open_envelope(bytes(frame))
    except (UnicodeDecodeError, ProtocolError):
        return
    value = json.loads(frame)  # what passes, Python's own reader takes
    json.dumps(value, ensure_ascii=False).encode()
    for raw in (envelope.data, envelope.result, envelope.error, envelope.action, envelope.metadata):
        if raw:
            json.loads(bytes(raw))


# -- the caller block -------------------------------------------------------------------------------------------------

OBJECTS = st.lists(
    st.tuples(st.just("pair"), st.text(max_size=4) | st.just("_caller_worker_id"), VALUES), max_size=4
).map(lambda pairs: pairs or [("object",)])


@QUICK
@given(texts(OBJECTS) | texts())
@example(b"{}")
@example(b" { } ")
@example(b'{"_caller_worker_id":"forged"}')
@example(b'{"\\u005fcaller_worker_id":"forged","a":1}')
@example(b'{"a":{"_caller_worker_id":"kept"}}')
@example(b'{"a":"_caller_worker_id"}')
@example(b'{"_caller_worker_id":1,"b":2,"_caller_worker_id":3}')
@example(b'\n[{"a":1}]')
@example(b'"{"')
def test_the_callers_id_is_spliced_as_if_decoded(text: bytes) -> None:
    expected = json.loads(text)
    spliced = codec.splice_caller(text, PAIR)
    if not isinstance(expected, dict):
        assert spliced == text
        return
    top: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        top[:] = pairs
        return dict(pairs)

    assert json.loads(spliced, object_pairs_hook=keep) == {**expected, "_caller_worker_id": "W"}
    assert [key for key, _ in top].count("_caller_worker_id") == 1


# -- errors of results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (b"", b""),
        (b"null", b""),
        (b'{"code":"c","message":"m"}', b'{"code":"c","message":"m"}'),
        (b'{ "code": "c", "message": "m", "more": 1 }', b'{ "code": "c", "message": "m", "more": 1 }'),
        (b'{"message":"m"}', b'{"code":"UNKNOWN","message":"m"}'),
        (b'{"message":"m","stacktrace":"s"}', b'{"code":"UNKNOWN","message":"m","stacktrace":"s"}'),
        (b'{"code":404,"message":"m"}', b'{"code":"404","message":"m"}'),
        (b'{"code":{"x":1},"message":"m"}', b'{"code":"UNKNOWN","message":"m"}'),
        (b'{"code":"c","message":7}', b'{"code":"UNKNOWN","message":"{\\"code\\":\\"c\\",\\"message\\":7}"}'),
        (b'"boom"', b'{"code":"UNKNOWN","message":"boom"}'),
        (b"1e999", b'{"code":"UNKNOWN","message":"1e999"}'),
        (b'{"message":1e999}', b'{"code":"UNKNOWN","message":"{\\"message\\":1e999}"}'),
        (b"false", b'{"code":"UNKNOWN","message":"false"}'),
    ],
)
def test_an_error_reaches_its_caller_as_a_body_every_sdk_reads(sent: bytes, read: bytes) -> None:
    assert codec.read_error(sent) == read


@QUICK
@given(texts())
def test_any_error_becomes_a_body(text: bytes) -> None:
    read = codec.read_error(text.strip())
    if json.loads(text) is None:
        assert read == b""
    else:
        body = codec.error_body(read)
        assert isinstance(body.code, str)
        assert isinstance(body.message, str)


@QUICK
@given(st.text(min_size=1), st.text(), st.none() | st.text())
def test_an_error_of_ours_comes_back(code: str, message: str, stacktrace: str | None) -> None:
    body = codec.error_body(codec.encode_error(WireError(message, code, stacktrace)))
    assert (body.code, body.message, body.stacktrace) == (code, message, stacktrace)


# -- ids and scraps ---------------------------------------------------------------------------------------------------


@QUICK
@given(st.uuids())
def test_ids_are_written_in_one_way(value: uuid.UUID) -> None:
    for text in (str(value), str(value).upper(), value.hex, f"{{{value}}}", f"urn:uuid:{value}"):
        assert codec.canonical_id(text) == str(value)


@pytest.mark.parametrize(
    "text", ["", "x", "1234", "g" * 32, "6f1c1e0e-8a3e-4a55-9a53-1d4c0f2f9a1", "6" * 33, "\x00" * 32]
)
def test_what_is_no_id(text: str) -> None:
    assert codec.canonical_id(text) is None


@pytest.mark.parametrize(
    ("frame", "scraps"),
    [
        (b"garbage", (None, None, "")),
        (b'{"type":"invokefunction","invocation_id":"i","function_id":"f","data":', ("invokefunction", "i", "f")),
        (b'{ "function_id" : "a::b" , "invocation_id" :\n"i"', (None, "i", "a::b")),
        (b'{"type":"x","invocation_id":7}', ("x", None, "")),
        (b'{"type":"x","invocation_id":"a\\"b"}', ("x", None, "")),
        (b'{"invocation_id":"' + b"x" * 65 + b'"}', (None, None, "")),
        (b'{"function_id":"\xff"}', (None, None, "�")),
    ],
)
def test_what_can_be_saved_of_a_broken_frame(frame: bytes, scraps: tuple[str | None, str | None, str]) -> None:
    assert codec.salvage(frame) == scraps


@QUICK
@given(st.binary(max_size=200))
def test_salvage_takes_anything(frame: bytes) -> None:
    kind, invocation_id, function_id = codec.salvage(frame)
    assert kind is None or kind.islower()
    assert invocation_id is None or 0 < len(invocation_id) <= 64
    assert len(function_id) <= 512


# -- parts of frames --------------------------------------------------------------------------------------------------


def test_actions() -> None:
    assert codec.read_action(b"") is None
    assert codec.read_action(b"null") is None
    assert codec.read_action(b'{"type":"void"}') == Action(type="void")
    assert codec.read_action(b'{"type":"enqueue","queue":"q"}') == Action(type="enqueue", queue="q")
    for bad in (b'"void"', b"{}", b'{"type":null}', b'{"type":"enqueue","queue":7}'):
        with pytest.raises(ProtocolError):
            codec.read_action(bad)


def test_what_a_worker_says_of_itself() -> None:
    assert codec.read_worker(b"{}") == messages.RegisterWorker()
    said = codec.read_worker(b'{"name":null,"runtime":null,"pid":7,"features":["a"],"telemetry":{"x":1},"amplitude":1}')
    assert said == messages.RegisterWorker(pid=7, features=("a",), telemetry={"x": 1})
    for bad in (b"null", b"[]", b'{"pid":"x"}', b'{"features":[7]}'):
        with pytest.raises(ProtocolError):
            codec.read_worker(bad)


@QUICK
@given(VALUES)
def test_canonical_text_is_one_text_for_equal_values(value: Any) -> None:
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(inner) for inner in value] if isinstance(value, list) else value

    assert codec.canonical_text(turned(value)) == codec.canonical_text(value)
    assert codec.decode_value(codec.encode_value(value)) == value


@QUICK
@given(st.data())
def test_decode_value_reads_what_was_written(data: st.DataObject) -> None:
    value = data.draw(VALUES)
    assert codec.decode_value(data.draw(written(value)).encode()) == value
    with pytest.raises(ProtocolError):
        codec.decode_value(b"{")
