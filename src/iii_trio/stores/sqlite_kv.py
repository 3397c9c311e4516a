"""Key-value in SQLite: one table, where `pos` keeps the order in which keys were first set."""

import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

from .checksums import checksum, damaged
from .key_value import Change, Updated
from .results import A, RowDamaged

SCHEMA: Final = (
    """CREATE TABLE kv (pos INTEGER PRIMARY KEY, space TEXT NOT NULL, scope TEXT NOT NULL, key TEXT NOT NULL,
    value BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT""",
    "CREATE UNIQUE INDEX kv_key ON kv(space, scope, key)",
)
EXPIRY: Final = (
    "ALTER TABLE kv ADD COLUMN expires_at_ms INTEGER",
    "CREATE INDEX kv_expiry ON kv(space, expires_at_ms) WHERE expires_at_ms IS NOT NULL",
)
"""The second version: keys may have a time (Unix ms)."""

COLUMNS: Final = "pos, space, scope, key, value, expires_at_ms, checksum"

_FIND: Final = "SELECT pos, value, expires_at_ms, checksum FROM kv WHERE space = ? AND scope = ? AND key = ?"
_ITEMS: Final = "SELECT pos, key, value, expires_at_ms, checksum FROM kv WHERE space = ? AND scope = ?"
_CHANGE: Final = "UPDATE kv SET value = ?, expires_at_ms = ?, checksum = ? WHERE pos = ?"
_ADD: Final = "INSERT INTO kv (pos, space, scope, key, value, expires_at_ms, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)"
_DUE: Final = "expires_at_ms IS NOT NULL AND expires_at_ms <= ?"

Row = tuple[int, bytes, int | None]
"""Place in the order, value, and when its time is up."""


def sound(row: tuple[Any, ...]) -> bool:
    """Whether a row of `COLUMNS` matches its checksum."""
    pos, space, scope, key, value, expires_at_ms, expected = row
    return bool(_checksum(pos, space, scope, key, value, expires_at_ms) == expected)


def _checksum(pos: int, space: str, scope: str, key: str, value: bytes, expires_at_ms: int | None) -> int:
    # a row without a time has the checksum that it had before there were any
    names = (pos, space, scope, key)
    return checksum(names if expires_at_ms is None else (*names, expires_at_ms), value)


