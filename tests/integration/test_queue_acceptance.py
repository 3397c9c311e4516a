"""The acceptance cases of spec/queue.md §16: where each is proved, and those that are proved nowhere else.

    1       test_queue_named: test_default_is_always_there
    2, 3    test_queue_frames: test_a_refused_enqueue_says_why; test_queue_named: test_any_value_but_null_is_a_group
    4, 5    test_queue_named: test_one_message_is_delivered_once_and_at_once, test_payloads_and_trace_context_arrive_…
    6, 7    test_queue_named: test_one_group_keeps_its_order, test_groups_run_side_by_side_and_keep_their_order_…
    8 to 11 here; test_queue_named: test_attempts_are_counted_and_spaced_as_configured, test_max_retries_is_the_number_…
    12      test_queue_named: test_concurrency_is_used_and_not_exceeded
    13      test_queue_named: test_a_message_for_a_missing_function_waits_for_it_and_blocks_nobody
    14      here; test_queue_named: test_two_queues_do_not_wait_for_each_other
    15      test_queue_named: test_a_crashing_handler_neither_stops_the_queue_nor_loses_its_message
    16      test_queue_named: test_the_namespace_selects_the_function; here over sockets
    17      here
    18      here; test_queue_named: test_a_queue_that_is_taken_away_at_any_step_keeps_its_messages, test_a_stop_at_any_step_…
    19      test_queue_frames: test_trace_context_is_stored_and_stays_over_retry_death_and_redrive
    20      test_queue_topics: test_a_condition_chooses_and_its_sibling_gets_all
    21 – 24 test_queue_topics: test_each_function_gets_one_copy_and_triggers_of_one_function_compete
    25      test_queue_topics: test_after_an_unregister_only_the_others_receive
    26      test_queue_topics: test_target_and_condition_are_looked_up_in_the_triggers_namespace
    27      test_queue_topics: test_a_trigger_without_topic_is_refused (§7.1: ours rejects it)
    28, 29  test_queue_topics: test_a_fifo_subscriber_retries_in_place, test_retries_of_a_subscriber, test_tuning_applies_…
    30, 31  test_queue_dead_letters: test_redrive_returns_all_of_them_oldest_first_with_fresh_attempts; here over sockets
    32      here; test_queue_dead_letters: test_what_does_not_fit_is_refused
    33      test_queue_dead_letters: test_redriven_messages_get_all_their_attempts_again
    34, 35  here; test_queue_dead_letters: test_one_message_is_redriven_or_discarded_by_its_receipt
    36      here; test_queue_dead_letters: test_browsing_pages_newest_first_and_changes_nothing, test_fifty_are_shown_unless_…
    37, 38  here; test_queue_topics: test_lists_show_queues_and_subscribed_topics_only
    39      here
    40 – 51 test_queue_configuration, a test for each
    52      tests/unit/host/test_adopt_matrix: test_a_change_that_hangs_is_tried_twice_and_then_given_up
    53      test_queue_configuration: test_case_53_…
    54, 55  test_queue_frames: test_a_worker_may_take_the_providers_place_…, test_without_the_module_the_error_says_…
    SDKs    tests/compat/test_queue_official

The cases of RabbitMQ are not ours. Tests named without a path stand in tests/unit/modules or here.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from click.testing import CliRunner

from iii_trio import Client, InvocationError, Worker, open_client
from iii_trio.cli.main import cli
from iii_trio.config import load_config
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides
from iii_trio.stores import WaitingJobLog, open_sqlite

BASE = """
workers:
  - name: iii-queue
    config:
      queue_configs:
        default: {concurrency: 3, max_retries: 2, backoff_ms: 20}
        payment: {type: fifo, message_group_field: transaction_id, concurrency: 1, max_retries: 2, backoff_ms: 20}
        orders: {concurrency: 1, max_retries: 2, backoff_ms: 10}
        four: {max_retries: 4, backoff_ms: 10}
        none: {max_retries: 0}
