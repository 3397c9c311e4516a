"""What a `sync` shows: an item or a group, from the store in line with its writes, from a provider, or from another engine."""

from collections.abc import Callable

from attrs import define

from ...engine import Outcome
from ...protocol import NULL, Json
from ...stores import Change, Failed, KeyValue, Result, Store, StoreClosed, Updated
from ..remote import Remote
from .events import Group
from .functions import SPACE, array
from .providers import Providers


@define(eq=False)
class Snapshots:
    """See `Source`: an item or a group as a `sync` shows it (§7.5). With a `remote`, `store` is not used."""

    store: Store
    providers: Providers
    warn: Callable[[Group, str | None, str], None]
    remote: Remote | None = None

    def in_line(self, stream: str, item: str | None) -> bool:
        """See `Source.in_line`."""
        return self.remote is None and not self._provided(stream, item)

    def _provided(self, stream: str, item: str | None) -> bool:
        return self.providers.has("list" if item is None else "get", stream)

    def read(self, group: Group, item: str | None, on_done: Callable[[Json | None], None]) -> None:
        """See `Source.read`; a missing item is null, an unknown group is empty."""
        stream, group_id = group
        if self.in_line(stream, item):
            try:
                self._read(self.store.key_value(SPACE + stream), group, item, on_done)
            except StoreClosed as error:
                self._failed(group, item, str(error), on_done)
            return

        def answered(outcome: Outcome) -> None:
            if not outcome.ok:
                self._failed(group, item, str(outcome.exception()), on_done)
            elif item is None and not outcome.result.raw.lstrip().startswith(b"["):
                self._failed(group, item, "the answer is no array", on_done)
            else:
                on_done(outcome.result.or_null())

        place = {"stream_name": stream, "group_id": group_id}
        operation, payload = ("list", place) if item is None else ("get", {**place, "item_id": item})
        if self.remote is None or self._provided(stream, item):
            self.providers.call(operation, stream, Json.of(payload), answered)
        else:
            self.remote.request(f"stream::{operation}", Json.of(payload), answered)

    def _read(self, values: KeyValue, group: Group, item: str | None, on_done: Callable[[Json | None], None]) -> None:
        def listed(result: Result[list[bytes]]) -> None:
            if isinstance(result, Failed):
                self._failed(group, item, str(result.error), on_done)
            else:
                on_done(array(result.value))

        def found(result: Result[Updated[None]]) -> None:
            if isinstance(result, Failed):
                self._failed(group, item, str(result.error), on_done)
            else:
                on_done(NULL if result.value.old is None else Json(result.value.old))

        if item is None:
            values.values_in_line(group[1], listed)
        else:
            # an update that changes nothing: the one way to read a key in line with its writes
            values.update(group[1], item, lambda _: Change(None, None), found)

    def _failed(self, group: Group, item: str | None, why: str, on_done: Callable[[Json | None], None]) -> None:
        self.warn(group, item, why)
        on_done(None)
