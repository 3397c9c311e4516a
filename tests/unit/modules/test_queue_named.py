"""Named queues: what is accepted, how often and in which order it is delivered (spec/queue.md §2–§5, cases 1–19)."""

import itertools
from typing import Any

import pytest
import trio
from queue_harness import BASE, configured, failing, open_world, taking
from trio.testing import MockClock

from iii_trio.config import QueueModuleSettings, QueueSettings
from iii_trio.engine import Call, Outcome, open_local
from iii_trio.engine.events import FunctionsChanged
from iii_trio.protocol import Json, errors
from iii_trio.protocol.errors import WireError


@pytest.mark.parametrize("settings", [BASE, QueueModuleSettings()])
async def test_default_is_always_there(autojump_clock: MockClock, settings: QueueModuleSettings) -> None:
    async with open_world(settings) as world:
        handler = world.serve("f")
        await world.enqueue("default", "f", {"n": 1})
        assert await handler.wait(1) == [{"n": 1}]


@pytest.mark.parametrize(
    ("queue", "data", "message"),
    [
        ("nowhere", {}, "Queue 'nowhere' not found"),
        ("payment", {}, "FIFO queue 'payment' requires field 'transaction_id' in data, but it was not found"),
        ("payment", [1], "FIFO queue 'payment' requires field 'transaction_id' in data, but it was not found"),
        ("payment", {"transaction_id": None}, "FIFO queue 'payment': field 'transaction_id' must not be null"),
        ("ungrouped", {}, "FIFO queue 'ungrouped' requires 'message_group_field' to be configured"),
    ],
)
async def test_what_is_refused_says_why(autojump_clock: MockClock, queue: str, data: Any, message: str) -> None:
    settings = configured(**BASE.queue_configs, ungrouped=QueueSettings(type="fifo"))
    async with open_world(settings) as world:
        with pytest.raises(WireError) as caught:
            await world.enqueue(queue, "f", data)
        assert (caught.value.code, caught.value.message) == (errors.ENQUEUE_ERROR, message)


@pytest.mark.parametrize("missing", ["queue", "function_id", "messageReceiptId", "data"])
async def test_a_provider_call_that_lacks_a_field_names_it(autojump_clock: MockClock, missing: str) -> None:
    request = {"queue": "default", "function_id": "f", "data": 1, "messageReceiptId": "r"}
    del request[missing]
    async with open_world() as world:
        with pytest.raises(WireError, match=f"missing field `{missing}`") as caught:
            await world.ask("engine::queue::enqueue", request)
        assert caught.value.code == errors.DESERIALIZATION_ERROR


@pytest.mark.parametrize("group", ["t1", 7, True, {"a": 1}])
async def test_any_value_but_null_is_a_group(autojump_clock: MockClock, group: Any) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        await world.enqueue("payment", "f", {"transaction_id": group})
        assert await handler.wait(1) == [{"transaction_id": group}]


