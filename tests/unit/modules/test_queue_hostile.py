"""What somebody may send who means no good, or has a bug: everything is answered, and nothing of it grows without bound."""

from pathlib import Path
from typing import Any

import pytest
import trio
from queue_harness import BASE, World, failing, open_world, refusal, request_to, taking
from trio.testing import MockClock

from iii_trio.engine import Binding, Call, FunctionEntry, Outcome
from iii_trio.modules.queue import functions
from iii_trio.protocol import Json
from iii_trio.protocol.errors import TriggerRejected, WireError
from iii_trio.protocol.limits import QUEUE_BAGGAGE_CHARS, QUEUE_NAME_CHARS
from iii_trio.stores import NewJob, WaitingJobLog, open_sqlite, sqlite_jobs

LONG = "x" * (QUEUE_NAME_CHARS + 1)
NAMES = ["a@b\\c", "a::b", "\n", " ", "\u202e", "__proto__", "a\x00b", "ä𝄞" * 100, LONG[:-1], "queue@default", "%s{}$"]


@pytest.mark.parametrize(
    ("function_id", "payload", "key"),
    [
        ("iii::durable::publish", {"topic": LONG, "data": 1}, "topic"),
        ("emit", {"queue": LONG}, "queue"),
        ("engine::queue::enqueue", {**request_to("default"), "function_id": LONG}, "function_id"),
        ("engine::queue::enqueue", {**request_to("default"), "namespace": LONG}, "namespace"),
        ("engine::queue::enqueue", {**request_to("default"), "messageReceiptId": LONG}, "messageReceiptId"),
        ("engine::queue::enqueue", {**request_to("default"), "deduplication_key": LONG}, "deduplication_key"),
        ("queue::define", {"queue": LONG}, "queue"),
    ],
)
async def test_names_have_a_length(autojump_clock: MockClock, function_id: str, payload: Any, key: str) -> None:
    async with open_world() as world:
        code, message = await refusal(world, function_id, payload)
        assert code == "deserialization_error"
        assert message.endswith(f"`{key}` has 1025 characters; 1024 are the most")
        assert world.module.statistics().unclaimed == 0


