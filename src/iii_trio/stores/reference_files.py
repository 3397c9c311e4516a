"""Reading the directories in which the reference engine keeps state and streams (spec/state-stream.md §8). Pure but for the disk.

One file per index: its name is the index with every byte but `A–Z a–z 0–9 - _ .` as `%XX`, and `.bin`. Its content is the
JSON text of an object `{key: value, …}`, in the order in which the keys were set, in an envelope: a text of up to 8 bytes
is padded to 8 with 0xff; a longer one stands at the place that the last 8 bytes name by length and distance.

An index is a scope of the state, or `stream:<stream>:<group>`. Older releases put both into one directory, and the queue's
files beside them.
"""

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from attrs import frozen

from ..protocol import Json, JsonError
from ..protocol.errors import StoreError
from ..protocol.limits import MAX_DEPTH
from ..protocol.scan import deeper_than

SUFFIX: Final = ".bin"
STREAM: Final = "stream:"
VALUE_DEPTH: Final = MAX_DEPTH - 4
"""Levels of a value that can still be passed on in an event (see `EVENT_DEPTH` of the streams)."""

_ENCODED: Final = re.compile(r"(?:[A-Za-z0-9._-]|%[0-9A-Fa-f]{2})*")
_QUEUE: Final = re.compile(r"_queue_(?:lists|sorted_sets)|queue:.*:jobs:.*", re.DOTALL)
_TRAILER: Final = struct.Struct("<Ii")
_LONG: Final = 0b10 << 6
_LONG_MASK: Final = 0b11 << 6


@frozen
class Index:
    """One file: its name decoded, and (key, JSON text of the value) in their order."""

    file: Path
    name: str
    items: tuple[tuple[str, bytes], ...]


@frozen
class Reading:
    """What a directory holds. `malformed`: (file, what is wrong); `queue_files`: how many belong to a queue."""

    indexes: tuple[Index, ...]
    malformed: tuple[tuple[Path, str], ...]
    queue_files: int

    def is_empty(self) -> bool:
        """Whether nothing in the directory looks like a file of a reference engine."""
        return not (self.indexes or self.malformed or self.queue_files)


class _Malformed(Exception):
    """A file is not as described; the text says how."""


def read_directory(directory: Path) -> Reading:
    """Read every index, sorted by file name. Raises `StoreError` for a directory that cannot be read."""
    indexes: list[Index] = []
    malformed: list[tuple[Path, str]] = []
    queue_files = 0
    try:
        files = sorted(path for path in directory.iterdir() if path.name.endswith(SUFFIX) and path.is_file())
        for file in files:
            try:
                name = _decoded_name(file.name.removesuffix(SUFFIX))
                if _QUEUE.fullmatch(name):
                    queue_files += 1
                else:
                    indexes.append(Index(file, name, tuple(_items(unwrap(file.read_bytes())))))
            except _Malformed as error:
                malformed.append((file, str(error)))
    except OSError as error:
        raise StoreError(f"{error.filename or directory} cannot be read: {error.strerror}.") from error
    return Reading(tuple(indexes), tuple(malformed), queue_files)


def split_stream(name: str, streams: Sequence[str]) -> list[tuple[str, str]]:
    """Every (stream, group) that an index `stream:<stream>:<group>` may mean; one of the `streams` if it fits.

    Both may have colons in them, so there is no more than one answer only where there is one way to part them.
    """
    rest = name.removeprefix(STREAM)
    fitting = [stream for stream in streams if rest.startswith(f"{stream}:")]
    if fitting:
        stream = max(fitting, key=len)
        return [(stream, rest[len(stream) + 1 :])]
    cuts = [place for place, character in enumerate(rest) if character == ":"]
    return [(rest[:cut], rest[cut + 1 :]) for cut in cuts]


def _decoded_name(text: str) -> str:
    if not _ENCODED.fullmatch(text):
        raise _Malformed("its name is not encoded as the names of such files are")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise _Malformed("its name is not UTF-8") from None


def unwrap(content: bytes) -> bytes:
    """The text in an envelope."""
    if len(content) < _TRAILER.size:
        raise _Malformed(f"it has {len(content)} bytes, and none has less than {_TRAILER.size}")
    start = len(content) - _TRAILER.size
    if content[start] & _LONG_MASK != _LONG:
        if start:
            raise _Malformed("its last 8 bytes do not say where the text is")
        return content.rstrip(b"\xff")
    length_field, offset = _TRAILER.unpack_from(content, start)
    length = (length_field & 0x3F) | ((length_field & 0xFFFFFF00) >> 2)
    begin = start + offset
    if begin < 0 or offset >= 0 or begin + length > start:
        raise _Malformed(f"its text would be {length} bytes at {begin}, outside of it; the file may have been cut off")
    return content[begin : begin + length]


def _items(text: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        found = Json(text).decode()
    except JsonError as error:
        raise _Malformed(f"its text is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _Malformed("its text is no JSON object")
    for key, value in found.items():
        raw = Json.of(value).raw
        if raw.count(b"[") + raw.count(b"{") > VALUE_DEPTH and deeper_than(raw, VALUE_DEPTH):
            raise _Malformed(f"its value of {key!r} is nested deeper than {VALUE_DEPTH} levels")
        yield key, raw


def ambiguous(indexes: Iterable[Index], streams: Sequence[str]) -> list[tuple[Path, str]]:
    """The files of streams whose names can be parted in several ways, or in none, each with what to do."""
    found = []
    for index in indexes:
        ways = split_stream(index.name, streams)
        if not ways:
            found.append((index.file, "it names a stream, but no group"))
        elif len(ways) > 1:
            shown = " or ".join(f"group {group!r} of stream {stream!r}" for stream, group in ways)
            found.append((index.file, f"it is {shown}; say which streams there are with --stream"))
    return found