async def test_one_message_is_delivered_once_and_at_once(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        begin = trio.current_time()
        await world.enqueue("default", "f", {"n": 1})
        await handler.wait(1)
        assert handler.seen[0].at - begin < 0.01
        assert handler.seen[0].metadata is None
        await trio.sleep(3600)
        assert len(handler.seen) == 1
        assert await world.stats("default") == {"depth": 0, "consumer_count": 3, "dlq_depth": 0, "config": None}


async def test_payloads_and_trace_context_arrive_as_they_were(autojump_clock: MockClock) -> None:
    data = {"a": [1, {"b": None}, 2.5, "x"], "c": {"d": [[]]}}
    async with open_world() as world:
        handler = world.serve("f")
        await world.enqueue(
            "default", "f", data, traceparent="00-a-b-01", baggage="k=v,iii.tag.kind=x,iii.function.id=f"
        )
        await handler.wait(1)
        seen = handler.seen[0]
        assert (seen.data, seen.traceparent, seen.baggage) == (data, "00-a-b-01", "k=v,iii.function.id=f")


async def test_numbers_beyond_64_bits_are_not_touched(autojump_clock: MockClock) -> None:
    raw: list[bytes] = []
    text = b'{"n": 123456789012345678901234567890, "x": 1.10}'
    async with open_world() as world:

        def keep(_call: Call, data: Json) -> Outcome:
            raw.append(data.raw)
            return Outcome()

        world.user.register("f", keep)
        request = b'{"queue":"default","function_id":"f","messageReceiptId":"r","data":' + text + b"}"
        await world.user.invoke("engine::queue::enqueue", Json(request))
        await trio.sleep(1)
        assert raw == [text]


async def test_one_group_keeps_its_order(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", taking(0.01))
        for n in range(5):
            await world.enqueue("payment", "f", {"transaction_id": "t", "n": n})
        await handler.wait_finished(5)
        assert [data["n"] for data in handler.data] == [0, 1, 2, 3, 4]
        assert handler.peak == 1


async def test_groups_run_side_by_side_and_keep_their_order_across_failures(autojump_clock: MockClock) -> None:
    settings = configured(
        pay=QueueSettings(type="fifo", message_group_field="g", concurrency=3, max_retries=3, backoff_ms=1000)
    )
    log: list[tuple[str, int]] = []
    failed: set[tuple[str, int]] = set()

    async def behave(_number: int, data: Any) -> None:
        key = (data["g"], data["n"])
        await trio.sleep(0.1)
        if data["n"] == 2 and data["g"] == "a" and key not in failed:
            failed.add(key)
            raise WireError("once", "invocation_failed")
        log.append(key)

    async with open_world(settings) as world:
        handler = world.serve("f", behave)
        for n in range(5):
            for group in "abc":
                await world.enqueue("pay", "f", {"g": group, "n": n})
        await handler.wait_finished(15)
        for group in "abc":
            assert [n for g, n in log if g == group] == [0, 1, 2, 3, 4]
        assert handler.peak == 3
        assert log.index(("b", 4)) < log.index(("a", 2))  # the others did not wait for the failing group


async def test_a_failing_fifo_message_blocks_its_group_until_it_is_dead(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        bad, good = world.serve("bad", failing()), world.serve("good")
        await world.enqueue("payment", "bad", {"transaction_id": "t"})
        await world.enqueue("payment", "good", {"transaction_id": "t"})
        await good.wait(1)
        assert len(bad.seen) == 2
        assert good.seen[0].at >= bad.seen[1].at


async def test_attempts_are_counted_and_spaced_as_configured(autojump_clock: MockClock) -> None:
    settings = configured(orders=QueueSettings(max_retries=4, backoff_ms=50))
    async with open_world(settings) as world:
        handler = world.serve("f", failing())
        receipt = await world.enqueue("orders", "f", {"n": 1})
        (letter,) = await world.wait_dead("orders", 1)
        await trio.sleep(3600)
        assert len(handler.seen) == 4
        times = [seen.at for seen in handler.seen]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert gaps == pytest.approx([0.05, 0.1, 0.2], abs=0.005)
        assert [seen.attempt for seen in handler.seen] == [None, 2, 3, 4]
        assert handler.seen[1].metadata == {"iii.queue": {"queue": "orders", "message_id": receipt, "attempt": 2}}
        assert letter["id"] == receipt
        assert letter["payload"] == {"n": 1}
        assert letter["retries"] == 4
        assert letter["error"] == "invocation_failed: forced failure\nsomewhere"
        assert 1_700_000_000 <= letter["failed_at"] < 1_700_000_010


@pytest.mark.parametrize(("max_retries", "calls"), [(0, 1), (1, 1), (2, 2), (4, 4)])
async def test_max_retries_is_the_number_of_deliveries(autojump_clock: MockClock, max_retries: int, calls: int) -> None:
    settings = configured(orders=QueueSettings(max_retries=max_retries, backoff_ms=10))
    async with open_world(settings) as world:
        handler = world.serve("f", failing())
        await world.enqueue("orders", "f")
        (letter,) = await world.wait_dead("orders", 1)
        await trio.sleep(3600)
        assert len(handler.seen) == letter["retries"] == calls


async def test_concurrency_is_used_and_not_exceeded(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", taking(0.2))
        for n in range(9):
            await world.enqueue("default", "f", n)
        await handler.wait_finished(9)
        assert handler.peak == 3
        starts = [seen.at for seen in handler.seen]
        assert starts[2] - starts[0] < 0.01
        (queue,) = [q for q in world.module.statistics().queues if q.key.name == "default"]
        assert queue.consumers == 0  # what lies in memory needs no task


async def test_a_message_for_a_missing_function_waits_for_it_and_blocks_nobody(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=1, max_retries=1))
    async with open_world(settings) as world:
        await world.enqueue("one", "later", 1)
        await world.enqueue("one", "later", 2)
        present = world.serve("present")
        await world.enqueue("one", "present", 3)
        await present.wait(1)
        await trio.sleep(24 * 3600)
        (queue,) = [q for q in world.module.statistics().queues if q.key.name == "one"]
        assert (queue.counts.held, queue.counts.failures, queue.counts.dead) == (2, 0, 0)
        late = world.serve("later")
        at = trio.current_time()
        assert await late.wait(2) == [1, 2]
        assert late.seen[0].at == at
        assert [seen.attempt for seen in late.seen] == [None, None]


async def test_two_queues_do_not_wait_for_each_other(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        slow, quick = world.serve("slow", taking(3600)), world.serve("quick")
        for n in range(3):
            await world.enqueue("default", "slow", n)
        for n in range(3):
            await world.enqueue("payment", "quick", {"transaction_id": "t", "n": n})
        await quick.wait_finished(3)
        assert len(slow.seen) == 3
        assert not slow.finished


async def test_a_crashing_handler_neither_stops_the_queue_nor_loses_its_message(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=1, max_retries=2, backoff_ms=10))

    async def crash(_number: int, _data: Any) -> None:
        raise RuntimeError("a bug")

    async with open_world(settings) as world:
        world.serve("bad", crash)
        good = world.serve("good")
        await world.enqueue("one", "bad", "b")
        await world.enqueue("one", "good", "g")
        await good.wait(1)
        (letter,) = await world.wait_dead("one", 1)
        assert letter["payload"] == "b"


async def test_the_namespace_selects_the_function(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        here, there = world.serve("f"), world.serve("f", namespace="orders")
        await world.enqueue("default", "f", 1, namespace="orders")
        assert await there.wait(1) == [1]
        assert here.seen == []


async def test_a_handler_that_hangs_is_a_failed_attempt_after_the_timeout(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=1, max_retries=1, timeout_ms=2000))
    async with open_world(settings) as world:
        hung = world.serve("f", taking(float("inf")))
        await world.enqueue("one", "f")
        (letter,) = await world.wait_dead("one", 1)
        assert letter["error"] == "TIMEOUT: f did not answer within 2000 ms"
        assert trio.current_time() - hung.seen[0].at < 10
        assert hung.running == 0


async def test_the_worker_that_goes_costs_an_attempt(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(max_retries=3, backoff_ms=10))
    async with open_world(settings) as world:
        async with open_local(world.core, "worker") as worker:
            handler = world.serve("f", taking(float("inf")), peer=worker)
            receipt = await world.enqueue("one", "f")
            await handler.wait(1)
        again = world.serve("f")
        await again.wait(1)
        assert again.seen[0].metadata == {"iii.queue": {"queue": "one", "message_id": receipt, "attempt": 2}}
        (queue,) = [q for q in world.module.statistics().queues if q.key.name == "one"]
        assert queue.counts.failures == 1


@pytest.mark.parametrize("code", [errors.WORKER_OVERLOADED, errors.ENGINE_DRAINING])
async def test_an_overloaded_worker_costs_no_attempt(autojump_clock: MockClock, code: str) -> None:
    settings = configured(one=QueueSettings(max_retries=1))
    calls: list[Call] = []

    def busy(call: Call, _data: Json) -> Outcome:
        calls.append(call)
        if len(calls) < 4:
            raise WireError("busy", code)
        return Outcome()

    async with open_world(settings) as world:
        world.user.register("f", busy)
        await world.enqueue("one", "f")
        await trio.sleep(10)
        assert len(calls) == 4
        assert [call.metadata for call in calls] == [b""] * 4
        assert await world.dead("one") == []


async def test_a_handler_that_answers_with_the_same_code_has_failed(autojump_clock: MockClock) -> None:
    async def overloaded(_number: int, _data: Any) -> None:
        await trio.sleep(0.1)
        raise WireError("somebody else is", errors.WORKER_OVERLOADED)

    async with open_world() as world:
        handler = world.serve("f", overloaded)
        await world.enqueue("default", "f")
        await world.wait_dead("default", 1)
        assert len(handler.seen) == 2


async def test_nothing_begins_while_the_engine_drains_and_what_it_interrupts_counts_nothing(
    autojump_clock: MockClock,
) -> None:
    settings = configured(one=QueueSettings(concurrency=1, max_retries=1))
    async with open_world(settings) as world:
        async with open_local(world.core, "worker") as worker:
            handler = world.serve("f", taking(float("inf")), peer=worker)
            await world.enqueue("one", "f", 1)
            await handler.wait(1)
            await world.enqueue("one", "f", 2)
            assert not await world.core.drain(1.0)
        assert await world.dead("one") == []
        again = world.serve("f")
        await trio.sleep(3600)
        assert again.seen == []
        assert (await world.stats("one"))["depth"] == 2


async def test_a_drain_lets_running_deliveries_end_and_count(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=1))
    async with open_world(settings) as world:
        handler = world.serve("f", taking(0.5))
        await world.enqueue("one", "f", 1)
        await handler.wait(1)
        assert await world.core.drain(5.0)
        await trio.testing.wait_all_tasks_blocked()
        assert (await world.stats("one"))["depth"] == 0


async def test_live_settings_add_change_and_remove_queues(autojump_clock: MockClock) -> None:
    async with open_world(configured(old=QueueSettings(concurrency=1))) as world:
        handler = world.serve("f", taking(1))
        for n in range(4):
            await world.enqueue("old", "f", n)
        await handler.wait(1)
        world.settings.set(configured(old=QueueSettings(concurrency=3), new=QueueSettings()))
        await handler.wait(3)
        assert handler.peak == 3
        await world.enqueue("new", "f", "n")
        await handler.wait_finished(5)

        world.settings.set(configured(new=QueueSettings()))
        with pytest.raises(WireError, match="'old' not found"):
            await world.enqueue("old", "f")
        await world.enqueue("default", "f", "d")
        await handler.wait_finished(6)


async def test_a_removed_queue_keeps_its_messages_until_it_is_back(autojump_clock: MockClock) -> None:
    both = configured(old=QueueSettings(concurrency=1))
    async with open_world(both) as world:
        handler = world.serve("f", taking(1))
        for n in range(3):
            await world.enqueue("old", "f", n)
        await handler.wait(1)
        world.settings.set(configured())
        await trio.sleep(60)
        assert handler.finished == [0]
        world.settings.set(both)
        await handler.wait_finished(3)


async def test_a_smaller_concurrency_holds_from_the_next_message_on(autojump_clock: MockClock) -> None:
    async with open_world(configured(one=QueueSettings(concurrency=3))) as world:

        def in_flight() -> int:
            (queue,) = [q for q in world.module.statistics().queues if q.key.name == "one"]
            return queue.counts.in_flight

        handler = world.serve("f", taking(1))
        for n in range(9):
            await world.enqueue("one", "f", n)
        await handler.wait(3)
        assert in_flight() == 3
        world.settings.set(configured(one=QueueSettings(concurrency=1)))
        await handler.wait(5)
        assert in_flight() == 1
        await handler.wait_finished(9)
        assert handler.seen[-1].at - handler.seen[3].at >= 5


async def test_a_queue_that_is_taken_away_at_any_step_keeps_its_messages(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(concurrency=3))
    for steps in range(25):
        async with open_world(settings) as world:
            for n in range(5):
                await world.enqueue("one", "f", n)
            handler = world.serve("f", taking(0))
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            world.settings.set(configured())
            await trio.sleep(10)
            world.settings.set(settings)
            await trio.sleep(10)
            assert sorted(handler.data) == [0, 1, 2, 3, 4]
            assert {seen.attempt for seen in handler.seen} == {None}
            assert (await world.stats("one"))["depth"] == 0


async def test_a_stop_at_any_step_loses_nothing_and_marks_what_it_repeats(autojump_clock: MockClock) -> None:
    settings = configured(one=QueueSettings(type="fifo", message_group_field="g", concurrency=3))
    for steps in range(40):
        async with open_world(settings) as world:
            handler = world.serve("f", taking(0))
            outcomes: list[Outcome] = []
            for n in range(6):
                request = {"queue": "one", "function_id": "f", "data": {"g": n % 2, "n": n}, "messageReceiptId": str(n)}
                world.user.call("engine::queue::enqueue", Json.of(request), outcomes.append)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            await world.stop()
            receipted = {outcome.result.decode()["messageReceiptId"] for outcome in outcomes if outcome.ok}
            await world.start()
            await trio.sleep(10)
            assert receipted <= {str(data["n"]) for data in handler.data}
            for n in range(6):
                deliveries = [seen for seen in handler.seen if seen.data["n"] == n]
                assert all(seen.attempt is not None for seen in deliveries[1:])
            for group in (0, 1):
                order = list(dict.fromkeys(data["n"] for data in handler.data if data["g"] == group))
                assert order == sorted(order)


async def test_a_stop_cancels_what_runs(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", taking(float("inf")))
        await world.enqueue("default", "f")
        await handler.wait(1)
        await world.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert handler.running == 0


async def test_everything_is_given_back_when_the_module_ends(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.serve("f")
        await world.enqueue("default", "f")
        await trio.sleep(1)
        before = (world.core.statistics().functions.serving, len(world.core.locals()))
        await world.stop()
        statistics = world.core.statistics()
        assert (statistics.running, statistics.waiting, statistics.triggers.types) == (0, 0, 0)
        assert world.module.statistics().queues == ()
        world.core.events.emit(FunctionsChanged("default", "f", available=True))
        await world.start()
        assert (world.core.statistics().functions.serving, len(world.core.locals())) == before
