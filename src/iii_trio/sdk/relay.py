"""Calls without a task: sent at once or not at all, answered by a callback. For who passes on the calls of others."""

import uuid
from collections.abc import Callable

from attrs import define, frozen

from iii_trio.protocol import codec
from iii_trio.protocol import errors as wire
from iii_trio.protocol.json import ABSENT, Json
from iii_trio.protocol.limits import MAX_MESSAGE
from iii_trio.protocol.messages import InvokeFunction

from .calls import PendingCall
from .errors import PayloadTooLarge
from .session import CANCEL_V1, Session
from .supervisor import Supervisor


@define(eq=False)
class Relayed:
    """A call under way. `on_end` is not called any more once it has been given up."""

    _session: Session
    _call: PendingCall

    def give_up(self, reason: str) -> None:
        """Wait no more; an engine with `cancel.v1` cancels it at the executor, and is told why."""
        self._call.on_end = None
        self._session.end_call(self._call, reason)


@frozen
class Relay:
    """What a client's connection offers to synchronous code; made by `Client.relay`."""

    _supervisor: Supervisor

    @property
    def session(self) -> Session | None:
        """The present connection, if there is one."""
        session = self._supervisor.current
        return None if session is None or session.closing else session

    @property
    def ready(self) -> bool:
        """Whether there is a connection, with room for more."""
        session = self.session
        return session is not None and not session.busy

    def begin(
        self,
        function_id: str,
        data: Json,
        on_end: Callable[[PendingCall], None],
        *,
        namespace: str | None = None,
        timeout_s: float | None = None,
        metadata: Json = ABSENT,
        traceparent: str | None = None,
        baggage: str | None = None,
    ) -> Relayed | None:
        """Send a call now; None if there is no connection, and then nothing happened.

        Calls leave in the order of these calls. `on_end` is called once, with the outcome in `result` or `error`, also
        when the connection is lost. `timeout_s` is what the other side is told, where it understands; keeping it is the
        caller's business. Raises `PayloadTooLarge`.
        """
        session = self.session
        if session is None:
            return None
        deadline_ms = None
        if timeout_s is not None and CANCEL_V1 in session.features:
            deadline_ms = max(0, round(timeout_s * 1000))
        invocation_id = str(uuid.uuid4())
        text = codec.encode_message(
            InvokeFunction(
                invocation_id=invocation_id,
                function_id=function_id,
                data=data,
                traceparent=traceparent,
                baggage=baggage,
                metadata=metadata,
                namespace=namespace,
                deadline_ms=deadline_ms,
            )
        )
        if len(text) > MAX_MESSAGE:
            raise PayloadTooLarge(wire.too_large_text(len(text), MAX_MESSAGE), function_id=function_id)
        call = PendingCall(invocation_id, function_id, on_end=on_end)
        return Relayed(session, call) if session.begin_call(call, text) else None

    async def wait_ready(self) -> None:
        """Wait until there is a connection with room. Raises `NotConnected` when there will be none."""
        while not self.ready:
            session = await self._supervisor.session()
            await session.wait_room()

    async def identified(self) -> Session:
        """The present connection, or the next, once the engine at its other end has said what it is.

        Raises `NotConnected` when there will be none.
        """
        while True:
            session = await self._supervisor.session()
            await session.identified.wait()
            if session.registered is not None and not session.closing:
                return session
            await session.ended.wait()
