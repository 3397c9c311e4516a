"""Conformance of `KeyValue`: what each operation answers, the same for every store."""

from functools import partial

import pytest

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import Change, Store, Updated, WaitingKeyValue, settle

AWKWARD = [
    "",
    " ",
    "a",
    "A",
    "ä",
    "a.b",
    "a/b",
    "a\x00b",
    "\x00",
    "%",
    "'; DROP TABLE kv; --",
    "\U0001f600",
    "x" * 5000,
]


async def test_get_of_a_missing_key_is_none(kv: WaitingKeyValue) -> None:
    assert await kv.get("s", "k") is None


async def test_set_answers_the_previous_value(kv: WaitingKeyValue) -> None:
    assert await kv.set("s", "k", b"1") is None
    assert await kv.set("s", "k", b"2") == b"1"
    assert await kv.get("s", "k") == b"2"


async def test_stored_null_and_empty_bytes_are_values(kv: WaitingKeyValue) -> None:
    await kv.set("s", "null", b"null")
    await kv.set("s", "empty", b"")
    assert await kv.get("s", "null") == b"null"
    assert await kv.get("s", "empty") == b""
    assert await kv.set("s", "empty", b"x") == b""
    assert await kv.values("s") == [b"null", b"x"]


async def test_delete_answers_the_removed_value(kv: WaitingKeyValue) -> None:
    await kv.set("s", "k", b"1")
    assert await kv.delete("s", "k") == b"1"
    assert await kv.delete("s", "k") is None
    assert await kv.delete("unknown", "k") is None
    assert await kv.get("s", "k") is None


async def test_delete_of_an_empty_value_removes_it(kv: WaitingKeyValue) -> None:
    await kv.set("s", "k", b"")
    assert await kv.delete("s", "k") == b""
    assert await kv.scopes() == []


async def test_listing_keeps_the_order_in_which_keys_were_first_set(kv: WaitingKeyValue) -> None:
    for key in ("c", "a", "b", "d"):
        await kv.set("s", key, key.encode())
    await kv.set("s", "a", b"again")
    await kv.delete("s", "b")
    await kv.set("s", "b", b"last")
    await kv.set("other", "z", b"z")
    assert await kv.items("s") == [("c", b"c"), ("a", b"again"), ("d", b"d"), ("b", b"last")]
    assert await kv.values("s") == [b"c", b"again", b"d", b"last"]


async def test_listing_an_unknown_scope_is_empty(kv: WaitingKeyValue) -> None:
    assert await kv.values("nope") == []
    assert await kv.items("nope") == []


async def test_scopes_are_sorted_and_forgotten_when_empty(kv: WaitingKeyValue) -> None:
    for scope in ("b", "", "a", "\U0001f600", "\uffff", "b"):
        await kv.set(scope, "k", b"1")
        await kv.set(scope, "l", b"1")
    assert await kv.scopes() == ["", "a", "b", "\uffff", "\U0001f600"]
    await kv.delete("a", "k")
    await kv.delete("a", "l")
    assert await kv.scopes() == ["", "b", "\uffff", "\U0001f600"]


async def test_any_text_is_a_scope_and_a_key(kv: WaitingKeyValue) -> None:
    for scope in AWKWARD:
        for key in AWKWARD:
            assert await kv.set(scope, key, f"{scope}\x1f{key}".encode()) is None
    for scope in AWKWARD:
        assert [key for key, _ in await kv.items(scope)] == AWKWARD
        for key in AWKWARD:
            assert await kv.get(scope, key) == f"{scope}\x1f{key}".encode()
    assert await kv.scopes() == sorted(AWKWARD)


async def test_half_a_surrogate_pair_is_refused_and_costs_nobody_else(kv: WaitingKeyValue) -> None:
    with pytest.raises(StoreError, match="surrogate"):
        await kv.set("s", "\ud800", b"1")
    with pytest.raises(StoreError, match="surrogate"):
        await kv.get("\udfff", "k")
    assert await kv.set("s", "k", b"1") is None
    assert await kv.scopes() == ["s"]


