"""The module `http`: provides the trigger type, listens, and hands requests to the exchange (spec/http.md §1–§3)."""

import logging
import ssl
from ipaddress import ip_address
from typing import Final

import trio
from attrs import define, field, frozen

from ...config import HttpSettings, Live
from ...engine.engine import Engine
from ...engine.listener import bind
from ...engine.local import open_local
from ...protocol.errors import ConfigError
from .answers import dressed, refusal, unavailable
from .asgi import Incoming, Receive, Scope, Send, write
from .connections import STOP_GRACE_S, Connections, ConnectionStatistics
from .exchange import Exchange, ExchangeStatistics
from .http1_messages import Fields
from .http2 import PROTOCOLS
from .messages import is_header_name, read_request
from .routes import METHODS, Routes, RouteStatistics

log = logging.getLogger(__name__)

CONFIG_FORMAT: Final = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "HttpTriggerConfig",
    "type": "object",
    "properties": {
        "api_path": {
            "type": "string",
            "description": "Path to serve, with or without leading slash; a segment ':name' matches any one segment, "
            "a last segment '*name' whatever remains.",
        },
        "http_method": {
            "type": ["string", "null"],
            "enum": [*METHODS, None],
            "default": "GET",
            "description": "Method to serve. GET serves HEAD too, unless HEAD has a route of its own.",
        },
        "condition_function_id": {
            "type": ["string", "null"],
            "description": "Called with the request first; if it answers false, the response is 422.",
        },
        "middleware_function_ids": {
            "type": ["array", "null"],
            "items": {"type": "string"},
            "description": "Called in this order after the condition; each lets the request go on, or answers it.",
        },
        "timeout_ms": {
            "type": ["integer", "null"],
            "minimum": 1,
            "description": "Time up to the head of the response, in the place of `default_timeout`.",
        },
    },
    "required": ["api_path"],
}
_STRINGS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
CALL_FORMAT: Final = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "HttpRequest",
    "type": "object",
    "properties": {
        "query_params": _STRINGS,
        "path_params": _STRINGS,
        "headers": _STRINGS,
        "path": {"type": "string", "description": "The registered api_path."},
        "method": {"type": "string"},
        "body": {"description": "The body of a JSON request or a small form, else null."},
    },
    "required": ["query_params", "path_params", "headers", "path", "method"],
}
RETURN_FORMAT: Final = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "HttpResponse",
    "type": "object",
    "properties": {
        "status_code": {"type": "integer", "minimum": 100, "maximum": 599},
        "headers": {"anyOf": [_STRINGS, {"type": "array", "items": {"type": "string"}}]},
        "body": {},
    },
    "required": [],
}


@frozen
class HttpStatistics:
    """What the module has done and holds; each part is None while it does not run."""

    routes: RouteStatistics | None
    exchange: ExchangeStatistics | None
    connections: ConnectionStatistics | None


@define(eq=False)
class HttpModule:
    """The module. With `listen` off nothing is bound and `app` alone is served, as the testing kit does.

    With `tls` the port speaks TLS and nothing else. `grace_s`: how long (s) requests under way may take to end when the
    module is stopped. `addresses`: the (host, port) pairs it listens on, empty until it does.
    """

    settings: Live[HttpSettings]
    listen: bool = True
    grace_s: float = STOP_GRACE_S
    tls: ssl.SSLContext | None = None
    addresses: tuple[tuple[str, int], ...] = field(default=(), init=False)
    _exchange: Exchange | None = field(default=None, init=False)
    _connections: Connections | None = field(default=None, init=False)

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; `task_status` is told once clients can connect.

        Raises `ConfigError` for settings that cannot be honoured, such as an address that cannot be bound; nothing has
        been provided then. The trigger type is provided before the first connection is accepted, so that routes
        which waited for it serve from the first request on.
        """
        check_settings(self.settings.value)
        listeners = await self._bind(self.settings.value) if self.listen else []
        try:
            async with open_local(core, "http") as peer:
                exchange = self._exchange = Exchange(core, peer, Routes(), self.settings)
                peer.provide(
                    "http",
                    exchange.routes,
                    description="HTTP API trigger",
                    config_format=CONFIG_FORMAT,
                    call_format=CALL_FORMAT,
                    return_format=RETURN_FORMAT,
                )
                if listeners:
                    if self.tls is not None:
                        self.tls.set_alpn_protocols(PROTOCOLS if self.settings.value.http2 else PROTOCOLS[1:])
                    self._connections = Connections(
                        app=self.app, grace_s=self.grace_s, tls=self.tls, refuse=self._refuse
                    )
                    await self._connections.serve(listeners, task_status=task_status)
                else:
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            for listener in listeners:
                listener.socket.close()
            self.addresses = ()
            self._exchange = self._connections = None

    async def rebind(self, settings: HttpSettings) -> None:
        """Listen where `settings` say, then no longer where it did; nothing to do while the module does not run.

        Connections to the old address end: idle ones at once, the others with their response, or after 10 s. Raises
        `ConfigError` for an address that cannot be bound: nothing has changed then. Only where the port stays and the
        host changes, the old one is released first, for both cannot be had at once.
        """
        connections = self._connections
        if connections is None:
            return
        before = self.addresses
        same_port = bool(before) and settings.port == before[0][1]
        if same_port:
            await connections.listen_on(())
        try:
            listeners = await self._bind(settings)
        except ConfigError:
            if same_port:
                await connections.listen_on(await self._bind(self.settings.value))
            raise
        await connections.listen_on(listeners)

    async def _bind(self, settings: HttpSettings) -> list[trio.SocketListener]:
        listeners = await bind(settings.host, settings.port, "`port` of the http worker")
        self.addresses = tuple(listener.socket.getsockname()[:2] for listener in listeners)
        for host, port in self.addresses:
            url = _url(host, port, secure=self.tls is not None)
            log.info("HTTP is served on %s", url)
            if not ip_address(host).is_loopback:
                log.warning("HTTP on %s is reachable from other machines, without access control", url)
        return listeners

    def _refuse(self, status: int, text: str) -> tuple[Fields, bytes]:
        """What is said where there is no request to be handled, or a bug has ended it."""
        settings = self.settings.value
        response = refusal(status, text, settings)
        return list(response.headers), response.body

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application; 503 while the module does not run. WebSocket upgrades are refused."""
        if scope["type"] == "http":
            if self._exchange is not None:
                await self._exchange.serve(scope, receive, send)
            else:
                settings = self.settings.value
                request = read_request(scope, settings.request_id_header, settings.trust_proxy)
                response = dressed(unavailable(), request, settings)
                await write(scope, send, Incoming(receive, request.length), response)
        elif scope["type"] == "lifespan":
            for _ in range(2):
                message = await receive()
                await send({"type": message["type"] + ".complete"})
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    def statistics(self) -> HttpStatistics:
        """A frozen picture of routes, requests and connections."""
        return HttpStatistics(
            routes=None if self._exchange is None else self._exchange.routes.statistics(),
            exchange=None if self._exchange is None else self._exchange.statistics(),
            connections=None if self._connections is None else self._connections.statistics(),
        )


def check_settings(settings: HttpSettings) -> None:
    """Raises `ConfigError` for a header name that no request can have."""
    if not is_header_name(settings.request_id_header or "x"):
        raise ConfigError(f"request_id_header: '{settings.request_id_header}' is no header name; use letters and '-'")


def _url(host: str, port: int, *, secure: bool) -> str:
    return f"http{'s' * secure}://{f'[{host}]' if ':' in host else host}:{port}"
