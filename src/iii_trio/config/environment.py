"""`${NAME}` and `${NAME:DEFAULT}` in a configuration text, replaced without disturbing the text around them.

Placeholders are found in the raw text (spec/pubsub-cron-config-cli.md §7.3), but what a variable contains is never
parsed together with the user's text. Each placeholder is first *masked*: swapped for as many private-use characters as
it is long, so that every line and column stays what the user sees and the parser meets an ordinary piece of text. Once
the structure stands, the pieces are looked up and put in. So a password with a `#` or `: ` in it stays a password, and
a placeholder in a comment disappears with the comment, unasked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from attrs import frozen

from iii_trio.config.problems import ConfigError, Position, Problem

# A line break ends a placeholder: a forgotten `}` in a comment must not swallow the lines after it.
PLACEHOLDER = re.compile(r"\$\{([^}:\r\n]+)(?::([^}\r\n]*))?\}")

_FIRST = 0x100000  # plane 16, private use: the first character of a mask says which placeholder it is
_PAD = "\U0010fffd"
_MASK = re.compile("([\U00100000-\U0010fffc]\U0010fffd*)")
_RESERVED = re.compile("[\U00100000-\U0010fffd]")
_MOST = 0xFFFD


@frozen
class Placeholder:
    """One `${NAME:DEFAULT}`; `default` is None when the text gives none."""

    name: str
    default: str | None

    def resolve(self, environ: Mapping[str, str]) -> str | None:
        """The variable's value (an empty one counts), else the default, else None."""
        return environ.get(self.name, self.default)


@frozen
class Masked:
    """A text whose placeholders are hidden from the parser."""

    text: str
    placeholders: tuple[Placeholder, ...]

    def split(self, scalar: str) -> list[str | Placeholder]:
        """The pieces of a parsed scalar in order: literal text and placeholders; empty text is left out."""
        if not self.placeholders:
            return [scalar]
        pieces: list[str | Placeholder] = []
        for piece in _MASK.split(scalar):
            if _MASK.fullmatch(piece):
                pieces.append(self.placeholders[ord(piece[0]) - _FIRST])
            elif piece:
                pieces.append(piece)
        return pieces


def mask(text: str, source: str) -> Masked:
    """Hide every placeholder of `text` behind a mask of the same length.

    Raises `ConfigError` if the text itself contains characters the masks are made of.
    """
    if clash := _RESERVED.search(text):
        raise ConfigError("", [_refusal(text, clash.start(), source, f"the character U+{ord(clash[0]):X} is reserved")])
    placeholders: list[Placeholder] = []

    def hide(match: re.Match[str]) -> str:
        if len(placeholders) == _MOST:
            raise ConfigError("", [_refusal(text, match.start(), source, f"more than {_MOST} placeholders")])
        placeholders.append(Placeholder(match[1], match[2]))
        return chr(_FIRST + len(placeholders) - 1) + _PAD * (len(match[0]) - 1)

    masked = PLACEHOLDER.sub(hide, text)
    return Masked(masked, tuple(placeholders))


def _refusal(text: str, index: int, source: str, message: str) -> Problem:
    line = text.count("\n", 0, index) + 1
    column = index - (text.rfind("\n", 0, index) + 1) + 1
    return Problem(message, position=Position(source, line, column))
