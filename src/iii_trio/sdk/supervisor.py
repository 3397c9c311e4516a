"""Keeps a client connected: dial, greet, serve, and again after a growing pause (spec/sdk.md §7, §12.2)."""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import trio
from attrs import define, field, frozen
from cattrs import Converter

from iii_trio.protocol.errors import WireError
from iii_trio.protocol.json import Json
from iii_trio.transport import Framing

from .dial import DialError
from .errors import NotConnected
from .handlers import Limits
from .registry import Registry
from .session import Previous, Session, SessionStatistics

ConnectionState = Literal["disconnected", "connecting", "connected", "reconnecting", "failed"]

CONFIRM_S: Final = 5.0
"""How long to wait for an answer to a ping; engines that know none are taken to have read what was sent."""

log = logging.getLogger("iii_trio.sdk")


@frozen(kw_only=True)
class Reconnect:
    """When a lost connection is dialled again: after `min(first_s * 2**n, limit_s)`, give or take `jitter` of it.

    n counts the attempts since the last connection that the engine confirmed, or that held for `settled_s`.
    `max_retries` of -1 goes on for ever; of 0, the first failure is final.
    """

    first_s: float = 1.0
    limit_s: float = 30.0
    jitter: float = 0.3
    settled_s: float = 5.0
    max_retries: int = -1

    def delay(self, attempt: int, dice: random.Random) -> float:
        """Seconds to wait before retry `attempt`, counted from 0."""
        pause: float = min(self.first_s * 2 ** min(attempt, 64), self.limit_s)
        return pause * (1 + self.jitter * dice.uniform(-1, 1))


@frozen
class SupervisorStatistics:
    """How a client's connection fared."""

    state: ConnectionState
    """What `connection_state` says."""
    dials: int
    """Attempts to connect."""
    connects: int
    """Attempts that led to a connection."""
    session: SessionStatistics | None
    """The current connection's; None while there is none."""


@define(eq=False, kw_only=True)
class Supervisor:
    """One client's connections, one after the other. `failure` says why there will be no more.

    `dial` makes a fresh upgraded stream or raises `DialError`.
    """

    dial: Callable[[], Awaitable[tuple[trio.abc.Stream, Framing, bytes]]]
    registry: Registry
    greeting: Json
    reconnect: Reconnect
    converter: Converter
    limits: Limits
    client: Any = None
    dice: random.Random = field(factory=random.Random)
    state: ConnectionState = field(init=False, default="disconnected")
    failure: WireError | None = field(init=False, default=None)
    current: Session | None = field(init=False, default=None)
    _changed: trio.Event = field(init=False, factory=trio.Event)
    _listeners: list[Callable[[ConnectionState], object]] = field(init=False, factory=list)
    _between: trio.CancelScope | None = field(init=False, default=None)
    _last: bool = field(init=False, default=False)
    _over: trio.Event = field(init=False, factory=trio.Event)
    _previous: Previous | None = field(init=False, default=None)
    _dials: int = field(init=False, default=0)
    _connects: int = field(init=False, default=0)

    async def run(self, lasting: trio.Nursery) -> None:
        """Stay connected until `stop`; on a failure that is final, cancel `lasting` and return."""
        retries = 0
        try:
            self._enter("connecting")
            while not self._last:
                settled, why = await self._connect_once(lasting)
                if self._last or self.failure is not None:
                    break
                if settled:
                    retries = 0
                if 0 <= self.reconnect.max_retries <= retries:
                    self.failure = why
                    break
                pause_s = self.reconnect.delay(retries, self.dice)
                retries += 1
                log.warning("%s; next attempt in %.1f s", why.message, pause_s)
                self._enter("reconnecting")
                with trio.CancelScope() as self._between:
                    await trio.sleep(pause_s)
        finally:
            self._last = True
            self._enter("disconnected" if self.failure is None else "failed")
            self._over.set()
        if self.failure is not None:
            lasting.cancel_scope.cancel(reason=str(self.failure))

    async def _connect_once(self, lasting: trio.Nursery) -> tuple[bool, NotConnected]:
        """One connection from dial to end: whether it had settled, and why it ended or never began.

        The reason has the engine's own code and words where it did not admit the connection.
        """
        self._dials += 1
        dialled = None
        with trio.CancelScope() as self._between:
            try:
                dialled = await self.dial()
            except DialError as error:
                return False, NotConnected(str(error))
        if dialled is None:
            return False, NotConnected("closed")
        stream, framing, rest = dialled
        session = Session(
            stream=stream,
            framing=framing,
            registry=self.registry,
            limits=self.limits,
            lasting=lasting,
            converter=self.converter,
            client=self.client,
        )
        session.greet(self.greeting, self._previous)
        if self._last:
            session.close()
        self._connects += 1
        self.current, began = session, trio.current_time()
        self._enter("connected")
        try:
            closed = await session.run(rest)
        finally:
            self.current = None
            if session.registered is not None:
                self._previous = Previous(session.registered.worker_id, session.registered.reattach_token)
            await trio.aclose_forcefully(stream)  # for a session cancelled before its connection ran
        self.failure = session.rejected
        settled = session.confirmed.passed or trio.current_time() - began >= self.reconnect.settled_s
        if session.refused is not None:
            return settled, NotConnected(session.refused.message, session.refused.code)
        return settled, NotConnected(f"the connection to the engine ended ({closed.code} {closed.reason})")

    def _enter(self, state: ConnectionState) -> None:
        if state == self.state:
            return
        self.state = state
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        for listener in tuple(self._listeners):
            listener(state)

    # -- what others wait for

    async def session(self) -> Session:
        """The live connection; waits for the next one while there is none. Raises `NotConnected` if none will come.

        Returns without a checkpoint in between: what is sent at once goes over it.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.current is None or self.current.closing:
            if self._last:
                await trio.lowlevel.checkpoint_if_cancelled()  # closed because whoever waits is cancelled: that is why
                raise NotConnected("the client is closed" if self.failure is None else str(self.failure))
            await self._changed.wait()
        return self.current

    async def wait_registered(self) -> None:
        """Wait until connected and until the engine has read the registrations, or is silent for `CONFIRM_S`.

        Raises `NotConnected` when there will be no connection.
        """
        while True:
            session = await self.session()
            with trio.move_on_after(CONFIRM_S):
                await session.confirmed.wait()
            if not session.closing:
                return

    # -- the end

    def no_more(self) -> None:
        """Let the current connection be the last one: no dial after it."""
        self._last = True
        if self._between is not None:
            self._between.cancel()

    async def stop(self) -> None:
        """Close the connection with 1000, what is queued first, and wait for its end."""
        self.no_more()
        if self.current is not None:
            self.current.close()
        await self._over.wait()

    def listen(self, listener: Callable[[ConnectionState], object]) -> Callable[[], None]:
        """Tell `listener` the state now and at every change; returns what ends that."""
        listener(self.state)
        self._listeners.append(listener)

        def unlisten() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unlisten

    def statistics(self) -> SupervisorStatistics:
        """A snapshot."""
        session = None if self.current is None else self.current.statistics()
        return SupervisorStatistics(self.state, self._dials, self._connects, session)
