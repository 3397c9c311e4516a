"""Named queues that change while the engine runs: spec/queue.md §16, cases 40 to 53, and what `queue::define` keeps (§6).

Everything that `serve` runs, in this process, over real sockets and files.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, field

from iii_trio import Client, InvocationError, Worker, open_client
from iii_trio.config import ConfigError, load_config
from iii_trio.host.adopt import Adoption
from iii_trio.host.compose import Running, open_host
from iii_trio.host.plan import Overrides
from iii_trio.modules.queue import QueueModule
from iii_trio.stores import WaitingJobLog, open_sqlite

WAIT_S = 30.0
SEED = """
workers:
  - name: iii-queue
    config:
      queue_configs:
        payment: {type: fifo, message_group_field: transaction_id, max_retries: 2, backoff_ms: 100}
"""


@define(eq=False)
class Bench:
    """A running engine, a worker whose function `f` notes what it gets, and a client."""

    running: Running
    client: Client
    seen: list[Any] = field(factory=list)
    hangs: bool = False
    _news: trio.Event = field(factory=trio.Event)

    async def call(self, function_id: str, /, **payload: Any) -> Any:
        return await self.client.call(function_id, payload)

    async def set(self, **value: Any) -> None:
        """`configuration::set`, then wait until the queue has taken it over or refused it."""
        await self.call("configuration::set", id="iii-queue", value=value)
        await self.call("iii-queue::on-config-change")

    async def kept(self) -> Any:
        return (await self.call("configuration::get", id="iii-queue"))["value"]

    async def delivered(self, queue: str, data: Any = None) -> None:
        """Enqueue and see it come."""
        count = len(self.seen)
        await self.client.enqueue(queue, "f", data)
        while len(self.seen) <= count:
            await self._news.wait()

    def note(self, data: Any) -> None:
        self.seen.append(data)
        self._news.set()
        self._news = trio.Event()

    def module(self) -> Any:
        return self.running.modules["queue"].module


@asynccontextmanager
async def engine(directory: Path, text: str = SEED) -> AsyncIterator[Bench]:
    path = directory / "config.yaml"
    path.write_text(text)
    with trio.fail_after(WAIT_S):
        async with (
            open_host(load_config(path, {}), Overrides(port=0, data_dir=directory / "data")) as running,
            open_client(running.worker_url) as client,
            trio.open_nursery() as nursery,
        ):
            bench = Bench(running, client)
            worker = Worker("worker")

            @worker.function("f")
            async def handle(data: Any) -> None:
                hangs = bench.hangs
                bench.note(data)
                if hangs:
                    await trio.sleep_forever()

            await nursery.start(worker.run, running.worker_url)
            yield bench
            nursery.cancel_scope.cancel()


async def refusal(bench: Bench, function_id: str, **payload: Any) -> tuple[str, str]:
    with pytest.raises(InvocationError) as caught:
        await bench.call(function_id, **payload)
    return caught.value.code, caught.value.message


# -- §16, 40 to 53


async def test_case_40_the_entry_is_the_seed_and_default(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        assert sorted((await bench.kept())["queue_configs"]) == ["default", "payment"]
    assert not (tmp_path / "data" / "config").exists()


async def test_case_41_an_edit_at_runtime_survives_a_restart_with_the_old_seed(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        await bench.set(queue_configs={"mail": {"concurrency": 4}})
    async with engine(tmp_path) as bench:
        (row,) = await bench.call("engine::queue::stats", queue="mail")
        assert row["concurrency"] == 4
        await bench.delivered("mail")


async def test_case_42_a_stored_adapter_is_used_without_a_config_block_and_a_matching_one_is_not_rebuilt(
    tmp_path: Path,
) -> None:
    adapter = {"name": "builtin", "config": {"file_path": str(tmp_path / "elsewhere")}}
    async with engine(tmp_path, "workers: [{name: iii-queue}]") as bench:
        before = bench.module()
        await bench.set(adapter=adapter)
        assert bench.module() is not before
        before = bench.module()
        await bench.set(adapter=adapter, queue_configs={"mail": {}})
        assert bench.module() is before
        await bench.delivered("mail")
    async with engine(tmp_path, "workers: [{name: iii-queue}]") as bench:
        before = bench.module()
        await bench.delivered("mail")
        await bench.set(adapter=adapter, queue_configs={"mail": {}})
        assert bench.module() is before
    assert (tmp_path / "elsewhere" / "store.sqlite3").exists()


async def test_cases_43_44_and_48_queues_come_change_and_go(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        await bench.set(queue_configs={"mail": {"concurrency": 1}})
        await bench.delivered("mail", 1)
        await bench.set(queue_configs={"mail": {"concurrency": 7}})
        await bench.delivered("mail", 2)
        (row,) = await bench.call("engine::queue::stats", queue="mail")
        assert row["concurrency"] == 7
        await bench.set(queue_configs={})
        with pytest.raises(InvocationError, match="Queue 'mail' not found"):
            await bench.client.enqueue("mail", "f")
        await bench.delivered("default", 3)
        assert bench.seen == [1, 2, 3]


async def test_cases_45_to_47_another_adapter_delivers_and_one_that_cannot_be_had_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(tmp_path) as bench:
        await bench.client.publish("news", {"n": 1}, durable=True)
        await bench.call(
            "engine::register_trigger",
            trigger_type="durable:subscriber",
            id="reader",
            function_id="f",
            config={"topic": "news"},
        )
        while len(bench.seen) < 1:
            await bench._news.wait()
        await bench.set(adapter={"name": "builtin", "config": {"file_path": str(tmp_path / "second")}})
        await bench.delivered("default", {"n": 2})
        await bench.client.publish("news", {"n": 3}, durable=True)
        while len(bench.seen) < 3:
            await bench._news.wait()
        (tmp_path / "no-directory").write_text("")
        kept = await bench.kept()
        await bench.set(adapter={"name": "builtin", "config": {"file_path": str(tmp_path / "no-directory")}})
        assert "no-directory" in caplog.text
        await bench.delivered("default", {"n": 4})
        assert [data["n"] for data in bench.seen] == [1, 2, 3, 4]
        await bench.set(**kept)
        code, message = await refusal(
            bench, "configuration::set", id="iii-queue", value={"adapter": {"name": "carrier-pigeon"}}
        )
        assert code == "SCHEMA_INVALID"
        assert "carrier-pigeon" in message
        await bench.delivered("default", {"n": 5})


async def test_case_49_a_fifo_queue_without_group_is_ignored_at_runtime_and_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine(tmp_path) as bench:
        await bench.set(queue_configs={"mail": {}})
        await bench.set(queue_configs={"mail": {"type": "fifo"}, "more": {}})
        assert "Queue 'mail' is of type 'fifo' but 'message_group_field' is not set" in caplog.text
        await bench.delivered("mail")
        with pytest.raises(InvocationError, match="Queue 'more' not found"):
            await bench.client.enqueue("more", "f")
    async with engine(tmp_path) as bench:
        await bench.client.enqueue("payment", "f", {"transaction_id": 1})  # the file's
        with pytest.raises(InvocationError, match="Queue 'mail' not found"):
            await bench.client.enqueue("mail", "f")


async def test_case_50_a_change_after_the_end_does_nothing(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        adopted = bench.running.adoption.get("queue")
        assert adopted is not None
        live, module = adopted.live, bench.module()
        await bench.running.crew.stop("queue")
        live.set(live.value.__class__(queue_configs={"late": live.value.queue_configs["default"]}))
        assert module.statistics().queues == ()
        with pytest.raises(InvocationError, match=r"engine::queue::enqueue.*iii worker add queue"):
            await bench.client.enqueue("late", "f")


async def test_case_51_placeholders_are_expanded_and_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAIL_AT_ONCE", "6")
    async with engine(tmp_path) as bench:
        await bench.set(queue_configs={"mail": {"concurrency": "${MAIL_AT_ONCE:2}", "backoff_ms": "${NOWHERE:50}"}})
        (row,) = await bench.call("engine::queue::stats", queue="mail")
        assert row["concurrency"] == 6
        await bench.call("queue::define", queue="other")
        raw = (await bench.call("configuration::get", id="iii-queue", raw=True))["value"]
        assert raw["queue_configs"]["mail"] == {"concurrency": "${MAIL_AT_ONCE:2}", "backoff_ms": "${NOWHERE:50}"}


async def test_case_53_a_queue_whose_handler_hangs_keeps_no_other_from_its_change(tmp_path: Path) -> None:
    """Nothing about one queue's change can fail or wait; what runs in it ends when it ends."""
    async with engine(tmp_path) as bench:
        await bench.set(queue_configs={"stuck": {"concurrency": 1}, "gone": {}, "other": {"concurrency": 1}})
        bench.hangs = True
        await bench.delivered("stuck")
        await bench.delivered("gone")
        bench.hangs = False
        await bench.set(queue_configs={"stuck": {"concurrency": 2}, "other": {"concurrency": 5}, "new": {}})
        for queue in ("other", "new", "stuck"):
            await bench.delivered(queue)
        rows = {row["name"]: row for row in await bench.call("engine::queue::stats")}
        assert (rows["stuck"]["concurrency"], rows["gone"]["concurrency"], rows["gone"]["in_flight"]) == (2, 0, 1)


