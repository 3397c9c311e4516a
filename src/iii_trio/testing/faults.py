"""A network that fails on request: a TCP proxy between workers and an engine, for tests of what a reconnect leaves.

Each connection is a `Link` of two sides. A cut ends the worker's side at once and the engine's when the test says, so
that the worker's next connection can arrive before its last one has ended; a frozen link is half-open: both sides stay,
nothing passes. Everything runs in this process, on real sockets of 127.0.0.1.
"""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field

CHUNK = 64 * 1024
WAIT_S = 60.0
_RESET = struct.pack("ii", 1, 0)


@define(eq=False)
class Link:
    """One connection through the proxy. Times are seconds of Trio's clock, None for what has not happened.

    `path` is that of the upgrade request. `up_at` is when the engine's first bytes after its upgrade came; `cut_at` and
    `released_at` when the worker's and the engine's side were ended.
    """

    proxy: "FaultProxy"
    worker: trio.SocketStream
    engine: trio.SocketStream
    path: str = ""
    frozen: bool = False
    up_at: float | None = None
    cut_at: float | None = None
    released_at: float | None = None
    _pumps: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _hold_s: float = field(default=0.0, init=False)
    _until_next: bool = field(default=False, init=False)
    _thawed: trio.Event = field(factory=trio.Event, init=False)

    @property
    def live(self) -> bool:
        """Whether nobody has ended it yet."""
        return self.cut_at is None

    def cut(self, hold_s: float = 0.0, *, until_next: bool = False) -> None:
        """End the worker's side with a reset now, and the engine's `hold_s` seconds later.

        With `until_next` the seconds count from the moment at which the worker's next connection to this path is up.
        """
        if self.live:
            self.cut_at = trio.current_time()
            self._hold_s, self._until_next = hold_s, until_next
            self._pumps.cancel()

    def freeze(self) -> None:
        """Let nothing pass any more, in neither direction, and tell nobody: a half-open connection."""
        self.frozen = True

    def thaw(self) -> None:
        """Let everything pass again that has been held back since `freeze`."""
        self.frozen = False
        self._thawed.set()
        self._thawed = trio.Event()

    async def run(self) -> None:
        """Pass bytes until one side ends or the link is cut; both sides are closed when this returns."""
        try:
            with self._pumps:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, self.worker, self.engine, name="worker to engine")
                    nursery.start_soon(self._pump, self.engine, self.worker, name="engine to worker")
            if self.live:
                self.cut_at = trio.current_time()
            else:
                self.worker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.worker.socket.close()
            if self._until_next:
                with trio.move_on_after(WAIT_S):
                    await self.proxy.up(self.path, after=self)
            await trio.sleep(self._hold_s)
        finally:
            self.worker.socket.close()
            self.engine.socket.close()
            self.released_at = trio.current_time()
            self.proxy.tell()

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        head: bytes | None = b""
        try:
            while data := await source.receive_some(CHUNK):
                while self.frozen:
                    await self._thawed.wait()
                if head is not None:
                    head = self._look_at(source, head + data)
                if self.proxy.delay_s:
                    await trio.sleep(self.proxy.delay_s)
                if self.proxy.dribble_s is None:
                    await sink.send_all(data)
                else:
                    for index in range(len(data)):
                        await sink.send_all(data[index : index + 1])
                        await trio.sleep(self.proxy.dribble_s)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        while self.frozen:
            await self._thawed.wait()
        self._pumps.cancel()

    def _look_at(self, source: trio.SocketStream, head: bytes) -> bytes | None:
        """Learn from the first bytes of one direction what the link is; None once there is nothing more to learn."""
        end = head.find(b"\r\n\r\n")
        if end < 0:
            return head
        if source is self.worker:
            words = head.split(maxsplit=2)
            self.path = words[1].decode(errors="replace").partition("?")[0] if len(words) > 1 else ""
            return None
        if len(head) == end + 4:
            return head
        self.up_at = trio.current_time()
        self.proxy.tell()
        return None


@define(eq=False)
class FaultProxy:
    """A proxy in front of `target_port` of 127.0.0.1; workers connect to `url`.

    `delay_s` is added to every chunk of bytes in both directions; `dribble_s`, if not None, sends them one at a time
    with that pause. Both may be changed at any time. `refusing` resets new connections. `links` has all there ever were,
    oldest first.
    """

    target_port: int
    port: int = 0
    delay_s: float = 0.0
    dribble_s: float | None = None
    refusing: bool = False
    links: list[Link] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event, init=False)

    @property
    def url(self) -> str:
        """Where workers connect."""
        return f"ws://127.0.0.1:{self.port}"

    def live(self, path: str = "/") -> list[Link]:
        """The links of that path that nobody has ended."""
        return [link for link in self.links if link.live and link.path == path]

    def cut(self, hold_s: float = 0.0, *, until_next: bool = False) -> list[Link]:
        """`Link.cut` for every live link; returns those."""
        cut = [link for link in self.links if link.live]
        for link in cut:
            link.cut(hold_s, until_next=until_next)
        return cut

    async def up(self, path: str = "/", *, after: Link | None = None) -> Link:
        """The first link to `path` that has come up, of those later than `after`; waits for it.

        Raises `trio.TooSlowError` after 120 s.
        """
        first = 0 if after is None else self.links.index(after) + 1
        with trio.fail_after(2 * WAIT_S):
            while True:
                for link in self.links[first:]:
                    if link.path == path and link.up_at is not None:
                        return link
                await self._news.wait()

    async def released(self, link: Link) -> None:
        """Wait until both sides of a link have ended. Raises `trio.TooSlowError` after 120 s."""
        with trio.fail_after(2 * WAIT_S):
            while link.released_at is None:
                await self._news.wait()

    def tell(self) -> None:
        """Something has happened to a link."""
        self._news.set()
        self._news = trio.Event()

    async def serve(self, worker: trio.SocketStream) -> None:
        """One connection, to its end."""
        if self.refusing:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            worker.socket.close()
            return
        try:
            engine = await trio.open_tcp_stream("127.0.0.1", self.target_port)
        except OSError:
            worker.socket.close()
            return
        link = Link(self, worker, engine)
        self.links.append(link)
        await link.run()


@asynccontextmanager
async def open_proxy(target_port: int) -> AsyncIterator[FaultProxy]:
    """A proxy for the length of the block; its end cuts whatever is connected."""
    proxy = FaultProxy(target_port)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listeners[0].socket.getsockname()[1]
        await nursery.start(trio.serve_listeners, proxy.serve, listeners)
        yield proxy
        nursery.cancel_scope.cancel()
