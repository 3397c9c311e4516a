"""The update operations of `state::update` and `stream::update` (spec/state-stream.md §4), without any store.

`parse_ops` turns what a caller sent into `Ops` or refuses all of it; `Ops.apply` carries them out on a decoded value.
An operation that cannot be done is skipped and reported, the others go on. Nothing that was passed in is modified: the
containers on the way to a change are copied once, everything else is shared.
"""

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from attrs import define, field, frozen

MAX_SEGMENTS: Final = 32
MAX_SEGMENT_BYTES: Final = 256
MAX_MERGE_KEYS: Final = 1024
MAX_MERGE_DEPTH: Final = 16
_POLLUTING: Final = frozenset(("__proto__", "constructor", "prototype"))
_INT64: Final = range(-(2**63), 2**63)
_STORED_INTEGERS: Final = range(-(2**63), 2**64)


class Missing(enum.Enum):
    """The type of `MISSING`."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING
"""Stands for the value of a key that does not exist; None is the JSON value null."""


class MalformedOps(ValueError):
    """The operations as a whole are refused; `str()` is the detail of a `deserialization_error`."""


class Applied(NamedTuple):
    """What became of a value.

    `errors` are ready to be sent: `{"op_index", "code", "message"}`, op_index counting in the caller's list.
    `changed_any` is true if an operation succeeded (also one that had nothing to do, as the removal of a missing
    field). A missing key whose operations all failed is not stored; an existing one is written and announced anyway
    (spec/state-stream.md §2, §4.6).
    """

    new_value: Any
    errors: list[dict[str, Any]]
    changed_any: bool


_Problem: TypeAlias = tuple[str, str] | None
"""Code and message of an operation that cannot be done."""


@frozen
class _Op:
    """One well-formed operation; `path` has no segment for the root."""

    type: str
    path: tuple[str, ...] = ()
    value: Any = None


@frozen
class Ops:
    """A well-formed list of operations; `parse_ops` makes one."""

    _ops: tuple[_Op, ...]

    def apply(self, current: Any) -> Applied:
        """Carry them out in order on `current`, a decoded JSON value or `MISSING`."""
        draft = _Draft(value={}, missing=True) if current is MISSING else _Draft(value=current, missing=False)
        errors: list[dict[str, Any]] = []
        for index, op in enumerate(self._ops):
            problem = _unacceptable(op) or _APPLY[op.type](draft, op)
            if problem is None:
                draft.missing = False
            else:
                code, message = problem
                errors.append({"op_index": index, "code": f"{op.type}.{code}", "message": message})
        return Applied(draft.value, errors, len(errors) < len(self._ops))


def apply_ops(current: Any, ops: Any) -> Applied:
    """`parse_ops(ops).apply(current)`; raises `MalformedOps`."""
    return parse_ops(ops).apply(current)


# -- from the wire ----------------------------------------------------------------------------------------------------


def parse_ops(raw: Any) -> Ops:
    """The decoded `ops` of a request; raises `MalformedOps` for the first thing that does not fit (§4.1)."""
    if not isinstance(raw, list):
        raise MalformedOps(f"ops: invalid type: {_shown(raw)}, expected a sequence")
    return Ops(tuple(_parse(f"ops[{index}]", op) for index, op in enumerate(raw)))


def _parse(where: str, raw: Any) -> _Op:
    if not isinstance(raw, Mapping):
        raise MalformedOps(f"{where}: invalid type: {_shown(raw)}, expected a map")
    kind = _required(where, raw, "type")
    match kind:
        case "set":
            return _Op(kind, _key(where, raw), raw.get("value"))
        case "remove":
            return _Op(kind, _key(where, raw))
        case "merge" | "append":
            return _Op(kind, _path(where, raw.get("path")), _required(where, raw, "value"))
        case "increment" | "decrement":
            return _Op(kind, _key(where, raw), _amount(where, _required(where, raw, "by")))
        case str():
            known = ", ".join(f"`{name}`" for name in _APPLY)
            raise MalformedOps(f"{where}: unknown variant `{kind}`, expected one of {known}")
        case _:
            raise MalformedOps(f"{where}.type: invalid type: {_shown(kind)}, expected a string")


def _required(where: str, raw: Mapping[str, Any], name: str) -> Any:
    if name not in raw:
        raise MalformedOps(f"{where}: missing field `{name}`")
    return raw[name]


def _key(where: str, raw: Mapping[str, Any]) -> tuple[str, ...]:
    """A path of no segment or one."""
    path = _required(where, raw, "path")
    if not isinstance(path, str):
        raise MalformedOps(f"{where}.path: invalid type: {_shown(path)}, expected a string")
    return (path,) if path else ()


def _path(where: str, path: Any) -> tuple[str, ...]:
    """A path of any number of segments; the empty string is the root, an empty segment is not."""
    if path is None or path == "":
        return ()
    if isinstance(path, str):
        return (path,)
    if not isinstance(path, list):
        raise MalformedOps(f"{where}.path: invalid type: {_shown(path)}, expected a string or an array of strings")
    for segment in path:
        if not isinstance(segment, str):
            raise MalformedOps(f"{where}.path: invalid type: {_shown(segment)}, expected a string")
    return tuple(path)


def _amount(where: str, by: Any) -> int | float:
    """An integer of 64 bits; a float without fraction counts as one, any other finite float as itself."""
    if isinstance(by, float) and by.is_integer() and int(by) in _INT64:
        return int(by)
    if isinstance(by, float) and math.isfinite(by):
        return by
    if isinstance(by, bool) or not isinstance(by, int):
        raise MalformedOps(f"{where}.by: invalid type: {_shown(by)}, expected i64")
    if by not in _INT64:
        raise MalformedOps(f"{where}.by: invalid value: integer `{by}`, expected i64")
    return by


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f'string "{value[:40]}"'
        case list():
            return "sequence"
        case _:
            return "map"


# -- what is checked before an operation touches anything (§4.3) ------------------------------------------------------


def _unacceptable(op: _Op) -> _Problem:
    if len(op.path) > MAX_SEGMENTS:
        return "path.too_deep", f"Path depth {len(op.path)} exceeds maximum of {MAX_SEGMENTS}"
    for segment in op.path:
        if not segment:
            return "path.empty_segment", "Path contains an empty segment"
        size = len(segment.encode("utf-8", "surrogatepass"))
        if size > MAX_SEGMENT_BYTES:
            return "path.segment_too_long", f"Path segment of {size} bytes exceeds maximum of {MAX_SEGMENT_BYTES}"
        if segment in _POLLUTING:
            return "path.proto_polluted", f"Path segment '{segment}' is not allowed (prototype pollution)."
    return _unmergeable(op.value) if op.type == "merge" else None


def _unmergeable(value: Any) -> _Problem:
    if not isinstance(value, dict):
        return "value.not_an_object", "Merge value must be a JSON object"
    if len(value) > MAX_MERGE_KEYS:
        message = f"Merge value has {len(value)} top-level keys, exceeds maximum of {MAX_MERGE_KEYS}"
        return "value.too_many_keys", message
    for key in value:
        if key in _POLLUTING:
            return "value.proto_polluted", f'Merge value top-level key "{key}" is a prototype-pollution sink'
    depth = _depth(value)
    if depth > MAX_MERGE_DEPTH:
        return "value.too_deep", f"Merge value JSON nesting depth {depth} exceeds maximum of {MAX_MERGE_DEPTH}"
    return None


def _depth(value: Any) -> int:
    """Scalars 0, containers one more than their deepest member. Level by level: what a peer sends may be very deep."""
    depth = 0
    level = [value]
    while containers := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [member for item in containers for member in (item.values() if isinstance(item, dict) else item)]
    return depth


# -- the operations (§4.4) --------------------------------------------------------------------------------------------


@define(eq=False)
class _Draft:
    """The value while operations work on it. A container may be modified once `own` has given it out."""

    value: Any
    missing: bool
    _owned: dict[int, Any] = field(factory=dict, init=False)

    def own(self, container: Any) -> Any:
        """`container` itself if it was made here, else a shallow copy, which then was."""
        if id(container) in self._owned:
            return container
        copy = container.copy()
        self._owned[id(copy)] = copy
        return copy

    def root(self) -> Any:
        """The value, which must be an object, to be modified."""
        self.value = self.own(self.value)
        return self.value

    def object_at(self, path: tuple[str, ...]) -> Any:
        """The object at `path`, to be modified; whatever on the way is no object becomes an empty one."""
        self.value = node = self.own(self.value if isinstance(self.value, dict) else {})
        for segment in path:
            child = node.get(segment)
            child = self.own(child if isinstance(child, dict) else {})
            node[segment] = child
            node = child
        return node


def _set(draft: _Draft, op: _Op) -> _Problem:
    if not op.path:
        draft.value = op.value
        return None
    if not isinstance(draft.value, dict):
        return _no_object(draft, op)
    draft.root()[op.path[0]] = op.value
    return None


def _merge(draft: _Draft, op: _Op) -> _Problem:
    if op.path or isinstance(draft.value, dict):
        draft.object_at(op.path).update(op.value)
    return None


def _increment(draft: _Draft, op: _Op) -> _Problem:
    return _count(draft, op, op.value)


def _decrement(draft: _Draft, op: _Op) -> _Problem:
    return _count(draft, op, -op.value)


def _count(draft: _Draft, op: _Op, amount: int | float) -> _Problem:
    if not op.path:
        total = amount if draft.missing else _sum(draft.value, amount)
        if total is None:
            return "not_number", f"Expected number at path 'root', got {_type(draft.value)}."
        draft.value = total
        return None
    if not isinstance(draft.value, dict):
        return _no_object(draft, op)
    key = op.path[0]
    total = _sum(draft.value[key], amount) if key in draft.value else amount
    if total is None:
        return "not_number", f"Expected number at path '{key}', got {_type(draft.value[key])}."
    draft.root()[key] = total
    return None


def _sum(stored: Any, amount: int | float) -> int | float | None:
    """Exact for integers, as long as the result is one that a store keeps; None if there is no such number."""
    if isinstance(stored, bool) or not isinstance(stored, int | float):
        return None
    if isinstance(stored, int) and isinstance(amount, int):
        return stored + amount if stored + amount in _STORED_INTEGERS else None
    try:
        total = float(stored) + float(amount)
    except OverflowError:
        return None
    return total if math.isfinite(total) else None


def _append(draft: _Draft, op: _Op) -> _Problem:
    if not op.path:
        if draft.missing:
            draft.value = _first(op.value)
            return None
        return _append_to(draft, draft.value, op, lambda grown: setattr(draft, "value", grown))
    if not isinstance(draft.value, dict):
        path = ", ".join(op.path)
        return (
            "target_not_object",
            f"Cannot append at path '[{path}]': target is {_type(draft.value)}, expected object.",
        )
    *parents, key = op.path
    parent = draft.object_at(tuple(parents))
    if key not in parent:
        parent[key] = [op.value] if parents else _first(op.value)
        return None
    return _append_to(draft, parent[key], op, lambda grown: parent.__setitem__(key, grown))


def _append_to(draft: _Draft, leaf: Any, op: _Op, put: Callable[[Any], None]) -> _Problem:
    """Append to a leaf that is there; `put` stores what it has become."""
    label = op.path[-1] if op.path else "root"
    match leaf:
        case list():
            grown = draft.own(leaf)
            grown.append(op.value)
            put(grown)
        case str() if isinstance(op.value, str):
            put(leaf + op.value)
        case str():
            return "type_mismatch", f"Expected string append value at path '{label}', got {_type(op.value)}."
        case None:
            put([op.value] if len(op.path) > 1 else _first(op.value))
        case _:
            message = f"target is {_type(leaf)}, expected array, string, null, or missing field."
            return "type_mismatch", f"Cannot append at path '{label}': {message}"
    return None


def _first(value: Any) -> Any:
    """What the first appended value makes of nothing."""
    return value if isinstance(value, str) else [value]


def _remove(draft: _Draft, op: _Op) -> _Problem:
    if not op.path:
        draft.value = None
        return None
    if not isinstance(draft.value, dict):
        return _no_object(draft, op)
    if op.path[0] in draft.value:
        del draft.root()[op.path[0]]
    return None


def _no_object(draft: _Draft, op: _Op) -> _Problem:
    message = f"Cannot {op.type} at path '{op.path[0]}': target is {_type(draft.value)}, expected object."
    return "target_not_object", message


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


_APPLY: Final[dict[str, Callable[[_Draft, _Op], _Problem]]] = {
    "set": _set,
    "merge": _merge,
    "increment": _increment,
    "decrement": _decrement,
    "append": _append,
    "remove": _remove,
}
