"""One more entry in the text of a configuration file; every other character stays what it was.

The text is edited where our own parser found the list, because placeholders (`{port: ${PORT:1}}`) make a configuration
file something other than plain YAML, which a general round trip would refuse. What comes out is read again and
compared: a text that does not say what it said before, and one worker more, is never handed out.
"""

import re
from typing import Any, Final

from ..config import ConfigError, Position, WorkerName, YamlMapping, YamlSequence, load_yaml
from .starter import entry_text

INDENT: Final = "  "
_EMPTY_FLOW: Final = re.compile(r"\[\s*\](?P<comment>[ \t]+#[^\r\n]*)?[ \t]*(?:\r?\n)?")
"""`[]`, a comment after it, and the end of the line."""


class AsWritten(dict[str, str]):
    """An environment in which every placeholder stands for itself, whatever is set."""

    def get(self, name: str, default: Any = None) -> str:
        """The placeholder."""
        return f"${{{name}:{default}}}"

    def __bool__(self) -> bool:
        """It has every name, though it holds none."""
        return True


class NotEditable(Exception):
    """The text cannot be edited safely; `str()` says why."""


def add_entry(text: str, source: str, worker: WorkerName, name: str) -> str:
    """`text` with `- name: <name>` at the end of `workers:`. Raises `NotEditable`.

    A list in one line gets its entry at the front, where there is no need to find its end.
    """
    document = load_yaml(text, source=source, environ=AsWritten())
    if not isinstance(document, YamlMapping | None):
        raise NotEditable("it is no mapping")
    workers = document.get("workers") if document is not None else None
    newline = "\r\n" if "\r\n" in text else "\n"
    if document is None or "workers" not in document:
        new = _joined(text, f"workers:\n{entry_text(worker, name, INDENT)}", newline)
    elif not isinstance(workers, YamlSequence):
        raise NotEditable("`workers` is no list")
    else:
        new = _in_list(text, workers, worker, name, newline)
    _compare(text, new, source, name)
    return new


def _in_list(text: str, workers: YamlSequence, worker: WorkerName, name: str, newline: str) -> str:
    start = _offset(text, workers.position)
    if text[start : start + 1] != "[":
        return _after_last(text, workers, worker, name, newline)
    if empty := _EMPTY_FLOW.match(text, start):
        block = entry_text(worker, name, INDENT).replace("\n", newline)
        return f"{text[:start].rstrip()}{empty['comment'] or ''}{newline}{block}{text[empty.end() :]}"
    return f"{text[: start + 1]}{{name: {name}}}, {text[start + 1 :].lstrip(' ')}"


def _after_last(text: str, workers: YamlSequence, worker: WorkerName, name: str, newline: str) -> str:
    lines = text.splitlines(keepends=True)
    last = workers.item_position(len(workers) - 1).line - 1
    while not lines[last].lstrip(" ").startswith("-"):
        last -= 1  # an item may begin on the line below its dash
    indent = len(lines[last]) - len(lines[last].lstrip(" "))
    end = last + 1
    for number in range(end, len(lines)):
        line = lines[number]
        if not line.strip():
            continue
        if len(line) - len(line.lstrip(" ")) <= indent:
            break
        end = number + 1  # comments inside the last entry stay with it
    block = entry_text(worker, name, " " * indent)
    apart = "\n" if len(workers) > 1 and _apart(lines, workers) else ""
    return _joined("".join(lines[:end]), apart + block, newline) + "".join(lines[end:])


def _apart(lines: list[str], workers: YamlSequence) -> bool:
    """Whether there is an empty line before the last entry."""
    line = workers.item_position(len(workers) - 1).line - 2
    return line >= 0 and not lines[line].strip()


def _joined(text: str, block: str, newline: str) -> str:
    """A text and a block of lines after it."""
    gap = "" if not text or text.endswith("\n") else newline
    return text + gap + block.replace("\n", newline)


def _offset(text: str, position: Position) -> int:
    """Where a position is in a text that may begin with a byte order mark."""
    lines = text.splitlines(keepends=True)
    marked = len(text) - len(text.removeprefix("\ufeff")) if position.line == 1 else 0
    return sum(len(line) for line in lines[: position.line - 1]) + marked + position.column - 1


def _compare(old: str, new: str, source: str, name: str) -> None:
    """Check that `new` says what `old` says, and one worker more. Raises `NotEditable`."""
    try:
        after = load_yaml(new, source=source, environ=AsWritten())
    except ConfigError as error:
        raise NotEditable(f"its form is unusual ({error})") from None
    before = load_yaml(old, source=source, environ=AsWritten())
    had = dict(before) if isinstance(before, YamlMapping) else {}
    has = dict(after) if isinstance(after, YamlMapping) else {}
    listed_before = list(had.pop("workers", None) or ())  # type: ignore[arg-type]
    listed_after = list(has.pop("workers", None) or ())  # type: ignore[arg-type]
    entry = {"name": name}
    if had != has or listed_after not in ([*listed_before, entry], [entry, *listed_before]):
        raise NotEditable("its form is unusual")
