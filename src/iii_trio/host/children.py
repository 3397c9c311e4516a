"""Worker scripts as supervised children: ``iii-trio serve SCRIPT…``.

Each script runs under a guard process (``guard.py``), which ends it when the engine goes, however the engine goes. The
engine holds one end of a socket pair, the guard the other as its standard input::

    engine ── socket pair ──▶ guard ── fork, own session ──▶ script and all that it starts
       ◀── "pid N", "exit N" ──┘                                │
       ◀──────────────── standard output and error ────────────┘

One task per script, ``child NAME``, starts it, passes on what it prints, waits for its end and starts it again.
Cancelling that task, because the engine stops or because the source changed, closes the socket: the guard then sends
SIGTERM to the script's process group, and SIGKILL after ``stop_grace_s``. Output is passed on until the very end.
"""

import codecs
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Literal

import trio
import watchfiles
from attrs import define, field, frozen

from ..protocol import limits

_logger = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("guard.py")
LINE_LIMIT = limits.CHILD_LINE_CHARS
"""Characters of one line of output; a longer one is passed on in pieces of this size."""
READ_SIZE = 65_536
RESTART_FIRST_S = 0.5
RESTART_MOST_S = 30.0
RESTART_RESET_S = 60.0
"""A script that lived this long has started well: its next restart comes after ``RESTART_FIRST_S`` again."""
STOP_MARGIN_S = 6.0
"""How much longer than the grace a guard may take until it is killed; it gives up by itself after 5 s."""
LAST_OUTPUT_S = 1.0
"""How long output is still read after the guard's end, should a process have kept the pipe."""
NOT_STARTED = 127
"""The exit status, as in a shell, of a script that could not be started."""

PYTHON_SUFFIXES = frozenset({".py"})
NODE_SUFFIXES = frozenset({".js", ".mjs", ".cjs"})
RUNNABLE_BY_NODE = frozenset({".js", ".mjs"})

ChildState = Literal["starting", "running", "waiting", "finished", "stopped"]
LineLog = Callable[[str, str], None]


class ScriptError(ValueError):
    """A worker script cannot be run; the message says which, why, and what would do."""


@frozen
class Script:
    """A worker script that can be run: where it is, what it is called in the output, and the command that runs it."""

    path: Path
    name: str
    command: tuple[str, ...]
    source_suffixes: frozenset[str]
    """Suffixes of the files whose change may mean another behaviour of the script."""


@frozen
class ChildStatistics:
    """What one child is doing now and what it has done."""

    name: str
    state: ChildState
    """``starting``: its guard is being started; ``running``; ``waiting``: for its restart, or with ``reload`` for a
    change of its source; ``finished``: it exited with status 0; ``stopped``: it was ended with the engine."""
    pid: int | None
    """Process id of the script, which is its process group too; None unless running."""
    guard_pid: int | None
    """Process id of its guard; None unless running."""
    starts: int
    """How often it was started."""
    failures: int
    """How often it ended by itself with a status other than 0."""
    reloads: int
    """How often a change of its source, or of how to connect, ended it or cut short its wait."""
    last_status: int | None
    """How it last ended by itself: an exit status, or minus the number of a signal. None if it never did."""
    lines: int
    """Lines of output passed on."""


@frozen
class ChildrenStatistics:
    """All children, in the order of the command line."""

    children: tuple[ChildStatistics, ...]


