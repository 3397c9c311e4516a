"""Clients for what every engine has built in: state and streams. They always address namespace `default`."""

from typing import TYPE_CHECKING, Any, ClassVar, Final

from attrs import asdict, frozen

if TYPE_CHECKING:
    from .client import Client

DEFAULT_NAMESPACE: Final = "default"


@frozen(kw_only=True)
class Set:
    """Replace the value at `path`: a first-level key, or the whole value for ""."""

    path: str
    value: Any
    type: ClassVar[str] = "set"


@frozen(kw_only=True)
class Merge:
    """Assign the keys of the object `value` at `path`: "" for the whole value, a key, or a list of nested keys."""

    value: dict[str, Any]
    path: str | list[str] = ""
    type: ClassVar[str] = "merge"


@frozen(kw_only=True)
class Increment:
    """Add `by` to the number at `path`; a missing one counts from 0."""

    path: str
    by: int | float = 1
    type: ClassVar[str] = "increment"


@frozen(kw_only=True)
class Decrement:
    """Subtract `by` from the number at `path`; a missing one counts from 0."""

    path: str
    by: int | float = 1
    type: ClassVar[str] = "decrement"


@frozen(kw_only=True)
class Append:
    """Append `value` to the array, or the text, at `path`."""

    value: Any
    path: str | list[str] = ""
    type: ClassVar[str] = "append"


@frozen(kw_only=True)
class Remove:
    """Remove the first-level key `path`."""

    path: str
    type: ClassVar[str] = "remove"


Operation = Set | Merge | Increment | Decrement | Append | Remove | dict[str, Any]
"""One step of an update (spec/state-stream.md §4): one of the classes, or its wire form."""


@frozen(kw_only=True)
class Change:
    """What a write did. `old_value` is None for a new key; `errors` lists the steps of an update that failed."""

    old_value: Any = None
    new_value: Any = None
    errors: tuple[dict[str, Any], ...] = ()


Items = list[tuple[str, Any]]
"""Keys with their values."""


@frozen
class Scope:
    """One scope of the engine's state (spec/state-stream.md §2): text keys to JSON values."""

    _client: "Client"
    name: str

    async def get(self, key: str, *, into: Any = None) -> Any:
        """The value of `key`, None if there is none; structured as the type `into`, if given."""
        return await self._call("get", {"key": key}, into)

    async def set(self, key: str, value: Any, *, ttl: float | None = None) -> Change:
        """Store `value`; on disk when this returns.

        After `ttl` seconds the key is gone, and nobody reads it a moment longer. Without it the key stays until it is
        removed, whatever was said before.
        """
        return _change(await self._call("set", {"key": key, "value": value, **_lifetime(ttl)}))

    async def update(self, key: str, *operations: Operation, ttl: float | None = None) -> Change:
        """Apply the operations in order as one atomic step. A key keeps its time, unless `ttl` (s) gives it another."""
        ops = [_wire(one) for one in operations]
        return _change(await self._call("update", {"key": key, "ops": ops, **_lifetime(ttl)}))

    async def delete(self, key: str) -> Any:
        """Remove `key`; its value, None if there was none."""
        return await self._call("delete", {"key": key})

    async def list(self, *, prefix: str | None = None, after: str | None = None, limit: int | None = None) -> Any:
        """Every value of the scope, a list without the keys, in the order in which the keys were first set.

        With one of the options as `items`, without the keys.
        """
        return await self._call("list", _page(prefix, after, limit))

    async def items(self, *, prefix: str | None = None, after: str | None = None, limit: int | None = None) -> Items:
        """Keys with their values, in the order in which the keys were first set.

        With one of the options by key: those that begin with `prefix`, greater than `after`, at most `limit` of them.
        Fewer than `limit` are the last ones; else go on with `after` the last key.
        """
        rows = await self._call("list", {**_page(prefix, after, limit), "keys": True})
        return [(row["key"], row["value"]) for row in rows]

    async def _call(self, operation: str, payload: dict[str, Any], into: Any = None) -> Any:
        return await self._client.call(
            f"state::{operation}", {"scope": self.name, **payload}, namespace=DEFAULT_NAMESPACE, into=into
        )


