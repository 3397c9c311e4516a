"""The admin port, off unless configured: is the process alive, is it ready, and what has it counted.

`GET /live` answers 200 while the event loop turns. `GET /ready` answers 200 while the engine serves and every built-in
worker runs, else 503, with the reasons. `GET /counters` gives every number of the host's statistics as a line
`name value`, which scrapers of the text exposition format read as untyped metrics. There is no access control: it
shows names of built-in workers and numbers, and listens on loopback unless told otherwise.
"""

import json
import logging
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Final

import attrs
import trio
from attrs import define, field, frozen

from ..config import AdminSettings, Live
from ..engine import Engine
from ..engine.engine import EngineState
from ..engine.listener import bind
from ..modules.http.asgi import Incoming, Receive, Scope, Send, write
from ..modules.http.connections import Connections, ConnectionStatistics
from ..modules.http.messages import Response

log = logging.getLogger(__name__)

_JSON: Final = ((b"content-type", b"application/json"),)
_TEXT: Final = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
_PATHS: Final = ("/live", "/ready", "/counters")
MAX_CONNECTIONS: Final = 64


@frozen
class AdminStatistics:
    """Connections to the port; None while it does not listen."""

    connections: ConnectionStatistics | None


@define(eq=False)
class AdminModule:
    """The port. `picture` gives the statistics that `/counters` shows. `addresses`: where it listens, while it does."""

    settings: Live[AdminSettings]
    picture: Callable[[], object]
    addresses: tuple[tuple[str, int], ...] = field(default=(), init=False)
    _connections: Connections | None = field(default=None, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Raises `ConfigError` for an address that cannot be bound."""
        settings = self.settings.value
        listeners = await bind(settings.host, settings.port, "`port` of the admin worker")
        self.addresses = tuple(listener.socket.getsockname()[:2] for listener in listeners)
        log.info("the admin port is %s:%d", *self.addresses[0])

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await write(scope, send, Incoming(receive, 0), self._answer(core, scope["method"], scope["path"]))

        try:
            self._connections = Connections(app=app, max_connections=MAX_CONNECTIONS, grace_s=0.5)
            await self._connections.serve(listeners, task_status=task_status)
        finally:
            for listener in listeners:
                listener.socket.close()
            self.addresses = ()
            self._connections = None

    def _answer(self, core: Engine, method: str, path: str) -> Response:
        if path not in _PATHS:
            return _json(404, {"error": f"nothing is here; there are {', '.join(_PATHS)}"})
        if method not in ("GET", "HEAD"):
            return _json(405, {"error": "only GET is answered here"})
        if path == "/live":
            return _json(200, {"status": "alive"})
        if path == "/ready":
            waits = {name: state for name, state in core.modules.items() if state != "running"}
            ready = core.state is EngineState.SERVING and not waits
            return _json(200 if ready else 503, {"ready": ready, "engine": core.state.value, "not_running": waits})
        lines = [f"iii_{name} {value}\n" for name, value in numbers(self.picture())]
        return Response(200, _TEXT, "".join(lines).encode())

    def statistics(self) -> AdminStatistics:
        """A frozen picture of the port."""
        return AdminStatistics(None if self._connections is None else self._connections.statistics())


def _json(status: int, content: object) -> Response:
    return Response(status, _JSON, json.dumps(content).encode() + b"\n")


def numbers(picture: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number in nested statistics with a name made of the way to it: `engine_functions_ids`.

    Parts of a list are told apart by their `name`, where they have one, else by their place.
    """
    if isinstance(picture, bool):
        yield name, int(picture)
    elif isinstance(picture, int | float):
        yield name, picture
    elif attrs.has(type(picture)):
        for attribute in attrs.fields(type(picture)):
            value = getattr(picture, attribute.name)
            if not isinstance(value, str | Enum):
                yield from numbers(value, f"{name}_{attribute.name}" if name else attribute.name)
    elif isinstance(picture, dict):
        for key, value in picture.items():
            yield from numbers(value, f"{name}_{_word(key)}")
    elif isinstance(picture, list | tuple):
        for index, item in enumerate(picture):
            called = getattr(item, "name", None)
            yield from numbers(item, f"{name}_{_word(called) if isinstance(called, str) else index}")


def _word(text: object) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in str(text))
