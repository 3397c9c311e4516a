"""Key-value as every store offers it: the protocol `KeyValue`, and the values that cross it (rules: `interfaces.py`)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeAlias

from attrs import frozen

from .results import A, OnDone, T


@frozen
class Change(Generic[A]):
    """What an update function decides: `write` is the new value, or None to leave everything as it is.

    `answer` is handed through to the submitter.
    """

    write: bytes | None
    answer: A


@frozen
class Updated(Generic[A]):
    """The result of an update: value before (None if there was none), value after, and the function's own answer."""

    old: bytes | None
    new: bytes | None
    answer: A


@frozen
class Entry:
    """A key that is set in the same step as another one: all of it stands on disk, or nothing."""

    space: str
    scope: str
    key: str
    value: bytes


Beside: TypeAlias = Callable[[bytes | None, bytes | None], Sequence[Entry]]
"""What else is to be set with a write: of the value before it and the one after it (None: none). A pure function."""

Look: TypeAlias = Callable[[Iterable[tuple[str, bytes]]], T]
"""What is made of the keys and values of a scope, where they are. A pure function; it need not read to the end."""


@frozen
class Expired:
    """Keys whose time was up and which are gone: (scope, key, value) each, the earliest first.

    `next_ms`: when to ask again (Unix ms): at once, which is the `now_ms` of this time, where there may be more than the
    limit; else at the earliest time of a key that was not due yet; None if there is none, or only one place was meant.
    """

    removed: tuple[tuple[str, str, bytes], ...]
    next_ms: int | None


@frozen
class KeyValueStatistics:
    """Operations submitted through one key-value handle."""

    space: str
    reads: int
    """get, values, items, scan and scopes."""
    writes: int
    """set, delete, update and expire."""


class KeyValue(Protocol):
    """Values by scope and key within one space (spec/state-stream.md §2, §8). Any strings will do, empty ones too.

    Each operation is atomic; those on one key take effect in the order of submission. Pure functions that are passed in
    may run on another thread, must not wait for anything, and may raise nothing but `StoreError` (which fails this
    operation and writes nothing).

    A key may have a time, `expires_at_ms` (Unix ms, kept over restarts). Reads do not see keys whose time is up at their
    `now_ms`, and see all of them with 0. What removes them is `expire`: until then they count for writes.
    """

    def get(self, scope: str, key: str, on_done: OnDone[bytes | None], *, now_ms: int = 0) -> None:
        """Answer the value, or None."""

    def set(
        self,
        scope: str,
        key: str,
        value: bytes,
        on_done: OnDone[bytes | None],
        *,
        expires_at_ms: int | None = None,
        beside: Beside | None = None,
    ) -> None:
        """Store `value` and answer the previous one, or None. Overwriting keeps the key's place in the order.

        Without `expires_at_ms` it stays until it is removed, whatever was said before. What `beside` answers is set too.
        """

    def delete(self, scope: str, key: str, on_done: OnDone[bytes | None], *, beside: Beside | None = None) -> None:
        """Remove the key and answer the removed value, or None. `beside` is asked in either case."""

    def update(
        self,
        scope: str,
        key: str,
        change: Callable[[bytes | None], Change[A]],
        on_done: OnDone[Updated[A]],
        *,
        expires_at_ms: int | None = None,
        beside: Beside | None = None,
    ) -> None:
        """Read, let `change` decide, write: one atomic step. `change` is a pure function of the current value.

        A key keeps its time unless `expires_at_ms` gives it another. `beside` is asked only if something is written.
        """

    def expire(
        self,
        now_ms: int,
        limit: int,
        on_done: OnDone[Expired],
        *,
        place: tuple[str, str] | None = None,
        beside: Callable[[str, str, bytes], Sequence[Entry]] | None = None,
    ) -> None:
        """Remove up to `limit` keys whose time is up, the earliest first; with `place` only that (scope, key).

        `beside` is asked for each, with scope, key and value. It costs the same however many keys there are.
        """

    def next_expiry(self, on_done: OnDone[int | None]) -> None:
        """Answer when the first key is due (Unix ms), None if no key has a time."""

    def sibling(self, space: str) -> "KeyValue":
        """A handle on another space of the same store: where entries beside a write may stand."""

    def scan(
        self,
        scope: str,
        look: Look[T],
        on_done: OnDone[T],
        *,
        by_key: bool = False,
        prefix: str = "",
        after: str | None = None,
        now_ms: int = 0,
    ) -> None:
        """Answer what `look` makes of the scope's keys and values, of those only that begin with `prefix`.

        They come in the order in which they were first set; `by_key` by code point, those greater than `after` only,
        and then no more is read than is looked at. It holds up no write.
        """

    def values(self, scope: str, on_done: OnDone[list[bytes]]) -> None:
        """Answer the scope's values in the order in which their keys were first set; [] for an unknown scope."""

    def items(self, scope: str, on_done: OnDone[list[tuple[str, bytes]]]) -> None:
        """As `values`, with the keys."""

    def values_in_line(self, scope: str, on_done: OnDone[list[bytes]]) -> None:
        """As `values`, in line with the writes: exactly those that are answered before it show in the answer."""

    def scopes(
        self,
        on_done: OnDone[list[str]],
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int | None = None,
        now_ms: int = 0,
    ) -> None:
        """Answer the scopes that hold at least one key, sorted by code point; up to `limit`, greater than `after`."""

    async def room(self) -> None:
        """Wait until the store accepts operations."""

    def statistics(self) -> KeyValueStatistics:
        """Counters of this handle."""
