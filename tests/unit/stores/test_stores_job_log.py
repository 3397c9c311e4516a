"""Conformance of `JobLog`: appended, acknowledged, retried, dead, redriven, adopted, the same for every store."""

from typing import Any

import pytest

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import Destination, Heading, Job, NewJob, Note, Once, Store, Trimmed, WaitingJobLog


def new(name: str, queue: str = "q", **changes: Any) -> NewJob:
    fields: dict[str, Any] = {
        "namespace": "default",
        "function_id": "orders::process",
        "payload": b"[1]",
        "max_attempts": 3,
        "backoff_ms": 1000,
        "created_at_ms": 1_718_900_000_000,
        "due_at_ms": 1_718_900_000_000,
    }
    return NewJob(id=name, queue=queue, **(fields | changes))


FULL = new(
    "full",
    group_id="g\x00",
    traceparent="00-ab-cd-01",
    baggage="k=v",
    message_id="receipt",
    metadata=b'{"m":1}',
    priority=7,
    payload=b"\x00\xff not json, and none of the store's business",
)


async def kill(log: WaitingJobLog, jobs: list[Job], error: str = "boom") -> None:
    for number, job in enumerate(jobs):
        assert await log.dead_letter(job.seq, 3, error, 2_000 + number)


async def test_a_job_comes_back_with_everything_it_carries(log: WaitingJobLog) -> None:
    [job] = await log.append([FULL])
    assert job == Job.numbered(job.seq, FULL)
    assert (job.attempts, job.error) == (0, None)
    [loaded] = await log.load()
    assert loaded == job


async def test_copies_of_one_publish_stand_together_in_order(log: WaitingJobLog) -> None:
    jobs = await log.append([new("a", "one"), new("b", "two"), new("c", "one")])
    assert [job.id for job in jobs] == ["a", "b", "c"]
    assert sorted({job.seq for job in jobs}) == [job.seq for job in jobs]
    assert await log.append([]) == []
    assert await log.load() == jobs


async def test_load_pages_through_the_live_jobs_in_order(log: WaitingJobLog) -> None:
    jobs = await log.append([new(str(number)) for number in range(7)])
    first = await log.load(0, 3)
    assert first == jobs[:3]
    assert await log.load(first[-1].seq, 3) == jobs[3:6]
    assert await log.load(jobs[5].seq, 3) == jobs[6:]
    assert await log.load(jobs[6].seq, 3) == []
    assert await log.load(0, 0) == []


async def test_ack_removes_once(log: WaitingJobLog) -> None:
    first, second = await log.append([new("a"), new("b")])
    assert await log.ack(first.seq)
    assert not await log.ack(first.seq)
    assert not await log.ack(second.seq + 100)
    assert await log.load() == [second]


async def test_a_number_is_not_given_twice(log: WaitingJobLog) -> None:
    [first] = await log.append([new("a")])
    await log.ack(first.seq)
    [second] = await log.append([new("b")])
    assert second.seq > first.seq


async def test_retry_writes_attempts_due_time_and_error(log: WaitingJobLog) -> None:
    [job] = await log.append([FULL])
    assert await log.retry(job.seq, 1, 2, 5_000, "first failure")
    [loaded] = await log.load()
    assert (loaded.attempts, loaded.due_at_ms, loaded.error) == (1, 5_000, "first failure")
    assert (loaded.payload, loaded.metadata, loaded.seq) == (job.payload, job.metadata, job.seq)
    assert not await log.retry(job.seq + 1, 1, 1, 5_000, "no such job")


async def test_dead_letters_leave_the_live_jobs_and_are_browsed_newest_first(log: WaitingJobLog) -> None:
    jobs = await log.append([FULL, *(new(str(number)) for number in range(4))])
    await kill(log, jobs)
    assert await log.load() == []
    letters = await log.dead_letters(["q"])
    assert [letter.job.id for letter in letters] == ["3", "2", "1", "0", "full"]
    full = letters[-1]
    assert (full.job.attempts, full.job.error, full.failed_at_ms) == (3, "boom", 2_000)
    assert (full.job.payload, full.job.metadata, full.job.message_id) == (FULL.payload, FULL.metadata, "receipt")
    assert [letter.job.id for letter in await log.dead_letters(["q"], 1, 2)] == ["2", "1"]
    assert await log.dead_letters(["q"], 5, 2) == []
    assert await log.dead_letters(["q"], 0, 0) == []
    assert not await log.dead_letter(jobs[0].seq, 3, "again", 3_000)


