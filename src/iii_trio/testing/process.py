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

START_S = 30.0
STOP_S = 20.0


class EngineFailed(AssertionError):
    """The engine ended, or did not start in time; the text has its output."""


@define(eq=False)
class EngineProcess:
    """A running engine. `url` is for workers, `http` the base URL of its HTTP port, `output` what it has printed."""

    process: trio.Process
    port: int = 0
    http_port: int = 0
    output: list[str] = field(factory=list)
    _ready: trio.Event = field(factory=trio.Event)
    _ended: trio.Event = field(factory=trio.Event)

    @property
    def url(self) -> str:
        """Where workers connect."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def http(self) -> str:
        """Where HTTP requests go."""
        return f"http://127.0.0.1:{self.http_port}"

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        await self._ended.wait()

    async def stop(self) -> int:
        """SIGTERM, and wait for the end; returns the exit status. Raises `EngineFailed` after 20 s."""
        self.process.send_signal(signal.SIGTERM)
        return await self.wait()

    async def wait(self) -> int:
        """Wait for the end, at most 20 s; returns the exit status."""
        with trio.move_on_after(STOP_S):
            await self._ended.wait()
            status = self.process.returncode
            assert status is not None
            return status
        raise EngineFailed(f"still running after {STOP_S} s:\n" + "\n".join(self.output))

    async def _read(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.output.append(line.decode(errors="replace"))
                if b"ports are written to" in line:
                    self._ready.set()
        await self.process.wait()
        self._ended.set()
        self._ready.set()


@asynccontextmanager
async def run_engine(
    directory: Path,
    *arguments: str,
    port: int = 0,
    http_port: int = 0,
    environ: Mapping[str, str] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "iii_trio"),
) -> AsyncIterator[EngineProcess]:
    """An engine that keeps its data in `directory`, for the length of the block; it is killed at the end if it runs.

    `arguments` go to `serve`; port 0 takes a free one. Raises `EngineFailed` with its output when it does not start.
    """
    ports = directory / "ports.json"
    process = await trio.lowlevel.open_process(
        [
            *command,
            "serve",
            *arguments,
            *("--data-dir", str(directory / "data"), "--ports-file", str(ports), "--log-format", "text"),
            *("--port", str(port), "--http-port", str(http_port)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environ,
        cwd=directory,
    )
    engine = EngineProcess(process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine._read, name="engine output")
        try:
            with trio.move_on_after(START_S):
                await engine._ready.wait()
            if not engine._ready.is_set() or engine._ended.is_set():
                raise EngineFailed("the engine did not start:\n" + "\n".join(engine.output))
            bound = json.loads(ports.read_text())
            engine.port = bound["worker"][1]
            engine.http_port = bound.get("http", (None, 0))[1]
            yield engine
        finally:
            process.kill()
            with trio.move_on_after(STOP_S) as waiting:
                waiting.shield = True  # the block may have been cancelled, and the reading task with it
                await process.wait()
                assert process.stdout is not None
                await process.stdout.aclose()
            nursery.cancel_scope.cancel()
