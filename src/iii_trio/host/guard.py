"""The guard of one child process: whatever happens to the engine, the child and all that it started end.

Run as a file, never imported by the engine: ``python -I -S guard.py GRACE_S COMMAND [ARGUMENT…]``. It uses a few
built-in modules only, so that it is up in some milliseconds and is not touched by anything installed beside the engine.

Standard input is one end of a socket pair whose other end only the engine holds. The guard

- starts the command in a session, and so a process group, of its own, with an empty standard input and the guard's own
  standard output and error;
- says ``pid N`` on the socket when the command has started and ``exit N`` when it has ended (negative: the signal that
  ended it), and exits itself with the same status (128 + the signal's number, as shells do);
- stops everything when the socket reaches its end, which an orderly stop and the engine's sudden death look alike, or
  when it is told to end by a signal: SIGTERM to the group, and SIGKILL after GRACE_S seconds to what is left;
- does the same to what the command leaves behind when it ends by itself. On Linux this includes processes that left the
  group: as a child subreaper the guard inherits them when their parents die.

Linux's parent-death signal is no substitute: it follows the thread that forked, and the engine forks in worker threads
which end when they have been idle for some seconds.
"""

import os
import select
import signal
import sys
import time
from types import FrameType

CONTROL_FD = 0
POLL_S = 0.05
"""How often a stop looks for processes that are not the guard's own children; nothing else is polled for."""
AFTER_KILL_S = 5.0
"""How long to wait for killed processes; one that hangs in the kernel must not keep the guard for ever."""
PR_SET_CHILD_SUBREAPER = 36


def inherit_orphans() -> None:
    """Make orphaned descendants children of this process. Without ctypes, or elsewhere than on Linux, do without."""
    if sys.platform != "linux":
        return
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return
    prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def start(command: list[str]) -> int:
    """Fork and execute ``command`` in a new session; returns its pid. A command that cannot run exits with 127."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), CONTROL_FD)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these two, and exec would hand that on
            signal.signal(number, signal.SIG_DFL)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def report(text: str) -> None:
    """Tell the engine, if it is still there; nothing that the guard does depends on it."""
    try:
        os.write(CONTROL_FD, f"{text}\n".encode())
    except OSError:
        pass


def wake_on_signals() -> int:
    """Have SIGCHLD and the signals that ask for an end wake ``select``; returns the pipe that gets their numbers."""

    def noted(_number: int, _frame: FrameType | None) -> None:
        """Nothing to do here: the wake-up pipe has the number."""

    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, noted)
    return reading


class Family:
    """The command's process group and the orphans that the guard inherited from it."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.status: int | None = None
        self._inherited = False  # the leader has ended, and something else is our child
        self._told: set[int] = set()  # inherited processes that had their SIGTERM

    def reap(self) -> None:
        """Collect everything that has ended. Sets ``status`` (an exit code, or minus a signal) at the leader's end."""
        self._inherited = False
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                self._inherited = self.status is not None
                return
            if pid == self.leader:
                self.status = os.waitstatus_to_exitcode(wait_status)
                report(f"exit {self.status}")

    def is_gone(self) -> bool:
        """Whether nothing is left to signal."""
        if self.status is None or self._inherited:
            return False
        try:
            os.killpg(self.leader, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # macOS says this of a group that holds nothing but zombies
            return True
        return False

    def terminate(self) -> None:
        """Send SIGTERM to the group, once."""
        self._send_to_group(signal.SIGTERM)

    def terminate_orphans(self) -> None:
        """Send SIGTERM to each inherited process that has not had it; more of them appear as their parents die."""
        for pid in self._orphans() if self._inherited else ():
            if pid not in self._told:
                self._told.add(pid)
                send(pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to everything that is left."""
        self._send_to_group(signal.SIGKILL)
        for pid in self._orphans() if self._inherited else ():
            send(pid, signal.SIGKILL)

    def _send_to_group(self, number: int) -> None:
        try:
            os.killpg(self.leader, number)
        except ProcessLookupError:
            if self.status is None:  # forked, but not yet at the head of its own session
                send(self.leader, number)
        except PermissionError:
            pass

    def _orphans(self) -> list[int]:
        """The guard's own children other than the leader: Linux only, elsewhere there are none."""
        found: list[int] = []
        if sys.platform != "linux":
            return found
        mine = str(os.getpid()).encode()
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == self.leader:
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    # "pid (name) state parent …"; the name may hold anything, a bracket too.
                    parent = stat.read().rpartition(b")")[2].split()[1]
            except (OSError, IndexError):
                continue
            if parent == mine:
                found.append(int(name))
        return found


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended, or may have become somebody else's."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def engine_is_gone(ready: list[int]) -> bool:
    """Whether the control socket has reached its end. The engine sends nothing, so there is only that to read."""
    if CONTROL_FD not in ready:
        return False
    try:
        return not os.read(CONTROL_FD, 64)
    except OSError:
        return True


def asked_to_end(wake: int, ready: list[int]) -> bool:
    """Empty the wake-up pipe; says whether anything but SIGCHLD was in it."""
    if wake not in ready:
        return False
    try:
        return any(number != signal.SIGCHLD for number in os.read(wake, 4096))
    except BlockingIOError:
        return False


def stop(family: Family, wake: int, grace_s: float) -> None:
    """End everything: SIGTERM, SIGKILL after the grace, and give up on what even that does not end."""
    kill_at = time.monotonic() + grace_s
    family.terminate()
    while not family.is_gone():
        now = time.monotonic()
        if now >= kill_at + AFTER_KILL_S:
            return
        if now >= kill_at:
            family.kill()
        else:
            family.terminate_orphans()
        ready, _, _ = select.select([wake], [], [], POLL_S if now >= kill_at else min(POLL_S, kill_at - now))
        asked_to_end(wake, ready)  # it is ending: only to empty the pipe
        family.reap()


def watch(command: list[str], grace_s: float) -> int:
    """Run ``command`` until it ends or must end; returns the status to exit with."""
    inherit_orphans()
    leader = start(command)  # before the handlers are set: a signal must end a child that has not called exec yet
    wake = wake_on_signals()
    family = Family(leader)
    report(f"pid {leader}")
    while True:
        family.reap()
        if family.status is not None:
            break
        ready, _, _ = select.select([CONTROL_FD, wake], [], [])
        if asked_to_end(wake, ready) or engine_is_gone(ready):
            break
    stop(family, wake, grace_s)
    if family.status is None:
        return 128 + signal.SIGKILL
    return family.status if family.status >= 0 else 128 - family.status


if __name__ == "__main__":
    sys.exit(watch(sys.argv[2:], float(sys.argv[1])))