async def test_dead_letters_of_several_queues_are_merged(log: WaitingJobLog) -> None:
    await kill(log, await log.append([new("a", "one"), new("b", "two"), new("c", "three"), new("d", "one")]))
    assert [letter.job.id for letter in await log.dead_letters(["one", "two"])] == ["d", "b", "a"]
    assert await log.dead_letters([]) == []
    assert await log.dead_counts() == {"one": 2, "two": 1, "three": 1}
    assert await log.dead_count("one") == 2
    assert await log.dead_count("unknown") == 0


async def test_redrive_returns_the_oldest_first_behind_the_live_ones(log: WaitingJobLog) -> None:
    jobs = await log.append([new("a"), new("b"), new("c"), new("other", "elsewhere")])
    await log.retry(jobs[0].seq, 2, 2, 9, "old error")
    await kill(log, jobs)
    [live] = await log.append([new("live")])
    redriven = await log.redrive("q", 2, 7_000)
    assert [job.id for job in redriven] == ["a", "b"]
    assert [(job.attempts, job.error, job.due_at_ms) for job in redriven] == [(0, None, 7_000)] * 2
    assert await log.load() == [live, *redriven]
    assert [job.id for job in await log.redrive("q", 10, 7_000)] == ["c"]
    assert await log.redrive("q", 10, 7_000) == []
    assert await log.dead_counts() == {"elsewhere": 1}


async def test_one_dead_letter_is_found_by_id_or_message_id(log: WaitingJobLog) -> None:
    await kill(log, await log.append([FULL, new("a"), new("b", message_id="twin"), new("b2", message_id="twin")]))
    assert await log.redrive_one("q", "unknown", 1) is None
    assert await log.redrive_one("elsewhere", "a", 1) is None
    redriven = await log.redrive_one("q", "receipt", 1)
    assert redriven is not None
    assert (redriven.id, redriven.attempts, redriven.payload) == ("full", 0, FULL.payload)
    assert await log.redrive_one("q", "receipt", 1) is None
    assert await log.discard("q", "a")
    assert not await log.discard("q", "a")
    assert await log.discard("q", "twin")
    assert [letter.job.id for letter in await log.dead_letters(["q"])] == ["b2"]
    assert await log.load() == [redriven]


async def test_the_first_subscriber_adopts_what_was_published_before(log: WaitingJobLog) -> None:
    early = await log.append([new("a", "emails", function_id=None), new("b", "emails", function_id=None)])
    [other] = await log.append([new("c", "news", function_id=None)])
    [served] = await log.append([new("d", "emails")])
    adopted = await log.adopt("emails", "emails::send@default", "default", "email::send")
    assert [(job.seq, job.id, job.queue, job.function_id) for job in adopted] == [
        (job.seq, job.id, "emails::send@default", "email::send") for job in early
    ]
    assert await log.load() == [*adopted, other, served]
    assert await log.adopt("emails", "again", "default", "email::send") == []


async def test_adoption_and_removal_of_unclaimed_jobs_go_in_pages(log: WaitingJobLog) -> None:
    early = await log.append([new(str(number), "emails", function_id=None) for number in range(5)])
    assert [job.seq for job in await log.adopt("emails", "to", "default", "f", 2)] == [job.seq for job in early[:2]]
    assert await log.remove_unclaimed("emails", 2) == 2
    assert await log.remove_unclaimed("other", 2) == 0
    assert [job.id for job in await log.load()] == ["0", "1", "4"]
    assert await log.remove_unclaimed("emails", 2) == 1


async def test_headings_are_the_jobs_without_what_they_carry(log: WaitingJobLog) -> None:
    first, second = await log.append([FULL, new("b", "emails", function_id=None, due_at_ms=9)])
    await log.retry(first.seq, 2, 3, 77, "boom")
    assert await log.headings() == [
        Heading(first.seq, "q", "default", "orders::process", "g\x00", 7, 2, FULL.created_at_ms, 77, 3, True),
        Heading(second.seq, "emails", "default", None, None, 0, 0, FULL.created_at_ms, 9, 0, False),
    ]
    assert [heading.seq for heading in await log.headings(first.seq, 1)] == [second.seq]
    assert await log.headings(second.seq, 1) == []


async def test_removed_jobs_leave_no_dead_letters(log: WaitingJobLog) -> None:
    jobs = await log.append([new(str(number)) for number in range(3)])
    assert await log.remove([jobs[0].seq, jobs[2].seq, jobs[2].seq + 100]) == 2
    assert await log.remove([]) == 0
    assert await log.load() == [jobs[1]]
    assert await log.dead_counts() == {}


