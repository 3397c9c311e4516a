"""Random walks of state machines over the synchronous core."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def one(data: st.DataObject, things: list[Any]) -> Any:
    """One of them, drawn as a number: a whole engine makes a long report."""
    return things[data.draw(st.integers(0, len(things) - 1))]


def walk(machine: type[RuleBasedStateMachine], examples: int, steps: int, caplog: pytest.LogCaptureFixture) -> None:
    """Run a machine, without the thousands of warnings it earns.

    The walks are the same in every run; new ones are sought by hand, by raising the numbers.
    """
    caplog.set_level("CRITICAL")
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
        ),
    )
