"""The signals that stop the engine: the first is heard whenever it comes, its echo is not a second one."""

import os
import signal
import threading

import pytest
import trio
import trio.testing

from iii_trio.host import signals
from iii_trio.host.signals import StopSignals


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit statuses with which the process would have ended."""
    seen: list[int] = []
    monkeypatch.setattr(os, "_exit", seen.append)
    return seen


@pytest.fixture
def no_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every further signal counts, however soon it comes."""
    monkeypatch.setattr(signals, "ECHO_S", 0.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_wakes_who_waits(number: signal.Signals, statuses: list[int]) -> None:
    with StopSignals() as stop, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert stop.name == ""
            signal.raise_signal(number)
    assert stop.number == number
    assert stop.name == number.name
    assert not statuses


async def test_a_signal_wakes_a_loop_that_sleeps(statuses: list[int]) -> None:
    """It comes from outside, in the middle of the loop's own wait for the system."""
    with StopSignals() as stop, trio.fail_after(5):
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        await stop.wait()
        timer.join()


def test_a_signal_that_came_before_the_loop_is_not_lost(statuses: list[int]) -> None:
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.name == "SIGTERM"
        trio.run(stop.wait)


def test_a_signal_after_the_loop_is_only_noted(statuses: list[int]) -> None:
    async def wait_in_vain() -> None:
        with trio.move_on_after(0):
            await stop.wait()

    with StopSignals() as stop:
        trio.run(wait_in_vain)
        signal.raise_signal(signal.SIGTERM)
        assert stop.name == "SIGTERM"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(
    second: signal.Signals, statuses: list[int], no_echo: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopSignals():
        signal.raise_signal(signal.SIGTERM)
        assert not statuses
        signal.raise_signal(second)
        assert statuses == [128 + second]
    assert capfd.readouterr().err == "a second signal: ending at once\n"


def test_an_echo_of_the_first_signal_is_no_second_one(statuses: list[int]) -> None:
    with StopSignals():
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert not statuses


def test_what_was_there_before_is_there_again() -> None:
    before = [signal.getsignal(number) for number in signals.STOP_SIGNALS]
    with StopSignals():
        assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] != before
    assert [signal.getsignal(number) for number in signals.STOP_SIGNALS] == before
