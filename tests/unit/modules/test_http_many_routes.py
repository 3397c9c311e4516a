"""Ten thousand routes: what one more costs does not depend on how many there are."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from iii_trio.engine import Binding
from iii_trio.engine.triggers import Reason
from iii_trio.modules.http import routes
from iii_trio.modules.http.routes import Routes
from iii_trio.protocol import Json


def binding(number: int, path: str) -> Binding:
    config = Json.of({"api_path": path.format(number), "http_method": "GET"})
    return Binding(id=f"t{number}", trigger_type="http", function_id="f", config=config)


def lines(work: Callable[[], Any]) -> int:
    """How many lines of the route table's code run."""
    ran = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal ran
        if frame.f_code.co_filename != routes.__file__:
            return None
        ran += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return ran


@pytest.mark.parametrize("path", ["/r{}/x", "/x/r{}", "/:id/r{}/*rest", "/a/b/c/d/{}"])
def test_one_more_route_costs_the_same_with_ten_thousand(path: str) -> None:
    table = Routes()
    table.bind(binding(-1, path))  # what the paths have in common
    costs = {}
    for number in range(10_000):
        if number in (0, 100, 9_999):
            costs[number] = lines(lambda number=number: table.bind(binding(number, path)))  # type: ignore[misc]
        else:
            table.bind(binding(number, path))
    assert len(set(costs.values())) == 1
    assert 0 < costs[0] < 200
    assert table.statistics().serving == 10_001
    leaving = [
        lines(lambda number=number: table.unbind(binding(number, path), Reason.UNREGISTERED))  # type: ignore[misc]
        for number in (5_000, 9_999)
    ]
    assert leaving[0] == leaving[1]
