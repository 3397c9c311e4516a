"""Promise P8 in HTTP-invoked functions: a call cancelled at any step leaves no connection, no slot, no task and no timer."""

import ssl
from functools import partial
from typing import Any

import pytest
import trio
import trustme
from attrs import define

from iii_trio.config import HttpFunctionsSecurity, HttpFunctionsSettings, Live
from iii_trio.engine import open_engine, open_local
from iii_trio.modules.http_functions import HttpFunctionsModule
from iii_trio.protocol import Json
from iii_trio.testing import CancelAtStep, open_port, sweep, task_tree

OPEN = HttpFunctionsSettings(security=HttpFunctionsSecurity(block_private_ips=False, require_https=False))


@define
class Endpoint:
    """Answers each connection's first request in two parts, then hangs up. `open` connections have not ended."""

    tls: ssl.SSLContext | None
    open: int = 0

    async def serve(self, plain: trio.SocketStream) -> None:
        """One connection, however it ends."""
        self.open += 1
        stream: Any = plain if self.tls is None else trio.SSLStream(plain, self.tls, server_side=True)
        try:
            received = b""
            while b"}" not in received:
                chunk = await stream.receive_some(65536)
                if not chunk:
                    return
                received += chunk
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n[1")
            await stream.send_all(b"2]")
            await stream.receive_some(65536)
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_call_cancelled_at_every_step(secure: bool) -> None:
    server = client = None
    if secure:
        authority = trustme.CA()
        server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server)
        authority.configure_trust(client)

    async def once(cancel: CancelAtStep) -> None:
        endpoint = Endpoint(server)
        module = HttpFunctionsModule(Live(OPEN), tls=client or ssl.create_default_context())
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, endpoint.serve, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            async with open_engine() as core, open_port(core) as workers, open_local(core, "caller") as caller:
                await nursery.start(module.run, core)
                worker = await workers.connect(name="w")
                url = f"http{'s' if secure else ''}://127.0.0.1:{port}/"
                worker.register("ext::f", invocation={"url": url})
                await worker.settled()

                async def call() -> None:
                    assert (await caller.invoke("ext::f", Json.of({"n": 1}))).decode() == [12]

                def holds() -> tuple[Any, ...]:
                    core_holds, held = core.statistics(), module.statistics()
                    counts = held.running, held.hosts, held.connections, held.reading_bytes, endpoint.open
                    return (*counts, core_holds.running, core_holds.waiting, core_holds.deadlines.timers, task_tree())

                before = holds()
                await cancel.run(call)
                await trio.sleep(20)
                assert holds() == before
                await call()
                nursery.cancel_scope.cancel()

    assert sweep(once) > 20
