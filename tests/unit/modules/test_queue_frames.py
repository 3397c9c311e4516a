"""The queue as workers see it, frame by frame: the enqueue action, its errors, deliveries (cases 1–4, 54, 55, §2)."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from queue_harness import BASE, World, configured, open_world, stats, topic_defaults
from trio.testing import MockClock

from iii_trio.config import QueueModuleSettings, QueueSettings
from iii_trio.engine import Clock, open_engine
from iii_trio.modules.queue import machine
from iii_trio.stores import WaitingJobLog
from iii_trio.testing.raw import RawPort, RawWorker, open_port

ONCE = configured(default=QueueSettings(max_retries=2, backoff_ms=100))


@asynccontextmanager
async def frames(settings: QueueModuleSettings = BASE) -> AsyncIterator[tuple[World, RawPort, RawWorker]]:
    """A world with a port, and one worker on it."""
    async with open_world(settings) as world, open_port(world.core) as port:
        yield world, port, await port.connect(name="worker")


def enqueued(queue: str, **fields: Any) -> dict[str, Any]:
    return {"action": {"type": "enqueue", "queue": queue}, **fields}


async def test_an_enqueue_is_answered_with_a_receipt_and_delivered_without_additions(
    autojump_clock: MockClock,
) -> None:
    async with frames() as (_, port, worker):
        worker.register("orders::process")
        await worker.settled()
        caller = await port.connect(name="caller")
        trace = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "baggage": "k=v"}
        answer = await caller.ask("orders::process", {"n": 1}, **enqueued("default", metadata={"m": 1}, **trace))
        receipt = answer["result"]["messageReceiptId"]
        assert answer["result"] == {"messageReceiptId": str(uuid.UUID(receipt, version=4))}
        assert answer["function_id"] == "orders::process"
        assert (answer["traceparent"], answer["baggage"]) == (trace["traceparent"], trace["baggage"])

        delivery = await worker.next("invokefunction")
        assert delivery["data"] == {"n": 1}
        assert delivery["traceparent"] == trace["traceparent"]
        assert sorted(delivery["baggage"].split(",")) == ["iii.function.id=orders::process", "k=v"]
        assert delivery["invocation_id"] != receipt
        assert not {"action", "metadata", "namespace"} & set(delivery)
        worker.answer(delivery, result=None)
        await worker.settled()
        await trio.sleep(3600)
        assert not [frame for frame in worker.frames if frame["type"] == "invokefunction"]


@pytest.mark.parametrize(
    ("queue", "data", "message"),
    [
        ("nowhere", {}, "Queue 'nowhere' not found"),
        (None, {}, "Queue '' not found"),
        ("payment", {"a": 1}, "FIFO queue 'payment' requires field 'transaction_id' in data, but it was not found"),
        ("payment", {"transaction_id": None}, "FIFO queue 'payment': field 'transaction_id' must not be null"),
    ],
)
async def test_a_refused_enqueue_says_why(autojump_clock: MockClock, queue: Any, data: Any, message: str) -> None:
    async with frames() as (_, _port, worker):
        answer = await worker.ask("f", data, action={"type": "enqueue", "queue": queue})
        assert answer["error"] == {"code": "enqueue_error", "message": message}


async def test_without_the_module_the_error_says_what_to_add(autojump_clock: MockClock) -> None:
    async with open_engine(clock=Clock(epoch=0)) as core, open_port(core) as port:
        worker = await port.connect(name="worker")
        answer = await worker.ask("f", {}, **enqueued("default"))
        assert answer["error"]["code"] == "enqueue_error"
        for part in ("engine::queue::enqueue", "iii worker add queue"):
            assert part in answer["error"]["message"]


async def test_an_enqueue_without_id_is_not_answered_and_delivered(autojump_clock: MockClock) -> None:
    async with frames() as (_, _port, worker):
        worker.register("f")
        worker.send({"type": "invokefunction", "function_id": "f", "data": 7, **enqueued("default")})
        delivery = await worker.next("invokefunction")
        assert delivery["data"] == 7
        assert not [frame for frame in worker.frames if frame["type"] == "invocationresult"]


async def test_a_worker_may_take_the_providers_place_and_ours_is_back_when_it_goes(autojump_clock: MockClock) -> None:
    async with frames() as (_, port, worker):
        provider = await port.connect(name="provider")
        provider.register("engine::queue::enqueue")
        await provider.settled()
        first = worker.call("orders::process", {"n": 1}, **enqueued("any", baggage="k=v"))
        asked = await provider.next("invokefunction")
        request = asked["data"]
        assert request.pop("messageReceiptId")
        assert sorted(request.pop("baggage").split(",")) == ["iii.function.id=orders::process", "k=v"]
        assert request == {"queue": "any", "function_id": "orders::process", "data": {"n": 1}, "traceparent": None}
        provider.answer(asked, error={"code": "queue_error", "message": "no such queue"})
        answer = await worker.result(first)
        assert answer["error"] == {"code": "enqueue_error", "message": "queue_error: no such queue"}

        provider.cut()
        await port.gone(provider)
        assert "messageReceiptId" in (await worker.ask("f", {}, **enqueued("default")))["result"]


async def test_a_lost_worker_is_a_failed_attempt_and_the_next_delivery_is_marked(autojump_clock: MockClock) -> None:
    async with frames(ONCE) as (_, port, worker):
        executor = await port.connect(name="executor")
        executor.register("f")
        await executor.settled()
        receipt = (await worker.ask("f", {"n": 1}, **enqueued("default")))["result"]["messageReceiptId"]
        await executor.next("invokefunction")
        executor.cut()
        await port.gone(executor)
        successor = await port.connect(name="executor")
        successor.register("f")
        delivery = await successor.next("invokefunction")
        assert delivery["metadata"] == {"iii.queue": {"queue": "default", "message_id": receipt, "attempt": 2}}


async def test_a_trigger_frame_subscribes_and_a_wrong_one_is_answered(autojump_clock: MockClock) -> None:
    async with frames() as (_, _port, worker):
        worker.register("mail::send")
        trigger = {"type": "registertrigger", "trigger_type": "queue", "function_id": "mail::send"}
        worker.send({**trigger, "id": "t1", "config": {"topic": "mail"}, "metadata": {"k": 1}})
        worker.send({**trigger, "id": "t2", "config": {}})
        refused = await worker.next("triggerregistrationresult", id="t2")
        assert refused["error"] == {
            "code": "trigger_registration_failed",
            "message": "topic is required for durable:subscriber triggers",
        }
        answer = await worker.ask("enqueue", {"topic": "mail", "data": {"n": 1}})
        assert "error" not in answer
        assert "result" not in answer
        delivery = await worker.next("invokefunction", function_id="mail::send")
        assert (delivery["data"], delivery["metadata"]) == ({"n": 1}, {"k": 1})


async def test_a_worker_that_reconnects_misses_no_topic_message(autojump_clock: MockClock) -> None:
    async with frames() as (_, port, publisher):
        subscription = {
            "type": "registertrigger",
            "id": "t1",
            "trigger_type": "durable:subscriber",
            "function_id": "f",
            "config": {"topic": "t"},
        }
        got = []
        for n in range(5):
            subscriber = await port.connect(name="subscriber")
            subscriber.register("f")
            subscriber.send(subscription)
            await publisher.ask("iii::durable::publish", {"topic": "t", "data": 2 * n})
            for _ in range(1 if n == 0 else 2):
                delivery = await subscriber.next("invokefunction")
                got.append(delivery["data"])
                subscriber.answer(delivery, result=True)
            await subscriber.settled()
            subscriber.cut()
            await port.gone(subscriber)
            await publisher.ask("iii::durable::publish", {"topic": "t", "data": 2 * n + 1})
        assert sorted(got) == list(range(9))


async def test_a_worker_that_reads_slowly_gets_nothing_more_and_loses_no_attempt(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with frames(configured(default=QueueSettings(max_retries=1))) as (world, _port, worker):
        worker.register("f")
        await worker.settled()
        entry = world.core.functions.get("default", "f")
        assert entry is not None
        connection = type(entry.owner.connection)  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(connection, "busy", True)
            await worker.ask("f", 1, **enqueued("default"))
            await trio.sleep(60)
            assert not [frame for frame in worker.frames if frame["type"] == "invokefunction"]
        delivery = await worker.next("invokefunction")
        assert "metadata" not in delivery


async def test_a_worker_that_has_read_on_gets_the_rest_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the queue happens to look again: that may be never, for all this test knows."""
    monkeypatch.setattr(machine, "PUT_BACK_S", 1e6)
    async with frames(configured(default=QueueSettings(max_retries=1))) as (world, port, worker):
        worker.register("f")
        await worker.settled()
        entry = world.core.functions.get("default", "f")
        assert entry is not None
        stream = entry.owner.connection._stream.send_stream  # type: ignore[attr-defined]
        gate, pump = trio.Event(), stream.send_all_hook

        async def pump_later() -> None:
            await gate.wait()
            await pump()

        stream.send_all_hook = pump_later
        producer = await port.connect(name="producer")
        for n in range(6):
            await producer.ask("f", {"n": n, "pad": "x" * 3 * 2**20}, **enqueued("default"))
        await trio.sleep(5)
        row = await stats(world, "default")
        assert (row["in_flight"], row["waiting"], row["failures"]) == (3, 3, 0)
        gate.set()
        for n in range(6):
            delivery = await worker.next("invokefunction")
            assert (delivery["data"]["n"], "metadata" in delivery) == (n, False)
            worker.answer(delivery, result=None)
        await worker.settled()
        assert trio.current_time() < 1e5


