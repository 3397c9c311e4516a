"""How many requests are handled at once: slots, a bounded line of those that wait for one, and what is shed (§14)."""

from typing import Final

import trio
from attrs import define, field

from ...config import HttpSettings, Live
from .asgi import Incoming

SHED: Final = "shed"
GONE: Final = "gone"
TAKEN: Final = "taken"


@define(eq=False)
class Slots:
    """`concurrency_request_limit` slots, given out first come first served.

    At most `concurrency_queue_limit` requests wait, each for at most `default_timeout`; the others are shed.
    """

    settings: Live[HttpSettings]
    _limiter: trio.CapacityLimiter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._limiter = trio.CapacityLimiter(self.settings.value.concurrency_request_limit)

    async def take(self, incoming: Incoming) -> str:
        """Wait for a slot: `TAKEN`, `SHED` when there is none to be had, `GONE` when the client left before."""
        settings, limiter = self.settings.value, self._limiter
        if limiter.total_tokens != settings.concurrency_request_limit:
            limiter.total_tokens = settings.concurrency_request_limit
        try:
            limiter.acquire_on_behalf_of_nowait(incoming)
        except trio.WouldBlock:
            pass
        else:
            return TAKEN
        if limiter.statistics().tasks_waiting >= settings.concurrency_queue_limit:
            return SHED
        taken = False
        try:
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    await incoming.until_gone_keeping_body()
                    nursery.cancel_scope.cancel()

                nursery.cancel_scope.deadline = trio.current_time() + settings.default_timeout / 1000
                nursery.start_soon(leave, name="waiting for a slot")
                await limiter.acquire_on_behalf_of(incoming)
                taken = True
                nursery.cancel_scope.cancel()
        except BaseException:
            if taken:  # cancelled between getting the slot and using it
                limiter.release_on_behalf_of(incoming)
            raise
        if taken:
            return TAKEN
        return GONE if incoming.gone else SHED

    def give_back(self, incoming: Incoming) -> None:
        """The request that `incoming` belongs to needs its slot no more."""
        self._limiter.release_on_behalf_of(incoming)

    @property
    def running(self) -> int:
        """Slots in use."""
        return int(self._limiter.borrowed_tokens)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._limiter.statistics().tasks_waiting
