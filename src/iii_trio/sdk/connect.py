"""Opening and closing a client: one block, one nursery (spec/sdk.md §12.2, Structure and Start-up)."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from ssl import SSLContext

import trio
from attrs import field, frozen
from cattrs import Converter

from iii_trio.transport import Framing

from . import identity
from .channels import ChannelEnds, ChannelRef
from .client import Client
from .dial import Address, OpenStream, dial
from .errors import NotConnected
from .handlers import CONCURRENCY, THREADS, Limits
from .registry import Registry
from .structuring import CONVERTER
from .supervisor import Reconnect, Supervisor
from .telemetry import Logger


@frozen(kw_only=True)
class Options:
    """How a client connects; everything has a default.

    `url` is `III_URL` or `ws://127.0.0.1:49134` when None. `headers` go with the handshake. `wait` of False returns
    from connecting at once. `open_stream` replaces TCP and TLS by a stream of one's own.
    """

    url: str | None = None
    headers: Mapping[str, str] = field(factory=dict)
    reconnect: Reconnect = field(factory=Reconnect)
    wait: bool = True
    ssl_context: SSLContext | None = None
    open_stream: OpenStream | None = None


@asynccontextmanager
async def connected(
    options: Options,
    *,
    name: str,
    namespace: str | None,
    description: str | None = None,
    concurrency: int = CONCURRENCY,
    converter: Converter = CONVERTER,
    fill: Callable[[Registry], None] = lambda registry: None,
) -> AsyncIterator[Client]:
    """Hold a client open for a block; every task of it lives in a nursery of this block.

    `fill` puts in what is registered from the start. Raises `RegistrationRejected` or `NotConnected` out of the block
    when the connection has failed for good, which cancels the block.
    """
    address = Address.parse(options.url)
    registry = Registry(namespace)
    fill(registry)
    supervisor = Supervisor(
        dial=partial(dial, address, options.headers, options.open_stream, options.ssl_context),
        registry=registry,
        greeting=identity.greeting(name, namespace, description),
        reconnect=options.reconnect,
        converter=converter,
        limits=Limits(trio.CapacityLimiter(concurrency), trio.CapacityLimiter(THREADS)),
    )
    dial_end = partial(_dial_end, address, options)
    alone: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            ends = ChannelEnds(nursery, dial_end)
            client = supervisor.client = Client(name, namespace, Logger(name), ends, supervisor, registry, converter)
            nursery.start_soon(supervisor.run, nursery, name=f"connection of {name}")
            if options.wait:
                await supervisor.wait_registered()
            try:
                yield client
            finally:
                ends.closed = True
                await supervisor.stop()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is no business of the block's owner: what it raised alone comes out as it went in.
        if len(group.exceptions) != 1:
            raise
        alone = group.exceptions[0]
    if supervisor.failure is not None and (alone is None or isinstance(alone, NotConnected)):
        raise supervisor.failure from alone
    if alone is not None:
        raise alone


async def _dial_end(address: Address, options: Options, ref: ChannelRef) -> tuple[trio.abc.Stream, Framing, bytes]:
    """Connect to an end of a channel, the way that the client itself connects."""
    place = address.of_channel(ref.channel_id, ref.access_key, ref.direction)
    return await dial(place, options.headers, options.open_stream, options.ssl_context)


def open_client(
    url: str | None = None,
    *,
    name: str | None = None,
    namespace: str | None = None,
    headers: Mapping[str, str] | None = None,
    reconnect: Reconnect | None = None,
    wait: bool = True,
    ssl_context: SSLContext | None = None,
    open_stream: OpenStream | None = None,
) -> AbstractAsyncContextManager[Client]:
    """A client without functions: `async with open_client() as client: …`.

    `url` of None is `III_URL`, else `ws://127.0.0.1:49134`. With `reconnect=Reconnect(max_retries=0)` an engine that
    cannot be reached raises `NotConnected` at once; otherwise it is waited for. `wait` of False enters the block
    before there is a connection. `open_stream` replaces TCP by a stream of one's own.
    """
    options = Options(
        url=url,
        headers=headers or {},
        reconnect=reconnect or Reconnect(),
        wait=wait,
        ssl_context=ssl_context,
        open_stream=open_stream,
    )
    return connected(options, name=name or identity.default_name(), namespace=identity.namespace_of(namespace))