async def test_nothing_is_repeated_while_a_timed_out_delivery_may_still_run(autojump_clock: MockClock) -> None:
    settings = configured(default=QueueSettings(max_retries=3, backoff_ms=10, timeout_ms=1000))
    async with frames(settings) as (world, _port, worker):
        worker.register("f")
        await worker.ask("f", 1, **enqueued("default"))
        first = await worker.next("invokefunction")
        began = trio.current_time()
        second = await worker.next("invokefunction")  # the first never answered
        assert trio.current_time() - began >= 6.0
        await trio.sleep(3)
        worker.answer(second, result=None)  # late, but within the grace
        await trio.sleep(3600)
        assert not [frame for frame in worker.frames if frame["type"] == "invokefunction"]
        assert await world.dead("default") == []
        assert first["invocation_id"] != second["invocation_id"]


async def test_an_enqueue_frame_may_carry_delay_priority_and_key(autojump_clock: MockClock) -> None:
    async with frames() as (world, _, worker):
        handler = world.serve("f")
        start = trio.current_time()
        action = {"type": "enqueue", "queue": "default", "delay_ms": 3_000, "deduplication_key": "k", "priority": 9}
        receipts = {(await worker.ask("f", {"n": n}, action=action))["result"]["messageReceiptId"] for n in range(2)}
        assert len(receipts) == 2  # a repetition's is its own: the engine makes one for each frame
        await handler.wait(1)
        await trio.sleep(60)
        assert handler.data == [{"n": 0}]
        assert round(handler.seen[0].at - start) == 3
        refused = await worker.ask("f", {}, action={**action, "priority": 256})
        assert "`priority` must be at most 255" in refused["error"]["message"]


