"""An engine as a real process, for tests that kill it, restart it, or connect other programs to it."""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

START_S = 60.0
STOP_S = 20.0
COMMAND = (sys.executable, "-m", "iii_trio")


class EngineFailed(AssertionError):
    """The engine ended, did not start in time, or did not print what was waited for; the text has its output."""


@define(eq=False)
class EngineProcess:
    """A running engine. `url` is for workers, `http` the base URL of its HTTP port, `output` what it has printed."""

    process: trio.Process
    port: int = 0
    http_port: int = 0
    stream_port: int = 0
    output: list[str] = field(factory=list)
    _ended: bool = field(default=False, init=False)
    _news: trio.Event = field(factory=trio.Event, init=False)

    @property
    def url(self) -> str:
        """Where workers connect."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http(self) -> str:
        """Where HTTP requests go."""
        return f"http://127.0.0.1:{self.http_port}"

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal, and wait for nothing."""
        self.process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        await self.wait()

    async def stop(self) -> int:
        """SIGTERM, and wait for the end; returns the exit status. Raises `EngineFailed` after 20 s."""
        self.signal()
        return await self.wait()

    async def wait(self) -> int:
        """Wait for the end, and the last line of output, at most 20 s; returns the exit status."""
        with trio.move_on_after(STOP_S):
            while not self._ended:
                await self._news.wait()
            status = self.process.returncode
            assert status is not None
            return status
        raise self._failed(f"still running after {STOP_S} s")

    async def line(self, text: str, count: int = 1) -> str:
        """Wait until `count` lines with `text` in them have been printed; returns the last of those.

        Raises `EngineFailed` when the engine ends without, or after 60 s.
        """
        with trio.move_on_after(START_S):
            while True:
                found = [line for line in self.output if text in line]
                if len(found) >= count:
                    return found[count - 1]
                if self._ended:
                    raise self._failed(f"the engine has ended without printing {text!r} ({count})")
                await self._news.wait()
        raise self._failed(f"no {text!r} ({count}) after {START_S} s")

    def _failed(self, what: str) -> EngineFailed:
        return EngineFailed(f"{what}:\n" + "\n".join(self.output))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            self.output += [line.decode(errors="replace") for line in lines]
            self._tell()
        await self.process.wait()
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def start_engine(
    directory: Path,
    *arguments: str,
    port: int = 0,
    http_port: int = 0,
    stream_port: int = 0,
    environ: Mapping[str, str] | None = None,
    command: Sequence[str] = COMMAND,
) -> AsyncIterator[EngineProcess]:
    """As `run_engine`, but the block begins at once: it may signal an engine that starts, or see it fail."""
    process = await trio.lowlevel.open_process(
        [
            *command,
            "serve",
            *("--data-dir", str(directory / "data"), "--ports-file", str(directory / "ports.json")),
            *("--port", str(port), "--http-port", str(http_port), "--stream-port", str(stream_port)),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environ,
        cwd=directory,
    )
    engine = EngineProcess(process)
    assert process.stdout is not None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine._read, name="engine output")
            try:
                yield engine
            finally:
                process.kill()
                with trio.move_on_after(STOP_S, shield=True):  # the block may have been cancelled
                    await process.wait()
                nursery.cancel_scope.cancel()
    finally:
        with trio.move_on_after(STOP_S, shield=True):
            await process.stdout.aclose()


@asynccontextmanager
async def run_engine(
    directory: Path,
    *arguments: str,
    port: int = 0,
    http_port: int = 0,
    stream_port: int = 0,
    environ: Mapping[str, str] | None = None,
    command: Sequence[str] = COMMAND,
) -> AsyncIterator[EngineProcess]:
    """An engine that keeps its data in `directory`, for the length of the block; it is killed at the end if it runs.

    `arguments` go to `serve`; port 0 takes a free one. Raises `EngineFailed` with its output when it does not start.
    """
    ports = {"port": port, "http_port": http_port, "stream_port": stream_port}
    starting = start_engine(directory, *arguments, **ports, environ=environ, command=command)
    async with starting as engine:
        await engine.line("ports are written to")
        bound = json.loads((directory / "ports.json").read_text())
        engine.port = bound["worker"][1]
        engine.http_port = bound.get("http", (None, 0))[1]
        engine.stream_port = bound.get("stream", (None, 0))[1]
        yield engine
