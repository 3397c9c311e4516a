"""The links to other engines, one for each URL and token, whoever keeps data there."""

from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

from attrs import define, field

from ..modules.bridge import Bridge


@define(eq=False)
class Bridges:
    """Every link by (URL, token), under the name by which it is supervised. Whoever asks for one starts it."""

    _bridges: dict[tuple[str, str | None], tuple[str, Bridge]] = field(factory=dict, init=False)

    def get(self, url: str, token: str | None) -> tuple[str, Bridge]:
        """The link and its name. Raises `ConfigError` for a URL that is none."""
        key = (url, token)
        if key not in self._bridges:
            taken = {name for name, _ in self._bridges.values()}
            names = [_name(url), *(f"{_name(url)} ({number})" for number in range(2, len(taken) + 3))]
            self._bridges[key] = (next(name for name in names if name not in taken), Bridge(url, token))
        return self._bridges[key]

    def drop(self, useless: Callable[[Bridge], bool]) -> list[str]:
        """Forget the links of which `useless` is true; returns their names."""
        dropped = {key: name for key, (name, bridge) in self._bridges.items() if useless(bridge)}
        for key in dropped:
            del self._bridges[key]
        return list(dropped.values())


def _name(url: str) -> str:
    """What health and logs call it: without what the URL may have of secrets."""
    parts = urlsplit(url)
    return f"bridge {urlunsplit((parts.scheme, parts.netloc.rpartition('@')[2], parts.path, '', ''))}"
