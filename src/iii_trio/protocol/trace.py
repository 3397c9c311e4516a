"""Trace context as strings: what an executor is told of its caller's baggage (spec/protocol.md §7.5)."""

FUNCTION_ENTRY = "iii.function.id"
_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~:!$&'()*+/<>?@[]^`{|}#")


def escape(value: str) -> str:
    """A baggage value: characters outside the W3C set are percent-encoded as UTF-8."""
    if _SAFE.issuperset(value):
        return value
    return "".join(c if c in _SAFE else "".join(f"%{byte:02X}" for byte in c.encode()) for c in value)


def with_function(baggage: str | None, function_id: str) -> str:
    """`baggage` with its `iii.function.id` entry replaced or added; every other entry is kept as it stood."""
    entry = f"{FUNCTION_ENTRY}={escape(function_id)}"
    if not baggage:
        return entry
    kept = [part for part in baggage.split(",") if part.partition("=")[0].strip() != FUNCTION_ENTRY and part.strip()]
    return ",".join([*kept, entry])