@frozen
class State:
    """The engine's key-value store: `state["scope"]` is one scope of it."""

    _client: "Client"

    def __getitem__(self, scope: str) -> Scope:
        return Scope(self._client, scope)

    async def scopes(
        self, *, prefix: str | None = None, after: str | None = None, limit: int | None = None
    ) -> list[str]:
        """The names of the scopes that hold something, sorted; the options are those of `Scope.items`."""
        payload = _page(prefix, after, limit)
        result = await self._client.call("state::list_groups", payload, namespace=DEFAULT_NAMESPACE)
        groups = result.get("groups", []) if isinstance(result, dict) else result
        return [str(group) for group in groups or ()]


def _lifetime(ttl: float | None) -> dict[str, int]:
    return {} if ttl is None else {"ttl_ms": max(1, round(ttl * 1000))}


def _page(prefix: str | None, after: str | None, limit: int | None) -> dict[str, Any]:
    options = (("prefix", prefix), ("after", after), ("limit", limit))
    return {name: value for name, value in options if value is not None}


@frozen
class Group:
    """One group of a stream (spec/state-stream.md §3): text item ids to JSON values, in the order they were first set.

    Everybody who follows the group is told of each change, in the order of the writes.
    """

    _client: "Client"
    stream: str
    id: str

    async def get(self, item: str, *, into: Any = None) -> Any:
        """The value of `item`, None if there is none; structured as the type `into`, if given."""
        return await self._call("get", {"item_id": item}, into)

    async def set(self, item: str, value: Any) -> Change:
        """Store `value`; on disk when this returns. Followers in browsers expect an object with the item's id in `id`."""
        return _change(await self._call("set", {"item_id": item, "data": value}))

    async def update(self, item: str, *operations: Operation) -> Change:
        """Apply the operations in order as one atomic step."""
        return _change(await self._call("update", {"item_id": item, "ops": [_wire(one) for one in operations]}))

    async def delete(self, item: str) -> Any:
        """Remove `item`; its value, None if there was none."""
        return _change(await self._call("delete", {"item_id": item})).old_value

    async def list(self) -> Any:
        """Every value of the group, a list without the ids."""
        return await self._call("list", {})

    async def send(self, type: str, data: Any = None, *, item: str | None = None) -> None:
        """Tell whoever follows the group now, or with `item` that item; nothing is stored."""
        await self._call("send", {"type": type, "data": data, **({} if item is None else {"id": item})})

    async def _call(self, operation: str, payload: dict[str, Any], into: Any = None) -> Any:
        place = {"stream_name": self.stream, "group_id": self.id}
        return await self._client.call(
            f"stream::{operation}", {**place, **payload}, namespace=DEFAULT_NAMESPACE, into=into
        )


@frozen
class Stream:
    """One stream: `stream["group"]` is one group of it."""

    _client: "Client"
    name: str

    def __getitem__(self, group: str) -> Group:
        return Group(self._client, self.name, group)

    async def groups(self) -> list[str]:
        """The ids of all groups that hold something."""
        payload = {"stream_name": self.name}
        result = await self._client.call("stream::list_groups", payload, namespace=DEFAULT_NAMESPACE)
        found = result.get("groups", []) if isinstance(result, dict) else result
        return [str(group) for group in found or ()]


def _wire(operation: Operation) -> dict[str, Any]:
    if isinstance(operation, dict):
        return operation
    return {"type": operation.type, **asdict(operation, recurse=False)}


def _change(result: Any) -> Change:
    values = result if isinstance(result, dict) else {}
    return Change(
        old_value=values.get("old_value"),
        new_value=values.get("new_value"),
        errors=tuple(values.get("errors") or ()),
    )
