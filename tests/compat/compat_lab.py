"""Real processes for the compatibility tests: engines, workers of other people's SDKs, and a client that speaks frames.

The client stands on trio-websocket, so neither end of a test's connection is checked by our own transport alone.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field
from trio_websocket import CloseReason, ConnectionClosed, WebSocketConnection, wrap_client_stream

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CLIENTS = Path(__file__).parent / "clients"
COMPAT = ROOT / ".compat"

DEADLINE_S = 60.0
"""Longest wait for anything that should happen at once; on a busy machine starting a process takes seconds."""
STOP_S = 20.0
LARGEST = 64 * 1024 * 1024

Frame = dict[str, Any]


@define(eq=False)
class Process:
    """A process of a test. Its output, both streams, is read as it comes."""

    name: str
    popen: trio.Process
    lines: list[str] = field(factory=list, init=False)
    ended: bool = field(default=False, init=False)
    """No more output will come."""
    _news: trio.Event = field(factory=trio.Event, init=False)

    async def read(self) -> None:
        """Read the output to its end."""
        assert self.popen.stdout is not None
        rest = b""
        async for chunk in self.popen.stdout:
            *whole, rest = (rest + chunk).split(b"\n")
            self.lines += [line.decode(errors="replace") for line in whole]
            self._tell()
        if rest:
            self.lines.append(rest.decode(errors="replace"))
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def output(self, enough: Callable[[list[str]], bool]) -> None:
        """Wait until the lines printed so far are `enough`. Fails when no more come, or nothing happens for long."""
        with trio.move_on_after(DEADLINE_S):
            while not enough(self.lines):
                assert not self.ended, f"{self.name} has said no more than {self.lines}"
                await self._news.wait()
            return
        raise AssertionError(f"{self.name} has said, in {DEADLINE_S} s, no more than {self.lines}")

    async def stop(self, number: signal.Signals = signal.SIGTERM, within_s: float = STOP_S) -> int:
        """Send a signal and wait for the end; the exit status. Fails when the process is still there after `within_s`."""
        self.popen.send_signal(number)
        with trio.move_on_after(within_s):
            return await self.popen.wait()
        raise AssertionError(f"{self.name} has not ended {within_s} s after {number.name}")

    async def aclose(self) -> None:
        """End the process, whatever it does, and show what it printed: pytest tells when the test has failed."""
        with trio.CancelScope(deadline=trio.current_time() + 2 * STOP_S, shield=True):
            if self.popen.returncode is None:
                self.popen.terminate()
                with trio.move_on_after(STOP_S):
                    await self.popen.wait()
                if self.popen.returncode is None:
                    self.popen.kill()
                    await self.popen.wait()
        print(f"--- {self.name}, status {self.popen.returncode}", *self.lines, sep="\n")


@define(eq=False)
class Peer:
    """A WebSocket client that sends and gets frames: it calls, and it provides functions that answer at once."""

    stream: trio.SocketStream
    socket: WebSocketConnection
    functions: dict[str, Callable[[Frame], Frame]] = field(factory=dict, init=False)
    available: set[str] = field(factory=set, init=False)
    ended: bool = field(default=False, init=False)
    closed: CloseReason | None = field(default=None, init=False)
    """The Close frame the connection has ended with, if it ended with one."""
    _answers: dict[str, Frame] = field(factory=dict, init=False)
    _news: trio.Event = field(factory=trio.Event, init=False)

    async def run(self) -> None:
        """Read frames until the connection ends."""
        try:
            while True:
                frame = json.loads(await self.socket.get_message())
                if frame["type"] == "invokefunction":
                    keys = {"invocation_id": frame["invocation_id"], "function_id": frame["function_id"]}
                    outcome = self.functions[frame["function_id"]](frame)
                    await self.send({"type": "invocationresult", **keys, **outcome})
                elif frame["type"] == "invocationresult":
                    self._answers[frame["invocation_id"]] = frame
                self._tell()
        except ConnectionClosed as end:
            self.closed = end.reason
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def send(self, frame: Frame) -> None:
        """Send one frame."""
        await self.socket.send_message(json.dumps(frame))

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for frames until the condition holds. Fails when the connection ends, or nothing happens for long."""
        with trio.move_on_after(DEADLINE_S):
            while not condition():
                assert not self.ended, f"the connection has ended with {self.closed}, waiting for {what}"
                await self._news.wait()
            return
        raise AssertionError(f"no {what} within {DEADLINE_S} s")

    async def end(self) -> None:
        """Wait until the connection has ended, and everything that came before has been read."""
        with trio.fail_after(DEADLINE_S):
            while not self.ended:
                await self._news.wait()

    async def answers(self, ids: Iterable[str]) -> list[Frame]:
        """The answers to these calls, or to those of them that came before the connection ended."""
        wanted = list(ids)
        with trio.fail_after(DEADLINE_S):
            while not self.ended and not self._answers.keys() >= set(wanted):
                await self._news.wait()
        return [self._answers.pop(one) for one in wanted if one in self._answers]

    async def invoke(self, function_id: str, **fields: Any) -> str:
        """Send a call; its id."""
        invocation_id = str(uuid.uuid4())
        head = {"type": "invokefunction", "invocation_id": invocation_id, "function_id": function_id}
        await self.send({**head, **fields})
        return invocation_id

    async def ask(self, function_id: str, data: Any = None, **fields: Any) -> Frame:
        """Call a function; the frame that answers."""
        one = await self.invoke(function_id, data=data, **fields)
        await self.until(lambda: one in self._answers, f"answer of {function_id}")
        return self._answers.pop(one)

    async def call(self, function_id: str, data: Any = None) -> Any:
        """Call a function; its result."""
        frame = await self.ask(function_id, data)
        assert "error" not in frame, frame
        return frame.get("result")

    async def provide(self, function_id: str, answer: Callable[[Frame], Frame]) -> None:
        """Register a function; `answer` makes `result=…` or `error=…` of the frame that invokes it."""
        self.functions[function_id] = answer
        await self.send({"type": "registerfunction", "id": function_id})

    async def bind(self, trigger_type: str, function_id: str, config: Any) -> None:
        """Bind a function to a trigger."""
        binding = {"id": str(uuid.uuid4()), "trigger_type": trigger_type}
        await self.send({"type": "registertrigger", **binding, "function_id": function_id, "config": config})

    async def watch(self) -> None:
        """Keep `available`, the ids of all functions, up to date from now on."""

        def changed(frame: Frame) -> Frame:
            self.available = {row["function_id"] for row in frame["data"]["functions"]}
            return {"result": None}

        await self.provide(f"watcher::{uuid.uuid4()}", changed)
        (watcher,) = self.functions
        await self.bind("engine::functions-available", watcher, {})
        listed = await self.call("engine::functions::list", {"include_internal": True})
        if not self.available:  # otherwise a change has told of all of them since
            self.available = {row["function_id"] for row in listed["functions"]}

    async def has(self, *function_ids: str) -> None:
        """Wait until all these functions can be called."""
        await self.until(lambda: self.available >= set(function_ids), f"functions {function_ids}")

    async def lacks(self, *function_ids: str) -> None:
        """Wait until none of these functions is there any more."""
        await self.until(lambda: self.available.isdisjoint(function_ids), f"end of functions {function_ids}")

    async def route(self, path: str) -> None:
        """Wait until an HTTP route is bound: its function is there a moment earlier, and no event tells of routes."""
        with trio.fail_after(DEADLINE_S):
            while True:
                listed = await self.call("engine::registered-triggers::list", {"trigger_type": "http"})
                if any(row["config"].get("api_path") == path for row in listed["registered_triggers"]):
                    return


