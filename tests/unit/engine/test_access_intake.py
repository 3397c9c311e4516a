"""The intake of one connection without any connection: what waits for what, in which order, and what it costs."""

from collections.abc import Callable
from typing import Any

import pytest

from iii_trio.engine.admission import Intake
from iii_trio.protocol.limits import PARKED_BYTES, PARKED_FRAMES


class Frames:
    """An intake whose frames write down that they were applied."""

    def __init__(self, *, opened: bool = True) -> None:
        self.done: list[str] = []
        self.paused: list[bool] = []
        self.intake = Intake(lambda: self.paused.append(True), lambda: self.paused.append(False))
        if opened:
            self.intake.open()

    def register(self, name: str, function_id: str | None = None, *, hook: bool = False, size: int = 1) -> None:
        def apply() -> None:
            self.done.append(name)
            if hook:
                self.intake.hold()

        self.intake.register(apply, size, function_id)

    def call(self, name: str, function_id: str, call_id: str | None = None) -> None:
        apply: Callable[[], Any] = lambda: self.done.append(name)  # noqa: E731
        if self.intake.holds_call(function_id):
            self.intake.park_call(apply, 1, function_id, call_id)
        else:
            apply()


def test_registrations_wait_for_the_namespace_and_calls_for_their_registration() -> None:
    frames = Frames(opened=False)
    frames.register("register f", "f")
    frames.call("call f", "f")
    frames.call("call g", "g")
    frames.register("register h", "h")
    assert frames.done == ["call g"]
    assert frames.intake.statistics().parked == 3
    frames.intake.open()
    assert frames.done == ["call g", "register f", "call f", "register h"]
    assert frames.intake.statistics().parked_bytes == 0
    assert frames.intake.statistics().open
    frames.call("call f again", "f")
    assert frames.done[-1] == "call f again"


def test_a_running_hook_holds_registrations_and_only_the_calls_that_need_it() -> None:
    frames = Frames()
    frames.register("register f", "f", hook=True)
    frames.register("register g", "g")
    frames.call("call f", "f")
    frames.call("call g", "g")
    frames.call("call h", "h")
    assert frames.done == ["register f", "call h"]
    assert not frames.intake.statistics().open
    frames.intake.release()
    assert frames.done == ["register f", "call h", "call f", "register g", "call g"]
    assert frames.intake.statistics().open


def test_hooks_run_one_after_the_other() -> None:
    frames = Frames()
    for name in "abc":
        frames.register(name, name, hook=True)
    frames.call("call a", "a")
    frames.call("call c", "c")
    assert frames.done == ["a"]
    frames.intake.release()
    assert frames.done == ["a", "call a", "b"]
    frames.intake.release()
    frames.intake.release()
    assert frames.done == ["a", "call a", "b", "c", "call c"]


def test_a_hook_that_answers_at_once_holds_nothing() -> None:
    frames = Frames()

    def apply() -> None:
        frames.intake.hold()
        frames.done.append("f")
        frames.intake.release()

    frames.intake.register(apply, 1, "f")
    frames.intake.register(apply, 1, "f")
    assert frames.done == ["f", "f"]
    assert frames.intake.statistics().open


def test_a_call_is_made_between_what_came_before_and_after_it() -> None:
    frames = Frames(opened=False)
    frames.register("register f", "f")
    frames.call("call f", "f")
    frames.register("unregister f", "f")
    frames.call("call nobody", "f")
    frames.intake.open()
    assert frames.done == ["register f", "call f", "unregister f", "call nobody"]


def test_without_a_permitted_namespace_calls_do_not_wait() -> None:
    frames = Frames(opened=False)
    frames.register("register f", "f")
    frames.call("call f", "f")
    frames.intake.bar()
    frames.call("call f again", "f")
    assert frames.done == ["call f", "call f again"]
    frames.intake.open()
    assert frames.done[-1] == "register f"


@pytest.mark.parametrize(("frames_at_a_time", "size"), [(PARKED_FRAMES, 1), (4, PARKED_BYTES // 4)])
def test_beyond_the_bounds_nothing_is_read_until_half_of_it_is_gone(frames_at_a_time: int, size: int) -> None:
    frames = Frames()
    frames.register("hook", hook=True)
    for n in range(frames_at_a_time):
        frames.register(str(n), hook=n == frames_at_a_time // 2, size=size)
    assert frames.paused == [True]
    frames.intake.release()
    assert frames.paused == [True, False]
    frames.intake.release()
    assert frames.intake.statistics().parked == 0
    assert frames.paused == [True, False]


def test_a_call_that_waits_can_be_withdrawn() -> None:
    frames = Frames()
    frames.register("register f", "f", hook=True)
    frames.register("register g", "g")
    frames.call("call f", "f", "1")
    frames.call("call g", "g", "2")
    assert frames.intake.withdraw("1")
    assert frames.intake.withdraw("2")
    assert not frames.intake.withdraw("2")
    frames.intake.release()
    assert frames.done == ["register f", "register g"]
    assert frames.intake.statistics().parked_bytes == 0


def test_the_end_of_a_connection_drops_what_waits() -> None:
    frames = Frames()
    frames.register("register f", "f", hook=True)
    frames.register("register g", "g")
    frames.call("call f", "f")
    frames.intake.discard()
    assert frames.intake.statistics().parked == 0
    frames.intake.release()
    assert frames.done == ["register f"]


def test_an_end_in_the_middle_of_applying_drops_the_rest() -> None:
    frames = Frames(opened=False)
    frames.register("register f", "f")
    frames.call("call f", "f")
    frames.intake.register(frames.intake.discard, 1, None)
    frames.register("register g", "g")
    frames.intake.open()
    assert frames.done == ["register f", "call f"]
    assert frames.intake.statistics().parked == 0


def test_an_end_in_the_middle_of_calls_drops_the_rest() -> None:
    frames = Frames(opened=False)
    frames.register("register f", "f")
    frames.intake.park_call(frames.intake.discard, 1, "f", None)
    frames.call("call f", "f")
    frames.register("register g", "g")
    frames.intake.bar()
    frames.intake.open()
    assert frames.done == []
    assert frames.intake.statistics().parked == 0


def test_a_call_that_opens_the_gate_does_not_let_a_registration_pass_the_calls_before_it() -> None:
    frames = Frames()
    frames.register("register f", "f", hook=True)
    frames.intake.park_call(frames.intake.open, 1, "f", None)
    frames.call("call f", "f")
    frames.register("unregister f", "f")
    frames.intake.release()
    assert frames.done == ["register f", "call f", "unregister f"]