def resolve_scripts(scripts: Iterable[str | os.PathLike[str]]) -> tuple[Script, ...]:
    """Check worker scripts and find out how each is run; nothing is started.

    ``.py`` files run with this Python, ``.mjs`` and ``.js`` files with ``node`` from PATH. A script is called by its
    file name without suffix; where two would be called the same, by the path as given, and by that with a number if
    even that is the same.

    Raises ScriptError, which names every script that cannot be run.
    """
    given = [os.fspath(script) for script in scripts]
    problems: list[str] = []
    found: list[Script] = []
    stems = [Path(text).stem for text in given]
    names: set[str] = set()
    for text, stem in zip(given, stems, strict=True):
        path = Path(os.path.abspath(text))
        if path.suffix in PYTHON_SUFFIXES:
            runner, suffixes = sys.executable or None, PYTHON_SUFFIXES
            missing = "the path of this Python interpreter is not known"
        elif path.suffix in RUNNABLE_BY_NODE:
            runner, suffixes = shutil.which("node"), NODE_SUFFIXES
            missing = "it needs Node.js, but there is no 'node' on PATH: install it, or leave the script out"
        else:
            problems.append(f"{text}: not a kind of worker script that can be run here; use .py, .mjs or .js")
            continue
        if not path.is_file():
            problems.append(f"{text}: {'is not a file' if path.exists() else 'no such file'}")
        elif runner is None:
            problems.append(f"{text}: {missing}")
        else:
            name = plain = stem if stems.count(stem) == 1 else text
            copy = 1
            while name in names:
                copy += 1
                name = f"{plain}#{copy}"
            names.add(name)
            found.append(Script(path, name, (runner, str(path)), suffixes))
    if problems:
        raise ScriptError("cannot run " + "; ".join(problems))
    return tuple(found)


def affected_scripts(scripts: Iterable[Script], changed: Iterable[str]) -> set[Script]:
    """The scripts to which changed files matter.

    A file that is itself a script matters to that script alone, any other source file of a script's language to every
    script whose directory it is in, at any depth.
    """
    scripts = tuple(scripts)
    own = {os.path.realpath(script.path): script for script in scripts}
    affected: set[Script] = set()
    for text in changed:
        path = Path(os.path.realpath(text))
        if str(path) in own:
            affected.update(script for script in scripts if os.path.realpath(script.path) == str(path))
            continue
        for script in scripts:
            root = os.path.realpath(script.path.parent)
            if path.suffix in script.source_suffixes and path.is_relative_to(root):
                affected.add(script)
    return affected


@define
class Lines:
    """Bytes of output in, lines of text out: without line ends, at most ``limit`` characters, always valid text."""

    limit: int = LINE_LIMIT
    _text: str = field(init=False, default="")
    _decode: codecs.IncrementalDecoder = field(
        init=False, factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace"), repr=False
    )

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes; returns the lines that they complete."""
        return self._cut(self._decode.decode(data))

    def finish(self) -> list[str]:
        """The output has ended; returns the line that had no end, if there is one."""
        lines = self._cut(self._decode.decode(b"", final=True))
        if self._text:
            lines.append(self._text)
            self._text = ""
        return lines

    def _cut(self, text: str) -> list[str]:
        *whole, self._text = (self._text + text).split("\n")
        lines: list[str] = []
        for line in whole:
            line = line.removesuffix("\r")
            lines.extend(line[at : at + self.limit] for at in range(0, max(len(line), 1), self.limit))
        while len(self._text) > self.limit:
            lines.append(self._text[: self.limit])
            self._text = self._text[self.limit :]
        return lines


@define
class Backoff:
    """How long to wait before a script that failed is started again."""

    first_s: float = RESTART_FIRST_S
    most_s: float = RESTART_MOST_S
    reset_s: float = RESTART_RESET_S
    _next_s: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin again with the shortest wait."""
        self._next_s = self.first_s

    def after(self, lifetime_s: float) -> float:
        """Seconds to wait after a life of ``lifetime_s`` seconds: twice the wait before, up to ``most_s``."""
        if lifetime_s >= self.reset_s:
            self.reset()
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, self.most_s)
        return wait_s


@define(eq=False)
class _Child:
    """One script and its present life."""

    script: Script
    state: ChildState = "starting"
    pid: int | None = None
    guard_pid: int | None = None
    starts: int = 0
    failures: int = 0
    reloads: int = 0
    last_status: int | None = None
    lines: int = 0
    turn: trio.CancelScope = field(factory=trio.CancelScope)
    """One life and the wait after it. A change of the source cancels it; so does the engine's stop, from outside."""

    def statistics(self) -> ChildStatistics:
        return ChildStatistics(
            self.script.name,
            self.state,
            self.pid,
            self.guard_pid,
            self.starts,
            self.failures,
            self.reloads,
            self.last_status,
            self.lines,
        )


