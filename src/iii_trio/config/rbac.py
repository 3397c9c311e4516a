"""Access control of a worker port, as its block spells it (spec/protocol.md §14.1), and the port's own TLS.

What stands here restricts, so little of it is passed over: a key that looks like a misspelled one is refused (others
that are unknown are ignored, as the reference does), and so is a key without a value, which is what `${TOKEN:}` of an
unset variable leaves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from attrs import frozen

from iii_trio.config.settings import setting

_MATCH: Final = re.compile(r"""match\((?:"(.*)"|'(.*)')\)""", re.DOTALL)


def function_id(doc: str) -> Any:
    """A setting that names a function, or nothing at all by being left out."""
    return setting(None, tier="restart", nonempty=True, filled=True, doc=doc)


@frozen(kw_only=True)
class ExposeSettings:
    """Functions that sessions may call: by a pattern on their id, or by their metadata."""

    match: str | None = setting(
        None, tier="restart", nonempty=True, filled=True, doc="Pattern on the function id; * is any run of characters."
    )
    metadata: Mapping[str, Any] | None = setting(
        None, tier="restart", filled=True, doc='Values the metadata must have; match("…") compares a text by pattern.'
    )
    namespace: str = setting("default", tier="restart", nonempty=True, doc="The namespace of the functions.")

    @classmethod
    def from_text(cls, text: str) -> ExposeSettings:
        """The short form `match("pattern")`. Raises `ValueError` for any other text."""
        found = _MATCH.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"expected match(\"pattern\") or a mapping with `match` or `metadata`, but found '{text}'")
        return cls(match=found[1] if found[1] is not None else found[2])

    def refusals(self, _: str) -> Iterator[tuple[tuple[str, ...], str]]:
        """Exactly one of the two ways."""
        if (self.match is None) == (self.metadata is None):
            found = "neither" if self.match is None else "both"
            yield (), f"expected either `match` or `metadata`, but found {found}"
        elif self.metadata is not None and not self.metadata:
            yield ("metadata",), "an empty mapping is what every function's metadata matches; name at least one key"


@frozen(kw_only=True)
class RbacSettings:
    """Who may connect to this port, call what, and register what."""

    ignores_unknown: ClassVar[bool] = True

    auth_function_id: str | None = function_id("Function that admits each connection and says what it may do.")
    expose_functions: tuple[ExposeSettings, ...] = setting(
        (), tier="restart", doc="Functions that every session may call; one fitting entry is enough."
    )
    on_function_registration_function_id: str | None = function_id("Function asked about each function registration.")
    on_trigger_registration_function_id: str | None = function_id("Function asked about each trigger registration.")
    on_trigger_type_registration_function_id: str | None = function_id(
        "Function asked about each trigger type registration."
    )


@frozen(kw_only=True)
class TlsSettings:
    """Certificate and key of a port, both PEM files."""

    certificate: str = setting(tier="restart", nonempty=True, doc="File with the certificate and its chain.")
    key: str = setting(tier="restart", nonempty=True, doc="File with the certificate's private key, not encrypted.")
