"""Who may call what: the decision of spec/protocol.md §14.3, with a verdict cache per session.

A peer without a session is trusted and never comes here.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field, frozen

from ..protocol import EMPTY_OBJECT, Json, errors
from ..protocol.errors import WireError
from .functions import FunctionEntry, Functions
from .peer import DEFAULT_NAMESPACE
from .triggers import ALIASES

if TYPE_CHECKING:
    from ..protocol.messages import RegisterTriggerType

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


@frozen
class Pattern:
    """`*` is any run of characters, everything else literal, anchored at both ends.

    (No regular expression: ids are made up by peers, and one of many stars takes a regular expression for ever.)
    """

    parts: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Pattern":
        """The pattern that `text` spells."""
        return cls(tuple(text.split("*")))

    def matches(self, text: str) -> bool:
        """Whether the whole of `text` fits."""
        head, *rest = self.parts
        if not rest:
            return text == head
        *middle, tail = rest
        at, end = len(head), len(text) - len(tail)
        if at > end or not text.startswith(head) or not text.endswith(tail):
            return False
        for part in middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return True


def unwrap(text: str) -> str | None:
    """The pattern inside `match("…")`, or None when the text is no such expression."""
    found = _MATCH.fullmatch(text)
    return None if found is None else found[1] if found[1] is not None else found[2]


def grant(text: str) -> Pattern:
    """A grant: an id, a wildcard, or either inside `match("…")` (spec/protocol.md §14.3)."""
    inner = unwrap(text)
    return Pattern.of(text if inner is None else inner)


@frozen
class ExposeFilter:
    """One entry of `rbac.expose_functions`: a pattern on the id, or metadata that must match, in one namespace."""

    pattern: Pattern | None = None
    metadata: dict[str, Any] | None = None
    namespace: str = DEFAULT_NAMESPACE

    def matches(self, namespace: str, function_id: str, entry: FunctionEntry | None) -> bool:
        """Whether the function (None: it does not exist) is exposed by this filter."""
        if namespace != self.namespace:
            return False
        if self.pattern is not None:
            return self.pattern.matches(function_id)
        has = entry.metadata.decode() if entry is not None else None
        if not isinstance(has, dict) or self.metadata is None:
            return False
        return all(key in has and _value_matches(wanted, has[key]) for key, wanted in self.metadata.items())


def _value_matches(wanted: Any, value: Any) -> bool:
    pattern = unwrap(wanted) if isinstance(wanted, str) else None
    if pattern is not None:
        return isinstance(value, str) and Pattern.of(pattern).matches(value)
    return _same_json(wanted, value)


def _same_json(one: Any, other: Any) -> bool:
    """Equality of JSON values: to Python true is 1 and 1 is 1.0, here they differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same_json(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same_json, one, other))
    return type(one) is type(other) and bool(one == other)


@frozen(kw_only=True)
class Hooks:
    """The functions that decide on registrations (spec/protocol.md §14.6); None: nobody is asked."""

    function: str | None = None
    trigger: str | None = None
    trigger_type: str | None = None


NO_HOOKS: Final = Hooks()


@define(eq=False, kw_only=True)
class Session:
    """What a connection under access control may do (spec/protocol.md §14.2), and what its registrations became.

    `namespaces` has the grants by namespace; if there are any, the session is confined to these namespaces. `expose`
    of None means: no `rbac` block. `trigger_types` of None: all. `prefix` of "": none. `functions` and `triggers` have
    what hooks renamed: the id that the worker sent, and the one it is stored under. `claiming` has the types, by namespace
    and the id that it sent, that it gets if their provider turns out to be dead.
    """

    namespaces: dict[str, tuple[Pattern, ...]] = field(factory=dict)
    allowed: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    expose: tuple[ExposeFilter, ...] | None = None
    trigger_types: frozenset[str] | None = None
    may_register_functions: bool = True
    may_register_types: bool = True
    prefix: str = ""
    context: Json = EMPTY_OBJECT
    hooks: Hooks = NO_HOOKS
    functions: dict[str, str] = field(factory=dict)
    triggers: dict[str, str] = field(factory=dict)
    claiming: "dict[tuple[str, str], RegisterTriggerType]" = field(factory=dict)
    verdicts: dict[tuple[str, str], bool] = field(factory=dict)
    revision: int = -1

    def permits(self, namespace: str) -> bool:
        """Whether the session may work in a namespace (spec/protocol.md §14.4)."""
        return not self.namespaces or namespace in self.namespaces

    def refusal(self, namespace: str) -> WireError:
        """The error for working in a namespace that is not permitted."""
        permitted = ", ".join(sorted(self.namespaces))
        text = f"namespace '{namespace}' not allowed for this session (permitted: {permitted})"
        return WireError(text, errors.FORBIDDEN)

    def prefixed(self, function_id: str) -> str:
        """What a function id becomes on its way into the registry (spec/protocol.md §14.5)."""
        return f"{self.prefix}::{function_id}" if self.prefix else function_id

    def check_type(self, trigger_type: str) -> WireError | None:
        """None when triggers of that type may be registered, else the `FORBIDDEN` error. Aliases are their types."""
        types = self.trigger_types
        if types is None or trigger_type in types or ALIASES.get(trigger_type, trigger_type) in types:
            return None
        return WireError(f"Trigger type '{trigger_type}' is not allowed for this session.", errors.FORBIDDEN)


@define(eq=False)
class Access:
    """The decision, cached per session until the registry's revision moves.

    `protected` has the ids of functions by which ports tell who may do what: no session may register one, in no
    namespace, or it would decide on the others.
    """

    functions: Functions
    protected: set[str] = field(factory=set)

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
        if any(pattern.matches(function_id) for pattern in session.namespaces.get(namespace, ())):
            return True
        if namespace == DEFAULT_NAMESPACE and function_id in session.allowed:
            return True
        if function_id in INFRASTRUCTURE or session.expose is None:
            return True
        return any(rule.matches(namespace, function_id, entry) for rule in session.expose)
