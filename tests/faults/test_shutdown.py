"""Promise P7: SIGTERM drains and the process ends in the configured time, losing nothing acknowledged.

The engine is a real process. What stands in the way: work that ends in time, work that never ends, workers and HTTP
clients that do not react, a script that ignores SIGTERM, a start that has not come to its end.
"""

import os
import select
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import trio
from attrs import define, field

from iii_trio import Client, HttpRequest, HttpResponse, InvocationError, Reconnect, Worker, open_client
from iii_trio.testing import dial, run_engine
from iii_trio.testing.process import start_engine

SOON = Reconnect(first_s=0.02, limit_s=0.1)
WAIT_S = 60.0
BACKLOG = 200
LARGE = 32 * 1024 * 1024
SLACK_S = 5.0
"""For the machine, which may have other work. What hangs here would hang for minutes."""

CONFIG = """
shutdown_grace_ms: {grace_ms}
workers:
  - name: iii-http
  - name: iii-state
  - name: iii-queue
    config:
      queue_configs:
        default: {{concurrency: 4, backoff_ms: 5}}
"""


def configured(directory: Path, grace_s: float) -> tuple[str, str]:
    path = directory / "config.yaml"
    path.write_text(CONFIG.format(grace_ms=round(grace_s * 1000)))
    return "-c", str(path)


async def ask(port: int, path: str) -> tuple[int, bytes]:
    """`GET` over a connection of its own: status and body; status 0 when the connection ended without an answer."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        with trio.fail_after(WAIT_S):
            try:
                while data := await stream.receive_some():
                    answer += bytes(data)
            except trio.BrokenResourceError:
                pass
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


@asynccontextmanager
async def watch(pid: int) -> AsyncIterator[int]:
    """A descriptor that becomes readable at the process's end; the process ends with the block at the latest."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        if not select.select([descriptor], [], [], 0)[0]:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        os.close(descriptor)


# -- work that ends in time -------------------------------------------------------------------------------------------


