"""Directories of the reference's file store, built from the description in spec/state-stream.md §8, and read."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_trio.protocol.errors import StoreError
from iii_trio.stores.reference_files import Index, ambiguous, read_directory, split_stream, unwrap

KEPT = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."


def file_name(index: str) -> str:
    """How an index is spelled as a file."""
    return "".join(chr(byte) if byte in KEPT else f"%{byte:02X}" for byte in index.encode()) + ".bin"


def envelope(text: bytes) -> bytes:
    """How a text is wrapped."""
    if len(text) <= 8:
        return text.ljust(8, b"\xff")
    padded = text + bytes(-len(text) % 4)
    length = (len(text) & 0x3F) | 0x80 | ((len(text) >> 6) << 8)
    return padded + struct.pack("<Ii", length, -len(padded))


def put(directory: Path, index: str, items: dict[str, Any]) -> Path:
    """Write an index as the reference does."""
    directory.mkdir(exist_ok=True)
    path = directory / file_name(index)
    path.write_bytes(envelope(json.dumps(items, separators=(",", ":"), ensure_ascii=False).encode()))
    return path


def indexes(directory: Path) -> dict[str, list[tuple[str, Any]]]:
    found = read_directory(directory)
    assert not found.malformed
    return {index.name: [(key, json.loads(value)) for key, value in index.items] for index in found.indexes}


def test_names_and_values_of_every_kind(tmp_path: Path) -> None:
    data: dict[str, dict[str, Any]] = {
        "users": {"b": {"n": 1}, "a": [1, 2.5, None, True, "ü😀"], "": ""},
        "": {"k": 1},
        "a/b:c d%2F\u2028日本": {"key/with:all": {"nested": [[]]}},
        "Users": {"big": 2**63, "small": -(2**63), "most": 2**64 - 1, "float": 1e300, "zero": -0.0},
        "..": {"x": None},
        "stream:chat:room:1": {"i": {"id": "i"}},
        "long": {f"k{number}": "x" * number for number in range(300)},
    }
    for name, items in data.items():
        put(tmp_path, name, items)
    (tmp_path / "notes.txt").write_text("not ours")
    (tmp_path / "users.bin.tmp").write_text("half written")
    (tmp_path / "directory.bin").mkdir()
    found = indexes(tmp_path)
    assert {name: dict(items) for name, items in found.items()} == data
    assert [key for key, _ in found["users"]] == ["b", "a", ""]


@settings(deadline=None)
@given(st.binary(max_size=5000))
def test_every_text_comes_out_of_its_envelope(content: bytes) -> None:
    text = b"{" + content.replace(b"\xff", b" ") + b"}"
    assert unwrap(envelope(text)) == text


@pytest.mark.parametrize("length", [2, 7, 8, 9, 10, 11, 12, 63, 64, 65, 8191, 8192, 8193, 70_000])
def test_texts_at_the_bounds_of_the_length_field(length: int) -> None:
    text = b"{" + b" " * (length - 2) + b"}"
    assert unwrap(envelope(text)) == text


def test_what_is_malformed_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    good = put(tmp_path, "good", {"k": 1})
    whole = put(tmp_path, "cut", {"k": "x" * 500}).read_bytes()
    bad = {
        "cut.bin": whole[:-100],
        "front.bin": whole[100:],
        "empty.bin": b"",
        "short.bin": b"{}",
        "text.bin": envelope(b'{"k": 1'),
        "list.bin": envelope(b"[1,2,3,4,5]"),
        "utf8.bin": envelope(b'{"k":"\xc3\x28 and more"}'),
        "deep.bin": envelope(b'{"k":' + b"[" * 200 + b"]" * 200 + b"}"),
        "deeper than we pass on.bin": b"",
        "%C3%28.bin": envelope(b'{"k":1111111}'),
        "%4.bin": envelope(b'{"k":1111111}'),
        "zeros.bin": bytes(64),
        "ones.bin": b"\xff" * 64,
        "almost.bin": envelope(b'{"k":' + b"[" * 125 + b"]" * 125 + b"}"),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    found = read_directory(tmp_path)
    assert [index.file for index in found.indexes] == [good]
    assert sorted(file.name for file, _ in found.malformed) == sorted(bad)
    assert all(why for _, why in found.malformed)


def test_a_queue_beside_it_is_left_out(tmp_path: Path) -> None:
    put(tmp_path, "s", {"k": 1})
    put(tmp_path, "queue:__fn_queue::default:jobs:1b9d", {"id": "1b9d"})
    put(tmp_path, "_queue_lists", {})
    put(tmp_path, "_queue_sorted_sets", {})
    found = read_directory(tmp_path)
    assert ([index.name for index in found.indexes], found.queue_files) == (["s"], 3)


@pytest.mark.parametrize(
    ("name", "streams", "ways"),
    [
        ("stream:chat:room", [], [("chat", "room")]),
        ("stream:chat:", [], [("chat", "")]),
        ("stream::room", [], [("", "room")]),
        ("stream:a:b:c", [], [("a", "b:c"), ("a:b", "c")]),
        ("stream:a:b:c", ["a"], [("a", "b:c")]),
        ("stream:a:b:c", ["a", "a:b"], [("a:b", "c")]),
        ("stream:a:b:c", ["b"], [("a", "b:c"), ("a:b", "c")]),
        ("stream:alone", [], []),
    ],
)
def test_how_a_name_parts_into_stream_and_group(name: str, streams: list[str], ways: list[tuple[str, str]]) -> None:
    assert split_stream(name, streams) == ways
    told = ambiguous([Index(Path("f"), name, ())], streams)
    assert bool(told) == (len(ways) != 1)


def test_a_directory_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        read_directory(tmp_path / "nowhere")
