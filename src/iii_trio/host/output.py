"""What worker scripts print, as lines of the engine's log: with the level they were logged at, tracebacks kept together.

A script's line is logged at INFO, under the script's name. Where it begins with a level and a space, as those of our
SDK do when `LEVELS_VARIABLE` is set, that is its level and the word is left out. A traceback has the level of the line
it follows, or ERROR by itself.
"""

import logging
import re
from typing import Final

from attrs import define, field

log = logging.getLogger(__name__)

LEVELS_VARIABLE: Final = "III_LOG_LEVELS"
"""Set in the environment of scripts: lines of a log begin with their level and have no time of their own."""

_LEVELS: Final = {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")}
_TRACEBACKS: Final = ("Traceback (most recent call last):", "Exception Group Traceback (most recent call last):")
_SYNTAX_ERROR: Final = re.compile(r'  File ".*", line \d+')
"""How what Python says of a script that it cannot compile begins, without a heading."""
_BETWEEN: Final = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


_GROUP_LINE: Final = re.compile(r" +[|+]")
_GROUP_END: Final = re.compile(r" +\+-+")


@define
class _Source:
    """One script: the level of its last record, and where in a traceback its last line stood."""

    level: int = logging.INFO
    inside: bool = False
    """The next line belongs to a traceback, whatever it is."""
    ended: bool = False
    """A traceback has ended, and another one may be chained to it."""


@define(eq=False)
class ScriptLog:
    """Passes lines on; one for all scripts."""

    _sources: dict[str, _Source] = field(factory=dict)

    def line(self, name: str, text: str) -> None:
        """Log a line that the script `name` has printed."""
        source = self._sources.setdefault(name, _Source())
        word, space, rest = text.partition(" ")
        if space and word in _LEVELS:
            source.level, source.inside, source.ended = _LEVELS[word], False, False
            text = rest
        elif not _continues(source, text):
            source.level = logging.INFO
        log.log(source.level, "%s", text, extra={"source": name})


def _continues(source: _Source, text: str) -> bool:
    """Whether a line belongs to a traceback; follows it to its end."""
    if text.lstrip(" |+").startswith(_TRACEBACKS) or (not source.inside and _SYNTAX_ERROR.fullmatch(text)):
        if not source.ended and source.level < logging.WARNING:
            source.level = logging.ERROR
        source.inside, source.ended = True, False
    elif source.inside:
        # the last line is the first one that is not indented; a group's closes its frame
        source.ended = _GROUP_END.fullmatch(text) is not None or not (text and text[0].isspace())
        source.inside = not source.ended
    elif source.ended and _GROUP_LINE.match(text):
        source.inside, source.ended = True, False
    else:
        source.ended = source.ended and (not text or text in _BETWEEN)
    return source.inside or source.ended
