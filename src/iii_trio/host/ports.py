"""The worker ports: opened last, and opened anew when their settings change (spec/pubsub-cron-config-cli.md §7.7)."""

import logging
from collections.abc import Callable
from ipaddress import ip_address

import trio
from attrs import define, evolve, field

from ..config import ConfigError, WorkerManagerSettings, changed_settings
from ..engine import Engine, Listener
from .access import WorkerPort

log = logging.getLogger(__name__)

MOVED = "the worker port is opened anew"


@define(eq=False)
class OpenPort:
    """One worker port that listens. `declared`: its settings, with the port that was asked for."""

    port: WorkerPort
    listener: Listener
    declared: WorkerManagerSettings
    scope: trio.CancelScope
    ended: trio.Event


@define(eq=False)
class Ports:
    """All worker ports, the main one first. `closing_s`: how long (s) sockets get to close when a port is opened anew.

    `on_change` is called when one of them has become another one.
    """

    core: Engine
    nursery: trio.Nursery
    engine_token: str | None
    closing_s: float
    open: list[OpenPort] = field(factory=list)
    on_change: Callable[[], None] = lambda: None

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """What listens now."""
        return tuple(port.listener for port in self.open)

    async def add(self, worker_port: WorkerPort) -> None:
        """Open one more port. Raises `ConfigError`."""
        self.open.append(await self._start(worker_port, worker_port.settings))

    async def become(self, wanted: list[WorkerManagerSettings]) -> None:
        """Open, change and close ports until they are those `wanted`. Raises `ConfigError`; ports done before stay done.

        Workers of a port that is opened anew are sent away with a code after which they connect again.
        """
        ports = [WorkerPort.of(settings, self.engine_token) for settings in wanted]
        for index, worker_port in enumerate(ports):
            if index >= len(self.open):
                await self.add(worker_port)
            else:
                await self._change(index, worker_port)
        while len(self.open) > len(ports):
            await self._end(self.open.pop())

    async def _change(self, index: int, wanted: WorkerPort) -> None:
        now, new = self.open[index], wanted.settings
        changes = changed_settings(now.declared, new)
        if not changes:
            return
        if set(changes.values()) == {"live"}:
            now.listener.handshake_timeout_s = new.handshake_timeout_ms / 1000
            now.listener.allowed_origins = new.allowed_origins
            now.port = wanted
        else:
            bound = now.listener.addresses[0][1]
            asked = new if new.port != now.declared.port else evolve(new, port=bound)
            worker_port = evolve(wanted, settings=asked)
            if asked.port == bound:
                await self._end(now)
                try:
                    now = await self._start(worker_port, new)
                except ConfigError:
                    # its own address was free a moment ago
                    before = evolve(now.port, settings=evolve(now.port.settings, port=bound))
                    self.open[index] = await self._start(before, now.declared)
                    raise
            else:
                before_it, now = now, await self._start(worker_port, new)
                await self._end(before_it)
            self.open[index] = now
        now.declared = new
        log.info("worker port: %s changed", ", ".join(changes))
        self.on_change()

    async def _start(self, worker_port: WorkerPort, declared: WorkerManagerSettings) -> OpenPort:
        listener = worker_port.listener(self.core)
        port = OpenPort(worker_port, listener, declared, trio.CancelScope(), trio.Event())
        await self.nursery.start(self._serve, port, name="worker port")
        for host, number in listener.addresses:
            url = address_url(host, number, secure=listener.tls is not None)
            log.info("workers connect to %s%s", url, ", with a token" if listener.rules.token is not None else "")
            if not ip_address(host).is_loopback and not listener.rules.restricts:
                text = (
                    "%s IS OPEN TO THE NETWORK, WITHOUT ACCESS CONTROL: who reaches it can call and replace everything"
                )
                log.warning(text, url)
        return port

    async def _serve(self, port: OpenPort, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with port.scope:
                await port.listener.run(task_status=task_status)
        finally:
            port.ended.set()

    async def _end(self, port: OpenPort) -> None:
        port.listener.close_all(1012, MOVED)
        with trio.move_on_after(self.closing_s):
            await port.listener.wait_closed()
        port.scope.cancel()
        await port.ended.wait()


def address_url(host: str, port: int, *, secure: bool) -> str:
    """The WebSocket URL of an address."""
    scheme = "wss" if secure else "ws"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
