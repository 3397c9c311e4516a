"""Bytes to messages and back; the only place that knows msgspec.

Theory of operation. A socket's frames are decoded in two steps. `open_envelope` reads every frame into one flat private
struct with payloads left as raw text: that is all the two hot frames need, and it costs a third of a microsecond. Every
other frame is read again, by `read_message`, straight into its attrs class. Both readers are lenient where SDKs are
sloppy (spec/protocol.md §3.1, §20.1) and strict where a frame, passed on, could break the peer behind it: nesting
deeper than 128 levels, lone surrogates and endless numbers are decode errors here, not there (`scan.py`).
"""

import re
import types
import uuid
from collections.abc import Callable
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import attrs
import msgspec

from . import messages
from .errors import ProtocolError, WireError
from .json import Json
from .limits import MAX_DEPTH
from .messages import Action, ErrorBody, Message
from .scan import MAX_DIGITS, deeper_than, has_endless_number, has_lone_surrogate

T = TypeVar("T")

_BACKSLASH: Final = ord("\\")  # a number: `in` finds it four times as fast as a bytes object of one
_UNDERSCORE: Final = ord("_")
_NULL: Final = msgspec.Raw(b"null")
_NOTHING: Final = msgspec.Raw(b"")
_DECODE_ERRORS: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class Envelope(msgspec.Struct, gc=False):
    """The flat form of a frame: what routing needs, payloads raw. `data` of a frame without the key is null."""

    type: str
    invocation_id: str | None = None
    function_id: str | None = None
    data: msgspec.Raw = _NULL
    result: msgspec.Raw = _NOTHING
    error: msgspec.Raw = _NOTHING
    action: msgspec.Raw = _NOTHING
    namespace: str | None = None
    metadata: msgspec.Raw = _NOTHING
    traceparent: str | None = None
    baggage: str | None = None
    deadline_ms: int | None = None
    reason: str | None = None


_open = msgspec.json.Decoder(Envelope).decode
_decode_any = msgspec.json.Decoder().decode
_skim = msgspec.json.Decoder(msgspec.Raw).decode
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode

encode_value: Callable[[Any], bytes] = _encode
"""JSON text of plain Python values."""


def decode_value(data: bytes) -> Any:
    """A fresh Python value; raises `ProtocolError` for anything that is not JSON."""
    try:
        return _decode_any(data)
    except _DECODE_ERRORS as error:
        raise ProtocolError(str(error)) from None


def members(data: bytes) -> dict[str, bytes] | None:
    """The top level of an object, each value as its text; None when `data` is no JSON object."""
    try:
        return {name: bytes(raw) for name, raw in _members(data).items()}
    except _DECODE_ERRORS:
        return None


# -- reading ----------------------------------------------------------------------------------------------------------


def open_envelope(frame: bytes) -> Envelope:
    """Read one frame into its flat form. Raises `ProtocolError` saying what is wrong with it."""
    try:
        envelope = _open(frame)
    except _DECODE_ERRORS as error:
        raise ProtocolError(str(error) or "nested too deeply") from None
    if _BACKSLASH in frame and has_lone_surrogate(frame):
        raise ProtocolError("a string holds half a surrogate pair")
    if len(frame) > MAX_DEPTH and frame.count(b"[") + frame.count(b"{") > MAX_DEPTH and deeper_than(frame, MAX_DEPTH):
        raise ProtocolError(f"nested deeper than {MAX_DEPTH} levels")
    if len(frame) > MAX_DIGITS and has_endless_number(frame):
        raise ProtocolError(f"a number has {MAX_DIGITS} digits or more")
    return envelope


def nests_too_deep(data: bytes) -> bool:
    """Whether valid JSON text nests too deep for the payload of a frame: who wraps a payload has to ask again."""
    return data.count(b"[") + data.count(b"{") >= MAX_DEPTH and deeper_than(data, MAX_DEPTH - 1)


def check_payload(text: bytes) -> None:
    """Whether text that came by another way than a frame may travel as a payload. Raises `ProtocolError` if not."""
    try:
        text.decode()
        _skim(text)
    except _DECODE_ERRORS as error:
        raise ProtocolError(str(error) or "nested too deeply") from None
    if _BACKSLASH in text and has_lone_surrogate(text):
        raise ProtocolError("a string holds half a surrogate pair")
    if nests_too_deep(text):
        raise ProtocolError(f"nested deeper than {MAX_DEPTH - 2} levels")
    if len(text) > MAX_DIGITS and has_endless_number(text):
        raise ProtocolError(f"a number has {MAX_DIGITS} digits or more")


