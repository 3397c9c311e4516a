"""How every operation of a store is answered: done with a value, or failed with an error that says what to do."""

from collections.abc import Callable
from typing import Generic, NoReturn, TypeAlias, TypeVar

from attrs import frozen

from ..protocol.errors import StoreError

T = TypeVar("T")
A = TypeVar("A")


class StoreClosed(StoreError):
    """The store has been closed, or has stopped after a defect; nothing can be submitted any more."""


class StoreFull(StoreError):
    """Too many operations wait for the disk; this one was not done. Try again later, or wait for `room()`."""


class StoreInUse(StoreError):
    """Another engine holds the file; the text names file and process."""


class RowDamaged(StoreError):
    """A row does not match its checksum: row `row` of `table`, which the writer sets aside as soon as it hears of it.

    `named`: the operation asked for this very row and is told so; any other goes on without the row.
    """

    def __init__(self, text: str, table: str, row: int, *, named: bool) -> None:
        super().__init__(text)
        self.table, self.row, self.named = table, row, named


@frozen
class Done(Generic[T]):
    """The operation stands on disk and answered `value`."""

    value: T

    def unwrap(self) -> T:
        """The value."""
        return self.value


@frozen
class Failed:
    """The operation was not done; `error` says why and what to do."""

    error: StoreError

    def unwrap(self) -> NoReturn:
        """Raise the error."""
        raise self.error


Result: TypeAlias = Done[T] | Failed
OnDone: TypeAlias = Callable[[Done[T] | Failed], None]
