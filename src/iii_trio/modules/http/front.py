"""hypercorn's side of a request: its `HTTPStream` makes the ASGI scope and keeps the order of what an application says.

One for each request, the same for HTTP/1.1 and HTTP/2. What lies below it is ours (`connections` says why): bytes that
are read under our bounds, and a task that runs the application, where hypercorn spawns one per request and feeds it
through a channel. So nothing is pushed here: the application takes its request's body from the connection itself.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol

from attrs import define, field
from hypercorn.config import Config
from hypercorn.protocol.events import Body, EndBody, Event, Request, Response
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState

Address = tuple[str, int] | None
Fields = list[tuple[bytes, bytes]]


class Below(Protocol):
    """What puts a response on the wire."""

    async def head(self, status: int, headers: Fields) -> None:
        """The head of the response."""

    async def part(self, data: bytes, more: bool) -> None:
        """A piece of its body, possibly empty; the last one unless there is `more`."""


def configured() -> Config:
    """hypercorn's settings; it logs nothing itself, for the module's access log and incidents do."""
    config = Config()
    config.accesslog = None
    config.errorlog = None
    return config


CONFIG: Final = configured()
_CONTEXT: Final = WorkerContext(None)


@define(eq=False)
class Front:
    """One request as its application sees it: `scope` and `send`. `below` gets the response."""

    below: Below
    scope: MutableMapping[str, Any] = field(init=False)
    _say: Callable[[Any], Awaitable[None]] = field(init=False)
    _said: list[Event] = field(factory=list, init=False)

    @classmethod
    async def of(cls, request: Request, below: Below, *, secure: bool, client: Address, server: Address) -> "Front":
        """The front of a request that has come."""
        front = cls(below)
        # hypercorn's annotations want its own wrapper and task group: what it does with them is call `spawn_app`
        tasks: Any = front
        app: Any = None
        stream = HTTPStream(app, CONFIG, _CONTEXT, tasks, secure, client, server, front._hear, request.stream_id)
        await stream.handle(request)
        return front

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        """hypercorn would start the application here; whoever has made this front runs it."""
        self.scope, self._say = scope, send
        return _take

    async def _hear(self, event: Event) -> None:
        self._said.append(event)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """What the application says next. Raises for what may not follow, or is no header field."""
        await self._say(message)
        said, self._said = self._said, []
        if said and isinstance(said[0], Response):
            await self.below.head(said[0].status_code, said[0].headers)
        else:
            data = b"".join([event.data for event in said if isinstance(event, Body)])
            await self.below.part(data, not any(isinstance(event, EndBody) for event in said))

    def close(self) -> None:
        """The application is done: part from hypercorn's stream, lest the collector has to."""
        self._say = _take


async def _take(message: Any) -> None:
    """Nothing is pushed to an application here."""


def as_state(values: dict[str, Any]) -> ConnectionState:
    """The `state` of a scope."""
    return ConnectionState(values)
