"""Settings classes: how a module declares its settings.

A settings class is a frozen attrs class whose fields are made by `setting()` (or `no_op()`); the field's metadata says
when a change takes effect, what the value means and what it may be. The same metadata checks a constructor call,
a block of the user's file or a stored entry (structuring.py), and yields the JSON Schema (schema.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar

import attrs
from attrs import NOTHING, field, frozen

from iii_trio.config.problems import did_you_mean

T = TypeVar("T")
Tier: TypeAlias = Literal["live", "rebind", "restart"]
"""How a change takes effect: at once, by rebinding the listener, or by starting the worker again."""

_KEY: Final = "iii_trio.setting"


@frozen(kw_only=True)
class SettingInfo:
    """What a field's metadata says about a setting."""

    doc: str
    tier: Tier | None = None
    """None for a no-op."""
    unit: str = ""
    ge: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()
    nonempty: bool = False
    aliases: tuple[str, ...] = ()
    no_op: str = ""
    """Why the key is accepted although it changes nothing; "" for a setting that does something."""
    refusal: Callable[[str, Any], str] | None = None
    translate: Callable[[str], str] | None = None
    gate: bool = False
    filled: bool = False

    def refuse(self, owner: str, value: object) -> str | None:
        """Why `value` is out of bounds, or None. `owner` is the name the settings object stands under."""
        message = self._violation(value)
        if message is None or self.refusal is None:
            return message
        return self.refusal(owner, value)

    def _violation(self, value: object) -> str | None:
        if isinstance(value, str):
            if self.nonempty and not value.strip():
                return "must not be empty"
            if self.choices and value not in self.choices:
                allowed = ", ".join(f"'{choice}'" for choice in self.choices)
                return f"must be one of {allowed}, not '{value}'{did_you_mean(value, self.choices)}"
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if self.ge is not None and not value >= self.ge:
                return f"must be at least {self.ge}, not {value}"
            if self.le is not None and not value <= self.le:
                return f"must be at most {self.le}, not {value}"
        return None


def setting(
    default: Any = NOTHING,
    *,
    tier: Tier,
    doc: str,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    choices: Sequence[str] = (),
    nonempty: bool = False,
    aliases: Sequence[str] = (),
    refusal: Callable[[str, Any], str] | None = None,
    translate: Callable[[str], str] | None = None,
    gate: bool = False,
    filled: bool = False,
    converter: Callable[[Any], Any] | None = None,
) -> Any:
    """A field of a settings class; without `default` the key is required.

    `tier`: how a change takes effect. `doc`, `unit`: one sentence, and the unit ("ms", "bytes"), for schema and help.
    `ge`, `le`, `choices`, `nonempty`: bounds, checked by constructor and `structure()` alike (None always passes).
    `aliases`: older spellings of the key; its camelCase form is understood anyway. `refusal(owner, value)`: the message
    for a value out of bounds, in place of the general one. `translate`: older spellings of a text value, applied
    before the bounds. `gate`: if this one is refused, the rest of the block is not looked at (it depends on it).
    `filled`: a key written without a value is refused instead of meaning None. `converter`: attrs', on construction.
    """
    info = SettingInfo(
        doc=doc,
        tier=tier,
        unit=unit,
        ge=ge,
        le=le,
        choices=tuple(choices),
        nonempty=nonempty,
        aliases=tuple(aliases),
        refusal=refusal,
        translate=translate,
        gate=gate,
        filled=filled,
    )
    return field(default=default, converter=converter, validator=_check_bounds, metadata={_KEY: info})


def no_op(
    default: Any = None,
    *,
    why: str,
    doc: str,
    unit: str = "",
    ge: float | None = None,
    le: float | None = None,
    choices: Sequence[str] = (),
    refusal: Callable[[str, Any], str] | None = None,
) -> Any:
    """A key that other engines give a meaning and this one accepts without effect; `why` says so in the start log.

    It is in the schema with its bounds. A value of the right type but out of bounds is noted and dropped, not refused,
    unless `refusal` is given.
    """
    info = SettingInfo(doc=doc, unit=unit, ge=ge, le=le, choices=tuple(choices), no_op=why, refusal=refusal)
    return field(default=default, validator=_check_bounds, metadata={_KEY: info})


def setting_info(attribute: attrs.Attribute[Any]) -> SettingInfo:
    """The metadata `setting()` or `no_op()` put on an attrs field. Raises `KeyError` for any other field."""
    info: SettingInfo = attribute.metadata[_KEY]
    return info


def setting_fields(cls: type[Any]) -> tuple[attrs.Attribute[Any], ...]:
    """The fields of a settings class with their annotations resolved."""
    return attrs.fields(attrs.resolve_types(cls))  # type: ignore[no-any-return]


def _check_bounds(instance: Any, attribute: attrs.Attribute[Any], value: object) -> None:
    name = type(instance).__name__
    if message := setting_info(attribute).refuse(name, value):
        raise ValueError(f"{name}.{attribute.name}: {message}")


def changed_settings(old: T, new: T) -> Mapping[str, Tier]:
    """The top-level settings in which two objects of one class differ, with the tier of each; no-ops are left out."""
    changes: dict[str, Tier] = {}
    for attribute in setting_fields(type(old)):
        tier = setting_info(attribute).tier
        if tier is not None and getattr(old, attribute.name) != getattr(new, attribute.name):
            changes[attribute.name] = tier
    return changes
