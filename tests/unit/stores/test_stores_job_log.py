"""Conformance of `JobLog`: appended, acknowledged, retried, dead, redriven, adopted, the same for every store."""

from typing import Any

import pytest
from attrs import evolve

from iii_trio.protocol.errors import StoreError
from iii_trio.stores import (
    Census,
    Destination,
    Heading,
    Job,
    LaneCensus,
    LaneKey,
    NewJob,
    Note,
    Once,
    Promoted,
    QueueCensus,
    Store,
    Stretch,
    Trimmed,
    WaitingJobLog,
)


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


async def test_jobs_are_found_by_their_numbers(log: WaitingJobLog) -> None:
    jobs = await log.append([new(str(number)) for number in range(4)])
    assert await log.find([jobs[2].seq, 77, jobs[0].seq, jobs[2].seq]) == [jobs[0], jobs[2]]
    assert await log.find([]) == []


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


# -- the order of a queue


def head(job: Job) -> Heading:
    return Heading(
        *(job.seq, job.queue, job.namespace, job.function_id, job.group_id, job.priority, job.attempts),
        *(job.created_at_ms, job.due_at_ms, job.deliveries, job.delayed),
    )


def stretch(key: LaneKey, limit: int, after: Job | None = None) -> Stretch:
    place = (256, 0) if after is None else (after.priority, after.seq)
    return Stretch(key, key[0] == "", *place, limit)


TARGET = ("default", "orders::process")
NOW = 1_718_900_000_000


async def test_a_job_that_is_due_later_than_it_was_made_is_delayed_until_it_is_promoted(log: WaitingJobLog) -> None:
    jobs = await log.append([new(str(n), due_at_ms=NOW + n * 100) for n in (0, 3, 1, 2)])
    assert [job.delayed for job in jobs] == [False, True, True, True]
    [other] = await log.append([new("other", "elsewhere", due_at_ms=NOW + 50)])
    assert await log.pages("q", [stretch(TARGET, 9)], 99) == [jobs[:1]]
    nothing = await log.promote("q", NOW + 99, 9, 99)
    assert nothing == Promoted([], NOW + 100)
    first = await log.promote("q", NOW + 300, 2, 3)
    assert first == Promoted([evolve(jobs[2], delayed=False), head(evolve(jobs[3], delayed=False))], NOW + 300)
    assert (await log.promote("q", NOW + 300, 2, 99)).next_due_ms is None
    assert [job.seq for job in (await log.pages("q", [stretch(TARGET, 9)], 99))[0]] == [job.seq for job in jobs]
    assert await log.promote("elsewhere", NOW, 9, 99) == Promoted([], other.due_at_ms)
    assert [job.delayed for job in await log.load()] == [False] * 4 + [True]


async def test_a_failed_job_is_delayed_and_keeps_what_was_said_of_its_deliveries(log: WaitingJobLog) -> None:
    [job] = await log.append([FULL])
    await log.retry(job.seq, 2, 5, 77, "boom")
    assert await log.pages("q", [stretch(TARGET, 9)], 99) == [[]]
    failed = evolve(job, attempts=2, deliveries=5, due_at_ms=77, error="boom", delayed=True)
    assert await log.pages("q", [stretch(("", "g\x00"), 9)], 99) == [[failed]]
    assert await log.promote("q", 77, 9, 99) == Promoted([evolve(failed, delayed=False)], None)


async def test_the_jobs_for_a_function_stand_by_priority_then_by_age(log: WaitingJobLog) -> None:
    jobs = await log.append([new(str(n), priority=priority) for n, priority in enumerate([0, 9, 0, 255, 9, 0])])
    await log.append(
        [new("b", namespace="other"), new("c", function_id="f"), new("d", "r"), new("e", function_id=None)]
    )
    order = [jobs[3], jobs[1], jobs[4], jobs[0], jobs[2], jobs[5]]
    assert await log.pages("q", [stretch(TARGET, 9)], 99) == [order]
    for index, job in enumerate(order):
        [page] = await log.pages("q", [stretch(TARGET, 2, job)], 99)
        assert page == order[index + 1 : index + 3]
    assert await log.pages("q", [], 99) == []
    assert await log.pages("unknown", [stretch(TARGET, 2)], 99) == [[]]


async def test_the_jobs_of_a_group_stand_by_age_alone(log: WaitingJobLog) -> None:
    jobs = await log.append(
        [
            new(str(n), group_id=group, priority=n, due_at_ms=NOW + n % 2)
            for n, group in enumerate(["x", "y", None, "x"])
        ]
    )
    both = await log.pages("q", [stretch(("", "x"), 9), stretch(("", ""), 9)], 99)
    assert both == [[jobs[0], jobs[3]], [jobs[2]]]
    assert await log.pages("q", [stretch(("", "x"), 1, jobs[0])], 99) == [[jobs[3]]]
    assert await log.pages("q", [stretch(("", "x"), 1, jobs[3])], 99) == [[]]


async def test_a_page_carries_payloads_up_to_its_bytes(log: WaitingJobLog) -> None:
    jobs = await log.append([new(str(n), payload=b"12345") for n in range(4)])
    assert await log.pages("q", [stretch(TARGET, 2), stretch(TARGET, 2, jobs[1])], 16) == [
        jobs[:2],
        [jobs[2], head(jobs[3])],
    ]


