"""Reading what a built-in was given: the fields of a call's payload or of a binding's config, one error for each misfit.

Functions answer misfits with `deserialization_error` (spec/state-stream.md §1.2), trigger types refuse the binding with
`trigger_registration_failed` (§5); the detail names the field and what was found in it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from ..engine import Binding, Call
from ..protocol import Json, JsonError
from ..protocol.errors import TriggerRejected, WireError, bad_input

Refuse = Callable[[str], WireError]


def object_schema(title: str, properties: Mapping[str, Any], required: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON Schema (draft-07) of an object as built-ins publish it; further properties are allowed."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
    }


@frozen
class Fields:
    """The fields of one JSON object; unknown ones are ignored. Every method raises what `refuse` makes of the detail."""

    values: Mapping[str, Any]
    refuse: Refuse

    def text(self, name: str) -> str:
        """A string that must be there; it may be empty."""
        if name not in self.values:
            raise self.refuse(f"missing field `{name}`")
        value = self.values[name]
        if not isinstance(value, str):
            raise self._misfit(name, value, "a string")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A string, or None when the field is missing or null."""
        return None if self.values.get(name) is None else self.text(name)

    def texts_or_none(self, name: str) -> list[str] | None:
        """An array of strings, or None when the field is missing or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._misfit(name, value, "an array of strings")
        return value

    def flag(self, name: str) -> bool:
        """A boolean; False when the field is missing or null."""
        value = self.values.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self._misfit(name, value, "a boolean")
        return value

    def whole_or_none(self, name: str, most: int) -> int | None:
        """A whole number from 1 to `most`, or None when the field is missing or null."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._misfit(name, value, "a whole number")
        if not 1 <= value <= most:
            raise self.refuse(f"field `{name}`: {_shown(value)} is not between 1 and {most}")
        return value

    def array(self, name: str) -> list[Any]:
        """An array that must be there."""
        value = self.json(name)
        if not isinstance(value, list):
            raise self._misfit(name, value, "an array")
        return value

    def json(self, name: str, *aliases: str) -> Any:
        """Any JSON value, null too, but the field must be there under one of its names; the first one wins."""
        for candidate in (name, *aliases):
            if candidate in self.values:
                return self.values[candidate]
        raise self.refuse(f"missing field `{name}`")

    def function_id(self, name: str) -> str | None:
        """The id of a function, or None when the field is missing or null. An empty one can name no function."""
        value = self.text_or_none(name)
        if value == "":
            raise self.refuse(f"field `{name}` is empty: give it a function id, or leave it out")
        return value

    def _misfit(self, name: str, value: Any, expected: str) -> WireError:
        return self.refuse(f"field `{name}`: invalid type: {_shown(value)}, expected {expected}")


def call_fields(call: Call, data: Json, *, optional: bool = False) -> Fields:
    """The payload of a call. With `optional` a payload of null, or none at all, is an object without fields."""

    def refuse(detail: str) -> WireError:
        return bad_input(call.function.id, detail)

    return Fields(_object(data, refuse, optional), refuse)


def config_fields(binding: Binding, summary: str = "Failed to parse trigger config") -> Fields:
    """The config of a binding; `summary` begins the text of every refusal."""

    def refuse(detail: str) -> WireError:
        return TriggerRejected(f"{summary}: {detail}")

    return Fields(_object(binding.config, refuse, optional=False), refuse)


def _object(data: Json, refuse: Refuse, optional: bool) -> Mapping[str, Any]:
    try:
        value = data.decode()
    except JsonError as error:
        raise refuse(str(error)) from None
    if value is None and optional:
        return {}
    if not isinstance(value, dict):
        raise refuse(f"invalid type: {_shown(value)}, expected an object")
    return value


def _shown(value: Any) -> str:
    """A value as an error names it: its kind, and itself where that is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`" if value.bit_length() <= 64 else "an integer"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"
