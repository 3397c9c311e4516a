"""The tables against a model of dicts and lists, with restarts and with transactions that fail."""

import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from iii_trio.stores import Change, Destination, Done, Failed, Fsync, Job, NewJob, Stretch
from iii_trio.stores.desk import Submission, carry_out
from iii_trio.stores.memory import MemoryKeyValueTable
from iii_trio.stores.memory_jobs import MemoryJobTable
from iii_trio.stores.sqlite_file import SqliteFile, open_file
from iii_trio.stores.tables import Tables

_names = st.sampled_from(["", "a", "b", "ä", "a\x00"]) | st.text(max_size=4)
_few = st.sampled_from(["", "a", "b"])
_values = st.binary(max_size=40) | st.just(b"x" * 6000)


def no_callback(_: Any) -> None:
    """The machine looks at the results itself."""


def submission(work: Callable[[Tables], Any]) -> Submission:
    return Submission(work, no_callback, 1, None, True)


class StoreMachine(RuleBasedStateMachine):
    """Each rule is one operation on the store and on the model; they must answer alike."""

    seqs = Bundle("seqs")

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[str, str], dict[str, bytes]] = {}
        self.jobs: list[Job] = []
        self.dead: list[tuple[Job, int]] = []
        self.destinations: set[Destination] = set()
        self.last_seq = 0

    def run(self, work: Callable[[Tables], Any]) -> Any:
        raise NotImplementedError

    # -- values

    @rule(space=_few, scope=_names, key=_names, value=_values)
    def set(self, space: str, scope: str, key: str, value: bytes) -> None:
        keys = self.values.setdefault((space, scope), {})
        assert self.run(lambda tables: tables.values.set(space, scope, key, value)) == keys.get(key)
        keys[key] = value

    @rule(space=_few, scope=_few, key=_few, value=st.none() | _values)
    def update(self, space: str, scope: str, key: str, value: bytes | None) -> None:
        keys = self.values.get((space, scope), {})
        answer = self.run(lambda tables: tables.values.update(space, scope, key, lambda old: Change(value, old)))
        assert answer.old == answer.answer == keys.get(key)
        assert answer.new == (keys.get(key) if value is None else value)
        if value is not None:
            self.values.setdefault((space, scope), {})[key] = value

    @rule(space=_few, scope=_few, key=_few)
    def delete(self, space: str, scope: str, key: str) -> None:
        keys = self.values.get((space, scope), {})
        assert self.run(lambda tables: tables.values.delete(space, scope, key)) == keys.pop(key, None)

    @rule(space=_few, scope=_few, key=_few)
    def look(self, space: str, scope: str, key: str) -> None:
        keys = self.values.get((space, scope), {})
        assert self.run(lambda tables: tables.values.get(space, scope, key)) == keys.get(key)
        assert self.run(lambda tables: list(tables.values.items(space, scope))) == list(keys.items())
        present = sorted(place for place, keys in self.values.items() if keys)
        assert self.run(lambda tables: tables.values.scopes(space)) == [s for sp, s in present if sp == space]
        found = [place for place in present if place[0].startswith(space)]
        assert self.run(lambda tables: tables.values.directory(space)) == found

    # -- jobs

    @rule(
        target=seqs,
        queues=st.lists(_few, max_size=3),
        claimed=st.booleans(),
        payload=_values,
        text=st.text(max_size=5),
        late=st.sampled_from([0, 0, 1, 5]),
        group=st.none() | _few,
        priority=st.sampled_from([0, 0, 1, 255]),
    )
    def append(
        self, queues: list[str], claimed: bool, payload: bytes, text: str, late: int, group: str | None, priority: int
    ) -> Any:
        new = [
            NewJob(
                id=f"{self.last_seq}.{number}",
                queue=queue,
                namespace=text,
                function_id="f" if claimed else None,
                payload=payload,
                max_attempts=3,
                backoff_ms=2**40,
                created_at_ms=1,
                due_at_ms=1 + late,
                group_id=group,
                priority=priority,
                message_id=text or None,
                metadata=payload if claimed else None,
            )
            for number, queue in enumerate(queues)
        ]
        jobs = self.run(lambda tables: tables.jobs.append(new))
        assert jobs == [Job.numbered(job.seq, one) for job, one in zip(jobs, new, strict=True)]
        for job in jobs:
            assert job.seq > self.last_seq
            self.last_seq = job.seq
        self.jobs += jobs
        return multiple(*(job.seq for job in jobs))

    @rule(seq=seqs)
    def ack(self, seq: int) -> None:
        there = any(job.seq == seq for job in self.jobs)
        assert self.run(lambda tables: tables.jobs.ack(seq)) == there
        self.jobs = [job for job in self.jobs if job.seq != seq]

    @rule(seq=seqs, attempts=st.integers(0, 9), due=st.integers(0, 2**62), error=st.text(max_size=9))
    def retry(self, seq: int, attempts: int, due: int, error: str) -> None:
        there = any(job.seq == seq for job in self.jobs)
        assert self.run(lambda tables: tables.jobs.retry(seq, attempts, attempts + 1, due, error)) == there
        self.jobs = [
            evolve(job, attempts=attempts, deliveries=attempts + 1, due_at_ms=due, error=error, delayed=True)
            if job.seq == seq
            else job
            for job in self.jobs
        ]

    @rule(seq=seqs, attempts=st.integers(0, 9), error=st.text(max_size=9), failed_at=st.integers(0, 9))
    def dead_letter(self, seq: int, attempts: int, error: str, failed_at: int) -> None:
        found = [job for job in self.jobs if job.seq == seq]
        assert self.run(lambda tables: tables.jobs.dead_letter(seq, attempts, error, failed_at)) == bool(found)
        self.jobs = [job for job in self.jobs if job.seq != seq]
        self.dead += [
            (evolve(job, attempts=attempts, error=error, deliveries=0, delayed=False), failed_at) for job in found
        ]

    @rule(queue=_few, to=_few, limit=st.integers(0, 3))
    def adopt(self, queue: str, to: str, limit: int) -> None:
        adopted = self.run(lambda tables: tables.jobs.adopt(queue, to, "ns", "f", limit))
        found = [job for job in self.jobs if job.queue == queue and job.function_id is None][:limit]
        assert adopted == [evolve(job, queue=to, namespace="ns", function_id="f") for job in found]
        changed = {job.seq: job for job in adopted}
        self.jobs = [changed.get(job.seq, job) for job in self.jobs]

    @rule(target=seqs, queue=_few, limit=st.integers(0, 3))
    def redrive(self, queue: str, limit: int) -> Any:
        found = [letter for letter in self.dead if letter[0].queue == queue][:limit]
        return self.revived(self.run(lambda tables: tables.jobs.redrive(queue, limit, 77)), found)

    @precondition(lambda self: self.dead)
    @rule(target=seqs, data=st.data(), by_message=st.booleans())
    def redrive_one(self, data: st.DataObject, by_message: bool) -> Any:
        wanted = data.draw(st.sampled_from(self.dead))[0]
        name = (wanted.message_id if by_message else None) or wanted.id
        found = next(
            letter
            for letter in self.dead
            if letter[0].queue == wanted.queue and name in (letter[0].id, letter[0].message_id)
        )
        job = self.run(lambda tables: tables.jobs.redrive_one(wanted.queue, name, 77))
        return self.revived([job], [found])

    def revived(self, jobs: list[Job], found: list[tuple[Job, int]]) -> Any:
        expected = [evolve(letter[0], attempts=0, error=None, due_at_ms=77, deliveries=1) for letter in found]
        assert [evolve(job, seq=0) for job in jobs] == [evolve(job, seq=0) for job in expected]
        for job in jobs:
            assert job.seq > self.last_seq
            self.last_seq = job.seq
        self.dead = [letter for letter in self.dead if letter not in found]
        self.jobs += jobs
        return multiple(*(job.seq for job in jobs))

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        wanted = data.draw(st.sampled_from(self.dead))
        assert self.run(lambda tables: tables.jobs.discard(wanted[0].queue, wanted[0].id))
        self.dead.remove(wanted)

    @rule(queues=st.lists(_few, max_size=3, unique=True), offset=st.integers(0, 2), limit=st.integers(0, 3))
    def browse(self, queues: list[str], offset: int, limit: int) -> None:
        letters = self.run(lambda tables: tables.jobs.dead_letters(queues, offset, limit))
        found = [letter for letter in reversed(self.dead) if letter[0].queue in queues][offset : offset + limit]
        assert [(evolve(letter.job, seq=0), letter.failed_at_ms) for letter in letters] == [
            (evolve(job, seq=0), failed_at) for job, failed_at in found
        ]
        counts = self.run(lambda tables: tables.jobs.dead_counts())
        assert counts == {
            name: sum(job.queue == name for job, _ in self.dead) for name in {j.queue for j, _ in self.dead}
        }

    # -- their orders

    @rule(queue=_few, by_group=st.booleans(), after=st.integers(0, 9), limit=st.integers(1, 3))
    def page(self, queue: str, by_group: bool, after: int, limit: int) -> None:
        mine = [job for job in self.jobs if job.queue == queue]
        if by_group:
            keys = {("", job.group_id or "") for job in mine}
        else:
            keys = {(job.namespace, job.function_id) for job in mine if job.function_id and not job.delayed}
        lanes = self.run(lambda tables: tables.jobs.lanes(queue, by_group, None, 100))
        assert [lane.key for lane in lanes] == sorted(keys)
        for lane in lanes:
            jobs = self.order(mine, by_group, lane.key)
            late = sum(job.delayed for job in jobs)
            assert (lane.waiting, lane.delayed, lane.head.seq) == (len(jobs) - late, late, jobs[0].seq)
            place = (256, 0) if after >= len(jobs) else (jobs[after].priority, jobs[after].seq)
            stretch = Stretch(lane.key, by_group, *place, limit)
            [page] = self.run(lambda tables, stretch=stretch: tables.jobs.pages(queue, [stretch], 10**9))
            begin = 0 if after >= len(jobs) else after + 1
            assert page == jobs[begin : begin + limit]

    @staticmethod
    def order(mine: list[Job], by_group: bool, key: tuple[str, str]) -> list[Job]:
        if by_group:
            return [job for job in mine if (job.group_id or "") == key[1]]
        there = [job for job in mine if not job.delayed and (job.namespace, job.function_id) == key]
        return sorted(there, key=lambda job: (-job.priority, job.seq))

    @rule(queue=_few, now=st.integers(0, 9) | st.integers(0, 2**62), limit=st.integers(1, 3))
    def promote(self, queue: str, now: int, limit: int) -> None:
        answer = self.run(lambda tables: tables.jobs.promote(queue, now, limit, 10**9))
        late = sorted(job.due_at_ms for job in self.jobs if job.queue == queue and job.delayed)
        due = [due_ms for due_ms in late if due_ms <= now][:limit]
        assert [job.due_at_ms for job in answer.jobs] == due
        assert answer.next_due_ms == (late[len(due)] if len(due) < len(late) else None)
        promoted = {job.seq: job for job in answer.jobs}
        assert all(evolve(promoted[job.seq], delayed=True) == job for job in self.jobs if job.seq in promoted)
        self.jobs = [promoted.get(job.seq, job) for job in self.jobs]

    @rule(queue=_few, spared=st.lists(seqs, max_size=2), through=st.integers(0, 30), limit=st.integers(0, 3))
    def clear(self, queue: str, spared: list[int], through: int, limit: int) -> None:
        able = {job.seq for job in self.jobs if job.queue == queue and job.seq <= through and job.seq not in spared}
        gone = {heading.seq for heading in self.run(lambda tables: tables.jobs.clear(queue, through, spared, limit))}
        assert gone <= able
        assert len(gone) == min(limit, len(able))
        self.jobs = [job for job in self.jobs if job.seq not in gone]

    @rule()
    def census(self) -> None:
        census = self.run(lambda tables: tables.jobs.census())
        counted = {one.queue: (one.live, one.delayed, one.next_due_ms) for one in census.queues}
        expected = {}
        for queue in {job.queue for job in self.jobs}:
            mine = [job for job in self.jobs if job.queue == queue]
            late = [job.due_at_ms for job in mine if job.delayed]
            expected[queue] = (len(mine), len(late), min(late, default=None))
        assert counted == expected

    @rule(after=st.integers(0, 20), limit=st.integers(0, 5))
    def load(self, after: int, limit: int) -> None:
        expected = [job for job in self.jobs if job.seq > after][:limit]
        assert self.run(lambda tables: tables.jobs.load(after, limit)) == expected

    # -- destinations

    @rule(topic=_few, function_id=_few)
    def remember(self, topic: str, function_id: str) -> None:
        destination = Destination(topic, "default", function_id)
        new = destination not in self.destinations
        assert self.run(lambda tables: tables.jobs.remember(destination)) == new
        self.destinations.add(destination)

    @rule(topic=_few, function_id=_few)
    def forget(self, topic: str, function_id: str) -> None:
        destination = Destination(topic, "default", function_id)
        known = destination in self.destinations
        assert self.run(lambda tables: tables.jobs.forget(destination)) == known
        self.destinations.discard(destination)

    @invariant()
    def live_jobs_and_destinations_agree(self) -> None:
        assert self.run(lambda tables: tables.jobs.load(0, 10_000)) == self.jobs
        assert self.run(lambda tables: tables.jobs.destinations()) == sorted(self.destinations)


