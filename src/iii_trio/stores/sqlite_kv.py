"""Key-value in SQLite: one table, where `pos` keeps the order in which keys were first set."""

import sqlite3
from collections.abc import Callable
from typing import Any, Final

from .checksums import checksum, damaged
from .interfaces import A, Change, Updated

SCHEMA: Final = (
    """CREATE TABLE kv (pos INTEGER PRIMARY KEY, space TEXT NOT NULL, scope TEXT NOT NULL, key TEXT NOT NULL,
    value BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT""",
    "CREATE UNIQUE INDEX kv_key ON kv(space, scope, key)",
)
COLUMNS: Final = "pos, space, scope, key, value, checksum"


def sound(row: tuple[Any, ...]) -> bool:
    """Whether a row of `COLUMNS` matches its checksum."""
    pos, space, scope, key, value, expected = row
    return bool(checksum((pos, space, scope, key), value) == expected)


class SqliteKeyValueTable:
    """`KeyValueTable` on one connection. Only one of a file's connections writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._next_pos: int = self._execute("SELECT coalesce(max(pos), 0) + 1 FROM kv").fetchone()[0]

    def get(self, space: str, scope: str, key: str) -> bytes | None:
        """See `KeyValue.get`."""
        found = self._find(space, scope, key)
        return found and found[1]

    def set(self, space: str, scope: str, key: str, value: bytes) -> bytes | None:
        """See `KeyValue.set`."""
        found = self._find(space, scope, key)
        self._store(found, space, scope, key, value)
        return found and found[1]

    def delete(self, space: str, scope: str, key: str) -> bytes | None:
        """See `KeyValue.delete`."""
        found = self._find(space, scope, key)
        if found is None:
            return None
        self._execute("DELETE FROM kv WHERE pos = ?", (found[0],))
        return found[1]

    def update(self, space: str, scope: str, key: str, change: Callable[[bytes | None], Change[A]]) -> Updated[A]:
        """See `KeyValue.update`."""
        found = self._find(space, scope, key)
        old = found and found[1]
        decided = change(old)
        if decided.write is not None:
            self._store(found, space, scope, key, decided.write)
        return Updated(old=old, new=old if decided.write is None else decided.write, answer=decided.answer)

    def items(self, space: str, scope: str) -> list[tuple[str, bytes]]:
        """See `KeyValue.items`."""
        rows = self._execute(
            "SELECT pos, key, value, checksum FROM kv WHERE space = ? AND scope = ? ORDER BY pos", (space, scope)
        )
        answer = []
        for pos, key, value, expected in rows:
            if checksum((pos, space, scope, key), value) != expected:
                raise damaged(f"value of key {key!r} in scope {scope!r}")
            answer.append((key, value))
        return answer

    def scopes(self, space: str) -> list[str]:
        """See `KeyValue.scopes`."""
        rows = self._execute("SELECT DISTINCT scope FROM kv WHERE space = ? ORDER BY scope", (space,))
        return [scope for (scope,) in rows]

    def directory(self, prefix: str) -> list[tuple[str, str]]:
        """See `Store.directory`."""
        rows = self._execute("SELECT DISTINCT space, scope FROM kv WHERE space >= ? ORDER BY space, scope", (prefix,))
        answer = []
        for space, scope in rows:
            if not space.startswith(prefix):
                break
            answer.append((space, scope))
        return answer

    def _find(self, space: str, scope: str, key: str) -> tuple[int, bytes] | None:
        row = self._execute(
            "SELECT pos, value, checksum FROM kv WHERE space = ? AND scope = ? AND key = ?", (space, scope, key)
        ).fetchone()
        if row is None:
            return None
        pos, value, expected = row
        if checksum((pos, space, scope, key), value) != expected:
            raise damaged(f"value of key {key!r} in scope {scope!r}")
        return pos, value

    def _store(self, found: tuple[int, bytes] | None, space: str, scope: str, key: str, value: bytes) -> None:
        if found is not None:
            pos = found[0]
            row = (value, checksum((pos, space, scope, key), value), pos)
            self._execute("UPDATE kv SET value = ?, checksum = ? WHERE pos = ?", row)
            return
        pos = self._next_pos
        self._next_pos += 1
        self._execute(
            "INSERT INTO kv (pos, space, scope, key, value, checksum) VALUES (?, ?, ?, ?, ?, ?)",
            (pos, space, scope, key, value, checksum((pos, space, scope, key), value)),
        )
