"""What the tests of HTTP-invoked functions share: endpoints that are scripts over a raw socket, and an engine that calls them."""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from attrs import define, field

from iii_trio.config import HttpFunctionsSecurity, HttpFunctionsSettings, Live
from iii_trio.engine import Clock, Engine, open_engine
from iii_trio.modules.http_functions import HttpFunctionsModule
from iii_trio.testing import RawPort, RawWorker, open_port

JSON_OK = b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"ok":true}'


@define
class Request:
    """One request as it arrived; `head_alone` when nothing of its body came with the head."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes
    head_alone: bool

    def header(self, name: str) -> str | None:
        """The value of a header; None unless it is there exactly once."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        return found[0] if len(found) == 1 else None

    @property
    def json(self) -> Any:
        """The body decoded."""
        return json.loads(self.body)


Script = Callable[[trio.abc.Stream, Request], Awaitable[None]]


def answering(*answers: bytes) -> Script:
    """A script that gives these answers in turn, then the last one for ever."""
    left = list(answers)

    async def script(stream: trio.abc.Stream, request: Request) -> None:
        await stream.send_all(left.pop(0) if len(left) > 1 else left[0])

    return script


@define
class Endpoint:
    """A server on 127.0.0.1. It serves requests by `script` until that returns with the connection closed."""

    script: Script
    close: bool = False
    port: int = 0
    requests: list[Request] = field(factory=list)
    connections: int = 0
    ended: int = 0
    _news: trio.Event = field(factory=trio.Event)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection."""
        self.connections += 1
        try:
            buffered = b""
            while True:
                while b"\r\n\r\n" not in buffered:
                    more = await stream.receive_some(65536)
                    if not more:
                        return
                    buffered += more
                head, _, body = buffered.partition(b"\r\n\r\n")
                line, *lines = head.decode().split("\r\n")
                headers = [(name, value.strip()) for name, _, value in (one.partition(":") for one in lines)]
                request = Request(line, headers, b"", head_alone=not body)
                length = int(request.header("content-length") or 0)
                while len(body) < length:
                    body += await stream.receive_some(65536)
                request.body, buffered = body[:length], body[length:]
                self.requests.append(request)
                self._tell()
                await self.script(stream, request)
                if self.close:
                    await stream.aclose()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.ended += 1
            self._tell()
            await trio.aclose_forcefully(stream)

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something about this endpoint holds; fails after 10 s."""
        with trio.fail_after(10):
            while not condition():
                await self._news.wait()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/hook"


@define
class EngineLab:
    """An engine with the module, and a worker whose functions are endpoints."""

    core: Engine
    module: HttpFunctionsModule
    port: RawPort
    worker: RawWorker
    nursery: trio.Nursery

    async def endpoint(self, script: Script, *, close: bool = False, tls: ssl.SSLContext | None = None) -> Endpoint:
        """A running endpoint."""
        endpoint = Endpoint(script, close)

        async def serve(stream: trio.SocketStream) -> None:
            if tls is None:
                await endpoint.serve(stream)
                return
            secure = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
            try:
                await secure.do_handshake()
            except (trio.BrokenResourceError, ssl.SSLError):
                return
            await endpoint.serve(secure)

        listeners = await self.nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        endpoint.port = listeners[0].socket.getsockname()[1]
        return endpoint

    async def register(self, function_id: str, url: str, **invocation: Any) -> None:
        """Register an endpoint and see that it is there."""
        self.worker.register(function_id, invocation={"url": url, **invocation})
        await self.worker.settled()
        assert self.core.functions.get("default", function_id) is not None, list(self.worker.frames)

    async def ask(self, function_id: str, data: Any = None, **fields: Any) -> dict[str, Any]:
        """Call it; the answer's frame."""
        return await self.worker.ask(function_id, data, **fields)

    async def error(self, function_id: str, data: Any = None, **fields: Any) -> tuple[str, str]:
        """Call it; code and message of the error."""
        error = (await self.ask(function_id, data, **fields))["error"]
        return error["code"], error["message"]


Addresses = Mapping[str, Sequence[str]]


@asynccontextmanager
async def engine_lab(
    *,
    resolve: Callable[[str, int], Awaitable[Sequence[str]]] | None = None,
    tls: ssl.SSLContext | None = None,
    environment: Mapping[str, str] | None = None,
    retries: int = 0,
    response_limit: int = 1024 * 1024,
    block_private_ips: bool = False,
    require_https: bool = False,
) -> AsyncIterator[EngineLab]:
    """An engine with the module, open to this machine unless a test says otherwise."""
    settings = HttpFunctionsSettings(
        security=HttpFunctionsSecurity(block_private_ips=block_private_ips, require_https=require_https),
        retries=retries,
        response_limit=response_limit,
    )
    given: dict[str, Any] = {"resolve": resolve, "tls": tls}
    given = {name: value for name, value in given.items() if value is not None}
    module = HttpFunctionsModule(Live(settings), variable=(environment or {}).get, **given)
    async with (
        trio.open_nursery() as nursery,
        open_engine(clock=Clock(epoch=1_700_000_000)) as core,
        open_port(core) as port,
    ):
        await nursery.start(module.run, core)
        worker = await port.connect(name="w")
        yield EngineLab(core, module, port, worker, nursery)
        nursery.cancel_scope.cancel()
