"""Shared functions: several workers serve one id, and each call goes to the one that runs the fewest and keeps up.

A worker shares a function by `"iii.shared": true` in the metadata of its registration; without that a function is
exclusive. While a shared claim serves, every other shared claim on the id serves beside it, with no order among them:
one that leaves takes nothing with it but the calls that it ran.
"""

from typing import TYPE_CHECKING, Final

from attrs import define, field

from ..protocol import Json, JsonError

if TYPE_CHECKING:
    from .functions import FunctionEntry

SHARED: Final = "iii.shared"


def asks_to_share(metadata: Json) -> bool:
    """Whether a registration with this metadata shares its function."""
    if SHARED.encode() not in metadata.raw:
        return False
    try:
        value = metadata.decode()
    except JsonError:
        return False
    return isinstance(value, dict) and value.get(SHARED) is True


@define(eq=False, repr=False)
class Replicas:
    """The claims that serve one function together, the one chosen last at the end; never empty while one serves."""

    _entries: "dict[FunctionEntry, None]" = field(factory=dict)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def first(self) -> "FunctionEntry":
        """Any one of them."""
        return next(iter(self._entries))

    def keeping_up(self) -> "list[FunctionEntry]":
        """Those whose workers read what is sent to them."""
        return [entry for entry in self._entries if not entry.owner.behind]

    def join(self, entry: "FunctionEntry") -> None:
        """Let `entry` serve with the others."""
        entry.replicas = self
        self._entries[entry] = None

    def leave(self, entry: "FunctionEntry") -> None:
        """`entry` serves no more; the calls it runs are not ours to move."""
        entry.replicas = None
        del self._entries[entry]

    def choose(self) -> "FunctionEntry":
        """Who gets the next call: the entry that runs the fewest, among equals the one chosen longest ago.

        A running call is one that was `started` and is not in `count` yet. Which it is now, for one more. A worker that
        does not read what it is sent gets none while another does, though it may run fewer.
        """
        entries = self._entries
        chosen = self.first
        fewest = chosen.started - chosen.count
        if fewest > 0:
            for entry in entries:
                running = entry.started - entry.count
                if running < fewest:
                    chosen, fewest = entry, running
                    if running <= 0:
                        break
        if chosen.owner.behind:
            chosen = min(self.keeping_up(), key=lambda entry: entry.started - entry.count, default=chosen)
        del entries[chosen]
        entries[chosen] = None
        chosen.started += 1
        return chosen
