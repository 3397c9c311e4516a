"""Who may call what: the decision of spec/protocol.md §14.3, with a verdict cache per session.

A peer without a session is trusted and never comes here.
"""

import re
from typing import Any, Final

from attrs import define, field, frozen

from ..protocol import errors
from ..protocol.errors import WireError
from .functions import FunctionEntry, Functions
from .peer import DEFAULT_NAMESPACE

INFRASTRUCTURE: Final = frozenset(
    {
        "engine::channels::create",
        "engine::workers::register",
        *(f"engine::log::{level}" for level in ("info", "warn", "error", "debug", "trace")),
        *(f"engine::baggage::{verb}" for verb in ("get", "set", "get_all")),
    }
)
VERDICTS: Final = 10_000
_MATCH: Final = re.compile(r"""match\((?:"(.*)"|'(.*)')\)""", re.DOTALL)


def wildcard(pattern: str) -> re.Pattern[str]:
    """`*` is any run of characters, everything else literal, anchored at both ends."""
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def unwrap(text: str) -> str | None:
    """The pattern inside `match("…")`, or None when the text is no such expression."""
    found = _MATCH.fullmatch(text)
    return None if found is None else found[1] if found[1] is not None else found[2]


@frozen
class ExposeFilter:
    """One entry of `rbac.expose_functions`: a pattern on the id, or metadata that must match, in one namespace."""

    pattern: re.Pattern[str] | None = None
    metadata: dict[str, Any] | None = None
    namespace: str = DEFAULT_NAMESPACE

    def matches(self, namespace: str, function_id: str, entry: FunctionEntry | None) -> bool:
        """Whether the function (None: it does not exist) is exposed by this filter."""
        if namespace != self.namespace:
            return False
        if self.pattern is not None:
            return self.pattern.fullmatch(function_id) is not None
        has = entry.metadata.decode() if entry is not None else None
        if not isinstance(has, dict) or self.metadata is None:
            return False
        return all(key in has and _value_matches(wanted, has[key]) for key, wanted in self.metadata.items())


def _value_matches(wanted: Any, value: Any) -> bool:
    pattern = unwrap(wanted) if isinstance(wanted, str) else None
    if pattern is not None:
        return isinstance(value, str) and wildcard(pattern).fullmatch(value) is not None
    return type(wanted) is type(value) and bool(wanted == value)


@define(eq=False, kw_only=True)
class Session:
    """What an authenticated connection may do (spec/protocol.md §14.2). `expose` of None means: no `rbac` block."""

    namespaces: dict[str, tuple[re.Pattern[str], ...]] = field(factory=dict)
    allowed: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    expose: tuple[ExposeFilter, ...] | None = None
    verdicts: dict[tuple[str, str], bool] = field(factory=dict)
    revision: int = -1


@define(eq=False)
class Access:
    """The decision, cached per session until the registry's revision moves."""

    functions: Functions

    def check(
        self, session: Session, namespace: str, function_id: str, entry: FunctionEntry | None
    ) -> WireError | None:
        """None when allowed, else the `FORBIDDEN` error with the text that clients match on."""
        if session.revision != self.functions.revision:
            session.verdicts.clear()
            session.revision = self.functions.revision
        key = (namespace, function_id)
        verdict = session.verdicts.get(key)
        if verdict is None:
            if len(session.verdicts) >= VERDICTS:
                session.verdicts.clear()
            verdict = session.verdicts[key] = self._decide(session, namespace, function_id, entry)
        if verdict:
            return None
        hint = (
            "remove from rbac.forbidden_functions"
            if function_id in session.forbidden
            else "add to rbac.expose_functions"
        )
        return WireError(f"function '{function_id}' not allowed ({hint})", errors.FORBIDDEN)

    def _decide(self, session: Session, namespace: str, function_id: str, entry: FunctionEntry | None) -> bool:
        if function_id in session.forbidden:
            return False
        if any(grant.fullmatch(function_id) for grant in session.namespaces.get(namespace, ())):
            return True
        if namespace == DEFAULT_NAMESPACE and function_id in session.allowed:
            return True
        if function_id in INFRASTRUCTURE or session.expose is None:
            return True
        return any(rule.matches(namespace, function_id, entry) for rule in session.expose)
