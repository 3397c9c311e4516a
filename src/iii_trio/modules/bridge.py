"""A link to another engine that keeps our state and streams (spec/state-stream.md §10, pubsub-cron-config-cli.md §5).

One worker connection to the other engine, under a name that no other engine has, kept up by reconnecting. Requests leave
in the order in which they come, without a task each. What comes while there is no connection, or none with room, waits:
in bounded numbers, and for `BRIDGE_PATIENCE_S` after the connection was lost; from then on requests fail at once, until it
is back. Nothing is sent twice: what was under way when the connection was lost has failed.

Each request carries the ids of the engines it has come through, as metadata, so that engines that bridge to each other in
a circle refuse instead of passing it round for ever. An engine that meets itself at the other end says so.
"""

import logging
import uuid
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import trio
from attrs import define, field, frozen

from ..engine import DEFAULT_NAMESPACE, Call, Engine, Outcome
from ..engine.deadlines import Bucket, Timer
from ..protocol import Json, JsonError, cancellation, errors
from ..protocol.errors import ConfigError, WireError
from ..protocol.limits import BRIDGE_CALL_S, BRIDGE_CALLS, BRIDGE_PATIENCE_S, BRIDGE_WAITING, BRIDGE_WAITING_BYTES
from ..sdk import Client, Function, Reconnect, Trigger, open_client
from ..sdk.calls import PendingCall
from ..sdk.dial import Address, OpenStream
from ..sdk.relay import Relayed
from ..sdk.session import CANCEL_V1
from .remote import Follower

log = logging.getLogger(__name__)

VIA: Final = "iii.bridge"
"""Metadata of a request: the ids of the engines it has come through, the first one first."""
MOST_ENGINES: Final = 8
NOT_CONNECTED: Final = "NOT_CONNECTED"
TOPIC: Final = "stream.events"
RECONNECT: Final = Reconnect(first_s=0.25, limit_s=10.0)


@define(eq=False)
class _Request:
    """One request: it waits, is under way as `relayed`, and has ended when `on_done` is None. `bucket`: its deadline's."""

    bridge: "Bridge"
    function_id: str
    data: Json
    on_done: Callable[[Outcome], None] | None
    metadata: Json
    timeout_s: float
    lasting: bool
    traceparent: str | None
    baggage: str | None
    relayed: Relayed | None = None
    bucket: Bucket | None = None

    def expire(self) -> None:
        """See `Expiring`."""
        self.bridge.expire(self)

    def cancel(self, *, reason: str | None = None) -> None:
        """Whoever asked does not want the answer any more; a lasting request that has been sent is left to end."""
        if self.on_done is None or (self.lasting and self.relayed is not None):
            return
        reason = cancellation.known(reason)
        if self.relayed is not None:
            self.relayed.give_up(reason)
        text = f"the call was cancelled: {reason}"
        self.bridge.end(self, Outcome.failed(WireError(text, errors.INVOCATION_CANCELLED)))


@frozen
class BridgeStatistics:
    """`connected` now, so far `connects`; requests `running` and `waiting`, and how many were `answered`, or `failed`
    without an answer; stream events `heard`.
    """

    connected: bool
    connects: int
    running: int
    waiting: int
    answered: int
    failed: int
    heard: int