async def test_a_taken_key_keeps_everything_out_until_its_time_is_over(log: WaitingJobLog) -> None:
    def once(now_ms: int, queue: str = "q", key: str = "k") -> Once:
        return Once(queue, key, now_ms, now_ms + 100)

    [first] = await log.append_once([new("a")], once(1_000))
    assert await log.append_once([new("b"), new("c")], once(1_099)) == []
    [other] = await log.append_once([new("d")], once(1_099, key="another"))
    [elsewhere] = await log.append_once([new("e", "r")], once(1_099, "r"))
    await log.ack(first.seq)
    assert await log.append_once([new("f")], once(1_099)) == []
    both = await log.append_once([new("g"), new("h")], once(1_100))
    assert [job.id for job in both] == ["g", "h"]
    assert await log.append_once([new("i")], once(1_150)) == []
    assert await log.load() == [other, elsewhere, *both]


async def test_many_keys_expire_and_can_be_taken_again(log: WaitingJobLog) -> None:
    for number in range(250):
        assert await log.append_once([], Once("q", str(number), 0, 10)) == []
    for number in range(250):
        assert await log.append_once([new(str(number))], Once("q", str(number), 10, 20))


async def test_dead_letters_are_trimmed_by_count_and_by_age(log: WaitingJobLog) -> None:
    await kill(log, await log.append([new(str(number)) for number in range(6)]))  # failed at 2000 to 2005
    await kill(log, await log.append([new("other", "elsewhere")]))
    assert await log.trim("q", 10, 2_000, 10) == Trimmed(0, 2_000)
    assert await log.trim("q", 4, 0, 1) == Trimmed(1, 2_001)
    assert await log.trim("q", 4, 0, 10) == Trimmed(1, 2_002)
    assert await log.trim("q", 10, 2_004, 10) == Trimmed(2, 2_004)
    assert [letter.job.id for letter in await log.dead_letters(["q"])] == ["5", "4"]
    assert await log.trim("q", 0, 0, 10) == Trimmed(2, None)
    assert await log.dead_counts() == {"elsewhere": 1}


async def test_notes_are_kept_replaced_and_dropped(log: WaitingJobLog) -> None:
    assert not await log.note("paused", "b", b"")
    assert not await log.note("defined", "b", b"\x00{}")
    assert await log.note("paused", "b", b"since monday")
    assert await log.notes() == [Note("defined", "b", b"\x00{}"), Note("paused", "b", b"since monday")]
    assert await log.note("paused", "b", None)
    assert not await log.note("paused", "b", None)
    assert await log.notes() == [Note("defined", "b", b"\x00{}")]


async def test_destinations_are_remembered_until_forgotten(log: WaitingJobLog) -> None:
    assert await log.remember("t", "default", "b")
    assert await log.remember("t", "default", "a")
    assert await log.remember("t", "orders", "a")
    assert not await log.remember("t", "default", "a")
    expected = [Destination("t", "default", "a"), Destination("t", "default", "b"), Destination("t", "orders", "a")]
    assert await log.destinations() == expected
    assert await log.forget("t", "default", "a")
    assert not await log.forget("t", "default", "a")
    assert await log.destinations() == expected[1:]


async def test_what_no_store_takes_is_refused_alone(log: WaitingJobLog) -> None:
    with pytest.raises(StoreError, match="64 bits"):
        await log.append([new("a"), new("b", backoff_ms=2**63)])
    with pytest.raises(StoreError, match="surrogate"):
        await log.append([new("\ud800")])
    [job] = await log.append([new("c", backoff_ms=2**63 - 1)])
    with pytest.raises(StoreError, match="64 bits"):
        await log.retry(job.seq, 1, 1, 2**70, "too late")
    assert await log.load() == [job]


async def test_statistics_count_what_was_submitted(store: Store) -> None:
    handle = store.job_log()
    log = WaitingJobLog(handle)
    first, second = await log.append([new("a"), new("b")])
    await log.ack(first.seq)
    await log.retry(second.seq, 1, 1, 1, "e")
    await log.dead_letter(second.seq, 2, "e", 1)
    await log.redrive("q", 1, 1)
    await log.discard("q", "b")
    await log.remove([1, 2, 3])
    counters = handle.statistics()
    assert (counters.appended, counters.acknowledged, counters.retried) == (2, 1, 1)
    assert (counters.dead_lettered, counters.redriven, counters.discarded) == (1, 1, 1)
    assert counters.removed == 3
