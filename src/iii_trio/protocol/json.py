"""Payloads: immutable JSON text that travels without being decoded, and the difference between null and nothing.

A `Json` holds UTF-8 text that has been checked to be one JSON value. It is passed on as it is; whoever wants to look
inside calls `decode()` and gets a fresh object each time, so that no two holders ever share something mutable.
`ABSENT` is "no value at all" (a frame without the key); `NULL` is the JSON value null. `ABSENT` is falsy.
"""

from typing import Any, Final

import msgspec

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class JsonError(ValueError):
    """The text is not JSON, or nested deeper than we pass on."""


class Json(msgspec.Struct, frozen=True, gc=False):
    """One immutable JSON value as text, or `ABSENT`.

    `raw` is the UTF-8 text, empty only for `ABSENT`. Two values are equal when their texts are. (A struct, not an
    attrs class: two are made for every routed call, at a fifth of the cost.)
    """

    raw: bytes

    @classmethod
    def of(cls, value: Any) -> "Json":
        """Encode `value` (dicts, lists, str, int, float, bool, None) now; raises `TypeError` for anything else."""
        return cls(_encode(value))

    @property
    def absent(self) -> bool:
        """True for `ABSENT`."""
        return not self.raw

    def __bool__(self) -> bool:
        return bool(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def decode(self) -> Any:
        """A fresh Python object; `ABSENT` and null both give None. Raises `JsonError` for text that is not JSON."""
        if not self.raw:
            return None
        try:
            return _decode(self.raw)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise JsonError(str(error)) from None

    def is_false(self) -> bool:
        """Exactly the JSON value false: the one answer by which a condition blocks (spec/protocol.md §8)."""
        return self.raw.strip() == b"false"

    def or_null(self) -> "Json":
        """The value itself, or null in the place of nothing."""
        return self if self.raw else NULL


ABSENT: Final = Json(b"")
NULL: Final = Json(b"null")
EMPTY_OBJECT: Final = Json(b"{}")
