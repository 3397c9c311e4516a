"""Calls that waited for a module to be started again go to whoever serves the function then."""

from trio.testing import MockClock

from iii_trio.engine import Engine, Outcome, calls_wait, open_engine, open_local
from iii_trio.protocol import NULL
from iii_trio.testing.raw import open_port


def running(core: Engine) -> dict[str, int]:
    """What each claim on `x::f` counts as running, by worker."""
    entry = core.functions.get("default", "x::f")
    assert entry is not None
    assert entry.replicas is not None
    return {str(one.owner.name): one.started - one.count for one in entry.replicas._entries}


async def test_replicas_that_take_over_count_what_was_handed_to_them(autojump_clock: MockClock) -> None:
    async with open_engine() as core, open_port(core) as port:
        first, second = await port.connect(name="first"), await port.connect(name="second")
        outcomes: list[Outcome] = []
        async with open_local(core, "module") as module, open_local(core, "caller") as caller:
            module.register("x::f", lambda _call, _data: Outcome(NULL))
            async with calls_wait(core, [module], 0.1):
                for _ in range(2):
                    caller.call("x::f", NULL, outcomes.append)
                for worker in (first, second):
                    worker.register("x::f", metadata={"iii.shared": True})
                    await worker.settled()
                core.release(module)
            assert running(core) == {"first": 1, "second": 1}
            for worker in (first, second):
                worker.answer(await worker.next("invokefunction", function_id="x::f"), result=1)
                await worker.settled()
            assert [outcome.result.decode() for outcome in outcomes] == [1, 1]
            assert running(core) == {"first": 0, "second": 0}
