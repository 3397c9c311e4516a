"""What a store file holds as plain rows, for people and other programs; also of a file that an engine is using."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import time_ns
from typing import Any

from ..protocol.errors import StoreError
from .sqlite_file import APPLICATION_ID

_JOBS = "seq, id, queue, namespace, function_id, attempts, max_attempts, created_at_ms, due_at_ms, group_id, payload"


def export_values(path: Path, space: str) -> Iterator[dict[str, Any]]:
    """Every value of one space in the order in which the keys were first set: `{scope, key, value, expires_at_ms?}`.

    A key that has a time (Unix ms) comes with it; one whose time is up is left out, as readers do not see it either. A
    value that is no JSON comes as `{"hex": …}`. All rows are of one moment. Raises `StoreError`.
    """
    # by `*`, for a backup may be older than the column of the times
    statement = "SELECT * FROM kv WHERE space = ? ORDER BY pos"
    now_ms = time_ns() // 1_000_000
    for row in _rows(path, statement, (space,)):
        shown = {"scope": row["scope"], "key": row["key"], "value": _value(row["value"])}
        expires_at_ms = row["expires_at_ms"] if "expires_at_ms" in row.keys() else None  # noqa: SIM118 (a row is no dict)
        if expires_at_ms is None:
            yield shown
        elif expires_at_ms > now_ms:
            yield {**shown, "expires_at_ms": expires_at_ms}


def export_streams(path: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """Every item of the spaces that begin with `prefix`, stream by stream: `{stream_name, group_id, item_id, data}`.

    Within a stream in the order in which the items were first set. As `export_values` otherwise.
    """
    statement = "SELECT space, scope, key, value FROM kv WHERE substr(space, 1, length(?)) = ? ORDER BY space, pos"
    for space, scope, key, value in _rows(path, statement, (prefix, prefix)):
        stream = space.removeprefix(prefix)
        yield {"stream_name": stream, "group_id": scope, "item_id": key, "data": _value(value)}


def export_jobs(path: Path) -> Iterator[dict[str, Any]]:
    """Every waiting message, then every dead letter, oldest first. Times are Unix ms. Raises `StoreError`.

    `{status: "waiting" | "dead", id, queue, namespace, function_id, attempts, max_attempts, created_at_ms, due_at_ms,
    group_id, payload}`; dead letters have `error` and `failed_at_ms` too. Messages being handled count as waiting.
    """
    both = (
        f"SELECT 0 AS dead, {_JOBS}, NULL AS error, NULL AS failed_at_ms FROM jobs UNION ALL "
        f"SELECT 1, {_JOBS}, error, failed_at_ms FROM dead ORDER BY 1, 2"
    )
    names = _JOBS.split(", ")[1:]
    for dead, _, *columns, error, failed_at_ms in _rows(path, both):
        row = {"status": "dead" if dead else "waiting", **dict(zip(names, columns, strict=True))}
        row["payload"] = _value(row["payload"])
        yield {**row, "error": _error(error), "failed_at_ms": failed_at_ms} if dead else row


def _rows(path: Path, statement: str, values: tuple[str, ...] = ()) -> Iterator[Any]:
    if not path.is_file():
        raise StoreError(f"There is no store in {path}.")
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise StoreError(f"{path} is the database of another program.")
            connection.execute("PRAGMA query_only = ON")
            connection.row_factory = sqlite3.Row
            yield from connection.execute(statement, values)
    except sqlite3.Error as error:
        raise StoreError(f"{path} could not be read: {error}.") from error


def _value(value: bytes) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return {"hex": value.hex()}


def _error(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text