_INVOCATION_ID: Final = re.compile(rb'"invocation_id"\s*:\s*"([^"\\]{1,64})"')
_FUNCTION_ID: Final = re.compile(rb'"function_id"\s*:\s*"([^"\\]{1,512})"')
_TYPE: Final = re.compile(rb'"type"\s*:\s*"([a-z]{1,40})"')


def salvage(frame: bytes) -> tuple[str | None, str | None, str]:
    """What an undecodable frame still names: (type, invocation_id, function_id or ""), by searching, not parsing."""

    def first(pattern: re.Pattern[bytes]) -> str | None:
        found = pattern.search(frame)
        return found[1].decode(errors="replace") if found else None

    return first(_TYPE), first(_INVOCATION_ID), first(_FUNCTION_ID) or ""


_is_canonical = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch


def canonical_id(text: str) -> str | None:
    """An invocation or worker id in hyphenated lower case, or None when it is no UUID."""
    if _is_canonical(text):
        return text
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return None


# -- attrs classes by msgspec -----------------------------------------------------------------------------------------


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def _mirror(cls: type[Any]) -> type[msgspec.Struct]:
    """The struct msgspec reads for an attrs class: `Json` fields raw, every defaulted field nullable."""
    hints = get_type_hints(cls)
    required: list[Any] = []
    optional: list[Any] = []
    for attribute in attrs.fields(cls):
        hint = hints[attribute.name]
        if hint is Json:
            optional.append((attribute.name, msgspec.Raw, _NOTHING))
        elif attribute.default is attrs.NOTHING:
            required.append((attribute.name, hint))
        else:
            optional.append((attribute.name, hint if _is_optional(hint) else hint | None, None))
    return msgspec.defstruct(f"_{cls.__name__}", [*required, *optional])


class _Reader:
    """Reads one attrs class: decode into its mirror, then leave out what was null or absent."""

    def __init__(self, cls: type[Any]) -> None:
        self.cls = cls
        self.decode = msgspec.json.Decoder(_mirror(cls)).decode
        hints = get_type_hints(cls)
        self.fields = [(a.name, hints[a.name] is Json, a.default) for a in attrs.fields(cls)]

    def __call__(self, data: bytes) -> Any:
        try:
            struct = self.decode(data)
        except _DECODE_ERRORS as error:
            raise ProtocolError(str(error) or "nested too deeply") from None
        values: dict[str, Any] = {}
        for name, is_json, default in self.fields:
            value = getattr(struct, name)
            if is_json:
                raw = bytes(value)
                # null is "no value" for optional JSON, and a value where the default says so (config, data, result)
                if raw and (raw != b"null" or name in _NULL_IS_A_VALUE):
                    decode_value(raw)  # kept and looked into later, by whoever: what cannot be read fails here
                    values[name] = Json(raw)
            elif value is not None or default is attrs.NOTHING:
                values[name] = value
        return self.cls(**values)


_NULL_IS_A_VALUE: Final = frozenset({"data", "config", "result"})
_READERS: Final = {cls.TYPE: _Reader(cls) for cls in messages.ALL}
_read_error_body = _Reader(ErrorBody)
_read_action = _Reader(Action)
_read_worker = _Reader(messages.RegisterWorker)


def is_known(type_name: str) -> bool:
    """Whether `type_name` is a message of the protocol, in either direction."""
    return type_name in _READERS


def read_message(type_name: str, frame: bytes) -> Message:
    """Read a frame of a known type into its attrs class. Raises `ProtocolError` naming the type or field."""
    reader = _READERS.get(type_name)
    if reader is None:
        raise ProtocolError(f"unknown message type {type_name!r}")
    message: Message = reader(frame)
    return message


def decode_message(frame: bytes) -> Message:
    """Read any one frame into its attrs class. Raises `ProtocolError`."""
    return read_message(open_envelope(frame).type, frame)


def read_action(raw: bytes) -> Action | None:
    """The `action` of an invocation; None for absent, null. Raises `ProtocolError`."""
    if not raw or raw == b"null":
        return None
    action: Action = _read_action(raw)
    return action


def read_worker(data: bytes) -> messages.RegisterWorker:
    """The payload of `engine::workers::register`. Raises `ProtocolError`."""
    worker: messages.RegisterWorker = _read_worker(data)
    return worker


