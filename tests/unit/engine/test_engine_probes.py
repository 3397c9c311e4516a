"""Probes: who is asked whether it lives, what counts as an answer, and who still wants to know it (§4.1, §20.7)."""

from typing import Any

import pytest
from engine_sync import SyncCore, SyncWorker

from iii_trio.engine import ExposeFilter, Hooks, Pattern
from iii_trio.engine.access import Session
from iii_trio.protocol.limits import PARKED_FRAMES, PROBE_S

LONGER = PROBE_S + 1


def names(core: SyncCore) -> dict[str, SyncWorker | Any]:
    """Who holds which name."""
    return {key[1]: peer for key, peer in core.engine.workers._names.items()}


@pytest.mark.parametrize("alive", [False, True])
def test_a_name_that_its_claimant_wants_no_more_costs_nobody_a_connection(alive: bool) -> None:
    core = SyncCore()
    holder, worker = core.connect(name="n"), core.connect()
    worker.introduce(name="n")
    assert holder.connection.pings == 1
    worker.introduce(name="o")
    assert names(core) == {"n": holder.peer, "o": worker.peer}
    if alive:
        holder.send({"type": "pong"})
    core.advance(LONGER)
    assert names(core) == {"n": holder.peer, "o": worker.peer}
    assert (holder.gone, worker.gone) == (False, False)
    assert core.engine.statistics().running == 0


def test_a_name_asked_for_twice_is_had_once_its_holder_is_silent() -> None:
    core = SyncCore()
    holder, worker = core.connect(name="n"), core.connect()
    worker.introduce(name="n")
    worker.introduce(name="n")
    core.advance(LONGER)
    assert holder.gone
    assert names(core) == {"n": worker.peer}
    assert core.engine.statistics().running == 0


def test_a_connection_that_we_do_not_read_is_not_silent() -> None:
    core = SyncCore()
    core.connect(name="hook").register("h")
    everything = (ExposeFilter(pattern=Pattern.of("*")),)
    busy = core.connect(session=Session(expose=everything, hooks=Hooks(trigger="h")), name="busy")
    busy.register("f")
    frame = {"type": "registertrigger", "trigger_type": "T", "function_id": "f", "config": 1}
    busy.send(*({**frame, "id": f"{n}"} for n in range(PARKED_FRAMES + 1)))
    assert busy.connection.paused, "its hook has not answered yet"
    other = core.connect(name="other")
    other.register("f")
    core.advance(LONGER)
    assert not busy.gone
    serving = core.engine.functions.get("default", "f")
    assert serving is not None
    assert serving.owner is busy.peer
    assert [frame["function_id"] for frame in other.take("registrationrejected")] == ["f"]


def test_a_connection_that_is_silent_while_it_is_read_is_ended() -> None:
    core = SyncCore()
    silent, other = core.connect(name="silent"), core.connect(name="other")
    silent.register("f")
    other.register("f")
    core.advance(LONGER)
    assert silent.connection.closed is not None
    assert silent.connection.closed[0] == 1012
    serving = core.engine.functions.get("default", "f")
    assert serving is not None
    assert serving.owner is other.peer
    assert not other.take("registrationrejected")
