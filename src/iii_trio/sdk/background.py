"""A client in a Trio run of its own, on a daemon thread, for programs that are not Trio's (spec/sdk.md §12.2).

Work comes in from any thread with `submit` and is a task of that run; its outcome is a `concurrent.futures.Future`,
which a thread waits for and an event loop awaits (`Completion`). The run ends with `stop`, with a rejection by the
engine, and in any case when the interpreter exits.
"""

import asyncio
import atexit
import concurrent.futures
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, Generic, TypeVar

import outcome
import trio
from attrs import define, field, frozen

from iii_trio.protocol.errors import WireError
from iii_trio.protocol.limits import CLOSE_S

from .client import DRAIN_S, Client
from .errors import InvocationError, InvocationTimeout, NotConnected
from .invocation import current_invocation

T = TypeVar("T")

SHUTDOWN: Final = "SHUTDOWN"

log = logging.getLogger("iii_trio.sdk")


@frozen(eq=False)
class Completion(Generic[T]):
    """The outcome of submitted work, to be awaited in asyncio or Trio, or not at all."""

    future: concurrent.futures.Future[T]

    def __await__(self) -> Generator[Any, Any, T]:
        if trio.lowlevel.in_trio_task():
            return _await_in_trio(self.future).__await__()
        return asyncio.wrap_future(self.future).__await__()


def in_event_loop() -> bool:
    """Whether this thread runs Trio or asyncio now, so that blocking it would stop other tasks."""
    if trio.lowlevel.in_trio_run():
        return True
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _await_in_trio(future: concurrent.futures.Future[T]) -> T:
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def tell(_: object) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future.add_done_callback(tell)
    try:
        await done.wait()
    finally:
        future.cancel()  # does nothing to one that is done
    return future.result()


@define(eq=False)
class Background:
    """Holds the client of `connect()` open on a thread; `start` returns when the client is there."""

    _connect: Callable[[], AbstractAsyncContextManager[Client]]
    _failure: WireError | None = field(init=False, default=None)
    ended: concurrent.futures.Future[None] = field(init=False, factory=concurrent.futures.Future)
    _thread: threading.Thread = field(init=False)
    _ready: threading.Event = field(init=False, factory=threading.Event)
    _client: Client | None = field(init=False, default=None)
    _token: trio.lowlevel.TrioToken | None = field(init=False, default=None)
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _stop: trio.Event = field(init=False, factory=trio.Event)
    _drain_s: float = field(init=False, default=DRAIN_S)

    def start(self) -> None:
        """Start the thread and wait for its client, which may not be connected yet."""
        self.ended.set_running_or_notify_cancel()  # it has many waiters: none of them may cancel it
        self._thread = threading.Thread(target=self._main, name="iii client", daemon=True)
        self._thread.start()
        self._ready.wait()
        atexit.register(self._at_exit)

    @property
    def client(self) -> Client:
        """The client; its methods are for the background thread."""
        if self._client is None:
            raise self._closed()
        return self._client

    @property
    def failure(self) -> WireError | None:
        """Why the connection ended for good, if it did."""
        client = self._client
        return self._failure or (None if client is None else client.failure)

    @property
    def inside(self) -> bool:
        """Whether this is a task of the background run."""
        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token

    @property
    def handling(self) -> bool:
        """Whether this is a handler of this client, a task or a thread: the run ends when that has returned."""
        invocation = current_invocation()
        return invocation is not None and invocation.client is self._client

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> concurrent.futures.Future[T]:
        """Run `work` as a task; cancelling the future cancels the task, and so does the deadline of the invocation.

        The future raises what the work raises, and `SHUTDOWN` when the run ends before it.
        """
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def begin() -> None:
            if self._nursery is None or self._stop.is_set():
                _fail(future, self._closed())
            else:
                context.run(self._nursery.start_soon, self._carry, work, future)

        self._soon(begin, future)
        return future

    def apply(self, change: Callable[[Client], T]) -> T:
        """Run a synchronous function of the client on the background thread, and wait for what it returns."""
        if self.inside:
            return change(self.client)
        future: concurrent.futures.Future[outcome.Maybe[T]] = concurrent.futures.Future()

        def begin() -> None:
            # whatever it raises is for who asked, and would be the end of the client here
            _resolve(future, outcome.capture(lambda: change(self.client)))

        self._soon(begin, future)
        return future.result().unwrap()

    def stop(self, drain_s: float = DRAIN_S) -> concurrent.futures.Future[None]:
        """Begin to end: running handlers have `drain_s` seconds. The future is done when the run is."""

        def begin() -> None:
            self._drain_s = drain_s
            self._stop.set()

        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(begin)
        return self.ended

    # -- the thread

    def _main(self) -> None:
        try:
            trio.run(self._run)
        except WireError as error:
            self._failure = error
            log.error("the client has ended: %s", error)
        finally:
            self._client = self._nursery = None
            self._ready.set()
            self.ended.set_result(None)

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with self._connect() as client, trio.open_nursery() as nursery:
            self._client, self._nursery = client, nursery
            self._ready.set()
            try:
                await self._stop.wait()
                await client.drain(self._drain_s)
            finally:
                self._nursery = None  # closed from here on, while handlers in threads may go on for long
            nursery.cancel_scope.cancel(reason="shutdown")

    async def _carry(self, work: Callable[[], Coroutine[Any, Any, T]], future: concurrent.futures.Future[T]) -> None:
        invocation = current_invocation()
        scope = trio.CancelScope()
        if invocation is not None:
            scope.deadline = invocation.deadline
        token = trio.lowlevel.current_trio_token()

        def given_up(done: concurrent.futures.Future[T]) -> None:
            if done.cancelled():
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(scope.cancel)

        future.add_done_callback(given_up)
        try:
            with scope:
                _resolve(future, await work())
            if scope.cancelled_caught:
                _fail(future, InvocationTimeout("the handler's deadline has passed"))
        except Exception as error:  # noqa: BLE001  its caller's, in another thread; the client goes on
            _fail(future, error)
        finally:
            _fail(future, self._closed())

    def _soon(self, begin: Callable[[], object], future: concurrent.futures.Future[Any]) -> None:
        try:
            if self._token is None:
                raise trio.RunFinishedError
            self._token.run_sync_soon(begin)
        except trio.RunFinishedError:
            _fail(future, self._closed())

    def _closed(self) -> WireError:
        if self.failure is not None:
            return NotConnected(str(self.failure))
        return InvocationError("iii is shutting down", SHUTDOWN)

    def _at_exit(self) -> None:
        if self._thread.is_alive():
            self.stop(drain_s=0.0)
            self._thread.join(CLOSE_S + 1)


def _resolve(future: concurrent.futures.Future[T], result: T) -> None:
    with suppress(concurrent.futures.InvalidStateError):  # cancelled in another thread meanwhile
        future.set_result(result)


def _fail(future: concurrent.futures.Future[Any], error: BaseException) -> None:
    with suppress(concurrent.futures.InvalidStateError):
        future.set_exception(error)