class MemoryMachine(StoreMachine):
    """The tables of `open_memory`."""

    @initialize()
    def start(self) -> None:
        self.tables = Tables(MemoryKeyValueTable(), MemoryJobTable())

    def run(self, work: Callable[[Tables], Any]) -> Any:
        one = submission(work)
        carry_out([one], self.tables)
        assert isinstance(one.result, Done)
        return one.result.value


class SqliteMachine(StoreMachine):
    """The tables of `open_sqlite`, closed and opened again at any time, and with transactions that do not commit."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.file = self.open()

    def open(self) -> SqliteFile:
        return open_file(Path(self.directory.name) / "store.db", Fsync.NEVER, check=True)

    def run(self, work: Callable[[Tables], Any]) -> Any:
        one = submission(work)
        self.file.commit([one])
        assert isinstance(one.result, Done), one.result
        return one.result.value

    @rule()
    def restart(self) -> None:
        self.file.close()
        self.file = self.open()
        assert self.file.set_aside == 0
        # What was acknowledged may give its number again after a restart; nobody remembers it then.
        self.last_seq = max([job.seq for job in self.jobs], default=0)

    @rule(seq=StoreMachine.seqs)
    def failing_transaction(self, seq: int) -> None:
        def break_down(_: Tables) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        new = NewJob("lost", "a", "", None, b"", 1, 1, 1, 1)
        group = [
            submission(lambda tables: tables.values.set("a", "a", "a", b"lost")),
            submission(lambda tables: tables.values.delete("a", "b", "a")),
            submission(lambda tables: tables.jobs.append([new])),
            submission(lambda tables: tables.jobs.dead_letter(seq, 1, "lost", 1)),
            submission(lambda tables: tables.jobs.redrive("a", 10, 1)),
            submission(lambda tables: tables.jobs.adopt("a", "b", "", "f", 10)),
            submission(lambda tables: tables.jobs.remember(Destination("lost", "", ""))),
            submission(break_down),
        ]
        self.file.commit(group)
        assert all(isinstance(one.result, Failed) for one in group)

    def teardown(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
            self.directory.cleanup()


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestSqliteMachine = SqliteMachine.TestCase
TestSqliteMachine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
