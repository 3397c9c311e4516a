"""An entry of the configuration, and every change to one as a pure function (spec/pubsub-cron-config-cli.md §4.1, §4.2).

An entry's value is what somebody set (`kept`), else what its owner runs on until somebody does (`seed`), else null. Only
what was set is stored. Values stand as they were written, placeholders included; they are expanded by who reads them.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve, frozen

from ...config.templates import Expanded, expand
from ...protocol import ABSENT, NULL, Json
from ...protocol.codec import canonical_text
from ...protocol.errors import WireError
from .schemas import SchemaInvalid, check_schema, violations

NOT_FOUND: Final = "NOT_FOUND"
NOT_REGISTERED: Final = "NOT_REGISTERED"
INVALID_ID: Final = "INVALID_ID"
SCHEMA_INVALID: Final = "SCHEMA_INVALID"
SCHEMA_UNAVAILABLE: Final = "SCHEMA_UNAVAILABLE"
EXPAND_FAILED: Final = "EXPAND_FAILED"
ADAPTER_ERROR: Final = "ADAPTER_ERROR"
CONFLICT: Final = "CONFLICT"
TOO_LARGE: Final = "VALUE_TOO_LARGE"
MASKED: Final = "SECRET_MASKED"

REGISTERED: Final = "configuration:registered"
UPDATED: Final = "configuration:updated"
DELETED: Final = "configuration:deleted"
EVENT_TYPES: Final = (REGISTERED, UPDATED, DELETED)

_ID: Final = re.compile(r"[a-z0-9_-]{1,64}")


@frozen(kw_only=True)
class ConfigurationEntry:
    """One entry. `schema` of NULL: its owner has not registered yet. `metadata` of ABSENT: there is none."""

    id: str
    name: str
    description: str
    schema: Json = NULL
    kept: Json = ABSENT
    seed: Json = ABSENT
    metadata: Json = ABSENT
    remembered: Json = ABSENT
    """Of an entry from a file, until its owner registers: the schema it had last, NULL if that is not known."""

    @property
    def value(self) -> Json:
        """The value as it was written; NULL when there is none."""
        return self.seed.or_null() if self.kept.or_null() == NULL else self.kept

    def expanded(self, environ: Mapping[str, str]) -> Expanded:
        """The value with its placeholders replaced."""
        return expand(self.value.decode(), environ)

    def described(self) -> dict[str, Any]:
        """The entry without its value."""
        about = {"id": self.id, "name": self.name, "description": self.description, "schema": self.schema.decode()}
        return about if self.metadata.absent else {**about, "metadata": self.metadata.decode()}


@frozen
class Changed:
    """What became of an entry: `old` of None did not exist before, `new` of None does not exist any more."""

    old: ConfigurationEntry | None
    new: ConfigurationEntry | None

    @property
    def event_type(self) -> str:
        """The event that tells of it."""
        return DELETED if self.new is None else REGISTERED if self.old is None else UPDATED

    @property
    def entry(self) -> ConfigurationEntry:
        """The entry as it is now, or was last."""
        entry = self.new or self.old
        assert entry is not None
        return entry

    @property
    def visible(self) -> bool:
        """Whether anybody can see it: a seed behind a value that was set is nobody's business."""
        if self.old is None or self.new is None:
            return True
        return (self.old.described(), self.old.value) != (self.new.described(), self.new.value)

    def __bool__(self) -> bool:
        return self.old != self.new


@frozen(kw_only=True)
class Registration:
    """What `configuration::register` brings. `initial` and `seed` of ABSENT leave those of the entry as they are."""

    id: str
    name: str
    description: str
    schema: Json
    initial: Json = ABSENT
    seed: Json = ABSENT
    metadata: Json = ABSENT


def check_id(entry_id: str) -> None:
    """Raises `WireError` for an id that no entry may have."""
    if not _ID.fullmatch(entry_id):
        raise WireError(f"invalid configuration id '{entry_id[:80]}': must match [a-z0-9_-]{{1,64}}", INVALID_ID)


def registered(
    old: ConfigurationEntry | None, said: Registration, environ: Mapping[str, str], *, hidden: bool = False
) -> ConfigurationEntry:
    """The entry after a registration: what it says of itself is new, its value only if it brings one.

    A value that stands is not looked at again. Raises `WireError` for an id, a schema or a value that does not do,
    quoting no value if `hidden`.
    """
    check_id(said.id)
    try:
        check_schema(said.schema)
    except SchemaInvalid as error:
        raise _schema_invalid([f"invalid JSON Schema: {error}"]) from None
    entry = ConfigurationEntry(
        id=said.id,
        name=said.name,
        description=said.description,
        schema=said.schema,
        kept=ABSENT if old is None else old.kept,
        seed=said.seed if said.seed or old is None else old.seed,
        metadata=said.metadata,
    )
    if said.initial.or_null() == NULL:
        return entry
    check_value(entry, said.initial, environ, hidden=hidden)
    return evolve(entry, kept=said.initial)


def value_set(
    old: ConfigurationEntry | None, entry_id: str, value: Json, environ: Mapping[str, str], *, hidden: bool = False
) -> ConfigurationEntry:
    """The entry after `configuration::set`. Raises `WireError`, quoting no value if `hidden`."""
    check_id(entry_id)
    if old is None:
        text = f"configuration '{entry_id}' is not registered; call configuration::register first"
        raise WireError(text, NOT_REGISTERED)
    if old.schema == NULL:
        text = (
            f"configuration '{entry_id}' has no schema available yet; "
            "the owning worker must register before values can be set"
        )
        raise WireError(text, SCHEMA_UNAVAILABLE)
    check_value(old, value, environ, hidden=hidden)
    return evolve(old, kept=value)


def value_reset(old: ConfigurationEntry) -> ConfigurationEntry | None:
    """The entry without what was set; None when nothing else is known of it."""
    return None if old.schema == NULL and old.seed.absent else evolve(old, kept=ABSENT)


def check_value(entry: ConfigurationEntry, value: Json, environ: Mapping[str, str], *, hidden: bool = False) -> None:
    """Raises `WireError` for a value that does not fit the schema; one with unresolved placeholders cannot be judged yet."""
    expanded = expand(value.decode(), environ)
    if not expanded.missing:
        _validate(entry, expanded.value, hidden=hidden)


def value_read(entry: ConfigurationEntry, environ: Mapping[str, str], *, hidden: bool = False) -> Any:
    """What `configuration::get` answers: the expanded value, still valid. Raises `WireError`, quoting nothing if `hidden`."""
    expanded = entry.expanded(environ)
    if expanded.missing:
        names = ", ".join(expanded.missing)
        text = f"configuration '{entry.id}' references unset environment variable(s) with no default: {names}"
        raise WireError(text, EXPAND_FAILED)
    if entry.value != NULL:
        _validate(entry, expanded.value, hidden=hidden)
    return expanded.value


def same_value(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal, whatever the order of their keys."""
    return canonical_text(one) == canonical_text(other)


def merged(target: Any, patch: Any) -> Any:
    """JSON Merge Patch (RFC 7396): objects are merged key by key, null takes a key out, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), item)
    return result


def _validate(entry: ConfigurationEntry, value: Any, *, hidden: bool) -> None:
    try:
        found = violations(entry.schema, value, hidden=hidden)
    except SchemaInvalid as error:
        found = [f"invalid JSON Schema: {error}"]
    if found:
        raise _schema_invalid(found)


def _schema_invalid(found: list[str]) -> WireError:
    return WireError(f"schema validation failed: {'; '.join(found)}", SCHEMA_INVALID)