def reader(cls: type[T]) -> Callable[[bytes], T]:
    """How to read a payload into an attrs class, by the same rules as messages; it raises `ProtocolError`."""
    return _Reader(cls)


def read_error(raw: bytes) -> bytes:
    """The `error` of a result as text that every SDK can decode; empty when there is none.

    A well-formed body passes unchanged. Anything else, which strict clients would drop, becomes code `UNKNOWN` with
    what was sent as its message.
    """
    if not raw or raw == b"null":
        return b""
    try:
        _read_error_body(raw)
    except ProtocolError:
        pass
    else:
        return raw
    try:
        value = decode_value(raw)
    except ProtocolError:
        value = raw.decode(errors="replace")
    if isinstance(value, dict) and isinstance(value.get("message"), str):
        code, trace = value.get("code"), value.get("stacktrace")
        body = {"code": str(code) if isinstance(code, str | int) and code else "UNKNOWN", "message": value["message"]}
        return _encode({**body, "stacktrace": trace} if isinstance(trace, str) else body)
    return _encode({"code": "UNKNOWN", "message": value if isinstance(value, str) else raw.decode()})


def error_body(raw: bytes) -> ErrorBody:
    """The decoded form of `read_error`'s text."""
    body: ErrorBody = _read_error_body(raw)
    return body


# -- writing ----------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is dict:
        return value
    if kind is Json:
        return msgspec.Raw(value.raw)
    if _names(kind):
        return _fields(value)
    return value


_NAMES: Final[dict[type[Any], tuple[str, ...]]] = {}


def _names(cls: type[Any]) -> tuple[str, ...]:
    """The attributes of an attrs class, looked up once; none for any other class."""
    names = _NAMES.get(cls)
    if names is None:
        names = _NAMES[cls] = tuple(a.name for a in attrs.fields(cls)) if attrs.has(cls) else ()
    return names


def _fields(value: Any) -> dict[str, Any]:
    return {
        name: _plain(v)
        for name in _names(type(value))
        if (v := getattr(value, name)) is not None and not (type(v) is Json and not v.raw)
    }


def encode_message(message: Message) -> bytes:
    """One frame's text: `type` first, then every field that has a value."""
    return _encode({"type": message.TYPE, **_fields(message)})


def encode_error(error: WireError) -> bytes:
    """An error's wire body."""
    return _encode(_fields(ErrorBody(code=error.code, message=error.message, stacktrace=error.stacktrace)))


def encode_fields(value: Any) -> bytes:
    """JSON text of an attrs value by the same rule as messages: None and `ABSENT` left out."""
    return _encode(_fields(value))


def encode_object(fields: dict[str, Any]) -> bytes:
    """JSON text of an object. A `Json` goes in as it is, `ABSENT` as null."""
    return _encode(
        {name: _plain(value.or_null() if isinstance(value, Json) else value) for name, value in fields.items()}
    )


def canonical_text(value: Any) -> bytes:
    """JSON text with sorted keys: equal values have equal text."""
    return _encode_sorted(value)


# -- the caller block -------------------------------------------------------------------------------------------------

CALLER_KEY: Final = b'"_caller_worker_id"'
_OBJECT: Final = re.compile(rb"\s*\{\s*(\}?)")


def splice_caller(data: bytes, pair: bytes) -> bytes:
    """Put the caller's id into an object payload without decoding it; any other payload is returned as it is.

    `pair` is `{"_caller_worker_id":"<id>"`, brace included. A key of that name that is already there, also one written
    with escapes, is replaced (spec/protocol.md §7.3): only then is the top level of the object read.
    """
    found = _OBJECT.match(data)
    if found is None:
        return data
    if (_UNDERSCORE in data and CALLER_KEY in data) or (_BACKSLASH in data and b"\\u" in data):
        top = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if top.pop("_caller_worker_id", None) is not None:
            data = _encode(top)
            found = _OBJECT.match(data)
            assert found is not None
    return pair + (b"" if found[1] else b",") + data[found.start(1) if found[1] else found.end() :]


def strip_caller(data: bytes) -> bytes:
    """An object payload without a `_caller_worker_id`, however it is escaped; any other payload as it is.

    For calls in which the engine names no caller: what a peer wrote there must not pass for the engine's word.
    """
    if (CALLER_KEY not in data and b"\\u" not in data) or _OBJECT.match(data) is None:
        return data
    top = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    return data if top.pop("_caller_worker_id", None) is None else _encode(top)