@define(eq=False)
class RunningEngine:
    """An engine in a process of its own."""

    process: Process
    worker_port: int
    http_port: int
    stream_port: int

    @property
    def url(self) -> str:
        """Where workers connect."""
        return f"ws://127.0.0.1:{self.worker_port}"

    async def get(self, path: str) -> tuple[int, bytes]:
        """`GET` of a path such as `/hello`: status and body."""
        return await trio.to_thread.run_sync(_get, f"http://127.0.0.1:{self.http_port}{path}")


def _get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=DEADLINE_S) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@define(eq=False)
class Lab:
    """What one test runs; everything ends with the test, the last one started first."""

    nursery: trio.Nursery
    directory: Path
    processes: list[Process] = field(factory=list)
    peers: list[Peer] = field(factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of every process: nothing of this machine's own settings, and a home that is thrown away."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("III_", "OTEL_"))}
        return {**kept, "HOME": str(self.directory), "PYTHONUNBUFFERED": "1", **more}

    async def start(self, name: str, *command: str | Path, **environment: str) -> Process:
        """Start a process."""
        popen = await trio.lowlevel.open_process(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            env=self.environment(**environment),
        )
        process = Process(name, popen)
        self.processes.append(process)
        self.nursery.start_soon(process.read, name=f"output of {name}")
        return process

    async def engine(self, *scripts: Path, after: RunningEngine | None = None) -> RunningEngine:
        """Start an engine, on free ports or on those of the one `after` which it comes; it is ready when this returns."""
        ports_file = self.directory / f"ports-{len(self.processes)}.json"
        process = await self.start(
            f"engine {len(self.processes)}",
            sys.executable,
            *("-m", "iii_trio", "serve", *map(str, scripts)),
            *("--port", str(after.worker_port if after else 0)),
            *("--http-port", str(after.http_port if after else 0)),
            *("--stream-port", str(after.stream_port if after else 0)),
            *("--data-dir", str(self.directory / "data"), "--ports-file", str(ports_file)),
        )
        await process.output(lambda lines: any("ports are written to" in line for line in lines))
        ports = json.loads(ports_file.read_text())
        return RunningEngine(process, *(ports[name][1] for name in ("worker", "http", "stream")))

    async def script(self, engine: RunningEngine, interpreter: str | Path, script: Path, *words: str) -> Process:
        """Start a worker script with the interpreter, or other program, that is meant to run it."""
        return await self.start(f"{script.name} {' '.join(words)}", interpreter, script, *words, III_URL=engine.url)

    async def peer(self, engine: RunningEngine) -> Peer:
        """Connect a client that watches the engine's functions."""
        stream = await trio.open_tcp_stream("127.0.0.1", engine.worker_port)
        socket = await wrap_client_stream(
            self.nursery, stream, "127.0.0.1", "/", max_message_size=LARGEST, message_queue_size=1_000
        )
        peer = Peer(stream, socket)
        self.peers.append(peer)
        self.nursery.start_soon(peer.run, name="frames of a client")
        about = {"runtime": "test", "version": "0", "name": f"compat-{len(self.peers)}", "pid": os.getpid()}
        introduce = {"type": "invokefunction", "function_id": "engine::workers::register", "data": about}
        await peer.send({**introduce, "action": {"type": "void"}})
        await peer.watch()
        return peer

    async def command(self, engine: RunningEngine, *words: str) -> Any:
        """Run `python -m iii_trio …` against an engine, in a process of its own; what it prints, read as JSON."""
        with trio.fail_after(DEADLINE_S):
            done = await trio.run_process(
                [sys.executable, "-m", "iii_trio", *words],
                capture_stdout=True,
                env=self.environment(III_URL=engine.url),
                cwd=self.directory,
            )
        return json.loads(done.stdout)

    async def aclose(self) -> None:
        """End everything, also when cancelled; an engine that has logged an error fails the test."""
        for peer in self.peers:
            with trio.move_on_after(1, shield=True):
                await peer.socket.aclose()
            with trio.CancelScope(shield=True):  # closes at once
                await trio.aclose_forcefully(peer.stream)
        for process in reversed(self.processes):
            await process.aclose()
        for process in self.processes:
            if process.name.startswith("engine "):
                bad = [line for line in process.lines if " ERROR " in line or "Traceback" in line]
                assert not bad, f"{process.name} has logged: {bad}"


@asynccontextmanager
async def open_lab(nursery: trio.Nursery, directory: Path) -> AsyncIterator[Lab]:
    """A lab for the length of the block; its tasks run in `nursery`."""
    lab = Lab(nursery, directory)
    try:
        yield lab
    finally:
        await lab.aclose()


def need(there: bool, what: str, remedy: str) -> None:
    """Skip a test that cannot run here. In CI nothing may be missing: there it fails."""
    if not there:
        assert not os.environ.get("CI"), f"in CI {what} must be there: {remedy}"
        pytest.skip(f"{what} is missing: {remedy}")