class SqliteKeyValueTable:
    """`KeyValueTable` on one connection. Only one of a file's connections writes."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._next_pos: int = self._execute("SELECT coalesce(max(pos), 0) + 1 FROM kv").fetchone()[0]

    def get(self, space: str, scope: str, key: str, now_ms: int = 0) -> bytes | None:
        """See `KeyValue.get`."""
        found = self._find(space, scope, key)
        if found is None or (found[2] is not None and found[2] <= now_ms):
            return None
        return found[1]

    def set(self, space: str, scope: str, key: str, value: bytes, expires_at_ms: int | None = None) -> bytes | None:
        """See `KeyValue.set`."""
        found = self._find(space, scope, key)
        self._store(found, space, scope, key, value, expires_at_ms)
        return found and found[1]

    def delete(self, space: str, scope: str, key: str) -> bytes | None:
        """See `KeyValue.delete`."""
        found = self._find(space, scope, key)
        if found is None:
            return None
        self._execute("DELETE FROM kv WHERE pos = ?", (found[0],))
        return found[1]

    def drop(self, space: str, scope: str, key: str) -> None:
        """See `KeyValueTable.drop`."""
        self._execute("DELETE FROM kv WHERE space = ? AND scope = ? AND key = ?", (space, scope, key))

    def update(
        self,
        space: str,
        scope: str,
        key: str,
        change: Callable[[bytes | None], Change[A]],
        expires_at_ms: int | None = None,
    ) -> Updated[A]:
        """See `KeyValue.update`."""
        found = self._find(space, scope, key)
        old = found and found[1]
        decided = change(old)
        if decided.write is not None:
            until_ms = found[2] if expires_at_ms is None and found is not None else expires_at_ms
            self._store(found, space, scope, key, decided.write, until_ms)
        return Updated(old=old, new=old if decided.write is None else decided.write, answer=decided.answer)

    def items(self, space: str, scope: str, now_ms: int = 0) -> Iterator[tuple[str, bytes]]:
        """See `KeyValueTable.items`."""
        return self._items(self._execute(f"{_ITEMS} ORDER BY pos", (space, scope)), space, scope, now_ms)

    def sorted_items(
        self, space: str, scope: str, prefix: str, after: str | None, now_ms: int
    ) -> Iterator[tuple[str, bytes]]:
        """See `KeyValueTable.sorted_items`."""
        if after is not None and after >= prefix:
            rows = self._execute(f"{_ITEMS} AND key > ? ORDER BY key", (space, scope, after))
        else:
            rows = self._execute(f"{_ITEMS} AND key >= ? ORDER BY key", (space, scope, prefix))
        for key, value in self._items(rows, space, scope, now_ms):
            if not key.startswith(prefix):
                return
            yield key, value

    def scopes(
        self, space: str, prefix: str = "", after: str | None = None, limit: int | None = None, now_ms: int = 0
    ) -> list[str]:
        """See `KeyValue.scopes`: one step in the index for each scope, however many keys it holds."""
        answer: list[str] = []
        # without a key that is due, and none lies about for long, no row has to be looked at
        due = self._execute(f"SELECT 1 FROM kv WHERE space = ? AND {_DUE} LIMIT 1", (space, now_ms)).fetchone()
        more, scope = ">=", prefix
        if after is not None and after >= prefix:
            more, scope = ">", after
        while limit is None or len(answer) < limit:
            statement = f"SELECT scope FROM kv WHERE space = ? AND scope {more} ? ORDER BY scope LIMIT 1"
            row = self._execute(statement, (space, scope)).fetchone()
            if row is None or not row[0].startswith(prefix):
                break
            more, scope = ">", row[0]
            if due is None or self._holds(space, scope, now_ms):
                answer.append(scope)
        return answer

    def _holds(self, space: str, scope: str, now_ms: int) -> bool:
        statement = f"SELECT 1 FROM kv WHERE space = ? AND scope = ? AND NOT ({_DUE}) LIMIT 1"
        return self._execute(statement, (space, scope, now_ms)).fetchone() is not None

    def due(self, space: str, now_ms: int, limit: int) -> list[tuple[str, str, bytes]]:
        """See `KeyValueTable.due`. Damaged rows stay for whoever asks for them, or opens the file next."""
        statement = f"SELECT {COLUMNS} FROM kv WHERE space = ? AND {_DUE} ORDER BY expires_at_ms"
        rows = (row for row in self._execute(statement, (space, now_ms)) if sound(row))
        return [row[2:5] for row in islice(rows, limit)]

    def next_expiry(self, space: str, after_ms: int = -1) -> int | None:
        """See `KeyValueTable.next_expiry`."""
        statement = "SELECT min(expires_at_ms) FROM kv WHERE space = ? AND expires_at_ms > ?"
        due_ms: int | None = self._execute(statement, (space, after_ms)).fetchone()[0]
        return due_ms

    def directory(self, prefix: str) -> list[tuple[str, str]]:
        """See `Store.directory`."""
        rows = self._execute("SELECT DISTINCT space, scope FROM kv WHERE space >= ? ORDER BY space, scope", (prefix,))
        answer = []
        for space, scope in rows:
            if not space.startswith(prefix):
                break
            answer.append((space, scope))
        return answer

    def _items(self, rows: sqlite3.Cursor, space: str, scope: str, now_ms: int) -> Iterator[tuple[str, bytes]]:
        for pos, key, value, expires_at_ms, expected in rows:
            if _checksum(pos, space, scope, key, value, expires_at_ms) != expected:
                raise _damaged(scope, key, pos, named=False)
            if expires_at_ms is None or expires_at_ms > now_ms:
                yield key, value

    def _find(self, space: str, scope: str, key: str) -> Row | None:
        row = self._execute(_FIND, (space, scope, key)).fetchone()
        if row is None:
            return None
        pos, value, expires_at_ms, expected = row
        if _checksum(pos, space, scope, key, value, expires_at_ms) != expected:
            raise _damaged(scope, key, pos, named=True)
        return pos, value, expires_at_ms

    def _store(
        self, found: Row | None, space: str, scope: str, key: str, value: bytes, expires_at_ms: int | None
    ) -> None:
        if found is not None:
            pos = found[0]
            row = (value, expires_at_ms, _checksum(pos, space, scope, key, value, expires_at_ms), pos)
            self._execute(_CHANGE, row)
            return
        pos = self._next_pos
        self._next_pos += 1
        total = _checksum(pos, space, scope, key, value, expires_at_ms)
        self._execute(_ADD, (pos, space, scope, key, value, expires_at_ms, total))


def _damaged(scope: str, key: str, pos: int, *, named: bool) -> RowDamaged:
    return damaged(f"value of key {key!r} in scope {scope!r}", "kv", pos, named=named)
