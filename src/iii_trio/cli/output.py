"""What commands print: one JSON document, a table on a terminal, aligned text elsewhere.

Names, descriptions and errors come from workers, so nothing in them may steer a terminal: text loses such characters,
JSON has them escaped.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Zl", "Zp"})
"""Control and format characters, among them those that change the direction of text, and line separators."""
_STEERING: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Those of them that JSON does not escape anyway, without the joiners that writing needs."""
GAP: Final = "  "

json_option: Final[Callable[[Any], Any]] = click.option(
    "--json", "as_json", is_flag=True, help="Print the engine's answer as one JSON document."
)


def clean(value: object) -> str:
    """A value as one line of text without characters that a terminal would obey."""
    return "".join(" " if unicodedata.category(c) in _INVISIBLE else c for c in str(value))


def shortened(text: str, chars: int) -> str:
    """A text, cut to `chars` characters."""
    return text if len(text) <= chars else f"{text[: chars - 1]}…"


def compact(value: Any) -> str:
    """A JSON value on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def json_text(value: Any) -> str:
    """One JSON document, two spaces a level, that the output's encoding can hold."""
    text = _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, indent=2, ensure_ascii=False))
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return json.dumps(value, indent=2)
    return text


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def show(text: str) -> None:
    """Print lines; what the output's encoding does not have, it gets escaped."""
    click.echo(text.encode(_encoding(), "backslashreplace").decode(_encoding()))


def show_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json_text(value))


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of plain text."""
    table = [tuple(headings), *map(tuple, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(headings))]
    return [GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def show_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str,
    styles: Mapping[str, str] | None = None,
    spare: Sequence[str] = (),
) -> None:
    """Print a table, or `empty` when it has no rows.

    None is an empty cell. `styles`: how a cell with exactly this text looks on a terminal with colours. `spare`: which
    columns a terminal that is too narrow does without, the first ones first.
    """
    cells = [["" if cell is None else clean(cell) for cell in row] for row in rows]
    if not cells:
        show(empty)
    elif sys.stdout.isatty():
        show(_drawn(headings, cells, styles or {}, spare))
    else:
        show("\n".join(aligned(headings, cells)))


def _drawn(
    headings: Sequence[str], cells: Sequence[Sequence[str]], styles: Mapping[str, str], spare: Sequence[str]
) -> str:
    console = Console(highlight=False)
    plain = console.no_color
    widths = {
        heading: max(map(cell_len, column))
        for heading, column in zip(headings, zip(headings, *cells, strict=True), strict=True)
    }
    for heading in spare:
        if sum(widths.values()) + len(GAP) * len(widths) <= console.width:
            break
        del widths[heading]
    table = Table(box=None, header_style="" if plain else "bold", padding=(0, len(GAP), 0, 0))
    for heading in widths:
        table.add_column(heading, overflow="fold")
    for row in cells:
        shown = [cell for heading, cell in zip(headings, row, strict=True) if heading in widths]
        table.add_row(*(Text(cell, style="" if plain else styles.get(cell, "")) for cell in shown))
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def ago(then_ms: float, now_ms: float) -> str:
    """How long ago something was, in its two largest units: `2h 5m`."""
    seconds = max(0, int((now_ms - then_ms) // 1000))
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{count}{unit}" for count, unit in parts[:2])


def moment(seconds: float) -> str:
    """A Unix time as text, to the second, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%SZ}"


def plural(count: int, noun: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