async def test_a_topic_of_a_trigger_has_a_length(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        world.serve("f")
        with pytest.raises(TriggerRejected, match="1024 are the most"):
            world.bind("f", {"topic": LONG})


@pytest.mark.parametrize("name", NAMES)
async def test_every_name_works(autojump_clock: MockClock, name: str) -> None:
    async with open_world() as world:
        handler = world.serve(name)
        world.bind(name, {"topic": name})
        await world.publish(name, 1)
        assert await handler.wait(1) == [1]
        assert (await world.ask("engine::queue::list_topics"))[0]["broker_type"]
        if name == name.strip():
            assert (await world.ask("queue::define", {"queue": name}))["changed"]
            await world.enqueue(name, name, 2)
            assert await handler.wait(2) == [1, 2]
        for function_id in ("pause", "resume", "purge", "purge_dlq", "redrive"):
            answer = await world.ask(f"iii::queue::{function_id}", {"queue": name})
            assert answer["queue"] == name


async def test_a_group_of_any_length_is_a_group(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f", taking(0.01))
        for n in range(6):
            await world.enqueue("payment", "f", {"transaction_id": ["y" * 100_000, n % 2], "n": n})
        await handler.wait_finished(6)
        for group in (0, 1):
            assert [data["n"] for data in handler.data if data["n"] % 2 == group] == [group, group + 2, group + 4]
        assert BASE.queue_configs["payment"].concurrency == 1


@pytest.mark.parametrize("metadata", [b'{"n": 1e999}', b"[1e999]"])
async def test_metadata_that_cannot_be_decoded_is_the_handlers_matter(
    autojump_clock: MockClock, metadata: bytes
) -> None:
    """It is delivered as it came, again and again; it must not end the queue, each time that it starts."""
    seen: list[bytes | None] = []

    def refuse(call: Call, _data: Json) -> Outcome:
        seen.append(call.metadata)
        raise WireError("no", "no")

    async with open_world() as world:
        world.core.functions.claim(
            FunctionEntry(id="f", namespace="default", owner=world.user, handler=(False, refuse))
        )
        config = Json(b'{"topic":"t"}')
        world.core.triggers.register(
            Binding(
                id="b",
                trigger_type="durable:subscriber",
                function_id="f",
                config=config,
                metadata=Json(metadata),
                owner=world.user,
            )
        )
        await world.publish("t", 1)
        request = b'{"queue":"default","function_id":"f","messageReceiptId":"r","data":1,"metadata":%s}' % metadata
        await world.user.invoke("engine::queue::enqueue", Json(request))
        await world.wait_dead("t", 1)
        await world.wait_dead("default", 1)
    assert len(seen) == 2 + 3
    assert all(b"1e999" in (raw or b"") for raw in seen)
    assert sum(b'"attempt":2' in (raw or b"") for raw in seen) == 2 * metadata.startswith(b"{")


async def test_trace_context_that_is_too_long_is_left_out(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        fits = "k=" + "v" * (QUEUE_BAGGAGE_CHARS - 2)
        for baggage in (fits, fits + "v"):
            await world.enqueue("default", "f", 1, traceparent="t" * 9_000, baggage=baggage)
        await handler.wait(2)
        assert [(seen.traceparent, seen.baggage is None) for seen in handler.seen] == [(None, False), (None, True)]


@pytest.mark.parametrize("offset", [10**6, 2**63, 2**200])
async def test_behind_the_last_dead_letter_there_is_nothing(autojump_clock: MockClock, offset: int) -> None:
    async with open_world() as world:
        assert await world.dead("default", offset=offset) == []
        assert await world.dead("default", limit=offset) == []


async def test_hundreds_of_topics_are_published_to_subscribed_and_left(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        handler = world.serve("f")
        count = 500
        for n in range(count):
            await world.publish(f"t{n}", n)
        assert world.module.statistics().unclaimed == count
        for n in range(count):
            world.bind("f", {"topic": f"t{n}"}, id=f"b{n}")
        assert sorted(await handler.wait(count)) == list(range(count))
        await trio.sleep(60)
        for n in range(count):
            world.core.triggers.unregister(f"b{n}")
        await trio.sleep(60)
        statistics = world.module.statistics()
        assert (len(statistics.queues), statistics.unclaimed) == (2, 0)


async def test_a_trigger_that_comes_and_goes_at_any_step_misses_nothing(autojump_clock: MockClock) -> None:
    """What is published between two subscriptions waits for the second, wherever the first one's hand-over stands."""
    for first in range(12):
        for second in range(0, 12, 3):
            async with open_world() as world:
                handler, answers = world.serve("f"), list[Outcome]()
                sent = 0

                def publish(world: World = world, answers: list[Outcome] = answers) -> None:
                    nonlocal sent
                    payload = Json.of({"topic": "t", "data": sent})
                    world.user.call("iii::durable::publish", payload, answers.append)
                    sent += 1

                publish()
                for steps in (first, second, first):
                    world.bind("f", {"topic": "t"})
                    publish()
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    publish()
                    world.core.triggers.unregister("f")
                    publish()
                    for _ in range(second):
                        await trio.lowlevel.checkpoint()
                world.bind("f", {"topic": "t"})
                assert sorted(await handler.wait(sent)) == list(range(sent)), (first, second)
                assert all(answer.ok for answer in answers)
                await trio.sleep(60)
                assert world.module.statistics().unclaimed == 0


async def test_dead_letters_that_do_not_fit_into_one_message_come_in_several(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "DLQ_BYTES", 10_000)
    async with open_world() as world:
        world.serve("f", failing())
        for n in range(5):
            await world.enqueue("default", "f", str(n) * 4_000)
        await world.enqueue("default", "f", "x" * 20_000)
        await trio.sleep(60)
        seen: list[str] = []
        while letters := await world.dead("default", offset=len(seen)):
            assert len(letters) == 1 or sum(len(letter["payload"]) for letter in letters) <= 10_000
            seen += [letter["payload"][0] for letter in letters]
        assert sorted(seen) == ["0", "1", "2", "3", "4", "x"]


async def test_large_messages_are_moved_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of a redrive, of the dead letters and of a hand-over to a first subscriber is read into memory whole."""
    monkeypatch.setattr(sqlite_jobs, "MAX_MESSAGE", 10_000)
    async with open_sqlite(tmp_path / "queue.db", inline=True) as store:
        log = WaitingJobLog(store.job_log())
        payload = b'"%s"' % (b"x" * 4_000)
        jobs = await log.append([NewJob(str(n), "q", "default", "f", payload, 1, 1, 1, 1) for n in range(5)])
        for job in jobs:
            await log.dead_letter(job.seq, 1, "error", 1)
        assert len(await log.dead_letters(["q"], 0, 50)) == 3
        assert [len(await log.redrive("q", 50, 1)) for _ in range(3)] == [3, 2, 0]
        await log.append([NewJob(str(n), "u", "default", None, payload, 1, 1, 1, 1) for n in range(5)])
        assert [len(await log.adopt("u", "v", "default", "f", 50)) for _ in range(3)] == [3, 2, 0]
