"""Calls that wait while the module behind them is started again, so that its callers notice nothing but the time it takes.

A stand-in claims the module's functions and takes them over; calls that come wait with it. The module ends when it has
answered what it was running. Once its successor has claimed the functions, the stand-in leaves and hands over what waits.
Deadlines, cancellation and the end of a caller work on a waiting call as on any other.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from ..protocol import Json
from ..protocol.errors import FUNCTION_NOT_FOUND, WireError, not_found_text
from .invocations import Call
from .local import LATER, Later, LocalPeer, open_local
from .races import State

if TYPE_CHECKING:
    from .engine import Engine


class _Emptying(dict[str, Call]):
    """A peer's running calls, which tells when the last one has ended."""

    def __init__(self, calls: dict[str, Call]) -> None:
        super().__init__(calls)
        self.empty = trio.Event()
        if not calls:
            self.empty.set()

    def pop(self, *arguments: Any) -> Any:
        """As a dict does."""
        found = super().pop(*arguments)
        if not self:
            self.empty.set()
        return found


@asynccontextmanager
async def calls_wait(core: "Engine", peers: Iterable[LocalPeer], patience_s: float) -> AsyncIterator[None]:
    """Keep new calls of the peers' functions waiting for the length of the block, which ends the peers and brings others.

    Before the block begins, calls that run already get `patience_s` seconds to end.
    """
    waiting: list[tuple[Call, Json]] = []

    def wait(call: Call, data: Json) -> Later:
        waiting.append((call, data))
        return LATER

    ending = list(peers)
    async with open_local(core, "stand-in") as stand_in:
        taken = [(peer, key, entry) for peer in ending for key, entry in peer.functions.items()]
        for _, (_, function_id), entry in taken:
            stand_in.register(
                function_id,
                wait,
                description=entry.description,
                request_format=entry.request_format.decode(),
                response_format=entry.response_format.decode(),
                metadata=entry.metadata.decode(),
            )
        for peer, key, _ in taken:
            core.functions.release(peer, *key)
        try:
            with trio.move_on_after(patience_s):
                for peer in ending:
                    peer.running = emptying = _Emptying(peer.running)
                    await emptying.empty.wait()
            yield
        finally:
            for peer, _, entry in taken:
                if not peer.leaving:  # nothing has come of it
                    core.functions.claim(entry)
            for key in list(stand_in.functions):
                core.functions.release(stand_in, *key)
            for call, data in waiting:
                _hand_over(core, call, data)


def _hand_over(core: "Engine", call: Call, data: Json) -> None:
    """Let who serves the function now run a waiting call; one that has ended meanwhile is left alone."""
    if call.state is not State.RUNNING:
        return
    namespace, function_id = call.function.namespace, call.function.id
    entry = core.functions.get(namespace, function_id)
    if entry is None:
        call.fail(WireError(not_found_text(function_id, namespace), FUNCTION_NOT_FOUND))
        return
    if entry.replicas is not None:
        entry = entry.replicas.choose()
    call.executor.running.pop(call.wire_id, None)
    call.function, call.executor = entry, entry.executor
    while call.wire_id in call.executor.running:
        call.wire_id = core.invocations.new_id()
    call.executor.running[call.wire_id] = call
    call.executor.submit(call, data)
