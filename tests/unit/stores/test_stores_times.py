"""Conformance of `KeyValue`: times of keys, scans and pages, entries beside a write; and how they stand in a file."""

import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import Change, Entry, Expired, Fsync, Store, WaitingKeyValue, open_sqlite, settle, sqlite_file


async def test_a_key_whose_time_is_up_is_not_read_and_counts_for_writes(kv: WaitingKeyValue) -> None:
    await kv.set("s", "k", b"1", expires_at_ms=100)
    await kv.set("s", "stays", b"2")
    for now_ms, value in ((0, b"1"), (99, b"1"), (100, None), (101, None)):
        assert await kv.get("s", "k", now_ms=now_ms) == value
        assert await kv.scan("s", list, now_ms=now_ms) == [*([("k", b"1")] if value else []), ("stays", b"2")]
    assert await kv.values("s") == [b"1", b"2"]
    assert await kv.set("s", "k", b"3") == b"1"
    assert await kv.get("s", "k", now_ms=1000) == b"3"


async def test_an_update_keeps_the_time_or_gives_another(kv: WaitingKeyValue) -> None:
    await kv.set("s", "kept", b"1", expires_at_ms=100)
    await kv.set("s", "given", b"1", expires_at_ms=100)
    await kv.set("s", "unchanged", b"1", expires_at_ms=100)
    await kv.update("s", "kept", lambda _: Change(b"2", None))
    await kv.update("s", "given", lambda _: Change(b"2", None), expires_at_ms=300)
    await kv.update("s", "unchanged", lambda _: Change(None, None), expires_at_ms=300)
    await kv.update("s", "new", lambda _: Change(b"2", None), expires_at_ms=200)
    assert [key for key, _ in await kv.scan("s", list, now_ms=100)] == ["given", "new"]
    assert [key for key, _ in await kv.scan("s", list, now_ms=200)] == ["given"]
    assert await kv.next_expiry() == 100


async def test_expire_removes_what_is_due_the_earliest_first(kv: WaitingKeyValue, store: Store) -> None:
    assert await kv.expire(10**15, 10) == Expired((), None)
    assert await kv.next_expiry() is None
    for key, due_ms in (("c", 30), ("a", 10), ("b", 20), ("d", 1000)):
        await kv.set("s", key, key.encode(), expires_at_ms=due_ms)
    await kv.set("s", "a", b"a", expires_at_ms=10)
    await kv.set("s", "b", b"b")
    await kv.set("s", "b", b"b", expires_at_ms=20)
    await WaitingKeyValue(store.key_value("other")).set("s", "x", b"x", expires_at_ms=1)
    assert await kv.next_expiry() == 10
    assert await kv.expire(30, 2) == Expired((("s", "a", b"a"), ("s", "b", b"b")), 30)
    assert await kv.expire(30, 10, place=("s", "d")) == Expired((), None)
    assert await kv.expire(30, 10, place=("s", "c")) == Expired((("s", "c", b"c"),), None)
    assert await kv.expire(999, 10) == Expired((), 1000)
    assert await kv.expire(2000, 10) == Expired((("s", "d", b"d"),), None)
    assert await kv.scopes() == []
    assert await WaitingKeyValue(store.key_value("other")).values("s") == [b"x"]


async def test_scopes_of_keys_that_are_due_are_not_listed(kv: WaitingKeyValue) -> None:
    await kv.set("due", "k", b"1", expires_at_ms=10)
    await kv.set("both", "k", b"1", expires_at_ms=10)
    await kv.set("both", "l", b"1")
    assert await kv.scopes(now_ms=9) == ["both", "due"]
    assert await kv.scopes(now_ms=10) == ["both"]
    assert await kv.scopes() == ["both", "due"]


async def test_a_scan_reads_only_as_far_as_it_looks(kv: WaitingKeyValue) -> None:
    for number in range(50):
        await kv.set("s", f"{number:02}", b"%d" % number)

    def first(count: int, items: Iterable[tuple[str, bytes]]) -> list[str]:
        return [key for (key, _), _ in zip(items, range(count), strict=False)]

    assert await kv.scan("s", partial(first, 3)) == ["00", "01", "02"]
    assert await kv.scan("s", partial(first, 2), by_key=True, after="10") == ["11", "12"]
    assert await kv.scan("s", partial(first, 99), by_key=True, prefix="4") == [f"4{n}" for n in range(10)]
    assert await kv.scan("s", partial(first, 99), prefix="4") == [f"4{n}" for n in range(10)]
    assert await kv.scan("none", partial(first, 3), by_key=True) == []

    def refuse(_: Iterable[tuple[str, bytes]]) -> None:
        raise StoreError("too much")

    with pytest.raises(StoreError, match="too much"):
        await kv.scan("s", refuse)


async def test_what_stands_beside_a_write_is_written_with_it_or_not_at_all(store: Store) -> None:
    handle = store.key_value("state")
    kv, notes = WaitingKeyValue(handle), WaitingKeyValue(handle.sibling("notes"))

    def note(old: bytes | None, new: bytes | None) -> Sequence[Entry]:
        return [Entry("notes", "n", f"{old!r} {new!r}", b"1")]

    def refuse(old: bytes | None, new: bytes | None) -> Sequence[Entry]:
        raise StoreError("not now")

    async def noted() -> list[str]:
        return [key for key, _ in await notes.items("n")]

    await kv.set("s", "k", b"1", beside=note)
    await kv.set("s", "k", b"2", beside=note)
    await kv.update("s", "k", lambda _: Change(b"3", None), beside=note)
    await kv.update("s", "k", lambda _: Change(None, None), beside=note)
    await kv.delete("s", "k", beside=note)
    await kv.delete("s", "k", beside=note)
    expected = ["None b'1'", "b'1' b'2'", "b'2' b'3'", "b'3' None", "None None"]
    assert await noted() == expected
    await kv.set("s", "k", b"4")
    for refused in (
        kv.set("s", "k", b"5", beside=refuse),
        kv.delete("s", "k", beside=refuse),
        kv.update("s", "k", lambda _: Change(b"5", None), beside=refuse),
    ):
        with pytest.raises(StoreError, match="not now"):
            await refused
    assert (await kv.get("s", "k"), await noted()) == (b"4", expected)
    await kv.set("s", "k", b"4", expires_at_ms=1)
    gone: Expired = await settle(
        lambda done: handle.expire(5, 10, done, beside=lambda *one: [Entry("notes", "n", repr(one), b"1")])
    )
    assert gone == Expired((("s", "k", b"4"),), None)
    assert await noted() == [*expected, "('s', 'k', b'4')"]


