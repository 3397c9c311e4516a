"""The links to other engines, one for each URL and token, whoever keeps data there."""

from collections.abc import Sequence

import trio
from attrs import define, field

from ..modules.bridge import Bridge


@define(eq=False)
class Bridges:
    """Every link by (URL, token), under the name by which it is supervised. Whoever asks for one starts it.

    `promised`: links of workers, by name, that are about to run on them. `busy`: held while one starts or ends.
    """

    busy: trio.Lock = field(factory=trio.Lock, init=False)
    promised: dict[str, Bridge] = field(factory=dict, init=False)
    _bridges: dict[tuple[str, str | None], tuple[str, Bridge]] = field(factory=dict, init=False)

    def get(self, url: str, token: str | None) -> tuple[str, Bridge]:
        """The link and its name. Raises `ConfigError` for a URL that is none."""
        key = (url, token)
        if key not in self._bridges:
            bridge, taken = Bridge(url, token), {name for name, _ in self._bridges.values()}
            name = f"bridge {bridge.shown}"
            names = (name, *(f"{name} ({number})" for number in range(2, len(taken) + 3)))
            self._bridges[key] = (next(name for name in names if name not in taken), bridge)
        return self._bridges[key]

    def drop(self, held: Sequence[object]) -> list[str]:
        """Forget the links that are not among those; returns their names."""
        dropped = {key: name for key, (name, bridge) in self._bridges.items() if bridge not in held}
        for key in dropped:
            del self._bridges[key]
        return list(dropped.values())
