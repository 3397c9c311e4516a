"""Which web pages may connect to a port: any page that a browser shows could, and browsers say whose page it is.

A page can open a WebSocket to every address that its browser reaches, loopback included, without being asked first;
what protects a port is the `Origin` header, which pages cannot choose (RFC 6455 §10.2). Programs that are no browser
send none and are not looked at here.
"""

import logging
from collections.abc import Collection
from typing import Final

from attrs import define, field

from iii_trio.protocol.errors import shorten
from iii_trio.protocol.limits import ORIGINS_NAMED
from iii_trio.protocol.origins import ANY, canonical_origin
from iii_trio.transport.handshake import Refusal, Request

log = logging.getLogger(__name__)

ORIGIN_CHARS: Final = 200
"""As much of a refused origin is shown."""


@define(eq=False)
class OriginGate:
    """Admits requests to one port by their origin, and says in the log once for each origin that it was refused.

    `port` is what log and refusals call the port, `worker` the worker in whose settings `allowed_origins` stands.
    """

    port: str
    worker: str
    _named: set[str] = field(factory=set, init=False)

    def refuse(self, request: Request, allowed: Collection[str] | None) -> Refusal | None:
        """The refusal (403) of a page whose origin is not `allowed`; None if it may connect, or is no page.

        `allowed` of None admits every page, an empty one none.
        """
        origins = [value for name, value in request.headers if name == "origin"]
        if allowed is None or not origins:
            return None
        admitted = set(map(_canonical, allowed))
        if ANY in admitted:
            return None
        refused = next((origin for origin in origins if _canonical(origin) not in admitted), None)
        if refused is None:
            return None
        shown = repr(shorten(refused, ORIGIN_CHARS))
        self._name(shown)
        return Refusal(
            403,
            f"Web pages of the origin {shown} may not connect to {self.port}; "
            f"to admit them, add it to `allowed_origins` of {self.worker} in the engine's configuration.\n",
        )

    def _name(self, shown: str) -> None:
        if shown in self._named or len(self._named) >= ORIGINS_NAMED:
            return
        self._named.add(shown)
        last = len(self._named) == ORIGINS_NAMED
        log.warning(
            "%s refused a web page of the origin %s; to admit it, add the origin to `allowed_origins` of %s (%s)",
            self.port,
            shown,
            self.worker,
            "said once per origin, and no more origins are named" if last else "said once per origin",
        )


def _canonical(origin: str) -> str:
    """One spelling for header and settings; what is no origin stays as it is."""
    try:
        return canonical_origin(origin)
    except ValueError:
        return origin
