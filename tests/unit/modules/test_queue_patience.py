"""Acknowledgements wait for company in the log only where nobody waits for the slot or the group they free."""

from typing import Any

from attrs import define, field
from queue_harness import BASE, configured, open_world, taking
from trio.testing import MockClock

from iii_trio.config import QueueSettings
from iii_trio.stores import JobLog, OnDone, open_memory


@define(eq=False)
class Noting:
    """A job log that notes how its acknowledgements were submitted."""

    log: JobLog
    patience: list[bool] = field(factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def ack(self, seq: int, on_done: OnDone[bool], *, patient: bool = False) -> None:
        self.patience.append(patient)
        self.log.ack(seq, on_done, patient=patient)


async def test_only_the_last_of_a_full_queue_is_patient(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Noting(store.job_log())
        async with open_world(configured(one=QueueSettings(concurrency=1)), log=log) as world:
            handler = world.serve("f", taking(1))
            for n in range(3):
                await world.enqueue("one", "f", n)
            await handler.wait_finished(3)
        assert log.patience == [False, False, True]


async def test_the_next_of_a_group_is_not_kept_waiting(autojump_clock: MockClock) -> None:
    async with open_memory() as store:
        log = Noting(store.job_log())
        async with open_world(BASE, log=log) as world:
            handler = world.serve("f", taking(1))
            for n in range(2):
                await world.enqueue("payment", "f", {"transaction_id": "t", "n": n})
            await handler.wait_finished(2)
        assert log.patience == [False, True]