async def test_lanes_are_counted_in_the_order_of_their_keys(log: WaitingJobLog) -> None:
    rows = [("f", "g1", 0), ("f", None, 1), ("g", "g1", 0), ("f", "\u00e9", 9), ("f", "z", 1), (None, None, 0)]
    jobs = await log.append(
        [
            new(str(n), function_id=f, group_id=g, priority=n, due_at_ms=NOW + late)
            for n, (f, g, late) in enumerate(rows)
        ]
    )
    await log.append([new("other", "r")])
    assert await log.lanes("q", False) == [
        LaneCensus(("default", "f"), 1, 0, head(jobs[0])),
        LaneCensus(("default", "g"), 1, 0, head(jobs[2])),
    ]
    groups = [
        LaneCensus(("", ""), 1, 1, head(jobs[1])),
        LaneCensus(("", "g1"), 2, 0, head(jobs[0])),
        LaneCensus(("", "z"), 0, 1, head(jobs[4])),
        LaneCensus(("", "\u00e9"), 0, 1, head(jobs[3])),
    ]
    assert await log.lanes("q", True) == groups
    assert await log.lanes("q", True, None, 1) == groups[:1]
    assert await log.lanes("q", True, ("", ""), 2) == groups[1:3]
    assert await log.lanes("q", True, ("", "\u00e9"), 2) == []
    assert await log.lanes("q", False, ("default", "f")) == [LaneCensus(("default", "g"), 1, 0, head(jobs[2]))]
    [low, high] = await log.append([new("low", "p", priority=1), new("high", "p", priority=2)])
    assert await log.lanes("p", False) == [LaneCensus(TARGET, 2, 0, head(high))]
    assert await log.lanes("p", True) == [LaneCensus(("", ""), 2, 0, head(low))]


async def test_the_census_counts_the_live_jobs_of_every_queue(log: WaitingJobLog) -> None:
    assert await log.census() == Census((), 0, 0)
    jobs = await log.append([new("a"), new("b", due_at_ms=NOW + 9), new("c", due_at_ms=NOW + 5), new("d", "r")])
    await log.append([new("e", "u", function_id=None, created_at_ms=NOW + 1, due_at_ms=NOW + 7)])
    await kill(log, [*await log.append([new("gone")])])
    census = await log.census()
    assert sorted(census.queues, key=lambda one: one.queue) == [
        QueueCensus("q", 3, 2, NOW + 5),
        QueueCensus("r", 1, 0, None),
        QueueCensus("u", 1, 1, NOW + 7),
    ]
    assert census.delayed_since_ms == NOW + 1
    assert census.newest_seq > jobs[-1].seq


async def test_what_is_redriven_or_adopted_keeps_its_place_in_the_orders(log: WaitingJobLog) -> None:
    early = await log.append([new("early", "unclaimed", function_id=None, due_at_ms=NOW + late) for late in (0, 1)])
    [dead] = await log.append([new("dead", due_at_ms=NOW + 9)])
    await kill(log, [dead])
    [redriven] = await log.redrive("q", 9, NOW)
    assert (redriven.deliveries, redriven.delayed) == (1, False)
    adopted = await log.adopt("unclaimed", "q", *TARGET)
    assert [job.delayed for job in adopted] == [False, True]
    assert await log.pages("q", [stretch(TARGET, 9), stretch(("", ""), 9)], 99) == [
        [adopted[0], redriven],
        [*adopted, redriven],
    ]
    assert (await log.promote("q", NOW + 1)).next_due_ms is None
    assert [one.queue for one in (await log.census()).queues] == ["q"]
    assert early[1].delayed


async def test_a_page_shows_the_writes_that_are_answered_before_it_and_no_others(store: Store) -> None:
    log, said = store.job_log(), list[Any]()
    log.append([new("a")], said.append)
    log.pages("q", [stretch(TARGET, 9)], 99, said.append)
    log.append([new("b")], said.append)
    log.lanes("q", False, None, 9, said.append)
    log.promote("q", NOW, 9, 99, said.append)
    log.ack(1, said.append)
    await WaitingJobLog(log).ack(77)
    (a,), ((page,)), (b,), (lane,), promoted, acked = (result.value for result in said)
    assert (page, lane.waiting, lane.head.seq) == ([a], 2, a.seq)
    assert (b.id, promoted.jobs, acked) == ("b", [], True)


async def test_clearing_a_queue_spares_what_is_in_flight_or_younger(log: WaitingJobLog) -> None:
    jobs = await log.append([new(str(n), group_id="ab"[n % 2], due_at_ms=NOW + n % 2) for n in range(8)])
    [other] = await log.append([new("other", "r")])
    cleared = await log.clear("q", jobs[5].seq, [jobs[0].seq, jobs[3].seq], 3)
    cleared += await log.clear("q", jobs[5].seq, [jobs[0].seq, jobs[3].seq], 3)
    assert sorted(heading.seq for heading in cleared) == [jobs[n].seq for n in (1, 2, 4, 5)]
    assert head(jobs[1]) in cleared
    assert await log.clear("q", jobs[5].seq, [jobs[0].seq, jobs[3].seq], 3) == []
    assert await log.load() == [jobs[0], jobs[3], jobs[6], jobs[7], other]
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
    [third] = await log.append([new("c")])
    await log.clear("q", third.seq, [], 9)
    counters = handle.statistics()
    assert (counters.appended, counters.acknowledged, counters.retried) == (3, 1, 1)
    assert (counters.dead_lettered, counters.redriven, counters.discarded) == (1, 1, 1)
    assert counters.removed == 2
