"""Promise P8 in the bridge: cancelled at any step, every request has ended once, and neither engine keeps anything of it."""

from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field
from bridge_harness import URL, Wire, side
from module_harness import running

from iii_trio.engine import Outcome
from iii_trio.modules.bridge import Bridge
from iii_trio.protocol import Json
from iii_trio.protocol.errors import WireError
from iii_trio.testing import CancelAtStep, sweep

LATER_S = 40.0


@define(eq=False)
class Listening:
    """A follower."""

    heard_of: list[Json] = field(factory=list)

    def heard(self, wrapper: Json) -> None:
        self.heard_of.append(wrapper)

    def back(self) -> None:
        self.heard_of.clear()


async def life(core: Any, wire: Wire, bridge: Bridge, outcomes: list[list[Outcome]]) -> None:
    """A link that comes up, is used, breaks with requests under way, comes back, and is given up."""
    unfollow = bridge.follow(Listening())
    async with trio.open_nursery() as nursery:
        await nursery.start(bridge.run, core)
        for number in range(6):
            outcomes.append([])
            payload = Json.of({"scope": "s", "key": "k", "value": number})
            bridge.request("state::set", payload, outcomes[-1].append, lasting=number % 2 == 0)
            if number == 3:
                wire.cut()
            await trio.sleep(0.1)
        await trio.sleep(2)
        unfollow()
        nursery.cancel_scope.cancel()


async def once(cancel: CancelAtStep) -> None:
    async with trio.open_nursery() as nursery, side() as far, running() as (core, _user):
        wire = Wire(nursery, far.core)
        bridge = Bridge(URL, open_stream=wire.open_stream)
        outcomes: list[list[Outcome]] = []
        await trio.testing.wait_all_tasks_blocked()
        before, theirs = core.statistics(), far.core.statistics()
        await cancel.run(partial(life, core, wire, bridge, outcomes))
        assert all(len(one) == 1 for one in outcomes)
        picture = bridge.statistics()
        assert (picture.running, picture.waiting, picture.connected) == (0, 0, False)
        assert core.statistics().deadlines.timers == before.deadlines.timers
        refused: list[Outcome] = []
        bridge.request("state::get", Json(b"{}"), refused.append)
        assert isinstance(refused[0].exception(), WireError)
        await trio.sleep(LATER_S)
        left = far.core.statistics()
        assert (left.functions, left.workers, left.running, left.waiting) == (
            theirs.functions,
            theirs.workers,
            0,
            theirs.waiting,
        )
        assert left.triggers == theirs.triggers
        # and it runs again
        outcomes = []
        async with trio.open_nursery() as again:
            await again.start(partial(bridge.run, core))
            done = trio.Event()
            bridge.request("state::list_groups", Json(b"{}"), lambda outcome: (outcomes.append([outcome]), done.set()))
            await done.wait()
            assert outcomes[0][0].ok
            again.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.long)])
def test_cancelled_at_any_step_it_leaves_nothing(stride: int) -> None:
    assert sweep(once, stride) > 20