# -- queue::define


async def test_a_definition_is_in_the_entry_works_at_once_and_outlives_a_restart(tmp_path: Path) -> None:
    config = {"concurrency": 4, "max_length": 10, "delay_ms": None}
    async with engine(tmp_path) as bench:
        assert await bench.call("queue::define", queue="mail", config=config) == {"queue": "mail", "changed": True}
        await bench.delivered("mail", 1)
        assert await bench.call("queue::define", queue="mail", config=config) == {"queue": "mail", "changed": False}
        queues = (await bench.kept())["queue_configs"]
        assert queues["mail"] == {"concurrency": 4, "max_length": 10}
        assert queues["payment"]["message_group_field"] == "transaction_id"
        past = (await bench.call("configuration::history", id="iii-queue"))["values"]
        assert [row["by"] for row in past] == ["queue::define"]
        assert await bench.call("queue::define", queue="mail", config={"concurrency": 2}) == {
            "queue": "mail",
            "changed": True,
        }
        assert (await bench.kept())["queue_configs"]["mail"] == {"concurrency": 2}
        await bench.set(queue_configs={**queues, "default": {"concurrency": 3}})
    assert "adapter" not in (tmp_path / "data" / "config" / "iii-queue.yaml").read_text()
    assert (tmp_path / "config.yaml").read_text() == SEED
    async with engine(tmp_path) as bench:
        await bench.delivered("mail", 2)
        assert (await bench.call("engine::queue::stats", queue="default"))[0]["concurrency"] == 3
        assert await bench.call("queue::undefine", queue="default") == {"queue": "default", "changed": True}
        assert (await bench.call("engine::queue::stats", queue="default"))[0]["concurrency"] == 10
        assert await bench.call("queue::undefine", queue="mail") == {"queue": "mail", "changed": True}
        assert await bench.call("queue::undefine", queue="mail") == {"queue": "mail", "changed": False}
        with pytest.raises(InvocationError, match="Queue 'mail' not found"):
            await bench.client.enqueue("mail", "f")
    # nothing of it is left: the file alone counts again
    assert not (tmp_path / "data" / "config" / "iii-queue.yaml").exists()
    async with engine(tmp_path, SEED.replace("max_retries: 2", "max_retries: 2, concurrency: 9")) as bench:
        assert (await bench.call("engine::queue::stats", queue="payment"))[0]["concurrency"] == 9


