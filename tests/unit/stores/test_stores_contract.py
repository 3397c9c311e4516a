"""Conformance of every store: when callbacks run, what reads see, bounds, cancellation, the end."""

from typing import Any

import pytest
import trio

from iii_trio.stores import (
    Change,
    Done,
    Failed,
    NewJob,
    Result,
    Store,
    StoreClosed,
    StoreFull,
    WaitingJobLog,
    WaitingKeyValue,
    settle,
)


class Answers:
    """Collects the results of operations, in the order of their arrival, and lets a task wait for a number of them."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self._arrived = trio.Event()

    def to(self, label: str) -> Any:
        def on_done(result: Result[Any]) -> None:
            self.seen.append((label, result.value if isinstance(result, Done) else result.error))
            self._arrived.set()

        return on_done

    async def wait(self, count: int) -> None:
        with trio.fail_after(10):
            while len(self.seen) < count:
                self._arrived = trio.Event()
                await self._arrived.wait()


def job(name: str) -> NewJob:
    return NewJob(name, "q", "default", "f", b"1", 3, 1000, 1, 1)


async def test_a_callback_never_runs_inside_the_submission(store: Store) -> None:
    kv, answers = store.key_value("state"), Answers()
    kv.set("s", "k", b"1", answers.to("set"))
    kv.get("s", "k", answers.to("get"))
    kv.set("\ud800", "k", b"1", answers.to("refused"))
    assert answers.seen == []
    await answers.wait(3)
    assert sorted(label for label, _ in answers.seen) == ["get", "refused", "set"]


async def test_writes_are_answered_in_the_order_of_submission(store: Store) -> None:
    kv, log, answers = store.key_value("state"), store.job_log(), Answers()
    for number in range(200):
        kv.set(f"s{number % 7}", "k", b"%d" % number, answers.to(f"set {number}"))
        log.append([job(str(number))], answers.to(f"append {number}"))
    await answers.wait(400)
    expected = [f"{kind} {number}" for number in range(200) for kind in ("set", "append")]
    assert [label for label, _ in answers.seen] == expected
    assert [value[0].id for label, value in answers.seen if label.startswith("append")] == [str(n) for n in range(200)]


async def test_a_callback_may_submit(store: Store) -> None:
    kv, answers = store.key_value("state"), Answers()

    def again(result: Result[bytes | None]) -> None:
        kv.set("s", "k", b"2", answers.to("second"))

    kv.set("s", "k", b"1", again)
    await answers.wait(1)
    assert answers.seen == [("second", b"1")]


async def test_reads_see_the_writes_submitted_before_them(store: Store) -> None:
    kv, log, answers = store.key_value("state"), store.job_log(), Answers()
    for number in range(50):
        scope = f"s{number}"
        kv.set(scope, "k", b"%d" % number, lambda _: None)
        kv.get(scope, "k", answers.to("get"))
        kv.values(scope, answers.to("values"))
        kv.items(scope, answers.to("items"))
        kv.scopes(answers.to("scopes"))
        store.directory("", answers.to("directory"))
        log.append([job(str(number))], lambda _: None)
        log.load(0, 100, answers.to("load"))
        await answers.wait(6 * (number + 1))
        found = dict(answers.seen[-6:])
        assert found["get"] == b"%d" % number
        assert found["values"] == [b"%d" % number]
        assert found["items"] == [("k", b"%d" % number)]
        assert scope in found["scopes"]
        assert ("state", scope) in found["directory"]
        assert [loaded.id for loaded in found["load"]] == [str(n) for n in range(number + 1)]


async def test_concurrent_updates_lose_nothing(store: Store) -> None:
    kv = WaitingKeyValue(store.key_value("state"))

    async def add() -> None:
        for _ in range(10):
            await kv.update("s", "k", lambda old: Change(b"%d" % (int(old or b"0") + 1), None))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(add)
    assert await kv.get("s", "k") == b"500"


async def test_a_full_store_refuses_callers_and_lets_tasks_wait(opener: Any) -> None:
    async with opener(max_ops=3) as store:
        kv, answers = store.key_value("state"), Answers()
        for number in range(5):
            kv.set("s", str(number), b"1", answers.to(str(number)))
        await answers.wait(5)
        refused = {label: error for label, error in answers.seen if error is not None}
        assert sorted(refused) == ["3", "4"]
        assert all(isinstance(error, StoreFull) for error in refused.values())
        assert "try again" in str(refused["3"])
        waiting = WaitingKeyValue(kv)
        assert [key for key, _ in await waiting.items("s")] == ["0", "1", "2"]
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(waiting.set, "s", str(number), b"2")
        assert len(await waiting.items("s")) == 20
        statistics = store.statistics()
        assert (statistics.refused, statistics.pending, statistics.pending_bytes) == (2, 0, 0)
        assert statistics.peak_pending == 5


async def test_a_store_is_also_full_by_bytes_but_takes_any_single_operation(opener: Any) -> None:
    async with opener(max_bytes=1000) as store:
        kv, answers = store.key_value("state"), Answers()
        kv.set("s", "large", b"x" * 5000, answers.to("large"))
        kv.set("s", "small", b"x", answers.to("small"))
        await answers.wait(2)
        assert isinstance(dict(answers.seen)["small"], StoreFull)
        assert dict(answers.seen)["large"] is None


async def test_room_ends_when_there_is_some(opener: Any) -> None:
    async with opener(max_ops=1) as store:
        answers = Answers()
        await store.room()
        store.key_value("state").set("s", "k", b"1", answers.to("set"))
        with trio.fail_after(10):
            await store.room()
        assert answers.seen == [("set", None)] or store.statistics().pending == 0


async def test_cancelled_before_the_submission_is_not_done(store: Store) -> None:
    kv = WaitingKeyValue(store.key_value("state"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await kv.set("s", "k", b"1")
    assert scope.cancelled_caught
    assert await kv.get("s", "k") is None


async def test_a_pending_cancellation_prevents_the_submission(store: Store) -> None:
    submitted: list[Any] = []
    with trio.CancelScope() as scope:
        scope.cancel()
        await settle(submitted.append)
    assert scope.cancelled_caught
    assert submitted == []


async def test_cancelled_at_any_moment_it_is_done_or_not_and_nothing_is_left(opener: Any) -> None:
    """One task holds the only place, another waits for it and is cancelled after n turns of the loop, for every n."""
    for turns in range(12):
        async with opener(max_ops=1) as store:
            kv = WaitingKeyValue(store.key_value("state"))
            returned = False

            async def write(kv: WaitingKeyValue = kv, scope: str = f"s{turns}") -> None:
                nonlocal returned
                await kv.set(scope, "k", b"1")
                returned = True

            async with trio.open_nursery() as nursery:
                store.key_value("state").set("other", "k", b"1", lambda _: None)
                nursery.start_soon(write)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            while store.statistics().pending:
                await trio.lowlevel.checkpoint()
            stored = await kv.get(f"s{turns}", "k")
            assert stored == b"1" if returned else stored in (None, b"1")
            assert store.statistics().refused == 0
        await trio.lowlevel.checkpoint()


async def test_cancelled_after_the_submission_is_done_and_unheard(store: Store) -> None:
    kv = WaitingKeyValue(store.key_value("state"))
    with trio.CancelScope() as scope:

        def submit_and_cancel(on_done: Any) -> None:
            store.key_value("state").set("s", "k", b"1", on_done)
            scope.cancel()

        await settle(submit_and_cancel)
    assert scope.cancelled_caught
    assert await kv.get("s", "k") == b"1"


async def test_the_end_of_the_block_answers_everything(opener: Any) -> None:
    answers = Answers()
    async with opener() as store:
        kv = store.key_value("state")

        def again(_: Result[Any]) -> None:
            kv.set("s", "from a callback", b"1", answers.to("again"))

        for number in range(100):
            kv.set("s", str(number), b"1", answers.to(str(number)))
        kv.set("s", "last", b"1", again)
    assert [label for label, _ in answers.seen] == [*map(str, range(100)), "again"]
    with pytest.raises(StoreClosed):
        kv.get("s", "k", answers.to("late"))
    with pytest.raises(StoreClosed):
        await WaitingKeyValue(kv).get("s", "k")


async def test_a_cancelled_block_still_writes_and_answers(opener: Any) -> None:
    answers = Answers()
    with trio.CancelScope() as scope:
        async with opener() as store:
            store.key_value("state").set("s", "k", b"1", answers.to("set"))
            scope.cancel()
            await trio.sleep_forever()
    assert answers.seen == [("set", None)]


async def test_a_failing_callback_leaves_the_block_and_stops_the_store(opener: Any) -> None:
    def fail(_: Result[Any]) -> None:
        raise ZeroDivisionError("a defect")

    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, match="a defect")):
        async with opener() as store:
            store.key_value("state").set("s", "k", b"1", fail)
            await trio.sleep_forever()
    with pytest.raises(StoreClosed):
        store.key_value("state").get("s", "k", fail)


async def test_a_failing_update_function_leaves_the_block_and_stops_the_store(opener: Any) -> None:
    def defect(_: bytes | None) -> Change[None]:
        raise ZeroDivisionError("a defect")

    with pytest.RaisesGroup(pytest.RaisesExc(ZeroDivisionError, match="a defect")):
        async with opener() as store:
            await WaitingKeyValue(store.key_value("state")).update("s", "k", defect)


async def test_an_exception_in_the_block_ends_the_store(opener: Any) -> None:
    answers = Answers()
    with pytest.RaisesGroup(KeyError):
        async with opener() as store:
            store.key_value("state").set("s", "k", b"1", answers.to("set"))
            raise KeyError("mine")
    assert answers.seen == [("set", None)]


async def test_results_unwrap_to_a_value_or_an_error() -> None:
    assert Done(3).unwrap() == 3
    with pytest.raises(StoreClosed, match="gone"):
        Failed(StoreClosed("gone")).unwrap()


async def test_jobs_and_values_share_one_order(store: Store) -> None:
    """A job that stands in the log has the values that were written before it."""
    kv, log = store.key_value("state"), WaitingJobLog(store.job_log())
    kv.set("s", "k", b"before", lambda _: None)
    await log.append([job("a")])
    assert await WaitingKeyValue(kv).get("s", "k") == b"before"