async def test_a_damaged_row_in_the_place_of_an_entry_makes_room_for_it(tmp_path: Path) -> None:
    def entries(value: bytes, _old: bytes | None, _new: bytes | None) -> list[Entry]:
        return [Entry("notes", "n", "k", value)]

    path = tmp_path / "store.db"
    async with open_sqlite(path, inline=True) as store:
        kv, notes = WaitingKeyValue(store.key_value("state")), WaitingKeyValue(store.key_value("notes"))
        writes: list[Callable[[Any], Awaitable[object]]] = [
            lambda beside: kv.set("s", "k", b"1", beside=beside),
            lambda beside: kv.update("s", "k", lambda _: Change(b"2", None), beside=beside),
            lambda beside: kv.delete("s", "k", beside=beside),
        ]
        for number, write in enumerate(writes):
            await notes.set("n", "k", b"old")
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute("UPDATE kv SET value = x'00' WHERE space = 'notes'")
            await write(partial(entries, b"%d" % number))
            assert await notes.items("n") == [("k", b"%d" % number)]


async def test_too_large_an_entry_beside_a_write_fails_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_trio.stores.handles.MAX_VALUE", 10)
    kv = WaitingKeyValue(store.key_value("state"))
    await kv.set("s", "k", b"1")
    with pytest.raises(StoreError, match="11 bytes"):
        await kv.set("s", "k", b"2", beside=lambda *_: [Entry("notes", "n", "k", b"x" * 11)])
    assert await kv.get("s", "k") == b"1"


async def test_a_long_read_sees_the_writes_before_it_and_holds_up_none_after_it(tmp_path: Path) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def look(items: Iterable[tuple[str, bytes]]) -> list[bytes]:
        values = [value for _, value in items]
        reading.set()
        assert go_on.wait(20)
        return values

    async with open_sqlite(tmp_path / "store.db") as store:
        kv = store.key_value("state")
        answers: list[Any] = []
        for number in range(20):
            kv.set("s", str(number), b"%d" % number, lambda _: None)
        kv.scan("s", look, lambda result: answers.append(result.unwrap()))
        await trio.to_thread.run_sync(reading.wait)
        assert await WaitingKeyValue(kv).set("s", "late", b"late") is None  # while the read is still looking
        assert answers == []
        go_on.set()
        assert len(await WaitingKeyValue(kv).values("s")) == 21
        assert answers == [[b"%d" % number for number in range(20)]]


async def test_times_are_on_disk_and_under_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite(path, fsync=Fsync.NEVER) as store:
        kv = WaitingKeyValue(store.key_value("state"))
        await kv.set("s", "timed", b"1", expires_at_ms=100)
        await kv.set("s", "turned", b"2", expires_at_ms=200)
        await kv.set("s", "plain", b"3")
    connection = sqlite3.connect(path)
    connection.execute("UPDATE kv SET expires_at_ms = 300 WHERE key = 'turned'")
    connection.commit()
    connection.close()
    async with open_sqlite(path, fsync=Fsync.NEVER, check_first=True) as store:
        assert store.statistics().set_aside == 1
        kv = WaitingKeyValue(store.key_value("state"))
        assert await kv.scan("s", list, now_ms=99) == [("timed", b"1"), ("plain", b"3")]
        assert (await kv.next_expiry(), await kv.get("s", "timed", now_ms=100)) == (100, None)


async def test_a_row_that_is_damaged_while_open_holds_up_no_other(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with open_sqlite(path, fsync=Fsync.NEVER) as store:
        kv = WaitingKeyValue(store.key_value("state"))
        await kv.set("s", "bad", b"1", expires_at_ms=10)
        await kv.set("s", "good", b"2", expires_at_ms=20)
        connection = sqlite3.connect(path)
        connection.execute("UPDATE kv SET value = x'39' WHERE key = 'bad'")
        connection.commit()
        connection.close()
        assert await kv.expire(50, 10) == Expired((("s", "good", b"2"),), None)


async def test_a_file_from_before_there_were_times_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    for statement in sqlite_file.MIGRATIONS[0]:
        connection.execute(statement)
    row = (1, "state", "s", "k", b"old", sqlite_file.sqlite_kv.checksum((1, "state", "s", "k"), b"old"))
    connection.execute("INSERT INTO kv (pos, space, scope, key, value, checksum) VALUES (?, ?, ?, ?, ?, ?)", row)
    connection.execute(f"PRAGMA application_id = {sqlite_file.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.commit()
    connection.close()
    async with open_sqlite(path, fsync=Fsync.NEVER) as store:
        kv = WaitingKeyValue(store.key_value("state"))
        assert store.statistics().set_aside == 0
        assert await kv.get("s", "k", now_ms=10**15) == b"old"
        assert await kv.set("s", "k", b"new", expires_at_ms=5) == b"old"
        assert await kv.next_expiry() == 5
