"""A connection under test on one end of a memory stream, and wsproto as its peer on the other."""

from collections.abc import Callable

import trio
from attrs import define, field
from trio.testing import memory_stream_pair
from wsproto.connection import Connection as Protocol
from wsproto.connection import ConnectionType
from wsproto.events import CloseConnection, Event, TextMessage

from iii_trio.transport import Closed, Connection, Framing


@define
class Peer:
    """The other end of the stream, with a protocol of its own."""

    stream: trio.abc.Stream
    protocol: Protocol = field(factory=lambda: Protocol(ConnectionType.CLIENT))
    seen: list[Event] = field(factory=list)
    eof: bool = False

    async def send(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(self.protocol.send(event) for event in events))

    async def text(self, *texts: str) -> None:
        await self.send(*(TextMessage(text) for text in texts))

    async def read(self) -> None:
        """Take in one chunk."""
        data = await self.stream.receive_some()
        self.eof = not data
        self.protocol.receive_data(bytes(data) if data else None)
        self.seen += self.protocol.events()

    async def next(self, kind: type[Event] = TextMessage) -> Event:
        """The next event of this kind; others before it are passed over."""
        while True:
            while self.seen:
                event = self.seen.pop(0)
                if isinstance(event, kind):
                    return event
            assert not self.eof, f"the connection ended before a {kind.__name__}"
            await self.read()

    async def close_code(self) -> int:
        """The code of the Close frame, which is answered."""
        event = await self.next(CloseConnection)
        assert isinstance(event, CloseConnection)
        if not self.eof:
            await self.send(event.response())
        return int(event.code)


@define
class Run:
    """A connection at work in a task, and what came of it."""

    connection: Connection
    peer: Peer
    batches: list[list[bytes]] = field(factory=list)
    closed: Closed | None = None
    raised: BaseException | None = None
    ended_at: float = 0.0
    done: trio.Event = field(factory=trio.Event)

    async def go(self, on_batch: Callable[[list[bytes]], None] | None = None, rest: bytes = b"") -> None:
        try:
            self.closed = await self.connection.run(on_batch or self.batches.append, rest=rest)
        except Exception as error:
            self.raised = error
        finally:
            self.ended_at = trio.current_time()
            self.done.set()

    async def end(self) -> Closed:
        await self.done.wait()
        assert self.closed is not None
        return self.closed


def start(
    nursery: trio.Nursery,
    on_batch: Callable[[list[bytes]], None] | None = None,
    *,
    streams: tuple[trio.abc.Stream, trio.abc.Stream] | None = None,
    framing: Framing | None = None,
    rest: bytes = b"",
    **options: object,
) -> Run:
    ours, theirs = streams or memory_stream_pair()
    run = Run(Connection(ours, framing or Framing(), **options), Peer(theirs))  # type: ignore[arg-type]
    nursery.start_soon(run.go, on_batch, rest)
    return run