async def test_a_value_beyond_the_limit_is_refused(kv: WaitingKeyValue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_trio.stores.desk.MAX_VALUE", 10)
    monkeypatch.setattr("iii_trio.stores.handles.MAX_VALUE", 10)
    await kv.set("s", "k", b"x" * 10)
    with pytest.raises(StoreError, match="11 bytes"):
        await kv.set("s", "k", b"y" * 11)
    with pytest.raises(StoreError, match="20 bytes"):
        await kv.update("s", "k", lambda old: Change((old or b"") * 2, None))
    assert await kv.get("s", "k") == b"x" * 10


async def test_update_reads_decides_and_writes(kv: WaitingKeyValue) -> None:
    seen: list[bytes | None] = []

    def change(old: bytes | None) -> Change[str]:
        seen.append(old)
        return Change(b"%d" % (int(old or b"0") + 1), "answer")

    assert await kv.update("s", "k", change) == Updated(None, b"1", "answer")
    assert await kv.update("s", "k", change) == Updated(b"1", b"2", "answer")
    assert seen == [None, b"1"]
    assert await kv.get("s", "k") == b"2"


async def test_update_that_writes_nothing_leaves_everything(kv: WaitingKeyValue) -> None:
    assert await kv.update("s", "k", lambda _: Change(None, 7)) == Updated(None, None, 7)
    assert await kv.scopes() == []
    await kv.set("s", "k", b"1")
    assert await kv.update("s", "k", lambda _: Change(None, 8)) == Updated(b"1", b"1", 8)
    assert await kv.get("s", "k") == b"1"


async def test_update_keeps_the_place_in_the_order(kv: WaitingKeyValue) -> None:
    await kv.set("s", "a", b"1")
    await kv.set("s", "b", b"1")
    await kv.update("s", "a", lambda _: Change(b"2", None))
    await kv.update("s", "c", lambda _: Change(b"3", None))
    assert await kv.items("s") == [("a", b"2"), ("b", b"1"), ("c", b"3")]


async def test_a_store_error_in_an_update_fails_that_update_alone(kv: WaitingKeyValue) -> None:
    def refuse(_: bytes | None) -> Change[None]:
        raise StoreError("not now")

    await kv.set("s", "k", b"1")
    with pytest.raises(StoreError, match="not now"):
        await kv.update("s", "k", refuse)
    assert await kv.get("s", "k") == b"1"


async def test_spaces_are_apart_and_handles_of_one_space_share(store: Store) -> None:
    state = WaitingKeyValue(store.key_value("state"))
    same = WaitingKeyValue(store.key_value("state"))
    stream = WaitingKeyValue(store.key_value("stream:chat"))
    await state.set("s", "k", b"1")
    await stream.set("s", "k", b"2")
    assert await same.get("s", "k") == b"1"
    assert await stream.get("s", "k") == b"2"
    assert await stream.delete("s", "k") == b"2"
    assert await stream.scopes() == []
    assert await state.scopes() == ["s"]


async def test_the_directory_names_spaces_and_scopes_below_a_prefix(store: Store) -> None:
    for space, scope in (
        ("stream:b", "2"),
        ("stream:a:b", "c"),
        ("stream:a", "b:c"),
        ("stream:b", "1"),
        ("state", "x"),
    ):
        await WaitingKeyValue(store.key_value(space)).set(scope, "k", b"1")
        await WaitingKeyValue(store.key_value(space)).set(scope, "l", b"1")
    expected = [("stream:a", "b:c"), ("stream:a:b", "c"), ("stream:b", "1"), ("stream:b", "2")]
    for prefix, wanted in (("stream:", expected), ("", [("state", "x"), *expected]), ("zzz", [])):
        found: list[tuple[str, str]] = await settle(partial(store.directory, prefix))
        assert found == wanted


async def test_statistics_count_what_was_submitted(store: Store) -> None:
    handle = store.key_value("state")
    kv = WaitingKeyValue(handle)
    await kv.set("s", "k", b"1")
    await kv.update("s", "k", lambda _: Change(None, None))
    await kv.delete("s", "k")
    await kv.get("s", "k")
    await kv.scopes()
    await kv.values("s")
    await kv.items("s")
    assert (handle.statistics().space, handle.statistics().reads, handle.statistics().writes) == ("state", 4, 3)