"""


@define(eq=False)
class Handler:
    """Notes what it gets; fails `failures` times, or with `each` at every message that is new to it."""

    failures: float = 0
    each: bool = False
    seen: list[Any] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    async def __call__(self, data: Any) -> None:
        self.seen.append(data)
        self._news.set()
        self._news = trio.Event()
        if len(self.seen) <= self.failures or (self.each and self.seen.count(data) == 1):
            raise RuntimeError("forced failure")

    async def wait(self, count: int) -> list[Any]:
        while len(self.seen) < count:
            await self._news.wait()
        return self.seen


@define(eq=False)
class Bench:
    """A running engine, and a client of it."""

    running: Running
    client: Client
    nursery: trio.Nursery

    async def call(self, function_id: str, /, **payload: Any) -> Any:
        return await self.client.call(function_id, payload)

    async def serve(self, namespace: str | None = None, **handlers: Handler) -> None:
        """A worker with these functions."""
        worker = Worker("worker", namespace=namespace)
        for function_id, handler in handlers.items():
            worker.function(function_id)(handler.__call__)
        await self.nursery.start(worker.run, self.running.worker_url)

    async def dead(self, queue: str, count: int) -> list[Any]:
        """The dead letters, once there are so many."""
        while len(letters := await self.call("engine::queue::dlq_messages", topic=queue)) < count:
            pass
        return list(letters)

    async def settled(self, queue: str) -> Any:
        """The statistics of a queue in which nothing is left to do."""
        while (row := (await self.call("engine::queue::stats", queue=queue))[0])["waiting"] + row["in_flight"]:
            pass
        return row


@asynccontextmanager
async def engine(directory: Path) -> AsyncIterator[Bench]:
    path = directory / "config.yaml"
    path.write_text(BASE)
    with trio.fail_after(30):
        async with (
            open_host(load_config(path, {}), Overrides(port=0, data_dir=directory / "data")) as running,
            open_client(running.worker_url) as client,
            trio.open_nursery() as nursery,
        ):
            yield Bench(running, client, nursery)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("queue", "calls", "most"), [("default", 2, 2), ("orders", 2, 2), ("four", 4, 4), ("none", 1, 0)]
)
async def test_cases_8_to_11_calls_and_what_the_dead_letter_holds(
    tmp_path: Path, queue: str, calls: int, most: int
) -> None:
    data = {"id": 7, "deep": [{"er": None}]}
    async with engine(tmp_path) as bench:
        handler = Handler(failures=99)
        await bench.serve(f=handler)
        receipt = await bench.client.enqueue(queue, "f", data)
        (letter,) = await bench.dead(queue, 1)
        assert handler.seen == [data] * calls
        assert (letter["id"], letter["payload"], letter["retries"]) == (receipt, data, calls)
        assert "forced failure" in letter["error"]
        assert letter["failed_at"] > 1_700_000_000
        assert letter["size_bytes"] > 0
    async with open_sqlite(tmp_path / "data" / "queue" / "store.sqlite3") as store:
        (stored,) = await WaitingJobLog(store.job_log()).dead_letters([f"queue@{queue}"], 0, 9)
    assert (stored.job.attempts, stored.job.max_attempts) == (calls, most)
    assert stored.failed_at_ms >= stored.job.created_at_ms


async def test_cases_14_and_16_two_queues_and_two_namespaces(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        plain, paid, elsewhere = Handler(), Handler(), Handler()
        await bench.serve(f=plain, g=paid)
        await bench.serve("orders", f=elsewhere)
        for n in range(3):
            await bench.client.enqueue("default", "f", n)
            await bench.client.enqueue("payment", "g", {"transaction_id": "t", "n": n})
        await bench.client.enqueue("default", "f", "there", namespace="orders")
        assert sorted(await plain.wait(3)) == [0, 1, 2]
        assert [data["n"] for data in await paid.wait(3)] == [0, 1, 2]
        assert await elsewhere.wait(1) == ["there"]
        await bench.settled("default")
        assert len(plain.seen) == 3


async def test_case_17_what_is_due_is_delivered_once_whoever_looks(tmp_path: Path) -> None:
    """Ten retries come due while ten changes of the settings and ten resumes make the queue look at them."""
    async with engine(tmp_path) as bench:
        handler = Handler(each=True)
        await bench.serve(f=handler)
        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(bench.client.enqueue, "four", "f", n)
            await handler.wait(10)
            for _ in range(10):
                nursery.start_soon(bench.client.call, "iii::queue::resume", {"queue": "four"})
                nursery.start_soon(bench.client.call, "iii-queue::on-config-change", {})
        await handler.wait(20)
        row = await bench.settled("four")
        assert (row["delayed"], row["dead"], row["acknowledged"]) == (0, 0, 10)
        assert sorted(handler.seen) == sorted([*range(10)] * 2)


async def test_case_18_a_consumer_that_is_stopped_strands_nothing(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        gate = trio.Event()
        begun: list[int] = []
        worker = Worker("slow")

        @worker.function("slow")
        async def slow(data: int) -> None:
            begun.append(data)
            await gate.wait()

        await bench.nursery.start(worker.run, bench.running.worker_url)
        for n in range(3):
            await bench.client.enqueue("orders", "slow", n)
        kept = (await bench.call("configuration::get", id="iii-queue"))["value"]
        while not begun:
            await trio.lowlevel.checkpoint()
        without = {**kept, "queue_configs": {k: v for k, v in kept["queue_configs"].items() if k != "orders"}}
        for value in (without, kept):
            await bench.call("configuration::set", id="iii-queue", value=value)
            await bench.call("iii-queue::on-config-change")
        row = (await bench.call("engine::queue::stats", queue="orders"))[0]
        assert (row["waiting"], row["in_flight"], row["dead"]) == (2, 1, 0)
        gate.set()
        assert (await bench.settled("orders"))["acknowledged"] == 3
        assert begun == [0, 1, 2]


async def test_cases_30_to_35_dead_letters_come_back_through_a_new_handler(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        handler = Handler(failures=99)
        await bench.serve(f=handler)
        receipts = [await bench.client.enqueue("orders", "f", {"n": n}) for n in range(5)]
        await bench.dead("orders", 5)
        assert await bench.call("iii::queue::redrive", queue="default") == {"queue": "default", "redriven": 0}
        for queue, message_id, code in (("", "x", "queue_not_set"), ("orders", "", "message_id_not_set")):
            with pytest.raises(InvocationError) as caught:
                await bench.call("iii::queue::redrive_message", queue=queue, message_id=message_id)
            assert caught.value.code == code
        handler.seen.clear()
        handler.failures = 0
        one = {"queue": "orders", "message_id": receipts[1]}
        assert await bench.call("iii::queue::redrive_message", **one) == {**one, "redriven": 1}
        assert await handler.wait(1) == [{"n": 1}]
        assert await bench.call("iii::queue::redrive_message", **one) == {**one, "redriven": 0}
        other = {"queue": "orders", "message_id": receipts[3]}
        assert await bench.call("iii::queue::discard_message", **other) == {**other, "redriven": 1}
        assert await bench.call("iii::queue::redrive", queue="orders") == {"queue": "orders", "redriven": 3}
        assert [data["n"] for data in await handler.wait(4)] == [1, 0, 2, 4]
        assert (await bench.settled("orders"))["dead"] == 0


async def test_case_36_a_dead_letter_that_is_damaged_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data" / "queue" / "store.sqlite3"
    async with engine(tmp_path) as bench:
        await bench.serve(f=Handler(failures=99))
        receipts = [await bench.client.enqueue("none", "f", {"n": n}) for n in range(5)]
        await bench.dead("none", 5)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE dead SET payload = x'7b' WHERE message_id = ?", (receipts[2],))
    connection.commit()
    connection.close()
    async with engine(tmp_path) as bench:
        letters = await bench.call("engine::queue::dlq_messages", topic="none", offset=1, limit=2)
        assert [letter["payload"] for letter in letters] == [{"n": 3}, {"n": 1}]
        assert (await bench.call("engine::queue::topic_stats", topic="none"))["dlq_depth"] == 4


async def test_cases_37_and_38_statistics_and_lists(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        rows = {row["name"]: row for row in await bench.call("engine::queue::list_topics")}
        assert rows.keys() == {"default", "payment", "orders", "four", "none"}
        assert all(row["subscriber_count"] > 0 for row in rows.values())
        assert isinstance(await bench.call("engine::queue::dlq_topics"), list)
        stats = await bench.call("engine::queue::topic_stats", topic="orders")
        assert stats == {"depth": 0, "consumer_count": 1, "dlq_depth": 0, "config": None}
        await bench.client.enqueue("orders", "nobody", 1)
        await bench.serve(f=Handler(failures=99))
        await bench.client.enqueue("orders", "f", 2)
        await bench.dead("orders", 1)
        stats = await bench.call("engine::queue::topic_stats", topic="orders")
        assert (stats["depth"], stats["dlq_depth"]) == (1, 1)
        with pytest.raises(InvocationError, match="topic_required: topic is required"):
            await bench.call("engine::queue::topic_stats", topic="")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["iii::queue::redrive", "queue=orders"], "cannot connect"),
        (["iii::queue::redrive", "--json", "{bad"], "JSON"),
    ],
)
def test_case_39_the_command_line_says_what_is_wrong(words: list[str], said: str) -> None:
    with_closed_port = ["trigger", *words, "--url", "ws://127.0.0.1:1"]
    result = CliRunner().invoke(cli, with_closed_port, prog_name="iii-trio")
    assert result.exit_code != 0
    assert said in result.stderr
