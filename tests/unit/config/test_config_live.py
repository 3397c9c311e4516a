"""`Live`: a value, the callbacks that hear of its change, the tasks that wait for it."""

import pytest
import trio
import trio.testing

from iii_trio.config import Live, LiveStatistics


def test_set_changes_tells_and_ignores_equal_values() -> None:
    live: Live[tuple[int, ...]] = Live((1, 2))
    heard: list[object] = []
    live.subscribe(lambda old, new: heard.append((old, new, live.value)))
    assert live.set((1, 2)) is False
    assert live.set((3,)) is True
    assert live.value == (3,)
    assert heard == [((1, 2), (3,), (3,))]
    assert live.statistics() == LiveStatistics(revision=1, subscribers=1, waiting=0)


def test_an_ended_subscription_hears_nothing_more() -> None:
    live = Live(0)
    heard: list[str] = []
    first = live.subscribe(lambda _, new: heard.append(f"first {new}"))
    live.subscribe(lambda _, new: heard.append(f"second {new}"))
    live.set(1)
    first()
    first()
    live.set(2)
    assert heard == ["first 1", "second 1", "second 2"]


def test_a_subscription_may_end_itself_while_it_is_told() -> None:
    live = Live(0)
    heard: list[int] = []

    def once(_: int, new: int) -> None:
        heard.append(new)
        end()

    end = live.subscribe(once)
    live.subscribe(lambda _, new: heard.append(-new))
    live.set(1)
    live.set(2)
    assert heard == [1, -1, -2]


async def test_changed_wakes_every_waiter(nursery: trio.Nursery) -> None:
    live = Live("a")
    seen: list[str] = []

    async def follow() -> None:
        seen.append(await live.changed("a"))

    nursery.start_soon(follow)
    nursery.start_soon(follow)
    await trio.testing.wait_all_tasks_blocked()
    assert live.statistics().waiting == 2
    live.set("b")
    await trio.testing.wait_all_tasks_blocked()
    assert seen == ["b", "b"]
    assert live.statistics().waiting == 0


async def test_a_change_before_waiting_is_not_missed() -> None:
    live = Live("a")
    seen = live.value
    live.set("b")
    with trio.testing.assert_checkpoints():
        assert await live.changed(seen) == "b"


async def test_a_cancelled_wait_leaves_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    live = Live("a")
    with trio.move_on_after(1) as scope:
        await live.changed("a")
    assert scope.cancelled_caught
    assert live.statistics().waiting == 0
    live.set("b")
    assert await live.changed("a") == "b"


def test_the_value_has_changed_even_if_a_subscriber_fails() -> None:
    live = Live(0)

    def fail(old: int, new: int) -> None:
        raise RuntimeError("subscriber")

    live.subscribe(fail)
    with pytest.raises(RuntimeError, match="subscriber"):
        live.set(1)
    assert live.value == 1
