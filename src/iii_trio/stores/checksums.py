"""Row checksums: CRC-32 over the columns of a row, to notice a bit that the disk has turned."""

from zlib import crc32

from .results import RowDamaged


def checksum(columns: tuple[object, ...], *blobs: object) -> int:
    """CRC-32 of short columns and of blobs, in this order.

    Takes whatever a damaged row may hold: a blob that is none counts as a column, undecodable text as the bytes it was.
    `ascii` renders strings, numbers and None unmistakably and alike in every Python. The result is on disk: a change
    here needs a migration.
    """
    sizes = tuple(len(blob) if isinstance(blob, bytes) else ascii(blob) for blob in blobs)
    total = crc32(ascii((columns, sizes)).encode())
    for blob in blobs:
        if isinstance(blob, bytes):
            total = crc32(blob, total)
    return total


def damaged(what: str, table: str, row: int, *, named: bool = False) -> RowDamaged:
    """The error for row `row` of `table`, which does not match its checksum; `what` names it. `named`: see `RowDamaged`."""
    return RowDamaged(
        f"The stored {what} does not match its checksum: the file was damaged. "
        "The engine sets it aside in the table `quarantine` of the file; check the disk, and restore the value.",
        table,
        row,
        named=named,
    )