def _manner(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


@define(eq=False)
class Children:
    """Supervises worker scripts; ``run`` is the service, to be started in the nursery that owns them.

    ``env`` is added to this process's environment (``III_URL`` belongs there), and so is ``PYTHONUNBUFFERED=1``.
    ``log`` is called with a script's name and a line of its output, in the event loop: it must not block. With
    ``reload`` a script is started again when it or a source file in its directory changes.
    """

    scripts: tuple[Script, ...]
    env: Mapping[str, str]
    log: LineLog
    reload: bool = False
    stop_grace_s: float = 5.0
    _children: tuple[_Child, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._children = tuple(_Child(script) for script in self.scripts)

    def statistics(self) -> ChildrenStatistics:
        """What every child is doing now."""
        return ChildrenStatistics(tuple(child.statistics() for child in self._children))

    def move(self, env: Mapping[str, str]) -> None:
        """Give the scripts another `env`: those that have not finished are started again in it, if it is another one."""
        if env == self.env:
            return
        self.env = env
        for child in self._children:
            if child.state != "finished":
                _logger.info("%s has to connect in another way", child.script.name)
                child.turn.cancel()

    async def run(self, *, task_status: trio.TaskStatus["Children"] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all scripts, each started again when it fails: after 0.5 s, then after twice the wait before, up to 30 s.

        A script that exits with status 0 has finished and is not started again; with ``reload`` it is, when its source
        changes. Returns when all have finished, with ``reload`` never. ``task_status.started`` is called with this
        object before the first script is up: a script that fails is no failure of the service.

        If cancelled: stops all children at the same time and returns when they are gone, which takes no longer than
        ``stop_grace_s`` and some seconds.
        """
        async with trio.open_nursery() as nursery:
            for child in self._children:
                nursery.start_soon(self._supervise, child, name=f"child {child.script.name}")
            if self.reload:
                nursery.start_soon(self._watch_sources, name="watch the sources of children")
            task_status.started(self)

    async def _supervise(self, child: _Child) -> None:
        backoff = Backoff()
        try:
            while True:
                with trio.CancelScope() as child.turn:
                    if not await self._take_turn(child, backoff):
                        child.state = "finished"
                        return
                if child.turn.cancelled_caught:
                    child.reloads += 1
                    backoff.reset()
                    _logger.info("%s starts again", child.script.name)
        finally:
            if child.state != "finished":
                child.state = "stopped"

    async def _take_turn(self, child: _Child, backoff: Backoff) -> bool:
        """One life, and the wait after it. Returns whether there is to be another."""
        name = child.script.name
        began = trio.current_time()
        child.state = "starting"
        child.starts += 1
        try:
            status = await self._live(child)
        finally:
            child.pid = child.guard_pid = None
        child.last_status = status
        child.state = "waiting"
        lifetime_s = trio.current_time() - began
        if status:
            child.failures += 1
            wait_s = backoff.after(lifetime_s)
            _logger.warning("%s %s after %.1f s and starts again in %.1f s", name, _manner(status), lifetime_s, wait_s)
            await trio.sleep(wait_s)
        elif self.reload:
            _logger.info("%s has finished and starts again when its source changes", name)
            await trio.sleep_forever()
        else:
            _logger.info("%s has finished", name)
            return False
        return True

    async def _live(self, child: _Child) -> int:
        """Start the script under its guard and stay until both have ended; returns the script's exit status.

        If cancelled: stops the script first, under a shield with a deadline.
        """
        ours, theirs = socket.socketpair()
        with theirs, trio.socket.from_stdlib_socket(ours) as control:
            try:
                guard = await trio.lowlevel.open_process(
                    [sys.executable, "-I", "-S", str(GUARD), str(self.stop_grace_s), *child.script.command],
                    stdin=theirs.fileno(),
                    stdout=PIPE,
                    stderr=STDOUT,
                    env={**os.environ, **self.env, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # Ctrl-C in a terminal is for the engine alone
                )
            except OSError as error:
                _logger.warning("cannot start a process for %s: %s", child.script.name, error)
                return NOT_STARTED
            theirs.close()
            child.guard_pid = guard.pid
            lines = Lines()
            status = None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pass_on, child, guard, lines, name=f"output of {child.script.name}")
                    status = await self._hear(child, control)
                    nursery.cancel_scope.cancel()
            finally:
                control.close()
                with trio.move_on_after(self.stop_grace_s + STOP_MARGIN_S + 2 * LAST_OUTPUT_S, shield=True):
                    await self._end(child, guard, lines)
                self._log_lines(child, lines.finish())
        return -signal.SIGKILL if status is None else status

    async def _hear(self, child: _Child, control: trio.socket.SocketType) -> int | None:
        """Listen to the guard until the script has ended; returns its status, or None if the guard vanished."""
        heard = b""
        while data := await control.recv(256):
            *reports, heard = (heard + data).split(b"\n")
            for report in reports:
                word, _, number = report.partition(b" ")
                if word == b"exit":
                    return int(number)
                child.pid = int(number)
                child.state = "running"
                _logger.info("%s runs with pid %d", child.script.name, child.pid)
        return None

    async def _pass_on(self, child: _Child, guard: trio.Process, lines: Lines) -> None:
        """Pass on output until its end, or until cancelled: another call with the same ``lines`` can then go on."""
        assert guard.stdout is not None
        while data := await guard.stdout.receive_some(READ_SIZE):
            self._log_lines(child, lines.feed(bytes(data)))

    async def _end(self, child: _Child, guard: trio.Process, lines: Lines) -> None:
        """Wait for the guard, which ends everything now that the socket is closed, and for the rest of the output."""
        assert guard.stdout is not None
        async with guard.stdout, trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on, child, guard, lines, name=f"last output of {child.script.name}")
            with trio.move_on_after(self.stop_grace_s + STOP_MARGIN_S):
                await guard.wait()
            if guard.returncode is None or guard.returncode < 0:
                # It never ends by a signal itself: it hangs, or somebody killed it. Then its work falls to us.
                self._kill(child, guard)
            nursery.cancel_scope.deadline = trio.current_time() + LAST_OUTPUT_S
            await guard.wait()

    def _kill(self, child: _Child, guard: trio.Process) -> None:
        _logger.warning("the guard of %s failed; its processes are killed", child.script.name)
        guard.kill()
        if child.pid is not None:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    def _log_lines(self, child: _Child, lines: Sequence[str]) -> None:
        for line in lines:
            child.lines += 1
            self.log(child.script.name, line)

    async def _watch_sources(self) -> None:
        """Cancel the turn of each script whose source changes.

        One thread watches; on cancellation it is told to end, which it does within some 50 ms.
        """
        token = trio.lowlevel.current_trio_token()
        ended = threading.Event()
        roots = sorted({str(script.path.parent) for script in self.scripts})

        def watch() -> None:
            for changes in watchfiles.watch(*roots, stop_event=ended, raise_interrupt=False):
                # A deletion is half of a replacement, or leaves nothing to start.
                there = [path for change, path in changes if change is not watchfiles.Change.deleted]
                token.run_sync_soon(self._sources_changed, there)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._in_thread, watch)
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

    async def _in_thread(self, watch: Callable[[], None]) -> None:
        try:
            await trio.to_thread.run_sync(watch, limiter=trio.CapacityLimiter(1))
        except (OSError, RuntimeError) as error:  # too many files for the system's limits, or no right to read them
            _logger.warning("cannot watch for changes, so scripts are not started again on change: %s", error)

    def _sources_changed(self, paths: Sequence[str]) -> None:
        affected = affected_scripts(self.scripts, paths)
        for child in self._children:
            if child.script in affected:
                child.turn.cancel()


async def run_children(
    scripts: Iterable[str | os.PathLike[str]],
    *,
    env: Mapping[str, str],
    log: LineLog,
    reload: bool = False,
    stop_grace_s: float = 5.0,
    task_status: trio.TaskStatus[Children] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Check the scripts, then run them as ``Children.run`` says. Raises ScriptError before anything is started."""
    children = Children(resolve_scripts(scripts), env, log, reload, stop_grace_s)
    await children.run(task_status=task_status)
