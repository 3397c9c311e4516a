"""What callers send to the queue's functions: top-level fields, taken apart without decoding the payload among them."""

from typing import Any

from attrs import frozen

from ...protocol import NULL, Json, JsonError, codec
from ...protocol.errors import InvalidInput, bad_input
from ...protocol.limits import QUEUE_NAME_CHARS


@frozen
class Request:
    """An object sent to `function_id`. Its methods raise `InvalidInput`, with code `deserialization_error`."""

    function_id: str
    fields: dict[str, bytes]

    @classmethod
    def read(cls, function_id: str, data: Json) -> "Request":
        """Take the payload of a call apart; keys that nobody asks for are ignored."""
        fields = codec.members(data.raw)
        if fields is None:
            raise bad_input(function_id, "the input must be a JSON object")
        return cls(function_id, fields)

    def text(self, name: str) -> str:
        """A required string, which may be empty."""
        value = self.optional_text(name)
        if value is None:
            raise self._missing(name)
        return value

    def optional_text(self, name: str, most: int | None = QUEUE_NAME_CHARS) -> str | None:
        """A string of at most so many characters; None when the key is missing or null."""
        if name not in self.fields:
            return None
        value = self.value(name)
        if value is not None and not isinstance(value, str):
            raise bad_input(self.function_id, f"`{name}` must be a string")
        if value is not None and most is not None and len(value) > most:
            raise bad_input(self.function_id, f"`{name}` has {len(value)} characters; {most} are the most")
        return value

    def either_text(self, name: str, alias: str) -> str:
        """A required string that goes by two names."""
        if name in self.fields and alias in self.fields:
            raise bad_input(self.function_id, f"duplicate field `{name}`: `{alias}` is another name for it; give one")
        return self.text(alias if alias in self.fields else name)

    def count(self, name: str, default: int) -> int:
        """A number of things, 0 or more; `default` when the key is missing or null."""
        value = self.optional_count(name)
        return default if value is None else value

    def optional_count(self, name: str, most: int | None = None) -> int | None:
        """A number of things, 0 or more and no more than `most`; None when the key is missing or null."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise bad_input(self.function_id, f"`{name}` must be a whole number, 0 or more")
        if most is not None and value > most:
            raise bad_input(self.function_id, f"`{name}` must be at most {most}")
        return value

    def value(self, name: str) -> Any:
        """A value of any kind, decoded; None when the key is missing or null."""
        raw = self.fields.get(name)
        if raw is None:
            return None
        try:
            return Json(raw).decode()
        except JsonError as error:
            raise bad_input(self.function_id, f"`{name}`: {error}") from None

    def payload(self, name: str) -> Json:
        """A required value of any kind, null included, as the text that was sent."""
        raw = self.fields.get(name)
        if raw is None:
            raise self._missing(name)
        return Json(raw)

    def payload_or_null(self, name: str) -> Json:
        """A value of any kind, null when the key is missing."""
        return self.payload(name) if name in self.fields else NULL

    def _missing(self, name: str) -> InvalidInput:
        return bad_input(self.function_id, f"missing field `{name}`")
