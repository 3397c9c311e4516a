"""Connections under TLS on a free port, and a client of HTTP/2 that does what it is told and no more."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
import trustme
from attrs import define, field
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes, Settings

from iii_trio.engine import bind
from iii_trio.modules.http.connections import Connections
from iii_trio.modules.http.http2 import PROTOCOLS

CA = trustme.CA()
PATIENCE_S = 20

App = Callable[[Mapping[str, Any], Any, Any], Awaitable[None]]


def server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    CA.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(PROTOCOLS)
    return context


def client_tls(*protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    CA.configure_trust(context)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def answer(send: Any, body: bytes = b"ok", status: int = 200) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def says_ok(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    await answer(send)


@define(eq=False)
class Client:
    """One connection. Nothing is acknowledged and no window opened but by what the test calls."""

    stream: "trio.SSLStream[trio.SocketStream]"
    h2: H2Connection = field(factory=H2Connection)
    events: list[Event] = field(factory=list)
    goodbyes: list[tuple[int, int]] = field(factory=list)
    """Last stream and code of each GOAWAY. The library does not get to see them: it would let nothing through any more."""
    over: bool = False
    _rest: bytes = b""

    async def flush(self) -> None:
        await self.stream.send_all(self.h2.data_to_send())

    async def ask(self, path: str = "/", method: str = "GET", *, end: bool = True, **headers: str) -> int:
        """Begin a request; its stream's id."""
        stream_id = self.h2.get_next_available_stream_id()
        fields = {":method": method, ":path": path, ":scheme": "https", ":authority": "x"} | headers
        self.h2.send_headers(stream_id, list(fields.items()), end_stream=end)
        await self.flush()
        return stream_id

    async def hear(self) -> bool:
        """Take in what comes next; whether the server goes on."""
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.over = True
            return False
        self.events += self.h2.receive_data(self._without_goodbyes(bytes(data)))
        try:
            await self.flush()
        except trio.BrokenResourceError:
            self.over = True
        return not self.over

    def _without_goodbyes(self, data: bytes) -> bytes:
        data, kept = self._rest + data, b""
        while len(data) >= 9 and len(data) >= 9 + (length := int.from_bytes(data[:3])):
            frame, data = data[: 9 + length], data[9 + length :]
            if frame[3] == 7:
                self.goodbyes.append((int.from_bytes(frame[9:13]), int.from_bytes(frame[13:17])))
            else:
                kept += frame
        self._rest = data
        return kept

    async def until(self, kind: type[Event], stream_id: int | None = None) -> Any:
        """The first event of a kind, of a stream; waits for it."""
        with trio.fail_after(PATIENCE_S):
            while True:
                for event in self.events:
                    if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                        return event
                assert await self.hear(), (kind, self.events)

    async def until_over(self) -> list[tuple[int, int]]:
        """Wait for the end of the connection; last stream and code of each GOAWAY that came."""
        with trio.fail_after(PATIENCE_S):
            while await self.hear():
                pass
        return self.goodbyes

    async def reply(self, stream_id: int) -> tuple[str, bytes]:
        """Status and body of a response, its windows kept open."""
        acknowledged = 0
        with trio.fail_after(PATIENCE_S):
            while not any(isinstance(e, StreamEnded) and e.stream_id == stream_id for e in self.events):
                assert not any(isinstance(e, StreamReset) and e.stream_id == stream_id for e in self.events)
                assert await self.hear(), (self.goodbyes, self.events)
                received = [e for e in self.events if isinstance(e, DataReceived)]
                for event in received[acknowledged:]:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                acknowledged = len(received)
                await self.flush()
        head = await self.until(ResponseReceived, stream_id)
        return dict(head.headers)[b":status"].decode(), self.body(stream_id)

    def body(self, stream_id: int) -> bytes:
        return b"".join(e.data for e in self.events if isinstance(e, DataReceived) and e.stream_id == stream_id)


@asynccontextmanager
async def dial(port: int, settings: dict[SettingCodes, int] | None = None) -> AsyncIterator[Client]:
    """A connection that has agreed on HTTP/2."""
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(tcp, client_tls("h2"), server_hostname="127.0.0.1", https_compatible=True)
    try:
        await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "h2"
        client = Client(stream)
        client.h2.local_settings = Settings(client=True, initial_values=settings or {})
        client.h2.initiate_connection()
        await client.flush()
        yield client
    finally:
        tcp.socket.close()


@define(eq=False)
class Server:
    """Connections that run, their port, and the scope whose cancellation stops them, and only them."""

    connections: Connections
    port: int
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    ended: trio.Event = field(factory=trio.Event)

    def dial(self, settings: dict[SettingCodes, int] | None = None) -> AbstractAsyncContextManager[Client]:
        return dial(self.port, settings)

    async def stop(self) -> float:
        """Cancel, and wait for the end; returns how long that took."""
        began = trio.current_time()
        self.scope.cancel()
        with trio.fail_after(PATIENCE_S):
            await self.ended.wait()
        return trio.current_time() - began

    async def emptied(self) -> None:
        """Wait until no connection is left."""
        with trio.fail_after(PATIENCE_S):
            while self.connections.statistics().open:
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def serving(app: App = says_ok, **settings: Any) -> AsyncIterator[Server]:
    served = Connections(app=app, tls=server_tls(), **settings)
    listeners = await bind("127.0.0.1", 0, "test")
    server = Server(served, listeners[0].socket.getsockname()[1])

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        with server.scope:
            await served.serve(listeners, task_status=task_status)
        server.ended.set()

    with trio.fail_after(3 * PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            yield server
            server.scope.cancel()
    assert served.statistics().open == 0
