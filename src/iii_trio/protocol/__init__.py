"""The wire protocol: messages, codec, payloads, errors and bounds. No I/O and no state."""

from .json import ABSENT, EMPTY_OBJECT, NULL, Json, JsonError

__all__ = ["ABSENT", "EMPTY_OBJECT", "NULL", "Json", "JsonError"]