@define(eq=False)
class Books:
    """What was promised to the producers, and what the worker has seen."""

    receipts: set[int] = field(factory=set)
    handled: set[int] = field(factory=set)
    running: int = 0
    values: dict[str, int] = field(factory=dict)
    backlog: trio.Event = field(factory=trio.Event)
    """Enough is waiting: the worker begins."""
    asked: trio.Event = field(factory=trio.Event)
    draining: trio.Event = field(factory=trio.Event)
    news: trio.Event = field(factory=trio.Event)

    def tell(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def until(self, condition: Any) -> None:
        with trio.fail_after(WAIT_S):
            while not condition():
                await self.news.wait()


def busy_worker(books: Books) -> Worker:
    worker = Worker("busy")

    @worker.function("busy::job")
    async def job(message: dict[str, int]) -> None:
        await books.backlog.wait()
        books.running += 1
        await trio.sleep(0.01)
        books.running -= 1
        books.handled.add(message["number"])
        books.tell()

    @worker.function("busy::nested")
    async def nested() -> str:
        return "asked while draining"

    @worker.http("GET", "/slow")
    @worker.function("busy::slow")
    async def slow(request: HttpRequest, *, client: Client) -> HttpResponse:
        books.asked.set()
        await books.draining.wait()
        answer = await client.call("busy::nested", timeout=WAIT_S)
        await client.state["drain"].set("answer", answer)
        return HttpResponse(200, body={"answer": answer})

    return worker


async def produce(client: Client, books: Books, lane: int, lanes: int) -> None:
    """Enqueue and write state until the engine is gone; only what was acknowledged counts."""
    for number in range(lane, 10_000_000, lanes):
        try:
            await client.enqueue("default", "busy::job", {"number": number}, timeout=WAIT_S)
            books.receipts.add(number)
            await client.call("state::set", {"scope": "lane", "key": str(lane), "value": number}, timeout=WAIT_S)
        except InvocationError:
            return
        books.values[str(lane)] = number
        books.tell()


async def test_work_under_way_ends_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    grace_s = 60.0
    books = Books()
    async with trio.open_nursery() as nursery:
        async with run_engine(tmp_path, *configured(tmp_path, grace_s)) as engine:
            idle = await dial(nursery, engine.port)
            await nursery.start(partial(busy_worker(books).run, engine.url, reconnect=SOON))
            answers: list[tuple[int, bytes]] = []

            async def slow() -> None:
                answers.append(await ask(engine.http_port, "/slow"))
                books.tell()

            async with open_client(engine.url, name="producer", reconnect=SOON) as client, trio.open_nursery() as load:
                for lane in range(4):
                    load.start_soon(produce, client, books, lane, 4)
                load.start_soon(slow)
                await books.until(lambda: len(books.receipts) > BACKLOG)
                await books.asked.wait()
                books.backlog.set()
                await books.until(lambda: bool(books.handled))

                began = trio.current_time()
                engine.signal()
                await engine.line("SIGTERM: stopping")
                # no new requests
                status, body = await ask(engine.http_port, "/slow")
                assert status == 503
                assert b"shutting down" in body
                # nothing more from the queue, once what it had begun has ended; there is enough to do
                await books.until(lambda: not books.running)
                handled, receipts = len(books.handled), len(books.receipts)
                await books.until(lambda: len(books.receipts) > receipts + BACKLOG)
                assert len(books.handled) == handled
                assert not answers
                # what runs may go on calling, and its caller hears of it
                books.draining.set()
                await books.until(lambda: bool(answers))
                assert answers == [(200, b'{"answer":"asked while draining"}')]

                assert await engine.wait() == 0
                assert trio.current_time() - began < grace_s
                closed = await idle.wait_closed()
                assert (closed.code, closed.clean) == (1012, True)
                load.cancel_scope.cancel()
            assert engine.output[-1].endswith("stopped")
            assert not [line for line in engine.output if " ERROR " in line or "Traceback" in line]
        port = engine.port
        async with run_engine(tmp_path, *configured(tmp_path, grace_s), port=port) as engine:
            await books.until(lambda: books.handled >= books.receipts)
            async with open_client(engine.url, name="auditor") as auditor:
                for key, number in books.values.items():
                    assert await auditor.state["lane"].get(key) >= number
                assert await auditor.state["drain"].get("answer") == "asked while draining"
        nursery.cancel_scope.cancel()


# -- work that does not end -------------------------------------------------------------------------------------------

DEAF = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(f"deaf {os.getpid()}", flush=True)
time.sleep(300)
"""


async def test_whatever_hangs_the_process_ends_in_the_configured_time(tmp_path: Path) -> None:
    grace_s = 2.0
    script = tmp_path / "deaf.py"
    script.write_text(DEAF)
    async with (
        run_engine(tmp_path, str(script), *configured(tmp_path, grace_s)) as engine,
        trio.open_nursery() as nursery,
    ):
        pid = int((await engine.line(" deaf ")).rpartition(" ")[2])
        async with watch(pid) as deaf:
            # a handler that never answers, of a worker that does not react to cancellation, nor to the Close frame
            frozen = await dial(nursery, engine.port)
            frozen.introduce(name="frozen")
            frozen.register("frozen::never")
            config = {"api_path": "never", "http_method": "GET"}
            binding = {"id": "never", "trigger_type": "http", "function_id": "frozen::never", "config": config}
            frozen.send({"type": "registertrigger", **binding})
            await frozen.settled()
            answers: list[tuple[int, bytes]] = []

            async def never() -> None:
                answers.append(await ask(engine.http_port, "/never"))

            nursery.start_soon(never)
            await frozen.next("invokefunction")
            frozen.connection.pause_reading()
            # an HTTP client that does not read its answer
            large = await dial(nursery, engine.port)
            large.introduce(name="large")
            large.register("large::page")
            page = {"id": "page", "trigger_type": "http", "function_id": "large::page", "config": {"api_path": "page"}}
            large.send({"type": "registertrigger", **page})
            await large.settled()
            deaf_client = await trio.open_tcp_stream("127.0.0.1", engine.http_port)
            await deaf_client.send_all(b"GET /page HTTP/1.1\r\nhost: x\r\n\r\n")
            large.answer(await large.next("invokefunction"), result={"status_code": 200, "body": "x" * LARGE})
            await large.settled()
            # somebody who waits for the answer of a call, and an HTTP client in the middle of its head
            caller = await dial(nursery, engine.port)
            call = caller.call("frozen::never")
            await caller.settled()
            half = await trio.open_tcp_stream("127.0.0.1", engine.http_port)
            await half.send_all(b"GET /never HTTP/1.1\r\nhost:")

            began = trio.current_time()
            assert await engine.stop() == 0
            assert trio.current_time() - began < grace_s + SLACK_S
            with trio.fail_after(SLACK_S):
                await trio.lowlevel.wait_readable(deaf)
            # P5: every call ends
            assert (await caller.result(call))["error"]["code"] == "invocation_stopped"
            assert (await caller.wait_closed()).code == 1012
            with trio.fail_after(WAIT_S):
                while not answers:
                    await trio.lowlevel.checkpoint()
            status, body = answers[0]
            assert (status, b"invocation_stopped" in body) == (500, True)
            await half.aclose()
            await deaf_client.aclose()
            frozen.cut()
        nursery.cancel_scope.cancel()


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    script = tmp_path / "idle.py"
    script.write_text(DEAF.replace("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", ""))
    async with (
        run_engine(tmp_path, str(script), *configured(tmp_path, 60)) as engine,
        trio.open_nursery() as nursery,
    ):
        pid = int((await engine.line(" deaf ")).rpartition(" ")[2])
        async with watch(pid) as child:
            hanging = await dial(nursery, engine.port)
            hanging.introduce(name="hanging")
            hanging.register("hanging::never")
            hanging.call("hanging::never")
            await hanging.next("invokefunction")
            engine.signal(signal.SIGTERM)
            await engine.line("SIGTERM: stopping")
            await trio.sleep(0.3)  # what comes sooner counts as one and the same
            assert engine.process.poll() is None
            engine.signal(signal.SIGINT)
            with trio.fail_after(SLACK_S):
                assert await engine.wait() == 128 + signal.SIGINT
            assert "a second signal: ending at once" in engine.output
            with trio.fail_after(WAIT_S):
                await trio.lowlevel.wait_readable(child)  # its guard saw to it
        nursery.cancel_scope.cancel()


# -- a start that has not come to its end -----------------------------------------------------------------------------

SLOW_START = """
    import time, trio
    from iii_trio.cli.main import main
    from iii_trio.modules.queue import QueueModule

    async def run(self, core, *, task_status):
        print("not yet", flush=True)
        {wait}

    QueueModule.run = run
    main()
"""


def slow_start(directory: Path, wait: str) -> tuple[str, ...]:
    script = directory / "slow_start.py"
    script.write_text(dedent(SLOW_START.format(wait=wait)))
    return (sys.executable, str(script))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_during_the_start_undoes_it(tmp_path: Path, number: signal.Signals) -> None:
    command = slow_start(tmp_path, "await trio.sleep_forever()")
    async with start_engine(tmp_path, command=command) as engine:
        await engine.line("not yet")
        engine.signal(number)
        assert await engine.wait() == 0
        assert engine.output[-1].endswith(f"stopped by {number.name} before everything was up")
        assert not (tmp_path / "ports.json").exists()
        assert not [line for line in engine.output if "Traceback" in line]


async def test_a_start_that_is_stuck_yields_to_the_second_signal(tmp_path: Path) -> None:
    async with start_engine(tmp_path, command=slow_start(tmp_path, "time.sleep(300)")) as engine:
        await engine.line("not yet")
        engine.signal()
        await trio.sleep(0.3)
        assert engine.process.poll() is None
        engine.signal()
        assert await engine.wait() == 128 + signal.SIGTERM


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.2 * step for step in range(15)])
async def test_a_signal_at_any_moment(tmp_path: Path, seconds: float) -> None:
    """Before the interpreter has come to the command there is nothing to stop, and the system ends the process."""
    async with start_engine(tmp_path) as engine:
        await trio.sleep(seconds)
        engine.signal()
        assert await engine.wait() in (0, -signal.SIGTERM)
        assert not [line for line in engine.output if "Traceback" in line]
