"""What callers send to the queue's functions: top-level fields, taken apart without decoding the payload among them."""

from typing import Any, Final

import msgspec
from attrs import frozen

from ...protocol import Json, JsonError
from ...protocol.errors import InvalidInput, bad_input

_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def members(text: bytes) -> dict[str, msgspec.Raw] | None:
    """The top level of an object, values raw; None when the text is no JSON object."""
    try:
        return _members(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


@frozen
class Request:
    """An object sent to `function_id`. Its methods raise `InvalidInput`, with code `deserialization_error`."""

    function_id: str
    fields: dict[str, msgspec.Raw]

    @classmethod
    def read(cls, function_id: str, data: Json) -> "Request":
        """Take the payload of a call apart; keys that nobody asks for are ignored."""
        fields = members(data.raw)
        if fields is None:
            raise bad_input(function_id, "the input must be a JSON object")
        return cls(function_id, fields)

    def text(self, name: str) -> str:
        """A required string, which may be empty."""
        value = self.optional_text(name)
        if value is None:
            raise self._missing(name)
        return value

    def optional_text(self, name: str) -> str | None:
        """A string; None when the key is missing or null."""
        value = self._value(name)
        if value is not None and not isinstance(value, str):
            raise bad_input(self.function_id, f"`{name}` must be a string")
        return value

    def either_text(self, name: str, alias: str) -> str:
        """A required string that goes by two names."""
        if name in self.fields and alias in self.fields:
            raise bad_input(self.function_id, f"duplicate field `{name}`: `{alias}` is another name for it; give one")
        return self.text(alias if alias in self.fields else name)

    def count(self, name: str, default: int) -> int:
        """A number of things, 0 or more; `default` when the key is missing or null."""
        value = self._value(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise bad_input(self.function_id, f"`{name}` must be a whole number, 0 or more")
        return value

    def payload(self, name: str) -> Json:
        """A required value of any kind, null included, as the text that was sent."""
        raw = self.fields.get(name)
        if raw is None:
            raise self._missing(name)
        return Json(bytes(raw))

    def _value(self, name: str) -> Any:
        raw = self.fields.get(name)
        if raw is None:
            return None
        try:
            return Json(bytes(raw)).decode()
        except JsonError as error:
            raise bad_input(self.function_id, f"`{name}`: {error}") from None

    def _missing(self, name: str) -> InvalidInput:
        return bad_input(self.function_id, f"missing field `{name}`")
