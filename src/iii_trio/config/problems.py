"""Why a configuration is refused: a position in the user's file, a problem, and the error that carries them all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from attrs import frozen

from iii_trio.protocol import errors


@frozen
class Position:
    """A place in a configuration text. `line` and `column` count from 1, as editors do."""

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"


@frozen
class Problem:
    """One thing to repair: what is wrong, at which key (dotted path, "" if none), and where if the text is known."""

    message: str
    key: str = ""
    position: Position | None = None

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.position, self.key, self.message) if part)


class ConfigError(errors.ConfigError):
    """A configuration was refused.

    `problems` holds everything found in one reading, so that a user repairs a file once and not key by key;
    `summary`, if there is one, says what could not be done because of them.
    """

    def __init__(self, summary: str = "", problems: Sequence[Problem] = ()) -> None:
        self.summary = summary
        self.problems = tuple(problems)
        super().__init__(summary, self.problems)

    def __str__(self) -> str:
        if not self.problems:
            return self.summary
        if len(self.problems) == 1:
            return f"{self.summary}: {self.problems[0]}" if self.summary else str(self.problems[0])
        lines = [str(problem) for problem in self.problems]
        return "\n  ".join([f"{self.summary}:", *lines]) if self.summary else "\n".join(lines)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the nearest known spelling of `word`, or `""` if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean '{near[0]}'?" if near else ""
