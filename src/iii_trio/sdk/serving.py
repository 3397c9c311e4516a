"""A worker as a program: signals, graceful drain, exit (spec/sdk.md §12.2, Shutdown)."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from .client import Client
from .supervisor import ConnectionState

LEVELS_VARIABLE: Final = "III_LOG_LEVELS"
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger("iii_trio.sdk")


def serve(connect: Callable[[], AbstractAsyncContextManager[Client]], drain_timeout: float) -> None:
    """Run Trio and hold `connect()` open until the first of `STOP_SIGNALS`, then drain; the second cancels."""
    # under `iii-trio serve` the engine's log has the time and takes the level from the line
    time = "" if os.environ.get(LEVELS_VARIABLE) else "%(asctime)s "
    logging.basicConfig(level=logging.INFO, format=f"{time}%(levelname)s %(name)s: %(message)s")
    trio.run(_serve, connect, drain_timeout)


async def _serve(connect: Callable[[], AbstractAsyncContextManager[Client]], drain_timeout: float) -> None:
    async with connect() as client:
        client.add_connection_state_listener(_teller(client.name))
        # Innermost, so that a third signal meets Python's own handlers even if a handler's thread does not end.
        with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                stop = trio.Event()
                nursery.start_soon(_watch, signals, stop, nursery.cancel_scope, name="signals")
                await stop.wait()
                await client.drain(drain_timeout)
                await client.aclose()
                nursery.cancel_scope.cancel()


def _teller(name: str) -> Callable[[ConnectionState], None]:
    """Logs every change of the connection's state; that there was none at first is not news."""
    known: ConnectionState = "disconnected"

    def tell(state: ConnectionState) -> None:
        nonlocal known
        if state != known:
            known = state
            log.info("worker %s: %s", name, state)

    return tell


async def _watch(signals: AsyncIterator[int], stop: trio.Event, everything: trio.CancelScope) -> None:
    async for number in signals:
        if stop.is_set():
            log.warning("%s again: running handlers are cancelled", signal.Signals(number).name)
            everything.cancel(reason="second signal")
            return
        log.info("%s: finishing what runs; a second one cancels it", signal.Signals(number).name)
        stop.set()
