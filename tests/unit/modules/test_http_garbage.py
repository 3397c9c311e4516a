"""What a request leaves in memory when it is over: nothing, without the help of the garbage collector."""

import gc

from test_http_exchange import open_house
from trio.testing import MockClock

from iii_trio.modules.http.pending import Pending


def pending() -> int:
    """How many requests there are in memory, over or not."""
    return sum(isinstance(thing, Pending) for thing in gc.get_objects())


async def test_a_request_leaves_nothing_for_the_garbage_collector(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        house.route("/x")
        house.function("f", {"body": 1})
        await house.client("GET", "/x").run()
        gc.collect()
        gc.disable()
        before = pending()  # errors of other tests hold some
        try:
            for _ in range(10):
                await house.client("GET", "/x").run()
            assert pending() == before
        finally:
            gc.enable()