async def test_a_caller_without_a_receipt_in_time_is_told_at_its_deadline(autojump_clock: MockClock) -> None:
    async with frames() as (_, port, worker):
        provider = await port.connect(name="provider")
        provider.register("engine::queue::enqueue")
        await provider.settled()
        start = trio.current_time()
        asked = worker.call("f", {"n": 1}, deadline_ms=1_500, **enqueued("any"))
        request = await provider.next("invokefunction")
        answer = await worker.result(asked)
        assert 1.5 <= trio.current_time() - start < 1.6
        assert answer["error"]["code"] == "TIMEOUT"
        assert answer["error"]["message"].startswith("no receipt within 1500 ms")
        provider.answer(request, result={"messageReceiptId": "late"})
        await provider.settled()
        assert not [frame for frame in worker.frames if frame["type"] == "invocationresult"]
        # a provider's own deadline is the provider's error
        asked = worker.call("f", {"n": 2}, deadline_ms=60_000, **enqueued("any"))
        request = await provider.next("invokefunction")
        provider.answer(request, error={"code": "TIMEOUT", "message": "redis"})
        error = (await worker.result(asked))["error"]
        assert error == {"code": "enqueue_error", "message": "TIMEOUT: redis"}


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("sent", "stored", "delivered"),
    [
        ({"traceparent": TRACE}, ["iii.function.id=f"], ["iii.function.id=f"]),
        (
            {"traceparent": TRACE, "baggage": "a=1, iii.function.id=caller ,b=2"},
            ["a=1", "b=2", "iii.function.id=f"],
            ["a=1", "b=2", "iii.function.id=f"],
        ),
        (
            {"baggage": "iii.tag.kind=x,a=1;p=2,iii.tag.display_name=y%20z, iii.tag.hidden = 1,iii.tag.other=3"},
            [
                *("a=1;p=2", "iii.function.id=f", "iii.tag.display_name=y%20z", "iii.tag.hidden = 1", "iii.tag.kind=x"),
                "iii.tag.other=3",
            ],
            ["a=1;p=2", "iii.function.id=f", "iii.tag.other=3"],
        ),
        ({}, None, None),
        ({"traceparent": "", "baggage": ""}, None, None),
    ],
)
async def test_trace_context_is_stored_and_stays_over_retry_death_and_redrive(
    autojump_clock: MockClock, sent: dict[str, str], stored: list[str] | None, delivered: list[str] | None
) -> None:
    def parts(baggage: Any) -> list[str] | None:
        return None if baggage is None else sorted(part.strip() for part in baggage.split(","))

    async with frames(ONCE) as (world, _, worker):
        worker.register("f")
        await worker.settled()
        answer = await worker.ask("f", {"n": 1}, **enqueued("default", **sent))
        assert (answer.get("traceparent"), answer.get("baggage")) == (
            sent.get("traceparent") or None,
            sent.get("baggage") or None,
        )
        for attempt in range(4):
            delivery = await worker.next("invokefunction")
            assert delivery.get("traceparent") == (sent.get("traceparent") or None)
            assert parts(delivery.get("baggage")) == delivered
            worker.answer(delivery, error={"code": "e", "message": "no"})
            if attempt == 1:
                await world.wait_dead("default", 1)
                (letter,) = await WaitingJobLog(world.log.log).dead_letters(["queue@default"], 0, 9)
                assert parts(letter.job.baggage) == stored
                assert await world.ask("iii::queue::redrive", {"queue": "default"}) == {
                    "queue": "default",
                    "redriven": 1,
                }
        await world.wait_dead("default", 1)


async def test_a_topics_message_keeps_its_publishers_context(autojump_clock: MockClock) -> None:
    """Tags describe the enqueueing span and are removed for named queues only."""
    async with frames(topic_defaults(max_attempts=2, backoff_ms=10)) as (world, _, worker):
        worker.register("f")
        await worker.settled()
        world.bind("f", {"topic": "t"})
        baggage = "a=1,iii.tag.kind=x"
        await worker.ask("iii::durable::publish", {"topic": "t", "data": 1}, traceparent=TRACE, baggage=baggage)
        for _ in range(2):
            delivery = await worker.next("invokefunction")
            assert delivery["traceparent"] == TRACE
            assert sorted(delivery["baggage"].split(",")) == ["a=1", "iii.function.id=f", "iii.tag.kind=x"]
            worker.answer(delivery, error={"code": "e", "message": "no"})
        await world.wait_dead("t", 1)