@define(eq=False)
class Bridge:
    """The link; see `Remote`. `token` goes with the handshake, as `Authorization: Bearer`. Run it as a module.

    `open_stream` replaces TCP by a stream of one's own. Raises `ConfigError` for a URL that is none.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    open_stream: OpenStream | None = None
    shown: str = field(init=False)
    """The URL as errors name it: without what it may have of secrets."""
    announces: bool = field(default=False, init=False)
    _core: Engine | None = field(default=None, init=False)
    _client: Client | None = field(default=None, init=False)
    _follower: Follower | None = field(default=None, init=False)
    _feed: str | None = field(default=None, init=False)
    """The trigger by which stream events come, on this connection."""
    _function: Function = field(init=False)
    _waiting: deque[_Request] = field(factory=deque, init=False)
    _waiting_bytes: int = field(default=0, init=False)
    _more: trio.Event = field(factory=trio.Event, init=False)
    _running: dict[_Request, None] = field(factory=dict, init=False)
    _refusal: str | None = field(default="the bridge is not running", init=False)
    """Why requests fail at once; None while they are sent or may wait."""
    _away: bool = field(default=False, init=False)
    _patience: Timer | None = field(default=None, init=False)
    _connects: int = field(default=0, init=False)
    _answered: int = field(default=0, init=False)
    _failed: int = field(default=0, init=False)
    _heard: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        try:
            parts = urlsplit(Address.parse(self.url).url)
        except ValueError as error:
            raise ConfigError(f"`bridge_url`: {error}") from None
        self.shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        function_id = f"stream::bridge::on_pub::{uuid.uuid4()}"
        self._function = Function(id=function_id, handler=self._on_event, validate=False, metadata={"internal": True})

    # -- the connection -----------------------------------------------------------------------------------------------

    async def run(self, core: Engine, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the link up until cancelled. It starts whether or not the other engine is there."""
        headers = {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        async with open_client(
            self.url,
            name=f"iii-bridge-{core.id}",
            namespace=DEFAULT_NAMESPACE,
            headers=headers,
            reconnect=RECONNECT,
            wait=False,
            open_stream=self.open_stream,
        ) as client:
            self._core, self._client = core, client
            client.add_function(self._function)
            unlisten = client.add_connection_state_listener(self._on_state)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._greet, core, client, name="bridge greeting")
                    nursery.start_soon(self._send_waiting, client, name="bridge sender")
                    task_status.started()
            finally:
                unlisten()
                self._stop()

    def _on_state(self, state: str) -> None:
        assert self._core is not None
        if state == "connected":
            self._connects += 1
            self._away, self._refusal = False, None
            self._forget_patience()
        elif not self._away:
            self._away, self._refusal = True, None
            self._patience = self._core.deadlines.after(BRIDGE_PATIENCE_S, self._give_up)

    def _forget_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        """It has been away for too long: what waits fails, and what comes fails at once until it is back."""
        self._patience = None
        self._refuse(f"{self.shown} is not connected; the bridge goes on trying")

    def _refuse(self, why: str) -> None:
        self._refusal = why
        waiting, self._waiting = self._waiting, deque()
        self._waiting_bytes = 0
        for request in waiting:
            self._fail(request, why, NOT_CONNECTED)

    def _stop(self) -> None:
        self._forget_patience()
        self._refuse("the bridge has stopped")
        for request in tuple(self._running):
            self._fail(request, "the bridge has stopped", errors.INVOCATION_STOPPED)
        self._client = self._core = None
        self._away, self.announces, self._feed = False, False, None

    async def _greet(self, core: Engine, client: Client) -> None:
        """For each connection: see who is at the other end, and ask for its stream events."""
        while True:
            session = await client.relay.identified()
            self.announces = CANCEL_V1 in session.features
            self._listen(client)
            with trio.move_on_after(BRIDGE_PATIENCE_S):  # an engine that answers no pings has read it all by then
                await session.barrier().wait()
            registered = session.registered
            if registered is not None and core.workers.get(registered.worker_id) is not None:
                text = f"`bridge_url` {self.shown} leads back to this engine; name another engine's worker port"
                log.error("%s", text)
                self._refuse(text)
            elif self._follower is not None and not session.closing:
                self._follower.back()
            await session.ended.wait()
            self.announces = False
            self._unlisten(client)

    async def _send_waiting(self, client: Client) -> None:
        """Send what waits, in order, whenever there is a connection with room."""
        while True:
            while self._waiting:
                await client.relay.wait_ready()
                while self._waiting and client.relay.ready:
                    request = self._waiting.popleft()
                    self._waiting_bytes -= len(request.data)
                    self._send(client, request)
            self._more = trio.Event()
            await self._more.wait()

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(
        self,
        function_id: str,
        data: Json,
        on_done: Callable[[Outcome], None],
        call: Call | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        """See `Remote.request`."""
        core, client = self._core, self._client
        why = self._refusal
        if core is None or client is None or why is not None:
            self._refused(on_done, why or "the bridge is not running", NOT_CONNECTED)
            return
        if len(self._running) >= BRIDGE_CALLS:
            self._refused(on_done, f"{BRIDGE_CALLS} requests wait for {self.shown} already", errors.WORKER_OVERLOADED)
            return
        try:
            metadata = _passed_on(core.id, call)
        except WireError as error:
            self._refused(on_done, error.message, error.code)
            return
        timeout_s = BRIDGE_CALL_S
        if call is not None and not lasting:
            timeout_s = max(0.0, min(timeout_s, call.deadline - core.clock.now())) if call.deadline else timeout_s
        request = _Request(
            bridge=self,
            function_id=function_id,
            data=data,
            on_done=on_done,
            metadata=metadata,
            timeout_s=timeout_s,
            lasting=lasting,
            traceparent=None if call is None else call.traceparent,
            baggage=None if call is None else call.baggage,
        )
        core.deadlines.add(core.clock.now() + timeout_s, request)
        self._running[request] = None
        if call is not None:
            call.scope = request
        if not self._waiting and client.relay.ready:
            self._send(client, request)
        elif len(self._waiting) >= BRIDGE_WAITING or self._waiting_bytes >= BRIDGE_WAITING_BYTES:
            self._fail(
                request, f"{len(self._waiting)} requests wait for {self.shown} already", errors.WORKER_OVERLOADED
            )
        else:
            self._waiting.append(request)
            self._waiting_bytes += len(data)
            self._more.set()

    def _send(self, client: Client, request: _Request) -> None:
        if request.on_done is None:
            return
        try:
            request.relayed = client.relay.begin(
                request.function_id,
                request.data,
                partial(self._on_answer, request),
                namespace=DEFAULT_NAMESPACE,
                timeout_s=request.timeout_s,
                metadata=request.metadata,
                traceparent=request.traceparent,
                baggage=request.baggage,
            )
        except WireError as error:  # too large for any message
            self._fail(request, error.message, error.code)
            return
        if request.relayed is None:
            self._fail(request, f"{self.shown} is not connected", NOT_CONNECTED)

    def _on_answer(self, request: _Request, answer: PendingCall) -> None:
        self._answered += 1
        self.end(request, Outcome(answer.result) if answer.error is None else Outcome.failed(answer.error))

    def expire(self, request: _Request) -> None:
        """A request has had its time."""
        if request.relayed is not None:
            request.relayed.give_up(cancellation.DEADLINE)
        self._fail(request, f"{self.shown} did not answer within {request.timeout_s:g} s", errors.TIMEOUT)

    def _fail(self, request: _Request, why: str, code: str) -> None:
        self._failed += 1
        self.end(request, Outcome.failed(WireError(why, code)))

    def _refused(self, on_done: Callable[[Outcome], None], why: str, code: str) -> None:
        self._failed += 1
        on_done(Outcome.failed(WireError(why, code)))

    def end(self, request: _Request, outcome: Outcome) -> None:
        """A request has its outcome; any further one counts no more."""
        on_done, request.on_done = request.on_done, None
        if on_done is None:
            return
        self._running.pop(request, None)
        if request.bucket is not None:
            del request.bucket[request]
            request.bucket = None
        if request.relayed is None and request in self._waiting:
            self._waiting.remove(request)
            self._waiting_bytes -= len(request.data)
        request.relayed = None  # the two hold each other
        on_done(outcome)

    # -- stream events ------------------------------------------------------------------------------------------------

    def follow(self, follower: Follower) -> Callable[[], None]:
        """See `Remote.follow`."""
        self._follower = follower
        if self._client is not None:
            self._listen(self._client)

        def unfollow() -> None:
            if self._follower is follower:
                self._follower = None
                if self._client is not None:
                    self._unlisten(self._client)

        return unfollow

    def _listen(self, client: Client) -> None:
        """Ask for the events: of our kind of engine by a trigger on all streams, of others by the topic of bridges."""
        session = client.relay.session
        if self._follower is None or self._feed is not None or session is None or session.registered is None:
            return
        trigger = Trigger(trigger_type="stream", config={}) if self.announces else _TOPIC_TRIGGER
        self._feed = client.add_trigger(self._function.id, trigger)

    def _unlisten(self, client: Client) -> None:
        if self._feed is not None:
            client.remove_trigger(self._feed)
            self._feed = None

    async def _on_event(self, wrapper: Any) -> None:
        self._heard += 1
        if self._follower is not None:
            self._follower.heard(Json.of(wrapper))

    def statistics(self) -> BridgeStatistics:
        """A frozen picture of the link."""
        return BridgeStatistics(
            connected=self._client is not None and self._client.connection_state == "connected",
            connects=self._connects,
            running=len(self._running) - len(self._waiting),
            waiting=len(self._waiting),
            answered=self._answered,
            failed=self._failed,
            heard=self._heard,
        )


_TOPIC_TRIGGER: Final = Trigger(trigger_type="subscribe", config={"topic": TOPIC})


def _passed_on(engine_id: str, call: Call | None) -> Json:
    """The metadata of a request made for `call`. Raises `WireError` if it has come through this engine before."""
    if call is None or not call.metadata:
        return _first(engine_id)
    via: list[str] = []
    if VIA.encode() in call.metadata:
        try:
            metadata = Json(call.metadata).decode()
        except JsonError:
            metadata = None
        found = metadata.get(VIA) if isinstance(metadata, dict) else None
        if isinstance(found, list):
            via = [str(one) for one in found]
    if engine_id in via or len(via) >= MOST_ENGINES:
        raise WireError(
            "the engines bridge to each other in a circle; one of them has to keep the data", "bridge_circle"
        )
    return Json.of({VIA: [*via, engine_id]})


@cache
def _first(engine_id: str) -> Json:
    return Json.of({VIA: [engine_id]})