async def test_a_queue_of_the_file_that_was_redefined_is_as_the_file_says_again(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        await bench.call("queue::define", queue="payment", config={"concurrency": 2})
        await bench.call("queue::define", queue="mail")
        await bench.client.enqueue("payment", "f", {})  # no fifo queue any more
        assert (await bench.call("queue::undefine", queue="payment"))["changed"]
        with pytest.raises(InvocationError, match="requires field 'transaction_id'"):
            await bench.client.enqueue("payment", "f", {})
        await bench.delivered("mail")


async def test_many_who_define_at_once_all_succeed_and_one_changes_it(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        answers = []

        async def ask(queue: str) -> None:
            answers.append(await bench.call("queue::define", queue=queue, config={"concurrency": 2}))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                for number in range(5):
                    nursery.start_soon(ask, f"q{number}")
        assert sum(answer["changed"] for answer in answers) == 5
        for number in range(5):
            await bench.delivered(f"q{number}")


@pytest.mark.parametrize(("theirs", "refused"), [("mail", True), ("other", False)])
async def test_who_changes_the_entry_at_the_same_time_is_not_overwritten(
    tmp_path: Path, theirs: str, refused: bool
) -> None:
    """Another definition of the same queue is a conflict; another queue's is none."""
    async with engine(tmp_path) as bench:
        registry = bench.running.adoption.registry
        errors = []

        async def ours() -> None:
            try:
                await bench.call("queue::define", queue="mail", config={"concurrency": 2})
            except InvocationError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery, registry._writing:
            value = {"queue_configs": {theirs: {"concurrency": 5}}}
            nursery.start_soon(bench.client.call, "configuration::set", {"id": "iii-queue", "value": value})
            while registry._writing.statistics().tasks_waiting < 1:
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ours)
            while registry._writing.statistics().tasks_waiting < 2:
                await trio.testing.wait_all_tasks_blocked()
        queues = (await bench.kept())["queue_configs"]
        assert queues[theirs] == {"concurrency": 5}
        if refused:
            assert errors[0].code == "define_conflict"
            assert errors[0].message == "queue configuration changed while defining 'mail'; retry queue::define"
        else:
            assert not errors
            assert queues["mail"] == {"concurrency": 2}


async def test_a_definition_that_cannot_be_kept_is_not_in_force(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        (tmp_path / "data" / "config").write_text("in the way")
        code, message = await refusal(bench, "queue::define", queue="mail")
        assert code == "ADAPTER_ERROR"
        assert str(tmp_path / "data" / "config") in message
        with pytest.raises(InvocationError, match="Queue 'mail' not found"):
            await bench.client.enqueue("mail", "f")


async def test_an_entry_that_is_not_in_force_is_named(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        await bench.set(queue_configs={"bad": {"type": "fifo"}})
        code, message = await refusal(bench, "queue::define", queue="mail")
        assert code == "define_failed"
        assert "Queue 'bad' is of type 'fifo'" in message
        assert "configuration::set" in message
        # to define the bad one well is a way out
        assert (await bench.call("queue::define", queue="bad", config={}))["changed"]
        assert (await bench.call("queue::define", queue="mail"))["changed"]


async def test_a_definition_that_is_written_and_not_in_force_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out, stuck = Adoption._carry_out, True

    async def carry_out_later(self: Adoption, adopted: Any, new: Any) -> None:
        if stuck:
            raise ConfigError("not now")
        await carry_out(self, adopted, new)

    async with engine(tmp_path) as bench:
        monkeypatch.setattr(Adoption, "_carry_out", carry_out_later)
        code, message = await refusal(bench, "queue::define", queue="mail", config={"concurrency": 2})
        assert code == "define_pending"
        assert message == "queue configuration is still being applied; retry queue::define"
        assert "mail" in (await bench.kept())["queue_configs"]
        assert await bench.call("iii-queue::on-config-change") == {"ok": True, "applied": False}
        stuck = False
        assert (await bench.call("queue::define", queue="mail", config={"concurrency": 2}))["changed"]
        await bench.delivered("mail")


async def test_a_definition_has_no_placeholders(tmp_path: Path) -> None:
    async with engine(tmp_path) as bench:
        config = {"type": "fifo", "message_group_field": "${HOME}"}
        code, message = await refusal(bench, "queue::define", queue="mail", config=config)
        assert (code, "values" in message) == ("enqueue_error", True)


async def test_definitions_in_the_log_move_into_the_entry(tmp_path: Path) -> None:
    (tmp_path / "data" / "queue").mkdir(parents=True)
    path = tmp_path / "data" / "queue" / "store.sqlite3"
    async with open_sqlite(path) as store:
        log = store.job_log()
        await WaitingJobLog(log).note("queue", "old", b'{"concurrency":3,"delay_ms":null}')
        await WaitingJobLog(log).note("queue", "payment", b'{"concurrency":2}')
        await WaitingJobLog(log).note("queue", "odd", b'{"color":"red"}')
    async with engine(tmp_path) as bench:
        while set((await bench.kept())["queue_configs"]) < {"old", "payment", "default"}:
            await trio.testing.wait_all_tasks_blocked()
        while "message_group_field" in (await bench.kept())["queue_configs"]["payment"]:
            await trio.testing.wait_all_tasks_blocked()
        await bench.delivered("old")
        await bench.delivered("payment")
    async with open_sqlite(path) as store:
        assert [note.name for note in await WaitingJobLog(store.job_log()).notes()] == ["odd"]
    async with engine(tmp_path) as bench:
        assert (await bench.kept())["queue_configs"]["old"] == {"concurrency": 3}
        await bench.delivered("old")


async def test_where_entries_are_in_memory_definitions_are_in_the_log(tmp_path: Path) -> None:
    text = SEED + "  - {name: configuration, config: {adapter: {name: in_memory}}}\n"
    async with engine(tmp_path, text) as bench:
        assert (await bench.call("queue::define", queue="mail", config={"concurrency": 2}))["changed"]
        assert "mail" not in (await bench.kept())["queue_configs"]
    async with engine(tmp_path, text) as bench:
        await bench.delivered("mail")
        assert not (await bench.call("queue::define", queue="mail", config={"concurrency": 2}))["changed"]
        assert (await bench.call("queue::undefine", queue="mail"))["changed"]


async def test_a_definition_made_while_its_queue_is_started_again_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with engine(tmp_path) as bench:
        async with trio.open_nursery() as nursery:
            adapter = {"name": "builtin", "config": {"max_attempts": 4}}
            nursery.start_soon(
                bench.client.call, "configuration::set", {"id": "iii-queue", "value": {"adapter": adapter}}
            )
            while not (await bench.call("configuration::history", id="iii-queue"))["values"]:
                pass
            assert (await bench.call("queue::define", queue="mail"))["changed"]
        kept = await bench.kept()
        assert kept["adapter"]["config"]["max_attempts"] == 4
        assert "mail" in kept["queue_configs"]
        await bench.delivered("mail")
        assert isinstance(bench.module(), QueueModule)
