"""`${NAME}` and `${NAME:DEFAULT}` inside JSON values: kept as they are written, expanded when they are read.

Implements spec/pubsub-cron-config-cli.md §4.3. The grammar is that of the config file (environment.py); what a variable
contains is never read together with the text around it, only a lone placeholder is read again as a YAML core value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import define, field, frozen

from iii_trio.__about__ import __version__
from iii_trio.config.environment import PLACEHOLDER, Placeholder
from iii_trio.config.problems import Position
from iii_trio.config.yaml import reread

ENGINE_VERSION: Final = "__III_ENGINE_VERSION__"
"""A default that stands for the engine's version."""

_NOWHERE: Final = Position("a value", 1, 1)


@frozen
class Expanded:
    """A value with its placeholders replaced, and the variables that were unset and had no default, sorted."""

    value: Any
    missing: tuple[str, ...] = ()


def expand(value: Any, environ: Mapping[str, str]) -> Expanded:
    """Replace the placeholders in every text of a JSON value; keys stay as they are, the value itself is not changed.

    A text that is one lone placeholder becomes what its content means in YAML (`8080` a number, `[1, 2]` a list); an
    empty content stays an empty text. A placeholder that cannot be resolved stays where it is.
    """
    run = _Expansion(environ)
    return Expanded(run.walk(value), tuple(sorted(run.missing)))


@define
class _Expansion:
    environ: Mapping[str, str]
    missing: set[str] = field(factory=set)

    def walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.walk(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.walk(item) for item in value]
        return value

    def text(self, text: str) -> Any:
        if "${" not in text:
            return text
        lone = PLACEHOLDER.fullmatch(text.strip())
        if lone is None:
            return PLACEHOLDER.sub(
                lambda match: match[0] if (found := self.find(*match.groups())) is None else found, text
            )
        found = self.find(lone[1], lone[2])
        if found is None:
            return text
        return _json(reread(found, _NOWHERE), found) if found.strip() else ""

    def find(self, name: str, default: str | None) -> str | None:
        found = Placeholder(name, __version__ if default == ENGINE_VERSION else default).resolve(self.environ)
        if found is None:
            self.missing.add(name)
        return found


def _json(value: Any, text: str) -> Any:
    """A YAML value as JSON has it; what JSON has no number for stays text."""
    if isinstance(value, float) and not math.isfinite(value):
        return text
    if isinstance(value, Mapping):
        return {key: _json(item, str(item)) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_json(item, str(item)) for item in value]
    return value
